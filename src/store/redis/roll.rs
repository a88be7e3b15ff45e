//! A server as a node of a ring.

use std::time::Duration;

use redis::{Cmd, Value, cmd};

use super::pool::Manner;
use super::reply::{self, Reply};
use super::trouble::Failure;
use super::{Address, RedisStore};
use crate::clock::Moment;
use crate::model::{Fence, Key, LAYOUT, LeaseId, Stamp};
use crate::store::{List, Node, Outcome, Past, Roll, Step, StoreError, Told};

/// The steps of installing a list.
const ROLL: &str = include_str!("roll.lua");

/// What of a record is there while nobody holds the key.
const KEPT: [&str; 6] = ["fence", "layout", "last_ticket", "grants", "expiries", "evictions"];

/// What a server is as a node of a ring.
pub(super) struct Seat {
    /// What it is called in lists.
    name: String,
    /// The stamp of the list by which we ask for keys; nothing if we only look at what there is.
    pub(super) stamp: Option<String>,
}

impl RedisStore {
    /// The store at `address` as a node of the ring that has this list; without one, it has whatever is there by any
    /// list, and is not to be asked for keys.
    #[must_use]
    pub fn node(address: &Address, list: Option<&List>, patience: Duration) -> Self {
        let seat = Seat { name: address.name(), stamp: list.map(List::stamp) };
        Self { seat: Some(seat), ..Self::new(address, patience) }
    }

    /// The stamp of the list by which we ask for keys.
    pub(super) fn stamp(&self) -> Option<&str> {
        self.seat.as_ref()?.stamp.as_deref()
    }

    /// What the server knows as a node of a ring.
    pub(super) fn ring(&self) -> String {
        format!("{}:ring", self.address.prefix)
    }

    fn take_step(&self, step: Step) -> Result<Told, Failure> {
        let until = Moment::now().after(self.patience);
        let server = self.router.server_of(0, until)?;
        // To do it twice changes nothing, but what is known afterwards may be another one's doing.
        let asked = self.router.ask_many_at(&server, &[self.command(step)], Manner::until(until))?;
        let reply = asked.0.into_iter().next().ok_or(Failure::Garbage)?;
        told(reply).map_err(|failure| failure.by(&server))
    }

    /// Has commands done that may be repeated, and none of them be refused.
    fn ask_for_all(&self, commands: &[Cmd]) -> Result<Vec<Value>, Failure> {
        let until = Moment::now().after(self.patience);
        let server = self.router.server_of(0, until)?;
        let (replies, _) = self.router.ask_many_at(&server, commands, Manner::until(until))?;
        let refusal = replies.iter().find_map(|reply| match reply {
            Value::ServerError(error) => Some(Failure::Server(error.clone()).by(&server)),
            _ => None,
        });
        refusal.map_or(Ok(replies), Err)
    }

    fn read_past(&self, keys: &[Key]) -> Result<Vec<Past>, Failure> {
        let mut past = Vec::new();
        for (key, [fields, events]) in keys.iter().zip(self.read_pasts(keys)?) {
            let is_hold = |name: &String| name.starts_with("h:");
            let [fields, events] = if fields.iter().step_by(2).any(is_hold) {
                // Nobody has looked since its lease ended. Whoever asks for what he has not does no more than that.
                self.law(key, "renew", &[&LeaseId::new([0; 16]).secret(), "0"], self.patience)?;
                self.read_pasts(std::slice::from_ref(key))?.pop().ok_or(Failure::Garbage)?
            } else {
                [fields, events]
            };
            let kept = fields.chunks_exact(2).filter(|pair| KEPT.contains(&&*pair[0]));
            let number = |name: &str| fields.chunks_exact(2).find(|pair| pair[0] == name)?[1].parse::<u64>().ok();
            if let Some(layout) = number("layout").filter(|layout| *layout > LAYOUT.into()) {
                let words = format!("a newer dlock wrote the record of '{key}' (layout {layout}); upgrade this one");
                return Err(Failure::Odd(words));
            }
            let Some(fence) = number("fence").map(Fence) else { continue };
            past.push(Past { key: key.clone(), fence, fields: kept.flatten().cloned().collect(), events });
        }
        Ok(past)
    }

