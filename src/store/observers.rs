//! Hearing of all changes at several stores: one who listens to each, in a thread of its own, and passes it on.

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use crate::clock::Moment;
use crate::model::Record;
use crate::signal;
use crate::store::{Changed, Observer, StoreError, Trouble};

/// How often one who listens looks whether anybody still wants to know.
const WANTED: Duration = Duration::from_secs(1);

/// What all of them hear.
pub(super) struct Observers {
    heard: Receiver<Result<Changed, StoreError>>,
    /// How many of them may still fail.
    spare: usize,
    /// Those who listen go on as long as this is there.
    _wanted: Arc<()>,
}

impl Observers {
    /// All that these hear. So many of them may fail before that is an error.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(super) fn new(observers: Vec<Box<dyn Observer>>, spare: usize) -> io::Result<Self> {
        let (sender, heard) = mpsc::channel();
        let wanted = Arc::new(());
        for observer in observers {
            let (sender, wanted) = (sender.clone(), Arc::downgrade(&wanted));
            let listen = move || listen(observer, &sender, &wanted);
            signal::unheard(|| thread::Builder::new().name("listener".into()).spawn(listen))?;
        }
        Ok(Self { heard, spare, _wanted: wanted })
    }
}

fn listen(mut observer: Box<dyn Observer>, sender: &Sender<Result<Changed, StoreError>>, wanted: &Weak<()>) {
    while wanted.strong_count() > 0 {
        let changed = observer.next(&[], Some(WANTED));
        let is_last = changed.is_err();
        if changed.as_ref().is_ok_and(|changed| *changed == Changed::Keys(BTreeSet::new())) {
            continue;
        }
        if sender.send(changed).is_err() || is_last {
            return;
        }
    }
}

impl Observer for Observers {
    fn next(&mut self, _: &[Record], timeout: Option<Duration>) -> Result<Changed, StoreError> {
        let until = timeout.map(|timeout| Moment::now().after(timeout));
        let mut keys = BTreeSet::new();
        loop {
            let left = if keys.is_empty() { until.map_or(Duration::MAX, Moment::left) } else { Duration::ZERO };
            match self.heard.recv_timeout(left) {
                Ok(Ok(Changed::Keys(more))) => keys.extend(more),
                Ok(Err(_)) if self.spare > 0 => self.spare -= 1,
                Ok(other) => return other,
                Err(RecvTimeoutError::Timeout) => return Ok(Changed::Keys(keys)),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(StoreError::new(Trouble::Unreachable, "nobody listens to the nodes any more"));
                }
            }
        }
    }
}
