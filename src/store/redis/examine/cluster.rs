//! Whether all keys of a cluster have a server, and whether another one takes its place in time.

use std::collections::HashMap;
use std::time::Duration;

use redis::{Value, cmd};

use super::super::address::Endpoint;
use super::super::cluster::{self, Map, Range};
use super::super::parallel::at_once;
use super::super::pool::Manner;
use super::super::slot::SLOTS;
use super::super::trouble::{Failure, said};
use super::super::{RedisStore, reply};
use super::server::{Told, lines};
use super::{count, distinct, each_once, is_replaced_too_late, span};
use crate::clock::Moment;
use crate::store::{Examination, Finding, Trouble};

/// So many must be left, of which more than half agree, if one of them is down.
const ENOUGH: usize = 3;

/// A master, one of its slots, and its replicas that are not known to be down.
struct Master {
    at: Endpoint,
    slot: u16,
    replicas: Vec<Endpoint>,
}

impl RedisStore {
    /// Looks at each master, and at what a node says of all.
    pub(super) fn look_into_cluster(&self, map: &Map, silence: Duration) -> Result<Examination, Failure> {
        let questions = [cluster::slots(), cmd("CLUSTER").arg("INFO").take()];
        let (replies, node) = map.ask_any(Moment::now().after(self.patience), |node, until| {
            self.router.ask_many_at(node, &questions, Manner::until(until))
        })?;
        let [slots, info] = &replies[..] else { return Err(Failure::Garbage.by(&node)) };
        let mut found = Examination::default();
        let mut masters = Vec::new();
        if let Some(words) = self.refusal(slots) {
            found.findings.push(self.unknown("cluster slots", &words, "its masters and their replicas"));
        } else {
            masters = masters_of(map.read_slots(slots, &node).map_err(|failure| failure.by(&node))?);
            let replicas = masters.iter().map(|master| master.replicas.len()).sum();
            found.know("nodes", format!("{}, {}", count(masters.len(), "master"), count(replicas, "replica")));
            found.findings.extend(are_few(masters.len()));
            found.findings.extend(have_no_replica(&masters));
        }
        if let Some(words) = self.refusal(info) {
            found.findings.push(self.unknown("cluster info", &words, "whether it serves all keys"));
        } else {
            let info = lines(reply::text(info).ok_or_else(|| Failure::Garbage.by(&node))?);
            let served = info.get("cluster_slots_ok").map_or("0", |served| served);
            found.know("slots", format!("{served} of {SLOTS} served"));
            found.findings.extend(is_down(&info, served, &node));
        }
        self.look_at_masters(&masters, silence, &mut found)?;
        Ok(found)
    }

    fn look_at_masters(&self, masters: &[Master], silence: Duration, found: &mut Examination) -> Result<(), Failure> {
        let mut facts = Vec::new();
        let mut findings = Vec::new();
        let mut timeouts = Vec::new();
        let mut pairs = Vec::new();
        let seen = at_once(masters, |master| self.look_at_server(&master.at, master.slot))?;
        for (master, seen) in masters.iter().zip(seen) {
            let (of_it, told) = match seen {
                Ok(seen) => seen,
                Err(failure) => {
                    found.findings.push(silent(&self.error(failure.by(&master.at)).words));
                    continue;
                }
            };
            facts.extend(of_it.facts);
            let timeout = told.as_ref().and_then(node_timeout);
            timeouts.extend(timeout.map(span));
            let late = timeout.and_then(|after| is_replaced_too_late("cluster-node-timeout", after, silence));
            let more = [told.as_ref().and_then(stops_as_a_whole), late].into_iter().flatten();
            findings.push((self.address.name_of(&master.at), of_it.findings.into_iter().chain(more).collect()));
            pairs.extend(master.replicas.iter().map(|replica| (master.at.clone(), replica.clone())));
        }
        if !timeouts.is_empty() {
            found.know("node_timeout", distinct(timeouts));
        }
        for name in ["version", "persistence"] {
            let values = facts.iter().filter(|(known, _)| *known == name).map(|(_, value)| value.clone());
            let value = distinct(values);
            if !value.is_empty() {
                found.know(name, value);
            }
        }
        found.findings.extend(each_once(findings));
        found.findings.extend(self.compare_clocks(&pairs)?);
        Ok(())
    }

    /// The words of a reply that says that we may not know.
    fn refusal(&self, reply: &Value) -> Option<String> {
        let Value::ServerError(error) = reply else { return None };
        let is_refused = self.error(Failure::Server(error.clone())).trouble == Trouble::Refused;
        is_refused.then(|| self.address.without_password(&said(error)))
    }
}

/// Each master once.
fn masters_of(ranges: Vec<Range>) -> Vec<Master> {
    let mut masters: Vec<Master> = Vec::new();
    for Range { from, owner, replicas, .. } in ranges {
        if masters.iter().all(|master| master.at != owner) {
            masters.push(Master { at: owner, slot: from, replicas });
        }
    }
    masters.sort_unstable_by_key(|master| master.slot);
    masters
}

fn node_timeout(told: &Told) -> Option<Duration> {
    told.setting("cluster-node-timeout")?.parse().ok().map(Duration::from_millis)
}

fn silent(words: &str) -> Finding {
    Finding::warning(
        words,
        "the keys that it has can neither be taken nor renewed before it answers again, or one of its replicas in its place",
        "see that it runs and that nothing between here and there is in the way; 'CLUSTER NODES' says what others think \
         of it",
    )
}

fn are_few(masters: usize) -> Option<Finding> {
    (masters < ENOUGH).then(|| {
        Finding::warning(
            format!("it has {}", count(masters, "master")),
            "masters decide by majority who takes the place of one that died: if one of so few dies, none is left, and its \
             keys stay down",
            "three masters or more, each on a machine of its own",
        )
    })
}

fn have_no_replica(masters: &[Master]) -> Option<Finding> {
    let alone: Vec<String> =
        masters.iter().filter(|master| master.replicas.is_empty()).map(|master| master.at.to_string()).collect();
    let many = match alone.len() {
        0 => return None,
        1 => "the master at",
        _ => "each of the masters at",
    };
    Some(Finding::warning(
        format!("{many} {} has no replica that is up", alone.join(", ")),
        "if it dies, nothing takes its place: its leases are lost, and its keys stay down",
        "a replica of each master, on another machine than that",
    ))
}

fn is_down(info: &HashMap<String, String>, served: &str, node: &Endpoint) -> Option<Finding> {
    const WHY: &str = "a key that nobody serves can neither be taken nor renewed";
    let missing = served.parse().ok().and_then(|served| SLOTS.checked_sub(served)).filter(|missing| *missing > 0);
    if let Some(missing) = missing {
        return Some(Finding::warning(
            format!("{missing} of its {SLOTS} slots are served by nobody"),
            WHY,
            "'redis-cli --cluster check HOST:PORT' says which, and '--cluster fix' gives them to a master that lives",
        ));
    }
    let state = info.get("cluster_state").filter(|state| *state != "ok")?;
    Some(Finding::warning(
        format!("the node at {node} says that its state is '{state}'"),
        WHY,
        "'CLUSTER NODES' says whom it does not reach; it serves again once it sees most masters",
    ))
}

fn stops_as_a_whole(told: &Told) -> Option<Finding> {
    (told.setting("cluster-require-full-coverage")? == "yes").then(|| {
        Finding::note(
            "its cluster-require-full-coverage is 'yes'",
            "if one slot has no server, all keys are down, and not only those in that slot",
            "'CONFIG SET cluster-require-full-coverage no' on all nodes, and the same in their configuration",
        )
    })
}
