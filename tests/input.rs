//! Bad input is one clear line and a code, and loses nothing.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use crate::support::{DLOCK, Store, command, finish};

#[test]
fn a_key_that_is_none_is_refused_before_anything_is_touched() {
    let store = Store::new();
    let long = "x".repeat(201);
    for (key, words) in
        [("", "at least one"), (&*long, "at most 200 bytes, this one has 201"), ("a\nb", "control"), (" a", "blank")]
    {
        for verb in ["run", "status", "unlock", "fence"] {
            let more: &[&str] = if verb == "run" { &["--", "true"] } else { &[] };
            store.run(&[&[verb, key], more].concat()).says(64, &["a key", words]);
        }
    }
    let mut dlock = store.dlock(&["run"]);
    dlock.arg(OsStr::from_bytes(b"a\xff")).args(["--", "true"]);
    finish(&mut dlock).says(64, &["a key is UTF-8"]);
    assert!(!store.path("locks").exists());
}

#[test]
fn a_key_may_look_like_a_path_or_have_a_long_encoding() {
    let store = Store::new();
    let long = "é".repeat(100);
    for key in ["..", ".", ".hidden", "/etc/passwd", "a b", "%2E", &*long, &"x".repeat(200)] {
        store.run(&["run", key, "--", "sh", "-c", "printf %s \"$DLOCK_KEY\""]).is(0, key, "");
    }
    let done = store.run(&["status", "--all", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&done.stdout).expect("status prints JSON");
    assert_eq!(status["keys"].as_array().map(Vec::len), Some(8), "each has a record of its own");
    assert_eq!(fs::read_dir(store.dir.path()).expect("a folder").count(), 1, "nothing is outside the directory");
}

#[test]
fn a_span_of_time_that_is_none_or_makes_no_sense_is_refused() {
    let store = Store::new();
    let cases: [(&[&str], &str); 14] = [
        (&["--ttl", "0"], "--ttl must be more than 0"),
        (&["--ttl", "499ms"], "--ttl must be at least 500ms"),
        (&["--ttl", "-5s"], "negative"),
        (&["--ttl", "99999999999999999999y"], "--ttl"),
        (&["--ttl", "1000y"], "a hundred years"),
        (&["--ttl", "soon"], "'soon' is not a span of time"),
        (&["--ttl", ""], "'' is not a span of time"),
        (&["-k", "0"], "--kill-after must be more than 0"),
        (&["-k", "30s"], "--kill-after must be less than --ttl"),
        (&["-w", "-1"], "negative"),
        (&["-w", "1e3"], "'1e3' is not a span of time"),
        (&["--max-run", "0"], "--max-run must be more than 0"),
        (&["--min-hold", "x"], "--min-hold 'x'"),
        (&["--store-timeout", "0"], "--store-timeout must be more than 0"),
    ];
    for (options, words) in cases {
        store.run(&[&["run", "k"], options, &["--", "true"]].concat()).says(64, &[words]);
    }
    assert!(!store.path("locks").exists());
}

#[test]
fn bad_usage_is_one_line_that_names_what_is_wrong() {
    let store = Store::new();
    let cases: [(&[&str], &str); 16] = [
        (&[], "a verb is missing"),
        (&["walk"], "unrecognized verb 'walk'"),
        (&["run"], "<KEY>"),
        (&["run", "k"], "<CMD>"),
        (&["run", "k", "--"], "<CMD>"),
        (&["run", "k", "--", ""], "the command has no name"),
        (&["run", "--fly", "k", "--", "true"], "'--fly'"),
        (&["run", "-E", "600", "k", "--", "true"], "600 is not in 0..=255"),
        (&["run", "-E", "-1", "k", "--", "true"], "'-1'"),
        (&["run", "-s", "--slots", "2", "k", "--", "true"], "cannot be used with"),
        (&["run", "--slots", "0", "k", "--", "true"], "--slots needs at least 1"),
        (&["run", "-n", "-w", "1", "k", "--", "true"], "cannot be used with"),
        (&["run", "--if-fence", "x", "k", "--", "true"], "'x'"),
        (&["run", "--on-lost", "cry", "k", "--", "true"], "'cry'"),
        (&["run", "--note", &"n".repeat(1001), "k", "--", "true"], "at most 1000 bytes"),
        (&["-q", "-v", "status"], "cannot be used with"),
    ];
    for (args, words) in cases {
        store.run(args).says(64, &[words]);
    }
    assert!(!store.path("locks").exists());
}

#[test]
fn a_missing_double_dash_shows_the_corrected_line() {
    let store = Store::new();
    let done = store.run(&["run", "-w", "5", "k", "echo", "-n", "it's"]);
    done.says(64, &[r"'--' is missing", r"write: dlock run -w 5 k -- echo -n 'it'\''s'"]);
    store.run(&["run", "k", "true"]).says(64, &["write: dlock run k -- true"]);
}

#[test]
fn a_store_that_cannot_be_understood_is_bad_configuration() {
    let store = Store::new();
    let run = |name: &str, value: &str| {
        let mut dlock = store.dlock(&["run", "k", "--", "true"]);
        finish(dlock.env_remove("DLOCK_STORE").env(name, value))
    };
    run("DLOCK_STORE", "gopher://x:secret@y").says(78, &["no store 'gopher:'"]);
    assert!(!run("DLOCK_STORE", "gopher://x:secret@y").stderr.contains("secret"));
    run("DLOCK_STORE", "/var/tmp/x").says(78, &["'file:/var/tmp/x'"]);
    run("DLOCK_STORE", "file:").says(78, &["needs a directory"]);
    run("DLOCK_STORE_FILE", "/nonexistent").says(78, &["'/nonexistent'"]);
    for (text, words) in [("", "one line"), ("file:a\nfile:b\n", "one line"), ("gopher:x\n", "gopher")] {
        fs::write(store.path("url"), text).expect("a file");
        run("DLOCK_STORE_FILE", &store.path("url").to_string_lossy()).says(78, &[words]);
    }
    finish(store.dlock(&["run", "k", "--", "true"]).env("DLOCK_STORE_FILE", "x")).says(78, &["both set"]);
}

#[test]
fn a_store_named_in_a_file_is_handed_on_as_that_file() {
    let store = Store::new();
    fs::write(store.path("url"), format!("file:{}\n", store.path("locks").display())).expect("a file");
    let script = format!("echo ${{DLOCK_STORE-none}} $DLOCK_STORE_FILE; {DLOCK} run -n k -- echo in");
    let mut dlock = store.dlock(&["run", "--store-file", "url", "k", "--", "sh", "-c", &script]);
    let done = finish(dlock.env_remove("DLOCK_STORE").current_dir(store.dir.path()));
    done.is(0, &format!("none {}\nin\n", store.path("url").display()), "");
}

#[test]
fn help_fits_a_terminal_and_groups_the_options() {
    let help = |args: &[&str]| finish(command(DLOCK).args(args).env("COLUMNS", "80"));
    let done = help(&["--help"]);
    assert!(done.status.success() && done.stdout.lines().count() <= 24, "{}", done.stdout);
    let run = help(&["run", "--help"]);
    for group in ["Waiting:", "Lease:", "Command:", "Global options:"] {
        assert!(run.stdout.contains(group), "{group} is missing");
    }
    for text in [&done.stdout, &run.stdout, &help(&["status", "--help"]).stdout, &help(&["unlock", "--help"]).stdout] {
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
    help(&["--version"]).is(0, &format!("dlock {}\n", env!("CARGO_PKG_VERSION")), "");
}

#[test]
fn too_few_descriptors_are_a_clear_line_and_never_a_leaked_lease() {
    let store = Store::new();
    let mut succeeded = false;
    for limit in 4..20 {
        let script = format!("ulimit -n {limit}; exec {DLOCK} run -n k -- true");
        let mut shell = command("sh");
        shell.args(["-c", &script]).env("DLOCK_STORE", format!("file:{}", store.path("locks").display()));
        let done = finish(&mut shell);
        match done.status.code() {
            Some(0) => succeeded = true,
            Some(127) if done.stderr.contains("shared libraries") => {}
            _ => done.says(71, &["too many open files"]),
        }
        store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
    }
    assert!(succeeded);
}

#[test]
fn a_full_disk_behind_stdout_is_an_error_and_a_closed_pipe_is_none() {
    let store = Store::new();
    let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").expect("there is /dev/full"));
    finish(store.dlock(&["fence", "k"]).stdout(full())).says(71, &["cannot write to stdout"]);
    let script = format!("{DLOCK} status --json --all | head -c 0; :");
    finish(command("sh").args(["-c", &script])).is(0, "", "");
}
