//! How one sleeps until a key's record may have changed in a way that matters: on the bytes of those
//! ahead, on the file's time stamp, and until an instant that the record names. Never by polling.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::lock::{self, place};
use crate::model::{Hold, Mode, OFFER, Record, Role, Stamp, Standing};
use crate::store::{Watch, lock as guard};

/// How often the file is looked at where the kernel has no more inotify instances to give
/// (`fs.inotify.max_user_instances`).
pub(super) const WITHOUT_BELL: Duration = Duration::from_secs(1);

/// What to sleep on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Until one of these bytes is unlocked.
    bytes: Vec<u64>,
    /// Until the file's time stamp changes.
    bell: bool,
    /// At most so long.
    at_most: Option<Duration>,
}

/// How often the third in the queue looks; the fourth half as often, and so on. If those on whom one sleeps
/// are frozen when their turn comes, nobody else would pass them over.
const LOOKOUT: Duration = Duration::from_secs(10);

/// What to sleep on, given a record as an operation would find it; nothing if it is time to act.
///
/// The first two in the queue look at those who hold the key, the second one at the first one, too: if it
/// does not take the key when it could, it is passed over. Those behind them sleep on the two right ahead
/// of them, so the end of a hold wakes two: the one whose turn it is, and the one whose turn is next.
pub(super) fn plan(record: &Record, now: Stamp, watch: &Watch) -> Option<Plan> {
    match watch {
        Watch::Turn(me) => {
            let Standing::Waiting(at) = record.standing(*me) else { return None };
            let me = &record.queue[at];
            if me.offered_at.is_some() {
                return None;
            }
            let ahead = &record.queue[..at];
            if let [.., far, near] = ahead {
                let patience = u32::try_from(at - 1).unwrap_or(u32::MAX);
                let bytes = vec![place(far.ticket), place(near.ticket)];
                return Some(Plan { bytes, at_most: Some(LOOKOUT * patience), ..Plan::default() });
            }
            let in_the_way: Vec<&Hold> = record.holders.iter().filter(|hold| blocks(hold.mode, me.mode)).collect();
            // All slots are alike, and any of them will do; else all must end, so the first one will do.
            let watched =
                if matches!(me.mode, Mode::Slots(_)) { &in_the_way[..] } else { in_the_way.get(..1).unwrap_or(&[]) };
            let mut plan = until_end_of(watched.iter().copied(), now);
            plan.bytes.extend(ahead.iter().map(|waiter| place(waiter.ticket)));
            let offers = ahead.iter().filter_map(|waiter| waiter.offered_at);
            plan.limit(offers.map(|offered| offered.after(OFFER).since(now)).min());
            Some(plan)
        }
        Watch::Hold(me) => {
            let holds = record.standing(*me) == Standing::Holding { revoked: false };
            holds.then(|| Plan { bell: true, ..Plan::default() })
        }
        Watch::Ends(leases) => {
            let left: Vec<&Hold> = record.holders.iter().filter(|hold| leases.contains(&hold.lease)).collect();
            let first = left.get(..1).filter(|first| !first.is_empty())?;
            Some(until_end_of(first.iter().copied(), now))
        }
    }
}

fn blocks(held: Mode, wanted: Mode) -> bool {
    // One slot alone does not block another one, but the number of them does.
    !wanted.fits(std::iter::once(held)) || matches!(wanted, Mode::Slots(_))
}

fn until_end_of<'a>(holds: impl Iterator<Item = &'a Hold>, now: Stamp) -> Plan {
    let mut plan = Plan { bell: true, ..Plan::default() };
    for hold in holds {
        let level = hold.levels.iter().find(|level| level.until.is_none());
        plan.bytes.extend(level.map(|level| lock::bytes(level.ticket, Role::Holding, hold.mode).start));
        plan.limit(hold.ends_at().map(|end| end.since(now)));
    }
    plan
}

impl Plan {
    fn limit(&mut self, at_most: Option<Duration>) {
        self.at_most = self.at_most.into_iter().chain(at_most).min();
    }
}

/// One who sleeps on a key's file. Threads of it sleep in the kernel, one on each byte, for as long as
/// the byte is locked: a ticket never recurs, so none is ever needed twice.
#[derive(Debug)]
pub(super) struct Sleeper {
    pub(super) inode: u64,
    pub(super) watch: Watch,
    file: Arc<File>,
    /// Armed when it is first needed; nothing where the kernel has none to give.
    bell: OnceLock<Option<Inotify>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    asleep: Mutex<HashSet<u64>>,
    woken: EventFd,
}

impl Sleeper {
    pub(super) fn new(file: &File, inode: u64, watch: &Watch) -> io::Result<Self> {
        let woken = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared { asleep: Mutex::default(), woken });
        let file = Arc::new(lock::reopen(file)?);
        Ok(Self { inode, watch: watch.clone(), file, bell: OnceLock::new(), shared })
    }

    /// Sleeps until something of `plan` happens, at most for `limit`; whether anything did.
    pub(super) fn sleep(&self, plan: &Plan, limit: Option<Duration>) -> io::Result<bool> {
        if plan.bell && self.bell.get().is_none() {
            // What rang before the bell was armed is in the record, which is read again now.
            let _ = self.bell.set(bell(&self.file)?);
            return Ok(true);
        }
        for byte in &plan.bytes {
            self.put_thread_to_sleep(*byte)?;
        }
        let bell = self.bell.get().and_then(Option::as_ref).filter(|_| plan.bell);
        let without = (plan.bell && bell.is_none()).then_some(WITHOUT_BELL);
        let at_most = [plan.at_most, limit, without].into_iter().flatten().min();
        let mut fds = vec![PollFd::new(self.shared.woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(bell.map(|bell| PollFd::new(bell.as_fd(), PollFlags::POLLIN)));
        let happened = match poll(&mut fds, timeout(at_most)) {
            Ok(happened) => happened > 0,
            Err(Errno::EINTR) => true,
            Err(error) => return Err(error.into()),
        };
        // Whatever they say, the record is read again.
        let _ = self.shared.woken.read();
        if let Some(bell) = bell {
            let _ = bell.read_events();
        }
        Ok(happened)
    }

    fn put_thread_to_sleep(&self, byte: u64) -> io::Result<()> {
        let asleep = |shared: &Shared| guard(&shared.asleep).insert(byte);
        if !asleep(&self.shared) {
            return Ok(());
        }
        let file = Arc::clone(&self.file);
        let shared = Arc::clone(&self.shared);
        let sleep = move || {
            if lock::await_unlock(&file, byte).is_ok() {
                let _ = lock::unlock(&file, &(byte..byte + 1));
            }
            guard(&shared.asleep).remove(&byte);
            let _ = shared.woken.write(1);
        };
        thread::Builder::new().name("waiter".into()).stack_size(64 << 10).spawn(sleep).map(drop)
    }
}

fn bell(file: &File) -> io::Result<Option<Inotify>> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let bell = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
    match bell.and_then(|bell| {
        bell.add_watch(path.as_str(), AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_MOVE_SELF).map(|_| bell)
    }) {
        Ok(bell) => Ok(Some(bell)),
        Err(Errno::EMFILE | Errno::ENOSPC) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A little longer than the span, so that the instant has passed when poll returns.
pub(super) fn timeout(span: Option<Duration>) -> PollTimeout {
    let Some(span) = span else { return PollTimeout::NONE };
    PollTimeout::try_from(span.as_millis() + 1).unwrap_or(PollTimeout::MAX)
}
