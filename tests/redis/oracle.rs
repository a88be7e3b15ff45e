//! The law in Lua against the law in Rust: the same random operations on both, under a clock that the test
//! rules, have the same answers and leave the same record.

use std::time::Duration;

use dlock::model::{AHEAD, Ask, Ending, Fence, Key, Patience, Proposal, Record, SIGN_OF_LIFE, Stamp};
use dlock::store::{Address, RedisStore, Store, Voter};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::law::differential::{self, WITHIN, one_of_the_past};
use crate::support::has;
use crate::support::redis::{REDIS, REDIS_6, Server, VALKEY};

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

fn agree(program: &'static str, cases: u32) {
    if !has(program) {
        return;
    }
    let server = Server::start(program, &[]);
    let address = Address::parse(&server.url(), "/".as_ref()).expect("a URL");
    let store = RedisStore::new(&address, WITHIN);
    let forget = || drop(server.ask(&["FLUSHALL"]));
    differential::agree(&store, &|now| store.set_clock(Some(now)), &forget, cases);
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
