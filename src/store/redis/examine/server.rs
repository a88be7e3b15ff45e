//! Whether a server can be trusted with locks: what it says of itself with `INFO`, and what of its settings `INFO`
//! leaves out.

use std::collections::HashMap;

use redis::{Cmd, Value, cmd};

use super::super::address::Endpoint;
use super::super::connection::Connection;
use super::super::pool::Manner;
use super::super::trouble::{Failure, said};
use super::super::{RedisStore, reply};
use crate::clock::Moment;
use crate::store::tls::TlsConfig;
use crate::store::{Examination, Finding};

/// The oldest version of Redis that dlock is tested with, and the newest of each kind of server: major and minor.
const OLDEST: (u32, u32) = (6, 2);
const NEWEST: [(&str, u32); 2] = [("Redis", 7), ("Valkey", 9)];

/// The settings that are asked for.
const SETTINGS: [&str; 4] = ["appendfsync", "save", "cluster-node-timeout", "cluster-require-full-coverage"];

/// What a server says of itself.
pub(super) struct Told {
    info: HashMap<String, String>,
    /// Nothing if it does not say.
    settings: Option<HashMap<String, String>>,
    /// Whether we wait for its replicas before we count on a lease.
    waits: bool,
    /// Whether it is one of several that vote.
    votes: bool,
    /// Whether it is one of several that a URL lists, and which know nothing of each other.
    listed: bool,
}

type Check = fn(&Told) -> Option<Finding>;

/// What can be wrong with a server that says so itself.
const CHECKS: [Check; 9] =
    [is_old, is_new, is_loading, evicts, is_full, forgets, syncs_late, cannot_write, waits_for_no_replica];

/// The same, of one that should be alone.
const ALONE: [Check; 2] = [is_a_replica, is_in_a_cluster];

impl RedisStore {
    /// Looks at a server that the URL names.
    pub(super) fn look_at_the_only_one(&self, server: &Endpoint) -> Result<Examination, Failure> {
        let (mut found, told) = self.look_at_server(server, 0)?;
        found.findings.extend(told.iter().flat_map(|told| ALONE.iter().filter_map(|check| check(told))));
        Ok(found)
    }

    /// Looks at a server that has this slot. Besides what was found, what it says of itself, if it does.
    pub(super) fn look_at_server(&self, server: &Endpoint, slot: u16) -> Result<(Examination, Option<Told>), Failure> {
        let mut found = Examination::default();
        let info = self.ask_about(server, &[cmd("INFO")])?;
        let settings: Vec<Cmd> = SETTINGS.map(|name| cmd("CONFIG").arg("GET").arg(name).take()).into();
        let settings = self.ask_about(server, &settings)?;
        let kept = if self.router.cluster().is_some() {
            "when it writes locks to its disk, and takes others for dead"
        } else {
            "when it writes locks to its disk"
        };
        let asked = [
            ("info", info.as_ref().err(), "its version, role, memory, disk and replicas"),
            ("config get", settings.as_ref().err(), kept),
        ];
        let unknown = asked.into_iter().filter_map(|(command, words, what)| Some(self.unknown(command, words?, what)));
        found.findings.extend(unknown);
        let info = info.ok().map(|replies| replies.first().and_then(reply::text).map(lines).ok_or(Failure::Garbage));
        let settings = settings.ok().map(|replies| replies.iter().filter_map(setting).collect());
        let (waits, votes, listed) = (self.address.replicas > 0, self.votes.is_some(), self.address.label.is_some());
        let told = info.transpose()?.map(|info| Told { info, settings, waits, votes, listed });
        if let Some(told) = &told {
            found.run = Some(told.text("run_id").to_owned()).filter(|run| !run.is_empty());
            told.facts(&mut found);
            found.findings.extend(CHECKS.iter().filter_map(|check| check(told)));
        }
        found.findings.extend(self.is_open_to_all(server, slot)?);
        Ok((found, told))
    }

    /// Asks for something that the server may keep to itself; then its words.
    fn ask_about(&self, server: &Endpoint, commands: &[Cmd]) -> Result<Result<Vec<Value>, String>, Failure> {
        let until = Moment::now().after(self.patience);
        let (replies, _) = self.router.ask_many_at(server, commands, Manner::until(until))?;
        let refusal = replies.iter().find_map(|reply| match reply {
            Value::ServerError(error) => Some(self.address.without_password(&said(error))),
            _ => None,
        });
        Ok(refusal.map_or(Ok(replies), Err))
    }

