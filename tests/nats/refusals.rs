//! What a server refuses, and what is not as it must be: the right code and a clear line.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use serde_json::json;

use crate::support::address::new_host;
use crate::support::nats::{NATS, Server, on_both};
use crate::support::{Store, has};

#[test]
fn a_server_that_cannot_be_used_is_told_with_the_right_code() {
    if !has(NATS) {
        return;
    }
    let store = Store::on_nats(NATS);
    let run = |url: &str| {
        let args = ["-S", url, "--store-timeout", "100ms", "run", "k", "--", "echo", "started"];
        let done = store.run(&args);
        assert_eq!(done.stdout, "");
        done
    };
    let url = store.url();
    run("nats://127.0.0.1:1").says(69, &["nats at 127.0.0.1:1: connection refused", "gave up after 100ms"]);
    run(&url.replace("nats:", "nats+tls:")).says(77, &["it does not speak TLS"]);
    run(&format!("{url}&replicas=2")).says(78, &["'replicas' is 1, 3 or 5"]);
    run(&format!("{url}&replicas=3")).says(78, &["replicas > 1 not supported", "?replicas="]);
    run(&format!("{url}&creds=/nowhere")).says(78, &["cannot read '/nowhere'"]);
    run(&format!("{url}&domain=nowhere")).says(69, &["nobody answers for domain 'nowhere'"]);
    // What is no such server at all.
    let other = TcpListener::bind((&*new_host(), 6390)).expect("an address");
    let address = other.local_addr().expect("it has one");
    thread::scope(|scope| {
        scope.spawn(|| {
            for mut client in other.incoming().flatten().take(2) {
                let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            }
        });
        run(&format!("nats://{address}")).says(69, &["is not the protocol of NATS"]);
        let _ = TcpStream::connect(address);
        let _ = TcpStream::connect(address);
    });
}

#[test]
fn what_somebody_on_the_way_says_before_tls_is_not_taken_for_the_servers_word() {
    let server = TcpListener::bind((&*new_host(), 6390)).expect("an address");
    let url = format!("nats+tls://{}", server.local_addr().expect("it has one"));
    let greeting = json!({ "version": "2.15.0", "headers": true, "jetstream": true, "tls_required": true });
    let (hear, heard) = mpsc::channel();
    thread::spawn(move || {
        for mut client in server.incoming().flatten() {
            let _ = client.write_all(format!("INFO {greeting}\r\nPONG\r\nPONG\r\n").as_bytes());
            let _ = hear.send(client.read(&mut [0]).unwrap_or_default());
        }
    });
    let args = ["-S", &url, "--store-timeout", "100ms", "run", "k", "--", "echo", "started"];
    Store::new().run(&args).says(69, &["is not the protocol of NATS"]);
    assert_eq!(heard.recv(), Ok(0), "it is left without a word");
}

#[test]
fn a_server_without_jetstream_is_told() {
    on_both(|program| {
        let store = Store::on_own_nats(Server::start(program, "# no jetstream"));
        for args in [&["run", "k", "--", "true"][..], &["status"], &["setup"]] {
            store.run(args).says(78, &["it has no JetStream for us"]);
        }
    });
}

#[test]
fn a_bucket_that_would_lose_locks_is_refused() {
    on_both(|program| {
        for (change, words) in [
            (json!({ "storage": "memory" }), "it keeps locks in memory, and a restart forgets them"),
            (json!({ "max_bytes": 1_000_000, "discard": "old" }), "'discard' must be 'new'"),
            (json!({ "max_age": 60_000_000_000_u64 }), "'max_age' (ttl) must be 0"),
            (json!({ "max_msgs_per_subject": 5 }), "history (max_msgs_per_subject) is 5"),
        ] {
            let store = Store::on_nats(program);
            let stream = store.bucket().stream();
            let bucket = stream.trim_start_matches("KV_");
            let mut settings = json!({ "name": stream, "subjects": [format!("$KV.{bucket}.>")], "storage": "file",
                "max_msgs_per_subject": 1, "discard": "new", "allow_rollup_hdrs": true });
            change.as_object().expect("settings").iter().for_each(|(name, value)| settings[name] = value.clone());
            let made = store.bucket().client().api(&format!("STREAM.CREATE.{stream}"), &settings);
            assert!(made["error"].is_null(), "{made}");
            for args in [&["run", "k", "--", "true"][..], &["status"], &["setup"]] {
                store.run(args).says(78, &[&format!("bucket '{bucket}': "), words]);
            }
        }
    });
}

