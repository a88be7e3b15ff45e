//! How one who waits for answers is told not to.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

#[cfg(feature = "redis")]
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
#[cfg(feature = "redis")]
use nix::sys::eventfd::EfdFlags;
use nix::sys::eventfd::EventFd;

/// Shared by all connections of a store. Without a bell nobody is ever in a hurry.
#[derive(Clone, Default)]
pub(super) struct Hurry {
    bell: Option<Arc<EventFd>>,
}

#[cfg(feature = "redis")]
impl Hurry {
    /// One that can begin, unless this process has no more descriptors: then answers are waited for as long as ever.
    pub(super) fn new() -> Self {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Self { bell: bell.ok().map(Arc::new) }
    }

    /// Nobody waits any more.
    pub(super) fn begin(&self) {
        if let Some(bell) = &self.bell {
            // It cannot be full: that takes 2^64 of these.
            let _ = bell.write(1);
        }
    }

    pub(super) fn end(&self) {
        if let Some(bell) = &self.bell {
            // There may be nothing to read, and then there is no hurry.
            let _ = bell.read();
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.bell()
            .is_some_and(|bell| matches!(poll(&mut [PollFd::new(bell, PollFlags::POLLIN)], PollTimeout::ZERO), Ok(1)))
    }
}

impl Hurry {
    /// Readable as long as there is a hurry.
    pub(super) fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(|bell| bell.as_fd())
    }
}
