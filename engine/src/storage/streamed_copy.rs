//! Copying what a device reads next, and with O_DIRECT the processor does not.

/// Copies bytes past the caches: an ordinary copy of a batch reads what it writes over first, and drives from the caches what the next
/// requests need.
pub fn streamed_copy(to: &mut [u8], from: &[u8]) {
    assert_eq!(to.len(), from.len(), "both are of one length");
    // miri has no such stores.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
        // SAFETY: any bytes are an __m128i, and any __m128i is bytes.
        let (first, middle, last) = unsafe { to.align_to_mut::<__m128i>() };
        let (from_first, rest) = from.split_at(first.len());
        let (from_middle, from_last) = rest.split_at(size_of_val(middle));
        first.copy_from_slice(from_first);
        last.copy_from_slice(from_last);
        for (to, from) in middle.iter_mut().zip(from_middle.chunks_exact(size_of::<__m128i>())) {
            // SAFETY: `from` has 16 bytes, which need not be aligned to be loaded; `to` is an aligned place that is borrowed for writing
            // alone. SSE2 is part of x86-64.
            unsafe { _mm_stream_si128(to, _mm_loadu_si128(from.as_ptr().cast())) };
        }
        // SAFETY: a fence has no effect but on the order of writes: from here on these come before whatever is written next, as others do.
        unsafe { _mm_sfence() };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    to.copy_from_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_are_copied_wherever_they_lie() {
        let from: Vec<u8> = (0..500u32).map(|n| (n * 7) as u8).collect();
        for start in 0..20 {
            for length in [0, 1, 15, 16, 17, 31, 32, 100, 300] {
                let mut to = vec![0xaa; 400];
                streamed_copy(&mut to[start..start + length], &from[start / 2..start / 2 + length]);
                assert_eq!(to[start..start + length], from[start / 2..start / 2 + length], "{start}, {length}");
                assert!(to[..start].iter().chain(&to[start + length..]).all(|byte| *byte == 0xaa), "{start}, {length}");
            }
        }
    }
}
