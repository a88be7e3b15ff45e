//! Spans of time, as people write them.

use std::time::Duration;

use crate::exit::Failure;

/// The longest span of time that means anything.
const MAX_SPAN: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Reads a span of time: as humantime reads it, or a bare number of seconds.
///
/// # Errors
/// [`Failure`] with 64 that names `option`.
pub fn span(option: &str, text: &str) -> Result<Duration, Failure> {
    parse(option, text).map_err(Failure::usage)
}

/// The same, whoever wrote it: the error is told in words.
fn parse(name: &str, text: &str) -> Result<Duration, String> {
    let bad = |why: &str| format!("{name} '{text}' is not a span of time like '30s' or '1h 30m': {why}");
    let bare = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let span = if bare {
        let seconds = text.parse::<f64>().map_err(|_| bad("it is not a number"))?;
        Duration::try_from_secs_f64(seconds).map_err(|_| bad("it is too long"))?
    } else if text.starts_with('-') {
        return Err(bad("it is negative"));
    } else {
        humantime::parse_duration(text).map_err(|error| bad(&error.to_string()))?
    };
    if span > MAX_SPAN { Err(bad("it is longer than a hundred years")) } else { Ok(span) }
}

/// The same, but more than nothing.
pub(super) fn positive(name: &str, text: &str) -> Result<Duration, String> {
    let span = parse(name, text)?;
    if span.is_zero() { Err(format!("{name} must be more than 0")) } else { Ok(span) }
}

#[cfg(test)]
mod tests {
    use super::span;
    use std::time::Duration;

    #[test]
    fn a_span_is_read_as_humantime_reads_it_or_as_seconds() {
        let read = |text| span("--wait", text).ok();
        assert_eq!(read("0"), Some(Duration::ZERO));
        assert_eq!(read("1.5"), Some(Duration::from_millis(1500)));
        assert_eq!(read("1h 30m"), Some(Duration::from_secs(5400)));
        for text in
            ["", "-1", "-1s", "1.2.3", ".", "1e9", "nan", "inf", "99999999999999999999999", "101years", "5 parsecs"]
        {
            assert_eq!(read(text), None, "{text:?}");
        }
    }
}
