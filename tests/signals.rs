//! Signals: dlock stands between who sends them and the command, and nobody notices.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::{
    self, SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGWINCH,
};
use nix::sys::signal::{kill, killpg};
use nix::unistd::Pid;

use crate::support::{DLOCK, Done, Running, Store, command, finish, on_file_and_redis, skipped, state, wait_for};

on_file_and_redis![
    a_signal_to_dlock_alone_reaches_the_command_once_and_by_its_name,
    the_command_decides_what_a_signal_does,
    a_signal_at_any_moment_ends_a_run_whose_command_does_not_object,
];

/// What dlock passes on and a command may die of.
const DEADLY: [Signal; 6] = [SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGINT];

/// How often each signal is sent to a whole process group: whether dlock and the command get it in a bad
/// order is a matter of chance.
const ROUNDS: usize = 20;

/// How many moments in the short life of a dlock get a signal; enough to hit each of its steps.
const MOMENTS: u32 = 150;

/// Longer than a dlock takes in a debug build until its command runs.
const LIFE: Duration = Duration::from_millis(15);

/// A perl program that writes the name of each signal that it gets, as often as it gets it, until SIGALRM.
/// A shell would take two signals for one while it waits for a command.
const LISTENER: &str = r#"
    use POSIX;
    $SIG{$_} = sub { syswrite STDOUT, "SIG$_[0]\n" } for qw(TERM HUP QUIT USR1 USR2 INT WINCH CONT), @ARGV;
    $SIG{ALRM} = sub { exit };
    my ($none, $all) = (POSIX::SigSet->new, POSIX::SigSet->new);
    $all->fillset;
    sigprocmask(SIG_SETMASK, $all);
    syswrite STDOUT, "$$\n";
    sigsuspend($none) while 1"#;

/// A dlock in a process group of its own, so that a shell's job is what it looks like.
fn job(store: &Store, args: &[&str]) -> Command {
    let mut dlock = store.dlock(&[&["run", "k", "--"], args].concat());
    dlock.process_group(0);
    dlock
}

/// A listener below a dlock, and its process id.
fn listening(command: &mut Command) -> (Running, Pid) {
    let mut running = Running::start(command);
    let listener = listener_of(&mut running);
    (running, listener)
}

/// The process id that a listener writes at first.
#[track_caller]
fn listener_of(dlock: &mut Running) -> Pid {
    let line = dlock.read_line().expect("the listener writes its process id");
    Pid::from_raw(line.parse().unwrap_or_else(|_| panic!("{line}")))
}

/// Ends a listener.
#[track_caller]
fn end(dlock: Running, listener: Pid) {
    kill(listener, SIGALRM).expect("the listener lives");
    dlock.finish().is(0, "", "");
}

#[track_caller]
fn hears(dlock: &mut Running, signal: Signal) {
    assert_eq!(dlock.read_line().as_deref(), Some(signal.as_str()));
}

fn a_signal_to_dlock_alone_reaches_the_command_once_and_by_its_name(store: &Store) {
    let (mut dlock, listener) = listening(&mut job(store, &["perl", "-e", LISTENER]));
    for _ in 0..ROUNDS {
        for signal in DEADLY.into_iter().chain([SIGWINCH]) {
            dlock.signal(signal);
            hears(&mut dlock, signal);
        }
    }
    end(dlock, listener);
}

#[test]
fn a_signal_to_the_whole_process_group_reaches_the_command_once() {
    let store = Store::new();
    for _ in 0..ROUNDS {
        let (mut dlock, listener) = listening(&mut job(&store, &["perl", "-e", LISTENER]));
        for signal in DEADLY {
            killpg(dlock.pid(), signal).expect("dlock runs");
            hears(&mut dlock, signal);
        }
        // Behind the others in dlock, so it comes after what dlock may have passed on of them.
        for _ in 0..2 {
            dlock.signal(SIGWINCH);
            hears(&mut dlock, SIGWINCH);
        }
        end(dlock, listener);
    }
}

#[test]
fn a_signal_to_the_whole_process_group_reaches_a_command_that_left_it() {
    let store = Store::new();
    let (mut dlock, listener) = listening(&mut job(&store, &["setsid", "perl", "-e", LISTENER]));
    for signal in DEADLY {
        killpg(dlock.pid(), signal).expect("dlock runs");
        hears(&mut dlock, signal);
    }
    end(dlock, listener);
}

