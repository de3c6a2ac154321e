//! The log is the database: bytes ([`layout`], [`superblock`], [`batch`], [`record`], [`entry`]), then order ([`writer`], with its
//! [`io`], what it remembers of segments that are not sealed ([`unsealed`]), the [`zeroing`] of segments ahead of it, and its
//! [`end`]), then the proof of it after a crash ([`recovery`]) or at an operator's wish ([`verify`]). Each can be tested alone.

pub mod batch;
pub mod end;
pub mod entry;
pub mod io;
pub mod layout;
pub mod record;
pub mod recovery;
pub mod superblock;
pub mod unsealed;
pub mod verify;
pub mod writer;
pub mod zeroing;
