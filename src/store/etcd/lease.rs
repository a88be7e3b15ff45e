//! Leases of etcd's, to which signs of life are tied: how one is made, renewed, and ended.
//!
//! **Renewals.** A hold is renewed by tying its sign of life to a new lease of etcd's, which most members have agreed to. To
//! keep the old lease alive would cost no agreement, but a leader that was frozen, and does not know yet that there is a new
//! one, may say that it did so, and may even end a lease that the new leader had kept alive (etcd, issue 15247).

use std::time::Duration;

use serde_json::Value;

use super::address::level;
use super::api::{self, LeaseLeft, Request};
use super::connection::Connection;
use super::look::{End, Life, Reading};
use super::transact::{Change, Written, is_full};
use super::trouble::Failure;
use super::{EtcdRegister, lock};
use crate::clock::Moment;
use crate::model::{LevelId, Record, Standing};

/// What etcd counts leases in, and the shortest one that it makes.
pub(super) const LEAST_TTL: Duration = Duration::from_secs(2);

/// A lease of etcd's to tie a sign of life to.
pub(super) struct Lease {
    pub(super) id: i64,
    /// How long it is, in whole seconds.
    seconds: u64,
    /// What makes it, if it is not there yet.
    pub(super) making: Option<Request>,
}

impl Lease {
    /// How long whoever shows his life with it may count on it, for those who see that.
    pub(super) fn span(&self) -> String {
        self.seconds.to_string()
    }
}

impl EtcdRegister {
    /// Begins a lease of etcd's anew; no, if it has ended.
    pub(super) fn sign(
        &self,
        connection: &mut Connection,
        me: LevelId,
        life: Life,
        until: Moment,
    ) -> Result<bool, Failure> {
        let sent = Moment::now();
        let left: LeaseLeft = connection.ask_stream(&api::keep_alive(life.lease), until)?;
        let Some(seconds) = u64::try_from(left.ttl).ok().filter(|seconds| *seconds > 0) else { return Ok(false) };
        self.saw(&level(me), life.revision, sent.after(Duration::from_secs(seconds)));
        Ok(true)
    }
}

