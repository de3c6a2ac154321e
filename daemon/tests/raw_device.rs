//! A ledger on raw block devices, which are loop devices here. It takes root and /dev/loop-control; CI has both.

mod harness;

use claim_client::ScanRange;
use harness::loops::Loop;
use harness::{Daemon, claimd, item, options, scratch};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Output;
use tempfile::TempDir;

/// Six segments of 4 MiB and the superblocks take 24.1 MiB.
const DEVICE_BYTES: u64 = 48 << 20;
const SEGMENT_BYTES: &str = "4M";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn format(data: &Path, devices: &[&Loop], more: &[&str]) -> Output {
    let mut command = claimd();
    command.args(["format", "--segment-bytes", SEGMENT_BYTES]).args(more).arg("--data").arg(data);
    for device in devices {
        command.arg("--device").arg(&device.path);
    }
    command.output().expect("claimd runs")
}

#[track_caller]
fn assert_refused(output: &Output, reason: &str) {
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains(reason), "{said}");
}

#[track_caller]
fn assert_done(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn run(verb: &str, data: &Path) -> Output {
    claimd().arg(verb).arg("--data").arg(data).output().expect("claimd runs")
}

fn device(bytes: u64) -> (TempDir, Loop) {
    let scratch = scratch();
    let device = Loop::new(scratch.path(), "device", bytes);
    (scratch, device)
}

#[test]
fn a_ledger_lives_on_devices_through_a_kill() {
    let scratch = scratch();
    let data = scratch.path().join("ledger");
    let (one, other) =
        (Loop::new(scratch.path(), "one", DEVICE_BYTES), Loop::new(scratch.path(), "other", DEVICE_BYTES));
    assert_done(&format(&data, &[&one, &other], &[]));
    assert_eq!(fs::read_link(data.join("shard-0001.ledger")).expect("a link"), other.path);

    let daemon = Daemon::start(&data);
    let client = daemon.client();
    let mut claimed = Vec::new();
    for corpus in ["alpha", "beta"] {
        client.onboard(corpus, "", &options()).wait().expect("an onboarding");
        for n in 0..200 {
            let key = format!("{corpus}-{n}");
            claimed.push((corpus, client.claim(corpus, &item(&key), &options()).wait().expect("a claim").event_id));
        }
    }
    // The device is claimed as a whole: no second daemon, no mount, no format.
    let claim = File::options().read(true).custom_flags(nix::libc::O_EXCL).open(&one.path);
    assert_eq!(claim.expect_err("it is in use").kind(), std::io::ErrorKind::ResourceBusy);
    assert_refused(&format(&scratch.path().join("second"), &[&one], &["--overwrite"]), "it is in use");
    daemon.kill();

    let daemon = Daemon::start(&data);
    let client = daemon.client();
    for corpus in ["alpha", "beta"] {
        let rows = client.scan(corpus, ScanRange::default(), &options()).rows();
        let found: Vec<_> = rows.map(|row| row.expect("a row").event_id).collect();
        let expected: Vec<_> = claimed.iter().filter(|(of, _)| *of == corpus).map(|(_, id)| *id).collect();
        assert_eq!(found, expected);
    }
    let inspected = assert_done(&run("inspect", &data));
    assert!(inspected.contains("superblock_copies_valid 4"), "{inspected}");
    daemon.stop();
    assert_done(&run("verify", &data));
    let doctor = text(&run("doctor", &data).stdout);
    assert!(doctor.contains(&format!("is the block device {}", one.text())), "{doctor}");
}

#[test]
fn what_a_device_holds_is_not_overwritten_unasked() {
    let (scratch, device) = device(DEVICE_BYTES);
    let data = |n: u32| scratch.path().join(n.to_string());
    let write = |bytes: &[u8], at| {
        let file = File::options().write(true).open(&device.path).expect("the device opens");
        file.write_all_at(bytes, at).and_then(|()| file.sync_all()).expect("a write");
    };
    write(b"XFSB", 0);
    assert_refused(&format(&data(1), &[&device], &[]), "an xfs file system");
    write(&[0; 4], 0);
    write(&[7], DEVICE_BYTES - 100);
    assert_refused(&format(&data(1), &[&device], &[]), "not empty");
    assert_refused(&format(&data(1), &[&device, &device], &["--overwrite"]), "the same device");
    assert_done(&format(&data(1), &[&device], &["--overwrite"]));

    // Left-overs of the first ledger lie all over the device; the second knows nothing of them.
    let daemon = Daemon::start(&data(1));
    let client = daemon.client();
    client.onboard("old", "", &options()).wait().expect("an onboarding");
    let metadata = vec![9; 60_000];
    for n in 0..150 {
        let key = format!("old-{n}");
        let large = claim_client::ClaimItem { metadata: &metadata, ..item(&key) };
        client.claim("old", &large, &options()).wait().expect("a claim");
    }
    daemon.stop();
    assert_refused(&format(&data(2), &[&device], &[]), "it holds shard 0 of ledger");
    assert_done(&format(&data(2), &[&device], &["--overwrite"]));
    for _ in 0..2 {
        let daemon = Daemon::start(&data(2));
        assert!(daemon.client().corpora(&options()).wait().expect("the corpora").is_empty());
        daemon.stop();
    }
}

#[test]
fn a_full_device_refuses_and_goes_on_answering() {
    let (scratch, device) = device(28 << 20);
    let data = scratch.path().join("ledger");
    assert_done(&format(&data, &[&device], &[]));
    let daemon = Daemon::start(&data);
    let client = daemon.client_without_retry();
    client.onboard("alpha", "", &options()).wait().expect("an onboarding");
    let metadata = vec![9; 60_000];
    let mut kept = Vec::new();
    let refusal = (0..).find_map(|n| {
        let key = format!("event-{n}");
        let large = claim_client::ClaimItem { metadata: &metadata, ..item(&key) };
        match client.claim("alpha", &large, &options()).wait() {
            Ok(claimed) => {
                kept.push(claimed.event_id);
                None
            }
            Err(error) => Some(error.to_string()),
        }
    });
    assert!(refusal.as_ref().is_some_and(|text| text.contains("NO_SPACE")), "{refusal:?}");
    assert!(kept.len() > 100, "{} claims", kept.len());
    let rows = |client: &claim_client::Client| -> Vec<_> {
        client.scan("alpha", ScanRange::default(), &options()).rows().map(|row| row.expect("a row").event_id).collect()
    };
    assert_eq!(rows(&client), kept);
    daemon.kill();
    let daemon = Daemon::start(&data);
    assert_eq!(rows(&daemon.client()), kept);
    daemon.stop();
}

#[test]
fn unfit_devices_and_lost_links_are_named() {
    let (scratch, device) = device(8 << 20);
    let data = scratch.path().join("ledger");
    assert_refused(&format(&data, &[&device], &[]), "a shard takes 25231360");
    let plain = scratch.path().join("plain");
    File::create(&plain).and_then(|mut file| file.write_all(b"x")).expect("a file");
    let output =
        claimd().arg("format").arg("--device").arg(&plain).arg("--data").arg(&data).output().expect("claimd runs");
    assert_refused(&output, "no block device");
    std::os::unix::fs::symlink("/dev/claimd-test-gone", data.join("shard-0000.ledger")).expect("a link");
    assert_refused(&run("start", &data), "/dev/claimd-test-gone, which is not there");
    assert_refused(&run("format", &data), "holds a ledger already");
}
