//! What a server's refusal, or its silence, means for a lock.

use std::io;
use std::time::Duration;

use redis::ServerError;

use super::address::Address;
use crate::store::{StoreError, Trouble};
use crate::sys;

/// How much of a server's own words is shown.
const SHOWN: usize = 200;

/// What went wrong with one exchange.
#[derive(Debug)]
pub(super) enum Failure {
    /// Connecting, sending or receiving.
    Io(io::Error),
    /// There was no complete reply in this time.
    Silent(Duration),
    /// What came is no reply of a Redis.
    Garbage,
    /// TLS: the other side is not who it should be, or does not speak it.
    Tls(rustls::Error),
    /// The settings for TLS cannot be used.
    Settings(String),
    /// The server's refusal.
    Server(ServerError),
    /// A reply that none of our scripts gives.
    Odd(String),
}

impl Failure {
    /// Whether the connection had ended before the server saw the request: a connection that was idle for
    /// long, or a server that was restarted.
    pub(super) fn is_stale(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        matches!(self, Self::Io(error)
            if [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof].contains(&error.kind()))
    }

    /// The error of the store at `address`.
    pub(super) fn at(self, address: &Address) -> StoreError {
        let (trouble, words) = match self {
            Self::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                (Trouble::Unreachable, "it closed the connection".into())
            }
            Self::Io(error) => (Trouble::Unreachable, sys::words(&error)),
            Self::Silent(span) => {
                let span = humantime::format_duration(Duration::from_millis(
                    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1),
                ));
                (Trouble::Unreachable, format!("it did not answer within {span}"))
            }
            Self::Garbage => (Trouble::Unreachable, "what it answers is not the protocol of Redis".into()),
            // Whose certificate is not good will not have a better one in a second.
            Self::Tls(error @ (rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_))) => {
                (Trouble::Refused, format!("tls: {error}"))
            }
            Self::Tls(error) => (Trouble::Unreachable, format!("tls: {error}")),
            Self::Server(error) => refusal(&error),
            Self::Settings(words) | Self::Odd(words) => (Trouble::Unfit, words),
        };
        StoreError::new(trouble, format_args!("{address}: {words}"))
    }
}

/// A refusal of the server: whether to try again, and its words.
fn refusal(error: &ServerError) -> (Trouble, String) {
    let words = error.details().unwrap_or_default();
    let trouble = match error.code() {
        "MOVED" | "ASK" | "CROSSSLOT" => {
            return (Trouble::Unfit, "it is a node of a cluster; a redis:// URL is for a single server".into());
        }
        "WRONGTYPE" => {
            return (Trouble::Unfit, "something that is not dlock's has the name of its keys; see '?prefix='".into());
        }
        "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED" => Trouble::Refused,
        "ERR" if is_about_us(words) => Trouble::Refused,
        "ERR" if words.contains("max number of clients") => Trouble::Unreachable,
        "ERR" => Trouble::Unfit,
        // What is left goes over: LOADING, BUSY, READONLY, MASTERDOWN, OOM, MISCONF, NOREPLICAS, CLUSTERDOWN …
        _ => Trouble::Unreachable,
    };
    (trouble, format!("it says '{}'", shown(error.code(), words)))
}

/// Whether `ERR …` means that we may not do what we asked for, now or later.
fn is_about_us(words: &str) -> bool {
    let words = words.to_lowercase();
    ["unknown command", "unknown redis command", "invalid password", "without any password", "no permissions"]
        .iter()
        .any(|known| words.contains(known))
        || ["acl failure", "can't run this command", "cannot access"].iter().any(|known| words.contains(known))
}

fn shown(code: &str, words: &str) -> String {
    let text = format!("{code} {words}");
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(SHOWN).collect::<String>().trim_end().to_owned()
}
