//! The keys of a slice of time, and what is kept of each: few one after another, more in a table, many in tables.

use super::{Kept, KeyId};
use crate::prefetch::prefetch;

/// So few keys of a slice are searched one after another.
const FEW: usize = 8;
/// So many keys of a slice are one table; more are divided into [`TABLES`], so that none takes long to grow.
pub const TABLE_KEYS_MAX: usize = 32_768;
const TABLES: usize = 256;
/// Room for the items of a key that has more than one.
const ITEMS_MIN: usize = 4;

/// What is kept of one key.
#[derive(Debug)]
pub struct Entry {
    /// Of its item 0.
    whole: KeyId,
    pub items: Items,
}

/// The items of a key, most often one.
#[derive(Debug)]
pub enum Items {
    One(u16, Kept),
    /// In order.
    Many(Vec<(u16, Kept)>),
}

/// What was not kept before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum New {
    Key,
    /// Of a key that was.
    Item,
    Nothing,
}

impl Entry {
    pub fn get(&self, item: u16) -> Option<Kept> {
        match &self.items {
            Items::One(number, kept) => (*number == item).then_some(*kept),
            // The next item of a batch is looked for before it is kept.
            Items::Many(items) if items.last().is_some_and(|(last, _)| *last < item) => None,
            Items::Many(items) => {
                let at = items.binary_search_by_key(&item, |(number, _)| *number).ok()?;
                Some(items[at].1)
            }
        }
    }

    /// Where the items of a key are not in one place yet, it is made for `room` of them.
    #[inline(always)]
    fn keep(&mut self, item: u16, kept: Kept, room: usize) -> New {
        match &mut self.items {
            // Items come in order, but for those that were refused before.
            Items::Many(items) if items.last().is_some_and(|(last, _)| *last < item) => {
                items.push((item, kept));
                New::Item
            }
            _ => self.keep_anywhere(item, kept.fingerprint, kept.position, kept.effect, room),
        }
    }

    /// What is kept comes in the processor's registers: a pointer to it would have it written to memory for [`Entry::keep`], too.
    fn keep_anywhere(&mut self, item: u16, fingerprint: u64, position: u64, effect: u64, room: usize) -> New {
        let kept = Kept { fingerprint, position, effect };
        if let Items::One(number, first) = self.items
            && number != item
        {
            let mut items = Vec::with_capacity(room.max(ITEMS_MIN));
            items.push((number, first));
            self.items = Items::Many(items);
        }
        match &mut self.items {
            Items::One(_, known) => {
                *known = kept;
                New::Nothing
            }
            Items::Many(items) => match items.binary_search_by_key(&item, |(number, _)| *number) {
                Ok(at) => {
                    items[at].1 = kept;
                    New::Nothing
                }
                Err(at) => {
                    items.insert(at, (item, kept));
                    New::Item
                }
            },
        }
    }

    fn count(&self) -> u64 {
        match &self.items {
            Items::One(..) => 1,
            Items::Many(items) => items.len() as u64,
        }
    }
}

/// Keys in the order in which they came, and where they are by their [slot](KeyId::slot). What is looked at and written here and there
/// for a key is 8 bytes (open addressing, linear probing), of 16 to 32 that a place takes: little enough for the processor's cache. All
/// else is written where the last was.
#[derive(Debug, Default)]
pub struct Table {
    pub entries: Vec<Entry>,
    /// The upper half of the hash, and below it the entry's index and 1; 0 is free. A power of two, at most half of them taken.
    pub places: Vec<u64>,
}

impl Table {
    fn with_room(keys: usize) -> Table {
        Table { entries: Vec::with_capacity(keys), places: vec![0; places_for(keys)] }
    }

    /// The entry of a key, or the place where it would be put.
    #[inline(always)]
    fn find(&self, whole: KeyId, hash: u64) -> Result<usize, usize> {
        let mask = self.places.len().wrapping_sub(1);
        let mut at = hash as usize & mask;
        loop {
            // What was forgotten has no places at all.
            let place = self.places.get(at).copied().unwrap_or(0);
            if place == 0 {
                return Err(at);
            }
            let index = (place as u32 - 1) as usize;
            if place >> 32 == hash >> 32 && self.entries[index].whole == whole {
                return Ok(index);
            }
            at = (at + 1) & mask;
        }
    }

    #[inline(always)]
    fn get(&self, whole: KeyId, hash: u64) -> Option<&Entry> {
        Some(&self.entries[self.find(whole, hash).ok()?])
    }

    #[inline(always)]
    pub fn keep(&mut self, id: KeyId, hash: u64, kept: Kept, room: usize, secret: u64) -> New {
        if self.entries.len() * 2 == self.places.len() {
            self.grow(secret);
        }
        let whole = id.whole();
        match self.find(whole, hash) {
            Ok(index) => self.entries[index].keep(id.item, kept, room),
            Err(at) => {
                self.entries.push(Entry { whole, items: Items::One(id.item, kept) });
                self.places[at] = (hash >> 32) << 32 | self.entries.len() as u64;
                New::Key
            }
        }
    }

