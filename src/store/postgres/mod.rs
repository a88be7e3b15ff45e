//! PostgreSQL: a row for each key, which is locked while the law works on its record. Who waits hears by LISTEN and NOTIFY,
//! on a channel of its own, where that works; behind a pooler that gives each transaction to another session it looks.

mod address;
mod connection;
mod examine;
mod listen;
mod login;
mod observe;
mod parse;
mod table;
mod tls;
mod transact;
mod trouble;
mod wait;

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde_json::{Value, json};

pub use address::Address as PostgresAddress;
use connection::{Connection, Done, Statement, plain, with};
use listen::Channels;
use table::{CLOCK, Statements};
use transact::Stuck;
use trouble::Failure;

use super::idle::Pool;
use super::tls::TlsConfig;
use super::trouble::no_record;
use super::{Capabilities, Examination, Inspected, Observer, Register, Scope, SetUp, StoreError, Watch, lock};
use crate::clock::Moment;
use crate::model::{Clock, Key, LevelId, Record, Stamp};

/// A register in a database.
pub struct PostgresRegister {
    address: PostgresAddress,
    identity: String,
    statements: Statements,
    channels: Channels,
    tls: TlsConfig,
    /// Whether missing tables are made when a key is asked for.
    makes: bool,
    /// How long what has no limit of its own may take.
    patience: Duration,
    idle: Pool<Connection>,
    /// Connections on which a change got no answer.
    stuck: Mutex<Vec<Stuck>>,
    /// Whether it is known that nobody hears of a NOTIFY on the connections that we get.
    deaf: AtomicBool,
    /// The server's clock when it spoke last, and ours when we heard it.
    heard: Mutex<Option<(Stamp, Moment)>>,
    /// Tests rule time; nobody else does.
    clock: Mutex<Option<Stamp>>,
}

/// A record as it was read: as it is kept, and as it is with the signs of life of those who wait.
struct Reading {
    /// Nothing, if there is no row.
    kept: Option<Record>,
    seen: Record,
    /// The signs of life that there are besides, and until when they are good.
    signed: HashMap<LevelId, Stamp>,
    now: Stamp,
}

impl PostgresRegister {
    /// The register at `address`. Connects when it is asked for something; what has no limit of its own may take
    /// `patience`. If it `makes` them, tables that are missing are made when a key is asked for.
    #[must_use]
    pub fn new(address: &PostgresAddress, makes: bool, patience: Duration) -> Self {
        Self {
            identity: address.identity(),
            statements: Statements::on(&address.table),
            channels: Channels::of(&address.table),
            address: address.clone(),
            tls: TlsConfig::default(),
            makes,
            patience,
            idle: Pool::default(),
            stuck: Mutex::default(),
            deaf: AtomicBool::new(false),
            heard: Mutex::default(),
            clock: Mutex::default(),
        }
    }

    /// Makes this the clock of all that follows, for tests of the law.
    pub fn set_clock(&self, now: Option<Stamp>) {
        *lock(&self.clock) = now;
    }

    fn error(&self, failure: Failure) -> StoreError {
        failure.at(&self.address)
    }

    fn until(&self) -> Moment {
        Moment::now().after(self.patience)
    }

    fn open(&self, until: Moment) -> Result<Connection, Failure> {
        Connection::open(&self.address, &self.tls, until)
    }

    /// Does statements that change nothing, or that can be done twice.
    fn ask(&self, statements: &[Statement], until: Moment) -> Result<Vec<Done>, Failure> {
        self.idle.with(None, 0, || self.open(until), |connection| self.ask_on(connection, statements, until))
    }

    fn ask_on(
        &self,
        mut connection: Connection,
        statements: &[Statement],
        until: Moment,
    ) -> Result<Vec<Done>, Failure> {
        let done = connection.ask(statements, until).map_err(|failure| failure.by(&connection.server));
        match &done {
            Ok(_) => self.idle.keep(connection),
            Err(failure) => self.keep_if_good(connection, failure, until),
        }
        done
    }

    /// Keeps a connection on which something failed, if it can be used again. A standby has a better one beside it.
    fn keep_if_good(&self, mut connection: Connection, failure: &Failure, until: Moment) {
        if !failure.is_silence() && !failure.is_of_a_standby() && connection.roll_back(until) {
            self.idle.keep(connection);
        }
    }

    /// Does a statement that only looks; nothing if the tables are not there.
    fn look(&self, statement: Statement) -> Result<Option<Done>, Failure> {
        match self.ask(&[statement], self.until()) {
            Err(failure) if failure.is_missing_table() => Ok(None),
            done => Ok(done?.pop()),
        }
    }

    /// What a row says: record, clock, and signs of life.
    fn read_row(&self, key: &Key, row: &[Option<String>]) -> Result<Reading, Failure> {
        let column = |at: usize| row.get(at).and_then(|cell| cell.as_deref());
        let now = column(1).and_then(|micros| micros.parse().ok()).ok_or(Failure::Garbage)?;
        self.reading(key, column(0), Stamp::from_micros(now), column(2))
    }

