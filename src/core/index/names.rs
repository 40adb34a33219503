//! Texts that repeat over thousands of objects, kept once.

use std::{collections::HashSet, sync::Arc};

/// Shares equal texts.
#[derive(Debug, Default)]
pub struct Interner {
    texts: HashSet<Arc<str>>,
    /// Size at which those that nobody uses any more are let go.
    sweep_at: usize,
}

impl Interner {
    /// The shared copy of a text.
    pub fn share(&mut self, text: &Arc<str>) -> Arc<str> {
        if let Some(shared) = self.texts.get(text) {
            return shared.clone();
        }
        if self.texts.len() >= self.sweep_at.max(1024) {
            self.texts.retain(|t| Arc::strong_count(t) > 1);
            self.sweep_at = self.texts.len() * 2;
        }
        self.texts.insert(text.clone());
        text.clone()
    }
}
