//! Whether a directory can be trusted with locks, beyond what [`Directory::open`] refuses.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, fstatfs, statfs};
use nix::sys::statvfs::{FsFlags, Statvfs, fstatvfs};
use nix::unistd::{AccessFlags, Gid, Group, Uid, User, eaccess, faccessat, geteuid};

use super::directory::{Directory, cannot};
use crate::store::{Examination, Finding, StoreError};
use crate::sys;

/// Local file systems, by the number that statfs(2) gives them (linux/magic.h).
const LOCAL: [(i64, &str); 11] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
    (0x794c_7630, "overlay"),
    (0x0102_1994, TMPFS),
    (0x8584_58f6, RAMFS),
    (0x7371_7368, "squashfs"),
    (0xf15f, "ecryptfs"),
];

/// Those that lose all when the machine stops.
const TMPFS: &str = "tmpfs";
const RAMFS: &str = "ramfs";

/// Below so many bytes or files, others may leave none for the next key. One that was held takes 8 KiB.
const MIN_ROOM: u64 = 16 << 20;
const MIN_FILES: u64 = 128;

/// Looks at the directory and the files in it. Opens some, and reads and writes none.
pub(super) fn examine(directory: &Directory) -> Result<Examination, StoreError> {
    let mut found = Examination::default();
    found.know("directory", directory.path().display().to_string());
    match &directory.fd {
        None => look_where_it_would_be(directory.path(), &mut found)?,
        Some(fd) => {
            let trouble = |error: Errno| cannot("look at", directory.path(), &error.into());
            look_at_file_system(fstatfs(fd).map_err(trouble)?.filesystem_type(), &mut found);
            look_at_rights(directory, fd, &mut found)?;
            let room = fstatvfs(fd).map_err(trouble)?;
            look_at_room(&room, &mut found);
            if room.flags().contains(FsFlags::ST_RDONLY) {
                found.findings.push(Finding::warning(
                    "it is on a file system that is mounted read-only",
                    "keys can be looked at, and none can be taken or given back",
                    "'mount -o remount,rw', or name another directory; the log of the kernel says whether an error made \
                     it read-only",
                ));
            } else {
                look_at_access(directory, fd, &mut found)?;
            }
        }
    }
    Ok(found)
}

fn look_where_it_would_be(path: &Path, found: &mut Examination) -> Result<(), StoreError> {
    let there = path.ancestors().skip(1).find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let kind = statfs(there).map_err(|error| cannot("look at", there, &error.into()))?.filesystem_type();
    look_at_file_system(kind, found);
    if let Err(error) = eaccess(there, AccessFlags::W_OK | AccessFlags::X_OK) {
        found.findings.push(Finding::warning(
            format!("it is not there, and we cannot make it in '{}': {}", there.display(), sys::words(&error.into())),
            "no lock can be taken by us",
            "make it as root: 'install -d -m 700 -o USER DIR'; or name another one with '--store file:DIR'",
        ));
    } else {
        found.findings.push(Finding::note(
            "it is not there yet",
            "no key was held here so far; if that is a surprise, others may lock elsewhere",
            "nothing: the first run makes it",
        ));
    }
    Ok(())
}

fn look_at_file_system(kind: FsType, found: &mut Examination) {
    // Some architectures have it signed, some not.
    let number = kind.0 & 0xffff_ffff;
    let name = LOCAL.iter().find(|(known, _)| *known == number).map(|(_, name)| *name);
    found.know("file_system", name.map_or_else(|| format!("0x{number:x}"), String::from));
    if let Some(name @ (TMPFS | RAMFS)) = name {
        found.findings.push(Finding::note(
            format!("it is on {name}, which forgets all when the machine stops"),
            "leases of 'dlock acquire', '--min-hold' and histories end with this boot; a 'dlock run' does anyway",
            "nothing, if that is all right; else name a directory on a disk",
        ));
    }
}

fn look_at_rights(directory: &Directory, fd: &OwnedFd, found: &mut Examination) -> Result<(), StoreError> {
    let stat = fstat(fd).map_err(|error| cannot("look at", directory.path(), &error.into()))?;
    let owner = user(directory.owner);
    found.know("owner", &*owner);
    found.know("mode", format!("{:04o}", stat.st_mode & 0o7777));
    if let Some(group) = directory.group {
        let name = Group::from_gid(Gid::from_raw(group)).ok().flatten();
        let name = name.map_or_else(|| format!("gid {group}"), |group| group.name);
        found.know("group", &*name);
        found.findings.push(Finding::note(
            format!("the group '{name}' shares it"),
            "whoever is in that group can take locks away, or forge them",
            "nothing, if they are trusted; else 'chmod 700'",
        ));
    }
    if geteuid().is_root() && directory.owner != 0 {
        found.findings.push(Finding::note(
            format!("it belongs to {owner}, and we are root"),
            "that user can take locks of root away, or forge them",
            "nothing, if that user is trusted; else give root a directory of its own",
        ));
    }
    Ok(())
}

fn user(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| format!("uid {uid}"), |user| user.name)
}

#[expect(clippy::useless_conversion, reason = "on machines of 32 bits these numbers are smaller")]
fn look_at_room(room: &Statvfs, found: &mut Examination) {
    let free = u64::from(room.blocks_available()) * u64::from(room.fragment_size());
    let (all_files, files) = (u64::from(room.files()), u64::from(room.files_available()));
    found.know("free", format!("{} MiB", free >> 20));
    // A file system that makes them as it needs them says that it has none at all.
    let few = all_files > 0 && files < MIN_FILES;
    if free < MIN_ROOM || few {
        let what = if few { format!("{files} more files") } else { format!("{} KiB", free >> 10) };
        found.findings.push(Finding::warning(
            format!("its file system has room for no more than {what}"),
            "a key that was never held needs a file of 8 KiB; without it 'dlock run' exits with 71",
            "make room, or name a directory on another file system",
        ));
    }
}

fn look_at_access(directory: &Directory, fd: &OwnedFd, found: &mut Examination) -> Result<(), StoreError> {
    let may = |name: &str, what: AccessFlags| faccessat(fd.as_fd(), name, what, AtFlags::AT_EACCESS);
    if let Err(error) = may(".", AccessFlags::W_OK | AccessFlags::X_OK) {
        found.findings.push(Finding::warning(
            format!("we cannot make files in it: {}", sys::words(&error.into())),
            "a key that was never held cannot be taken by us",
            "'chmod u+wx' as its owner, or name another directory",
        ));
    }
    let mut unfit = Vec::new();
    for name in directory.names()? {
        let Some(name) = name.to_str() else { continue };
        let path = directory.path().join(name);
        let looked = directory.named(name).map(drop);
        let wrote = || may(name, AccessFlags::W_OK).map_err(|error| cannot("write", &path, &error.into()));
        match looked.and_then(|()| wrote()) {
            // Somebody deleted it just now.
            Ok(()) => {}
            Err(_) if !path.exists() && !path.is_symlink() => {}
            Err(error) => unfit.push(error.words),
        }
    }
    unfit.sort();
    if let Some(first) = unfit.first() {
        let others = unfit.len() - 1;
        let others = if others == 0 { String::new() } else { format!("; and {others} more like that") };
        found.findings.push(Finding::warning(
            format!("{first}{others}"),
            "that key can neither be taken nor freed by us",
            "give the file back to its user with 'chown'; if nobody holds the key, remove it",
        ));
    }
    Ok(())
}
