//! A file of events, read line by line.

use crate::import::Progress;
use crate::import::event::Event;
use flate2::bufread::MultiGzDecoder;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a line; a longer one is no event.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// What a gzip file starts with.
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];

/// Why a file of events cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Reading failed.
    #[error("the file cannot be read: {0}")]
    Read(#[from] io::Error),
    /// A line is no event.
    #[error("the line is no event: {0}; one JSON object per line with op, corpus and at is expected")]
    Parse(#[from] serde_json::Error),
    /// A line does not end.
    #[error("the line is longer than {LINE_BYTES_MAX} bytes")]
    LineTooLong,
    /// Time goes back.
    #[error("the line's time {at} lies before the previous one, {before}; sort the file by at")]
    OutOfOrder {
        /// The line's time, in seconds.
        at: i64,
        /// The time of the line before, in seconds.
        before: i64,
    },
}

/// A file of events: ndjson, gzipped or not.
pub struct Source {
    lines: Box<dyn BufRead + Send>,
    line: Vec<u8>,
    events: u64,
    bytes: Arc<AtomicU64>,
    bytes_total: Option<u64>,
    before: i64,
}

impl Source {
    /// Opens a file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let file = File::open(path)?;
        let bytes_total = file.metadata()?.len();
        Ok(Source { bytes_total: Some(bytes_total), ..Source::new(file)? })
    }

    /// Reads from any stream.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub fn new(stream: impl Read + Send + 'static) -> Result<Self, SourceError> {
        let bytes = Arc::new(AtomicU64::new(0));
        let mut stream = BufReader::new(Counted { stream, bytes: Arc::clone(&bytes) });
        let gzipped = stream.fill_buf()?.starts_with(GZIP_MAGIC);
        let lines: Box<dyn BufRead + Send> =
            if gzipped { Box::new(BufReader::new(MultiGzDecoder::new(stream))) } else { Box::new(stream) };
        Ok(Source { lines, line: Vec::new(), events: 0, bytes, bytes_total: None, before: i64::MIN })
    }

    /// The next event; `None` at the end. Empty lines are passed over.
    ///
    /// # Errors
    /// Reading fails, or the line is no event of the present time or later.
    pub fn next_event(&mut self) -> Result<Option<Event>, SourceError> {
        loop {
            self.line.clear();
            let mut line = self.lines.by_ref().take(LINE_BYTES_MAX as u64 + 1);
            if line.read_until(b'\n', &mut self.line)? == 0 {
                return Ok(None);
            }
            if self.line.len() > LINE_BYTES_MAX {
                return Err(SourceError::LineTooLong);
            }
            if !self.line.trim_ascii().is_empty() {
                break;
            }
        }
        self.events += 1;
        let event: Event = serde_json::from_slice(&self.line)?;
        if event.at < self.before {
            return Err(SourceError::OutOfOrder { at: event.at, before: self.before });
        }
        self.before = event.at;
        Ok(Some(event))
    }

    /// Events read so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    pub(crate) fn progress(&self) -> Progress {
        Progress { events: self.events, bytes: self.bytes.load(Ordering::Relaxed), bytes_total: self.bytes_total }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Source").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

/// Counts what is read of a stream, before it is unpacked.
struct Counted<R> {
    stream: R,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.stream.read(buffer)?;
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::{LINE_BYTES_MAX, Source};
    use flate2::{Compression, write::GzEncoder};
    use std::io::{Cursor, Write};

    const LINE: &str = r#"{"op":"reference","corpus":"pd","at":5,"to_latest_of":"bbolt"}"#;

    /// How many events `bytes` hold, or what is wrong with them.
    fn check(bytes: &[u8]) -> Result<u64, String> {
        let mut source = Source::new(Cursor::new(bytes.to_vec())).map_err(|error| error.to_string())?;
        while source.next_event().map_err(|error| error.to_string())?.is_some() {}
        Ok(source.events())
    }

    #[test]
    fn plain_and_gzipped_files_are_read() {
        let text = format!("{LINE}\n\n{LINE}");
        assert_eq!(check(text.as_bytes()), Ok(2));
        assert_eq!(check(b""), Ok(0));
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(text.as_bytes()).expect("into memory");
        let mut members = gzip.finish().expect("into memory");
        members.extend(members.clone());
        // Two members: the second continues the last line of the first, so there is a line that is no event.
        assert!(check(&members).is_err_and(|error| error.starts_with("the line is no event")));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (bytes, expected) in [
            ("{}".to_owned(), "the line is no event: missing field `corpus`"),
            (LINE.replace("reference", "refer"), "the line is no event: unknown variant `refer`"),
            (" ".repeat(LINE_BYTES_MAX + 1), "the line is longer than 65536 bytes"),
            (
                format!("{LINE}\n{}", LINE.replace(":5", ":4")),
                "the line's time 4 lies before the previous one, 5; sort the file by at",
            ),
        ] {
            let error = check(bytes.as_bytes()).expect_err(expected);
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
