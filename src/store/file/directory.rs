//! The directory of the locks: whether it can be trusted, and the files in it.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, fchmod, fstat, fstatat};
use nix::sys::statfs::fstatfs;
use nix::unistd::{Uid, fchown, fsync, geteuid, linkat};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::model::Key;
use crate::store::{StoreError, Trouble};
use crate::sys;

/// What keys are in a directory. Those of one kind know nothing of those of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Keys of locks.
    Locks,
    /// Resources that are guarded.
    Guards,
}

impl Kind {
    /// What the identity of a store begins with.
    pub(super) const fn scheme(self) -> &'static str {
        match self {
            Self::Locks => "file",
            Self::Guards => "guard",
        }
    }

    /// What ends the name of a key's file.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Locks => ".lock",
            Self::Guards => ".guard",
        }
    }

    /// What can be done about the file of a key that is damaged.
    pub(super) fn remedy(self, key: &Key) -> String {
        match self {
            Self::Locks => format!("if nobody holds '{key}', remove it"),
            Self::Guards => format!("if no late writer to '{key}' can come any more, remove it"),
        }
    }
}

/// The longest name of a key's file that is the key itself. A file name may have 255 bytes.
const MAX_NAME: usize = 200;

/// What stands for itself in the name of a file.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');

/// File systems whose byte locks depend on a server or a daemon, by the number that statfs(2) gives them
/// (linux/magic.h, and what those file systems that are not in the kernel say of themselves).
const REMOTE: [(i64, &str); 13] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9P"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x00c3_6400, "Ceph"),
    (0x7375_7245, "Coda"),
    (0x7461_636f, "OCFS2"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
];

/// A directory that was looked at and found good.
#[derive(Debug)]
pub(super) struct Directory {
    /// Nothing if it is missing.
    pub(super) fd: Option<OwnedFd>,
    path: PathBuf,
    pub(super) kind: Kind,
    pub(super) owner: u32,
    /// The group that shares it, if one does.
    pub(super) group: Option<u32>,
}

