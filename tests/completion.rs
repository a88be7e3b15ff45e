//! A shell completes the keys of the store: bash, zsh and fish themselves are asked, as somebody at a terminal would.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::terminal::Terminal;
use crate::support::{DLOCK, Store, command, finish, has, on_file_and_redis, wait_for};

/// Keys with all that a shell takes for something else.
const ODD: [&str; 14] = [
    "a b  c",
    "it's",
    "say \"x\"",
    "$HOME `id`",
    "back\\slash\\",
    "!! a!",
    "~root",
    "*",
    "#h [a]? {b,c}",
    "db:main=1@x",
    "deploy/prod",
    ";|&<>()",
    "ключ é",
    "東京\u{3000}a",
];

/// Each shell, how it is started so that nothing of this machine's changes it, and how it gets the completions.
const SHELLS: [(&str, &[&str], &str); 3] = [
    ("bash", &["--norc", "--noprofile", "-i"], "bind 'set show-all-if-ambiguous on'; . COMPLETIONS/dlock.bash"),
    ("zsh", &["-f", "-i"], "unsetopt prompt_sp; fpath=(COMPLETIONS $fpath); autoload -Uz compinit; compinit -u -D"),
    (
        "fish",
        &["--no-config", "-i"],
        "set fish_autosuggestion_enabled 0; function fish_prompt; echo '$ '; end; source COMPLETIONS/dlock.fish",
    ),
];

/// What goes to the begin and to the end of a line, takes back a character.
const TO_BEGIN: &str = "\u{1}";
const TO_END: &str = "\u{5}";
const BACK: &str = "\u{7f}";

/// A folder with nothing in it but some files that a shell could offer, and a PATH with dlock.
fn prepare(store: &Store, program: &mut Command) {
    let (bin, here) = (store.path("bin"), store.path("here"));
    if fs::create_dir(&bin).is_ok() {
        symlink(DLOCK, bin.join("dlock")).expect("a link to dlock");
        let own = bin.join("very-own-command");
        fs::write(&own, "#!/bin/sh\necho \"I got $1\"\n").expect("a command");
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).expect("it is made executable");
        fs::create_dir(&here).expect("a folder");
        fs::create_dir(here.join("alpha")).expect("a folder that is named as a key");
        fs::write(here.join("some-file"), "").expect("a file");
    }
    let path = std::env::var("PATH").unwrap_or_default();
    program.env("PATH", format!("{}:{path}", bin.display())).env("HOME", store.dir.path()).current_dir(here);
    program.env("DLOCK_STORE", store.url()).env("LC_ALL", "C.UTF-8").env("PS1", "$ ");
}

/// A shell at a prompt, on a terminal where no line wraps.
fn prompt(store: &Store, shell: &str) -> Terminal {
    let (_, args, setup) = SHELLS.into_iter().find(|(name, ..)| *name == shell).expect("a known shell");
    let mut program = command(shell);
    program.args(args);
    prepare(store, &mut program);
    let mut terminal = Terminal::start_sized(store, &mut program, 50, 400);
    let completions = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("completions");
    terminal.types(&setup.replace("COMPLETIONS", &completions.display().to_string()));
    terminal.types("\necho rea''dy\n");
    terminal.shows("ready");
    clear(&mut terminal);
    terminal
}

/// Waits for the prompt on an empty screen: what is typed before it is there comes out twice, and not edited.
fn clear(terminal: &mut Terminal) {
    terminal.types("clear\n");
    terminal.await_screen(|screen| screen.trim() == "$");
}

/// Does something in each shell that is installed.
fn in_each_shell(work: impl Fn(&str)) {
    for (shell, ..) in SHELLS {
        if has(shell) {
            work(shell);
        }
    }
}

/// Another store of the same kind, as a shell may take it as it is in single quotes.
fn another(store: &Store, number: usize) -> String {
    if let Some(path) = store.url().strip_prefix("file:") {
        return format!("file:{path}-{number}");
    }
    let (server, query) = store.url().split_once("?prefix=").unwrap_or((store.url(), ""));
    let prefix = query.split('&').next().unwrap_or_default();
    format!("{server}?prefix={prefix}p{number}{}", &query[prefix.len()..])
}

/// Types the begin of a line and has the shell complete it, again if the store was too slow for this machine. What
/// the line then is.
fn complete(terminal: &mut Terminal, line: &str) -> String {
    terminal.types(line);
    loop {
        terminal.types("\tZ");
        let screen = terminal.await_screen(|screen| screen.trim_end().ends_with('Z'));
        terminal.types(BACK);
        terminal.await_screen(|screen| !screen.trim_end().ends_with('Z'));
        let last = screen.trim_end().lines().last().expect("there is a line").trim_end_matches('Z').to_owned();
        // What clears the line is not shown.
        if !last.ends_with(line.trim_start_matches('\u{15}')) {
            return last;
        }
    }
}

