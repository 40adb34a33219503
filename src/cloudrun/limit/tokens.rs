//! The right to one call.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Budgets, Kind, Needs, Place};

/// The right to one call. One that is not used goes back.
#[derive(Debug)]
pub struct Token {
    pub(super) budgets: Arc<Budgets>,
    pub(super) place: Place,
    pub(super) kind: Kind,
}

impl Token {
    /// It is being used.
    pub(crate) fn spend(&self) {
        let now = Instant::now();
        self.budgets.with(&self.place, now, |b| {
            let bucket = b.of(self.kind);
            bucket.refill(now);
            bucket.tokens -= 1.0;
            bucket.usage.count(now);
        });
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let now = Instant::now();
        self.budgets.with(&self.place, now, |b| {
            let bucket = b.of(self.kind);
            bucket.held = bucket.held.saturating_sub(1);
        });
    }
}

/// Rights to some calls.
#[derive(Debug, Default)]
pub struct Tokens {
    pub(super) reads: Vec<Token>,
    pub(super) writes: Vec<Token>,
    /// A right to a write was taken.
    pub(super) has_written: bool,
}

impl Tokens {
    /// The right to one read, if there is one left.
    pub fn read(&mut self) -> Option<Token> {
        self.reads.pop()
    }

    /// The right to one write, if there is one left.
    pub fn write(&mut self) -> Option<Token> {
        let token = self.writes.pop();
        self.has_written |= token.is_some();
        token
    }

    /// Whether any right to a write was taken.
    pub fn has_written(&self) -> bool {
        self.has_written
    }

    /// How many calls may still be made.
    pub fn left(&self) -> Needs {
        Needs {
            reads: self.reads.len() as u32,
            writes: self.writes.len() as u32,
        }
    }

    /// More of them.
    pub fn add(&mut self, more: Self) {
        self.reads.extend(more.reads);
        self.writes.extend(more.writes);
    }
}