#[test]
fn a_bucket_in_memory_is_good_if_it_is_asked_for() {
    if !has(NATS) {
        return;
    }
    let store = Store::on_nats(NATS);
    let url = format!("{}&storage=memory", store.url());
    store.run(&["-S", &url, "run", "k", "--", "echo", "in"]).is(0, "in\n", "");
    assert_eq!(store.run(&["-S", &url, "fence", "k"]).status.code(), Some(0));
    store.run(&["run", "k", "--", "true"]).says(78, &["it keeps locks in memory"]);
}

#[test]
fn a_record_that_is_none_is_told_and_hides_no_other() {
    if !has(NATS) {
        return;
    }
    let store = Store::on_nats(NATS);
    let holder = store.hold("good");
    let bucket = store.bucket();
    let prefix = bucket.stream().trim_start_matches("KV_").to_owned();
    for (key, text) in [("bad", "{}"), ("new", r#"{"layout":99}"#)] {
        bucket.client().publish(&format!("$KV.{prefix}.key.{key}"), "", text.as_bytes());
    }
    store.run(&["run", "bad", "--", "true"]).says(78, &["the record of 'bad'", "is not one of dlock's"]);
    store.run(&["run", "new", "--", "true"]).says(78, &["newer version of dlock (layout 99)"]);
    let all = store.run(&["status"]);
    assert!(all.stdout.contains("good") && all.stderr.contains("'bad'"), "{all:#?}");
    holder.finish().is(0, "", "");
}

#[test]
fn a_key_that_was_deleted_or_purged_by_hand_is_lost_to_its_holder_and_its_fence_rises() {
    on_both(|program| {
        let store = Store::on_nats(program);
        let fence = || {
            let done = store.run(&["run", "k", "--", "sh", "-c", "echo $DLOCK_FENCE"]);
            done.stdout.trim().parse::<u64>().unwrap_or_else(|_| panic!("{done:#?}"))
        };
        let before = fence();
        let holder = store.holding("k", &["--ttl", "3"], "echo ready; sleep 60");
        store.bucket().delete("key.k");
        holder.finish().says(76, &["lost 'k'", "does not know this lease any more"]);
        let after = fence();
        assert!(before < after);
        let purge = format!("STREAM.PURGE.{}", store.bucket().stream());
        assert_eq!(store.bucket().client().api(&purge, &json!({}))["success"], true);
        assert!(after < fence());
    });
}

#[test]
fn more_who_wait_than_a_message_holds_are_refused_and_those_who_hold_go_on() {
    if !has(NATS) {
        return;
    }
    let store = Store::on_own_nats(Server::start(NATS, "max_payload: 40KB"));
    let holder = store.holding("k", &["--ttl", "3"], "echo ready; cat >/dev/null; exit 7");
    let note = "n".repeat(900);
    let mut waiters = Vec::new();
    let refused = loop {
        let mut run = store.dlock(&["run", "k", "-w", "60", "--note", &note, "--", "true"]);
        let waiter = crate::support::Running::start(&mut run);
        let pid = waiter.pid().as_raw();
        let mut is_over = false;
        crate::support::wait_for("it to wait or to end", || {
            is_over = !crate::support::is_alive(pid);
            is_over || store.queue("k").contains(&pid)
        });
        if is_over {
            break waiter.finish();
        }
        waiters.push(waiter);
        assert!(waiters.len() < 40);
    };
    refused.says(78, &["so many wait that the record has", "'max_payload'"]);
    let before = super::lease_end(&store);
    crate::support::wait_for("a beat", || super::lease_end(&store) > before);
    holder.finish().is(7, "", "");
    for waiter in waiters {
        waiter.finish().is(0, "", "");
    }
}

#[test]
fn a_server_that_is_full_starts_nothing_and_ends_what_runs_in_time() {
    on_both(|program| {
        let store = Store::new();
        let settings = format!("jetstream {{ store_dir: \"{}\", max_file_store: 40KB }}", store.path("js").display());
        let store = Store::on_own_nats(Server::start(program, &settings));
        let tree = store.holding_tree(&["--ttl", "4", "-k", "0.5"]);
        let full = "its JetStream is full; raise its 'max_file_store'";
        let refused = (0..200).find_map(|number| {
            let key = number.to_string();
            let done = store.run(&["run", "--store-timeout", "300ms", &key, "--", "true"]);
            (!done.status.success()).then_some(done)
        });
        refused.expect("it has no room for so many").says(69, &["insufficient resources", full]);
        store.await_end_of_tree();
        tree.is_gone();
        tree.dlock.finish().says(76, &["lost 'k': no answer for", full]);
    });
}
