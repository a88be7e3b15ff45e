//! What votes come to.

use std::collections::HashMap;
use std::time::Duration;

use super::voter::{Origin, Vote};
use crate::model::{Answer, Fence, Grant, Hold, LeaseId, Refusal};
use crate::store::StoreError;

/// The votes on one proposal as far as they are in.
pub(super) struct Tally {
    /// How many may vote.
    nodes: usize,
    /// The proposed fence; nothing where a lease is entered again, which has one.
    fence: Option<Fence>,
    /// The time to live of the lease, and how long the key stays taken at least.
    ttl: Duration,
    pub(super) votes: Vec<(usize, Vote)>,
    pub(super) errors: Vec<(usize, StoreError)>,
    /// One that votes with others than these.
    elsewhere: Option<usize>,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// Wait for more votes.
    Open,
    /// Most agreed.
    Won(Grant),
    /// Most are new and none is not: this is where the quorum begins. These are the lives of those that are there.
    Founding(Vec<(usize, String)>),
    /// Nobody has the key, but there were proposals as high as ours: this is the highest fence.
    TooLow(Fence),
    /// Others have the key, or are about to, and so many of them are ahead of us in the queues.
    Queued(usize),
    /// Others have the key: these, and so many wait.
    Busy(Vec<Hold>, usize),
    /// Several have parts of the votes, and none has most of them.
    Split,
    /// Most refused us.
    Refused(Refusal),
    /// This one votes with others than these.
    Elsewhere(usize),
    /// Too few can vote.
    Unknown,
}

/// More than half of so many.
pub(super) const fn majority(nodes: usize) -> usize {
    nodes / 2 + 1
}

impl Tally {
    pub(super) fn new(nodes: usize, fence: Option<Fence>, ttl: Duration) -> Self {
        Self { nodes, fence, ttl, votes: Vec::new(), errors: Vec::new(), elsewhere: None }
    }

    pub(super) fn count(&mut self, at: usize, answer: Result<Option<Vote>, StoreError>) {
        match answer {
            Ok(Some(vote)) => self.votes.push((at, vote)),
            Ok(None) => self.elsewhere = Some(at),
            Err(error) => self.errors.push((at, error)),
        }
    }

    /// The longest time for which a lease that a voter has forgotten may still count.
    pub(super) fn longest(&self) -> Duration {
        self.votes.iter().map(|(_, vote)| vote.tenure.longest).max().unwrap_or_default().max(self.ttl)
    }

    fn is_trusted(&self, vote: &Vote) -> bool {
        vote.tenure.is_trusted(self.longest())
    }

    /// Those who agreed to just this.
    pub(super) fn agreed(&self) -> impl Iterator<Item = (usize, &Vote, Grant)> {
        self.votes.iter().filter_map(|(at, vote)| match vote.answer {
            Answer::Granted(grant) if self.fence.is_none_or(|fence| fence == grant.fence) => Some((*at, vote, grant)),
            _ => None,
        })
    }

    /// Whether those are new who would decide it: then it is worth to wait for those who are slow, and may remember what the
    /// others have forgotten.
    pub(super) fn may_begin(&self) -> bool {
        let new = self.votes.iter().filter(|(_, vote)| vote.tenure.origin == Origin::New).count();
        new >= majority(self.nodes) && !self.votes.iter().any(|(_, vote)| self.is_trusted(vote))
    }

    /// Those who have forgotten nothing by now, if all have said for how long leases live.
    pub(super) fn proved(&self) -> impl Iterator<Item = (usize, &str)> {
        let all = self.votes.len() == self.nodes;
        let proved =
            move |vote: &&(usize, Vote)| all && self.is_trusted(&vote.1) && vote.1.tenure.origin != Origin::Founder;
        self.votes.iter().filter(proved).map(|(at, vote)| (*at, &*vote.tenure.life))
    }

