//! The arguments of each verb.
#![expect(clippy::doc_markdown, reason = "these comments are the help texts, which know no Markdown")]

use std::ffi::OsString;

use clap::{Args, ValueEnum};
use clap_complete::Shell;

/// `dlock run`.
#[derive(Debug, Default, Args)]
#[command(override_usage = "dlock run KEY [OPTIONS] -- CMD [ARG]...")]
pub struct Run {
    /// The name of the lock: 1 to 200 bytes
    pub key: OsString,
    /// The command to run while the key is held
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,

    /// How to ask for the key.
    #[command(flatten)]
    pub terms: Terms,

    /// How deep the lease may be entered again by runs inside [default: 16]
    #[arg(long, value_name = "N", help_heading = "Lease", allow_negative_numbers = true)]
    pub max_reentry: Option<u32>,
    /// From SIGTERM to SIGKILL [default: 5s, or a third of the ttl if less]
    #[arg(short, long, value_name = "DUR", help_heading = "Command", allow_hyphen_values = true)]
    pub kill_after: Option<String>,
    /// Stop the command after DUR and exit 124
    #[arg(long, value_name = "DUR", help_heading = "Command", allow_hyphen_values = true)]
    pub max_run: Option<String>,
    /// What a lost lease does to the command: stop or continue [default: stop]
    #[arg(long, value_name = "WHAT", help_heading = "Command", hide_possible_values = true)]
    pub on_lost: Option<OnLost>,
    /// Write to FILE what became of the run, as JSON
    #[arg(long, value_name = "FILE", help_heading = "Command")]
    pub report: Option<OsString>,
}

/// How one asks for a key.
#[derive(Debug, Default, Args)]
pub struct Terms {
    /// Give up at once if the key is taken
    #[arg(short, long, help_heading = "Waiting", conflicts_with = "wait")]
    pub nonblock: bool,
    /// Wait at most so long [default: as long as it takes]
    #[arg(short, long, value_name = "DUR", help_heading = "Waiting", allow_hyphen_values = true)]
    pub wait: Option<String>,
    /// Exit with N if the key was not to be had [default: 75]
    #[arg(short = 'E', long, value_name = "N", help_heading = "Waiting", allow_negative_numbers = true)]
    pub conflict_exit_code: Option<u8>,
    /// Take the key only if its fence is still N and nobody holds it
    #[arg(long, value_name = "N", help_heading = "Waiting", allow_negative_numbers = true)]
    pub if_fence: Option<u64>,

    /// Hold it together with other shared holders
    #[arg(short, long, help_heading = "Lease", conflicts_with = "slots")]
    pub shared: bool,
    /// Hold it together with at most N-1 others
    #[arg(long, value_name = "N", help_heading = "Lease", allow_negative_numbers = true)]
    pub slots: Option<u32>,
    /// How long the lease lives unrenewed, at least 500ms [default: 30s]
    #[arg(long, value_name = "DUR", help_heading = "Lease", allow_hyphen_values = true)]
    pub ttl: Option<String>,
    /// Keep the key taken for at least DUR, even if the command ends sooner
    #[arg(long, value_name = "DUR", help_heading = "Lease", allow_hyphen_values = true)]
    pub min_hold: Option<String>,
    /// Shown by status (or DLOCK_NOTE)
    #[arg(long, value_name = "TEXT", help_heading = "Lease")]
    pub note: Option<String>,
}

/// What a lost lease does to the command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnLost {
    /// It is stopped.
    #[default]
    Stop,
    /// It goes on; dlock still exits 76.
    Continue,
}

/// `dlock status`.
#[derive(Debug, Args)]
pub struct Status {
    /// The keys to show [default: all that are held]
    pub keys: Vec<OsString>,
    /// Only keys that begin so
    #[arg(long, value_name = "P")]
    pub prefix: Option<String>,
    /// Free keys, too
    #[arg(long)]
    pub all: bool,
    /// As JSON, for programs
    #[arg(long)]
    pub json: bool,
    /// Show it again whenever it changes; with --json, one object for each change
    #[arg(long)]
    pub watch: bool,
}

/// `dlock unlock`.
#[derive(Debug, Args)]
pub struct Unlock {
    /// The key to free
    pub key: OsString,
    /// Only if this lease holds it: at least the first 8 digits of its id
    #[arg(long, value_name = "ID")]
    pub lease: Option<String>,
    /// How long the holder may take to stop [default: what is left of its ttl]
    #[arg(short, long, value_name = "DUR", allow_hyphen_values = true)]
    pub wait: Option<String>,
    /// Do not wait for the holder to stop
    #[arg(long)]
    pub force: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// `dlock fence`.
#[derive(Debug, Args)]
pub struct Fence {
    /// The key
    pub key: OsString,
}

/// `dlock acquire`.
#[derive(Debug, Args)]
pub struct Acquire {
    /// The name of the lock: 1 to 200 bytes
    pub key: OsString,
    /// How to ask for the key.
    #[command(flatten)]
    pub terms: Terms,
    /// Key, lease, fence and end as JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// `dlock renew`.
#[derive(Debug, Args)]
pub struct Renew {
    /// The lease.
    #[command(flatten)]
    pub mine: Mine,
    /// How long the lease lives from now on, at least 500ms; never less than it would have [default: 30s]
    #[arg(long, value_name = "DUR", allow_hyphen_values = true)]
    pub ttl: Option<String>,
}

/// Whoever holds a lease names it.
#[derive(Debug, Args)]
pub struct Mine {
    /// The key (or DLOCK_KEY)
    pub key: Option<OsString>,
    /// The id of its lease (or DLOCK_LEASE, where other users of the machine do not see it)
    pub lease: Option<OsString>,
}

/// `dlock guard`.
#[derive(Debug, Args)]
#[command(override_usage = "dlock guard RESOURCE [--fence N] -- CMD [ARG]...")]
pub struct Guard {
    /// The name of what is guarded: 1 to 200 bytes
    pub resource: OsString,
    /// The command to run unless the fence is stale
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
    /// The fence of the lock that the command is run under [default: DLOCK_FENCE]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub fence: Option<OsString>,
}

/// `dlock history`.
#[derive(Debug, Args)]
pub struct History {
    /// The key
    pub key: OsString,
    /// As JSON, for programs: all that happened
    #[arg(long)]
    pub json: bool,
}

/// `dlock metrics`.
#[derive(Debug, Args)]
pub struct Metrics {
    /// Only keys that begin so
    #[arg(long, value_name = "P")]
    pub prefix: Option<String>,
}

/// `dlock doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// As JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// `dlock setup`.
#[derive(Debug, Args)]
pub struct Setup {
    /// How long to wait for those who hold keys that would be elsewhere [default: half of --store-timeout]
    #[arg(short, long, value_name = "DUR", allow_hyphen_values = true)]
    pub wait: Option<String>,
    /// Change nothing, and print what somebody who may could run instead
    #[arg(long)]
    pub print: bool,
}

/// `dlock keys`.
#[derive(Debug, Args)]
pub struct Keys {
    /// The words are one, the line as bash has it, and this is the end of it that bash replaces
    #[arg(long, value_name = "TEXT")]
    pub bash: Option<String>,
    /// The words of a line, the one that is being typed last
    #[arg(last = true, required = true, value_name = "WORD")]
    pub words: Vec<OsString>,
}

/// `dlock completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    pub shell: Shell,
}

/// `dlock man`.
#[derive(Debug, Args)]
pub struct Man {
    /// The verb whose page to print [default: dlock's own]
    pub verb: Option<String>,
}
