//! Alone in printing. All words of dlock's own go to stderr as `dlock: …`; stdout carries only what was
//! asked for.

pub mod live;
mod screen;
mod table;
mod text;

use std::io::{self, Write as _};

use log::{Level, LevelFilter, Metadata, Record};

pub use self::screen::{Screen, Stream};
pub use self::table::{Column, Fit, Line, Table};
pub use self::text::{clean, clean_json, clip, width};

struct Stderr;

static STDERR: Stderr = Stderr;

/// Where `-q` and `-v` put dlock between silence and chatter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// Errors and warnings.
    #[default]
    Normal,
    /// What is going on, too.
    Verbose,
}

impl log::Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("dlock")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) && record.level() <= Level::Info {
            say(&record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Makes the words of [`log`] go to stderr.
pub fn open(verbosity: Verbosity) {
    let filter = match verbosity {
        Verbosity::Quiet => LevelFilter::Error,
        Verbosity::Normal => LevelFilter::Warn,
        Verbosity::Verbose => LevelFilter::Info,
    };
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(filter);
    }
}

/// Writes `text` to stdout.
///
/// # Errors
/// If it cannot be written; a reader that has gone away is no error.
pub fn print(text: &str) -> io::Result<()> {
    match write(text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes `text` to stdout.
///
/// # Errors
/// If it cannot be written, be it because no reader is there any more.
pub fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// Says a line on stderr, whatever `-q` says.
pub fn say(line: &str) {
    live::say(&format!("dlock: {}\n", clean(line)));
}

/// Asks on stderr, reads a line from stdin; whether it begins with `y`.
///
/// # Errors
/// If stdin or stderr fails.
pub fn confirm(question: &str) -> io::Result<bool> {
    write!(io::stderr(), "dlock: {} [y/N] ", clean(question))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(answer.trim_start().to_ascii_lowercase().starts_with('y'))
}
