//! The config file: which one it is, and what stands in it. All of it is checked, also what is not used.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::origin::{Origin, Setting};
use super::{absolute, config, plan, secret, span};
use crate::exit::Failure;
use crate::store::Url;
use crate::sys;

/// The variable that names the file.
pub(super) const VARIABLE: &str = "DLOCK_CONFIG";

/// The file of the machine.
const MACHINE: &str = "/etc/dlock.toml";

/// The settings at the top, and those of a named store.
const SETTINGS: [&str; 5] = ["store", "ttl", "kill_after", "store_timeout", "stores"];
const STORE_SETTINGS: [&str; 2] = ["url", "url_file"];

/// What a config file says.
pub(super) struct File {
    /// Where it is, absolute, and who said so.
    pub(super) path: Setting<PathBuf>,
    pub(super) ttl: Option<Duration>,
    pub(super) kill_after: Option<Duration>,
    pub(super) store_timeout: Option<Duration>,
    /// The store: a URL or a name.
    pub(super) store: Option<Line<String>>,
    pub(super) stores: BTreeMap<String, Line<Address>>,
}

/// Something, and the line where it stands.
pub(super) struct Line<T> {
    number: usize,
    pub(super) value: T,
}

/// Where a named store is.
pub(super) enum Address {
    Url(String),
    /// A file that holds the URL, absolute.
    UrlFile(PathBuf),
}

impl File {
    /// Reads the file that is named by `flag` or in the environment, else the first one that is there.
    ///
    /// # Errors
    /// [`Failure`] with 78.
    pub(super) fn find(flag: Option<&OsStr>, here: &Path) -> Result<Option<Self>, Failure> {
        let flag = flag.map(|path| (path.to_owned(), Origin::Flag("--config")));
        let named = flag.or_else(|| env::var_os(VARIABLE).map(|path| (path, Origin::Variable(VARIABLE))));
        if let Some((path, from)) = named {
            // A secret that a pipeline did not get would make other locks.
            if path.is_empty() {
                return Err(config(format!("{from} is set, but empty; unset it to use the usual config file")));
            }
            let path = here.join(path);
            let text = secret::read(&path).map_err(|error| unreadable(&path, &error))?;
            return Self::read(&Setting { value: path, from }, &text).map(Some);
        }
        for path in places(|name| env::var_os(name)) {
            match secret::read(&path) {
                Ok(text) => return Self::read(&Setting::default(path), &text).map(Some),
                Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => {}
                // It may say that the locks are elsewhere.
                Err(error) => return Err(unreadable(&path, &error)),
            }
        }
        Ok(None)
    }

    fn read(path: &Setting<PathBuf>, text: &secret::Text) -> Result<Self, Failure> {
        let file = Reader { path: &path.value, text: &text.words }.file(path.clone())?;
        let urls = file.stores.values().filter_map(|line| match &line.value {
            Address::Url(url) => Some(url),
            Address::UrlFile(_) => None,
        });
        if urls.chain(file.store.iter().map(|line| &line.value)).any(|url| Url::holds_password(url)) {
            text.warn_of_readers(&path.value);
        }
        Ok(file)
    }

    /// Where relative paths in it start.
    pub(super) fn folder(&self) -> &Path {
        self.path.value.parent().unwrap_or(&self.path.value)
    }

    /// A line of it, for messages.
    pub(super) fn spot<T>(&self, line: &Line<T>) -> String {
        spot(&self.path.value, line.number)
    }

    /// Who decided what stands in it.
    pub(super) fn origin(&self) -> Origin {
        Origin::File(self.path.value.clone())
    }
}

/// Where a config file may be if nobody names one, the first one first. `set` is the environment.
fn places(set: impl Fn(&str) -> Option<OsString>) -> impl Iterator<Item = PathBuf> {
    let folder = absolute(set("XDG_CONFIG_HOME")).or_else(|| absolute(set("HOME")).map(|home| home.join(".config")));
    folder.map(|folder| folder.join("dlock/config.toml")).into_iter().chain([MACHINE.into()])
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    config(format!("cannot read the config file '{}': {}", path.display(), sys::words(error)))
}

fn spot(path: &Path, line: usize) -> String {
    format!("'{}' line {line}", path.display())
}

/// The known word that `word` may be a slip of, or else all of them, as the end of an error.
pub(super) fn hint<'a>(word: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let slips = |known: &&str| strsim::osa_distance(word, known);
    // More than one in three letters wrong is another word.
    match known.clone().min_by_key(slips).filter(|known| slips(known) <= (word.chars().count() / 3).max(1)) {
        Some(nearest) => format!("did you mean '{nearest}'?"),
        None => format!("known are {}", known.map(|known| format!("'{known}'")).collect::<Vec<_>>().join(", ")),
    }
}

/// A file that is being read. What stands in it is repeated only where it can be no password.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

type Key<'a> = Spanned<std::borrow::Cow<'a, str>>;
type Value<'a> = Spanned<DeValue<'a>>;

