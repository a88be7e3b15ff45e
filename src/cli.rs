//! What was typed. What it means is for [`crate::config`].
#![expect(clippy::doc_markdown, reason = "these comments are the help texts, which know no Markdown")]

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Args, Command, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::exit::Failure;

/// Hold a named lease while a command runs.
#[derive(Debug, Parser)]
#[command(
    name = "dlock",
    bin_name = "dlock",
    version,
    about = "Hold a named lease while a command runs",
    disable_help_subcommand = true,
    max_term_width = 100,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    override_usage = "dlock VERB [OPTIONS]\n       dlock run KEY -- CMD [ARG]..."
)]
pub struct Cli {
    /// What goes with every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Where leases live, say redis://HOST (or DLOCK_STORE)
    #[arg(short = 'S', long, global = true, value_name = "URL", conflicts_with = "store_file")]
    pub store: Option<OsString>,
    /// Read the store's URL from a file (or DLOCK_STORE_FILE)
    #[arg(long, global = true, value_name = "FILE")]
    pub store_file: Option<OsString>,
    /// How long to try a store that cannot be reached [default: 10s]
    #[arg(long, global = true, value_name = "DUR")]
    pub store_timeout: Option<String>,
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say what is going on
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Hold a key while a command runs
    Run(Run),
    /// Show who holds keys, since when, and who waits
    Status(Status),
    /// Take a key away from its holder
    Unlock(Unlock),
    /// Print a key's fence (0: never held)
    Fence(Fence),
    /// Print a completion script for a shell
    #[command(hide = true)]
    Completions(Completions),
    /// Print a man page
    #[command(hide = true)]
    Man(Man),
}

/// `dlock run`.
#[derive(Debug, Args)]
#[command(override_usage = "dlock run KEY [OPTIONS] -- CMD [ARG]...")]
pub struct Run {
    /// The name of the lock: 1 to 200 bytes
    pub key: OsString,
    /// The command to run while the key is held
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,

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
    /// How deep the lease may be entered again by runs inside [default: 16]
    #[arg(long, value_name = "N", help_heading = "Lease", allow_negative_numbers = true)]
    pub max_reentry: Option<u32>,
    /// Shown by status (or DLOCK_NOTE)
    #[arg(long, value_name = "TEXT", help_heading = "Lease")]
    pub note: Option<String>,

    /// From SIGTERM to SIGKILL [default: 5s, or a third of the ttl if less]
    #[arg(short, long, value_name = "DUR", help_heading = "Command", allow_hyphen_values = true)]
    pub kill_after: Option<String>,
    /// Stop the command after DUR and exit 124
    #[arg(long, value_name = "DUR", help_heading = "Command", allow_hyphen_values = true)]
    pub max_run: Option<String>,
    /// What a lost lease does to the command: stop or continue [default: stop]
    #[arg(long, value_name = "WHAT", help_heading = "Command", hide_possible_values = true)]
    pub on_lost: Option<OnLost>,
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

/// What the arguments ask for.
#[derive(Debug)]
pub enum Asked {
    /// A verb.
    Verb(Box<Cli>),
    /// This text: help, or the version.
    Text(String),
}

/// Reads the arguments.
///
/// # Errors
/// [`Failure`] in one line.
pub fn parse(args: &[OsString]) -> Result<Asked, Failure> {
    match Cli::try_parse_from(args) {
        Ok(cli) => Ok(Asked::Verb(Box::new(cli))),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            Ok(Asked::Text(error.render().to_string()))
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(Failure::usage("a verb is missing; see 'dlock --help'"))
        }
        Err(error) => Err(Failure::usage(corrected(args).unwrap_or_else(|| one_line(&error)))),
    }
}

/// If only the `--` before the command is missing: the line with it.
fn corrected(args: &[OsString]) -> Option<String> {
    if args.iter().any(|arg| arg == "--") {
        return None;
    }
    let lenient = |run: Command| {
        run.mut_arg("command", |command| command.last(false).trailing_var_arg(true).allow_hyphen_values(true))
    };
    let matches = Cli::command().mut_subcommand("run", lenient).try_get_matches_from(args).ok()?;
    let typed = matches.subcommand_matches("run")?.get_many::<OsString>("command")?.len();
    let (before, command) = args.split_at(args.len() - typed);
    // No command begins so: it is an option that we do not know.
    if command.first().is_some_and(|word| word.to_string_lossy().starts_with('-')) {
        return None;
    }
    let words = before.iter().skip(1).cloned().chain(["--".into()]).chain(command.iter().cloned());
    let words: Vec<String> = words.map(|word| quoted(&word.to_string_lossy())).collect();
    Some(format!("'--' is missing before the command; write: dlock {}", words.join(" ")))
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n");
    let said = paragraphs.next().unwrap_or_default();
    let said = said.strip_prefix("error: ").unwrap_or(said);
    let said: Vec<&str> = said.lines().map(str::trim).collect();
    let verb = std::env::args().nth(1).filter(|verb| Cli::command().find_subcommand(verb).is_some());
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    // What stands behind '--' is the command of a run, and no value.
    let tip = tip.filter(|tip| verb.as_deref() != Some("run") || !tip.starts_with("to pass"));
    let tip = tip.map(|tip| format!("; {tip}"));
    let help = verb.map_or_else(|| "dlock --help".into(), |verb| format!("dlock {verb} --help"));
    format!("{}{}; see '{help}'", said.join(" "), tip.unwrap_or_default()).replace("subcommand", "verb")
}

/// The definition of the command line, for completions and man pages.
#[must_use]
pub fn definition() -> Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::{Cli, quoted};
    use clap::CommandFactory;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_word_is_quoted_as_a_shell_reads_it() {
        assert_eq!(quoted("a/b-c=1"), "a/b-c=1");
        assert_eq!(quoted("it's $x"), r"'it'\''s $x'");
        assert_eq!(quoted(""), "''");
    }
}
