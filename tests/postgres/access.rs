//! How a server lets dlock in: passwords, where they may stand, TLS, certificates, sockets; and that a password is told to
//! nobody.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::support::postgres::proxy::Proxy;
use crate::support::postgres::{ADMIN, Pooler, Server, certify, has_pooler, has_postgres};
use crate::support::{Store, command, finish};

const SECRET: &str = "s3cr3t:@/W0rd";
const ENCODED: &str = "s3cr3t%3A%40%2FW0rd";

/// A server that wants a password of bob, a certificate of carol, and TLS of both; of dave a password without it.
fn strict() -> Server {
    let server = Server::start(&[]);
    certify(&server, &format!("DNS:localhost,IP:{}", server.host));
    server.ask(&format!(
        "SET password_encryption = 'scram-sha-256'; CREATE ROLE bob LOGIN PASSWORD '{SECRET}'; CREATE ROLE carol LOGIN; \
         CREATE ROLE dave LOGIN PASSWORD '{SECRET}'; SET password_encryption = 'md5'; \
         CREATE ROLE eve LOGIN PASSWORD '{SECRET}'; CREATE ROLE client LOGIN; \
         GRANT CREATE ON SCHEMA public TO bob"
    ));
    let rules = format!(
        "host all {ADMIN} all trust\nhostssl all bob all scram-sha-256\nhostssl all client all cert\n\
         hostnossl all dave all scram-sha-256\nhost all eve all md5\nlocal all all scram-sha-256\n"
    );
    fs::write(server.path("data/pg_hba.conf"), rules).expect("it is ours");
    let path = |name: &str| server.path(name).display().to_string();
    for (name, value) in [
        ("ssl_cert_file", path("server.pem")),
        ("ssl_key_file", path("server.key")),
        ("ssl_ca_file", path("ca.pem")),
        ("ssl", "on".into()),
    ] {
        server.ask(&format!("ALTER SYSTEM SET {name} = '{value}'"));
    }
    server.ask("SELECT pg_reload_conf()");
    crate::support::wait_for("TLS", || server.ask("SHOW ssl") == "on");
    server
}

