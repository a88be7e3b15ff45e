//! Redis or Valkey: one server, a master that sentinels watch, or a cluster. The law is a script that the server of a
//! key runs in one step, one request for each operation. Who waits sleeps on a list of its own, which the script of
//! whoever changes things writes to; unlike a message of pub/sub that is not lost.

mod address;
mod cluster;
mod connection;
mod examine;
mod list;
mod nodes;
mod observe;
mod parallel;
mod parse;
mod pool;
mod reply;
mod roll;
mod router;
mod sentinel;
mod slot;
mod trouble;
mod voter;
mod wait;

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use redis::{Value, cmd};
use serde_json::json;

pub use address::Address;
use address::Endpoint;
pub use nodes::Nodes;
use pool::Manner;
use reply::Reply;
use roll::Seat;
use router::{Request, Router};
use trouble::Failure;
use wait::Place;

use super::{Capabilities, Examination, Inspected, Listing, Observer, Scope, Store, StoreError, Watch, lock};
use crate::clock::Moment;
use crate::model::{
    Answer, Ask, Ending, Info, Key, LeaseId, LevelId, Patience, Record, Released, Renewed, SIGN_OF_LIFE, Stamp,
    Unlocked,
};

/// The operations of src/model/law.rs.
const LAW: &str = include_str!("law.lua");

/// Its SHA-1, by which a server knows it. To work that out would take a tenth of a run; a test does.
const LAW_SHA1: &str = "28c7e02b9087127c042cf6d98c250e7d4fa57d32";

/// What of a key would end the part of a name that a Cluster looks at, or is the escape itself.
const BRACES: &AsciiSet = &CONTROLS.add(b'{').add(b'}').add(b'%');

