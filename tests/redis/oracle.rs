//! The law in Lua against the law in Rust: the same random operations on both, under a clock that the test
//! rules, have the same answers and leave the same record.

use std::time::Duration;

use dlock::model::{
    AHEAD, Ask, Ending, Fence, Info, Key, LeaseId, MAX_EVENTS, Mode, Patience, Proposal, Record, SIGN_OF_LIFE, Stamp,
};
use dlock::store::{Address, RedisStore, Store, Voter};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::law::world::{Act, Moment, by};
use crate::law::{Play, Step, Wish, step};
use crate::support::has;
use crate::support::redis::{REDIS, REDIS_6, Server, VALKEY};

/// More than any of these operations takes.
const WITHIN: Duration = Duration::from_secs(20);

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
fn one_of_the_past(number: usize) -> Ask {
    let lease = LeaseId::new(u128::MAX.wrapping_sub(number as u128).to_le_bytes());
    Ask {
        lease,
        level: lease,
        mode: Mode::Exclusive,
        ttl: Some(Duration::from_secs(2)),
        patience: Patience::None,
        if_fence: None,
        proposal: None,
        min_hold: Duration::ZERO,
        max_reentry: 0,
        attended: true,
        info: Info { note: Some(format!("{{}}% \"{number}\" é\r\n")), ..Info::default() },
    }
}

/// Does what the model did, and returns both answers as text.
fn answers(store: &RedisStore, key: &Key, moment: &Moment) -> (String, String) {
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

fn agree(program: &'static str, cases: u32) {
    if !has(program) {
        return;
    }
    let server = Server::start(program, &[]);
    let address = Address::parse(&server.url(), "/".as_ref()).expect("a URL");
    let store = RedisStore::new(&address, WITHIN);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let sequences = proptest::collection::vec(both(), 1..100);
    let outcome = TestRunner::new(config).run(&(any::<bool>(), sequences), |(past, steps)| {
        server.ask(&["FLUSHALL"]);
        let mut play = Play::new(0, Fence(0));
        let key = play.record.key.clone();
        store.set_clock(Some(play.world.now));
        // As many events as are kept, less two.
        for number in 0..if past { MAX_EVENTS / 2 - 1 } else { 0 } {
            let ask = one_of_the_past(number);
            for moment in [play.world.acquire(&mut play.record, &ask), play.world.release(&mut play.record, ask.level)]
            {
                let (model, server) = answers(&store, &key, &moment);
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
            store.set_clock(Some(play.world.now));
            let (model, server) = answers(&store, &key, &moment);
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

/// One thing that happens to a node of a quorum.
#[derive(Clone, Debug)]
enum Poll {
    /// One of a few asks for the key, with a fence so far from its clock.
    Vote {
        who: u8,
        off: i64,
        again: bool,
        waits: bool,
        min_hold: bool,
        if_fence: Option<i64>,
    },
    Withdraw(u8),
    Renew(u8),
    Release(u8),
    Pass(u32),
}

fn poll() -> impl Strategy<Value = Poll> {
    let ahead = i64::try_from(AHEAD.as_micros()).expect("it is some seconds");
    let off = prop_oneof![
        8 => -2_000i64..2_000,
        1 => Just(-20_000_000),
        1 => ahead - 1..ahead + 1,
    ];
    let vote = (0..4u8, off, any::<bool>(), any::<bool>(), any::<bool>(), proptest::option::weighted(0.2, -1i64..2));
    prop_oneof![
        6 => vote.prop_map(|(who, off, again, waits, min_hold, if_fence)| {
            Poll::Vote { who, off, again: again && waits, waits, min_hold, if_fence }
        }),
        3 => (0..4u8).prop_map(Poll::Withdraw),
        1 => (0..4u8).prop_map(Poll::Renew),
        2 => (0..4u8).prop_map(Poll::Release),
        2 => prop_oneof![1u32..3_000, 500_000u32..3_000_000].prop_map(Poll::Pass),
    ]
}

fn votes_agree(program: &'static str) {
    if !has(program) {
        return;
    }
    let server = Server::start(program, &[]);
    let address = Address::parse(&server.url(), "/".as_ref()).expect("a URL");
    let store = RedisStore::voter(&address, "", WITHIN);
    let key = Key::parse("k").expect("a letter is a key");
    let ttl = Duration::from_secs(2);
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(&proptest::collection::vec(poll(), 1..200), |polls| {
        server.ask(&["FLUSHALL"]);
        let mut record = Record::new(key.clone());
        let mut now = Stamp::from_micros(1_700_000_000_000_000);
        for (at, poll) in polls.iter().enumerate() {
            store.set_clock(Some(now));
            let lease = |who: u8| one_of_the_past(who.into()).lease;
            let text = |answer: &dyn std::fmt::Debug| format!("{answer:?}");
            let (model, server) = match poll {
                Poll::Vote { who, off, again, waits, min_hold, if_fence } => {
                    // A level of its own, as of a run inside the run.
                    let inner =
                        if *again && *min_hold { one_of_the_past(100 + usize::from(*who)).lease } else { lease(*who) };
                    let ask = Ask {
                        level: inner,
                        patience: if *waits { Patience::SignOfLife(SIGN_OF_LIFE) } else { Patience::None },
                        proposal: Some(Proposal {
                            fence: Fence(now.micros().saturating_add_signed(*off)),
                            again: *again,
                        }),
                        min_hold: if *min_hold { ttl * 2 } else { Duration::ZERO },
                        if_fence: if_fence.map(|off| Fence(record.fence.0.saturating_add_signed(off))),
                        ..one_of_the_past((*who).into())
                    };
                    let vote = store.vote(&key, &ask, WITHIN).expect("it answers").expect("there is one list");
                    prop_assert!(vote.tenure.longest >= ttl, "{:?}", vote.tenure);
                    (text(&record.acquire(&now, &ask)), text(&vote.answer))
                }
                Poll::Withdraw(who) => {
                    let answer = store.withdraw(&key, lease(*who), WITHIN).expect("it answers");
                    (text(&record.withdraw(&now, lease(*who))), text(&answer))
                }
                Poll::Renew(who) => {
                    let answer = store.renew(&key, lease(*who), ttl, WITHIN).expect("it answers");
                    (text(&record.renew(&now, lease(*who), ttl)), text(&answer))
                }
                Poll::Release(who) => {
                    let ending = Some(Ending::default());
                    let answer = store.release(&key, lease(*who), ending.clone(), WITHIN).expect("it answers");
                    (text(&record.release(&now, lease(*who), ending)), text(&answer))
                }
                Poll::Pass(micros) => {
                    now = now.after(Duration::from_micros((*micros).into()));
                    continue;
                }
            };
            prop_assert_eq!(model, server, "step {}: {:?}", at, poll);
            let kept = store.inspect(&key).expect("it answers").unwrap_or_else(|| Record::new(key.clone()));
            prop_assert_eq!(record.clone().seen(&now), kept, "after step {}: {:?}", at, poll);
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn lua_and_model_agree_on_votes() {
    votes_agree(REDIS);
}

#[test]
fn lua_and_model_agree_on_redis() {
    agree(REDIS, 200);
}

#[test]
fn lua_and_model_agree_on_redis_6() {
    agree(REDIS_6, 200);
}

#[test]
fn lua_and_model_agree_on_valkey() {
    agree(VALKEY, 200);
}