#[test]
fn whoever_is_let_in_by_the_server_is_let_in() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_own_postgres(strict());
    store.run(&["setup"]).is(0, "", "");
    store.sql("GRANT ALL ON TABLE, TABLE_life TO PUBLIC");
    let server = store.postgres();
    let host = format!("{}:6390", server.host);
    let file = |name: &str| server.path(name).display().to_string();
    let [ca, other, cert, key] = ["ca.pem", "other.pem", "client.pem", "client.key"].map(file);
    let run = |url: &str| store.run(&["-S", url, "--store-timeout", "5s", "run", "k", "--", "echo", "in"]);
    let bob = format!("postgres://bob:{ENCODED}@{host}/postgres");
    for good in [
        bob.clone(),
        format!("{bob}?sslmode=require&channel_binding=require"),
        format!("{bob}?sslmode=verify-full&sslrootcert={ca}"),
        format!("{bob}?sslmode=verify-ca&sslrootcert={ca}&channel_binding=disable"),
        format!("{bob}?sslmode=allow"),
        format!("postgres://client@{host}/postgres?sslcert={cert}&sslkey={key}"),
        format!("postgres://dave:{ENCODED}@{host}/postgres?sslmode=prefer"),
        format!("postgres://eve:{ENCODED}@{host}/postgres"),
        format!("postgres://bob:{ENCODED}@/postgres?host={}&port=6390", server.path("").display()),
    ] {
        run(&good).is(0, "in\n", "");
    }
    for (bad, words) in [
        (format!("postgres://bob:wrong@{host}/postgres"), "password authentication failed for user"),
        (format!("postgres://bob@{host}/postgres"), "it wants a password for user 'bob'"),
        (format!("{bob}?sslmode=disable"), "no pg_hba.conf entry"),
        (format!("{bob}?sslmode=verify-full&sslrootcert={other}"), "by nobody whom we trust"),
        (format!("postgres://dave:{ENCODED}@{host}/postgres?channel_binding=require&sslmode=disable"), "cannot bind"),
        (format!("postgres://client@{host}/postgres"), "certificate"),
    ] {
        let done = run(&bad);
        done.says(77, &[words]);
        assert!(!done.stderr.contains("s3cr3t"), "{done:#?}");
    }
    // The certificate is for the server's address, and not for this one.
    let proxy = Proxy::to(server);
    let elsewhere = proxy.url().replace(&format!("{ADMIN}@"), &format!("bob:{ENCODED}@"));
    run(&format!("{elsewhere}?sslmode=verify-ca&sslrootcert={ca}")).is(0, "in\n", "");
    run(&format!("{elsewhere}?sslmode=verify-full&sslrootcert={ca}")).says(77, &["its certificate is not good"]);
    let status = store.run(&["-S", &bob, "status", "--json"]);
    assert!(!status.stdout.contains("s3cr3t"), "{status:#?}");
    // Where passwords may stand.
    let home = store.path("home");
    fs::create_dir(&home).expect("a directory");
    let passwords = home.join(".pgpass");
    let escaped = SECRET.replace(':', "\\:");
    fs::write(&passwords, format!("*:1:*:*:no\n{}:6390:postgres:bob:{escaped}\n", server.host)).expect("a file");
    let url = format!("postgres://bob@{host}/postgres");
    let mut from_home = store.dlock(&["run", "k", "--", "echo", "in"]);
    from_home.env("DLOCK_STORE", &url).env("HOME", &home);
    fs::set_permissions(&passwords, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let refused = finish(&mut from_home);
    assert_eq!(refused.status.code(), Some(77));
    assert!(refused.stderr.contains("others may read it"), "{refused:#?}");
    fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600)).expect("it is ours");
    finish(&mut from_home).is(0, "in\n", "");
    let mut from_variable = store.dlock(&["run", "k", "--", "echo", "in"]);
    finish(from_variable.env("DLOCK_STORE", &url).env("PGPASSWORD", SECRET)).is(0, "in\n", "");
}

#[test]
fn a_pooler_that_keeps_sessions_tells_of_changes() {
    if !has_postgres() || !has_pooler() {
        return;
    }
    let store = Store::on_postgres();
    let pooler = Pooler::before(crate::support::postgres::shared_server(), "session");
    let url = format!("{}?prefix={}", pooler.url(), store.prefix_of_tables());
    let through = Store::new().at_url(&url);
    super::works(&through);
    let told = |store: &Store| store.run(&["doctor", "--json"]).stdout.contains(r#""changes": "told""#);
    assert!(told(&store) && told(&through));
    assert!(!told(&Store::on_pooler()));
}

#[test]
fn a_table_may_stand_in_a_schema() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_postgres();
    let schema = format!("s_{}", store.prefix_of_tables());
    let url = store.url().replace("prefix=", "prefix=nothing.");
    store.run(&["-S", &url, "run", "k", "--", "true"]).says(78, &["it has no table 'nothing."]);
    shared_sql(&format!("CREATE SCHEMA {schema}"));
    let url = store.url().replace("prefix=", &format!("prefix={schema}."));
    store.run(&["-S", &url, "run", "k", "--", "true"]).is(0, "", "");
    assert_eq!(shared_sql(&format!("SELECT key FROM {schema}.{}", store.prefix_of_tables())), "k");
    let script = command(crate::support::DLOCK).args(["-S", &url, "setup", "--print"]).output().expect("it runs");
    assert!(String::from_utf8_lossy(&script.stdout).contains(&format!("GRANT USAGE ON SCHEMA \"{schema}\"")));
}

fn shared_sql(sql: &str) -> String {
    crate::support::postgres::shared_server().ask(sql)
}
