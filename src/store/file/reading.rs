//! A record as it is read from its file, and the clock that goes with it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use super::directory::Kind;
use super::page::{self, Content};
use super::{FileRegister, lock, micros, wall_clock};
use crate::clock::Moment;
use crate::model::{Clock, Key, Record, RecordError, Role, Stamp, Ticket};
use crate::store::{StoreError, Trouble};

/// How often a record is read that others keep changing. A change takes longer than a reading.
pub(super) const SETTLED_AFTER: u32 = 20;

/// By how much the clock of a key may differ from the wall clock, in microseconds, and be taken for it: both are read
/// one after the other.
const SAME: u64 = 50_000;

/// A record as it was read, and the clock that goes with it.
pub(super) struct Reading<'a> {
    pub(super) file: &'a File,
    pub(super) now: Stamp,
    pub(super) base: i64,
    pub(super) generation: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) record: Record,
}

impl Clock for Reading<'_> {
    fn now(&self) -> Stamp {
        self.now
    }

    fn attends(&self, ticket: Ticket, role: Role) -> bool {
        // A holder that is not alone keeps the second byte only, and one that is alone keeps both.
        let byte = lock::place(ticket) + u64::from(role == Role::Holding);
        // Whose life cannot be ruled out lives.
        lock::is_locked(self.file, &(byte..byte + 1)).unwrap_or(true)
    }
}

impl Reading<'_> {
    /// The record as an operation would find it now, its instants by the wall clock, which may have been set since
    /// the clock of the key began.
    pub(super) fn by_wall_clock(&self) -> Record {
        let seen = self.record.clone().seen(self);
        let ahead = wall_clock() - micros(Moment::now().as_duration()) - self.base;
        if ahead.unsigned_abs() < SAME { seen } else { seen.moved(ahead) }
    }
}

