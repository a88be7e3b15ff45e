//! Whether a bucket can be trusted with locks: what the servers say of themselves, of the bucket, and of their settings.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::bucket::{self, Peer, StreamInfo};
use super::connection::{Connection, Info, Received, plain};
use super::trouble::Said;
use super::{Failure, NatsRegister};
use crate::clock::Moment;
use crate::model::Stamp;
use crate::store::socket::Endpoint;
use crate::store::wire::Wire;
use crate::store::{Examination, Finding};

/// The oldest version that dlock is made for, and the newest that it was tested with.
const VERSIONS: ((u32, u32), (u32, u32)) = ((2, 9), (2, 15));

/// How far a copy may be behind, in messages, and still count as one that keeps up.
const LAG: u64 = 1000;

/// By how much the port where a server tells of itself is usually above the one for clients: 8222 and 4222.
const MONITOR: u16 = 4000;

/// How long a server may take to tell of itself there.
const MONITOR_WITHIN: Duration = Duration::from_millis(500);

/// Where JetStream tells what it was asked (its "API audit"), and how long that may take.
const AUDITS: &str = "$JS.EVENT.ADVISORY.API";
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// What servers say.
struct Told {
    info: Info,
    bucket: String,
    /// Nothing, if there is no bucket.
    stream: Option<StreamInfo>,
    /// How often what was written is forced to the disk, in nanoseconds; zero for always. Nothing, if nobody tells.
    sync_interval: Option<u64>,
    /// Whether a stranger on the way could read what is said.
    is_open: bool,
}

type Check = fn(&Told) -> Option<Finding>;

const CHECKS: [Check; 10] = [
    is_old,
    is_new,
    compares_whole_streams,
    has_one_copy,
    is_in_memory,
    has_lost_copies,
    syncs_late,
    may_sync_late,
    has_no_bucket,
    can_be_read,
];

impl NatsRegister {
    pub(super) fn look_into(&self, _: Duration) -> Result<Examination, Failure> {
        let until = self.until();
        let mut connection = self.idle.take(None, 0).map_or_else(|| self.open(until), Ok)?;
        let server = connection.server.clone();
        let told = self.told(&mut connection, until).map_err(|failure| failure.by(&server))?;
        self.idle.keep(connection);
        let mut found = Examination::default();
        told.facts(&mut found);
        found.findings.extend(CHECKS.iter().filter_map(|check| check(&told)));
        Ok(found)
    }

    fn told(&self, connection: &mut Connection, until: Moment) -> Result<Told, Failure> {
        let bucket = &self.address.bucket;
        let replies = connection.ask(&[plain(bucket.ask("INFO"), "")], until)?;
        Ok(Told {
            info: connection.info.clone(),
            bucket: bucket.name.clone(),
            stream: bucket::judge(&replies[0], &self.address)?,
            sync_interval: sync_interval(&connection.server),
            is_open: connection.buffered.stream.can_be_read(),
        })
    }

    /// The clock of a server, where there is no bucket to ask; servers from 2.10 on tell it.
    pub(super) fn time_without_bucket(&self, connection: &mut Connection) -> Result<Stamp, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            server: Server,
        }
        #[derive(Deserialize)]
        struct Server {
            time: String,
        }
        let replies = match connection.ask(&[plain("$SYS.REQ.USER.INFO".into(), "")], self.until()) {
            Err(Failure::Said(Said::NobodyThere | Said::Words(_))) => return self.time_of_a_request(),
            replies => replies?,
        };
        let answer: Option<Answer> = replies.first().and_then(|reply| serde_json::from_slice(reply).ok());
        answer.and_then(|answer| bucket::stamp(&answer.server.time)).ok_or(Failure::Said(Said::NoTime))
    }

    /// The clock of the server that leads JetStream: it tells those who listen what it was asked, and when.
    fn time_of_a_request(&self) -> Result<Stamp, Failure> {
        #[derive(Deserialize)]
        struct Audit {
            timestamp: String,
            #[serde(default)]
            request: String,
        }
        let until = Moment::now().after(TOLD_WITHIN).min(self.until());
        // By this one's own request is known.
        let request = format!("{{\"offset\":{}}}", std::process::id());
        let subject = self.address.bucket.ask("INFO");
        let told = self.listen(AUDITS, 0, until).and_then(|mut connection| {
            connection.write(format!("PUB {subject} {}\r\n{request}\r\n", request.len()).as_bytes(), until)?;
            loop {
                match connection.receive(until)? {
                    Received::Message { payload, .. } => {
                        let audit = serde_json::from_slice(&payload).ok();
                        if let Some(audit) = audit.filter(|audit: &Audit| audit.request == request) {
                            self.idle.keep(connection);
                            return bucket::stamp(&audit.timestamp).ok_or(Failure::Said(Said::NoTime));
                        }
                    }
                    Received::Refusal(words) => return Err(Failure::Said(Said::Words(words))),
                    Received::Info(_) | Received::Pong => {}
                }
            }
        });
        told.map_err(|failure| match failure.bare() {
            // Who may not listen there is told so.
            Failure::Said(Said::Words(_)) | Failure::Silent => Failure::Said(Said::NoTime),
            _ => failure,
        })
    }
}

