//! Several users: who shares a lock directory with whom, and who is kept out. Only root can run these.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use nix::unistd::geteuid;

use crate::support::{DLOCK, Done, Running, Store, command, finish, is_alive, skipped, wait_for};

/// Users and a group that no account needs to exist for.
pub(crate) const ALICE: u32 = 41_001;
pub(crate) const BOB: u32 = 41_002;
const MALLORY: u32 = 41_003;
pub(crate) const TEAM: u32 = 41_100;

const RUN: [&str; 5] = ["run", "-n", "k", "--", "true"];

pub(crate) fn mode(path: &Path, bits: u32) {
    fs::set_permissions(path, Permissions::from_mode(bits)).expect("it is ours");
}

/// Whether tests may become other users.
pub(crate) fn is_root() -> bool {
    geteuid().is_root() || skipped("only root can become other users")
}

/// dlock as another user with umask 077, whose groups are just `group`.
fn user(store: &Store, user: u32, group: u32, args: &[&str]) -> Command {
    // The binary may lie where only its builder can reach it. Another test that forks while we wrote the copy
    // would keep it open, and what is open for writing cannot be executed.
    let binary = store.path("dlock");
    if !binary.exists() {
        finish(command("cp").arg(DLOCK).arg(&binary)).is(0, "", "");
        mode(store.dir.path(), 0o755);
    }
    let mut setpriv = command("setpriv");
    setpriv.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()]);
    setpriv.arg("sh").args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(binary).args(args);
    // The kernel forgets whose death it is to die of; so what is to end with the test must end with its stdin.
    setpriv.env("DLOCK_STORE", format!("file:{}", store.path("locks").display())).current_dir("/");
    setpriv
}

pub(crate) fn as_user(store: &Store, name: u32, group: u32, args: &[&str]) -> Done {
    finish(&mut user(store, name, group, args))
}

/// A store whose key `k` was held once.
fn used() -> Store {
    let store = Store::new();
    store.run(&RUN).is(0, "", "");
    store
}

/// A lock directory of Alice's that her team shares.
pub(crate) fn shared() -> Store {
    let store = Store::new();
    let locks = store.path("locks");
    fs::create_dir(&locks).expect("a folder");
    chown(&locks, Some(ALICE), Some(TEAM)).expect("we are root");
    mode(&locks, 0o2770);
    store
}

#[test]
fn a_home_that_is_not_set_is_bad_configuration() {
    if !is_root() {
        return;
    }
    let store = Store::new();
    let run = |script: &str| {
        let _ = as_user(&store, ALICE, ALICE, &["--version"]);
        let mut setpriv = command("setpriv");
        setpriv.args([format!("--reuid={ALICE}"), format!("--regid={ALICE}"), "--clear-groups".into()]);
        setpriv.args(["sh", "-c", script, "sh"]).arg(store.path("dlock")).args(RUN).current_dir("/");
        finish(&mut setpriv)
    };
    run("unset HOME XDG_STATE_HOME; exec \"$@\"").says(78, &["HOME is not set"]);
    run("unset HOME; XDG_STATE_HOME=relative; export XDG_STATE_HOME; exec \"$@\"").says(78, &["HOME is not set"]);
    fs::create_dir(store.path("home")).expect("a folder");
    chown(store.path("home"), Some(ALICE), None).expect("we are root");
    let home = format!("unset XDG_STATE_HOME; HOME={}; export HOME; exec \"$@\"", store.path("home").display());
    run(&home).is(0, "", "");
    assert!(store.path("home/.local/state/dlock/k.lock").exists());
}

#[cfg(feature = "redis")]
#[test]
fn a_guard_inside_a_run_on_a_server_remembers_in_the_default_directory() {
    if !is_root() {
        return;
    }
    let store = Store::new();
    let home = store.path("home");
    let guard = |fence: &str| {
        let mut guard = user(&store, ALICE, ALICE, &["guard", "db", "--", "echo", "in"]);
        guard.env("DLOCK_STORE", "redis://127.0.0.1:1").env("DLOCK_FENCE", fence).env("HOME", &home);
        finish(guard.env_remove("XDG_STATE_HOME"))
    };
    fs::create_dir(&home).expect("a folder");
    chown(&home, Some(ALICE), None).expect("we are root");
    guard("7").is(0, "in\n", "");
    guard("6").says(76, &["'db' has seen 7 in", "home/.local/state/dlock,"]);
    assert!(home.join(".local/state/dlock/db.guard").exists());
}

#[test]
fn a_group_shares_what_its_guards_remember_and_root_locks_nobody_out_of_it() {
    if !is_root() {
        return;
    }
    let store = shared();
    let guard = |fence: &'static str| ["guard", "db", "--fence", fence, "--", "echo", "in"];
    as_user(&store, ALICE, TEAM, &guard("2")).is(0, "in\n", "");
    as_user(&store, BOB, TEAM, &guard("1")).says(76, &["'db' has seen 2"]);
    as_user(&store, BOB, TEAM, &guard("4")).is(0, "in\n", "");
    store.run(&guard("3")).says(76, &["'db' has seen 4"]);
    as_user(&store, MALLORY, MALLORY, &guard("9")).says(73, &["locks'"]);
    fs::remove_file(store.path("locks/db.guard")).expect("we are root");
    store.run(&guard("6")).is(0, "in\n", "");
    as_user(&store, BOB, TEAM, &guard("5")).says(76, &["'db' has seen 6"]);
}

