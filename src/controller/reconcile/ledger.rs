//! What the ledger has to say before a write, after one, and when there is nothing left to say.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;

use super::{MAX_CONFLICTS, Reconcile};
use crate::{
    cloudrun::{CloudRun, fence},
    cluster::{LedgerWrite, StoredLedger},
    fault::{Fault, FaultClass},
    index::PlanInputs,
    intent::PolicyId,
    ledger::{Ledger, Pending, Version},
    plan::{OwnerState, Plan, drift::WINDOW},
};

impl<'a, C: CloudRun> Reconcile<'a, C> {
    /// Where nothing is written to IAM now: brings the ledger up to date. `None`: it is; else
    /// whether it was written. (Kubernetes)
    pub(super) async fn keep_ledger(
        &mut self,
        inputs: &PlanInputs,
        plan: &Plan,
        open: Vec<Pending>,
    ) -> Option<Result<(), Fault>> {
        let mut next = inputs.ledger.clone();
        next.lines = plan.lines.clone();
        // What is still to be granted is entered when it is.
        next.lines
            .retain(|g, _| !plan.grants.contains_key(g) || inputs.ledger.lines.contains_key(g));
        next.pending = open;
        next.written_at = self.written_at(&next);
        next.held = plan.held_alone();
        // Corrections that grow old are no reason to write.
        let known = &inputs.ledger;
        if (&next.lines, &next.pending, &next.held) == (&known.lines, &known.pending, &known.held) {
            return None;
        }
        match self.store(inputs, &next).await {
            Ok(true) => None,
            Ok(false) => Some(Ok(())),
            Err(fault) => Some(Err(fault)),
        }
    }

    /// Where no policy is left there is nobody to fight: what only remembers corrections goes.
    /// (Kubernetes)
    pub(super) async fn forget_fights(&mut self, inputs: &PlanInputs) -> Result<(), Fault> {
        let ledger = &inputs.ledger;
        let is_bare =
            ledger.lines.is_empty() && ledger.pending.is_empty() && inputs.version.is_some();
        if is_bare && inputs.claims.is_empty() {
            // What approvals did outlives what they did it to.
            let next = match ledger.used.is_empty() {
                true => Ledger::default(),
                false => Ledger {
                    used: ledger.used.clone(),
                    written_at: ledger.written_at,
                    ..Ledger::default()
                },
            };
            if next == *ledger && !next.is_empty() {
                return Ok(());
            }
            // Somebody changed it meanwhile, and nobody else comes back to it.
            if !self.store(inputs, &next).await? {
                return Err(Fault::new(
                    FaultClass::Conflict,
                    "the ledger was changed at the same time",
                ));
            }
        }
        Ok(())
    }

    /// Writes the ledger. False: it was another than the one that this was planned from, and is
    /// known now. (Kubernetes)
    pub(super) async fn store(
        &mut self,
        inputs: &PlanInputs,
        next: &Ledger,
    ) -> Result<bool, Fault> {
        let controller = self.controller;
        let known = inputs.version.as_ref();
        // Whoever holds the project now writes its ledgers; what comes late from another is refused
        // by its version.
        if !controller.shards.holds(&self.service.project) {
            return Err(fence::refused());
        }
        let write = controller.cluster.write_ledger(self.service, next, known);
        match write.await? {
            LedgerWrite::Written(version) => {
                controller
                    .index
                    .with(|i| i.set_ledger(self.service, next, version));
            }
            LedgerWrite::Deleted => self.erase_ledger(known),
            LedgerWrite::Conflict => {
                self.reload_ledger(known).await?;
                return Ok(false);
            }
        }
        controller.change_log.stored(self.service, &next.pending);
        // Whom nothing belongs to any more here says so in its status, or is let go, wherever it
        // means to be now.
        let owners = |ledger: &Ledger| -> BTreeSet<PolicyId> {
            ledger.lines.values().flatten().cloned().collect()
        };
        for left in owners(&inputs.ledger).difference(&owners(next)) {
            controller
                .statuses
                .add(&left.key(), Duration::from_millis(100));
        }
        Ok(true)
    }

    fn erase_ledger(&self, known: Option<&Version>) {
        if let Some(known) = known {
            self.controller
                .index
                .with(|i| i.erase_ledger(self.service, known.clone()));
        }
    }

