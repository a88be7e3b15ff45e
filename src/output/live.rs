//! Lines that are drawn in place and drawn anew: the live line of one who waits, a table that is watched.
//!
//! No alternate screen and no hidden cursor: a kill leaves a terminal as it should be. The cursor stays at the
//! beginning of the row below what is drawn.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::screen::{Screen, Stream};
use super::table::Line;
use super::text::columns;

static REGION: Mutex<Region> = Mutex::new(Region { stream: Stream::Stderr, lines: Vec::new(), widths: Vec::new() });

/// Clears from the cursor to the end of the screen.
const CLEAR: &str = "\u{1b}[J";

/// Draws these lines in place of those that are drawn. Each is cut so that it does not wrap, and those that
/// there are no rows for are counted in the last one. Draws nothing where there is no terminal, while another
/// job is in its foreground, or if lines are JSON.
pub fn draw(stream: Stream, lines: &[Line]) {
    let mut region = region();
    if region.stream != stream {
        region.wipe();
        region.stream = stream;
    }
    region.lines = lines.to_vec();
    region.redraw();
}

/// Draws the lines anew: the terminal has another size. To be called on SIGWINCH.
pub fn resized() {
    region().redraw();
}

/// Removes what is drawn.
pub fn wipe() {
    region().wipe();
}

/// Leaves what is drawn where it is; the next drawing begins at the cursor. To be called when we go on after a
/// stop (SIGCONT): a shell has written below it.
pub fn forget() {
    region().forget();
}

/// Writes a line to stderr, above what is drawn.
pub(super) fn say(line: &str) {
    region().say(line);
}

fn region() -> MutexGuard<'static, Region> {
    REGION.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is drawn.
struct Region {
    stream: Stream,
    /// What is to be seen.
    lines: Vec<Line>,
    /// What each line that is drawn is made of: the columns of its characters.
    widths: Vec<Vec<usize>>,
}

impl Region {
    /// What we may draw on. If there is nothing, what is drawn is not ours any more.
    fn screen(&mut self) -> Option<Screen> {
        let screen = Screen::of(self.stream).filter(|_| self.stream.is_ours() && !super::is_json());
        if screen.is_none() {
            self.forget();
        }
        screen
    }

    fn redraw(&mut self) {
        if let Some(screen) = self.screen() {
            let text = self.erased(screen) + &self.drawn(screen);
            self.send(&text);
        }
    }

    fn wipe(&mut self) {
        self.lines.clear();
        if let Some(screen) = self.screen() {
            let text = self.erased(screen);
            self.send(&text);
        }
    }

    fn forget(&mut self) {
        self.widths.clear();
    }

    fn say(&mut self, line: &str) {
        let screen = self.screen().filter(|_| !self.widths.is_empty() && Screen::of(Stream::Stderr).is_some());
        let line = match screen {
            Some(screen) if self.stream == Stream::Stderr => self.around(line, screen),
            Some(screen) => {
                let text = self.erased(screen);
                self.send(&text);
                line.to_owned()
            }
            None => line.to_owned(),
        };
        // A reader that does not read must not keep us from stopping a command. Nor is a closed stderr a reason to.
        if Stream::Stderr.send(&line).is_err() {
            self.forget();
        }
        if let Some(screen) = screen.filter(|_| self.stream == Stream::Stdout) {
            let text = self.drawn(screen);
            self.send(&text);
        }
    }

    /// Where it cannot be written, nothing is known of what is drawn.
    fn send(&mut self, text: &str) {
        if !text.is_empty() && self.stream.send(text).is_err() {
            self.forget();
        }
    }

    /// A line above what is drawn, which is drawn anew: in one piece, so that nothing comes between.
    fn around(&mut self, line: &str, screen: Screen) -> String {
        format!("{}{line}\r{}", self.erased(screen), self.drawn(screen))
    }

    /// What removes all that is drawn. A line that is wider than the terminal has become since has wrapped.
    fn erased(&mut self, screen: Screen) -> String {
        let rows: usize = self.widths.drain(..).map(|widths| rows(&widths, screen.columns)).sum();
        if rows == 0 { String::new() } else { format!("\r\u{1b}[{rows}A{CLEAR}") }
    }

    /// What draws the lines, at the cursor.
    fn drawn(&mut self, screen: Screen) -> String {
        let most = screen.rows.saturating_sub(1);
        let mut lines = self.lines.clone();
        if lines.len() > most {
            lines.truncate(most.saturating_sub(1));
            let more = self.lines.len() - lines.len();
            lines.extend((most > 0).then(|| Line::from(format!("… {more} more"))));
        }
        let plain = Screen { colours: false, ..screen };
        self.widths = lines.iter().map(|line| line.render(Some(plain)).chars().map(columns).collect()).collect();
        // A terminal that is in raw mode needs the carriage return.
        lines.iter().map(|line| line.render(Some(screen)) + "\r\n").collect()
    }
}