#[test]
fn a_directory_of_another_user_is_refused() {
    if !is_root() {
        return;
    }
    let store = used();
    as_user(&store, ALICE, ALICE, &RUN).says(73, &["locks'"]);
    mode(&store.path("locks"), 0o755);
    as_user(&store, ALICE, ALICE, &RUN).says(73, &["it belongs to uid 0", "we are 41001"]);
}

#[test]
fn a_read_only_directory_is_refused() {
    if !is_root() {
        return;
    }
    let store = used();
    chown(store.path("locks"), Some(ALICE), None).expect("we are root");
    mode(&store.path("locks"), 0o500);
    // A key that is there needs nothing of the directory.
    chown(store.key_file("k"), Some(ALICE), None).expect("we are root");
    as_user(&store, ALICE, ALICE, &RUN).is(0, "", "");
    as_user(&store, ALICE, ALICE, &["run", "fresh", "--", "true"]).says(73, &["cannot make", "permission denied"]);
}

#[test]
fn root_does_not_lock_a_user_out_of_the_directory_of_that_user() {
    if !is_root() {
        return;
    }
    let store = Store::new();
    let locks = store.path("locks");
    fs::create_dir(&locks).expect("a folder");
    mode(&locks, 0o700);
    chown(&locks, Some(ALICE), Some(ALICE)).expect("we are root");
    store.run(&RUN).is(0, "", "");
    as_user(&store, ALICE, ALICE, &RUN).is(0, "", "");
    let _holder = Running::start(&mut user(&store, ALICE, ALICE, &["run", "mine", "--", "cat"]));
    wait_for("the user to hold a key", || store.status("mine")["held"] == true);
    store.run(&["run", "-n", "mine", "--", "true"]).says(75, &["(uid 41001)"]);
}

#[test]
fn a_group_shares_a_setgid_directory_and_others_do_not() {
    if !is_root() {
        return;
    }
    let store = shared();
    for (user, key) in [(ALICE, "a"), (BOB, "b")] {
        as_user(&store, user, TEAM, &["run", "-n", key, "--", "true"]).is(0, "", "");
        assert_eq!(fs::metadata(store.key_file(key)).expect("it was made").mode() & 0o777, 0o660);
    }
    as_user(&store, BOB, TEAM, &["run", "-n", "a", "--", "true"]).is(0, "", "");
    as_user(&store, ALICE, TEAM, &["run", "-n", "b", "--", "true"]).is(0, "", "");
    for key in ["a", "of-root"] {
        store.run(&["run", "-n", key, "--", "true"]).is(0, "", "");
        as_user(&store, BOB, TEAM, &["run", "-n", key, "--", "true"]).is(0, "", "");
        as_user(&store, ALICE, TEAM, &["run", "-n", key, "--", "true"]).is(0, "", "");
    }
    as_user(&store, BOB, BOB, &["run", "-n", "a", "--", "true"]).says(73, &["permission denied"]);
}

#[test]
fn two_of_a_group_may_take_a_new_key_at_the_same_time() {
    /// Where a file could be found before it was shared, one round of five failed.
    const ROUNDS: u32 = 40;
    if !is_root() {
        return;
    }
    let store = shared();
    for round in 0..ROUNDS {
        let key = format!("k{round}");
        let args = ["run", &key, "--", "true"];
        let team = [ALICE, BOB].map(|name| Running::start(&mut user(&store, name, TEAM, &args)));
        for member in team {
            member.finish().is(0, "", "");
        }
    }
}

#[test]
fn one_of_a_group_waits_for_another_and_can_unlock_what_the_other_holds() {
    if !is_root() {
        return;
    }
    let store = shared();
    let mut holder = Running::start(&mut user(&store, ALICE, TEAM, &["run", "k", "--", "sh", "-c", "echo in; cat"]));
    holder.await_line("in");
    as_user(&store, BOB, TEAM, &RUN).says(75, &["'k' is held by", "(uid 41001)"]);
    let waiter = Running::start(&mut user(&store, BOB, TEAM, &["run", "k", "--", "echo", "mine"]));
    store.await_waiting("k", 1);
    holder.finish().is(0, "", "");
    waiter.finish().is(0, "mine\n", "");
    let args = ["run", "k", "--", "sh", "-c", "echo in; cat"];
    let mut holder = Running::start(&mut user(&store, ALICE, TEAM, &args));
    holder.await_line("in");
    let freed = as_user(&store, BOB, TEAM, &["unlock", "k", "--yes"]);
    assert_eq!(freed.status.code(), Some(0), "{freed:#?}");
    wait_for("the holder's end", || !is_alive(holder.pid().as_raw()));
    holder.finish().says(76, &["'k' was unlocked"]);
}

#[test]
fn a_file_of_somebody_outside_is_refused_and_left_as_it_is() {
    if !is_root() {
        return;
    }
    let store = shared();
    as_user(&store, ALICE, TEAM, &RUN).is(0, "", "");
    let file = store.key_file("k");
    chown(&file, Some(MALLORY), Some(MALLORY)).expect("we are root");
    mode(&file, 0o666);
    let before = fs::read(&file).expect("a record");
    for name in [ALICE, BOB] {
        for args in [&RUN[..], &["status", "k"], &["unlock", "k", "--yes"]] {
            as_user(&store, name, TEAM, args).says(73, &["k.lock'", "it belongs to uid 41003"]);
        }
    }
    store.run(&RUN).says(73, &["it belongs to uid 41003"]);
    assert!(fs::read(&file).expect("it is there") == before);
    chown(&file, Some(BOB), Some(TEAM)).expect("we are root");
    as_user(&store, ALICE, TEAM, &RUN).is(0, "", "");
}
