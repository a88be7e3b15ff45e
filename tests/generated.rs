//! What is generated is up to date, and is what shells and man can read.

use std::fs;
use std::path::PathBuf;

use crate::support::{DLOCK, command, finish, has};

fn root(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[track_caller]
fn is_up_to_date(file: &str, args: &[&str]) {
    let done = finish(command(DLOCK).args(args));
    let committed = fs::read_to_string(root(file)).unwrap_or_default();
    assert!(done.status.success() && done.stdout == committed, "{file} is out of date; run tests/regenerate");
}

#[test]
fn completions_are_up_to_date_and_their_shells_can_read_them() {
    for (shell, file) in [("bash", "dlock.bash"), ("zsh", "_dlock"), ("fish", "dlock.fish")] {
        let file = format!("completions/{file}");
        is_up_to_date(&file, &["completions", shell]);
        if has(shell) {
            finish(command(shell).arg("-n").arg(root(&file))).is(0, "", "");
        }
    }
}

#[test]
fn bash_completes_verbs_and_options() {
    let script = r#"
        . "$1"
        complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _dlock dlock "${!#}" x; echo "${COMPREPLY[*]}"; }
        complete_words dlock ru
        complete_words dlock run --if
    "#;
    let done = finish(command("bash").args(["-c", script, "bash"]).arg(root("completions/dlock.bash")));
    done.is(0, "run\n--if-fence\n", "");
}

#[test]
fn man_pages_are_up_to_date_and_have_their_sections() {
    is_up_to_date("man/dlock.1", &["man"]);
    let mut pages = vec!["dlock".to_owned()];
    for verb in dlock::cli::definition().get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let verb = verb.get_name();
        is_up_to_date(&format!("man/dlock-{verb}.1"), &["man", verb]);
        pages.push(format!("dlock-{verb}"));
    }
    for page in pages {
        let path = root(&format!("man/{page}.1"));
        let text = fs::read_to_string(&path).expect("the page is there");
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES"]
        {
            assert!(
                text.contains(&format!(".SH {section}\n")) || text.contains(&format!(".SH \"{section}\"\n")),
                "{page} lacks {section}"
            );
        }
        if has("mandoc") {
            finish(command("mandoc").args(["-T", "lint", "-W", "error"]).arg(&path)).is(0, "", "");
        }
    }
}

#[test]
fn the_readme_has_the_table_of_exit_codes() {
    let readme = fs::read_to_string(root("README.md")).expect("README.md is there");
    for (code, words) in dlock::exit::TABLE {
        let row = format!("| {code} | {words} |");
        assert!(readme.contains(&row), "README.md lacks the row {row}");
    }
}
