//! A line as bash has it while somebody types: read into words, and continued so that it means a key.

/// A line up to the cursor.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Its words, without their quotes. The last one is still typed, and may be empty.
    pub(super) words: Vec<String>,
    /// Where in the line the last word begins.
    last: usize,
    /// The quote that is open at the end.
    quote: Option<char>,
}

/// How a key is put into a line: bash replaces a part of the last word only, that behind a quote or a colon.
#[derive(Debug)]
pub(super) struct Insertion {
    /// What stands before that part, without quotes.
    kept: String,
    /// The quote that is open there.
    quote: Option<char>,
}

impl Line {
    /// Reads a line. Nothing in it is expanded: to complete is not to execute.
    pub(super) fn read(line: &str) -> Self {
        let (mut words, mut word, mut last, mut quote) = (Vec::new(), String::new(), 0, None);
        let mut chars = line.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            match (quote, c) {
                (None, '\'' | '"') => quote = Some(c),
                (Some(open), _) if open == c => quote = None,
                // At the end it is the begin of an escape that is still typed.
                (None, '\\') => word.extend(chars.next().map(|(_, escaped)| escaped)),
                (Some('"'), '\\') => match chars.next_if(|(_, next)| "\"\\$`".contains(*next)) {
                    Some((_, escaped)) => word.push(escaped),
                    None => word.extend(chars.peek().map(|_| '\\')),
                },
                (None, ' ' | '\t' | '\n') => {
                    if at > last {
                        words.push(std::mem::take(&mut word));
                    }
                    last = at + 1;
                }
                _ => word.push(c),
            }
        }
        words.push(word);
        Self { words, last, quote }
    }
}

impl Insertion {
    /// The one for a `line` whose end, `replaced`, bash replaces.
    pub(super) fn new(text: &str, line: &Line, replaced: &str) -> Self {
        let word = text.get(line.last..).unwrap_or_default();
        let before = Line::read(word.strip_suffix(replaced).unwrap_or_default());
        Self { kept: before.words.concat(), quote: before.quote }
    }

    /// What to put there for a key; nothing if what is kept is not its beginning.
    pub(super) fn of(&self, key: &str) -> Option<String> {
        let rest = key.strip_prefix(&self.kept)?;
        let mut text = String::new();
        for c in rest.chars() {
            match (self.quote, c) {
                // There bash would still look for a command of its history.
                (Some('"'), '!') => text.push_str("\"\\!\""),
                (Some('"'), '"' | '\\' | '$' | '`') => text.extend(['\\', c]),
                (Some('\''), '\'') => text.push_str("'\\''"),
                (None, _) if !is_plain(c) => text.extend(['\\', c]),
                _ => text.push(c),
            }
        }
        // Readline takes a quote at the begin for the one that is open, and one at the end for the one that closes it.
        if let Some(quote) = self.quote.filter(|quote| text.starts_with(*quote)) {
            text.insert(0, quote);
        }
        text.extend(self.quote.filter(|quote| text.ends_with(*quote)));
        Some(text)
    }
}

/// Whether a character means itself without quotes.
fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || "-_./:=@%+,".contains(c) || !c.is_ascii() && !c.is_whitespace()
}

#[cfg(test)]
mod tests {
    use super::{Insertion, Line};

    #[test]
    fn a_line_is_read_as_bash_reads_it() {
        for (line, words) in [
            ("", &[""][..]),
            ("dlock unlock ", &["dlock", "unlock", ""]),
            ("dlock  unlock\ta b", &["dlock", "unlock", "a", "b"]),
            (r"x a\ b\", &["x", "a b"]),
            (r#"x "a b"'c"d'"#, &["x", r#"a bc"d"#]),
            (r#"x "a\$b\c\"d\"#, &["x", r#"a$b\c"d"#]),
            ("x '' \"", &["x", "", ""]),
            ("x 'it'\\''s", &["x", "it's"]),
        ] {
            assert_eq!(Line::read(line).words, words, "{line:?}");
        }
    }

    /// What readline makes of a line when `text` takes the place of its end, `replaced`.
    fn replace(line: &str, replaced: &str, text: &str) -> String {
        let before = line.strip_suffix(replaced).expect("it ends so");
        let Some(quote) = Line::read(before).quote else { return format!("{before}{text} ") };
        let before = if text.starts_with(quote) { before.strip_suffix(quote).expect("it is open") } else { before };
        let close = if text.ends_with(quote) { "" } else { &quote.to_string() };
        format!("{before}{text}{close} ")
    }

    #[test]
    fn what_is_put_into_a_line_makes_it_mean_the_key() {
        for key in [r#"a b!"c'$`\*~é{}d!"#, "it's a'", "'", "\"!", "!!", "a\\", "\u{3000}x"] {
            for open in ["", "'", "\""] {
                let line = format!("dlock unlock {open}");
                let text = Insertion::new(&line, &Line::read(&line), "").of(key).expect("it begins so");
                let line = Line::read(&replace(&line, "", &text));
                assert_eq!((&*line.words, line.quote), (&["dlock", "unlock", key, ""].map(String::from)[..], None));
            }
        }
        for (line, replaced, text) in [
            ("x db:ma", "ma", Some("main")),
            ("x 'db:m", "db:m", Some("db:main")),
            ("x d\"b:m", "b:m", Some("b:main")),
            ("x \"db\":m", "m", Some("main")),
            ("x da:", "", None),
        ] {
            assert_eq!(Insertion::new(line, &Line::read(line), replaced).of("db:main").as_deref(), text, "{line}");
        }
    }
}
