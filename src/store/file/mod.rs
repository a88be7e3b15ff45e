//! The file store: one file for each key, in a directory of this machine.
//!
//! The kernel sees who lives. A `run` locks bytes of the key's file ([`lock`]) for as long as it, or the
//! guardian after it, has the file open; so whoever dies is noticed at once and no ttl is sat out. The
//! record itself ([`page`]) changes under a mutex, another byte. Waiters sleep on the bytes of those ahead
//! of them ([`watch`]).

mod directory;
mod examine;
mod lock;
mod observe;
mod page;
mod reading;
mod watch;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

use self::directory::{Directory, Kind, cannot};
use self::observe::DirectoryObserver;
use self::page::{Content, Page};
use self::reading::{Reading, SETTLED_AFTER};
use self::watch::Sleeper;
use super::{Capabilities, Examination, Observer, Register, Scope, StoreError, Trouble, Watch, lock as guard};
use crate::clock::Moment;
use crate::model::{Clock, Key, LevelId, Record, Stamp};

/// How long another process may take for its change. Changes take microseconds, so a process this late is
/// stopped, or the machine is on its knees.
const MUTEX_PATIENCE: Duration = Duration::from_secs(2);

/// A register in a directory.
#[derive(Debug)]
pub struct FileRegister {
    directory: Directory,
    identity: String,
    boot: OnceLock<[u8; 16]>,
    signs: Mutex<HashMap<LevelId, SignOfLife>>,
    sleepers: Mutex<HashMap<Key, Arc<Sleeper>>>,
}

/// The bytes that a level of ours keeps locked.
#[derive(Debug)]
struct SignOfLife {
    file: File,
    inode: u64,
    bytes: Range<u64>,
}

/// A sign of life as the record wants it, and the bytes that it had before. An empty range is none.
struct Change {
    sign: Option<SignOfLife>,
    before: Range<u64>,
}

impl FileRegister {
    /// The register in `path`, which is made if it is missing and `make` says so; else it has no keys.
    ///
    /// # Errors
    /// If it cannot be made, or not be trusted.
    pub fn open(path: &Path, make: bool) -> Result<Self, StoreError> {
        Ok(Self::of(Directory::open(path, make, Kind::Locks)?))
    }

    /// The same for the resources that `dlock guard` keeps in `path`, beside the locks there.
    ///
    /// # Errors
    /// If it cannot be made, or not be trusted.
    pub fn guards(path: &Path) -> Result<Self, StoreError> {
        Ok(Self::of(Directory::open(path, true, Kind::Guards)?))
    }

    fn of(directory: Directory) -> Self {
        // The same directory may be reached by several paths.
        let canonical = directory.path().canonicalize();
        let path = canonical.as_deref().unwrap_or(directory.path());
        let identity = format!("{}:{}", directory.kind.scheme(), path.display());
        Self { directory, identity, boot: OnceLock::new(), signs: Mutex::default(), sleepers: Mutex::default() }
    }

    fn boot(&self) -> Result<[u8; 16], StoreError> {
        const PATH: &str = "/proc/sys/kernel/random/boot_id";
        if let Some(boot) = self.boot.get() {
            return Ok(*boot);
        }
        let text = std::fs::read_to_string(PATH).map_err(|error| cannot("read", Path::new(PATH), &error))?;
        let number = u128::from_str_radix(&text.trim().replace('-', ""), 16);
        let number = number.map_err(|_| StoreError::new(Trouble::Os, format!("'{PATH}' holds no boot id")))?;
        Ok(*self.boot.get_or_init(|| number.to_be_bytes()))
    }

    fn trouble(&self, what: &str, key: &Key, error: &io::Error) -> StoreError {
        cannot(what, &self.directory.path_of(key), error)
    }

    /// The key's file with the mutex taken, and its inode number; nothing if there is no file.
    fn locked(&self, key: &Key, create: bool) -> Result<Option<(File, u64)>, StoreError> {
        loop {
            let Some(file) = self.directory.file(key, create)? else { return Ok(None) };
            let taken = lock::take_mutex(file, MUTEX_PATIENCE).map_err(|error| self.trouble("lock", key, &error))?;
            let Some(file) = taken else {
                let path = self.directory.path_of(key);
                let words = format!("'{}' is kept locked by another dlock, which may be stopped", path.display());
                return Err(StoreError::new(Trouble::Stuck, words));
            };
            let inode = file.metadata().map_err(|error| self.trouble("look at", key, &error))?.ino();
            // Somebody may have deleted it while we waited.
            if self.directory.still_has(key, inode) {
                return Ok(Some((file, inode)));
            }
        }
    }

