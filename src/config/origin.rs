//! Where a setting came from.

use std::fmt;
use std::path::PathBuf;

/// Who decided a setting. As text it is what a user can look for: a flag, a variable, a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag of the command line, with its dashes.
    Flag(&'static str),
    /// A variable of the environment.
    Variable(&'static str),
    /// The config file.
    File(PathBuf),
    /// Nobody.
    Default,
}

/// A setting, and who decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// What it is.
    pub value: T,
    /// Who said so.
    pub from: Origin,
}

impl<T> Setting<T> {
    /// A setting that nobody decided.
    pub(super) fn default(value: T) -> Self {
        Self { value, from: Origin::Default }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) | Self::Variable(name) => f.write_str(name),
            Self::File(path) => write!(f, "'{}'", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}