    /// The records and the events of keys.
    fn read_pasts(&self, keys: &[Key]) -> Result<Vec<[Vec<String>; 2]>, Failure> {
        let ask = |key: &Key| {
            let record = cmd("HGETALL").arg(self.name(key, "record")).take();
            [record, cmd("LRANGE").arg(self.name(key, "events")).arg(0).arg(-1).take()]
        };
        let replies = self.ask_for_all(&keys.iter().flat_map(ask).collect::<Vec<_>>())?;
        let texts = |reply: &Value| match reply {
            Value::Array(values) => values.iter().map(|value| reply::text(value).map(str::to_owned)).collect(),
            _ => None,
        };
        let both = |replies: &[Value]| Some([texts(&replies[0])?, texts(&replies[1])?]);
        replies.chunks_exact(2).map(|replies| both(replies).ok_or(Failure::Garbage)).collect()
    }

    fn write_past(&self, by: &str, past: &[Past]) -> Result<Outcome, Failure> {
        let adopt = |past: &Past| {
            let Past { key, fence, fields, events } = past;
            let names = [self.ring(), self.name(key, "record"), self.name(key, "events"), self.index(0)];
            let mut command = cmd("EVAL");
            command.arg(ROLL).arg(names.len()).arg(&names[..]).arg("adopt").arg(by);
            command.arg(key.as_str()).arg(fence.0).arg(fields.len()).arg(fields).arg(events);
            command
        };
        let replies = self.ask_for_all(&past.iter().map(adopt).collect::<Vec<_>>())?;
        let outcomes = replies.into_iter().map(|reply| told(reply).map(|told| told.outcome));
        let outcomes: Vec<Outcome> = outcomes.collect::<Result<_, _>>()?;
        Ok(outcomes.into_iter().find(|outcome| *outcome != Outcome::Done).unwrap_or(Outcome::Done))
    }

    fn command(&self, step: Step) -> Cmd {
        let mut command = cmd("EVAL");
        command.arg(ROLL).arg(1).arg(self.ring());
        match step {
            Step::Look => command.arg("look").arg(""),
            Step::Close(by, list, patience) => {
                let args = [&patience.as_micros().to_string(), &list.stamp(), &list.to_string()];
                command.arg("close").arg(by).arg(&args[..])
            }
            Step::Keep(by) => command.arg("keep").arg(by),
            Step::Open(by) => command.arg("open").arg(by),
            Step::Leave(by) => command.arg("leave").arg(by),
            Step::Undo(by) => command.arg("undo").arg(by),
        };
        command
    }
}

fn told(reply: Value) -> Result<Told, Failure> {
    let odd = || Failure::Odd("what it knows of its ring is not as dlock writes it".into());
    let reply = Reply::read(reply)?;
    let outcome = match reply.word()? {
        "done" => Outcome::Done,
        "busy" => Outcome::Busy,
        "taken" => Outcome::Taken,
        _ => return Err(odd()),
    };
    Ok(Told { outcome, now: Stamp::from_micros(reply.number(1)?), roll: Roll(reply.fields(2)?) })
}

impl Node for RedisStore {
    fn name(&self) -> &str {
        self.seat.as_ref().map_or(&self.identity, |seat| &seat.name)
    }

    fn step(&self, step: Step) -> Result<Told, StoreError> {
        self.take_step(step).map_err(|failure| self.error(failure))
    }

    fn past(&self, keys: &[Key]) -> Result<Vec<Past>, StoreError> {
        self.read_past(keys).map_err(|failure| self.error(failure))
    }

    fn adopt(&self, by: &str, past: &[Past]) -> Result<Outcome, StoreError> {
        self.write_past(by, past).map_err(|failure| self.error(failure))
    }
}
