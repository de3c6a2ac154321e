//! Reads of sealed segments while the log is written: they go to the device in pieces then, a few at a time, and say what they say else.

mod harness;

use claim_client::{ClaimItem, Client, ScanRange, Uuid};
use harness::{Daemon, format, item, options, scratch};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// Four segments and more of rows that are longer than most.
const BATCHES: usize = 40;
const BATCH: usize = 500;

fn metadata(n: usize) -> Vec<u8> {
    (0..700 + n % 300).map(|at| (n + at) as u8).collect()
}

fn claim_batch(client: &Client, corpus: &str, from: usize) -> Vec<Uuid> {
    let texts: Vec<_> = (from..from + BATCH).map(|n| (format!("{corpus}-{n}"), metadata(n))).collect();
    let items: Vec<_> = texts.iter().map(|(key, metadata)| ClaimItem { metadata, ..item(key) }).collect();
    let results = client.claim_batch(corpus, &items, &options()).wait().expect("a batch").value;
    results.into_iter().map(|result| result.expect("a claim").event_id).collect()
}

/// Says that it is over when it goes, however that comes.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_is_read_beside_writes_is_what_was_claimed() {
    let scratch = scratch();
    format(scratch.path(), 1, "wall");
    // With the smallest cache, most of what is read comes from the device.
    let daemon = Daemon::start_more(scratch.path(), &["--cache-mib", "16"]);
    let client = daemon.client();
    for corpus in ["customer", "internal-tools"] {
        client.onboard(corpus, "", &options()).wait().expect("onboarded");
    }
    let ids: Vec<_> = (0..BATCHES).flat_map(|batch| claim_batch(&client, "customer", batch * BATCH)).collect();
    let claimed: BTreeMap<_, _> = ids.iter().enumerate().map(|(n, id)| (*id, n)).collect();

    let has_read = AtomicBool::new(false);
    let beside = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let writer = daemon.client();
            let mut beside = 0;
            while !has_read.load(Ordering::Relaxed) && beside < 20 * BATCHES {
                claim_batch(&writer, "internal-tools", beside * BATCH);
                beside += 1;
            }
            beside
        });
        let over = Over(&has_read);
        for page_rows in [0, 30] {
            let range = ScanRange { page_rows, ..ScanRange::default() };
            let rows = client.scan("customer", range, &options()).rows().map(|row| row.expect("a row"));
            let found: Vec<_> = rows.map(|row| (row.event_id, row.event_key, row.metadata)).collect();
            let expected = claimed.iter().map(|(id, n)| (*id, format!("customer-{n}"), metadata(*n)));
            assert!(found.into_iter().eq(expected), "pages of {page_rows} rows");
        }
        // In an order in which hardly two lie near each other.
        let asked: Vec<_> = (0..2_000).map(|n| n * 7_919 % ids.len()).collect();
        for some in asked.chunks(200) {
            let pending: Vec<_> = some.iter().map(|n| (*n, client.lookup(ids[*n], &options()))).collect();
            for (n, answer) in pending {
                let row = answer.wait().expect("a row").value;
                assert_eq!((row.event_key, row.metadata), (format!("customer-{n}"), metadata(n)));
            }
        }
        drop(over);
        writing.join().expect("the claims beside")
    });
    assert!(beside > 0, "something was written beside");
    daemon.stop();
}
