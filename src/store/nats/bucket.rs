//! The bucket: a stream with the settings of a key-value bucket that keeps one value for each key (ADR-8), as locks need it.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::address::{Address, Bucket, Storage};
use super::connection::{Connection, plain};
use super::trouble::{Failure, Refusal, Said};
use crate::clock::Moment;
use crate::model::Stamp;
use crate::store::trouble::shown;

/// Whoever leads hears of the others every second, and those who hear nothing of it choose another one after 4 s or more
/// (nats-server, `raft.go`: `hbInterval` and `minElectionTimeout`).
const HEARD_WITHIN: Duration = Duration::from_secs(3);

/// What JetStream says of a stream.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamInfo {
    pub(super) error: Option<Refusal>,
    pub(super) config: Config,
    pub(super) state: State,
    pub(super) cluster: Option<Cluster>,
    /// When it was said, by the clock of the leader; servers before 2.10 do not say.
    ts: Option<String>,
    /// Of how many parts of a long answer.
    pub(super) total: usize,
}

/// The settings of a stream.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Config {
    pub(super) subjects: Vec<String>,
    pub(super) retention: String,
    pub(super) discard: String,
    pub(super) storage: String,
    pub(super) num_replicas: u32,
    max_msgs: i64,
    max_bytes: i64,
    max_age: i64,
    max_msgs_per_subject: i64,
    max_msg_size: i64,
    discard_new_per_subject: bool,
    sealed: bool,
    mirror: Option<Value>,
    sources: Option<Value>,
}

/// What is in a stream.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct State {
    pub(super) last_seq: u64,
    pub(super) subjects: std::collections::BTreeMap<String, u64>,
}

/// The servers of a stream.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Cluster {
    /// Nothing, where there is one server alone.
    pub(super) name: Option<String>,
    pub(super) leader: Option<String>,
    pub(super) replicas: Vec<Peer>,
}

/// A server that follows the leader.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) current: bool,
    pub(super) offline: bool,
    pub(super) lag: u64,
    /// How long ago the leader heard of it, in nanoseconds.
    active: i64,
}

impl Peer {
    /// Whether the leader hears of it.
    fn is_heard(&self) -> bool {
        // Of whom it never heard it says 0; of whom it heard before its clock was set back, too.
        let is_new = self.active == 0 && !self.current;
        !is_new && Duration::from_nanos(u64::try_from(self.active).unwrap_or(0)) <= HEARD_WITHIN
    }
}

impl StreamInfo {
    /// The leader's clock when this was said.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        self.ts.as_deref().and_then(stamp)
    }

    /// Whose clock it is. Of one server alone it is the same after each start, whatever the server is called then.
    pub(super) fn leader(&self) -> String {
        let cluster = self.cluster.clone().unwrap_or_default();
        cluster.name.and(cluster.leader).unwrap_or_default()
    }

    /// Whether others may lead by now and have written more: most of them were silent for so long. An old server does not
    /// have to know, for its time is asked with a write.
    pub(super) fn may_be_outdated(&self) -> bool {
        let peers = self.cluster.as_ref().map_or(&[][..], |cluster| &cluster.replicas);
        let silent = peers.iter().filter(|peer| !peer.is_heard()).count();
        self.ts.is_some() && silent * 2 > peers.len()
    }

    /// Whether only the stream as a whole can be compared and swapped: servers before 2.9.21 have two winners where a
    /// subject is compared and there are several replicas (nats-server, issue 4320). Of these there is no time here.
    pub(super) fn is_old_cluster(&self) -> bool {
        self.ts.is_none() && self.config.num_replicas > 1
    }
}

/// An instant as servers write it.
pub(super) fn stamp(text: &str) -> Option<Stamp> {
    let time = humantime::parse_rfc3339(text).ok()?;
    Some(Stamp::default().after(time.duration_since(std::time::UNIX_EPOCH).ok()?))
}

/// The settings of a new bucket.
pub(super) fn settings(bucket: &Bucket) -> Value {
    json!({
        "name": bucket.stream(),
        "description": "locks of dlock",
        "subjects": [bucket.all()],
        "retention": "limits",
        // A full bucket refuses a new lock, and forgets no old one.
        "discard": "new",
        "storage": bucket.storage.name(),
        "num_replicas": bucket.replicas.unwrap_or(1),
        "max_msgs_per_subject": 1,
        "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msg_size": -1,
        "duplicate_window": 120_000_000_000_u64,
        "deny_delete": true,
        "allow_rollup_hdrs": true,
    })
}