/// The rows that characters of these widths take on a terminal that wraps.
fn rows(widths: &[usize], columns: usize) -> usize {
    let (mut rows, mut used) = (1, 0);
    for width in widths {
        used += width;
        if used > columns {
            rows += 1;
            used = *width;
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;

    use super::{Line, Region, Screen, Stream};

    fn terminal(rows: u16, columns: u16) -> vt100::Parser {
        let size = |size| NonZero::new(size).expect("a terminal has rows and columns");
        vt100::Parser::new(size(rows), size(columns), 0)
    }

    /// A person's view of a terminal on which a region draws. This emulator does not re-wrap when it is resized;
    /// the terminals that do are played by writing what was written on one of the new size.
    struct Seen {
        region: Region,
        screen: Screen,
        parser: vt100::Parser,
        lines: String,
    }

    impl Seen {
        fn new(rows: u16, columns: u16) -> Self {
            let region = Region { stream: Stream::Stderr, lines: Vec::new(), widths: Vec::new() };
            let screen = Screen { columns: columns.into(), rows: rows.into(), colours: true };
            let mut parser = terminal(rows, columns);
            parser.process(b"$ dlock\r\n");
            Self { region, screen, parser, lines: String::new() }
        }

        fn draw(&mut self, lines: &[&str]) {
            self.region.lines = lines.iter().map(|line| Line::from(*line)).collect();
            let erased = self.region.erased(self.screen);
            self.lines = self.region.drawn(self.screen);
            self.parser.process((erased + &self.lines).as_bytes());
        }

        fn say(&mut self, line: &str) {
            let text = self.region.around(&format!("{line}\n"), self.screen);
            // The driver of a terminal does that.
            self.parser.process(text.replace("\r\n", "\n").replace('\n', "\r\n").as_bytes());
        }

        fn resize(&mut self, columns: u16) {
            let mut parser = terminal(24, columns);
            parser.process(format!("$ dlock\r\n{}", self.lines).as_bytes());
            self.parser = parser;
            self.screen.columns = columns.into();
        }

        #[track_caller]
        fn shows(&self, lines: &[&str]) {
            let seen = self.parser.screen().contents();
            assert_eq!(seen.lines().collect::<Vec<_>>(), [&["$ dlock"], lines].concat());
            let below = seen.lines().count();
            assert_eq!(usize::from(self.parser.screen().cursor_position().0), below, "the cursor is below");
        }
    }

    const LONG: &str = "dlock: waiting 12s for 'deploy/production': held by web3 pid 4121 (alice) for 3m 12s, 3 ahead";

    #[test]
    fn lines_are_drawn_in_place_and_cut_to_the_width() {
        for (columns, shown) in [
            (80, "dlock: waiting 12s for 'deploy/production': held by web3 pid 4121 (alice) for …"),
            (40, "dlock: waiting 12s for 'deploy/product…"),
        ] {
            let mut seen = Seen::new(24, columns);
            seen.draw(&["one", LONG, "three"]);
            seen.shows(&["one", shown, "three"]);
            seen.draw(&[LONG]);
            seen.shows(&[shown]);
            seen.draw(&["東京".repeat(30).as_str(), "b"]);
            seen.draw(&["a", "b", "c"]);
            seen.shows(&["a", "b", "c"]);
            seen.draw(&[]);
            seen.shows(&[]);
        }
    }

    #[test]
    fn no_more_is_drawn_than_there_are_rows_and_the_rest_is_counted() {
        let mut seen = Seen::new(5, 40);
        for _ in 0..3 {
            seen.draw(&["1", "2", "3", "4", "5", "6"]);
            assert_eq!(seen.parser.screen().contents(), "1\n2\n3\n… 3 more");
        }
        seen.draw(&["1", "2", "3", "4"]);
        assert_eq!(seen.parser.screen().contents(), "1\n2\n3\n4");
        for rows in 0..3 {
            seen.screen.rows = rows;
            seen.draw(&["1", "2"]);
        }
        assert_eq!(seen.parser.screen().contents(), "… 2 more");
    }

    #[test]
    fn a_word_comes_above_what_is_drawn() {
        for columns in [80, 40] {
            let mut seen = Seen::new(24, columns);
            seen.draw(&["one", "two"]);
            seen.say("dlock: cannot renew");
            seen.shows(&["dlock: cannot renew", "one", "two"]);
            seen.draw(&["three"]);
            seen.shows(&["dlock: cannot renew", "three"]);
        }
    }

    #[test]
    fn nothing_stale_remains_after_a_resize() {
        for (from, to) in [(80, 40), (40, 80), (80, 17), (79, 78)] {
            let mut seen = Seen::new(24, from);
            let wide = "東".repeat(60);
            seen.draw(&["one", LONG, &wide, "four"]);
            seen.resize(to);
            seen.draw(&["1", "2"]);
            seen.shows(&["1", "2"]);
        }
    }

    #[test]
    fn what_is_drawn_plays_no_tricks_and_only_the_header_is_bold() {
        let mut seen = Seen::new(24, 40);
        seen.draw(&["a\u{1b}[2Jb\u{202e}"]);
        seen.shows(&["a\\u{1b}[2Jb\\u{202e}"]);
        seen.region.lines = vec![Line { text: "KEY".into(), bold: true }, "k".into()];
        let text = seen.region.erased(seen.screen) + &seen.region.drawn(seen.screen);
        seen.parser.process(text.as_bytes());
        let bold = |row| seen.parser.screen().cell(row, 0).is_some_and(vt100::Cell::bold);
        assert!(bold(1) && !bold(2) && !bold(0));
    }
}
