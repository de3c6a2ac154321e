//! Claims, references, retractions and what undoes them.

use super::{Answer, Hint, MINUTE_US, Model, Row, no};
use crate::command::{Claimed, Outcome};
use crate::corpus::{Prefix, is_corpus_name};
use crate::error::{Code, Refusal};
use crate::id::EventId;
use crate::log::entry::AlarmKind;
use crate::row::RowState;
use crate::simulation::model::words::{Asked, Item, Op};
use crate::time::{DAY_US, HOUR_US, Quarter};

impl Model {
    pub(super) fn claim(
        &mut self,
        asked: &Asked,
        corpus: &str,
        items: &[Item],
        unless_us: Option<i64>,
        hint: &Hint,
    ) -> Answer {
        let Some(prefix) = self.corpus(corpus).map(|corpus| corpus.prefix) else { return no(Code::UnknownCorpus) };
        let mut results = Vec::new();
        for (index, item) in items.iter().enumerate() {
            if hint.only.as_ref().is_some_and(|only| !only[index]) {
                continue;
            }
            let id = hint.ids.get(index).copied().flatten();
            results.push(self.claim_item(asked, prefix, index as u16, item, unless_us, id));
        }
        match (items.len(), results.pop()) {
            (1, Some(result)) => Ok(Outcome::Claimed(result?)),
            (_, last) => {
                results.extend(last);
                Ok(Outcome::ClaimedItems(results))
            }
        }
    }

    pub(super) fn claim_item(
        &mut self,
        asked: &Asked,
        prefix: Prefix,
        index: u16,
        item: &Item,
        unless_us: Option<i64>,
        id: Option<EventId>,
    ) -> Result<Claimed, Refusal> {
        let request = format!("claim {item:?} {unless_us:?} {} {}", asked.rationale, asked.correlation);
        if let Some(Outcome::Claimed(claimed)) = self.key(asked, Some(prefix), index, &request)? {
            self.events.push("a retry is answered");
            return Ok(claimed);
        }
        let corpus = self.of_prefix(prefix).expect("the corpus was looked up").clone();
        if corpus.decommissioned_at_us.is_some() {
            return no(Code::Decommissioned);
        }
        self.not_frozen(Some(prefix))?;
        let is_bad = !(1..=256).contains(&item.event_key.len())
            || !(1..=63).contains(&item.category.len())
            || !(item.hosting.is_empty() || is_corpus_name(&item.hosting))
            || !(0..=self.now_us + DAY_US).contains(&item.occurred_us);
        if is_bad {
            return no(Code::BadRequest);
        }
        if let Some(unless_us) = unless_us {
            let is_same = |row: &&Row| {
                row.event_key == item.event_key
                    && row.state == RowState::Registered
                    && row.claimed_us >= self.now_us - DAY_US
                    && (row.occurred_us - item.occurred_us).abs() <= unless_us
            };
            if let Some(id) = self.rows.iter().filter(is_same).map(|row| row.id).min() {
                return Err(Refusal { registered_id: Some(Box::new(id)), ..Refusal::new(Code::AlreadyRegistered, "") });
            }
        }
        let in_minute = |row: &&Row| row.claimed_us / MINUTE_US == self.now_us / MINUTE_US;
        let claims_in_minute = self.rows_of(prefix).filter(in_minute).count() as u32;
        if corpus.cap_per_minute > 0 && claims_in_minute >= corpus.cap_per_minute {
            return no(Code::Throttled);
        }
        let quarter = Quarter::of(self.now_us);
        let in_quarter = self.rows_of(prefix).filter(|row| Quarter::of(row.claimed_us) == quarter).count() as u64;
        let (sequence, slots) = (in_quarter + 1, self.slots_at(prefix, self.now_us));
        let last = self.rows_of(prefix).map(|row| row.id).max();
        let now_ms = (self.now_us / 1_000) as u64;
        // An id is the corpus's, above all that it was given, and of its time.
        let is_right = |id: &EventId| {
            let is_of_its_time = id.ms() == now_ms || last.is_some_and(|last| last.ms() == id.ms() && id.ms() > now_ms);
            id.prefix() == prefix && Some(*id) > last && is_of_its_time
        };
        let id = id.filter(is_right).unwrap_or(EventId::pack(now_ms, prefix, 0));
        self.rows.push(Row {
            id,
            event_key: item.event_key.clone(),
            occurred_us: item.occurred_us,
            claimed_us: self.now_us,
            sequence,
            over_budget: sequence > slots,
            incident: self.incident,
            state: RowState::Registered,
            canonical: None,
            dispute: None,
            tombstone: None,
            reactivated_us: None,
            references: 0,
            entries: 1,
            changed_in: self.step,
        });
        self.raise_alarms(prefix, sequence, slots);
        self.logged(asked, &[asked.shard]);
        let claimed = Claimed { event_id: id, claim_timestamp_us: self.now_us, claim_sequence: sequence };
        self.keep(asked, Some(prefix), index, request, &Outcome::Claimed(claimed));
        Ok(claimed)
    }

