//! How a server lets dlock in: passwords, users and what these may do, databases, sockets, TLS; and that a
//! password is told to nobody else.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use dlock::cli::{self, Asked};
use dlock::config::Settings;
use dlock::model::{Answer, Ask, Info, Key, LeaseId, Patience, Released};
use dlock::store::{Address, Changed, RedisStore, Scope, Store as _, StoreError, Trouble, Url, Watch};
use redis::Commands as _;

use crate::support::redis::tls::{PORT as TLS_PORT, certify, with_tls};
use crate::support::redis::{REDIS, REDIS_6, Server, VALKEY, on_both};
use crate::support::{DLOCK, Done, Running, Store, ask, child_of, finish, has};

/// What a user of dlock must be allowed, for `ACL SETUSER NAME on >PASSWORD …`; as README has it. Another
/// database than 0 needs `+select`.
pub(crate) const RULE: &str = "~dlock:* resetchannels &dlock:* -@all +evalsha +eval +time +hgetall +hmget +hget +hset +hdel +zadd +zrem +zrange \
                               +zrangebyscore +zrank +zscore +zcard +zremrangebyscore +rpush +lpush +ltrim +lrange \
                               +blpop +del +expire +publish +subscribe +psubscribe";

/// What such a user needs besides for `dlock doctor`; as README has it.
pub(crate) const EXAMINE: &str = "+info +config|get";

const SECRET: &str = "s3cr3t-W0rd";

/// More than anything here takes.
const WITHIN: Duration = Duration::from_secs(20);

/// How long a sign of life is good here. `dlock run` has 24 s.
const GOOD_FOR: Duration = Duration::from_millis(600);

/// Runs, waits in line, unlocks and looks.
#[track_caller]
pub(super) fn works(store: &Store) {
    let mut holder = store.hold("k");
    let waiter = store.waiting("k", &["--note", "next"], "echo in");
    store.run(&["run", "k", "-n", "--", "true"]).says(75, &["'k' is held"]);
    assert_eq!(store.run(&["status"]).status.code(), Some(0));
    let fence = store.run(&["fence", "k"]);
    assert!(fence.status.success() && fence.stdout.trim() != "0", "{fence:#?}");
    store.run(&["unlock", "k", "--yes", "--force"]).is(0, "", "");
    waiter.finish().is(0, "in\n", "");
    holder.close_stdin();
    holder.finish();
}

/// The keys that stay in a database, seen with the rights that `url` gives. A word for somebody who went without
/// hearing it has a minute.
fn keys(url: &str) -> Vec<String> {
    let client = redis::Client::open(url).expect("a URL");
    let mut keys: Vec<String> = client.get_connection().expect("it takes us in").keys("*").expect("it has keys");
    keys.retain(|key| !key.contains(":wake:"));
    keys.sort();
    keys
}

#[test]
fn a_password_a_user_a_database_and_a_prefix_let_dlock_in() {
    on_both(|store| {
        let server = store.server();
        server.ask(&["ACL", "SETUSER", "bob", "on", &format!(">{SECRET}/@"), "~*", "+@all"]);
        let bob = server.url().replace("//", &format!("//bob:{SECRET}%2F%40@"));
        let mine = |prefix: &str| ["index", "{k}:events", "{k}:record"].map(|key| format!("{prefix}:{key}"));
        works(&Store::new().at(&format!("{bob}/3?prefix=team%20a")));
        assert_eq!(keys(&format!("{bob}/3")), mine("team a"));
        assert_eq!(server.keys(), Vec::<String>::new(), "nothing is in database 0");
        works(&Store::new().at(&bob));
        assert_eq!(keys(&server.url()), mine("dlock"));
        server.ask(&["ACL", "SETUSER", "default", "resetpass", &format!(">{SECRET}")]);
        works(&Store::new().at(&server.url().replace("//", &format!("//:{SECRET}@"))));
    });
}

