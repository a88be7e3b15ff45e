//! The table of exit codes.

use std::{fmt, io};

use crate::sys;

/// Why dlock exits with a code of its own. The codes are those of sysexits.h where it has one, else those
/// of timeout(1) and the shells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Bad usage, a bad key.
    Usage,
    /// The store cannot be reached.
    Unreachable,
    /// A bug in dlock.
    Bug,
    /// The operating system refused.
    Os,
    /// The lock directory cannot be made or trusted, or a report not be written.
    CannotCreate,
    /// The key was not to be had in the time given.
    Busy,
    /// The lease was lost or revoked.
    Lost,
    /// The store refused us.
    Refused,
    /// Bad configuration, or something that this store cannot do.
    Config,
    /// `--max-run` was reached.
    MaxRun,
    /// The command was found but cannot be executed.
    CannotExecute,
    /// The command was not found.
    NotFound,
}

/// The codes of `run`, in order, with the words that README and the man page use. The first two rows are
/// not codes of dlock's own.
pub const TABLE: [(&str, &str); 14] = [
    ("the command's", "it ran to its end"),
    (
        "128 + n",
        "the command died of signal n, or dlock got n before there was a command: dlock dies of n, and a shell shows this",
    ),
    ("64", "bad usage, bad key"),
    ("69", "the store cannot be reached; the command was not started"),
    ("70", "a bug in dlock"),
    ("71", "the operating system refused, say fork"),
    ("73", "the lock directory cannot be made or trusted, or the file of --report not be written"),
    ("75", "busy: the key was not to be had in the time given (-E changes it)"),
    ("76", "the lease was lost or revoked while the command ran; beats 124, which beats the command's own"),
    ("77", "the store refused us; the command was not started"),
    ("78", "bad configuration, a store URL that cannot be understood, a mode that this store cannot do"),
    ("124", "--max-run was reached"),
    ("126", "the command was found but cannot be executed; the lease was given back"),
    ("127", "the command was not found; the lease was given back"),
];

impl Code {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Usage,
        Self::Unreachable,
        Self::Bug,
        Self::Os,
        Self::CannotCreate,
        Self::Busy,
        Self::Lost,
        Self::Refused,
        Self::Config,
        Self::MaxRun,
        Self::CannotExecute,
        Self::NotFound,
    ];

    /// The number that a shell sees.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Usage => 64,
            Self::Unreachable => 69,
            Self::Bug => 70,
            Self::Os => 71,
            Self::CannotCreate => 73,
            Self::Busy => 75,
            Self::Lost => 76,
            Self::Refused => 77,
            Self::Config => 78,
            Self::MaxRun => 124,
            Self::CannotExecute => 126,
            Self::NotFound => 127,
        }
    }
}

/// How dlock ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It exits with this code.
    Code(u8),
    /// It dies of the signal with this number.
    Signal(i32),
}

impl Ending {
    /// All went well.
    pub const OK: Self = Self::Code(0);
}

impl From<Code> for Ending {
    fn from(code: Code) -> Self {
        Self::Code(code.number())
    }
}

/// An error that ends dlock, and the code that it exits with.
#[derive(Debug)]
pub struct Failure {
    /// The code.
    pub code: Code,
    /// What happened, cause last.
    pub error: anyhow::Error,
}

impl Failure {
    /// A failure with its words.
    pub fn new(code: Code, words: impl fmt::Display) -> Self {
        Self { code, error: anyhow::anyhow!("{words}") }
    }

    /// Bad usage.
    pub fn usage(words: impl fmt::Display) -> Self {
        Self::new(Code::Usage, words)
    }

    /// The operating system refused, doing `what`.
    #[must_use]
    pub fn os(what: &str, error: &io::Error) -> Self {
        Self::new(Code::Os, format_args!("{what}: {}", sys::words(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Code, TABLE};

    #[test]
    fn every_code_stands_in_the_table_once() {
        for code in Code::ALL {
            let rows = TABLE.iter().filter(|(number, _)| *number == code.number().to_string());
            assert_eq!(rows.count(), 1, "{code:?}");
        }
        assert_eq!(TABLE.len(), Code::ALL.len() + 2);
    }
}
