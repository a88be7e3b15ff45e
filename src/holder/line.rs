//! Asking for a key, and waiting in line for it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};

use super::{Acquired, Lease, Limits, Meanwhile, PAUSE, REQUEST, gave_up, pause};
use crate::clock::{Deadline, Moment};
use crate::event::Event;
use crate::model::{Answer, Ask, Key, Refusal, Renewed};
use crate::signal;
use crate::store::{Store, StoreError, Trouble, Watch};

/// How long the first request may take. While it is on its way no signal ends us.
const FIRST: Duration = Duration::from_millis(800);

/// How long leaving the queue may take: half of it for a request that is on its way, half for our own.
const LEAVE: Duration = Duration::from_millis(800);

/// If less time is left, there is no further request: what one meets that is cut short says nothing.
const TOO_SHORT: Duration = Duration::from_millis(200);

/// An answer of the store, and when it was asked.
type Dated = Result<(Answer, Moment), StoreError>;

/// What the thread that waits in line and the main thread tell each other.
#[derive(Default)]
struct Line {
    state: Mutex<LineState>,
    replied: Condvar,
}

#[derive(Default)]
struct LineState {
    /// Nobody wants the answer any more.
    given_up: bool,
    /// A request is on its way.
    asking: bool,
    /// The store answered last, that we are queued.
    queued: bool,
    /// How many were ahead of us when the store told us last, if it ever did.
    ahead: Option<usize>,
    answer: Option<Dated>,
}

