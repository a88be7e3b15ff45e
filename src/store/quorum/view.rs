//! What several nodes keep of a key, seen as one.

use std::collections::VecDeque;

use super::tally::majority;
use crate::model::{Event, EventKind, Hold, LevelId, MAX_EVENTS, Record, Stamp, Waiter};

/// The record of a key of which so many of `nodes` told what they keep. What most of them may have is so; one that did
/// not tell may have anything.
pub(super) fn merge(nodes: usize, seen: Vec<Option<Record>>) -> Option<Record> {
    let silent = nodes - seen.len();
    let mut records: Vec<Record> = seen.into_iter().flatten().collect();
    // What is said of it as a whole is taken from the one that knows most.
    records.sort_by_key(|record| std::cmp::Reverse(record.fence));
    let mut whole = records.first()?.clone();
    let is_so = |count: usize| count + silent >= majority(nodes);
    whole.holders = holders(&records, is_so);
    whole.queue = queue(&records, &whole.holders);
    whole.events = events(&records, is_so);
    let counters = records.iter().map(|record| &record.counters);
    whole.counters.grants = counters.clone().map(|counters| counters.grants).max().unwrap_or_default();
    whole.counters.expiries = counters.clone().map(|counters| counters.expiries).max().unwrap_or_default();
    whole.counters.evictions = counters.map(|counters| counters.evictions).max().unwrap_or_default();
    Some(whole)
}

fn holders(records: &[Record], is_so: impl Fn(usize) -> bool) -> Vec<Hold> {
    let mut holders: Vec<(usize, Hold)> = Vec::new();
    for hold in records.iter().flat_map(|record| &record.holders) {
        match holders.iter_mut().find(|(_, known)| (known.lease, known.fence) == (hold.lease, hold.fence)) {
            Some((count, known)) => {
                *count += 1;
                known.revoked |= hold.revoked;
                // A node that lost it was told of it again.
                known.granted_at = known.granted_at.min(hold.granted_at);
                known.asked_at = known.asked_at.min(hold.asked_at);
                for level in &hold.levels {
                    if known.levels.iter().all(|other| other.id != level.id) {
                        known.levels.push(level.clone());
                    }
                }
            }
            None => holders.push((1, hold.clone())),
        }
    }
    holders.retain(|(count, _)| is_so(*count));
    for (_, hold) in &mut holders {
        let (lease, fence) = (hold.lease, hold.fence);
        let same = records
            .iter()
            .flat_map(|record| &record.holders)
            .filter(|other| (other.lease, other.fence) == (lease, fence));
        let levels: Vec<LevelId> = same.flat_map(|other| &other.levels).map(|level| level.id).collect();
        // A node may be late to hear that one was given back.
        hold.levels.retain(|level| is_so(levels.iter().filter(|other| **other == level.id).count()));
    }
    holders.sort_by_key(|(count, hold)| (std::cmp::Reverse(*count), hold.fence));
    holders.into_iter().map(|(_, hold)| hold).collect()
}

/// Those who wait anywhere and do not hold the key, in the order in which most nodes heard of them.
fn queue(records: &[Record], holders: &[Hold]) -> Vec<Waiter> {
    let mut queue: Vec<(Waiter, Vec<Stamp>)> = Vec::new();
    for waiter in records.iter().flat_map(|record| &record.queue) {
        match queue.iter_mut().find(|(known, _)| known.lease == waiter.lease) {
            Some((_, since)) => since.push(waiter.asked_at),
            None => queue.push((waiter.clone(), vec![waiter.asked_at])),
        }
    }
    queue.retain(|(waiter, _)| holders.iter().all(|hold| hold.lease != waiter.lease));
    queue.sort_by_cached_key(|(waiter, since)| (middle(since.iter().copied()), waiter.lease));
    queue.into_iter().map(|(waiter, _)| waiter).collect()
}

fn events(records: &[Record], is_so: impl Fn(usize) -> bool) -> VecDeque<Event> {
    let mut events: Vec<(Event, Vec<Stamp>)> = Vec::new();
    for event in records.iter().flat_map(|record| &record.events) {
        match events.iter_mut().find(|(known, _)| known.tells_the_same_as(event)) {
            Some((known, at)) => {
                at.push(event.at);
                known.ending = known.ending.take().or_else(|| event.ending.clone());
                known.by = known.by.take().or_else(|| event.by.clone());
            }
            None => events.push((event.clone(), vec![event.at])),
        }
    }
    events.retain(|(_, at)| is_so(at.len()));
    let dated = |(mut event, at): (Event, Vec<Stamp>)| {
        event.at = middle(at.into_iter());
        event
    };
    let mut events: Vec<Event> = events.into_iter().map(dated).collect();
    // One node may have noticed an end before another one noticed the grant.
    events.sort_by_key(|event| (event.at, event.fence, event.kind != EventKind::Granted));
    events.drain(..events.len().saturating_sub(MAX_EVENTS));
    events.into()
}

/// The one in the middle: no clock that is wrong decides it alone.
pub(super) fn middle(stamps: impl Iterator<Item = Stamp>) -> Stamp {
    let mut stamps: Vec<Stamp> = stamps.collect();
    stamps.sort_unstable();
    stamps.get(stamps.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::merge;
    use crate::model::{Ask, Ending, Info, Key, LeaseId, Mode, Patience, Record, Stamp};

    /// A key that stays taken, as two of three nodes have it that heard of the end of the command, and one that did not.
    fn cooling() -> Vec<Option<Record>> {
        let lease = LeaseId::new([1; 16]);
        let ask = Ask {
            lease,
            level: lease,
            mode: Mode::Exclusive,
            ttl: Some(Duration::from_secs(30)),
            patience: Patience::None,
            if_fence: None,
            proposal: None,
            min_hold: Duration::from_secs(3600),
            max_reentry: 0,
            attended: true,
            info: Info::default(),
        };
        let now = Stamp::from_micros(1_000_000);
        let mut held = Record::new(Key::parse("k").expect("a key"));
        held.acquire(&now, &ask);
        let mut given_back = held.clone();
        given_back.release(&now, lease, Some(Ending::default()));
        vec![Some(held), Some(given_back.clone()), Some(given_back)]
    }

    #[test]
    fn what_most_nodes_heard_of_an_end_is_so() {
        let record = merge(3, cooling()).expect("there is one");
        assert!(record.holders[0].is_cooling(), "{record:?}");
        // One that is silent may be as late as the first one.
        let record = merge(3, cooling()[..2].to_vec()).expect("there is one");
        assert!(!record.holders[0].is_cooling(), "{record:?}");
    }
}
