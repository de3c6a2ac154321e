//! Tables of a fixed layout: they are put down in pieces, and each vtable once for a buffer. A builder takes each field by itself and
//! then looks whether it has written such a vtable before.
//!
//! Readers see tables like any others. How tables and vtables lie in a buffer: <https://flatbuffers.dev/internals/>.

use crate::Builder;
use flatbuffers::{Push, PushAlignment, VOffsetT};

/// Where something lies, in bytes before the end of the buffer.
pub(super) type FromEnd = u32;

/// Pieces with tables begin at a multiple of this, counted from the end of the buffer: no field needs more.
const TABLE_ALIGN: usize = 8;

/// The bytes of a vtable: its length, that of the table, and where each field lies in it.
pub(super) const fn vtable<const BYTES: usize>(fields: &[(VOffsetT, usize)], table_bytes: usize) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    [bytes[0], bytes[1]] = (BYTES as u16).to_le_bytes();
    [bytes[2], bytes[3]] = (table_bytes as u16).to_le_bytes();
    let mut n = 0;
    while n < fields.len() {
        let (slot, at) = (fields[n].0 as usize, fields[n].1 as u16);
        [bytes[slot], bytes[slot + 1]] = at.to_le_bytes();
        n += 1;
    }
    bytes
}

/// Puts a vtable into a buffer.
pub(super) fn put_vtable<const BYTES: usize>(builder: &mut Builder, vtable: [u8; BYTES]) -> FromEnd {
    builder.push(Piece::<BYTES, { align_of::<VOffsetT>() }>(vtable)).value()
}

/// Puts tables, a multiple of eight bytes in all, into a buffer; `make` is told where they begin and returns their bytes.
pub(super) fn put_tables<const BYTES: usize>(
    builder: &mut Builder,
    make: impl FnOnce(FromEnd) -> [u8; BYTES],
) -> FromEnd {
    const { assert!(BYTES.is_multiple_of(TABLE_ALIGN)) };
    let own = (builder.unfinished_data().len() + BYTES).next_multiple_of(TABLE_ALIGN);
    let put = builder.push(Piece::<BYTES, TABLE_ALIGN>(make(own as FromEnd))).value();
    debug_assert_eq!(put as usize, own);
    put
}

/// What a table that lies at `own` begins with: how far before it its vtable lies, which is negative where that lies behind it.
pub(super) fn to_vtable(own: FromEnd, vtable: FromEnd) -> [u8; 4] {
    vtable.wrapping_sub(own).to_le_bytes()
}

/// Bytes that are put down as they are.
struct Piece<const BYTES: usize, const ALIGN: usize>([u8; BYTES]);

impl<const BYTES: usize, const ALIGN: usize> Push for Piece<BYTES, ALIGN> {
    type Output = Self;

    // SAFETY: nothing is left to the caller: `dst` is written to within its bounds, and a shorter one than `size` says is a panic.
    unsafe fn push(&self, dst: &mut [u8], _: usize) {
        dst[..BYTES].copy_from_slice(&self.0);
    }

    fn size() -> usize {
        BYTES
    }

    fn alignment() -> PushAlignment {
        PushAlignment::new(ALIGN)
    }
}
