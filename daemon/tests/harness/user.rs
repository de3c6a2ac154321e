//! Processes of other users, who ask a daemon for things. It takes root.
//!
//! Such a process is the test binary once more, told to run one test, which calls [`serve`]: that gives up root before it
//! connects, and then does what it reads line by line.

use claim_client::{
    CHAIN_HASH_BYTES, ClaimItem, Client, ClientError, ClientOptions, DisputeVerdict, Head, HistoryQuery,
    HistorySubject, ReasonCode, Registration, RequestOptions, Role, ScanRange, TailOptions, Uuid, Verdict,
};
use nix::unistd::{Gid, Uid, getegid, setgroups, setresgid, setresuid};
use std::fmt::Debug;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

const SOCKET: &str = "CLAIMD_TEST_SOCKET";
const UID: &str = "CLAIMD_TEST_UID";
const GID: &str = "CLAIMD_TEST_GID";
/// What a line with an answer starts with: the test runner prints lines of its own.
const ANSWER: &str = "answer\t";

/// A process of another user.
pub struct User {
    child: Child,
    asks: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// `Ok` with what the operation gave, or the error's code.
pub type Answer = Result<String, String>;
/// The same with all that the error says.
pub type FullAnswer = Result<String, Refusal>;

/// What an error says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: String,
    pub message: String,
}