/// Checks what `dlock keys` offers for the last of these words. On a machine that has other things to do it may be late.
#[track_caller]
fn offers(store: &Store, words: &[&str], keys: &[&str]) {
    let text: String = keys.iter().flat_map(|key| [key, "\n"]).collect();
    wait_for(&format!("{keys:?} to be offered for {words:?}"), || {
        let done = store.run(&[&["keys"], words].concat());
        done.is(0, &done.stdout, "");
        done.stdout == text
    });
}

fn what_is_held_is_offered_to_unlock_and_all_keys_to_others(store: &Store) {
    store.run(&["run", "free", "--", "true"]).is(0, "", "");
    let _one = store.hold("held/one");
    let _two = store.hold("held/two");
    offers(store, &["--", "dlock", "unlock", ""], &["held/one", "held/two"]);
    for verb in ["run", "status", "fence", "acquire", "renew", "release", "check"] {
        offers(store, &["--", "dlock", verb, ""], &["free", "held/one", "held/two"]);
    }
    offers(store, &["--bash=t", "--", "dlock unlock held/t"], &["two"]);
    // Behind the key, an option or the dashes is no key.
    for words in [&["unlock", "k", ""][..], &["unlock", "--lease", ""], &["run", "k", "--", ""], &["man", ""], &[""]] {
        store.run(&[&["keys", "--", "dlock"], words].concat()).is(1, "", "");
    }
}

fn the_line_says_which_store(store: &Store) {
    let other = another(store, 1);
    store.run(&["-S", &other, "run", "other", "--", "true"]).is(0, "", "");
    fs::write(store.path("url"), &other).expect("a file with a URL");
    offers(store, &["--", "dlock", "-S", &other, "fence", ""], &["other"]);
    offers(store, &["--", "dlock", "fence", &format!("--store={other}"), ""], &["other"]);
    offers(store, &["--", "dlock", "fence", ""], &[]);
    wait_for("the file to be read", || {
        let mut keys = store.dlock(&["keys", "--", "dlock", "--store-file", "~/url", "fence", ""]);
        finish(keys.env("HOME", store.dir.path())).stdout == "other\n"
    });
}

fn a_key_is_completed_in_each_shell(store: &Store) {
    for key in ["alpha", "beta:1", "beta:2"] {
        store.run(&["run", key, "--", "true"]).is(0, "", "");
    }
    let _held = store.hold("held");
    in_each_shell(|shell| {
        let mut terminal = prompt(store, shell);
        let mut becomes = |typed: &str, line: &str| {
            let completed = complete(&mut terminal, typed);
            assert!(completed.ends_with(line), "{shell} makes {completed:?} of {typed:?}");
        };
        becomes("dlock unlock ", " dlock unlock held ");
        becomes("\u{15}dlock status be", " dlock status beta:");
        becomes("1 al", " dlock status beta:1 alpha ");
        terminal.types("\n");
        terminal.await_screen(|screen| {
            let shows = |key: &str| screen.lines().any(|line| line.starts_with(key) && line.contains(" free "));
            shows("alpha ") && shows("beta:1 ") && !shows("beta:2")
        });
    });
}

fn a_key_of_odd_characters_is_completed_to_that_very_key(store: &Store) {
    let urls: Vec<String> = (0..ODD.len()).map(|number| another(store, number)).collect();
    let fences = urls.iter().zip(ODD).map(|(url, key)| {
        store.run(&["-S", url, "run", key, "--", "true"]).is(0, "", "");
        store.run(&["-S", url, "fence", key]).stdout.trim().to_owned()
    });
    let fences: Vec<String> = fences.collect();
    in_each_shell(|shell| {
        let mut terminal = prompt(store, shell);
        for ((url, fence), key) in urls.iter().zip(&fences).zip(ODD) {
            for open in ["", "'", "\""] {
                // Fish takes that for a home, unless it is told otherwise.
                let open = if shell == "fish" && open.is_empty() && key.starts_with('~') { "\\~" } else { open };
                complete(&mut terminal, &format!("dlock -S '{url}' fence {open}"));
                terminal.types("\n");
                terminal.await_screen(|screen| screen.lines().any(|line| line == fence));
                clear(&mut terminal);
            }
        }
    });
}

/// A shell that was asked for a key offers none, no file either, and says nothing.
fn offers_nothing(store: &Store, line: &str) {
    in_each_shell(|shell| {
        let mut terminal = prompt(store, shell);
        terminal.types(&format!("{line}\t"));
        terminal.types(&format!("{TO_BEGIN}printf '%s|\\n' '{TO_END}'\n"));
        let screen = terminal.await_screen(|screen| screen.contains(&format!("{line}|")));
        for word in ["dlock: ", "some-file", "alpha", "rror"] {
            assert!(!screen.contains(word), "{shell}:\n{screen}");
        }
    });
}

