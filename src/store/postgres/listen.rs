//! Hearing of changes: a channel for each level that waits or holds, so that nobody wakes for what is none of his business,
//! and one for all who look on. A pooler may give each transaction to another session, and then nobody hears anything; so it
//! is tried before it is relied on.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::PostgresRegister;
use super::address::Table;
use super::connection::{Connection, Done, Statement, plain, with};
use super::table::NOTIFY;
use super::trouble::Failure;
use crate::clock::Moment;
use crate::model::{Key, LevelId, Record};
use crate::store::turn;

/// What one says to oneself.
const PROOF: &str = "proof";

/// How long to listen to oneself, where somebody stands between us and the server: at least so long, and some round trips.
const HEARS_WITHIN: (Duration, u32) = (Duration::from_millis(50), 5);

/// The names of channels. They say nothing of a lease's id: whoever can log in may see them.
#[derive(Debug)]
pub(super) struct Channels {
    table: String,
    /// Of all changes; the words are the key.
    pub(super) changes: String,
}

impl Channels {
    pub(super) fn of(table: &Table) -> Self {
        let table = table.prefix().to_owned();
        Self { changes: name(&[&table]), table }
    }

    /// Of what concerns this level.
    pub(super) fn of_level(&self, level: LevelId) -> String {
        name(&[&self.table, &level.secret()])
    }

    /// What there is to tell of a change that the caller made.
    pub(super) fn news(
        &self,
        key: &Key,
        before: &Record,
        after: &Record,
        me: Option<LevelId>,
    ) -> Option<Statement<'_>> {
        let news = turn::news(before, after, me)?;
        let mut news: Map<String, Value> =
            news.into_iter().map(|(level, words)| (self.of_level(level), words.into())).collect();
        news.insert(self.changes.clone(), key.as_str().into());
        Some(with(NOTIFY, [Value::Object(news).to_string()]))
    }
}

fn name(parts: &[&str]) -> String {
    let digest = Sha256::digest(parts.join("\0"));
    let first = digest.first_chunk().expect("it has 32 bytes");
    format!("dlock_{:032x}", u128::from_be_bytes(*first))
}

impl PostgresRegister {
    /// A connection that hears what is told on a channel, if any can. Of those that are idle so many are left alone.
    pub(super) fn listen(&self, channel: &str, left: usize, until: Moment) -> Result<Connection, Failure> {
        let listen = |connection| self.listen_on(connection, channel, until);
        self.idle.with(Some(channel), left, || self.open(until), listen)
    }

    fn listen_on(&self, mut connection: Connection, channel: &str, until: Moment) -> Result<Connection, Failure> {
        if self.is_deaf() || connection.channels.contains(channel) {
            return Ok(connection);
        }
        let server = connection.server.clone();
        self.begin(&mut connection, channel, until).map_err(|failure| failure.by(&server))?;
        Ok(connection)
    }

    fn begin(&self, connection: &mut Connection, channel: &str, until: Moment) -> Result<(), Failure> {
        if !connection.channels.is_empty() {
            // Who listens to one after the other hears of the last one only.
            let mut statements: Vec<String> = connection.channels.iter().map(|old| format!("UNLISTEN {old}")).collect();
            statements.push(format!("LISTEN {channel}"));
            let statements: Vec<Statement> = statements.iter().map(|text| plain(text)).collect();
            connection.ask(&statements, until)?;
            connection.channels = std::iter::once(channel.to_owned()).collect();
            return Ok(());
        }
        let proof = [with(NOTIFY, [json!({ channel: PROOF }).to_string()])];
        let listen = format!("LISTEN {channel}");
        let by = if connection.is_direct(until)? {
            connection.ask(&[plain(&listen)], until)?;
            connection.ask(&proof, until)?;
            until
        } else {
            // Over another connection, for the session that hears it may be the one that said it.
            let Some(mut other) = self.other_session(connection, until)? else { return Ok(()) };
            let asked = Moment::now();
            connection.ask(&[plain(&listen)], until)?;
            let round_trip = Moment::now().since(asked);
            let said = other.ask(&proof, until);
            said.map_err(|failure| failure.by(&other.server))?;
            until.min(Moment::now().after(HEARS_WITHIN.0.max(round_trip * HEARS_WITHIN.1)))
        };
        while let Some(note) = connection.next_note(by)? {
            // Others may have had this session, and have listened.
            if (&*note.channel, &*note.words) == (channel, PROOF) {
                connection.channels = std::iter::once(channel.to_owned()).collect();
                return Ok(());
            }
        }
        self.become_deaf();
        // Whoever has that session next would be told.
        connection.ask(&[plain(&format!("UNLISTEN {channel}"))], until)?;
        Ok(())
    }

    /// A connection with another session than this one; nothing if the pooler that stands before us gave both the same,
    /// one after the other.
    fn other_session(&self, connection: &mut Connection, until: Moment) -> Result<Option<Connection>, Failure> {
        const WHO: &str = "SELECT pg_backend_pid()";
        let mut other = self.idle.take(None, 0).map_or_else(|| self.open(until), Ok)?;
        let mine = connection.ask(&[plain(WHO)], until)?;
        let others = other.ask(&[plain(WHO)], until).map_err(|failure| failure.by(&other.server))?;
        let process = |done: &[Done]| done.first().and_then(|done| done.value(0)).map(str::to_owned);
        if process(&mine) != process(&others) {
            return Ok(Some(other));
        }
        self.become_deaf();
        Ok(None)
    }

    fn become_deaf(&self) {
        log::debug!("{} is behind a pooler that keeps no session: dlock looks, since it is not told", self.address);
        self.deaf.store(true, Ordering::Relaxed);
    }

    /// Whether it is known that nobody tells us anything.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf.load(Ordering::Relaxed)
    }
}
