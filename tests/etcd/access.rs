//! How one is let in, and what a user needs: what `dlock setup --print` says, and no more.

use std::fs;

use crate::support::address::new_host;
use crate::support::certificates::certify;
use crate::support::etcd::{ETCD, Server, on_both};
use crate::support::{Done, Store, command, finish, has};

/// The commands of `dlock setup --print`, as `root` runs them on a server.
fn set_up(server: &Server) {
    let script = Store::new().at_url("etcd://h").run(&["setup", "--print"]).stdout;
    for line in script.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').skip(1).collect();
        server.must(&[&["--user", "root:s3cret"], &words[..]].concat());
    }
    for words in [
        &["user", "add", "locks:t0p"][..],
        &["user", "grant-role", "locks", "dlock"],
        &["user", "add", "nobody:n0"],
        &["role", "add", "reader"],
        &["role", "grant-permission", "reader", "read", "--prefix=true", "dlock/"],
        &["user", "add", "reader:r0"],
        &["user", "grant-role", "reader", "reader"],
    ] {
        server.must(&[&["--user", "root:s3cret"], words].concat());
    }
}

/// A store on a server, as this user.
fn of(server: &Server, login: &str) -> Store {
    Store::new().at_url(&server.url().replace("//", &format!("//{login}@")))
}

#[test]
fn a_user_with_the_rights_that_are_printed_can_do_all() {
    on_both(|program| {
        let server = Server::start(program, &[]);
        server.enable_auth("s3cret");
        set_up(&server);
        let locks = of(&server, "locks:t0p");
        let holder = locks.holding("k", &[], "echo ready; sleep 60");
        let waiter = locks.waiting("k", &["-w", "60"], "echo in");
        assert_eq!(locks.run(&["status"]).status.code(), Some(0));
        locks.run(&["history", "k"]);
        locks.run(&["unlock", "k", "--yes"]).is(0, "", "");
        assert_eq!(holder.finish().status.code(), Some(76));
        waiter.finish().is(0, "in\n", "");
        let done = locks.run(&["doctor"]);
        assert!(done.status.code() <= Some(1), "{done:#?}");
        locks.run(&["setup"]).is(0, "", "");
    });
}

#[test]
fn whoever_may_not_is_told_and_no_command_is_started() {
    on_both(|program| {
        let server = Server::start(program, &[]);
        server.enable_auth("s3cret");
        set_up(&server);
        let run = |login: &str| {
            let done = of(&server, login).run(&["run", "k", "--", "echo", "started"]);
            assert!(done.stdout.is_empty() && !done.stderr.contains(login), "{done:#?}");
            done
        };
        run("locks:wrong").says(77, &["authentication failed"]);
        run("stranger:wrong").says(77, &["authentication failed"]);
        run("nobody:n0").says(77, &["permission denied", "'dlock/'", "'dlock setup --print'"]);
        run("reader:r0").says(77, &["permission denied", "'dlock/'", "'dlock setup --print'"]);
        let without = Store::new().at_url(&server.url());
        without.run(&["run", "k", "--", "echo", "started"]).says(77, &["it wants to know who we are"]);
        // Another prefix is another store.
        let other = Store::new().at_url(&format!("{}?prefix=other", of(&server, "locks:t0p").url()));
        other.run(&["run", "k", "--", "echo", "started"]).says(77, &["permission denied", "'other/'"]);
        // Who only looks may only look.
        of(&server, "locks:t0p").run(&["run", "k", "--", "true"]).is(0, "", "");
        let reader = of(&server, "reader:r0");
        assert_eq!(reader.run(&["history", "k"]).status.code(), Some(0));
    });
}

#[test]
fn a_login_where_nobody_logs_in_does_no_harm() {
    on_both(|program| {
        let server = Server::start(program, &[]);
        of(&server, "locks:t0p").run(&["run", "k", "--", "echo", "in"]).is(0, "in\n", "");
    });
}

/// A server whose word for who somebody is lasts for so many seconds: version 3.4 can do that with signed ones alone.
fn forgetful(program: &'static str, seconds: u32, store: &Store) -> Server {
    if program == ETCD {
        return Server::start(program, &["--auth-token-ttl", &seconds.to_string()]);
    }
    signing(program, seconds, store)
}