#[test]
fn a_store_without_keys_or_without_sense_offers_nothing() {
    let store = Store::new();
    offers_nothing(&store, "dlock unlock ");
    assert!(store.is_untouched());
    for url in ["file:/proc/1/nothing", "nonsense:", "redis://127.0.0.1:1", "file:"] {
        store.run(&["keys", "--", "dlock", "-S", url, "unlock", ""]).is(0, "", "");
    }
    fs::create_dir(store.path("locks")).expect("a directory");
    fs::write(store.path("locks/k.lock"), "no record").expect("a file");
    fs::write(store.path("locks/@.lock"), "no record").expect("a file");
    offers(&store, &["--", "dlock", "fence", ""], &["k"]);
}

#[test]
fn a_key_that_does_not_show_as_it_is_is_not_offered() {
    let store = Store::new();
    for key in ["a\u{202e}b", "plain"] {
        store.run(&["run", key, "--", "true"]).is(0, "", "");
    }
    offers(&store, &["--", "dlock", "fence", ""], &["plain"]);
}

#[test]
fn what_never_answers_is_not_waited_for() {
    let store = Store::new();
    mkfifo(&store.path("url"), Mode::S_IRWXU).expect("a pipe that nobody writes to");
    let url = store.path("url").display().to_string();
    let mut keys = command(DLOCK);
    keys.args(["keys", "--", "dlock", "--store-file", &url, "unlock", ""]);
    assert!(fastest_of_three(&mut keys) < Duration::from_secs(1));
}

/// How long it takes to print nothing, on a machine that has other things to do.
fn fastest_of_three(keys: &mut Command) -> Duration {
    let times = (0..3).map(|_| {
        let start = Instant::now();
        finish(keys).is(0, "", "");
        start.elapsed()
    });
    times.min().expect("three times")
}

#[test]
fn behind_the_dashes_stand_a_command_and_its_files() {
    let store = Store::new();
    in_each_shell(|shell| {
        let mut terminal = prompt(&store, shell);
        terminal.types("dlock run -w 5 k -- very-o\tsome-f\t\n");
        terminal.shows("I got some-file");
    });
}

#[test]
fn fish_offers_keys_to_whoever_asks_it() {
    let store = Store::new();
    store.run(&["run", "a b", "--", "true"]).is(0, "", "");
    if has("fish") {
        let mut fish = command("fish");
        let script = "source $argv[1]; complete -C 'dlock fence '; complete -C 'dlock fence x'";
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("completions/dlock.fish");
        fish.args(["--no-config", "-c", script]).arg(file);
        prepare(&store, &mut fish);
        wait_for("fish to offer the key", || finish(&mut fish).stdout == "a b\n");
    }
}

// On a cluster a test build is too slow for somebody who types.
on_file_and_redis![what_is_held_is_offered_to_unlock_and_all_keys_to_others, the_line_says_which_store];
on_file_and_redis![a_key_is_completed_in_each_shell, a_key_of_odd_characters_is_completed_to_that_very_key];

#[cfg(feature = "redis")]
mod redis {
    use std::time::Duration;

    use super::{fastest_of_three, offers, offers_nothing};
    use crate::support::redis::{REDIS, on_a_server};

    #[test]
    fn a_server_that_is_away_or_silent_offers_nothing_and_holds_nobody_up() {
        on_a_server(REDIS, |store| {
            store.run(&["run", "alpha", "--", "true"]).is(0, "", "");
            offers(store, &["--", "dlock", "fence", ""], &["alpha"]);
            store.server().freeze();
            for verb in ["unlock", "fence"] {
                let time = fastest_of_three(&mut store.dlock(&["keys", "--", "dlock", verb, ""]));
                assert!(time < Duration::from_secs(1), "{time:?}");
            }
            offers_nothing(store, "dlock fence ");
            store.server().thaw();
        });
    }

    #[test]
    fn of_too_many_keys_some_hundred_are_offered_and_the_first_and_the_last_are_among_them() {
        on_a_server(REDIS, |store| {
            let mut add = redis::cmd("ZADD");
            add.arg("dlock:index");
            for number in 0..2000 {
                add.arg(1).arg(format!("{}{number:04}", if number < 1000 { "a" } else { "b" }));
            }
            add.exec(&mut store.server().connection()).expect("they are added");
            let first = (0..499).map(|number| format!("a{number:04}"));
            let some: Vec<String> = first.chain(["b1999".into()]).collect();
            let some: Vec<&str> = some.iter().map(String::as_str).collect();
            offers(store, &["--", "dlock", "fence", ""], &some);
            offers(store, &["--", "dlock", "fence", "b1998"], &["b1998"]);
        });
    }
}
