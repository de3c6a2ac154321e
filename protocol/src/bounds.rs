//! Every bound of the protocol, in one place, so that client, daemon and bench refuse the same things.

/// Bytes of a frame's content, its length prefix aside.
pub const FRAME_BYTES_MAX: usize = 4 << 20;
/// Bytes of the little-endian length that stands before a frame's content.
pub const FRAME_PREFIX_BYTES: usize = 4;
/// The newest protocol version that this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// Items of a batch: with the request's and the batch's own tables they make 8,192 flatbuffers tables.
pub const BATCH_ITEMS_MAX: usize = 8190;
/// Bytes of a claim's opaque metadata.
pub const METADATA_BYTES_MAX: usize = 65_536;
/// Bytes of an event key; at least one is required.
pub const EVENT_KEY_BYTES_MAX: usize = 256;
/// Bytes of a corpus name or a category; at least one is required.
pub const NAME_BYTES_MAX: usize = 63;
/// Bytes of a rationale.
pub const RATIONALE_BYTES_MAX: usize = 512;
/// Bytes of a rationale in a dispute: of its opening, a response, an arbitration or an escalation.
pub const DISPUTE_RATIONALE_BYTES_MAX: usize = 4096;
/// Ids that a dispute has at least.
pub const DISPUTE_IDS_MIN: usize = 2;
/// Ids that a dispute has at most.
pub const DISPUTE_IDS_MAX: usize = 8;
/// Milliseconds within which a conditional claim may look for its event: 24 hours.
pub const UNLESS_REGISTERED_MS_MAX: u32 = 86_400_000;
/// Milliseconds that a reader of the log's tail may ask to wait.
pub const TAIL_WAIT_MS_MAX: u32 = 60_000;
/// Entries of a page of the log's tail.
pub const TAIL_ENTRIES_MAX: usize = 1000;
/// Merges, suspects and orphans that a report of reconciliation lists, each.
pub const REPORT_LIST_MAX: usize = 1000;
/// The first year whose quarters can be held.
pub const QUARTER_YEAR_MIN: u16 = 1970;
/// The last year whose quarters can be held.
pub const QUARTER_YEAR_MAX: u16 = 9998;
/// Bytes of the hash that chains a log's batches.
pub const CHAIN_HASH_BYTES: usize = 32;
/// Bytes of the notes that a corpus is onboarded with.
pub const NOTES_BYTES_MAX: usize = 512;
/// Bytes of the name that a client gives itself in its hello.
pub const CLIENT_NAME_BYTES_MAX: usize = 256;
/// Rows of a scan's page.
pub const SCAN_ROWS_MAX: usize = 1000;
/// Positions that a request may ask to be answered at or after.
pub const AT_LEAST_MAX: usize = 64;

/// Depth of tables in a frame: reply, batch, item, its error, and one to spare.
pub(crate) const TABLES_DEEP_MAX: usize = 5;
/// Tables in a request: the batch's items, the batch and the request itself.
pub(crate) const REQUEST_TABLES_MAX: usize = BATCH_ITEMS_MAX + 2;
/// Tables in a reply: the registry may list every one of 65,535 corpora, which is more than any batch needs.
pub(crate) const REPLY_TABLES_MAX: usize = 1 << 17;
/// Bytes that the verifier may visit. It counts a shared string or vtable at each use, so that the figure lies above the
/// frame's own size; it also bounds the work and memory that one frame can ask for by sharing.
pub(crate) const APPARENT_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;

/// A page of rows or entries ends when its reply has grown to this, so that the next one still fits the frame.
pub const PAGE_BYTES_MAX: usize = FRAME_BYTES_MAX - (256 << 10);
