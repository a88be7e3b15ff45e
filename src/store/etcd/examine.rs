//! Whether etcd can be trusted with locks: what its members say of themselves and of each other.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::EtcdRegister;
use super::address::Address;
use super::api::{self, Request};
use super::connection::Connection;
use super::trouble::Failure;
use crate::clock::Moment;
use crate::model::Stamp;
use crate::store::{Examination, Finding, StoreError};

/// The oldest version that dlock is made for, and the newest that it was tested with.
const VERSIONS: ((u32, u32), (u32, u32)) = ((3, 4), (3, 5));

/// Of these a leader that was frozen ends leases that another one keeps (etcd, issue 15247), and one that has ended may be
/// said to be renewed: fixed with the numbers behind.
const FIXED: [((u32, u32), u32); 2] = [((3, 4), 38), ((3, 5), 23)];

/// How long a member may take to tell of itself, beside the one that we are connected to.
const WITHIN: Duration = Duration::from_secs(1);

/// What is never compacted has so many revisions at most.
const MANY_REVISIONS: i64 = 10_000;

/// Members tell the time in whole seconds. What they mean is taken to be the middle of one.
pub(super) const HALF_A_SECOND: Duration = Duration::from_millis(500);

/// What the members say.
struct Told {
    /// How many hosts the URL names, and why those are missing that do not answer.
    hosts: usize,
    silent: Vec<String>,
    versions: BTreeSet<String>,
    clusters: BTreeSet<String>,
    members: Vec<String>,
    leader: Option<String>,
    alarms: BTreeSet<String>,
    /// In bytes.
    database: u64,
    revision: i64,
    is_compacted: bool,
    /// A login that nobody asks for.
    is_free_to_all: bool,
    /// Whether a stranger on the way could read what is said.
    is_open: bool,
}

type Check = fn(&Told) -> Option<Finding>;

const CHECKS: [Check; 11] = [
    are_several,
    has_no_room,
    has_other_alarms,
    is_old,
    has_faults,
    is_new,
    has_silent_members,
    cannot_lose_one,
    is_named_in_part,
    is_never_compacted,
    can_be_read,
];

impl EtcdRegister {
    pub(super) fn look_into(&self, _: Duration) -> Result<Examination, StoreError> {
        let told = self.with(|connection, until| self.told(connection, until))?;
        let mut found = Examination::default();
        told.facts(&mut found);
        found.findings.extend(CHECKS.iter().filter_map(|check| check(&told)));
        found.findings.extend(told.is_free_to_all.then(|| {
            Finding::warning(
                "it knows no users, and the URL names one",
                "whoever can reach it can take keys away, and forge what is known of them",
                "'etcdctl auth enable', once there is a user 'root'",
            )
        }));
        Ok(found)
    }

    fn told(&self, connection: &mut Connection, until: Moment) -> Result<Told, Failure> {
        let empty = json!({});
        let ask = |path| Request { path, body: empty.clone() };
        let status: Value = connection.ask(&ask("/v3/maintenance/status"), until)?;
        // Where there are users, not everybody is told of these.
        let mut optional = |request: Request| match connection.ask::<Value>(&request, until) {
            Err(failure) if failure.refusal().is_some() => Ok(None),
            told => told.map(Some),
        };
        let members = optional(ask("/v3/cluster/member/list"))?.unwrap_or_default();
        let alarms = optional(Request { path: "/v3/maintenance/alarm", body: json!({ "action": "GET" }) })?;
        let oldest = api::at_revision(&self.address.all(), 1);
        let is_compacted = match connection.ask::<Value>(&oldest, until) {
            Err(failure) => failure.refusal().is_some_and(api::Refusal::is_compacted),
            Ok(_) => false,
        };
        let number = |value: &Value| value.as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let members = list(&members["members"]);
        let name = |member: &Value| {
            let name = member["name"].as_str().filter(|name| !name.is_empty());
            name.map_or_else(|| format!("{:x}", number(&member["ID"])), str::to_owned)
        };
        let leader = members.iter().find(|member| member["ID"] == status["leader"]).map(name);
        let alarm = |alarm: &Value| alarm["alarm"].as_str().map(str::to_owned);
        let mut told = Told {
            hosts: self.address.hosts.len(),
            silent: Vec::new(),
            versions: version_of(&status).into_iter().collect(),
            clusters: cluster_of(&status).into_iter().collect(),
            members: members.iter().map(name).collect(),
            leader,
            alarms: list(&alarms.unwrap_or_default()["alarms"]).iter().filter_map(alarm).collect(),
            database: number(&status["dbSize"]),
            revision: i64::try_from(number(&status["header"]["revision"])).unwrap_or_default(),
            is_compacted,
            is_free_to_all: self.login.is_not_asked_for(),
            is_open: connection.can_be_read(),
        };
        for host in self.address.hosts.iter().filter(|host| **host != connection.server) {
            let until = Moment::now().after(WITHIN).min(until);
            let status = Connection::open(host, &self.address, &self.tls, &self.login, until)
                .and_then(|mut other| other.ask::<Value>(&ask("/v3/maintenance/status"), until));
            match status {
                Ok(status) => {
                    told.versions.extend(version_of(&status));
                    told.clusters.extend(cluster_of(&status));
                }
                Err(failure) => told.silent.push(self.error(failure.by(host)).words),
            }
        }
        Ok(told)
    }

