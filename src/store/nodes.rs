//! Whether stores that are made of several can be trusted with locks: what is wrong with each of these, and what with all
//! of them together.

use std::io;
use std::time::Duration;

use super::parallel::at_once;
use super::{Examination, Finding, Store, StoreError, Trouble};
use crate::clock::Moment;

/// How far from each other two clocks may be.
const APART: Duration = Duration::from_secs(1);

/// By how many microseconds a store's clock is ahead of the time since this machine was started, and how much of that may
/// be due to the network.
#[derive(Clone, Copy, Debug)]
struct Reading {
    ahead: i128,
    bound: Duration,
}

/// Looks at all of them at once. If one does not answer, this is what that `means`.
///
/// # Errors
/// [`StoreError`] if none can be used.
pub(super) fn examine(stores: &[&dyn Store], silence: Duration, means: &str) -> Result<Examination, StoreError> {
    let look = |store: &&dyn Store| Ok((read_clock(*store)?, store.examine(silence)?));
    let looked = at_once(stores, look).map_err(|error: io::Error| StoreError::new(Trouble::Os, error))?;
    let mut found = Examination::default();
    let mut seen = Vec::new();
    let mut failed = None;
    for (store, looked) in stores.iter().zip(looked) {
        match looked {
            Ok((clock, examined)) => seen.push((store.describe(), clock, examined)),
            Err(error) => {
                let Finding { what, remedy, .. } = Finding::from(&error);
                found.findings.push(Finding::warning(what, means, remedy));
                failed = Some(error);
            }
        }
    }
    if let Some(error) = failed.filter(|_| seen.is_empty()) {
        return Err(error);
    }
    found.know("servers", format!("{} of {} answer", seen.len(), stores.len()));
    merge_facts(&mut found, &seen);
    let clocks: Vec<(&str, Reading)> = seen.iter().map(|(name, clock, _)| (&**name, *clock)).collect();
    found.findings.extend(are_apart(&clocks));
    found.findings.extend(are_one(&seen));
    found.findings.extend(each_once(seen.into_iter().map(|(name, _, examined)| (name, examined.findings)).collect()));
    Ok(found)
}

fn read_clock(store: &dyn Store) -> Result<Reading, StoreError> {
    // The first one opens a connection.
    store.ask_clock()?;
    let asked = Moment::now();
    let theirs = store.ask_clock()?;
    let bound = Moment::now().since(asked) / 2;
    let ours = asked.after(bound).as_duration().as_micros();
    let signed = |micros: u128| i128::try_from(micros).unwrap_or(i128::MAX);
    Ok(Reading { ahead: signed(theirs.micros().into()).saturating_sub(signed(ours)), bound })
}

/// What may be told of each where it is not so with all of them.
const OF_EACH: [&str; 3] = ["version", "memory", "persistence"];

/// What is so with all of them, and else what is so with each.
fn merge_facts(found: &mut Examination, seen: &[(String, Reading, Examination)]) {
    let Some((_, _, first)) = seen.first() else { return };
    for (name, value) in &first.facts {
        let of = |examined: &Examination| examined.facts.iter().find(|fact| fact.0 == *name).map(|fact| fact.1.clone());
        let all: Vec<String> = seen.iter().map(|(_, _, examined)| of(examined).unwrap_or_default()).collect();
        if all.iter().all(|other| other == value) {
            found.know(name, value);
        } else if OF_EACH.contains(name) {
            found.know(name, all.join("; "));
        }
    }
}

/// Whether the clocks that are farthest from each other are too far.
fn are_apart(clocks: &[(&str, Reading)]) -> Option<Finding> {
    let (late, behind) = clocks.iter().min_by_key(|(_, reading)| reading.ahead)?;
    let (early, ahead) = clocks.iter().max_by_key(|(_, reading)| reading.ahead)?;
    let distance = ahead.ahead.saturating_sub(behind.ahead);
    let distance = Duration::from_micros(u64::try_from(distance).unwrap_or(u64::MAX));
    (distance.saturating_sub(ahead.bound + behind.bound) > APART).then(|| {
        let seconds = Duration::from_secs((distance + Duration::from_millis(500)).as_secs());
        Finding::warning(
            format!("the clock of {early} is {} ahead of that of {late}", humantime::format_duration(seconds)),
            "leases end by the clocks of the nodes, which are part of the fences, too: where these are compared, a later \
             holder may be taken for an earlier one",
            "let all machines set their clocks by NTP (chrony, systemd-timesyncd)",
        )
    })
}

/// Whether two of them are the same server.
fn are_one(seen: &[(String, Reading, Examination)]) -> Vec<Finding> {
    let same = |at: usize| {
        let (name, _, examined) = &seen[at];
        let run = examined.run.as_ref()?;
        let (other, _, _) = seen[..at].iter().find(|(_, _, other)| other.run.as_ref() == Some(run))?;
        Some(Finding::warning(
            format!("{other} and {name} are the same server"),
            "it counts twice, and both of them are down when one is",
            "name each server once",
        ))
    };
    (0..seen.len()).filter_map(same).collect()
}

/// What was found of several servers: what is so with all of them is said once, and else by whom it is.
pub(super) fn each_once(found: Vec<(String, Vec<Finding>)>) -> Vec<Finding> {
    let all = found.len();
    let mut merged: Vec<(Finding, Vec<String>)> = Vec::new();
    for (name, findings) in found {
        for finding in findings {
            match merged.iter_mut().find(|(known, _)| *known == finding) {
                Some((_, names)) => names.push(name.clone()),
                None => merged.push((finding, vec![name.clone()])),
            }
        }
    }
    let say = |(finding, names): (Finding, Vec<String>)| {
        if names.len() == all {
            return finding;
        }
        Finding { what: format!("{}: {}", names.join(", "), finding.what), ..finding }
    };
    merged.into_iter().map(say).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Reading, are_apart};

    #[test]
    fn clocks_are_apart_by_what_no_round_trip_explains() {
        let apart = |clocks: &[(&'static str, i128, u64)]| {
            let reading = |(name, ahead, bound): &(&'static str, i128, u64)| {
                (*name, Reading { ahead: *ahead, bound: Duration::from_millis(*bound) })
            };
            are_apart(&clocks.iter().map(reading).collect::<Vec<_>>()).map(|finding| finding.what)
        };
        let found = apart(&[("a", 0, 100), ("b", 2_500_000, 100), ("c", 400_000, 100)]);
        assert_eq!(found.as_deref(), Some("the clock of b is 3s ahead of that of a"));
        assert_eq!(apart(&[("a", 0, 0), ("b", 1_000_000, 0)]), None);
        assert_eq!(apart(&[("a", 0, 800), ("b", 2_500_000, 800)]), None, "a slow network explains it");
        assert_eq!(apart(&[]), None);
    }
}
