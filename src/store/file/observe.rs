//! How one hears of all changes: the directory tells of each file that is written, and the bytes that holders
//! and waiters keep locked tell of their death, which writes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};

use super::directory::{Directory, cannot};
use super::lock;
use super::page::{self, Content};
use super::watch::{WITHOUT_BELL, timeout};
use crate::model::{Key, Record, Role};
use crate::signal;
use crate::store::{Changed, Observer, StoreError, lock as guard};

/// On how many bytes at once somebody sleeps, each in a thread of its own. Beyond that it is looked at what the
/// kernel would tell.
const MAX_ASLEEP: usize = 500;

/// One who hears of what happens in a directory.
pub(super) struct DirectoryObserver {
    directory: Directory,
    only: Option<Key>,
    /// Nothing where there is no instance of inotify to have.
    bell: Option<Inotify>,
    woken: Arc<Woken>,
    files: HashMap<Key, Watched>,
}

/// A key's file, and the bytes of it on which threads have been put to sleep.
struct Watched {
    file: Arc<File>,
    bytes: HashSet<u64>,
}

/// What the threads leave when they wake.
struct Woken {
    keys: Mutex<(BTreeSet<Key>, usize)>,
    bell: EventFd,
}

impl DirectoryObserver {
    pub(super) fn new(directory: Directory, only: Option<Key>) -> io::Result<Self> {
        let bell = bell(&directory)?;
        let woken = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let woken = Arc::new(Woken { keys: Mutex::default(), bell: woken });
        Ok(Self { directory, only, bell, woken, files: HashMap::new() })
    }

    /// Closes the files of those that nobody holds or waits for any more: whoever is shown many keys, one after the
    /// other, has not all of them open.
    fn let_go(&mut self, shown: &[Record]) {
        if shown.is_empty() {
            return;
        }
        let live: BTreeMap<&Key, HashSet<u64>> = shown.iter().map(|record| (&record.key, signs(record))).collect();
        self.files.retain(|key, watched| {
            let bytes = live.get(key);
            watched.bytes.retain(|byte| bytes.is_some_and(|bytes| bytes.contains(byte)));
            bytes.is_some_and(|bytes| !bytes.is_empty())
        });
    }

    /// Puts threads to sleep on the bytes that holders and waiters of a record keep locked; whether there are enough.
    fn sleep_on(&mut self, record: &Record) -> Result<bool, StoreError> {
        let key = &record.key;
        let bytes = signs(record);
        if bytes.is_empty() {
            return Ok(true);
        }
        if !self.files.contains_key(key) {
            let Some(file) = self.directory.named(&self.directory.name_of(key))? else { return Ok(true) };
            self.files.insert(key.clone(), Watched { file: Arc::new(file), bytes: HashSet::new() });
        }
        let Some(watched) = self.files.get_mut(key) else { return Ok(true) };
        for byte in bytes {
            if watched.bytes.contains(&byte) {
                continue;
            }
            if !self.woken.sleep(key, &watched.file, byte).map_err(|e| cannot("watch", self.directory.path(), &e))? {
                return Ok(false);
            }
            watched.bytes.insert(byte);
        }
        Ok(true)
    }

    /// The key that stands in a file.
    fn written_in(&self, name: &str) -> Option<Key> {
        let file = self.directory.named(name).ok()??;
        match page::read(&file) {
            Ok(Content::Page(page)) => page.key().filter(|key| self.directory.name_of(key) == name),
            _ => None,
        }
    }

    /// What the bell told.
    fn rung(&mut self) -> Result<Changed, StoreError> {
        let mut keys = std::mem::take(&mut self.woken.state().0);
        let _ = self.woken.bell.read();
        let events = self.bell.as_ref().map(Inotify::read_events);
        let events = match events {
            None | Some(Err(Errno::EAGAIN)) => Vec::new(),
            Some(events) => events.map_err(|error| cannot("watch", self.directory.path(), &error.into()))?,
        };
        for InotifyEvent { mask, name, .. } in events {
            // The directory was made or deleted, or more happened than the kernel remembers.
            let Some(name) = name.filter(|_| self.directory.is_there()) else { return Ok(Changed::Any) };
            let name = name.to_string_lossy();
            let known = self.files.keys().find(|key| self.directory.name_of(key) == name).cloned();
            match known.or_else(|| self.directory.key_of(&name)) {
                Some(key) => {
                    if mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE) {
                        // It is another file from here on.
                        self.files.remove(&key);
                    }
                    keys.insert(key);
                }
                // Its name is too long to tell the key, and nothing is left that would.
                None if mask.intersects(AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM)
                    && self.directory.may_name(&name) =>
                {
                    return Ok(Changed::Any);
                }
                // If the file does not tell it, either, it is being written,
                // and rings once more, or is none of ours.
                None if self.directory.may_name(&name) => keys.extend(self.written_in(&name)),
                None => {}
            }
        }
        keys.retain(|key| self.only.as_ref().is_none_or(|only| only == key));
        Ok(Changed::Keys(keys))
    }
}