    /// The clock of a member, as it tells it with each answer.
    pub(super) fn time(&self, connection: &mut Connection, until: Moment) -> Result<Stamp, Failure> {
        let date = connection.date(&api::range(&self.address.all(), "", 1), until)?;
        let date = date.as_deref().and_then(instant).ok_or(Failure::Garbage)?;
        Ok(date.after(HALF_A_SECOND))
    }
}

fn version_of(status: &Value) -> Option<String> {
    status["version"].as_str().map(str::to_owned)
}

fn cluster_of(status: &Value) -> Option<String> {
    status["header"]["cluster_id"].as_str().map(str::to_owned)
}

/// An instant as HTTP writes it: `Fri, 27 Nov 2026 21:12:42 GMT`.
fn instant(text: &str) -> Option<Stamp> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [_, day, month, year, time, _] = words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let time = humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")).ok()?;
    Some(Stamp::default().after(SystemTime::duration_since(&time, UNIX_EPOCH).ok()?))
}

/// The numbers of a version.
fn numbers(version: &str) -> ((u32, u32), u32) {
    let mut parts = version.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    ((next(), next()), next())
}

impl Told {
    fn facts(&self, found: &mut Examination) {
        let all = |names: &mut dyn Iterator<Item = &String>| names.cloned().collect::<Vec<_>>().join(", ");
        found.know("version", format!("etcd {}", all(&mut self.versions.iter())));
        if !self.members.is_empty() {
            found.know("members", all(&mut self.members.iter()));
        }
        if let Some(leader) = &self.leader {
            found.know("leader", leader);
        }
        let alarms = if self.alarms.is_empty() { "none".into() } else { all(&mut self.alarms.iter()) };
        found.know("alarms", alarms);
        found.know("database", format!("{} MiB", self.database.div_ceil(1 << 20)));
    }

    /// A version for which this is so.
    fn version_that(&self, is_so: impl Fn(((u32, u32), u32)) -> bool) -> Option<&String> {
        self.versions.iter().find(|version| is_so(numbers(version)))
    }
}

fn are_several(told: &Told) -> Option<Finding> {
    (told.clusters.len() > 1).then(|| {
        Finding::warning(
            format!("the hosts of the URL are members of {} different clusters", told.clusters.len()),
            "each of them gives the same key to somebody",
            "only members of one cluster in the URL",
        )
    })
}

fn has_no_room(told: &Told) -> Option<Finding> {
    told.alarms.contains("NOSPACE").then(|| {
        Finding::warning(
            "its database is full (alarm NOSPACE)",
            "no key can be taken or given back; those who hold keys go on",
            "compact and defragment it, then 'etcdctl alarm disarm'; and let it compact itself \
             ('--auto-compaction-retention=1h')",
        )
    })
}

fn has_other_alarms(told: &Told) -> Option<Finding> {
    let alarm = told.alarms.iter().find(|alarm| *alarm != "NOSPACE")?;
    Some(Finding::warning(
        format!("it has raised alarm {alarm}"),
        "its members may not agree any more, and then two may hold the same key",
        "see its log, and the documentation of etcd on that alarm",
    ))
}

