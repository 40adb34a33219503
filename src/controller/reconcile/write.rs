//! One batch at a time: the record is opened, the policy is written under its etag, the answer is read, the record is closed.

use super::{Reconcile, Step, failed, ledger::forget_corrections, slow_down};
use crate::{
    cloudrun::{CloudRun, fence},
    fault::{Fault, FaultClass},
    history::{self, Ending, whole_microseconds},
    iam::{Grant, Policy},
    index::PlanInputs,
    ledger::Pending,
    plan::{self, Batch, Clue, Plan},
};

/// Writes without an answer that may be open at once.
const MAX_OPEN: usize = 4;

impl<'a, C: CloudRun> Reconcile<'a, C> {
    /// Writes one batch of a plan: into the ledger, then, if it is still wanted, to IAM.
    /// (Kubernetes, Cloud Run)
    pub(super) async fn write(
        &mut self,
        inputs: PlanInputs,
        live: Policy,
        plan: Plan,
        batch: Batch,
        open: Vec<Pending>,
    ) -> Step {
        let part = plan.part(&batch);
        let pending = self.pending(&inputs, &part, &live);
        let again = open
            .iter()
            .find(|p| is_same(p, &pending))
            .map(|p| p.name.clone());
        if again.is_none() && open.len() >= MAX_OPEN {
            return failed(
                inputs,
                Fault::new(
                    FaultClass::Timeout,
                    "several writes had no answer; waiting for them",
                ),
            );
        }
        let is_again = again.is_some();
        let name = again.unwrap_or_else(|| pending.name.clone());
        let next = self.ledger_before(&inputs, &plan, open, (!is_again).then_some(pending));
        if next != inputs.ledger {
            match self.store(&inputs, &next).await {
                Ok(true) => {}
                Ok(false) => return self.again(inputs, Some(live)),
                Err(fault) => {
                    // It may be in the ledger nevertheless, or come there later; it was never sent.
                    if !is_again {
                        self.ended(&name, Ending::Refused);
                    }
                    return failed(inputs, fault);
                }
            }
        }
        let (inputs, wanted) = self.is_still_wanted(&live, &batch, &name);
        if !wanted {
            self.ended(&name, Ending::Refused);
            return self.again(inputs, Some(live));
        }
        self.send(inputs, live, &part, &batch, &name).await
    }

    pub(super) fn pending(&mut self, inputs: &PlanInputs, part: &Plan, live: &Policy) -> Pending {
        let blame = &self.report.blame;
        let by = part
            .drift
            .iter()
            .filter_map(|g| blame.get(g))
            .max_by_key(|by| by.at.0)
            .map(|by| &**by);
        // The first correction of a reconcile is the one that the circuit breaker counted.
        let now = whole_microseconds(self.controller.now());
        let at = self
            .admitted
            .filter(|_| self.writes == 0 && part.corrects_drift())
            .unwrap_or(now);
        history::pending(part, &inputs.claims, live, by, at)
    }

    /// Whether what is declared, allowed and approved at this moment asks for all of a batch.
    fn is_still_wanted(&self, live: &Policy, batch: &Batch, name: &str) -> (PlanInputs, bool) {
        let controller = self.controller;
        let (mut inputs, readable) = controller.gather(self.service, &self.without);
        // This very write is no correction yet.
        for pending in inputs.ledger.pending.iter().filter(|p| p.name == name) {
            pending
                .drift
                .iter()
                .for_each(|g| inputs.drift.not_corrected(g, pending.at));
        }
        // The breaker was asked for this very correction.
        inputs.circuit_open &= self.admitted.is_none();
        let plan = plan::plan(&inputs.input(live, &controller.options.settings, controller.now()));
        let wanted = readable.is_ok() && plan.wants(batch);
        (inputs, wanted)
    }

    /// Sends a write, and sees what became of it. (Cloud Run)
    async fn send(
        &mut self,
        inputs: PlanInputs,
        live: Policy,
        part: &Plan,
        batch: &Batch,
        name: &str,
    ) -> Step {
        let controller = self.controller;
        if !controller.shards.holds(&self.service.project) {
            self.ended(name, Ending::Refused);
            return failed(inputs, fence::refused());
        }
        let Some(token) = self.tokens.write() else {
            return failed(inputs, slow_down("its writes"));
        };
        self.writes += 1;
        let fault = match controller
            .cloud
            .write(self.service, &part.applied_to(&live), token)
            .await
        {
            Ok(written) => {
                self.ended(name, Ending::Accepted);
                return self.written(written, batch).await;
            }
            Err(fault) => fault,
        };
        if !fault.class.did_nothing() {
            // The answer is lost, the write perhaps not: the live policy decides, and nothing is
            // written twice blindly.
            return match self.read().await {
                Ok(after) if after.etag != live.etag => self.again(inputs, Some(after)),
                _ => failed(inputs, fault),
            };
        }
        self.ended(name, Ending::Refused);
        match fault.class {
            FaultClass::Conflict => {
                tracing::debug!("the IAM policy was changed concurrently; reading it again");
                self.again(inputs, None)
            }
            FaultClass::LeaseLost => failed(inputs, fault),
            FaultClass::InvalidMember | FaultClass::OrganizationPolicy => {
                match self.rejected(&inputs, part, batch, &fault) {
                    Ok(()) => Step::Again(Some(live)),
                    Err(fault) => self.failed_cleanly(inputs, &live, fault).await,
                }
            }
            _ => self.failed_cleanly(inputs, &live, fault).await,
        }
    }

