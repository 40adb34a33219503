//! Which writes explain a difference: our own, and those that the audit log tells.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use crate::{
    api::ChangedBy,
    audit::{Drift, Trail},
    iam::{Grant, Policy},
    index::PlanInputs,
    ledger::Ledger,
};

/// Versions of a policy that are remembered as read.
pub(super) const VERSIONS: usize = 4;

/// What is kept of a service for the sake of events.
#[derive(Debug, Default)]
pub(super) struct Witness {
    /// Hashes of the versions that were read last.
    pub(super) versions: VecDeque<u64>,
    /// The version after which everything that differs is to be explained.
    base: Option<Arc<str>>,
    pub(super) unexplained: BTreeSet<Grant>,
    /// Who made what differs, or what was corrected lately.
    pub(super) blame: BTreeMap<Grant, Arc<ChangedBy>>,
}

impl Witness {
    /// Takes in who made what was corrected lately, as the ledger has it.
    fn recall(&mut self, ledger: &Ledger) {
        for (grant, corrected) in &ledger.corrections {
            if let Some(by) = &corrected.by {
                let known = self.blame.entry(grant.clone());
                known.or_insert_with(|| by.clone());
            }
        }
    }

    /// Takes in who made what differs now, as far as the log proves it. `by`: the fingerprint of
    /// the declarations.
    pub(super) fn explain(
        &mut self,
        inputs: &PlanInputs,
        by: u64,
        live: &Policy,
        differs: &Drift,
        trail: Option<&Trail>,
    ) {
        self.recall(&inputs.ledger);
        let open = |g: &&Grant| {
            !self.blame.contains_key(*g)
                && (self.unexplained.contains(*g) || inputs.drift.is_drift(by, g))
        };
        let drift = Drift {
            missing: differs.missing.iter().filter(open).cloned().collect(),
            unexpected: differs.unexpected.iter().filter(open).cloned().collect(),
        };
        let blame = trail
            .map(|t| t.blame(live, self.base.as_deref(), &drift))
            .unwrap_or_default();
        // What we took away ourselves, for a guardrail, is no drift and nobody's doing else.
        let own = trail.map(|t| t.own(live, differs)).unwrap_or_default();
        let drifted = drift.missing.iter().chain(&drift.unexpected);
        let unexplained = drifted.filter(|g| !blame.contains_key(*g));
        self.unexplained = unexplained.cloned().collect();
        self.blame.extend(blame);
        self.own_up(own);
        let lately = |g: &Grant| {
            differs.missing.contains(g)
                || differs.unexpected.contains(g)
                || inputs.drift.was_corrected(g)
        };
        self.blame.retain(|g, _| lately(g));
        if self.unexplained.is_empty() {
            self.base = Some(live.etag.0.as_str().into());
        }
    }

    /// Takes in what we did ourselves: the last of it, as a grant is made for one reason and taken
    /// away for another. What somebody else did stays theirs.
    fn own_up(&mut self, own: BTreeMap<Grant, Arc<ChangedBy>>) {
        for (grant, by) in own {
            let known = self.blame.entry(grant).or_insert_with(|| by.clone());
            if known.is_operator() {
                *known = by;
            }
        }
    }
}
