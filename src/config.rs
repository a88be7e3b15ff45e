//! What was typed, and what the environment says, made into what it means. All errors of a command line
//! are found here, before anything is touched.

mod guard;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{User, geteuid, gethostname};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

pub use self::guard::GuardPlan;
use crate::child::{Policy, Program};
use crate::cli::{self, LogFormat, OnLost};
use crate::exit::{Code, Failure};
use crate::holder::Limits;
use crate::model::{Fence, Info, Key, LeaseId, Mode};
use crate::output::{Format, Verbosity};
use crate::store::Url;
use crate::sys;

/// The variables that name the store: its URL, or a file that holds the URL.
const URL: &str = "DLOCK_STORE";
const URL_FILE: &str = "DLOCK_STORE_FILE";

/// The shortest ttl: a beat must be longer than the pauses of a loaded machine.
const MIN_TTL: Duration = Duration::from_millis(500);

/// The longest span of time that means anything.
const MAX_SPAN: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The longest note. All who wait are kept in one record.
const MAX_NOTE: usize = 1000;

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

/// How to ask for a key.
#[derive(Debug)]
pub struct Terms {
    /// The key.
    pub key: Key,
    /// How to hold the key.
    pub mode: Mode,
    /// How long the lease counts unrenewed.
    pub ttl: Duration,
    /// How long to wait.
    pub limits: Limits,
    /// What to exit with if the key is not to be had.
    pub conflict: u8,
    /// Take it only if the fence is still this.
    pub if_fence: Option<Fence>,
    /// How long the key stays taken at least.
    pub min_hold: Duration,
    /// Who we are.
    pub info: Info,
}

/// What `dlock run` is to do.
#[derive(Debug)]
pub struct RunPlan {
    /// How to ask for the key.
    pub terms: Terms,
    /// The command.
    pub program: Program,
    /// How often the lease is renewed.
    pub beat: Duration,
    /// How many levels may be open beside the first.
    pub max_reentry: u32,
    /// What is done to the command, and when.
    pub policy: Policy,
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
            Some(text) => positive("--store-timeout", text)?,
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

impl Terms {
    /// What the arguments mean for a lease of `program`, if one is run.
    ///
    /// # Errors
    /// [`Failure`] with 64.
    pub fn read(key: Key, terms: cli::Terms, program: Option<String>, settings: &Settings) -> Result<Self, Failure> {
        let mode = match (terms.shared, terms.slots) {
            (true, _) => Mode::Shared,
            (_, Some(size)) => {
                Mode::Slots(NonZeroU32::new(size).ok_or_else(|| Failure::usage("--slots needs at least 1"))?)
            }
            _ => Mode::Exclusive,
        };
        let wait = match (terms.nonblock, terms.wait) {
            (true, _) => Some(Duration::ZERO),
            (_, Some(text)) => Some(span("--wait", &text)?),
            _ => None,
        };
        let note = terms.note.or_else(|| env::var("DLOCK_NOTE").ok()).filter(|note| !note.is_empty());
        if note.as_ref().is_some_and(|note| note.len() > MAX_NOTE) {
            return Err(Failure::usage(format!("a note has at most {MAX_NOTE} bytes")));
        }
        Ok(Self {
            key,
            mode,
            ttl: ttl(terms.ttl.as_deref())?,
            limits: Limits { wait, store: settings.store_timeout },
            conflict: terms.conflict_exit_code.unwrap_or(Code::Busy.number()),
            if_fence: terms.if_fence.map(Fence),
            min_hold: terms.min_hold.map_or(Ok(Duration::ZERO), |text| span("--min-hold", &text))?,
            info: info(program, note),
        })
    }
}

impl RunPlan {
    /// What the arguments of `run` mean.
    ///
    /// # Errors
    /// [`Failure`] with 64.
    pub fn read(run: cli::Run, settings: &Settings) -> Result<Self, Failure> {
        let key = key(&run.key)?;
        let mut words = run.command.into_iter();
        let name = words.next().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Failure::usage("the command has no name"))?;
        let program = Program { name, args: words.collect() };
        let program_name = Path::new(&program.name).file_name().unwrap_or(&program.name);
        let terms = Terms::read(key, run.terms, Some(program_name.to_string_lossy().into_owned()), settings)?;
        let ttl = terms.ttl;
        let shorter = (ttl / 3).min(Duration::from_secs(5));
        let kill_after = run.kill_after.map_or(Ok(shorter), |text| positive("--kill-after", &text))?;
        // What is left is for three beats.
        if kill_after > ttl * 2 / 3 {
            return Err(Failure::usage("--kill-after must be at most two thirds of --ttl"));
        }
        Ok(Self {
            beat: ttl.saturating_sub(kill_after) / 3,
            terms,
            program,
            max_reentry: run.max_reentry.unwrap_or(16),
            policy: Policy {
                stop_when_lost: run.on_lost.unwrap_or_default() == OnLost::Stop,
                kill_after,
                max_run: run.max_run.map(|text| positive("--max-run", &text)).transpose()?,
            },
        })
    }
}

