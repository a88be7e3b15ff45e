//! Which store it is, and how commands inside are told of it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::file::{Address, File, hint, is_name};
use super::origin::{Origin, Setting};
use super::{absolute, config, secret};
use crate::cli;
use crate::exit::Failure;
use crate::store::Url;
use crate::sys;

/// The variables that name the store: its URL or its name, or a file that holds the URL.
const TEXT: &str = "DLOCK_STORE";
const URL_FILE: &str = "DLOCK_STORE_FILE";

/// How somebody named the store.
enum Named {
    /// By its URL, or by its name in the config file.
    Text(OsString),
    /// By a file that holds the URL.
    File(OsString),
}

/// The variables that name the store for commands inside; without a value they are removed.
pub(super) type HandedOn = [(&'static str, Option<OsString>); 2];

/// Where the store is, and how commands inside are told: in the form in which it came, paths absolute.
///
/// # Errors
/// [`Failure`] with 64 or 78.
pub(super) fn find(
    global: &cli::Global,
    file: Option<&File>,
    here: &Path,
) -> Result<(Setting<Url>, HandedOn), Failure> {
    let (value, from, text, url_file) = match (named(global)?, file) {
        (Some(Setting { value: Named::File(path), from }), _) => {
            let path = here.join(path);
            (from_file(&path)?, from, None, Some(path.into_os_string()))
        }
        (Some(Setting { value: Named::Text(text), from }), _) => match meant(&text, &from.to_string(), file, here)? {
            (url, true) => (url, from, Some(text), None),
            (url, false) => (url.clone(), from, Some(url.text()), None),
        },
        // The file itself is handed on, and no URL, which may hold a password.
        (None, Some(file @ File { store: Some(store), .. })) => {
            let (url, _) = meant(OsStr::new(&store.value), &file.spot(store), Some(file), file.folder())?;
            (url, file.origin(), None, None)
        }
        (None, _) => {
            let url = Url::File(default_directory()?);
            (url.clone(), Origin::Default, Some(url.text()), None)
        }
    };
    Ok((Setting { value, from }, [(TEXT, text), (URL_FILE, url_file)]))
}

fn named(global: &cli::Global) -> Result<Option<Setting<Named>>, Failure> {
    let text = |text, from| Ok(Some(Setting { value: Named::Text(text), from }));
    let file = |file, from| Ok(Some(Setting { value: Named::File(file), from }));
    match (&global.store, &global.store_file) {
        // One may stand before the verb and one behind it.
        (Some(_), Some(_)) => return Err(Failure::usage("--store and --store-file cannot be used together")),
        (Some(url), None) => return text(url.clone(), Origin::Flag("--store")),
        (None, Some(path)) => return file(path.clone(), Origin::Flag("--store-file")),
        (None, None) => {}
    }
    let set = (env::var_os(TEXT), env::var_os(URL_FILE));
    for (name, value) in [(TEXT, &set.0), (URL_FILE, &set.1)] {
        // A secret that a pipeline did not get would make a lock of this machine alone.
        if value.as_ref().is_some_and(|value| value.is_empty()) {
            return Err(config(format!("{name} is set, but empty; unset it to lock on this machine alone")));
        }
    }
    match set {
        (Some(_), Some(_)) => Err(config(format!("{TEXT} and {URL_FILE} are both set; unset one of them"))),
        (Some(url), None) => text(url, Origin::Variable(TEXT)),
        (None, Some(path)) => file(path, Origin::Variable(URL_FILE)),
        (None, None) => Ok(None),
    }
}

/// The store that a text at `whence` means, and whether it is the name of one. Relative paths start at `base`.
fn meant(text: &OsStr, whence: &str, file: Option<&File>, base: &Path) -> Result<(Url, bool), Failure> {
    let read = file;
    let file = file.filter(|file| !file.stores.is_empty());
    if let (Some(name), Some(file)) = (text.to_str().filter(|text| is_name(text)), file) {
        return Ok((by_name(name, whence, file)?, true));
    }
    let url = url_of(text, base).map_err(|why| {
        let or_a_name = match text.to_str().is_some_and(is_name) {
            true if read.is_some() => ", or a store of the config file by its name",
            true => ", or a store of the config file by its name, and there is no config file",
            false => "",
        };
        config(format!("{whence}: {why}{or_a_name}"))
    })?;
    Ok((url, false))
}

fn by_name(name: &str, whence: &str, file: &File) -> Result<Url, Failure> {
    let Some(line) = file.stores.get(name) else {
        let hint = hint(name, file.stores.keys().map(String::as_str));
        let path = file.path.value.display();
        return Err(config(format!("{whence}: '{name}' is no store URL, and no store of '{path}'; {hint}")));
    };
    match &line.value {
        Address::UrlFile(path) => from_file(path),
        Address::Url(url) => {
            let is_wrong = |why: String| config(format!("{}: store '{name}': {why}", file.spot(line)));
            // It may be a password alone, so it is not repeated.
            if !url.contains(':') {
                return Err(is_wrong("its 'url' is no store URL, as 'redis://HOST' is".into()));
            }
            Url::parse(url, file.folder()).map_err(|error| is_wrong(error.to_string()))
        }
    }
}

fn url_of(text: &OsStr, base: &Path) -> Result<Url, String> {
    if let Some(text) = text.to_str() {
        return Url::parse(text, base).map_err(|error| error.to_string());
    }
    // A directory may have any name.
    match text.as_bytes().strip_prefix(b"file:") {
        Some(path) => Ok(Url::File(base.join(OsStr::from_bytes(path)))),
        None => Err("the URL is not UTF-8".into()),
    }
}

/// The store whose URL stands in a file. Relative paths in it start where the file is, so that they mean the same
/// to commands inside, wherever those are.
fn from_file(file: &Path) -> Result<Url, Failure> {
    let text = secret::read(file).map_err(|error| {
        config(format!("cannot read the store's URL from '{}': {}", file.display(), sys::words(&error)))
    })?;
    let is_wrong = |why: &str| config(format!("'{}': {why}", file.display()));
    // Some editors begin a file with a mark of its encoding.
    let url = text.words.trim_start_matches('\u{feff}').trim();
    if url.is_empty() || url.lines().count() > 1 {
        return Err(is_wrong("it must hold one line, the store's URL"));
    }
    // It may be a password alone, so it is not repeated.
    if !url.contains(':') {
        return Err(is_wrong("what it holds is no store URL, as 'redis://HOST' is"));
    }
    if Url::holds_password(url) {
        text.warn_of_readers(file);
    }
    Url::parse(url, file.parent().unwrap_or(file)).map_err(|error| is_wrong(&error.to_string()))
}

/// The directory of locks where nobody named one.
pub(super) fn default_directory() -> Result<PathBuf, Failure> {
    if geteuid().is_root() {
        return Ok("/var/lib/dlock".into());
    }
    let set = |name| absolute(env::var_os(name));
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    let state = state.ok_or_else(|| config("HOME is not set; name a directory with '--store file:DIR'"))?;
    Ok(state.join("dlock"))
}
