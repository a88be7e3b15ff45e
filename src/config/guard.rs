//! What `dlock guard` is to do.

use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;

use super::origin::Setting;
use super::store::default_directory;
use super::{RunPlan, Settings, config};
use crate::cli;
use crate::exit::Failure;
use crate::model::Fence;
use crate::store::Url;

/// The variable that a run hands its fence on in.
const FENCE: &str = "DLOCK_FENCE";

/// What `dlock guard` is to do.
#[derive(Debug)]
pub struct GuardPlan {
    /// How to hold the resource on this machine, and the command.
    pub run: RunPlan,
    /// The fence of the lock that the command is run under.
    pub fence: Fence,
    /// The directory that remembers fences.
    pub directory: PathBuf,
    /// What goes for every verb.
    pub settings: Settings,
}

impl GuardPlan {
    /// What the arguments of `guard` mean.
    ///
    /// # Errors
    /// [`Failure`] with 64 or 78.
    pub fn read(guard: cli::Guard, global: &cli::Global) -> Result<Self, Failure> {
        let mut settings = Settings::read(global)?;
        if settings.store.value.directory().is_none() {
            if global.store.is_some() || global.store_file.is_some() {
                let words = "guard remembers fences on this machine; name a directory with '--store file:DIR'";
                return Err(config(words));
            }
            // A run around this one says where its lock is. That is not where the resource is.
            settings.store = Setting::default(Url::File(default_directory()?));
        }
        let directory = settings.store.value.directory().map(PathBuf::from).unwrap_or_default();
        let fence = match (guard.fence, env::var_os(FENCE)) {
            (Some(text), _) => read("--fence", &text),
            (None, Some(text)) => read(FENCE, &text),
            (None, None) => Err(Failure::usage(format!(
                "{FENCE} is not set, and guard needs the fence of the lock that the command is run under; \
                 use it inside 'dlock run', or give '--fence N'"
            ))),
        }?;
        let run = cli::Run { key: guard.resource, command: guard.command, ..cli::Run::default() };
        Ok(Self { run: RunPlan::read(run, &settings)?, fence, directory, settings })
    }
}

fn read(whence: &str, text: &OsStr) -> Result<Fence, Failure> {
    let digits = text.to_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(0) => Err(Failure::usage(format!("{whence} is 0, and no lock that is held has that"))),
        Some(number) => Ok(Fence(number)),
        None => {
            let text = text.to_string_lossy();
            Err(Failure::usage(format!("{whence} '{text}' is no fence, which is a number from 1 to {}", u64::MAX)))
        }
    }
}
