//! PostgreSQL servers, and poolers before them. They die with the tests, however these end.

mod pooler;
pub(crate) mod proxy;
mod shared;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown, geteuid};

pub(crate) use self::pooler::Pooler;
pub(crate) use self::shared::{shared_pooler, shared_server};
use super::address::{PORT, new_host, new_prefix};
use super::{Running, Store, certificates, command, finish, has, skipped, wait_for};

/// Where Debian keeps the programs of a server, besides the PATH.
const PROGRAMS: &str = "/usr/lib/postgresql";

/// The user of the database as which a test looks at it.
pub(crate) const ADMIN: &str = "postgres";

/// A server, on an address of its own. It ends with the test.
pub(crate) struct Server {
    dir: PathBuf,
    pub(crate) host: String,
    settings: Vec<String>,
    child: Child,
    /// Ends whatever is left of the server, and removes its files, when the other end of its pipe is closed: at the end of
    /// this process, however that comes.
    janitor: Option<Child>,
}

/// Where the tables of a store are.
pub(crate) struct Place {
    /// The server, if it is the test's own.
    own: Option<Server>,
    /// Where it is.
    host: String,
    /// Whom dlock speaks to: the server itself, or a pooler before it.
    pooled: bool,
    prefix: String,
}

/// Makes certificates in a server's directory, of which it can read its own; see [`certificates::certify`].
pub(crate) fn certify(server: &Server, names: &str) {
    certificates::certify(&server.dir, names);
    for name in ["server.pem", "server.key", "ca.pem"] {
        give(&server.path(name));
    }
}

/// A program of PostgreSQL; nothing if it is not installed.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let versions = fs::read_dir(PROGRAMS).into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    versions.sort();
    folders.extend(versions.into_iter().rev());
    folders.into_iter().map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// Whether a server can be started. If not, the test is skipped by name, or fails where nothing may be.
pub(crate) fn has_postgres() -> bool {
    program("postgres").is_some() || skipped("postgres is not installed")
}

/// Whether there is a pooler.
pub(crate) fn has_pooler() -> bool {
    has("pgbouncer")
}

/// Runs a test on a store's share of a server; with `DLOCK_TEST_POOLER=all` through a pooler.
pub(crate) fn on_a_share(test: fn(&Store)) {
    if std::env::var_os("DLOCK_TEST_POOLER").is_some_and(|which| which == "all") {
        return through_a_pooler(test);
    }
    if has_postgres() {
        test(&Store::on_postgres());
    }
}

/// Runs a test on a store's share of a server, with a pooler before it.
pub(crate) fn through_a_pooler(test: fn(&Store)) {
    if has_postgres() && has_pooler() {
        test(&Store::on_pooler());
    }
}

/// Runs a program of PostgreSQL to its end, as the user that its servers run as: they refuse to be root.
#[track_caller]
fn do_as_server(program: &Path, arguments: &[&str]) {
    let done = finish(as_server(program, Signal::SIGKILL).args(arguments));
    assert!(done.status.success(), "{}: {done:#?}", program.display());
}

#[expect(unsafe_code, reason = "only so can a child be tied to the life of its parent")]
fn as_server(program: &Path, death: Signal) -> Command {
    let mut server = command(program.to_str().expect("its path is UTF-8"));
    if let Some(user) = server_user() {
        server.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    // What ties a child to its parent is forgotten when it becomes another user, and that is done before.
    // SAFETY: prctl is a plain system call.
    unsafe { server.pre_exec(move || set_pdeathsig(death).map_err(Into::into)) };
    server.env_remove("PGDATA").env("LC_ALL", "C.UTF-8");
    server
}

/// Who servers run as, if not we ourselves.
fn server_user() -> Option<User> {
    geteuid().is_root().then(|| User::from_name("nobody").ok().flatten().expect("every system has nobody"))
}

/// A directory that belongs to the servers.
fn new_dir() -> PathBuf {
    let dir = tempfile::tempdir().expect("a directory for the server").keep();
    give(&dir);
    dir
}

fn give(path: &Path) {
    if let Some(user) = server_user() {
        chown(path, Some(user.uid), Some(user.gid)).expect("we are root");
    }
}

/// The files of a server that was never started, to copy from.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let dir = new_dir();
        let data = dir.join("data");
        let initdb = program("initdb").expect("it comes with the server");
        do_as_server(
            &initdb,
            &["-D", &data.display().to_string(), "-A", "trust", "-U", ADMIN, "--no-sync", "-E", "UTF8"],
        );
        std::mem::forget(clean_up(&dir));
        data
    })
}

