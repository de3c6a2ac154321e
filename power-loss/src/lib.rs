//! Cuts the power under claimd at every instant, and looks whether anything acknowledged is lost.
//!
//! | module | holds |
//! |---|---|
//! | [`disk`] | a disk with a volatile cache, as a FUSE file system that traces everything |
//! | [`trace`] | what happened on it, and what clients sent and were told |
//! | [`load`], [`daemon`], [`session`] | the real daemon under load, killed and started again |
//! | [`years`] | a session in which years go by and quarters are dropped |
//! | [`archived`] | what the segment archive of such a session holds |
//! | [`model`] | what a cut at an instant leaves: durable for certain, or in any part |
//! | [`image`] | such a ledger file in memory, on which recovery runs |
//! | [`check`] | the real recovery, and what it must find |
//! | [`history`], [`retained`] | what lay where in the log, and what of it a drop may take |
//! | [`cuts`] | many images from one trace |
//! | [`deep`] | the same under a real kernel with a real NVMe driver, in QEMU |
//! | [`needs`] | what of the machine a layer needs, looked at before it begins |
//! | [`mutants`] | the deliberate bugs, and the kept traces in which they must be found |
//! | [`ext4`] | the same on ext4, with every image mounted before recovery |
//! | [`faults`] | every I/O call failing in every way |
//! | [`overload`], [`generator`] | more load than a shard can take, on a disk with slow flushes |
//! | [`fio`] | fio, as a witness that the disk loses what a disk may lose, and nothing else |

pub mod archived;
pub mod check;
pub mod cuts;
pub mod daemon;
pub mod deep;
pub mod disk;
pub mod ext4;
pub mod faults;
pub mod fio;
pub mod generator;
pub mod governing;
pub mod history;
pub mod image;
pub mod load;
pub mod model;
pub mod mutants;
pub mod needs;
pub mod overload;
pub mod retained;
pub mod session;
pub mod trace;
pub mod years;
