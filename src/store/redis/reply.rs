//! What the law answers, made into words of the model.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use redis::Value;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};

use super::trouble::Failure;
use crate::model::{
    Answer, Fence, Grant, Hold, Key, LAYOUT, Mode, Record, Refusal, Released, Renewed, Stamp, Unlocked, Waiter,
};
use crate::store::Roll;

/// Fields that the script keeps as text, since Lua would round them.
const NUMBERS: [&str; 8] = ["fence", "granted_at", "asked_at", "hold_until", "until", "ticket", "at", "micros"];

/// Fields that the script passes through.
const OPAQUE: [&str; 3] = ["info", "ending", "by"];

/// What a script returned: a word, and what belongs to it.
pub(super) struct Reply(Vec<Value>);

/// What was answered to `acquire`, the server's clock where somebody else was in the way, and what to know while
/// waiting.
pub(super) type Answered = (Answer, Option<Stamp>, Option<Queued>);

/// What one who waits knows: the server's clock when it answered, and the instant to watch for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queued {
    pub(super) now: Stamp,
    pub(super) next: Option<Stamp>,
    /// Whether it is for us to watch for it.
    pub(super) watches: bool,
}

impl Reply {
    /// Takes the reply of a script.
    ///
    /// # Errors
    /// [`Failure`] if it is a refusal, or none of our scripts answers so.
    pub(super) fn read(value: Value) -> Result<Self, Failure> {
        match value {
            Value::ServerError(error) => Err(Failure::Server(error)),
            Value::Array(values) => {
                let reply = Self(values);
                if reply.word()? == "newer" {
                    let layout = reply.text(1)?;
                    let words = format!(
                        "a newer dlock wrote its record (layout {layout}, this one knows {LAYOUT}); upgrade this one"
                    );
                    return Err(Failure::Odd(words));
                }
                if reply.word()? == "ring" {
                    return Err(Failure::Elsewhere(Roll(reply.fields(1)?)));
                }
                Ok(reply)
            }
            _ => Err(odd()),
        }
    }

    pub(super) fn parts(&self) -> &[Value] {
        &self.0
    }

    pub(super) fn word(&self) -> Result<&str, Failure> {
        self.text(0)
    }

    fn text(&self, at: usize) -> Result<&str, Failure> {
        self.0.get(at).and_then(text).ok_or_else(odd)
    }

    pub(super) fn number(&self, at: usize) -> Result<u64, Failure> {
        self.0.get(at).and_then(number).ok_or_else(odd)
    }

    /// The answer to `acquire`.
    pub(super) fn answer(&self) -> Result<Answered, Failure> {
        let mut clock = None;
        let answer = match self.word()? {
            "granted" => Answer::Granted(Grant {
                fence: Fence(self.number(1)?),
                depth: self.count(2)?,
                waited: Duration::from_micros(self.number(3)?),
            }),
            "queued" => {
                let next = Some(self.text(3)?).filter(|next| !next.is_empty());
                let next = next.map(|next| next.parse().map(Stamp::from_micros).map_err(|_| odd())).transpose()?;
                let queued = Queued { now: Stamp::from_micros(self.number(2)?), next, watches: self.number(4)? == 1 };
                return Ok((Answer::Queued(self.count(1)?), Some(queued.now), Some(queued)));
            }
            "busy" => {
                clock = Some(Stamp::from_micros(self.number(2)?));
                let texts = (3..self.0.len()).map(|at| self.text(at)).collect::<Result<Vec<_>, _>>()?;
                let holders = texts.chunks_exact(2).map(|pair| hold(pair[0], pair[1])).collect::<Result<_, _>>()?;
                Answer::Busy(holders, self.count(1)?)
            }
            "refused" => Answer::Refused(match self.text(1)? {
                "lost" => Refusal::Lost,
                "fence" => Refusal::Fence(Fence(self.number(2)?)),
                "ahead" => Refusal::Ahead(Duration::from_micros(self.number(2)?)),
                "too deep" => Refusal::TooDeep(u32::try_from(self.number(2)?).map_err(|_| odd())?),
                "narrower" => {
                    let mut told: HashMap<String, Mode> = serde_json::from_str(self.text(2)?).map_err(|_| odd())?;
                    Refusal::Narrower(told.remove("mode").ok_or_else(odd)?)
                }
                _ => return Err(odd()),
            }),
            _ => return Err(odd()),
        };
        Ok((answer, clock, None))
    }

    /// The answer to `renew`.
    pub(super) fn renewed(&self) -> Result<Renewed, Failure> {
        Ok(match self.word()? {
            "until" => Renewed::Until(Some(Stamp::from_micros(self.number(1)?))),
            "revoked" => Renewed::Revoked,
            "not yours" => Renewed::NotYours,
            _ => return Err(odd()),
        })
    }

    /// The answer to `release`.
    pub(super) fn released(&self) -> Result<Released, Failure> {
        Ok(match self.word()? {
            "freed" => Released::Freed,
            "cooling" => Released::Cooling,
            "left" => Released::Left,
            "unqueued" => Released::Unqueued,
            "not yours" => Released::NotYours,
            _ => return Err(odd()),
        })
    }

    /// The answer to `unlock`.
    pub(super) fn unlocked(&self) -> Result<Unlocked, Failure> {
        Ok(Unlocked { ended: self.count(1)?, told: self.count(2)? })
    }

    /// The answer to `look`: the record as it is kept, and the server's clock.
    pub(super) fn record(&self, key: &Key) -> Result<Option<(Record, Stamp)>, Failure> {
        if self.word()? == "none" {
            return Ok(None);
        }
        let (record, now) = self.kept(key)?;
        // In a ring with another list than ours, it is what was left here, unless somebody holds the key.
        if self.0.len() > 7 && record.clone().seen(&now).holders.is_empty() {
            return Err(Failure::Elsewhere(Roll(self.fields(7)?)));
        }
        Ok(Some((record, now)))
    }

