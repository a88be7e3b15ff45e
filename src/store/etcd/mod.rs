//! etcd: a key for each record, which is written only over the revision that was read, and a key for each level, which is tied
//! to a lease of etcd's and shows that its owner lives. Whoever waits watches his own.

mod address;
mod api;
mod connection;
mod events;
mod examine;
mod lease;
mod look;
mod observe;
mod transact;
mod trouble;
mod wait;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

pub use self::address::Address as EtcdAddress;
use self::address::end_of;
use self::api::Range;
use self::connection::{Connection, Login};
use self::look::{Left, Reading, Sightings};
use self::trouble::{Failure, Said};
use super::idle::Pool;
use super::tls::TlsConfig;
use super::{Capabilities, Examination, Inspected, Observer, Register, Scope, StoreError, Watch, lock};
use crate::clock::Moment;
use crate::model::{Clock, Key, LevelId, Record, Stamp};

/// How many records, or names, are asked for at once.
const MANY: u32 = 200;

/// A register in etcd.
pub struct EtcdRegister {
    address: EtcdAddress,
    identity: String,
    tls: TlsConfig,
    login: Arc<Login>,
    /// How long what has no limit of its own may take.
    patience: Duration,
    idle: Pool<Connection>,
    /// Which member to try first: the one that answered last.
    first: AtomicUsize,
    /// Which cluster has answered.
    cluster: OnceLock<u64>,
    sightings: Mutex<Sightings>,
    /// Leases that were made for a level, until it is known what became of it.
    made: Mutex<HashMap<LevelId, Vec<i64>>>,
    /// What we left behind of a key when we got it, or began to wait for it.
    left: Mutex<Option<Left>>,
    /// Tests rule time; nobody else does.
    clock: Mutex<Option<Stamp>>,
}

impl EtcdRegister {
    /// The register at `address`. Connects when it is asked for something; what has no limit of its own may take
    /// `patience`.
    #[must_use]
    pub fn new(address: &EtcdAddress, patience: Duration) -> Self {
        Self {
            identity: address.identity(),
            login: Arc::new(Login::new(address)),
            address: address.clone(),
            tls: TlsConfig::default(),
            patience,
            idle: Pool::default(),
            first: AtomicUsize::new(0),
            cluster: OnceLock::new(),
            sightings: Mutex::default(),
            made: Mutex::default(),
            left: Mutex::default(),
            clock: Mutex::default(),
        }
    }

    /// Makes this the clock of all that follows, for tests of the law. As long as there is one, nobody dies but by it.
    pub fn set_clock(&self, now: Option<Stamp>) {
        *lock(&self.clock) = now;
    }

    fn error(&self, failure: Failure) -> StoreError {
        failure.at(&self.address)
    }

    fn until(&self) -> Moment {
        Moment::now().after(self.patience)
    }

    /// Does what changes nothing, or can be done twice, over a connection that is idle or a new one to the first member
    /// that can do it. Of one on which it failed nobody knows what will still come.
    fn with_connection<T>(
        &self,
        until: Moment,
        mut work: impl FnMut(&mut Connection, Moment) -> Result<T, Failure>,
    ) -> Result<(Connection, T), Failure> {
        let hosts = &self.address.hosts;
        let many = hosts.len();
        // One that is silent leaves time for the others.
        let share = |left: usize| Moment::now().after(until.left() / u32::try_from(left.max(1)).unwrap_or(u32::MAX));
        let mut failed: Vec<Failure> = Vec::new();
        if let Some(mut connection) = self.idle.take(None, 0) {
            match work(&mut connection, share(many)) {
                Ok(done) => return Ok((connection, done)),
                Err(failure) => {
                    let failure = failure.by(&connection.server);
                    self.leave(&connection.server, &failure);
                    if !failure.may_be_the_server() {
                        return Err(failure.before());
                    }
                }
            }
        }
        let first = self.first.load(Ordering::Relaxed) % many;
        for at in 0..many {
            let number = (first + at) % many;
            let server = &hosts[number];
            let until = share(many - at);
            let opened = Connection::open(server, &self.address, &self.tls, &self.login, until);
            let done = opened.and_then(|mut connection| work(&mut connection, until).map(|done| (connection, done)));
            match done {
                Ok(done) => {
                    self.first.store(number, Ordering::Relaxed);
                    return Ok(done);
                }
                Err(failure) => {
                    let failure = failure.by(server);
                    self.leave(server, &failure);
                    if !failure.may_be_the_server() {
                        return Err(failure.before());
                    }
                    failed.push(failure);
                }
            }
        }
        Err(self.of_all(failed).before())
    }

