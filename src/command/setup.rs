//! `dlock setup`: prepares a store for locks, or prints what an administrator would run for that.

use crate::cli;
use crate::config::Settings;
use crate::exit::{Ending, Failure};
use crate::store::{Intent, SetUp};

/// Prepares the store. Those who ask for keys meanwhile may find it closed, and try for the store's time limit: so it
/// takes no more than half of that to wait for those who hold some.
pub(super) fn setup(setup: &cli::Setup, settings: &Settings) -> Result<Ending, Failure> {
    if setup.print {
        return print(settings);
    }
    let store = super::open(settings, Intent::Lock)?;
    match super::ask(settings, || store.set_up(settings.store_timeout.value / 2))? {
        SetUp::NotNeeded => log::info!("{} needs no setup", store.describe()),
        SetUp::Ready => log::info!("{} is ready", store.describe()),
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
