//! Finding the node of a cluster that has a slot: any node tells where it is, and by and by one knows. After the
//! "Redis cluster specification".

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use redis::{Cmd, Value, cmd};

use super::address::Endpoint;
use super::pool::Manner;
use super::router::Request;
use super::slot::SLOTS;
use super::trouble::Failure;
use super::{lock, reply};
use crate::clock::Moment;

/// How often one is sent on. More means that nodes do not agree yet.
const HOPS: usize = 8;

/// How long a slot that is on its way is left alone.
const ON_ITS_WAY: Duration = Duration::from_millis(20);

/// Less time is not worth a further try.
pub(super) const TOO_SHORT: Duration = Duration::from_millis(50);

/// What is known of a cluster.
pub(super) struct Map {
    seeds: Vec<Endpoint>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    owners: HashMap<u16, Endpoint>,
    /// All that were named, masters and replicas. Those that were seeds may be gone by the time that they are needed.
    nodes: Vec<Endpoint>,
    /// Whom to ask first if nothing is known: each time another one.
    next: usize,
}

/// Slots from one to another, who has them, and the replicas of that one which are not known to be down.
pub(super) struct Range {
    pub(super) from: u16,
    pub(super) to: u16,
    pub(super) owner: Endpoint,
    pub(super) replicas: Vec<Endpoint>,
}

/// Where a node sends whoever asks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Redirection {
    /// The slot is there.
    Moved(Endpoint),
    /// The slot is on its way there, and the key, too, unless it is there already.
    Ask(Endpoint),
    /// The slot is on its way, and some of the keys are here and some there.
    TryAgain,
    /// The node does not know who has the slot, or is cut off from the others.
    Down,
}

impl Redirection {
    /// Where this reply of `node` sends us, if it does.
    pub(super) fn read(reply: &Value, node: &Endpoint) -> Option<Self> {
        let Value::ServerError(error) = reply else { return None };
        let to = || {
            let (host, port) = error.details()?.split_once(' ')?.1.rsplit_once(':')?;
            let host = host.trim_start_matches('[').trim_end_matches(']').to_lowercase();
            match node {
                // It does not know its own name, and is where we found it.
                Endpoint::Tcp(own, _) if ["", "?"].contains(&&*host) => {
                    Some(Endpoint::Tcp(own.clone(), port.parse().ok()?))
                }
                _ => Some(Endpoint::Tcp(host, port.parse().ok()?)),
            }
        };
        match error.code() {
            "MOVED" => to().map(Self::Moved),
            "ASK" => to().map(Self::Ask),
            "TRYAGAIN" => Some(Self::TryAgain),
            "CLUSTERDOWN" => Some(Self::Down),
            _ if error.details().is_some_and(is_down) => Some(Self::Down),
            _ => None,
        }
    }
}

/// Whether a node says that it is cut off from the others and may be read only (`cluster-allow-reads-when-down`): our script
/// hears of that in mid-work, and without a code.
pub(super) fn is_down(words: &str) -> bool {
    words.contains("while the cluster is down")
}

impl Map {
    pub(super) fn new(seeds: &[Endpoint]) -> Self {
        // Many processes do not all begin with the same one.
        let next = std::process::id() as usize;
        Self { seeds: seeds.to_vec(), state: Mutex::new(State { next, ..State::default() }) }
    }

    pub(super) fn learn(&self, slot: u16, owner: &Endpoint) {
        lock(&self.state).owners.insert(slot, owner.clone());
    }

    /// This one erred: what it had may be elsewhere by now.
    pub(super) fn forget(&self, node: &Endpoint) {
        lock(&self.state).owners.retain(|_, owner| owner != node);
    }

    /// Whether a node has told who has which slots, and thereby that it is in a cluster: one that is not would do
    /// whatever it is asked to.
    pub(super) fn is_known(&self) -> bool {
        !lock(&self.state).nodes.is_empty()
    }

