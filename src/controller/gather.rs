//! All that the plan for one service needs besides what is real: from the index, from the ledger,
//! and from memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::Controller;
use crate::{
    cloudrun::CloudRun,
    fault::{Fault, FaultClass},
    iam::{Grant, Policy, RunService},
    index::PlanInputs,
    intent::PolicyId,
    plan::{PolicyOnService, drift::WINDOW},
    status::observation,
};

/// Policies that nothing is done for in this reconcile: those that are gone, or why not.
pub(super) type Without = BTreeMap<PolicyId, Option<Arc<str>>>;

fn leave_out(claims: &mut Vec<PolicyOnService>, without: &Without) {
    claims.retain_mut(|claim| match without.get(&claim.intent.id) {
        None => true,
        Some(None) => false,
        Some(Some(why)) => {
            claim.stopped.get_or_insert_with(|| why.clone());
            true
        }
    });
}

impl<C: CloudRun> Controller<C> {
    /// Reads the caches and what is remembered.
    ///
    /// # Errors
    /// [`FaultClass::UnreadableLedger`], beside what could be read: nothing may be written on the
    /// ground of what is not known.
    pub(super) fn gather(
        &self,
        service: &RunService,
        without: &Without,
    ) -> (PlanInputs, Result<(), Fault>) {
        let (mut inputs, unreadable) = self.index.with(|index| {
            (
                PlanInputs::of(service, index),
                index.ledgers().unreadable(service).map(str::to_owned),
            )
        });
        leave_out(&mut inputs.claims, without);
        inputs.circuit_open = self.breaker.is_open();
        inputs.drift = self.memories.drift(service);
        inputs.ledger.prune(self.now(), WINDOW);
        inputs.drift.corrected_under(inputs.ledger.corrected_under);
        for (grant, corrected) in &inputs.ledger.corrections {
            corrected
                .at
                .iter()
                .for_each(|at| inputs.drift.corrected(grant, *at));
        }
        let declared: BTreeSet<&Grant> = inputs
            .claims
            .iter()
            .flat_map(|c| c.declared().iter().map(|d| &d.grant))
            .collect();
        let rejections = self
            .memories
            .rejections(service, inputs.fingerprint(), |g| declared.contains(g));
        inputs.rejected = rejections.rejected;
        inputs.doubtful = self
            .memories
            .search(service, |s| s.grants().cloned().collect());
        inputs.doubtful.extend(rejections.alone.keys().cloned());
        inputs.alone = rejections.alone;
        let readable = match unreadable {
            Some(why) => Err(Fault::new(FaultClass::UnreadableLedger, why)),
            None => Ok(()),
        };
        (inputs, readable)
    }

    /// In the first reconcile after a restart the statuses stand for the one before: what differs
    /// now and did not then was changed by somebody while nobody read it.
    pub(super) fn recall(&self, inputs: &mut PlanInputs, live: &Policy) {
        if !self.memories.must_recall(&inputs.service) || inputs.claims.is_empty() {
            return;
        }
        let reported = self.index.with(|index| {
            let mut all: BTreeSet<String> = BTreeSet::new();
            for claim in inputs
                .claims
                .iter()
                .filter(|c| !c.intent.deleting && !c.left)
            {
                let record = index
                    .policies()
                    .get(&claim.intent.id.key())
                    .filter(|r| r.intent.id == claim.intent.id);
                let status = record.map(|r| r.status().get()).unwrap_or_default();
                let entry = observation::entry_of(&status, &inputs.service);
                let entry = entry
                    .filter(|_| status.observed_generation == Some(claim.intent.generation))?;
                let named = observation::was_outstanding(entry, inputs.circuit_open)?;
                all.extend(named.into_iter().map(str::to_owned));
            }
            Some(all)
        });
        let Some(reported) = reported else { return };
        let declared = inputs
            .claims
            .iter()
            .flat_map(|c| c.declared().iter().map(|d| d.grant.clone()));
        let by = inputs.fingerprint();
        let open = declared
            .chain(live.grants())
            .filter(|g| reported.contains(&g.to_string()));
        let outstanding = open.filter(|g| !inputs.drift.was_drift(by, g)).collect();
        inputs.drift.settle(by, outstanding);
    }
}
