//! What a server's refusal, or its silence, means for a lock.

use serde::Deserialize;

use super::address::Address;
use crate::store::Trouble;
use crate::store::failure::{self, CLOSED, Meaning, unprepared};
use crate::store::trouble::shown;

/// What went wrong with one exchange.
pub(super) type Failure = failure::Failure<Said>;

/// What a server, or JetStream behind it, says when it does not do what it was asked for.
#[derive(Debug)]
pub(super) enum Said {
    /// The server's words.
    Words(String),
    /// It says nothing before TLS begins, and it is to speak TLS.
    NoGreeting,
    /// Nobody answers such requests: there is no JetStream, or it has no leader just now.
    NobodyThere,
    /// There is no JetStream.
    NoJetStream,
    /// JetStream's refusal.
    Refused(Refusal),
    /// A message of so many bytes, and how many one may have.
    TooLarge(usize, usize),
    /// The bucket is not there, and we may not make it: why.
    Unprepared(String),
    /// The bucket is not there, and without one we are told no time.
    NoTime,
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

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Said(Said::Refused(refusal))
    }
}

impl Meaning for Said {
    type Address = Address;

    const SERVER: &str = "nats";
    const PROTOCOL: &str = "the protocol of NATS";
    const NO_TLS: (Trouble, &str) = (Trouble::Refused, "it does not speak TLS, and 'nats+tls:' demands it");

    fn without_password(address: &Address, words: &str) -> String {
        address.without_password(words)
    }

    fn reworded(self, reword: &dyn Fn(String) -> String) -> Self {
        match self {
            Self::Words(words) => Self::Words(reword(words)),
            Self::Refused(refusal) => Self::Refused(Refusal { description: reword(refusal.description), ..refusal }),
            Self::Unprepared(why) => Self::Unprepared(reword(why)),
            said => said,
        }
    }

    fn is_farewell(&self) -> bool {
        matches!(self, Self::Words(words) if is_farewell(words))
    }

    fn is_definite(&self) -> bool {
        matches!(self, Self::Words(_) | Self::Refused(_) | Self::NobodyThere | Self::TooLarge(..))
    }

    fn may_be_the_server(&self) -> bool {
        match self {
            Self::Words(_) | Self::NoGreeting | Self::NobodyThere => true,
            // One that is cut off from all others knows of no leader.
            Self::Refused(refusal) => refusal.code == 503,
            _ => false,
        }
    }

    fn meaning(self, address: &Address) -> (Trouble, String) {
        match self {
            Self::Words(words) => said(&words),
            Self::Refused(refusal) => meaning(&refusal),
            Self::NoGreeting => (
                Trouble::Unreachable,
                "it says nothing before TLS begins; if that is its 'handshake_first', say '?tls_first=true'".into(),
            ),
            Self::NobodyThere => (Trouble::Unreachable, nobody_there(address.bucket.domain.as_deref())),
            Self::NoJetStream => {
                (Trouble::Unfit, "it has no JetStream for us; start it with '-js', or enable it for the account".into())
            }
            Self::TooLarge(bytes, most) => (
                Trouble::Unfit,
                format!(
                    "so many wait that the record has {bytes} bytes, and a message may have {most}; raise its \
                     'max_payload'"
                ),
            ),
            Self::Unprepared(why) => unprepared(&format!("bucket '{}'", address.bucket.name), &why),
            Self::NoTime => (
                Trouble::Unprepared,
                format!("it has no bucket '{}' yet, and without one it tells us no time", address.bucket.name),
            ),
        }
    }
}

fn is_farewell(words: &str) -> bool {
    words.eq_ignore_ascii_case("stale connection")
}

/// Where the JetStream is that did not answer.
fn nobody_there(domain: Option<&str>) -> String {
    match domain {
        Some(domain) => format!("nobody answers for domain '{domain}': it is away just now, or has another name"),
        None => "its JetStream has no leader just now".into(),
    }
}

/// What a server's words mean that it says before it hangs up, or in the place of an answer.
fn said(words: &str) -> (Trouble, String) {
    if is_farewell(words) {
        return (Trouble::Unreachable, CLOSED.into());
    }
    let small = words.to_lowercase();
    let words = shown(words);
    if small.contains("permissions violation") {
        return (Trouble::Refused, format!("it says '{words}'; 'dlock setup --print' ends with what a user needs"));
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
        10023 | 10047 => (
            Trouble::Unreachable,
            format!("it says '{said}': its JetStream is full; raise its 'max_file_store', or delete streams"),
        ),
        // No peers, and replicas without a cluster.
        10005 | 10074 => (Trouble::Unfit, format!("it says '{said}'; '?replicas=' asks for more than it has")),
        _ if refusal.code == 503 => (Trouble::Unreachable, format!("it says '{said}'")),
        code => (Trouble::Unfit, format!("it says '{said}' ({code})")),
    }
}
