//! Sentinels with a master and two replicas.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use redis::{RedisResult, Value};

use super::group::{Ground, Setup};
use super::{Server, new_dir};
use crate::support::wait_for;

/// What the sentinels call the master.
pub(crate) const NAME: &str = "mymaster";

/// How many servers have the data; as many sentinels watch them.
const SERVERS: usize = 3;

/// A master, two replicas and three sentinels, two of which must agree. Killed at the end.
#[expect(clippy::struct_field_names, reason = "this is what they are called")]
pub(crate) struct Sentinels {
    pub(crate) servers: Vec<Server>,
    pub(crate) sentinels: Vec<Server>,
    ground: Ground,
}

impl Sentinels {
    /// Starts them, and waits until a failover would be possible. The first server is the master.
    pub(crate) fn start(program: &'static str, setup: &Setup) -> Self {
        let ground = Ground::new(2 * SERVERS, setup);
        let port = ground.port().to_string();
        let mut group = Self { servers: Vec::new(), sentinels: Vec::new(), ground };
        for number in 0..SERVERS {
            let host = group.ground.hosts[number].clone();
            let mut own = vec!["--replica-announce-ip", &host];
            if number > 0 {
                own.extend(["--replicaof", &group.ground.hosts[0], &port]);
            }
            let arguments = group.ground.arguments(number, &own, setup);
            group.servers.push(Server::in_group(program, new_dir(), &host, arguments));
            // A replica that does not find its master tries again a second later, and so does one that comes while
            // another gets the data.
            wait_for("the master and its replicas", || group.replicas_online() == Some(number));
        }
        for number in SERVERS..2 * SERVERS {
            let dir = new_dir();
            fs::write(dir.path().join("sentinel.conf"), group.config(number, setup)).expect("a file");
            let arguments = ["sentinel.conf", "--sentinel"].map(str::to_owned).to_vec();
            group.sentinels.push(Server::in_group(program, dir, &group.ground.hosts[number], arguments));
        }
        // The first one does not find the others, and tries again after a period of 1 s.
        group.set_periods("50");
        wait_for("sentinels that know all", || group.sentinels.iter().all(|one| knows_all(one).unwrap_or(false)));
        group.set_periods("1000");
        group
    }

    /// The config file of a sentinel. It names all the others, which it need not find then.
    fn config(&self, number: usize, setup: &Setup) -> String {
        let (hosts, port) = (&self.ground.hosts, self.ground.port());
        let mut lines = self.ground.lines();
        lines.extend([
            format!("bind {}", hosts[number]),
            format!("port {}", super::PORT),
            format!("sentinel announce-ip {}", hosts[number]),
            format!("sentinel myid {}", id(number)),
            format!("sentinel monitor {NAME} {} {port} 2", hosts[0]),
            format!("sentinel down-after-milliseconds {NAME} {}", setup.down_after.as_millis()),
            format!("sentinel failover-timeout {NAME} 3000"),
            format!("sentinel parallel-syncs {NAME} 1"),
        ]);
        lines.extend(hosts[1..SERVERS].iter().map(|host| format!("sentinel known-replica {NAME} {host} {port}")));
        let others = (SERVERS..2 * SERVERS).filter(|other| *other != number);
        lines.extend(
            others.map(|other| format!("sentinel known-sentinel {NAME} {} {port} {}", hosts[other], id(other))),
        );
        lines.extend(setup.sentinel.iter().map(ToString::to_string));
        lines.join("\n") + "\n"
    }

    /// Sets how often sentinels look after whom they know. They look at servers more often than by themselves, and tell
    /// each other of them, so that one that comes back as a master is a replica after a second or two, not ten. Redis
    /// 6.2 has no command for that, and takes its time.
    fn set_periods(&self, ping: &str) {
        let periods = ["PING-PERIOD", ping, "INFO-PERIOD", "1000", "PUBLISH-PERIOD", "200"];
        for sentinel in &self.sentinels {
            sentinel.await_ready();
            let _ = sentinel.try_ask::<Value>(&[&["SENTINEL", "DEBUG"], &periods[..]].concat());
        }
    }

