//! Several clients of a test's own process that ask for a key.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use dlock::model::{Answer, Ask, Fence, Key, LeaseId};
use dlock::store::Store;

use super::ask;

/// More than anything takes that a test asks for itself.
pub(crate) const WITHIN: Duration = Duration::from_secs(20);

const RACERS: usize = 8;

/// The key that all ask for.
pub(crate) fn key() -> Key {
    Key::parse("k").expect("a key")
}

/// Somebody with this number who asks for the key, and does not wait.
pub(crate) fn ask(number: u128, ttl: Duration) -> Ask {
    let lease = LeaseId::new(number.to_le_bytes());
    ask::ask(lease, ttl)
}

/// How often they do it; with `DLOCK_TEST_ROUNDS` set so often.
pub(crate) fn rounds(usual: usize) -> usize {
    std::env::var("DLOCK_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(usual)
}

/// Lets all ask for the key at once so many times, with `before` done each time; the winner gives it back.
#[expect(clippy::print_stderr, reason = "whoever looks for what failed wants to know")]
#[track_caller]
pub(crate) fn race(connect: &(dyn Fn() -> Box<dyn Store> + Sync), rounds: usize, before: &(dyn Fn() + Sync)) {
    let (start, end) = (Barrier::new(RACERS), Barrier::new(RACERS));
    let racers = thread::scope(|scope| {
        let racer = |number: usize| {
            let (start, end) = (&start, &end);
            move || {
                let store = connect();
                let mut won = Vec::new();
                for round in 0..rounds {
                    if number == 0 {
                        before();
                    }
                    start.wait();
                    let me = ask((round * RACERS + number + 1) as u128, WITHIN);
                    // As every holder does it: what got no answer is asked again.
                    let answer = loop {
                        match store.acquire(&key(), &me, WITHIN) {
                            Err(error) => eprintln!("{error}; once more"),
                            Ok(answer) => break answer,
                        }
                    };
                    end.wait();
                    if let Answer::Granted(grant) = answer {
                        won.push((round, grant.fence));
                        while let Err(error) = store.release(&key(), me.level, None, WITHIN) {
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
