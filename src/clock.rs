//! Time on our side. Local deadlines run on `CLOCK_BOOTTIME`, which goes on while the machine sleeps: a
//! lease ends in its store whether we sleep or not.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// An instant of `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

/// What is taken off every lease for the clocks of two machines that do not run at the same speed: one
/// part in so many, and [`Deadline::GRAIN`].
const DRIFT: u32 = 100;

/// The local instant after which we must not count on a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Moment);

/// A random part of a span, so that those who collided do not meet again; all of it, where there are no random bytes.
#[must_use]
pub fn some_of(span: Duration) -> Duration {
    let mut byte = [u8::MAX];
    let _ = getrandom::fill(&mut byte);
    span * u32::from(byte[0]) / u32::from(u8::MAX)
}

impl Moment {
    /// Now.
    ///
    /// # Panics
    /// On a kernel without `CLOCK_BOOTTIME`, older than any that the Rust library runs on.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had CLOCK_BOOTTIME since 2.6.39");
        Self(now.into())
    }

    /// The moment so long after boot.
    #[must_use]
    pub const fn since_boot(span: Duration) -> Self {
        Self(span)
    }

    /// How long after boot this moment is.
    #[must_use]
    pub const fn as_duration(self) -> Duration {
        self.0
    }

    /// This moment moved on by `span`.
    #[must_use]
    pub const fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }

    /// This moment moved back by `span`.
    #[must_use]
    pub const fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }

    /// How long after `earlier` this moment is; zero if it is not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// How long it is from now to this moment; zero if it has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.since(Self::now())
    }
}

impl Deadline {
    /// Redis keeps time in milliseconds and may round either way.
    pub const GRAIN: Duration = Duration::from_millis(2);

    /// The deadline of a lease of `ttl` that was asked for at `asked`, the moment *before* the request was
    /// sent. The reply may have taken any part of the ttl to arrive, so it cannot be counted from.
    #[must_use]
    pub fn of_lease(asked: Moment, ttl: Duration) -> Self {
        Self(asked.after(ttl.saturating_sub(ttl / DRIFT).saturating_sub(Self::GRAIN)))
    }

    /// The moment itself.
    #[must_use]
    pub const fn moment(self) -> Moment {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::{Deadline, Moment};
    use std::time::Duration;

    #[test]
    fn a_deadline_counts_from_before_the_request_and_leaves_room_for_drift() {
        let asked = Moment::since_boot(Duration::from_secs(100));
        let at = Deadline::of_lease(asked, Duration::from_secs(30)).moment();
        assert_eq!(at.since(asked), Duration::from_millis(30_000 - 300 - 2));
        assert_eq!(Deadline::of_lease(asked, Duration::from_millis(1)).moment(), asked);
        assert_eq!(asked.since(at), Duration::ZERO, "a span never goes backwards");
    }

    #[test]
    fn moments_are_those_of_boottime() {
        let text = std::fs::read_to_string("/proc/uptime").expect("Linux has /proc/uptime, which counts BOOTTIME");
        let uptime: f64 = text.split(' ').next().and_then(|first| first.parse().ok()).expect("it begins with seconds");
        let apart = Moment::now().since(Moment::since_boot(Duration::from_secs_f64(uptime)));
        assert!(apart < Duration::from_secs(5), "{apart:?}");
    }
}
