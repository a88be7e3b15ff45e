//! Which server has a key, and asking that one.

use redis::{Cmd, Value};

use super::address::{Address, Endpoint, Servers};
use super::cluster::{self, Map, Range, Redirection, TOO_SHORT};
use super::parallel::at_once;
use super::pool::{Manner, Pool, is_refusal};
use super::sentinel::Finder;
use super::trouble::Failure;
use crate::clock::Moment;

/// The servers of a store.
pub(super) struct Router {
    pub(super) pool: Pool,
    way: Way,
}

enum Way {
    One(Endpoint),
    Sentinel(Finder),
    Cluster(Map),
}

/// A command, the slot of the key that it is about, and what to do in its place where a slot that moves to another
/// server lets nobody touch several keys.
pub(super) struct Request {
    pub(super) slot: u16,
    pub(super) command: Cmd,
    pub(super) alone: Option<Cmd>,
}

impl Router {
    pub(super) fn new(address: &Address) -> Self {
        let way = match &address.servers {
            Servers::One(server) => Way::One(server.clone()),
            Servers::Sentinel(sentinels) => Way::Sentinel(Finder::new(sentinels)),
            Servers::Cluster(seeds) => Way::Cluster(Map::new(seeds)),
        };
        Self { pool: Pool::new(&address.access), way }
    }

    /// Whether another server may take the place of one that fails.
    pub(super) fn has_others(&self) -> bool {
        !matches!(self.way, Way::One(_))
    }

    pub(super) fn cluster(&self) -> Option<&Map> {
        if let Way::Cluster(map) = &self.way { Some(map) } else { None }
    }

    /// Has a command done, and tells by whom.
    pub(super) fn ask(&self, request: &Request, manner: Manner) -> Result<(Value, Endpoint), Failure> {
        match &self.way {
            Way::One(server) => self.ask_at(server, &request.command, manner),
            Way::Sentinel(finder) => self
                .ask_master(finder, std::slice::from_ref(&request.command), manner)
                .and_then(|(mut replies, server)| Ok((replies.pop().ok_or(Failure::Garbage)?, server))),
            Way::Cluster(map) => self.know(map, manner.until).and_then(|()| {
                map.ask(request, manner, |server, command, manner| {
                    let asked = self.ask_at(server, command, manner);
                    if asked.is_err() {
                        self.pool.forget(server);
                    }
                    asked.map(|(reply, _)| reply)
                })
            }),
        }
    }

    /// Has many commands done that may be repeated, all that a server is known to have in one go. The places of those
    /// that were done together, with a reply for each or what went wrong with them.
    pub(super) fn ask_all(&self, requests: &[Request], until: Moment) -> Vec<(Vec<usize>, Answers)> {
        let manner = Manner::until(until);
        let batch = |places: &[usize]| places.iter().map(|at| requests[*at].command.clone()).collect::<Vec<_>>();
        let all: Vec<usize> = (0..requests.len()).collect();
        let map = match &self.way {
            Way::One(server) => return vec![(all.clone(), self.ask_many_at(server, &batch(&all), manner))],
            Way::Sentinel(finder) => return vec![(all.clone(), self.ask_master(finder, &batch(&all), manner))],
            Way::Cluster(map) => map,
        };
        // Without it each is looked for alone.
        let _ = self.know(map, until);
        let groups: Vec<_> = map.by_owner(requests.iter().map(|request| request.slot)).into_iter().collect();
        // A node that is silent takes no time from the others.
        let answers = at_once(&groups, |(server, places)| match server {
            Some(server) => self.ask_all_of(server, requests, places.clone(), until),
            None => places.iter().map(|at| self.ask_one(requests, *at, manner)).collect(),
        });
        match answers {
            Ok(answers) => answers.into_iter().flatten().collect(),
            Err(failure) => vec![(all, Err(failure))],
        }
    }

    /// The same, of a node that should have these.
    pub(super) fn ask_all_of(
        &self,
        server: &Endpoint,
        requests: &[Request],
        places: Vec<usize>,
        until: Moment,
    ) -> Vec<(Vec<usize>, Answers)> {
        let manner = Manner::until(until);
        let commands: Vec<Cmd> = places.iter().map(|at| requests[*at].command.clone()).collect();
        let (replies, server) = match self.ask_many_at(server, &commands, manner) {
            Ok(asked) => asked,
            Err(failure) => {
                self.heed(0, server, None);
                // If another one has taken its place, that has all of them. Whom there is no time left to ask is not to
                // blame.
                let first = places.first().filter(|_| until.left() > TOO_SHORT);
                let failure = match first.map(|first| self.ask_one(requests, *first, manner)) {
                    None => failure,
                    Some((_, Err(failure))) => failure,
                    Some((_, Ok(_))) => {
                        return places.into_iter().map(|at| self.ask_one(requests, at, manner)).collect();
                    }
                };
                return vec![(places, Err(failure))];
            }
        };
        let is_there = |(_, reply): &(usize, Value)| Redirection::read(reply, &server).is_none();
        let (there, elsewhere): (Vec<_>, Vec<_>) = places.into_iter().zip(replies).partition(is_there);
        let elsewhere = elsewhere.into_iter().map(|(at, _)| self.ask_one(requests, at, manner));
        let (places, replies) = there.into_iter().unzip();
        std::iter::once((places, Ok((replies, server)))).chain(elsewhere).collect()
    }

