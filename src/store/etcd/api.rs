//! What is said to etcd's JSON gateway, and what it answers (etcd, `rpc.proto`): bytes in base64, and numbers as text.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

/// A request: to where, and what.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) path: &'static str,
    pub(super) body: Value,
}

/// What comes with every answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Header {
    #[serde(deserialize_with = "number")]
    pub(super) revision: i64,
    #[serde(deserialize_with = "unsigned")]
    pub(super) cluster_id: u64,
    #[serde(deserialize_with = "unsigned")]
    pub(super) member_id: u64,
    #[serde(deserialize_with = "unsigned")]
    pub(super) raft_term: u64,
}

/// A key of etcd's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Kv {
    #[serde(deserialize_with = "text")]
    pub(super) key: String,
    #[serde(deserialize_with = "text")]
    pub(super) value: String,
    #[serde(deserialize_with = "number")]
    pub(super) mod_revision: i64,
    #[serde(deserialize_with = "number")]
    pub(super) lease: i64,
}

/// Some keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Range {
    pub(super) header: Header,
    pub(super) kvs: Vec<Kv>,
    pub(super) more: bool,
}

/// The answer to a transaction.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Txn {
    pub(super) header: Header,
    pub(super) succeeded: bool,
    pub(super) responses: Vec<Done>,
}

/// What one operation of a transaction came to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Done {
    pub(super) response_range: Range,
}

/// What is said of a lease.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LeaseLeft {
    /// In whole seconds; nothing of a lease that has ended, or less than none.
    #[serde(rename = "TTL", deserialize_with = "number")]
    pub(super) ttl: i64,
    /// What it began with.
    #[serde(rename = "grantedTTL", deserialize_with = "number")]
    pub(super) granted: i64,
}

/// One of a stream of answers.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Streamed<T> {
    pub(super) result: Option<T>,
    pub(super) error: Option<Value>,
}

/// What one hears who watches.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Watched {
    pub(super) header: Header,
    pub(super) canceled: bool,
    pub(super) created: bool,
    pub(super) cancel_reason: String,
    #[serde(deserialize_with = "number")]
    pub(super) compact_revision: i64,
    pub(super) events: Vec<Event>,
}

/// One change.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    /// Nothing for something that was written.
    r#type: String,
    pub(super) kv: Kv,
}

impl Event {
    /// Whether something was deleted, or has ended.
    pub(super) fn is_end(&self) -> bool {
        self.r#type == "DELETE"
    }
}

/// A refusal.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    /// As gRPC numbers them.
    pub(super) code: i64,
    pub(super) message: String,
}

/// Several operations, of which all are done or none, if something is as it should be. Else all keys up to an end are read.
pub(super) fn txn(compare: &Value, success: &[Value], (from, end): (&str, &str)) -> Request {
    let read = json!({ "request_range": all(from, end).body });
    Request { path: "/v3/kv/txn", body: json!({ "compare": [compare], "success": success, "failure": [read] }) }
}

/// One operation, which is done if something is so, or always.
pub(super) fn one(if_so: Option<&Value>, operation: &Value) -> Request {
    let compare: Vec<&Value> = if_so.into_iter().collect();
    Request { path: "/v3/kv/txn", body: json!({ "compare": compare, "success": [operation] }) }
}

/// That a key was written last at this revision; with 0, that it is not there.
pub(super) fn is_at(key: &str, revision: i64) -> Value {
    json!({ "key": encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string() })
}

/// Writes a key, and ties its life to a lease, if there is one.
pub(super) fn put(key: &str, value: &[u8], lease: Option<i64>) -> Value {
    let lease = lease.unwrap_or_default().to_string();
    json!({ "request_put": { "key": encode(key), "value": BASE64_STANDARD.encode(value), "lease": lease } })
}

pub(super) fn delete(key: &str) -> Value {
    json!({ "request_delete_range": { "key": encode(key) } })
}

/// Deletes all keys up to an end.
pub(super) fn delete_all(from: &str, end: &str) -> Value {
    json!({ "request_delete_range": { "key": encode(from), "range_end": encode(end) } })
}

/// All keys up to an end, with their values.
pub(super) fn all(from: &str, end: &str) -> Request {
    Request { path: "/v3/kv/range", body: json!({ "key": encode(from), "range_end": encode(end) }) }
}