    /// The nodes that can be asked for the way, each time in another order.
    fn guides(&self) -> Vec<Endpoint> {
        let mut state = lock(&self.state);
        let mut guides = self.seeds.clone();
        guides.extend(state.nodes.iter().cloned());
        let mut seen = HashSet::new();
        guides.retain(|guide| seen.insert(guide.clone()));
        let first = state.next % guides.len().max(1);
        state.next = state.next.wrapping_add(1);
        guides.rotate_left(first);
        guides
    }

    /// The node that has a slot, or one that knows.
    pub(super) fn server_of(&self, slot: u16) -> Result<Endpoint, Failure> {
        let owner = self.owner(slot);
        owner.or_else(|| self.guides().into_iter().next()).ok_or_else(no_nodes)
    }

    /// The places of slots in a list, by the node that has them as far as is known.
    pub(super) fn by_owner(&self, slots: impl Iterator<Item = u16>) -> BTreeMap<Option<Endpoint>, Vec<usize>> {
        let state = lock(&self.state);
        let mut places: BTreeMap<Option<Endpoint>, Vec<usize>> = BTreeMap::new();
        for (place, slot) in slots.enumerate() {
            places.entry(state.owners.get(&slot).cloned()).or_default().push(place);
        }
        places
    }

    /// Asks nodes until one answers.
    pub(super) fn ask_any<T>(
        &self,
        until: Moment,
        ask: impl Fn(&Endpoint, Moment) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut failed = None;
        let mut guides = self.guides().into_iter();
        while let Some(guide) = guides.next() {
            let share = if guides.len() == 0 { 1 } else { 2 };
            match ask(&guide, Moment::now().after(until.left() / share)) {
                Ok(answer) => return Ok(answer),
                Err(failure) => failed = Some(failure),
            }
        }
        Err(failed.unwrap_or_else(no_nodes))
    }

    /// Has a command done by the node that has its slot, with the help of those that know it.
    pub(super) fn ask(
        &self,
        request: &Request,
        manner: Manner,
        ask: impl Fn(&Endpoint, &Cmd, Manner) -> Result<Value, Failure>,
    ) -> Result<(Value, Endpoint), Failure> {
        let mut command = &request.command;
        let mut guides = self.guides().into_iter();
        let mut next = self.owner(request.slot).map(|owner| (owner, false));
        let mut failed: Option<(Endpoint, Failure)> = None;
        let mut hops = 0;
        while let Some((node, asking, is_named)) = match next.take() {
            Some((node, asking)) => Some((node, asking, true)),
            None => guides.next().map(|guide| (guide, false, false)),
        } {
            if failed.as_ref().is_some_and(|(failing, _)| *failing == node) {
                if is_named {
                    // The others say that it is that one, still.
                    self.forget(&node);
                    break;
                }
                continue;
            }
            // A guide that does not answer leaves time for another one.
            let share = if is_named || guides.len() == 0 { 1 } else { 2 };
            let until = Moment::now().after(manner.until.left() / share);
            let reply = match ask(&node, command, Manner { until, asking, ..manner }) {
                Ok(reply) => reply,
                Err(failure) => {
                    self.forget(&node);
                    let may_go_on = manner.may_repeat || failure.is_before_anything();
                    let is_done = matches!(failure.bare(), Failure::Unconfirmed(..));
                    if !may_go_on || is_done || manner.until.left() < TOO_SHORT {
                        return Err(failure);
                    }
                    failed = Some((node, failure));
                    continue;
                }
            };
            next = match Redirection::read(&reply, &node) {
                None => {
                    if !asking {
                        self.learn(request.slot, &node);
                    }
                    return Ok((reply, node));
                }
                Some(Redirection::Down) => {
                    self.forget(&node);
                    failed = Some((node.clone(), refused(reply).by(&node)));
                    None
                }
                Some(Redirection::Moved(to)) => {
                    self.learn(request.slot, &to);
                    hops += 1;
                    Some((to, false))
                }
                Some(Redirection::Ask(to)) => {
                    self.learn(request.slot, &node);
                    hops += 1;
                    Some((to, true))
                }
                Some(Redirection::TryAgain) => {
                    if manner.until.left() < TOO_SHORT {
                        return Err(refused(reply).by(&node));
                    }
                    match &request.alone {
                        Some(alone) => command = alone,
                        None => thread::sleep(ON_ITS_WAY),
                    }
                    hops = 0;
                    Some((self.owner(request.slot).unwrap_or_else(|| node.clone()), false))
                }
            };
            if hops > HOPS {
                let words = "its nodes do not agree on who has this key";
                return Err(Failure::Unknown(words.into()).by(&node));
            }
        }
        Err(failed.map_or_else(no_nodes, |(_, failure)| failure))
    }

