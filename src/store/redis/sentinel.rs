//! Finding a master by its sentinels: all of them are asked, and those that know of the latest failover are believed,
//! most of them if they differ. What they name must say itself that it is a master. After "Guidelines for Redis clients
//! with support for Redis Sentinel", which asks one after the other and believes the first.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use redis::{Cmd, Value, cmd};

use super::address::{Endpoint, Sentinels};
use super::connection::Connection;
use super::trouble::Failure;
use super::{lock, reply};
use crate::clock::Moment;
use crate::signal;
use crate::store::hurry::Hurry;
use crate::store::tls::TlsConfig;

/// How long sentinels that are slower than others are waited for, unless most have answered.
const SLOW: Duration = Duration::from_millis(500);

/// Finds the master.
pub(super) struct Finder {
    sentinels: Sentinels,
    tls: Arc<TlsConfig>,
    known: Mutex<Option<Endpoint>>,
}

/// A sentinel, and what it answers.
type Told = (Endpoint, Result<Vec<Value>, Failure>);

/// What a sentinel says: who is the master, and in which epoch it became that. Nothing if it does not know any.
pub(super) type Named = Option<(u64, Endpoint)>;

impl Finder {
    pub(super) fn new(sentinels: &Sentinels) -> Self {
        Self { sentinels: sentinels.clone(), tls: Arc::default(), known: Mutex::default() }
    }

    /// The master, and whether the sentinels were asked for it just now.
    pub(super) fn master(&self, until: Moment) -> Result<(Endpoint, bool), Failure> {
        if let Some(known) = lock(&self.known).clone() {
            return Ok((known, false));
        }
        let master = self.find(until)?;
        *lock(&self.known) = Some(master.clone());
        Ok((master, true))
    }

    /// This one erred, or is not the master any more.
    pub(super) fn forget(&self, server: &Endpoint) {
        lock(&self.known).take_if(|known| known == server);
    }

    fn find(&self, until: Moment) -> Result<Endpoint, Failure> {
        // What is left is for the master.
        let within = until.left() / 2;
        let asked = self.ask_each(&questions(&self.sentinels.master), within)?;
        let mut votes = Vec::new();
        let mut known = 0;
        let mut failed = Vec::new();
        for (sentinel, answer) in asked {
            match answer.and_then(|replies| named(&replies)) {
                Ok(Some(named)) => {
                    known += 1;
                    votes.push(named);
                }
                Ok(None) => known += 1,
                Err(failure) => failed.push((sentinel, failure)),
            }
        }
        let agree = |master: &Endpoint| votes.iter().filter(|(_, other)| other == master).count();
        let latest = votes.iter().max_by_key(|(epoch, master)| (*epoch, agree(master)));
        match (latest, failed.pop()) {
            (Some((_, master)), _) => Ok(master.clone()),
            (None, Some((sentinel, failure))) if known == 0 => Err(Failure::Unconnected(failure.by(&sentinel).into())),
            (None, _) => {
                let master = &self.sentinels.master;
                Err(Failure::Settings(format!("its sentinels know no master '{master}'")))
            }
        }
    }

    /// Asks all sentinels at once, until most of them have answered.
    pub(super) fn ask_each(&self, questions: &[Cmd], within: Duration) -> Result<Vec<Told>, Failure> {
        let (sender, answers) = mpsc::channel();
        let count = self.sentinels.at.len();
        for sentinel in &self.sentinels.at {
            let (sender, sentinel) = (sender.clone(), sentinel.clone());
            let (access, tls, questions) = (self.sentinels.access.clone(), Arc::clone(&self.tls), questions.to_vec());
            let ask = move || {
                let until = Moment::now().after(within);
                let opened = Connection::open(&sentinel, &access, &tls, &Hurry::default(), within);
                let answer = opened.and_then(|mut connection| connection.ask(&questions, until.left()));
                // Whoever asked may have enough.
                let _ = sender.send((sentinel, answer));
            };
            let spawned = signal::unheard(|| thread::Builder::new().name("sentinel".into()).spawn(ask));
            spawned.map_err(Failure::Io)?;
        }
        drop(sender);
        let begun = Moment::now();
        let mut all = Vec::new();
        let mut good = 0;
        loop {
            let left = begun.after(if good > 0 { within.min(SLOW) } else { within }).left();
            let enough = good > count / 2;
            match answers.recv_timeout(if enough { Duration::ZERO } else { left }) {
                Ok((sentinel, answer)) => {
                    good += usize::from(answer.is_ok());
                    all.push((sentinel, answer));
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(all),
                Err(RecvTimeoutError::Timeout) => {
                    if all.is_empty() {
                        let silent = self.sentinels.at.iter().map(|at| (at.clone(), Err(Failure::Silent)));
                        return Ok(silent.collect());
                    }
                    return Ok(all);
                }
            }
        }
    }
}

/// Who is the master, and what is known of it.
pub(super) fn questions(master: &str) -> [Cmd; 2] {
    let ask = |what: &str| cmd("SENTINEL").arg(what).arg(master).take();
    [ask("GET-MASTER-ADDR-BY-NAME"), ask("MASTER")]
}

/// Whom a sentinel names. One that may not say more than the address is believed, but less than the others.
pub(super) fn named(replies: &[Value]) -> Result<Named, Failure> {
    let [address, master] = replies else { return Err(Failure::Garbage) };
    let address = match address {
        Value::Nil => return Ok(None),
        Value::Array(address) => address,
        Value::ServerError(error) => return Err(Failure::Server(error.clone())),
        _ => return Err(Failure::Garbage),
    };
    let texts: Vec<&str> = address.iter().filter_map(reply::text).collect();
    let [host, port] = texts[..] else { return Err(Failure::Garbage) };
    let port = port.parse().map_err(|_| Failure::Garbage)?;
    let epoch = field(master, "config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    Ok(Some((epoch, Endpoint::Tcp(host.to_lowercase(), port))))
}

/// A field of what a sentinel tells of an instance: a list of names and values.
pub(super) fn field<'a>(told: &'a Value, name: &str) -> Option<&'a str> {
    let pairs: Vec<(&Value, &Value)> = match told {
        Value::Array(list) => list.chunks_exact(2).map(|pair| (&pair[0], &pair[1])).collect(),
        Value::Map(map) => map.iter().map(|(name, value)| (name, value)).collect(),
        _ => return None,
    };
    let found = pairs.into_iter().find(|(key, _)| reply::text(key) == Some(name))?;
    reply::text(found.1)
}
