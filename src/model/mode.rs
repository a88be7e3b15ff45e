//! How a key is held.

use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// How a key is held, and with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Alone.
    Exclusive,
    /// Together with other shared holders.
    Shared,
    /// As one of at most so many.
    Slots(NonZeroU32),
}

impl Mode {
    /// Whether a holder in this mode may stand beside `others`. Slots of different sizes go by the
    /// smaller one.
    pub fn fits(self, others: impl Iterator<Item = Self>) -> bool {
        let mut others = others.peekable();
        match self {
            Self::Exclusive => others.peek().is_none(),
            Self::Shared => others.all(|other| other == Self::Shared),
            Self::Slots(size) => {
                let mut smallest = size.get();
                let mut count = 0;
                for other in others {
                    let Self::Slots(size) = other else { return false };
                    smallest = smallest.min(size.get());
                    count += 1;
                }
                count < smallest
            }
        }
    }

    /// Whether a holder in this mode may enter again in the mode `inner`: never as more than it has.
    #[must_use]
    pub fn contains(self, inner: Self) -> bool {
        match self {
            Self::Exclusive => true,
            Self::Shared => inner == Self::Shared,
            Self::Slots(_) => matches!(inner, Self::Slots(_)),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exclusive => f.write_str("exclusive"),
            Self::Shared => f.write_str("shared"),
            Self::Slots(size) => write!(f, "slot of {size}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Mode::{self, Exclusive, Shared};

    fn slots(size: u32) -> Mode {
        Mode::Slots(size.try_into().expect("tests use sizes above 0"))
    }

    #[test]
    fn exclusive_fits_nothing_shared_fits_shared_and_slots_go_by_the_smaller_size() {
        let fits = |mode: Mode, others: &[Mode]| mode.fits(others.iter().copied());
        assert!(fits(Exclusive, &[]) && fits(Shared, &[]) && fits(slots(1), &[]));
        assert!(!fits(Exclusive, &[Shared]) && !fits(Shared, &[Exclusive]) && !fits(slots(9), &[Shared]));
        assert!(fits(Shared, &[Shared, Shared]) && !fits(Shared, &[Shared, slots(9)]));
        assert!(fits(slots(3), &[slots(3), slots(3)]) && !fits(slots(2), &[slots(3), slots(3)]));
        assert!(!fits(slots(3), &[slots(3), slots(2)]));
    }

    #[test]
    fn a_holder_enters_again_only_as_what_it_has_or_less() {
        assert!(Exclusive.contains(Shared) && Exclusive.contains(slots(2)) && Exclusive.contains(Exclusive));
        assert!(Shared.contains(Shared) && !Shared.contains(Exclusive) && !Shared.contains(slots(2)));
        assert!(slots(2).contains(slots(5)) && !slots(2).contains(Exclusive));
    }
}
