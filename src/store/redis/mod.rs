//! A Redis or Valkey server: the law as a script that the server runs in one step, one request for each
//! operation. Who waits sleeps on a list of its own, which the script of whoever changes things writes to;
//! unlike a message of pub/sub that is not lost.

mod address;
mod connection;
mod examine;
mod observe;
mod reply;
mod tls;
mod trouble;
mod wait;

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use redis::{Cmd, Value, cmd};
use serde_json::json;

pub use address::Address;
use connection::Connection;
use reply::Reply;
use tls::TlsConfig;
use trouble::Failure;
use wait::Place;

use super::{Capabilities, Examination, Inspected, Observer, Scope, Store, StoreError, Trouble, Watch};
use crate::clock::Moment;
use crate::model::{
    Answer, Ask, Ending, Info, Key, LeaseId, LevelId, Patience, Record, Released, Renewed, SIGN_OF_LIFE, Stamp,
    Unlocked,
};

/// The operations of src/model/law.rs.
const LAW: &str = include_str!("law.lua");

/// Its SHA-1, by which a server knows it. To work that out would take a tenth of a run; a test does.
const LAW_SHA1: &str = "92895f96f803ac2c0ef05b4c945d5f3bfb286c1a";

/// What of a key would end the part of a name that a Cluster looks at, or is the escape itself.
const BRACES: &AsciiSet = &CONTROLS.add(b'{').add(b'}').add(b'%');

/// How many records are asked for at once.
const BATCH: usize = 100;

/// For how long a key without a lease may still be waited for.
const LIVELY: Duration = Duration::from_secs(60);

/// How many connections without an answer are kept at most.
const MAX_STUCK: usize = 8;

/// A store in a Redis server.
pub struct RedisStore {
    address: Address,
    identity: String,
    tls: TlsConfig,
    /// How long what has no limit of its own may take.
    patience: Duration,
    idle: Mutex<Vec<Connection>>,
    /// Those on which a request for a key got no answer. The server may read it later, and then what we send
    /// after it on the same connection.
    stuck: Mutex<Vec<(LevelId, Connection)>>,
    /// Where those who wait stand, as the server told them last.
    places: Mutex<HashMap<LevelId, Place>>,
    /// The server's clock when it spoke last, and ours when we heard it.
    heard: Mutex<Option<(Stamp, Moment)>>,
    /// Tests rule time; nobody else does.
    clock: Mutex<Option<Stamp>>,
}

impl RedisStore {
    /// The store at `address`. Connects when it is asked for something; what has no limit of its own may
    /// take `patience`.
    #[must_use]
    pub fn new(address: &Address, patience: Duration) -> Self {
        Self {
            identity: address.identity(),
            address: address.clone(),
            tls: TlsConfig::default(),
            patience,
            idle: Mutex::default(),
            stuck: Mutex::default(),
            places: Mutex::default(),
            heard: Mutex::default(),
            clock: Mutex::default(),
        }
    }

    /// Makes this the clock of all that follows, for tests of the law.
    pub fn set_clock(&self, now: Option<Stamp>) {
        *lock(&self.clock) = now;
    }

    /// One of the names of a key's parts.
    fn name(&self, key: &Key, part: &str) -> String {
        format!("{}:{{{}}}:{part}", self.address.prefix, utf8_percent_encode(key.as_str(), BRACES))
    }

    fn index(&self) -> String {
        format!("{}:index", self.address.prefix)
    }

    /// The command that runs the law on a key, by `EVALSHA` or `EVAL`.
    fn command(&self, verb: &str, key: &Key, op: &str, args: &[&str]) -> Cmd {
        let clock = lock(&self.clock).map_or_else(String::new, |now| now.micros().to_string());
        let parts = ["record", "queue", "waiters", "life", "events", "wake:"].map(|part| self.name(key, part));
        let mut command = cmd(verb);
        command.arg(if verb == "EVAL" { LAW } else { LAW_SHA1 }).arg(parts.len() + 1).arg(&parts).arg(self.index());
        command.arg(op).arg(clock).arg(key.as_str()).arg(args);
        command
    }

    /// Runs the law on a key.
    fn law(&self, key: &Key, op: &str, args: &[&str], within: Duration) -> Result<Reply, StoreError> {
        self.law_for(None, key, op, args, within)
    }

    /// The same; if there is no answer, the connection is kept for the level that asked.
    fn law_for(
        &self,
        level: Option<LevelId>,
        key: &Key,
        op: &str,
        args: &[&str],
        within: Duration,
    ) -> Result<Reply, StoreError> {
        let until = Moment::now().after(within);
        // To release twice is to hear "not yours".
        let may_repeat = op != "release";
        let run = || {
            let mut replies = self.exchange(&[self.command("EVALSHA", key, op, args)], may_repeat, until, level)?;
            // The server was restarted, or never saw it.
            if matches!(&replies[..], [Value::ServerError(error)] if error.code() == "NOSCRIPT") {
                replies = self.exchange(&[self.command("EVAL", key, op, args)], false, until, level)?;
            }
            replies.pop().map_or_else(|| Err(Failure::Garbage), Reply::read)
        };
        run().map_err(|failure| failure.at(&self.address))
    }

