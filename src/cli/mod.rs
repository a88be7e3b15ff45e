//! What was typed. What it means is for [`crate::config`].
#![expect(clippy::doc_markdown, reason = "these comments are the help texts, which know no Markdown")]

mod verbs;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub use self::verbs::{
    Acquire, Completions, Doctor, Fence, Guard, History, Keys, Man, Metrics, Mine, OnLost, Renew, Run, Setup, Status,
    Terms, Unlock,
};
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
    /// Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)
    #[arg(short = 'S', long, global = true, value_name = "URL", conflicts_with = "store_file")]
    pub store: Option<OsString>,
    /// Read that URL from FILE (or DLOCK_STORE_FILE)
    #[arg(long, global = true, value_name = "FILE")]
    pub store_file: Option<OsString>,
    /// The config file (or DLOCK_CONFIG)
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<OsString>,
    /// How long to try an unreachable store [default: 10s]
    #[arg(long, global = true, value_name = "DUR")]
    pub store_timeout: Option<String>,
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say what is going on
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Say it in lines of text or json [default: text]
    #[arg(long, global = true, value_name = "FORM", hide_possible_values = true)]
    pub log_format: Option<LogFormat>,
}

/// The form of dlock's own lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
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
    /// Take a lease that outlives dlock, and print its id
    Acquire(Acquire),
    /// Extend such a lease
    Renew(Renew),
    /// Give such a lease back
    Release(Mine),
    /// Print for how many seconds my lease is still good
    Check(Mine),
    /// Run a command unless its fence is older than one that was seen here
    Guard(Guard),
    /// Show who held a key, for how long, and how that ended
    History(History),
    /// Print facts about all keys for a monitoring system
    Metrics(Metrics),
    /// Tell whether the store can be trusted with locks
    Doctor(Doctor),
    /// Prepare a store, where it needs that
    Setup(Setup),
    /// Print the keys for the last word of a line that somebody types
    #[command(hide = true)]
    Keys(Keys),
    /// Print a completion script for a shell
    #[command(hide = true)]
    Completions(Completions),
    /// Print a man page
    #[command(hide = true)]
    Man(Man),
}

/// The verbs that run a command.
const WITH_COMMAND: [&str; 2] = ["run", "guard"];

/// What the arguments ask for.
#[derive(Debug)]
pub enum Asked {
    /// A verb.
    Verb(Box<Cli>),
    /// This text: help, or the version.
    Text(String),
}

/// The arguments that are keys, on every verb that has such.
pub const KEYS: [&str; 2] = ["key", "keys"];

/// A place on a line where a key is typed.
pub struct KeyPlace {
    /// The verb that it is for.
    pub verb: String,
    /// What the line says of the store.
    pub global: Global,
}

/// Where `typed` is, at the end of a line that somebody types; nothing if it is no key.
#[must_use]
pub fn key_place(before: &[OsString], typed: &str) -> Option<KeyPlace> {
    // No word that anybody types. What looks like an option still does.
    let mark = OsString::from(if typed.starts_with('-') { "-\u{1}" } else { "\u{1}" });
    let line = before.iter().chain([&mark]);
    // What is missing may still come.
    let matches = Cli::command().ignore_errors(true).try_get_matches_from(line).ok()?;
    let (verb, matches) = matches.subcommand()?;
    let last = |id| matches.try_get_many::<OsString>(id).ok().flatten().and_then(Iterator::last);
    let found = KEYS.iter().any(|id| last(id) == Some(&mark));
    let global = Global::from_arg_matches(matches).ok()?;
    found.then(|| KeyPlace { verb: verb.to_owned(), global })
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
        Err(error) => {
            let better = corrected(args).or_else(|| with_key(args)).or_else(|| with_verb(args));
            Err(Failure::usage(better.unwrap_or_else(|| one_line(&error))))
        }
    }
}

/// The form of dlock's own lines, as far as it can be told from arguments that make no sense.
#[must_use]
pub fn log_format(args: &[OsString]) -> LogFormat {
    let ours = args.split(|arg| arg == "--").next().unwrap_or_default();
    let json = ours.iter().any(|arg| arg == "--log-format=json")
        || ours.windows(2).any(|pair| pair[0] == "--log-format" && pair[1] == "json");
    if json { LogFormat::Json } else { LogFormat::Text }
}

