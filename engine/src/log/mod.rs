//! The log is the database: bytes ([`layout`], [`superblock`], [`batch`], [`record`], [`entry`]), then order ([`writer`], with its [`io`]),
//! then the proof of it after a crash ([`recovery`]) or at an operator's wish ([`verify`]). Each can be tested
//! alone.

pub mod batch;
pub mod entry;
pub mod io;
pub mod layout;
pub mod record;
pub mod recovery;
pub mod superblock;
pub mod verify;
pub mod writer;
