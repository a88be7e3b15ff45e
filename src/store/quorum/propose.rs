//! Asking for a lease: one proposal after the other, until most agree to one or it is clear who has the key.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::node::{Round, silence};
use super::tally::{Tally, Verdict};
use super::{GRACE, PARTING, Quorum, Vote, lock, wait};
use crate::clock::{Deadline, Moment};
use crate::model::{Answer, Ask, Fence, Grant, Hold, Key, LevelId, Patience, Proposal, Refusal, Released};
use crate::store::{Store as _, StoreError, Trouble};

/// How long to leave the nodes alone, at most, when several have parts of the votes: some rounds, so that the one who
/// comes back first is likely to be alone.
const AFTER_SPLIT: Duration = Duration::from_millis(12);

impl Quorum {
    /// One round of votes. Nothing if the level was given back meanwhile.
    fn vote(&self, key: &Key, ask: &Ask, until: Moment) -> Option<(Tally, Verdict)> {
        let fence = ask.proposal.map(|proposal| proposal.fence);
        let mut tally = Tally::new(self.nodes.len(), fence, ask.ttl.unwrap_or_default().max(ask.min_hold));
        let mut round = {
            let state = self.state();
            if state.over.contains(&ask.level) {
                return None;
            }
            self.ask_for_votes(key, ask, 0..self.nodes.len(), until)
        };
        // What is left of that is for founding the quorum.
        let enough = Moment::now().after(until.left() / 2);
        loop {
            let Some((at, vote)) = round.next(if tally.may_begin() { enough } else { until }) else {
                tally.errors.extend(silence(&self.nodes, &round.silent));
                let verdict = tally.judge(true);
                return Some((tally, verdict));
            };
            tally.count(at, vote);
            match tally.judge(round.silent.is_empty()) {
                Verdict::Open => {}
                Verdict::Queued(ahead) => {
                    // Who waits has the time to hear where.
                    let until = until.min(Moment::now().after(GRACE));
                    while let Some((at, vote)) = round.next(until) {
                        tally.count(at, vote);
                    }
                    return Some((tally, Verdict::Queued(ahead)));
                }
                verdict => return Some((tally, verdict)),
            }
        }
    }

    fn ask_for_votes(
        &self,
        key: &Key,
        ask: &Ask,
        whom: impl IntoIterator<Item = usize>,
        until: Moment,
    ) -> Round<Option<Vote>> {
        let (key, ask, voted) = (key.clone(), ask.clone(), Arc::clone(&self.voted));
        Round::begin_at(&self.nodes, whom, until, move |at, node, within| {
            let vote = node.vote(&key, &ask, within);
            if let Ok(Some(_)) = vote {
                lock(&voted).insert((at, ask.level));
            }
            vote
        })
    }

    /// Takes back what was asked for. Nobody waits for that: a node does one thing after the other.
    fn withdraw(&self, key: &Key, level: LevelId, whom: impl IntoIterator<Item = usize>) -> Round<Released> {
        let key = key.clone();
        let until = Moment::now().after(self.patience);
        Round::begin(&self.nodes, whom, until, move |node, within| node.withdraw(&key, level, within))
    }

    /// Takes back all but the places in queues.
    fn withdraw_votes(&self, key: &Key, level: LevelId, tally: &Tally) {
        let is_queued = |at: usize| {
            tally.votes.iter().any(|(other, vote)| *other == at && !matches!(vote.answer, Answer::Granted(_)))
        };
        self.withdraw(key, level, (0..self.nodes.len()).filter(|at| !is_queued(*at)));
    }

    /// Asks for a lease, with one proposal after the other until it is clear what others have.
    pub(super) fn propose(&self, key: &Key, ask: &Ask, within: Duration) -> Result<Answer, StoreError> {
        let until = Moment::now().after(within);
        let mut seen = Fence::default();
        if let Some(expected) = ask.if_fence {
            seen = self.fence(key)?;
            if seen != expected {
                return Ok(Answer::Refused(Refusal::Fence(seen)));
            }
        }
        let mut began = Moment::now();
        let mut fence = next_fence(seen);
        let mut too_low = false;
        loop {
            let proposal = Some(Proposal { fence, again: false });
            let Some((tally, verdict)) = self.vote(key, &Ask { proposal, ..ask.clone() }, until) else {
                return Ok(Answer::Refused(Refusal::Lost));
            };
            match verdict {
                Verdict::Won(grant)
                    if Deadline::of_lease(began, ask.ttl.unwrap_or_default()).moment().left().is_zero() =>
                {
                    // It took too long to be worth anything.
                    self.withdraw(key, ask.level, 0..self.nodes.len());
                    fence = next_fence(grant.fence);
                }
                Verdict::Won(grant) => return Ok(self.won(key, ask, &tally, grant)),
                Verdict::Founding(lives) => {
                    self.found(lives, until)?;
                    continue;
                }
                Verdict::TooLow(highest) if until.left() > GRACE => {
                    self.withdraw(key, ask.level, 0..self.nodes.len());
                    if ask.if_fence.is_some_and(|expected| highest > expected) {
                        return Ok(Answer::Refused(Refusal::Fence(highest)));
                    }
                    // Once that is learnt; if it goes on, others are at it, too.
                    if std::mem::replace(&mut too_low, true) {
                        wait::pause(AFTER_SPLIT);
                    }
                    fence = next_fence(highest);
                }
                Verdict::Split if until.left() > AFTER_SPLIT + GRACE => {
                    self.withdraw(key, ask.level, 0..self.nodes.len());
                    wait::pause(AFTER_SPLIT);
                    fence = next_fence(fence);
                }
                Verdict::Queued(ahead) => {
                    self.withdraw_votes(key, ask.level, &tally);
                    self.stand_in_line(key, ask.level, &tally);
                    return Ok(Answer::Queued(ahead));
                }
                verdict => {
                    let mut round = self.withdraw(key, ask.level, 0..self.nodes.len());
                    self.send_off(&mut round, ask.level, drop);
                    return match verdict {
                        Verdict::Busy(holders, waiting) => Ok(Answer::Busy(holders, waiting)),
                        Verdict::Split | Verdict::TooLow(_) => Ok(Answer::Busy(Vec::new(), 0)),
                        Verdict::Refused(refusal) => Ok(Answer::Refused(refusal)),
                        Verdict::Elsewhere(at) => Err(self.of_another_list(at)),
                        _ => Err(self.without_majority(&tally)),
                    };
                }
            }
            began = Moment::now();
        }
    }

