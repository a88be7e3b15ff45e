//! Whether sentinels will find another master in time, and whether everybody will find that one.

use std::time::Duration;

use redis::Value;

use super::super::RedisStore;
use super::super::address::{Endpoint, Sentinels};
use super::super::connection::Connection;
use super::super::parallel::at_once;
use super::super::sentinel::{field, named, questions};
use super::super::trouble::{Failure, said};
use super::{distinct, each_once, is_replaced_too_late, span};
use crate::clock::Moment;
use crate::store::hurry::Hurry;
use crate::store::tls::TlsConfig;
use crate::store::{Examination, Finding};

/// So many must be left, of which more than half agree, if one of them is down.
const ENOUGH: usize = 3;

/// What a sentinel says of the master: a list of names and values.
struct View {
    sentinel: Endpoint,
    master: Endpoint,
    told: Value,
}

impl View {
    fn number(&self, name: &str) -> Option<u64> {
        field(&self.told, name)?.parse().ok()
    }

    fn down_after(&self) -> Option<Duration> {
        self.number("down-after-milliseconds").map(Duration::from_millis)
    }

    /// How many sentinels it knows, itself included.
    fn sentinels(&self) -> usize {
        self.number("num-other-sentinels")
            .and_then(|others| usize::try_from(others).ok())
            .map_or(0, |others| others + 1)
    }
}

impl RedisStore {
    /// Looks at the master, and at all that its sentinels say.
    pub(super) fn look_into_sentinels(&self, sentinels: &Sentinels, silence: Duration) -> Result<Examination, Failure> {
        let master = self.router.server_of(0, Moment::now().after(self.patience))?;
        let mut found = Examination::default();
        found.know("master", master.to_string());
        self.look_at_sentinels(sentinels, silence, &mut found)?;
        let (of_master, told) = self.look_at_server(&master, 0)?;
        found.facts.extend(of_master.facts);
        found.findings.extend(of_master.findings);
        let replicas = told.map(|told| told.replicas()).unwrap_or_default();
        let pairs: Vec<_> = replicas.into_iter().map(|replica| (master.clone(), replica)).collect();
        found.findings.extend(self.compare_clocks(&pairs)?);
        Ok(found)
    }

    fn look_at_sentinels(
        &self,
        sentinels: &Sentinels,
        silence: Duration,
        found: &mut Examination,
    ) -> Result<(), Failure> {
        let Sentinels { at, access, master } = sentinels;
        let tls = TlsConfig::default();
        let answers = at_once(at, |sentinel| {
            let until = Moment::now().after(self.patience);
            let mut connection = Connection::open(sentinel, access, &tls, &Hurry::default(), until.left())?;
            let mut replies = connection.ask(&questions(master), until.left())?;
            Ok::<_, Failure>((named(&replies)?, replies.pop().ok_or(Failure::Garbage)?))
        })?;
        let mut views = Vec::new();
        let mut answered = 0;
        for (sentinel, answer) in at.iter().zip(answers) {
            answered += usize::from(answer.is_ok());
            let name = self.address.name_of(sentinel);
            found.findings.extend(match answer {
                Err(failure) => Some(silent(&self.error(failure.by(sentinel)).words)),
                Ok((None, _)) => Some(knows_nobody(&name, master)),
                Ok((Some(_), Value::ServerError(error))) => {
                    let words = self.address.without_password(&said(&error));
                    Some(keeps_to_itself(&name, &words, access.user.as_deref()))
                }
                Ok((Some((_, master)), told)) => {
                    views.push(View { sentinel: sentinel.clone(), master, told });
                    None
                }
            });
        }
        let quorum = distinct(views.iter().filter_map(|view| view.number("quorum")).map(|quorum| quorum.to_string()));
        let quorum = if quorum.is_empty() { quorum } else { format!(", quorum {quorum}") };
        found.know("sentinels", format!("{answered} of {} answer{quorum}", at.len()));
        let down_after = distinct(views.iter().filter_map(View::down_after).map(span));
        if !down_after.is_empty() {
            found.know("down_after", down_after);
        }
        found.findings.extend(disagree(&views));
        found.findings.extend(is_alone_in_the_url(&views, at.len()));
        let found_of =
            |view: &View| (self.address.name_of(&view.sentinel), weak_points(view, master, at.len(), silence));
        found.findings.extend(each_once(views.iter().map(found_of).collect()));
        Ok(())
    }
}

