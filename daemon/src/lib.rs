//! The parts of the claimd daemon.
//!
//! | module | holds |
//! |---|---|
//! | [`ledger`], [`raw`] | the data directory: files, block devices, format |
//! | [`start`] | the process: executors, sockets, signals |
//! | [`shared`] | what the executors and the process know together |
//! | [`executor`] | one core: its shards, connections, mesh |
//! | [`driver`] | one shard's engine and its storage |
//! | [`service`], [`users`], [`gather`], [`claim_translate`] | from a frame to a shard |
//! | [`answering`], [`reading`], [`log_reader`] | from a shard to a reply |
//! | [`socket`] | connections and frames |
//! | [`mesh`], [`inbox`], [`message`] | messages between executors |
//! | [`scrub`] | reads the log again in the background |
//! | [`stall_guard`] | wakes an executor that sleeps over its work |
//! | [`doctor`], [`inspect`], [`verify`], [`repair`], [`reshard`], [`demo`] | what an operator asks |
//! | [`backup`], [`restore`], [`archive`], [`drill`] | copies of a ledger, and ledgers made from them |
//! | [`rewriting`] | what those have in common that write a log anew |
//! | [`config`], [`check_config`] | the configuration file, and what it says about it |
//! | [`clock`] | the ledger's time and deadlines |

pub mod answering;
pub mod archive;
pub mod backup;
pub mod check_config;
pub mod clock;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod drill;
pub mod driver;
pub mod echo;
pub mod executor;
pub mod gather;
pub mod inbox;
pub mod inspect;
pub mod ledger;
pub mod log_reader;
pub mod mesh;
pub mod message;
pub mod raw;
pub mod read_shares;
pub mod reading;
pub mod repair;
pub mod reshard;
pub mod restore;
pub mod rewriting;
pub mod rounds;
pub mod scrub;
pub mod service;
pub mod shared;
pub mod socket;
pub mod space;
pub mod stages;
pub mod stall_guard;
pub mod start;
pub mod users;
pub mod verify;