    /// How many replicas have the master's data at the start; nothing if it does not answer yet.
    fn replicas_online(&self) -> Option<usize> {
        let info: String = self.servers[0].try_ask(&["INFO", "replication"]).ok()?;
        Some(info.matches("state=online").count())
    }

    /// The URL of the store on them.
    pub(crate) fn url(&self) -> String {
        let addresses = self.ground.addresses(SERVERS..2 * SERVERS);
        format!("{}+sentinel://{addresses}/{NAME}/0", self.ground.scheme())
    }

    /// A file that `tls::certify` made, of a group with TLS.
    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.ground.certificates.as_ref().expect("a group with TLS").path().join(name)
    }

    /// The number of the server that most sentinels call the master, and that says so itself. Waits for it.
    pub(crate) fn master_number(&self) -> usize {
        self.await_master(|_| true)
    }

    /// That server.
    pub(crate) fn master(&self) -> &Server {
        &self.servers[self.master_number()]
    }

    /// Kills the master, and returns its number.
    pub(crate) fn kill_master(&mut self) -> usize {
        let number = self.master_number();
        self.servers[number].kill();
        number
    }

    /// Waits until most sentinels name another master than that, which says so itself.
    pub(crate) fn await_failover(&self, old: usize) {
        self.await_master(|number| number != old);
    }

    /// Waits until a server is a replica of the master and has its data.
    pub(crate) fn await_replica(&self, number: usize) {
        wait_for("a replica", || {
            let info: String = self.servers[number].try_ask(&["INFO", "replication"]).unwrap_or_default();
            info.contains(&format!("master_host:{}\r\n", self.master().host)) && info.contains("master_link_status:up")
        });
    }

    fn await_master(&self, is_wanted: impl Fn(usize) -> bool) -> usize {
        let mut found = None;
        wait_for("a master that most sentinels name", || {
            found = self.named().filter(|number| is_wanted(*number) && is_master(&self.servers[*number]));
            found.is_some()
        });
        found.expect("it was waited for")
    }

    /// The number of the server that most sentinels name. All of them may never agree: on a busy machine a master is
    /// taken for dead that is not, and who promoted a replica then names that one until it answers, even if it was
    /// killed meanwhile and the others went on.
    fn named(&self) -> Option<usize> {
        let ask =
            |sentinel: &Server| sentinel.try_ask::<(String, u16)>(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]).ok();
        let answers: Vec<_> = self.sentinels.iter().filter(|one| one.is_awake()).filter_map(ask).collect();
        let votes = |server: &Server| answers.iter().filter(|(host, _)| *host == server.host).count();
        self.servers.iter().position(|server| votes(server) > SERVERS / 2)
    }
}

/// The id of a sentinel.
fn id(number: usize) -> String {
    format!("{number:040x}")
}

/// Whether it can answer and says that it is a master.
pub(super) fn is_master(server: &Server) -> bool {
    let role = || server.try_ask::<Vec<Value>>(&["ROLE"]).ok()?.into_iter().next();
    server.is_awake() && role().is_some_and(|role| role == Value::BulkString(b"master".to_vec()))
}

/// Whether a sentinel knows all the others, is connected with them and finds nothing wrong with any.
fn knows_all(sentinel: &Server) -> RedisResult<bool> {
    type Facts = HashMap<String, String>;
    let is = |facts: &Facts, name: &str, value: &str| facts.get(name).is_some_and(|found| found == value);
    let master: Facts = sentinel.try_ask(&["SENTINEL", "MASTER", NAME])?;
    let replicas: Vec<Facts> = sentinel.try_ask(&["SENTINEL", "REPLICAS", NAME])?;
    let others: Vec<Facts> = sentinel.try_ask(&["SENTINEL", "SENTINELS", NAME])?;
    let good = |replica| is(replica, "flags", "slave") && is(replica, "master-link-status", "ok");
    Ok(is(&master, "flags", "master")
        && replicas.len() == SERVERS - 1
        && replicas.iter().all(good)
        && others.len() == SERVERS - 1
        && others.iter().all(|other| is(other, "flags", "sentinel")))
}
