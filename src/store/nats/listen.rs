//! Whom a change concerns: each level that waits or holds has a subject of its own, so that nobody wakes for what is none of
//! his business, and each key has one for those who look on.

use super::{Connection, Failure, NatsRegister};
use crate::clock::Moment;
use crate::model::{Key, LevelId, Record};
use crate::store::turn;

impl NatsRegister {
    /// The subjects on which there is something to tell of a change that the caller made.
    pub(super) fn news(&self, key: &Key, before: &Record, after: &Record, me: Option<LevelId>) -> Vec<String> {
        let Some(news) = turn::news(before, after, me) else { return Vec::new() };
        let bucket = &self.address.bucket;
        let told = news.into_iter().map(|(level, what)| format!("{}.{what}", bucket.to_level(level)));
        told.chain([bucket.changes_of(key)]).collect()
    }

    /// A connection that hears what is told on a subject. Of those that are idle so many are left alone.
    pub(super) fn listen(&self, subject: &str, left: usize, until: Moment) -> Result<Connection, Failure> {
        let listen = |mut connection: Connection| match connection.listen(subject, until) {
            Ok(()) => Ok(connection),
            Err(failure) => Err(failure.by(&connection.server)),
        };
        self.idle.with(Some(subject), left, || self.open(until), listen)
    }
}
