//! What has to be there before somebody can be asked to do something with it. Root, who has every role, makes it.

use super::user::{Answer, User};
use std::time::{Duration, Instant};

/// How long a dispute may take from one state to the next on a loaded machine.
const STEP_PATIENCE: Duration = Duration::from_secs(60);
const LOOK_PAUSE: Duration = Duration::from_millis(2);

/// See the module.
pub struct Stage {
    root: User,
    made: u64,
}

impl Stage {
    pub fn new(root: User) -> Stage {
        Stage { root, made: 0 }
    }

    /// What root asks for, whatever comes of it.
    pub fn try_to(&mut self, words: &[&str]) -> Answer {
        self.root.ask(words)
    }

    /// What root asks for and gets.
    pub fn get(&mut self, words: &[&str]) -> String {
        self.root.ask_fully(words).unwrap_or_else(|refusal| panic!("root asks for {words:?} and gets {refusal:?}"))
    }

    /// A number that was not given before.
    pub fn number(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// An event key, or a name, that was not given before.
    pub fn name(&mut self, what: &str) -> String {
        format!("{what}-{}", self.number())
    }

    /// A row of a corpus.
    pub fn row(&mut self, corpus: &str) -> String {
        let key = self.name("key");
        self.get(&["claim", corpus, &key])
    }

    /// A retracted row of a corpus.
    pub fn tombstone(&mut self, corpus: &str) -> String {
        let row = self.row(corpus);
        self.get(&["retract", corpus, &row]);
        row
    }

    /// A row of each of two corpora.
    pub fn pair(&mut self, corpora: [&str; 2]) -> [String; 2] {
        corpora.map(|corpus| self.row(corpus))
    }

    /// A dispute that can be decided, and its rows.
    pub fn dispute(&mut self, corpora: [&str; 2]) -> (String, [String; 2]) {
        let [a, b] = self.pair(corpora);
        let dispute = self.get(&["dispute", corpora[0], &a, &b]);
        self.until(&dispute, &["arbitrate"]);
        (dispute, [a, b])
    }

    /// Rows whose dispute was dismissed.
    pub fn dismissed(&mut self, corpora: [&str; 2]) -> [String; 2] {
        let (dispute, rows) = self.dispute(corpora);
        self.get(&["dismiss", &dispute]);
        self.until(&dispute, &["closed"]);
        rows
    }

    /// A proposal of more slots than any before.
    pub fn proposal(&mut self, corpus: &str) -> String {
        let slots = (1_000_000 + self.number()).to_string();
        self.get(&["propose", corpus, &slots])
    }

    /// Carries every dispute to its end.
    pub fn settle(&mut self) {
        let open = self.get(&["disputes", ""]);
        for dispute in open.split(',').filter(|dispute| !dispute.is_empty()) {
            if self.until(dispute, &["arbitrate", "escalate", "closed", "void"]) != "closed" {
                self.get(&["dismiss", dispute]);
            }
            self.until(dispute, &["closed", "void"]);
        }
    }

    fn until(&mut self, dispute: &str, wanted: &[&str]) -> String {
        let started = Instant::now();
        loop {
            let state = self.get(&["dispute-lookup", dispute]);
            if wanted.contains(&state.as_str()) {
                return state;
            }
            assert!(
                started.elapsed() < STEP_PATIENCE,
                "dispute {dispute} stays in {state} and does not reach {wanted:?}"
            );
            std::thread::sleep(LOOK_PAUSE);
        }
    }
}