impl Directory {
    /// Opens the directory; makes it if it is missing and `create` says so.
    pub(super) fn open(path: &Path, create: bool, kind: Kind) -> Result<Self, StoreError> {
        // A slash at the end would follow a symbolic link.
        let path: PathBuf = path.components().collect();
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = match open(&path, flags, Mode::empty()) {
            Err(Errno::ENOENT) if !create => return Ok(Self { fd: None, path, kind, owner: 0, group: None }),
            Err(Errno::ENOENT) => {
                make(&path).map_err(|error| cannot("make", &path, &error))?;
                open(&path, flags, Mode::empty())
            }
            opened => opened,
        };
        let is_link = || path.symlink_metadata().is_ok_and(|found| found.is_symlink());
        let fd = match opened {
            Ok(fd) => fd,
            Err(Errno::ENOTDIR | Errno::ELOOP) if is_link() => {
                return Err(distrust(&path, "it is a symbolic link; name the directory itself"));
            }
            Err(error) => return Err(cannot("open", &path, &error.into())),
        };
        let stat = fstat(&fd).map_err(|error| cannot("look at", &path, &error.into()))?;
        let set_gid = stat.st_mode & libc_mode(Mode::S_ISGID) != 0;
        let group_writes = stat.st_mode & libc_mode(Mode::S_IWGRP) != 0;
        if stat.st_mode & libc_mode(Mode::S_IWOTH) != 0 {
            return Err(distrust(&path, "anybody may write to it; take that away with 'chmod o-w'"));
        }
        if group_writes && !set_gid {
            let words = "its group may write to it; 'chmod g-w', or 'chmod g+s' to share it with the group";
            return Err(distrust(&path, words));
        }
        let us = geteuid().as_raw();
        let shared = group_writes && set_gid;
        if stat.st_uid != us && us != 0 && !shared {
            return Err(distrust(&path, &format!("it belongs to uid {}, and we are {us}", stat.st_uid)));
        }
        let system = fstatfs(&fd).map_err(|error| cannot("look at", &path, &error.into()))?.filesystem_type();
        if let Some(name) = remote(system.0) {
            let words = format!("{name} does not keep locks when a machine or a daemon fails; use a local directory");
            return Err(distrust(&path, &words));
        }
        Ok(Self { fd: Some(fd), path, kind, owner: stat.st_uid, group: shared.then_some(stat.st_gid) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was there when it was opened.
    pub(super) fn is_there(&self) -> bool {
        self.fd.is_some()
    }

    /// The file of a key, made if `create`; nothing if there is none.
    pub(super) fn file(&self, key: &Key, create: bool) -> Result<Option<File>, StoreError> {
        let Some(folder) = &self.fd else { return Ok(None) };
        let name = self.name_of(key);
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        // Never O_CREAT on a file that may exist: fs.protected_regular would refuse another user's.
        loop {
            match openat(folder, name.as_str(), flags, Mode::empty()) {
                Ok(fd) => return self.checked(fd, &name).map(Some),
                Err(Errno::ENOENT) if !create => return Ok(None),
                Err(Errno::ENOENT) => {}
                Err(Errno::ELOOP) => return Err(distrust(&self.path.join(name), "it is a symbolic link")),
                Err(error) => return Err(cannot("open", &self.path.join(name), &error.into())),
            }
            match self.make_file(folder, &name, flags) {
                Ok(fd) => return self.checked(fd, &name).map(Some),
                Err(Errno::EEXIST) => {}
                Err(error) => return Err(cannot("make", &self.path.join(name), &error.into())),
            }
        }
    }

    /// Makes a key's file; `EEXIST` if somebody else just did.
    fn make_file(&self, folder: &OwnedFd, name: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        let mode = Mode::from_bits_truncate(if self.group.is_some() { 0o660 } else { 0o600 });
        let owner = (geteuid().is_root() && self.owner != 0).then(|| Uid::from_raw(self.owner));
        let share = |fd: &OwnedFd| {
            if owner.is_some() {
                // Else the directory's owner could not take this lock any more.
                fchown(fd, owner, None)?;
            }
            // The umask may have taken the group's rights away.
            if self.group.is_some() { fchmod(fd, mode) } else { Ok(()) }
        };
        if owner.is_some() || self.group.is_some() {
            // It gets its name last: whoever found it before it was shared would be refused.
            match openat(folder, ".", OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC, mode) {
                Ok(fd) => {
                    share(&fd)?;
                    let nameless = format!("/proc/self/fd/{}", fd.as_raw_fd());
                    linkat(AT_FDCWD, nameless.as_str(), folder, name, AtFlags::AT_SYMLINK_FOLLOW)?;
                    return Ok(fd);
                }
                // Not every file system has files without a name.
                Err(Errno::EOPNOTSUPP | Errno::EISDIR) => {}
                Err(error) => return Err(error),
            }
        }
        let fd = openat(folder, name, flags | OFlag::O_CREAT | OFlag::O_EXCL, mode)?;
        share(&fd).map(|()| fd)
    }

    fn checked(&self, fd: OwnedFd, name: &str) -> Result<File, StoreError> {
        let path = || self.path.join(name);
        let file = File::from(fd);
        let found = file.metadata().map_err(|error| cannot("look at", &path(), &error))?;
        let ours = [geteuid().as_raw(), 0, self.owner].contains(&found.uid());
        if !found.is_file() {
            return Err(distrust(&path(), "it is not a regular file"));
        }
        // None: it was deleted just now, which the caller notices.
        if found.nlink() > 1 {
            return Err(distrust(&path(), "it has a second name (a hard link)"));
        }
        if !ours && self.group != Some(found.gid()) {
            return Err(distrust(&path(), &format!("it belongs to uid {}", found.uid())));
        }
        Ok(file)
    }

    /// Whether the file of `key` is still the one with this inode number.
    pub(super) fn still_has(&self, key: &Key, inode: u64) -> bool {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        let found = self.fd.as_ref().map(|folder| fstatat(folder, self.name_of(key).as_str(), flags));
        found.is_some_and(|found| found.is_ok_and(|found| found.st_ino == inode))
    }

    /// Makes the names in the directory last.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.fd.as_ref().map_or(Ok(()), |folder| fsync(folder).map_err(Into::into))
    }

    /// The name of a key's file.
    pub(super) fn name_of(&self, key: &Key) -> String {
        file_name(key, self.kind)
    }

    /// The key whose file has this name, where the name is not too long to tell.
    pub(super) fn key_of(&self, name: &str) -> Option<Key> {
        let key = percent_decode_str(name.strip_suffix(self.kind.suffix())?).decode_utf8().ok()?;
        Key::parse(&key).ok().filter(|key| self.name_of(key) == name)
    }

    /// The path of a key's file.
    pub(super) fn path_of(&self, key: &Key) -> PathBuf {
        self.path.join(self.name_of(key))
    }

    /// Whether a file of this name may be a key's.
    pub(super) fn may_name(&self, name: &str) -> bool {
        name.ends_with(self.kind.suffix())
    }

    /// The names of the files that may be keys'.
    pub(super) fn names(&self) -> Result<Vec<OsString>, StoreError> {
        let Some(folder) = &self.fd else { return Ok(Vec::new()) };
        let entries = std::fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        let entries = entries.and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(|error| cannot("list", &self.path, &error))?;
        let names = entries.into_iter().map(|entry| entry.file_name());
        Ok(names.filter(|name| name.to_str().is_some_and(|name| self.may_name(name))).collect())
    }

    /// Opens a file by its name, to read it.
    pub(super) fn named(&self, name: &str) -> Result<Option<File>, StoreError> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let Some(folder) = &self.fd else { return Ok(None) };
        match openat(folder, name, flags, Mode::empty()) {
            Ok(fd) => self.checked(fd, name).map(Some),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ELOOP) => Err(distrust(&self.path.join(name), "it is a symbolic link")),
            Err(error) => Err(cannot("open", &self.path.join(name), &error.into())),
        }
    }
}

