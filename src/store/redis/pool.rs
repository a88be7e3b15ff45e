//! The connections to the servers of a store: those that are idle, for the next request, and those without an
//! answer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::{Cmd, Value, cmd};

use super::address::{Access, Endpoint};
use super::connection::Connection;
use super::trouble::Failure;
use super::{lock, reply};
use crate::clock::Moment;
use crate::model::LevelId;
use crate::store::hurry::Hurry;
use crate::store::tls::TlsConfig;

/// How many connections without an answer are kept at most.
const MAX_STUCK: usize = 8;

/// How much later than it was asked to a server may tell how many replicas have something.
const LATE: Duration = Duration::from_millis(200);

/// Connections with the same access.
pub(super) struct Pool {
    pub(super) access: Access,
    pub(super) tls: Arc<TlsConfig>,
    idle: Mutex<Vec<Connection>>,
    /// Those on which a request for a key got no answer. The server may read it later, and then what we send
    /// after it on the same connection.
    stuck: Mutex<Vec<(LevelId, Connection)>>,
    /// Ends the waiting for answers.
    pub(super) hurry: Hurry,
}

/// How to ask.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    pub(super) until: Moment,
    /// Whether to do it twice is as good as once.
    pub(super) may_repeat: bool,
    /// If there is no answer, the connection is kept for the level that asked.
    pub(super) level: Option<LevelId>,
    /// What is given counts once so many replicas have it.
    pub(super) replicas: u32,
    /// The server is to answer for a slot that is on its way to it.
    pub(super) asking: bool,
}

impl Manner {
    pub(super) const fn until(until: Moment) -> Self {
        Self { until, may_repeat: true, level: None, replicas: 0, asking: false }
    }
}

impl Pool {
    pub(super) fn new(access: &Access) -> Self {
        Self {
            access: access.clone(),
            tls: Arc::default(),
            idle: Mutex::default(),
            stuck: Mutex::default(),
            hurry: Hurry::default(),
        }
    }

    pub(super) fn open(&self, server: &Endpoint, until: Moment) -> Result<Connection, Failure> {
        if self.hurry.is_on() {
            return Err(Failure::Unconnected(Failure::Silent.into()));
        }
        let opened = Connection::open(server, &self.access, &self.tls, &self.hurry, until.left());
        opened.map_err(|failure| Failure::Unconnected(failure.into()))
    }

    /// Sends commands over a connection that is idle, or a new one. One that had ended while it was idle is
    /// replaced, where commands may be repeated.
    pub(super) fn ask(&self, server: &Endpoint, commands: &[Cmd], manner: Manner) -> Result<Vec<Value>, Failure> {
        if let Some(connection) = self.take_idle(server, 0) {
            match self.ask_on(connection, commands, manner) {
                Err(failure) if manner.may_repeat && failure.is_stale() => self.forget(server),
                done => return done,
            }
        }
        self.ask_on(self.open(server, manner.until)?, commands, manner)
    }

    /// A connection that is idle, without those that ended meanwhile; so many are `left` alone. Whether a request was
    /// seen that is sent over one that ended nobody knows, and so not whether it was ours to release.
    pub(super) fn take_idle(&self, server: &Endpoint, left: usize) -> Option<Connection> {
        let mut idle = lock(&self.idle);
        idle.retain_mut(|connection| connection.server != *server || connection.is_idle());
        let mut of_it = (0..idle.len()).filter(|at| idle[*at].server == *server);
        let last = of_it.next_back().filter(|_| of_it.count() >= left)?;
        Some(idle.remove(last))
    }

    /// Keeps a connection for the next request.
    pub(super) fn keep(&self, connection: Connection) {
        lock(&self.idle).push(connection);
    }

    /// Ends what is idle of a server that erred.
    pub(super) fn forget(&self, server: &Endpoint) {
        lock(&self.idle).retain(|connection| connection.server != *server);
    }

    /// The connections on which this level got no answer.
    pub(super) fn take_stuck(&self, level: LevelId) -> Vec<Connection> {
        let stuck = std::mem::take(&mut *lock(&self.stuck));
        let (ours, others): (Vec<_>, Vec<_>) = stuck.into_iter().partition(|(other, _)| *other == level);
        lock(&self.stuck).extend(others);
        ours.into_iter().map(|(_, connection)| connection).collect()
    }

    /// A connection that erred is not used again: a late reply on it would be taken for that to another request.
    fn ask_on(&self, mut connection: Connection, commands: &[Cmd], manner: Manner) -> Result<Vec<Value>, Failure> {
        if manner.level.is_some() && self.hurry.is_on() {
            // Nobody would be there to take it back.
            return Err(Failure::Unconnected(Failure::Silent.into()));
        }
        let replies = ask(&mut connection, commands, manner);
        match (&replies, manner.level) {
            // One that serves us no more, say a master that was demoted, may have a better one behind its address.
            (Ok(replies), _) if replies.iter().any(is_refusal) => {}
            (Ok(_) | Err(Failure::Unconfirmed(..)), _) => self.keep(connection),
            (Err(Failure::Silent), Some(level)) if lock(&self.stuck).len() < MAX_STUCK => {
                lock(&self.stuck).push((level, connection));
            }
            _ => {}
        }
        replies
    }
}

fn ask(connection: &mut Connection, commands: &[Cmd], manner: Manner) -> Result<Vec<Value>, Failure> {
    let Manner { until, replicas, asking, .. } = manner;
    let replies = if asking {
        let asked: Vec<Cmd> = commands.iter().flat_map(|command| [cmd("ASKING"), command.clone()]).collect();
        let mut replies = connection.ask(&asked, until.left())?.into_iter();
        let mut pairs = Vec::new();
        while let (Some(asking), Some(reply)) = (replies.next(), replies.next()) {
            // Whoever may not ask hears of that, rather than where the slot still is.
            pairs.push(if is_refusal(&asking) { asking } else { reply });
        }
        pairs
    } else {
        connection.ask(commands, until.left())?
    };
    if replicas > 0 && replies.iter().any(reply::gives) {
        await_replicas(connection, replicas, until)?;
    }
    Ok(replies)
}

/// Waits until so many replicas have what was written last over this connection.
fn await_replicas(connection: &mut Connection, replicas: u32, until: Moment) -> Result<(), Failure> {
    // Zero would be for ever.
    let span = until.left().saturating_sub(LATE).max(Duration::from_millis(1));
    let wait = cmd("WAIT").arg(replicas).arg(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)).take();
    match connection.ask_to_wait(wait, span, LATE)? {
        Value::ServerError(error) => Err(Failure::Server(error)),
        count => match reply::number(&count) {
            Some(has) if has >= u64::from(replicas) => Ok(()),
            Some(has) => Err(Failure::Unconfirmed(has, replicas)),
            None => Err(Failure::Garbage),
        },
    }
}

/// Whether the server, or what stands before it, does not do what was asked for.
pub(super) fn is_refusal(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.code() != "NOSCRIPT")
}
