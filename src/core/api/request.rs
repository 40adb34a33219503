//! `InvokerAccessRequest`: somebody asks for access that ends by itself.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{RoleName, ServiceSpec, StatusCondition};

/// Asks for one principal to invoke some services for a time.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "run-invoker.dev",
    version = "v1alpha1",
    kind = "InvokerAccessRequest",
    plural = "invokeraccessrequests",
    namespaced,
    shortname = "ivr",
    category = "run-invoker",
    status = "InvokerAccessRequestStatus",
    derive = "PartialEq",
    doc = "InvokerAccessRequest asks for one principal to invoke some Cloud Run services for a time. A guardrail has to allow requests. It is granted when an InvokerApproval names it, or by itself where the guardrail says so; access ends by itself, and earlier when the request is deleted.",
    validation = Rule::new("self.metadata.name.size() <= 50").message("metadata.name must be at most 50 characters"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Member", type_ = "string", json_path = ".spec.member"),
    printcolumn(name = "For", type_ = "string", json_path = ".spec.duration"),
    printcolumn(name = "Until", type_ = "string", json_path = ".status.until"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason", priority = 1),
    printcolumn(name = "Approval", type_ = "string", json_path = ".status.approval", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self == oldSelf")
        .message("an InvokerAccessRequest cannot be changed; delete it and create another under another name")
)]
pub struct InvokerAccessRequestSpec {
    /// Google Cloud project id of the services.
    #[schemars(length(min = 6, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z][a-z0-9-]{4,28}[a-z0-9]$') || self.matches('^[a-z0-9][a-z0-9-]*([.][a-z0-9][a-z0-9-]*)+:[a-z]([a-z0-9-]{0,28}[a-z0-9])?$')")
            .message("project must be a Google Cloud project id: 6 to 30 lower-case letters, digits or hyphens, beginning with a letter (not a project number or name); or DOMAIN:ID, such as example.com:shop")
    )]
    pub project: String,

    /// The services, each by name and region or by a selector over their labels.
    #[schemars(length(min = 1, max = 16))]
    pub services: Vec<ServiceSpec>,

    /// The principal that is to invoke, as IAM writes it: user:, group: or serviceAccount: and an
    /// e-mail address.
    #[schemars(length(min = 1, max = 320))]
    #[x_kube(validation = Rule::new(r"self.matches('^(user|group|serviceAccount):[A-Za-z0-9.!#$%&*+/=?^_`{|}~\\x27-]+@([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?[.])+[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$')")
        .message("member must be user:EMAIL, group:EMAIL or serviceAccount:EMAIL: a request is for one principal, and Cloud Run lets no federated identity invoke"))]
    pub member: String,

    /// For how long, from when it is approved, for example 1h or 30m; at least 10s, at most 720h.
    #[schemars(length(max = 20))]
    #[x_kube(
        validation = Rule::new("self.matches('^([0-9]{1,6}(s|m|h))+$')")
            .message("duration must be of whole hours, minutes and seconds, for example 1h or 1h30m"),
        validation = Rule::new("!self.matches('^([0-9]{1,6}(s|m|h))+$') || (duration(self) >= duration('10s') && duration(self) <= duration('720h'))")
            .message("duration must be at least 10s and at most 720h")
    )]
    pub duration: String,

    /// Why, for whoever approves and for the record.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(r"self.matches('\\S')")
        .message("reason must say why, for whoever approves and for the record"))]
    pub reason: String,

    /// The role that is granted.
    #[serde(default)]
    pub role: RoleName,
}

/// What became of a request. Written by the operator only.
// Absent fields are written as null on purpose: status goes out as a JSON merge patch, in which
// null removes.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct InvokerAccessRequestStatus {
    /// Where it stands.
    #[serde(default)]
    pub phase: Option<RequestPhase>,
    /// The same in words, with what to do.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// Stands for this request and for what it would grant: what an InvokerApproval names as plan.
    #[serde(default)]
    #[schemars(length(max = 40))]
    pub plan: Option<String>,
    /// When it was approved.
    #[serde(default)]
    pub approved_at: Option<MicroTime>,
    /// When access ends.
    #[serde(default)]
    pub until: Option<Time>,
    /// Name of the InvokerApproval that approved or denied it; guardrail NAME: it was approved by
    /// itself, as that says.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub approval: Option<String>,
    /// Name of the last InvokerChange that was made for it.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub last_change: Option<String>,
    /// Approved and Active.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    #[serde(default)]
    pub conditions: Vec<StatusCondition>,
}

impl InvokerAccessRequestStatus {
    /// The phase that the operator wrote, as opposed to the default of the definition, which has no
    /// plan.
    pub fn written_phase(&self) -> Option<RequestPhase> {
        self.phase.filter(|_| self.plan.is_some())
    }
}

/// Where a request stands.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub enum RequestPhase {
    /// Somebody has to agree.
    Pending,
    /// Somebody agreed; it is not in force everywhere yet.
    Approved,
    /// It is granted, until the time in status.until.
    Active,
    /// It is over: its time has passed, or nobody approved it in time.
    Ended,
    /// An approver said no.
    Denied,
    /// A guardrail does not allow it, or its member is protected.
    Refused,
}

impl RequestPhase {
    /// The name as it is written in a status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Approved => "Approved",
            Self::Active => "Active",
            Self::Ended => "Ended",
            Self::Denied => "Denied",
            Self::Refused => "Refused",
        }
    }

    /// Whether nothing follows it any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Ended | Self::Denied)
    }

    /// Whether what was granted is to be taken back.
    pub fn takes_back(self) -> bool {
        matches!(self, Self::Ended | Self::Denied | Self::Refused)
    }
}

/// What stands in front of the name of an InvokerAccessRequest where names of policies stand, in
/// ledgers and records too. No name in Kubernetes has a slash.
pub const REQUEST_PREFIX: &str = "request/";

/// The name of the InvokerAccessRequest that a name among those of policies stands for, if it does.
pub fn request_of(name: &str) -> Option<&str> {
    name.strip_prefix(REQUEST_PREFIX)
}