#[test]
fn a_socket_of_this_machine_is_a_store() {
    for program in [REDIS, VALKEY].into_iter().filter(|program| has(program)) {
        let server = Server::start(program, &["--unixsocket", "a b.sock"]);
        let socket = server.path("a b.sock").display().to_string().replace(' ', "%20");
        works(&Store::new().at(&format!("redis+unix://{socket}?db=1")));
        assert_eq!(keys(&format!("{}/1", server.url())), ["dlock:index", "dlock:{k}:events", "dlock:{k}:record"]);
        server.ask(&["ACL", "SETUSER", "bob", "on", &format!(">{SECRET}"), "~*", "+@all"]);
        works(&Store::new().at(&format!("redis+unix://{socket}?user=bob&password={SECRET}")));
        assert_eq!(keys(&server.url()).len(), 3);
    }
}

/// All that a lock does, also what `dlock run` does only after 16 s of waiting: each command is needed once.
fn live(store: &RedisStore, key: &Key) -> Result<(), StoreError> {
    let lease = |number| LeaseId::new([number; 16]);
    let ask = |number, patience| Ask { patience, ..ask::ask(lease(number), WITHIN) };
    let (holder, waiter, hasty) =
        (ask(1, Patience::None), ask(2, Patience::SignOfLife(GOOD_FOR)), ask(3, Patience::None));
    assert!(matches!(store.acquire(key, &holder, WITHIN)?, Answer::Granted(_)));
    store.renew(key, holder.level, WITHIN, WITHIN)?;
    assert_eq!(store.acquire(key, &waiter, WITHIN)?, Answer::Queued(0));
    assert!(matches!(store.acquire(key, &hasty, WITHIN)?, Answer::Busy(_, 1)));
    // Longer than a sign of life is good: without one at two thirds of it nobody would be in the queue.
    store.await_change(key, &Watch::Turn(waiter.level), Some(GOOD_FOR * 5 / 4))?;
    assert_eq!(store.inspect(key)?.map(|record| record.queue.len()), Some(1));
    assert!(store.list(Scope::Live)?.keys.contains(key));
    // Who looks at the key, and who looks at all.
    let observers = [store.observe(Some(key))?, store.observe(None)?];
    assert_eq!(store.release(key, holder.level, None, WITHIN)?, Released::Freed);
    for mut observer in observers {
        let heard = observer.next(&[], Some(Duration::from_secs(2)))?;
        if !matches!(&heard, Changed::Keys(keys) if keys.contains(key)) {
            return Err(StoreError::new(Trouble::Refused, "nobody was told: 'publish'"));
        }
    }
    store.await_change(key, &Watch::Turn(waiter.level), Some(WITHIN))?;
    assert!(matches!(store.acquire(key, &waiter, WITHIN)?, Answer::Granted(_)));
    store.revoke(key, &[waiter.lease], false, &Info::default())?;
    store.await_change(key, &Watch::Hold(waiter.level), Some(WITHIN))?;
    store.release(key, waiter.level, None, WITHIN).map(drop)
}

/// `live` as a user with a rule of its own, in a database.
fn live_as(server: &Server, name: &str, rule: &[&str], db: u32) -> Result<(), StoreError> {
    let user = ["ACL", "SETUSER", name, "on", &format!(">{SECRET}")];
    server.ask(&[&user, rule].concat());
    let url = format!("{}/{db}", server.url().replace("//", &format!("//{name}:{SECRET}@")));
    let address = Address::parse(&url, "/".as_ref()).expect("a URL");
    live(&RedisStore::new(&address, WITHIN), &Key::parse(name).expect("a key"))
}