    /// Judges by the votes that are in. There may be more to come, or not: `all_in`.
    pub(super) fn judge(&self, all_in: bool) -> Verdict {
        if let Some(at) = self.elsewhere {
            return Verdict::Elsewhere(at);
        }
        let enough = majority(self.nodes);
        let counted: Vec<Grant> =
            self.agreed().filter(|(_, vote, _)| self.is_trusted(vote)).map(|(.., grant)| grant).collect();
        if let Some(grant) = counted.first().filter(|_| counted.len() >= enough) {
            let sure = self.agreed().filter(|(_, vote, _)| vote.tenure.is_beyond_doubt()).count();
            // Who is slow may know of a lease that lives longer than those that the others have heard of.
            return if all_in || sure >= enough { Verdict::Won(*grant) } else { Verdict::Open };
        }
        if self.may_begin() && all_in {
            let lives = self.votes.iter().filter(|(_, vote)| vote.tenure.origin == Origin::New);
            return Verdict::Founding(lives.map(|(at, vote)| (*at, vote.tenure.life.clone())).collect());
        }
        let to_come = if all_in { 0 } else { self.nodes - self.votes.len() - self.errors.len() };
        if counted.len() + to_come >= enough || self.may_begin() {
            return Verdict::Open;
        }
        // Those whose votes do not count say nothing of what others would say.
        if self.votes.len() + to_come < enough {
            return Verdict::Unknown;
        }
        if self.votes.len() < enough {
            return Verdict::Open;
        }
        self.why_not(all_in)
    }

    /// Why most did not agree, by the votes that are in.
    fn why_not(&self, all_in: bool) -> Verdict {
        let mut too_low = Vec::new();
        let (mut refusals, mut places, mut busy) = (Vec::new(), Vec::new(), Vec::new());
        for (_, vote) in &self.votes {
            match &vote.answer {
                // It agreed to an older proposal of ours.
                Answer::Granted(grant) if self.fence.is_some_and(|fence| fence != grant.fence) => {
                    too_low.push(grant.fence);
                }
                Answer::Granted(_) => {}
                Answer::Refused(Refusal::Fence(fence)) => too_low.push(*fence),
                Answer::Refused(refusal) => refusals.push(*refusal),
                Answer::Queued(ahead) => places.push(*ahead),
                Answer::Busy(holders, waiting) => busy.push((holders, *waiting)),
            }
        }
        places.sort_unstable();
        if let Some(refusal) = refusals.first().filter(|_| self.is_out_of_reach(refusals.len())) {
            return Verdict::Refused(*refusal);
        }
        if let Some(place) = places.get(places.len() / 2) {
            return Verdict::Queued(*place);
        }
        if !busy.is_empty() {
            let waiting = busy.iter().map(|(_, waiting)| *waiting).max().unwrap_or_default();
            let holders = self.holders(busy.iter().flat_map(|(holders, _)| *holders));
            return match &holders[..] {
                [(count, hold), ..] if *count >= majority(self.nodes) => Verdict::Busy(vec![hold.clone()], waiting),
                _ if !all_in => Verdict::Open,
                [(_, hold)] => Verdict::Busy(vec![hold.clone()], waiting),
                [] if waiting > 0 => Verdict::Busy(Vec::new(), waiting),
                _ => Verdict::Split,
            };
        }
        match too_low.into_iter().max() {
            Some(fence) => Verdict::TooLow(fence),
            None => refusals.first().map_or(Verdict::Unknown, |refusal| Verdict::Refused(*refusal)),
        }
    }

    /// Whether without so many there is no majority.
    fn is_out_of_reach(&self, without: usize) -> bool {
        self.nodes - without < majority(self.nodes)
    }