    /// What went wrong with each member. That one refuses us matters more than that others are away.
    fn of_all(&self, mut failed: Vec<Failure>) -> Failure {
        if let Some(at) = failed.iter().position(|failure| matches!(failure.bare(), Failure::Tls(_))) {
            return failed.swap_remove(at);
        }
        match failed.len() {
            0 => Failure::Silent,
            1 => failed.swap_remove(0),
            _ => Failure::Said(Said::Nobody(failed.into_iter().map(|failure| self.error(failure).words).collect())),
        }
    }

    /// Something went wrong with this member: another one is asked first from now on.
    fn leave(&self, server: &super::socket::Endpoint, failure: &Failure) {
        if failure.may_be_the_server() {
            self.idle.retain(|connection| connection.server != *server);
            if let Some(number) = self.address.hosts.iter().position(|host| host == server) {
                self.first.store(number + 1, Ordering::Relaxed);
            }
        }
    }

    /// The same, and the connection is kept.
    fn with<T>(&self, work: impl FnMut(&mut Connection, Moment) -> Result<T, Failure>) -> Result<T, StoreError> {
        let (connection, done) = self.with_connection(self.until(), work).map_err(|failure| self.error(failure))?;
        self.idle.keep(connection);
        Ok(done)
    }

    /// The keys of which something is kept: their records, or signs of life.
    fn names(&self, records: bool) -> Result<Vec<Key>, StoreError> {
        let all = self.address.all();
        self.with(|connection, until| {
            let mut keys = BTreeSet::new();
            let mut from = all.clone();
            loop {
                let some: Range = connection.ask(&api::range(&from, &end_of(&all), MANY), until)?;
                for kv in &some.kvs {
                    match self.address.meaning(&kv.key) {
                        Some((key, is_record)) if is_record == records => drop(keys.insert(key)),
                        Some(_) => {}
                        None => log::warn!("'{}' is the name of no key of dlock's", kv.key),
                    }
                }
                match some.kvs.last().filter(|_| some.more) {
                    Some(last) => from = format!("{}\0", last.key),
                    None => return Ok(keys.into_iter().collect()),
                }
            }
        })
    }
}

impl Register for EtcdRegister {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn describe(&self) -> String {
        self.address.to_string()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { shared: true, slots: true, fifo: true, beats: true, least_ttl: lease::LEAST_TTL }
    }

    fn transact<T>(
        &self,
        key: &Key,
        me: Option<LevelId>,
        within: Option<Duration>,
        change: impl FnMut(&mut Record, &dyn Clock) -> T,
    ) -> Result<T, StoreError> {
        let until = Moment::now().after(within.unwrap_or(self.patience));
        self.change(key, me, until, change).map_err(|failure| {
            if let Some(server) = failure.server().cloned() {
                self.leave(&server, &failure);
            }
            self.error(failure)
        })
    }

    fn read(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        let all = self.read_all(std::slice::from_ref(key))?;
        all.into_iter().next().unwrap_or(Ok(None))
    }

    fn read_all(&self, keys: &[Key]) -> Result<Vec<Inspected>, StoreError> {
        let mut all = Vec::with_capacity(keys.len());
        for some in keys.chunks(MANY as usize) {
            let readings = self.with(|connection, until| {
                let mut readings = self.look_at_many(connection, some, None, until)?;
                self.add_events(connection, &mut readings, until)?;
                Ok(readings)
            })?;
            let looked_at = |reading: Result<Reading, Failure>| {
                reading.map(Reading::looked_at).map_err(|failure| self.error(failure))
            };
            all.extend(readings.into_iter().map(looked_at));
        }
        Ok(all)
    }

    fn ask_clock(&self) -> Result<Stamp, StoreError> {
        self.with(|connection, until| self.time(connection, until))
    }

    fn clock_grain(&self) -> Duration {
        examine::HALF_A_SECOND
    }

    fn examine(&self, silence: Duration) -> Result<Examination, StoreError> {
        self.look_into(silence)
    }

    fn set_up_script(&self) -> Option<String> {
        Some(examine::script(&self.address))
    }

    fn keys(&self, scope: Scope) -> Result<Vec<Key>, StoreError> {
        self.names(scope == Scope::All)
    }

    fn observe(&self, key: Option<&Key>) -> Result<Box<dyn Observer>, StoreError> {
        let observer = observe::Listener::new(self, key).map_err(|failure| self.error(failure))?;
        Ok(Box::new(observer))
    }

    fn await_change(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), StoreError> {
        self.wait(key, watch, timeout).map_err(|failure| self.error(failure))
    }
}

impl fmt::Debug for EtcdRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdRegister").field("address", &self.address).finish_non_exhaustive()
    }
}
