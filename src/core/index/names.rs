//! Texts, conditions, labels and services that repeat over thousands of objects, kept once.

use std::{
    collections::{BTreeMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use crate::{
    iam::{Condition, RunService},
    intent::PolicyId,
};

/// Shares equal texts, conditions, labels and services.
#[derive(Debug, Default)]
pub struct Interner {
    texts: Shared<Arc<str>>,
    conditions: Shared<Arc<Condition>>,
    services: Shared<RunService>,
    labels: Shared<Arc<BTreeMap<String, String>>>,
}

impl Interner {
    /// The shared copy of a text.
    pub fn share(&mut self, text: &Arc<str>) -> Arc<str> {
        self.texts.share(text, Arc::clone)
    }

    /// The shared copy of a condition: the ledger of every service has those of every policy.
    pub fn share_condition(&mut self, condition: &Arc<Condition>) -> Arc<Condition> {
        self.conditions.share(condition, Arc::clone)
    }

    /// The shared copy of a service: it is a key in every index.
    pub fn share_service(&mut self, service: &RunService) -> RunService {
        let texts = &mut self.texts;
        let mut share = |t: &Arc<str>| texts.share(t, Arc::clone);
        self.services.share(service, |s| {
            RunService::new(share(&s.project), share(&s.region), s.name.clone())
        })
    }

    /// The shared copy of labels: most services have the same as many others.
    pub fn share_labels(
        &mut self,
        labels: &Arc<BTreeMap<String, String>>,
    ) -> Arc<BTreeMap<String, String>> {
        self.labels.share(labels, Arc::clone)
    }

    /// A policy, of shared texts: its ledgers name it, too.
    pub fn share_policy(&mut self, id: &PolicyId) -> PolicyId {
        PolicyId {
            namespace: self.share(&id.namespace),
            name: self.share(&id.name),
            uid: self.share(&id.uid),
        }
    }
}

/// Something of which a clone is the same copy.
trait Handle: Clone + Eq + Hash {
    /// Whether this is the only one.
    fn is_unshared(&self) -> bool;
}

impl<T: ?Sized + Eq + Hash> Handle for Arc<T> {
    fn is_unshared(&self) -> bool {
        Arc::strong_count(self) == 1
    }
}

impl Handle for RunService {
    fn is_unshared(&self) -> bool {
        RunService::is_unshared(self)
    }
}

#[derive(Debug)]
struct Shared<H> {
    values: HashSet<H>,
    /// Size at which those that nobody uses any more are let go.
    sweep_at: usize,
}

impl<H> Default for Shared<H> {
    fn default() -> Self {
        Self {
            values: HashSet::new(),
            sweep_at: 0,
        }
    }
}

impl<H: Handle> Shared<H> {
    /// `keep` makes of one that was not there before the one that is kept.
    fn share(&mut self, one: &H, keep: impl FnOnce(&H) -> H) -> H {
        if let Some(shared) = self.values.get(one) {
            return shared.clone();
        }
        if self.values.len() >= self.sweep_at.max(1024) {
            self.values.retain(|t| !t.is_unshared());
            self.sweep_at = self.values.len() * 2;
        }
        let kept = keep(one);
        self.values.insert(kept.clone());
        kept
    }
}
