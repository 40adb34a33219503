//! `InvokerChange`: what the operator wrote to IAM, and the way back.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConditionSpec;

/// Label whose value is the phase of the outcome, so that open records are found without reading
/// all of them.
pub const OUTCOME_LABEL: &str = "run-invoker.dev/outcome";
/// Label whose value is the reason of the change.
pub const REASON_LABEL: &str = "run-invoker.dev/reason";
/// A label `policy.run-invoker.dev/NAME` names each policy of the namespace that is behind a
/// change.
pub const POLICY_LABEL_PREFIX: &str = "policy.run-invoker.dev/";

/// The label of the records of a policy, or of a request, by its name among those of policies.
pub fn change_label(name: &str) -> String {
    match super::request_of(name) {
        Some(request) => format!("request.run-invoker.dev/{request}"),
        None => format!("{POLICY_LABEL_PREFIX}{name}"),
    }
}

/// One write to the IAM policy of a Cloud Run service. Written by the operator before the write,
/// closed after it, and never changed again.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "run-invoker.dev",
    version = "v1alpha1",
    kind = "InvokerChange",
    plural = "invokerchanges",
    namespaced,
    shortname = "ivc",
    category = "run-invoker",
    derive = "PartialEq",
    doc = "InvokerChange records one write to the IAM policy of a Cloud Run service: why, what was there before and after, and for which policies. The ledger of the service holds what is in it from before the IAM write; it is made once the end of the write is known, and cannot be changed then. It outlives its policies.",
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.service"),
    printcolumn(name = "Region", type_ = "string", json_path = ".spec.region"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason"),
    printcolumn(name = "Outcome", type_ = "string", json_path = ".spec.outcome.phase"),
    printcolumn(name = "Added", type_ = "integer", json_path = ".spec.addedCount"),
    printcolumn(name = "Removed", type_ = "integer", json_path = ".spec.removedCount"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Project",
        type_ = "string",
        json_path = ".spec.project",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("oldSelf.outcome.phase == 'Pending' || self == oldSelf")
        .message("a closed InvokerChange is a record and cannot be changed; delete it if it must go")
)]
pub struct InvokerChangeSpec {
    /// Google Cloud project of the service.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("what an InvokerChange records cannot be changed"))]
    pub project: String,
    /// Region of the service.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("what an InvokerChange records cannot be changed"))]
    pub region: String,
    /// Name of the service.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("what an InvokerChange records cannot be changed"))]
    pub service: String,
    /// Why the operator wrote.
    #[x_kube(validation = Rule::new("self == oldSelf").message("what an InvokerChange records cannot be changed"))]
    pub reason: ChangeReason,
    /// When the operator decided to write.
    #[x_kube(validation = Rule::new("self == oldSelf").message("what an InvokerChange records cannot be changed"))]
    pub at: MicroTime,
    /// The policies behind it.
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("what an InvokerChange records cannot be changed"))]
    pub policies: Vec<ChangePolicy>,
    /// Grants that were to be made.
    #[schemars(length(max = 1500))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("what an InvokerChange records cannot be changed"))]
    pub added: Vec<ChangeGrant>,
    /// How many grants were to be made.
    pub added_count: i64,
    /// Grants that were to be taken away.
    #[schemars(length(max = 1500))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("what an InvokerChange records cannot be changed"))]
    pub removed: Vec<ChangeGrant>,
    /// How many grants were to be taken away.
    pub removed_count: i64,
    /// The invoker grants before the write.
    #[schemars(length(max = 1500))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("what an InvokerChange records cannot be changed"))]
    pub before: Vec<ChangeGrant>,
    /// How many invoker grants before the write did not fit into this record. If any, it cannot be
    /// rolled back. Omitted: 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("what an InvokerChange records cannot be changed"))]
    pub before_omitted: i64,
    /// Version of the IAM policy that the write was planned from.
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("what an InvokerChange records cannot be changed"))]
    pub etag_before: String,
    /// Who made the drift that this write undoes, as far as the audit log told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("what an InvokerChange records cannot be changed"))]
    pub drift_by: Option<ChangedBy>,
    /// The approvals that let it through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("what an InvokerChange records cannot be changed"))]
    pub approvals: Vec<ChangeApproval>,
    /// How it ended.
    pub outcome: ChangeOutcome,
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// Who changed the IAM policy of a service, and how, as Cloud Audit Logs tell it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ChangedBy {
    /// E-mail address or principal identifier; empty where the log names nobody; run-invoker where
    /// it was the operator itself.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub principal: String,
    /// Those who acted as `principal` by impersonation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub via: Vec<String>,
    /// The tool, such as gcloud or Terraform, as its user agent tells.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub tool: String,
    /// The user agent itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub user_agent: String,
    /// Method that was called.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub method: String,
    /// When, by Google's clock.
    pub at: MicroTime,
    /// Name of the InvokerChange, where it was the operator itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub change: String,
}

