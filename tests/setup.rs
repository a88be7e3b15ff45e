//! `dlock setup`: a store is ready after it, and it says little.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Store, on_every_store};

on_every_store![setup_is_quiet_and_can_be_done_again, what_is_to_be_run_by_hand_is_printed_and_nothing_else_is_done];

fn setup_is_quiet_and_can_be_done_again(store: &Store) {
    store.run(&["setup"]).is(0, "", "");
    let holder = store.hold("k");
    let says = if has_something_to_make(store) { "is ready" } else { "needs no setup" };
    store.run(&["setup", "-v"]).says(0, &[says]);
    holder.finish().is(0, "", "");
}

/// Whether there is something to be made before the first lock.
fn has_something_to_make(store: &Store) -> bool {
    ["redis+ring", "postgres", "nats"].iter().any(|kind| store.url().starts_with(kind))
}

fn what_is_to_be_run_by_hand_is_printed_and_nothing_else_is_done(store: &Store) {
    let done = store.run(&["setup", "--print"]);
    assert!(store.is_untouched());
    if store.url().starts_with("postgres") {
        assert!(done.stdout.contains("CREATE TABLE IF NOT EXISTS"), "{done:#?}");
        return done.is(0, &done.stdout, "");
    }
    if store.url().starts_with("nats") {
        assert!(done.stdout.contains("nats stream add KV_"), "{done:#?}");
        return done.is(0, &done.stdout, "");
    }
    if store.url().starts_with("etcd") {
        assert!(done.stdout.contains("etcdctl role grant-permission dlock readwrite"), "{done:#?}");
        return done.is(0, &done.stdout, "");
    }
    assert_eq!(done.stdout, "");
    done.says(0, &["nothing is to be run by hand for ", "'dlock setup' does"]);
    store.run(&["setup", "--print", "-q"]).is(0, "", "");
    assert!(store.is_untouched());
}

#[test]
fn a_store_that_cannot_be_used_cannot_be_set_up() {
    let store = Store::new();
    std::fs::create_dir(store.path("locks")).expect("a directory");
    std::fs::set_permissions(store.path("locks"), PermissionsExt::from_mode(0o777)).expect("it is ours");
    store.run(&["setup"]).says(73, &["locks", "anybody may write"]);
    #[cfg(feature = "redis")]
    {
        let away = ["-S", "redis://127.0.0.1:1", "--store-timeout", "100ms", "setup"];
        store.run(&away).says(69, &["redis at 127.0.0.1:1: connection refused", "gave up after 100ms"]);
        store.run(&[&away[..], &["--print"]].concat()).says(0, &["redis at 127.0.0.1:1"]);
    }
}