#[test]
fn the_rule_for_a_user_is_enough_and_all_of_it_is_needed() {
    on_both(|store| {
        let server = store.server();
        let rule: Vec<&str> = RULE.split_whitespace().collect();
        live_as(server, "all", &rule, 0).expect("the rule is enough");
        live_as(server, "other", &[&rule[..], &["+select"]].concat(), 1).expect("the rule is enough");
        let refused = |name: &str, without: &str, db: u32| {
            let less: Vec<&str> = rule.iter().copied().filter(|word| *word != format!("+{without}")).collect();
            let error = live_as(server, name, &less, db).expect_err(without);
            assert_eq!(error.trouble, Trouble::Refused, "{without}: {error}");
            assert!(error.words.contains(&format!("'{without}'")), "{without}: {error}");
        };
        refused("no-select", "select", 1);
        server.ask(&["SCRIPT", "FLUSH"]);
        refused("no-eval", "eval", 0);
        live_as(server, "all", &rule, 0).expect("the rule is enough where the script is not known yet");
        let commands: Vec<&str> = rule.iter().filter_map(|word| word.strip_prefix('+')).collect();
        thread::scope(|scope| {
            for command in commands.into_iter().filter(|command| *command != "eval") {
                let refused = &refused;
                scope.spawn(move || refused(&format!("no-{command}"), command, 0));
            }
        });
    });
}