    /// The lease is ours.
    fn won(&self, key: &Key, ask: &Ask, tally: &Tally, grant: Grant) -> Answer {
        let mut state = self.state();
        state.waiting.remove(&ask.level);
        if state.over.contains(&ask.level) {
            return Answer::Refused(Refusal::Lost);
        }
        // Where we still wait in line we are to be a holder, too: a node that is free offers the key to others.
        let queued = tally.votes.iter().filter(|(_, vote)| matches!(vote.answer, Answer::Queued(_)));
        let proposal = Some(Proposal { fence: grant.fence, again: true });
        let ask = Ask { proposal, patience: Patience::None, if_fence: None, ..ask.clone() };
        let until = Moment::now().after(ask.ttl.unwrap_or_default() / 4);
        self.ask_for_votes(key, &ask, queued.map(|(at, _)| *at), until);
        for (at, life) in tally.proved() {
            let life = life.to_owned();
            Round::begin(&self.nodes, [at], until, move |node, within| node.found(&life, within));
        }
        Answer::Granted(grant)
    }

    /// From now on these remember all leases.
    fn found(&self, lives: Vec<(usize, String)>, until: Moment) -> Result<(), StoreError> {
        let whom: Vec<usize> = lives.iter().map(|(at, _)| *at).collect();
        let mut founded = 0;
        let mut errors = Vec::new();
        let mut rounds: Vec<Round<()>> = lives
            .into_iter()
            .map(|(at, life)| Round::begin(&self.nodes, [at], until, move |node, within| node.found(&life, within)))
            .collect();
        for (round, at) in rounds.iter_mut().zip(whom) {
            match round.next(until) {
                Some((_, Ok(()))) => founded += 1,
                Some((at, Err(error))) => errors.push((at, error)),
                None => errors.extend(silence(&self.nodes, &[at])),
            }
        }
        if founded < self.majority() { Err(self.too_few(errors)) } else { Ok(()) }
    }

    fn of_another_list(&self, at: usize) -> StoreError {
        let node = self.nodes[at].store.describe();
        let words = "it votes with another list of nodes, whose leases may still live";
        StoreError::new(Trouble::Unfit, format_args!("redis quorum: {node}: {words}"))
    }

    /// Why there is no majority: nodes that do not answer, and those that may have forgotten something.
    fn without_majority(&self, tally: &Tally) -> StoreError {
        let longest = tally.longest();
        let young = tally.votes.iter().filter(|(_, vote)| !vote.tenure.is_trusted(longest)).map(|(at, vote)| {
            let [age, longest] = [vote.tenure.age, longest].map(|span| Duration::from_secs(span.as_secs()));
            let [age, longest] = [age, longest].map(humantime::format_duration);
            let words = format!(
                "{}: it was started {age} ago and may have forgotten a lease of {longest}",
                self.nodes[*at].store.describe()
            );
            (*at, StoreError::new(Trouble::Unreachable, words))
        });
        self.too_few(tally.errors.iter().cloned().chain(young).collect())
    }

    /// The fence of a key.
    fn fence(&self, key: &Key) -> Result<Fence, StoreError> {
        Ok(self.inspect(key)?.map_or_else(Fence::default, |record| record.fence))
    }

    /// Gives a level of a lease to nodes that lost it, or that were not asked or did not answer when it was given: what
    /// most have may not be in danger because one after the other is started anew.
    pub(super) fn heal(&self, key: &Key, level: LevelId, ttl: Duration, whom: &[usize]) {
        let within = ttl / 8;
        // If they do not tell now, the next beat comes in time.
        let Ok(Some(record)) = self.look(key, within) else { return };
        let has_it = |hold: &&Hold| hold.levels.iter().any(|other| other.id == level);
        let Some(hold) = record.holders.iter().find(has_it) else { return };
        let ask = Ask {
            lease: hold.lease,
            level,
            mode: hold.mode,
            ttl: Some(ttl),
            patience: Patience::None,
            if_fence: None,
            proposal: Some(Proposal { fence: hold.fence, again: true }),
            min_hold: hold.hold_until.map_or(Duration::ZERO, |until| until.since(self.now())),
            max_reentry: 0,
            attended: hold.attended,
            info: hold.info.clone(),
        };
        // Until they are asked nobody may give it back.
        let state = self.state();
        if state.over.contains(&level) {
            return;
        }
        let mut round = self.ask_for_votes(key, &ask, whom.iter().copied(), Moment::now().after(within));
        drop(state);
        // Whoever only renews is gone in a moment.
        let until = Moment::now().after(PARTING.1.min(within));
        while round.next(until).is_some() {}
    }
}

/// The fence to propose: higher than any that was seen, and than that of anybody who looked at the clock before.
fn next_fence(seen: Fence) -> Fence {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Fence(u64::try_from(now.as_micros()).unwrap_or_default().max(seen.0 + 1))
}
