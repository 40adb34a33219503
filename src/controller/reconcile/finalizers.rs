//! Finalizers before grants: what a policy is given is only given while its deletion can wait for it to be taken back.

use std::collections::BTreeSet;

use futures::{StreamExt as _, stream};

use super::Reconcile;
use crate::{
    cloudrun::CloudRun,
    cluster::FinalizerWrite,
    fault::{Fault, FaultClass},
    index::PlanInputs,
    intent::PolicyId,
    plan::Plan,
};

/// Finalizers that are put at once.
const FINALIZERS: usize = 8;

impl<'a, C: CloudRun> Reconcile<'a, C> {
    /// Puts the finalizer on every policy that something is about to belong to, so that none of it
    /// outlives its policy unseen. False: some policy is gone, or cannot be protected so, and
    /// nothing is done for it in this reconcile. (Kubernetes)
    ///
    /// # Errors
    /// [`FaultClass::Conflict`]: a policy was made anew, and the watch has not shown what it lists.
    /// Until then nobody can say who is to go.
    pub(super) async fn put_finalizers(
        &mut self,
        inputs: &PlanInputs,
        plan: &Plan,
    ) -> Result<bool, Fault> {
        let owning: BTreeSet<&PolicyId> = plan.lines.values().flatten().collect();
        let (controller, index) = (self.controller, &self.controller.index);
        // One that went since it was gathered has none either, and owns nothing from now on.
        let without = |id: &PolicyId| {
            !index.with(|i| {
                let record = i.policies().get(&id.key());
                record.is_some_and(|r| r.intent.id == *id && r.has_finalizer())
            })
        };
        let intents = inputs
            .claims
            .iter()
            .filter(|c| c.enforces() && !c.left)
            .map(|c| &c.intent);
        let staying = intents.filter(|i| !i.deleting && owning.contains(&i.id));
        let missing: Vec<PolicyId> = staying
            .filter(|i| without(&i.id))
            .map(|i| i.id.clone())
            .collect();
        if missing.is_empty() {
            return Ok(true);
        }
        let put = |id: PolicyId| async move { (controller.cluster.put_finalizer(&id).await, id) };
        let results: Vec<_> = stream::iter(missing)
            .map(put)
            .buffered(FINALIZERS)
            .collect()
            .await;
        let mut all = true;
        for (result, id) in results {
            match result {
                Ok(FinalizerWrite::Done) => index.with(|i| i.set_finalizer(&id, true)),
                Ok(FinalizerWrite::Replaced) => {
                    let why = format!("InvokerPolicy {}/{} was recreated", id.namespace, id.name);
                    return Err(Fault::new(FaultClass::Conflict, why));
                }
                Ok(write) => {
                    all = false;
                    if write == FinalizerWrite::Gone {
                        // The watch says so later; nothing is asked on its behalf from now on.
                        controller.policy_deleted(&id);
                    }
                    self.without.insert(id, None);
                }
                Err(fault) => {
                    all = false;
                    let why = format!("its finalizer could not be set: {}", fault.message);
                    self.without.insert(id, Some(why.into()));
                    self.incomplete = Some(fault);
                }
            }
        }
        Ok(all)
    }
}