impl User {
    /// Starts one; `test` is the name of the test that calls [`serve`]. It may open the daemon's sockets by their group.
    pub fn start(test: &str, socket: &Path, uid: u32, gid: u32) -> User {
        assert!(nix::unistd::geteuid().is_root(), "this test makes processes of other users: run it as root");
        let data = socket.parent().expect("a directory");
        std::fs::set_permissions(data, std::fs::Permissions::from_mode(0o750)).expect("our directory");
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args([test, "--exact", "--nocapture"])
            .env(SOCKET, socket)
            .env(UID, uid.to_string())
            .env(GID, gid.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this binary starts");
        let asks = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        User { child, asks, answers }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks for an operation as [`operation`] knows it. A first word `@1700000000000000` is the request's own time.
    pub fn ask(&mut self, words: &[&str]) -> Answer {
        self.ask_fully(words).map_err(|refusal| refusal.code)
    }

    /// The same, for an answer with all that it says.
    pub fn ask_fully(&mut self, words: &[&str]) -> FullAnswer {
        let asks = self.asks.as_mut().expect("open until the end");
        writeln!(asks, "{}", words.join("\t")).expect("the other process reads");
        loop {
            let mut line = String::new();
            let read = self.answers.read_line(&mut line).expect("the other process answers");
            assert!(read > 0, "the other process ended at {words:?}");
            // The runner's own line has no end yet when the first answer comes.
            let Some((_, answer)) = line.trim_end_matches('\n').split_once(ANSWER) else { continue };
            let (how, what) = answer.split_once('\t').expect("how and what");
            let (how, what) = (how.to_owned(), what.to_owned());
            return if how == "ok" { Ok(what) } else { Err(Refusal { code: how, message: what }) };
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.asks = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other process: becomes its user, and answers until its input ends. Returns at once where nobody started it as one.
pub fn serve() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let number = |name: &str| std::env::var(name).expect("set by whoever started us").parse::<u32>().expect("a number");
    let (uid, gid) = (Uid::from_raw(number(UID)), Gid::from_raw(number(GID)));
    setgroups(&[getegid()]).expect("we are root");
    setresgid(gid, gid, gid).expect("we are root");
    setresuid(uid, uid, uid).expect("we are root");
    let options = ClientOptions { attempts_max: 1, deadline: Duration::from_secs(60), ..ClientOptions::default() };
    let client = Client::connect_with(&socket, options).expect("the daemon answers");
    for line in std::io::stdin().lines() {
        let line = line.expect("a line");
        let words: Vec<_> = line.split('\t').collect();
        match operation(&client, &words) {
            Ok(value) => println!("{ANSWER}ok\t{value}"),
            Err(ClientError::Refused(error)) => println!("{ANSWER}{}\t{}", error.code.name(), error.message),
            Err(error) => println!("{ANSWER}{error:?}\t"),
        }
    }
}

/// Does what the words say and gives what can be asked for next: ids, names, or a number of things.
fn operation(client: &Client, words: &[&str]) -> Result<String, ClientError> {
    let mut options = RequestOptions { rationale: "a test of roles".to_owned(), ..RequestOptions::default() };
    let words = match words.first().and_then(|first| first.strip_prefix('@')) {
        Some(at_us) => {
            options.at_us = Some(number(at_us));
            &words[1..]
        }
        None => words,
    };
    match words[0] {
        "corpora" | "totals" | "status" | "configuration" | "propagation" | "tail" | "audit-head" | "audit-check"
        | "lookup" | "history" | "history-rows" | "correlated" | "scan" | "find" => read(client, words, &options),
        "dispute" | "respond" | "arbitrate" | "dismiss" | "escalate" | "dispute-lookup" | "disputes" => {
            dispute(client, words, &options)
        }
        "claim" | "claim-batch" | "claim-unless" | "reference" | "reference-batch" | "retract" | "reactivate" => {
            change(client, words, &options)
        }
        _ => govern(client, words, &options),
    }
}

fn id(text: &str) -> Uuid {
    Uuid::parse_str(text).expect("an id")
}

fn number<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().expect("a number")
}

fn joined<T: ToString>(things: impl IntoIterator<Item = T>) -> String {
    things.into_iter().map(|thing| thing.to_string()).collect::<Vec<_>>().join(",")
}

/// Changes of rows.
fn change(client: &Client, words: &[&str], options: &RequestOptions) -> Result<String, ClientError> {
    let with_key = |event_key| ClaimItem { event_key, ..super::item("") };
    let given = match *words {
        ["claim", corpus, key] => client.claim(corpus, &with_key(key), options).wait()?.value.event_id.to_string(),
        ["claim-batch", corpus, ref keys @ ..] => {
            let items: Vec<_> = keys.iter().map(|key| with_key(key)).collect();
            let claimed = client.claim_batch(corpus, &items, options).wait()?.value;
            let claimed: Result<Vec<_>, _> = claimed.into_iter().collect();
            joined(claimed.map_err(ClientError::Refused)?.iter().map(|claimed| claimed.event_id))
        }
        ["claim-unless", corpus, key] => {
            let within = Duration::from_secs(60);
            match client.claim_unless_registered(corpus, &with_key(key), within, options).wait()?.value {
                Registration::Registered(claimed) => claimed.event_id.to_string(),
                Registration::Already { event_id } => panic!("{key} is registered as {event_id}"),
            }
        }
        ["reference", corpus, event] => client.reference(corpus, id(event), options).wait()?.value.to_string(),
        ["reference-batch", corpus, ref events @ ..] => {
            let ids: Vec<_> = events.iter().map(|event| id(event)).collect();
            let referenced = client.reference_batch(corpus, &ids, options).wait()?.value;
            let referenced: Result<Vec<_>, _> = referenced.into_iter().collect();
            joined(referenced.map_err(ClientError::Refused)?)
        }
        ["retract", corpus, event] => {
            client.retract(corpus, id(event), ReasonCode::Other, options).wait()?.value.to_string()
        }
        ["reactivate", event] => client.reactivate(id(event), options).wait()?.value.to_string(),
        _ => panic!("no change of this test: {words:?}"),
    };
    Ok(given)
}

/// Disputes: `arbitrate` names the canonical row first, and the other becomes its alias.
fn dispute(client: &Client, words: &[&str], options: &RequestOptions) -> Result<String, ClientError> {
    let info = match *words {
        ["disputes", corpus] => {
            let open = client.disputes_page(corpus, false, None, options).wait()?.value.disputes;
            return Ok(joined(open.iter().map(|dispute| dispute.dispute_id)));
        }
        ["dispute-lookup", dispute] => {
            return Ok(client.dispute_lookup(id(dispute), options).wait()?.value.state.as_str().to_owned());
        }
        ["dispute", corpus, ref events @ ..] => {
            let ids: Vec<_> = events.iter().map(|event| id(event)).collect();
            client.dispute(corpus, &ids, options).wait()?
        }
        ["respond", corpus, dispute] => client.respond(corpus, id(dispute), options).wait()?,
        ["arbitrate", dispute, canonical, alias] => {
            let canonical = Verdict { event_id: id(canonical), verdict: DisputeVerdict::Canonical };
            let alias = Verdict { event_id: id(alias), verdict: DisputeVerdict::References };
            client.arbitrate(id(dispute), &[canonical, alias], options).wait()?
        }
        ["dismiss", dispute] => client.dismiss(id(dispute), options).wait()?,
        ["escalate", dispute] => client.escalate(id(dispute), options).wait()?,
        _ => panic!("no dispute of this test: {words:?}"),
    };
    Ok(info.value.dispute_id.to_string())
}

/// What concerns corpora and the ledger as wholes.
fn govern(client: &Client, words: &[&str], options: &RequestOptions) -> Result<String, ClientError> {
    let given = match *words {
        ["onboard", name] => client.onboard(name, "", options).wait()?.value.name,
        ["decommission", name] => client.decommission(name, false, options).wait()?.value.corpus.name,
        ["decommission-dry", name] => client.decommission(name, true, options).wait()?.value.corpus.name,
        ["freeze", corpus] => client.freeze(corpus, options).wait()?.value.to_string(),
        ["unfreeze", corpus] => client.unfreeze(corpus, options).wait()?.value.to_string(),
        ["hold", year, quarter] => client.hold(number(year), number(quarter), options).wait()?.value.to_string(),
        ["release", year, quarter] => client.release(number(year), number(quarter), options).wait()?.value.to_string(),
        ["cap", corpus, claims] => client.cap(corpus, number(claims), options).wait()?.value.to_string(),
        ["propose", corpus, slots] => {
            client.propose_slots(corpus, number(slots), options).wait()?.value.proposal.to_string()
        }
        ["sign", role, proposal] => {
            let role = match role {
                "facilitator" => Role::Facilitator,
                "platform" => Role::Platform,
                "manager" => Role::Manager,
                "auditor" => Role::Auditor,
                _ => panic!("no role that this test signs in: {role}"),
            };
            let signed = client.sign_off(number(proposal), role, options).wait()?.value;
            format!("{} {:?}", signed.signatures.len(), signed.effective_from_us)
        }
        ["proposals"] => joined(client.proposals(options).wait()?.value.iter().map(|p| &p.corpus)),
        ["incident-over"] => client.incident(false, options).wait()?.value.to_string(),
        ["barrier"] => client.barrier(options).wait()?.value.to_string(),
        ["reconcile"] => client.reconcile(false, options).wait()?.value.pass.to_string(),
        ["reconcile-dry"] => client.reconcile(true, options).wait()?.value.rows_examined.to_string(),
        ["confirm-clock"] => client.confirm_clock(options).wait()?.value.to_string(),
        _ => panic!("no operation of this test: {words:?}"),
    };
    Ok(given)
}

/// Questions.
fn read(client: &Client, words: &[&str], options: &RequestOptions) -> Result<String, ClientError> {
    let given = match *words {
        ["corpora"] => joined(client.corpora(options).wait()?.value.iter().map(|corpus| &corpus.name)),
        ["totals", corpus] => joined(client.totals(corpus, options).wait()?.value.iter().map(|total| &total.corpus)),
        ["lookup", event] => client.lookup(id(event), options).wait()?.value.event_id.to_string(),
        ["find", key] => {
            let rows: Vec<_> = client.find(key, options).rows().collect::<Result<_, _>>()?;
            joined(rows.iter().map(|row| row.event_id))
        }
        ["history", event] => client.history(id(event), 0, options).wait()?.value.entries.len().to_string(),
        // All rows that the entries speak of.
        ["history-rows", event] => {
            let entries = client.history(id(event), 0, options).wait()?.value.entries;
            let details = entries.iter().map(|entry| entry.detail.clone());
            let rows = entries.iter().flat_map(|entry| entry.event_id.into_iter().chain(entry.event_ids.clone()));
            joined(rows.map(|id| id.to_string()).chain(details))
        }
        ["correlated", correlation] => {
            let subject = HistorySubject::Correlation(id(correlation));
            let query = HistoryQuery { subject, since_us: None, until_us: None };
            client.history_page(query, 0, options).wait()?.value.entries.len().to_string()
        }
        ["scan", corpus] => {
            let range = ScanRange::default();
            client.scan_page(corpus, range, None, options).wait()?.value.rows.len().to_string()
        }
        ["status"] => client.status(options).wait()?.value.shards.len().to_string(),
        ["tail", shard] => {
            let tail = TailOptions { shard: number(shard), from_position: 1, page_entries: 10, wait: Duration::ZERO };
            client.tail_page(tail, options).wait()?.value.entries.len().to_string()
        }
        ["audit-head"] => client.audit_heads(options).wait()?.value.len().to_string(),
        ["audit-check", shard] => {
            let hash = [0; CHAIN_HASH_BYTES];
            let head = Head { shard: number(shard), batch: 1, position: 1, hash, timestamp_us: 0 };
            client.audit_check(&head, options).wait()?.value.ok.to_string()
        }
        ["configuration"] => client.configuration(options).wait()?.value.toml.len().to_string(),
        ["propagation"] => client.propagation(options).wait()?.value.len().to_string(),
        _ => panic!("no question of this test: {words:?}"),
    };
    Ok(given)
}