impl Reader<'_> {
    fn file(&self, path: Setting<PathBuf>) -> Result<File, Failure> {
        let table = DeTable::parse(self.text).map_err(|error| {
            self.wrong(error.span().unwrap_or_default(), format_args!("it is not TOML: {}", error.message()))
        })?;
        let mut file =
            File { path, ttl: None, kill_after: None, store_timeout: None, store: None, stores: BTreeMap::new() };
        for (key, value) in table.get_ref() {
            match key.get_ref().as_ref() {
                "store" => file.store = Some(self.line(key, self.string(key, value)?)),
                "ttl" => file.ttl = Some(self.span(key, value, plan::long_enough)?),
                "kill_after" => file.kill_after = Some(self.span(key, value, span::positive)?),
                "store_timeout" => file.store_timeout = Some(self.span(key, value, span::positive)?),
                "stores" => file.stores = self.stores(key, value)?,
                _ => return Err(self.unknown(key, &SETTINGS)),
            }
        }
        Ok(file)
    }

    fn stores(&self, key: &Key, value: &Value) -> Result<BTreeMap<String, Line<Address>>, Failure> {
        let stores = self.table(key, value, "a table of named stores, as in [stores.prod]")?;
        stores.iter().map(|(name, store)| Ok((self.name(name)?, self.line(name, self.address(name, store)?)))).collect()
    }

    fn name(&self, name: &Key) -> Result<String, Failure> {
        let text = name.get_ref();
        if is_name(text) {
            Ok(text.to_string())
        } else {
            Err(self.wrong(name.span(), "the name of a store is not empty and has no ':', '/' or '@'"))
        }
    }

    fn address(&self, name: &Key, store: &Value) -> Result<Address, Failure> {
        let settings = self.table(name, store, "a table with 'url' or 'url_file'")?;
        let mut found = None;
        for (key, value) in settings {
            let address = match key.get_ref().as_ref() {
                "url" => Address::Url(self.string(key, value)?),
                "url_file" => {
                    let folder = self.path.parent().unwrap_or(self.path);
                    Address::UrlFile(folder.join(self.string(key, value)?))
                }
                _ => return Err(self.unknown(key, &STORE_SETTINGS)),
            };
            if found.replace(address).is_some() {
                return Err(self.wrong(key.span(), "a store has 'url' or 'url_file', and not both"));
            }
        }
        found.ok_or_else(|| self.wrong(name.span(), format_args!("'{}' needs 'url' or 'url_file'", name.get_ref())))
    }

    fn table<'v>(&self, key: &Key, value: &'v Value<'v>, what: &str) -> Result<&'v DeTable<'v>, Failure> {
        value.get_ref().as_table().ok_or_else(|| self.wrong_type(key, value, what))
    }

    fn string(&self, key: &Key, value: &Value) -> Result<String, Failure> {
        match value.get_ref().as_str() {
            Some("") => Err(self.wrong(key.span(), format_args!("'{}' is empty", key.get_ref()))),
            Some(text) => Ok(text.to_owned()),
            None => Err(self.wrong_type(key, value, "a string")),
        }
    }

    fn span(
        &self,
        key: &Key,
        value: &Value,
        meaning: impl Fn(&str, &str) -> Result<Duration, String>,
    ) -> Result<Duration, Failure> {
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) if number.radix() == 10 => number.to_string(),
            DeValue::Float(number) => number.to_string(),
            _ => return Err(self.wrong_type(key, value, "a span of time like '30s', or a number of seconds")),
        };
        meaning(key.get_ref(), &text).map_err(|why| self.wrong(key.span(), why))
    }

    fn unknown(&self, key: &Key, known: &[&str]) -> Failure {
        let name = key.get_ref();
        // It may be a URL that was put into the wrong place.
        let shown = if is_name(name) { format!("there is no setting '{name}'") } else { "this is no setting".into() };
        self.wrong(key.span(), format_args!("{shown}; {}", hint(name, known.iter().copied())))
    }

    fn wrong_type(&self, key: &Key, value: &Value, what: &str) -> Failure {
        let kind = value.get_ref().type_str();
        let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
        self.wrong(key.span(), format_args!("'{}' is {what}, and not {article} {kind}", key.get_ref()))
    }

    fn wrong(&self, at: Range<usize>, words: impl fmt::Display) -> Failure {
        config(format!("{}: {words}", spot(self.path, self.number(at))))
    }

    fn line<T>(&self, key: &Key, value: T) -> Line<T> {
        Line { number: self.number(key.span()), value }
    }

    fn number(&self, at: Range<usize>) -> usize {
        self.text.bytes().take(at.start).filter(|byte| *byte == b'\n').count() + 1
    }
}

/// Whether a text can be the name of a store: whatever looks like a URL, a directory or a login cannot.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains([':', '/', '@'])
}

#[cfg(test)]
mod tests {
    use super::places;
    use std::ffi::OsString;
    use std::path::PathBuf;

    #[test]
    fn the_file_of_the_user_comes_before_that_of_the_machine() {
        let of = |set: &[(&str, &str)]| -> Vec<PathBuf> {
            places(|name| set.iter().find(|(set, _)| *set == name).map(|(_, value)| OsString::from(value))).collect()
        };
        let machine = PathBuf::from("/etc/dlock.toml");
        assert_eq!(
            of(&[("XDG_CONFIG_HOME", "/x"), ("HOME", "/h")]),
            [PathBuf::from("/x/dlock/config.toml"), machine.clone()]
        );
        for unfit in ["", "relative"] {
            assert_eq!(
                of(&[("XDG_CONFIG_HOME", unfit), ("HOME", "/h")]),
                [PathBuf::from("/h/.config/dlock/config.toml"), machine.clone()]
            );
        }
        for set in [&[("HOME", "relative")][..], &[]] {
            assert_eq!(of(set), std::slice::from_ref(&machine));
        }
    }
}