/// A store in Redis.
pub struct RedisStore {
    address: Address,
    identity: String,
    router: Router,
    /// What it is as a node of a ring, if it is one.
    seat: Option<Seat>,
    /// The stamp of the list of those it votes with, if it is one of several.
    votes: Option<String>,
    /// How long what has no limit of its own may take.
    patience: Duration,
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
            router: Router::new(address),
            seat: None,
            votes: None,
            patience,
            places: Mutex::default(),
            heard: Mutex::default(),
            clock: Mutex::default(),
        }
    }

    /// The same as one of several that vote, whose list has this `stamp`.
    #[must_use]
    pub fn voter(address: &Address, stamp: &str, patience: Duration) -> Self {
        let mut store = Self { votes: Some(stamp.to_owned()), ..Self::new(address, patience) };
        store.router.pool.hurry = super::hurry::Hurry::new();
        store
    }

    /// Makes this the clock of all that follows, for tests of the law.
    pub fn set_clock(&self, now: Option<Stamp>) {
        *lock(&self.clock) = now;
    }

    /// One of the names of a key's parts.
    fn name(&self, key: &Key, part: &str) -> String {
        format!("{}:{{{}}}:{part}", self.address.prefix, tag(key))
    }

    /// The slot of all of a key's parts.
    fn slot(&self, key: &Key) -> u16 {
        if self.router.cluster().is_some() { slot::of(&tag(key)) } else { 0 }
    }

    /// The index of the keys of a slot. A script can touch only what is in one.
    fn index(&self, slot: u16) -> String {
        if self.router.cluster().is_some() {
            format!("{}:index:{{{}}}", self.address.prefix, slot::tag(slot))
        } else {
            format!("{}:index", self.address.prefix)
        }
    }

    /// What the server knows of itself as one of several that vote.
    fn own(&self) -> String {
        format!("{}:node", self.address.prefix)
    }

    /// The command that runs the law on a key, by `EVALSHA` or `EVAL`, and to renew and to look also the one that touches
    /// nothing but the record.
    fn request(&self, verb: &str, key: &Key, op: &str, args: &[&str]) -> Request {
        let clock = lock(&self.clock).map_or_else(String::new, |now| now.micros().to_string());
        let slot = self.slot(key);
        let mut parts: Vec<String> =
            ["record", "queue", "waiters", "life", "events", "wake:"].map(|part| self.name(key, part)).into();
        parts.push(self.index(slot));
        if self.votes.is_some() {
            parts.push(self.own());
        }
        parts.extend(self.stamp().map(|_| self.ring()));
        let stamped = self.stamp().map_or_else(|| op.to_owned(), |stamp| format!("{op} {stamp}"));
        let command = |parts: &[String]| {
            let mut command = cmd(verb);
            command.arg(if verb == "EVAL" { LAW } else { LAW_SHA1 }).arg(parts.len()).arg(parts);
            command.arg(&stamped).arg(&clock).arg(key.as_str()).arg(args);
            command
        };
        let alone = ["renew", "look"].contains(&op) && self.router.cluster().is_some();
        Request { slot, command: command(&parts), alone: alone.then(|| command(&parts[..1])) }
    }

    /// Runs the law on a key.
    fn law(&self, key: &Key, op: &str, args: &[&str], within: Duration) -> Result<Answered, Failure> {
        self.law_for(None, 0, key, op, args, within)
    }

    /// The same; if there is no answer, the connection is kept for the level that asked. A lease must be on so many
    /// `replicas`.
    fn law_for(
        &self,
        level: Option<LevelId>,
        replicas: u32,
        key: &Key,
        op: &str,
        args: &[&str],
        within: Duration,
    ) -> Result<Answered, Failure> {
        let until = Moment::now().after(within);
        // To release twice is to hear "not yours".
        let manner = Manner { may_repeat: op != "release", level, replicas, ..Manner::until(until) };
        let (mut reply, mut by) = self.router.ask(&self.request("EVALSHA", key, op, args), manner)?;
        // The server was restarted, or never saw it.
        if matches!(&reply, Value::ServerError(error) if error.code() == "NOSCRIPT") {
            let manner = Manner { may_repeat: false, ..manner };
            (reply, by) = self.router.ask(&self.request("EVAL", key, op, args), manner)?;
        }
        let reply = Reply::read(reply).map_err(|failure| failure.by(&by))?;
        Ok(Answered { reply, by })
    }

    /// Asks for a key.
    fn ask_for(&self, key: &Key, ask: &Ask, within: Duration) -> Result<Answered, Failure> {
        let mut question = json!({
            "lease": ask.lease,
            "level": ask.level,
            "mode": ask.mode,
            "ttl": micros(ask.ttl.unwrap_or_default()),
            "good_for": micros(good_for(ask)),
            "min_hold": micros(ask.min_hold),
            "max_reentry": ask.max_reentry,
            "attended": ask.attended,
            "info": json!(ask.info).to_string(),
        });
        if let Some(fence) = ask.if_fence {
            question["if_fence"] = fence.to_string().into();
        }
        if let Some(proposal) = ask.proposal {
            question["fence"] = proposal.fence.to_string().into();
            question["again"] = proposal.again.into();
            question["list"] = self.votes.clone().into();
        }
        self.law_for(Some(ask.level), self.address.replicas, key, "acquire", &[&question.to_string()], within)
    }

    /// Keeps what there is to know of an answer that was heard at this moment.
    fn heed(&self, ask: &Ask, (answer, clock, queued): reply::Answered, heard: Moment) -> Answer {
        self.hear(clock);
        let mut places = lock(&self.places);
        match queued {
            Some(queued) => {
                places.insert(ask.level, Place::new(queued, heard, good_for(ask), self.patience_of(ask.level)))
            }
            None => places.remove(&ask.level),
        };
        answer
    }

    /// What went wrong, in words.
    fn error(&self, failure: Failure) -> StoreError {
        failure.at(&self.address)
    }

    /// Sends after each request of this level that got no answer, and that the server may read later, that it
    /// is not wanted any more.
    fn take_back(&self, key: &Key, level: LevelId, op: &str) {
        for connection in self.router.pool.take_stuck(level) {
            let release = self.request("EVALSHA", key, op, &[&level.secret(), ""]);
            connection.send_last(&release.command);
        }
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

    /// Asks whoever has a slot for its clock.
    fn clock_of(&self, slot: u16, until: Moment) -> Result<Stamp, Failure> {
        let server = self.router.server_of(slot, until)?;
        self.clock_at(slot, &server, until)
    }

    /// Asks a server, who should have that slot, for its clock.
    fn clock_at(&self, slot: u16, server: &Endpoint, until: Moment) -> Result<Stamp, Failure> {
        let asked = self.router.ask_many_at(server, &[cmd("TIME")], Manner::until(until));
        if asked.is_err() {
            self.router.heed(slot, server, None);
        }
        match &asked?.0[..] {
            [Value::ServerError(error)] => Err(Failure::Server(error.clone()).by(server)),
            [reply] => reply::clock(reply).ok_or(Failure::Garbage.by(server)),
            _ => Err(Failure::Garbage.by(server)),
        }
    }

    /// The clock of the store: in a cluster, that of the first master that answers, and not of any node.
    fn ask_the_clock(&self, until: Moment) -> Result<Stamp, Failure> {
        if let Some(map) = self.router.cluster() {
            if map.first().is_none() {
                // Without it, or where that is kept from us, a node is as good as another one.
                let _ = self.router.slots(Moment::now().after(until.left() / 2));
            }
            while let Some(master) = map.first() {
                match self.clock_at(0, &master, Moment::now().after(until.left() / 2)) {
                    Err(failure) if !until.left().is_zero() && !matches!(failure.bare(), Failure::Server(_)) => {}
                    asked => return asked,
                }
            }
        }
        self.clock_of(0, until)
    }
}