    #[cold]
    fn grow(&mut self, secret: u64) {
        let entries = std::mem::take(&mut self.entries);
        *self = Table::of(entries, secret);
    }

    /// A table of these keys, with room for as many more.
    fn of(entries: Vec<Entry>, secret: u64) -> Table {
        let mut places = vec![0; places_for(entries.len() * 2)];
        let mask = places.len() - 1;
        for (entry, number) in entries.iter().zip(1u64..) {
            let hash = entry.whole.slot(secret);
            let mut at = hash as usize & mask;
            while places[at] != 0 {
                at = (at + 1) & mask;
            }
            places[at] = (hash >> 32) << 32 | number;
        }
        Table { entries, places }
    }
}

/// Places of a table for so many keys.
fn places_for(keys: usize) -> usize {
    (keys.max(FEW) * 2).next_power_of_two()
}

/// The keys of a slice.
#[derive(Debug)]
pub enum Slice {
    Few(Vec<Entry>),
    Table(Table),
    /// By hash.
    Tables(Vec<Table>),
}

impl Slice {
    /// With room for so many keys.
    pub fn with_room(keys: usize) -> Slice {
        if keys <= FEW {
            Slice::Few(Vec::with_capacity(keys))
        } else if keys <= TABLE_KEYS_MAX {
            Slice::Table(Table::with_room(keys))
        } else {
            // What a table gets more than another is a few times the root of what it gets.
            let keys = keys / TABLES + keys / TABLES / 4;
            Slice::Tables((0..TABLES).map(|_| Table::with_room(keys)).collect())
        }
    }

    /// `hash` is that of the key alone.
    #[inline(always)]
    pub fn entry(&self, whole: KeyId, hash: u64) -> Option<&Entry> {
        match self {
            Slice::Few(few) => few.iter().find(|entry| entry.whole == whole),
            Slice::Table(table) => table.get(whole, hash),
            Slice::Tables(tables) => tables[table_of(hash)].get(whole, hash),
        }
    }

    /// Begins to fetch what is looked at for a key.
    pub fn prefetch(&self, hash: u64) {
        let table = match self {
            Slice::Few(_) => return,
            Slice::Table(table) => table,
            Slice::Tables(tables) => &tables[table_of(hash)],
        };
        if let Some(place) = table.places.get(hash as usize & table.places.len().wrapping_sub(1)) {
            prefetch(place);
        }
    }

    #[inline(always)]
    pub fn keep(&mut self, id: KeyId, kept: Kept, room: usize, secret: u64) -> New {
        if self.is_full() {
            self.divide(secret);
        }
        let whole = id.whole();
        let hash = whole.slot(secret);
        match self {
            Slice::Few(few) => match few.iter_mut().find(|entry| entry.whole == whole) {
                Some(entry) => entry.keep(id.item, kept, room),
                None => {
                    few.push(Entry { whole, items: Items::One(id.item, kept) });
                    New::Key
                }
            },
            Slice::Table(table) => table.keep(id, hash, kept, room, secret),
            Slice::Tables(tables) => tables[table_of(hash)].keep(id, hash, kept, room, secret),
        }
    }

    fn is_full(&self) -> bool {
        match self {
            Slice::Few(few) => few.len() == FEW,
            Slice::Table(table) => table.entries.len() == TABLE_KEYS_MAX,
            Slice::Tables(_) => false,
        }
    }

    /// Becomes what more keys are kept in.
    #[cold]
    fn divide(&mut self, secret: u64) {
        match self {
            Slice::Few(few) => *self = Slice::Table(Table::of(std::mem::take(few), secret)),
            Slice::Table(table) => {
                let mut tables: Vec<Vec<Entry>> = (0..TABLES).map(|_| Vec::new()).collect();
                for entry in table.entries.drain(..) {
                    tables[table_of(entry.whole.slot(secret))].push(entry);
                }
                *self = Slice::Tables(tables.into_iter().map(|entries| Table::of(entries, secret)).collect());
            }
            Slice::Tables(_) => {}
        }
    }

    pub fn count(&self) -> u64 {
        let count = |entries: &[Entry]| entries.iter().map(Entry::count).sum::<u64>();
        match self {
            Slice::Few(few) => count(few),
            Slice::Table(table) => count(&table.entries),
            Slice::Tables(tables) => tables.iter().map(|table| count(&table.entries)).sum(),
        }
    }
}

/// These bits pick the table, the low ones the place in it.
fn table_of(hash: u64) -> usize {
    (hash >> 24) as usize % TABLES
}
