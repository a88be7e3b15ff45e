//! What a server's refusal, or its silence, means for a lock.

use std::io;

use redis::ServerError;

use super::address::{Address, Endpoint, Servers};
use super::cluster::is_down;
use crate::store::{Roll, StoreError, Trouble, tls, trouble, wire};
use crate::sys;

/// What went wrong with one exchange.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing was sent, for this reason.
    Unconnected(Box<Self>),
    /// It was this server's.
    By(Endpoint, Box<Self>),
    /// Connecting, sending or receiving.
    Io(io::Error),
    /// There was no complete reply in time.
    Silent,
    /// The handshake of TLS came to no end.
    NoTls,
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
    /// It is no master, but this.
    Role(String),
    /// What was given is on so few replicas, of so many that must have it.
    Unconfirmed(u64, u32),
    /// As a node of a ring it does not belong to our list, and this is what it knows of its own.
    Elsewhere(Roll),
    /// It is not known which server to ask, for this reason.
    Unknown(String),
}

impl Failure {
    /// Whether the connection had ended: one that was idle for long, or whose server was restarted. The server
    /// may have seen the request.
    pub(super) fn is_stale(&self) -> bool {
        matches!(self, Self::Io(error) if wire::is_end(error))
    }

    /// The same, of this server.
    pub(super) fn by(self, server: &Endpoint) -> Self {
        match self {
            Self::By(..) => self,
            failure => Self::By(server.clone(), failure.into()),
        }
    }

    /// What went wrong, whoever's it was.
    pub(super) fn bare(&self) -> &Self {
        match self {
            Self::By(_, failure) => failure.bare(),
            failure => failure,
        }
    }

    /// Whether nothing was sent.
    pub(super) fn is_before_anything(&self) -> bool {
        matches!(self.bare(), Self::Unconnected(_))
    }

    /// The error of the store at `address`.
    pub(super) fn at(self, address: &Address) -> StoreError {
        self.of(&address.to_string(), address)
    }

    fn of(self, name: &str, address: &Address) -> StoreError {
        let before_anything = matches!(self, Self::Server(_) | Self::Unknown(_) | Self::Elsewhere(_));
        let (trouble, words) = match self {
            Self::Unconnected(failure) => return failure.of(name, address).before_anything(),
            Self::By(server, failure) => return failure.of(&address.name_of(&server), address),
            failure if failure.is_stale() => (Trouble::Unreachable, "it closed the connection".into()),
            Self::Io(error) => (Trouble::Unreachable, sys::words(&error)),
            Self::Silent => (Trouble::Unreachable, "it did not answer in time".into()),
            Self::NoTls => {
                (Trouble::Unreachable, "it does not answer to TLS; a server without it is 'redis://'".into())
            }
            Self::Garbage => (Trouble::Unreachable, "what it answers is not the protocol of Redis".into()),
            Self::Tls(error) => tls::words(&error, "?ca=FILE", "?cert=FILE&key=FILE"),
            // Only what is not ours may repeat what is secret, and ours is not to be made unreadable by a short one.
            Self::Server(error) => {
                let (trouble, words) = refusal(&error, matches!(address.servers, Servers::One(_)));
                (trouble, address.without_password(&words))
            }
            Self::Settings(words) | Self::Odd(words) => (Trouble::Unfit, words),
            Self::Role(role) => (Trouble::Unreachable, format!("it is no master, but a {}", words_of(&role))),
            Self::Unconfirmed(has, wanted) => {
                let replicas = if wanted == 1 { "replica" } else { "replicas" };
                (Trouble::Unreachable, format!("{has} of {wanted} {replicas} acknowledged what it gave us"))
            }
            Self::Elsewhere(roll) => roll.trouble(),
            Self::Unknown(words) => (Trouble::Unreachable, address.without_password(&words)),
        };
        let error = StoreError::new(trouble, format_args!("{name}: {words}"));
        if before_anything { error.before_anything() } else { error }
    }
}