    /// Locks the bytes that the record wants of a level, before it is written.
    fn show_life(
        &self,
        key: &Key,
        (locked, inode): (&File, u64),
        level: LevelId,
        record: &Record,
    ) -> Result<Change, StoreError> {
        let wanted = record.sign_of_life(level).map_or(0..0, |(ticket, role, mode)| lock::bytes(ticket, role, mode));
        let old = guard(&self.signs).remove(&level).filter(|sign| sign.inode == inode);
        let (file, before) = match old {
            Some(sign) => (sign.file, sign.bytes),
            None if wanted.is_empty() => return Ok(Change { sign: None, before: 0..0 }),
            None => (lock::reopen(locked).map_err(|error| self.trouble("open", key, &error))?, 0..0),
        };
        if !wanted.is_empty() && !lock::try_lock(&file, &wanted).map_err(|error| self.trouble("lock", key, &error))? {
            let path = self.directory.path_of(key);
            let words = format!("'{}' has a lock on a ticket that was never given out", path.display());
            return Err(StoreError::new(Trouble::Untrusted, words));
        }
        Ok(Change { sign: Some(SignOfLife { file, inode, bytes: wanted }), before })
    }

    /// Unlocks what a sign of life does not need any more: after the record was written, what it had
    /// before; else what was added to it.
    fn settle(&self, level: LevelId, change: Change, written: bool) -> io::Result<()> {
        let Some(mut sign) = change.sign else { return Ok(()) };
        let (keep, drop) = if written { (sign.bytes, change.before) } else { (change.before, sign.bytes) };
        let rest = outside(&drop, &keep);
        if !rest.is_empty() {
            lock::unlock(&sign.file, &rest)?;
        }
        if !keep.is_empty() {
            sign.bytes = keep;
            guard(&self.signs).insert(level, sign);
        }
        Ok(())
    }

    fn write(&self, key: &Key, reading: &Reading<'_>, record: &Record, bytes: Vec<u8>) -> Result<(), StoreError> {
        if bytes.len() > page::MAX_RECORD {
            let words = format!("the record of '{key}' has grown too long: too many wait for it");
            return Err(StoreError::new(Trouble::Os, words));
        }
        let page = Page { generation: reading.generation + 1, boot: self.boot()?, base: reading.base, record: bytes };
        page::write(reading.file, &page).map_err(|error| self.trouble("write", key, &error))?;
        if record.must_last() || reading.record.must_last() {
            reading.file.sync_data().map_err(|error| self.trouble("write", key, &error))?;
            // Whoever made the file may have died before its name was on the disk.
            if reading.generation == 0 || record.passed != reading.record.passed {
                self.directory.sync().map_err(|error| self.trouble("write", key, &error))?;
            }
        }
        Ok(())
    }
}

impl Register for FileRegister {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn describe(&self) -> String {
        self.directory.path().display().to_string()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { shared: true, slots: true, fifo: true, beats: false, least_ttl: Duration::ZERO }
    }

    fn transact<T>(
        &self,
        key: &Key,
        me: Option<LevelId>,
        _: Option<Duration>,
        mut change: impl FnMut(&mut Record, &dyn Clock) -> T,
    ) -> Result<T, StoreError> {
        let (file, inode) = if let Some(found) = self.locked(key, false)? {
            found
        } else {
            let mut record = Record::new(key.clone());
            let fresh = record.clone();
            let now = Stamp::from_micros(u64::try_from(wall_clock()).unwrap_or(0));
            let answer = change(&mut record, &now);
            if record == fresh {
                return Ok(answer);
            }
            self.locked(key, true)?.ok_or_else(|| StoreError::new(Trouble::Os, "the key's file cannot be made"))?
        };
        let content = page::read(&file).map_err(|error| self.trouble("read", key, &error))?;
        let reading = self.reading(key, &file, content)?;
        let mut record = reading.record.clone();
        let answer = change(&mut record, &reading);
        let bytes = record.encode();
        if bytes == reading.bytes {
            return Ok(answer);
        }
        let show = |level| self.show_life(key, (&file, inode), level, &record).map(|change| (level, change));
        let life = me.map(show).transpose()?;
        let silent = life.as_ref().is_some_and(|(_, change)| change.sign.is_some());
        let written = self.write(key, &reading, &record, bytes);
        if let Some((level, change)) = life {
            let settled = self.settle(level, change, written.is_ok());
            settled.map_err(|error| self.trouble("unlock", key, &error))?;
        }
        written?;
        if !silent {
            // Nobody's sleep ends by a byte: those who watch the file hear of it by its time stamp.
            let now = TimeSpec::UTIME_NOW;
            futimens(&file, &now, &now).map_err(|error| self.trouble("touch", key, &error.into()))?;
        }
        Ok(answer)
    }

