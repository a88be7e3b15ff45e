//! One file per verb: the only place where a lease meets a child.

mod acquire;
mod asking;
mod attend;
mod check;
mod doctor;
mod fence;
mod generate;
mod guard;
mod history;
mod json;
mod keys;
mod metrics;
mod mine;
mod release;
mod renew;
mod report;
mod run;
mod setup;
mod status;
mod unlock;
mod waiting;
mod watch;
mod which;
mod words;

use std::ffi::OsString;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use crate::cli::{self, Asked, Verb};
use crate::config::{self, Settings};
use crate::exit::{Code, Ending, Failure};
use crate::holder;
use crate::output::{self, Level, Verbosity};
use crate::store::{self, Intent, Store, StoreError, Trouble};

/// Does what the arguments ask for, and says how to end.
#[must_use]
pub fn main(args: &[OsString]) -> Ending {
    guarded(|| parse_and_perform(args))
}

/// A bug is one line and a code, too. What was begun is undone on the way: a command is stopped, and the
/// kernel takes our locks.
fn guarded(work: impl FnOnce() -> Ending) -> Ending {
    panic::set_hook(Box::new(|info| {
        let words = info.to_string().replace('\n', " ");
        output::say(Level::Error, &format!("this is a bug: {words}; please report it"));
    }));
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Code::Bug.into())
}

fn parse_and_perform(args: &[OsString]) -> Ending {
    let asked = cli::parse(args);
    let (verbosity, form) = match &asked {
        Ok(Asked::Verb(cli)) => (config::verbosity(&cli.global), cli.global.log_format.unwrap_or_default()),
        Ok(Asked::Text(_)) | Err(_) => (Verbosity::Normal, cli::log_format(args)),
    };
    output::open(verbosity, config::format(form));
    let done = asked.and_then(|asked| match asked {
        Asked::Text(text) => print(&text).map(|()| Ending::OK),
        Asked::Verb(cli) => perform(*cli),
    });
    done.unwrap_or_else(|failure| fail(&failure))
}

fn perform(cli: cli::Cli) -> Result<Ending, Failure> {
    match cli.verb {
        Verb::Run(run) => run::run(run, &cli.global),
        Verb::Status(status) => status::status(&status, &Settings::read(&cli.global)?),
        Verb::Unlock(unlock) => unlock::unlock(&unlock, &Settings::read(&cli.global)?),
        Verb::Fence(fence) => fence::fence(&fence, &Settings::read(&cli.global)?),
        Verb::Acquire(acquire) => acquire::acquire(acquire, &Settings::read(&cli.global)?),
        Verb::Renew(renew) => renew::renew(&renew, &Settings::read(&cli.global)?),
        Verb::Release(release) => release::release(&release, &Settings::read(&cli.global)?),
        Verb::Check(check) => check::check(&check, &Settings::read(&cli.global)?),
        Verb::Guard(guard) => guard::guard(guard, &cli.global),
        Verb::History(history) => history::history(&history, &Settings::read(&cli.global)?),
        Verb::Metrics(metrics) => metrics::metrics(&metrics, &Settings::read(&cli.global)?),
        Verb::Doctor(doctor) => doctor::doctor(&doctor, &Settings::read(&cli.global)?),
        Verb::Setup(setup) => setup::setup(&setup, &Settings::read(&cli.global)?),
        Verb::Keys(asked) => keys::keys(&asked),
        Verb::Completions(completions) => print(&generate::completions(completions.shell)).map(|()| Ending::OK),
        Verb::Man(man) => print(&generate::man(man.verb.as_deref())?).map(|()| Ending::OK),
    }
}

fn fail(failure: &Failure) -> Ending {
    log::error!("{:#}", failure.error);
    failure.code.into()
}

fn print(text: &str) -> Result<(), Failure> {
    output::print(text).map_err(|error| Failure::os("cannot write to stdout", &error))
}

/// Opens the store.
fn open(settings: &Settings, intent: Intent) -> Result<Arc<dyn Store>, Failure> {
    Ok(open_store(settings, intent)?)
}

fn open_store(settings: &Settings, intent: Intent) -> Result<Arc<dyn Store>, StoreError> {
    store::open(&settings.store.value, intent, settings.store_timeout.value.min(holder::REQUEST))
}

/// Asks the store for something, for as long as one that cannot be reached is to be tried.
fn ask<T>(settings: &Settings, work: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    holder::patiently(settings.store_timeout.value, work)
}

impl From<Trouble> for Code {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Unreachable | Trouble::Stuck => Self::Unreachable,
            Trouble::Refused => Self::Refused,
            Trouble::Unprepared | Trouble::Unfit => Self::Config,
            Trouble::Untrusted => Self::CannotCreate,
            Trouble::Os => Self::Os,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self { code: error.trouble.into(), error: error.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::guarded;
    use crate::exit::{Ending, Failure};

    #[test]
    fn a_bug_ends_dlock_with_70() {
        assert_eq!(guarded(|| panic!("a bug made for this test")), Ending::Code(70));
        assert_eq!(guarded(|| Ending::Code(7)), Ending::Code(7));
    }

    #[test]
    fn a_refusal_of_the_operating_system_ends_dlock_with_71_and_its_cause_comes_last() {
        let failure = Failure::os("cannot fork", &std::io::Error::from_raw_os_error(11));
        assert_eq!(failure.code.number(), 71);
        assert_eq!(format!("{:#}", failure.error), "cannot fork: try again");
    }
}
