//! The config file: which one counts, what stands in it, what wins over it, and what the command sees of it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

use crate::directory::with_mounts;
use crate::support::{DLOCK, Done, Store, command, finish};

const SECRET: &str = "hunter2";

/// Writes a file of the test's that only its owner can read, with `LOCKS` in it replaced by the store's URL.
fn write(store: &Store, name: &str, text: &str) -> PathBuf {
    let path = store.path(name);
    fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
    fs::write(&path, text.replace("LOCKS", store.url())).expect("a file");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
    path
}

/// A dlock in the test's directory that is told of no store, and whose home is `home` there.
fn dlock(store: &Store, args: &[&str]) -> Command {
    let mut dlock = command(DLOCK);
    dlock.args(args).env_remove("DLOCK_CONFIG").env_remove("XDG_STATE_HOME");
    dlock.env("HOME", store.path("home")).current_dir(store.dir.path());
    dlock
}

/// The same to its end, with a config file that holds `text`.
fn with(store: &Store, text: &str, args: &[&str]) -> Done {
    let file = write(store, "config.toml", text);
    finish(dlock(store, args).env("DLOCK_CONFIG", file))
}

/// Checks that it printed the fence of `k` in this store, which no other store has.
fn is_store(done: &Done, store: &Store) {
    done.is(0, &store.run(&["fence", "k"]).stdout, "");
    assert_ne!(done.stdout, "0\n");
}

/// A store whose key `k` was held once.
fn used() -> Store {
    let store = Store::new();
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    store
}

#[test]
fn a_flag_comes_before_the_environment_and_that_before_the_file() {
    let (store, by_env, by_flag) = (used(), used(), used());
    write(&store, "config.toml", "store = 'LOCKS'");
    let fence = |args: &[&str]| {
        let mut dlock = dlock(&store, &[args, &["fence", "k"]].concat());
        dlock.env("DLOCK_CONFIG", "config.toml");
        dlock
    };
    is_store(&finish(&mut fence(&[])), &store);
    is_store(&finish(fence(&[]).env("DLOCK_STORE", by_env.url())), &by_env);
    is_store(&finish(fence(&["-S", by_flag.url()]).env("DLOCK_STORE", by_env.url())), &by_flag);
    let url_file = write(&by_env, "url", "LOCKS");
    is_store(&finish(fence(&[]).env("DLOCK_STORE_FILE", &url_file)), &by_env);
    is_store(
        &finish(fence(&["--store-file", "url"]).current_dir(by_env.dir.path()).env("DLOCK_CONFIG", "/dev/null")),
        &by_env,
    );
    // The same for the config file itself.
    write(&by_env, "config.toml", "store = 'LOCKS'");
    let other = by_env.path("config.toml");
    is_store(&finish(&mut fence(&["--config", &other.to_string_lossy()])), &by_env);
}

#[test]
fn a_span_is_taken_from_the_flag_or_the_file_or_by_default_and_messages_name_where_it_is_from() {
    let store = Store::new();
    let file = store.path("config.toml");
    let file = format!("('{}')", file.display());
    let too_long = |code: i32, config: &str, options: &[&str], kill_after: &str, ttl: &str| {
        let words = format!("the kill-after of {kill_after} must be at most two thirds of the ttl of {ttl}");
        let config = format!("store = 'LOCKS'\n{config}");
        with(&store, &config, &[&["run", "k"], options, &["--", "true"]].concat()).says(code, &[&words]);
    };
    too_long(64, "", &["-k", "29"], "29s (--kill-after)", "30s (default)");
    too_long(64, "ttl = '12s'", &["-k", "9"], "9s (--kill-after)", &format!("12s {file}"));
    too_long(64, "ttl = '12s'", &["-k", "9", "--ttl", "3"], "9s (--kill-after)", "3s (--ttl)");
    too_long(64, "kill_after = '25s'", &["--ttl", "3"], &format!("25s {file}"), "3s (--ttl)");
    too_long(78, "kill_after = '25s'", &[], &format!("25s {file}"), "30s (default)");
    too_long(78, "kill_after = 2.5\nttl = 3", &[], &format!("2s 500ms {file}"), &format!("3s {file}"));
    assert!(!store.path("locks").exists());
    let config = "store = 'LOCKS'\nkill_after = 25";
    with(&store, config, &["run", "-k", "1", "k", "--", "true"]).is(0, "", "");
    with(&store, config, &["run", "--ttl", "60", "k", "--", "true"]).is(0, "", "");
}

