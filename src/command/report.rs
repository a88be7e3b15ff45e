//! `dlock run --report`: what became of a run, for programs, whatever that was.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::libc::{O_NOCTTY, O_NONBLOCK};
use nix::unistd::{AccessFlags, access, geteuid};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::json::{SCHEMA, add, hold_json, info, millis, rfc3339};
use crate::clock::Moment;
use crate::config::{self, RunPlan};
use crate::event::Status;
use crate::exit::{Code, Ending, Failure};
use crate::holder::Lease;
use crate::model::{Fence, Hold, Info, LeaseId, Stamp};
use crate::output;
use crate::sys;

/// How many symbolic links lead to a file at most, as in the kernel.
const MAX_LINKS: usize = 40;

/// What became of a run, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The command ran to its end, whatever that was.
    Ran,
    /// The key was not to be had.
    Busy,
    /// The lease was lost.
    Lost,
    /// Somebody unlocked the key.
    Revoked,
    /// The command ran for too long.
    MaxRun,
    /// A signal came before there was a command.
    Signal,
    /// The store cannot be reached.
    Unreachable,
    /// The store refused us.
    Refused,
    /// Something else went wrong.
    Error,
}

/// The course of a run, as far as it has come.
#[derive(Default)]
pub(super) struct Course {
    info: Option<Info>,
    store: Option<String>,
    asked: Option<Moment>,
    granted: Option<(Moment, LeaseId, Fence)>,
    command: Option<Status>,
    end: Option<(Outcome, Option<String>)>,
    holders: Option<Vec<Value>>,
}

/// Does the `work` of a run on `key`, and reports on it to the file that is named.
pub(super) fn reported(
    file: Option<&OsStr>,
    key: &OsStr,
    work: impl FnOnce(&mut Course) -> Result<Ending, Failure>,
) -> Result<Ending, Failure> {
    let mut course = Course::default();
    let Some(file) = file else { return work(&mut course) };
    let file = Path::new(file);
    let cannot = |error: &io::Error| format!("cannot write the report '{}': {}", file.display(), sys::words(error));
    let place = Place::find(file.as_os_str()).map_err(|error| Failure::new(Code::CannotCreate, cannot(&error)))?;
    let (started, dlock) = (SystemTime::now(), process::id());
    let done = panic::catch_unwind(AssertUnwindSafe(|| work(&mut course)));
    // The guardian comes by here, too, at the end of its work.
    if process::id() == dlock {
        let bug = Err(Failure::new(Code::Bug, "a bug in dlock"));
        let mut report = course.told(done.as_ref().unwrap_or(&bug));
        let times =
            json!({ "key": key.to_string_lossy(), "started": rfc3339(started), "ended": rfc3339(SystemTime::now()) });
        add(&mut report, &times);
        if let Err(error) = place.write(&output::clean_json(&format!("{report:#}\n"))) {
            log::error!("{}", cannot(&error));
        }
    }
    done.unwrap_or_else(|bug| panic::resume_unwind(bug))
}

impl Course {
    /// It is known what is to be done.
    pub(super) fn planned(&mut self, plan: &RunPlan) {
        self.info = Some(plan.terms.info.clone());
    }

    /// The key is asked for in this store.
    pub(super) fn asks(&mut self, store: &str) {
        self.store = Some(store.to_owned());
        self.asked = Some(Moment::now());
    }

    /// The key is ours.
    pub(super) fn granted(&mut self, lease: &Lease) {
        self.granted = Some((Moment::now(), lease.id(), lease.fence()));
    }

    /// The key is not to be had: these have it, when the store's clock shows `now`.
    pub(super) fn busy(&mut self, holders: &[Hold], now: Stamp) {
        self.holders = Some(holders.iter().map(|hold| hold_json(hold, now)).collect());
    }

    /// The command ended so, if anybody saw that.
    pub(super) fn command(&mut self, status: Option<Status>) {
        self.command = status;
    }

    /// The run ends so, and the user heard this of it. What is told last counts.
    pub(super) fn ends(&mut self, outcome: Outcome, words: impl Into<Option<String>>) {
        self.end = Some((outcome, words.into()));
    }

    /// The report, when all is over.
    fn told(self, done: &Result<Ending, Failure>) -> Value {
        let (outcome, error) = match (done, self.end) {
            (Err(failure), _) => (outcome_of(failure.code), Some(format!("{:#}", failure.error))),
            (Ok(_), Some(end)) => end,
            (Ok(_), None) => (Outcome::Ran, None),
        };
        let (exit, signal) = match *done {
            Ok(Ending::Code(code)) => (Some(code), None),
            Ok(Ending::Signal(number)) => (None, Some(number)),
            Err(Failure { code, .. }) => (Some(code.number()), None),
        };
        let (command_exit, command_signal) = match self.command {
            Some(Status::Exited(code)) => (Some(code), None),
            Some(Status::Killed(number)) => (None, Some(number)),
            None => (None, None),
        };
        let now = Moment::now();
        let granted = self.granted.map_or(now, |(granted, ..)| granted);
        let mut report = json!({
            "schema": SCHEMA,
            "outcome": outcome.name(),
            "error": error,
            "store": self.store,
            "lease": self.granted.map(|(_, lease, _)| lease.short()),
            "fence": self.granted.map(|(_, _, fence)| fence),
            "waited_ms": self.asked.map(|asked| millis(granted.since(asked))),
            "held_ms": self.granted.map(|_| millis(now.since(granted))),
            "exit": exit,
            "signal": signal,
            "command_exit": command_exit,
            "command_signal": command_signal,
            "holders": self.holders,
        });
        add(&mut report, &info(&self.info.unwrap_or_else(|| config::info(None, None))));
        report
    }
}

