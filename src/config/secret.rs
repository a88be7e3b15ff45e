//! Files that may hold a password: read at once with who else can read them.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Gid, Group};

/// The bits of a file's mode that let its group, and everybody, read it.
const GROUP: u32 = 0o040;
const ALL: u32 = 0o004;

/// More than any URL and any config file needs, and less than a device without end has.
const LONGEST: u64 = 1 << 20;

/// The text of a file.
pub(super) struct Text {
    /// What it holds.
    pub(super) words: String,
    /// Who can read it besides its owner.
    readers: Option<Readers>,
}

/// Who can read a file besides its owner.
#[derive(Clone, Copy)]
enum Readers {
    Group(u32),
    All,
}

/// Reads a file.
///
/// # Errors
/// As those of [`Read::read_to_string`], and if the file is far too long.
pub(super) fn read(path: &Path) -> io::Result<Text> {
    let mut file = File::open(path)?;
    let found = file.metadata()?;
    let readers = match found.mode() {
        // A pipe or a device is nobody's file to protect.
        _ if !found.is_file() => None,
        mode if mode & ALL != 0 => Some(Readers::All),
        mode if mode & GROUP != 0 => Some(Readers::Group(found.gid())),
        _ => None,
    };
    let mut words = String::new();
    if (&mut file).take(LONGEST).read_to_string(&mut words)? as u64 == LONGEST {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    Ok(Text { words, readers })
}

impl Text {
    /// Warns of a password in it that others than the owner of the file can read.
    pub(super) fn warn_of_readers(&self, path: &Path) {
        let readers = match self.readers {
            None => return,
            Some(Readers::All) => "everybody on this machine".into(),
            Some(Readers::Group(gid)) => {
                let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
                format!("the group '{}'", group.map_or_else(|| gid.to_string(), |group| group.name))
            }
        };
        let path = path.display();
        log::warn!("'{path}' holds a password, and {readers} can read it; chmod 600 '{path}'");
    }
}