/// One who waits for the end of this process, and then ends what is left of a server, and removes its directory. Those of
/// its processes that are stopped would stay so for ever.
fn clean_up(dir: &Path) -> Child {
    const SCRIPT: &str = r#"
        trap "" INT QUIT HUP TERM; read -r end
        pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null || cat "$1/pooler.pid" 2>/dev/null)
        if [ -n "$pid" ]; then
            children=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null)
            kill -CONT $pid $children; kill -QUIT $pid
            for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 $pid || break; sleep 0.1; done
            kill -KILL $pid $children
        fi 2>/dev/null
        rm -rf -- "$1"
    "#;
    let mut janitor = Command::new("sh");
    janitor.args(["-c", SCRIPT, "sh"]).arg(dir).process_group(0);
    janitor.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    janitor.spawn().expect("a shell starts")
}

impl Server {
    /// Starts a server with these settings besides those that a test wants.
    pub(crate) fn start(settings: &[&str]) -> Self {
        let dir = new_dir();
        let data = dir.join("data");
        let from = template().display().to_string();
        do_as_server(Path::new("/bin/cp"), &["-a", &from, &data.display().to_string()]);
        Self::start_on(dir, settings)
    }

    /// Starts a standby of another one, which follows it until it is promoted.
    pub(crate) fn standby_of(primary: &Self) -> Self {
        let dir = new_dir();
        let data = dir.join("data").display().to_string();
        let copy = program("pg_basebackup").expect("it comes with the server");
        let port = PORT.to_string();
        let from = ["-h", &primary.host, "-p", &port, "-U", ADMIN, "-D", &data, "-R", "-c", "fast", "-N"];
        do_as_server(&copy, &from);
        Self::start_on(dir, &["wal_receiver_status_interval=1"])
    }

    /// The same with these files.
    fn start_on(dir: PathBuf, settings: &[&str]) -> Self {
        let host = new_host();
        // The disk is not what is tested, and a crash of the machine ends the tests, too.
        let usual = ["fsync=off", "max_connections=400", "shared_buffers=16MB"];
        let mut all: Vec<String> = [&usual, settings].concat().into_iter().map(str::to_owned).collect();
        let sockets = format!("unix_socket_directories={}", dir.display());
        all.extend([format!("listen_addresses={host}"), format!("port={PORT}"), sockets]);
        let janitor = Some(clean_up(&dir));
        let child = spawn(&dir, &all);
        let server = Self { dir, host, settings: all, child, janitor };
        server.await_ready();
        server
    }

    /// The URL of a store on it.
    pub(crate) fn url(&self) -> String {
        format!("postgres://{ADMIN}@{}:{PORT}/postgres", self.host)
    }

    /// A file of the server's.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// The processes that serve it, itself included.
    fn processes(&self) -> Vec<Pid> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw);
        std::iter::once(pid).chain(children).collect()
    }

    /// Stops all of it: connections stay, nobody answers.
    pub(crate) fn freeze(&self) {
        // The first one first, so that no others come.
        for pid in self.processes() {
            let _ = kill(pid, Signal::SIGSTOP);
        }
    }

    pub(crate) fn thaw(&self) {
        for pid in self.processes() {
            let _ = kill(pid, Signal::SIGCONT);
        }
    }

    /// Ends it at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.thaw();
        let _ = kill(self.pid(), Signal::SIGQUIT);
        let _ = self.child.wait();
    }

    /// Starts it again, on the same address and with the files that it left, and does not wait for it.
    pub(crate) fn launch_again(&mut self) {
        self.child = spawn(&self.dir, &self.settings);
    }

    /// Does statements, and returns what they print: values between '|', rows in lines.
    #[track_caller]
    pub(crate) fn ask(&self, sql: &str) -> String {
        ask(&self.host, sql)
    }

    /// Does statements that may be refused.
    pub(crate) fn try_ask(&self, sql: &str) -> Result<String, String> {
        try_ask(&self.host, sql)
    }

    pub(crate) fn await_ready(&self) {
        wait_for("the server to take us in", || self.try_ask("SELECT 1").is_ok());
    }
}

fn spawn(dir: &Path, settings: &[String]) -> Child {
    let mut server = as_server(&program("postgres").expect("it was there"), Signal::SIGQUIT);
    server.arg("-D").arg(dir.join("data")).current_dir(dir);
    server.args(settings.iter().flat_map(|setting| ["-c", setting]));
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).expect("a log");
    server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    server.spawn().expect("the server starts")
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        // The end of its pipe is what it waits for.
        if let Some(mut janitor) = self.janitor.take() {
            drop(janitor.stdin.take());
            let _ = janitor.wait();
        }
    }
}

