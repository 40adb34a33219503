//! The status of requests in the store.

use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{Cluster, fault, is_gone};
use crate::{
    api::{FIELD_MANAGER, InvokerAccessRequest, InvokerAccessRequestStatus},
    fault::Fault,
    intent::PolicyKey,
};

impl Cluster {
    /// Replaces the status of a request. False: it is gone, or another one is under its name.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn write_request_status(
        &self,
        key: &PolicyKey,
        uid: &str,
        status: &InvokerAccessRequestStatus,
    ) -> Result<bool, Fault> {
        let api: Api<InvokerAccessRequest> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = Patch::Merge(json!({"metadata": {"uid": uid}, "status": status}));
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        let name = key.request().unwrap_or(&key.name);
        match self.within(api.patch_status(name, &params, &patch)).await {
            Ok(_) => Ok(true),
            Err(e) if is_gone(&e) => Ok(false),
            Err(kube::Error::Api(s)) if s.code == 409 => Ok(false),
            Err(e) => Err(fault(e)),
        }
    }
}
