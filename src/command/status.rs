//! `dlock status`: who holds what, since when, and who waits.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, raise};
use serde_json::{Value, json};

use super::json::{SCHEMA, add, event_json, key_json};
use super::watch::{News, follow};
use super::which::Which;
use super::words;
use crate::cli;
use crate::clock::Moment;
use crate::config::{self, Settings};
use crate::event::Event;
use crate::exit::{Ending, Failure};
use crate::model::{Hold, Info, Key, Record, Stamp};
use crate::output::{self, Column, Line, Screen, Stream, Table, live};
use crate::signal;
use crate::store::Intent;

/// What is shown of each holder, and of each who waits.
const COLUMNS: [Column; 9] = [
    Column::elastic("KEY"),
    Column::fixed("STATE"),
    Column::fixed("FOR"),
    Column::elastic("WHO"),
    Column::fixed("LEFT"),
    Column::elastic("PROGRAM"),
    Column::elastic("NOTE"),
    Column::fixed("LEASE"),
    Column::fixed("FENCE"),
];

/// How often a table that is watched is drawn anew, for the ages in it.
const TICK: Duration = Duration::from_secs(1);

/// Shows keys; exits 0 if any of them is held, else 1.
pub(super) fn status(status: &cli::Status, settings: &Settings) -> Result<Ending, Failure> {
    let named: Vec<Key> = status.keys.iter().map(|key| config::key(key)).collect::<Result<_, _>>()?;
    let prefix = status.prefix.clone().unwrap_or_default();
    let which = if named.is_empty() { Which::Every { prefix, free: status.all } } else { Which::Named(named) };
    if status.watch {
        return watch(which, status.json, settings);
    }
    let store = super::open(settings, Intent::Look)?;
    let seen = super::ask(settings, || which.read(&*store))?;
    let records = &seen.records;
    if status.json {
        let keys: Vec<Value> = records.iter().map(|record| key_json(record, store.now())).collect();
        super::print(&json_text(store.identity(), &keys, true))?;
    } else if records.is_empty() {
        words::nothing(&format!("no key is held in {}", store.describe()));
    } else {
        super::print(&table(records, store.now()).render(Screen::of(Stream::Stdout)))?;
    }
    let held = records.iter().any(|record| !record.holders.is_empty());
    seen.missing().map_or(Ok(()), Err)?;
    Ok(if held { Ending::OK } else { Ending::Code(1) })
}

/// Shows keys whenever they change, until a signal comes or nobody reads any more.
fn watch(which: Which, json: bool, settings: &Settings) -> Result<Ending, Failure> {
    let (bell, events) = mpsc::channel();
    if !json && Screen::of(Stream::Stdout).is_some() {
        signal::listen(&bell).map_err(|error| Failure::os("cannot listen to signals", &error))?;
    }
    // Elsewhere there is nothing to wipe, and whoever waits for a reader that does not read must hear what asks it to
    // end: so that ends it as it does by default. Nor does news pile up meanwhile.
    let (sender, news) = mpsc::sync_channel(1);
    let ring = bell.clone();
    let mut shown = Shown {
        which: which.clone(),
        json,
        identity: super::open(settings, Intent::Look)?.identity().to_owned(),
        patience: settings.store_timeout.value,
        records: BTreeMap::new(),
        clock: None,
        since: Stamp::default(),
        silent: None,
    };
    let told = move |new| sender.send(new).is_ok() && ring.send(Event::Waited).is_ok();
    let started = follow(settings, which, told).and_then(|()| await_reader(bell));
    started.map_err(|error| Failure::os("cannot start a thread", &error))?;
    loop {
        match events.recv_timeout(TICK) {
            Ok(Event::Lost(_)) | Err(RecvTimeoutError::Disconnected) => return Ok(Ending::OK),
            Ok(Event::Signal(Signal::SIGTSTP)) => {
                let _ = raise(Signal::SIGSTOP);
            }
            Ok(Event::Signal(Signal::SIGCONT)) => live::forget(),
            Ok(Event::Signal(Signal::SIGWINCH)) => live::resized(),
            Ok(Event::Signal(signal)) => return Ok(Ending::Signal(signal as i32)),
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
        }
        for new in news.try_iter() {
            if let News::End(error) = new {
                return Err(error.into());
            }
            if !shown.take(new)? {
                return Ok(Ending::OK);
            }
        }
        shown.draw();
    }
}

/// Tells by [`Event::Lost`] when nobody reads from stdout any more.
fn await_reader(bell: mpsc::Sender<Event>) -> io::Result<()> {
    let wait = move || {
        let stdout = io::stdout();
        let mut gone = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        while poll(&mut gone, PollTimeout::NONE).is_err() {}
        let _ = bell.send(Event::Lost("nobody reads".into()));
    };
    signal::unheard(|| thread::Builder::new().name("reader".into()).stack_size(64 << 10).spawn(wait)).map(drop)
}

