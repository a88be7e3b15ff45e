//! What can go wrong with one exchange, whatever kind of server it is with. What such a server says, and what that means for
//! a lock, is a [`Meaning`] of its own.

use std::fmt;
use std::io;

use super::socket::Endpoint;
use super::{StoreError, Trouble, tls, wire};
use crate::sys;

/// What went wrong with one exchange with a server that says such things.
#[derive(Debug)]
pub(super) enum Failure<S> {
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
    /// What came is not the protocol.
    Garbage,
    /// TLS: the other side is not who it should be, or does not speak it.
    Tls(rustls::Error),
    /// The settings cannot be used.
    Settings(String),
    /// We are not let in, or would not go in on these terms.
    #[cfg_attr(
        not(any(feature = "nats", feature = "postgres")),
        expect(dead_code, reason = "a member of etcd says it itself")
    )]
    Login(String),
    /// What is kept there, or an answer, is not as it must be.
    Odd(String),
    /// Others were faster, again and again.
    #[cfg_attr(
        not(any(feature = "etcd", feature = "nats")),
        expect(dead_code, reason = "PostgreSQL locks, and its servers say when time is over")
    )]
    Contended,
    /// The server said so.
    Said(S),
}

/// What servers of a kind say when they do not do what they were asked for.
pub(super) trait Meaning: Sized {
    /// Where such servers are.
    type Address: fmt::Display;

    /// What such a server is called.
    const SERVER: &str;

    /// What it means that one does not speak TLS.
    const NO_TLS: (Trouble, &str);

    /// What it is that one does not speak who answers garbage.
    const PROTOCOL: &str;

    /// What is wrong with TLS.
    fn of_tls(error: &rustls::Error) -> (Trouble, String) {
        tls::words(error, "?ca=FILE", "?cert=FILE&key=FILE")
    }

    /// Words that may repeat ours, without what is secret.
    fn without_password(address: &Self::Address, words: &str) -> String;

    /// The same with other words of the server's own.
    fn reworded(self, reword: &dyn Fn(String) -> String) -> Self;

    /// Whether the server is about to close the connection, which is as good as closed.
    fn is_farewell(&self) -> bool {
        false
    }

    /// Whether nothing was done, for sure.
    fn is_definite(&self) -> bool;

    /// Whether another server may do better.
    #[cfg(any(feature = "etcd", feature = "nats"))]
    fn may_be_the_server(&self) -> bool {
        false
    }

    /// What it means, and its words.
    fn meaning(self, address: &Self::Address) -> (Trouble, String);
}

impl<S> From<io::Error> for Failure<S> {
    fn from(error: io::Error) -> Self {
        if wire::is_silence(&error) {
            return Self::Silent;
        }
        match tls::inside(&error) {
            Some(error) => Self::Tls(error.clone()),
            None => Self::Io(error),
        }
    }
}

impl<S: Meaning> Failure<S> {
    /// Whether the connection had ended: one that was idle for long, or whose server was restarted.
    pub(super) fn is_stale(&self) -> bool {
        match self.bare() {
            Self::Io(error) => wire::is_end(error),
            Self::Said(said) => said.is_farewell(),
            _ => false,
        }
    }

    /// Whether there was no answer.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self.bare(), Self::Silent)
    }

    /// Whether the server, or we ourselves, said no.
    #[cfg(any(feature = "nats", feature = "postgres"))]
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.bare(), Self::Said(_) | Self::Login(_) | Self::Tls(_) | Self::NoTls | Self::Settings(_))
    }

    /// Whether another server may do better.
    #[cfg(any(feature = "etcd", feature = "nats"))]
    pub(super) fn may_be_the_server(&self) -> bool {
        match self.bare() {
            Self::Io(_) | Self::Silent | Self::Garbage | Self::Tls(_) | Self::NoTls => true,
            Self::Said(said) => said.may_be_the_server(),
            _ => false,
        }
    }

    /// Whose it was.
    #[cfg(any(feature = "etcd", feature = "nats"))]
    pub(super) fn server(&self) -> Option<&Endpoint> {
        match self {
            Self::By(server, _) => Some(server),
            Self::Before(failure) => failure.server(),
            _ => None,
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
    pub(super) fn at(self, address: &S::Address) -> StoreError {
        self.of(&address.to_string(), address)
    }

    fn of(self, name: &str, address: &S::Address) -> StoreError {
        let definite = matches!(&self, Self::Said(said) if said.is_definite());
        let (trouble, words) = match self {
            Self::Before(failure) => return failure.of(name, address).before_anything(),
            Self::By(server, failure) => return failure.of(&format!("{} at {server}", S::SERVER), address),
            // Only what is not ours may repeat what is secret, and ours is not to be made unreadable by a short one.
            Self::Said(said) => said.reworded(&|words| S::without_password(address, &words)).meaning(address),
            Self::Io(error) if wire::is_end(&error) => (Trouble::Unreachable, CLOSED.into()),
            Self::Io(error) => (Trouble::Unreachable, sys::words(&error)),
            Self::Silent => (Trouble::Unreachable, "it did not answer in time".into()),
            Self::NoTls => (S::NO_TLS.0, S::NO_TLS.1.into()),
            Self::Garbage => (Trouble::Unreachable, format!("what it answers is not {}", S::PROTOCOL)),
            Self::Tls(error) => S::of_tls(&error),
            Self::Login(words) => (Trouble::Refused, words),
            Self::Settings(words) | Self::Odd(words) => (Trouble::Unfit, words),
            Self::Contended => (Trouble::Unreachable, "others were faster all the time".into()),
        };
        let error = StoreError::new(trouble, format_args!("{name}: {words}"));
        if definite { error.before_anything() } else { error }
    }
}

/// What it is that a server does who ends a connection.
pub(super) const CLOSED: &str = "it closed the connection";

/// What it means that a server lacks something which we may not make, and its words.
#[cfg(any(feature = "nats", feature = "postgres"))]
pub(super) fn unprepared(what: &str, words: &str) -> (Trouble, String) {
    let remedy = "let somebody who may run 'dlock setup', or what 'dlock setup --print' prints";
    (Trouble::Unprepared, format!("it has no {what}, and we may not make it ({words}); {remedy}"))
}