fn outcome_of(code: Code) -> Outcome {
    match code {
        Code::Unreachable => Outcome::Unreachable,
        Code::Refused => Outcome::Refused,
        _ => Outcome::Error,
    }
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Ran => "ran",
            Self::Busy => "busy",
            Self::Lost => "lost",
            Self::Revoked => "revoked",
            Self::MaxRun => "max-run",
            Self::Signal => "signal",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Error => "error",
        }
    }
}

/// Where a report goes.
enum Place {
    /// To a regular file of this name, there or not, which is replaced.
    Named(PathBuf),
    /// To what is there: a pipe, a device.
    There(PathBuf),
    /// To a descriptor that we were handed, as `/dev/stderr` is one.
    Open(File),
}

impl Place {
    /// Follows links, and finds out whether what is there can be written to.
    fn find(file: &OsStr) -> io::Result<Self> {
        let mut path = PathBuf::from(file);
        for _ in 0..MAX_LINKS {
            let nothing = if path.as_os_str().is_empty() { Errno::ENOENT } else { Errno::EISDIR };
            let name = path.file_name().ok_or(nothing)?.to_owned();
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder.canonicalize()?,
                _ => Path::new(".").canonicalize()?,
            };
            path = folder.join(&name);
            if folder.starts_with("/proc") && folder.ends_with("fd") {
                return descriptor(&folder, &name).map(Self::Open);
            }
            match fs::symlink_metadata(&path) {
                Ok(found) if found.is_symlink() => {
                    is_trusted(&found, &folder)?;
                    path = folder.join(fs::read_link(&path)?);
                }
                Ok(found) if found.is_dir() => return Err(Errno::EISDIR.into()),
                Ok(found) if found.file_type().is_socket() => return Err(Errno::ENXIO.into()),
                Ok(found) if !found.is_file() => {
                    access(&path, AccessFlags::W_OK)?;
                    return Ok(Self::There(path));
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                // Whoever can make one file there can make the next.
                _ => return temporary(&path).map(|_| Self::Named(path)),
            }
        }
        Err(Errno::ELOOP.into())
    }

    fn write(&self, text: &str) -> io::Result<()> {
        match self {
            Self::Named(path) => {
                let mut file = temporary(path)?;
                // Whoever may read the last report may read this one.
                if let Ok(last) = fs::metadata(path) {
                    file.as_file().set_permissions(last.permissions())?;
                }
                file.as_file_mut().write_all(text.as_bytes())?;
                file.persist(path).map(drop).map_err(|error| error.error)
            }
            Self::There(path) => appending().open(path)?.write_all(text.as_bytes()),
            Self::Open(file) => (&*file).write_all(text.as_bytes()),
        }
    }
}

/// Where everybody may make links, only ours and those of the folder's owner are followed: as the kernel does it
/// (`fs.protected_symlinks`), which sees no link of ours being followed.
fn is_trusted(link: &Metadata, folder: &Path) -> io::Result<()> {
    let place = fs::metadata(folder)?;
    let is_anybodys = place.mode() & 0o1002 == 0o1002;
    if is_anybodys && ![geteuid().as_raw(), place.uid()].contains(&link.uid()) {
        return Err(Errno::EACCES.into());
    }
    Ok(())
}

/// A file beside this one, which is gone when it is dropped.
fn temporary(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    // As any file is made: the mask of the process takes away from that.
    let make = |path: &Path| File::options().write(true).create_new(true).mode(0o666).open(path);
    tempfile::Builder::new().prefix(".dlock-report-").make_in(folder, make)
}

/// A descriptor that we were handed. Its number may mean something else at the end of a run: stdout does.
fn descriptor(folder: &Path, name: &OsStr) -> io::Result<File> {
    let ours = folder == Path::new(&format!("/proc/{}/fd", process::id()));
    match name.to_str().filter(|_| ours) {
        Some("1") => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        Some("2") => io::stderr().as_fd().try_clone_to_owned().map(File::from),
        _ => appending().open(folder.join(name)),
    }
}

/// Adds to what is there. A pipe that nobody reads is an error, and no terminal becomes ours.
fn appending() -> fs::OpenOptions {
    let mut options = File::options();
    options.append(true).custom_flags(O_NONBLOCK | O_NOCTTY);
    options
}
