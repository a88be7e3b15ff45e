//! Whether a server can be trusted with locks: what it says of itself and of its settings.

use std::collections::HashMap;
use std::time::Duration;

use super::PostgresRegister;
use super::connection::{Connection, plain, with};
use super::trouble::Failure;
use crate::store::{Examination, Finding};

/// The oldest version that dlock is made for, and the newest that it was tested with.
const VERSIONS: (u32, u32) = (12, 15);

/// The settings that matter, and the version as a number.
const SETTINGS: &str = "SELECT name, setting FROM pg_settings WHERE name IN \
     ('server_version', 'server_version_num', 'synchronous_commit', 'synchronous_standby_names', 'fsync', \
     'full_page_writes', 'max_connections', 'superuser_reserved_connections')";

/// Its role, how many receive its changes, and how many are connected to it.
const STATE: &str = "SELECT pg_is_in_recovery(), (SELECT count(*) FROM pg_stat_replication), \
     (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')";

/// Whether the tables are there, and whether we may do what it takes to use them, or to make them.
const TABLES: &str = "SELECT records IS NOT NULL AND life IS NOT NULL, \
         has_table_privilege(records, 'SELECT') AND has_table_privilege(records, 'INSERT') AND \
         has_table_privilege(records, 'UPDATE') AND has_table_privilege(life, 'SELECT') AND \
         has_table_privilege(life, 'INSERT') AND has_table_privilege(life, 'UPDATE') AND \
         has_table_privilege(life, 'DELETE'), \
         (SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace \
          WHERE nspname = coalesce(nullif($3, ''), current_schema())) \
     FROM (SELECT to_regclass($1) AS records, to_regclass($2) AS life) AS tables";

/// What a server says of itself.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Told {
    settings: HashMap<String, String>,
    is_standby: bool,
    standbys: u64,
    clients: u64,
    /// Whether nobody hears of changes over the connections that it gives us.
    is_deaf: bool,
    /// Whether a stranger on the way could read what is said.
    is_open: bool,
    has_tables: bool,
    may_use: bool,
    /// Nothing if there is no schema to make them in.
    may_make: Option<bool>,
    user: String,
    prefix: String,
}

type Check = fn(&Told) -> Option<Finding>;

const CHECKS: [Check; 10] = [
    is_old,
    is_new,
    is_a_standby,
    loses_commits,
    trusts_its_disk,
    fails_over_without_locks,
    has_no_room,
    has_no_tables,
    is_behind_a_pooler,
    can_be_read,
];

impl PostgresRegister {
    pub(super) fn look_into(&self, _: Duration) -> Result<Examination, Failure> {
        let until = self.until();
        let mut connection = self.idle.take(None, 0).map_or_else(|| self.open(until), Ok)?;
        let told = self.told(&mut connection).map_err(|failure| failure.by(&connection.server))?;
        self.idle.keep(connection);
        let mut found = Examination::default();
        told.facts(&mut found);
        found.findings.extend(CHECKS.iter().filter_map(|check| check(&told)));
        Ok(found)
    }

    fn told(&self, connection: &mut Connection) -> Result<Told, Failure> {
        let table = &self.address.table;
        let schema = table.prefix().split_once('.').map_or("", |(schema, _)| schema).to_owned();
        let tables = with(TABLES, [table.records(), table.life(), schema]);
        let done = connection.ask(&[plain(SETTINGS), plain(STATE), tables], self.until())?;
        let [settings, state, tables] = &done[..] else { return Err(Failure::Garbage) };
        let pair = |row: &Vec<Option<String>>| Some((row.first()?.clone()?, row.get(1)?.clone()?));
        let number = |column: usize| state.value(column).and_then(|count| count.parse().ok()).unwrap_or(0);
        let is_standby = state.value(0) == Some("t");
        if !is_standby {
            // What is told is heard on a connection, or it is not.
            let listening = self.listen(&self.channels.changes, 0, self.until())?;
            self.idle.keep(listening);
        }
        Ok(Told {
            settings: settings.rows.iter().filter_map(pair).collect(),
            is_standby,
            standbys: number(1),
            clients: number(2),
            is_deaf: self.is_deaf(),
            is_open: connection.stream.can_be_read(),
            has_tables: tables.value(0) == Some("t"),
            may_use: tables.value(1) == Some("t"),
            may_make: tables.value(2).map(|may| may == "t"),
            user: self.address.access.user.clone(),
            prefix: table.prefix().to_owned(),
        })
    }
}

impl Told {
    fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", |value| value)
    }

    fn number(&self, name: &str) -> u64 {
        self.setting(name).parse().unwrap_or(0)
    }

    fn version(&self) -> u32 {
        u32::try_from(self.number("server_version_num") / 10_000).unwrap_or(u32::MAX)
    }

    fn facts(&self, found: &mut Examination) {
        found.know("version", format!("PostgreSQL {}", self.setting("server_version")));
        found.know("role", if self.is_standby { "standby" } else { "primary" });
        found.know("standbys", self.standbys.to_string());
        let connections = format!("{} of {}", self.clients, self.setting("max_connections"));
        found.know("connections", connections);
        found.know("synchronous_commit", self.setting("synchronous_commit"));
        found.know("changes", if self.is_deaf { "looked for" } else { "told" });
        found.know("table", format!("{}{}", self.prefix, if self.has_tables { "" } else { ", not there yet" }));
    }
}