    fn kept(&self, key: &Key) -> Result<(Record, Stamp), Failure> {
        let now = Stamp::from_micros(self.number(1)?);
        let mut fields: HashMap<&str, &str> = self.pairs(2)?.into_iter().collect();
        let tickets = self.pairs(3)?;
        let waiters: HashMap<&str, &str> = self.pairs(4)?.into_iter().collect();
        let lives: HashMap<&str, &str> = self.pairs(5)?.into_iter().collect();
        let mut holders = Vec::new();
        fields.retain(|name, value| {
            let lease = name.strip_prefix("h:");
            holders.extend(lease.map(|lease| hold(lease, value)));
            lease.is_none()
        });
        let mut holders: Vec<Hold> = holders.into_iter().collect::<Result<_, _>>()?;
        holders.sort_unstable_by_key(|hold| hold.fence);
        let mut queue = Vec::new();
        for (lease, ticket) in tickets {
            // Without the other half it was evicted; the next operation drops it.
            let Some(waiter) = waiters.get(lease) else { continue };
            let mut waiter = object(waiter)?;
            waiter.insert("lease".into(), lease.into());
            waiter.insert("ticket".into(), parse(ticket)?);
            // Who never showed its life is dead.
            waiter.insert("until".into(), parse(lives.get(lease).unwrap_or(&"0"))?);
            if let Some(since) = fields.get(&*format!("o:{lease}")) {
                waiter.insert("offered_at".into(), parse(since)?);
            }
            queue.push(read::<Waiter>(waiter)?);
        }
        let mut events =
            self.list(6)?.iter().map(|event| text(event).ok_or_else(odd)).collect::<Result<Vec<_>, _>>()?;
        events.reverse();
        let events: Vec<Json> =
            events.into_iter().map(|event| object(event).map(Json::Object)).collect::<Result<_, _>>()?;
        let count = |name| fields.get(name).map_or(Ok(0_u64), |text| text.parse().map_err(|_| odd()));
        let record = json!({
            "layout": count("layout")?,
            "key": key,
            "fence": count("fence")?,
            "last_ticket": count("last_ticket")?,
            "holders": holders,
            "queue": queue,
            "events": events,
            "counters": {
                "grants": count("grants")?, "expiries": count("expiries")?, "evictions": count("evictions")?,
            },
        });
        serde_json::from_value(record).map(|record| (record, now)).map_err(|_| odd())
    }

    fn count(&self, at: usize) -> Result<usize, Failure> {
        usize::try_from(self.number(at)?).map_err(|_| odd())
    }

    fn list(&self, at: usize) -> Result<&[Value], Failure> {
        match self.0.get(at) {
            Some(Value::Array(values)) => Ok(values),
            _ => Err(odd()),
        }
    }

    /// The fields of a hash.
    pub(super) fn fields(&self, at: usize) -> Result<BTreeMap<String, String>, Failure> {
        Ok(self.pairs(at)?.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    fn pairs(&self, at: usize) -> Result<Vec<(&str, &str)>, Failure> {
        let pairs = self.list(at)?.chunks(2).map(|pair| Some((text(pair.first()?)?, text(pair.get(1)?)?)));
        pairs.collect::<Option<_>>().ok_or_else(odd)
    }
}

fn hold(lease: &str, text: &str) -> Result<Hold, Failure> {
    let mut hold = object(text)?;
    hold.insert("lease".into(), lease.into());
    hold.entry("levels").or_insert_with(|| json!([]));
    read(hold)
}

/// An object that a script keeps, with its numbers and the texts that were passed through.
fn object(text: &str) -> Result<Map<String, Json>, Failure> {
    let mut value = serde_json::from_str(text).map_err(|_| odd())?;
    mend(&mut value).ok_or_else(odd)?;
    if let Json::Object(object) = value { Ok(object) } else { Err(odd()) }
}

fn mend(value: &mut Json) -> Option<()> {
    match value {
        Json::Array(values) => values.iter_mut().try_for_each(mend),
        Json::Object(fields) => fields.iter_mut().try_for_each(|(name, value)| match value {
            Json::String(text) if NUMBERS.contains(&&**name) => {
                *value = text.parse::<u64>().ok()?.into();
                Some(())
            }
            Json::String(text) if OPAQUE.contains(&&**name) => {
                *value = serde_json::from_str(text).ok()?;
                Some(())
            }
            value => mend(value),
        }),
        _ => Some(()),
    }
}

fn read<T: DeserializeOwned>(fields: Map<String, Json>) -> Result<T, Failure> {
    serde_json::from_value(Json::Object(fields)).map_err(|_| odd())
}

fn parse(number: &str) -> Result<Json, Failure> {
    number.parse::<u64>().map(Json::from).map_err(|_| odd())
}

/// Whether this gives something that must not be lost: a lease, more time for one, a place in the queue.
pub(super) fn gives(reply: &Value) -> bool {
    let Value::Array(parts) = reply else { return false };
    matches!(parts.first().and_then(text), Some("granted" | "until" | "queued"))
}

pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// The answer to `TIME`: seconds and microseconds.
pub(super) fn clock(value: &Value) -> Option<Stamp> {
    let Value::Array(parts) = value else { return None };
    let (seconds, micros) = (number(parts.first()?)?, number(parts.get(1)?)?);
    Some(Stamp::from_micros(seconds.checked_mul(1_000_000)?.checked_add(micros)?))
}

pub(super) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        value => text(value)?.parse().ok(),
    }
}

pub(super) fn odd() -> Failure {
    Failure::Odd("its record of this key is not as dlock writes it".into())
}
