//! Records of changes in the store.

use jiff::Timestamp;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::DeserializeGuard,
};
use serde_json::json;

use super::{Cluster, exists, fault, if_there, is_gone};
use crate::{
    api::{ChangeOutcome, ChangePhase, FIELD_MANAGER, InvokerChange, OUTCOME_LABEL, change_label},
    fault::Fault,
    intent::{ChangeKey, PolicyKey},
};

/// Objects in one page of a list that goes over all namespaces.
const PAGE: u32 = 250;

/// Whether the API server will not take this object however often it is asked: a quota, an
/// admission policy or webhook, a namespace that is gone or going.
fn is_refusal(status: &kube::core::Status) -> bool {
    (400..500).contains(&status.code) && !matches!(status.code, 401 | 408 | 409 | 429)
}

impl Cluster {
    fn changes(&self, namespace: &str) -> Api<InvokerChange> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Writes a record. One that its namespace does not take is kept in the operator's own: no
    /// tenant can keep a change of a service that others use too off the record. One that is there
    /// already is the same, from an answer that was lost.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached; it is to be tried again.
    pub async fn create_change(&self, change: &InvokerChange) -> Result<(), Fault> {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        let namespace = change.metadata.namespace.as_deref().unwrap_or_default();
        match self
            .within(self.changes(namespace).create(&params, change))
            .await
        {
            Err(kube::Error::Api(s)) if is_refusal(&s) && namespace != self.home => {
                tracing::warn!(%namespace, why = %s.message, "a namespace does not take the record of a change; it is kept in the operator's own");
                let mut moved = change.clone();
                moved.metadata.namespace = Some(self.home.clone());
                match self
                    .within(self.changes(&self.home).create(&params, &moved))
                    .await
                {
                    Err(e) if exists(&e) => Ok(()),
                    other => other.map(|_| ()).map_err(fault),
                }
            }
            Err(e) if exists(&e) => Ok(()),
            other => other.map(|_| ()).map_err(fault),
        }
    }

    /// Closes a record that an earlier operator left open. One that somebody deleted meanwhile is
    /// no failure.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn close_change(
        &self,
        change: &InvokerChange,
        outcome: &ChangeOutcome,
    ) -> Result<(), Fault> {
        let key = ChangeKey::of(&change.metadata);
        let patch = json!({"metadata": {"labels": {OUTCOME_LABEL: outcome.phase.as_str()}}, "spec": {"outcome": outcome}});
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        match self
            .within(self.changes(&key.namespace).patch_metadata(
                &key.name,
                &params,
                &Patch::Merge(patch),
            ))
            .await
        {
            Err(e) if !is_gone(&e) => Err(fault(e)),
            _ => Ok(()),
        }
    }

    /// Takes a record away.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn discard_change(&self, key: &ChangeKey) -> Result<(), Fault> {
        match self
            .within(
                self.changes(&key.namespace)
                    .delete(&key.name, &DeleteParams::default()),
            )
            .await
        {
            Err(e) if !is_gone(&e) => Err(fault(e)),
            _ => Ok(()),
        }
    }

    /// A record by name; `Err` inside: it is there and cannot be read, and this is why.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn change(
        &self,
        key: &ChangeKey,
    ) -> Result<Option<Result<InvokerChange, String>>, Fault> {
        let api: Api<DeserializeGuard<InvokerChange>> =
            Api::namespaced(self.client.clone(), &key.namespace);
        let found = if_there(self.within(api.get(&key.name)).await)?;
        Ok(found.map(|guard| guard.0.map_err(|invalid| invalid.error.to_string())))
    }

    /// Names and times of the records of a policy.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn changes_of(&self, policy: &PolicyKey) -> Result<Vec<(String, Timestamp)>, Fault> {
        let label = change_label(&policy.name);
        let params = ListParams::default().labels(&label);
        let list = self
            .within(self.changes(&policy.namespace).list_metadata(&params))
            .await
            .map_err(fault)?;
        Ok(list
            .items
            .into_iter()
            .filter_map(|o| Some((o.metadata.name?, o.metadata.creation_timestamp?.0)))
            .collect())
    }

    /// Records older than `before`.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn changes_before(&self, before: Timestamp) -> Result<Vec<ChangeKey>, Fault> {
        let api: Api<InvokerChange> = Api::all(self.client.clone());
        let mut found = Vec::new();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = self
                .within(api.list_metadata(&params))
                .await
                .map_err(fault)?;
            let old = page.items.into_iter().filter(|o| {
                o.metadata
                    .creation_timestamp
                    .as_ref()
                    .is_some_and(|t| t.0 < before)
            });
            found.extend(
                old.filter_map(|o| Some(ChangeKey::new(o.metadata.namespace?, o.metadata.name?))),
            );
            match page.metadata.continue_.filter(|c| !c.is_empty()) {
                Some(next) => params = params.continue_token(&next),
                None => return Ok(found),
            }
        }
    }

    /// Records that an earlier operator left open, at most one page: those of now are written
    /// closed. What cannot be read is left out: a record is written where tenants may write.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn open_changes(&self) -> Result<Vec<InvokerChange>, Fault> {
        let api: Api<DeserializeGuard<InvokerChange>> = Api::all(self.client.clone());
        let params = ListParams::default().limit(PAGE).labels(&format!(
            "{OUTCOME_LABEL}={}",
            ChangePhase::Pending.as_str()
        ));
        let page = self.within(api.list(&params)).await.map_err(fault)?;
        Ok(page
            .items
            .into_iter()
            .filter_map(|guard| guard.0.ok())
            .collect())
    }
}
