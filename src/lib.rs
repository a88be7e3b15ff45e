//! dlock: hold a named lease while a command runs.
//!
//! The way of a run through the house is `cli → config → registry → holder → child → exit`.
//!
//! | room | what it is for | what it may import |
//! |---|---|---|
//! | [`clock`], [`event`], [`signal`], [`sys`] | the floor: BOOTTIME, events, OS signals, all `unsafe` | the floor |
//! | [`model`] | the law of leases: pure | nothing |
//! | [`store`] | where leases are kept | model, floor |
//! | [`holder`] | a lease's life on our side | store, model, floor |
//! | [`child`] | the command, its guardian, its tree | floor |
//! | [`exit`] | the table of exit codes | the floor |
//! | [`output`] | alone in printing: words, tables, live lines | nothing |
//! | [`cli`] | what was typed | exit |
//! | [`config`] | what it means | all but command |
//! | [`command`] | one file per verb: where a lease meets a child | all |

#[cfg(not(target_os = "linux"))]
compile_error!("dlock needs Linux: open file description locks, subreapers and BOOTTIME timers");

pub mod child;
pub mod cli;
pub mod clock;
pub mod command;
pub mod config;
pub mod event;
pub mod exit;
pub mod holder;
pub mod model;
pub mod output;
pub mod signal;
pub mod store;
pub mod sys;
