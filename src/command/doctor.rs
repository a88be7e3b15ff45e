//! `dlock doctor`: can this store be trusted with locks? It changes nothing.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::json::SCHEMA;
use super::words;
use crate::cli;
use crate::clock::Moment;
use crate::config::{Origin, Setting, Settings};
use crate::exit::{Code, Ending, Failure};
use crate::model::Stamp;
use crate::output::{self, Screen, Stream};
use crate::store::{Examination, Finding, Intent, Severity, Store, StoreError, Trouble};

/// How often the store is asked for its clock.
const QUESTIONS: usize = 50;

/// From where on it is told that the store's clock is not ours, and from where on something is wrong.
const OFFSET: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// A setting, and who decided it.
struct Decided {
    name: &'static str,
    value: String,
    from: Origin,
}

/// How fast the store answers, and how far its clock is from ours.
struct Timing {
    /// From the shortest to the longest.
    round_trips: Vec<Duration>,
    /// By how many microseconds its clock is ahead, and how much of that may be due to the network, or to what it does not tell.
    offset: i64,
    bound: Duration,
}

/// All that was found out.
struct Report {
    store: String,
    settings: Vec<Decided>,
    error: Option<StoreError>,
    timing: Option<Timing>,
    facts: Vec<(&'static str, String)>,
    findings: Vec<Finding>,
}

/// Tells what is known of the store and what is wrong with it; exits 1 if a lock may be lost, and as everywhere if none
/// can be taken.
pub(super) fn doctor(doctor: &cli::Doctor, settings: &Settings) -> Result<Ending, Failure> {
    let ttl = settings.ttl(None)?;
    let kill_after = settings.kill_after(None, &ttl)?;
    let mut report = Report {
        store: settings.store.value.identity(),
        settings: decided(settings, &ttl, &kill_after),
        error: None,
        timing: None,
        facts: Vec::new(),
        findings: Vec::new(),
    };
    if let Err(error) = report.fill(settings, ttl.value.saturating_sub(kill_after.value)) {
        report.findings.push((&error).into());
        report.error = Some(error);
    }
    report.findings.sort_by_key(|finding| finding.severity);
    let text = if doctor.json {
        output::clean_json(&format!("{:#}", report.json())) + "\n"
    } else {
        report.text(Screen::of(Stream::Stdout).map_or(usize::MAX, |screen| screen.room()))
    };
    super::print(&text)?;
    Ok(match report.error {
        Some(error) => Code::from(error.trouble).into(),
        None if report.count(Severity::Warning) > 0 => Ending::Code(1),
        None => Ending::OK,
    })
}

/// The settings, and who decided each.
fn decided(settings: &Settings, ttl: &Setting<Duration>, kill_after: &Setting<Duration>) -> Vec<Decided> {
    let decided = |name, value, from: &Origin| Decided { name, value, from: from.clone() };
    let span = |name, setting: &Setting<Duration>| decided(name, words::span(setting.value), &setting.from);
    let config = settings.config.as_ref();
    let config = config.map(|path| decided("config", path.value.display().to_string(), &path.from));
    let others = [
        decided("store", settings.store.value.to_string(), &settings.store.from),
        span("store_timeout", &settings.store_timeout),
        span("ttl", ttl),
        span("kill_after", kill_after),
    ];
    config.into_iter().chain(others).collect()
}

impl Report {
    /// Asks the store. A holder can do without an answer for `silence`, which is as long as three beats.
    fn fill(&mut self, settings: &Settings, silence: Duration) -> Result<(), StoreError> {
        let store = super::open_store(settings, Intent::Look)?;
        store.identity().clone_into(&mut self.store);
        // The first one opens a connection, and may have to wait for the store.
        super::ask(settings, || store.ask_clock())?;
        let timing = Timing::take(&*store)?;
        self.findings.extend(timing.is_slow(silence / 3));
        self.findings.extend(timing.is_off());
        self.timing = Some(timing);
        let Examination { facts, findings, .. } = super::ask(settings, || store.examine(silence))?;
        self.facts = facts;
        self.findings.extend(findings);
        Ok(())
    }

    fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    /// What people read, in lines of at most so many columns.
    fn text(&self, room: usize) -> String {
        let mut facts = Vec::new();
        for Decided { name, value, from } in &self.settings {
            facts.push((*name, format!("{value} ({from})")));
        }
        if let Some(timing) = &self.timing {
            facts.push(("latency", timing.to_string()));
            facts.push(("clock", timing.clock()));
        }
        facts.extend(self.facts.iter().map(|(name, value)| (*name, value.clone())));
        let widest = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in facts {
            let name = name.replace('_', " ");
            text += &block(&format!("{name:widest$}  "), widest + 2, &value, room);
        }
        for finding in &self.findings {
            let severity = finding.severity;
            text += "\n";
            text += &block(&format!("{severity}: "), 2, &finding.what, room);
            text += &block("  why: ", 7, &finding.why, room);
            text += &block("  do:  ", 7, &finding.remedy, room);
        }
        format!("{text}\n{}\n", self.verdict())
    }

    fn verdict(&self) -> String {
        let counted =
            [Severity::Error, Severity::Warning, Severity::Note].map(|severity| (severity, self.count(severity)));
        let mut parts = Vec::new();
        for (severity, count) in counted.into_iter().filter(|(_, count)| *count > 0) {
            let many = if count == 1 { "" } else { "s" };
            parts.push(format!("{count} {severity}{many}"));
        }
        let worst = self.findings.first().map(|finding| finding.severity);
        if matches!(worst, None | Some(Severity::Note)) {
            parts.insert(0, "sound".into());
        }
        parts.join(", ")
    }

