//! Time: replies that take long make no lease longer, and none end sooner, than its holder counts on; and neither does a
//! leader whose clock is wrong.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dlock::model::{Answer, Stamp};
use dlock::store::Store as _;

use super::ledger;
use crate::support::nats::proxy::Proxy;
use crate::support::nats::{NATS, on_both, shared_cluster, shared_server};
use crate::support::race::{WITHIN, ask, key};
use crate::support::{Store, has};

/// The clock of this machine, which is the servers'.
fn now() -> Stamp {
    Stamp::default().after(SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later"))
}

#[test]
fn a_lease_counts_from_an_instant_after_it_was_asked_for_however_long_replies_take() {
    on_both(|program| {
        const DELAY: Duration = Duration::from_millis(300);
        const TTL: Duration = Duration::from_secs(10);
        let store = Store::on_nats(program);
        store.run(&["setup"]).is(0, "", "");
        let proxy = Proxy::to(&shared_server(program).host);
        let (near, far) = (ledger(store.url()), ledger(&proxy.url(store.url())));
        proxy.delay(DELAY);
        let (first, second) = (ask(1, TTL), ask(2, TTL));
        for round in 0..3 {
            let asked = now();
            let answer = far.acquire(&key(), &first, WITHIN).expect("it answers");
            let answered = now();
            assert!(matches!(answer, Answer::Granted(_)), "{answer:?}");
            let until = |record: dlock::model::Record| record.holders[0].ends_at().expect("it ends");
            let first_end = until(near.inspect(&key()).expect("it answers").expect("a record"));
            assert!(first_end >= asked.after(TTL), "round {round}: others may take it before its holder stops");
            assert!(first_end <= answered.after(TTL), "round {round}");
            // Whoever hears late that it is there does not take it for over.
            assert!(matches!(far.acquire(&key(), &second, WITHIN), Ok(Answer::Busy(..))));
            near.release(&key(), first.level, None, WITHIN).expect("it answers");
        }
        // A lease that ends while the answer is on its way is not judged by when that comes.
        let short = ask(3, Duration::from_millis(500));
        near.acquire(&key(), &short, WITHIN).expect("it answers");
        let end = near.inspect(&key()).expect("it answers").expect("a record").holders[0].ends_at().expect("it ends");
        while !matches!(far.acquire(&key(), &second, WITHIN).expect("it answers"), Answer::Granted(_)) {}
        assert!(now() >= end);
    });
}

#[test]
fn a_leader_whose_clock_is_wrong_ends_no_lease_and_fences_rise() {
    const TTL: Duration = Duration::from_millis(800);
    if !has(NATS) {
        return;
    }
    let store = Store::on_nats_cluster(shared_cluster(NATS));
    store.run(&["setup"]).is(0, "", "");
    let year = &humantime::format_rfc3339_seconds(SystemTime::now()).to_string()[..4];
    let year: u32 = year.parse().expect("a year");
    let mut fence = None;
    for other in [year + 1, year - 1] {
        // As another leader would say it, whose clock is a year off.
        let proxy = Proxy::to(&shared_cluster(NATS).hosts()[0]);
        proxy.say(&format!("\"ts\":\"{year}-"), &format!("\"ts\":\"{other}-"));
        proxy.say("\"leader\":\"n-", "\"leader\":\"x-");
        let url = format!("{}&replicas=3", proxy.url(store.url()).replace("&replicas=3", ""));
        let (right, wrong) = (ledger(store.url()), ledger(&url));
        for (one, two) in [(&right, &wrong), (&wrong, &right)] {
            let (first, second) = (ask(1, TTL), ask(2, TTL));
            let mut granted = |answer| match answer {
                Ok(Answer::Granted(grant)) => {
                    assert!(fence < Some(grant.fence), "{fence:?} {grant:?}");
                    fence = Some(grant.fence);
                }
                other => panic!("{other:?}"),
            };
            granted(one.acquire(&key(), &first, WITHIN));
            let asked = SystemTime::now();
            assert!(matches!(two.acquire(&key(), &second, WITHIN), Ok(Answer::Busy(..))), "it is held");
            assert!(
                one.renew(&key(), first.level, TTL, WITHIN)
                    .is_ok_and(|renewed| format!("{renewed:?}").contains("Until"))
            );
            // Whoever does not renew it any more has it for one ttl more, since the clock was another one.
            let answer = loop {
                match two.acquire(&key(), &second, WITHIN) {
                    Ok(Answer::Busy(..)) => thread::sleep(Duration::from_millis(20)),
                    answer => break answer,
                }
            };
            let held = asked.elapsed().expect("time goes on");
            assert!(held >= TTL && held < TTL * 2 + Duration::from_secs(1), "{held:?}");
            granted(answer);
            two.release(&key(), second.level, None, WITHIN).expect("it answers");
        }
    }
}