fn silent(words: &str) -> Finding {
    Finding::warning(
        words,
        "the fewer sentinels there are, the sooner no majority is left to replace a master that dies, and nobody to ask \
         who the master is",
        "see that it runs, that its address and password are right and that nothing between here and there is in the way",
    )
}

fn knows_nobody(sentinel: &str, master: &str) -> Finding {
    Finding::warning(
        format!("{sentinel} knows no master '{master}'"),
        "it helps neither to find the master nor to replace it",
        format!("'SENTINEL MONITOR {master} …' on it, as on the others, or take it out of the URL"),
    )
}

fn keeps_to_itself(sentinel: &str, words: &str, user: Option<&str>) -> Finding {
    let user = user.unwrap_or("default");
    Finding::warning(
        format!(
            "{sentinel} does not answer 'sentinel master' to us ('{words}'), so this is not known: its quorum, whom it \
             knows and when it takes a master for dead"
        ),
        "what is not known may be what loses a lock; and of sentinels that name different masters the one that knows of \
         the latest failover cannot be told",
        format!("'ACL SETUSER {user} +sentinel|get-master-addr-by-name +sentinel|master' on each sentinel"),
    )
}

fn disagree(views: &[View]) -> Option<Finding> {
    let mut masters: Vec<String> = views.iter().map(|view| view.master.to_string()).collect();
    masters.sort_unstable();
    masters.dedup();
    (masters.len() > 1).then(|| {
        Finding::warning(
            format!("its sentinels name different masters: {}", masters.join(", ")),
            "who hears of one of them takes keys there that others hold elsewhere",
            "wait, if a failover is under way; else 'SENTINEL REMOVE' and 'SENTINEL MONITOR' where the wrong one is named",
        )
    })
}

fn is_alone_in_the_url(views: &[View], in_url: usize) -> Option<Finding> {
    let known = views.iter().map(View::sentinels).max()?;
    (in_url == 1 && known > 1).then(|| {
        Finding::warning(
            format!("the URL names one sentinel of {known}"),
            "if that one is down, nobody finds the master: no lock is taken, and after a failover each lease is lost",
            "name all of them: 'redis+sentinel://HOST,HOST,HOST/MASTER'",
        )
    })
}

/// What is wrong with how a sentinel watches, by its own words.
fn weak_points(view: &View, master: &str, in_url: usize, silence: Duration) -> Vec<Finding> {
    let known = view.sentinels().max(in_url);
    let quorum = view.number("quorum").and_then(|quorum| usize::try_from(quorum).ok());
    let few = (known < ENOUGH).then(|| {
        let many =
            if known == 1 { "there is only 1 sentinel".into() } else { format!("there are only {known} sentinels") };
        Finding::warning(
            many,
            "if one is down, the others are no majority, and no replica takes the place of a master that dies",
            "three sentinels or more, each on a machine of its own",
        )
    });
    let hasty = (quorum == Some(1)).then(|| {
        Finding::warning(
            "its quorum is 1",
            "one sentinel that does not see the master is enough for a failover, even if all others see it: what that \
             master gave out just before is free for the next one, while its holders still work",
            format!("'SENTINEL SET {master} quorum 2' on each sentinel; with more than three, more than half of them"),
        )
    });
    let never = quorum.filter(|quorum| *quorum > known).map(|quorum| {
        Finding::warning(
            format!("its quorum is {quorum}, and it knows of {known} sentinels"),
            "they can never agree that the master is dead, so no replica takes its place",
            format!("'SENTINEL SET {master} quorum {}' on each sentinel", known / 2 + 1),
        )
    });
    let single = (view.number("num-slaves") == Some(0)).then(|| {
        Finding::warning(
            "its master has no replica",
            "if the master dies, nothing takes its place, and all leases are lost",
            "a replica, better two, each on a machine of its own",
        )
    });
    let late = view.down_after().and_then(|after| is_replaced_too_late("down-after-milliseconds", after, silence));
    [few, hasty, never, single, late].into_iter().flatten().collect()
}
