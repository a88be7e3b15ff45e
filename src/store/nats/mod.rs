//! NATS JetStream: a bucket with a record for each key, which is written only over the version that was read. Who waits hears
//! on a subject of its own.

mod address;
mod bucket;
mod connection;
mod examine;
mod listen;
mod login;
mod nkey;
mod observe;
mod parse;
mod transact;
mod trouble;
mod value;
mod wait;

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub use address::Address as NatsAddress;
use connection::{Connection, plain};
use trouble::Failure;
use value::Reading;

use super::idle::Pool;
use super::tls::TlsConfig;
use super::{Capabilities, Examination, Inspected, Observer, Register, Scope, SetUp, StoreError, Watch, lock};
use crate::clock::Moment;
use crate::model::{Clock, Key, LevelId, Record, Stamp};

/// How many records are asked for at once.
const MANY: usize = 200;

/// A register in a bucket.
pub struct NatsRegister {
    address: NatsAddress,
    identity: String,
    tls: TlsConfig,
    /// Whether a missing bucket is made when a key is asked for.
    makes: bool,
    /// How long what has no limit of its own may take at one server.
    patience: Duration,
    idle: Pool<Connection>,
    /// Which server to try first: not the one that failed last.
    first: AtomicUsize,
    /// The server's clock when it told it last, and ours when we heard it.
    heard: Mutex<Option<Heard>>,
    /// Tests rule time; nobody else does.
    clock: Mutex<Option<Stamp>>,
}

/// What the time was, by whose clock, and when we heard it.
#[derive(Clone)]
struct Heard {
    clock: String,
    stamp: Stamp,
    at: Moment,
}

impl Heard {
    /// What the time is there now, or was a moment ago.
    fn now(&self) -> Stamp {
        self.stamp.after(Moment::now().since(self.at))
    }
}

impl NatsRegister {
    /// The register at `address`. Connects when it is asked for something; what has no limit of its own may take
    /// `patience`. If it `makes` it, a bucket that is missing is made when a key is asked for.
    #[must_use]
    pub fn new(address: &NatsAddress, makes: bool, patience: Duration) -> Self {
        Self {
            identity: address.identity(),
            address: address.clone(),
            tls: TlsConfig::default(),
            makes,
            // One that is silent leaves time for the others.
            patience: patience / u32::try_from(address.hosts.len()).unwrap_or(u32::MAX),
            idle: Pool::default(),
            first: AtomicUsize::new(0),
            heard: Mutex::default(),
            clock: Mutex::default(),
        }
    }

    /// Makes this the clock of all that follows, for tests of the law.
    pub fn set_clock(&self, now: Option<Stamp>) {
        *lock(&self.clock) = now;
    }

    fn error(&self, failure: Failure) -> StoreError {
        let failed = failure.server().and_then(|server| self.address.hosts.iter().position(|host| host == server));
        if let Some(failed) = failed.filter(|_| failure.may_be_the_server() && self.address.hosts.len() > 1) {
            self.first.store(failed + 1, Ordering::Relaxed);
            // What is idle there would cost a try each.
            self.idle.retain(|connection| connection.server != self.address.hosts[failed]);
        }
        failure.at(&self.address)
    }

    fn until(&self) -> Moment {
        Moment::now().after(self.patience)
    }

    fn open(&self, until: Moment) -> Result<Connection, Failure> {
        Connection::open(&self.address, &self.tls, self.first.load(Ordering::Relaxed), until)
    }

    /// Does what changes nothing, or can be done twice, over a connection that is idle or a new one. Of one on which it
    /// failed nobody knows what will still come.
    fn with_connection<T>(
        &self,
        until: Moment,
        mut work: impl FnMut(&mut Connection) -> Result<T, Failure>,
    ) -> Result<(Connection, T), Failure> {
        let work = |mut connection| match work(&mut connection) {
            Ok(done) => Ok((connection, done)),
            Err(failure) => Err(failure.by(&connection.server).before()),
        };
        self.idle.with(None, 0, || self.open(until), work)
    }

    /// The same, and the connection is kept.
    fn with<T>(&self, work: impl FnMut(&mut Connection) -> Result<T, Failure>) -> Result<T, Failure> {
        let (connection, done) = self.with_connection(self.until(), work)?;
        self.idle.keep(connection);
        Ok(done)
    }

    /// What there is of many keys.
    fn look_at_all(&self, connection: &mut Connection, keys: &[Key]) -> Result<Vec<Inspected>, Failure> {
        let mut all = Vec::with_capacity(keys.len());
        for some in keys.chunks(MANY) {
            match self.look_at_many(connection, some, false, self.until())? {
                // There is no bucket.
                None => all.extend(some.iter().map(|_| Ok(None))),
                Some(readings) => {
                    for reading in readings {
                        match reading {
                            Err(failure) if !matches!(failure, Failure::Odd(_)) => return Err(failure),
                            reading => all.push(reading.map(Reading::looked_at).map_err(|failure| self.error(failure))),
                        }
                    }
                }
            }
        }
        Ok(all)
    }

