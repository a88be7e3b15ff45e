//! What README.md shows is executed.

use std::fs;
use std::path::PathBuf;

use crate::support::{DLOCK, Store, command, finish, has};

fn readme() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("README.md");
    fs::read_to_string(path).expect("README.md is there")
}

/// The blocks of README.md in this language.
fn blocks(language: &str) -> Vec<String> {
    let text = readme();
    let fence = format!("```{language}\n");
    let after = text.split(&fence).skip(1);
    after.map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// A shell script in a place of its own, where `dlock` and the jobs of the examples can be found.
fn run(store: &Store, script: &str) -> crate::support::Done {
    let bin = store.path("bin");
    fs::create_dir_all(&bin).expect("a folder for programs");
    let link = bin.join("dlock");
    if !link.exists() {
        std::os::unix::fs::symlink(DLOCK, link).expect("a link to dlock");
    }
    for job in ["nightly-report", "fetch"] {
        fs::write(bin.join(job), "#!/bin/sh\necho ran\n").expect("a job");
        finish(command("chmod").arg("+x").arg(bin.join(job))).is(0, "", "");
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = command("sh");
    shell.args(["-euc", script]).current_dir(store.dir.path());
    shell.env("PATH", format!("{}:{path}", bin.display())).env("HOME", store.dir.path());
    shell.env("DLOCK_STORE", store.url());
    finish(&mut shell)
}

#[test]
fn the_shell_examples_run_to_their_end() {
    let blocks = blocks("sh");
    assert!(blocks.len() >= 6, "README.md has lost its examples");
    for block in blocks.iter().filter(|block| !block.contains("jq ") || has("jq")) {
        let done = run(&Store::new(), block);
        assert!(done.status.success(), "{block}\n{done:#?}");
    }
}

#[test]
fn the_script_that_is_watched_speaks_of_what_went_wrong_and_of_nothing_else() {
    let blocks = blocks("sh");
    let block = blocks.iter().find(|block| block.contains("--report")).expect("there is one");
    if !has("jq") {
        return;
    }
    let store = Store::new();
    run(&store, block).is(0, "ran\n", "");
    let holder = store.hold("nightly-report");
    let again = format!("TMPDIR={} ./nightly", store.dir.path().display());
    run(&store, &again).is(0, "", "");
    holder.finish().is(0, "", "");
    let job = |script: &str| {
        let path = store.path("bin/failing");
        fs::create_dir_all(&path).expect("a folder");
        fs::write(path.join("nightly-report"), format!("#!/bin/sh\n{script}\n")).expect("a job");
        finish(command("chmod").arg("+x").arg(path.join("nightly-report"))).is(0, "", "");
        run(&store, &format!("PATH={}:$PATH {again}", path.display())).stdout
    };
    assert_eq!(job("exit 3"), "nightly-report: ran 3 \n");
    assert_eq!(job("kill -9 $$"), "nightly-report: ran null \n");
    let lost = job(&format!("rm '{}'; exec sleep 60", store.key_file("nightly-report").display()));
    assert!(lost.starts_with("nightly-report: lost 76 lost 'nightly-report': "), "{lost}");
    // The guardian is the job's parent, and dlock the guardian's.
    let killed = job("read -r _ _ _ dlock _ </proc/$PPID/stat; kill -9 $dlock; exec sleep 60");
    assert_eq!(killed, "nightly-report: no report, exit 137\n");
    let files = fs::read_dir(store.dir.path()).expect("it can be listed").count();
    assert_eq!(files, 3, "locks, bin and the script");
}

/// The command of a crontab's line.
fn job(line: &str) -> &str {
    line.splitn(6, ' ').nth(5).expect("a crontab line has five fields and a command")
}

#[test]
fn the_crontab_lines_run_when_the_key_is_free_and_are_silent_when_it_is_not() {
    let blocks = blocks("crontab");
    assert_eq!(blocks.len(), 4);
    // A line that sets a variable names a store of the reader's.
    let lines = blocks.iter().flat_map(|block| block.lines()).filter(|line| line.starts_with(['0', '*']));
    for job in lines.map(job).filter(|job| job.contains("dlock run")) {
        let store = Store::new();
        run(&store, job).is(0, "ran\n", "");
        let key = if job.contains("nightly") { "nightly-report" } else { "fetch" };
        let _holder = (!job.contains("--min-hold")).then(|| store.hold(key));
        run(&store, job).is(0, "", "");
    }
}

#[test]
fn the_line_for_a_collector_makes_a_whole_file_or_leaves_the_old_one() {
    let blocks = blocks("crontab");
    let line = blocks.iter().flat_map(|block| block.lines()).find(|line| line.contains("dlock metrics"));
    let store = Store::new();
    let folder = store.path("collected");
    fs::create_dir(&folder).expect("a folder");
    let job = job(line.expect("there is one"));
    let job = job.replace("/var/lib/prometheus/node-exporter", folder.to_str().expect("a path in UTF-8"));
    store.run(&["run", "deploy/prod", "--", "true"]).is(0, "", "");
    run(&store, &job).is(0, "", "");
    let collected = || fs::read_to_string(folder.join("dlock.prom")).expect("the collector's file");
    let whole = collected();
    assert!(whole.contains("dlock_held_seconds{key=\"deploy/prod\"} 0") && whole.ends_with("# EOF\n"), "{whole}");
    fs::remove_dir_all(store.path("locks")).and_then(|()| fs::write(store.path("locks"), "")).expect("no store");
    run(&store, &job).says(73, &["locks"]);
    assert_eq!(collected(), whole);
}

#[test]
fn the_alert_rules_speak_of_metrics_that_there_are() {
    let store = Store::new();
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    let metrics = store.run(&["metrics"]).stdout;
    let rules = blocks("yaml").concat();
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let named: Vec<&str> = rules.split(|c| !word(c)).filter(|name| name.starts_with("dlock_")).collect();
    assert!(named.len() >= 3, "README.md has lost its rules");
    for name in named {
        assert!(metrics.contains(&format!("\n{name}{{key=")), "there is no {name}");
    }
}

#[test]
fn the_config_file_can_be_read_and_its_names_mean_stores() {
    let store = Store::new();
    let blocks = blocks("toml");
    assert_eq!(blocks.len(), 1);
    fs::write(store.path("config.toml"), &blocks[0]).expect("a config file");
    fs::write(store.path("prod.url"), store.url()).expect("a URL file");
    let mut dlock = command(DLOCK);
    dlock.args(["run", "k", "--", "echo", "in"]).env("DLOCK_CONFIG", store.path("config.toml"));
    finish(&mut dlock).is(0, "in\n", "");
    assert!(store.keeps("k"));
    // There is no such server.
    let mut dlock = command(DLOCK);
    dlock.args(["-S", "lab", "--store-timeout", "0.1", "fence", "k"]).env("DLOCK_CONFIG", store.path("config.toml"));
    finish(&mut dlock).says(if cfg!(feature = "redis") { 69 } else { 78 }, &["redis"]);
}

#[cfg(feature = "redis")]
#[test]
fn the_examples_for_redis_run_to_their_end() {
    use crate::support::redis::{REDIS, on_a_server};
    on_a_server(REDIS, |store| {
        let (sentinels, quorum) = (Store::on_sentinels(), Store::on_quorum());
        let blocks = blocks("bash");
        assert_eq!(blocks.len(), 7);
        for block in blocks.into_iter().filter(|block| block.contains("redis")) {
            let (servers, _) = sentinels.url().split_once('?').expect("it has a prefix");
            let script = block
                .replace("redis://redis.example", store.url())
                .replace("redis+sentinel://s1.example,s2.example,s3.example/locks", servers)
                .replace("redis+quorum://r1.example,r2.example,r3.example", quorum.url())
                .replace("./deploy", "true");
            assert_ne!(script, block, "it names the server");
            let done = run(store, &script);
            assert!(done.status.success(), "{block}\n{done:#?}");
            if block.contains("-STOP") {
                assert!(done.stdout == "newer\n" && done.stderr.contains("is stale"), "{done:#?}");
            }
        }
    });
}

#[cfg(feature = "postgres")]
#[test]
fn what_is_printed_for_postgres_is_what_a_user_needs() {
    let block = blocks("bash").into_iter().find(|block| block.contains("postgres://")).expect("there is one");
    let done = run(&Store::new(), &block);
    assert!(done.status.success(), "{done:#?}");
    assert!(done.stdout.contains(&blocks("sql")[0]), "{done:#?}");
}

#[cfg(feature = "postgres")]
#[test]
fn the_question_to_a_table_has_an_answer() {
    use crate::support::postgres::has_postgres;
    if !has_postgres() {
        return;
    }
    let store = Store::on_postgres();
    let _holder = store.hold("k");
    let question = &blocks("sql")[1];
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("Linux has it");
    assert_eq!(store.sql(&question.replace("FROM dlock", "FROM TABLE")), format!("k|{}", host.trim()));
}

#[cfg(feature = "redis")]
#[test]
fn the_rule_for_a_redis_user_is_the_one_that_is_tested() {
    let blocks = blocks("acl");
    let expected = format!("ACL SETUSER dlock on >PASSWORD {}\n", crate::redis::access::RULE);
    let more = [
        crate::redis::closed::WITH_SENTINELS,
        crate::redis::closed::IN_A_CLUSTER,
        crate::redis::quorum::AS_A_VOTER,
        crate::redis::access::EXAMINE,
    ];
    let more = more.map(|rule| format!("ACL SETUSER dlock {rule}\n"));
    assert_eq!(blocks, [&[expected], &more[..]].concat());
}

#[test]
fn exactly_two_commands_set_everything_up() {
    let text = readme();
    let setup: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert_eq!(setup, ["cargo run --release -- run hello -- echo \"the lock is mine\"", "tests/run"]);
    let ci = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".ci/run");
    let ci = fs::read_to_string(ci).expect(".ci/run is there");
    for command in setup {
        assert!(ci.contains(command), ".ci/run does not run {command}");
    }
}

/// What a section of README.md says.
fn section(title: &str) -> String {
    let text = readme();
    let (_, section) = text.split_once(&format!("\n## {title}\n")).expect("there is one");
    section.split("\n## ").next().unwrap_or_default().to_owned()
}

/// The names that stand in a text for tests: `module::name::{arm,arm}` is one for each arm.
fn tests_named_in(text: &str) -> Vec<String> {
    let spans = text.split('`').skip(1).step_by(2).filter(|span| span.contains("::"));
    let names = spans.flat_map(|span| match span.strip_suffix('}').and_then(|span| span.split_once('{')) {
        Some((name, arms)) => arms.split(',').map(|arm| format!("{name}{arm}")).collect(),
        None => vec![span.to_owned()],
    });
    names.collect()
}

#[test]
fn the_tests_that_show_what_is_promised_are_there() {
    // Of a store that is left out there are no tests.
    if !cfg!(all(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis")) {
        return;
    }
    let this = std::env::current_exe().expect("it runs");
    let list = finish(command(this.to_str().expect("its path is UTF-8")).args(["--list", "--format", "terse"])).stdout;
    let is_there = |name: &String| list.lines().any(|line| line.strip_suffix(": test") == Some(name));
    let section = section("What is promised, and which test shows it");
    let (introduction, tables) = section.split_once("\n\n**").expect("tables follow");
    assert!(introduction.contains("`crash::name::{file,etcd}`"), "how a name is read");
    let named = tests_named_in(tables);
    let missing: Vec<_> = named.iter().filter(|name| !is_there(name)).collect();
    assert!(named.len() > 80 && missing.is_empty(), "{} are named, and there are no {missing:#?}", named.len());
    let rows = tables.split("|---|\n").skip(1).flat_map(|rows| rows.lines().take_while(|line| line.starts_with('|')));
    for row in rows {
        let says = ["not tested: ", "none is needed"].iter().any(|words| row.contains(words));
        assert!(says || !tests_named_in(row).is_empty(), "neither a test nor why there is none: {row}");
    }
}