impl Observer for DirectoryObserver {
    fn next(&mut self, shown: &[Record], limit: Option<Duration>) -> Result<Changed, StoreError> {
        self.let_go(shown);
        let mut unheard = BTreeSet::new();
        // Without a bell all is looked at anyway.
        for record in if self.bell.is_some() { shown } else { &[] } {
            if !self.sleep_on(record)? {
                unheard.insert(record.key.clone());
            }
        }
        let hears_all = self.bell.is_some() && unheard.is_empty();
        let at_most = limit.into_iter().chain((!hears_all).then_some(WITHOUT_BELL)).min();
        let mut fds = vec![PollFd::new(self.woken.bell.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.bell.as_ref().map(|bell| PollFd::new(bell.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout(at_most)) {
            Ok(0) if limit.is_some_and(|limit| limit < WITHOUT_BELL) => Ok(Changed::Keys(BTreeSet::new())),
            Ok(0) if self.bell.is_none() => Ok(Changed::Any),
            Ok(0) | Err(Errno::EINTR) => Ok(Changed::Keys(unheard)),
            Ok(_) => self.rung(),
            Err(error) => Err(cannot("watch", self.directory.path(), &error.into())),
        }
    }
}

impl Woken {
    fn state(&self) -> MutexGuard<'_, (BTreeSet<Key>, usize)> {
        guard(&self.keys)
    }

    /// Puts a thread to sleep until nobody has the byte locked; no if there are too many already.
    fn sleep(self: &Arc<Self>, key: &Key, file: &Arc<File>, byte: u64) -> io::Result<bool> {
        {
            let mut state = self.state();
            if state.1 >= MAX_ASLEEP {
                return Ok(false);
            }
            state.1 += 1;
        }
        let (woken, key, file) = (Arc::clone(self), key.clone(), Arc::clone(file));
        let sleep = move || {
            if lock::await_unlock(&file, byte).is_ok() {
                let _ = lock::unlock(&file, &(byte..byte + 1));
            }
            let mut state = woken.state();
            state.0.insert(key);
            state.1 -= 1;
            drop(state);
            let _ = woken.bell.write(1);
        };
        signal::unheard(|| thread::Builder::new().name("observer".into()).stack_size(64 << 10).spawn(sleep))?;
        Ok(true)
    }
}

/// The bytes that holders and waiters of a record keep locked.
fn signs(record: &Record) -> HashSet<u64> {
    let holding = record.holders.iter().flat_map(|hold| {
        let levels = hold.levels.iter().filter(|level| level.until.is_none());
        levels.map(|level| (level.ticket, Role::Holding, hold.mode))
    });
    let waiting = record.queue.iter().filter(|waiter| waiter.until.is_none());
    let waiting = waiting.map(|waiter| (waiter.ticket, Role::Waiting, waiter.mode));
    holding.chain(waiting).map(|(ticket, role, mode)| lock::bytes(ticket, role, mode).start).collect()
}

fn bell(directory: &Directory) -> io::Result<Option<Inotify>> {
    use AddWatchFlags as On;
    let told = On::IN_MODIFY | On::IN_ATTRIB | On::IN_CREATE | On::IN_DELETE | On::IN_MOVE;
    let itself = On::IN_DELETE_SELF | On::IN_MOVE_SELF;
    let bell = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
    let there = directory.path().ancestors().find(|path| path.exists()).unwrap_or(directory.path());
    // Of a directory that is still to be made it is known in which one that begins.
    let told = if directory.is_there() { told | itself } else { On::IN_CREATE | On::IN_MOVED_TO | itself };
    match bell.and_then(|bell| bell.add_watch(there, told).map(|_| bell)) {
        Ok(bell) => Ok(Some(bell)),
        Err(Errno::EMFILE | Errno::ENOSPC | Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
