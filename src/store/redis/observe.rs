//! How one hears of all changes: the script publishes the name of each key that it worked on, on a channel of
//! that key. Unlike those who wait, an observer may miss a message with its connection, and then looks again.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::{Cmd, Value, cmd};

use super::address::{Address, Endpoint};
use super::connection::Connection;
use super::trouble::Failure;
use super::{RedisStore, reply};
use crate::clock::Moment;
use crate::model::{Key, Record};
use crate::store::{Changed, Observer, StoreError};

/// How long a server may be silent before it is asked for a sign of life, and how long that may take.
const SILENCE: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(2));

/// A connection on which the server tells of changes.
pub(super) struct Subscription {
    connection: Connection,
    subscribe: Cmd,
    address: Address,
    /// When the server said something last.
    heard: Moment,
}

impl Subscription {
    pub(super) fn new(store: &RedisStore, key: Option<&Key>) -> Result<Self, Failure> {
        let until = Moment::now().after(store.patience);
        // In a cluster whatever is published is published by all of its nodes.
        let slot = key.map_or(0, |key| store.slot(key));
        let server = store.router.server_of(slot, until)?;
        let subscribed = Self::at(store, &server, key, until);
        if subscribed.is_err() {
            store.router.heed(slot, &server, None);
        }
        subscribed.map_err(|failure| failure.by(&server))
    }

    fn at(store: &RedisStore, server: &Endpoint, key: Option<&Key>, until: Moment) -> Result<Self, Failure> {
        let mut connection = store.router.pool.open(server, until)?;
        let subscribe = match key {
            Some(key) => cmd("SUBSCRIBE").arg(store.name(key, "changes")).take(),
            None => cmd("PSUBSCRIBE").arg(format!("{}:*", glob(&store.address.prefix))).take(),
        };
        match connection.ask(std::slice::from_ref(&subscribe), until.left())?.pop() {
            Some(Value::ServerError(error)) => Err(Failure::Server(error)),
            _ => Ok(Self { connection, subscribe, address: store.address.clone(), heard: Moment::now() }),
        }
    }

    /// The keys that the server tells of until there is a pause; nothing if it is silent for `span`.
    fn listen(&mut self, span: Duration) -> Result<Option<BTreeSet<Key>>, Failure> {
        let mut heard = None;
        let mut span = span;
        while let Some(message) = self.connection.next(span, SILENCE.1)? {
            span = Duration::ZERO;
            let keys: &mut BTreeSet<Key> = heard.get_or_insert_default();
            if let Value::Array(parts) = &message
                && matches!(parts.first().and_then(reply::text), Some("message" | "pmessage"))
            {
                keys.extend(parts.last().and_then(reply::text).and_then(|key| Key::parse(key).ok()));
            }
        }
        Ok(heard)
    }

    fn next_changes(&mut self, timeout: Option<Duration>) -> Result<BTreeSet<Key>, Failure> {
        let until = timeout.map(|timeout| Moment::now().after(timeout));
        loop {
            let left = until.map_or(Duration::MAX, Moment::left);
            let mut heard = self.listen(left.min(self.heard.after(SILENCE.0).left()))?;
            if heard.is_none() && self.heard.after(SILENCE.0).left().is_zero() {
                // To subscribe again changes nothing, and has an answer.
                self.connection.send(std::slice::from_ref(&self.subscribe), SILENCE.1)?;
                heard = Some(self.listen(SILENCE.1)?.ok_or(Failure::Silent)?);
            }
            if heard.is_some() {
                self.heard = Moment::now();
            }
            let keys = heard.unwrap_or_default();
            if !keys.is_empty() || until.is_some_and(|until| until.left().is_zero()) {
                return Ok(keys);
            }
        }
    }
}

impl Observer for Subscription {
    fn next(&mut self, _: &[Record], timeout: Option<Duration>) -> Result<Changed, StoreError> {
        let changed = self.next_changes(timeout).map_err(|failure| failure.by(&self.connection.server));
        changed.map(Changed::Keys).map_err(|failure| failure.at(&self.address))
    }
}

/// A text that stands for itself in a pattern.
fn glob(text: &str) -> String {
    let escape = |c: char| if "*?[]^\\".contains(c) { vec!['\\', c] } else { vec![c] };
    text.chars().flat_map(escape).collect()
}
