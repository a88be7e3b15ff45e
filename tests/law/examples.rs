//! What broke in other lock tools, told as short stories.

use std::time::Duration;

use dlock::model::{
    Answer, Ask, Ending, Fence, Grant, Info, Key, LeaseId, Mode, OFFER, OFFERS, Passage, Patience, Record, Refusal,
    Released, Renewed, Stamp, Standing, Unlocked,
};

use super::world::World;
use crate::support::ask;

const TTL: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_millis(1);

/// How long to wait so that only a moment of `span` is left.
fn almost(span: Duration) -> Duration {
    span.saturating_sub(MOMENT)
}

fn lease(number: u16) -> LeaseId {
    LeaseId::new((u128::from(number) << 112).to_be_bytes())
}

fn slot(size: u32) -> Mode {
    Mode::Slots(size.try_into().expect("tests use sizes above 0"))
}

/// Asks for the key alone, for [`TTL`], and waits in line.
fn ask(number: u16) -> Ask {
    Ask { patience: Patience::SignOfLife(Duration::from_secs(15)), max_reentry: 16, ..ask::ask(lease(number), TTL) }
}

fn shared(number: u16, ttl: Duration) -> Ask {
    Ask { mode: Mode::Shared, ttl: Some(ttl), ..ask(number) }
}

fn start() -> (World, Record) {
    (World::new(), Record::new(Key::parse("k").expect("a letter is a key")))
}

fn granted(answer: &Answer) -> Grant {
    let Answer::Granted(grant) = answer else { panic!("the key was not granted: {answer:?}") };
    *grant
}

#[test]
fn a_resource_lets_nobody_pass_after_a_newer_fence_and_only_who_holds_it() {
    let (world, mut record) = start();
    granted(&record.acquire(&world, &ask(1)));
    assert_eq!(record.acquire(&world, &ask(2)), Answer::Queued(0));
    let pass = |record: &mut Record, number, fence| record.pass(lease(number), Fence(fence));
    assert_eq!(pass(&mut record, 1, 5), Passage::Open);
    assert_eq!([5, 4].map(|fence| pass(&mut record, 1, fence)), [Passage::Open, Passage::Stale(Fence(5))]);
    for stranger in [2, 3] {
        assert_eq!(pass(&mut record, stranger, 9), Passage::NotYours);
    }
    record.release(&world, lease(1), None);
    granted(&record.acquire(&world, &ask(2)));
    assert_eq!([4, 7].map(|fence| pass(&mut record, 2, fence)), [Passage::Stale(Fence(5)), Passage::Open]);
    assert_eq!(record.passed, Fence(7), "it has nothing to do with the fences of the key itself");
}

#[test]
fn two_readers_with_different_ttl_end_each_at_its_own_time() {
    let (mut world, mut record) = start();
    granted(&record.acquire(&world, &shared(1, TTL)));
    granted(&record.acquire(&world, &shared(2, TTL * 3)));
    world.pass(almost(TTL));
    assert_eq!(record.renew(&world, lease(2), TTL * 3), Renewed::Until(Some(world.now.after(TTL * 3))));
    world.pass(MOMENT);
    assert_eq!(record.renew(&world, lease(1), TTL), Renewed::NotYours, "its neighbour's renewal is not its own");
    assert_eq!(record.standing(lease(2)), Standing::Holding { revoked: false });
    world.pass(TTL * 3);
    assert!(record.seen(&world).holders.is_empty());
}

#[test]
fn slots_never_drift_though_leases_expire_and_are_released_late() {
    let (mut world, mut record) = start();
    let ask = |number| Ask { mode: slot(3), patience: Patience::None, ..ask(number) };
    for round in 0..50 {
        for number in 1..=3 {
            granted(&record.acquire(&world, &ask(round * 10 + number)));
        }
        assert!(matches!(record.acquire(&world, &ask(round * 10 + 4)), Answer::Busy(holders, 0) if holders.len() == 3));
        world.pass(TTL);
        for number in 1..=3 {
            assert_eq!(record.release(&world, lease(round * 10 + number), None), Released::NotYours);
        }
    }
}

