//! What a server refuses, and what is not as it must be: the right code and a clear line.

use std::thread;

use crate::support::postgres::{ADMIN, Server, has_postgres, shared_server};
use crate::support::{Running, Store, finish, wait_for};

/// A user of the shared server that no other test has.
fn user(store: &Store) -> String {
    format!("u_{}", store.prefix_of_tables())
}

/// The store as seen by a user.
fn seen_by(store: &Store, user: &str) -> Store {
    Store::new().at_url(&store.url().replace(&format!("//{ADMIN}@"), &format!("//{user}@")))
}

#[test]
fn a_server_that_cannot_be_used_is_told_with_the_right_code() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_postgres();
    let run = |url: &str| {
        let args = ["-S", url, "--store-timeout", "100ms", "run", "k", "--", "echo", "started"];
        let done = store.run(&args);
        assert_eq!(done.stdout, "");
        done
    };
    let url = store.url();
    run(&url.replace("/postgres?", "/nothing?")).says(78, &["it has no database 'nothing'"]);
    run("postgres://127.0.0.1:1/db").says(69, &["postgres at 127.0.0.1:1: connection refused", "gave up after 100ms"]);
    run(&url.replace("//postgres@", "//nobody_here@")).says(77, &["role \"nobody_here\" does not exist"]);
    run(&format!("{url}&sslmode=require")).says(77, &["it does not speak TLS, and 'sslmode' demands it"]);
    run(&format!("{url}&options=-c%20nonsense%3D1")).says(78, &["nonsense"]);
    run(&format!("{url}&sslmode=sometimes")).says(78, &["'sslmode' is disable"]);
    // What is no such server at all.
    let other = std::net::TcpListener::bind((&*crate::support::address::new_host(), 6390)).expect("an address");
    let address = other.local_addr().expect("it has one");
    thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::Write as _;
            for client in other.incoming().flatten().take(2) {
                let mut client = client;
                let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            }
        });
        run(&format!("postgres://u@{address}/db")).says(69, &["is not the protocol of PostgreSQL"]);
        let _ = std::net::TcpStream::connect(address);
        let _ = std::net::TcpStream::connect(address);
    });
}

#[test]
fn one_who_finds_no_free_connection_tries_again() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_postgres();
    store.run(&["setup"]).is(0, "", "");
    let user = user(&store);
    store.sql(&format!("CREATE ROLE {user} LOGIN CONNECTION LIMIT 0; GRANT ALL ON TABLE, TABLE_life TO {user}"));
    let his = seen_by(&store, &user);
    his.run(&["--store-timeout", "0.2", "run", "k", "--", "true"]).says(69, &["too many connections", "gave up after"]);
    let run = Running::start(&mut his.dlock(&["-v", "run", "k", "--", "echo", "in"]));
    let log = shared_server().path("log");
    let refused =
        || std::fs::read_to_string(&log).is_ok_and(|log| log.matches(&format!("role \"{user}\"")).count() > 2);
    wait_for("it to be refused", refused);
    store.sql(&format!("ALTER ROLE {user} CONNECTION LIMIT -1"));
    assert_eq!(run.finish().stdout, "in\n");
}

#[test]
fn a_user_needs_no_more_than_the_table_and_whoever_has_less_is_told() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_postgres();
    let user = user(&store);
    store.sql(&format!("CREATE ROLE {user} LOGIN"));
    let his = seen_by(&store, &user);
    // Nobody but its owner makes tables there (since PostgreSQL 15).
    his.run(&["run", "k", "--", "true"]).says(78, &["it has no table", "'dlock setup'", "permission denied"]);
    his.run(&["setup"]).says(78, &["we may not make it"]);
    let report = his.run(&["doctor"]);
    assert!(report.stdout.contains("may not make it"), "{report:#?}");
    his.run(&["status"]).is(1, "", "");
    // What is printed for the user is run by an administrator.
    let script = his.run(&["setup", "--print"]).stdout;
    assert!(script.contains(&format!("TO \"{user}\"")), "{script}");
    shared_server().ask(&script);
    shared_server().ask(&script);
    super::works(&his);
    his.run(&["setup"]).is(0, "", "");
    his.run(&["history", "k"]);
    assert!(!his.run(&["doctor"]).stdout.contains("user '"));
    store.sql(&format!("REVOKE UPDATE ON TABLE FROM {user}"));
    his.run(&["run", "k", "--", "true"]).says(77, &["permission denied", "'dlock setup --print'"]);
    assert!(his.run(&["doctor"]).stdout.contains("may not do all with table"));
    assert_eq!(his.run(&["status", "k"]).status.code(), Some(1), "one may look");
    store.sql(&format!("DROP OWNED BY {user}; DROP ROLE {user}"));
}

