//! A Redis server as one of several that vote.

use std::time::Duration;

use redis::{Value, cmd};

use super::reply::{self, Reply};
use super::router::Request;
use super::trouble::Failure;
use super::{RedisStore, lock};
use crate::clock::Moment;
use crate::model::{Ask, Key, LevelId, Released};
use crate::store::quorum::{Origin, Tenure, Vote, Voter};
use crate::store::{StoreError, Watch};

impl Voter for RedisStore {
    fn vote(&self, key: &Key, ask: &Ask, within: Duration) -> Result<Option<Vote>, StoreError> {
        let asked = self.ask_for(key, ask, within);
        let heard = Moment::now();
        let vote = asked.and_then(|answered| {
            answered.read(|reply| {
                let vote = reply.vote()?;
                vote.map(|(reply, tenure)| Ok((reply.answer()?, tenure))).transpose()
            })
        });
        let vote = vote.map_err(|failure| self.error(failure))?;
        Ok(vote.map(|(answer, tenure)| Vote { answer: self.heed(ask, answer, heard), tenure }))
    }

    fn found(&self, life: &str, within: Duration) -> Result<(), StoreError> {
        let command = cmd("HSET").arg(self.own()).arg("founder").arg(life).take();
        let request = Request { slot: 0, command, alone: None };
        let asked = self.router.ask(&request, super::Manner::until(Moment::now().after(within)));
        match asked.map_err(|failure| self.error(failure))? {
            (Value::ServerError(error), by) => Err(self.error(Failure::Server(error).by(&by))),
            _ => Ok(()),
        }
    }

    fn withdraw(&self, key: &Key, level: LevelId, within: Duration) -> Result<Released, StoreError> {
        let answered = self.law(key, "withdraw", &[&level.secret()], within);
        self.take_back(key, level, "withdraw");
        lock(&self.places).remove(&level);
        answered.and_then(|answered| answered.read(Reply::released)).map_err(|failure| self.error(failure))
    }

    fn await_word(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<bool, StoreError> {
        self.wait(key, watch, timeout).map_err(|failure| self.error(failure))
    }

    fn hurry(&self, on: bool) {
        let hurry = &self.router.pool.hurry;
        if on { hurry.begin() } else { hurry.end() }
    }
}

impl Reply {
    /// The answer to a proposal: what an ordinary request would be answered, and how far the voter's memory goes back.
    /// Nothing, if it votes with another list.
    fn vote(&self) -> Result<Option<(Self, Tenure)>, Failure> {
        if let [word] = self.parts()
            && reply::text(word) == Some("other list")
        {
            return Ok(None);
        }
        let [word, answer, life, founder, origin, age, longest] = self.parts() else { return Err(reply::odd()) };
        if reply::text(word) != Some("vote") {
            return Err(reply::odd());
        }
        let life = reply::text(life).ok_or_else(reply::odd)?.to_owned();
        let origin = match (reply::text(founder), reply::text(origin)) {
            (Some(founder), _) if founder == life => Origin::Founder,
            (_, Some("new")) => Origin::New,
            (_, Some("restarted")) => Origin::Restarted,
            _ => return Err(reply::odd()),
        };
        let span = |value| reply::number(value).map(Duration::from_micros).ok_or_else(reply::odd);
        let tenure = Tenure { life, origin, age: span(age)?, longest: span(longest)? };
        Ok(Some((Self::read(answer.clone())?, tenure)))
    }
}