#[test]
fn a_lease_that_another_one_has_held_since_is_not_renewed() {
    let (mut world, mut record) = start();
    granted(&record.acquire(&world, &ask(1)));
    world.pass(TTL);
    granted(&record.acquire(&world, &ask(2)));
    assert_eq!(record.release(&world, lease(2), None), Released::Freed);
    assert_eq!(record.renew(&world, lease(1), TTL), Renewed::NotYours);
    assert!(record.holders.is_empty());
}

#[test]
fn a_late_release_does_not_free_the_key_of_the_next_holder() {
    let (mut world, mut record) = start();
    granted(&record.acquire(&world, &ask(1)));
    world.pass(TTL);
    granted(&record.acquire(&world, &ask(2)));
    assert_eq!(record.release(&world, lease(1), None), Released::NotYours);
    assert_eq!(record.standing(lease(2)), Standing::Holding { revoked: false });
}

#[test]
fn a_live_waiter_with_a_short_life_keeps_its_place_behind_a_long_holder() {
    let (mut world, mut record) = start();
    granted(&record.acquire(&world, &Ask { ttl: Some(TTL * 100), ..ask(1) }));
    let short = Ask { patience: Patience::SignOfLife(Duration::from_millis(700)), ..ask(2) };
    for _ in 0..100 {
        assert_eq!(record.acquire(&world, &short), Answer::Queued(0));
        assert_eq!(record.acquire(&world, &ask(3)), Answer::Queued(1));
        world.pass(Duration::from_millis(699));
    }
    assert_eq!(record.release(&world, lease(1), None), Released::Freed);
    assert_eq!(record.acquire(&world, &ask(3)), Answer::Queued(1));
    assert_eq!(granted(&record.acquire(&world, &short)).waited, Duration::from_millis(69_900));
}

#[test]
fn who_did_not_hear_the_answer_is_not_locked_out_by_its_own_lease() {
    let (mut world, mut record) = start();
    let first = granted(&record.acquire(&world, &ask(1)));
    record.acquire(&world, &ask(2));
    world.pass(TTL / 2);
    assert_eq!(granted(&record.acquire(&world, &ask(1))), first);
    assert_eq!((record.counters.grants, record.holders.len()), (1, 1));
}

#[test]
fn a_hundred_renewals_do_not_add_up() {
    let (mut world, mut record) = start();
    granted(&record.acquire(&world, &ask(1)));
    for _ in 0..100 {
        world.pass(MOMENT);
        assert_eq!(record.renew(&world, lease(1), TTL), Renewed::Until(Some(world.now.after(TTL))));
    }
    world.pass(TTL);
    granted(&record.acquire(&world, &ask(2)));
}

#[test]
fn a_renewal_that_comes_after_the_release_leaves_nothing_behind() {
    let (world, mut record) = start();
    granted(&record.acquire(&world, &ask(1)));
    assert_eq!(record.release(&world, lease(1), None), Released::Freed);
    let free = record.clone();
    assert_eq!(record.renew(&world, lease(1), TTL), Renewed::NotYours);
    assert_eq!(record, free);
}

#[test]
fn a_lease_of_no_length_locks_nobody_out() {
    let (world, mut record) = start();
    record.acquire(&world, &Ask { ttl: Some(Duration::ZERO), ..ask(1) });
    assert_eq!(record.renew(&world, lease(1), TTL), Renewed::NotYours);
    granted(&record.acquire(&world, &ask(2)));
    assert_eq!(record.renew(&world, lease(2), Duration::ZERO), Renewed::Until(Some(world.now.after(TTL))));
}

