//! Records of changes in the store, and the mark of the circuit breaker: what must outlive the process.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{Cluster, fault, is_gone};
use crate::{
    api::{
        ChangeOutcome, ChangePhase, ChangeReason, EVENTS_MESSAGE, EVENTS_REASON, FIELD_MANAGER, InvokerChange,
        OUTCOME_LABEL, POLICY_LABEL_PREFIX, REASON_LABEL,
    },
    fault::Fault,
};

/// The mark of the open circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitMark {
    /// Since when it is open.
    pub since: Timestamp,
    /// When some replica last found fresh drift.
    pub unrest: Option<Timestamp>,
}

/// Objects in one page of a list that goes over all namespaces.
const PAGE: u32 = 250;

/// A namespace that is gone, or going: the API server lets nothing new into it.
fn takes_nothing_new(status: &kube::core::Status) -> bool {
    status.code == 404 || (status.code == 403 && status.message.contains("being terminated"))
}

/// Namespace and name of a record.
pub fn place_of(change: &InvokerChange) -> (&str, &str) {
    (change.metadata.namespace.as_deref().unwrap_or_default(), change.metadata.name.as_deref().unwrap_or_default())
}

impl Cluster {
    fn changes(&self, namespace: &str) -> Api<InvokerChange> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Writes a record. One for a namespace that is gone or going is kept in the operator's own.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached; then nothing may be written to IAM.
    pub async fn create_change(&self, mut change: InvokerChange) -> Result<InvokerChange, Fault> {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let namespace = change.metadata.namespace.clone().unwrap_or_default();
        match self.within(self.changes(&namespace).create(&params, &change)).await {
            // The same record, from an answer that was lost.
            Err(kube::Error::Api(s)) if s.code == 409 => Ok(change),
            Err(kube::Error::Api(s)) if takes_nothing_new(&s) && namespace != self.home => {
                change.metadata.namespace = Some(self.home.clone());
                match self.within(self.changes(&self.home).create(&params, &change)).await {
                    Err(kube::Error::Api(s)) if s.code == 409 => Ok(change),
                    other => other.map(|_| change).map_err(fault),
                }
            }
            other => other.map(|_| change).map_err(fault),
        }
    }

