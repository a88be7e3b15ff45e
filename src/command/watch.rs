//! Following records as they change, in a thread of its own: told by the store, and by instants that pass.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::thread;
use std::time::Duration;

use super::which::Which;
use crate::clock::Moment;
use crate::config::Settings;
use crate::holder;
use crate::model::{Key, Record, Stamp};
use crate::signal;
use crate::store::{Changed, Intent, Store, StoreError, Trouble};

/// What happens in a shorter time is one change: nobody could read more.
const CALM: Duration = Duration::from_millis(20);

/// How often it is looked at whether anybody still wants to know. Nothing is asked of the store for that.
const WANTED: Duration = Duration::from_secs(1);

/// What one who follows hears.
#[derive(Debug)]
pub(super) enum News {
    /// This is how it is, by this clock at this moment.
    Seen(Vec<Record>, (Stamp, Moment)),
    /// The store does not answer; it is tried again.
    Silent(StoreError),
    /// Nothing has changed for a while.
    Nothing,
    /// There will be no more news.
    End(StoreError),
}

/// Tells `news` how it is now, and again whenever that may have changed, until it returns `false`. A store that cannot
/// be reached is tried for as long as the settings say.
///
/// # Errors
/// If no thread can be started.
pub(super) fn follow(
    settings: &Settings,
    which: Which,
    news: impl FnMut(News) -> bool + Send + 'static,
) -> io::Result<()> {
    let follower = Follower { url: settings.store.value.clone(), patience: settings.store_timeout.value, which };
    signal::unheard(|| thread::Builder::new().name("follower".into()).spawn(move || follower.run(news)))?;
    Ok(())
}

struct Follower {
    url: crate::store::Url,
    patience: Duration,
    which: Which,
}

impl Follower {
    fn run(&self, mut news: impl FnMut(News) -> bool) {
        let mut silent = None;
        loop {
            let error = match self.follow(&mut silent, &mut news) {
                Ok(true) => continue,
                Ok(false) => return,
                Err(error) => error,
            };
            let since = *silent.get_or_insert_with(Moment::now);
            if error.trouble != Trouble::Unreachable {
                news(News::End(error));
                return;
            }
            if since.after(self.patience).left().is_zero() {
                news(News::End(holder::gave_up(&error, self.patience)));
                return;
            }
            if !news(News::Silent(error)) {
                return;
            }
            holder::pause(holder::PAUSE);
        }
    }

    /// Follows until nobody wants to know (`false`), or until it is to begin anew.
    fn follow(&self, silent: &mut Option<Moment>, news: &mut impl FnMut(News) -> bool) -> Result<bool, StoreError> {
        let store = crate::store::open(&self.url, Intent::Look, self.patience.min(holder::REQUEST))?;
        // First: so nothing is missed between what is read and what is heard.
        let mut observer = store.observe(self.which.only())?;
        let read = self.which.read(&*store)?.whole()?;
        *silent = None;
        let mut records: BTreeMap<Key, Record> = read.into_iter().map(|record| (record.key.clone(), record)).collect();
        // Once a record was read for an instant that passed, others that pass are left for a while.
        let mut rested = Moment::now();
        let (stamp, heard) = (store.now(), Moment::now());
        loop {
            let shown: Vec<Record> = records.values().cloned().collect();
            if !news(News::Seen(shown.clone(), (store.now(), Moment::now()))) {
                return Ok(false);
            }
            let changed = loop {
                let next = records.values().filter_map(Record::next_end).min();
                let left = next.map_or(WANTED, |next| next.since(store.now()).max(rested.left()) + CALM);
                let mut changed = match observer.next(&shown, Some(left.min(WANTED)))? {
                    Changed::Any => return Ok(true),
                    Changed::Keys(keys) => keys,
                };
                // Instants that were read before a clock was set are not those of the clock any more.
                let (now, then) = (store.now(), stamp.after(Moment::now().since(heard)));
                if now.since(then).max(then.since(now)) > WANTED {
                    return Ok(true);
                }
                if !changed.is_empty() {
                    thread::sleep(CALM);
                    match observer.next(&[], Some(Duration::ZERO))? {
                        Changed::Any => return Ok(true),
                        Changed::Keys(more) => changed.extend(more),
                    }
                }
                if rested.left().is_zero() {
                    let ended = |record: &&Record| record.next_end().is_some_and(|end| end <= store.now());
                    let before = changed.len();
                    changed.extend(records.values().filter(ended).map(|record| record.key.clone()));
                    if changed.len() > before {
                        rested = Moment::now().after(WANTED);
                    }
                }
                changed.retain(|key| self.which.includes(key));
                if !changed.is_empty() {
                    break changed;
                }
                if !news(News::Nothing) {
                    return Ok(false);
                }
            };
            self.read_again(&*store, &changed, &mut records)?;
        }
    }

    fn read_again(
        &self,
        store: &dyn Store,
        changed: &BTreeSet<Key>,
        records: &mut BTreeMap<Key, Record>,
    ) -> Result<(), StoreError> {
        let keys: Vec<Key> = changed.iter().cloned().collect();
        let read = self.which.read_these(store, &keys)?.whole()?;
        records.retain(|key, _| !changed.contains(key));
        records.extend(read.into_iter().map(|record| (record.key.clone(), record)));
        Ok(())
    }
}
