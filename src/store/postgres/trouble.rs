//! What a server's refusal, or its silence, means for a lock.

use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::ErrorResponseBody;

use super::address::Address;
use crate::store::failure::{self, Meaning, unprepared};
use crate::store::trouble::shown;
use crate::store::{Trouble, tls};

/// What went wrong with one exchange.
pub(super) type Failure = failure::Failure<Said>;

/// What a server says when it does not do what it was asked for.
#[derive(Debug)]
pub(super) enum Said {
    /// A refusal.
    Refused(Refusal),
    /// It is a standby.
    Standby,
    /// The tables are not there, and we may not make them: why.
    Unprepared(String),
    /// The tables are not there, and neither is a schema that could have them.
    NoSchema,
}

/// A server's refusal.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// SQLSTATE (PostgreSQL, appendix A).
    pub(super) code: String,
    pub(super) words: String,
}

impl Refusal {
    pub(super) fn read(body: &ErrorResponseBody) -> Self {
        let mut refusal = Self { code: String::new(), words: String::new() };
        let mut fields = body.fields();
        while let Ok(Some(field)) = fields.next() {
            let value = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => refusal.code = value(),
                b'M' => refusal.words = value(),
                _ => {}
            }
        }
        refusal
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Said(Said::Refused(refusal))
    }
}

impl Failure {
    /// The server's code, if it refused.
    pub(super) fn code(&self) -> &str {
        match self.bare() {
            Self::Said(Said::Refused(refusal)) => &refusal.code,
            _ => "",
        }
    }

    /// Whether others were in the way, and doing the same once more at once is the remedy: `serialization_failure` and
    /// `deadlock_detected`.
    pub(super) fn is_collision(&self) -> bool {
        ["40001", "40P01"].contains(&self.code())
    }

    /// Whether a table is missing: `undefined_table` or `invalid_schema_name`.
    pub(super) fn is_missing_table(&self) -> bool {
        ["42P01", "3F000"].contains(&self.code())
    }

    /// Whether a standby refused to write.
    pub(super) fn is_of_a_standby(&self) -> bool {
        STANDBYS.contains(&self.code())
    }

    /// Whether another way to connect may do: what stands in the way is TLS, or that there is none.
    pub(super) fn is_about_tls(&self) -> bool {
        // invalid_authorization_specification: no line of pg_hba.conf is for such a connection.
        matches!(self.bare(), Self::Tls(_) | Self::NoTls) || self.code() == "28000"
    }
}

impl Meaning for Said {
    type Address = Address;

    const SERVER: &str = "postgres";
    const PROTOCOL: &str = "the protocol of PostgreSQL";
    const NO_TLS: (Trouble, &str) = (Trouble::Refused, "it does not speak TLS, and 'sslmode' demands it");

    fn of_tls(error: &rustls::Error) -> (Trouble, String) {
        tls::words(error, "?sslrootcert=FILE", "?sslcert=FILE&sslkey=FILE")
    }

    fn without_password(address: &Address, words: &str) -> String {
        address.without_password(words)
    }

    fn reworded(self, reword: &dyn Fn(String) -> String) -> Self {
        match self {
            Self::Refused(refusal) => Self::Refused(Refusal { words: reword(refusal.words), ..refusal }),
            Self::Unprepared(why) => Self::Unprepared(reword(why)),
            said => said,
        }
    }

    fn is_farewell(&self) -> bool {
        // Told to end (admin_shutdown, idle_session_timeout), as the server says before it closes.
        matches!(self, Self::Refused(refusal) if ["57P01", "57P05"].contains(&&*refusal.code))
    }

    fn is_definite(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    fn meaning(self, address: &Address) -> (Trouble, String) {
        match self {
            Self::Refused(refusal) => meaning(&refusal, address),
            Self::Standby => (Trouble::Unreachable, STANDBY.into()),
            Self::Unprepared(why) => unprepared(&format!("table '{}'", address.table.prefix()), &why),
            Self::NoSchema => (Trouble::Unfit, no_schema(address)),
        }
    }
}

/// Why there are no tables, and none can be made, where what is missing is a schema.
fn no_schema(address: &Address) -> String {
    let (table, user) = (address.table.prefix(), &address.access.user);
    let why = match table.split_once('.') {
        Some((schema, _)) => format!("no schema '{schema}'; let an administrator create it, or name another one"),
        None => format!(
            "no schema for user '{user}' to make it in; name one, '?prefix=SCHEMA.{table}', or let an administrator set the \
             search_path of '{user}' and grant USAGE"
        ),
    };
    format!("it has no table '{table}', and {why}")
}

/// `read_only_sql_transaction`, and `feature_not_supported` where a transaction is to write.
const STANDBYS: [&str; 2] = ["25006", "0A000"];

const STANDBY: &str = "it is a standby, which takes no locks";

/// What a refusal means, and its words.
fn meaning(refusal: &Refusal, address: &Address) -> (Trouble, String) {
    let said = shown(&refusal.words);
    let (user, database) = (&address.access.user, &address.access.database);
    match &*refusal.code {
        // It may be made the primary soon.
        code if STANDBYS.contains(&code) => (Trouble::Unreachable, STANDBY.into()),
        // lock_not_available
        "55P03" => (Trouble::Unreachable, "another client keeps the key's row locked".into()),
        "28000" | "28P01" => (Trouble::Refused, format!("it says '{said}'")),
        // insufficient_privilege
        "42501" => (
            Trouble::Refused,
            format!(
                "it says '{said}'; what user '{user}' needs is in README, and in what 'dlock setup --print' prints"
            ),
        ),
        // invalid_catalog_name
        "3D000" => {
            (Trouble::Unfit, format!("it has no database '{database}'; name another one in the URL, or create it"))
        }
        // A pooler's words, which have one code for all.
        "08P01" if refusal.words.contains("unsupported startup parameter") => {
            (Trouble::Unfit, format!("it says '{said}'; a pooler takes no '?options='"))
        }
        "08P01" if refusal.words.contains("no such database") => (Trouble::Unfit, format!("it says '{said}'")),
        "08P01" if refusal.words.contains("no such user") || refusal.words.contains("auth") => {
            (Trouble::Refused, format!("it says '{said}'"))
        }
        code => match code.get(..2).unwrap_or_default() {
            // Connections (08), what it has too little of (53), what an operator did (57), what the system did (58, XX),
            // and what goes over with the others who are there (25, 40): all of that may be over soon.
            "08" | "25" | "40" | "53" | "57" | "58" | "XX" => (Trouble::Unreachable, format!("it says '{said}'")),
            _ => (Trouble::Unfit, format!("it says '{said}' ({code})")),
        },
    }
}
