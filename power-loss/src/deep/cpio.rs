//! An initial RAM file system: a cpio archive in the format "newc", which the kernel unpacks.

const MAGIC: &str = "070701";
const FIELDS: usize = 13;
const ALIGNMENT_BYTES: usize = 4;
const MODE_DIRECTORY: u32 = 0o040_755;
const MODE_PROGRAM: u32 = 0o100_755;
const MODE_DEVICE: u32 = 0o020_600;

/// See the module.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, MODE_DIRECTORY, (0, 0), &[]);
    }

    /// Adds a file that may be run.
    pub fn program(&mut self, name: &str, content: &[u8]) {
        self.entry(name, MODE_PROGRAM, (0, 0), content);
    }

    /// Adds a character device.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, MODE_DEVICE, (major, minor), &[]);
    }

    /// The archive with its end.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let mut fields = [0; FIELDS];
        fields[0] = self.entries;
        fields[1] = mode;
        // Links.
        fields[4] = 1;
        fields[6] = content.len() as u32;
        (fields[9], fields[10]) = device;
        fields[11] = name.len() as u32 + 1;
        self.bytes.extend_from_slice(MAGIC.as_bytes());
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT_BYTES), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_their_names_and_contents_at_multiples_of_four() {
        let mut archive = Archive::default();
        archive.directory("dev");
        archive.program("init", b"#!");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        let starts: Vec<_> = text.match_indices(MAGIC).map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 3, "{text}");
        assert!(starts.iter().all(|at| at % ALIGNMENT_BYTES == 0), "{starts:?}");
        assert!(text[starts[1]..].contains("init\0") && text.ends_with("\0"), "{text}");
    }
}
