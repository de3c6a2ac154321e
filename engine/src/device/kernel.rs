//! The running kernel's version.

use super::DeviceError;
use std::fmt;
use std::path::Path;

/// Oldest kernel that the runtime's rings work on: 5.8 has the last of the operations that they use.
pub const OLDEST_USABLE: KernelVersion = KernelVersion { major: 5, minor: 8 };

/// Oldest kernel on which every fact can be read: 6.1 brought `STATX_DIOALIGN`, without which the alignment of direct
/// I/O is taken from the block device.
pub const OLDEST_COMPLETE: KernelVersion = KernelVersion { major: 6, minor: 1 };

/// Major and minor number; patch levels change nothing that is relied upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// The 6 of 6.1.
    pub major: u32,
    /// The 1 of 6.1.
    pub minor: u32,
}

impl KernelVersion {
    /// The version at the head of a release string such as `6.1.0-18-amd64`; `None` where there is none.
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        let major = numbers.next()?.ok()?;
        let minor = numbers.next()?.ok()?;
        Some(KernelVersion { major, minor })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The running kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// As uname reports it.
    pub release: String,
    /// The version in it.
    pub version: KernelVersion,
}

/// The running kernel's release and version.
pub fn running() -> Result<Kernel, DeviceError> {
    let path = Path::new("/proc/sys/kernel/osrelease");
    let release = super::read_text(path)?;
    match KernelVersion::parse(&release) {
        Some(version) => Ok(Kernel { release, version }),
        None => Err(DeviceError::Malformed {
            path: path.to_owned(),
            found: release,
            expected: "a release that begins with major.minor",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(release: &str, expected: Option<(u32, u32)>) {
        let found = KernelVersion::parse(release).map(|version| (version.major, version.minor));
        assert_eq!(found, expected, "release {release:?}");
    }

    #[test]
    fn releases_of_distributions_are_understood() {
        check("6.1.0-18-amd64", Some((6, 1)));
        check("5.15.153.1-microsoft-standard-WSL2", Some((5, 15)));
        check("6.18.44-fc-v595", Some((6, 18)));
        check("7.0-rc1", Some((7, 0)));
        check("6", None);
        check("", None);
        check("next", None);
    }

    #[test]
    fn versions_are_ordered_as_numbers_not_as_text() {
        assert!(KernelVersion { major: 5, minor: 15 } > OLDEST_USABLE);
        assert!(KernelVersion { major: 6, minor: 0 } < OLDEST_COMPLETE);
    }

    #[test]
    fn the_running_kernel_has_a_version() {
        let kernel = running().expect("every Linux has /proc/sys/kernel/osrelease");
        assert!(kernel.release.starts_with(&kernel.version.to_string()));
    }
}