/// What the law answered, and whose answer that is.
struct Answered {
    reply: Reply,
    by: Endpoint,
}

impl Answered {
    fn read<T>(&self, read: impl FnOnce(&Reply) -> Result<T, Failure>) -> Result<T, Failure> {
        read(&self.reply).map_err(|failure| failure.by(&self.by))
    }
}

/// What of a key's name stands between braces.
fn tag(key: &Key) -> String {
    utf8_percent_encode(key.as_str(), BRACES).to_string()
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
        Capabilities { shared: true, slots: true, fifo: true, beats: true, least_ttl: Duration::ZERO }
    }

    fn acquire(&self, key: &Key, ask: &Ask, within: Duration) -> Result<Answer, StoreError> {
        let waits = ask.patience != Patience::None && self.router.has_others();
        let asked = self.ask_for(key, ask, if waits { within.min(wait::TRY) } else { within });
        let heard = Moment::now();
        let answer = asked.and_then(|answered| answered.read(Reply::answer));
        Ok(self.heed(ask, answer.map_err(|failure| self.error(failure))?, heard))
    }

    fn renew(&self, key: &Key, level: LevelId, ttl: Duration, within: Duration) -> Result<Renewed, StoreError> {
        let args = [level.secret(), micros(ttl)];
        let args = [&*args[0], &args[1]];
        let answered = self.law_for(None, self.address.replicas, key, "renew", &args, within);
        answered.and_then(|answered| answered.read(Reply::renewed)).map_err(|failure| self.error(failure))
    }

    fn release(
        &self,
        key: &Key,
        level: LevelId,
        ending: Option<Ending>,
        within: Duration,
    ) -> Result<Released, StoreError> {
        let ending = ending.map_or_else(String::new, |ending| json!(ending).to_string());
        let answered = self.law(key, "release", &[&level.secret(), &ending], within);
        // After it: what a late request is granted goes, and what we hold was given back with its ending.
        self.take_back(key, level, "release");
        let answered = answered.map_err(|failure| self.error(failure))?;
        lock(&self.places).remove(&level);
        answered.read(Reply::released).map_err(|failure| self.error(failure))
    }

    fn revoke(&self, key: &Key, leases: &[LeaseId], force: bool, by: &Info) -> Result<Unlocked, StoreError> {
        let mut args = vec![if force { "1" } else { "0" }.to_owned(), json!(by).to_string()];
        args.extend(leases.iter().map(|lease| lease.secret()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let answered = self.law(key, "unlock", &args, self.patience);
        answered.and_then(|answered| answered.read(Reply::unlocked)).map_err(|failure| self.error(failure))
    }

    fn inspect(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        let answered = self.law(key, "look", &[], self.patience);
        let record = answered.and_then(|answered| answered.read(|reply| reply.record(key)));
        Ok(self.see(record.map_err(|failure| self.error(failure))?))
    }

    fn now(&self) -> Stamp {
        let heard = *lock(&self.heard);
        // Nothing was heard of a key without a record, and then there is no age to tell.
        heard.map_or_else(Stamp::default, |(stamp, at)| stamp.after(Moment::now().since(at)))
    }

    fn inspect_all(&self, keys: &[Key]) -> Result<Vec<Inspected>, StoreError> {
        self.look_at(keys)
    }

    fn ask_clock(&self) -> Result<Stamp, StoreError> {
        let until = Moment::now().after(self.patience);
        let now = self.ask_the_clock(until).map_err(|failure| self.error(failure))?;
        self.hear(Some(now));
        Ok(now)
    }

    fn examine(&self, silence: Duration) -> Result<Examination, StoreError> {
        self.look_into(silence).map_err(|failure| self.error(failure))
    }

    fn list(&self, scope: Scope) -> Result<Listing, StoreError> {
        self.list_keys(scope)
    }

    fn observe(&self, key: Option<&Key>) -> Result<Box<dyn Observer>, StoreError> {
        let observer = observe::Subscription::new(self, key).map_err(|failure| self.error(failure))?;
        Ok(Box::new(observer))
    }

    fn await_change(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), StoreError> {
        self.wait(key, watch, timeout).map(drop).map_err(|failure| self.error(failure))
    }
}

/// How long the sign of life is good that a request of one who waits is.
fn good_for(ask: &Ask) -> Duration {
    match ask.patience {
        Patience::None => Duration::ZERO,
        // Nobody dies unseen here but by silence.
        Patience::Attended => SIGN_OF_LIFE,
        Patience::SignOfLife(span) => span,
    }
}

fn micros(span: Duration) -> String {
    span.as_micros().to_string()
}

#[cfg(test)]
mod tests {
    use super::{LAW, LAW_SHA1};

    #[test]
    fn the_law_is_asked_for_by_its_own_hash() {
        assert_eq!(redis::Script::new(LAW).get_hash(), LAW_SHA1);
    }
}