#[test]
fn all_that_the_scripts_do_is_in_the_rule() {
    let scripts = [include_str!("../../src/store/redis/law.lua"), include_str!("../../src/store/redis/roll.lua")];
    let calls = scripts.iter().flat_map(|script| script.split("call('").skip(1));
    let commands: BTreeSet<String> = calls.filter_map(|rest| Some(rest.split_once('\'')?.0.to_lowercase())).collect();
    assert!(commands.len() > 20, "{commands:?}");
    // Only nodes of a quorum are asked since when they have been there, and need that besides.
    let missing = commands.iter().filter(|command| *command != "info" && !RULE.contains(&format!("+{command} ")));
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn the_oldest_redis_takes_the_rule_and_it_is_enough_there() {
    if has(REDIS_6) {
        let rule: Vec<&str> = RULE.split_whitespace().collect();
        live_as(&Server::start(REDIS_6, &[]), "all", &rule, 0).expect("the rule is enough");
    }
}

#[test]
fn a_user_with_that_rule_runs_waits_unlocks_and_looks() {
    on_both(|store| {
        let user = ["ACL", "SETUSER", "app", "on", &format!(">{SECRET}")];
        let rule: Vec<&str> = RULE.split_whitespace().collect();
        store.server().ask(&[&user[..], &rule].concat());
        let app = Store::new().at(&store.server().url().replace("//", &format!("//app:{SECRET}@")));
        works(&app);
        store.server().ask(&["ACL", "SETUSER", "app", "-rpush"]);
        let _holder = app.hold("k");
        let done = app.run(&["unlock", "k", "--yes"]);
        done.says(77, &["'rpush'"]);
    });
}

/// A server with TLS, the authority that vouches for it in `ca.pem`, and a client's certificate.
fn tls_server(program: &'static str, name: Option<&str>, auth_clients: &str) -> Server {
    let server = Server::start(program, &[]);
    let name = name.map_or_else(|| format!("IP:{}", server.host), str::to_owned);
    certify(&server.path(""), &name);
    let files = ["tls-cert-file", "server.pem", "tls-key-file", "server.key", "tls-ca-cert-file", "ca.pem"];
    server.ask(&[&["CONFIG", "SET"], &files[..], &["tls-auth-clients", auth_clients]].concat());
    server.ask(&["CONFIG", "SET", "tls-port", &TLS_PORT.to_string()]);
    server
}

/// The store behind TLS, trusting `ca`.
fn over_tls(server: &Server, ca: &str, more: &str) -> Store {
    let ca = server.path(ca);
    Store::new().at(&format!("rediss://{}:{TLS_PORT}?ca={}{more}", server.host, ca.display()))
}

fn try_run(store: &Store) -> Done {
    store.run(&["run", "k", "-n", "--store-timeout", "2", "--", "echo", "in"])
}

#[test]
fn tls_lets_in_whom_it_should_and_nobody_else() {
    if !has("openssl") {
        return;
    }
    for program in with_tls() {
        let server = tls_server(program, None, "no");
        works(&over_tls(&server, "ca.pem", ""));
        try_run(&over_tls(&server, "other.pem", "")).says(77, &["nobody whom we trust", "'?ca=FILE'"]);
        let system = Store::new().at(&format!("rediss://{}:{TLS_PORT}", server.host));
        let done = try_run(&system);
        assert!(
            matches!(done.status.code(), Some(77 | 78)) && done.stderr.starts_with("dlock: redis at "),
            "{done:#?}"
        );
        try_run(&over_tls(&server, "none.pem", "")).says(78, &["none.pem", "cannot read"]);
        try_run(&over_tls(&server, "ca.key", "")).says(78, &["ca.key", "no certificate"]);
        let elsewhere = tls_server(program, Some("DNS:elsewhere.example"), "no");
        try_run(&over_tls(&elsewhere, "ca.pem", "")).says(77, &["certificate", "not valid for name"]);
    }
}

#[test]
fn tls_shows_a_clients_certificate_where_one_is_wanted() {
    if !has("openssl") {
        return;
    }
    for program in with_tls() {
        let server = tls_server(program, None, "yes");
        let files =
            |cert: &str, key: &str| format!("&cert={}&key={}", server.path(cert).display(), server.path(key).display());
        works(&over_tls(&server, "ca.pem", &files("client.pem", "client.key")));
        try_run(&over_tls(&server, "ca.pem", "")).says(77, &["'?cert=FILE&key=FILE'"]);
        try_run(&over_tls(&server, "ca.pem", &files("other.pem", "other.key")))
            .says(77, &["who issued our certificate"]);
        try_run(&over_tls(&server, "ca.pem", &files("client.pem", "other.key"))).says(78, &["do not go together"]);
        try_run(&over_tls(&server, "ca.pem", &files("client.pem", "none"))).says(78, &["cannot read a key"]);
    }
}

#[test]
fn tls_and_no_tls_that_meet_are_a_clear_line() {
    if !has("openssl") {
        return;
    }
    for program in with_tls() {
        let server = tls_server(program, None, "no");
        let plain = Store::new().at(&format!("redis://{}:{TLS_PORT}", server.host));
        try_run(&plain).says(69, &["redis at"]);
        let ca = server.path("ca.pem");
        let tls =
            Store::new().at(&format!("rediss://{}:{}?ca={}", server.host, crate::support::redis::PORT, ca.display()));
        try_run(&tls).says(69, &["redis at"]);
    }
}

/// A dlock that reads its URL from the file `url`.
fn from_file(store: &Store, by_flag: bool, args: &[&str]) -> Command {
    let mut dlock = store.dlock(args);
    dlock.env_remove("DLOCK_STORE");
    let file = store.path("url");
    if by_flag {
        dlock.arg("--store-file").arg(file)
    } else {
        dlock.env("DLOCK_STORE_FILE", file)
    };
    dlock
}

#[test]
fn a_password_in_a_file_is_shown_to_no_other_process() {
    on_both(|store| {
        store.server().ask(&["ACL", "SETUSER", "bob", "on", &format!(">{SECRET}"), "~*", "+@all"]);
        fs::write(store.path("url"), store.server().url().replace("//", &format!("//bob:{SECRET}@"))).expect("a file");
        for by_flag in [true, false] {
            let script = format!("{DLOCK} run -n k -- true && echo ready; cat >/dev/null");
            let mut dlock = from_file(store, by_flag, &["-v"]);
            let mut running = Running::start(dlock.args(["run", "k", "--", "sh", "-c", &script]));
            running.await_line("ready");
            let dlock = running.pid().as_raw();
            let guardian = child_of(dlock);
            for pid in [dlock, guardian, child_of(guardian)] {
                for file in ["cmdline", "environ"] {
                    let shown = fs::read(format!("/proc/{pid}/{file}")).expect("it runs");
                    let shown = String::from_utf8_lossy(&shown);
                    assert!(!shown.is_empty() && !shown.contains(SECRET), "{file}: {shown}");
                }
            }
            let waiter = from_file(store, by_flag, &["-v"]).args(["run", "k", "-w", "0.1", "--", "true"]).output();
            let waiter = String::from_utf8(waiter.expect("it starts").stderr).expect("it is text");
            let done = running.finish();
            assert!(done.status.success() && waiter.contains("held by"), "{done:#?} {waiter}");
            assert!(!done.stderr.contains(SECRET) && !waiter.contains(SECRET), "{done:#?} {waiter}");
        }
    });
}

#[test]
fn a_password_in_a_file_is_in_no_message() {
    for program in [REDIS, VALKEY].into_iter().filter(|program| has(program)) {
        let server = Server::start(program, &["--rename-command", "AUTH", ""]);
        let store = Store::on(server);
        let host = format!("{}:{}", store.server().host, crate::support::redis::PORT);
        let files = [
            (77, format!("redis://:{SECRET}@{host}")),
            (77, format!("redis://bob:{SECRET}@{host}/1")),
            (69, format!("redis://:{SECRET}@127.0.0.1:1")),
            (69, format!("redis+unix:///none?password={SECRET}")),
            (78, format!("rediss://:{SECRET}@{host}?ca=none")),
            (78, format!("redis://:{SECRET}@")),
            (78, format!("redis://u:{SECRET}/x@h")),
            (78, format!("redis://u:{SECRET}#x@h")),
            (78, format!("redis://u:12?{SECRET}@h")),
            (78, format!("redis://:{SECRET}@h/x")),
            (78, format!("redis://:{SECRET}@h?wait=1")),
            (78, format!("redis://:{SECRET}@h:port")),
            (78, format!("redis:{SECRET}@h")),
            (78, format!("redis//:{SECRET}@h")),
            (78, format!("gopher://:{SECRET}@h")),
            (78, format!("bob:{SECRET}@h")),
            (78, format!("{SECRET}@h")),
            (78, SECRET.to_owned()),
            (78, format!("redis://h\n{SECRET}")),
        ];
        for (code, text) in files {
            fs::write(store.path("url"), &text).expect("a file");
            let mut dlock = from_file(&store, true, &["-v", "--store-timeout", "0.3"]);
            let done = finish(dlock.args(["run", "k", "-n", "--", "echo", "in"]));
            assert_eq!((done.status.code(), &*done.stdout), (Some(code), ""), "{text}: {done:#?}");
            assert!(done.stderr.starts_with("dlock: ") && !done.stderr.contains(SECRET), "{text}: {done:#?}");
            // A command line is seen by all, but whoever reads the line need not be one of those.
            let done = store.run(&["status", "--store", &text, "--store-timeout", "0.3"]);
            assert!(text == SECRET || !done.stderr.contains(SECRET), "{text}: {done:#?}");
        }
    }
}

#[test]
fn a_password_is_in_no_form_that_a_panic_could_show() {
    let text = format!("redis://bob:{SECRET}@h/1?prefix=p");
    let url = Url::parse(&text, "/".as_ref()).expect("a URL");
    let address = Address::parse(&text, "/".as_ref()).expect("a URL");
    let store = RedisStore::new(&address, WITHIN);
    let args = ["dlock", "--store", &text, "status"].map(OsString::from);
    let Ok(Asked::Verb(cli)) = cli::parse(&args) else { panic!("these are good arguments") };
    let settings = Settings::read(&cli.global).unwrap_or_else(|failure| panic!("{failure:?}"));
    for shown in [format!("{url:#?}"), format!("{address:?} {address}"), format!("{store:?}"), format!("{settings:?}")]
    {
        assert!(shown.contains('h') && !shown.contains(SECRET), "{shown}");
    }
    assert!(!store.identity().contains(SECRET) && !store.describe().contains(SECRET));
}
