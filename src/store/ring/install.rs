//! Installing a list of nodes, so that no key is ever given out by two lists at once.
//!
//! Every node is open for one list, whose stamp all who ask it for a key must have, or closed. A list is opened in this
//! order:
//!
//! 1. All its nodes are closed, and all nodes of all lists that any of these knows of: what it was open for, what it was
//!    to be opened for by somebody who did not come to an end, and what it has heard of such lists. A node that is closed
//!    keeps all of that.
//! 2. Nobody who holds a key stands where the new list has it not. Nobody gets one meanwhile, so that stays so. What is
//!    known of such keys is taken to where they will be.
//! 3. Nodes that are not in the new list forget all lists. The others are opened for it, and do the same.
//!
//! Each step at a node is taken only while the node is closed by whoever takes it. So when somebody opens a list, all
//! nodes of all lists that have one in common with it have been closed by him, and were not opened since by anybody but
//! himself: whoever wants to do that has to close these first, learns of his list from any of them, and closes all of its
//! nodes. Dying, being frozen for any time, and requests that arrive late change nothing in that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::points::Points;
use super::roll::{List, Node, Outcome, Past, Roll, Step, Told};
use crate::model::{Key, Stamp};
use crate::store::{Scope, StoreError, Trouble};

/// Whoever installs a list says so often that he is still at it, and is dead if he was not heard of for so long.
const KEEP: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// Of how many keys the past is taken elsewhere at once.
const AT_ONCE: usize = 100;

/// Makes a node of its name, one that has whatever is there.
pub(super) type Connect<'a> = dyn Fn(&str) -> Result<Arc<dyn Node>, StoreError> + 'a;

/// What became of it.
#[derive(Debug)]
pub(super) enum Installed {
    /// The list is that of all its nodes.
    Done,
    /// All is as it was before: these are held, and would be elsewhere.
    Held(Vec<Key>),
}

/// Who may be in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// Nobody: the nodes are new, or have forgotten what they were.
    First,
    /// Any list, but for keys that are held.
    Replace,
}

/// Somebody who installs a list.
pub(super) struct Installer<'a> {
    list: &'a List,
    right: Right,
    connect: &'a Connect<'a>,
    /// His name.
    by: String,
    nodes: BTreeMap<String, Arc<dyn Node>>,
    /// Those that he closed, and what they knew before.
    closed: BTreeMap<String, Roll>,
}

impl<'a> Installer<'a> {
    /// One whose name is that of nobody else.
    pub(super) fn new(list: &'a List, right: Right, by: String, connect: &'a Connect<'a>) -> Self {
        Self { list, right, connect, by, nodes: BTreeMap::new(), closed: BTreeMap::new() }
    }

    /// Installs the list. Waits for those who hold keys that would be elsewhere, as long as somebody wants it to.
    ///
    /// # Errors
    /// [`StoreError`]: all is as it was, as far as nodes could be told.
    pub(super) fn install(mut self, goes_on: &dyn Fn() -> bool) -> Result<Installed, StoreError> {
        if self.is_installed()? {
            return Ok(Installed::Done);
        }
        let drained = self.close_all().and_then(|()| self.drain(goes_on));
        let carried = drained.and_then(|held| if held.is_empty() { self.carry().map(|()| held) } else { Ok(held) });
        match carried {
            // From here on there is no way back.
            Ok(held) if held.is_empty() => self.open_all().map(|()| Installed::Done),
            Ok(held) => {
                self.undo();
                Ok(Installed::Held(held))
            }
            Err(error) => {
                self.undo();
                Err(error)
            }
        }
    }

    fn node(&mut self, name: &str) -> Result<Arc<dyn Node>, StoreError> {
        if let Some(node) = self.nodes.get(name) {
            return Ok(Arc::clone(node));
        }
        let node = (self.connect)(name)?;
        self.nodes.insert(name.to_owned(), Arc::clone(&node));
        Ok(node)
    }

    /// Looks whether there is nothing to do, and before anything is closed, whether all nodes that must be closed answer.
    fn is_installed(&mut self) -> Result<bool, StoreError> {
        let stamp = self.list.stamp();
        let mut open = true;
        self.with_each(|this, name| {
            let node = this.node(name)?;
            let told = node.step(Step::Look).map_err(|error| this.hint(error, name))?;
            this.may_close(&*node, &told.roll, told.now)?;
            open &= told.roll.open() == Some(&stamp);
            Ok(told.roll)
        })?;
        Ok(open)
    }

    /// What to do about a node that does not answer, and is in no list that anybody wants.
    fn hint(&self, error: StoreError, name: &str) -> StoreError {
        if self.list.has(name) || error.trouble != Trouble::Unreachable {
            return error;
        }
        let words =
            format!("{error}; keys may be held there: if it is gone for good, start an empty server in its place");
        StoreError { words, ..error }
    }

    /// Closes all nodes of the list and of all lists that these know of, in the order of their names, so that of two who
    /// do this one comes first.
    fn close_all(&mut self) -> Result<(), StoreError> {
        self.with_each(|this, name| {
            let node = this.node(name)?;
            let closed = node.step(Step::Close(&this.by, this.list, KEEP.1));
            // It may be done, and the answer be lost.
            this.closed.insert(name.to_owned(), Roll::default());
            let told = closed?;
            if told.outcome != Outcome::Done {
                return Err(busy(&*node));
            }
            this.may_close(&*node, &told.roll, told.now)?;
            this.closed.insert(name.to_owned(), told.roll.clone());
            Ok(told.roll)
        })
    }

