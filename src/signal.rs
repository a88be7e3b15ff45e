//! Signals of the operating system, as events.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::{io, thread};

use nix::sys::signal::Signal::{self, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGWINCH};
use nix::sys::signal::{SigSet, SigmaskHow};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::event::Event;
use crate::sys;

/// What is told to the run, besides SIGINT.
const TOLD: [Signal; 8] = [SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT, SIGTSTP];

/// Of these, what does not ask us to end while there is no command.
const HARMLESS: [Signal; 3] = [SIGWINCH, SIGCONT, SIGTSTP];

/// The last signal that asked us to end. Its handler itself notes it, in the main thread, which so knows of
/// all that came until now; the event comes a little later, when a thread has been woken for it.
#[derive(Clone, Debug, Default)]
pub struct Asked(Arc<AtomicUsize>);

impl Asked {
    /// Which one it was, if there was one.
    #[must_use]
    pub fn signal(&self) -> Option<Signal> {
        i32::try_from(self.0.load(Ordering::SeqCst)).ok().and_then(|number| Signal::try_from(number).ok())
    }
}

/// Sends every signal that we get to `events`. What was ignored when we were started (`nohup`, a job in
/// the background of a script) stays ignored, here and in the command.
///
/// # Errors
/// What the operating system says.
pub fn listen(events: &Sender<Event>) -> io::Result<Asked> {
    unheard(|| try_listen(events))
}

/// Does `work`, which may make threads: no signal is handled in those, so all are in this one.
///
/// # Errors
/// Those of `work`, and what the operating system says.
pub fn unheard<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let heard = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let done = work();
    heard.thread_set_mask()?;
    done
}

fn try_listen(events: &Sender<Event>) -> io::Result<Asked> {
    if !sys::is_ignored(SIGINT) {
        let events = events.clone();
        // Without ctrlc's feature `termination` its handler can mean nothing but SIGINT.
        ctrlc::try_set_handler(move || tell(&events, SIGINT)).map_err(io::Error::other)?;
    }
    let heard = |signal: &Signal| !sys::is_ignored(*signal);
    let mut signals = Signals::new(TOLD.into_iter().filter(heard).map(|signal| signal as i32))?;
    // Last: what is noted is also told.
    let asked = Asked::default();
    let ends = |signal: &Signal| !HARMLESS.contains(signal);
    for signal in TOLD.into_iter().chain([SIGINT]).filter(ends).filter(heard) {
        flag::register_usize(signal as i32, Arc::clone(&asked.0), signal as usize)?;
    }
    let events = events.clone();
    thread::Builder::new().name("signals".into()).stack_size(64 << 10).spawn(move || {
        for number in signals.forever() {
            if let Ok(signal) = Signal::try_from(number) {
                tell(&events, signal);
            }
        }
    })?;
    Ok(asked)
}

fn tell(events: &Sender<Event>, signal: Signal) {
    // The receiver is gone only when the run is over, and then nobody wants to know.
    let _ = events.send(Event::Signal(signal));
}
