//! The tests of dlock as a whole, one file per topic: real processes, real signals, nothing mocked.

mod acquire;
mod completion;
mod config;
mod contention;
mod crash;
mod directory;
mod doctor;
#[cfg(feature = "etcd")]
mod etcd;
mod generated;
mod guard;
mod history;
mod holder;
mod house;
mod input;
mod law;
mod metrics;
#[cfg(feature = "nats")]
mod nats;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
mod outage;
mod output;
#[cfg(feature = "postgres")]
mod postgres;
mod readme;
mod record;
#[cfg(feature = "redis")]
mod redis;
mod reentry;
mod report;
mod run;
mod screen;
mod setup;
mod signals;
mod snapshots;
mod status;
mod support;
mod terminal;
mod unlock;
mod users;
mod waiting;
