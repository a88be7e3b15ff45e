//! What the URLs of several stores have in common: hosts, and parameters behind the `?`.

use std::path::Path;

use percent_encoding::percent_decode_str;

use super::socket::Endpoint;

/// `HOST[:PORT]`, where an IPv6 address stands in brackets.
pub(super) fn host(text: &str, usual_port: u16) -> Result<Endpoint, String> {
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

/// What stands behind the `?`, each name once and none but the `known` ones. Those that are `paths` start at `here`.
pub(super) fn parameters(
    query: &str,
    known: &[&str],
    paths: &[&str],
    here: &Path,
) -> Result<Vec<(String, String)>, String> {
    let mut all: Vec<(String, String)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decode(name)?, decode(value)?);
        // The '?' or the '&' before it may have been one of a password.
        if name.contains('@') || value.contains('@') {
            return Err("'?' and '@' in a password are written %3F and %40".into());
        }
        if !known.contains(&&*name) {
            return Err(format!("dlock knows no '{name}' behind the '?'"));
        }
        if all.iter().any(|(other, _)| *other == name) {
            return Err(format!("it has '{name}' twice"));
        }
        let value = if paths.contains(&&*name) {
            here.join(value).into_os_string().into_string().map_err(|_| format!("'{name}' is not UTF-8"))?
        } else {
            value
        };
        all.push((name, value));
    }
    Ok(all)
}

/// What a text stands for that has `%` and two digits in it.
pub(super) fn decode(text: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| "it is not UTF-8")?;
    Ok(text.into_owned())
}