impl FileRegister {
    /// The record as it is, without the mutex.
    pub(super) fn look<'a>(&self, key: &Key, file: &'a File) -> Result<Reading<'a>, StoreError> {
        let read = || page::read(file).map_err(|error| self.trouble("read", key, &error));
        // While others write, what is read may be torn, or one slot read before and one after two changes,
        // so that the newest of them is an old one. Twice the same is neither.
        let mut content = read()?;
        for _ in 0..SETTLED_AFTER {
            let again = read()?;
            if again == content && content != Content::Damaged {
                break;
            }
            content = again;
        }
        self.reading(key, file, content)
    }

    pub(super) fn reading<'a>(&self, key: &Key, file: &'a File, content: Content) -> Result<Reading<'a>, StoreError> {
        let page = match content {
            Content::Page(page) => Some(page),
            Content::Empty => None,
            Content::Damaged => {
                self.forgive(key, file)?;
                None
            }
        };
        let fresh = Record::new(key.clone());
        let (record, page) = match page {
            Some(page) => (Record::decode(key, &page.record).map_err(|error| self.unfit(key, &error))?, Some(page)),
            None => (fresh, None),
        };
        // While leases go by time the key's clock runs with BOOTTIME, whatever is done to the wall clock.
        let wall = wall_clock();
        let since_boot = micros(Moment::now().as_duration());
        let base = match &page {
            Some(page) if record.is_timed() && page.boot == self.boot()? => page.base,
            _ => wall - since_boot,
        };
        let now = Stamp::from_micros(u64::try_from(since_boot + base).unwrap_or(0));
        let (generation, bytes) = page.map_or((0, Vec::new()), |page| (page.generation, page.record));
        Ok(Reading { file, now, base, generation, bytes, record })
    }

    /// A file without a valid page: after a crash of the machine it may be one that was being written, and
    /// whoever held the key then is gone. In the same boot something is wrong, as it is where fences are remembered:
    /// those are on the disk before anybody counts on them.
    fn forgive(&self, key: &Key, file: &File) -> Result<(), StoreError> {
        let written = file.metadata().map_err(|error| self.trouble("look at", key, &error))?.mtime();
        let booted = (wall_clock() - micros(Moment::now().as_duration())) / 1_000_000;
        let path = self.directory.path_of(key);
        if written >= booted || self.directory.kind == Kind::Guards {
            let remedy = self.directory.kind.remedy(key);
            let words = format!("'{}' is damaged or not dlock's; {remedy}", path.display());
            return Err(StoreError::new(Trouble::Untrusted, words));
        }
        log::warn!("'{}' was damaged before this boot; starting '{key}' afresh", path.display());
        Ok(())
    }

    fn unfit(&self, key: &Key, error: &RecordError) -> StoreError {
        let path = self.directory.path_of(key);
        let path = path.display();
        match error {
            RecordError::Newer(layout) => {
                let words = format!("'{path}' was written by a newer dlock (layout {layout}); upgrade this one");
                StoreError::new(Trouble::Unfit, words)
            }
            RecordError::Corrupt(why) => {
                let remedy = self.directory.kind.remedy(key);
                let words = format!("'{path}' holds no record of '{key}': {why}; {remedy}");
                StoreError::new(Trouble::Untrusted, words)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::super::page::{self, Content, Page};
    use super::{FileRegister, micros, wall_clock};
    use crate::model::{Ask, EventKind, Info, Key, LeaseId, Mode, Patience, Stamp};
    use crate::store::{Register, StoreError};

    fn ask(lease: LeaseId, ttl: Option<Duration>) -> Ask {
        Ask {
            lease,
            level: lease,
            mode: Mode::Exclusive,
            ttl,
            patience: Patience::None,
            if_fence: None,
            proposal: None,
            min_hold: Duration::ZERO,
            max_reentry: 0,
            attended: false,
            info: Info::default(),
        }
    }

    #[test]
    fn a_key_that_is_given_back_while_it_is_looked_at_has_not_expired() {
        let folder = tempfile::tempdir().expect("a directory");
        let register = FileRegister::open(folder.path(), true).expect("it is ours");
        let key = Key::parse("k").expect("a key");
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let looks = scope.spawn(|| {
                let mut looks = 0;
                while !done.load(Ordering::Relaxed) {
                    let Some(record) = register.read(&key).expect("it is ours") else { continue };
                    let expired = record.events.iter().find(|event| event.kind == EventKind::Expired);
                    assert_eq!(expired, None, "after {looks} looks");
                    looks += 1;
                }
                looks
            });
            for number in 0..1_000_u32 {
                let lease = LeaseId::new(u128::from(number).to_be_bytes());
                register.transact(&key, Some(lease), None, |record, clock| record.acquire(clock, &ask(lease, None)))?;
                register.transact(&key, Some(lease), None, |record, clock| record.release(clock, lease, None))?;
            }
            done.store(true, Ordering::Relaxed);
            assert!(looks.join().expect("no look saw one expire") > 100);
            Ok::<_, StoreError>(())
        })
        .expect("it is ours");
    }

    #[test]
    fn a_lease_is_told_by_the_wall_clock_also_if_that_was_set_since() {
        let (ttl, set) = (Duration::from_secs(60), Duration::from_secs(3600));
        let folder = tempfile::tempdir().expect("a directory");
        let register = FileRegister::open(folder.path(), true).expect("it is ours");
        let (key, lease) = (Key::parse("k").expect("a key"), LeaseId::new([1; 16]));
        let ask = ask(lease, Some(ttl));
        register.transact(&key, Some(lease), None, |record, clock| record.acquire(clock, &ask)).expect("it is free");
        let file = register.directory.file(&key, false).expect("it is ours").expect("it is there");
        for set in [micros(set), -micros(set)] {
            let Content::Page(page) = page::read(&file).expect("it can be read") else { panic!("no page") };
            let mut record = crate::model::Record::decode(&key, &page.record).expect("a record").moved(set);
            record.fence.0 += 1;
            let changed =
                Page { generation: page.generation + 1, base: page.base + set, record: record.encode(), ..page };
            page::write(&file, &changed).expect("it can be written");
            let seen = register.read(&key).expect("it is ours").expect("it is there");
            let now = Stamp::from_micros(wall_clock().unsigned_abs());
            let left = seen.holders[0].ends_at().expect("it has an end").since(now);
            assert!(left <= ttl && left + Duration::from_secs(20) > ttl, "{left:?}");
        }
    }
}
