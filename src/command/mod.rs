//! One file per verb: the only place where a lease meets a child.

mod fence;
mod generate;
mod run;
mod status;
mod unlock;
mod words;

use std::ffi::OsString;
use std::sync::Arc;

use crate::cli::{self, Asked, Verb};
use crate::config::{self, Settings};
use crate::exit::{Code, Ending, Failure};
use crate::output;
use crate::store::{self, Store, StoreError, Trouble};

/// Does what the arguments ask for, and says how to end.
#[must_use]
pub fn main(args: &[OsString]) -> Ending {
    let asked = match cli::parse(args) {
        Ok(asked) => asked,
        Err(failure) => {
            output::open(output::Verbosity::Normal);
            return fail(&failure);
        }
    };
    let done = match asked {
        Asked::Text(text) => print(&text).map(|()| Ending::OK),
        Asked::Verb(cli) => {
            output::open(config::verbosity(&cli.global));
            perform(*cli)
        }
    };
    done.unwrap_or_else(|failure| fail(&failure))
}

fn perform(cli: cli::Cli) -> Result<Ending, Failure> {
    match cli.verb {
        Verb::Run(run) => run::run(run, &cli.global),
        Verb::Status(status) => status::status(&status, &Settings::read(&cli.global)?),
        Verb::Unlock(unlock) => unlock::unlock(&unlock, &Settings::read(&cli.global)?),
        Verb::Fence(fence) => fence::fence(&fence, &Settings::read(&cli.global)?),
        Verb::Completions(completions) => print(&generate::completions(completions.shell)).map(|()| Ending::OK),
        Verb::Man(man) => print(&generate::man(man.verb.as_deref())?).map(|()| Ending::OK),
    }
}

fn fail(failure: &Failure) -> Ending {
    log::error!("{:#}", failure.error);
    failure.code.into()
}

fn print(text: &str) -> Result<(), Failure> {
    output::print(text).map_err(|error| Failure::os("cannot write to stdout", error))
}

fn open(settings: &Settings) -> Result<Arc<dyn Store>, Failure> {
    store::open(&settings.store).map_err(Failure::from)
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match error.trouble {
            Trouble::Unreachable | Trouble::Stuck => Code::Unreachable,
            Trouble::Refused => Code::Refused,
            Trouble::Unfit => Code::Config,
            Trouble::Untrusted => Code::Directory,
            Trouble::Os => Code::Os,
        };
        Self { code, error: error.into() }
    }
}
