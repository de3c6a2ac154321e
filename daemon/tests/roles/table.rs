//! Every operation, and who may do it.

use crate::harness::stage::Stage;

/// The columns of [`TABLE`], by uid. The last one has no role.
pub const COLUMNS: [(&str, u32); 8] = [
    ("client", 2_101),
    ("facilitator", 2_102),
    ("platform", 2_103),
    ("manager", 2_104),
    ("arbitrator", 2_105),
    ("leadership", 2_106),
    ("auditor", 2_107),
    ("nobody", 2_108),
];

/// What may be asked, and who may.
pub struct Row {
    /// What is asked; see [`harness::user`] for the words.
    pub what: &'static str,
    /// By whom, of `customer`, in the order of [`COLUMNS`].
    pub own: &'static str,
    /// By whom, of `compliance`; empty for what concerns no corpus.
    pub other: &'static str,
    /// Makes what is needed, and gives the words.
    pub ask: fn(&mut Stage, &str) -> Vec<String>,
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

/// The corpus that is not meant.
fn another(corpus: &str) -> &'static str {
    if corpus == "customer" { "compliance" } else { "customer" }
}

/// Every operation with who may do it.
///
/// ```text
/// c client   f facilitator   p platform   m manager   a arbitrator   l leadership   u auditor   n nobody
/// ```
#[rustfmt::skip]
pub const TABLE: &[Row] = &[
    //                                     c f p m a l u n          c f p m a l u n
    Row { what: "claim",             own: "● ● · · · · · ·", other: "· · · · · · · ·",
        ask: |s, c| words(["claim", c, &s.name("key")]) },
    Row { what: "claim-batch",       own: "● ● · · · · · ·", other: "· · · · · · · ·",
        ask: |s, c| words(["claim-batch", c, &s.name("key"), &s.name("key")]) },
    Row { what: "claim-unless",      own: "● ● · · · · · ·", other: "· · · · · · · ·",
        ask: |s, c| words(["claim-unless", c, &s.name("key")]) },
    Row { what: "reference",         own: "● ● · · · · · ·", other: "· · · · · · · ·",
        ask: |s, c| words(["reference", c, &s.row(another(c))]) },
    Row { what: "reference-batch",   own: "● ● · · · · · ·", other: "· · · · · · · ·",
        ask: |s, c| words(["reference-batch", c, &s.row(another(c)), &s.row(another(c))]) },
    Row { what: "retract",           own: "● ● · · · · · ·", other: "· · · · · · · ·",
        ask: |s, c| words(["retract", c, &s.row(c)]) },
    Row { what: "dispute",           own: "● ● · · · · · ·", other: "· · · · · · · ·",
        ask: |s, c| { let [a, b] = s.pair([c, another(c)]); words(["dispute", c, &a, &b]) } },
    Row { what: "respond",           own: "● ● · · · · · ·", other: "· · · · · · · ·",
        ask: |s, c| words(["respond", c, &s.dispute([c, another(c)]).0]) },
    Row { what: "reactivate",        own: "· ● · · · · · ·", other: "· · · · · · · ·",
        ask: |s, c| words(["reactivate", &s.tombstone(c)]) },

    Row { what: "arbitrate",         own: "· · · · ● · · ·", other: "",
        ask: |s, c| { let (d, [a, b]) = s.dispute([c, another(c)]); words(["arbitrate", &d, &a, &b]) } },
    Row { what: "dismiss",           own: "· · · · ● · · ·", other: "",
        ask: |s, c| words(["dismiss", &s.dispute([c, another(c)]).0]) },
    Row { what: "escalate",          own: "· · · · ● · · ·", other: "",
        ask: |s, c| words(["escalate", &s.dispute([c, another(c)]).0]) },
    Row { what: "arbitrate what is escalated", own: "· · · · · ● · ·", other: "",
        ask: |s, c| {
            let (d, [a, b]) = s.dispute([c, another(c)]);
            s.get(&["escalate", &d]);
            words(["arbitrate", &d, &a, &b])
        } },
    Row { what: "dismiss what is escalated",   own: "· · · · · ● · ·", other: "",
        ask: |s, c| {
            let (d, _) = s.dispute([c, another(c)]);
            s.get(&["escalate", &d]);
            words(["dismiss", &d])
        } },
    Row { what: "dispute what was dismissed",  own: "· · · · ● · · ·", other: "· · · · ● · · ·",
        ask: |s, c| { let [a, b] = s.dismissed([c, another(c)]); words(["dispute", c, &b, &a]) } },

    Row { what: "onboard",           own: "· · ● · · · · ·", other: "",
        ask: |s, _| words(["onboard", &s.name("new")]) },
    Row { what: "decommission",      own: "· · ● · · · · ·", other: "",
        ask: |s, _| { let name = s.name("closing"); s.get(&["onboard", &name]); words(["decommission", &name]) } },
    Row { what: "decommission-dry",  own: "· · ● · · · · ·", other: "· · ● · · · · ·",
        ask: |_, c| words(["decommission-dry", c]) },
    Row { what: "freeze",            own: "· ● ● · · · · ·", other: "· · ● · · · · ·",
        ask: |s, c| { let _ = s.try_to(&["unfreeze", c]); words(["freeze", c]) } },
    Row { what: "unfreeze",          own: "· ● ● · · · · ·", other: "· · ● · · · · ·",
        ask: |s, c| { let _ = s.try_to(&["freeze", c]); words(["unfreeze", c]) } },
    Row { what: "freeze the ledger", own: "· · ● · · · · ·", other: "",
        ask: |s, _| { let _ = s.try_to(&["unfreeze", ""]); words(["freeze", ""]) } },
    Row { what: "unfreeze the ledger", own: "· · ● · · · · ·", other: "",
        ask: |s, _| { let _ = s.try_to(&["freeze", ""]); words(["unfreeze", ""]) } },
    Row { what: "cap",               own: "· ● ● · · · · ·", other: "· · ● · · · · ·",
        ask: |_, c| words(["cap", c, "1000000"]) },
    Row { what: "barrier",           own: "· · ● · · · · ·", other: "",
        ask: |_, _| words(["barrier"]) },
    Row { what: "hold",              own: "· · ● · · · · ·", other: "",
        ask: |s, _| { let _ = s.try_to(&["release", "2021", "2"]); words(["hold", "2021", "2"]) } },
    Row { what: "release",           own: "· · ● · · · · ·", other: "",
        ask: |s, _| { let _ = s.try_to(&["hold", "2021", "2"]); words(["release", "2021", "2"]) } },
    Row { what: "incident-over",     own: "· · ● · · · · ·", other: "",
        ask: |_, _| words(["incident-over"]) },
    Row { what: "reconcile",         own: "· · ● · · · · ·", other: "",
        ask: |_, _| words(["reconcile"]) },
    Row { what: "reconcile-dry",     own: "· · ● · · · · ·", other: "",
        ask: |_, _| words(["reconcile-dry"]) },
    Row { what: "confirm-clock",     own: "· · ● · · · · ·", other: "",
        ask: |_, _| words(["confirm-clock"]) },

    Row { what: "propose",           own: "· ● ● ● · · · ·", other: "· · ● · · · · ·",
        ask: |s, c| words(["propose", c, &(1_000_000 + s.number()).to_string()]) },
    Row { what: "sign as facilitator", own: "· ● · · · · · ·", other: "· · · · · · · ·",
        ask: |s, c| words(["sign", "facilitator", &s.proposal(c)]) },
    Row { what: "sign as platform",  own: "· · ● · · · · ·", other: "· · ● · · · · ·",
        ask: |s, c| words(["sign", "platform", &s.proposal(c)]) },
    Row { what: "sign as manager",   own: "· · · ● · · · ·", other: "· · · · · · · ·",
        ask: |s, c| words(["sign", "manager", &s.proposal(c)]) },

    Row { what: "lookup",            own: "● ● ● ● ● ● ● ·", other: "· · ● · ● ● ● ·",
        ask: |s, c| words(["lookup", &s.row(c)]) },
    Row { what: "history",           own: "● ● ● ● ● ● ● ·", other: "· · ● · ● ● ● ·",
        ask: |s, c| words(["history", &s.row(c)]) },
    Row { what: "scan",              own: "● ● ● ● ● ● ● ·", other: "· · ● · ● ● ● ·",
        ask: |_, c| words(["scan", c]) },
    Row { what: "totals",            own: "● ● ● ● ● ● ● ·", other: "· · ● · ● ● ● ·",
        ask: |_, c| words(["totals", c]) },
    Row { what: "disputes",          own: "● ● ● ● ● ● ● ·", other: "· · ● · ● ● ● ·",
        ask: |_, c| words(["disputes", c]) },

    // Any role will do: what one may not read is left out of the answer.
    Row { what: "status",            own: "● ● ● ● ● ● ● ·", other: "",
        ask: |_, _| words(["status"]) },
    Row { what: "corpora",           own: "● ● ● ● ● ● ● ·", other: "",
        ask: |_, _| words(["corpora"]) },
    Row { what: "find",              own: "● ● ● ● ● ● ● ·", other: "",
        ask: |s, c| { let key = s.name("key"); s.get(&["claim", c, &key]); words(["find", &key]) } },
    Row { what: "all totals",        own: "● ● ● ● ● ● ● ·", other: "",
        ask: |_, _| words(["totals", ""]) },
    Row { what: "all disputes",      own: "● ● ● ● ● ● ● ·", other: "",
        ask: |_, _| words(["disputes", ""]) },
    Row { what: "dispute-lookup",    own: "● ● ● ● ● ● ● ·", other: "",
        ask: |s, c| words(["dispute-lookup", &s.dispute([c, another(c)]).0]) },
    Row { what: "proposals",         own: "● ● ● ● ● ● ● ·", other: "",
        ask: |_, _| words(["proposals"]) },

    Row { what: "tail of one shard", own: "· · ● · ● ● ● ·", other: "",
        ask: |_, _| words(["tail", "0"]) },
    Row { what: "tail of the other", own: "· · ● · ● ● ● ·", other: "",
        ask: |_, _| words(["tail", "1"]) },
    Row { what: "correlated",        own: "· · ● · ● ● ● ·", other: "",
        ask: |_, _| words(["correlated", "01900000-0000-7000-8000-00000000abcd"]) },
    Row { what: "audit-head",        own: "· · ● · ● ● ● ·", other: "",
        ask: |_, _| words(["audit-head"]) },
    Row { what: "audit-check",       own: "· · ● · ● ● ● ·", other: "",
        ask: |_, _| words(["audit-check", "1"]) },
    Row { what: "configuration",     own: "· · ● · ● ● ● ·", other: "",
        ask: |_, _| words(["configuration"]) },
    Row { what: "propagation",       own: "· · ● · ● ● ● ·", other: "",
        ask: |_, _| words(["propagation"]) },
];