/// Reads how long a lease counts.
///
/// # Errors
/// [`Failure`] with 64.
pub fn ttl(text: Option<&str>) -> Result<Duration, Failure> {
    let ttl = text.map_or(Ok(Duration::from_secs(30)), |text| positive("--ttl", text))?;
    if ttl < MIN_TTL { Err(Failure::usage("--ttl must be at least 500ms")) } else { Ok(ttl) }
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

/// Reads a span of time: as humantime reads it, or a bare number of seconds.
///
/// # Errors
/// [`Failure`] with 64 that names `option`.
pub fn span(option: &str, text: &str) -> Result<Duration, Failure> {
    let bad =
        |why: &str| Failure::usage(format!("{option} '{text}' is not a span of time like '30s' or '1h 30m': {why}"));
    let bare = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let span = if bare {
        let seconds = text.parse::<f64>().map_err(|_| bad("it is not a number"))?;
        Duration::try_from_secs_f64(seconds).map_err(|_| bad("it is too long"))?
    } else if text.starts_with('-') {
        return Err(bad("it is negative"));
    } else {
        humantime::parse_duration(text).map_err(|error| bad(&error.to_string()))?
    };
    if span > MAX_SPAN { Err(bad("it is longer than a hundred years")) } else { Ok(span) }
}

fn positive(option: &str, text: &str) -> Result<Duration, Failure> {
    let span = span(option, text)?;
    if span.is_zero() { Err(Failure::usage(format!("{option} must be more than 0"))) } else { Ok(span) }
}

fn config(words: impl fmt::Display) -> Failure {
    Failure::new(Code::Config, words)
}

/// Who we are, for people.
#[must_use]
pub fn info(program: Option<String>, note: Option<String>) -> Info {
    let uid = geteuid();
    let user = User::from_uid(uid).ok().flatten().map_or_else(|| format!("uid {uid}"), |user| user.name);
    let host = gethostname().map_or_else(|_| "?".into(), |host| host.to_string_lossy().into_owned());
    Info { host, pid: std::process::id(), user, program, note, ..Info::default() }
}

/// The leases that enclosing runs hold, as they stand in `DLOCK_HELD`: `STORE,KEY,LEASE` each, in
/// percent-encoding, outermost first, parted by blanks.
#[derive(Debug, Default)]
pub struct Held(Vec<(String, String, LeaseId)>);

impl Held {
    /// Its name in the environment.
    pub const VARIABLE: &'static str = "DLOCK_HELD";

    /// Reads it.
    ///
    /// # Errors
    /// [`Failure`] with 78 if dlock did not write it: to pass over it could mean to wait for ourselves.
    pub fn read() -> Result<Self, Failure> {
        let text = env::var_os(Self::VARIABLE).unwrap_or_default();
        let held = text.to_str().and_then(Self::parse);
        held.ok_or_else(|| config("DLOCK_HELD is not as dlock writes it; unset it to start afresh"))
    }

    fn parse(text: &str) -> Option<Self> {
        let decode = |part: &str| percent_decode_str(part).decode_utf8().ok().map(String::from);
        let entry = |entry: &str| {
            let mut parts = entry.split(',');
            let (store, key, lease) = (parts.next()?, parts.next()?, parts.next()?);
            Some((decode(store)?, decode(key)?, LeaseId::parse(lease).ok()?)).filter(|_| parts.next().is_none())
        };
        text.split_ascii_whitespace().map(entry).collect::<Option<_>>().map(Self)
    }

    /// The lease of `key` that is held in this store.
    #[must_use]
    pub fn lease(&self, store: &str, key: &Key) -> Option<LeaseId> {
        let same = |(held, name, _): &&(String, String, LeaseId)| held == store && name == key.as_str();
        self.0.iter().rev().find(same).map(|(_, _, lease)| *lease)
    }

    /// With one more, as text.
    #[must_use]
    pub fn with(mut self, store: &str, key: &Key, lease: LeaseId) -> String {
        if self.lease(store, key) != Some(lease) {
            self.0.push((store.into(), key.as_str().into(), lease));
        }
        let encode = |part: &str| utf8_percent_encode(part, NON_ALPHANUMERIC).to_string();
        let entry = |(store, key, lease): &(String, String, LeaseId)| {
            format!("{},{},{}", encode(store), encode(key), lease.secret())
        };
        self.0.iter().map(entry).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::{Held, span};
    use crate::model::{Key, LeaseId};
    use std::time::Duration;

    #[test]
    fn a_span_is_read_as_humantime_reads_it_or_as_seconds() {
        let read = |text| span("--wait", text).ok();
        assert_eq!(read("0"), Some(Duration::ZERO));
        assert_eq!(read("1.5"), Some(Duration::from_millis(1500)));
        assert_eq!(read("1h 30m"), Some(Duration::from_secs(5400)));
        for text in
            ["", "-1", "-1s", "1.2.3", ".", "1e9", "nan", "inf", "99999999999999999999999", "101years", "5 parsecs"]
        {
            assert_eq!(read(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_held_reads_back_and_names_the_innermost_lease() {
        let key = Key::parse("a, b%/c").expect("a key");
        let (one, two) = (LeaseId::new([1; 16]), LeaseId::new([2; 16]));
        let text = Held::default().with("file:/x y", &key, one);
        let held = Held::parse(&text).expect("we wrote it");
        assert_eq!(held.lease("file:/x y", &key), Some(one));
        assert_eq!(held.lease("file:/x", &key), None);
        let text = held.with("file:/x y", &key, two);
        assert_eq!(Held::parse(&text).expect("we wrote it").lease("file:/x y", &key), Some(two));
        assert!(Held::parse("nonsense").is_none() && Held::parse("").is_some());
    }
}
