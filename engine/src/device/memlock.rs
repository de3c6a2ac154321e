//! Whether the runtime may pin the memory that its rings register.
//!
//! Each executor registers one buffer area with three rings, and the kernel accounts every registration by itself, so an
//! executor pins three times its area. The account is per user and spans processes, and a privileged process
//! (CAP_IPC_LOCK in the first user namespace) has none; so the limit alone does not tell. What tells is to pin as much
//! and see.

use super::DeviceError;
use io_uring::IoUring;
use nix::sys::resource::{Resource, getrlimit};
use std::io;
use std::ptr::NonNull;

/// The runtime refuses to start below this soft limit, privileged or not (`MIN_MEMLOCK_LIMIT` in glommio 0.9.0).
pub const RUNTIME_LIMIT_BYTES_MIN: u64 = 512 * 1024;

/// Rings of one executor that each register the executor's buffer area.
pub const RINGS_PER_EXECUTOR: u64 = 3;

/// The kernel takes at most 1 GiB in one registered buffer; larger needs are pinned in several.
const REGISTERED_BUFFER_BYTES_MAX: usize = 1 << 30;

/// Whether the memory can be pinned, and what was seen on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memlock {
    /// Soft limit (`ulimit -l`); `None`: unlimited.
    pub limit_bytes: Option<u64>,
    /// What the executors pin together.
    pub needed_bytes: u64,
    /// The result.
    pub verdict: Verdict,
}

/// The result of the trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// That much was pinned, and released again.
    Enough,
    /// The limit is below [`RUNTIME_LIMIT_BYTES_MIN`], which the runtime checks by itself.
    BelowRuntimeMinimum,
    /// The kernel refused to pin that much: the limit is too low, or the user's other processes use it up.
    Refused,
}

/// What `executors` of the runtime pin together, each with an area of `io_memory_bytes`.
pub fn needed_bytes(executors: u64, io_memory_bytes: u64) -> u64 {
    executors * RINGS_PER_EXECUTOR * io_memory_bytes
}

/// Pins `needed_bytes` through a ring for a moment and says whether that went well.
pub fn check(needed_bytes: u64) -> Result<Memlock, DeviceError> {
    let limit_bytes = limit_bytes()?;
    let verdict = match limit_bytes {
        Some(limit) if limit < RUNTIME_LIMIT_BYTES_MIN => Verdict::BelowRuntimeMinimum,
        _ if pin(needed_bytes)? => Verdict::Enough,
        _ => Verdict::Refused,
    };
    Ok(Memlock { limit_bytes, needed_bytes, verdict })
}

fn limit_bytes() -> Result<Option<u64>, DeviceError> {
    let (soft, _hard) = getrlimit(Resource::RLIMIT_MEMLOCK)
        .map_err(|errno| DeviceError::Call { call: "getrlimit", source: errno.into() })?;
    Ok((soft != libc::RLIM_INFINITY).then_some(soft))
}

/// Whether the kernel lets a ring register that much memory.
fn pin(bytes: u64) -> Result<bool, DeviceError> {
    if bytes == 0 {
        return Ok(true);
    }
    let area = Area::map(bytes as usize)?;
    let ring = match IoUring::new(2) {
        Ok(ring) => ring,
        // Kernels before 5.12 account the ring itself, too.
        Err(source) if source.raw_os_error() == Some(libc::ENOMEM) => return Ok(false),
        Err(source) => return Err(DeviceError::Ring { operation: "set up", source }),
    };
    let buffers = area.pieces();
    // SAFETY: the pieces lie in `area`, which is unmapped only after the ring is gone: locals drop in reverse order, and
    // the ring is declared after the area. No operation is ever submitted on them.
    match unsafe { ring.submitter().register_buffers(&buffers) } {
        Ok(()) => Ok(true),
        Err(source) if source.raw_os_error() == Some(libc::ENOMEM) => Ok(false),
        Err(source) => Err(DeviceError::Ring { operation: "register buffers", source }),
    }
}

/// An anonymous mapping that nothing but a ring looks at.
struct Area {
    start: NonNull<libc::c_void>,
    bytes: usize,
}

impl Area {
    fn map(bytes: usize) -> Result<Self, DeviceError> {
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(Area { start, bytes }),
            _ => Err(DeviceError::Call { call: "mmap", source: io::Error::last_os_error() }),
        }
    }

    /// The whole area in buffers of at most what the kernel takes.
    fn pieces(&self) -> Vec<libc::iovec> {
        (0..self.bytes)
            .step_by(REGISTERED_BUFFER_BYTES_MAX)
            .map(|offset| libc::iovec {
                iov_base: self.start.as_ptr().wrapping_byte_add(offset),
                iov_len: (self.bytes - offset).min(REGISTERED_BUFFER_BYTES_MAX),
            })
            .collect()
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mapping made in `map`, which nothing else unmaps.
        let result = unsafe { libc::munmap(self.start.as_ptr(), self.bytes) };
        assert_eq!(result, 0, "unmapping our own mapping cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executor_pins_its_area_once_per_ring() {
        assert_eq!(needed_bytes(2, 1 << 20), 6 << 20);
    }

    #[test]
    fn a_page_can_be_pinned_wherever_rings_are_allowed() {
        use crate::device::ring::{RingAccess, access};
        let allowed = access().expect("the circumstances are readable") == RingAccess::Allowed;
        match check(4096) {
            Ok(memlock) => {
                assert!(allowed);
                assert_eq!(memlock.needed_bytes, 4096);
                let too_low = memlock.limit_bytes.is_some_and(|limit| limit < RUNTIME_LIMIT_BYTES_MIN);
                assert_eq!(memlock.verdict == Verdict::BelowRuntimeMinimum, too_low, "{memlock:?}");
            }
            Err(error) => assert!(!allowed, "{error}"),
        }
    }

    #[test]
    fn a_large_area_is_cut_into_pieces_that_cover_it() {
        // The mapping is never touched, so that no memory is used.
        let area = Area::map(2 * REGISTERED_BUFFER_BYTES_MAX + 4096).expect("address space");
        let lengths: Vec<usize> = area.pieces().iter().map(|piece| piece.iov_len).collect();
        assert_eq!(lengths, [REGISTERED_BUFFER_BYTES_MAX, REGISTERED_BUFFER_BYTES_MAX, 4096]);
    }
}
