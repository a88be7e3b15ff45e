//! Others in the same database who are in the way: locks taken in another order, transactions that cannot be put in line,
//! settings of a session.

use std::thread;

use crate::support::postgres::{Server, has_postgres, program, shared_server};
use crate::support::{Running, Store, command, wait_for};

use crate::support::postgres::proxy::{Fate, Proxy};

/// A session of somebody else, who types.
fn session(host: &str) -> Running {
    let psql = program("psql").expect("it comes with the server");
    let mut psql = command(psql.to_str().expect("UTF-8"));
    psql.args(["-XqAt", "-h", host, "-p", "6390", "-U", "postgres", "-d", "postgres"]);
    Running::start(&mut psql)
}

#[test]
fn a_deadlock_with_somebody_else_is_tried_again() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_own_postgres(Server::start(&["deadlock_timeout=20ms"]));
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    // A sign of life of nobody, which the next change removes.
    store.sql(&format!("INSERT INTO TABLE_life VALUES ('k', '{}', 0)", "0".repeat(32)));
    let proxy = Proxy::to(store.postgres());
    let far = Store::new().at_url(&proxy.url());
    let mut other = session(&store.postgres().host);
    other.write_line("BEGIN; SELECT 'has it' FROM dlock_life FOR UPDATE;");
    other.await_line("has it");
    proxy.next(0, Fate::HeldUp);
    let run = Running::start(&mut far.dlock(&["run", "-v", "k", "--", "echo", "in"]));
    wait_for("the record to be ours", || proxy.is_spent());
    // He wants the record, which we have, before we want the sign of life, which he has: so it is ours to give way.
    other.write_line("SET deadlock_timeout = '1min'; SELECT 'has both' FROM dlock FOR UPDATE;");
    wait_for("him to wait", || store.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1");
    proxy.let_go();
    other.await_line("has both");
    other.write_line("COMMIT;");
    other.finish();
    let done = run.finish();
    assert_eq!((done.status.code(), &*done.stdout), (Some(0), "in\n"), "{done:#?}");
    let log = std::fs::read_to_string(store.postgres().path("log")).expect("a log");
    assert!(log.contains("deadlock detected"), "{log}");
    assert_eq!(store.sql("SELECT count(*) FROM TABLE_life"), "0");
}

#[test]
fn a_transaction_that_cannot_be_put_in_line_is_tried_again() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_postgres();
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    // A sequence counts on when a transaction is undone.
    store.sql(
        "CREATE SEQUENCE TABLE_tries; \
         CREATE FUNCTION TABLE_fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF nextval('TABLE_tries') % 3 <> 0 THEN RAISE EXCEPTION 'no' USING ERRCODE = 'serialization_failure'; END IF; \
             RETURN NEW; END $$; \
         CREATE TRIGGER TABLE_t BEFORE UPDATE ON TABLE FOR EACH ROW EXECUTE FUNCTION TABLE_fail()",
    );
    store.run(&["run", "k", "--", "echo", "in"]).is(0, "in\n", "");
    // To take it and to give it back, with two failures before each.
    assert_eq!(store.sql("SELECT last_value FROM TABLE_tries"), "6");
}

#[test]
fn settings_of_a_session_change_nothing() {
    if !has_postgres() {
        return;
    }
    let options = "-c default_transaction_isolation=serializable -c default_transaction_read_only=on \
                   -c default_transaction_deferrable=on -c standard_conforming_strings=off -c DateStyle=German";
    let near = Store::on_postgres();
    let url = format!("{}&options={}", near.url(), options.replace(' ', "%20").replace('=', "%3D"));
    let store = Store::new().at_url(&url);
    near.run(&["setup"]).is(0, "", "");
    std::fs::write(store.path("n"), "0\n").expect("a file");
    let script = "read n <n; echo $((n + 1)) >n";
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..6 {
                    let mut run = store.dlock(&["run", "k", "--", "sh", "-c", script]);
                    crate::support::finish(run.current_dir(store.dir.path())).is(0, "", "");
                }
            });
        }
    });
    assert_eq!(std::fs::read_to_string(store.path("n")).expect("a file"), "36\n");
    assert_eq!(shared_server().ask("SHOW default_transaction_isolation"), "read committed");
}