/// What people call it.
fn words_of(role: &str) -> &str {
    if role == "slave" { "replica" } else { role }
}

/// A refusal of the server: what it means, and its words. It may be that there `is_one` server only.
fn refusal(error: &ServerError, is_one: bool) -> (Trouble, String) {
    let details = error.details().unwrap_or_default();
    let (command, code, words) = inner(details).unwrap_or((None, error.code(), details));
    let trouble = match code {
        "MOVED" | "ASK" | "CROSSSLOT" if is_one => {
            return (Trouble::Unfit, "it is a node of a cluster, which is 'redis+cluster://'".into());
        }
        "ERR" if is_one && is_sentinel(words) => {
            return (
                Trouble::Refused,
                format!("it says '{}'; if it is a sentinel, that is 'redis+sentinel://'", shown(code, words)),
            );
        }
        "ERR" if !is_one && words.contains("cluster support disabled") => {
            return (Trouble::Unfit, "it is no node of a cluster; a single server is 'redis://'".into());
        }
        "WRONGTYPE" => {
            return (Trouble::Unfit, "something that is not dlock's has the name of its keys; see '?prefix='".into());
        }
        "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED" => Trouble::Refused,
        // Our requests are longer than what it reads from a stranger.
        "ERR" if words.contains("unauthenticated") => {
            return (Trouble::Refused, format!("it wants a password; it says '{}'", shown("NOAUTH", words)));
        }
        "ERR" if is_about_us(words) => Trouble::Refused,
        "ERR" if words.contains("max number of clients") || is_down(words) => Trouble::Unreachable,
        "ERR" => Trouble::Unfit,
        // What is left goes over: LOADING, BUSY, READONLY, MASTERDOWN, OOM, MISCONF, NOREPLICAS, CLUSTERDOWN …
        _ => Trouble::Unreachable,
    };
    let said = shown(code, words);
    match command.filter(|_| trouble == Trouble::Refused) {
        Some(command) => {
            let command = command.to_lowercase();
            (trouble, format!("it refuses '{command}' to us: '{said}'; its user needs '+{command}'"))
        }
        None => (trouble, format!("it says '{said}'")),
    }
}

/// The command that was refused inside our script, the code and the words, as the script gave them on.
fn inner(details: &str) -> Option<(Option<&str>, &str, &str)> {
    let (_, rest) = details.split_once("[[")?;
    let (refused, _) = rest.rsplit_once("]]")?;
    let (command, error) = refused.split_once(' ')?;
    // Redis 6.2 begins with the place in the script, and some errors of it have no code.
    let place = error.strip_prefix("@user_script: ").and_then(|rest| rest.split_once(": "));
    let error = place.map_or(error, |(_, error)| error).trim_start_matches('-');
    let coded = error.split_once(' ').filter(|(code, _)| code.bytes().all(|byte| byte.is_ascii_uppercase()));
    let (code, words) = coded.unwrap_or(("ERR", error));
    Some((Some(command), code, words))
}

/// Whether `ERR …` means that we may not do what we asked for, now or later.
fn is_about_us(words: &str) -> bool {
    const KNOWN: [&str; 8] = [
        "unknown command",
        "unknown redis command",
        "invalid password",
        "without any password",
        "no permissions",
        "acl failure",
        "can't run this command",
        "can't access",
    ];
    let words = words.to_lowercase();
    KNOWN.iter().any(|known| words.contains(known))
}

/// Whether `ERR …` is by somebody who knows no scripts.
fn is_sentinel(words: &str) -> bool {
    let words = words.to_lowercase();
    words.starts_with("unknown command") && words.contains("evalsha")
}

/// The words of a refusal.
pub(super) fn said(error: &ServerError) -> String {
    shown(error.code(), error.details().unwrap_or_default())
}

fn shown(code: &str, words: &str) -> String {
    // What it repeats of our words may be a secret.
    let words = words.split(", with args beginning with").next().unwrap_or_default();
    trouble::shown(&format!("{code} {words}"))
}
