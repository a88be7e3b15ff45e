//! What a member's refusal, or its silence, means for a lock.

use std::io;

use super::address::Address;
use super::api::Refusal;
use crate::store::socket::Endpoint;
use crate::store::{StoreError, Trouble, tls};
use crate::sys;

/// How much of a server's own words is shown.
const SHOWN: usize = 200;

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
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing was changed, for this reason.
    Before(Box<Self>),
    /// It was this server's.
    By(Endpoint, Box<Self>),
    /// Connecting, sending or receiving.
    Io(io::Error),
    /// There was no complete answer in time.
    Silent,
    /// What came is not what etcd answers.
    Garbage,
    /// The same: a status of HTTP, and words.
    Http(u16, String),
    /// TLS: the other side is not who it should be, or does not speak it.
    Tls(rustls::Error),
    /// The other side hung up before there was TLS.
    NoTls,
    /// The settings cannot be used.
    Settings(String),
    /// A refusal.
    Refused(Refusal),
    /// A record is not as it must be.
    Odd(String),
    /// Others were faster, again and again.
    Contended,
}

impl Refusal {
    /// Whether what showed who we are does not do so any more.
    pub(super) fn is_unknown_token(&self) -> bool {
        self.code == code::UNAUTHENTICATED || self.message.contains("revision of auth store is old")
    }

    /// Whether nobody logs in there.
    pub(super) fn is_about_nobody(&self) -> bool {
        self.message.contains("authentication is not enabled")
    }

    /// Whether a lease has ended.
    pub(super) fn is_ended_lease(&self) -> bool {
        self.code == code::NOT_FOUND && self.message.contains("lease")
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
        ![code::CANCELLED, code::UNKNOWN, code::TOO_LATE, code::UNAVAILABLE].contains(&self.code)
            || self.message.contains("no leader")
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) {
            return Self::Silent;
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => Self::Tls(error.clone()),
            None => Self::Io(error),
        }
    }
}

impl Failure {
    /// Whether the connection had ended: one that was idle for long, or whose server was restarted.
    pub(super) fn is_stale(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        matches!(self.bare(), Self::Io(error)
            if [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof].contains(&error.kind()))
    }

    /// The same, of the beginning of TLS.
    pub(super) fn in_handshake(self) -> Self {
        if self.is_stale() { Self::NoTls } else { self }
    }

    /// Whether the other side has said all that it had to say.
    pub(super) fn is_end(&self) -> bool {
        matches!(self.bare(), Self::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof)
    }

    /// Whether there was no answer.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self.bare(), Self::Silent)
    }

    /// A refusal that this is.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        match self.bare() {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Whose it was.
    pub(super) fn server(&self) -> Option<&Endpoint> {
        match self {
            Self::By(server, _) => Some(server),
            Self::Before(failure) => failure.server(),
            _ => None,
        }
    }

    /// Whether another member may do better.
    pub(super) fn may_be_the_server(&self) -> bool {
        match self.bare() {
            Self::Io(_) | Self::Silent | Self::Garbage | Self::Http(..) | Self::Tls(_) | Self::NoTls => true,
            Self::Refused(refusal) => {
                [code::CANCELLED, code::UNKNOWN, code::TOO_LATE, code::UNAVAILABLE].contains(&refusal.code)
            }
            _ => false,
        }
    }

    /// What went wrong, whoever's it was.
    pub(super) fn bare(&self) -> &Self {
        match self {
            Self::By(_, failure) | Self::Before(failure) => failure.bare(),
            failure => failure,
        }
    }

    /// The same, of this server.
    pub(super) fn by(self, server: &Endpoint) -> Self {
        Self::By(server.clone(), self.into())
    }

    /// The same, where nothing was changed.
    pub(super) fn before(self) -> Self {
        Self::Before(self.into())
    }

    /// The error of the store at `address`.
    pub(super) fn at(self, address: &Address) -> StoreError {
        self.of(&address.to_string(), address)
    }

    fn of(self, name: &str, address: &Address) -> StoreError {
        let definite = matches!(&self, Self::Refused(refusal) if refusal.is_definite());
        let (trouble, words) = match self {
            Self::Before(failure) => return failure.of(name, address).before_anything(),
            Self::By(server, failure) => return failure.of(&format!("etcd at {server}"), address),
            failure if failure.is_stale() => (Trouble::Unreachable, "it closed the connection".into()),
            Self::Io(error) => (Trouble::Unreachable, sys::words(&error)),
            Self::Silent => (Trouble::Unreachable, "it did not answer in time".into()),
            Self::Garbage => (Trouble::Unreachable, "what it answers is not etcd's (version 3.4 or later)".into()),
            Self::Http(_, words) if words.contains("HTTP request to an HTTPS server") => {
                (Trouble::Refused, "it speaks TLS: write 'etcds:' in the place of 'etcd:'".into())
            }
            Self::Http(404, _) => (Trouble::Unfit, "it has no gateway of etcd 3.4 or later (HTTP 404)".into()),
            Self::Http(status, words) => {
                let words = shown(&words);
                let words = if words.is_empty() { String::new() } else { format!(": '{words}'") };
                (Trouble::Unreachable, format!("it answers with HTTP status {status}{words}"))
            }
            Self::Tls(rustls::Error::InvalidMessage(_)) => {
                (Trouble::Refused, "it does not speak TLS, and 'etcds:' demands it".into())
            }
            Self::NoTls => (
                Trouble::Unreachable,
                "it closed the connection before TLS began; if it does not speak TLS, its URL begins with 'etcd:'"
                    .into(),
            ),
            Self::Tls(error) => tls::words(&error, "?ca=FILE", "?cert=FILE&key=FILE"),
            Self::Settings(words) | Self::Odd(words) => (Trouble::Unfit, words),
            Self::Refused(refusal) => meaning(&refusal, address),
            Self::Contended => (Trouble::Unreachable, "others were faster all the time".into()),
        };
        let error = StoreError::new(trouble, format_args!("{name}: {}", address.without_password(&words)));
        if definite { error.before_anything() } else { error }
    }
}

/// What a refusal means, and its words.
fn meaning(refusal: &Refusal, address: &Address) -> (Trouble, String) {
    let said = shown(&refusal.message);
    let is = |words: &str| refusal.message.contains(words);
    match refusal.code {
        code::DENIED => {
            let prefix = &address.prefix;
            (
                Trouble::Refused,
                format!("it says '{said}'; a user reads and writes what begins with '{prefix}/': README has the rule"),
            )
        }
        code::UNAUTHENTICATED => (Trouble::Refused, format!("it says '{said}'")),
        code::INVALID if is("user name is empty") => {
            (Trouble::Refused, "it wants to know who we are: 'etcd://USER:PASSWORD@HOST'".into())
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

/// Words of a server.
pub(super) fn shown(words: &str) -> String {
    let clean = words.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(SHOWN).collect::<String>().trim_end().to_owned()
}
