//! Marks in the store that outlive the process: Leases that nobody renews, there while something is
//! so.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{Cluster, exists, fault, if_there, is_gone};
use crate::{
    api::{EVENTS_MESSAGE, EVENTS_REASON},
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

impl Cluster {
    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.home)
    }

    /// Since when the circuit breaker is marked as open. The mark is a Lease of its own: it
    /// outlives the process, and deleting it resets the breaker.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn circuit_mark(&self) -> Result<Option<CircuitMark>, Fault> {
        let lease = if_there(self.within(self.leases().get(&self.circuit)).await)?;
        Ok(lease.map(|l| {
            let spec = l.spec.unwrap_or_default();
            let since = spec.acquire_time.map_or(Timestamp::UNIX_EPOCH, |t| t.0);
            CircuitMark {
                since,
                unrest: spec.renew_time.map(|t| t.0),
            }
        }))
    }

    /// Tells the other replicas of drift that was found while the circuit breaker is open.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn report_unrest(&self, mark: &CircuitMark) -> Result<(), Fault> {
        let patch = json!({"spec": {"renewTime": mark.unrest.map(MicroTime)}});
        match self
            .within(self.leases().patch(
                &self.circuit,
                &PatchParams::default(),
                &Patch::Merge(patch),
            ))
            .await
        {
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

    /// Tells in the store that audit events cannot be relied on: the operator has no object of its
    /// own that could have a condition, so it is a Lease with annotations, as the mark of the
    /// circuit breaker is one.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn mark_events(
        &self,
        reason: &str,
        message: &str,
        since: Timestamp,
    ) -> Result<(), Fault> {
        let annotations = [
            (EVENTS_REASON.to_owned(), reason.to_owned()),
            (EVENTS_MESSAGE.to_owned(), message.to_owned()),
        ];
        // Another reason is another mark.
        self.unmark_events().await?;
        self.mark(
            &self.events,
            "events-unreliable",
            Some(annotations.into()),
            since,
        )
        .await
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

    /// A Lease that nobody renews: it is there while something is so. One that is there already
    /// stays as it is.
    async fn mark(
        &self,
        name: &str,
        holder: &str,
        annotations: Option<BTreeMap<String, String>>,
        since: Timestamp,
    ) -> Result<(), Fault> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                annotations,
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.into()),
                acquire_time: Some(MicroTime(since)),
                ..LeaseSpec::default()
            }),
        };
        match self
            .within(self.leases().create(&PostParams::default(), &lease))
            .await
        {
            Err(e) if exists(&e) => Ok(()),
            other => other.map(|_| ()).map_err(fault),
        }
    }

    async fn unmark(&self, name: &str) -> Result<(), Fault> {
        match self
            .within(self.leases().delete(name, &DeleteParams::default()))
            .await
        {
            Err(e) if !is_gone(&e) => Err(fault(e)),
            _ => Ok(()),
        }
    }
}
