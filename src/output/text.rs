//! Text on a terminal: without tricks, and as wide as it shows.

use std::fmt::Write as _;

use unicode_width::UnicodeWidthChar as _;

/// Asks for the emoji form of the character before it, which is two columns wide.
const EMOJI_FORM: char = '\u{fe0f}';

/// Stands at the end of text that was cut.
const CUT: char = '…';

/// Whether a character could play tricks on a terminal: a control character, one that breaks a line, or one that
/// cannot be seen and so makes a text read as another one. The invisible ones are those that Unicode calls
/// `Default_Ignorable_Code_Point`: bidi controls and marks, fillers, zero-width blanks, tag characters. Joiners
/// (U+200C, U+200D) and variation selectors are not among ours: Persian, Indic scripts and emoji need them.
fn is_tricky(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}'
            | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
            | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e00ff}' | '\u{e01f0}'..='\u{e0fff}')
}

/// Text from a store or a user, with those characters spelled out that could play tricks on a terminal.
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
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(clean, "\\u{unit:04x}");
            }
        } else {
            clean.push(c);
        }
    }
    clean
}

/// The columns that a character takes. Terminals differ about sequences of emoji, so this counts what the
/// widest of them show: a guess that is too small would let a line wrap.
pub(super) fn columns(c: char) -> usize {
    if c == EMOJI_FORM { 1 } else { c.width().unwrap_or(0) }
}

/// The columns that a text takes on a terminal.
#[must_use]
pub fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

/// The text, cut so that it takes at most so many columns.
#[must_use]
pub fn clip(text: &str, room: usize) -> String {
    if width(text) <= room {
        return text.to_owned();
    }
    // There is no room even for the sign.
    if room == 0 {
        return String::new();
    }
    let mut used = columns(CUT);
    let fits = |c: &char| {
        used += columns(*c);
        used <= room
    };
    let mut cut: String = text.chars().take_while(fits).collect();
    cut.push(CUT);
    cut
}

/// The text in lines of at most so many columns, broken at blanks; a word that is longer has a line of its own.
#[must_use]
pub fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && width(&line) + 1 + width(word) > room {
            lines.push(std::mem::take(&mut line));
        } else if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::{clean, clean_json, clip, width, wrap};

    #[test]
    fn what_could_play_tricks_on_a_terminal_is_spelled_out() {
        assert_eq!(clean("a\u{1b}[2Jb\u{202e}\n"), "a\\u{1b}[2Jb\\u{202e}\\u{a}");
        for c in ['\u{7f}', '\u{9b}', '\u{61c}', '\u{200b}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}'] {
            assert_eq!(clean(&c.to_string()), c.escape_unicode().to_string());
        }
        for c in ['\u{2066}', '\u{feff}', '\u{3164}', '\u{e0041}'] {
            assert_eq!(clean(&c.to_string()), c.escape_unicode().to_string());
        }
        for plain in ["déploiement 7", "می\u{200c}خواهم", "❤\u{fe0f}", "👩\u{200d}🚀", "東京", "e\u{301}"]
        {
            assert_eq!(clean(plain), plain);
        }
    }

    #[test]
    fn clean_json_means_the_same_and_shows_no_tricks() {
        let text = "a\u{1b}\u{7f}\u{9b}\u{202e}\u{e0041}東😀\\\"";
        let json = clean_json(&serde_json::json!(text).to_string());
        assert_eq!(clean(&json), json);
        assert_eq!(serde_json::from_str::<String>(&json).expect("it is JSON"), text);
    }

    #[test]
    fn text_is_as_wide_as_it_shows() {
        assert_eq!(["", "abc", "é", "e\u{301}", "東京", "…"].map(width), [0, 3, 1, 1, 4, 1]);
        assert_eq!(["😀", "❤\u{fe0f}"].map(width), [2, 2]);
    }

    #[test]
    fn text_is_wrapped_at_blanks_and_no_word_is_lost() {
        assert_eq!(wrap("it is a text", 7), ["it is a", "text"]);
        assert_eq!(wrap("a 東京都 b", 7), ["a", "東京都", "b"], "as wide as it shows");
        assert_eq!(wrap("a longer-than-that b", 7), ["a", "longer-than-that", "b"]);
        assert_eq!(wrap("", 7), [""]);
        assert_eq!(wrap("a b", usize::MAX), ["a b"]);
    }

    #[test]
    fn text_is_cut_at_the_width_and_never_inside_a_character() {
        assert_eq!([3, 2, 1, 0].map(|room| clip("abc", room)), ["abc", "a…", "…", ""]);
        assert_eq!([6, 5, 4, 3, 2].map(|room| clip("東京都", room)), ["東京都", "東京…", "東…", "東…", "…"]);
        assert_eq!(clip("e\u{301}e\u{301}e\u{301}", 2), "e\u{301}…");
    }
}
