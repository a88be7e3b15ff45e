//! `dlock keys`: what a shell offers where a key is typed. Whatever is wrong, it says nothing, and in time.

mod bash;

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use self::bash::{Insertion, Line};
use crate::cli::{self, KeyPlace};
use crate::clock::Moment;
use crate::config::Settings;
use crate::exit::{Ending, Failure};
use crate::model::Key;
use crate::output;
use crate::store::{Intent, Scope, Store, StoreError};

/// How long the store may take. What takes a tenth of a second feels instantaneous, and the rest of it is for the
/// shell and for starting dlock.
const IN_TIME: Duration = Duration::from_millis(80);

/// How many keys are offered at most. Nobody reads more.
const MOST: usize = 500;

/// The keys that make sense for a verb; all, unless it is named here.
fn scope(verb: &str) -> Scope {
    match verb {
        "unlock" => Scope::Live,
        _ => Scope::All,
    }
}

/// Prints the keys for the last word of a line, one in a row. Exits 1 if that word is no key.
pub(super) fn keys(asked: &cli::Keys) -> Result<Ending, Failure> {
    output::mute();
    let until = Moment::now().after(IN_TIME);
    let nothing = Ok(Ending::Code(1));
    let (mut words, insertion) = match (&asked.bash, &asked.words[..]) {
        (None, words) => (words.to_vec(), None),
        (Some(replaced), [line]) => {
            let Some(text) = line.to_str() else { return nothing };
            let line = Line::read(text);
            let insertion = Insertion::new(text, &line, replaced);
            (line.words.into_iter().map(Into::into).collect(), Some(insertion))
        }
        _ => return nothing,
    };
    let Some(typed) = words.pop().and_then(|word| word.into_string().ok()) else { return nothing };
    let before: Vec<OsString> = words.into_iter().map(at_home).collect();
    let Some(place) = cli::key_place(&before, &typed) else { return nothing };
    // Other shells filter by themselves, and not all by what a word begins with; bash cannot see through quotes.
    let which = Which { prefix: typed, always: insertion.is_some() };
    let mut offered = ask(place, which, until);
    // What plays tricks on a terminal can neither be told apart there nor typed.
    offered.retain(|key| output::clean(key.as_str()) == key.as_str());
    if let Some(last) = offered.pop() {
        // A shell adds what all have in common, which the first and the last one decide.
        offered.truncate(MOST - 1);
        offered.push(last);
    }
    let line = |key: &Key| match &insertion {
        Some(insertion) => insertion.of(key.as_str()),
        None => Some(key.to_string()),
    };
    let text: String = offered.iter().filter_map(line).map(|line| line + "\n").collect();
    super::print(&text).map(|()| Ending::OK)
}

/// A word with the directory that `~` stands for, which a shell expands only when it executes the line.
fn at_home(word: OsString) -> OsString {
    match (Path::new(&word).strip_prefix("~"), env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest).into_os_string(),
        _ => word,
    }
}

/// Which keys are of interest.
struct Which {
    /// What has been typed of the key.
    prefix: String,
    /// Whether it counts also where there are few keys.
    always: bool,
}

/// What the store answers until then. A late answer is none.
fn ask(place: KeyPlace, which: Which, until: Moment) -> Vec<Key> {
    let (answers, heard) = mpsc::channel();
    let work = move || {
        let settings = Settings::read(&place.global).ok()?;
        let store = super::open(&settings, Intent::Look).ok()?;
        answer(&*store, scope(&place.verb), &which, &answers).ok()
    };
    // What it waits for may have no end, so nobody waits for it.
    let started = thread::Builder::new().name("keys".into()).spawn(work);
    let mut offered = Vec::new();
    while started.is_ok() {
        let Ok(better) = heard.recv_timeout(until.left()) else { break };
        offered = better;
    }
    offered
}

/// Tells which keys there are, and then, where that matters, which of these are held.
fn answer(store: &dyn Store, scope: Scope, which: &Which, answers: &Sender<Vec<Key>>) -> Result<(), StoreError> {
    let mut keys = store.list(scope)?.keys;
    if which.always || keys.len() > MOST {
        keys.retain(|key| key.as_str().starts_with(&which.prefix));
    }
    let _ = answers.send(keys.clone());
    if scope == Scope::Live {
        let inspected = store.inspect_all(&keys)?;
        let mut inspected = inspected.into_iter();
        // One that cannot be read may be held.
        keys.retain(|_| match inspected.next() {
            Some(Ok(record)) => record.is_some_and(|record| !record.holders.is_empty()),
            Some(Err(_)) | None => true,
        });
        let _ = answers.send(keys);
    }
    Ok(())
}
