//! Many who work under a lock while something happens to its servers.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::journal::Journal;
use super::{Store, wait_for};

/// Tells others that it is over, also if that is a failure.
struct Until<'a>(&'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Counts under a lock from many processes while `trouble` is done, and checks that nobody was beside another one.
#[track_caller]
pub(crate) fn counts_exactly(mut store: Store, trouble: &dyn Fn(&mut Store)) {
    const COUNTERS: usize = 6;
    let journal = Journal::new(&store);
    fs::write(store.path("counter"), "0\n").expect("a file");
    store.run(&["setup"]).is(0, "", "");
    let counter = store.path("counter").display().to_string();
    let body = format!("read n <'{counter}'; echo $((n + 1)) >'{counter}'");
    let over = AtomicBool::new(false);
    let (url, dir) = (store.url().to_owned(), store.dir.path().to_owned());
    let done: usize = thread::scope(|scope| {
        let count = |process: usize| {
            let (over, url, dir, journal, body) = (&over, &url, &dir, &journal, &body);
            move || {
                let mut done = 0;
                while !over.load(Ordering::Relaxed) {
                    let script = journal.visit(&format!("{process}.{done}"), body);
                    let args = ["run", "k", "--ttl", "6", "--store-timeout", "60", "--", "sh", "-c", &script];
                    let mut run = super::command(super::DLOCK);
                    // That it cannot be given back is no failure: then it ends by itself.
                    let ran = super::finish(run.args(args).env("DLOCK_STORE", url).current_dir(dir));
                    assert!(ran.status.success(), "{ran:#?}");
                    done += 1;
                }
                done
            }
        };
        let counters: Vec<_> = (0..COUNTERS).map(|process| scope.spawn(count(process))).collect();
        let until = Until(&over);
        let entered = || journal.lines().len();
        wait_for("them to work", || entered() > 20);
        trouble(&mut store);
        let before = entered();
        wait_for("them to work again", || entered() > before + 20);
        drop(until);
        counters.into_iter().map(|counter| counter.join().expect("a counter")).sum()
    });
    assert_eq!(fs::read_to_string(&counter).expect("the counter"), format!("{done}\n"));
    assert_eq!(journal.most_at_once(), 1);
    let fences = journal.fences();
    assert!(fences.is_sorted_by(|one, next| one < next), "{fences:?}");
}