/// What a watcher has seen last.
struct Shown {
    which: Which,
    json: bool,
    identity: String,
    patience: Duration,
    records: BTreeMap<Key, Record>,
    clock: Option<(Stamp, Moment)>,
    /// When it was looked for the first time.
    since: Stamp,
    /// Since when the store does not answer, and what is wrong.
    silent: Option<(Moment, String)>,
}

impl Shown {
    /// Takes in what is new, and prints it where nothing can be drawn anew; whether somebody reads that.
    fn take(&mut self, new: News) -> Result<bool, Failure> {
        let (records, clock) = match new {
            News::Seen(records, clock) => (records, clock),
            News::Silent(error) => {
                let (_, words) = self.silent.get_or_insert_with(|| (Moment::now(), String::new()));
                if words.is_empty() && Screen::of(Stream::Stdout).is_none() {
                    log::warn!("{error}; trying again");
                }
                *words = error.to_string();
                return Ok(true);
            }
            News::Nothing | News::End(_) => return Ok(true),
        };
        self.silent = None;
        let first = self.clock.replace(clock).is_none();
        if first {
            self.since = clock.0;
        }
        let read = records.into_iter().map(|record| (record.key.clone(), record)).collect();
        let before = std::mem::replace(&mut self.records, read);
        let differs = |record: &&Record| before.get(&record.key).is_none_or(|before| record.differs_from(before));
        let changed: Vec<Record> = self.records.values().filter(differs).cloned().collect();
        if changed.is_empty() && !first {
            return Ok(true);
        }
        let text = if self.json {
            // What comes and goes between two looks is in the events.
            let told = |record: &Record| {
                let events = record.events_after(before.get(&record.key), self.since).map(event_json);
                let mut key = key_json(record, clock.0);
                add(&mut key, &json!({ "events": events.collect::<Vec<_>>() }));
                key
            };
            json_text(&self.identity, &changed.iter().map(told).collect::<Vec<_>>(), false)
        } else if Screen::of(Stream::Stdout).is_none() {
            format!("{}\n", table(&self.in_view(), clock.0).render(None))
        } else {
            return Ok(true);
        };
        match output::write(&text) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            written => written.map(|()| true).map_err(|error| Failure::os("cannot write to stdout", &error)),
        }
    }

    /// What a table shows: not what was given back meanwhile, unless it was asked for.
    fn in_view(&self) -> Vec<Record> {
        self.records.values().filter(|record| self.which.shows(record)).cloned().collect()
    }

    /// Draws the table, with ages as of now.
    fn draw(&self) {
        let Some((stamp, heard)) = self.clock.filter(|_| !self.json) else { return };
        let Some(screen) = Screen::of(Stream::Stdout) else { return };
        let records = self.in_view();
        let mut lines = table(&records, stamp.after(Moment::now().since(heard))).lines(Some(screen));
        if records.is_empty() {
            lines = vec![Line::from("no key is held")];
        }
        if let Some((since, words)) = &self.silent {
            let left = words::span(since.after(self.patience).left());
            lines.insert(0, Line::from(format!("{words}; trying for {left} more. This was seen before:")));
        }
        live::draw(Stream::Stdout, &lines);
    }
}

fn json_text(store: &str, keys: &[Value], pretty: bool) -> String {
    let report = json!({ "schema": SCHEMA, "store": store, "keys": keys });
    let text = if pretty { format!("{report:#}") } else { report.to_string() };
    format!("{}\n", output::clean_json(&text))
}

fn table(records: &[Record], now: Stamp) -> Table {
    let mut table = Table::new(&COLUMNS);
    for Record { key, holders, queue, fence, .. } in records {
        if holders.is_empty() {
            table.push(row(key, "free".into(), None, [None, None, Some(fence.to_string())]));
        }
        for hold in holders {
            let age = words::span(now.since(hold.granted_at));
            let left = hold.ends_at().map(|end| words::span(end.since(now)));
            let (lease, fence) = (Some(hold.lease.short()), Some(hold.fence.to_string()));
            table.push(row(key, state(hold), Some((age, &hold.info)), [left, lease, fence]));
        }
        for waiter in queue {
            let age = words::span(now.since(waiter.asked_at));
            let lease = Some(waiter.lease.short());
            table.push(row(key, "waiting".into(), Some((age, &waiter.info)), [None, lease, None]));
        }
    }
    table
}

/// The cells of a row, in the order of the columns.
fn row(key: &Key, state: String, who: Option<(String, &Info)>, rest: [Option<String>; 3]) -> [String; 9] {
    let (age, info) = who.unzip();
    let (program, note) = info.map(|info| (info.program.clone(), info.note.clone())).unwrap_or_default();
    let [left, lease, fence] = rest;
    let cells =
        [Some(key.to_string()), Some(state), age, info.map(ToString::to_string), left, program, note, lease, fence];
    cells.map(|cell| cell.unwrap_or_else(|| "-".into()))
}

fn state(hold: &Hold) -> String {
    match (hold.is_cooling(), hold.revoked) {
        (true, _) => "cooling".into(),
        (_, true) => "revoked".into(),
        _ => hold.mode.to_string(),
    }
}
