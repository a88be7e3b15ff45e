//! Signals of the operating system, as events.

use std::sync::mpsc::Sender;
use std::{io, thread};

use nix::sys::signal::Signal::{self, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::event::Event;
use crate::sys;

/// What is told to the run, besides SIGINT.
const TOLD: [Signal; 8] = [SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT, SIGTSTP];

/// Sends every signal that we get to `events`. What was ignored when we were started (`nohup`, a job in
/// the background of a script) stays ignored, here and in the command.
///
/// # Errors
/// What the operating system says.
pub fn listen(events: &Sender<Event>) -> io::Result<()> {
    if !sys::is_ignored(SIGINT) {
        let events = events.clone();
        // Without ctrlc's feature `termination` its handler can mean nothing but SIGINT.
        ctrlc::try_set_handler(move || tell(&events, SIGINT)).map_err(io::Error::other)?;
    }
    let told = TOLD.into_iter().filter(|signal| !sys::is_ignored(*signal)).map(|signal| signal as i32);
    let mut signals = Signals::new(told)?;
    let events = events.clone();
    thread::Builder::new().name("signals".into()).stack_size(64 << 10).spawn(move || {
        for number in signals.forever() {
            if let Ok(signal) = Signal::try_from(number) {
                tell(&events, signal);
            }
        }
    })?;
    Ok(())
}

fn tell(events: &Sender<Event>, signal: Signal) {
    // The receiver is gone only when the run is over, and then nobody wants to know.
    let _ = events.send(Event::Signal(signal));
}