    /// Those who may have most of the votes, as far as is known, and how many they have for sure.
    fn holders<'a>(&self, seen: impl Iterator<Item = &'a Hold>) -> Vec<(usize, Hold)> {
        let mut by_lease: HashMap<LeaseId, (usize, &Hold)> = HashMap::new();
        for hold in seen {
            by_lease.entry(hold.lease).or_insert((0, hold)).0 += 1;
        }
        // Whoever may have forgotten a lease does not say that there is none.
        let says = |(_, vote): &&(usize, Vote)| matches!(vote.answer, Answer::Busy(..)) || self.is_trusted(vote);
        let unheard = self.nodes - self.votes.iter().filter(says).count();
        let may_hold = |(count, _): &(usize, &Hold)| count + unheard >= majority(self.nodes);
        let mut holders: Vec<_> = by_lease.into_values().filter(may_hold).collect();
        holders.sort_unstable_by_key(|(count, hold)| (std::cmp::Reverse(*count), hold.lease));
        holders.into_iter().map(|(count, hold)| (count, hold.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Answer, Fence, Grant, Origin, Refusal, Tally, Verdict, Vote};
    use crate::store::quorum::Tenure;
    use crate::store::{StoreError, Trouble};

    const TTL: Duration = Duration::from_secs(30);

    fn tenure(origin: Origin, age: u64) -> Tenure {
        Tenure { life: "life".into(), origin, age: Duration::from_secs(age), longest: TTL }
    }

    fn granted(fence: u64) -> Answer {
        Answer::Granted(Grant { fence: Fence(fence), depth: 1, waited: Duration::ZERO })
    }

    fn busy(waiting: usize) -> Answer {
        Answer::Busy(Vec::new(), waiting)
    }

    /// What three nodes come to of which these have answered to a proposal of fence 7.
    fn judge(answers: Vec<Option<(Answer, Tenure)>>, all_in: bool) -> Verdict {
        let mut tally = Tally::new(3, Some(Fence(7)), TTL);
        for (at, answer) in answers.into_iter().enumerate() {
            let vote = answer.map(|(answer, tenure)| Vote { answer, tenure });
            tally.count(at, vote.map(Some).ok_or_else(|| StoreError::new(Trouble::Unreachable, "it is away")));
        }
        tally.judge(all_in)
    }

    #[test]
    fn most_must_agree_to_the_same_fence() {
        let old = |answer| Some((answer, tenure(Origin::Founder, 0)));
        assert_eq!(judge(vec![old(granted(7))], false), Verdict::Open);
        assert!(matches!(judge(vec![old(granted(7)), None, old(granted(7))], false), Verdict::Won(_)));
        assert_eq!(judge(vec![old(granted(7)), old(granted(6)), None], true), Verdict::TooLow(Fence(6)));
        let low = |fence| old(Answer::Refused(Refusal::Fence(Fence(fence))));
        assert_eq!(judge(vec![low(8), low(9)], false), Verdict::TooLow(Fence(9)));
        assert_eq!(
            judge(vec![old(granted(7)), old(Answer::Queued(2)), old(Answer::Queued(1))], true),
            Verdict::Queued(2)
        );
    }

    #[test]
    fn too_few_that_answer_say_nothing() {
        let old = |answer| Some((answer, tenure(Origin::Founder, 0)));
        assert_eq!(judge(vec![None, None, old(granted(7))], true), Verdict::Unknown);
        assert_eq!(judge(vec![None, None, old(busy(0))], true), Verdict::Unknown);
        assert_eq!(judge(vec![None, None], false), Verdict::Unknown);
    }

    #[test]
    fn who_may_have_forgotten_a_lease_does_not_vote() {
        let old = || Some((granted(7), tenure(Origin::Founder, 0)));
        for origin in [Origin::New, Origin::Restarted] {
            let after = |age| Some((granted(7), tenure(origin, age)));
            assert_eq!(judge(vec![old(), after(29), None], true), Verdict::Unknown, "{origin:?}");
            assert!(matches!(judge(vec![old(), after(30), None], true), Verdict::Won(_)), "{origin:?}");
        }
    }

    #[test]
    fn a_quorum_begins_where_most_are_new_and_nobody_knows_better() {
        let new = || Some((granted(7), tenure(Origin::New, 0)));
        let founded = |verdict| if let Verdict::Founding(lives) = verdict { lives.len() } else { 0 };
        assert_eq!(judge(vec![new(), new()], false), Verdict::Open, "the third one may know better");
        assert_eq!(founded(judge(vec![new(), new(), None], true)), 2);
        assert_eq!(founded(judge(vec![new(), new(), new()], true)), 3);
        let restarted = || Some((granted(7), tenure(Origin::Restarted, 0)));
        assert_eq!(judge(vec![new(), restarted(), restarted()], true), Verdict::Unknown);
        let old = || Some((granted(7), tenure(Origin::Founder, 0)));
        assert_eq!(judge(vec![new(), new(), old()], true), Verdict::Unknown);
    }

    #[test]
    fn parts_of_the_votes_are_no_lease() {
        let old = |answer| Some((answer, tenure(Origin::Founder, 0)));
        assert_eq!(judge(vec![old(granted(7)), old(busy(0)), old(busy(0))], true), Verdict::Split);
        assert_eq!(judge(vec![old(busy(0)), old(busy(0))], false), Verdict::Open, "who has them is not known yet");
        assert_eq!(judge(vec![old(busy(3)), old(busy(2)), None], true), Verdict::Busy(Vec::new(), 3));
    }
}
