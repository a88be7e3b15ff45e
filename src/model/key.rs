//! The name of a lock.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name of a lock: UTF-8, 1 to 200 bytes, no control characters, no blank at either end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(String);

/// Why a text is not a [`Key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// It has no characters.
    Empty,
    /// It has this many bytes, more than [`Key::MAX_BYTES`].
    TooLong(usize),
    /// It holds a control character.
    Control,
    /// It begins or ends with a blank.
    Blank,
}

impl Key {
    /// The longest key, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 200;

    /// Reads a key from what a user typed or a store kept.
    ///
    /// # Errors
    /// A [`KeyError`] that names the rule which `text` breaks.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        if text.len() > Self::MAX_BYTES {
            return Err(KeyError::TooLong(text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err(KeyError::Control);
        }
        if text.trim() != text {
            return Err(KeyError::Blank);
        }
        Ok(Self(text.to_owned()))
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Key {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        Self::parse(&text)
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.0
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a key needs at least one character"),
            Self::TooLong(bytes) => write!(f, "a key has at most {} bytes, this one has {bytes}", Key::MAX_BYTES),
            Self::Control => f.write_str("a key has no control characters"),
            Self::Blank => f.write_str("a key does not begin or end with a blank"),
        }
    }
}

impl std::error::Error for KeyError {}

#[cfg(test)]
mod tests {
    use super::{Key, KeyError};

    #[test]
    fn a_key_is_1_to_200_bytes_without_control_characters_or_outer_blanks() {
        assert_eq!(Key::parse(""), Err(KeyError::Empty));
        assert_eq!(Key::parse(&"é".repeat(101)), Err(KeyError::TooLong(202)));
        for text in ["a\nb", "\u{7f}", "a\u{85}b"] {
            assert_eq!(Key::parse(text), Err(KeyError::Control), "{text:?}");
        }
        for text in [" a", "a ", "a\u{3000}"] {
            assert_eq!(Key::parse(text), Err(KeyError::Blank), "{text:?}");
        }
        for text in ["..", ".hidden", "deploy/prod", "a b", "{x}%", "ключ", &"x".repeat(200)] {
            assert_eq!(Key::parse(text).map(String::from).as_deref(), Ok(text));
        }
    }
}