fn the_command_decides_what_a_signal_does(store: &Store) {
    for signal in DEADLY {
        let (dlock, _) = listening(&mut job(store, &["sh", "-c", "echo $$; exec sleep 60"]));
        dlock.signal(signal);
        dlock.finish().died_of(signal);
    }
    let exit = r#"$SIG{TERM} = sub { exit 5 }; syswrite STDOUT, "$$\n"; sleep 60"#;
    let (dlock, _) = listening(&mut job(store, &["perl", "-e", exit]));
    dlock.signal(SIGTERM);
    dlock.finish().is(5, "", "");

    let stubborn = format!("$SIG{{TERM}} = 'IGNORE'; {}", LISTENER.replace("qw(TERM ", "qw("));
    let (mut dlock, listener) = listening(&mut job(store, &["perl", "-e", &stubborn]));
    for _ in 0..3 {
        dlock.signal(SIGTERM);
        dlock.signal(SIGUSR1);
        hears(&mut dlock, SIGUSR1);
    }
    store.run(&["run", "-n", "-q", "k", "--", "true"]).is(75, "", "");
    end(dlock, listener);
}

fn a_signal_at_any_moment_ends_a_run_whose_command_does_not_object(store: &Store) {
    for moment in 0..MOMENTS {
        let dlock = Running::start(&mut job(store, &["sleep", "60"]));
        sleep(LIFE * moment / MOMENTS);
        let signal = DEADLY[moment as usize / 2 % DEADLY.len()];
        let start = Instant::now();
        if moment % 2 == 0 {
            dlock.signal(signal);
        } else {
            killpg(dlock.pid(), signal).expect("dlock runs");
        }
        dlock.finish().died_of(signal);
        assert!(start.elapsed() < Duration::from_secs(30), "{signal} after {:?} was lost", LIFE * moment / MOMENTS);
        store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
    }
}

#[test]
fn a_signal_to_the_group_before_the_command_started_is_not_taken_for_a_later_one() {
    let store = Store::new();
    let holder = store.hold("k");
    let mut waiter = Running::start(&mut job(&store, &["perl", "-e", LISTENER]));
    store.await_waiting("k", 1);
    for _ in 0..3 {
        killpg(waiter.pid(), SIGWINCH).expect("dlock runs");
    }
    holder.finish().is(0, "", "");
    let listener = listener_of(&mut waiter);
    for _ in 0..3 {
        waiter.signal(SIGWINCH);
        waiter.signal(SIGUSR1);
        let heard = [waiter.read_line(), waiter.read_line()].map(Option::unwrap_or_default);
        assert!(heard.contains(&"SIGWINCH".to_owned()) && heard.contains(&"SIGUSR1".to_owned()), "{heard:?}");
    }
    end(waiter, listener);
}

