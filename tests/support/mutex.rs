//! The mutex of a key's file in the hands of a test.

use std::fs::File;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::Store;

impl Store {
    /// The mutex of a key that was held before, kept until the file is dropped: as by a dlock that is stopped
    /// in the middle of a change.
    pub(crate) fn keep_mutex(&self, key: &str) -> File {
        let file = File::options().read(true).write(true).open(self.key_file(key)).expect("the key was held");
        let write = i16::try_from(libc::F_WRLCK).expect("lock types are small");
        let lock = libc::flock { l_type: write, l_whence: 0, l_start: 0, l_len: 1, l_pid: 0 };
        fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).expect("nobody else has it");
        file
    }
}
