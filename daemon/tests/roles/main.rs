//! Who may do what, asked by processes whose users really differ. It takes root.

#[path = "../harness/mod.rs"]
mod harness;
mod table;

use claim_client::{AuditOperation, Client, Entry, ErrorCode, TailOptions};
use claim_protocol::reply::ReplyResult;
use claim_protocol::{Operation, Request};
use harness::stage::Stage;
use harness::user::{Refusal, User, serve};
use harness::{Daemon, claimd, format, item, options, scratch};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use table::{COLUMNS, Row, TABLE};
use uuid::Uuid;

/// How long a configuration may take to be read on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// Refusals of one uid that a shard logs in an hour.
const LOGGED_AN_HOUR: usize = 10;
const HOUR_US: i64 = 3_600_000_000;

/// What a process of another user runs; nothing in any other process.
#[test]
fn another_user() {
    serve();
}

fn user(daemon: &Daemon, uid: u32, gid: u32) -> User {
    User::start("another_user", &daemon.socket(), uid, gid)
}

/// A group that has no role anywhere.
const NO_GROUP: u32 = 3_999;

/// Root has every role on every corpus.
const ROOT: &str = r#"
[[role]]
role = "client"
corpora = ["*"]
uids = [0]
[[role]]
role = "facilitator"
corpora = ["*"]
uids = [0]
[[role]]
role = "manager"
uids = [0]
[[role]]
role = "platform"
uids = [0]
[[role]]
role = "arbitrator"
uids = [0]
[[role]]
role = "leadership"
uids = [0]
[[role]]
role = "auditor"
uids = [0]
"#;

/// One user for each role. Client, facilitator and manager have theirs on the corpus `customer`.
const PARTIES: &str = r#"
[[role]]
role = "client"
corpora = ["customer"]
uids = [2101]
[[role]]
role = "facilitator"
corpora = ["customer"]
uids = [2102]
[[role]]
role = "platform"
uids = [2103]
[[role]]
role = "manager"
corpora = ["customer"]
uids = [2104]
[[role]]
role = "arbitrator"
uids = [2105]
[[role]]
role = "leadership"
uids = [2106]
[[role]]
role = "auditor"
uids = [2107]
"#;

/// A configuration file beside the ledger.
fn configure(data: &Path, text: &str) -> PathBuf {
    let path = data.join("claimd.toml");
    std::fs::write(&path, text).expect("our directory");
    path
}

fn start(data: &Path, config: &Path) -> Daemon {
    Daemon::start_more(data, &["--config", config.to_str().expect("a path of ours")])
}

/// The same request about things that are not there. None where what the things are decides who may.
fn of_nothing(row: &Row, asked: &[String]) -> Vec<Vec<String>> {
    let depends_on_state = ["arbitrate", "dismiss", "arbitrate what is escalated", "dismiss what is escalated"];
    if depends_on_state.contains(&row.what) || row.what == "dispute what was dismissed" {
        return Vec::new();
    }
    let mut variants = Vec::new();
    let mut with = |index: usize, word: &str| {
        let mut variant = asked.to_vec();
        variant[index] = word.to_owned();
        variants.push(variant);
    };
    for (index, word) in asked.iter().enumerate().skip(1) {
        match (asked[0].as_str(), word.as_str()) {
            // Here it is what is there that must not show.
            ("onboard", _) => with(index, "customer"),
            (_, "customer" | "compliance") => with(index, "ghost"),
            (_, name) if name.starts_with("closing-") => with(index, "ghost"),
            ("sign", _) if index == 2 => with(index, "999999999"),
            (_, id) => {
                let Ok(id) = Uuid::parse_str(id) else { continue };
                // Another row of the corpus, and one of a corpus that was never onboarded.
                with(index, &Uuid::from_u128(id.as_u128() ^ 0xff).to_string());
                with(index, &Uuid::from_u128(id.as_u128() | 0xf << 58).to_string());
            }
        }
    }
    variants
}

