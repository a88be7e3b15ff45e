//! What a member's refusal, or its silence, means for a lock.

use std::io;

use super::address::Address;
use super::api::Refusal;
use crate::store::failure::{self, Meaning};
use crate::store::trouble::shown;
use crate::store::{Trouble, tls};

/// The numbers of gRPC for what went wrong ("Status codes and their use in gRPC").
mod code {
    pub(super) const CANCELLED: i64 = 1;
    pub(super) const UNKNOWN: i64 = 2;
    pub(super) const INVALID: i64 = 3;
    pub(super) const TOO_LATE: i64 = 4;
    pub(super) const NOT_FOUND: i64 = 5;
    pub(super) const DENIED: i64 = 7;
    pub(super) const EXHAUSTED: i64 = 8;
    pub(super) const PRECONDITION: i64 = 9;
    pub(super) const UNIMPLEMENTED: i64 = 12;
    pub(super) const UNAVAILABLE: i64 = 14;
    pub(super) const UNAUTHENTICATED: i64 = 16;
}

/// What went wrong with one exchange.
pub(super) type Failure = failure::Failure<Said>;

/// What a member says when it does not do what it was asked for.
#[derive(Debug)]
pub(super) enum Said {
    /// A refusal.
    Refused(Refusal),
    /// A status of HTTP and words, which are none of etcd's.
    Http(u16, String),
    /// Nothing at all, and it hung up. We do not speak TLS.
    HungUp,
    /// Nothing of use, whichever member was asked: why, of each.
    Nobody(Vec<String>),
}

impl Refusal {
    /// Whether what showed who we are does not do so any more, or nobody had to show that before.
    pub(super) fn is_unknown_token(&self) -> bool {
        let words = ["revision of auth store is old", "revision in header is old", "user name is empty"];
        self.code == code::UNAUTHENTICATED || words.iter().any(|words| self.message.contains(words))
    }

    /// Whether nobody logs in there.
    pub(super) fn is_about_nobody(&self) -> bool {
        self.message.contains("authentication is not enabled")
    }

    /// Whether a lease has ended.
    pub(super) fn is_ended_lease(&self) -> bool {
        self.code == code::NOT_FOUND && self.message.contains("lease")
    }

    /// Whether a lease is there already. Nobody else makes one with the same number.
    pub(super) fn is_known_lease(&self) -> bool {
        self.code == code::PRECONDITION && self.message.contains("lease already exists")
    }

    /// Whether there is no room for anything new.
    pub(super) fn is_full(&self) -> bool {
        self.message.contains("database space exceeded")
    }

    /// Whether what was asked for is forgotten.
    pub(super) fn is_compacted(&self) -> bool {
        self.message.contains("has been compacted")
    }

    /// Whether nothing was done, for sure.
    fn is_definite(&self) -> bool {
        !self.is_of_the_member() || self.message.contains("no leader")
    }

    /// Whether another member may do better.
    fn is_of_the_member(&self) -> bool {
        [code::CANCELLED, code::UNKNOWN, code::TOO_LATE, code::UNAVAILABLE].contains(&self.code)
    }
}

/// Why a member tells no more: it has no leader any more, say.
pub(super) fn no_more(reason: &str) -> Failure {
    Refusal { code: code::UNAVAILABLE, message: format!("it tells no more: {reason}") }.into()
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Said(Said::Refused(refusal))
    }
}

impl Failure {
    /// The same, of the beginning of TLS.
    pub(super) fn in_handshake(self) -> Self {
        if self.is_stale() { Self::NoTls } else { self }
    }

    /// The same, of the first thing that was asked where nothing is encrypted.
    pub(super) fn at_first(self) -> Self {
        if self.is_stale() { Self::Said(Said::HungUp) } else { self }
    }

    /// Whether the other side has said all that it had to say.
    pub(super) fn is_end(&self) -> bool {
        matches!(self.bare(), Self::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof)
    }

    /// A refusal that this is.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        match self.bare() {
            Self::Said(Said::Refused(refusal)) => Some(refusal),
            _ => None,
        }
    }
}

impl Meaning for Said {
    type Address = Address;

