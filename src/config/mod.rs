//! What was typed, and what the environment says, made into what it means. All errors of a command line
//! are found here, before anything is touched.

mod guard;
mod held;
mod plan;
mod span;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;

pub use self::guard::GuardPlan;
pub use self::held::Held;
pub use self::plan::{RunPlan, Terms, info, ttl};
pub use self::span::span;
use crate::cli::{self, LogFormat};
use crate::exit::{Code, Failure};
use crate::model::{Key, LeaseId};
use crate::output::{Format, Verbosity};
use crate::store::Url;
use crate::sys;

/// The variables that name the store: its URL, or a file that holds the URL.
const URL: &str = "DLOCK_STORE";
const URL_FILE: &str = "DLOCK_STORE_FILE";

/// What goes for every verb.
#[derive(Clone)]
pub struct Settings {
    /// The store.
    pub store: Url,
    /// Whether nobody named it.
    pub is_default: bool,
    /// The variables that name the store for commands inside, and their values; one of them has none.
    pub handed_on: [(&'static str, Option<OsString>); 2],
    /// How long to try a store that cannot be reached.
    pub store_timeout: Duration,
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
    /// Where the store is: by flag, else by the environment, else the default directory.
    ///
    /// # Errors
    /// [`Failure`] with 64 or 78.
    pub fn read(global: &cli::Global) -> Result<Self, Failure> {
        let store_timeout = match &global.store_timeout {
            Some(text) => span::positive("--store-timeout", text)?,
            None => Duration::from_secs(10),
        };
        let named = Named::find(global)?;
        // One that was deleted matters to a relative path only, and then the store cannot be opened.
        let here = env::current_dir().unwrap_or_default();
        let is_default = named.is_none();
        let store = match &named {
            Some(Named::Url(url, whence)) => url_of(url, &here).map_err(|why| config(format!("{whence}: {why}")))?,
            Some(Named::File(file)) => from_file(&here.join(file), &here)?,
            None => Url::File(default_directory()?),
        };
        let handed_on = match named {
            Some(Named::File(file)) => [(URL, None), (URL_FILE, Some(here.join(file).into_os_string()))],
            _ => [(URL, Some(store.text())), (URL_FILE, None)],
        };
        Ok(Self { store, is_default, handed_on, store_timeout })
    }
}

/// How somebody named the store.
enum Named {
    /// By its URL, and where that stands.
    Url(OsString, &'static str),
    /// By a file that holds the URL.
    File(OsString),
}

impl Named {
    fn find(global: &cli::Global) -> Result<Option<Self>, Failure> {
        match (&global.store, &global.store_file) {
            // One may stand before the verb and one behind it.
            (Some(_), Some(_)) => return Err(Failure::usage("--store and --store-file cannot be used together")),
            (Some(url), None) => return Ok(Some(Self::Url(url.clone(), "--store"))),
            (None, Some(file)) => return Ok(Some(Self::File(file.clone()))),
            (None, None) => {}
        }
        let (url, file) = (env::var_os(URL), env::var_os(URL_FILE));
        for (name, value) in [(URL, &url), (URL_FILE, &file)] {
            // A secret that a pipeline did not get would make a lock of this machine alone.
            if value.as_ref().is_some_and(|value| value.is_empty()) {
                return Err(config(format!("{name} is set, but empty; unset it to lock on this machine alone")));
            }
        }
        match (url, file) {
            (Some(_), Some(_)) => Err(config(format!("{URL} and {URL_FILE} are both set; unset one of them"))),
            (Some(url), None) => Ok(Some(Self::Url(url, URL))),
            (None, Some(file)) => Ok(Some(Self::File(file))),
            (None, None) => Ok(None),
        }
    }
}

/// Without the value that is handed on, which may hold a password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store, is_default, handed_on: _, store_timeout } = self;
        let mut shown = f.debug_struct("Settings");
        shown.field("store", store).field("is_default", is_default).field("store_timeout", store_timeout);
        shown.finish_non_exhaustive()
    }
}

fn url_of(text: &OsStr, here: &Path) -> Result<Url, String> {
    if let Some(text) = text.to_str() {
        return Url::parse(text, here).map_err(|error| error.to_string());
    }
    // A directory may have any name.
    let bytes = std::os::unix::ffi::OsStrExt::as_bytes(text);
    match bytes.strip_prefix(b"file:") {
        Some(path) => Ok(Url::File(here.join(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path)))),
        None => Err("the URL is not UTF-8".into()),
    }
}

fn from_file(file: &Path, here: &Path) -> Result<Url, Failure> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| {
        config(format!("cannot read the store's URL from '{}': {}", file.display(), sys::words(&error)))
    })?;
    let is_wrong = |why: &str| config(format!("'{}': {why}", file.display()));
    // Some editors begin a file with a mark of its encoding.
    let url = text.trim_start_matches('\u{feff}').trim();
    if url.is_empty() || url.lines().count() > 1 {
        return Err(is_wrong("it must hold one line, the store's URL"));
    }
    // It may be a password alone, so it is not repeated.
    if !url.contains(':') {
        return Err(is_wrong("what it holds is no store URL, as 'redis://HOST' is"));
    }
    Url::parse(url, here).map_err(|error| is_wrong(&error.to_string()))
}

fn default_directory() -> Result<PathBuf, Failure> {
    if geteuid().is_root() {
        return Ok("/var/lib/dlock".into());
    }
    let set = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    let state = state.ok_or_else(|| config("HOME is not set; name a directory with '--store file:DIR'"))?;
    Ok(state.join("dlock"))
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
    let (name, id) = match (&mine.key, &mine.lease) {
        (Some(name), Some(id)) => (name.clone(), id.clone()),
        _ => match (env::var_os("DLOCK_KEY"), env::var_os("DLOCK_LEASE")) {
            (Some(name), Some(id)) => (name, id),
            _ => return Err(Failure::usage("which lease? name KEY and LEASE, or set DLOCK_KEY and DLOCK_LEASE")),
        },
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
