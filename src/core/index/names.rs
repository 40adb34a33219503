//! Texts and conditions that repeat over thousands of objects, kept once.

use std::{collections::HashSet, hash::Hash, sync::Arc};

use crate::iam::Condition;

/// Shares equal texts and equal conditions.
#[derive(Debug, Default)]
pub struct Interner {
    texts: Shared<str>,
    conditions: Shared<Condition>,
}

impl Interner {
    /// The shared copy of a text.
    pub fn share(&mut self, text: &Arc<str>) -> Arc<str> {
        self.texts.share(text)
    }

    /// The shared copy of a condition: the ledger of every service has those of every policy.
    pub fn share_condition(&mut self, condition: &Arc<Condition>) -> Arc<Condition> {
        self.conditions.share(condition)
    }
}

#[derive(Debug)]
struct Shared<T: ?Sized> {
    values: HashSet<Arc<T>>,
    /// Size at which those that nobody uses any more are let go.
    sweep_at: usize,
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self {
            values: HashSet::new(),
            sweep_at: 0,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Shared<T> {
    fn share(&mut self, one: &Arc<T>) -> Arc<T> {
        if let Some(shared) = self.values.get(one) {
            return shared.clone();
        }
        if self.values.len() >= self.sweep_at.max(1024) {
            self.values.retain(|t| Arc::strong_count(t) > 1);
            self.sweep_at = self.values.len() * 2;
        }
        self.values.insert(one.clone());
        one.clone()
    }
}
