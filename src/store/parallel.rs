//! Asking several servers at once, so that one that is silent takes no time from the others.

use std::io;
use std::panic::resume_unwind;
use std::thread;

use crate::signal;

/// How many servers are asked at once.
const AT_ONCE: usize = 64;

/// Does something with each of many, several at a time, and returns what comes of it in their order.
///
/// # Errors
/// If no thread can be started.
pub(super) fn at_once<T: Sync, R: Send>(all: &[T], work: impl Fn(&T) -> R + Sync) -> io::Result<Vec<R>> {
    let mut done = Vec::with_capacity(all.len());
    for some in all.chunks(AT_ONCE) {
        let work = &work;
        let results: io::Result<Vec<R>> = thread::scope(|scope| {
            let begin = |one| {
                signal::unheard(|| thread::Builder::new().name("asker".into()).spawn_scoped(scope, move || work(one)))
            };
            let threads: Vec<_> = some.iter().map(begin).collect::<io::Result<_>>()?;
            let end =
                |thread: thread::ScopedJoinHandle<'_, R>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            Ok(threads.into_iter().map(end).collect())
        });
        done.extend(results?);
    }
    Ok(done)
}