/// What a server tells where it tells of itself, if it does.
fn sync_interval(server: &Endpoint) -> Option<u64> {
    let Endpoint::Tcp(host, port) = server else { return None };
    let until = Moment::now().after(MONITOR_WITHIN);
    let monitor = Endpoint::Tcp(host.clone(), port.checked_add(MONITOR)?);
    let mut wire = Wire::over(monitor.connect(until).ok()?, until);
    wire.write_all(format!("GET /varz HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    wire.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let told: Value = serde_json::from_str(body).ok()?;
    let config = &told["jetstream"]["config"];
    if config["sync_always"] == true { Some(0) } else { config["sync_interval"].as_u64() }
}

impl Told {
    fn version(&self) -> (u32, u32) {
        let mut parts = self.info.version.split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }

    fn replicas(&self) -> Option<u32> {
        self.stream.as_ref().map(|stream| stream.config.num_replicas)
    }

    /// Those who follow the leader.
    fn followers(&self) -> &[Peer] {
        self.stream.as_ref().and_then(|stream| stream.cluster.as_ref()).map_or(&[], |cluster| &cluster.replicas)
    }

    fn facts(&self, found: &mut Examination) {
        found.know("version", format!("nats-server {}", self.info.version));
        found.know("cluster", self.info.cluster.clone().unwrap_or_else(|| "none".into()));
        let Some(stream) = &self.stream else {
            found.know("bucket", format!("{}, not there yet", self.bucket));
            return;
        };
        found.know("bucket", self.bucket.clone());
        found.know("storage", stream.config.storage.clone());
        found.know("replicas", stream.config.num_replicas.to_string());
        let good = self.followers().iter().filter(|peer| is_good(peer)).count() + 1;
        found.know("copies", format!("{good} of {} are up to date", stream.config.num_replicas));
        if !stream.leader().is_empty() {
            found.know("leader", stream.leader());
        }
        let interval = self.sync_interval.map(Duration::from_nanos);
        found.know(
            "sync_interval",
            match interval {
                None => "not told".into(),
                Some(Duration::ZERO) => "always".into(),
                Some(interval) => humantime::format_duration(interval).to_string(),
            },
        );
    }
}

fn is_good(peer: &Peer) -> bool {
    peer.current && !peer.offline && peer.lag <= LAG
}

fn is_old(told: &Told) -> Option<Finding> {
    let ((major, minor), _) = VERSIONS;
    (told.version() < (major, minor)).then(|| {
        Finding::warning(
            format!("it is nats-server {}, and dlock needs {major}.{minor}", told.info.version),
            "what dlock asks of it an older one may refuse in the middle of a run",
            "a newer nats-server",
        )
    })
}

fn is_new(told: &Told) -> Option<Finding> {
    let (_, (major, minor)) = VERSIONS;
    (told.version() > (major, minor)).then(|| {
        Finding::note(
            format!("it is nats-server {}, and this dlock was tested with {major}.{minor} at most", told.info.version),
            "something in it may have changed that dlock stands on",
            "look for a newer dlock",
        )
    })
}

fn compares_whole_streams(told: &Told) -> Option<Finding> {
    told.stream.as_ref().is_some_and(StreamInfo::is_old_cluster).then(|| {
        Finding::note(
            "its bucket has several replicas on servers before 2.10",
            "of two who write a key at once both may win there; dlock compares the bucket as a whole, which is safe, and \
             slow where many keys change at once",
            "a newer nats-server on all machines",
        )
    })
}

fn has_one_copy(told: &Told) -> Option<Finding> {
    (told.replicas() == Some(1) && told.info.cluster.is_some()).then(|| {
        Finding::warning(
            format!("of bucket '{}' there is one copy in a cluster of several servers", told.bucket),
            "while the server that has it is away no lock can be taken or renewed, and what its disk loses is lost",
            format!("'nats stream edit KV_{} --replicas 3', and '?replicas=3' in the URL", told.bucket),
        )
    })
}

fn is_in_memory(told: &Told) -> Option<Finding> {
    told.stream.as_ref().is_some_and(|stream| stream.config.storage == "memory").then(|| {
        Finding::warning(
            "its bucket is in memory",
            "a restart forgets who holds what, while the holders still work",
            "a bucket in files: another '?prefix=', without '?storage=memory'",
        )
    })
}

fn has_lost_copies(told: &Told) -> Option<Finding> {
    let bad: Vec<&str> = told.followers().iter().filter(|peer| !is_good(peer)).map(|peer| &*peer.name).collect();
    (!bad.is_empty()).then(|| {
        Finding::warning(
            format!(
                "{} of its {} copies are away or behind: {}",
                bad.len(),
                told.followers().len() + 1,
                bad.join(", ")
            ),
            "once most of them are away no lock can be taken or renewed",
            "start those servers, or remove them from the cluster",
        )
    })
}

fn syncs_late(told: &Told) -> Option<Finding> {
    let interval = told.sync_interval.filter(|interval| *interval > 0).map(Duration::from_nanos)?;
    (told.stream.is_some() && told.replicas() == Some(1)).then(|| {
        let interval = humantime::format_duration(interval);
        Finding::warning(
            format!("what it writes is forced to the disk every {interval} only"),
            "if its machine loses power, keys taken just before are free, while their holders still work",
            "'sync_interval: always' in its jetstream settings, or three replicas",
        )
    })
}

fn may_sync_late(told: &Told) -> Option<Finding> {
    told.sync_interval.is_none().then(|| {
        Finding::note(
            "it does not tell how often what it writes is forced to the disk: every 2 minutes, unless it was set up otherwise",
            "if its machine loses power, or all machines that have copies do, keys taken just before are free, while their \
             holders still work",
            "'sync_interval: always' in its jetstream settings",
        )
    })
}

fn has_no_bucket(told: &Told) -> Option<Finding> {
    told.stream.is_none().then(|| {
        Finding::note(
            format!("there is no bucket '{}' yet", told.bucket),
            "the first lock makes it, if the user may",
            "'dlock setup', to have it now",
        )
    })
}

fn can_be_read(told: &Told) -> Option<Finding> {
    told.is_open.then(|| {
        Finding::warning(
            "what is said to it and by it is not encrypted",
            "who can read a lease on the way can take it away",
            "'nats+tls://'",
        )
    })
}