    fn reading(&self, key: &Key, record: Option<&str>, now: Stamp, life: Option<&str>) -> Result<Reading, Failure> {
        *lock(&self.heard) = Some((now, Moment::now()));
        let now = lock(&self.clock).unwrap_or(now);
        let decode = |text: &str| {
            let place = || format!(" in table '{}'", self.address.table.prefix());
            Record::decode(key, text.as_bytes()).map_err(|why| Failure::Odd(no_record(key, &place(), &why)))
        };
        let kept = record.map(decode).transpose()?;
        let mut seen = kept.clone().unwrap_or_else(|| Record::new(key.clone()));
        let signs: HashMap<String, Value> = life.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        // What is no sign of life does not hide those of others.
        let sign = |(lease, until): (&String, &Value)| {
            Some((LevelId::parse(lease).ok()?, Stamp::from_micros(until.as_u64()?)))
        };
        let signs: HashMap<LevelId, Stamp> = signs.iter().filter_map(sign).collect();
        for waiter in &mut seen.queue {
            waiter.until = waiter.until.map(|until| until.max(signs.get(&waiter.lease).copied().unwrap_or(until)));
        }
        Ok(Reading { kept, seen, signed: signs, now })
    }

    fn inspect(&self, key: &Key) -> Result<Option<Record>, Failure> {
        let done = self.look(with(&self.statements.look, [key.as_str().into()]))?;
        let row = done.and_then(|done| done.rows.into_iter().next());
        row.map(|row| self.read_row(key, &row).map(Reading::looked_at)).transpose()
    }

    /// The server's clock, as it told it.
    fn hear(&self, told: Option<&Done>) -> Result<Stamp, Failure> {
        let micros = told.and_then(|done| done.value(0)?.parse().ok());
        let now = micros.map(Stamp::from_micros).ok_or(Failure::Garbage)?;
        *lock(&self.heard) = Some((now, Moment::now()));
        Ok(now)
    }

    /// The keys that a statement lists.
    fn names(&self, statement: &str) -> Result<Vec<Key>, Failure> {
        let mut done = match self.ask(&[plain(CLOCK), plain(statement)], self.until()) {
            Err(failure) if failure.is_missing_table() => return Ok(Vec::new()),
            done => done?,
        };
        self.hear(done.first())?;
        let done = done.pop().unwrap_or_default();
        let mut keys = Vec::with_capacity(done.rows.len());
        for name in done.rows.into_iter().filter_map(|row| row.into_iter().next().flatten()) {
            match Key::parse(&name) {
                Ok(key) => keys.push(key),
                Err(why) => log::warn!("'{name}' in table '{}' is no key: {why}", self.address.table.prefix()),
            }
        }
        Ok(keys)
    }
}

impl Reading {
    /// The record as an operation would find it.
    fn looked_at(self) -> Record {
        self.seen.seen(&self.now)
    }
}

impl Register for PostgresRegister {
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
        self.inspect(key).map_err(|failure| self.error(failure))
    }

    fn read_all(&self, keys: &[Key]) -> Result<Vec<Inspected>, StoreError> {
        let names = json!(keys.iter().map(Key::as_str).collect::<Vec<_>>()).to_string();
        let done = self.look(with(&self.statements.look_at_all, [names])).map_err(|failure| self.error(failure))?;
        let rows = done.unwrap_or_default().rows;
        let mut found: HashMap<&str, Vec<&[Option<String>]>> = HashMap::new();
        for row in &rows {
            if let Some(Some(name)) = row.get(3) {
                found.entry(name).or_default().push(row);
            }
        }
        let read = |key: &Key| {
            let row = found.get(key.as_str()).and_then(|rows| rows.first());
            row.map(|row| self.read_row(key, row).map(Reading::looked_at)).transpose().map_err(|f| self.error(f))
        };
        Ok(keys.iter().map(read).collect())
    }

    fn now(&self) -> Stamp {
        let heard = *lock(&self.heard);
        // Nothing was heard of a key without a record, and then there is no age to tell.
        heard.map_or_else(Stamp::default, |(stamp, at)| stamp.after(Moment::now().since(at)))
    }

    fn ask_clock(&self) -> Result<Stamp, StoreError> {
        let asked = self.ask(&[plain(CLOCK)], self.until());
        asked.and_then(|asked| self.hear(asked.first())).map_err(|failure| self.error(failure))
    }

    fn examine(&self, silence: Duration) -> Result<Examination, StoreError> {
        self.look_into(silence).map_err(|failure| self.error(failure))
    }

    fn set_up(&self) -> Result<SetUp, StoreError> {
        self.make_tables(self.until()).map_err(|failure| self.error(failure))?;
        Ok(SetUp::Ready)
    }

    fn set_up_script(&self) -> Option<String> {
        Some(table::script(&self.address.table, &self.address.access.user))
    }

    fn keys(&self, scope: Scope) -> Result<Vec<Key>, StoreError> {
        let statement = match scope {
            Scope::All => &self.statements.list,
            Scope::Live => &self.statements.list_live,
        };
        self.names(statement).map_err(|failure| self.error(failure))
    }

    fn observe(&self, key: Option<&Key>) -> Result<Box<dyn Observer>, StoreError> {
        let observer = observe::Listener::new(self, key).map_err(|failure| self.error(failure))?;
        Ok(Box::new(observer))
    }

    fn await_change(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), StoreError> {
        self.wait(key, watch, timeout).map_err(|failure| self.error(failure))
    }
}

impl fmt::Debug for PostgresRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresRegister").field("address", &self.address).finish_non_exhaustive()
    }
}