impl LineState {
    /// The store answered that we are queued.
    fn told(&mut self, ahead: usize) {
        (self.queued, self.ahead) = (true, Some(ahead));
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, LineState> {
        // Each change of it is one step, so what a thread that panicked left is as good as before.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks for `key` and waits in line for it, until a signal or a limit ends that. Then nothing of it is
/// left in the queue. The limit counts while the store answers; one that does not is tried for its own. What is to
/// go on `meanwhile` is begun once we stand in line.
///
/// # Errors
/// [`StoreError`] if the store did not answer.
pub fn acquire(
    store: &Arc<dyn Store>,
    key: &Key,
    ask: &Ask,
    limits: Limits,
    (sender, events): (&Sender<Event>, &Receiver<Event>),
    meanwhile: &dyn Fn() -> Box<dyn Meanwhile>,
) -> Result<Acquired, StoreError> {
    let since = Moment::now();
    let mut asker = Asker { store: &**store, key, ask, unanswered: None };
    let first = asker.ask(FIRST.min(limits.store));
    let line = Arc::new(Line::default());
    let silent = match &first {
        Ok((Answer::Queued(ahead), _)) => {
            line.lock().told(*ahead);
            None
        }
        Err(error) if error.trouble == Trouble::Unreachable => {
            log::info!("{error}; trying again");
            Some(since)
        }
        _ => return conclude(store, key, ask, first),
    };
    spawn_waiter(store, key, ask, (limits.store, silent, asker.unanswered), &line, sender)?;
    // Not before we stand in line: whoever only looks on does not take the last connection that a server has.
    let mut looks_on = silent.is_none().then(meanwhile);
    let until = limits.wait.map(|wait| since.after(wait));
    loop {
        let limit = until.filter(|until| line.lock().queued || !until.left().is_zero());
        let event = match limit {
            Some(until) => events.recv_timeout(until.left()),
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match event {
            Ok(Event::Waited) => {
                let mut state = line.lock();
                let answer = state.answer.take();
                if state.queued && looks_on.is_none() {
                    looks_on = Some(meanwhile());
                }
                drop(state);
                if let Some(answer) = answer {
                    if answer.is_err() {
                        // It may still take back what we asked for. What ended the wait matters more than whether it does.
                        let _ = store.release(key, ask.level, None, LEAVE / 2);
                    }
                    return conclude(store, key, ask, answer);
                }
            }
            Ok(Event::Signal(signal @ (Signal::SIGWINCH | Signal::SIGCONT))) => {
                if let Some(looks_on) = &mut looks_on {
                    looks_on.hear(signal);
                }
            }
            Ok(Event::Signal(Signal::SIGTSTP)) => {
                if let Some(looks_on) = &mut looks_on {
                    looks_on.hear(Signal::SIGTSTP);
                }
                let _ = raise(Signal::SIGSTOP);
            }
            Ok(Event::Signal(signal)) => {
                // Nobody wants the key, if it is what the answer brings.
                drop(give_up(&line));
                let left = store.release(key, ask.level, None, LEAVE / 2);
                if let Err(error) = left
                    && line.lock().ahead.is_some()
                {
                    log::warn!("cannot leave the queue of '{key}', which drops us by itself: {error}");
                }
                return Ok(Acquired::Signal(signal));
            }
            Ok(_) => {}
            Err(_) if !line.lock().queued => {}
            Err(_) => {
                if let Some(answer) = give_up(&line) {
                    if answer.is_err() {
                        let _ = store.release(key, ask.level, None, LEAVE / 2);
                    }
                    return conclude(store, key, ask, answer);
                }
                return busy(&**store, key, ask, line.lock().ahead.unwrap_or_default());
            }
        }
    }
}

/// Our time is over, and the store told us last that others have the key. If it does not answer just now, it
/// drops us by itself.
fn busy(store: &dyn Store, key: &Key, ask: &Ask, ahead: usize) -> Result<Acquired, StoreError> {
    let left = store.release(key, ask.level, None, LEAVE / 2);
    let record = left.and_then(|_| store.inspect(key));
    match record {
        Err(error) if error.trouble == Trouble::Unreachable => {
            log::info!("{error}");
            Ok(Acquired::Busy(Vec::new(), ahead))
        }
        record => {
            let (holders, waiting) = record?.map_or_else(Default::default, |r| (r.holders, r.queue.len()));
            Ok(Acquired::Busy(holders, waiting))
        }
    }
}

/// Asks for a key, again and again if need be.
struct Asker<'a> {
    store: &'a dyn Store,
    key: &'a Key,
    ask: &'a Ask,
    /// When a request was sent that got no answer, the first of several. What it was granted counts from
    /// then, not from when we hear of it.
    unanswered: Option<Moment>,
}

impl Asker<'_> {
    /// Asks once. A grant that we heard of late is renewed before anybody counts on it; if it has ended
    /// meanwhile, we ask anew.
    fn ask(&mut self, within: Duration) -> Dated {
        let ttl = self.ask.ttl.unwrap_or_default();
        loop {
            let sent = Moment::now();
            let asked = self.unanswered.unwrap_or(sent);
            // Until there is a definite answer: a store that tried twice tells of its second try only, and a request
            // that was lost may arrive while we are queued.
            self.unanswered = Some(asked);
            let answer = self.store.acquire(self.key, self.ask, within)?;
            if !matches!(answer, Answer::Queued(_)) {
                self.unanswered = None;
            }
            let is_late = Moment::now().since(asked) > ttl / 4;
            if !matches!(answer, Answer::Granted(_)) || !goes_by_time(self.store, self.ask) || !is_late {
                return Ok((answer, asked));
            }
            self.unanswered = Some(asked);
            let sent = Moment::now();
            let renewed = self.store.renew(self.key, self.ask.level, ttl, within)?;
            self.unanswered = None;
            match renewed {
                Renewed::Until(_) => return Ok((answer, sent)),
                Renewed::Revoked => {
                    // Somebody took it away before we knew of it. The level is not asked for again: a release of
                    // it that comes late must not meet a new lease.
                    self.store.release(self.key, self.ask.level, None, within)?;
                    return Ok((Answer::Refused(Refusal::Lost), sent));
                }
                Renewed::NotYours => {}
            }
        }
    }
}

/// Whether what is granted ends unless it is renewed.
fn goes_by_time(store: &dyn Store, ask: &Ask) -> bool {
    store.capabilities().beats || !ask.attended
}

fn spawn_waiter(
    store: &Arc<dyn Store>,
    key: &Key,
    ask: &Ask,
    (patience, silent, unanswered): (Duration, Option<Moment>, Option<Moment>),
    line: &Arc<Line>,
    sender: &Sender<Event>,
) -> Result<(), StoreError> {
    let (store, key, ask, line, sender) =
        (Arc::clone(store), key.clone(), ask.clone(), Arc::clone(line), sender.clone());
    let wait = move || {
        let tell = || {
            // Once the run is over nobody wants to know.
            let _ = sender.send(Event::Waited);
        };
        let asker = Asker { store: &*store, key: &key, ask: &ask, unanswered };
        wait_in_line(asker, patience, silent, &line, &tell);
        tell();
    };
    let spawned = signal::unheard(|| thread::Builder::new().name("line".into()).spawn(wait));
    spawned.map(drop).map_err(|error| StoreError::new(Trouble::Os, format!("cannot start a thread: {error}")))
}

/// Sleeps and asks, until there is an answer or nobody wants one. Tells when the store answers again.
fn wait_in_line(mut asker: Asker, patience: Duration, mut silent: Option<Moment>, line: &Line, tell: &dyn Fn()) {
    loop {
        if silent.is_none() {
            let slept = asker.store.await_change(asker.key, &Watch::Turn(asker.ask.level), None);
            match slept {
                Ok(()) => {}
                Err(error) if error.trouble == Trouble::Unreachable => {
                    log::info!("{error}; trying again");
                    silent = Some(Moment::now());
                    line.lock().queued = false;
                }
                Err(error) => {
                    line.lock().answer = Some(Err(error));
                    return;
                }
            }
        }
        let left = silent.map_or(patience, |silent| silent.after(patience).left());
        {
            let mut line = line.lock();
            if line.given_up {
                return;
            }
            line.asking = true;
        }
        let answer = asker.ask(REQUEST.min(left.max(TOO_SHORT)));
        let mut state = line.lock();
        state.asking = false;
        line.replied.notify_all();
        match answer {
            Ok((Answer::Queued(ahead), _)) => {
                state.told(ahead);
                drop(state);
                if silent.take().is_some() {
                    tell();
                    // What broke our sleep may do so again.
                    pause(PAUSE);
                }
            }
            Err(error) if error.trouble == Trouble::Unreachable => {
                state.queued = false;
                let silent = *silent.get_or_insert_with(Moment::now);
                let left = silent.after(patience).left();
                if left < TOO_SHORT {
                    drop(state);
                    thread::sleep(left);
                    let mut state = line.lock();
                    state.answer = Some(Err(gave_up(&error, patience)));
                    return;
                }
                drop(state);
                pause(PAUSE.min(left.saturating_sub(TOO_SHORT)));
            }
            answer => {
                state.answer = Some(answer);
                return;
            }
        }
    }
}

/// Ends the wait. The answer, if there was one before or while we ended it; else we may still be in the queue.
fn give_up(line: &Line) -> Option<Dated> {
    let mut state = line.lock();
    state.given_up = true;
    // What is on its way to the store should be there before we take it back.
    let on_its_way = line.replied.wait_timeout_while(state, LEAVE / 2, |state| state.asking);
    let (mut state, _) = on_its_way.unwrap_or_else(PoisonError::into_inner);
    state.answer.take()
}

fn conclude(store: &Arc<dyn Store>, key: &Key, ask: &Ask, answer: Dated) -> Result<Acquired, StoreError> {
    let (answer, asked) = answer?;
    Ok(match answer {
        Answer::Granted(grant) => {
            let ttl = ask.ttl.unwrap_or_default();
            let deadline = goes_by_time(&**store, ask).then(|| Deadline::of_lease(asked, ttl));
            let (store, key) = (Arc::clone(store), key.clone());
            Acquired::Lease(Lease { store, key, id: ask.lease, level: ask.level, ttl, grant, deadline })
        }
        Answer::Busy(holders, waiting) => Acquired::Busy(holders, waiting),
        Answer::Queued(ahead) => Acquired::Busy(Vec::new(), ahead),
        Answer::Refused(refusal) => Acquired::Refused(refusal),
    })
}