    /// Whether a stranger on the network could read our leases.
    fn is_open_to_all(&self, server: &Endpoint, slot: u16) -> Result<Option<Finding>, Failure> {
        let until = Moment::now().after(self.patience);
        let pool = &self.router.pool;
        let mut ours = pool.take_idle(server, 0).map_or_else(|| pool.open(server, until), Ok)?;
        if !ours.stream.is_from_outside() {
            return Ok(None);
        }
        let opened =
            Connection::open(server, &pool.access.for_strangers(), &TlsConfig::default(), &pool.hurry, until.left());
        let look = cmd("ZCARD").arg(self.index(slot)).take();
        let seen = opened.and_then(|mut connection| connection.ask(&[look], until.left()));
        let is_open = seen.is_ok_and(|replies| matches!(replies[..], [Value::Int(_)]));
        Ok(is_open.then(|| {
            Finding::warning(
                "whoever can reach it gets in without a password",
                "who can read a lease can take it away, and who can write can forge one",
                "'requirepass', or a user of its own (README, 'The user that dlock needs'), and a URL with the password in a \
                 file for --store-file; rediss:// keeps it from those who listen on the way",
            )
        }))
    }
}

/// What stands in lines, each a name, a colon and a value.
pub(super) fn lines(text: &str) -> HashMap<String, String> {
    let pair = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.to_owned()));
    text.lines().filter_map(pair).collect()
}

fn setting(reply: &Value) -> Option<(String, String)> {
    let Value::Array(pair) = reply else { return None };
    Some((reply::text(pair.first()?)?.to_owned(), reply::text(pair.get(1)?)?.to_owned()))
}

impl Told {
    /// What it means that the server forgets; if it is one of several that vote, it knows that it may have.
    fn or_of_a_voter<'a>(&self, why: &'a str) -> &'a str {
        const ABSTAINS: &str = "after a restart its vote does not count until all leases have ended that it may have \
                              forgotten: another node that fails meanwhile is one more that is missing";
        if self.votes { ABSTAINS } else { why }
    }

    fn text(&self, name: &str) -> &str {
        self.info.get(name).map_or("", |value| value)
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }

    fn is(&self, name: &str) -> bool {
        self.text(name) == "1"
    }

    /// A setting, if the server says what it is.
    pub(super) fn setting(&self, name: &str) -> Option<&str> {
        self.settings.as_ref()?.get(name).map(String::as_str)
    }

    /// The replicas that it knows: each in a line of its own, `slave0:ip=…,port=…,state=…`.
    pub(super) fn replicas(&self) -> Vec<Endpoint> {
        let named = |line: &String| {
            let field = |name: &str| line.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            Some(Endpoint::Tcp(field("ip")?.to_lowercase(), field("port")?.parse().ok()?))
        };
        (0..).map_while(|number| self.info.get(&format!("slave{number}"))).filter_map(named).collect()
    }

    /// What kind of server it is, and its version.
    fn program(&self) -> (&'static str, &str) {
        match self.text("valkey_version") {
            "" => ("Redis", self.text("redis_version")),
            version => ("Valkey", version),
        }
    }

    /// Major and minor, if they can be read.
    fn version(&self) -> Option<(u32, u32)> {
        let mut parts = self.program().1.split('.').map(str::parse);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    }

    fn facts(&self, found: &mut Examination) {
        let (program, version) = self.program();
        found.know("version", format!("{program} {version}"));
        found.know("role", if self.text("role") == "slave" { "replica" } else { self.text("role") });
        found.know("replicas", self.number("connected_slaves").to_string());
        let limit = self.number("maxmemory");
        let limit = if limit == 0 { "no limit".into() } else { format!("{} KiB", limit >> 10) };
        found.know("memory", format!("{} KiB of {limit}, {}", self.number("used_memory") >> 10, self.policy()));
        let sync = self.setting("appendfsync").map_or_else(String::new, |sync| format!(", appendfsync {sync}"));
        found.know(
            "persistence",
            match (self.is("aof_enabled"), self.setting("save")) {
                (true, _) => format!("append-only file{sync}"),
                (false, Some("")) => "none".into(),
                (false, Some(_)) => "snapshots".into(),
                (false, None) => "no append-only file".into(),
            },
        );
    }

    fn policy(&self) -> &str {
        self.text("maxmemory_policy")
    }
}

fn is_old(told: &Told) -> Option<Finding> {
    let (program, version) = told.program();
    let old = program == "Redis" && told.version()? < OLDEST;
    old.then(|| {
        Finding::warning(
            format!("it is {program} {version}, and dlock needs {}.{}", OLDEST.0, OLDEST.1),
            "what dlock asks of it, in its script and while it waits, an older one may refuse in the middle of a run",
            "a newer Redis, or Valkey",
        )
    })
}

fn is_new(told: &Told) -> Option<Finding> {
    let (program, version) = told.program();
    let (_, newest) = NEWEST.into_iter().find(|(name, _)| *name == program)?;
    (told.version()?.0 > newest).then(|| {
        Finding::note(
            format!("it is {program} {version}, and this dlock was tested with {program} {newest} at most"),
            "something in it may have changed that dlock stands on",
            "look for a newer dlock",
        )
    })
}

fn is_loading(told: &Told) -> Option<Finding> {
    told.is("loading").then(|| {
        Finding::warning(
            "it is still loading its data",
            "until it is done no lock can be taken or renewed",
            "wait; if its data is so much that this takes longer than a lease, use a server of its own for locks",
        )
    })
}

