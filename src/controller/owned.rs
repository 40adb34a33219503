//! State with one owner: a part of the controller keeps its state in one of these, and nobody else
//! sees it.
//!
//! The order of locks is the order of [`Rank`]: while one is held, only those behind it may be
//! taken. In builds with debug assertions taking them in another order panics, so that every test
//! checks it.

use std::sync::{Mutex, PoisonError};

/// Whose state it is. Later ones may be taken while earlier ones are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Index,
    Shards,
    ServiceMemory,
    ChangeLog,
    Breaker,
    AuditEvents,
    Rollbacks,
    Listings,
    Approvals,
    Requests,
    StatusWriter,
    /// Asks the budgets of `cloudrun::limit`, which have a lock of their own and ask nobody.
    Queue,
}

/// State behind a lock that is held for one closure.
#[derive(Debug)]
pub(super) struct Owned<T> {
    #[cfg_attr(
        not(debug_assertions),
        expect(dead_code, reason = "the order of locks is checked in debug builds")
    )]
    rank: Rank,
    state: Mutex<T>,
}

impl<T> Owned<T> {
    pub fn new(rank: Rank, state: T) -> Self {
        Self {
            rank,
            state: Mutex::new(state),
        }
    }

    /// Looks at the state, or changes it. Never waits for anything but the lock.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        #[cfg(debug_assertions)]
        let _held = order::take(self.rank);
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(debug_assertions)]
mod order {
    use super::Rank;
    use std::cell::RefCell;

    thread_local! {
        static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
    }

    pub struct Held;

    pub fn take(rank: Rank) -> Held {
        HELD.with_borrow_mut(|held| {
            debug_assert!(
                held.last().is_none_or(|last| *last < rank),
                "{rank:?} is taken while {held:?} are held"
            );
            held.push(rank);
        });
        Held
    }

    impl Drop for Held {
        fn drop(&mut self) {
            HELD.with_borrow_mut(Vec::pop);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_taken_in_their_order() {
        let (index, queue) = (Owned::new(Rank::Index, 1), Owned::new(Rank::Queue, 2));
        assert_eq!(index.with(|a| queue.with(|b| *a + *b)), 3);
        assert_eq!(queue.with(|b| *b) + index.with(|a| *a), 3);
    }

    #[test]
    #[should_panic(expected = "is taken while")]
    fn another_order_is_found_out() {
        let (index, queue) = (Owned::new(Rank::Index, 1), Owned::new(Rank::Queue, 2));
        queue.with(|_| index.with(|_| ()));
    }
}