    /// Takes in the ledger as it is in the store. (Kubernetes)
    async fn reload_ledger(&self, known: Option<&Version>) -> Result<(), Fault> {
        let controller = self.controller;
        match controller.cluster.read_ledger(self.service).await? {
            StoredLedger::Present(object) => {
                controller.index.with(|i| i.apply_ledger(&object));
            }
            StoredLedger::Unreadable { why, version } => controller
                .index
                .with(|i| i.spoil_ledger(self.service, &why, Some(version))),
            StoredLedger::Absent => self.erase_ledger(known),
        }
        Ok(())
    }

    /// When the last write that was made was over, this reconcile's included.
    pub(super) fn written_at(&self, ledger: &Ledger) -> Option<Timestamp> {
        ledger.written_at.max(self.written_at)
    }

    /// The ledger as it has to be before a write is sent. `pending`: the write, unless it is in the
    /// ledger already.
    pub(super) fn ledger_before(
        &self,
        inputs: &PlanInputs,
        plan: &Plan,
        open: Vec<Pending>,
        pending: Option<Pending>,
    ) -> Ledger {
        let mut next = inputs.ledger.clone();
        next.lines = plan.lines.clone();
        next.pending = open;
        next.written_at = self.written_at(&next);
        next.held = None;
        if let Some(pending) = pending {
            if !pending.drift.is_empty() {
                next.corrected_under = Some(inputs.fingerprint());
            }
            for grant in &pending.drift {
                let corrected = next.corrections.entry(grant.clone()).or_default();
                corrected.at.push(pending.at);
                let by = self.report.blame.get(grant).cloned();
                corrected.by = by.or(corrected.by.take());
            }
            next.pending.push(pending);
        }
        next.prune(self.controller.now(), WINDOW);
        next
    }

    /// A service that is gone took its policy with it. Where only the way to it is gone, what
    /// belonged to policies that leave is nobody's from now on: it is revoked when the way is there
    /// again. (Kubernetes)
    pub(super) async fn forget_what_is_gone(&mut self, class: FaultClass) {
        if !class.row().gone {
            return;
        }
        for _ in 0..MAX_CONFLICTS {
            let (inputs, readable) = self.controller.gather(self.service, &self.without);
            if readable.is_err() {
                return;
            }
            match self.forget_ledger(&inputs, class).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(fault) => {
                    tracing::warn!(%fault, "what is gone could not be forgotten; the next reconcile does it");
                    return;
                }
            }
        }
    }

    async fn forget_ledger(
        &mut self,
        inputs: &PlanInputs,
        class: FaultClass,
    ) -> Result<bool, Fault> {
        let mut next = inputs.ledger.clone();
        if matches!(
            class,
            FaultClass::ServiceNotFound | FaultClass::ProjectNotFound
        ) {
            self.controller.close_legacy(self.service, None).await;
            let settled = self.settle(&inputs.ledger, None).await?;
            settled.spent.iter().for_each(|p| next.spend(p));
            next = Ledger {
                used: next.used,
                ..Ledger::default()
            };
        } else {
            for (grant, owners) in &mut next.lines {
                let states = inputs.owners.get(grant);
                let is_leaving = |id: &PolicyId| {
                    matches!(states.and_then(|o| o.get(id)), Some(OwnerState::Leaving(_)))
                };
                owners.retain(|id| !is_leaving(id));
            }
        }
        if next == inputs.ledger && !(next.is_empty() && inputs.version.is_some()) {
            return Ok(true);
        }
        self.store(inputs, &next).await
    }
}

/// Corrections that were not made do not count.
pub(super) fn forget_corrections(ledger: &mut Ledger, undone: &[Pending]) {
    for pending in undone {
        for grant in &pending.drift {
            if let Some(corrected) = ledger.corrections.get_mut(grant) {
                corrected.at.retain(|at| *at != pending.at);
            }
        }
    }
    ledger.corrections.retain(|_, c| !c.at.is_empty());
}

pub(super) fn take_back(inputs: &mut PlanInputs, undone: &[Pending]) {
    forget_corrections(&mut inputs.ledger, undone);
    for pending in undone {
        pending
            .drift
            .iter()
            .for_each(|grant| inputs.drift.not_corrected(grant, pending.at));
    }
}
