//! claimd's engine: event-ids, the shard's state machine, the log, recovery and storage.
//!
//! | module | holds |
//! |---|---|
//! | [`engine`] | one shard with its log: requests in, I/O and replies out |
//! | [`shard`] | the state machine: decides, and applies records |
//! | [`log`] | formats, the writer with its group commit, recovery |
//! | [`storage`] | the real file, and in tests a simulated disk |
//! | [`id`], [`time`], [`corpus`], [`row`] | the words that the rest is written in |
//! | [`policy`], [`dispute`] | who may do what, and what takes how long; the steps of a dispute |
//! | [`peer`], [`reconcile`] | what shards say to each other; a pass over all of them |
//! | [`retention`], [`sealed`] | what stays of dropped quarters; the indexes of full segments |
//! | [`command`], [`error`] | what is asked and what is answered |
//! | [`mutant`] | deliberate bugs that the proofs must catch; no build has them by itself |
//! | [`device`], [`scheduling`] | what the disk below can do; how a thread shares its core |
//!
//! There is no flatbuffers here, no socket and no clock: time and entropy come in with each event.

pub mod command;
pub mod corpus;
pub mod debt;
pub mod device;
pub mod dispute;
pub mod engine;
pub mod entropy;
pub mod error;
pub mod id;
pub mod log;
pub mod mutant;
pub mod peer;
pub mod policy;
mod prefetch;
pub mod propagation;
pub mod reconcile;
pub mod retention;
pub mod row;
pub mod scheduling;
pub mod sealed;
pub mod shard;
pub mod storage;
pub mod time;

#[cfg(test)]
mod simulation;
