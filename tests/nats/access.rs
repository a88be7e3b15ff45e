//! How one is let in, and what a user needs: what `dlock setup --print` says, and no more.

use std::fs;

use serde_json::{Value, json};

use crate::doctor::{finds, read};
use crate::support::address::new_host;
use crate::support::certificates::certify;
use crate::support::nats::operator::Operator;
use crate::support::nats::{NATS, Server, on_both};
use crate::support::{Store, has};

/// The rights that are printed, as the server's configuration has them.
fn printed(store: &Store) -> String {
    let script = store.run(&["setup", "--print"]).stdout;
    let lines = script.lines().filter_map(|line| line.strip_prefix("#   "));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_user_with_the_rights_that_are_printed_can_do_all_and_no_bucket() {
    let readme = include_str!("../../README.md");
    for line in printed(&Store::new().at_url("nats://h")).lines() {
        assert!(readme.contains(&format!("\n{line}\n")), "{line}");
    }
    on_both(|program| {
        let rights = printed(&Store::new().at_url("nats://h"));
        let users = format!(
            "authorization {{ users: [ {{ user: admin, password: s3cret }}, {{ user: locks, password: t0p, {rights} }}, \
             {{ user: nobody, password: n0, permissions: {{ publish: [\"x\"], subscribe: [\"_INBOX.>\"] }} }} ] }}"
        );
        let server = Server::start(program, &users);
        let at = |login: &str| Store::new().at_url(&server.url().replace("//", &format!("//{login}@")));
        let (admin, locks) = (at("admin:s3cret"), at("locks:t0p"));
        locks.run(&["run", "k", "--", "true"]).says(78, &["no bucket 'dlock', and we may not make it", "dlock setup"]);
        let report = locks.run(&["doctor", "--json"]);
        finds(&report, "error", &["no bucket 'dlock' yet, and without one it tells us no time"]);
        assert_eq!(report.status.code(), Some(78));
        assert_eq!(read(&admin.run(&["doctor", "--json"]))["error"], Value::Null);
        admin.run(&["setup"]).is(0, "", "");
        let holder = locks.holding("k", &["--ttl", "3"], "echo ready; sleep 60");
        let waiter = locks.waiting("k", &["-w", "60"], "echo in");
        assert_eq!(locks.run(&["status"]).status.code(), Some(0));
        locks.run(&["history", "k"]);
        locks.run(&["unlock", "k", "--yes"]).is(0, "", "");
        assert_eq!(holder.finish().status.code(), Some(76));
        waiter.finish().is(0, "in\n", "");
        let code = locks.run(&["doctor"]).status.code();
        assert!(code <= Some(1), "{code:?}");
        at("nobody:n0").run(&["run", "k", "--", "true"]).says(77, &["Permissions Violation", "'dlock setup --print'"]);
        for login in ["locks:wrong", "t0ken"] {
            let done = at(login).run(&["run", "k", "--", "true"]);
            done.says(77, &["Authorization Violation"]);
            assert!(!done.stderr.contains(login), "{done:#?}");
        }
    });
}

#[test]
fn a_token_an_nkey_and_a_certificate_let_one_in() {
    if !has(NATS) {
        return;
    }
    let token = Server::start(NATS, "authorization { token: t0ken }");
    let at = |server: &Server, login: &str| Store::new().at_url(&server.url().replace("//", &format!("//{login}")));
    at(&token, "t0ken@").run(&["run", "k", "--", "echo", "in"]).is(0, "in\n", "");
    at(&token, "").run(&["run", "k", "--", "echo", "in"]).says(77, &["Authorization Violation"]);
    // The example of the documentation of nkeys.
    let public = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
    let nkey = Server::start(NATS, &format!("authorization {{ users: [ {{ nkey: {public} }} ] }}"));
    let store = Store::new();
    fs::write(store.path("seed"), "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY\n").expect("a file");
    let url = format!("{}?nkey={}", nkey.url(), store.path("seed").display());
    store.run(&["-S", &url, "run", "k", "--", "echo", "in"]).is(0, "in\n", "");
    at(&nkey, "").run(&["run", "k", "--", "echo", "in"]).says(77, &["Authorization Violation"]);
    // A pipe that nobody writes to would be waited for without an end.
    nix::unistd::mkfifo(&store.path("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
    let piped = format!("{}?nkey={}", nkey.url(), store.path("pipe").display());
    store.run(&["-S", &piped, "run", "k", "--", "echo", "in"]).says(78, &["it is no file"]);
}

#[test]
fn tls_is_spoken_with_whom_we_trust_and_a_certificate_may_be_the_login() {
    on_both(|program| {
        let store = Store::new();
        let host = new_host();
        certify(store.dir.path(), &format!("IP:{host}"));
        let file = |name: &str| store.path(name).display().to_string();
        let tls = format!(
            "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: true }}",
            file("server.pem"),
            file("server.key"),
            file("ca.pem")
        );
        let server = Server::start_at(program, &host, &tls);
        let url = |ca: &str| {
            let url = server.url().replace("nats:", "nats+tls:");
            format!("{url}?ca={}&cert={}&key={}", file(ca), file("client.pem"), file("client.key"))
        };
        let run = |url: &str| store.run(&["-S", url, "--store-timeout", "1", "run", "k", "--", "echo", "in"]);
        run(&url("ca.pem")).is(0, "in\n", "");
        run(&url("other.pem")).says(77, &["by nobody whom we trust", "?ca=FILE"]);
        let done = run(&format!("{}?ca={}", server.url().replace("nats:", "nats+tls:"), file("ca.pem")));
        // An old one calls a certificate that is not there a bad one.
        done.says(77, &[if program == NATS { "wants to see a certificate of ours" } else { "wants to see one" }]);
        run(&server.url()).says(77, &["by nobody whom we trust"]);
    });
}

#[test]
fn tls_begins_before_the_server_has_said_anything_where_it_wants_that() {
    if !has(NATS) {
        return;
    }
    let store = Store::new();
    let host = new_host();
    certify(store.dir.path(), &format!("IP:{host}"));
    let file = |name: &str| store.path(name).display().to_string();
    let server = |host: &str, more: &str| {
        let files = format!("cert_file: \"{}\", key_file: \"{}\"", file("server.pem"), file("server.key"));
        Server::start_at(NATS, host, &format!("tls {{ {files}, timeout: 1, {more} }}"))
    };
    let run = |server: &Server, more: &str| {
        let url = format!("{}?ca={}{more}", server.url().replace("nats:", "nats+tls:"), file("ca.pem"));
        store.run(&["-S", &url, "--store-timeout", "1", "run", "k", "--", "echo", "in"])
    };
    let mut first = server(&host, "handshake_first: true");
    run(&first, "&tls_first=true").is(0, "in\n", "");
    run(&first, "").says(69, &["it says nothing before TLS begins", "'?tls_first=true'"]);
    first.kill();
    let second = server(&host, "handshake_first: false");
    run(&second, "").is(0, "in\n", "");
    run(&second, "&tls_first=true").says(78, &["it does not begin with TLS", "'?tls_first=true'"]);
}

#[test]
fn a_file_of_nsc_lets_one_in_where_an_operator_vouches_for_accounts() {
    on_both(|program| {
        let operator = Operator::new();
        let server = Server::start(program, &operator.settings());
        let store = Store::new();
        let url = |name: &str, creds: &str| {
            fs::write(store.path(name), creds).expect("a file");
            format!("{}?creds={}", server.url(), store.path(name).display())
        };
        let run = |url: &str| store.run(&["-S", url, "--store-timeout", "1", "run", "k", "--", "echo", "in"]);
        // Who may no more than is printed.
        let script = store.run(&["-S", &server.url(), "setup", "--print"]).stdout;
        let allowed = |what: &str| {
            let line = script.lines().find_map(|line| line.strip_prefix(&format!("#     {what}: "))).expect("a line");
            json!({ "allow": serde_json::from_str::<serde_json::Value>(line).expect("a list") })
        };
        let rights = json!({ "pub": allowed("publish"), "sub": allowed("subscribe") });
        let locks = url("locks", &operator.creds(&rights, None));
        run(&locks).says(78, &["no bucket 'dlock', and we may not make it"]);
        run(&url("all", &operator.creds(&json!({}), None))).is(0, "in\n", "");
        run(&locks).is(0, "in\n", "");
        let locks = Store::new().at_url(&locks);
        let holder = locks.hold("k");
        let waiter = locks.waiting("k", &["-w", "60"], "echo next");
        holder.finish().is(0, "", "");
        waiter.finish().is(0, "next\n", "");
        // Whose time is over, and for whom nobody vouches.
        let late = operator.creds(&json!({}), Some(1000));
        let good = operator.creds(&json!({}), None);
        let forged = good.replacen("eyJ", "eyJ0", 1);
        for bad in [&late, &forged] {
            let done = run(&url("bad", bad));
            done.says(77, &["Authorization Violation"]);
        }
        run(&url("none", "nothing")).says(78, &["it has no seed"]);
        run(&server.url()).says(77, &["Authorization Violation"]);
    });
}

#[test]
fn the_domain_says_whose_jetstream_it_is_behind_a_leaf_node() {
    on_both(|program| {
        let (host, dir) = (new_host(), Store::new());
        let jetstream = |domain: &str| {
            let files = dir.path(domain).display().to_string();
            format!("jetstream {{ store_dir: \"{files}\", domain: {domain}, max_file: 1G }}")
        };
        let hub = format!("{}\nleafnodes {{ listen: \"{host}:7422\" }}", jetstream("hub"));
        let hub = Server::start_at(program, &host, &hub);
        let remote = format!("leafnodes {{ remotes: [ {{ url: \"nats-leaf://{host}:7422\" }} ] }}");
        let leaf = Server::start(program, &format!("{}\n{remote}", jetstream("leaf")));
        let far = Store::new().at_url(&format!("{}?domain=hub", leaf.url()));
        let near = Store::new().at_url(&hub.url());
        // Once the two have found each other.
        crate::support::wait_for("a way to the hub", || far.run(&["run", "k", "--", "true"]).status.success());
        let holder = far.hold("k");
        near.run(&["run", "k", "-n", "--", "true"]).says(75, &["'k' is held"]);
        let waiter = near.waiting("k", &["-w", "60"], "echo in");
        holder.finish().is(0, "", "");
        waiter.finish().is(0, "in\n", "");
        let holder = near.holding("k", &["--ttl", "3"], "echo ready; sleep 60");
        let waiter = far.waiting("k", &["-w", "60"], "echo in");
        far.run(&["unlock", "k", "--yes"]).is(0, "", "");
        assert_eq!(holder.finish().status.code(), Some(76));
        waiter.finish().is(0, "in\n", "");
        // The leaf has one of its own.
        let own = Store::new().at_url(&leaf.url());
        own.run(&["fence", "k"]).is(0, "0\n", "");
        let nowhere = format!("{}?domain=none", leaf.url());
        own.run(&["-S", &nowhere, "--store-timeout", "1", "run", "k", "--", "true"])
            .says(69, &["nobody answers for domain 'none'"]);
    });
}
