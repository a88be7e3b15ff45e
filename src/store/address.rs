//! What the addresses of networked stores have in common: how a URL is written, what servers are called, and what is secret.

use std::path::Path;

use percent_encoding::percent_decode_str;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
use percent_encoding::{AsciiSet, utf8_percent_encode};

use super::socket::Endpoint;

/// What a text stands for that has `%` and two digits in it.
pub(super) fn decode(text: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| "it is not UTF-8")?;
    Ok(text.into_owned())
}

/// One of the parameters behind the `?`: its name and its value.
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
pub(super) fn parameter(pair: &str) -> Result<(String, String), String> {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    let (name, value) = (decode(name)?, decode(value)?);
    // The '?' or the '&' before it may have been one of a password.
    if name.contains('@') || value.contains('@') {
        return Err("'?' and '@' in a password are written %3F and %40".into());
    }
    Ok((name, value))
}

/// The path that the parameter of this name is, which starts at `here`.
pub(super) fn absolute(here: &Path, name: &str, value: &str) -> Result<String, String> {
    here.join(value).into_os_string().into_string().map_err(|_| format!("'{name}' is not UTF-8"))
}

/// A URL with these parameters in the place of its own. What is `plain` in a value is written as it is.
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
pub(super) fn written(text: &str, parameters: &[(String, String)], plain: &'static AsciiSet) -> String {
    let start = text.split('?').next().unwrap_or_default();
    let pair = |(name, value): &(String, String)| format!("{name}={}", utf8_percent_encode(value, plain));
    let query = parameters.iter().map(pair).collect::<Vec<_>>().join("&");
    if query.is_empty() { start.to_owned() } else { format!("{start}?{query}") }
}

/// Servers as they were written.
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
pub(super) fn listed(servers: &[Endpoint]) -> String {
    servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The same text in whatever order they were written.
pub(super) fn sorted(servers: &[Endpoint]) -> String {
    let mut servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    servers.sort_unstable();
    servers.dedup();
    servers.join(",")
}

/// A server's words, which may repeat what is secret in ours.
pub(super) fn without<'a>(words: &str, secrets: impl IntoIterator<Item = &'a str>) -> String {
    let mut secrets: Vec<&str> = secrets.into_iter().filter(|secret| !secret.is_empty()).collect();
    // One of them may be a part of the other.
    secrets.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.into_iter().fold(words.to_owned(), |words, secret| words.replace(secret, "(password)"))
}
