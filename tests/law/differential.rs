//! A store against the model: the same random operations on both, under a clock that the test rules, have the same answers
//! and leave the same record.

use std::time::Duration;

use dlock::model::{Ask, Ending, Fence, Info, Key, LeaseId, MAX_EVENTS, Patience, Record, SIGN_OF_LIFE, Stamp};
use dlock::store::Store;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::world::{Act, Moment, by};
use super::{Play, Step, Wish, step};
use crate::support::ask;

/// More than any of these operations takes.
pub(crate) const WITHIN: Duration = Duration::from_secs(20);

/// One thing that happens to both.
#[derive(Clone, Debug)]
enum Both {
    Law(Step),
    /// The clock is set back.
    Back(Duration),
}

/// What somebody asks for where all goes by time.
fn timed(step: Step) -> Step {
    let mend = |mut wish: Wish| {
        wish.ttl.get_or_insert(Duration::from_secs(2));
        if wish.patience == Patience::Attended {
            wish.patience = Patience::SignOfLife(SIGN_OF_LIFE);
        }
        wish
    };
    match step {
        Step::Ask(who, wish) => Step::Ask(who, mend(wish)),
        Step::Enter(which, wish) => Step::Enter(which, mend(wish)),
        step => step,
    }
}

fn both() -> impl Strategy<Value = Both> {
    let back = prop_oneof![Just(1), Just(600_000), Just(30_000_000)].prop_map(Duration::from_micros);
    prop_oneof![40 => step().prop_map(timed).prop_map(Both::Law), 1 => back.prop_map(Both::Back)]
}

/// Somebody who had the key before the steps of a sequence.
pub(crate) fn one_of_the_past(number: usize) -> Ask {
    let lease = LeaseId::new(u128::MAX.wrapping_sub(number as u128).to_le_bytes());
    Ask {
        info: Info { note: Some(format!("{{}}% \"{number}\" é\r\n")), ..Info::default() },
        ..ask::ask(lease, Duration::from_secs(2))
    }
}

/// Does what the model did, and returns both answers as text.
fn answers(store: &dyn Store, key: &Key, moment: &Moment) -> (String, String) {
    let text = |answer: &dyn std::fmt::Debug| format!("{answer:?}");
    match &moment.act {
        Act::Acquire(ask, answer) => (text(answer), text(&store.acquire(key, ask, WITHIN).expect("it answers"))),
        Act::Renew(level, ttl, answer) => {
            (text(answer), text(&store.renew(key, *level, *ttl, WITHIN).expect("it answers")))
        }
        Act::Release(level, answer) => {
            (text(answer), text(&store.release(key, *level, Some(Ending::default()), WITHIN).expect("it answers")))
        }
        Act::Unlock(leases, force, answer) => {
            (text(answer), text(&store.revoke(key, leases, *force, &by()).expect("it answers")))
        }
        Act::Look => Default::default(),
    }
}

/// Does this to both so many times, beginning anew each time: the store is made to `forget` all it has, and its clock is
/// set by `rule`.
pub(crate) fn agree(store: &dyn Store, rule: &dyn Fn(Stamp), forget: &dyn Fn(), cases: u32) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let sequences = proptest::collection::vec(both(), 1..100);
    let outcome = TestRunner::new(config).run(&(any::<bool>(), sequences), |(past, steps)| {
        forget();
        let mut play = Play::new(0, Fence(0));
        let key = play.record.key.clone();
        rule(play.world.now);
        // As many events as are kept, less two.
        for number in 0..if past { MAX_EVENTS / 2 - 1 } else { 0 } {
            let ask = one_of_the_past(number);
            for moment in [play.world.acquire(&mut play.record, &ask), play.world.release(&mut play.record, ask.level)]
            {
                let (model, server) = answers(store, &key, &moment);
                prop_assert_eq!(model, server);
            }
        }
        for (at, step) in steps.iter().enumerate() {
            let step = match step {
                Both::Law(step) => step,
                Both::Back(span) => {
                    let now = play.world.now.micros();
                    play.world.now = Stamp::from_micros(now.saturating_sub(span.as_micros().try_into().unwrap_or(now)));
                    continue;
                }
            };
            let Some(moment) = play.step(step) else { continue };
            rule(play.world.now);
            let (model, server) = answers(store, &key, &moment);
            prop_assert_eq!(model, server, "step {}: {:?}", at, step);
            let kept = store.inspect(&key).expect("it answers").unwrap_or_else(|| Record::new(key.clone()));
            let expected = play.record.clone().seen(&play.world);
            prop_assert_eq!(expected, kept, "after step {}: {:?}", at, step);
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
