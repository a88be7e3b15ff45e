//! `dlock setup`: prepares a store for locks, or prints what an administrator would run for that.

use std::sync::mpsc;

use nix::sys::signal::{Signal, raise};

use super::words;
use crate::cli;
use crate::clock::Moment;
use crate::config::{self, Settings};
use crate::event::Event;
use crate::exit::{Code, Ending, Failure};
use crate::signal;
use crate::store::{Intent, SetUp};

/// Prepares the store. Those who ask for keys meanwhile may find it closed, and try for the store's time limit: so unless
/// somebody wants more, those who hold some are waited for no longer than half of that. A signal ends that, too, and
/// leaves nothing closed.
pub(super) fn setup(setup: &cli::Setup, settings: &Settings) -> Result<Ending, Failure> {
    if setup.print {
        return print(settings);
    }
    let wait = setup.wait.as_ref().map(|text| config::span("--wait", text)).transpose()?;
    let wait = wait.unwrap_or(settings.store_timeout.value / 2);
    let (bell, events) = mpsc::channel();
    let asked = signal::listen(&bell).map_err(|error| Failure::os("cannot listen to signals", &error))?;
    let store = super::open(settings, Intent::Lock)?;
    let until = Moment::now().after(wait);
    let goes_on = || {
        if events.try_iter().any(|event| event == Event::Signal(Signal::SIGTSTP)) {
            let _ = raise(Signal::SIGSTOP);
        }
        asked.signal().is_none() && !until.left().is_zero()
    };
    let done = super::ask(settings, || match asked.signal() {
        Some(_) => Ok(None),
        None => store.set_up(&goes_on).map(Some),
    })?;
    let ended = |code: Code| asked.signal().map_or(code.into(), |signal| Ending::Signal(signal as i32));
    match done {
        None => return Ok(ended(Code::Busy)),
        Some(SetUp::NotNeeded) => log::info!("{} needs no setup", store.describe()),
        Some(SetUp::Ready) => log::info!("{} is ready", store.describe()),
        Some(SetUp::Held(keys)) => {
            log::warn!("{} is as it was: {} held", store.describe(), words::held(&keys));
            return Ok(ended(Code::Busy));
        }
    }
    Ok(Ending::OK)
}

/// Prints what somebody would run by hand.
fn print(settings: &Settings) -> Result<Ending, Failure> {
    let store = super::open(settings, Intent::Look)?;
    match store.set_up_script() {
        Some(script) => super::print(&script)?,
        None => log::warn!(
            "nothing is to be run by hand for {}: 'dlock setup' does all that there is to do",
            store.describe()
        ),
    }
    Ok(Ending::OK)
}