    /// Does something with all nodes of the list, and of all lists that these turn out to know.
    fn with_each(
        &mut self,
        mut work: impl FnMut(&mut Self, &str) -> Result<Roll, StoreError>,
    ) -> Result<(), StoreError> {
        let mut left: BTreeSet<String> = self.list.names().map(str::to_owned).collect();
        let mut done = BTreeSet::new();
        while let Some(name) = left.pop_first() {
            let roll = work(self, &name)?;
            done.insert(name);
            let known = roll.lists();
            let names = known.iter().flat_map(List::names).filter(|name| !done.contains(*name));
            left.extend(names.map(str::to_owned));
        }
        Ok(())
    }

    /// Whether what a node knows is not in the way.
    fn may_close(&self, node: &dyn Node, roll: &Roll, now: Stamp) -> Result<(), StoreError> {
        let ours = roll.left_for().is_none() && roll.lists().iter().all(|list| list == self.list);
        let is_busy = roll.silence(now).is_some_and(|silence| silence < KEEP.1);
        if is_busy && roll.by() != Some(&self.by) {
            return Err(busy(node));
        }
        if self.right == Right::Replace || ours { Ok(()) } else { Err(roll.error(node)) }
    }

    /// Waits until nobody holds a key at a node where the new list has it not; those that are held if nobody wants to wait
    /// for that.
    fn drain(&self, goes_on: &dyn Fn() -> bool) -> Result<Vec<Key>, StoreError> {
        let places = Places::of(self.list);
        loop {
            let mut held = BTreeSet::new();
            for name in self.closed.keys() {
                let node = &self.nodes[name];
                keep(&**node, &self.by)?;
                let keys = places.others(node.list(Scope::Live)?.keys, name);
                for record in node.inspect_all(&keys)? {
                    held.extend(record?.filter(|record| !record.holders.is_empty()).map(|record| record.key));
                }
            }
            if held.is_empty() || !goes_on() {
                return Ok(held.into_iter().collect());
            }
            thread::sleep(KEEP.0);
        }
    }

    /// Takes the past of keys to where the new list has them: without it, their fences would rise no more than the clocks
    /// of two nodes agree, and a key that was held would be one that never was.
    fn carry(&self) -> Result<(), StoreError> {
        let places = Places::of(self.list);
        for (name, before) in &self.closed {
            if before.lists().iter().all(|list| list == self.list) {
                continue;
            }
            let node = &self.nodes[name];
            for some in places.others(node.list(Scope::All)?.keys, name).chunks(AT_ONCE) {
                for closed in self.closed.keys() {
                    keep(&*self.nodes[closed], &self.by)?;
                }
                let mut of_each: BTreeMap<&str, Vec<Past>> = BTreeMap::new();
                for past in node.past(some)? {
                    of_each.entry(places.of_key(&past.key)).or_default().push(past);
                }
                for (name, past) in of_each {
                    let node = &self.nodes[name];
                    if node.adopt(&self.by, &past)? != Outcome::Done {
                        return Err(busy(&**node));
                    }
                }
            }
        }
        Ok(())
    }

    fn open_all(&self) -> Result<(), StoreError> {
        for name in self.closed.keys() {
            keep(&*self.nodes[name], &self.by)?;
        }
        let (ours, others): (Vec<_>, Vec<_>) = self.closed.keys().partition(|name| self.list.has(name));
        let leave = others.into_iter().map(|name| (name, Step::Leave(&self.by)));
        for (name, step) in leave.chain(ours.into_iter().map(|name| (name, Step::Open(&self.by)))) {
            take(&*self.nodes[name], step)?;
        }
        Ok(())
    }

    /// Makes nodes what they were before they were closed. What is not to be had of one that does not answer somebody
    /// else has to do.
    fn undo(&self) {
        for name in self.closed.keys() {
            if let Some(Err(error)) = self.nodes.get(name).map(|node| node.step(Step::Undo(&self.by))) {
                log::warn!("{error}; it may stay closed until 'dlock setup' is run again");
            }
        }
    }
}

/// Where a list has its keys.
struct Places {
    names: Vec<String>,
    points: Points,
}

impl Places {
    fn of(list: &List) -> Self {
        let names: Vec<String> = list.names().map(str::to_owned).collect();
        Self { points: Points::new(&names), names }
    }

    fn of_key(&self, key: &Key) -> &str {
        &self.names[self.points.node_of(key.as_str())]
    }

    /// Those of these keys that are not at the node with this name.
    fn others(&self, mut keys: Vec<Key>, name: &str) -> Vec<Key> {
        keys.retain(|key| self.of_key(key) != name);
        keys
    }
}

/// Whether a node is closed for a list by somebody who was not heard of for so long that he is dead, and knows no other.
pub(super) fn is_forsaken(told: &Told, list: &List) -> bool {
    let is_dead = told.roll.silence(told.now).is_some_and(|silence| silence >= KEEP.1);
    is_dead && told.roll.lists().iter().all(|other| other == list)
}

fn keep(node: &dyn Node, by: &str) -> Result<(), StoreError> {
    take(node, Step::Keep(by))
}

/// Takes a step that only whoever closed the node can take.
fn take(node: &dyn Node, step: Step) -> Result<(), StoreError> {
    if node.step(step)?.outcome == Outcome::Done { Ok(()) } else { Err(busy(node)) }
}

fn busy(node: &dyn Node) -> StoreError {
    StoreError::new(
        Trouble::Unreachable,
        format_args!("{}: another 'dlock setup' is at it, or was interrupted just now", node.describe()),
    )
}
