//! Members to be named in a message: some by name, the rest by number.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::api::MAX_STATUS_MEMBERS;

/// Some members by name, and how many there are: what is kept of a set does not grow with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    pub(super) count: usize,
    named: Vec<String>,
    /// Tells two sets apart whose first members are the same.
    digest: u64,
}

impl<T: ToString> FromIterator<T> for Members {
    fn from_iter<I: IntoIterator<Item = T>>(members: I) -> Self {
        let (mut count, mut named, mut hasher) = (0, Vec::new(), DefaultHasher::new());
        for member in members {
            let text = member.to_string();
            text.hash(&mut hasher);
            if count < MAX_STATUS_MEMBERS {
                named.push(text);
            }
            count += 1;
        }
        Self {
            count,
            named,
            digest: if count == 0 { 0 } else { hasher.finish() },
        }
    }
}

impl Members {
    /// These, and the others after them.
    pub fn with(&self, others: &Self) -> Self {
        let mut hasher = DefaultHasher::new();
        (self.digest, others.digest).hash(&mut hasher);
        let named = self.named.iter().chain(&others.named);
        Self {
            count: self.count + others.count,
            named: named.take(MAX_STATUS_MEMBERS).cloned().collect(),
            digest: hasher.finish(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
    pub fn len(&self) -> usize {
        self.count
    }
    /// The first by name, and how many more.
    pub fn shown(&self) -> Vec<String> {
        let mut shown = self.named.clone();
        if self.count > self.named.len() {
            shown.push(format!("and {} more", self.count - self.named.len()));
        }
        shown
    }
    /// Whether every one of these is certainly among `others` too.
    pub fn are_among(&self, others: &Self) -> bool {
        self == others
            || (self.count <= others.count
                && self.count == self.named.len()
                && self.named.iter().all(|m| others.named.contains(m)))
    }
    /// The first `most` in a sentence.
    pub fn listed(&self, most: usize) -> String {
        let mut text = self
            .named
            .iter()
            .take(most)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        if self.count > most.min(self.named.len()) {
            text.push_str(&format!(
                ", and {} more",
                self.count - most.min(self.named.len())
            ));
        }
        text
    }
}
