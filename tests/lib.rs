//! The tests of dlock as a whole, one file per topic.