    /// Sends after each request of this level that got no answer, and that the server may read later, that it
    /// is not wanted any more.
    fn take_back(&self, key: &Key, level: LevelId) {
        let stuck = std::mem::take(&mut *lock(&self.stuck));
        let (ours, others): (Vec<_>, Vec<_>) = stuck.into_iter().partition(|(other, _)| *other == level);
        lock(&self.stuck).extend(others);
        for (_, connection) in ours {
            connection.send_last(&self.command("EVALSHA", key, "release", &[&level.secret(), ""]));
        }
    }

    /// Sends commands over a connection that is idle, or a new one. One that had ended while it was idle is
    /// replaced, where commands `may_repeat`.
    fn exchange(
        &self,
        commands: &[Cmd],
        may_repeat: bool,
        until: Moment,
        level: Option<LevelId>,
    ) -> Result<Vec<Value>, Failure> {
        if let Some(connection) = self.take_idle() {
            match self.exchange_on(connection, commands, until, level) {
                Err(failure) if may_repeat && failure.is_stale() => lock(&self.idle).clear(),
                done => return done,
            }
        }
        self.exchange_on(self.open(until)?, commands, until, level)
    }

    fn hear(&self, clock: Option<Stamp>) {
        if let Some(clock) = clock {
            *lock(&self.heard) = Some((clock, Moment::now()));
        }
    }

    /// A record that the server sent, as an operation would find it.
    fn see(&self, record: Option<(Record, Stamp)>) -> Option<Record> {
        self.hear(record.as_ref().map(|(_, now)| *now));
        record.map(|(record, now)| record.seen(&now))
    }

    /// A connection that is idle, without those that ended meanwhile. Whether a request was seen that is sent over
    /// one of these nobody knows, and so not whether it was ours to release.
    fn take_idle(&self) -> Option<Connection> {
        let mut idle = lock(&self.idle);
        while let Some(mut connection) = idle.pop() {
            if connection.is_idle() {
                return Some(connection);
            }
        }
        None
    }

    fn open(&self, until: Moment) -> Result<Connection, Failure> {
        let opened = Connection::open(&self.address, &self.tls, until.left());
        opened.map_err(|failure| Failure::Unconnected(failure.into()))
    }

