//! The lock directory and the files in it: what is trusted, what is refused, and that nobody is locked out.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{DLOCK, Done, Running, Store, command, finish, skipped, wait_for};

fn mode(path: &Path, bits: u32) {
    fs::set_permissions(path, Permissions::from_mode(bits)).expect("it is ours");
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
    let cases: [(&[u8], i32, &str); 9] = [
        (&good[..1], 73, "is damaged or not dlock's"),
        (&good[..47], 73, "is damaged or not dlock's"),
        (&good[..100], 73, "is damaged or not dlock's"),
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
fn a_full_disk_is_a_clear_line_and_loses_nothing() {
    let store = used();
    // Files may not grow beyond what they are: what a full disk does, without one.
    let limited = |script: &str| {
        let script = format!("ulimit -f 16; exec {DLOCK} {script}");
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
    let holder = store.holding("k", &["--ttl", "1h"], "echo ready; exec sleep 1000");
    fs::remove_file(store.key_file("k")).expect("it is ours");
    let start = Instant::now();
    store.run(&RUN).is(0, "", "");
    holder.finish().says(76, &["lost 'k'", "stopping the command"]);
    // Long before the next beat.
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let short = store.holding("k", &[], "echo ready; cat >/dev/null");
    fs::remove_file(store.key_file("k")).expect("it is ours");
    let done = short.finish();
    assert_eq!(done.status.code(), Some(76), "{done:#?}");
}

#[test]
fn a_mutex_that_is_never_given_back_is_no_hang() {
    let store = used();
    let stuck = store.keep_mutex("k");
    store.run(&RUN).says(69, &["k.lock' is kept locked by another dlock"]);
    assert_eq!(store.run(&["status", "k"]).status.code(), Some(1));
    drop(stuck);
    store.run(&RUN).is(0, "", "");
}

#[test]
fn a_file_that_is_deleted_while_somebody_waits_for_its_mutex_is_not_locked() {
    let store = used();
    let mutex = store.keep_mutex("k");
    let late = Running::start(&mut store.dlock(&RUN));
    let pid = late.pid();
    wait_for("a thread that waits for the mutex", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        tasks.map(name).any(|name| name == "mutex\n")
    });
    fs::remove_file(store.key_file("k")).expect("it is ours");
    let _holder = store.hold("k");
    drop(mutex);
    late.finish().says(75, &["'k' is held by"]);
}

/// A shell with a mount namespace of its own, in the test's directory.
pub(crate) fn with_mounts(store: &Store, script: &str) -> Option<Done> {
    let mut probe = command("unshare");
    let allowed = probe.args(["-m", "true"]).output().is_ok_and(|output| output.status.success());
    if !allowed && !skipped("mount namespaces cannot be made here") {
        return None;
    }
    let mut shell = command("unshare");
    shell.args(["-m", "sh", "-c", script, "sh", DLOCK]).current_dir(store.dir.path());
    Some(finish(&mut shell))
}

#[test]
fn a_full_file_system_takes_no_new_key_and_keeps_those_it_has() {
    let store = Store::new();
    fs::create_dir(store.path("full")).expect("a folder");
    // A file that holds a record takes two pages of four kilobytes.
    let script = "mount -t tmpfs -o size=16k,mode=700 none full; export DLOCK_STORE=file:$PWD/full
        for key in a b c a c; do \"$1\" run -n $key -- true 2>>said; echo $key $?; done
        rm full/b.lock; \"$1\" run -n c -- true; echo c $?; \"$1\" status --all | wc -l";
    let Some(done) = with_mounts(&store, script) else { return };
    done.is(0, "a 0\nb 0\nc 71\na 0\nc 71\nc 0\n3\n", "");
    let said = fs::read_to_string(store.path("said")).expect("what dlock said");
    let line = format!("dlock: cannot write '{}': no space left on device\n", store.path("full/c.lock").display());
    assert_eq!(said, line.repeat(2));
}

#[test]
fn what_has_become_read_only_can_still_be_looked_at() {
    let store = Store::new();
    let _holder = store.hold("k");
    let script = "mkdir ro; mount --bind locks ro; mount -o remount,bind,ro ro; export DLOCK_STORE=file:$PWD/ro
        \"$1\" status | grep -c exclusive; \"$1\" fence k >fence; echo $?
        \"$1\" run -n k -- true 2>said; echo $?; \"$1\" run -n other -- true 2>>said; echo $?";
    let Some(done) = with_mounts(&store, script) else { return };
    done.is(0, "1\n0\n73\n73\n", "");
    let said = fs::read_to_string(store.path("said")).expect("what dlock said");
    assert!(said.lines().all(|line| line.ends_with("read-only file system")) && said.lines().count() == 2, "{said}");
    store.run(&["run", "-n", "other", "--", "true"]).is(0, "", "");
}

#[test]
fn a_record_that_cannot_be_read_hides_no_other() {
    let store = used();
    let file = store.key_file("k");
    let newer = newer_layout(&fs::read(&file).expect("a record"));
    let _holder = store.hold("held");
    let looks = |words: &str| {
        for args in [&["status"][..], &["status", "--all"], &["status", "--prefix", ""], &["status", "--json"]] {
            let done = store.run(args);
            done.says(0, &["k.lock'", words]);
            assert!(done.stdout.contains("held"), "{done:#?}");
        }
        // Who asks for it by name is told that it is not known.
        assert!(matches!(store.run(&["status", "k", "held"]).status.code(), Some(73 | 78)));
    };
    fs::write(&file, newer).expect("it is ours");
    looks("a newer dlock");
    fs::write(&file, "#!/bin/sh\n").expect("it is ours");
    looks("is damaged or not dlock's");
    fs::remove_file(&file).expect("it is ours");
    symlink("/etc/passwd", &file).expect("a link");
    looks("symbolic link");
    fs::remove_file(&file).expect("it is ours");
    finish(command("mkfifo").arg(&file)).is(0, "", "");
    looks("not a regular file");
    fs::remove_file(&file).expect("it is ours");
    store.run(&RUN).is(0, "", "");
}

#[test]
fn a_record_that_is_damaged_while_it_is_held_does_not_stop_the_command() {
    let store = Store::new();
    let holder = store.holding("k", &["--ttl", "500ms"], "echo ready; cat >/dev/null; exit 3");
    fs::write(store.key_file("k"), "garbage").expect("it is ours");
    store.run(&RUN).says(73, &["if nobody holds 'k', remove it"]);
    holder.finish().says(3, &["cannot give 'k' back", "is damaged"]);
    fs::remove_file(store.key_file("k")).expect("it is ours");
    store.run(&RUN).is(0, "", "");
}