fn is_old(told: &Told) -> Option<Finding> {
    (told.version() < VERSIONS.0).then(|| {
        Finding::warning(
            format!("it is PostgreSQL {}, and dlock needs {}", told.setting("server_version"), VERSIONS.0),
            "what dlock asks of it an older one may refuse in the middle of a run",
            "a newer PostgreSQL",
        )
    })
}

fn is_new(told: &Told) -> Option<Finding> {
    (told.version() > VERSIONS.1).then(|| {
        Finding::note(
            format!(
                "it is PostgreSQL {}, and this dlock was tested with {} at most",
                told.setting("server_version"),
                VERSIONS.1
            ),
            "something in it may have changed that dlock stands on",
            "look for a newer dlock",
        )
    })
}

fn is_a_standby(told: &Told) -> Option<Finding> {
    told.is_standby.then(|| {
        Finding::warning(
            "it is a standby",
            "a standby takes no lock, and does not know all that its primary gave out",
            "name the primary in the URL, or all servers with 'target_session_attrs=read-write'",
        )
    })
}

fn loses_commits(told: &Told) -> Option<Finding> {
    (told.setting("synchronous_commit") == "off").then(|| {
        Finding::warning(
            "its synchronous_commit is 'off': what it commits reaches the disk up to a second later",
            "if it crashes, keys taken just before are free, while their holders still work",
            "'ALTER ROLE … SET synchronous_commit = on' for the user of dlock",
        )
    })
}

fn trusts_its_disk(told: &Told) -> Option<Finding> {
    let off: Vec<&str> = ["fsync", "full_page_writes"].into_iter().filter(|name| told.setting(name) == "off").collect();
    (!off.is_empty()).then(|| {
        Finding::warning(
            format!("its {} is 'off'", off.join(" and its ")),
            "after a crash of its machine its data may be damaged, and locks with it",
            "turn it on: that is for data that nobody needs",
        )
    })
}

fn fails_over_without_locks(told: &Told) -> Option<Finding> {
    let (names, commit) = (told.setting("synchronous_standby_names"), told.setting("synchronous_commit"));
    let waits = !names.is_empty() && !["off", "local"].contains(&commit);
    (told.standbys > 0 && !waits && !told.is_standby).then(|| {
        let why = if names.is_empty() {
            "synchronous_standby_names is empty".to_owned()
        } else {
            format!("synchronous_commit is '{commit}'")
        };
        let many = if told.standbys == 1 { "a standby".into() } else { format!("{} standbys", told.standbys) };
        Finding::warning(
            format!("it has {many}, and waits for none: {why}"),
            "if one becomes the primary, keys taken just before are free there, while their holders still work",
            "'synchronous_standby_names', and 'synchronous_commit = on'; and compare DLOCK_FENCE where the work is written",
        )
    })
}

fn has_no_room(told: &Told) -> Option<Finding> {
    let most = told.number("max_connections").saturating_sub(told.number("superuser_reserved_connections"));
    (most > 0 && told.clients * 10 >= most * 9).then(|| {
        Finding::warning(
            format!("{} of its {most} connections are taken", told.clients),
            "each dlock that holds or waits has one or two: who gets none takes no lock, and cannot renew one",
            "a larger 'max_connections', or a pooler for those who have many",
        )
    })
}

fn has_no_tables(told: &Told) -> Option<Finding> {
    let Told { user, prefix, .. } = told;
    match (told.has_tables, told.may_use, told.may_make) {
        (true, true, _) => None,
        (true, false, _) => Some(Finding::warning(
            format!("user '{user}' may not do all with table '{prefix}' that it takes"),
            "no lock can be taken, renewed or given back",
            "the rights that 'dlock setup --print' ends with",
        )),
        (false, _, Some(true)) => Some(Finding::note(
            format!("there is no table '{prefix}' yet"),
            "the first lock makes it",
            "'dlock setup', to have it now",
        )),
        (false, _, None) => Some(Finding::warning(
            format!("there is no table '{prefix}', and no schema for user '{user}' to make it in"),
            "no lock can be taken",
            "name a schema, '?prefix=SCHEMA.TABLE', or let an administrator create it, or set the user's search_path and grant \
             USAGE",
        )),
        (false, _, Some(false)) => Some(Finding::warning(
            format!("there is no table '{prefix}', and user '{user}' may not make it"),
            "no lock can be taken",
            "let somebody who may run 'dlock setup', or what 'dlock setup --print' prints",
        )),
    }
}

fn is_behind_a_pooler(told: &Told) -> Option<Finding> {
    told.is_deaf.then(|| {
        Finding::note(
            "a pooler stands before it that gives each transaction to another session",
            "nobody is told of anything: who waits looks several times a second, and a key changes hands that much later",
            "name the server itself in the URL, or a pooler that keeps sessions, if that matters",
        )
    })
}

fn can_be_read(told: &Told) -> Option<Finding> {
    told.is_open.then(|| {
        Finding::warning(
            "what is said to it and by it is not encrypted",
            "who can read a lease on the way can take it away",
            "'sslmode=verify-full'",
        )
    })
}