#[test]
fn five_hundred_waiters_all_get_the_key_in_the_order_in_which_they_came() {
    let (mut world, mut record) = start();
    for number in 0..500 {
        record.acquire(&world, &ask(number));
    }
    let mut last = Fence(0);
    for number in 0..500 {
        let grant = granted(&record.acquire(&world, &ask(number)));
        assert!(grant.fence > last);
        last = grant.fence;
        world.pass(Duration::from_millis(2));
        assert_eq!(record.release(&world, lease(number), None), Released::Freed);
    }
    assert_eq!((record.counters.grants, record.counters.expiries), (500, 0));
}

#[test]
fn the_next_one_has_the_key_at_the_very_instant_at_which_a_dead_holder_ends() {
    let (mut world, mut record) = start();
    granted(&record.acquire(&world, &ask(1)));
    record.acquire(&world, &ask(2));
    let end = record.holders[0].ends_at().expect("it ends by time");
    world.now = end;
    granted(&record.acquire(&world, &ask(2)));
}

#[test]
fn a_waiter_that_froze_when_its_turn_came_does_not_hold_when_it_wakes() {
    let (mut world, mut record) = start();
    granted(&record.acquire(&world, &ask(1)));
    record.acquire(&world, &ask(2));
    record.acquire(&world, &ask(3));
    record.release(&world, lease(1), None);
    world.pass(almost(OFFER));
    assert_eq!(record.acquire(&world, &ask(3)), Answer::Queued(1), "the offer still stands");
    world.pass(MOMENT);
    granted(&record.acquire(&world, &ask(3)));
    assert_eq!(record.standing(lease(2)), Standing::Gone);
    assert_eq!(record.renew(&world, lease(2), TTL), Renewed::NotYours);
    assert_eq!(record.acquire(&world, &ask(2)), Answer::Queued(0), "it may stand in line again");
}

#[test]
fn forced_unlock_of_a_lease_frees_that_one_or_none() {
    let (world, mut record) = start();
    granted(&record.acquire(&world, &shared(1, TTL)));
    granted(&record.acquire(&world, &shared(2, TTL)));
    assert_eq!(record.unlock(&world, &[lease(3)], true, &Info::default()), Unlocked::default());
    assert_eq!(record.unlock(&world, &[lease(2)], true, &Info::default()), Unlocked { ended: 1, told: 0 });
    assert_eq!(record.standing(lease(1)), Standing::Holding { revoked: false });
    assert_eq!(record.renew(&world, lease(2), TTL), Renewed::NotYours);
}

#[test]
fn a_crash_leaves_the_key_taken_for_the_rest_of_its_least_time() {
    let (mut world, mut record) = start();
    granted(&record.acquire(&world, &Ask { ttl: None, min_hold: TTL, ..ask(1) }));
    world.lives(&record, lease(1));
    world.pass(MOMENT);
    world.dies(&record, lease(1));
    assert_eq!(record.acquire(&world, &ask(2)), Answer::Queued(0));
    world.pass(almost(almost(TTL)));
    assert_eq!(record.acquire(&world, &ask(2)), Answer::Queued(0));
    world.pass(MOMENT);
    granted(&record.acquire(&world, &ask(2)));
}

#[test]
fn an_end_that_is_noticed_late_is_told_as_of_when_it_came() {
    let (mut world, mut record) = start();
    let granted_at = world.now;
    granted(&record.acquire(&world, &Ask { min_hold: TTL * 3, ..ask(1) }));
    world.pass(TTL * 2);
    record.renew(&world, lease(2), TTL);
    world.pass(TTL * 10);
    let events = record.seen(&world).events;
    let told: Vec<_> = events.iter().map(|event| (event.kind.name(), event.at.since(granted_at))).collect();
    assert_eq!(told, [("granted", Duration::ZERO), ("expired", TTL), ("cooled", TTL * 3)]);
    assert!(events.iter().all(|event| u128::from(event.micros) == event.at.since(granted_at).as_micros()));
}

