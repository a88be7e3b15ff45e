//! The lock directory and the files in it: what is trusted, what is refused, and that nobody is locked out.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use crate::support::{DLOCK, Done, Store, command, finish, skipped};

/// Users and a group that no account needs to exist for.
const ALICE: u32 = 41_001;
const BOB: u32 = 41_002;
const TEAM: u32 = 41_100;

fn mode(path: &Path, bits: u32) {
    fs::set_permissions(path, Permissions::from_mode(bits)).expect("it is ours");
}

/// Whether tests may become other users.
fn is_root() -> bool {
    geteuid().is_root() || skipped("only root can become other users")
}

/// dlock as another user, whose groups are just `group`.
fn as_user(store: &Store, user: u32, group: u32, args: &[&str]) -> Done {
    // The binary may lie where only its builder can reach it.
    let binary = store.path("dlock");
    if !binary.exists() {
        fs::copy(DLOCK, &binary).expect("a copy of the binary");
        mode(store.dir.path(), 0o755);
    }
    let mut setpriv = command("setpriv");
    setpriv.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()]);
    setpriv.arg("sh").args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(binary).args(args);
    setpriv.env("DLOCK_STORE", format!("file:{}", store.path("locks").display())).current_dir("/");
    finish(&mut setpriv)
}

const RUN: [&str; 5] = ["run", "-n", "k", "--", "true"];

/// A store whose key `k` was held once.
fn used() -> Store {
    let store = Store::new();
    store.run(&RUN).is(0, "", "");
    store
}

#[test]
fn what_dlock_makes_is_for_its_user_alone() {
    let store = Store::new();
    finish(
        command("sh")
            .args(["-c", "umask 0; exec \"$@\"", "sh", DLOCK])
            .args(RUN)
            .env("DLOCK_STORE", format!("file:{}", store.path("deep/er/locks").display())),
    )
    .is(0, "", "");
    let bits = |path: &str| fs::metadata(store.path(path)).expect("it was made").mode() & 0o7777;
    assert_eq!((bits("deep/er/locks"), bits("deep/er/locks/k.lock")), (0o700, 0o600));
}

#[test]
fn a_directory_that_others_could_write_to_is_refused_and_works_again_when_mended() {
    let store = used();
    let locks = store.path("locks");
    for (bits, words) in [(0o777, "anybody may write"), (0o1777, "anybody may write"), (0o770, "its group may write")] {
        mode(&locks, bits);
        store.run(&RUN).says(73, &["cannot be trusted", words]);
        mode(&locks, 0o700);
        store.run(&RUN).is(0, "", "");
    }
}

#[test]
fn a_directory_that_is_a_link_or_no_directory_is_refused() {
    let store = used();
    symlink(store.path("locks"), store.path("link")).expect("a link");
    fs::write(store.path("file"), "").expect("a file");
    for (name, words) in [("link", "symbolic link"), ("link/", "symbolic link"), ("file", "not a directory")] {
        let url = format!("file:{}", store.dir.path().join(name).display());
        finish(store.dlock(&RUN).env("DLOCK_STORE", url)).says(73, &[words]);
    }
    finish(store.dlock(&RUN).env("DLOCK_STORE", "file:/proc/nonexistent")).says(73, &["cannot make"]);
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
    std::os::unix::fs::chown(store.path("home"), Some(ALICE), None).expect("we are root");
    let home = format!("unset XDG_STATE_HOME; HOME={}; export HOME; exec \"$@\"", store.path("home").display());
    run(&home).is(0, "", "");
    assert!(store.path("home/.local/state/dlock/k.lock").exists());
}

#[test]
fn a_record_that_is_damaged_or_foreign_is_refused_and_left_as_it_is() {
    let store = used();
    let file = store.key_file("k");
    let good = fs::read(&file).expect("a record");
    store.run(&["run", "other", "--", "true"]).is(0, "", "");
    let other = fs::read(store.key_file("other")).expect("a record");
    let mut torn = good.clone();
    // Each slot holds a page; with one of them left the record is that of the change before.
    torn[60] ^= 1;
    torn[1_048_576 + 60] ^= 1;
    let newer = newer_layout(&good);
    let cases: [(&[u8], i32, &str); 6] = [
        (&good[..30], 73, "is damaged or not dlock's"),
        (&torn, 73, "is damaged or not dlock's"),
        (b"#!/bin/sh\necho hello\n", 73, "is damaged or not dlock's"),
        (&[0; 5000], 73, "is damaged or not dlock's"),
        (&other, 73, "it is the record of 'other'"),
        (&newer, 78, "a newer dlock (layout 99)"),
    ];
    for (bytes, code, words) in cases {
        fs::write(&file, bytes).expect("it is ours");
        for args in [&RUN[..], &["status", "k"], &["fence", "k"], &["unlock", "k", "--yes"]] {
            store.run(args).says(code, &["k.lock'", words]);
        }
        assert!(fs::read(&file).expect("it is there") == bytes, "{words}: it was touched");
    }
    fs::remove_file(&file).expect("it is ours");
    store.run(&RUN).is(0, "", "");
}