    pub(super) fn raise_alarms(&mut self, prefix: Prefix, claims: u64, slots: u64) {
        let quarter = Quarter::of(self.now_us);
        let hour = self.now_us / HOUR_US;
        let mut due = Vec::new();
        if claims * 2 >= slots {
            due.push(AlarmKind::Half);
        }
        if claims * 5 >= slots * 4 {
            due.push(AlarmKind::Eighty);
        }
        // The rate is looked at with the first claim of an hour.
        if self.looked_at_hour.insert(prefix.get(), hour) != Some(hour) && self.is_early(prefix, claims, slots) {
            due.push(AlarmKind::Early);
        }
        for kind in due {
            if self.alarms.insert((prefix.get(), quarter, kind)) {
                self.events.push(kind.name());
            }
        }
    }

    pub(super) fn is_early(&self, prefix: Prefix, claims: u64, slots: u64) -> bool {
        let hour = self.now_us / HOUR_US;
        let in_hour = |h: i64| self.rows_of(prefix).filter(|row| row.claimed_us / HOUR_US == h).count() as u64;
        let first = self.rows_of(prefix).map(|row| row.claimed_us / HOUR_US).min().unwrap_or(hour);
        let past = first.max(hour - 3 - 28 * 24)..hour - 3;
        if past.end - past.start < 7 * 24 {
            return false;
        }
        let mut counts: Vec<u64> = past.map(in_hour).collect();
        counts.sort_unstable();
        let percentile = counts[counts.len() * 3 / 4];
        let lowest = (hour - 3..hour).map(in_hour).min().unwrap_or(0);
        let hours_left = (Quarter::of(self.now_us).end_us() - self.now_us) as u64 / HOUR_US as u64;
        lowest > percentile && (claims + lowest * hours_left) * 2 > slots
    }

    pub(super) fn reference(&mut self, asked: &Asked, corpus: &str, items: &[(u16, EventId)]) -> Answer {
        let Some(prefix) = self.corpus(corpus).map(|corpus| corpus.prefix) else { return no(Code::UnknownCorpus) };
        let results = items.iter().map(|(index, id)| (*index, self.reference_item(asked, prefix, *index, *id)));
        Ok(Outcome::ReferencedItems(results.collect()))
    }

    pub(super) fn reference_item(
        &mut self,
        asked: &Asked,
        prefix: Prefix,
        index: u16,
        id: EventId,
    ) -> Result<EventId, Refusal> {
        let request = format!("reference {id} {} {}", asked.rationale, asked.correlation);
        if let Some(Outcome::ReferencedItems(kept)) = self.key(asked, Some(prefix), index, &request)? {
            self.events.push("a retry is answered");
            return kept[0].1.clone();
        }
        if self.of_prefix(prefix).is_some_and(|corpus| corpus.decommissioned_at_us.is_some()) {
            return no(Code::Decommissioned);
        }
        self.not_frozen(Some(prefix))?;
        let Some(row) = self.row(id) else { return no(Code::NotVisible) };
        if id.prefix() == prefix {
            return no(Code::BadTransition);
        }
        let mut end = row;
        let mut hops = 0;
        while let (RowState::Referenced, Some(canonical)) = (end.state, end.canonical) {
            end = self.row(canonical).expect("aliases lead to rows");
            hops += 1;
        }
        if self.is_expired(row) || self.is_expired(end) {
            return no(Code::Expired);
        }
        if end.state != RowState::Registered {
            return no(Code::BadTransition);
        }
        let canonical = end.id;
        if hops > 1 {
            self.events.push("an alias of an alias is followed");
        }
        let row = self.row_mut(id);
        row.references += 1;
        row.entries += 1;
        self.logged(asked, &[asked.shard]);
        let answer = Outcome::ReferencedItems(vec![(index, Ok(canonical))]);
        self.keep(asked, Some(prefix), index, request, &answer);
        Ok(canonical)
    }

    pub(super) fn change(&mut self, id: EventId, state: RowState) -> &mut Row {
        let step = self.step;
        let row = self.row_mut(id);
        (row.state, row.changed_in) = (state, step);
        row.entries += 1;
        row
    }

    pub(super) fn retract(&mut self, asked: &Asked) -> Answer {
        let Op::Retract { corpus, id, reason } = &asked.op else { return no(Code::BadRequest) };
        let prefix = self.corpus(corpus).expect("the corpus was looked up").prefix;
        if id.prefix() != prefix {
            return no(Code::BadRequest);
        }
        self.not_frozen(Some(prefix))?;
        let Some(row) = self.row(*id) else { return no(Code::NotVisible) };
        if self.is_expired(row) {
            return no(Code::Expired);
        }
        if row.state != RowState::Registered {
            return no(Code::BadTransition);
        }
        let tombstoned_at_us = self.now_us;
        self.change(*id, RowState::Retracted).tombstone = Some((tombstoned_at_us, Some(*reason)));
        self.logged(asked, &[asked.shard]);
        Ok(Outcome::Retracted { event_id: *id, tombstoned_at_us })
    }

    pub(super) fn reactivate(&mut self, asked: &Asked, id: EventId) -> Answer {
        self.not_frozen(Some(id.prefix()))?;
        let Some(row) = self.row(id) else { return no(Code::NotVisible) };
        if self.is_expired(row) {
            return no(Code::Expired);
        }
        if row.state != RowState::Retracted {
            return no(Code::BadTransition);
        }
        let reactivated_at_us = self.now_us;
        let row = self.change(id, RowState::Registered);
        (row.tombstone, row.reactivated_us) = (None, Some(reactivated_at_us));
        self.logged(asked, &[asked.shard]);
        Ok(Outcome::Reactivated { event_id: id, reactivated_at_us })
    }
}
