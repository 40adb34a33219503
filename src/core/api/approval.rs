//! `InvokerApproval`: somebody with the right to agrees to one plan or request, once, or says no.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Agrees to one plan of one policy, or to one request, once; or denies it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "run-invoker.dev",
    version = "v1alpha1",
    kind = "InvokerApproval",
    plural = "invokerapprovals",
    namespaced,
    shortname = "iva",
    category = "run-invoker",
    status = "InvokerApprovalStatus",
    derive = "PartialEq",
    doc = "InvokerApproval agrees to one plan of one policy of its namespace, or to one InvokerAccessRequest, once; with decision: Deny it says no. Who may create one may approve: the right is a role of its own. It waits for the plan until notAfter, may come before it, and cannot be changed.",
    validation = Rule::new("self.metadata.name.size() <= 100").message("metadata.name must be at most 100 characters"),
    printcolumn(name = "For", type_ = "string", json_path = ".spec['policy','request']"),
    printcolumn(name = "Decision", type_ = "string", json_path = ".spec.decision"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Ends", type_ = "string", json_path = ".status.ends"),
    printcolumn(name = "Change", type_ = "string", json_path = ".status.change"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason", priority = 1),
    printcolumn(name = "Policy", type_ = "string", json_path = ".spec.policy", priority = 1),
    printcolumn(name = "Request", type_ = "string", json_path = ".spec.request", priority = 1),
    printcolumn(name = "Plan", type_ = "string", json_path = ".spec.plan", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self == oldSelf")
        .message("an InvokerApproval cannot be changed; delete it and create another under another name"),
    validation = Rule::new("has(self.policy) != has(self.request)")
        .message("give either policy (the name of an InvokerPolicy) or request (the name of an InvokerAccessRequest)")
)]
pub struct InvokerApprovalSpec {
    /// Name of the InvokerPolicy, in this namespace, whose plan is meant. Omitted: a request is
    /// meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')")
        .message("policy must be the name of an InvokerPolicy of this namespace"))]
    pub policy: Option<String>,
    /// Name of the InvokerAccessRequest, in this namespace, that is meant. Omitted: the plan of a
    /// policy is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 50))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')")
        .message("request must be the name of an InvokerAccessRequest of this namespace"))]
    pub request: Option<String>,
    /// Approve: the plan is let through, once. Deny: a request is over, and no approval lets a plan
    /// through while this one may be used.
    #[serde(default)]
    pub decision: Decision,
    /// Hash of the plan, as status.services[].plan of the policy or status.plan of the request shows
    /// it. It stands for what is granted and revoked, where, and for the spec; another plan needs
    /// another approval.
    #[schemars(length(min = 40, max = 40))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-f]{40}$')")
        .message("plan must be the hash of a plan: 40 hexadecimal digits, as status.services[].plan of the policy or status.plan of the request shows it"))]
    pub plan: String,
    /// Why, for the record.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(r"self.matches('\\S')")
        .message("reason must say why, for the record"))]
    pub reason: String,
    /// Until when the approval may be used (RFC 3339 with a zone). Omitted: seven days after it was
    /// created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    #[x_kube(validation = Rule::new(r"self.matches('^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,9})?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$')")
        .message("notAfter must be a time as in RFC 3339 with a zone, for example 2026-12-24T18:00:00Z"))]
    pub not_after: Option<String>,
    /// What the plan does, for whoever reviews the approval: as kubectl invoker plan --approvals
    /// writes it. Where it is given it must be what the plan of this hash does, or the approval
    /// does not count. Omitted: the hash alone says what is meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "effect")]
    pub effect: Vec<String>,
}

fn effect(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array", "maxItems": 201,
        "description": "What the plan does, for whoever reviews the approval: as kubectl invoker plan --approvals writes it. Where it is given it must be what the plan of this hash does, or the approval does not count. Omitted: the hash alone says what is meant.",
        "items": {"type": "string", "maxLength": 700},
    })
}

/// What somebody who may approve says to a plan or a request.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Decision {
    #[default]
    Approve,
    Deny,
}

/// What became of an approval. Written by the operator only.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct InvokerApprovalStatus {
    /// Where it stands.
    #[serde(default)]
    pub state: Option<ApprovalState>,
    /// The same in words, with what to do.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// When it may be used no more.
    #[serde(default)]
    pub ends: Option<Time>,
    /// When it was used.
    #[serde(default)]
    pub used_at: Option<MicroTime>,
    /// Name of the InvokerChange that it let through, where its plan is one of a policy. An approval
    /// of a request is for all that the request is granted: see status.lastChange of that.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub change: Option<String>,
}

/// Where an approval stands.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum ApprovalState {
    /// The policy holds no plan that it could be for; it is used when its plan comes.
    Waiting,
    /// The policy holds another plan than the one that it is for.
    Stale,
    /// It let its plan through, and cannot be used again.
    Used,
    /// Its plan went through with another approval.
    Superseded,
    /// It said no, and that holds.
    Denies,
    /// Its time is over.
    Expired,
    /// It does not count: its namespace has too many of them, or it cannot be read.
    Refused,
}

impl ApprovalState {
    /// Whether it can never be used (again).
    pub fn is_final(self) -> bool {
        matches!(self, Self::Used | Self::Superseded | Self::Expired)
    }
}