/// The same record, as a version of dlock would write it that is newer than any.
fn newer_layout(page: &[u8]) -> Vec<u8> {
    const HEADER: usize = 48;
    let slot = page.len() - 1_048_576;
    let mut newest = page[1_048_576..].to_vec();
    assert!(slot > HEADER, "the first record is in the second slot");
    let text = String::from_utf8(newest.split_off(HEADER)).expect("a record is JSON");
    let text = text.replace("\"layout\":1,", "\"layout\":99,\"holders\":7,").replacen("\"holders\":[", "\"h\":[", 1);
    newest[40..44].copy_from_slice(&u32::try_from(text.len()).expect("short").to_le_bytes());
    let mut sum = crc32fast::Hasher::new();
    sum.update(&newest[..44]);
    sum.update(text.as_bytes());
    newest[44..48].copy_from_slice(&sum.finalize().to_le_bytes());
    newest.extend(text.into_bytes());
    let mut file = vec![0; 1_048_576];
    file.extend(newest);
    file
}

#[test]
fn an_empty_file_is_a_new_key() {
    let store = used();
    fs::write(store.key_file("k"), "").expect("it is ours");
    store.run(&["fence", "k"]).is(0, "0\n", "");
    store.run(&RUN).is(0, "", "");
}

#[test]
fn a_key_file_that_is_not_a_plain_file_of_its_own_is_refused() {
    let store = used();
    let file = store.key_file("k");
    let cases: [(&str, &str); 4] = [
        ("ln -s target", "symbolic link"),
        ("ln target", "hard link"),
        ("mkfifo", "not a regular file"),
        ("mkdir", ""),
    ];
    for (make, words) in cases {
        let script = format!("rm -rf {0} target; cp {0} target 2>/dev/null || : >target; {make} {0}", file.display());
        finish(Command::new("sh").args(["-c", &script]).current_dir(store.dir.path()));
        store.run(&RUN).says(73, &["k.lock'", words]);
        finish(Command::new("rm").arg("-rf").arg(&file)).is(0, "", "");
        store.run(&RUN).is(0, "", "");
    }
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
    std::os::unix::fs::chown(store.path("locks"), Some(ALICE), None).expect("we are root");
    mode(&store.path("locks"), 0o500);
    as_user(&store, ALICE, ALICE, &["run", "fresh", "--", "true"]).says(73, &["cannot make", "permission denied"]);
}

#[test]
fn a_group_shares_a_setgid_directory_and_others_do_not() {
    if !is_root() {
        return;
    }
    let store = Store::new();
    let locks = store.path("locks");
    fs::create_dir(&locks).expect("a folder");
    std::os::unix::fs::chown(&locks, Some(ALICE), Some(TEAM)).expect("we are root");
    mode(&locks, 0o2770);
    for (user, key) in [(ALICE, "a"), (BOB, "b")] {
        as_user(&store, user, TEAM, &["run", "-n", key, "--", "true"]).is(0, "", "");
        assert_eq!(fs::metadata(store.key_file(key)).expect("it was made").mode() & 0o777, 0o660);
    }
    as_user(&store, BOB, TEAM, &["run", "-n", "a", "--", "true"]).is(0, "", "");
    as_user(&store, ALICE, TEAM, &["run", "-n", "b", "--", "true"]).is(0, "", "");
    store.run(&["run", "-n", "a", "--", "true"]).is(0, "", "");
    as_user(&store, BOB, BOB, &["run", "-n", "a", "--", "true"]).says(73, &["permission denied"]);
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
    std::os::unix::fs::chown(&locks, Some(ALICE), Some(ALICE)).expect("we are root");
    store.run(&RUN).is(0, "", "");
    as_user(&store, ALICE, ALICE, &RUN).is(0, "", "");
}

#[test]
fn a_full_disk_is_a_clear_line_and_loses_nothing() {
    let store = used();
    // Files may not grow beyond what they are: what a full disk does, without one.
    let limited = |script: &str| {
        let script = format!("trap '' XFSZ; ulimit -f 16; exec {DLOCK} {script}");
        let mut shell = command("sh");
        shell.args(["-c", &script]).env("DLOCK_STORE", format!("file:{}", store.path("locks").display()));
        finish(&mut shell)
    };
    for _ in 0..2 {
        let done = limited("run -n k -- true");
        if done.status.code() != Some(0) {
            done.says(71, &["cannot write", "k.lock'"]);
        }
    }
    limited("run -n fresh -- true").says(71, &["cannot write", "fresh.lock'"]);
    store.run(&RUN).is(0, "", "");
    store.run(&["run", "-n", "fresh", "--", "true"]).is(0, "", "");
}

#[test]
fn a_holder_whose_file_is_deleted_says_so_and_stops() {
    let store = Store::new();
    let holder = store.holding("k", &[], "echo ready; exec sleep 1000");
    fs::remove_file(store.key_file("k")).expect("it is ours");
    store.run(&RUN).is(0, "", "");
    holder.finish().says(76, &["lost 'k'", "stopping the command"]);
    let short = store.holding("k", &[], "echo ready; cat >/dev/null");
    fs::remove_file(store.key_file("k")).expect("it is ours");
    let done = short.finish();
    assert_eq!(done.status.code(), Some(76), "{done:#?}");
}

#[test]
fn a_mutex_that_is_never_given_back_is_no_hang() {
    let store = used();
    let script = "import fcntl, struct, sys, os\n\
        f = os.open(sys.argv[1], os.O_RDWR)\n\
        fcntl.fcntl(f, 37, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 1, 0))\n\
        print('ready', flush=True); sys.stdin.read()";
    let mut python = command("python3");
    let mut stuck = crate::support::Running::start(python.args(["-c", script]).arg(store.key_file("k")));
    stuck.await_line("ready");
    store.run(&RUN).says(69, &["k.lock' is kept locked by another dlock"]);
    store.run(&["status", "k"]).status.code().map_or_else(|| panic!("it died"), |code| assert_eq!(code, 1));
    stuck.signal(Signal::SIGKILL);
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
}