    /// A connection that erred is not used again: a late reply on it would be taken for that to another request.
    fn exchange_on(
        &self,
        mut connection: Connection,
        commands: &[Cmd],
        until: Moment,
        level: Option<LevelId>,
    ) -> Result<Vec<Value>, Failure> {
        let replies = connection.ask(commands, until.left());
        match (&replies, level) {
            // One that serves us no more, say a master that was demoted, may have a better one behind its address.
            (Ok(replies), _) if replies.iter().any(is_refusal) => {}
            (Ok(_), _) => lock(&self.idle).push(connection),
            (Err(Failure::Silent), Some(level)) if lock(&self.stuck).len() < MAX_STUCK => {
                lock(&self.stuck).push((level, connection));
            }
            _ => {}
        }
        replies
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Store for RedisStore {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn describe(&self) -> String {
        self.address.to_string()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { shared: true, slots: true, fifo: true, beats: true }
    }

    fn acquire(&self, key: &Key, ask: &Ask, within: Duration) -> Result<Answer, StoreError> {
        let good_for = match ask.patience {
            Patience::None => Duration::ZERO,
            // Nobody dies unseen here but by silence.
            Patience::Attended => SIGN_OF_LIFE,
            Patience::SignOfLife(span) => span,
        };
        let mut question = json!({
            "lease": ask.lease,
            "level": ask.level,
            "mode": ask.mode,
            "ttl": micros(ask.ttl.unwrap_or_default()),
            "good_for": micros(good_for),
            "min_hold": micros(ask.min_hold),
            "max_reentry": ask.max_reentry,
            "attended": ask.attended,
            "info": json!(ask.info).to_string(),
        });
        if let Some(fence) = ask.if_fence {
            question["if_fence"] = fence.to_string().into();
        }
        let reply = self.law_for(Some(ask.level), key, "acquire", &[&question.to_string()], within)?;
        let heard = Moment::now();
        let (answer, clock, queued) = reply.answer().map_err(|failure| failure.at(&self.address))?;
        self.hear(clock);
        let mut places = lock(&self.places);
        match queued {
            Some(queued) => places.insert(ask.level, Place::new(queued, heard, good_for)),
            None => places.remove(&ask.level),
        };
        Ok(answer)
    }

    fn renew(&self, key: &Key, level: LevelId, ttl: Duration, within: Duration) -> Result<Renewed, StoreError> {
        let reply = self.law(key, "renew", &[&level.secret(), &micros(ttl)], within)?;
        reply.renewed().map_err(|failure| failure.at(&self.address))
    }

    fn release(
        &self,
        key: &Key,
        level: LevelId,
        ending: Option<Ending>,
        within: Duration,
    ) -> Result<Released, StoreError> {
        let ending = ending.map_or_else(String::new, |ending| json!(ending).to_string());
        let reply = self.law(key, "release", &[&level.secret(), &ending], within);
        // After it: what a late request is granted goes, and what we hold was given back with its ending.
        self.take_back(key, level);
        let reply = reply?;
        lock(&self.places).remove(&level);
        reply.released().map_err(|failure| failure.at(&self.address))
    }

    fn revoke(&self, key: &Key, leases: &[LeaseId], force: bool, by: &Info) -> Result<Unlocked, StoreError> {
        let mut args = vec![if force { "1" } else { "0" }.to_owned(), json!(by).to_string()];
        args.extend(leases.iter().map(|lease| lease.secret()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let reply = self.law(key, "unlock", &args, self.patience)?;
        reply.unlocked().map_err(|failure| failure.at(&self.address))
    }

    fn inspect(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        let reply = self.law(key, "look", &[], self.patience)?;
        let record = reply.record(key).map_err(|failure| failure.at(&self.address))?;
        Ok(self.see(record))
    }

    fn now(&self) -> Stamp {
        let heard = *lock(&self.heard);
        // Nothing was heard of a key without a record, and then there is no age to tell.
        heard.map_or_else(Stamp::default, |(stamp, at)| stamp.after(Moment::now().since(at)))
    }

    fn inspect_all(&self, keys: &[Key]) -> Result<Vec<Inspected>, StoreError> {
        let mut records = Vec::with_capacity(keys.len());
        for some in keys.chunks(BATCH) {
            let looks: Vec<Cmd> = some.iter().map(|key| self.command("EVALSHA", key, "look", &[])).collect();
            let until = Moment::now().after(self.patience);
            let replies = self.exchange(&looks, true, until, None).map_err(|failure| failure.at(&self.address))?;
            for (key, reply) in some.iter().zip(replies) {
                records.push(match reply {
                    // The server was restarted, or never saw the script.
                    Value::ServerError(error) if error.code() == "NOSCRIPT" => Ok(self.inspect(key)?),
                    reply => match Reply::read(reply).and_then(|reply| reply.record(key)) {
                        Ok(record) => Ok(self.see(record)),
                        Err(failure) => match failure.at(&self.address) {
                            error if error.trouble == Trouble::Unfit => Err(error),
                            error => return Err(error),
                        },
                    },
                });
            }
        }
        Ok(records)
    }

    fn ask_clock(&self) -> Result<Stamp, StoreError> {
        let until = Moment::now().after(self.patience);
        let ask = || match self.exchange(&[cmd("TIME")], true, until, None)?.pop() {
            Some(Value::ServerError(error)) => Err(Failure::Server(error)),
            Some(reply) => reply::clock(&reply).ok_or(Failure::Garbage),
            None => Err(Failure::Garbage),
        };
        let now = ask().map_err(|failure| failure.at(&self.address))?;
        self.hear(Some(now));
        Ok(now)
    }

    fn examine(&self) -> Result<Examination, StoreError> {
        self.look_into().map_err(|failure| failure.at(&self.address))
    }

    fn list(&self, scope: Scope) -> Result<Vec<Key>, StoreError> {
        let mut all = cmd("ZRANGE").arg(self.index()).arg(0).arg(-1).take();
        if scope == Scope::Live {
            // The index has the ends of leases, which are in the future for all that are held.
            let since = self.ask_clock()?.micros().saturating_sub(micros_of(LIVELY));
            all = cmd("ZRANGEBYSCORE").arg(self.index()).arg(since).arg("+inf").take();
        }
        let until = Moment::now().after(self.patience);
        let keys = self.exchange(&[all], true, until, None).and_then(|mut replies| match replies.pop() {
            Some(Value::Array(keys)) => Ok(keys),
            Some(Value::ServerError(error)) => Err(Failure::Server(error)),
            _ => Err(Failure::Garbage),
        });
        let keys = keys.map_err(|failure| failure.at(&self.address))?;
        let mut keys: Vec<Key> = keys.iter().filter_map(|key| Key::parse(reply::text(key)?).ok()).collect();
        keys.sort_unstable();
        Ok(keys)
    }

    fn observe(&self, key: Option<&Key>) -> Result<Box<dyn Observer>, StoreError> {
        let observer = observe::Subscription::new(self, key).map_err(|failure| failure.at(&self.address))?;
        Ok(Box::new(observer))
    }

    fn await_change(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), StoreError> {
        self.wait(key, watch, timeout).map_err(|failure| failure.at(&self.address))
    }

    fn sign_of_life(&self, _: LevelId) -> Result<Option<OwnedFd>, StoreError> {
        Ok(None)
    }
}

fn is_refusal(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.code() != "NOSCRIPT")
}

fn micros(span: Duration) -> String {
    span.as_micros().to_string()
}

fn micros_of(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// What a thread that panicked left is as good as before: no change of it takes two steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{LAW, LAW_SHA1};

    #[test]
    fn the_law_is_asked_for_by_its_own_hash() {
        assert_eq!(redis::Script::new(LAW).get_hash(), LAW_SHA1);
    }
}
