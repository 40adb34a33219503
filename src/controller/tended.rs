//! Objects whose status is brought up to date, one after the other; and those that are not kept, and
//! are only told why. What cannot be told now comes back: nobody waits for it.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{
    due::Due,
    owned::{Owned, Rank},
};

/// Nothing is waited for longer than this in one piece.
const FAR: Duration = Duration::from_secs(86_400);
/// Before one that could not be told is told again.
const AGAIN: Duration = Duration::from_secs(10);
/// Those that are not kept and wait to be told; more wait for the next list.
const MAX_UNKEPT: usize = 256;

/// Keys of the objects that are kept, each with when it is to be looked at.
#[derive(Debug)]
pub(super) struct Tended<K> {
    due: Owned<Due<K>>,
    changed: Notify,
}

impl<K: Clone + Ord + std::hash::Hash> Tended<K> {
    pub fn new(rank: Rank) -> Self {
        Self {
            due: Owned::new(rank, Due::default()),
            changed: Notify::new(),
        }
    }

    /// Looks at an object after `delay`, or earlier if that was asked for already.
    pub fn add(&self, key: &K, delay: Duration) {
        let at = Instant::now() + delay;
        self.due.with(|due| due.no_later(key, at));
        self.changed.notify_one();
    }

    /// Looks at an object when its standing changes by itself: a moment after, because clocks round.
    pub fn add_at(&self, key: &K, at: Timestamp, now: Timestamp) {
        let left = Duration::try_from(at.duration_since(now)).unwrap_or_default();
        self.add(key, left.min(FAR) + Duration::from_millis(10));
    }

    /// Waits for what is to be done next.
    pub async fn next<U>(&self, unkept: &mut Unkept<U>) -> Next<K, U> {
        loop {
            let now = Instant::now();
            let (key, wake) = self.due.with(|due| {
                let key = due.take(now, |_| true);
                (key, due.wake(|_| true))
            });
            if let Some(key) = key {
                return Next::Kept(key);
            }
            if let Some(told) = unkept.take(now) {
                return Next::Unkept(told);
            }
            let again = unkept.later.front().map(|(at, _)| *at);
            let wake = wake.into_iter().chain(again).min();
            let wake = wake.unwrap_or_else(|| now + FAR);
            tokio::select! {
                biased;
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(wake) => {}
                Some(told) = unkept.incoming.recv() => return Next::Unkept(told),
            }
        }
    }
}

/// What is to be done next.
pub(super) enum Next<K, U> {
    /// Bring its status up to date.
    Kept(K),
    /// Tell it why it does not count.
    Unkept(U),
}

/// Objects that are not kept, on their way from a watch.
#[derive(Debug)]
pub(super) struct Unkept<U> {
    incoming: mpsc::Receiver<U>,
    later: VecDeque<(Instant, U)>,
}

impl<U> Unkept<U> {
    /// The way from a watch.
    pub fn channel() -> (mpsc::Sender<U>, Self) {
        let (sender, incoming) = mpsc::channel(MAX_UNKEPT);
        let later = VecDeque::new();
        (sender, Self { incoming, later })
    }

    /// It could not be told; it is tried again.
    pub fn again(&mut self, told: U) {
        if self.later.len() < MAX_UNKEPT {
            self.later.push_back((Instant::now() + AGAIN, told));
        }
    }

    fn take(&mut self, now: Instant) -> Option<U> {
        let (at, _) = self.later.front()?;
        if *at > now {
            return None;
        }
        self.later.pop_front().map(|(_, told)| told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_told_comes_back_and_keeps_nobody_waiting() {
        let tended: Tended<u8> = Tended::new(Rank::Requests);
        let (sender, mut unkept) = Unkept::channel();
        sender.try_send("a").unwrap();
        let first = tended.next(&mut unkept).await;
        assert!(
            matches!(first, Next::Unkept("a")),
            "nothing else is to be done"
        );
        unkept.again("a");
        let (start, mut kept) = (Instant::now(), 0);
        // Others are looked at all the time.
        loop {
            tended.add(&1, Duration::from_secs(1));
            match tended.next(&mut unkept).await {
                Next::Kept(_) => kept += 1,
                Next::Unkept(told) => {
                    assert_eq!(told, "a");
                    break;
                }
            }
        }
        assert!(
            kept >= 9 && start.elapsed() <= AGAIN + Duration::from_secs(1),
            "{kept}"
        );
    }
}