#[test]
fn the_kill_after_of_the_file_is_the_one_that_counts() {
    let store = Store::new();
    let start = Instant::now();
    let stubborn = ["run", "--max-run", "0.1", "k", "--", "sh", "-c", "trap '' TERM; sleep 60 & wait; sleep 60"];
    with(&store, "store = 'LOCKS'\nttl = 600\nkill_after = '100ms'", &stubborn).says(124, &[]);
    // By default it would be five seconds.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[cfg(feature = "redis")]
#[test]
fn the_ttl_of_the_file_is_the_one_that_counts() {
    use crate::support::Running;
    use crate::support::redis::{REDIS, on_a_server};
    on_a_server(REDIS, |store| {
        write(store, "config.toml", "ttl = '10min'");
        for (options, least) in [(&[][..], 500), (&["--ttl", "1h"], 3500)] {
            let words = [&["run", "k"], options, &["--", "sh", "-c", "echo ready; cat >/dev/null"]].concat();
            let mut holder = Running::start(store.dlock(&words).env("DLOCK_CONFIG", store.path("config.toml")));
            holder.await_line("ready");
            let status = store.status("k");
            let time = |name: &str| {
                humantime::parse_rfc3339(status["holders"][0][name].as_str().expect("a time")).expect("RFC 3339")
            };
            let ttl = time("until").duration_since(time("since")).expect("it ends later");
            assert!((least..least + 110).contains(&ttl.as_secs()), "{ttl:?}");
        }
    });
}

#[cfg(feature = "redis")]
#[test]
fn the_store_timeout_of_the_file_is_the_one_that_counts() {
    let store = Store::new();
    let start = Instant::now();
    let config = |timeout: &str| format!("store = 'redis://127.0.0.1:1'\nstore_timeout = {timeout}");
    with(&store, &config("'100ms'"), &["fence", "k"]).says(69, &["127.0.0.1:1"]);
    with(&store, &config("60"), &["fence", "--store-timeout", "0.1", "k"]).says(69, &["127.0.0.1:1"]);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[test]
fn a_store_has_a_name_wherever_a_url_may_stand() {
    let store = used();
    write(&store, "sub/url", "LOCKS\n");
    let config =
        "[stores.one]\nurl = 'LOCKS'\n[stores]\ntwo.url_file = 'url'\n[stores.'drei é']\nurl = 'file:../locks'";
    let file = write(&store, "sub/config.toml", &config.replace("[stores]\ntwo.", "[stores.two]\n"));
    for name in ["one", "two", "drei é"] {
        is_store(&finish(dlock(&store, &["-S", name, "fence", "k"]).env("DLOCK_CONFIG", &file)), &store);
        is_store(&finish(dlock(&store, &["fence", "k"]).env("DLOCK_STORE", name).env("DLOCK_CONFIG", &file)), &store);
        let chosen = fs::read_to_string(&file).expect("a file");
        let chosen = write(&store, "sub/chosen.toml", &format!("store = \"{name}\"\n{chosen}"));
        is_store(&finish(dlock(&store, &["fence", "k", "--config"]).arg(chosen)), &store);
    }
}

#[test]
fn a_name_that_no_store_has_is_an_error_that_knows_better() {
    let store = Store::new();
    let two = "[stores.prod]\nurl = 'LOCKS'\n[stores.lab]\nurl = 'LOCKS'\n";
    let file = store.path("config.toml");
    let file = file.display();
    let fence = |config: &str, name: &str| with(&store, config, &["-S", name, "fence", "k"]);
    fence(two, "prdo").is(
        78,
        "",
        &format!("dlock: --store: 'prdo' is no store URL, and no store of '{file}'; did you mean 'prod'?\n"),
    );
    fence(two, "x").says(78, &["known are 'lab', 'prod'"]);
    fence("", "prod").says(78, &["--store: 'prod' is no store URL", "'file:DIR'", "a store of the config file"]);
    with(&store, &format!("\nstore = 'pord'\n{two}"), &["fence", "k"])
        .says(78, &[&format!("'{file}' line 2: 'pord'"), "'prod'?"]);
    // What looks like a directory is answered as ever.
    fence(two, "/var/tmp/x").says(78, &["a directory is written 'file:/var/tmp/x'"]);
    fence(two, "sub/x").says(78, &["a directory is written 'file:sub/x'"]);
    let done = fence(two, &format!("{SECRET}@host"));
    done.says(78, &["no store URL"]);
    assert!(!done.stderr.contains(SECRET), "{done:#?}");
}

#[test]
fn what_is_wrong_in_the_file_is_named_with_its_line_and_without_a_password() {
    let store = Store::new();
    let file = store.path("config.toml");
    let url = format!("redis://:{SECRET}@host");
    let cases = [
        ("\ntll = 3", 2, "there is no setting 'tll'; did you mean 'ttl'?"),
        ("kill-after = 3", 1, "there is no setting 'kill-after'; did you mean 'kill_after'?"),
        ("ttl = 3\n\n[store_s]\nx = 1", 3, "did you mean 'stores'?"),
        ("'URL' = 1", 1, "this is no setting; known are"),
        ("qqq = 1", 1, "known are 'store', 'ttl', 'kill_after', 'store_timeout', 'stores'"),
        ("[stores.a]\nulr = 'URL'", 2, "there is no setting 'ulr'; did you mean 'url'?"),
        ("[stores.a]\nurl_fiel = 'x'", 2, "did you mean 'url_file'?"),
        ("ttl = true", 1, "'ttl' is a span of time like '30s', or a number of seconds, and not a boolean"),
        ("ttl = []", 1, "and not an array"),
        ("store_timeout = 0x10", 1, "'store_timeout' is a span of time"),
        ("ttl = 'soon'", 1, "ttl 'soon' is not a span of time like"),
        ("ttl = '499ms'", 1, "ttl must be at least 500ms"),
        ("ttl = nan", 1, "ttl 'nan' is not a span"),
        ("kill_after = -1", 1, "kill_after '-1' is not a span of time like '30s' or '1h 30m': it is negative"),
        ("kill_after = 0", 1, "kill_after must be more than 0"),
        ("\n\nstore_timeout = 0.0", 3, "store_timeout must be more than 0"),
        ("store = 3", 1, "'store' is a string, and not an integer"),
        ("store = ['URL']", 1, "'store' is a string, and not an array"),
        ("store = ''", 1, "'store' is empty"),
        ("store = 'URL", 1, "it is not TOML"),
        ("ttl = 3\nstore = URL", 2, "it is not TOML"),
        ("URL", 1, "it is not TOML"),
        ("store = 'URL'\nttl = 3\nstore = 'URL'", 3, "it is not TOML: duplicate key"),
        ("\nstore = 'gopher://x:hunter2@y'", 2, "no store 'gopher:'"),
        ("stores = 'URL'", 1, "'stores' is a table of named stores"),
        ("[stores]\na = 'URL'", 2, "'a' is a table with 'url' or 'url_file', and not a string"),
        ("ttl = 3\n[stores.a]\n", 2, "'a' needs 'url' or 'url_file'"),
        ("[stores.a]\nurl = 'URL'\nurl_file = 'x'", 3, "a store has 'url' or 'url_file', and not both"),
        ("[stores.'URL']\nurl = 'URL'", 1, "the name of a store"),
        ("store = 'a'\n[stores.a]\nurl = 'hunter2'", 2, "store 'a': its 'url' is no store URL"),
        ("store = 'a'\n[stores.a]\nurl = 'gopher://x:hunter2@y'", 2, "store 'a': this dlock knows no store 'gopher:'"),
    ];
    for (text, line, words) in cases {
        let done = with(&store, &text.replace("URL", &url), &["fence", "k"]);
        done.says(78, &[&format!("dlock: '{}' line {line}: ", file.display()), words]);
        assert!(!done.stderr.contains(SECRET), "{done:#?}");
    }
    let done = with(&store, "store = 'a'\n[stores.a]\nurl_file = 'none'", &["fence", "k"]);
    done.says(78, &[&format!("cannot read the store's URL from '{}'", store.path("none").display())]);
    assert!(!store.path("home").exists());
}

#[test]
fn a_file_that_was_named_is_there_and_can_be_read() {
    let store = Store::new();
    let fence = |config: &str| finish(dlock(&store, &["fence", "k"]).env("DLOCK_CONFIG", config));
    let none = store.path("none");
    let words = format!("cannot read the config file '{}': no such file or directory", none.display());
    fence("none").says(78, &[&words]);
    finish(&mut dlock(&store, &["fence", "k", "--config", "none"])).says(78, &[&words]);
    fence("").says(78, &["DLOCK_CONFIG is set, but empty"]);
    finish(&mut dlock(&store, &["fence", "k", "--config", ""])).says(78, &["--config is set, but empty"]);
    fence(".").says(78, &["cannot read the config file", "is a directory"]);
    fs::write(store.path("latin"), b"# \xe9\n").expect("a file");
    fence("latin").says(78, &["cannot read the config file", "UTF-8"]);
    if !geteuid().is_root() {
        fs::set_permissions(write(&store, "mine", ""), Permissions::from_mode(0o000)).expect("it is ours");
        fence("mine").says(78, &["cannot read the config file", "permission denied"]);
    }
}

#[test]
fn the_first_file_that_is_there_is_read_alone() {
    let (store, other) = (used(), used());
    write(&other, "x/dlock/config.toml", "store = 'LOCKS'");
    write(&store, "home/.config/dlock/config.toml", "store = 'LOCKS'\nttl = 6");
    let x = other.path("x");
    is_store(&finish(&mut dlock(&store, &["fence", "k"])), &store);
    is_store(&finish(dlock(&store, &["fence", "k"]).env("XDG_CONFIG_HOME", &x)), &other);
    for unfit in ["", "x"] {
        let mut dlock = dlock(&store, &["fence", "k"]);
        is_store(&finish(dlock.current_dir(other.dir.path()).env("XDG_CONFIG_HOME", unfit)), &store);
    }
    // Nothing of the second one counts, nor of the first where another one is named.
    let kill_after = ["run", "-k", "29", "k", "--", "true"];
    finish(&mut dlock(&store, &kill_after)).says(64, &["the ttl of 6s"]);
    finish(dlock(&store, &kill_after).env("XDG_CONFIG_HOME", &x)).says(64, &["the ttl of 30s (default)"]);
    let named = ["--config", "/dev/null", "-S", store.url()];
    finish(&mut dlock(&store, &[&named, &kill_after[..]].concat())).says(64, &["the ttl of 30s (default)"]);
    // One that is there and cannot be read is not passed over.
    fs::create_dir(store.path("home/.config/dlock/config.toml.d")).expect("a folder");
    fs::remove_file(store.path("home/.config/dlock/config.toml")).expect("it is ours");
    fs::create_dir(store.path("home/.config/dlock/config.toml")).expect("a folder");
    finish(&mut dlock(&store, &["fence", "k"])).says(78, &["cannot read the config file", "is a directory"]);
}

#[test]
fn the_file_of_the_machine_is_read_if_the_user_has_none() {
    let store = used();
    write(&store, "etc/dlock.toml", "store = 'LOCKS'");
    write(&store, "home/.config/dlock/config.toml", "ttl = 'soon'");
    let script = "mount --bind etc /etc; unset DLOCK_CONFIG; HOME=$PWD; \"$1\" fence k; HOME=$PWD/home \"$1\" fence k || echo $?";
    let Some(done) = with_mounts(&store, script) else { return };
    assert_eq!(done.stdout, format!("{}78\n", store.run(&["fence", "k"]).stdout), "{done:#?}");
}

#[test]
fn a_file_with_a_password_that_others_can_read_is_warned_about() {
    let store = Store::new();
    let with_password = format!("[stores.unused]\nurl = 'redis://:{SECRET}@host'\n[stores.one]\nurl = 'LOCKS'");
    let file = write(&store, "config.toml", &with_password);
    let fence = |args: &[&str], mode: u32| {
        fs::set_permissions(&file, Permissions::from_mode(mode)).expect("it is ours");
        finish(&mut dlock(&store, &[&["--config", "config.toml", "-S", "one", "fence", "k"], args].concat()))
    };
    let path = file.display();
    let all =
        format!("dlock: '{path}' holds a password, and everybody on this machine can read it; chmod 600 '{path}'\n");
    for mode in [0o644, 0o604, 0o666] {
        fence(&[], mode).is(0, "0\n", &all);
    }
    fence(&[], 0o640).says(0, &["holds a password, and the group '", &format!("' can read it; chmod 600 '{path}'")]);
    fence(&["-q"], 0o644).is(0, "0\n", "");
    for mode in [0o600, 0o400, 0o711] {
        fence(&[], mode).is(0, "0\n", "");
    }
    write(&store, "config.toml", "[stores.one]\nurl = 'LOCKS'\n[stores.two]\nurl = 'redis://user@host:1/0'");
    fence(&[], 0o644).is(0, "0\n", "");
}

#[cfg(feature = "redis")]
#[test]
fn a_url_file_with_a_password_that_others_can_read_is_warned_about() {
    let store = Store::new();
    let url = write(&store, "url", &format!("redis://:{SECRET}@host?x"));
    write(&store, "config.toml", "store = 'a'\n[stores.a]\nurl_file = 'url'");
    let warning =
        format!("'{0}' holds a password, and everybody on this machine can read it; chmod 600 '{0}'", url.display());
    for (mode, warned) in [(0o644, true), (0o600, false)] {
        fs::set_permissions(&url, Permissions::from_mode(mode)).expect("it is ours");
        for done in [
            finish(&mut dlock(&store, &["--config", "config.toml", "fence", "k"])),
            finish(&mut dlock(&store, &["--store-file", "url", "--config", "/dev/null", "fence", "k"])),
            finish(dlock(&store, &["--config", "/dev/null", "fence", "k"]).env("DLOCK_STORE_FILE", "url")),
        ] {
            // The rest of the URL is wrong, so that no server is asked.
            assert_eq!(done.status.code(), Some(78), "{done:#?}");
            assert!(done.stderr.contains(&warning) == warned && !done.stderr.contains(SECRET), "{done:#?}");
        }
    }
}

/// What a command sees of the settings. It ends if it is in another lease than the first one.
const SEE: &str = "[ ${FIRST=$DLOCK_FENCE} = $DLOCK_FENCE ] || exit 9; export FIRST; \
                   echo ${DLOCK_STORE-none} ${DLOCK_STORE_FILE-none} ${DLOCK_CONFIG-none}; ";

#[test]
fn a_run_inside_a_run_enters_its_lease_in_whichever_form_the_store_came() {
    let store = Store::new();
    write(&store, "sub/url", "file:../locks");
    let names = "[stores.a]\nurl = 'file:../locks'\n[stores.b]\nurl_file = 'url'\n";
    write(&store, "sub/plain.toml", "");
    fs::create_dir(store.path("sub/sub")).expect("a folder");
    write(&store, "sub/names.toml", names);
    write(&store, "sub/url.toml", "store = 'file:../locks'");
    write(&store, "sub/name.toml", &format!("store = 'b'\n{names}"));
    write(&store, "home/.config/dlock/config.toml", "store = 'file:../../../locks'");
    let (dir, url) = (store.dir.path().display(), format!("file:{}", store.path("sub/../locks").display()));
    let script = format!("{SEE}cd sub; {DLOCK} run -n k -- sh -c '{SEE}echo in'");
    let cases: [(&[&str], (&str, &str), String); 9] = [
        (&["-S", "file:../locks"], ("DLOCK_CONFIG", "plain.toml"), format!("{url} none {dir}/sub/plain.toml")),
        (&["--config", "plain.toml"], ("DLOCK_STORE", "file:../locks"), format!("{url} none {dir}/sub/plain.toml")),
        (&["--config", "url.toml"], ("DLOCK_STORE_FILE", "url"), format!("none {dir}/sub/url {dir}/sub/url.toml")),
        (
            &["--store-file", "url"],
            ("DLOCK_STORE", "file:/none"),
            format!("none {dir}/sub/url {dir}/home/.config/dlock/config.toml"),
        ),
        (&["-S", "a"], ("DLOCK_CONFIG", "names.toml"), format!("a none {dir}/sub/names.toml")),
        (&["--config", "names.toml"], ("DLOCK_STORE", "b"), format!("b none {dir}/sub/names.toml")),
        (&["--config", "url.toml"], ("X", "x"), format!("none none {dir}/sub/url.toml")),
        (&["--config", "name.toml"], ("X", "x"), format!("none none {dir}/sub/name.toml")),
        (&[], ("X", "x"), format!("none none {dir}/home/.config/dlock/config.toml")),
    ];
    for (options, (name, value), seen) in cases {
        let mut dlock = dlock(&store, &[&["run", "k"], options, &["--", "sh", "-c", &script]].concat());
        let done = finish(dlock.current_dir(store.path("sub")).env(name, value));
        done.is(0, &format!("{seen}\n{seen}\nin\n"), "");
    }
}

#[test]
fn a_run_inside_a_run_that_has_no_config_file_has_none_either() {
    let store = Store::new();
    let script = "mkdir etc; mount --bind etc /etc; unset DLOCK_CONFIG; HOME=/nonexistent DLOCK_STORE=file:locks \"$1\" run k -- env";
    let Some(done) = with_mounts(&store, script) else { return };
    assert!(done.status.success() && done.stdout.contains("DLOCK_STORE=file:/"), "{done:#?}");
    assert!(!done.stdout.contains("DLOCK_CONFIG"), "{done:#?}");
}

#[cfg(feature = "redis")]
#[test]
fn a_password_of_the_file_is_in_no_environment() {
    use crate::support::redis::on_both_with;
    on_both_with(&["--requirepass", SECRET], |store| {
        let url = store.url().replace("redis://", &format!("redis://:{SECRET}@"));
        write(store, "url", &url);
        write(store, "by_url.toml", &format!("store = '{url}'"));
        let names = format!("[stores.a]\nurl = '{url}'\n[stores.b]\nurl_file = 'url'");
        write(store, "by_name.toml", &format!("store = 'a'\n{names}"));
        write(store, "names.toml", &names);
        let script = format!("env; cd /; {DLOCK} run -n k -- env");
        let cases: [&[&str]; 4] = [
            &["--config", "by_url.toml"],
            &["--config", "by_name.toml"],
            &["--config", "names.toml", "-S", "a"],
            &["--config", "names.toml", "-S", "b"],
        ];
        for options in cases {
            let done = finish(&mut dlock(store, &[options, &["run", "k", "--", "sh", "-c", &script]].concat()));
            assert!(done.status.success() && done.stderr.is_empty(), "{done:#?}");
            assert_eq!(done.stdout.matches("DLOCK_FENCE=").count(), 2, "{done:#?}");
            assert!(!done.stdout.contains(SECRET), "{done:#?}");
        }
    });
}

#[test]
fn a_file_without_end_is_refused_and_not_read_for_ever() {
    let store = Store::new();
    store.run(&["--config", "/dev/zero", "fence", "k"]).says(78, &["'/dev/zero'", "longer than 1 MiB"]);
    let mut dlock = store.dlock(&["--store-file", "/dev/zero", "fence", "k"]);
    finish(dlock.env_remove("DLOCK_STORE")).says(78, &["'/dev/zero'", "longer than 1 MiB"]);
}