/// The name of a key's file: the key in percent-encoding, or, where that is too long, its beginning and
/// the key's SHA-256. A `+` never comes out of the encoding, so the two kinds do not collide.
fn file_name(key: &Key, kind: Kind) -> String {
    let encoded: Cow<'_, str> = utf8_percent_encode(key.as_str(), ENCODED).into();
    let encoded = match encoded.strip_prefix('.') {
        Some(rest) => Cow::from(format!("%2E{rest}")),
        None => encoded,
    };
    if encoded.len() <= MAX_NAME {
        return encoded.into_owned() + kind.suffix();
    }
    let hash = Sha256::digest(key.as_str());
    let mut name = format!("{}+", &encoded[..MAX_NAME - 65]);
    for byte in hash {
        use std::fmt::Write as _;
        let _ = write!(name, "{byte:02x}");
    }
    name + kind.suffix()
}

fn make(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn remote(kind: i64) -> Option<&'static str> {
    // Some architectures have it signed, some not.
    REMOTE.iter().find(|(number, _)| *number == kind & 0xffff_ffff).map(|(_, name)| *name)
}

fn libc_mode(mode: Mode) -> u32 {
    mode.bits()
}

fn distrust(path: &Path, words: &str) -> StoreError {
    StoreError::new(Trouble::Untrusted, format!("'{}' cannot be trusted with locks: {words}", path.display()))
}

/// What failed, and whose fault it is: the directory's, or the machine's.
pub(super) fn cannot(what: &str, path: &Path, error: &io::Error) -> StoreError {
    let machine = [Errno::ENOSPC, Errno::EDQUOT, Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EIO, Errno::EFBIG];
    let code = error.raw_os_error();
    let trouble =
        if machine.iter().any(|known| Some(*known as i32) == code) { Trouble::Os } else { Trouble::Untrusted };
    StoreError::new(trouble, format!("cannot {what} '{}': {}", path.display(), sys::words(error)))
}

#[cfg(test)]
mod tests {
    use super::{Kind, file_name, remote};
    use crate::model::Key;

    fn name(key: &str) -> String {
        file_name(&Key::parse(key).expect("a key"), Kind::Locks)
    }

    #[test]
    fn a_key_names_a_file_that_is_inside_the_directory_and_not_hidden() {
        assert_eq!(name("backup"), "backup.lock");
        assert_eq!(name("deploy/prod"), "deploy%2Fprod.lock");
        assert_eq!(name(".."), "%2E..lock");
        assert_eq!(name("a b%é"), "a%20b%25%C3%A9.lock");
    }

    #[test]
    fn different_keys_have_different_files_however_long_their_encoding_is() {
        let long = name(&"é".repeat(100));
        assert!(long.len() < 255 && long.contains('+'), "{long}");
        assert_ne!(long, name(&format!("{}e", "é".repeat(99))));
        assert!(!name("a+b").contains('+'));
    }

    #[test]
    fn network_file_systems_are_known_by_their_number() {
        assert_eq!(remote(0x6969), Some("NFS"));
        assert_eq!(remote(i64::from(0xff53_4d42_u32.cast_signed())), Some("CIFS"));
        assert_eq!(remote(0xef53), None, "ext4");
    }
}
