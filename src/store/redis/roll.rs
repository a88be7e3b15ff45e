//! A server as a node of a ring.

use std::time::Duration;

use redis::{Value, cmd};

use super::pool::Manner;
use super::reply::Reply;
use super::trouble::Failure;
use super::{Address, RedisStore};
use crate::clock::Moment;
use crate::model::Stamp;
use crate::store::{List, Node, Outcome, Roll, Step, StoreError, Told};

/// The steps of installing a list.
const ROLL: &str = include_str!("roll.lua");

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

    fn command(&self, step: Step) -> redis::Cmd {
        let mut command = cmd("EVAL");
        command.arg(ROLL).arg(1).arg(self.ring());
        match step {
            Step::Look => command.arg("look").arg(""),
            Step::Close(by, list, patience) => {
                let args = [&patience.as_micros().to_string(), &list.stamp(), &list.to_string()];
                command.arg("close").arg(by).arg(&args[..])
            }
            Step::Keep(by) => command.arg("keep").arg(by),
            Step::Open(by, after) => command.arg("open").arg(by).arg(after.micros()),
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
        "early" => Outcome::Early,
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
}
