//! Which shard a corpus or an event-id belongs to, as far as this client knows.

use claim_protocol::CorpusInfo;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// The registry is asked for no sooner after it was. Corpora that the user has no role on are never heard of, and each
/// request of one would ask again.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// The 16-bit prefix of the corpus that claimed an event-id.
///
/// ```text
/// bits   48    52            64   66          70                  127   (0 is the most significant)
///        | 7   | prefix high |0b10| prefix low | tail              |
///        |     | 12 bits     |    | 4 bits     | 58 bits           |
/// ```
pub fn shard_prefix(event_id: Uuid) -> u16 {
    let bits = event_id.as_u128();
    let high = (bits >> 64) & 0xfff;
    let low = (bits >> 58) & 0xf;
    (high << 4 | low) as u16
}

/// Holds a corpus, or a shard, to the main socket while one of its requests is outstanding there: requests keep their order only
/// on one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lane(Arc<()>);

impl Lane {
    /// Whether anybody but the asker, who has one, has it.
    pub fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// Where a request goes.
#[derive(Debug)]
pub(crate) enum Route {
    Shard(u16),
    /// Through the main socket, and until it has ended the corpus's later requests, too.
    Main(Option<Lane>),
}

/// The registry as last heard, with what is under way.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    corpora: HashMap<String, CorpusInfo>,
    names: HashMap<u16, String>,
    /// Of corpora whose shard was not known when a request came.
    lanes: HashMap<String, Lane>,
    refreshing: bool,
    /// When the last question for the registry ended.
    refreshed_at: Option<Instant>,
}

impl State {
    /// Whether to ask for the registry; whoever is told so does.
    fn asks(&mut self) -> bool {
        let is_due = self.refreshed_at.is_none_or(|at| at.elapsed() >= REFRESH_PAUSE);
        is_due && !std::mem::replace(&mut self.refreshing, true)
    }
}

impl Routes {
    /// The route of a corpus. `true` with it when the corpus is unknown and the caller has to ask for the registry: one
    /// question at a time, and after each a pause.
    pub fn of_corpus(&self, name: &str) -> (Route, bool) {
        let mut state = self.lock();
        let shard = state.corpora.get(name).map(|corpus| corpus.shard);
        // The lane's own entry and nobody else's: nothing of the corpus is outstanding on the main socket.
        if state.lanes.get(name).is_some_and(|lane| !lane.is_in_use()) {
            state.lanes.remove(name);
        }
        match (shard, state.lanes.get(name)) {
            (Some(shard), None) => (Route::Shard(shard), false),
            (Some(_), Some(lane)) => (Route::Main(Some(lane.clone())), false),
            (None, _) => {
                let lane = state.lanes.entry(name.to_owned()).or_default().clone();
                (Route::Main(Some(lane)), state.asks())
            }
        }
    }

    /// The route of an event-id, as [`Routes::of_corpus`].
    pub fn of_event(&self, event_id: Uuid) -> (Route, bool) {
        let name = self.lock().names.get(&shard_prefix(event_id)).cloned();
        match name {
            Some(name) => self.of_corpus(&name),
            None => (Route::Main(None), self.lock().asks()),
        }
    }

    /// The corpus that claimed an event-id.
    pub fn corpus_of(&self, event_id: Uuid) -> Option<CorpusInfo> {
        let state = self.lock();
        state.names.get(&shard_prefix(event_id)).and_then(|name| state.corpora.get(name)).cloned()
    }

    /// A corpus by its name.
    pub fn corpus(&self, name: &str) -> Option<CorpusInfo> {
        self.lock().corpora.get(name).cloned()
    }

    pub fn learn<'a>(&self, corpora: impl IntoIterator<Item = &'a CorpusInfo>) {
        let mut state = self.lock();
        for corpus in corpora {
            state.names.insert(corpus.shard_prefix, corpus.name.clone());
            state.corpora.insert(corpus.name.clone(), corpus.clone());
        }
    }

    /// The registry has come, or will not: after the pause, unknown names ask again.
    pub fn refreshed(&self) {
        let mut state = self.lock();
        state.refreshing = false;
        state.refreshed_at = Some(Instant::now());
        // Names that do not exist leave their lanes behind.
        state.lanes.retain(|_, lane| lane.is_in_use());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{REFRESH_PAUSE, Route, Routes, shard_prefix};
    use claim_protocol::CorpusInfo;
    use std::time::Instant;
    use uuid::Uuid;

    fn corpus(name: &str, shard_prefix: u16, shard: u16) -> CorpusInfo {
        CorpusInfo { name: name.to_owned(), shard_prefix, shard, ..CorpusInfo::default() }
    }

    #[test]
    fn the_prefix_is_the_first_sixteen_random_bits() {
        for (id, prefix) in [
            ("00000000-0000-7000-8000-000000000000", 0),
            ("ffffffff-ffff-7000-bc00-000000000000", 0xf),
            ("00000000-0000-7fff-8000-000000000000", 0xfff0),
            ("00000000-0000-7abc-b7ff-ffffffffffff", 0xabcd),
            ("00000000-0000-7000-83ff-ffffffffffff", 0),
        ] {
            assert_eq!(shard_prefix(id.parse::<Uuid>().expect("a UUID")), prefix, "{id}");
        }
    }

    #[test]
    fn a_corpus_changes_its_connection_only_when_nothing_is_outstanding() {
        let routes = Routes::default();
        let (Route::Main(first), true) = routes.of_corpus("pd") else { panic!("unknown: main, and ask") };
        let (Route::Main(second), false) = routes.of_corpus("pd") else { panic!("asked already") };
        routes.learn([&corpus("pd", 7, 1)]);
        routes.refreshed();
        drop(first);
        let (Route::Main(third), false) = routes.of_corpus("pd") else { panic!("one is outstanding") };
        drop((second, third));
        assert!(matches!(routes.of_corpus("pd"), (Route::Shard(1), false)));
        let id = "00000000-0000-7000-9c00-000000000000".parse().expect("a UUID");
        assert!(matches!(routes.of_event(id), (Route::Shard(1), false)));
        assert_eq!(routes.corpus_of(id), Some(corpus("pd", 7, 1)));
    }

    #[test]
    fn what_is_not_heard_of_is_not_asked_for_with_every_request() {
        let routes = Routes::default();
        assert!(matches!(routes.of_corpus("secret"), (Route::Main(_), true)));
        routes.refreshed();
        let id = "00000000-0000-7000-9c00-000000000000".parse().expect("a UUID");
        for _ in 0..3 {
            assert!(matches!(routes.of_corpus("secret"), (Route::Main(_), false)));
            assert!(matches!(routes.of_event(id), (Route::Main(_), false)));
        }
        routes.lock().refreshed_at = Instant::now().checked_sub(REFRESH_PAUSE);
        assert!(matches!(routes.of_corpus("secret"), (Route::Main(_), true)));
    }
}
