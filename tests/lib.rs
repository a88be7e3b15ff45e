//! The tests of dlock as a whole, one file per topic: real processes, real signals, nothing mocked.

mod contention;
mod generated;
mod holder;
mod house;
mod law;
mod readme;
mod record;
mod reentry;
mod run;
mod support;
mod unlock;
mod waiting;
