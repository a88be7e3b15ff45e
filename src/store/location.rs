//! URLs of stores that are several servers and no more: `SCHEME://[LOGIN@]HOST[:PORT],…[?…]`.

use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

use super::address::{absolute, parameter, written};
use super::socket::Endpoint;
use super::tls::Tls;

/// What of a value is written as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.');

/// What is wrong with a `/` in it.
const NO_PATH: &str = "behind the hosts there is nothing but '?': a '/' in a password is written %2F";

/// Such a URL, taken apart.
pub(super) struct Location<'a> {
    pub(super) scheme: &'a str,
    /// What stands before the `@`, if there is anything.
    pub(super) login: Option<&'a str>,
    hosts: &'a str,
    /// What stands behind the `?` and was not taken yet.
    left: Vec<(String, String)>,
    /// As it was written, paths made absolute.
    pub(super) text: String,
}

impl<'a> Location<'a> {
    /// Takes a URL apart, which is of such a `form`. No parameters are `known` but these; those that are `paths` start at
    /// `here`.
    ///
    /// # Errors
    /// What is wrong with it, without any part that may be a password.
    pub(super) fn read(
        text: &'a str,
        form: &str,
        (known, paths): (&[&str], &[&str]),
        here: &Path,
    ) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("it is written {form}"))?;
        if rest.contains('#') {
            return Err("it has a '#', which is written %23 in a password".into());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let left = parameters(query, known, paths, here)?;
        let text = written(text, &left, PLAIN);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, hosts) = rest.rsplit_once('@').unwrap_or(("", rest));
        // In a login, too, where it would end the hosts for whoever reads URLs as the standard has them.
        if rest.contains('/') {
            return Err(NO_PATH.into());
        }
        Ok(Self { scheme, login: Some(login).filter(|login| !login.is_empty()), hosts, left, text })
    }

    /// What the parameter of this name says, if there is one.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.left.iter().position(|(other, _)| other == name)?;
        Some(self.left.swap_remove(at).1)
    }

    /// The files for TLS.
    ///
    /// # Errors
    /// If there is one too few.
    pub(super) fn tls(&mut self) -> Result<Tls, String> {
        Tls::of(["ca", "cert", "key"], |name| self.take(name))
    }

    /// The servers.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub(super) fn hosts(&self, usual_port: u16) -> Result<Vec<Endpoint>, String> {
        self.hosts.split(',').map(|text| host(text, usual_port)).collect()
    }
}

/// `HOST[:PORT]`, where an IPv6 address stands in brackets.
fn host(text: &str, usual_port: u16) -> Result<Endpoint, String> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or("an IPv6 address ends with ']'")?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    if name.is_empty() {
        return Err("one of its hosts has no name".into());
    }
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => usual_port,
        None => return Err("behind an IPv6 address there is ':' and a port, or nothing".into()),
        Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or("a port is a number from 1 to 65535")?,
    };
    Ok(Endpoint::Tcp(name.to_lowercase(), port))
}

/// What stands behind the `?`, each name once.
fn parameters(query: &str, known: &[&str], paths: &[&str], here: &Path) -> Result<Vec<(String, String)>, String> {
    let mut all: Vec<(String, String)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = parameter(pair)?;
        if !known.contains(&&*name) {
            return Err(format!("dlock knows no '{name}' behind the '?'"));
        }
        if all.iter().any(|(other, _)| *other == name) {
            return Err(format!("it has '{name}' twice"));
        }
        let value = if paths.contains(&&*name) { absolute(here, &name, &value)? } else { value };
        all.push((name, value));
    }
    Ok(all)
}
