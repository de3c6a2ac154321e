//! Where the time goes: the stages that `status` tells, and the echo that has none of the ledger's.

mod harness;

use claim_client::{ErrorCode, new_key};
use harness::{Daemon, claimd, format, item, options, scratch};
use std::collections::HashSet;

/// One request in 64 is timed on its way.
const CLAIMS: u64 = 2_048;

#[test]
fn every_stage_of_a_claim_is_told_with_the_core_s_first_shard() {
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let daemon = Daemon::start_more(scratch.path(), &["--cores", "0"]);
    let client = daemon.client();
    client.onboard("alpha", "", &options()).wait().expect("a corpus");
    let claims: Vec<_> = (0..CLAIMS).map(|n| client.claim("alpha", &item(&format!("k-{n}")), &options())).collect();
    claims.into_iter().for_each(|claim| drop(claim.wait().expect("a claim")));
    let shards = client.status(&options()).wait().expect("a status").value.shards;
    assert!(shards[1].stages.is_empty(), "both are of one core");
    let names: Vec<_> = shards[0].stages.iter().map(|stage| stage.name.as_str()).collect();
    let expected = ["socket read", "decode", "queue", "step", "batch wait", "write", "reply", "socket write"];
    assert_eq!(names, expected);
    for stage in &shards[0].stages {
        let least =
            if ["socket read", "write", "socket write"].contains(&stage.name.as_str()) { 1 } else { CLAIMS / 64 };
        // Replies of claims that waited for others' writes only are not timed.
        let least = if ["batch wait", "reply"].contains(&stage.name.as_str()) { 1 } else { least };
        assert!(stage.count >= least, "{stage:?}");
        assert!(stage.p50_ns > 0 && stage.p50_ns <= stage.p99_ns && stage.p99_ns <= stage.p999_ns, "{stage:?}");
    }
    daemon.stop();
}

#[test]
fn an_echo_answers_claims_and_keeps_nothing() {
    let scratch = scratch();
    let mut command = claimd();
    command.arg("echo").arg("--socket").arg(scratch.path().join("claimd.sock"));
    let echo = Daemon::spawn(scratch.path(), command);
    let client = echo.client();
    client.onboard("alpha", "", &options()).wait().expect("a corpus");
    assert_eq!(client.corpora(&options()).wait().expect("a list").value.len(), 1);
    let ids: HashSet<_> = (0..1_000)
        .map(|n| client.claim("alpha", &item(&format!("k-{n}")), &options()).wait().expect("a claim").value.event_id)
        .collect();
    assert_eq!(ids.len(), 1_000);
    let items: Vec<_> = (0..100).map(|_| item("k")).collect();
    let batch = client.claim_batch("alpha", &items, &options()).wait().expect("a batch").value;
    assert!(batch.len() == 100 && batch.iter().all(Result::is_ok));
    let refused = client.lookup(new_key(None), &options()).wait().expect_err("there is no ledger");
    assert_eq!(refused.code(), Some(ErrorCode::BadRequest));
    drop(client);
    echo.stop();
    let left: Vec<_> = std::fs::read_dir(scratch.path()).expect("a directory").collect();
    assert!(left.is_empty(), "{left:?}");
}
