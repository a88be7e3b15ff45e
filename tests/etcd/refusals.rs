//! What a server refuses, and what is not as it must be: the right code and a clear line.

use serde_json::json;

use crate::support::etcd::client::encoded;
use crate::support::etcd::{ETCD, Server, on_both};
use crate::support::fake::Fake;
use crate::support::{Store, has};

#[test]
fn a_server_that_cannot_be_used_is_told_with_the_right_code() {
    if !has(ETCD) {
        return;
    }
    let store = Store::on_etcd(ETCD);
    let run = |url: &str| {
        let args = ["-S", url, "--store-timeout", "300ms", "run", "k", "--", "echo", "started"];
        let done = store.run(&args);
        assert_eq!(done.stdout, "");
        done
    };
    let url = store.url();
    run("etcd://127.0.0.1:1").says(69, &["etcd at 127.0.0.1:1: connection refused", "gave up after 300ms"]);
    run("etcd://127.0.0.1:1,127.0.0.2:1").says(69, &["connection refused", "gave up after 300ms"]);
    run(&url.replace("etcd:", "etcds:")).says(69, &["if it does not speak TLS", "'etcd:'"]);
    for (more, words) in [
        ("&prefix=a", "twice"),
        ("&nowhere=1", "no 'nowhere'"),
        ("&ca=f", "are for etcds://"),
        ("*", "'prefix' is"),
        ("#x", "'#'"),
    ] {
        run(&format!("{url}{more}")).says(78, &["this 'etcd:' URL is not good", words]);
    }
    run("etcd://h/x").says(78, &["nothing but '?'"]);
    run("etcds://h?cert=f").says(78, &["'cert' and 'key' need each other"]);
    run(&format!("{}&ca=/nowhere", url.replace("etcd:", "etcds:"))).says(78, &["/nowhere"]);
}

#[test]
fn what_is_no_etcd_at_all_is_told() {
    let store = Store::new();
    for (answer, words) in [
        (&b"+PONG\r\n"[..], "is not etcd's"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "no gateway"),
        (b"HTTP/1.1 503 Away\r\nContent-Length: 5\r\n\r\n\x1b[1mx", "status 503"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]", "is not etcd's"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "is not etcd's"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "is not etcd's"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "did not answer in time"),
    ] {
        let url = format!("etcd://{}", Fake::answering(answer).address());
        let done = store.run(&["-S", &url, "--store-timeout", "300ms", "run", "k", "--", "echo", "started"]);
        assert!([69, 78].contains(&done.status.code().expect("it ends")) && done.stdout.is_empty(), "{done:#?}");
        done.says(if words == "no gateway" { 78 } else { 69 }, &[words]);
        assert!(!done.stderr.contains('\x1b'), "{done:#?}");
    }
    let endless = Fake::without_end(b"HTTP/1.1 200 OK\r\n\r\n", b"[");
    let url = format!("etcd://{}", endless.address());
    store.run(&["-S", &url, "--store-timeout", "2", "run", "k", "--", "true"]).says(69, &["etcd at"]);
}

#[test]
fn a_record_that_is_none_is_told_and_hides_no_other() {
    if !has(ETCD) {
        return;
    }
    let store = Store::on_etcd(ETCD);
    let holder = store.hold("good");
    for (key, text) in [("bad", "{}"), ("new", r#"{"layout":99}"#)] {
        store.etcd().put(key, text);
    }
    store.run(&["run", "bad", "--", "true"]).says(78, &["the record of 'bad'", "is not one of dlock's"]);
    store.run(&["run", "new", "--", "true"]).says(78, &["newer version of dlock (layout 99)"]);
    let all = store.run(&["status"]);
    assert!(all.stdout.contains("good"), "{all:#?}");
    let all = store.run(&["status", "--all"]);
    assert!(all.stdout.contains("good") && all.stderr.contains("'bad'"), "{all:#?}");
    holder.finish().is(0, "", "");
}

#[test]
fn a_key_that_was_deleted_by_hand_is_lost_to_its_holder_and_its_fence_rises() {
    on_both(|program| {
        let store = Store::on_etcd(program);
        let fence = || {
            let done = store.run(&["run", "k", "--", "sh", "-c", "echo $DLOCK_FENCE"]);
            done.stdout.trim().parse::<u64>().unwrap_or_else(|_| panic!("{done:#?}"))
        };
        let before = fence();
        let holder = store.holding("k", &["--ttl", "3"], "echo ready; sleep 60");
        store.etcd().etcdctl(&["del", &store.etcd().record("k")]);
        holder.finish().says(76, &["lost 'k'", "does not know this lease any more"]);
        assert!(before < fence());
    });
}

#[test]
fn a_database_that_is_full_starts_nothing_and_ends_nothing() {
    on_both(|program| {
        let store = Store::on_own_etcd(Server::start(program, &["--quota-backend-bytes", "2000000"]));
        let mut holder = store.holding("k", &["--ttl", "3"], "echo ready; cat >/dev/null; exit 7");
        let host = store.etcd().host().to_owned();
        let put = json!({ "key": encoded("filling"), "value": encoded(&"x".repeat(200_000)) });
        let mut refused = None;
        for _ in 0..30 {
            let answer = crate::support::etcd::client::try_ask(&host, "kv/put", &put).expect("it answers");
            refused = refused.or_else(|| answer["error"].as_str().map(str::to_owned));
        }
        assert!(refused.is_some_and(|words| words.contains("space exceeded")));
        let run = ["run", "--store-timeout", "1", "other", "--", "echo", "started"];
        store.run(&run).says(69, &["its database is full", "space exceeded"]);
        // For longer than its lease.
        let start = std::time::Instant::now();
        crate::support::wait_for("more than a lease", || start.elapsed() > std::time::Duration::from_secs(4));
        assert!(holder.child.try_wait().expect("it is ours").is_none(), "it holds on");
        let done = holder.finish();
        assert_eq!(done.status.code(), Some(7), "{done:#?}");
        // As its documentation has it.
        let last = crate::support::etcd::client::ask(&host, "kv/range", &json!({ "key": "eA==" }));
        let revision = last["header"]["revision"].as_str().expect("a number").to_owned();
        for words in [&["compact", &revision][..], &["defrag"], &["alarm", "disarm"]] {
            store.etcd().etcdctl(words);
        }
        store.run(&run).is(0, "started\n", "");
        store.run(&["run", "k", "-w", "10", "--", "echo", "in"]).is(0, "in\n", "");
    });
}
