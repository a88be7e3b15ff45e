//! Connections that nobody uses just now, kept for the next request.

use std::sync::Mutex;

#[cfg(any(feature = "nats", feature = "postgres"))]
use super::failure::{Failure, Meaning};
use super::lock;

/// A connection that can be kept.
pub(super) trait Connected {
    /// Whether it can be used again: nothing is due, and it has not ended meanwhile.
    fn is_usable(&mut self) -> bool;

    /// Whether it hears what others tell.
    fn listens(&self) -> bool {
        false
    }

    /// Whether it hears what is told in this place.
    fn listens_to(&self, _place: &str) -> bool {
        false
    }
}

/// Connections that are idle.
pub(super) struct Pool<C>(Mutex<Vec<C>>);

impl<C> Default for Pool<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C: Connected> Pool<C> {
    /// One of them; if it may be, one that listens to this `place`. So many are `left` alone.
    pub(super) fn take(&self, place: Option<&str>, left: usize) -> Option<C> {
        let mut idle = lock(&self.0);
        idle.retain_mut(C::is_usable);
        if idle.len() <= left {
            return None;
        }
        let listening = place.and_then(|place| idle.iter().position(|connection| connection.listens_to(place)));
        // Whoever asks for nothing in particular leaves alone those that listen.
        let quiet = || idle.iter().rposition(|connection| !connection.listens());
        let at = listening.or_else(quiet).unwrap_or(idle.len() - 1);
        Some(idle.remove(at))
    }

    /// Keeps a connection for the next request.
    pub(super) fn keep(&self, connection: C) {
        lock(&self.0).push(connection);
    }

    /// Does something over one of them (see [`Self::take`]), or over a new one if there is none. If it had ended while it
    /// was idle, then so have the others, and that is no failure.
    #[cfg(any(feature = "nats", feature = "postgres"))]
    pub(super) fn with<T, S: Meaning>(
        &self,
        place: Option<&str>,
        left: usize,
        open: impl FnOnce() -> Result<C, Failure<S>>,
        mut work: impl FnMut(C) -> Result<T, Failure<S>>,
    ) -> Result<T, Failure<S>> {
        if let Some(connection) = self.take(place, left) {
            match work(connection) {
                Err(failure) if failure.is_stale() => lock(&self.0).clear(),
                done => return done,
            }
        }
        work(open()?)
    }

    /// Ends those that are not good any more.
    #[cfg(any(feature = "etcd", feature = "nats"))]
    pub(super) fn retain(&self, is_good: impl Fn(&C) -> bool) {
        lock(&self.0).retain(is_good);
    }
}