impl ChangedBy {
    /// The operator itself, by a write that is on record under this name.
    pub fn operator(change: &str, at: MicroTime) -> Self {
        Self {
            principal: super::FIELD_MANAGER.into(),
            via: Vec::new(),
            tool: String::new(),
            user_agent: String::new(),
            method: "google.cloud.run.v2.Services.SetIamPolicy".into(),
            at,
            change: change.to_owned(),
        }
    }

    /// Whether the operator itself made it: nobody is to be blamed for that.
    pub fn is_operator(&self) -> bool {
        !self.change.is_empty()
    }
}

/// In words: `alice@acme.com with gcloud at 2026-11-24T12:00:00Z`.
impl std::fmt::Display for ChangedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.principal.is_empty() {
            "an unnamed principal"
        } else {
            &self.principal
        })?;
        if !self.via.is_empty() {
            write!(f, " (impersonated by {})", self.via.join(", "))?;
        }
        if !self.tool.is_empty() {
            write!(f, " with {}", self.tool)?;
        }
        if self.is_operator() {
            write!(f, " itself (InvokerChange {})", self.change)?;
        }
        write!(f, " at {}", self.at.0.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}

/// Why the operator wrote to IAM. Where several reasons meet in one write, the first of this list
/// stands for it.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum ChangeReason {
    /// Somebody agreed to a plan that was held.
    Approved,
    /// Somebody went back behind an earlier change.
    RolledBack,
    /// A policy or a request was deleted.
    Deleted,
    /// An approver took back what a request was given.
    Denied,
    /// A guardrail was tightened.
    Guardrail,
    /// Somebody else had changed what was declared.
    Drift,
    /// Access ended as declared.
    Expired,
    /// The declaration changed.
    SpecChanged,
}

impl ChangeReason {
    /// The name as it is written in the record and in its label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "Approved",
            Self::RolledBack => "RolledBack",
            Self::Deleted => "Deleted",
            Self::Denied => "Denied",
            Self::Guardrail => "Guardrail",
            Self::Drift => "Drift",
            Self::Expired => "Expired",
            Self::SpecChanged => "SpecChanged",
        }
    }
}

/// A policy behind a change.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ChangePolicy {
    /// Namespace of the policy.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the policy.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Uid of the policy: one that is made again under its name is another.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Generation that was carried out.
    pub generation: i64,
}

/// An InvokerApproval that let a change through.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ChangeApproval {
    /// Namespace of the approval and of its policy.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the approval.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Uid of the approval: one that is made again under its name is another object.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Name of the policy whose plan was approved.
    #[schemars(length(max = 63))]
    pub policy: String,
    /// Hash of the plan.
    #[schemars(length(max = 64))]
    pub plan: String,
    /// Why, in the words of the approver.
    #[schemars(length(max = 512))]
    pub reason: String,
    /// Who approved, where the cluster's admission stamps it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub by: String,
}

/// A grant on the service.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ChangeGrant {
    /// Role that is granted.
    #[schemars(length(max = 64))]
    pub role: String,
    /// Member, byte for byte.
    #[schemars(length(max = 512))]
    pub member: String,
    /// Condition of the grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<ConditionSpec>,
}

/// How the write ended.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ChangeOutcome {
    /// How far it came. Pending is what versions before 0.2 wrote before they asked IAM.
    pub phase: ChangePhase,
    /// More in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// The invoker grants after the write, as they were read back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1500))]
    pub after: Vec<ChangeGrant>,
    /// Version of the IAM policy after the write.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub etag_after: String,
    /// When it was read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<MicroTime>,
}

/// Where a change stands.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum ChangePhase {
    /// The write is about to be made, or nobody has looked yet what became of it.
    Pending,
    /// IAM is as planned.
    Applied,
    /// Part of it is real. Versions before 0.2 wrote this.
    Partial,
    /// Nothing of it is real.
    NotApplied,
    /// The write had no answer, and before anybody could look the service was gone or its policy
    /// was changed by others.
    Unknown,
}

impl ChangePhase {
    /// The name as it is written in the record and in its label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Applied => "Applied",
            Self::Partial => "Partial",
            Self::NotApplied => "NotApplied",
            Self::Unknown => "Unknown",
        }
    }
}