#[test]
fn the_first_of_many_who_come_at_once_makes_the_table() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_postgres();
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| store.run(&["run", "k", "--", "true"]).is(0, "", ""));
        }
    });
    assert_eq!(store.sql("SELECT record->'counters'->>'grants' FROM TABLE"), "12");
    store.run(&["setup"]).is(0, "", "");
}

#[test]
fn a_record_that_is_not_ours_or_newer_is_left_as_it_is() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_postgres();
    store.run(&["setup"]).is(0, "", "");
    for (record, words) in [
        (r#"{"layout": 99, "key": "k"}"#, "written by a newer version of dlock (layout 99)"),
        (r#"{"layout": 1}"#, "is not one of dlock's"),
        ("7", "is not one of dlock's"),
    ] {
        store.sql(&format!("DELETE FROM TABLE; INSERT INTO TABLE VALUES ('k', '{record}')"));
        store.run(&["run", "k", "--", "true"]).says(78, &[words]);
        store.run(&["status", "k"]).says(78, &[words]);
        assert_eq!(store.sql("SELECT record FROM TABLE"), record);
        store.run(&["run", "other", "--", "true"]).is(0, "", "");
    }
}

#[test]
fn a_table_kept_locked_by_somebody_else_is_told() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_own_postgres(Server::start(&[]));
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    thread::scope(|scope| {
        scope.spawn(|| store.sql("BEGIN; SELECT 1 FROM TABLE FOR UPDATE; SELECT pg_sleep(2.5); COMMIT"));
        wait_for("the lock", || {
            store.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(2.5)%'").as_str() > "1"
        });
        let run = finish(&mut store.dlock(&["--store-timeout", "1", "run", "k", "--", "true"]));
        run.says(69, &["another client keeps the key's row locked"]);
        // Whoever has more patience gets it.
        store.run(&["run", "k", "--", "true"]).is(0, "", "");
    });
}

#[test]
fn a_user_without_a_schema_is_told_what_to_do() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_postgres();
    store.run(&["setup"]).is(0, "", "");
    let user = user(&store);
    let schema = format!("s_{user}");
    store.sql(&format!("CREATE ROLE {user} LOGIN; CREATE SCHEMA {schema}; GRANT ALL ON TABLE, TABLE_life TO {user}"));
    let path_is = |path: &str| store.sql(&format!("ALTER ROLE {user} SET search_path = {path}"));
    let his = seen_by(&store, &user);
    for path in ["''", "nothing", &schema] {
        path_is(path);
        for args in [&["run", "k", "--", "true"][..], &["setup"]] {
            his.run(args).says(78, &["no schema for user", "'?prefix=SCHEMA.t", "search_path", "USAGE"]);
        }
        let report = his.run(&["doctor"]).stdout;
        assert!(report.contains("no schema for user") && !report.contains("dlock setup"), "{report}");
    }
    // One that is named is looked into, and what it takes is what is printed.
    let named = Store::new().at_url(&his.url().replace("prefix=", &format!("prefix={schema}.")));
    named.run(&["run", "k", "--", "true"]).says(77, &["permission denied for schema", "'dlock setup --print'"]);
    shared_server().ask(&named.run(&["setup", "--print"]).stdout);
    super::works(&named);
    // Of one that is not there an administrator is told, too.
    let nowhere = store.url().replace("prefix=", "prefix=nothing.");
    store.run(&["-S", &nowhere, "setup"]).says(78, &["it has no table 'nothing.t", "no schema 'nothing'"]);
    let report = store.run(&["-S", &nowhere, "doctor"]).stdout;
    assert!(report.contains("no schema for user"), "{report}");
    path_is("public");
    super::works(&his);
    store.sql(&format!("DROP SCHEMA {schema} CASCADE; DROP OWNED BY {user}; DROP ROLE {user}"));
}
