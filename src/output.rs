//! Alone in printing. All words of dlock's own go to stderr as `dlock: …`; stdout carries only what was
//! asked for.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::fd::AsFd;

use log::{Level, LevelFilter, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a line waits for room on stderr, in milliseconds.
const PATIENCE_MS: u8 = 200;

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

/// Whether a character could play tricks on a terminal: a control character, or one that makes a line read
/// as another one.
fn is_tricky(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text from a store or a user, without the control characters that could play tricks on a terminal.
#[must_use]
pub fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if is_tricky(c) {
            let _ = write!(clean, "{}", c.escape_unicode());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// The same JSON, with such characters escaped that may stand in its strings as they are (RFC 8259, 7).
#[must_use]
pub fn clean_json(json: &str) -> String {
    let mut clean = String::with_capacity(json.len());
    for c in json.chars() {
        // All others of one byte are escaped already, or stand between strings.
        if is_tricky(c) && c > '~' {
            let _ = write!(clean, "\\u{:04x}", u32::from(c));
        } else {
            clean.push(c);
        }
    }
    clean
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
    let line = format!("dlock: {}\n", clean(line));
    // A reader that does not read must not keep us from stopping a command. Nor is a closed stderr a reason to.
    let stderr = io::stderr();
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut fds, PollTimeout::from(PATIENCE_MS)).is_ok_and(|ready| ready > 0) {
        // One write, so that lines of several processes do not mix.
        let _ = io::stderr().write_all(line.as_bytes());
    }
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

/// Rows of cells as text, each column as wide as its widest cell.
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{clean, table};

    #[test]
    fn what_could_play_tricks_on_a_terminal_is_spelled_out() {
        assert_eq!(clean("a\u{1b}[2Jb\u{202e}\n"), "a\\u{1b}[2Jb\\u{202e}\\u{a}");
        assert_eq!(clean("déploiement 7"), "déploiement 7");
    }

    #[test]
    fn columns_of_a_table_are_aligned_and_lines_have_no_blank_ends() {
        let rows = [vec!["key".into(), "é".into()], vec!["k".into(), String::new()]];
        assert_eq!(table(&rows), "key  é\nk\n");
    }
}
