//! The tables, and the statements on them.
//!
//! A key has one row. Its record is text in JSON, as the law writes it: `json` keeps that as it is, and people can ask it
//! questions. A new version of a row goes into the same page as the old one, as long as there is room and no index has
//! anything of what changed (a "heap-only tuple"), and the next one who looks there removes what nobody sees any more: so a
//! table stays as it is, however often its keys are taken. For that a page is left half empty, and a record is compressed
//! before it is moved to a table of its own, where each change would leave the whole of it behind.
//!
//! The signs of life of those who wait have a table of their own: they would rewrite the record of a long queue all the time.

use super::address::Table;
use crate::store::turn::WATCHERS;

/// Begins a transaction that looks at what others did until now, whatever a session is set to.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE";

/// How long a transaction may wait for a row, work, and wait for us: in milliseconds. Others wait for us at most so long.
pub(super) const LIMITS: &str = "SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true), \
     set_config('idle_in_transaction_session_timeout', $3, true)";

/// The server's clock in microseconds since the Unix epoch, as it is now: `now()` stands still in a transaction.
pub(super) const CLOCK: &str = "SELECT (floor(extract(epoch FROM clock_timestamp()) * 1000000))::bigint";

/// Tells those who listen: an object of channels and words.
pub(super) const NOTIFY: &str =
    "SELECT count(pg_notify(channel, words)) FROM json_each_text($1::json) AS told (channel, words)";

/// The statements on the tables.
#[derive(Debug)]
pub(super) struct Statements {
    /// The record of a key; its row is ours until the transaction ends.
    pub(super) lock: String,
    /// The clock, the signs of life of those who wait for a key, and who works for us. After the lock: a statement sees what was there when
    /// it began, and before that others may have had the row.
    pub(super) clock_and_life: String,
    /// Record, clock and signs of life of a key.
    pub(super) look: String,
    /// What of a record changes when it is time to look at it, for somebody who is not told: who holds the key; which version
    /// it is; and whether one in the queue is among those who watch the others, or was offered the key.
    pub(super) glance: String,
    /// Record, clock and signs of life of the keys in a list, each with its name.
    pub(super) look_at_all: String,
    /// Changes the record of a key.
    pub(super) update: String,
    /// Makes the row of a key, if it has none.
    pub(super) insert: String,
    /// What was meant to be changed back, unless others changed it meanwhile.
    pub(super) replace: String,
    /// A sign of life, and until when it is good.
    pub(super) sign: String,
    /// Removes signs of life in a list.
    pub(super) bury: String,
    /// The keys that have a row, each with what tells one version of the row from another.
    pub(super) versions: String,
    /// The keys that have a row.
    pub(super) list: String,
    /// The same without those that nobody holds or waits for.
    pub(super) list_live: String,
}

impl Statements {
    pub(super) fn on(table: &Table) -> Self {
        let (records, life) = (table.records(), table.life());
        let signs = |key: &str| format!("(SELECT json_object_agg(lease, until) FROM {life} WHERE key = {key})");
        let clock = CLOCK.trim_start_matches("SELECT ");
        Self {
            lock: format!("SELECT record FROM {records} WHERE key = $1 FOR UPDATE"),
            clock_and_life: format!("SELECT {clock}, {}, pg_backend_pid()", signs("$1")),
            look: format!("SELECT record, {clock}, {} FROM {records} WHERE key = $1", signs("$1")),
            glance: format!(
                "SELECT md5(record->>'holders'), xmin, \
                     EXISTS (SELECT FROM json_array_elements(record->'queue') WITH ORDINALITY AS queue (waiter, place) \
                             WHERE waiter->>'lease' = $2 AND (place <= {WATCHERS} OR waiter->>'offered_at' IS NOT NULL)) \
                 FROM {records} WHERE key = $1"
            ),
            look_at_all: format!(
                "SELECT record, {clock}, {}, key FROM {records} AS kept \
                 WHERE key IN (SELECT json_array_elements_text($1::json))",
                signs("kept.key")
            ),
            update: format!("UPDATE {records} SET record = $2::json WHERE key = $1"),
            insert: format!("INSERT INTO {records} (key, record) VALUES ($1, $2::json) ON CONFLICT DO NOTHING"),
            replace: format!("UPDATE {records} SET record = $3::json WHERE key = $1 AND record::text = $2"),
            sign: format!(
                "INSERT INTO {life} (key, lease, until) VALUES ($1, $2, $3::bigint) \
                 ON CONFLICT (key, lease) DO UPDATE SET until = excluded.until"
            ),
            bury: format!("DELETE FROM {life} WHERE key = $1 AND lease IN (SELECT json_array_elements_text($2::json))"),
            versions: format!("SELECT key, xmin FROM {records}"),
            list: format!("SELECT key FROM {records} ORDER BY key"),
            // What is no record of ours is listed, too: whoever looks at it is told.
            list_live: format!(
                "SELECT key FROM {records} \
                 WHERE record->>'holders' IS DISTINCT FROM '[]' OR record->>'queue' IS DISTINCT FROM '[]' ORDER BY key"
            ),
        }
    }
}

/// What makes the tables. To do it again changes nothing.
pub(super) fn creation(table: &Table) -> String {
    let (records, life) = (table.records(), table.life());
    format!(
        "CREATE TABLE IF NOT EXISTS {records} (key text COLLATE \"C\" PRIMARY KEY, record json NOT NULL)\n    \
             WITH (fillfactor = 30, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500,\n          \
             toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 500);\n\
         ALTER TABLE {records} ALTER COLUMN record SET STORAGE MAIN;\n\
         CREATE TABLE IF NOT EXISTS {life} (key text COLLATE \"C\", lease text COLLATE \"C\", until bigint NOT NULL, \
         PRIMARY KEY (key, lease))\n    \
             WITH (fillfactor = 30, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);\n"
    )
}

/// The same for somebody to run by hand, with what a user needs who takes locks.
pub(super) fn script(table: &Table, user: &str) -> String {
    let (records, life) = (table.records(), table.life());
    let user = user.replace('"', "\"\"");
    let usage = table
        .prefix()
        .split_once('.')
        .map_or_else(String::new, |(schema, _)| format!("GRANT USAGE ON SCHEMA \"{schema}\" TO \"{user}\";\n"));
    format!(
        "BEGIN;\n{}-- All that a user needs who takes locks:\n{usage}\
         GRANT SELECT, INSERT, UPDATE ON {records} TO \"{user}\";\n\
         GRANT SELECT, INSERT, UPDATE, DELETE ON {life} TO \"{user}\";\nCOMMIT;\n",
        creation(table)
    )
}
