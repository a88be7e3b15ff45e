//! What a test asks a store for.

use std::time::Duration;

use dlock::model::{Ask, Info, LeaseId, Mode, Patience};

/// A key for nobody else, at once or not at all. What a test wants besides it changes.
pub(crate) fn ask(lease: LeaseId, ttl: Duration) -> Ask {
    Ask {
        lease,
        level: lease,
        mode: Mode::Exclusive,
        ttl: Some(ttl),
        patience: Patience::None,
        if_fence: None,
        proposal: None,
        min_hold: Duration::ZERO,
        max_reentry: 0,
        attended: true,
        info: Info::default(),
    }
}