#[test]
fn a_clock_that_is_set_back_does_not_lower_the_fence() {
    let (mut world, mut record) = start();
    let first = granted(&record.acquire(&world, &ask(1))).fence;
    record.release(&world, lease(1), None);
    world.now = Stamp::from_micros(1);
    assert_eq!(granted(&record.acquire(&world, &ask(2))).fence, Fence(first.0 + 2));
}

#[test]
fn a_fence_read_while_somebody_held_the_key_does_not_match_afterwards() {
    let (world, mut record) = start();
    let read = granted(&record.acquire(&world, &ask(1))).fence;
    let optimist = Ask { if_fence: Some(read), ..ask(2) };
    assert_eq!(record.acquire(&world, &optimist), Answer::Busy(record.holders.clone(), 0), "it does not wait");
    record.release(&world, lease(1), None);
    assert_eq!(record.acquire(&world, &optimist), Answer::Refused(Refusal::Fence(Fence(read.0 + 1))));
    granted(&record.acquire(&world, &Ask { if_fence: Some(record.fence), ..ask(3) }));
}

#[test]
fn a_late_echo_of_an_acquire_does_not_make_a_lease_hold_twice() {
    let (world, mut record) = start();
    let outer = shared(1, TTL);
    granted(&record.acquire(&world, &outer));
    granted(&record.acquire(&world, &Ask { level: lease(2), ..outer.clone() }));
    assert_eq!(record.release(&world, lease(1), None), Released::Left);
    assert_eq!(record.acquire(&world, &outer), Answer::Refused(Refusal::Lost));
    assert_eq!(record.unlock(&world, &[lease(1)], true, &Info::default()), Unlocked { ended: 1, told: 0 });
    assert!(record.holders.is_empty());
}

#[test]
fn a_writer_does_not_starve_among_readers() {
    let (world, mut record) = start();
    granted(&record.acquire(&world, &shared(1, TTL)));
    assert_eq!(record.acquire(&world, &ask(2)), Answer::Queued(0));
    for number in 3..20 {
        assert_eq!(record.acquire(&world, &shared(number, TTL)), Answer::Queued(usize::from(number) - 2));
    }
    record.release(&world, lease(1), None);
    granted(&record.acquire(&world, &ask(2)));
}

#[test]
fn a_lease_whose_command_never_ran_keeps_nobody_out() {
    let (world, mut record) = start();
    let ask = Ask { min_hold: Duration::from_secs(600), ..ask(1) };
    assert!(matches!(record.acquire(&world, &ask), Answer::Granted(_)));
    assert_eq!(record.release(&world, ask.level, None), Released::Freed);
    assert!(matches!(record.acquire(&world, &ask), Answer::Granted(_)));
    assert_eq!(record.release(&world, ask.level, Some(Ending::default())), Released::Cooling);
}

#[test]
fn a_crowd_is_offered_the_key_a_few_at_a_time() {
    let (mut world, mut record) = start();
    let writer = ask(1);
    assert!(matches!(record.acquire(&world, &writer), Answer::Granted(_)));
    let readers: Vec<Ask> = (2..42).map(|number| shared(number, TTL)).collect();
    for reader in &readers {
        assert!(matches!(record.acquire(&world, reader), Answer::Queued(_)));
    }
    record.release(&world, writer.level, None);
    // Each takes it in nine tenths of the time of an offer divided by how many are offered it.
    for (at, reader) in readers.iter().enumerate() {
        let offered = record.queue.iter().filter(|waiter| waiter.offered_at.is_some()).count();
        assert_eq!(offered, OFFERS.min(readers.len() - at));
        world.pass(OFFER * 9 / 10 / u32::try_from(OFFERS).expect("a few"));
        assert!(matches!(record.acquire(&world, reader), Answer::Granted(_)), "reader {at} lost its place");
    }
}
