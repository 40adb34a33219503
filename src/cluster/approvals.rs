//! The statuses of approvals and of requests in the store.

use kube::{
    Api, Resource,
    api::{Patch, PatchParams},
    core::NamespaceResourceScope,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{Cluster, fault, is_gone};
use crate::{
    api::{
        FIELD_MANAGER, InvokerAccessRequest, InvokerAccessRequestStatus, InvokerApproval,
        InvokerApprovalStatus,
    },
    fault::Fault,
    intent::{ApprovalKey, PolicyKey},
};

impl Cluster {
    /// Replaces the status of an approval. One that is gone meanwhile, or was made again under its
    /// name, is no failure: it is told when it comes in.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn write_approval_status(
        &self,
        key: &ApprovalKey,
        uid: &str,
        status: &InvokerApprovalStatus,
    ) -> Result<(), Fault> {
        let place = (&*key.namespace, &*key.name);
        let written = self.replace_status::<InvokerApproval>(place, uid, status);
        written.await.map(|_| ())
    }

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
        let place = (&*key.namespace, key.request().unwrap_or(&key.name));
        self.replace_status::<InvokerAccessRequest>(place, uid, status)
            .await
    }

    async fn replace_status<K>(
        &self,
        (namespace, name): (&str, &str),
        uid: &str,
        status: &impl Serialize,
    ) -> Result<bool, Fault>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let patch = Patch::Merge(json!({"metadata": {"uid": uid}, "status": status}));
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        match self.within(api.patch_status(name, &params, &patch)).await {
            Ok(_) => Ok(true),
            Err(e) if is_gone(&e) => Ok(false),
            Err(kube::Error::Api(s)) if s.code == 409 => Ok(false),
            Err(e) => Err(fault(e)),
        }
    }
}