    fn read(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        // To look, it is enough that the file can be read.
        let Some(file) = self.directory.named(&self.directory.name_of(key))? else { return Ok(None) };
        let mut reading = self.look(key, &file)?;
        for _ in 0..SETTLED_AFTER {
            let seen = reading.by_wall_clock();
            // Whoever gives a key back writes first, and then shows no life: read before and looked at after that, it
            // would be dead.
            let again = self.look(key, &file)?;
            if again.generation == reading.generation {
                return Ok((reading.generation > 0).then_some(seen));
            }
            reading = again;
        }
        Ok(Some(reading.by_wall_clock()))
    }

    fn keys(&self, _: Scope) -> Result<Vec<Key>, StoreError> {
        let mut keys = Vec::new();
        for name in self.directory.names()? {
            let Some(name) = name.to_str() else { continue };
            let path = self.directory.path().join(name);
            let read = |file: File| page::read(&file).map_err(|error| cannot("read", &path, &error));
            let content = match self.directory.named(name).and_then(|file| file.map(read).transpose()) {
                Ok(content) => content,
                Err(error) => {
                    // One file that cannot be read hides no other.
                    log::warn!("{error}");
                    continue;
                }
            };
            let key = match content {
                Some(Content::Page(page)) => page.key().filter(|key| self.directory.name_of(key) == name),
                // Whoever inspects it is told what is wrong, if it was not just being written.
                Some(Content::Damaged) => self.directory.key_of(name),
                Some(Content::Empty) | None => continue,
            };
            match key {
                Some(key) => keys.push(key),
                None => log::warn!("'{}' is not a record of dlock's", path.display()),
            }
        }
        keys.sort();
        Ok(keys)
    }

    fn ask_clock(&self) -> Result<Stamp, StoreError> {
        // What takes its time here is the file system.
        let looked = std::fs::metadata(self.directory.path());
        if let Err(error) = looked
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(cannot("look at", self.directory.path(), &error));
        }
        Ok(Stamp::from_micros(u64::try_from(wall_clock()).unwrap_or(0)))
    }

    fn examine(&self, _: Duration) -> Result<Examination, StoreError> {
        examine::examine(&self.directory)
    }

    fn observe(&self, key: Option<&Key>) -> Result<Box<dyn Observer>, StoreError> {
        let directory = Directory::open(self.directory.path(), false, self.directory.kind)?;
        let observer = DirectoryObserver::new(directory, key.cloned());
        Ok(Box::new(observer.map_err(|error| cannot("watch", self.directory.path(), &error))?))
    }

    fn await_change(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), StoreError> {
        let deadline = timeout.map(|timeout| Moment::now().after(timeout));
        loop {
            let Some(file) = self.directory.file(key, false)? else { return Ok(()) };
            let inode = file.metadata().map_err(|error| self.trouble("look at", key, &error))?.ino();
            let sleeper = self.sleeper(key, &file, inode, watch)?;
            // Read only now that the bell is armed: what happens from here on is heard.
            let reading = self.look(key, &file)?;
            let seen = reading.record.clone().seen(&reading);
            let Some(plan) = watch::plan(&seen, reading.now, watch) else { return Ok(()) };
            let left = deadline.map(Moment::left);
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(());
            }
            let happened = sleeper.sleep(&plan, left).map_err(|error| self.trouble("watch", key, &error))?;
            if !happened {
                // An instant has come: it takes an operation to do what is due.
                return Ok(());
            }
        }
    }

    fn sign_of_life(&self, level: LevelId) -> Result<Option<OwnedFd>, StoreError> {
        let signs = guard(&self.signs);
        let Some(sign) = signs.get(&level) else { return Ok(None) };
        let file = sign.file.try_clone().map_err(|error| cannot("keep a file in", self.directory.path(), &error))?;
        Ok(Some(file.into()))
    }
}

impl FileRegister {
    /// The sleeper on this very file.
    fn sleeper(&self, key: &Key, file: &File, inode: u64, watch: &Watch) -> Result<Arc<Sleeper>, StoreError> {
        let mut sleepers = guard(&self.sleepers);
        if let Some(sleeper) = sleepers.get(key)
            && sleeper.inode == inode
            && sleeper.watch == *watch
        {
            return Ok(Arc::clone(sleeper));
        }
        let sleeper = Sleeper::new(file, inode, watch).map_err(|error| self.trouble("watch", key, &error))?;
        let sleeper = Arc::new(sleeper);
        sleepers.insert(key.clone(), Arc::clone(&sleeper));
        Ok(sleeper)
    }
}

/// What is in `old` and not in `new`, which are bytes of the same ticket, or empty.
fn outside(old: &Range<u64>, new: &Range<u64>) -> Range<u64> {
    if new.contains(&old.start) { new.end.min(old.end)..old.end } else { old.clone() }
}

fn wall_clock() -> i64 {
    micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}