fn ask(party: &mut User, asked: &[String]) -> Result<String, Refusal> {
    party.ask_fully(&asked.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Asks for one row's operation as everybody: first those who may not, then, of the same things, those who may.
fn check(stage: &mut Stage, parties: &mut [User], row: &Row, corpus: &str, may: &str) {
    let may: Vec<_> = may.split(' ').map(|mark| mark == "●").collect();
    assert_eq!(may.len(), COLUMNS.len(), "{}", row.what);
    let mut made = Some((row.ask)(stage, corpus));
    for (index, party) in parties.iter_mut().enumerate().filter(|(index, _)| !may[*index]) {
        let (who, asked) = (COLUMNS[index].0, made.as_ref().expect("nobody has used it"));
        let refusal = match ask(party, asked) {
            Err(refusal) if refusal.code == "FORBIDDEN" => refusal,
            other => panic!("{who} asks for {asked:?} ({}) and gets {other:?}", row.what),
        };
        for asked in of_nothing(row, asked) {
            assert_eq!(ask(party, &asked), Err(refusal.clone()), "{who} learns something from {asked:?}");
        }
    }
    for (index, party) in parties.iter_mut().enumerate().filter(|(index, _)| may[*index]) {
        let asked = made.take().unwrap_or_else(|| (row.ask)(stage, corpus));
        let answer = ask(party, &asked);
        assert!(answer.is_ok(), "{} asks for {asked:?} ({}) and gets {answer:?}", COLUMNS[index].0, row.what);
    }
    // Nobody of the table may: what was refused was refused for no other reason.
    if let Some(asked) = made {
        stage.get(&asked.iter().map(String::as_str).collect::<Vec<_>>());
    }
    stage.settle();
}

#[test]
fn every_operation_by_every_role_and_none() {
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let config = configure(scratch.path(), &format!("{ROOT}{PARTIES}"));
    let daemon = start(scratch.path(), &config);
    let mut stage = Stage::new(user(&daemon, 0, 0));
    for corpus in ["customer", "compliance"] {
        stage.get(&["onboard", corpus]);
    }
    let mut parties = COLUMNS.map(|(_, uid)| user(&daemon, uid, NO_GROUP));
    for row in TABLE {
        println!("{}", row.what);
        check(&mut stage, &mut parties, row, "customer", row.own);
        if !row.other.is_empty() {
            check(&mut stage, &mut parties, row, "compliance", row.other);
        }
    }
    // Nobody signs as what does not sign; to those who sign something it is said.
    let proposal = stage.proposal("customer");
    for (party, (who, _)) in parties.iter_mut().zip(COLUMNS) {
        let signs = ["facilitator", "platform", "manager"].contains(&who);
        let expected = if signs { "BAD_REQUEST" } else { "FORBIDDEN" };
        assert_eq!(party.ask(&["sign", "auditor", &proposal]), Err(expected.to_owned()), "{who}");
    }
    daemon.stop();
}

/// What everybody sees of the same ledger.
#[test]
fn what_one_may_not_read_is_left_out() {
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let config = configure(scratch.path(), &format!("{ROOT}{PARTIES}"));
    let daemon = start(scratch.path(), &config);
    let mut stage = Stage::new(user(&daemon, 0, 0));
    for corpus in ["customer", "compliance", "payments"] {
        stage.get(&["onboard", corpus]);
    }
    let shared = ["customer", "compliance", "payments"].map(|corpus| stage.get(&["claim", corpus, "shared"]));
    let (own, _) = stage.dispute(["customer", "compliance"]);
    let (others, _) = stage.dispute(["compliance", "payments"]);
    stage.proposal("customer");
    stage.proposal("compliance");
    let in_order = |mut ids: Vec<&str>| {
        ids.sort_unstable();
        ids.join(",")
    };
    let all_shared = in_order(shared.iter().map(String::as_str).collect());
    let both_disputes = in_order(vec![&own, &others]);

    let reads_own = ["client", "facilitator", "manager"];
    let reads_all = ["platform", "arbitrator", "leadership", "auditor"];
    for (who, uid) in COLUMNS {
        let mut party = user(&daemon, uid, NO_GROUP);
        let mut sees = |words: &[&str]| {
            let answer = party.ask(words);
            answer.map(|answer| in_order(answer.split(',').collect()))
        };
        let lookup_of_nothing = format!("{}0000", &others[..others.len() - 4]);
        if reads_own.contains(&who) {
            assert_eq!(sees(&["corpora"]), Ok("customer".to_owned()), "{who}");
            assert_eq!(sees(&["find", "shared"]), Ok(shared[0].clone()), "{who}");
            assert_eq!(sees(&["totals", ""]), Ok("customer".to_owned()), "{who}");
            assert_eq!(sees(&["proposals"]), Ok("customer".to_owned()), "{who}");
            assert_eq!(sees(&["disputes", ""]), Ok(own.clone()), "{who}");
            assert_eq!(sees(&["dispute-lookup", &own]), Ok("arbitrate".to_owned()), "{who}");
            // A dispute of others is not there at all.
            for hidden in [&others, &lookup_of_nothing] {
                assert_eq!(sees(&["dispute-lookup", hidden]), Err("NOT_VISIBLE".to_owned()), "{who}");
            }
        } else if reads_all.contains(&who) {
            assert_eq!(sees(&["corpora"]), Ok("compliance,customer,payments".to_owned()), "{who}");
            assert_eq!(sees(&["find", "shared"]), Ok(all_shared.clone()), "{who}");
            assert_eq!(sees(&["totals", ""]), Ok("compliance,customer,payments".to_owned()), "{who}");
            assert_eq!(sees(&["proposals"]), Ok("compliance,customer".to_owned()), "{who}");
            assert_eq!(sees(&["disputes", ""]), Ok(both_disputes.clone()), "{who}");
            assert_eq!(sees(&["dispute-lookup", &others]), Ok("arbitrate".to_owned()), "{who}");
        } else {
            for hidden in [&own, &others, &lookup_of_nothing] {
                assert_eq!(sees(&["dispute-lookup", hidden]), Err("FORBIDDEN".to_owned()), "{who}");
            }
        }
    }
    daemon.stop();
}

/// One pass merges rows of two corpora on one shard; the history of a row of one tells nothing of the other.
#[test]
fn the_history_of_an_alias_does_not_tell_of_other_corpora() {
    let scratch = scratch();
    format(scratch.path(), 2, "replay");
    let config = configure(scratch.path(), &format!("{ROOT}{PARTIES}"));
    let daemon = start(scratch.path(), &config);
    let mut root = user(&daemon, 0, 0);
    let mut get = |at_us: i64, words: &[&str]| {
        let at = format!("@{at_us}");
        root.ask(&[&[at.as_str()], words].concat()).expect("root may")
    };
    for corpus in ["customer", "compliance", "payments"] {
        get(FEBRUARY_US, &["onboard", corpus]);
    }
    let first = ["one", "two"].map(|key| get(FEBRUARY_US, &["claim", "compliance", key]));
    let own = get(FEBRUARY_US + 1, &["claim", "customer", "one"]);
    let others = get(FEBRUARY_US + 1, &["claim", "payments", "two"]);
    get(FEBRUARY_US + HOUR_US, &["reconcile"]);
    let history = get(FEBRUARY_US + HOUR_US, &["history-rows", &own]);
    assert!(history.contains(&format!("{own} → {}", first[0])), "it was merged: {history}");
    let passes = entries(&daemon.client(), 0, AuditOperation::Reconcile);
    let is_of_both = |entry: &Entry| [&own, &others].iter().all(|row| entry.detail.contains(row.as_str()));
    assert!(passes.iter().any(is_of_both), "one entry merges both: {passes:?}");
    let seen = user(&daemon, 2_101, NO_GROUP).ask(&["history-rows", &own]).expect("its own corpus");
    assert_eq!(seen, history);
    for hidden in [&others, &first[1]] {
        assert!(!seen.contains(hidden.as_str()), "{hidden} is no business of customer: {seen}");
    }
    daemon.stop();
}

/// Quarters of a ledger that replays 2025, in microseconds.
const FEBRUARY_US: i64 = 1_739_000_000_000_000;
const APRIL_US: i64 = 1_743_465_600_000_000;

#[test]
fn three_users_sign_a_slot_increase_and_one_cannot() {
    let scratch = scratch();
    format(scratch.path(), 2, "replay");
    let signers = r#"
[slots]
per_quarter = 2
[[role]]
role = "platform"
uids = [2201, 2202]
[[role]]
role = "facilitator"
corpora = ["customer"]
uids = [2201, 2203]
[[role]]
role = "manager"
uids = [2201, 2204]
"#;
    let config = configure(scratch.path(), &format!("{ROOT}{signers}"));
    let daemon = start(scratch.path(), &config);
    let mut root = user(&daemon, 0, 0);
    let at = |at_us: i64| format!("@{at_us}");
    let february = at(FEBRUARY_US);
    root.ask(&[&february, "onboard", "customer"]).expect("an onboarding");
    let proposal = root.ask(&[&february, "propose", "customer", "4"]).expect("a proposal");

    // One user who has all three roles, also as a process of another group.
    let mut all = user(&daemon, 2_201, NO_GROUP);
    let mut all_again = user(&daemon, 2_201, NO_GROUP - 1);
    assert_eq!(all.ask(&[&february, "sign", "platform", &proposal]), Ok("1 None".to_owned()));
    for role in ["facilitator", "manager"] {
        for all in [&mut all, &mut all_again] {
            let refusal = all.ask_fully(&[&february, "sign", role, &proposal]).expect_err("one user signs once");
            assert_eq!(refusal.code, "FORBIDDEN");
            assert!(refusal.message.contains("three different uids"), "{refusal:?}");
        }
    }
    assert_eq!(all.ask(&[&february, "sign", "platform", &proposal]), Err("BAD_TRANSITION".to_owned()));

    // A user who has one of the roles signs in no other.
    let (mut facilitator, mut manager) = (user(&daemon, 2_203, NO_GROUP), user(&daemon, 2_204, NO_GROUP));
    assert_eq!(facilitator.ask(&[&february, "sign", "manager", &proposal]), Err("FORBIDDEN".to_owned()));
    assert_eq!(facilitator.ask(&[&february, "sign", "facilitator", &proposal]), Ok("2 None".to_owned()));
    assert_eq!(manager.ask(&[&february, "sign", "manager", &proposal]), Ok(format!("3 Some({APRIL_US})")));

    // Two slots to the end of the quarter, four from the next one on.
    let over = |at_us: i64| {
        let options = claim_client::RequestOptions { at_us: Some(at_us), ..options() };
        let client = daemon.client();
        let keys = (0..5).map(|n| format!("{at_us}-{n}"));
        let claimed = keys.map(|key| client.claim("customer", &item(&key), &options).wait().expect("a claim").value);
        let ids: Vec<_> = claimed.map(|claimed| claimed.event_id).collect();
        ids.into_iter()
            .map(|id| client.lookup(id, &options).wait().expect("a row").value.over_budget)
            .collect::<Vec<_>>()
    };
    assert_eq!(over(APRIL_US - 1), [false, false, true, true, true]);
    assert_eq!(over(APRIL_US), [false, false, false, false, true]);

    let signed = entries(&daemon.client(), 0, AuditOperation::SignOff);
    let who: Vec<_> = signed.iter().map(|entry| (entry.uid, entry.pid)).collect();
    assert_eq!(who, [(2_201, all.pid()), (2_203, facilitator.pid()), (2_204, manager.pid())]);
    daemon.stop();
}

/// A shard's entries of one kind.
fn entries(client: &Client, shard: u16, operation: AuditOperation) -> Vec<Entry> {
    let tail = TailOptions { shard, from_position: 1, page_entries: 0, wait: Duration::ZERO };
    let pages = client.tail(tail, &options()).map(|page| page.expect("a page").entries);
    pages.flatten().filter(|entry| entry.operation == operation).collect()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// A role for one user on one corpus.
fn client_role(corpus: &str, uid: u32) -> String {
    format!("[[role]]\nrole = \"client\"\ncorpora = [\"{corpus}\"]\nuids = [{uid}]\n")
}

#[test]
fn a_changed_configuration_is_in_the_audit() {
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let config = configure(scratch.path(), ROOT);
    let said = scratch.path().join("stderr");
    let mut command = claimd();
    command.stderr(std::fs::File::create(&said).expect("our directory"));
    command.args(["start", "--config"]).arg(&config).arg("--data").arg(scratch.path());
    let daemon = Daemon::spawn(scratch.path(), command);
    let root = daemon.client();
    for corpus in ["customer", "compliance"] {
        root.onboard(corpus, "a test", &options()).wait().expect("an onboarding");
    }
    let mut somebody = user(&daemon, 2_301, NO_GROUP);
    let reload = |text: &str| {
        configure(scratch.path(), text);
        kill(Pid::from_raw(daemon.pid() as i32), Signal::SIGHUP).expect("the daemon is there");
    };
    let in_force = || root.configuration(&options()).wait().expect("a configuration").value.toml;
    let said_so_far = || std::fs::read_to_string(&said).expect("what the daemon said");

    assert_eq!(somebody.ask(&["claim", "customer", "before"]), Err("FORBIDDEN".to_owned()));
    reload(&format!("{ROOT}{}", client_role("customer", 2_301)));
    until("the role is given", || in_force().contains("2301"));
    assert!(somebody.ask(&["claim", "customer", "given"]).is_ok());
    assert_eq!(somebody.ask(&["claim", "compliance", "given"]), Err("FORBIDDEN".to_owned()));

    // What can't be used changes nothing.
    let before = in_force();
    for (wrong, says) in [
        ("[[role]]\nrole = \"emperor\"\nuids = [2301]", "unknown variant `emperor`"),
        ("[[role]", "line 1"),
        ("[roles]\nclient = 2301", "unknown field `roles`"),
    ] {
        reload(wrong);
        until(says, || said_so_far().contains(says));
        assert_eq!(in_force(), before);
        assert!(somebody.ask(&["claim", "customer", says]).is_ok());
    }
    std::fs::remove_file(&config).expect("our file");
    kill(Pid::from_raw(daemon.pid() as i32), Signal::SIGHUP).expect("the daemon is there");
    until("it misses its file", || said_so_far().contains("can't be opened"));
    assert_eq!(in_force(), before);

    reload(&format!("{ROOT}{}", client_role("compliance", 2_301)));
    until("the role is taken", || in_force() != before);
    assert_eq!(somebody.ask(&["claim", "customer", "taken"]), Err("FORBIDDEN".to_owned()));
    // The other shard follows.
    until("the other role is given", || somebody.ask(&["claim", "compliance", "taken"]).is_ok());

    let pid = daemon.pid();
    for shard in [0, 1] {
        let changes = entries(&root, shard, AuditOperation::Configuration);
        let role_of = |entry: &Entry| {
            let text = entry.detail.replace(" ⏎ ", "\n");
            let lines: Vec<_> = text.lines().collect();
            let line = lines.iter().position(|line| line.contains("2301"))?;
            let corpora = lines[..line].iter().rev().chain(&lines[line..]).find(|line| line.starts_with("corpora"))?;
            Some((*corpora).to_owned())
        };
        let roles: Vec<_> = changes.iter().map(role_of).collect();
        assert_eq!(roles.len(), 3, "{changes:?}");
        assert_eq!(roles[0], None);
        assert!(roles[1].as_ref().is_some_and(|corpora| corpora.contains("customer")), "{roles:?}");
        assert!(roles[2].as_ref().is_some_and(|corpora| corpora.contains("compliance")), "{roles:?}");
        for change in &changes {
            assert_eq!((change.uid, change.pid, change.user_name.as_str()), (0, pid, "root"));
            assert!(change.idempotency_key.is_some());
        }
    }
    drop(root);
    daemon.stop();

    // The same configuration is no change, whoever starts the daemon.
    let daemon = start(scratch.path(), &config);
    assert_eq!(entries(&daemon.client(), 0, AuditOperation::Configuration).len(), 3);
    daemon.stop();
}

#[test]
fn refusals_are_in_the_audit_up_to_a_bound() {
    let scratch = scratch();
    format(scratch.path(), 2, "replay");
    let config = configure(scratch.path(), ROOT);
    let daemon = start(scratch.path(), &config);
    let mut root = user(&daemon, 0, 0);
    let first = format!("@{FEBRUARY_US}");
    for corpus in ["customer", "compliance"] {
        root.ask(&[&first, "onboard", corpus]).expect("an onboarding");
    }
    let nobody = nix::unistd::User::from_name("nobody").expect("a user database").expect("a user nobody");
    let (uid, other_uid) = (nobody.uid.as_raw(), 2_402);
    let (mut one, mut other) = (user(&daemon, uid, NO_GROUP), user(&daemon, other_uid, NO_GROUP));
    let claims = 25;
    // Whoever has no role does not move the ledger's time either.
    let far = format!("@{}", FEBRUARY_US + 1_000 * HOUR_US);
    for n in 0..claims {
        for corpus in ["customer", "compliance"] {
            assert_eq!(one.ask(&[&far, "claim", corpus, &n.to_string()]), Err("FORBIDDEN".to_owned()));
        }
    }
    assert_eq!(other.ask(&[&far, "claim", "customer", "a key"]), Err("FORBIDDEN".to_owned()));

    let of = |client: &Client, shard: u16, uid: u32| {
        let all = entries(client, shard, AuditOperation::Forbidden);
        all.into_iter().filter(|entry| entry.uid == uid).collect::<Vec<_>>()
    };
    let reader = daemon.client();
    for (shard, corpus) in [(0, "customer"), (1, "compliance")] {
        let logged = of(&reader, shard, uid);
        assert_eq!(logged.len(), LOGGED_AN_HOUR, "{logged:?}");
        for entry in &logged {
            let who = (entry.uid, entry.gid, entry.pid, entry.user_name.as_str());
            assert_eq!(who, (uid, NO_GROUP, one.pid(), "nobody"));
            assert!(entry.timestamp_us < FEBRUARY_US + HOUR_US, "{entry:?}");
        }
        let claim = logged.iter().find(|entry| entry.detail.starts_with("Claim refused")).expect("a claim");
        assert_eq!(claim.corpus, corpus);
    }
    // Another user has entries of his own.
    assert!(of(&reader, 0, other_uid).iter().any(|entry| entry.detail.starts_with("Claim refused")));
    drop(reader);
    daemon.stop();

    // After a restart the hour is the same, and in the next one the first entry says how many were only counted.
    let daemon = start(scratch.path(), &config);
    let mut one = user(&daemon, uid, NO_GROUP);
    for n in 0..claims {
        assert_eq!(one.ask(&[&far, "claim", "customer", &n.to_string()]), Err("FORBIDDEN".to_owned()));
    }
    let reader = daemon.client();
    assert_eq!(of(&reader, 0, uid).len(), LOGGED_AN_HOUR);
    let mut root = user(&daemon, 0, 0);
    root.ask(&[&format!("@{}", FEBRUARY_US + HOUR_US), "claim", "customer", "an hour later"]).expect("a claim");
    assert_eq!(one.ask(&[&far, "claim", "customer", "once more"]), Err("FORBIDDEN".to_owned()));
    let logged = of(&reader, 0, uid);
    let counted = logged[LOGGED_AN_HOUR].detail.split(&[';', ' ']).find_map(|word| word.parse::<u32>().ok());
    // The client asks for the corpora by itself, too.
    assert!(counted.is_some_and(|counted| counted >= claims), "{:?}", logged[LOGGED_AN_HOUR]);
    daemon.stop();
}

#[test]
fn entries_say_which_user_it_was() {
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let system = nix::unistd::User::from_name("daemon").expect("a user database").expect("a user daemon");
    let named = system.uid.as_raw();
    let clients = format!(
        "{}{}[[role]]\nrole = \"client\"\ncorpora = [\"compliance\"]\ngids = [3002]\n",
        client_role("customer", 2_001),
        client_role("customer", named)
    );
    let config = configure(scratch.path(), &format!("{ROOT}{clients}"));
    let daemon = start(scratch.path(), &config);
    let root = daemon.client();
    for corpus in ["customer", "compliance"] {
        root.onboard(corpus, "a test", &options()).wait().expect("an onboarding");
    }
    let (mut one, mut other) = (user(&daemon, 2_001, 3_001), user(&daemon, 2_002, 3_002));
    let mut named_one = user(&daemon, named, 3_001);
    let id = one.ask(&["claim", "customer", "a key"]).expect("a claim");
    other.ask(&["reference", "compliance", &id]).expect("a reference");
    named_one.ask(&["retract", "customer", &id]).expect("a retraction");
    assert_eq!(one.ask(&["retract", "customer", &id]), Err("BAD_TRANSITION".to_owned()));
    // The role is the group's, not the user's.
    let mut other_group = user(&daemon, 2_002, 3_001);
    assert_eq!(other_group.ask(&["reference", "compliance", &id]), Err("FORBIDDEN".to_owned()));

    let history = root.history(id.parse().expect("an id"), 0, &options()).wait().expect("a history").value.entries;
    let who: Vec<_> = history.iter().map(|e| (e.uid, e.gid, e.pid, e.user_name.as_str())).collect();
    let expected =
        [(2_001, 3_001, one.pid(), ""), (2_002, 3_002, other.pid(), ""), (named, 3_001, named_one.pid(), "daemon")];
    assert_eq!(who, expected);
    // What concerns every shard names the user on every shard.
    for shard in [0, 1] {
        let onboarded = entries(&root, shard, AuditOperation::Onboard);
        assert_eq!(onboarded.len(), 2);
        assert!(onboarded.iter().all(|entry| (entry.uid, entry.user_name.as_str()) == (0, "root")), "{onboarded:?}");
    }
    daemon.stop();
}

#[test]
fn without_a_file_only_the_daemons_own_user_has_roles() {
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let daemon = Daemon::start(scratch.path());
    let (mut owner, mut other) = (user(&daemon, 0, NO_GROUP), user(&daemon, 2_001, 0));
    owner.ask(&["onboard", "customer"]).expect("an onboarding");
    let id = owner.ask(&["claim", "customer", "a key"]).expect("a claim");
    owner.ask(&["retract", "customer", &id]).expect("a retraction");
    owner.ask(&["reactivate", &id]).expect("a reactivation");
    // Whoever has no role can connect all the same, and is told.
    for words in [&["status"][..], &["corpora"], &["lookup", &id], &["claim", "customer", "a key"], &["tail", "0"]] {
        assert_eq!(other.ask(words), Err("FORBIDDEN".to_owned()), "{words:?}");
    }
    daemon.stop();
}

#[test]
fn an_empty_file_gives_not_even_root_a_role() {
    let scratch = scratch();
    format(scratch.path(), 1, "wall");
    let config = configure(scratch.path(), "");
    let daemon = start(scratch.path(), &config);
    let mut root = user(&daemon, 0, 0);
    for words in [&["status"][..], &["corpora"], &["onboard", "customer"], &["configuration"], &["confirm-clock"]] {
        assert_eq!(root.ask(words), Err("FORBIDDEN".to_owned()), "{words:?}");
    }
    daemon.stop();
}

/// The place of a refusal in the log would tell where a corpus lives.
#[test]
fn a_refusal_for_lack_of_a_role_names_no_position() {
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let config = configure(scratch.path(), "");
    let daemon = start(scratch.path(), &config);
    let mut stream = std::os::unix::net::UnixStream::connect(daemon.socket()).expect("the daemon listens");
    for (request_id, operation) in [
        (1, Operation::Hello { min_version: 1, max_version: 1, client: "a test" }),
        (2, Operation::Scan { corpus: "customer", since_us: None, until_us: None, after: None, limit: 1 }),
    ] {
        let mut frame = Vec::new();
        let request = Request::new(request_id, operation);
        claim_protocol::encode_request(&mut claim_protocol::Builder::new(), &request, &mut frame).expect("it fits");
        stream.write_all(&frame).expect("the daemon reads");
    }
    let mut bytes = Vec::new();
    let refused = loop {
        let mut some = [0; 4_096];
        let read = stream.read(&mut some).expect("the daemon answers");
        assert!(read > 0, "the daemon closes");
        bytes.extend_from_slice(&some[..read]);
        let mut rest = &bytes[..];
        let mut replies = Vec::new();
        while let Ok(Some((content, consumed))) = claim_protocol::frame::split_frame(rest) {
            replies.push(claim_protocol::decode_reply(content).expect("a reply"));
            rest = &rest[consumed..];
        }
        if let Some(reply) = replies.into_iter().find(|reply| reply.request_id == 2) {
            break reply;
        }
    };
    assert!(matches!(&refused.result, ReplyResult::Error(error) if error.code == ErrorCode::Forbidden), "{refused:?}");
    assert_eq!(refused.positions, []);
    daemon.stop();
}