/// What is wrong with a bucket that is there.
pub(super) fn fault(config: &Config, bucket: &Bucket) -> Option<String> {
    let stored = bucket.storage.name();
    let wanted = bucket.replicas.filter(|wanted| config.num_replicas < *wanted);
    if config.storage != stored && bucket.storage == Storage::File {
        return Some(
            "it keeps locks in memory, and a restart forgets them; say '?storage=memory' if that is meant".into(),
        );
    }
    if let Some(wanted) = wanted {
        return Some(format!("it has {} replicas, and '?replicas={wanted}' demands more", config.num_replicas));
    }
    // What forgets a lock lets two hold it.
    let limits = [("max_msgs", config.max_msgs), ("max_bytes", config.max_bytes)];
    let limit = limits.into_iter().find(|(_, limit)| *limit > 0);
    if let Some((name, limit)) = limit.filter(|_| config.discard != "new") {
        return Some(format!(
            "it forgets the oldest lock once '{name}' of {limit} is reached; its 'discard' must be 'new'"
        ));
    }
    if config.max_age > 0 {
        return Some("it forgets a lock after a while: its 'max_age' (ttl) must be 0".into());
    }
    if config.discard_new_per_subject {
        return Some("it takes no second value of a key: 'discard_new_per_subject' must be false".into());
    }
    if !config.retention.is_empty() && config.retention != "limits" {
        return Some(format!("its retention is '{}', and must be 'limits'", config.retention));
    }
    if config.sealed || config.mirror.is_some() || config.sources.is_some() {
        return Some("it is sealed, a mirror, or made of others".into());
    }
    if config.max_msg_size > 0 && config.max_msg_size < 64 << 10 {
        return Some(format!("a value of it has at most {} bytes, and a record may need 65536", config.max_msg_size));
    }
    if config.subjects != [bucket.all()] {
        return Some(format!("its subjects are not '{}'", bucket.all()));
    }
    if config.max_msgs_per_subject != 1 {
        return Some(format!("its history (max_msgs_per_subject) is {}, and must be 1", config.max_msgs_per_subject));
    }
    None
}

/// Looks at what JetStream said of the bucket; nothing if there is none.
pub(super) fn judge(info: &[u8], address: &Address) -> Result<Option<StreamInfo>, Failure> {
    let info: StreamInfo = serde_json::from_slice(info).map_err(|_| Failure::Garbage)?;
    match info.error {
        Some(refusal) if refusal.is_missing_stream() => Ok(None),
        Some(refusal) => Err(refusal.into()),
        None => match fault(&info.config, &address.bucket) {
            Some(fault) => Err(Failure::Odd(format!("bucket '{}': {fault}", address.bucket.name))),
            None => Ok(Some(info)),
        },
    }
}

/// Makes the bucket, if it is not there.
pub(super) fn make(connection: &mut Connection, address: &Address, until: Moment) -> Result<(), Failure> {
    let bucket = &address.bucket;
    let request = plain(bucket.ask("CREATE"), settings(bucket).to_string());
    let made = connection.ask(&[request], until);
    let info = match made {
        // Whoever may not, is told so here.
        Err(Failure::Said(Said::Words(words))) => return Err(Failure::Said(Said::Unprepared(shown(&words))).before()),
        made => made?,
    };
    let info: StreamInfo = info.first().and_then(|info| serde_json::from_slice(info).ok()).ok_or(Failure::Garbage)?;
    match info.error {
        // Somebody else made it, and in another way (10058): whoever looks next says what is wrong with it.
        Some(refusal) if refusal.err_code != 10058 => Err(Failure::from(refusal).before()),
        _ => Ok(()),
    }
}