    /// The keys that have a record.
    fn names(&self, connection: &mut Connection) -> Result<Vec<Key>, Failure> {
        let bucket = &self.address.bucket;
        let prefix = bucket.records();
        let mut keys = Vec::new();
        let mut seen = 0;
        loop {
            let ask = serde_json::json!({ "subjects_filter": format!("{prefix}>"), "offset": seen }).to_string();
            let reply = &connection.ask(&[plain(bucket.ask("INFO"), ask)], self.until())?[0];
            let info = bucket::judge(reply, &self.address)?;
            let Some(info) = info else { return Ok(keys) };
            let subjects = info.state.subjects;
            seen += subjects.len();
            let is_last = subjects.is_empty() || seen >= info.total;
            for subject in subjects.into_keys() {
                match subject.strip_prefix(&prefix).and_then(address::decode) {
                    Some(key) => keys.push(key),
                    None => log::warn!("'{subject}' in bucket '{}' is no key", bucket.name),
                }
            }
            if is_last {
                keys.sort_unstable();
                return Ok(keys);
            }
        }
    }

    /// The time, by a server whose bucket need not be there.
    fn time(&self, connection: &mut Connection) -> Result<Stamp, Failure> {
        let probe = Key::parse("clock").map_err(|_| Failure::Garbage)?;
        let reading = self.look_at(connection, &probe, true, self.until())?;
        reading.map_or_else(|| self.time_without_bucket(connection), |reading| Ok(reading.now))
    }
}

impl Register for NatsRegister {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn describe(&self) -> String {
        self.address.to_string()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { shared: true, slots: true, fifo: true, beats: true, least_ttl: Duration::ZERO }
    }

    fn transact<T>(
        &self,
        key: &Key,
        me: Option<LevelId>,
        within: Option<Duration>,
        change: impl FnMut(&mut Record, &dyn Clock) -> T,
    ) -> Result<T, StoreError> {
        let until = Moment::now().after(within.unwrap_or(self.patience));
        self.change(key, me, until, change).map_err(|failure| self.error(failure))
    }

    fn read(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        let reading = self.with(|connection| self.look_at(connection, key, false, self.until()));
        reading.map(|reading| reading.and_then(Reading::looked_at)).map_err(|failure| self.error(failure))
    }

    fn read_all(&self, keys: &[Key]) -> Result<Vec<Inspected>, StoreError> {
        self.with(|connection| self.look_at_all(connection, keys)).map_err(|failure| self.error(failure))
    }

    fn now(&self) -> Stamp {
        // Nothing was heard of a key without a record, and then there is no age to tell.
        lock(&self.heard).as_ref().map_or_else(Stamp::default, Heard::now)
    }

    fn ask_clock(&self) -> Result<Stamp, StoreError> {
        self.with(|connection| self.time(connection)).map_err(|failure| self.error(failure))
    }

    fn examine(&self, silence: Duration) -> Result<Examination, StoreError> {
        self.look_into(silence).map_err(|failure| self.error(failure))
    }

    fn set_up(&self) -> Result<SetUp, StoreError> {
        self.with(|connection| self.prepare(connection)).map_err(|failure| self.error(failure))?;
        Ok(SetUp::Ready)
    }

    fn set_up_script(&self) -> Option<String> {
        Some(bucket::script(&self.address))
    }

    fn keys(&self, _: Scope) -> Result<Vec<Key>, StoreError> {
        self.with(|connection| self.names(connection)).map_err(|failure| self.error(failure))
    }

    fn observe(&self, key: Option<&Key>) -> Result<Box<dyn Observer>, StoreError> {
        let observer = observe::Listener::new(self, key).map_err(|failure| self.error(failure))?;
        Ok(Box::new(observer))
    }

    fn await_change(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), StoreError> {
        self.wait(key, watch, timeout).map_err(|failure| self.error(failure))
    }
}

impl NatsRegister {
    /// Makes the bucket if it is not there, and looks whether it is as locks need it.
    fn prepare(&self, connection: &mut Connection) -> Result<(), Failure> {
        let look = |connection: &mut Connection| {
            let info = connection.ask(&[plain(self.address.bucket.ask("INFO"), "")], self.until())?;
            bucket::judge(&info[0], &self.address)
        };
        if look(connection)?.is_none() {
            bucket::make(connection, &self.address, self.until())?;
            look(connection)?;
        }
        Ok(())
    }
}

impl fmt::Debug for NatsRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsRegister").field("address", &self.address).finish_non_exhaustive()
    }
}
