//! Keys that are to be served at some time, each once; and how many pieces of work may be under
//! way.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    time::Duration,
};

use tokio::time::Instant;

/// Keys with a time each; of two wishes the earlier one counts. Equal times are served in the order
/// of keys.
#[derive(Debug)]
pub(super) struct Due<K> {
    at: HashMap<K, Instant>,
    order: BTreeSet<(Instant, K)>,
}

impl<K> Default for Due<K> {
    fn default() -> Self {
        Self {
            at: HashMap::new(),
            order: BTreeSet::new(),
        }
    }
}

impl<K: Clone + Ord + Hash> Due<K> {
    /// Serves a key no later than `at`.
    pub fn no_later(&mut self, key: &K, at: Instant) {
        if self.at.get(key).is_none_or(|before| at < *before) {
            self.exactly(key, at);
        }
    }

    /// Serves a key at `at`, whatever was wished before.
    pub fn exactly(&mut self, key: &K, at: Instant) {
        if let Some(before) = self.at.insert(key.clone(), at) {
            self.order.remove(&(before, key.clone()));
        }
        self.order.insert((at, key.clone()));
    }

    /// Takes the first key that is due and that `may` be served now.
    pub fn take(&mut self, now: Instant, may: impl Fn(&K) -> bool) -> Option<K> {
        let key = self
            .order
            .iter()
            .take_while(|(at, _)| *at <= now)
            .find(|(_, k)| may(k))
            .map(|(_, k)| k.clone())?;
        self.remove(&key);
        Some(key)
    }

    /// When the next key that `may` be served is due.
    pub fn wake(&self, may: impl Fn(&K) -> bool) -> Option<Instant> {
        self.order.iter().find(|(_, k)| may(k)).map(|(at, _)| *at)
    }

    /// When a key is to be served.
    pub fn at(&self, key: &K) -> Option<Instant> {
        self.at.get(key).copied()
    }

    pub fn remove(&mut self, key: &K) {
        if let Some(at) = self.at.remove(key) {
            self.order.remove(&(at, key.clone()));
        }
    }

    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.at.retain(|k, _| keep(k));
        self.order.retain(|(_, k)| keep(k));
    }
}

/// Work that began longer ago than this is slow, and does not count.
const FRESH: Duration = Duration::from_secs(2);

/// Counts work under way. Only what began lately takes a place that others need: what is slow,
/// because the other side does not answer, costs a little memory and holds nobody up.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    began: BTreeMap<u64, Instant>,
    fresh: BTreeSet<(Instant, u64)>,
    number: u64,
}

/// Names a piece of work in a [`Crowd`].
pub(super) type Place = u64;

impl Crowd {
    /// Begins a piece of work.
    pub fn enter(&mut self, now: Instant) -> Place {
        self.number += 1;
        self.began.insert(self.number, now);
        self.fresh.insert((now, self.number));
        self.number
    }

    pub fn leave(&mut self, place: Place) {
        if let Some(began) = self.began.remove(&place) {
            self.fresh.remove(&(began, place));
        }
    }

    /// Whether one more may begin: there are fewer than `fresh` that began lately, and fewer than
    /// `all`.
    pub fn has_room(&mut self, now: Instant, fresh: usize, all: usize) -> bool {
        while self
            .fresh
            .first()
            .is_some_and(|(began, _)| now.saturating_duration_since(*began) >= FRESH)
        {
            self.fresh.pop_first();
        }
        self.fresh.len() < fresh && self.began.len() < all
    }

    /// When room comes although nothing ends.
    pub fn wake(&self) -> Option<Instant> {
        self.fresh.first().map(|(began, _)| *began + FRESH)
    }

    pub fn len(&self) -> usize {
        self.began.len()
    }

    pub fn is_empty(&self) -> bool {
        self.began.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_earlier_wish_counts_and_each_key_is_served_once() {
        let now = Instant::now();
        let mut due = Due::default();
        due.no_later(&"a", now + FRESH);
        due.no_later(&"a", now);
        due.no_later(&"a", now + FRESH * 2);
        due.no_later(&"b", now);
        assert_eq!(due.take(now, |k| *k != "a"), Some("b"));
        assert_eq!(
            (due.wake(|_| true), due.take(now, |_| true)),
            (Some(now), Some("a"))
        );
        assert_eq!(
            (due.wake(|_| true), due.take(now + FRESH * 3, |_| true)),
            (None, None)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_slow_holds_nobody_up_within_reason() {
        let mut crowd = Crowd::default();
        let start = Instant::now();
        for _ in 0..2 {
            crowd.enter(start);
        }
        assert!(!crowd.has_room(start, 2, 3));
        assert_eq!(crowd.wake(), Some(start + FRESH));
        assert!(crowd.has_room(start + FRESH, 2, 3));
        let place = crowd.enter(start + FRESH);
        assert!(!crowd.has_room(start + FRESH * 2, 2, 3), "three in all");
        crowd.leave(place);
        assert!(crowd.has_room(start + FRESH * 2, 2, 3));
    }
}