/// What somebody would run by hand: with the command-line client of NATS, which reads the settings from a file.
pub(super) fn script(address: &Address) -> String {
    let bucket = &address.bucket;
    let pretty = serde_json::to_string_pretty(&settings(bucket)).unwrap_or_default();
    let stream = bucket.stream();
    let publish =
        [bucket.way_to(&bucket.all()), bucket.ask("INFO"), bucket.ask("MSG.GET"), format!("dlock.{}.>", bucket.name)];
    let subscribe = ["_INBOX.>".to_owned(), format!("dlock.{}.>", bucket.name)];
    let list = |subjects: &[String]| {
        let quoted: Vec<String> = subjects.iter().map(|subject| format!("\"{subject}\"")).collect();
        quoted.join(", ")
    };
    format!(
        "cat > {stream}.json <<'END'\n{pretty}\nEND\nnats stream add {stream} --config {stream}.json\n\
         # All that a user needs who takes locks, for the server's configuration:\n\
         #   permissions: {{\n#     publish: [{}]\n#     subscribe: [{}]\n#   }}\n",
        list(&publish),
        list(&subscribe)
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Config, StreamInfo, fault, settings, stamp};
    use crate::store::nats::address::Address;

    fn address(query: &str) -> Address {
        Address::parse(&format!("nats://h{query}"), std::path::Path::new("/")).expect("a URL")
    }

    fn fault_of(query: &str, change: Value) -> Option<String> {
        let bucket = address(query).bucket;
        let mut config = settings(&bucket);
        let Value::Object(change) = change else { panic!("settings") };
        change.into_iter().for_each(|(name, value)| config[name] = value);
        let config: Config = serde_json::from_value(config).expect("settings");
        fault(&config, &bucket)
    }

    #[test]
    fn a_bucket_that_forgets_locks_is_refused() {
        assert_eq!(fault_of("", json!({})), None);
        assert_eq!(fault_of("", json!({ "num_replicas": 3, "max_bytes": 1 << 30 })), None);
        assert_eq!(fault_of("?storage=memory", json!({})), None);
        for (query, change, word) in [
            ("", json!({ "storage": "memory" }), "memory"),
            ("?replicas=3", json!({ "num_replicas": 1 }), "replicas"),
            ("", json!({ "max_bytes": 1 << 30, "discard": "old" }), "discard"),
            ("", json!({ "max_age": 1 }), "max_age"),
            ("", json!({ "retention": "workqueue" }), "retention"),
            ("", json!({ "max_msgs_per_subject": 5 }), "history"),
            ("", json!({ "subjects": ["$KV.dlock.a"] }), "subjects"),
            ("", json!({ "max_msg_size": 1024 }), "1024"),
            ("", json!({ "sealed": true }), "sealed"),
        ] {
            assert!(fault_of(query, change.clone()).is_some_and(|fault| fault.contains(word)), "{change}");
        }
    }

    #[test]
    fn a_leader_that_hears_of_less_than_half_of_the_others_may_be_none() {
        let second = 1_000_000_000_i64;
        let is_outdated = |ts: Option<&str>, peers: &[(bool, i64)]| {
            let peers: Vec<Value> =
                peers.iter().map(|(current, active)| json!({ "current": current, "active": active })).collect();
            let info = json!({ "ts": ts, "cluster": { "replicas": peers } });
            serde_json::from_value::<StreamInfo>(info).expect("it is one").may_be_outdated()
        };
        let now = Some("2026-11-27T18:00:00Z");
        assert!(!is_outdated(now, &[]));
        assert!(!is_outdated(now, &[(true, 1), (true, 9 * second)]));
        assert!(is_outdated(now, &[(true, 4 * second), (false, 9 * second)]));
        assert!(!is_outdated(now, &[(true, 0), (false, 9 * second)]), "a clock that was set back");
        assert!(!is_outdated(now, &[(true, -second), (false, 9 * second)]));
        assert!(is_outdated(now, &[(false, 0), (false, 9 * second)]), "never heard of");
        assert!(!is_outdated(None, &[(false, 0), (false, 9 * second)]));
        assert!(!is_outdated(now, &[(true, 1), (true, 1), (false, 9 * second), (false, 9 * second)]));
    }

    #[test]
    fn an_instant_is_read_to_the_microsecond() {
        let stamp = stamp("2026-11-27T18:00:00.123456789Z").expect("an instant");
        assert_eq!(stamp.micros() % 1_000_000, 123_456);
    }
}
