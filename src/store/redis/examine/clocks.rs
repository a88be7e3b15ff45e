//! Whether the clocks of masters and of their replicas agree.

use std::time::Duration;

use redis::cmd;

use super::super::address::{Access, Endpoint};
use super::super::connection::Connection;
use super::super::parallel::at_once;
use super::super::trouble::Failure;
use super::super::{RedisStore, reply};
use super::count;
use crate::clock::Moment;
use crate::store::{Finding, Trouble};

/// How far from each other two clocks may be.
const APART: Duration = Duration::from_secs(1);

/// A server's clock.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// By how many microseconds it is ahead of the time since this machine was started.
    ahead: i128,
    /// How much of that may be due to the network.
    bound: Duration,
}

impl RedisStore {
    /// Compares the clocks of replicas, each of which comes after its master, with those of their masters.
    pub(super) fn compare_clocks(&self, pairs: &[(Endpoint, Endpoint)]) -> Result<Vec<Finding>, Failure> {
        let access = Access { masters_only: false, ..self.router.pool.access.clone() };
        let readings = at_once(pairs, |(master, replica)| {
            (self.reading(master, &access), self.reading(replica, &access).map_err(|failure| failure.by(replica)))
        })?;
        let mut findings = Vec::new();
        let mut unseen = Vec::new();
        for ((master, replica), clocks) in pairs.iter().zip(readings) {
            match clocks {
                // What is wrong with a master is said of it.
                (Err(_), Ok(_)) => {}
                (Ok(ours), Ok(theirs)) => findings.extend(are_apart((master, ours), (replica, theirs))),
                (_, Err(failure)) => match self.error(failure) {
                    error if error.trouble == Trouble::Refused => findings.push(refuses(&error.words)),
                    error => unseen.push(error.words),
                },
            }
        }
        if !unseen.is_empty() {
            findings.push(Finding::note(
                format!("{} cannot be asked from here ({})", count(unseen.len(), "replica"), unseen.join("; ")),
                "if it becomes the master, nobody here can take a lock or renew one; and whether its clock is right is not \
                 known",
                "see that replicas can be reached from where dlock runs",
            ));
        }
        Ok(findings)
    }

    fn reading(&self, server: &Endpoint, access: &Access) -> Result<Reading, Failure> {
        let until = Moment::now().after(self.patience);
        let mut connection =
            Connection::open(server, access, &self.router.pool.tls, &self.router.pool.hurry, until.left())?;
        let asked = Moment::now();
        let replies = connection.ask(&[cmd("TIME")], until.left())?;
        let heard = Moment::now();
        let reply = replies.into_iter().next().ok_or(Failure::Garbage)?;
        if let redis::Value::ServerError(error) = reply {
            return Err(Failure::Server(error));
        }
        let theirs = reply::clock(&reply).ok_or(Failure::Garbage)?;
        let bound = heard.since(asked) / 2;
        let ours = asked.after(bound).as_duration().as_micros();
        let signed = |micros: u128| i128::try_from(micros).unwrap_or(i128::MAX);
        Ok(Reading { ahead: signed(theirs.micros().into()).saturating_sub(signed(ours)), bound })
    }
}

/// Whether the clocks of a master and of its replica are apart, and how.
fn are_apart((master, ours): (&Endpoint, Reading), (replica, theirs): (&Endpoint, Reading)) -> Option<Finding> {
    let ahead = theirs.ahead.saturating_sub(ours.ahead);
    let distance = Duration::from_micros(u64::try_from(ahead.unsigned_abs()).unwrap_or(u64::MAX));
    let side = if ahead > 0 { "ahead of" } else { "behind" };
    (distance.saturating_sub(ours.bound + theirs.bound) > APART).then(|| {
        let seconds = Duration::from_secs((distance + Duration::from_millis(500)).as_secs());
        Finding::warning(
            format!(
                "the clock of the replica at {replica} is {} {side} that of its master at {master}",
                humantime::format_duration(seconds)
            ),
            "if it becomes the master, leases end by its clock: too early, while those who hold them still work, or too \
             late",
            "let all machines set their clocks by NTP (chrony, systemd-timesyncd)",
        )
    })
}

/// A replica that lets us in no more than that.
fn refuses(words: &str) -> Finding {
    Finding::warning(
        words,
        "if this replica becomes the master, no lock can be taken or renewed: users and passwords of a server are its own, \
         and no replica gets them from its master",
        "the same users, passwords and rules on all servers",
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Endpoint, Reading, are_apart};

    #[test]
    fn clocks_are_apart_by_what_no_round_trip_explains() {
        let at = |name: &str| Endpoint::Tcp(name.into(), 1);
        let reading = |ahead: i128, bound: u64| Reading { ahead, bound: Duration::from_millis(bound) };
        let apart = |ours, theirs| are_apart((&at("m"), ours), (&at("r"), theirs)).map(|finding| finding.what);
        let found = apart(reading(0, 100), reading(2_500_000, 100));
        assert_eq!(found.as_deref(), Some("the clock of the replica at r:1 is 3s ahead of that of its master at m:1"));
        let found = apart(reading(90_000_000, 0), reading(0, 0));
        assert!(found.is_some_and(|what| what.contains("is 1m 30s behind that of its master")));
        assert_eq!(apart(reading(0, 0), reading(1_000_000, 0)), None);
        assert_eq!(apart(reading(0, 800), reading(-2_500_000, 800)), None, "a slow network explains it");
    }
}
