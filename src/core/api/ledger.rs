//! What the operator answers for on one service, kept where a tenant cannot write.
//!
//! IAM does not say who granted what, and the status of a policy lives in the tenant's namespace.
//! So each grant that an enforced policy lists is entered here, with the policies it belongs to,
//! before it is written to IAM. The write itself is entered too ([`PendingChange`]), in the same
//! request: whatever happens after, the next look knows what was under way. Cluster-scoped on
//! purpose: only the operator's ClusterRole may write it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{ChangeApproval, ChangePolicy, ChangeReason, ChangedBy, ConditionSpec};

/// What run-invoker answers for on one Cloud Run service. Written by the operator only; never edit
/// it: a grant that is added here is revoked when no policy lists it, one that is removed is
/// forgotten.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "run-invoker.dev",
    version = "v1alpha1",
    kind = "InvokerLedger",
    plural = "invokerledgers",
    shortname = "ivl",
    category = "run-invoker",
    derive = "PartialEq",
    doc = "What run-invoker answers for on one Cloud Run service. Written by the operator only.",
    printcolumn(name = "Project", type_ = "string", json_path = ".spec.project"),
    printcolumn(name = "Region", type_ = "string", json_path = ".spec.region"),
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.service"),
    printcolumn(
        name = "Pending",
        type_ = "string",
        json_path = ".spec.pending[*].name",
        priority = 1
    ),
    printcolumn(name = "Held", type_ = "string", json_path = ".spec.held.approve"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct InvokerLedgerSpec {
    /// Google Cloud project of the service.
    pub project: String,
    /// Region of the service.
    pub region: String,
    /// Name of the service.
    pub service: String,
    /// Policies that `ownedBy` names by their place in this list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<LedgerOwner>,
    /// Conditions that `conditionIndex` names by their place in this list: one that two hundred
    /// members share is kept once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<ConditionSpec>,
    /// The grants that belong to policies, or that the operator made and has not yet seen leave.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<LedgerGrant>,
    /// Writes to IAM that are under way, or whose end nobody has seen yet; the last is the latest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<PendingChange>,
    /// A removal that waits for somebody to agree, where no policy is left that could say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldRemoval>,
    /// Drift that was corrected within the last hour.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub corrections: Vec<LedgerCorrection>,
    /// Hash of the declarations under which the last of `corrections` was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrected_under: Option<String>,
    /// When the operator saw that its last write to IAM was made: how far IAM has acted on it
    /// everywhere is a question of time, also for a policy that comes later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_at: Option<MicroTime>,
    /// Approvals that were used on this service: none of them works again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_approvals: Vec<UsedApproval>,
}

/// An InvokerApproval that was used.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct UsedApproval {
    /// Stands for the approval by what it says, not by its uid: one that is restored from a backup
    /// is the same.
    pub approval: String,
    /// Hash of the plan that it let through.
    pub plan: String,
    /// When the write was decided on.
    pub at: MicroTime,
    /// Name of the InvokerChange.
    pub change: String,
    /// The approval cannot work after this time anyway, and need not be remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<MicroTime>,
}

/// A removal that waits for somebody to agree.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HeldRemoval {
    /// Value for the annotation run-invoker.dev/approve on this object that lets exactly this
    /// removal through.
    pub approve: String,
    /// Why it waits.
    pub message: String,
}

/// One grant, and the policies it belongs to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LedgerGrant {
    /// Role that is granted.
    pub role: String,
    /// Member as it was written.
    pub member: String,
    /// Place of the grant's condition in `conditions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition_index: Option<u32>,
    /// Places in `policies` of those it belongs to. None: no policy lists it any more, and it is to
    /// be revoked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owned_by: Vec<u32>,
    /// The condition itself, as versions before 0.2 wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<ConditionSpec>,
    /// The policies themselves, as versions before 0.2 wrote them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<LedgerOwner>,
}

/// A policy that a grant belongs to.
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

/// A grant in a change or a correction.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LedgerMember {
    /// Role that is granted.
    pub role: String,
    /// Member as IAM has it.
    pub member: String,
    /// Place of the grant's condition in `conditions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition_index: Option<u32>,
}

/// A write to IAM before it is made; its record (InvokerChange) is written once its end is known.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PendingChange {
    /// Name that the record will have.
    pub name: String,
    /// Why the operator writes.
    pub reason: ChangeReason,
    /// When it decided to.
    pub at: MicroTime,
    /// Version of the IAM policy that the write is planned from.
    pub etag_before: String,
    /// Grants to be made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<LedgerMember>,
    /// Grants to be taken away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<LedgerMember>,
    /// The invoker grants before the write, as many as fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<LedgerMember>,
    /// How many invoker grants did not fit into `before`. Omitted: 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub before_omitted: i64,
    /// Those of `added` and `removed` that undo what somebody else did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drift: Vec<LedgerMember>,
    /// The policies behind it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<ChangePolicy>,
    /// Who made the drift that it undoes, as far as the audit log told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift_by: Option<ChangedBy>,
    /// The approvals that let it through. They are used once the write is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<PendingApproval>,
}

/// An InvokerApproval that lets a write through.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PendingApproval {
    /// As the record will have it.
    pub record: ChangeApproval,
    /// As `usedApprovals` will have it.
    pub approval: String,
    /// The approval cannot work after this time anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<MicroTime>,
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// When drift of one grant was corrected.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LedgerCorrection {
    /// Role of the grant.
    pub role: String,
    /// Member of the grant.
    pub member: String,
    /// Place of the grant's condition in `conditions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition_index: Option<u32>,
    /// When it was corrected, within the last hour.
    pub at: Vec<MicroTime>,
    /// Who made the last drift, as far as the audit log told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift_by: Option<ChangedBy>,
}
