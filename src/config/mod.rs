//! What was typed, what the environment says and what stands in the config file, made into what it means. All
//! errors of these are found here, before anything is touched.

mod file;
mod guard;
mod held;
mod origin;
mod plan;
mod secret;
mod span;
mod store;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use self::guard::GuardPlan;
pub use self::held::Held;
pub use self::origin::{Origin, Setting};
pub use self::plan::{RunPlan, Terms, info};
pub use self::span::span;
use crate::cli::{self, LogFormat};
use crate::exit::{Code, Failure};
use crate::model::{Key, LeaseId};
use crate::output::{Format, Verbosity};
use crate::store::Url;

/// What goes for every verb.
#[derive(Clone)]
pub struct Settings {
    /// The store.
    pub store: Setting<Url>,
    /// The variables that tell commands inside of the store and of the config file; without a value they are
    /// removed.
    pub handed_on: [(&'static str, Option<OsString>); 3],
    /// How long to try a store that cannot be reached.
    pub store_timeout: Setting<Duration>,
    /// The config file, if one was read.
    pub config: Option<Setting<PathBuf>>,
    /// What the config file says of the lease.
    ttl: Option<Setting<Duration>>,
    kill_after: Option<Setting<Duration>>,
}

/// How much to say.
#[must_use]
pub fn verbosity(global: &cli::Global) -> Verbosity {
    match (global.quiet, global.verbose) {
        (true, _) => Verbosity::Quiet,
        (_, true) => Verbosity::Verbose,
        _ => Verbosity::Normal,
    }
}

/// In which form to say it.
#[must_use]
pub fn format(form: LogFormat) -> Format {
    match form {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    }
}

impl Settings {
    /// What was decided: by flag, else by the environment, else by the config file, else by default.
    ///
    /// # Errors
    /// [`Failure`] with 64 or 78.
    pub fn read(global: &cli::Global) -> Result<Self, Failure> {
        // One that was deleted matters to a relative path only, and then the store cannot be opened.
        let here = env::current_dir().unwrap_or_default();
        let store_timeout = flag("--store-timeout", global.store_timeout.as_deref(), span::positive)?;
        let file = file::File::find(global.config.as_deref(), &here)?;
        let (store, [text, url_file]) = store::find(global, file.as_ref(), &here)?;
        let in_file = |read: fn(&file::File) -> Option<Duration>| {
            let file = file.as_ref()?;
            Some(Setting { value: read(file)?, from: file.origin() })
        };
        let store_timeout = store_timeout.or_else(|| in_file(|file| file.store_timeout));
        let (ttl, kill_after) = (in_file(|file| file.ttl), in_file(|file| file.kill_after));
        let config = file.map(|file| file.path);
        let path = config.as_ref().map(|path| path.value.clone().into_os_string());
        Ok(Self {
            store,
            handed_on: [(file::VARIABLE, path), text, url_file],
            store_timeout: store_timeout.unwrap_or_else(|| Setting::default(Duration::from_secs(10))),
            config,
            ttl,
            kill_after,
        })
    }

    /// How long a lease counts, where `--ttl` says `typed`.
    ///
    /// # Errors
    /// [`Failure`] with 64.
    pub fn ttl(&self, typed: Option<&str>) -> Result<Setting<Duration>, Failure> {
        let decided = flag("--ttl", typed, plan::long_enough)?.or_else(|| self.ttl.clone());
        Ok(decided.unwrap_or_else(|| Setting::default(Duration::from_secs(30))))
    }

    /// From SIGTERM to SIGKILL, where `--kill-after` says `typed`, for a lease of `ttl`.
    ///
    /// # Errors
    /// [`Failure`] with 64, or with 78 if the config file alone is at fault.
    pub fn kill_after(&self, typed: Option<&str>, ttl: &Setting<Duration>) -> Result<Setting<Duration>, Failure> {
        let decided = flag("--kill-after", typed, span::positive)?.or_else(|| self.kill_after.clone());
        let decided = decided.unwrap_or_else(|| Setting::default((ttl.value / 3).min(Duration::from_secs(5))));
        // What is left is for three beats.
        if decided.value <= ttl.value * 2 / 3 {
            return Ok(decided);
        }
        let show =
            |setting: &Setting<Duration>| format!("{} ({})", humantime::format_duration(setting.value), setting.from);
        let words =
            format!("the kill-after of {} must be at most two thirds of the ttl of {}", show(&decided), show(ttl));
        let was_typed = [&decided.from, &ttl.from].iter().any(|from| matches!(from, Origin::Flag(_)));
        Err(if was_typed { Failure::usage(words) } else { config(words) })
    }
}

/// Without the values that are handed on, one of which may hold a password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store, handed_on: _, store_timeout, config, ttl, kill_after } = self;
        let mut shown = f.debug_struct("Settings");
        shown.field("store", store).field("store_timeout", store_timeout).field("config", config);
        shown.field("ttl", ttl).field("kill_after", kill_after);
        shown.finish_non_exhaustive()
    }
}

/// What a flag says, read by its `meaning`.
fn flag<T>(
    name: &'static str,
    typed: Option<&str>,
    meaning: impl Fn(&str, &str) -> Result<T, String>,
) -> Result<Option<Setting<T>>, Failure> {
    let value = typed.map(|text| meaning(name, text)).transpose().map_err(Failure::usage)?;
    Ok(value.map(|value| Setting { value, from: Origin::Flag(name) }))
}

/// The path that a variable holds, unless it is relative: such a one means nothing (XDG Base Directory).
fn absolute(value: Option<OsString>) -> Option<PathBuf> {
    value.map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Reads a key.
///
/// # Errors
/// [`Failure`] with 64.
pub fn key(text: &OsStr) -> Result<Key, Failure> {
    let text = text.to_str().ok_or_else(|| Failure::usage("a key is UTF-8, this one is not"))?;
    Key::parse(text).map_err(Failure::usage)
}

/// The lease that somebody names as his own: by arguments, else by `DLOCK_KEY` and `DLOCK_LEASE`.
///
/// # Errors
/// [`Failure`] with 64.
pub fn mine(mine: &cli::Mine) -> Result<(Key, LeaseId), Failure> {
    let name = mine.key.clone().or_else(|| env::var_os("DLOCK_KEY"));
    let id = mine.lease.clone().or_else(|| env::var_os("DLOCK_LEASE"));
    let (Some(name), Some(id)) = (name, id) else {
        return Err(Failure::usage("which lease? name KEY and LEASE, or set DLOCK_KEY and DLOCK_LEASE"));
    };
    // It may be a secret, but for a slip of the pen, so it is not repeated.
    let id = id.to_str().and_then(|id| LeaseId::parse(id).ok());
    let id =
        id.ok_or_else(|| Failure::usage("this is no lease id: one has 32 hex digits, as 'acquire' prints them"))?;
    Ok((key(&name)?, id))
}

fn config(words: impl fmt::Display) -> Failure {
    Failure::new(Code::Config, words)
}