    /// IAM took it. In sync is what the next read shows, not that a call returned.
    async fn written(&mut self, written: Policy, batch: &Batch) -> Step {
        let controller = self.controller;
        controller.expect_event(&self.service.project);
        controller
            .memories
            .search(self.service, |s| s.accepted(batch));
        controller.memories.accept(self.service, &batch.grants);
        match self.read().await {
            Ok(live) if is_shown(batch, &live) => Step::Again(Some(live)),
            // Undone already, or taken and not done: not for ever, and not without a pause.
            Ok(live) => {
                let (inputs, _) = controller.gather(self.service, &self.without);
                self.again(inputs, Some(live))
            }
            Err(fault) => {
                // What IAM answered stands for what could not be read back.
                let (inputs, _) = controller.gather(self.service, &self.without);
                self.failed_cleanly(inputs, &written, fault).await
            }
        }
    }

    /// IAM refuses members. They are named, or searched for.
    ///
    /// # Errors
    /// None of those that were to be granted is the reason.
    fn rejected(
        &self,
        inputs: &PlanInputs,
        part: &Plan,
        batch: &Batch,
        fault: &Fault,
    ) -> Result<(), Fault> {
        let memories = &self.controller.memories;
        let reject =
            |grant: &Grant| memories.reject(self.service, grant, fault, inputs.fingerprint());
        if let Some(named) = &fault.member {
            let culprits: Vec<&Grant> = part.grants.keys().filter(|g| is_named(g, named)).collect();
            culprits.iter().for_each(|g| reject(g));
            // Somebody who is in the policy already, and not by this plan: nothing here can be set
            // aside.
            return if culprits.is_empty() {
                Err(fault.clone())
            } else {
                Ok(())
            };
        }
        match memories.search(self.service, |s| s.refused(batch)) {
            Clue::Narrowed => Ok(()),
            Clue::Found(grant) => {
                reject(&grant);
                Ok(())
            }
            Clue::Unrelated => Err(Fault::new(
                fault.class,
                format!(
                    "IAM refuses every change of this policy, also the smallest; a member that is in it already may be the reason: {}",
                    fault.message
                ),
            )),
        }
    }

    fn ended(&self, name: &str, ending: Ending) {
        self.controller.change_log.ended(self.service, name, ending);
    }

    /// The end of a reconcile that failed, with what happened before settled and the ledger in
    /// order.
    async fn failed_cleanly(&mut self, inputs: PlanInputs, live: &Policy, fault: Fault) -> Step {
        match self.settle(&inputs.ledger, Some(live)).await {
            Ok(settled) => {
                let mut next = inputs.ledger.clone();
                settled.spent.iter().for_each(|p| next.spend(p));
                next.pending = settled.open;
                next.written_at = self.written_at(&next);
                forget_corrections(&mut next, &settled.undone);
                if let Err(fault) = self.store(&inputs, &next).await {
                    tracing::debug!(%fault, "the ledger could not be brought up to date; the next reconcile does it");
                }
            }
            Err(fault) => {
                tracing::debug!(%fault, "a change could not be put on record; the next reconcile does it")
            }
        }
        failed(inputs, fault)
    }
}

/// The same changes from the same version: sent twice, one of them is taken at most.
fn is_same(a: &Pending, b: &Pending) -> bool {
    a.etag_before == b.etag_before && a.added == b.added && a.removed == b.removed
}

/// `serviceAccount:x@y` is named as `x@y`; all members of a workload identity pool are named by the
/// pool.
pub(super) fn is_named(grant: &Grant, named: &str) -> bool {
    let Some((_, name)) = grant.principal.as_str().split_once(':') else {
        return false;
    };
    let pool = name
        .split_once('[')
        .map(|(pool, _)| pool)
        .filter(|pool| pool.ends_with(".svc.id.goog"));
    name.eq_ignore_ascii_case(named) || pool.is_some_and(|p| p.eq_ignore_ascii_case(named))
}

/// Whether a policy shows what was written.
fn is_shown(batch: &Batch, live: &Policy) -> bool {
    let live = live.grants();
    batch.grants.iter().all(|g| live.contains(g)) && batch.revokes.iter().all(|g| !live.contains(g))
}