    /// The master that has the first of all slots, as far as is known.
    pub(super) fn first(&self) -> Option<Endpoint> {
        let state = lock(&self.state);
        state.owners.iter().min_by_key(|(slot, _)| **slot).map(|(_, owner)| owner.clone())
    }

    fn owner(&self, slot: u16) -> Option<Endpoint> {
        lock(&self.state).owners.get(&slot).cloned()
    }

    /// The slots and those who have them, as `node` knows them.
    pub(super) fn read_slots(&self, reply: &Value, node: &Endpoint) -> Result<Vec<Range>, Failure> {
        let ranges = match reply {
            Value::Array(ranges) => ranges,
            Value::ServerError(error) => return Err(Failure::Server(error.clone())),
            _ => return Err(Failure::Garbage),
        };
        let mut found = Vec::new();
        for range in ranges {
            let Value::Array(parts) = range else { return Err(Failure::Garbage) };
            let [from, to, nodes @ ..] = &parts[..] else { return Err(Failure::Garbage) };
            let bound = |value| reply::number(value).and_then(|slot| u16::try_from(slot).ok()).filter(|at| *at < SLOTS);
            let (Some(from), Some(to)) = (bound(from), bound(to)) else { return Err(Failure::Garbage) };
            let nodes: Option<Vec<Endpoint>> = nodes.iter().map(|named| named_by(node, named)).collect();
            let mut nodes = nodes.ok_or(Failure::Garbage)?.into_iter();
            let owner = nodes.next().ok_or(Failure::Garbage)?;
            found.push(Range { from, to, owner, replicas: nodes.collect() });
        }
        let mut state = lock(&self.state);
        for Range { from, to, owner, replicas } in &found {
            state.owners.extend((*from..=*to).map(|slot| (slot, owner.clone())));
            for node in std::iter::once(owner).chain(replicas) {
                if !state.nodes.contains(node) {
                    state.nodes.push(node.clone());
                }
            }
        }
        drop(state);
        Ok(found)
    }
}

/// The address of a node that `node` names.
fn named_by(node: &Endpoint, named: &Value) -> Option<Endpoint> {
    let Value::Array(parts) = named else { return None };
    let host = parts.first().and_then(reply::text).unwrap_or_default().to_lowercase();
    let port = u16::try_from(reply::number(parts.get(1)?)?).ok()?;
    Some(match node {
        // It does not know its own name, and is where we found it.
        Endpoint::Tcp(own, _) if ["", "?"].contains(&&*host) => Endpoint::Tcp(own.clone(), port),
        _ => Endpoint::Tcp(host, port),
    })
}

/// Asks for all slots.
pub(super) fn slots() -> Cmd {
    cmd("CLUSTER").arg("SLOTS").take()
}

fn no_nodes() -> Failure {
    Failure::Unknown("it has no nodes".into())
}

fn refused(reply: Value) -> Failure {
    match reply {
        Value::ServerError(error) => Failure::Server(error),
        _ => Failure::Garbage,
    }
}