fn is_a_replica(told: &Told) -> Option<Finding> {
    (told.text("role") == "slave").then(|| {
        let master = format!("{}:{}", told.text("master_host"), told.text("master_port"));
        Finding::warning(
            format!("it is a replica of {master}"),
            "a replica takes no lock, and does not know all that its master gave out",
            "name the master in the URL",
        )
    })
}

fn is_in_a_cluster(told: &Told) -> Option<Finding> {
    told.is("cluster_enabled").then(|| {
        Finding::warning(
            "it is a node of a cluster",
            "it refuses all keys that are kept by other nodes: dlock exits with 78 for these",
            if told.listed { "name a server that is none" } else { "write 'redis+cluster://' in the URL" },
        )
    })
}

fn evicts(told: &Told) -> Option<Finding> {
    let policy = told.policy();
    (!["", "noeviction"].contains(&policy)).then(|| {
        let limit = told.number("maxmemory");
        let when = match (told.number("evicted_keys"), limit) {
            (0, 0) => "as soon as it is given a limit".into(),
            (0, limit) => format!("when it has more than {} KiB", limit >> 10),
            (evicted, _) => format!("and has dropped {evicted} so far"),
        };
        Finding::warning(
            format!("its maxmemory-policy is '{policy}': it drops keys, {when}"),
            "a lock that is dropped is free for the next one, while its holder still works",
            "'CONFIG SET maxmemory-policy noeviction', and the same in its configuration; a cache belongs into another server",
        )
    })
}

fn is_full(told: &Told) -> Option<Finding> {
    let (used, limit) = (told.number("used_memory"), told.number("maxmemory"));
    let is_full = limit > 0 && used >= limit / 10 * 9 && told.policy() == "noeviction";
    is_full.then(|| {
        Finding::warning(
            format!("it has {} KiB in memory, and its maxmemory is {} KiB", used >> 10, limit >> 10),
            "once it is full nobody gets a key any more (69); who has one goes on",
            "'CONFIG SET maxmemory' with more, and the same in its configuration, or another server for what else is in it",
        )
    })
}

fn forgets(told: &Told) -> Option<Finding> {
    const REMEDY: &str = "'CONFIG SET appendonly yes' and 'CONFIG SET appendfsync always' while it runs, and then the same in its \
                        configuration: started with a new append-only file, it forgets all";
    if told.is("aof_enabled") {
        return None;
    }
    let (what, why) = match told.setting("save") {
        Some("") => {
            ("it keeps nothing on its disk", "after a restart all keys are free, while those who held them still work")
        }
        _ => (
            "it keeps no append-only file, at most snapshots",
            "after a restart it is as it was at the last snapshot: keys taken since are free, while their holders still work",
        ),
    };
    Some(Finding::warning(what, told.or_of_a_voter(why), REMEDY))
}

fn syncs_late(told: &Told) -> Option<Finding> {
    const LOSS: &str = "if its machine crashes, keys taken just before are free, while their holders still work";
    const REMEDY: &str = "'appendfsync always', if that matters more than the time it takes";
    let why = told.or_of_a_voter(LOSS);
    let sync = told.setting("appendfsync").filter(|_| told.is("aof_enabled"))?;
    match sync {
        "no" => Some(Finding::warning(
            "its appendfsync is 'no': locks reach the disk after half a minute or so",
            why,
            REMEDY,
        )),
        "everysec" => Some(Finding::note(
            "its appendfsync is 'everysec': locks reach the disk after a second or two",
            why,
            REMEDY,
        )),
        _ => None,
    }
}

fn cannot_write(told: &Told) -> Option<Finding> {
    let failed = [
        ("aof_last_write_status", "it cannot write its append-only file"),
        ("rdb_last_bgsave_status", "its last snapshot failed"),
    ];
    let (name, what) = failed.into_iter().find(|(name, _)| !["", "ok"].contains(&told.text(name)))?;
    Some(Finding::warning(
        format!("{what} ({name}: {})", told.text(name)),
        "until it can, it refuses all that changes something: no lock can be taken or renewed",
        "make room on its disk, and look at the rights of its directory; its log says what is wrong",
    ))
}

fn waits_for_no_replica(told: &Told) -> Option<Finding> {
    let replicas = told.number("connected_slaves");
    // It is told where it is not 0.
    (replicas > 0 && !told.waits && !told.info.contains_key("min_slaves_good_slaves")).then(|| {
        let many = if replicas == 1 { "a replica".into() } else { format!("{replicas} replicas") };
        Finding::warning(
            format!("it has {many}, and min-replicas-to-write is 0"),
            "cut off from these it goes on giving out locks, while one of them becomes the master and gives out the same ones",
            "'min-replicas-to-write 1' and 'min-replicas-max-lag 10'; and compare DLOCK_FENCE where the work is written",
        )
    })
}
