//! What a server's refusal, or its silence, means for a lock.

use std::io;

use serde::Deserialize;

use super::address::Address;
use crate::store::socket::Endpoint;
use crate::store::{StoreError, Trouble, tls};
use crate::sys;

/// How much of a server's own words is shown.
const SHOWN: usize = 200;

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
    /// The server does not speak TLS, and must.
    NoTls,
    /// What came is not the protocol of NATS.
    Garbage,
    /// TLS: the other side is not who it should be, or does not speak it.
    Tls(rustls::Error),
    /// The settings cannot be used.
    Settings(String),
    /// We are not let in, or would not go in on these terms.
    Login(String),
    /// The server's words.
    Said(String),
    /// Nobody answers such requests: there is no JetStream, or it has no leader just now.
    NobodyThere,
    /// There is no JetStream.
    NoJetStream,
    /// JetStream's refusal.
    Refused(Refusal),
    /// A message of so many bytes, and how many one may have.
    TooLarge(usize, usize),
    /// The bucket, a record, or an answer is not as it must be.
    Odd(String),
    /// The bucket is not there, and we may not make it: why.
    Unprepared(String),
    /// Others were faster, again and again.
    Contended,
}

/// JetStream's refusal (nats-server, `errors.json`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) err_code: u32,
    pub(super) description: String,
}

impl Refusal {
    /// Whether somebody else has written meanwhile.
    pub(super) fn is_lost_swap(&self) -> bool {
        [10071, 10164].contains(&self.err_code)
    }

    /// Whether there is no such message.
    pub(super) fn is_missing_message(&self) -> bool {
        self.err_code == 10037
    }

    /// Whether there is no such stream.
    pub(super) fn is_missing_stream(&self) -> bool {
        self.err_code == 10059
    }
}

impl Failure {
    /// Whether the connection had ended: one that was idle for long, or whose server was restarted.
    pub(super) fn is_stale(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match self.bare() {
            Self::Io(error) => [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof].contains(&error.kind()),
            Self::Said(words) => words.eq_ignore_ascii_case("stale connection"),
            _ => false,
        }
    }

    /// Whether the server answered, and does not let us do it.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.bare(), Self::Said(_) | Self::Login(_) | Self::Tls(_) | Self::NoTls | Self::Settings(_))
    }

    /// Whether there was no answer.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self.bare(), Self::Silent)
    }

    /// What went wrong, whoever's it was.
    pub(super) fn bare(&self) -> &Self {
        match self {
            Self::By(_, failure) | Self::Before(failure) => failure.bare(),
            failure => failure,
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

    /// Whether another server may do better.
    pub(super) fn may_be_the_server(&self) -> bool {
        matches!(self.bare(), Self::Io(_) | Self::Silent | Self::Garbage | Self::Said(_) | Self::NobodyThere)
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
        let definite = matches!(self, Self::Said(_) | Self::Refused(_) | Self::NobodyThere | Self::TooLarge(..));
        let bucket = &address.bucket.name;
        let (trouble, words) = match self {
            Self::Before(failure) => return failure.of(name, address).before_anything(),
            Self::By(server, failure) => return failure.of(&format!("nats at {server}"), address),
            failure if failure.is_stale() => (Trouble::Unreachable, "it closed the connection".into()),
            Self::Said(words) => said(&words),
            Self::Refused(refusal) => meaning(&refusal),
            Self::Io(error) => (Trouble::Unreachable, sys::words(&error)),
            Self::Silent => (Trouble::Unreachable, "it did not answer in time".into()),
            Self::NobodyThere => (Trouble::Unreachable, "its JetStream has no leader just now".into()),
            Self::NoJetStream => {
                (Trouble::Unfit, "it has no JetStream for us; start it with '-js', or enable it for the account".into())
            }
            Self::NoTls => (Trouble::Refused, "it does not speak TLS, and 'nats+tls:' demands it".into()),
            Self::Garbage => (Trouble::Unreachable, "what it answers is not the protocol of NATS".into()),
            Self::Tls(error) => tls::words(&error, "?ca=FILE", "?cert=FILE&key=FILE"),
            Self::Login(words) => (Trouble::Refused, words),
            Self::Settings(words) | Self::Odd(words) => (Trouble::Unfit, words),
            Self::TooLarge(bytes, most) => (
                Trouble::Unfit,
                format!(
                    "so many wait that the record has {bytes} bytes, and a message may have {most}; raise its \
                     'max_payload'"
                ),
            ),
            Self::Unprepared(words) => (
                Trouble::Unprepared,
                format!(
                    "it has no bucket '{bucket}', and we may not make it ({words}); let somebody who may run 'dlock setup', \
                     or what 'dlock setup --print' prints"
                ),
            ),
            Self::Contended => (Trouble::Unreachable, "others were faster all the time".into()),
        };
        let error = StoreError::new(trouble, format_args!("{name}: {}", address.without_password(&words)));
        if definite { error.before_anything() } else { error }
    }
}

/// What a server's words mean that it says before it hangs up, or in the place of an answer.
fn said(words: &str) -> (Trouble, String) {
    let small = words.to_lowercase();
    let words = shown(words);
    if small.contains("permissions violation") {
        return (Trouble::Refused, format!("it says '{words}'; what a user needs is in README"));
    }
    let refused = ["authorization", "authentication", "user", "account", "tls required", "certificate"];
    if refused.iter().any(|word| small.contains(word)) {
        return (Trouble::Refused, format!("it says '{words}'"));
    }
    (Trouble::Unreachable, format!("it says '{words}'"))
}

/// What a refusal means, and its words.
fn meaning(refusal: &Refusal) -> (Trouble, String) {
    let said = shown(&refusal.description);
    match refusal.err_code {
        // Not enabled, for the account or at all.
        10039 | 10076 => (Trouble::Unfit, format!("it has no JetStream for us: it says '{said}'")),
        // No resources, no storage: others may give some back.
        10023 | 10047 => (Trouble::Unreachable, format!("it says '{said}'")),
        // No peers, and replicas without a cluster.
        10005 | 10074 => (Trouble::Unfit, format!("it says '{said}'; '?replicas=' asks for more than it has")),
        _ if refusal.code == 503 => (Trouble::Unreachable, format!("it says '{said}'")),
        code => (Trouble::Unfit, format!("it says '{said}' ({code})")),
    }
}

/// Words of a server.
pub(super) fn shown(words: &str) -> String {
    let clean = words.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(SHOWN).collect::<String>().trim_end().to_owned()
}