    const SERVER: &str = "etcd";
    const PROTOCOL: &str = "etcd's (version 3.4 or later)";
    const NO_TLS: (Trouble, &str) = (
        Trouble::Unreachable,
        "it closed the connection before TLS began; if it does not speak TLS, its URL begins with 'etcd:'",
    );

    fn of_tls(error: &rustls::Error) -> (Trouble, String) {
        match error {
            rustls::Error::InvalidMessage(_) => {
                (Trouble::Refused, "it does not speak TLS, and 'etcds:' demands it".into())
            }
            error => tls::words(error, "?ca=FILE", "?cert=FILE&key=FILE"),
        }
    }

    fn without_password(address: &Address, words: &str) -> String {
        address.without_password(words)
    }

    fn reworded(self, reword: &dyn Fn(String) -> String) -> Self {
        match self {
            Self::Refused(refusal) => Self::Refused(Refusal { message: reword(refusal.message), ..refusal }),
            Self::Http(status, words) => Self::Http(status, reword(words)),
            Self::Nobody(_) | Self::HungUp => self,
        }
    }

    fn is_definite(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.is_definite())
    }

    fn may_be_the_server(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.is_of_the_member(),
            Self::Http(_, words) => !is_about_names(words),
            Self::HungUp | Self::Nobody(_) => true,
        }
    }

    fn meaning(self, address: &Address) -> (Trouble, String) {
        match self {
            Self::Refused(refusal) => meaning(&refusal, address),
            Self::Http(_, words) if words.contains("HTTP request to an HTTPS server") => {
                (Trouble::Refused, "it speaks TLS: write 'etcds:' in the place of 'etcd:'".into())
            }
            Self::HungUp => (
                Trouble::Unreachable,
                "it closed the connection; if it speaks TLS, its URL begins with 'etcds:'".into(),
            ),
            Self::Http(_, words) if is_about_names(&words) => (
                Trouble::Refused,
                "its gateway takes no certificate of ours that has a name in it (CommonName): use one without, or none"
                    .into(),
            ),
            Self::Nobody(why) => (Trouble::Unreachable, format!("none of its members can do it: {}", why.join("; "))),
            Self::Http(404, _) => (Trouble::Unfit, "it has no gateway of etcd 3.4 or later (HTTP 404)".into()),
            Self::Http(status, words) => {
                let words = shown(words.trim_start());
                let words = if words.is_empty() { String::new() } else { format!(": '{words}'") };
                (Trouble::Unreachable, format!("it answers with HTTP status {status}{words}"))
            }
        }
    }
}

/// Whether it is said that a certificate of ours names somebody, where there are users: these log in otherwise.
fn is_about_names(words: &str) -> bool {
    words.contains("CommonName of client")
}

/// What a refusal means, and its words.
fn meaning(refusal: &Refusal, address: &Address) -> (Trouble, String) {
    let said = shown(refusal.message.trim_start());
    let is = |words: &str| refusal.message.contains(words);
    match refusal.code {
        code::DENIED => {
            let prefix = &address.prefix;
            (
                Trouble::Refused,
                format!(
                    "it says '{said}'; a user reads and writes what begins with '{prefix}/': 'dlock setup --print' \
                         has the rule"
                ),
            )
        }
        code::UNAUTHENTICATED => (Trouble::Refused, format!("it says '{said}'")),
        code::INVALID if is("user name is empty") => {
            (Trouble::Refused, "it wants to know who we are: write 'USER:PASSWORD@' before its host".into())
        }
        code::INVALID | code::PRECONDITION if is("auth") => (Trouble::Refused, format!("it says '{said}'")),
        code::INVALID | code::EXHAUSTED if is("too large") || is("larger than max") => {
            (Trouble::Unfit, format!("so many wait that it says '{said}'; raise its '--max-request-bytes'"))
        }
        code::EXHAUSTED if refusal.is_full() => (
            Trouble::Unreachable,
            format!("its database is full ('{said}'): compact and defragment it, and disarm the alarm"),
        ),
        code::UNIMPLEMENTED => (Trouble::Unfit, format!("it is too old: it says '{said}'")),
        code::INVALID | code::PRECONDITION => (Trouble::Unfit, format!("it says '{said}'")),
        _ => (Trouble::Unreachable, format!("it says '{said}'")),
    }
}
