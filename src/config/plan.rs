//! How to ask for a key, and what a run is to do.

use std::env;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{User, geteuid, gethostname};

use super::span::{positive, span};
use super::{Settings, flag, key};
use crate::child::{Policy, Program};
use crate::cli::{self, OnLost};
use crate::exit::{Code, Failure};
use crate::holder::Limits;
use crate::model::{Fence, Info, Key, Mode};

/// The shortest ttl: a beat must be longer than the pauses of a loaded machine.
const MIN_TTL: Duration = Duration::from_millis(500);

/// The longest note. All who wait are kept in one record.
const MAX_NOTE: usize = 1000;

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
    /// How many levels may be open beside the first.
    pub max_reentry: u32,
    /// What is done to the command, and when.
    pub policy: Policy,
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
            ttl: settings.ttl(terms.ttl.as_deref())?.value,
            limits: Limits { wait, store: settings.store_timeout.value },
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
        let ttl = settings.ttl(run.terms.ttl.as_deref())?;
        let kill_after = settings.kill_after(run.kill_after.as_deref(), &ttl)?.value;
        let terms = Terms::read(key, run.terms, Some(program_name.to_string_lossy().into_owned()), settings)?;
        Ok(Self {
            terms,
            program,
            max_reentry: run.max_reentry.unwrap_or(16),
            policy: Policy {
                stop_when_lost: run.on_lost.unwrap_or_default() == OnLost::Stop,
                kill_after,
                max_run: flag("--max-run", run.max_run.as_deref(), positive)?.map(|max_run| max_run.value),
            },
        })
    }
}

/// Reads how long a lease counts.
pub(super) fn long_enough(name: &str, text: &str) -> Result<Duration, String> {
    let ttl = positive(name, text)?;
    if ttl < MIN_TTL { Err(format!("{name} must be at least 500ms")) } else { Ok(ttl) }
}

/// Who we are, for people.
#[must_use]
pub fn info(program: Option<String>, note: Option<String>) -> Info {
    let uid = geteuid();
    let user = User::from_uid(uid).ok().flatten().map_or_else(|| format!("uid {uid}"), |user| user.name);
    let host = gethostname().map_or_else(|_| "?".into(), |host| host.to_string_lossy().into_owned());
    Info { host, pid: std::process::id(), user, program, note, ..Info::default() }
}