    fn ask_one(&self, requests: &[Request], at: usize, manner: Manner) -> (Vec<usize>, Answers) {
        let answer = self.ask(&requests[at], manner);
        (vec![at], answer.map(|(reply, server)| (vec![reply], server)))
    }

    /// Sees to it that the nodes of a cluster are known.
    fn know(&self, map: &Map, until: Moment) -> Result<(), Failure> {
        if map.is_known() {
            return Ok(());
        }
        // What is left is for the one who has the key.
        let known = self.slots(Moment::now().after(until.left() / 2));
        known.map(drop).map_err(|failure| Failure::Unconnected(failure.into()))
    }

    /// Learns which node of a cluster has which slots.
    pub(super) fn slots(&self, until: Moment) -> Result<Vec<Range>, Failure> {
        let Way::Cluster(map) = &self.way else { return Ok(Vec::new()) };
        map.ask_any(until, |node, until| {
            let (replies, _) = self.ask_many_at(node, &[cluster::slots()], Manner::until(until))?;
            let reply = replies.first().ok_or(Failure::Garbage)?;
            map.read_slots(reply, node).map_err(|failure| failure.by(node))
        })
    }

    /// The server to ask for a slot, as far as is known.
    pub(super) fn server_of(&self, slot: u16, until: Moment) -> Result<Endpoint, Failure> {
        match &self.way {
            Way::One(server) => Ok(server.clone()),
            Way::Sentinel(finder) => finder.master(until).map(|(master, _)| master),
            Way::Cluster(map) => {
                self.know(map, until)?;
                map.server_of(slot)
            }
        }
    }

    /// A server erred, or did not do what it was asked for: where it sends us, if anywhere.
    pub(super) fn heed(&self, slot: u16, server: &Endpoint, refusal: Option<&Value>) -> Option<Redirection> {
        match &self.way {
            Way::One(_) => return None,
            Way::Sentinel(finder) => finder.forget(server),
            Way::Cluster(map) => {
                let redirection = refusal.and_then(|reply| Redirection::read(reply, server));
                match &redirection {
                    Some(Redirection::Moved(to)) => map.learn(slot, to),
                    Some(Redirection::Ask(_)) => {}
                    _ => map.forget(server),
                }
                if redirection.is_some() {
                    return redirection;
                }
            }
        }
        self.pool.forget(server);
        None
    }

    fn ask_at(&self, server: &Endpoint, command: &Cmd, manner: Manner) -> Result<(Value, Endpoint), Failure> {
        let (mut replies, server) = self.ask_many_at(server, std::slice::from_ref(command), manner)?;
        Ok((replies.pop().ok_or(Failure::Garbage)?, server))
    }

    pub(super) fn ask_many_at(&self, server: &Endpoint, commands: &[Cmd], manner: Manner) -> Answers {
        let replies = self.pool.ask(server, commands, manner);
        replies.map(|replies| (replies, server.clone())).map_err(|failure| failure.by(server))
    }

    /// Asks the master that was known or, if that is none any more, the one that sentinels know now.
    fn ask_master(&self, finder: &Finder, commands: &[Cmd], manner: Manner) -> Answers {
        loop {
            let (master, is_news) = finder.master(manner.until)?;
            let asked = self.ask_many_at(&master, commands, manner);
            let is_served = asked.as_ref().is_ok_and(|(replies, _)| !replies.iter().any(is_refusal));
            let nothing_done = match &asked {
                Ok((replies, _)) => matches!(&replies[..], [Value::ServerError(error)] if error.code() == "READONLY"),
                Err(failure) => failure.is_before_anything(),
            };
            if is_served {
                return asked;
            }
            finder.forget(&master);
            self.pool.forget(&master);
            if is_news || !nothing_done {
                return asked;
            }
        }
    }
}

/// Replies and whose they are.
pub(super) type Answers = Result<(Vec<Value>, Endpoint), Failure>;