#[test]
fn a_run_under_nohup_survives_a_hangup_and_so_does_its_command() {
    let store = Store::new();
    let dlock = store.dlock(&["run", "k", "--", "sh", "-c", "echo $$; read line; echo $line"]);
    let mut nohup = command("nohup");
    nohup.arg(DLOCK).args(dlock.get_args()).envs(dlock.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let (mut dlock, _) = listening(nohup.process_group(0));
    dlock.signal(SIGHUP);
    killpg(dlock.pid(), SIGHUP).expect("dlock runs");
    dlock.write_line("alive");
    dlock.await_line("alive");
    let done = dlock.finish();
    assert_eq!(done.status.code(), Some(0), "{done:#?}");
}

/// Runs `script`, in which `$dlock` stands for nothing, and then for a dlock that runs the rest.
fn without_and_with_dlock(script: &str) -> [Done; 2] {
    let store = Store::new();
    let url = format!("file:{}", store.path("locks").display());
    ["", "run"].map(|run| {
        let dlock = if run.is_empty() { String::new() } else { format!("{DLOCK} run k --") };
        finish(command("bash").args(["-c", script]).env("dlock", dlock).env("DLOCK_STORE", &url).stdin(Stdio::null()))
    })
}

#[test]
fn the_command_inherits_what_is_ignored_and_blocked() {
    let show = "exec $dlock grep -E '^Sig(Ign|Blk)' /proc/self/status";
    let block = "exec perl -MPOSIX -e 'sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGUSR1, SIGALRM)); exec @ARGV' \
                 $dlock grep -E '^Sig(Ign|Blk)' /proc/self/status";
    for how in [
        show,
        &format!("trap '' INT HUP; {show}"),
        &format!("trap '' PIPE XFSZ; {show}"),
        &format!("trap '' CHLD; {show}"),
        &format!("trap '' TERM QUIT USR1 USR2 WINCH CONT TSTP TTIN TTOU ALRM; {show}"),
        block,
    ] {
        let [without, with] = without_and_with_dlock(how);
        assert!(without.stdout.starts_with("SigBlk:"), "{without:#?}");
        with.is(0, &without.stdout, "");
    }
}

#[test]
fn who_ignores_sigchld_still_learns_how_the_command_ended() {
    let [_, exited] = without_and_with_dlock("trap '' CHLD; exec $dlock sh -c 'exit 7'");
    exited.is(7, "", "");
    let [_, killed] = without_and_with_dlock("trap '' CHLD; exec $dlock sh -c 'kill -TERM $$'");
    killed.died_of(SIGTERM);
    let [_, failed] = without_and_with_dlock("trap '' CHLD; exec $dlock /nonexistent");
    failed.says(127, &["'/nonexistent'"]);
}

#[test]
fn the_command_gets_the_descriptors_that_dlock_got_and_none_of_its_own() {
    for how in ["exec $dlock ls /proc/self/fd", "exec 7</dev/null 12>/dev/null; exec $dlock ls /proc/self/fd"] {
        let [without, with] = without_and_with_dlock(how);
        with.is(0, &without.stdout, "");
    }
    let store = Store::new();
    let alone = finish(command("ls").arg("/proc/self/fd").stdin(Stdio::piped()));
    let holder = store.hold("k");
    let waiter = Running::start(&mut store.dlock(&["run", "k", "--", "ls", "/proc/self/fd"]));
    store.await_waiting("k", 1);
    drop(holder.finish());
    waiter.finish().is(0, &alone.stdout, "");
}

/// Stops and goes on as told; whether dlock and its command do so together.
#[track_caller]
fn await_both(what: &str, processes: [Pid; 2], stopped: bool) {
    let is_so = |pid: Pid| (state(pid.as_raw()) == Some('T')) == stopped;
    wait_for(what, || processes.into_iter().all(is_so));
}

#[test]
fn dlock_stops_and_goes_on_with_its_command() {
    let store = Store::new();
    let (mut dlock, listener) = listening(&mut job(&store, &["perl", "-e", LISTENER]));
    let both = [dlock.pid(), listener];
    for stopped in both {
        for continued in both {
            kill(stopped, SIGTSTP).expect("it runs");
            await_both("both to stop", both, true);
            kill(continued, SIGCONT).expect("it is stopped");
            await_both("both to go on", both, false);
            dlock.signal(SIGUSR1);
            dlock.await_line("SIGUSR1");
        }
    }
    killpg(dlock.pid(), SIGTSTP).expect("it runs");
    await_both("both to stop", both, true);
    killpg(dlock.pid(), SIGCONT).expect("it is stopped");
    await_both("both to go on", both, false);
    kill(listener, SIGALRM).expect("the listener lives");
    let done = dlock.finish();
    assert_eq!(done.status.code(), Some(0), "{done:#?}");
}

#[test]
fn a_command_that_ignores_the_stop_does_not_stop_dlock() {
    let store = Store::new();
    let (mut dlock, listener) = listening(&mut job(&store, &["perl", "-e", LISTENER, "TSTP"]));
    for _ in 0..3 {
        dlock.signal(SIGTSTP);
        hears(&mut dlock, SIGTSTP);
    }
    assert!([dlock.pid(), listener].into_iter().all(|pid| state(pid.as_raw()) != Some('T')));
    end(dlock, listener);
}

#[test]
fn timeout_ends_a_run_and_its_command() {
    let store = Store::new();
    let script = format!("exec timeout 0.3 '{DLOCK}' run k -- sh -c \"$0; sleep 60; :\"");
    let url = format!("file:{}", store.path("locks").display());
    let done = finish(command("sh").args(["-c", &script, &store.alone()]).env("DLOCK_STORE", url).stdin(Stdio::null()));
    assert_eq!((done.status.code(), &*done.stdout), (Some(124), ""), "{done:#?}");
    store.run(&["run", "-n", "k", "--", "sh", "-c", &store.alone()]).is(0, "", "");
}

#[test]
fn as_the_first_process_of_a_namespace_dlock_ends_as_the_command_and_stops_its_tree() {
    for proc in [&[][..], &["--mount-proc"]] {
        let store = Store::new();
        let run = |words: &[&str]| {
            let mut unshare = command("unshare");
            unshare.args(["--pid", "--fork"]).args(proc).args([DLOCK, "run"]).args(words).stdin(Stdio::null());
            finish(unshare.env("DLOCK_STORE", format!("file:{}", store.path("locks").display())))
        };
        if run(&["k", "--", "true"]).status.code() != Some(0) {
            skipped("this user may not make a pid namespace");
            return;
        }
        run(&["k", "--", "sh", "-c", "exit 3"]).is(3, "", "");
        run(&["k", "--", "sh", "-c", "kill -TERM $$"]).is(143, "", "");
        let stubborn = "trap '' TERM; setsid sleep 60 & sleep 60; sleep 60";
        run(&["--max-run", "0.2", "-k", "0.2", "k", "--", "sh", "-c", stubborn]).says(124, &["stopping it"]);
        run(&["-n", "k", "--", "true"]).is(0, "", "");
    }
}