    /// What programs read.
    fn json(&self) -> Value {
        let facts: Map<String, Value> =
            self.facts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let setting = |Decided { name, value, from }: &Decided| {
            let from = match from {
                Origin::File(path) => path.display().to_string(),
                from => from.to_string(),
            };
            json!({ "name": name, "value": value, "from": from })
        };
        let finding = |Finding { severity, what, why, remedy }: &Finding| json!({ "severity": severity.to_string(), "what": what, "why": why, "do": remedy });
        let is_reached =
            self.error.as_ref().is_none_or(|error| !matches!(error.trouble, Trouble::Unreachable | Trouble::Stuck));
        json!({
            "schema": SCHEMA,
            "store": self.store,
            "reachable": is_reached,
            "error": self.error.as_ref().map(ToString::to_string),
            "latency_us": self.timing.as_ref().map(Timing::json),
            "clock_offset_ms": self.timing.as_ref().map(|timing| timing.offset / 1000),
            "clock_bound_ms": self.timing.as_ref().map(|timing| timing.bound.as_micros().div_ceil(1000)),
            "facts": facts,
            "settings": self.settings.iter().map(setting).collect::<Vec<_>>(),
            "findings": self.findings.iter().map(finding).collect::<Vec<_>>(),
        })
    }
}

/// A text behind a label, in as many lines as it needs; those after the first one stand further in.
fn block(label: &str, indent: usize, text: &str, room: usize) -> String {
    let text = format!("{label}{}", output::clean(text));
    let (label, text) = text.split_at(label.len());
    let lines = output::wrap(text, room.saturating_sub(label.len().max(indent)));
    let lines = lines.iter().enumerate().map(|(at, line)| {
        let before = if at == 0 { label.to_owned() } else { " ".repeat(indent) };
        format!("{before}{line}\n")
    });
    lines.collect()
}

impl Timing {
    /// Asks the store for its clock again and again.
    fn take(store: &dyn Store) -> Result<Self, StoreError> {
        let mut taken = Vec::with_capacity(QUESTIONS);
        for _ in 0..QUESTIONS {
            let (wall, asked) = (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), Moment::now());
            let theirs = store.ask_clock()?;
            let round_trip = Moment::now().since(asked);
            let ours = Stamp::default().after(wall + round_trip / 2);
            let signed = |stamp: Stamp| i64::try_from(stamp.micros()).unwrap_or(i64::MAX);
            taken.push((round_trip, signed(theirs).saturating_sub(signed(ours))));
        }
        taken.sort_unstable();
        // The fastest answer tells most about the clock (RFC 5905, section 10).
        let (fastest, offset) = taken.first().copied().unwrap_or_default();
        Ok(Self {
            round_trips: taken.into_iter().map(|(round_trip, _)| round_trip).collect(),
            offset,
            bound: fastest / 2 + Duration::from_micros(1) + store.clock_grain(),
        })
    }

    /// The round trip that so many percent are no longer than.
    fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.round_trips.len() * percent).div_ceil(100).max(1);
        self.round_trips.get(rank - 1).copied().unwrap_or_default()
    }

    fn json(&self) -> Value {
        let micros = |percent| u64::try_from(self.percentile(percent).as_micros()).unwrap_or(u64::MAX);
        json!({ "min": micros(0), "median": micros(50), "p99": micros(99), "count": self.round_trips.len() })
    }

    fn distance(&self) -> Duration {
        Duration::from_micros(self.offset.unsigned_abs())
    }

    /// How its clock is, in words.
    fn clock(&self) -> String {
        let bound = millis(self.bound);
        if self.distance() <= self.bound {
            return format!("as ours, give or take {bound}");
        }
        let side = if self.offset > 0 { "ahead of" } else { "behind" };
        format!("{} {side} ours, give or take {bound}", millis(self.distance()))
    }

    fn is_off(&self) -> Option<Finding> {
        let distance = self.distance().saturating_sub(self.bound);
        let (noted, wrong) = OFFSET;
        let find = if distance > wrong { Finding::warning } else { Finding::note };
        let side = if self.offset > 0 { "ahead of" } else { "behind" };
        (distance > noted).then(|| {
            find(
                format!("its clock is {} {side} ours", words::span(self.distance())),
                "one of them is wrong: after a failover between servers whose clocks differ fences may not rise, and \
                 '--min-hold' may end too early",
                "let all machines set their clocks by NTP (chrony, systemd-timesyncd)",
            )
        })
    }

    fn is_slow(&self, beat: Duration) -> Option<Finding> {
        let (slow, patience) = (self.percentile(99), beat / 3);
        (slow > patience).then(|| {
            Finding::warning(
                format!(
                    "some of its answers take {}, and a try to renew a lease {} at most",
                    millis(slow),
                    millis(patience)
                ),
                "a lease that cannot be renewed in time is lost, and its command stopped",
                "a longer --ttl, or a store that is nearer or has less to do",
            )
        })
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [min, median, p99] = [0, 50, 99].map(|percent| millis(self.percentile(percent)));
        write!(f, "min {min}, median {median}, p99 {p99} of {}", self.round_trips.len())
    }
}

/// A short span as one reads it of networks.
fn millis(span: Duration) -> String {
    match span.as_micros() {
        micros @ ..1000 => format!("{micros}µs"),
        micros @ ..1_000_000 => format!("{}.{}ms", micros / 1000, micros / 100 % 10),
        _ => words::span(span),
    }
}
