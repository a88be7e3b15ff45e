//! Several who ask for a key at the same instant: one gets it. Servers before 2.9.21 had two winners where a key has several
//! copies (nats-server, issue 4320), and clients that took the place of a deleted value without comparing it had more
//! (nats.rs, issue 1301).

use std::sync::Barrier;
use std::thread;

use dlock::model::{Answer, Fence};
use dlock::store::Store as _;

use super::{WITHIN, ask, key, ledger};
use crate::support::Store;
use crate::support::nats::{on_both, shared_cluster};

const RACERS: usize = 8;

/// How often they do it; with `DLOCK_TEST_ROUNDS` set so often.
fn rounds(usual: usize) -> usize {
    std::env::var("DLOCK_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(usual)
}

/// Lets all ask for the key at once so many times, with `before` done each time; the winner gives it back.
#[expect(clippy::print_stderr, reason = "whoever looks for what failed wants to know")]
#[track_caller]
fn race(store: &Store, rounds: usize, before: &(dyn Fn() + Sync)) {
    let (start, end) = (Barrier::new(RACERS), Barrier::new(RACERS));
    let racers = thread::scope(|scope| {
        let racer = |number: usize| {
            let (start, end) = (&start, &end);
            move || {
                let bucket = ledger(store.url());
                let mut won = Vec::new();
                for round in 0..rounds {
                    if number == 0 {
                        before();
                    }
                    start.wait();
                    let me = ask((round * RACERS + number + 1) as u128, WITHIN);
                    // As every holder does it: what got no answer is asked again.
                    let answer = loop {
                        match bucket.acquire(&key(), &me, WITHIN) {
                            Err(error) => eprintln!("{error}; once more"),
                            Ok(answer) => break answer,
                        }
                    };
                    end.wait();
                    if let Answer::Granted(grant) = answer {
                        won.push((round, grant.fence));
                        while let Err(error) = bucket.release(&key(), me.level, None, WITHIN) {
                            eprintln!("{error}; once more");
                        }
                    }
                }
                won
            }
        };
        let racers: Vec<_> = (0..RACERS).map(|number| scope.spawn(racer(number))).collect();
        racers.into_iter().map(|racer| racer.join().expect("a racer")).collect::<Vec<_>>()
    });
    let mut won: Vec<(usize, Fence)> = racers.into_iter().flatten().collect();
    won.sort_unstable();
    let winners: Vec<usize> = won.iter().map(|(round, _)| *round).collect();
    assert_eq!(winners, (0..rounds).collect::<Vec<_>>(), "one winner in each round");
    assert!(won.is_sorted_by(|(_, one), (_, next)| one < next), "fences rise: {won:?}");
}

#[test]
fn of_eight_who_ask_at_once_one_gets_the_key() {
    on_both(|program| {
        let store = Store::on_nats_cluster(shared_cluster(program));
        store.run(&["setup"]).is(0, "", "");
        race(&store, rounds(150), &|| {});
    });
}

#[test]
fn of_eight_who_ask_for_a_deleted_key_one_gets_it_and_fences_still_rise() {
    on_both(|program| {
        let store = Store::on_nats_cluster(shared_cluster(program));
        store.run(&["setup"]).is(0, "", "");
        race(&store, rounds(60), &|| store.bucket().delete("key.k"));
    });
}
