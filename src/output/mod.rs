//! Alone in printing. All words of dlock's own go to stderr, as `dlock: …` or as JSON; stdout carries only what
//! was asked for.

pub mod live;
mod screen;
mod table;
mod text;

use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::{LevelFilter, Metadata, Record};
use serde_json::json;

pub use log::Level;

pub use self::screen::{Screen, Stream};
pub use self::table::{Column, Fit, Line, Table};
pub use self::text::{clean, clean_json, clip, width, wrap};

struct Stderr;

static STDERR: Stderr = Stderr;

/// Whether words are JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// The version of the JSON. Names in it stay as they are.
const SCHEMA: u32 = 1;

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

/// The form of the words on stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Lines for people: `dlock: …`.
    #[default]
    Text,
    /// Lines for programs: a JSON object each. Nothing is drawn.
    Json,
}

impl log::Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("dlock")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) && record.level() <= Level::Info {
            say(record.level(), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Makes the words of [`log`] go to stderr.
pub fn open(verbosity: Verbosity, format: Format) {
    JSON.store(format == Format::Json, Ordering::Relaxed);
    let filter = match verbosity {
        Verbosity::Quiet => LevelFilter::Error,
        Verbosity::Normal => LevelFilter::Warn,
        Verbosity::Verbose => LevelFilter::Info,
    };
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(filter);
    }
}

/// Makes [`log`] say nothing from here on, not even errors.
pub fn mute() {
    log::set_max_level(LevelFilter::Off);
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
pub fn say(level: Level, message: &str) {
    let line = if is_json() { json_line(level, message) } else { format!("dlock: {}\n", clean(message)) };
    live::say(&line);
}

fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

fn json_line(level: Level, message: &str) -> String {
    // RFC 3339 ends with the year 9999.
    let latest = Duration::from_secs(253_402_300_799);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().min(latest);
    let time = humantime::format_rfc3339_millis(UNIX_EPOCH + now).to_string();
    let level = level.as_str().to_lowercase();
    let object = json!({ "schema": SCHEMA, "time": time, "level": level, "message": message });
    clean_json(&object.to_string()) + "\n"
}

/// Asks on stderr, reads a line from stdin; whether it begins with `y`.
///
/// # Errors
/// If stdin or stderr fails.
pub fn confirm(question: &str) -> io::Result<bool> {
    if is_json() {
        say(Level::Info, question);
    } else {
        write!(io::stderr(), "dlock: {} [y/N] ", clean(question))?;
    }
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(answer.trim_start().to_ascii_lowercase().starts_with('y'))
}