/// If only the `--` before the command is missing: the line with it.
fn corrected(args: &[OsString]) -> Option<String> {
    if args.iter().any(|arg| arg == "--") {
        return None;
    }
    let lenient = |verb: Command| {
        verb.mut_arg("command", |command| command.last(false).trailing_var_arg(true).allow_hyphen_values(true))
    };
    let cli = WITH_COMMAND.iter().fold(Cli::command(), |cli, verb| cli.mut_subcommand(verb, lenient));
    let matches = cli.try_get_matches_from(args).ok()?;
    let (verb, matches) = matches.subcommand()?;
    if !WITH_COMMAND.contains(&verb) {
        return None;
    }
    let typed = matches.get_many::<OsString>("command")?.len();
    let (before, command) = args.split_at(args.len() - typed);
    // No command begins so: it is an option that we do not know.
    if command.first().is_some_and(|word| word.to_string_lossy().starts_with('-')) {
        return None;
    }
    let words = before.iter().skip(1).cloned().chain(["--".into()]).chain(command.iter().cloned());
    Some(format!("'--' is missing before the command; write: dlock {}", line(words)))
}

/// If only the key is missing before the `--`: the line with one.
fn with_key(args: &[OsString]) -> Option<String> {
    let (before, command) = args.split_at(args.iter().position(|word| word == "--")?);
    let words = || before.iter().cloned().chain(["KEY".into()]).chain(command.iter().cloned());
    let is_whole = Cli::try_parse_from(words()).is_ok();
    is_whole.then(|| format!("the key is missing; write: dlock {}", line(words().skip(1))))
}

/// If only `run` is missing, as flock(1) would have it: the line with it.
fn with_verb(args: &[OsString]) -> Option<String> {
    let (dlock, rest) = args.split_first()?;
    let words = || ["run".into()].into_iter().chain(rest.iter().cloned());
    let is_whole =
        rest.iter().any(|word| word == "--") && Cli::try_parse_from([dlock.clone()].into_iter().chain(words())).is_ok();
    is_whole.then(|| format!("the verb 'run' is missing; write: dlock {}", line(words())))
}

/// Words as somebody types them.
fn line(words: impl Iterator<Item = OsString>) -> String {
    let words: Vec<String> = words.map(|word| quoted(&word.to_string_lossy())).collect();
    words.join(" ")
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
    // It would make a key, or a command, of a slip of the pen.
    let tip = tip.filter(|tip| !tip.starts_with("to pass"));
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
    use super::{Cli, key_place, quoted};
    use clap::CommandFactory;

    #[test]
    fn the_place_of_a_key_is_found_on_a_line_that_is_not_whole() {
        let place = |line: &str| {
            let (before, typed) = line.rsplit_once(' ').expect("a blank");
            let before: Vec<_> = before.split(' ').map(Into::into).collect();
            key_place(&before, typed).map(|place| (place.verb, place.global.store.unwrap_or_default()))
        };
        let at = |verb: &str, store: &str| Some((verb.to_owned(), store.into()));
        for line in
            ["dlock unlock ", "dlock unlock k", "dlock unlock -w 5 ", "dlock unlock -- -k", "dlock unlock --yes "]
        {
            assert_eq!(place(line), at("unlock", ""), "{line}");
        }
        for (line, verb) in [
            ("dlock run -n -w 5 ", "run"),
            ("dlock status a b ", "status"),
            ("dlock renew ", "renew"),
            ("dlock check k", "check"),
            ("dlock acquire --slots 3 ", "acquire"),
        ] {
            assert_eq!(place(line), at(verb, ""), "{line}");
        }
        for line in ["dlock -S x: fence ", "dlock fence -Sx: ", "dlock fence --store=x: ", "dlock fence --store x: "] {
            assert_eq!(place(line), at("fence", "x:"), "{line}");
        }
        for line in [
            "dlock ",
            "dlock unl",
            "dlock unlock k ",
            "dlock unlock -",
            "dlock unlock --lease ",
            "dlock unlock --lease=",
            "dlock acquire --slots ",
            "dlock renew k ",
            "dlock run k -- ",
            "dlock run k -- dlock unlock ",
            "dlock --store ",
            "dlock completions ",
            "dlock nonsense ",
            "dlock unlock --help ",
        ] {
            assert_eq!(place(line), None, "{line}");
        }
    }

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