impl Change<'_> {
    /// Renews a hold of which nothing else is new. No, if something has become of it meanwhile.
    pub(super) fn renew(
        &mut self,
        connection: &mut Connection,
        me: LevelId,
        life: Life,
        span: Duration,
        reading: &Reading,
    ) -> Result<Written, Failure> {
        let sent = Moment::now();
        let lease = self.lease(me, span)?;
        let name = format!("{}{}", self.register.address.of(self.key), level(me));
        let renewal = [api::put(&name, lease.span().as_bytes(), Some(lease.id)), self.end(span).written(&name)];
        match self.swap(connection, lease.making, &api::is_at(&name, life.revision), &renewal) {
            Err(failure) if is_full(&failure) => Ok(Written::if_so(self.hold_on(connection, me, life, reading)?)),
            Ok(Written::At(revision)) => {
                lock(&self.register.left).take();
                self.has_come(revision, Some(sent.after(span)));
                Ok(Written::At(revision))
            }
            written => written,
        }
    }

    /// Until when we count on a level, for those who find its sign of life gone: it may have ended too soon, and if not they
    /// may want to know when it did.
    pub(super) fn end(&self, span: Duration) -> End {
        End::after(self.register.clock(), span)
    }

    /// Renews a hold where there is no room for anything new, by keeping its lease alive. Who answers may be a leader of
    /// yesterday, so it counts only if the same member, with the same term before and after it, still knows what most members
    /// agree to: then there was no other leader meanwhile.
    fn hold_on(&self, connection: &mut Connection, me: LevelId, life: Life, before: &Reading) -> Result<bool, Failure> {
        if !self.register.sign(connection, me, life, self.until)? {
            return Ok(false);
        }
        let after = self.register.look_at(connection, self.key, Some(me), self.until)?;
        Ok(after.member == before.member && after.lives.get(&level(me)) == Some(&life))
    }

    /// A lease of etcd's for our level: one that was made for this change and lost a swap, or a new one.
    pub(super) fn lease(&mut self, me: LevelId, span: Duration) -> Result<Lease, Failure> {
        let is_good = |(_, good_for, made): &(i64, Duration, Moment)| {
            *good_for == span && Moment::now().since(*made) < LEAST_TTL / 2
        };
        if let Some((id, ..)) = self.spare.filter(is_good) {
            return Ok(Lease { id, seconds: self.seconds(span), making: None });
        }
        let lease = self.new_lease(me, span)?;
        self.spare = Some((lease.id, span, Moment::now()));
        Ok(lease)
    }

    /// A new lease. As long as it is not known what became of the change that it is for, it is remembered.
    pub(super) fn new_lease(&self, me: LevelId, span: Duration) -> Result<Lease, Failure> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|error| Failure::Settings(format!("no random numbers: {error}")))?;
        let id = (i64::from_le_bytes(bytes) & i64::MAX).max(1);
        let seconds = self.seconds(span);
        lock(&self.register.made).entry(me).or_default().push(id);
        Ok(Lease { id, seconds, making: Some(api::grant(id, seconds)) })
    }

    fn seconds(&self, span: Duration) -> u64 {
        // Where tests rule time, nothing ends by itself.
        let span = if self.is_ruled() { Duration::from_secs(3600) } else { span.max(LEAST_TTL) };
        span.as_secs() + u64::from(span.subsec_nanos() > 0)
    }

    /// Ends what was made for a level that goes, so that no change of it that got no answer comes late. What is not there
    /// may come yet, with such a change behind it, which is in vain once the record was written anew. Whether there was
    /// anything: then the record has to be looked at again.
    pub(super) fn take_back(&mut self, connection: &mut Connection, record: &Record) -> Result<bool, Failure> {
        let Some(me) = self.me.filter(|me| record.standing(*me) == Standing::Gone) else { return Ok(false) };
        let made = lock(&self.register.made).remove(&me).unwrap_or_default();
        for (at, id) in made.iter().enumerate() {
            match end_lease(connection, *id, self.until) {
                Ok(was_there) => self.may_come |= !was_there,
                Err(failure) => {
                    lock(&self.register.made).entry(me).or_default().extend(&made[at..]);
                    return Err(failure);
                }
            }
        }
        Ok(!made.is_empty())
    }

    /// Ends the sign of life of one who waits and leaves the queue. No, if he does not.
    pub(super) fn has_left(
        &self,
        connection: &mut Connection,
        reading: &Reading,
        record: &Record,
    ) -> Result<bool, Failure> {
        let leaves = |me: &LevelId| {
            matches!(reading.seen.standing(*me), Standing::Waiting(_)) && record.standing(*me) == Standing::Gone
        };
        let Some(me) = self.me.filter(leaves) else { return Ok(false) };
        let Some(life) = reading.lives.get(&level(me)) else { return Ok(false) };
        let name = format!("{}{}", self.register.address.of(self.key), level(me));
        // If the key was granted to us meanwhile, it shows our life anew.
        let ended = self.swap(connection, None, &api::is_at(&name, life.revision), &[api::delete(&name)])?;
        Ok(matches!(ended, Written::At(_)))
    }

    /// Ends the lease of a level that has gone. It would end by itself.
    pub(super) fn clean_up(&self, connection: &mut Connection, reading: &Reading, record: &Record) {
        let gone = self.me.filter(|me| record.standing(*me) == Standing::Gone);
        if let Some(life) = gone.and_then(|me| reading.lives.get(&level(me)))
            && let Err(failure) = end_lease(connection, life.lease, self.until)
        {
            log::info!("a lease of etcd's was left to end by itself: {}", self.register.error(failure));
        }
    }
}

/// Ends a lease, if it has not ended; whether it was there.
fn end_lease(connection: &mut Connection, id: i64, until: Moment) -> Result<bool, Failure> {
    match connection.ask::<Value>(&api::revoke(id), until) {
        Err(failure) if failure.refusal().is_some_and(api::Refusal::is_ended_lease) => Ok(false),
        ended => ended.map(|_| true),
    }
}
