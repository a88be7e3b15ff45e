//! What is seen of one who waits: on a terminal one live line, with `-v` elsewhere a line now and then, else nothing.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use log::LevelFilter;
use nix::sys::signal::Signal;

use super::watch::{News, follow};
use super::which::Which;
use super::words;
use crate::clock::Moment;
use crate::config::Settings;
use crate::holder::{self, Meanwhile};
use crate::model::{Key, LeaseId, Record, Stamp};
use crate::output::{Line, Screen, Stream, live, width};
use crate::signal;
use crate::store::{self, Intent};

/// Who gets the key sooner does not want to read that it had to wait.
const SHORT: Duration = Duration::from_millis(300);

/// How often the live line is drawn anew.
const TICK: Duration = Duration::from_secs(1);

/// How often a line says that we still wait, where there is no live one.
const REMINDER: Duration = Duration::from_secs(60);

/// Begins to show that we wait. Whatever goes wrong with that, the wait goes on.
pub(super) fn show(settings: &Settings, key: &Key, me: LeaseId) -> Box<dyn Meanwhile> {
    let level = log::max_level();
    let line = match Screen::of(Stream::Stderr) {
        Some(_) if level >= LevelFilter::Warn => Kind::Live,
        _ if level >= LevelFilter::Info => Kind::Spoken,
        _ => return Box::new(()),
    };
    let view = View { key: key.clone(), me, since: Moment::now(), seen: None, trouble: None, over: false };
    let view = Arc::new(Mutex::new(view));
    let (stop, stopped) = mpsc::channel();
    let (shown, settings) = (Arc::clone(&view), settings.clone());
    let run = move || {
        let goes_on = |span| stopped.recv_timeout(span) == Err(RecvTimeoutError::Timeout);
        match line {
            Kind::Live if goes_on(SHORT) => {
                watch(&settings, &shown);
                while goes_on(TICK) {
                    lock(&shown).tell(line);
                }
            }
            Kind::Live => {}
            Kind::Spoken => loop {
                look(&settings, &shown);
                lock(&shown).tell(line);
                if !goes_on(REMINDER) {
                    return;
                }
            },
        }
    };
    // A thread that cannot be had is missed by nobody but who watches.
    let _ = signal::unheard(|| thread::Builder::new().name("waiting".into()).spawn(run));
    Box::new(Shown { view, line, _stop: stop })
}

/// Looks at the key once: whoever says something once a minute need not follow each change.
fn look(settings: &Settings, view: &Arc<Mutex<View>>) {
    let key = lock(view).key.clone();
    let patience = settings.store_timeout.value.min(holder::REQUEST);
    let looked = store::open(&settings.store.value, Intent::Look, patience).and_then(|store| {
        let record = store.inspect(&key)?;
        Ok(record.map(|record| (record, (store.now(), Moment::now()))))
    });
    let mut view = lock(view);
    match looked {
        Ok(seen) => (view.seen, view.trouble) = (seen, None),
        Err(error) => view.trouble = Some(error.to_string()),
    }
}

/// Follows the key, and draws each change of what is told at once.
fn watch(settings: &Settings, view: &Arc<Mutex<View>>) {
    let (shown, which) = (Arc::clone(view), Which::Named(vec![lock(view).key.clone()]));
    let news = move |new| {
        let mut view = lock(&shown);
        match new {
            News::Seen(mut records, clock) => {
                view.trouble = None;
                view.seen = records.pop().map(|record| (record, clock));
            }
            News::Silent(error) | News::End(error) => view.trouble = Some(error.to_string()),
            News::Nothing => return !view.over,
        }
        view.tell(Kind::Live);
        !view.over
    };
    let _ = follow(settings, which, news);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Live,
    Spoken,
}

/// What is known of the wait.
struct View {
    key: Key,
    me: LeaseId,
    since: Moment,
    seen: Option<(Record, (Stamp, Moment))>,
    trouble: Option<String>,
    over: bool,
}

impl View {
    fn tell(&self, line: Kind) {
        if self.over {
            return;
        }
        let said = self.words();
        match (line, Screen::of(Stream::Stderr)) {
            (Kind::Spoken, _) => log::info!("{}", said[0]),
            (Kind::Live, Some(screen)) => {
                let mut lines = said.into_iter().map(|words| format!("dlock: {words}"));
                let last = lines.next_back().unwrap_or_default();
                let fitting = lines.find(|line| width(line) <= screen.room()).unwrap_or(last);
                live::draw(Stream::Stderr, &[Line::from(fitting)]);
            }
            (Kind::Live, None) => {}
        }
    }

    /// Ways to say it, the longest first.
    fn words(&self) -> Vec<String> {
        let waited = Moment::now().since(self.since);
        if let Some(trouble) = &self.trouble {
            let waiting = words::waiting(&self.key, waited, None);
            return vec![format!("{waiting}: {trouble}"), waiting];
        }
        let Some((record, (stamp, heard))) = &self.seen else { return vec![words::waiting(&self.key, waited, None)] };
        let ahead = record.queue.iter().position(|waiter| waiter.lease == self.me);
        let now = stamp.after(Moment::now().since(*heard));
        let waiting = words::waiting(&self.key, waited, ahead);
        let mut ways: Vec<String> =
            words::holding(&record.holders, now).into_iter().map(|held| format!("{waiting}: {held}")).collect();
        ways.extend([waiting, words::waiting(&self.key, waited, None)]);
        ways
    }
}

/// One whose wait is shown.
struct Shown {
    view: Arc<Mutex<View>>,
    line: Kind,
    /// Ends the thread when it is dropped.
    _stop: mpsc::Sender<()>,
}

impl Meanwhile for Shown {
    fn hear(&mut self, signal: Signal) {
        if self.line == Kind::Spoken {
            return;
        }
        match signal {
            Signal::SIGTSTP => live::wipe(),
            Signal::SIGCONT => live::forget(),
            _ => live::resized(),
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // Whoever draws has the lock, so nothing is drawn after this.
        lock(&self.view).over = true;
        if self.line == Kind::Live {
            live::wipe();
        }
    }
}

/// No change of it takes two steps, so what a thread that panicked left is as good as before.
fn lock(view: &Mutex<View>) -> MutexGuard<'_, View> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}
