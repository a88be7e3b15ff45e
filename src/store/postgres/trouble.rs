//! What a server's refusal, or its silence, means for a lock.

use std::io;

use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::ErrorResponseBody;

use super::address::Address;
use crate::store::socket::Endpoint;
use crate::store::{StoreError, Trouble, tls};
use crate::sys;

/// How much of a server's own words is shown.
const SHOWN: usize = 200;

/// What went wrong with one exchange.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing was changed, for this reason.
    Before(Box<Self>),
    /// It was this server's.
    By(Endpoint, Box<Self>),
    /// Connecting, sending or receiving.
    Io(io::Error),
    /// There was no complete answer in time.
    Silent,
    /// The server does not speak TLS, and must.
    NoTls,
    /// What came is not the protocol of PostgreSQL.
    Garbage,
    /// TLS: the other side is not who it should be, or does not speak it.
    Tls(rustls::Error),
    /// The settings cannot be used.
    Settings(String),
    /// We are not let in, or would not go in on these terms.
    Login(String),
    /// The server's refusal.
    Server(Refusal),
    /// It is a standby.
    Standby,
    /// A record, or an answer, that is not as it must be.
    Odd(String),
    /// The tables are not there, and we may not make them: the server's words.
    Unprepared(String),
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

impl Failure {
    /// Whether the connection had ended: one that was idle for long, or whose server was restarted.
    pub(super) fn is_stale(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match self.bare() {
            Self::Io(error) => [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof].contains(&error.kind()),
            // Told to end (admin_shutdown, idle_session_timeout), as the server says before it closes.
            Self::Server(refusal) => ["57P01", "57P05"].contains(&&*refusal.code),
            _ => false,
        }
    }

    /// The server's code, if it refused.
    pub(super) fn code(&self) -> &str {
        match self.bare() {
            Self::Server(refusal) => &refusal.code,
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

    /// Whether the server, or we ourselves, said no.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.bare(), Self::Server(_) | Self::Login(_) | Self::Tls(_) | Self::NoTls | Self::Settings(_))
    }

    /// Whether there was no answer.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self.bare(), Self::Silent)
    }

    /// What went wrong, whoever's it was.
    pub(super) fn bare(&self) -> &Self {
        match self {
            Self::By(_, failure) | Self::Before(failure) => failure.bare(),
            failure => failure,
        }
    }

    /// The same, of this server.
    pub(super) fn by(self, server: &Endpoint) -> Self {
        Self::By(server.clone(), self.into())
    }

    /// The same, where nothing was changed.
    pub(super) fn before(self) -> Self {
        Self::Before(self.into())
    }

    /// The error of the store at `address`.
    pub(super) fn at(self, address: &Address) -> StoreError {
        self.of(&address.to_string(), address)
    }

    fn of(self, name: &str, address: &Address) -> StoreError {
        let refused = matches!(self, Self::Server(_));
        let (trouble, words) = match self {
            Self::Before(failure) => return failure.of(name, address).before_anything(),
            Self::By(server, failure) => return failure.of(&format!("postgres at {server}"), address),
            Self::Server(refusal) => meaning(&refusal, address),
            failure if failure.is_stale() => (Trouble::Unreachable, "it closed the connection".into()),
            Self::Io(error) => (Trouble::Unreachable, sys::words(&error)),
            Self::Silent => (Trouble::Unreachable, "it did not answer in time".into()),
            Self::NoTls => (Trouble::Refused, "it does not speak TLS, and 'sslmode' demands it".into()),
            Self::Garbage => (Trouble::Unreachable, "what it answers is not the protocol of PostgreSQL".into()),
            Self::Tls(error) => tls::words(&error, "?sslrootcert=FILE", "?sslcert=FILE&sslkey=FILE"),
            Self::Login(words) => (Trouble::Refused, words),
            Self::Settings(words) | Self::Odd(words) => (Trouble::Unfit, words),
            Self::Standby => (Trouble::Unreachable, STANDBY.into()),
            Self::Unprepared(words) => (
                Trouble::Unprepared,
                format!(
                    "it has no table '{}', and we may not make it ({words}); let somebody who may run 'dlock setup', or what \
                     'dlock setup --print' prints",
                    address.table.prefix()
                ),
            ),
        };
        let error = StoreError::new(trouble, format_args!("{name}: {}", address.without_password(&words)));
        if refused { error.before_anything() } else { error }
    }
}

/// `read_only_sql_transaction`, and `feature_not_supported` where a transaction is to write.
const STANDBYS: [&str; 2] = ["25006", "0A000"];

const STANDBY: &str = "it is a standby, which takes no locks";

/// What a refusal means, and its words.
fn meaning(refusal: &Refusal, address: &Address) -> (Trouble, String) {
    let said = shown(refusal);
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

/// The words of a refusal.
pub(super) fn shown(refusal: &Refusal) -> String {
    let clean = refusal.words.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(SHOWN).collect::<String>().trim_end().to_owned()
}
