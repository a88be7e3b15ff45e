//! A [`Store`] over any [`Register`]: one law, whatever keeps the records.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::{
    Capabilities, Examination, Inspected, Listing, Observer, Register, Scope, SetUp, Store, StoreError, Watch,
};
use crate::model::{
    Answer, Ask, Ending, Fence, Info, Key, LeaseId, LevelId, Passage, Patience, Record, Released, Renewed,
    SIGN_OF_LIFE, Stamp, Unlocked,
};

/// Runs the law of leases inside the transactions of a register.
#[derive(Debug)]
pub struct Ledger<R>(R);

impl<R: Register> Ledger<R> {
    /// The store over `register`.
    pub const fn new(register: R) -> Self {
        Self(register)
    }

    /// Asks whether a command with this fence may use the resource `key` that `level` holds; see [`Record::pass`].
    ///
    /// # Errors
    /// [`StoreError`]: it is not known whether the fence is remembered.
    pub fn pass(&self, key: &Key, level: LevelId, fence: Fence) -> Result<Passage, StoreError> {
        self.0.transact(key, Some(level), None, |record, _| record.pass(level, fence))
    }

    /// The register.
    pub const fn register(&self) -> &R {
        &self.0
    }

    /// Where the register itself sees a process die, neither a place in the queue nor the hold of a `run`
    /// goes by time; elsewhere both do.
    fn fit(&self, ask: &Ask) -> Ask {
        let mut ask = ask.clone();
        if self.0.capabilities().beats {
            if ask.patience == Patience::Attended {
                ask.patience = Patience::SignOfLife(SIGN_OF_LIFE);
            }
            return ask;
        }
        ask.ttl = ask.ttl.filter(|_| !ask.attended);
        if ask.patience != Patience::None {
            ask.patience = Patience::Attended;
        }
        ask
    }
}

impl<R: Register> Store for Ledger<R> {
    fn identity(&self) -> &str {
        self.0.identity()
    }

    fn describe(&self) -> String {
        self.0.describe()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn acquire(&self, key: &Key, ask: &Ask, within: Duration) -> Result<Answer, StoreError> {
        let ask = self.fit(ask);
        self.0.transact(key, Some(ask.level), Some(within), |record, clock| record.acquire(clock, &ask))
    }

    fn renew(&self, key: &Key, level: LevelId, ttl: Duration, within: Duration) -> Result<Renewed, StoreError> {
        self.0.transact(key, Some(level), Some(within), |record, clock| record.renew(clock, level, ttl))
    }

    fn release(
        &self,
        key: &Key,
        level: LevelId,
        ending: Option<Ending>,
        within: Duration,
    ) -> Result<Released, StoreError> {
        self.0.transact(key, Some(level), Some(within), |record, clock| record.release(clock, level, ending.clone()))
    }

    fn revoke(&self, key: &Key, leases: &[LeaseId], force: bool, by: &Info) -> Result<Unlocked, StoreError> {
        self.0.transact(key, None, None, |record, clock| record.unlock(clock, leases, force, by))
    }

    fn inspect(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        self.0.read(key)
    }

    fn inspect_all(&self, keys: &[Key]) -> Result<Vec<Inspected>, StoreError> {
        self.0.read_all(keys)
    }

    fn now(&self) -> Stamp {
        self.0.now()
    }

    fn ask_clock(&self) -> Result<Stamp, StoreError> {
        self.0.ask_clock()
    }

    fn clock_grain(&self) -> Duration {
        self.0.clock_grain()
    }

    fn examine(&self, silence: Duration) -> Result<Examination, StoreError> {
        self.0.examine(silence)
    }

    fn set_up(&self, _: &dyn Fn() -> bool) -> Result<SetUp, StoreError> {
        self.0.set_up()
    }

    fn set_up_script(&self) -> Option<String> {
        self.0.set_up_script()
    }

    fn list(&self, scope: Scope) -> Result<Listing, StoreError> {
        Ok(Listing { keys: self.0.keys(scope)?, unseen: Vec::new() })
    }

    fn observe(&self, key: Option<&Key>) -> Result<Box<dyn Observer>, StoreError> {
        self.0.observe(key)
    }

    fn await_change(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), StoreError> {
        self.0.await_change(key, watch, timeout)
    }

    fn sign_of_life(&self, level: LevelId) -> Result<Option<OwnedFd>, StoreError> {
        self.0.sign_of_life(level)
    }
}
