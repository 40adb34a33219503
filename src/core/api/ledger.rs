//! What the operator granted, remembered where a tenant cannot write.
//!
//! IAM does not say who granted what, and the status of a policy lives in the tenant's namespace. So that a member that
//! leaves an Additive list is revoked, but a member that somebody else granted is not, each grant of the operator is
//! entered here before it is written to IAM. Cluster-scoped on purpose: only the operator's ClusterRole may write it.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::ConditionSpec;

/// What run-invoker granted on one Cloud Run service. Written by the operator only; never edit it: an entry that is
/// added here makes the operator revoke somebody else's grant, one that is removed makes it forget its own.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "run-invoker.dev",
    version = "v1alpha1",
    kind = "InvokerLedger",
    plural = "invokerledgers",
    shortname = "ivl",
    category = "run-invoker",
    derive = "PartialEq",
    doc = "What run-invoker granted on one Cloud Run service. Written by the operator only.",
    printcolumn(name = "Project", type_ = "string", json_path = ".spec.project"),
    printcolumn(name = "Region", type_ = "string", json_path = ".spec.region"),
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.service"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct InvokerLedgerSpec {
    /// Google Cloud project of the service.
    pub project: String,
    /// Region of the service.
    pub region: String,
    /// Name of the service.
    pub service: String,
    /// The grants that the operator made and has not seen leave.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<LedgerGrant>,
}

/// One grant, and the policies it was made for.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LedgerGrant {
    /// Role that was granted.
    pub role: String,
    /// Member as it was written.
    pub member: String,
    /// Condition of the grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<ConditionSpec>,
    /// The policies that asked for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<LedgerOwner>,
}

/// A policy that asked for a grant.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct LedgerOwner {
    /// Namespace of the policy.
    pub namespace: String,
    /// Name of the policy.
    pub name: String,
    /// Its uid: a policy made again under the same name is another one.
    pub uid: String,
}
