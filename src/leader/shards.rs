//! What this replica holds, and until when that is certain.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch, time::Instant};

use super::share::shard_of;

/// Projects whose shard is remembered; more are asked for again.
const REMEMBERED: usize = 10_000;

#[derive(Clone, Debug, Default)]
struct State {
    /// Nobody else can hold the Lease before this instant.
    until: Option<Instant>,
    /// Counts how often the shard came here: another number is another time, with others in between
    /// perhaps.
    term: u64,
    /// Nothing new is begun: the shard is about to be handed over.
    leaving: bool,
    /// Pieces of work under way.
    turns: usize,
}

/// The shards, as this replica has them. The election writes, everybody else asks.
#[derive(Debug)]
pub struct Shards {
    states: Mutex<Vec<State>>,
    changed: watch::Sender<()>,
    known: Mutex<HashMap<Box<str>, usize>>,
}

/// A piece of work on a shard that is under way; the shard is not handed over before it ends.
#[derive(Debug)]
pub struct InFlightGuard {
    shards: Arc<Shards>,
    shard: usize,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        if let Some(state) = self.shards.lock().get_mut(self.shard) {
            state.turns = state.turns.saturating_sub(1);
        }
        self.shards.changed.send_replace(());
    }
}

impl Shards {
    /// None of `count` shards is held.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            states: Mutex::new(vec![State::default(); count.max(1)]),
            changed: watch::channel(()).0,
            known: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// The shard of a project.
    pub fn of(&self, project: &str) -> usize {
        let count = self.count();
        if count == 1 {
            return 0;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shard) = known.get(project) {
            return *shard;
        }
        if known.len() >= REMEMBERED {
            known.clear();
        }
        let shard = shard_of(project, count);
        known.insert(project.into(), shard);
        shard
    }

    /// Whether a write for a project may begin now: nobody else can hold its shard.
    pub fn holds(&self, project: &str) -> bool {
        let shard = self.of(project);
        self.holds_shard(shard)
    }

    pub fn holds_shard(&self, shard: usize) -> bool {
        let now = Instant::now();
        self.lock()
            .get(shard)
            .is_some_and(|s| s.until.is_some_and(|u| now < u))
    }

    /// Whether any shard is held.
    pub fn holds_any(&self) -> bool {
        let now = Instant::now();
        self.lock().iter().any(|s| s.until.is_some_and(|u| now < u))
    }

    /// For each shard that is worked on here, since which term.
    pub fn terms(&self) -> Vec<Option<u64>> {
        let now = Instant::now();
        let works = |s: &State| s.until.is_some_and(|u| now < u) && !s.leaving;
        self.lock()
            .iter()
            .map(|s| works(s).then_some(s.term))
            .collect()
    }

    /// Begins a piece of work on a project, if its shard is here and stays.
    pub fn enter(self: &Arc<Self>, project: &str) -> Option<InFlightGuard> {
        let shard = self.of(project);
        let now = Instant::now();
        let mut states = self.lock();
        let state = states
            .get_mut(shard)
            .filter(|s| s.until.is_some_and(|u| now < u) && !s.leaving)?;
        state.turns += 1;
        drop(states);
        Some(InFlightGuard {
            shards: self.clone(),
            shard,
        })
    }

    /// Hears of every change of what is held.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The Lease was taken or renewed.
    pub fn keep(&self, shard: usize, until: Instant) {
        let mut news = false;
        if let Some(state) = self.lock().get_mut(shard) {
            // A shard that ran out is not renewed but had anew: others may have had it meanwhile.
            news = state.until.is_none_or(|u| u <= Instant::now());
            if news {
                state.term += 1;
                state.leaving = false;
            }
            state.until = Some(until);
        }
        if news {
            self.changed.send_replace(());
        }
    }

    /// The Lease is somebody else's, or may be.
    pub(super) fn lose(&self, shard: usize) {
        let lost = self
            .lock()
            .get_mut(shard)
            .is_some_and(|s| s.until.take().is_some());
        if lost {
            self.changed.send_replace(());
        }
    }

    /// Nothing new is begun on the shard.
    pub(super) fn leave(&self, shard: usize) {
        if let Some(state) = self.lock().get_mut(shard) {
            state.leaving = true;
        }
        self.changed.send_replace(());
    }

    pub(super) fn is_leaving(&self, shard: usize) -> bool {
        self.lock()
            .get(shard)
            .is_some_and(|s| s.leaving && s.until.is_some())
    }

    pub(super) fn is_idle(&self, shard: usize) -> bool {
        self.lock().get(shard).is_none_or(|s| s.turns == 0)
    }

    /// Gives up what ran out, and notifies everybody.
    pub(super) fn expire(&self) {
        let now = Instant::now();
        let mut lost = false;
        for state in self
            .lock()
            .iter_mut()
            .filter(|s| s.until.is_some_and(|u| u <= now))
        {
            state.until = None;
            lost = true;
        }
        if lost {
            self.changed.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_shard_is_held_until_its_time_is_over_and_what_comes_back_is_another_term() {
        let shards = Shards::new(1);
        assert!(!shards.holds("p") && shards.enter("p").is_none());
        shards.keep(0, Instant::now() + Duration::from_secs(5));
        let first = shards.terms();
        assert!(shards.holds("p") && first[0].is_some());
        tokio::time::advance(Duration::from_secs(4)).await;
        shards.keep(0, Instant::now() + Duration::from_secs(5));
        assert_eq!(shards.terms(), first);
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(!shards.holds("p") && shards.enter("p").is_none());
        shards.keep(0, Instant::now() + Duration::from_secs(5));
        assert!(shards.holds("p") && shards.terms() != first);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_that_is_left_finishes_what_it_began_and_begins_nothing() {
        let shards = Shards::new(1);
        shards.keep(0, Instant::now() + Duration::from_secs(5));
        let turn = shards.enter("p").unwrap();
        shards.leave(0);
        assert!(shards.enter("p").is_none() && shards.terms() == [None]);
        assert!(shards.holds("p"), "what is under way may still write");
        assert!(!shards.is_idle(0));
        drop(turn);
        assert!(shards.is_idle(0));
        shards.lose(0);
        assert!(!shards.holds("p"));
    }
}
