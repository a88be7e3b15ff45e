//! `dlock setup`: prepares a store for locks, or prints what an administrator would run for that.

use super::words;
use crate::cli;
use crate::config::{self, Settings};
use crate::exit::{Code, Ending, Failure};
use crate::store::{Intent, SetUp};

/// Prepares the store. Those who ask for keys meanwhile may find it closed, and try for the store's time limit: so unless
/// somebody wants more, those who hold some are waited for no longer than half of that.
pub(super) fn setup(setup: &cli::Setup, settings: &Settings) -> Result<Ending, Failure> {
    if setup.print {
        return print(settings);
    }
    let store = super::open(settings, Intent::Lock)?;
    let wait = setup.wait.as_ref().map(|text| config::span("--wait", text)).transpose()?;
    let wait = wait.unwrap_or(settings.store_timeout.value / 2);
    match super::ask(settings, || store.set_up(wait))? {
        SetUp::NotNeeded => log::info!("{} needs no setup", store.describe()),
        SetUp::Ready => log::info!("{} is ready", store.describe()),
        SetUp::Held(keys) => {
            log::warn!(
                "{} is as it was, since {} held after {}",
                store.describe(),
                words::held(&keys),
                words::span(wait)
            );
            return Ok(Code::Busy.into());
        }
    }
    Ok(Ending::OK)
}

/// Prints what somebody would run by hand.
fn print(settings: &Settings) -> Result<Ending, Failure> {
    let store = super::open(settings, Intent::Look)?;
    match store.set_up_script() {
        Some(script) => super::print(&script)?,
        None => log::warn!("nothing is to be run for {}: it needs no setup", store.describe()),
    }
    Ok(Ending::OK)
}
