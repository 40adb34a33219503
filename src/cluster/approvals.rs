//! The status of approvals in the store.

use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{Cluster, fault, is_gone};
use crate::{
    api::{FIELD_MANAGER, InvokerApproval, InvokerApprovalStatus},
    fault::Fault,
    intent::ApprovalKey,
};

impl Cluster {
    /// Replaces the status of an approval. One that is gone meanwhile, or was made again under its
    /// name, is no failure.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn write_approval_status(
        &self,
        key: &ApprovalKey,
        uid: &str,
        status: &InvokerApprovalStatus,
    ) -> Result<(), Fault> {
        let api: Api<InvokerApproval> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = Patch::Merge(json!({"metadata": {"uid": uid}, "status": status}));
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        let written = api.patch_status(&key.name, &params, &patch);
        match self.within(written).await {
            Err(e) if !is_gone(&e) => match e {
                // Another object is under the name: it is told when it comes in.
                kube::Error::Api(s) if s.code == 409 => Ok(()),
                e => Err(fault(e)),
            },
            _ => Ok(()),
        }
    }
}