    /// Closes a record. One that somebody deleted meanwhile is no failure.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn close_change(&self, change: &InvokerChange, outcome: &ChangeOutcome) -> Result<(), Fault> {
        let (namespace, name) = place_of(change);
        let patch =
            json!({"metadata": {"labels": {OUTCOME_LABEL: outcome.phase.as_str()}}, "spec": {"outcome": outcome}});
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        match self.within(self.changes(namespace).patch_metadata(name, &params, &Patch::Merge(patch))).await {
            Err(e) if !is_gone(&e) => Err(fault(e)),
            _ => Ok(()),
        }
    }

    /// Takes a record of a write away that was never made.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn discard_change(&self, namespace: &str, name: &str) -> Result<(), Fault> {
        match self.within(self.changes(namespace).delete(name, &DeleteParams::default())).await {
            Err(e) if !is_gone(&e) => Err(fault(e)),
            _ => Ok(()),
        }
    }

    /// A record by name.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn change(&self, namespace: &str, name: &str) -> Result<Option<InvokerChange>, Fault> {
        self.within(self.changes(namespace).get_opt(name)).await.map_err(fault)
    }

    /// Names and times of the records of a policy.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn changes_of(&self, namespace: &str, policy: &str) -> Result<Vec<(String, Timestamp)>, Fault> {
        let params = ListParams::default().labels(&format!("{POLICY_LABEL_PREFIX}{policy}"));
        let list = self.within(self.changes(namespace).list_metadata(&params)).await.map_err(fault)?;
        Ok(list.items.into_iter().filter_map(|o| Some((o.metadata.name?, o.metadata.creation_timestamp?.0))).collect())
    }

    /// Records older than `before`: namespace and name.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn changes_before(&self, before: Timestamp) -> Result<Vec<(String, String)>, Fault> {
        let api: Api<InvokerChange> = Api::all(self.client.clone());
        let mut found = Vec::new();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = self.within(api.list_metadata(&params)).await.map_err(fault)?;
            let old =
                page.items.into_iter().filter(|o| o.metadata.creation_timestamp.as_ref().is_some_and(|t| t.0 < before));
            found.extend(old.filter_map(|o| Some((o.metadata.namespace?, o.metadata.name?))));
            match page.metadata.continue_.filter(|c| !c.is_empty()) {
                Some(next) => params = params.continue_token(&next),
                None => return Ok(found),
            }
        }
    }

    /// Records that nobody closed.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn open_changes(&self) -> Result<Vec<InvokerChange>, Fault> {
        self.changes_with(OUTCOME_LABEL, ChangePhase::Pending.as_str()).await
    }

    /// Records of corrections.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn corrections(&self) -> Result<Vec<InvokerChange>, Fault> {
        self.changes_with(REASON_LABEL, ChangeReason::Drift.as_str()).await
    }

    async fn changes_with(&self, label: &str, value: &str) -> Result<Vec<InvokerChange>, Fault> {
        let api: Api<InvokerChange> = Api::all(self.client.clone());
        let mut found = Vec::new();
        let mut params = ListParams::default().limit(PAGE).labels(&format!("{label}={value}"));
        loop {
            let page = self.within(api.list(&params)).await.map_err(fault)?;
            found.extend(page.items);
            match page.metadata.continue_.filter(|c| !c.is_empty()) {
                Some(next) => params = params.continue_token(&next),
                None => return Ok(found),
            }
        }
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.home)
    }

    /// Since when the circuit breaker is marked as open. The mark is a Lease of its own: it outlives the process, and
    /// deleting it resets the breaker.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn circuit_mark(&self) -> Result<Option<CircuitMark>, Fault> {
        let lease = self.within(self.leases().get_opt(&self.circuit)).await.map_err(fault)?;
        Ok(lease.map(|l| {
            let spec = l.spec.unwrap_or_default();
            let since = spec.acquire_time.map_or(Timestamp::UNIX_EPOCH, |t| t.0);
            CircuitMark { since, unrest: spec.renew_time.map(|t| t.0) }
        }))
    }

    /// Tells the other replicas of drift that was found while the circuit breaker is open.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn tell_unrest(&self, mark: &CircuitMark) -> Result<(), Fault> {
        let patch = json!({"spec": {"renewTime": mark.unrest.map(MicroTime)}});
        match self.within(self.leases().patch(&self.circuit, &PatchParams::default(), &Patch::Merge(patch))).await {
            Err(e) if !is_gone(&e) => Err(fault(e)),
            _ => Ok(()),
        }
    }

    /// Marks the circuit breaker as open.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn mark_circuit(&self, since: Timestamp) -> Result<(), Fault> {
        self.mark(&self.circuit, "circuit-open", None, since).await
    }

    /// Tells in the store that audit events cannot be relied on: the operator has no object of its own that could have a
    /// condition, so it is a Lease with annotations, as the mark of the circuit breaker is one.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn mark_events(&self, reason: &str, message: &str, since: Timestamp) -> Result<(), Fault> {
        let annotations =
            [(EVENTS_REASON.to_owned(), reason.to_owned()), (EVENTS_MESSAGE.to_owned(), message.to_owned())];
        // Another reason is another mark.
        self.unmark_events().await?;
        self.mark(&self.events, "events-unreliable", Some(annotations.into()), since).await
    }

    /// Takes that mark away.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn unmark_events(&self) -> Result<(), Fault> {
        self.unmark(&self.events).await
    }

    /// Takes the mark away.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn unmark_circuit(&self) -> Result<(), Fault> {
        self.unmark(&self.circuit).await
    }

    /// A Lease that nobody renews: it is there while something is so. One that is there already stays as it is.
    async fn mark(
        &self,
        name: &str,
        holder: &str,
        annotations: Option<BTreeMap<String, String>>,
        since: Timestamp,
    ) -> Result<(), Fault> {
        let lease = Lease {
            metadata: ObjectMeta { name: Some(name.to_owned()), annotations, ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.into()),
                acquire_time: Some(MicroTime(since)),
                ..LeaseSpec::default()
            }),
        };
        match self.within(self.leases().create(&PostParams::default(), &lease)).await {
            Err(kube::Error::Api(s)) if s.code == 409 => Ok(()),
            other => other.map(|_| ()).map_err(fault),
        }
    }

    async fn unmark(&self, name: &str) -> Result<(), Fault> {
        match self.within(self.leases().delete(name, &DeleteParams::default())).await {
            Err(e) if !is_gone(&e) => Err(fault(e)),
            _ => Ok(()),
        }
    }
}
