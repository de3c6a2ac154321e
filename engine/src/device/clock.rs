//! Whether the kernel's clock is held to a time source. Claims carry wall-clock time, so operators want to know.

use super::DeviceError;
use std::io;

/// What the kernel says of its own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockState {
    /// Whether some daemon (chrony, ntpd, timesyncd, a hypervisor's) disciplines it.
    pub synchronised: bool,
    /// The kernel's bound on the error, in microseconds; meaningless while not synchronised.
    pub max_error_us: i64,
}

/// Asks the kernel (`adjtimex` with nothing to change).
pub fn state() -> Result<ClockState, DeviceError> {
    // SAFETY: timex is plain integers, for which all-zero bytes are a valid value; zero `modes` asks for nothing.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live, exclusively borrowed timex for the whole call.
    let verdict = unsafe { libc::adjtimex(&mut timex) };
    if verdict < 0 {
        return Err(DeviceError::Call { call: "adjtimex", source: io::Error::last_os_error() });
    }
    let synchronised = verdict != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0;
    #[allow(clippy::useless_conversion, reason = "the field is narrower than 64 bits on some targets")]
    let max_error_us = i64::from(timex.maxerror);
    Ok(ClockState { synchronised, max_error_us })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_tells_the_state_of_its_clock() {
        let state = super::state().expect("reading the clock's state needs no privilege");
        assert!(state.max_error_us >= 0, "{state:?}");
    }
}
