//! Replies to claims.

use super::piece::{self, FromEnd, put_tables, to_vtable};
use super::{encode_error, encode_reply};
use crate::generated::claimd as wire;
use crate::reply::{Claimed, Reply, ReplyResult, ServerError};
use crate::values::LogPosition;
use crate::wire_values::wire_uuid;
use crate::{Builder, Uuid};
use flatbuffers::WIPOffset;
use std::sync::LazyLock;

pub(super) fn encode_claimed<'b>(builder: &mut Builder, claimed: &Claimed) -> WIPOffset<wire::Claimed<'b>> {
    let event_id = wire_uuid(claimed.event_id);
    let table = wire::Claimed::create(
        builder,
        &wire::ClaimedArgs {
            event_id: Some(&event_id),
            claim_timestamp_us: claimed.claim_timestamp_us,
            claim_sequence: claimed.claim_sequence,
        },
    );
    WIPOffset::new(table.value())
}

/// The tables of an item that was claimed: its result, and behind it what was claimed.
mod at {
    pub const RESULT_CLAIMED: usize = 4;
    pub const RESULT_END: usize = 8;
    pub const CLAIMED: usize = RESULT_END;
    pub const EVENT_ID: usize = 4;
    pub const CLAIM_TIMESTAMP_US: usize = 24;
    pub const CLAIM_SEQUENCE: usize = 32;
    pub const CLAIMED_END: usize = 40;
}

const RESULT_VTABLE: [u8; 6] = piece::vtable(&[(wire::ClaimResult::VT_CLAIMED, at::RESULT_CLAIMED)], at::RESULT_END);
const CLAIMED_VTABLE: [u8; 10] = piece::vtable(
    &[
        (wire::Claimed::VT_EVENT_ID, at::EVENT_ID),
        (wire::Claimed::VT_CLAIM_TIMESTAMP_US, at::CLAIM_TIMESTAMP_US),
        (wire::Claimed::VT_CLAIM_SEQUENCE, at::CLAIM_SEQUENCE),
    ],
    at::CLAIMED_END,
);

/// The results of a batch's items. Most were claimed, and have tables of one layout.
pub(super) fn encode_results<'b>(
    builder: &mut Builder,
    results: &[Result<Claimed, ServerError>],
) -> Vec<WIPOffset<wire::ClaimResult<'b>>> {
    let mut vtables = None;
    let encode = |result: &Result<Claimed, ServerError>| match result {
        Ok(claimed) => {
            let of_buffer = || (piece::put_vtable(builder, RESULT_VTABLE), piece::put_vtable(builder, CLAIMED_VTABLE));
            let vtables = *vtables.get_or_insert_with(of_buffer);
            WIPOffset::new(put_claimed(builder, vtables, claimed))
        }
        Err(error) => {
            let error = Some(encode_error(builder, error));
            let table = wire::ClaimResult::create(builder, &wire::ClaimResultArgs { claimed: None, error });
            WIPOffset::new(table.value())
        }
    };
    results.iter().map(encode).collect()
}

fn put_claimed(builder: &mut Builder, (of_result, of_claimed): (FromEnd, FromEnd), claimed: &Claimed) -> FromEnd {
    let Claimed { event_id, claim_timestamp_us, claim_sequence } = claimed;
    put_tables(builder, |own| {
        let mut tables = [0; at::CLAIMED + at::CLAIMED_END];
        let mut put = |at: usize, bytes: &[u8]| tables[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &to_vtable(own, of_result));
        put(at::RESULT_CLAIMED, &((at::CLAIMED - at::RESULT_CLAIMED) as u32).to_le_bytes());
        put(at::CLAIMED, &to_vtable(own - at::CLAIMED as FromEnd, of_claimed));
        put(at::CLAIMED + at::EVENT_ID, event_id.as_bytes());
        put(at::CLAIMED + at::CLAIM_TIMESTAMP_US, &claim_timestamp_us.to_le_bytes());
        put(at::CLAIMED + at::CLAIM_SEQUENCE, &claim_sequence.to_le_bytes());
        tables
    })
}

/// The frame of a reply to a claim, which is the same for all of them but for five values, and where those lie.
struct Template {
    frame: Vec<u8>,
    request_id: usize,
    position: usize,
    event_id: usize,
    claim_timestamp_us: usize,
    claim_sequence: usize,
}

static TEMPLATE: LazyLock<Template> = LazyLock::new(|| {
    let request_id = 0xf0e1_d2c3_b4a5_9687;
    let position = LogPosition { shard: 0x5a5a, position: 0xa1b2_c3d4_e5f6_0718 };
    let event_id = Uuid::from_u128(0xd1c2_b3a4_9586_7768_594a_3b2c_1d0e_ff01);
    let (claim_timestamp_us, claim_sequence) = (0x1234_5678_9abc_def0, 0xfedc_ba98_7654_3210);
    let result = ReplyResult::Claimed(Claimed { event_id, claim_timestamp_us, claim_sequence });
    let reply = Reply { request_id, positions: vec![position], result };
    let mut frame = Vec::new();
    encode_reply(&mut Builder::new(), &reply, &mut frame).expect("a claim's reply has some hundred bytes");
    let place_of = |value: &[u8]| {
        let mut places = frame.windows(value.len()).enumerate().filter(|(_, window)| *window == value);
        let (place, _) = places.next().expect("the frame has the value");
        assert!(places.next().is_none(), "the frame has the value once");
        place
    };
    Template {
        request_id: place_of(&request_id.to_le_bytes()),
        position: place_of(&wire::LogPosition::new(position.shard, position.position).0),
        event_id: place_of(event_id.as_bytes()),
        claim_timestamp_us: place_of(&claim_timestamp_us.to_le_bytes()),
        claim_sequence: place_of(&claim_sequence.to_le_bytes()),
        frame,
    }
});

/// Appends the reply to a claim as one whole frame: that of [`encode_reply`], except that a value of zero is written, too. Readers see
/// no difference.
pub fn encode_claim_reply(request_id: u64, position: LogPosition, claimed: &Claimed, out: &mut Vec<u8>) {
    let template = &*TEMPLATE;
    let Claimed { event_id, claim_timestamp_us, claim_sequence } = claimed;
    let start = out.len();
    out.extend_from_slice(&template.frame);
    let mut put = |at: usize, bytes: &[u8]| out[start + at..start + at + bytes.len()].copy_from_slice(bytes);
    put(template.request_id, &request_id.to_le_bytes());
    put(template.position, &wire::LogPosition::new(position.shard, position.position).0);
    put(template.event_id, event_id.as_bytes());
    put(template.claim_timestamp_us, &claim_timestamp_us.to_le_bytes());
    put(template.claim_sequence, &claim_sequence.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readers may look at the sizes of tables, which stand in the vtables beside their own.
    #[test]
    fn vtables_say_how_long_they_and_their_tables_are() {
        assert_eq!(RESULT_VTABLE, [6, 0, 8, 0, 4, 0]);
        assert_eq!(CLAIMED_VTABLE, [10, 0, 40, 0, 4, 0, 24, 0, 32, 0]);
    }
}