/// Names of at most so many keys up to an end.
pub(super) fn range(from: &str, end: &str, limit: u32) -> Request {
    let body = json!({ "key": encode(from), "range_end": encode(end), "keys_only": true, "limit": limit.to_string() });
    Request { path: "/v3/kv/range", body }
}

/// A key as it was at a revision.
pub(super) fn at_revision(key: &str, revision: i64) -> Request {
    Request { path: "/v3/kv/range", body: json!({ "key": encode(key), "revision": revision.to_string() }) }
}

/// Makes a lease of so many seconds, with this number.
pub(super) fn grant(id: i64, seconds: u64) -> Request {
    Request { path: "/v3/lease/grant", body: json!({ "ID": id.to_string(), "TTL": seconds.to_string() }) }
}

/// Ends a lease, and what is tied to it.
pub(super) fn revoke(id: i64) -> Request {
    Request { path: "/v3/lease/revoke", body: json!({ "ID": id.to_string() }) }
}

/// Begins a lease anew. Answers with one of a stream.
pub(super) fn keep_alive(id: i64) -> Request {
    Request { path: "/v3/lease/keepalive", body: json!({ "ID": id.to_string() }) }
}

/// How much is left of a lease.
pub(super) fn time_to_live(id: i64) -> Request {
    Request { path: "/v3/lease/timetolive", body: json!({ "ID": id.to_string() }) }
}

/// Watches a key from this revision on, or, with 0, from now on; or all up to an end; if only ends count, these alone.
pub(super) fn watch(key: &str, end: Option<&str>, revision: i64, ends_only: bool) -> Value {
    let mut create = json!({ "key": encode(key), "start_revision": revision.to_string() });
    if let Some(end) = end {
        create["range_end"] = encode(end).into();
    }
    if ends_only {
        create["filters"] = json!(["NOPUT"]);
    }
    json!({ "create_request": create })
}

fn encode(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

/// A number that came as one, or as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number<T> {
    Plain(T),
    Text(String),
}

fn number<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    match Number::<i64>::deserialize(from)? {
        Number::Plain(number) => Ok(number),
        Number::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

fn unsigned<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    match Number::<u64>::deserialize(from)? {
        Number::Plain(number) => Ok(number),
        Number::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

/// What is no text of ours is shown as well as it can be.
fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let encoded = String::deserialize(from)?;
    let bytes = BASE64_STANDARD.decode(encoded).map_err(serde::de::Error::custom)?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::{LeaseLeft, Range, Refusal, Streamed, Watched};

    #[test]
    fn answers_are_read_as_the_gateway_writes_them() {
        let text = r#"{"header":{"member_id":"13668033151171901709","revision":"203","raft_term":"2"},
            "kvs":[{"key":"YQ==","mod_revision":"7","value":"Yg==","lease":"77"}],"count":"1"}"#;
        let range: Range = serde_json::from_str(text).expect("an answer");
        let kv = &range.kvs[0];
        assert_eq!((range.header.revision, range.header.raft_term, range.more), (203, 2, false));
        assert_eq!((&*kv.key, &*kv.value, kv.mod_revision, kv.lease), ("a", "b", 7, 77));
        let kept: Streamed<LeaseLeft> = serde_json::from_str(r#"{"result":{"ID":"78"}}"#).expect("an answer");
        assert_eq!(kept.result.map(|left| left.ttl), Some(0), "of a lease that has ended");
        let left: LeaseLeft = serde_json::from_str(r#"{"ID":"78","TTL":"-1"}"#).expect("an answer");
        assert_eq!(left.ttl, -1);
        let text =
            r#"{"result":{"events":[{"type":"DELETE","kv":{"key":"YQ==","mod_revision":"9"}},{"kv":{"key":"Yg=="}}]}}"#;
        let heard: Streamed<Watched> = serde_json::from_str(text).expect("an answer");
        let events = heard.result.expect("a result").events;
        assert_eq!(events.iter().map(super::Event::is_end).collect::<Vec<_>>(), [true, false]);
        let text =
            r#"{"error":"etcdserver: lease already exists","message":"etcdserver: lease already exists","code":9}"#;
        assert_eq!(serde_json::from_str::<Refusal>(text).expect("a refusal").code, 9);
    }
}
