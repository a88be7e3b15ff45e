//! Tables: aligned by what shows, and made to fit a terminal.

use super::screen::Screen;
use super::text::{clean, clip, width};

/// What stands between two columns.
const GAP: usize = 2;

/// An elastic column is not made narrower than this.
const NARROWEST: usize = 8;

/// What may be done to a column that there is no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Its cells are never cut: numbers, states.
    Fixed,
    /// Its cells may be cut: names, notes.
    Elastic,
}

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// What stands above it.
    pub title: &'static str,
    /// What may be done to it.
    pub fit: Fit,
}

/// A line of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What it says.
    pub text: String,
    /// Whether it stands out.
    pub bold: bool,
}

/// Rows of cells under a header.
#[derive(Clone, Debug)]
pub struct Table {
    columns: &'static [Column],
    rows: Vec<Vec<String>>,
}

impl Column {
    /// A column whose cells are never cut.
    #[must_use]
    pub const fn fixed(title: &'static str) -> Self {
        Self { title, fit: Fit::Fixed }
    }

    /// A column whose cells may be cut.
    #[must_use]
    pub const fn elastic(title: &'static str) -> Self {
        Self { title, fit: Fit::Elastic }
    }
}

impl<T: Into<String>> From<T> for Line {
    fn from(text: T) -> Self {
        Self { text: text.into(), bold: false }
    }
}

impl Line {
    /// The line as it is written: cleaned, and for a terminal cut and, if it may be, bold.
    pub(super) fn render(&self, screen: Option<Screen>) -> String {
        let text = clean(&self.text);
        match screen {
            None => text,
            Some(screen) if self.bold && screen.colours => format!("\u{1b}[1m{}\u{1b}[0m", clip(&text, screen.room())),
            Some(screen) => clip(&text, screen.room()),
        }
    }
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(columns: &'static [Column]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row: a cell for each column.
    pub fn push(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().map(|cell| clean(&cell)).collect();
        debug_assert_eq!(cells.len(), self.columns.len(), "each column has a cell");
        self.rows.push(cells);
    }

    /// The table as text that ends with a newline. For a terminal it is made to fit; elsewhere nothing is cut.
    #[must_use]
    pub fn render(&self, screen: Option<Screen>) -> String {
        self.lines(screen).iter().map(|line| line.render(screen) + "\n").collect()
    }

    /// The lines of the table, made to fit a terminal.
    #[must_use]
    pub fn lines(&self, screen: Option<Screen>) -> Vec<Line> {
        let widths = self.widths(screen.map(|screen| screen.room()));
        let header = Line { text: aligned(self.columns.iter().map(|column| column.title), &widths), bold: true };
        let row = |row: &Vec<String>| Line::from(aligned(row.iter().map(String::as_str), &widths));
        std::iter::once(header).chain(self.rows.iter().map(row)).collect()
    }

    /// The widths of as many columns as fit into `room`, but at least of the first one.
    fn widths(&self, room: Option<usize>) -> Vec<usize> {
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column)).map(|cell| width(cell));
        let natural: Vec<usize> = (0..self.columns.len())
            .map(|column| cells(column).max().unwrap_or(0).max(width(self.columns[column].title)))
            .collect();
        let Some(room) = room else { return natural };
        let fits = (1..=natural.len()).rev().find_map(|count| self.shrunk(&natural[..count], room));
        fits.unwrap_or_else(|| natural.into_iter().take(1).collect())
    }

    /// These widths, the widest elastic ones made narrower until all fit into `room`; nothing if they do not.
    fn shrunk(&self, natural: &[usize], room: usize) -> Option<Vec<usize>> {
        let mut widths = natural.to_vec();
        while widths.iter().sum::<usize>() + GAP * (widths.len() - 1) > room {
            let elastic = widths.iter_mut().zip(self.columns).filter(|(_, column)| column.fit == Fit::Elastic);
            let widest = elastic.map(|(width, _)| width).filter(|width| **width > NARROWEST).max()?;
            *widest -= 1;
        }
        Some(widths)
    }
}

/// Cells beside each other, without blanks at the end.
fn aligned<'a>(cells: impl Iterator<Item = &'a str>, widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, room) in cells.zip(widths) {
        let cell = clip(cell, *room);
        line.push_str(&cell);
        line.push_str(&" ".repeat(room - width(&cell) + GAP));
    }
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use super::{Column, Table};
    use crate::output::screen::Screen;
    use crate::output::text::width;

    const COLUMNS: [Column; 4] =
        [Column::elastic("KEY"), Column::fixed("STATE"), Column::elastic("WHO"), Column::fixed("FENCE")];

    fn table() -> Table {
        let mut table = Table::new(&COLUMNS);
        for row in [["deploy/production/eu", "exclusive", "web3 pid 4121 (alice)", "1764"], ["東京", "free", "-", "0"]]
        {
            table.push(row.map(String::from));
        }
        table
    }

    fn at(columns: usize) -> Screen {
        Screen { columns, rows: 24, colours: false }
    }

    #[test]
    fn columns_are_aligned_by_what_shows_and_lines_have_no_blank_ends() {
        let text = "\
KEY                   STATE      WHO                    FENCE
deploy/production/eu  exclusive  web3 pid 4121 (alice)  1764
東京                  free       -                      0
";
        assert_eq!(table().render(None), text);
        assert_eq!(table().render(Some(at(80))), text);
    }

    #[test]
    fn names_are_cut_to_fit_the_widest_first_and_numbers_never() {
        let text = "\
KEY              STATE      WHO              FENCE
deploy/product…  exclusive  web3 pid 4121 …  1764
東京             free       -                0
";
        assert_eq!(table().render(Some(at(51))), text);
    }

    #[test]
    fn columns_are_dropped_from_the_right_if_they_do_not_fit_even_so() {
        let text = "\
KEY       STATE      WHO
deploy/…  exclusive  web3 pi…
東京      free       -
";
        assert_eq!(table().render(Some(at(30))), text);
        assert_eq!(table().render(Some(at(10))), "KEY\ndeploy/p…\n東京\n");
        assert_eq!(table().render(Some(at(5))), "KEY\ndep…\n東京\n");
    }

    #[test]
    fn a_table_fits_every_terminal() {
        for columns in 1..100 {
            for line in table().render(Some(at(columns))).lines() {
                assert!(width(line) < columns, "{line} at {columns}");
            }
        }
    }

    #[test]
    fn the_header_is_bold_where_colours_are() {
        let colours = Some(Screen { columns: 80, rows: 24, colours: true });
        assert!(table().render(colours).starts_with("\u{1b}[1mKEY "));
        assert!(!table().render(None).contains('\u{1b}') && !table().render(Some(at(80))).contains('\u{1b}'));
    }

    #[test]
    fn cells_play_no_tricks() {
        let mut table = Table::new(&COLUMNS[..1]);
        table.push(["a\u{1b}[2J".into()]);
        assert_eq!(table.render(None), "KEY\na\\u{1b}[2J\n");
    }
}