fn is_old(told: &Told) -> Option<Finding> {
    let ((major, minor), _) = VERSIONS;
    told.version_that(|(version, _)| version < (major, minor)).map(|version| {
        Finding::warning(
            format!("it is etcd {version}, and dlock needs {major}.{minor}"),
            "what dlock asks of it an older one may refuse in the middle of a run",
            "a newer etcd",
        )
    })
}

fn has_faults(told: &Told) -> Option<Finding> {
    let fix = |version| FIXED.iter().find(|(line, _)| *line == version).map(|(_, fix)| *fix);
    let is_faulty = |(line, patch): ((u32, u32), u32)| fix(line).is_some_and(|fix| patch < fix);
    told.version_that(is_faulty).map(|version| {
        let (line, _) = numbers(version);
        let fix = format!("{}.{}.{}", line.0, line.1, fix(line).unwrap_or_default());
        Finding::warning(
            format!("etcd {version} has faults with leases, which {fix} has not"),
            "a leader that was frozen may end leases that another one keeps: a command that has its key is stopped (76), or one \
             who waits loses his place; nobody else gets the key before that",
            format!("etcd {fix} or later"),
        )
    })
}

fn is_new(told: &Told) -> Option<Finding> {
    let (_, (major, minor)) = VERSIONS;
    told.version_that(|(version, _)| version > (major, minor)).map(|version| {
        Finding::note(
            format!("it is etcd {version}, and this dlock was tested with {major}.{minor} at most"),
            "something in it may have changed that dlock stands on",
            "look for a newer dlock",
        )
    })
}

fn has_silent_members(told: &Told) -> Option<Finding> {
    (!told.silent.is_empty()).then(|| {
        Finding::warning(
            format!("{} of {} do not answer: {}", told.silent.len(), told.hosts, told.silent.join("; ")),
            "once most members are away no lock can be taken or renewed",
            "start those members, or remove them from the cluster and from the URL",
        )
    })
}

fn cannot_lose_one(told: &Told) -> Option<Finding> {
    let many = told.members.len();
    let words = match many {
        1 => "it has one member".to_owned(),
        2 => "it has two members".to_owned(),
        _ => return None,
    };
    Some(Finding::note(words, "while a member is away no lock can be taken or renewed", "three members, or five"))
}

fn is_named_in_part(told: &Told) -> Option<Finding> {
    let many = told.members.len();
    (told.hosts == 1 && many > 1).then(|| {
        Finding::note(
            format!("the URL names one host, and it has {many} members"),
            "if that one is a member, no lock can be taken or renewed while it is away",
            "all members in the URL, unless the one is in front of them all: 'etcd://HOST,HOST,HOST'",
        )
    })
}

fn is_never_compacted(told: &Told) -> Option<Finding> {
    (!told.is_compacted && told.revision > MANY_REVISIONS).then(|| {
        Finding::warning(
            format!("it keeps all {} changes that there ever were", told.revision),
            "once its database is full no key can be taken or given back",
            "'--auto-compaction-retention=1h' for each member",
        )
    })
}

fn can_be_read(told: &Told) -> Option<Finding> {
    told.is_open.then(|| {
        Finding::warning(
            "what is said to it and by it is not encrypted",
            "who can read a lease on the way can take it away",
            "'etcds://'",
        )
    })
}

/// What somebody would run by hand who lets a user take locks.
pub(super) fn script(address: &Address) -> String {
    let prefix = &address.prefix;
    format!(
        "# All that a user needs who takes locks; then 'etcdctl user grant-role USER dlock'.\n\
         etcdctl role add dlock\netcdctl role grant-permission dlock readwrite --prefix=true {prefix}/\n"
    )
}

#[cfg(test)]
mod tests {
    use super::{instant, numbers};

    #[test]
    fn an_instant_is_read_as_http_writes_it() {
        let stamp = instant("Fri, 27 Nov 2026 21:12:42 GMT").expect("an instant");
        assert_eq!(stamp.micros(), 1_795_813_962_000_000);
        for strange in ["", "Fri, 27 Nov 2026", "Fri, 27 anF 2026 21:12:42 GMT", "a b c d e f"] {
            assert_eq!(instant(strange), None, "{strange}");
        }
    }

    #[test]
    fn a_version_has_three_numbers() {
        assert_eq!(numbers("3.5.1"), ((3, 5), 1));
        assert_eq!(numbers("3.6.0-rc.1"), ((3, 6), 0));
    }
}