/// A server that signs its word for who somebody is.
fn signing(program: &'static str, seconds: u32, store: &Store) -> Server {
    let [private, public] = ["private.pem", "public.pem"].map(|name| store.path(name).display().to_string());
    for words in [&["genrsa", "-out", &private, "2048"][..], &["rsa", "-in", &private, "-pubout", "-out", &public]] {
        let done = finish(command("openssl").args(words));
        assert!(done.status.success(), "{done:#?}");
    }
    let token = format!("jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl={seconds}s");
    Server::start(program, &["--auth-token", &token])
}

#[test]
fn whoever_is_forgotten_logs_in_again_and_keeps_the_key_and_his_place() {
    if !has("openssl") {
        return;
    }
    on_both(|program| {
        let store = Store::new();
        let server = forgetful(program, 1, &store);
        server.enable_auth("s3cret");
        set_up(&server);
        let locks = of(&server, "locks:t0p");
        // Beats are more than the time apart for which one is remembered.
        let holder = locks.holding("k", &["--ttl", "6", "-k", "0.5"], "echo ready; sleep 8; exit 7");
        let waiter = locks.waiting("k", &["-w", "60"], "echo in");
        holder.finish().is(7, "", "");
        waiter.finish().is(0, "in\n", "");
        let holder = locks.holding("k", &["--ttl", "6"], "echo ready; sleep 60");
        std::thread::sleep(std::time::Duration::from_secs(3));
        let start = std::time::Instant::now();
        locks.run(&["unlock", "k", "--yes"]).is(0, "", "");
        assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
        holder.finish().says(76, &["unlocked by"]);
    });
}

#[test]
fn users_that_are_made_or_changed_while_a_key_is_held_cost_nobody_his_lock() {
    if !has("openssl") {
        return;
    }
    on_both(|program| {
        // Both versions, with words for who somebody is that are signed: these are of one state of all users.
        let store = Store::new();
        let server = signing(program, 60, &store);
        let locks = of(&server, "locks:t0p");
        // Nobody logs in yet.
        let holder = locks.holding("k", &["--ttl", "10", "-k", "0.5"], "echo ready; sleep 11; exit 7");
        let waiter = locks.waiting("k", &["-w", "60"], "echo in");
        server.enable_auth("s3cret");
        set_up(&server);
        std::thread::sleep(std::time::Duration::from_secs(3));
        server.etcdctl(&["--user", "root:s3cret", "user", "add", "another:one"]);
        holder.finish().is(7, "", "");
        waiter.finish().is(0, "in\n", "");
    });
}

#[test]
fn tls_is_spoken_with_whom_we_trust_and_a_certificate_is_shown_where_one_is_wanted() {
    if !has("openssl") {
        return;
    }
    on_both(|program| {
        let store = Store::new();
        let host = new_host();
        certify(store.dir.path(), &format!("IP:{host}"));
        let file = |name: &str| store.path(name).display().to_string();
        let [cert, key, ca] = ["server.pem", "server.key", "ca.pem"].map(file);
        let tls = ["--cert-file", &cert, "--key-file", &key, "--trusted-ca-file", &ca];
        let url = |server: &Server, ca: &str, more: &str| {
            format!("{}?ca={}{more}", server.url().replace("etcd:", "etcds:"), file(ca))
        };
        let run =
            |url: &str| -> Done { store.run(&["-S", url, "--store-timeout", "1", "run", "k", "--", "echo", "in"]) };
        let identity = format!("&cert={}&key={}", file("client.pem"), file("client.key"));
        let strict = Server::start_at(program, &host, &[&tls[..], &["--client-cert-auth"]].concat());
        run(&url(&strict, "ca.pem", &identity)).is(0, "in\n", "");
        run(&url(&strict, "other.pem", &identity)).says(77, &["by nobody whom we trust", "?ca=FILE"]);
        let done = run(&url(&strict, "ca.pem", ""));
        assert_eq!((done.status.code(), &*done.stdout), (Some(77), ""), "{done:#?}");
        run(&strict.url()).says(69, &["it closed the connection"]);
        drop(strict);
        let open = Server::start_at(program, &host, &tls[..4]);
        run(&url(&open, "ca.pem", "")).is(0, "in\n", "");
        // One who holds and one who waits, over TLS.
        let far = Store::new().at_url(&url(&open, "ca.pem", ""));
        let holder = far.hold("k");
        let waiter = far.waiting("k", &["-w", "60"], "echo in");
        holder.finish().is(0, "", "");
        waiter.finish().is(0, "in\n", "");
        fs::remove_file(store.path("ca.pem")).expect("it is there");
        run(&url(&open, "ca.pem", "")).says(78, &["ca.pem"]);
    });
}