#[track_caller]
fn ask(host: &str, sql: &str) -> String {
    try_ask(host, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn try_ask(host: &str, sql: &str) -> Result<String, String> {
    let psql = program("psql").expect("it comes with the server");
    let mut psql = command(psql.to_str().expect("its path is UTF-8"));
    psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-h", host, "-p", &PORT.to_string(), "-U", ADMIN, "-d", "postgres"]);
    let done = finish(psql.args(["-c", sql]).env("PGCONNECT_TIMEOUT", "20"));
    if done.status.success() { Ok(done.stdout.trim_end().to_owned()) } else { Err(done.stderr) }
}

impl Place {
    #[track_caller]
    fn ask(&self, sql: &str) -> String {
        ask(&self.host, &sql.replace("TABLE", &self.prefix))
    }

    /// All keys that have a row.
    pub(super) fn keys(&self) -> Vec<String> {
        let there = self.ask("SELECT to_regclass('TABLE')");
        let keys = if there.is_empty() { String::new() } else { self.ask("SELECT key FROM TABLE ORDER BY key") };
        keys.lines().map(str::to_owned).collect()
    }

    /// What there is besides records.
    pub(super) fn leftovers(&self) -> Vec<String> {
        self.ask("SELECT lease FROM TABLE_life").lines().map(str::to_owned).collect()
    }

    /// Whether a dlock sleeps until it hears from the server; behind a pooler, whether it looks.
    pub(super) fn is_asleep(&self, dlock: &Running) -> bool {
        let mine = super::activity::local_addresses(dlock.pid().as_raw());
        if self.pooled {
            return mine.len() > 1;
        }
        let ports = mine.iter().filter_map(|(local, _)| local.rsplit(':').next());
        let ports = ports.collect::<Vec<_>>().join(", ");
        let asleep = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE client_port IN (-1, {ports}) AND state = 'idle' \
             AND query LIKE 'SELECT record, %'"
        );
        mine.len() > 1 && self.ask(&asleep) != "0"
    }

    /// What deletes the record of a key, for a shell.
    pub(crate) fn loss(&self, key: &str) -> String {
        let psql = program("psql").expect("it comes with the server");
        let (psql, host, prefix) = (psql.display(), &self.host, &self.prefix);
        format!("{psql} -Xq -h {host} -p {PORT} -U {ADMIN} -d postgres -c \"DELETE FROM {prefix} WHERE key = '{key}'\"")
    }

    /// What status calls the store.
    pub(super) fn identity(url: &str) -> String {
        let (_, rest) = url.split_once('@').expect("it has a user");
        if rest.contains('?') { format!("postgres://{rest}") } else { format!("postgres://{rest}?prefix=dlock") }
    }
}

impl Store {
    /// A store on the server that all tests share.
    pub(crate) fn on_postgres() -> Self {
        let server = shared_server();
        Self::in_tables(server.url(), server.host.clone(), None, false)
    }

    /// The same with a pooler before it, which keeps no session.
    pub(crate) fn on_pooler() -> Self {
        Self::in_tables(shared_pooler().url(), shared_server().host.clone(), None, true)
    }

    /// A store on a server of its own.
    pub(crate) fn on_own_postgres(server: Server) -> Self {
        Self::in_tables(server.url(), server.host.clone(), Some(server), false)
    }

    fn in_tables(url: String, host: String, own: Option<Server>, pooled: bool) -> Self {
        let prefix = if own.is_some() { "dlock".into() } else { new_prefix() };
        let url = if own.is_some() { url } else { format!("{url}?prefix={prefix}") };
        Self { url, postgres: Some(Place { own, host, pooled, prefix }), ..Self::new() }
    }

    /// Its place in a database.
    #[track_caller]
    pub(crate) fn place(&self) -> &Place {
        self.postgres.as_ref().expect("it is a store in a database")
    }

    /// Whether a pooler that keeps no session stands before its server.
    pub(crate) fn is_pooled(&self) -> bool {
        self.postgres.as_ref().is_some_and(|place| place.pooled)
    }

    /// What its tables are called.
    pub(crate) fn prefix_of_tables(&self) -> &str {
        &self.place().prefix
    }

    /// Its own server.
    #[track_caller]
    pub(crate) fn postgres(&self) -> &Server {
        self.place().own.as_ref().expect("a server of its own")
    }

    #[track_caller]
    pub(crate) fn postgres_mut(&mut self) -> &mut Server {
        self.postgres.as_mut().and_then(|place| place.own.as_mut()).expect("a server of its own")
    }

    /// Asks the database, as its administrator; `TABLE` stands for the table's name.
    #[track_caller]
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.place().ask(sql)
    }
}
