//! `InvokerPolicy`: what a person writes, and what the operator says back.
//!
//! Bounds on lists and strings are not only hygiene: the API server estimates the cost of CEL rules
//! from them and refuses a definition whose rules could cost too much.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ChangedBy, member};

/// Declares which principals may invoke which Cloud Run services.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "run-invoker.dev",
    version = "v1alpha1",
    kind = "InvokerPolicy",
    plural = "invokerpolicies",
    namespaced,
    shortname = "ivp",
    category = "run-invoker",
    status = "InvokerPolicyStatus",
    derive = "PartialEq",
    doc = "InvokerPolicy declares which principals may invoke which Cloud Run services. In mode Audit (the default) the operator only reports how IAM differs; in mode Enforce it reconciles IAM to match.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name must be at most 63 characters"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Services", type_ = "integer", json_path = ".status.summary.services"),
    printcolumn(name = "Drifted", type_ = "integer", json_path = ".status.summary.drifted"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Missing", type_ = "integer", json_path = ".status.summary.missing", priority = 1),
    printcolumn(name = "Unexpected", type_ = "integer", json_path = ".status.summary.unexpected", priority = 1),
    printcolumn(name = "Last Change", type_ = "string", json_path = ".status.lastChange", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("size(self.invokers) > 0 || (has(self.allowEmpty) && self.allowEmpty)")
        .message("invokers is empty, so nobody could invoke these services; list members, or set allowEmpty: true if intended")
        .field_path(".invokers")
)]
pub struct InvokerPolicySpec {
    /// Google Cloud project id of the services. Immutable: delete the policy and create
    /// another.
    // Ids of projects in the domain of an organization, such as example.com:shop, are old and valid.
    #[schemars(length(min = 6, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z][a-z0-9-]{4,28}[a-z0-9]$') || self.matches('^[a-z0-9][a-z0-9-]*([.][a-z0-9][a-z0-9-]*)+:[a-z]([a-z0-9-]{0,28}[a-z0-9])?$')")
            .message("project must be a Google Cloud project id: 6 to 30 lower-case letters, digits or hyphens, beginning with a letter (not a project number or name); or DOMAIN:ID, such as example.com:shop"),
        validation = Rule::new("self == oldSelf")
            .message("project cannot be changed; delete this policy and create another for the other project")
    )]
    pub project: String,

    /// The services, each by name and region or by a selector over their labels.
    #[schemars(length(min = 1, max = 64))]
    pub services: Vec<ServiceSpec>,

    /// Who may invoke. May be empty only with allowEmpty.
    // Not a set: server-side apply refuses sets of objects. The rule compares pairs, which bounds
    // the list: more members go into a group, or into another policy for the same services.
    #[schemars(length(max = 200))]
    #[x_kube(
        validation = Rule::new("self.all(x, !has(x.member) || self.exists_one(y, has(y.member) && y.member == x.member && has(y.expires) == has(x.expires) && (!has(x.expires) || y.expires == x.expires) && has(y.condition) == has(x.condition) && (!has(x.condition) || y.condition.title == x.condition.title)))")
            .message("invokers lists the same member twice; give each member once, or distinguish its entries by expires or condition"),
        validation = Rule::new("self.all(x, !has(x.kubernetesServiceAccount) || self.exists_one(y, has(y.kubernetesServiceAccount) && y.kubernetesServiceAccount == x.kubernetesServiceAccount))")
            .message("invokers lists the same kubernetesServiceAccount twice; give each one once")
    )]
    pub invokers: Vec<InvokerSpec>,

    /// The role that is granted.
    #[serde(default)]
    pub role: RoleName,

    /// Audit reports only and writes nothing to IAM; Enforce reconciles IAM to match.
    #[serde(default)]
    pub mode: Mode,

    /// Authoritative: the list is complete, other members of the role are drift. Additive: others
    /// may stay.
    #[serde(default)]
    pub membership: Membership,

    /// What deleting an enforced policy does with the members it lists. Members that another policy
    /// lists stay in either case.
    #[serde(default)]
    pub on_delete: OnDelete,

    /// How often IAM is polled when nothing else triggers a reconcile, for example 5m or 1h30m; at least 10s.
    #[serde(default = "default_interval")]
    #[schemars(length(max = 20))]
    #[x_kube(
        validation = Rule::new("self.matches('^([0-9]{1,6}(s|m|h))+$')")
            .message("interval must be a duration of whole hours, minutes and seconds, for example 5m or 1h30m"),
        validation = Rule::new("!self.matches('^([0-9]{1,6}(s|m|h))+$') || duration(self) >= duration('10s')")
            .message("interval must be at least 10s"),
        validation = Rule::new("!self.matches('^([0-9]{1,6}(s|m|h))+$') || duration(self) <= duration('24h')")
            .message("interval must be at most 24h")
    )]
    pub interval: String,

    /// Stops everything that this policy does, reading included, until it is false again. Its
    /// members still count as listed, so no other policy removes them. Deleting a suspended policy
    /// revokes nothing.
    #[serde(default)]
    pub suspend: bool,

    /// Allows an empty list of invokers.
    #[serde(default)]
    pub allow_empty: bool,
}

fn default_interval() -> String {
    "5m".into()
}

/// Services by name or by label selector.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.name) != has(self.selector)")
        .message("give each entry of services either a name (with region) or a selector, not both and not neither"),
    validation = Rule::new("!has(self.name) || has(self.region)")
        .message("a service by name needs its region, for example region: europe-west1"),
    validation = Rule::new("!has(self.name) || !has(self.regions)")
        .message("a service by name takes region, not regions"),
    validation = Rule::new("!has(self.selector) || !has(self.region)")
        .message("a selector takes regions (a list), not region; omit it for every region"),
    validation = Rule::new("!has(self.selector) || (has(self.selector.matchLabels) && size(self.selector.matchLabels) > 0) || (has(self.selector.matchExpressions) && size(self.selector.matchExpressions) > 0)")
        .message("selector must name at least one label; an empty one would mean every service of the project"),
    validation = Rule::new("!has(self.selector) || !has(self.selector.matchExpressions) || self.selector.matchExpressions.all(e, (e.operator in ['In', 'NotIn']) == (has(e.values) && size(e.values) > 0))")
        .message("in matchExpressions, In and NotIn need values, Exists and DoesNotExist take none")
)]
pub struct ServiceSpec {
    /// Name of one Cloud Run service. Omitted: the entry has a selector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z]([a-z0-9-]*[a-z0-9])?$')")
        .message("name must be a Cloud Run service name: lower-case letters, digits and hyphens, beginning with a letter"))]
    pub name: Option<String>,
    /// Region of the service named, which needs it. Omitted: the entry has a selector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z]+-[a-z]+[0-9]+$')")
        .message(kube::core::Message::Expression("'region must be a Google Cloud region; write ' + (self.lowerAscii().matches('^[a-z]+-[a-z]+[0-9]+$') ? self.lowerAscii() : 'it such as europe-west1')".into())))]
    pub region: Option<String>,
    /// Regions that the selector covers. Omitted: every region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.all(r, r.size() <= 40 && r.matches('^[a-z]+-[a-z]+[0-9]+$'))")
        .message("regions must be Google Cloud regions such as europe-west1, in lower case"))]
    #[schemars(schema_with = "regions_schema")]
    pub regions: Option<Vec<String>>,
    /// Kubernetes label selector over the labels of the Cloud Run services of the project. Omitted:
    /// the entry has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

fn regions_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array", "nullable": true, "minItems": 1, "maxItems": 64, "x-kubernetes-list-type": "set",
        "description": "Regions in which the selector looks. Omitted: every region.",
        "items": {"type": "string", "maxLength": 40},
    })
}

/// One principal that may invoke.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.member) != has(self.kubernetesServiceAccount)")
        .message("give each entry of invokers either a member or a kubernetesServiceAccount, not both and not neither"),
    validation = Rule::new("!has(self.member) || !(self.member in ['allUsers', 'allAuthenticatedUsers']) || !(has(self.condition) || has(self.expires))")
        .message("allUsers and allAuthenticatedUsers cannot have a condition or expires; IAM does not accept them together")
)]
pub struct InvokerSpec {
    /// The principal as IAM writes it: user:, group:, serviceAccount:, domain:, principal://,
    /// principalSet://, allUsers or allAuthenticatedUsers. Federated identities (principal://,
    /// principalSet://) are accepted, but Cloud Run does not let them invoke. Omitted: the entry has
    /// a kubernetesServiceAccount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 320))]
    #[x_kube(
        validation = member::is_ascii(),
        validation = member::has_no_blank(),
        validation = member::is_not_deleted(),
        validation = member::has_a_prefix(),
        validation = member::is_spelled_as_iam_does(),
        validation = member::has_a_domain(),
        validation = member::has_a_whole_domain(),
        validation = member::is_known()
    )]
    pub member: Option<String>,
    /// A Kubernetes ServiceAccount, in place of member: stands for the Google service account that
    /// its annotation iam.gke.io/gcp-service-account names, and follows it. Omitted: the entry has a
    /// member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_service_account: Option<ServiceAccountReference>,
    /// When access ends (RFC 3339 with a zone, for example 2026-12-24T18:00:00Z). It becomes an IAM
    /// condition, so access ends on time whatever happens to the operator. Omitted: access does not
    /// end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    #[x_kube(validation = Rule::new(r"self.matches('^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,9})?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$')")
        .message("expires must be a time as in RFC 3339 with a zone, for example 2026-12-24T18:00:00Z"))]
    pub expires: Option<String>,
    /// IAM condition under which the grant holds. Omitted: it holds without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<ConditionSpec>,
}

/// A ServiceAccount of this cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountReference {
    /// Name of the ServiceAccount.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')")
        .message("name must be the name of a ServiceAccount"))]
    pub name: String,
    /// Namespace of the ServiceAccount. Omitted: that of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')")
        .message("namespace must be the name of a namespace"))]
    pub namespace: Option<String>,
}

/// An IAM condition.
#[derive(
    KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
#[serde(rename_all = "camelCase")]
pub struct ConditionSpec {
    /// Short name of the condition; part of its identity in IAM.
    #[schemars(length(min = 1, max = 100))]
    pub title: String,
    /// What the condition is for. Omitted: nothing is said of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub description: String,
    /// CEL expression over request and resource attributes.
    #[schemars(length(min = 1, max = 4096))]
    pub expression: String,
}

/// Role that is granted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RoleName {
    #[default]
    #[serde(rename = "roles/run.invoker")]
    Invoker,
    #[serde(rename = "roles/run.servicesInvoker")]
    ServicesInvoker,
}

/// Whether IAM is only read or also written.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Audit,
    Enforce,
}

/// Whether the list of invokers is complete.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Membership {
    #[default]
    Authoritative,
    Additive,
}

/// What deleting an enforced policy does.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDelete {
    #[default]
    Revoke,
    Retain,
}

/// What the operator found and did.
// Absent fields are written as null on purpose: status goes out as a JSON merge patch, in which
// null removes.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct InvokerPolicyStatus {
    /// The generation of the spec that this status is for.
    #[serde(default)]
    pub observed_generation: Option<i64>,
    /// The last value of the annotation run-invoker.dev/requested-at that was acted on.
    #[serde(default)]
    pub last_handled_requested_at: Option<String>,
    /// Name of the last InvokerChange.
    #[serde(default)]
    pub last_change: Option<String>,
    /// Ready, Reconciling, Stalled, RolledBack, Drifted, Propagated, Contested, Exposed, Bypassed.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    #[serde(default)]
    pub conditions: Vec<StatusCondition>,
    /// Invokers whose expires has passed: the entries grant nothing any more. Up to 20, and how
    /// many more.
    #[schemars(length(max = 21))]
    #[serde(default)]
    pub expired: Vec<String>,
    /// Who may invoke through a grant on the project, a folder or the organization, where the
    /// operator searches for them. Groups are not expanded; deny policies are not seen.
    #[serde(default)]
    pub inherited: Option<InheritedStatus>,
    /// Numbers over all services of the policy.
    #[serde(default)]
    pub summary: Option<StatusSummary>,
    /// Up to 100 services, those not in sync first.
    #[schemars(length(max = 100))]
    #[serde(default)]
    pub services: Vec<ServiceStatus>,
    /// How many services are not shown.
    #[serde(default)]
    pub services_omitted: Option<i64>,
}

/// Who may invoke by a grant above the services.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct InheritedStatus {
    /// How many principals.
    pub principals: i64,
    /// How many of them no policy lists.
    pub unlisted: i64,
    /// Up to 20 of their grants, those that no policy lists first.
    #[schemars(length(max = 20))]
    #[serde(default)]
    pub grants: Vec<InheritedGrantStatus>,
}

/// One grant above the services.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct InheritedGrantStatus {
    /// The principal as IAM has it.
    pub member: String,
    /// A role that carries run.routes.invoke.
    pub role: String,
    /// project, folder or organization.
    pub level: String,
    /// Where it is granted: projects/ID, folders/NUMBER or organizations/NUMBER.
    pub resource: String,
    /// Whether a policy lists the principal on every service of this one.
    pub listed: bool,
    /// Whether it holds only where an IAM condition does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub conditional: bool,
}

/// A condition, as `metav1.Condition`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StatusCondition {
    /// Type of the condition.
    #[serde(rename = "type")]
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// One word for programs.
    pub reason: String,
    /// Message for people.
    pub message: String,
    /// When status last changed.
    pub last_transition_time: Time,
    /// The generation that this condition was set for.
    pub observed_generation: i64,
}

/// Numbers over all services of a policy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StatusSummary {
    /// Services that the policy targets now.
    pub services: i64,
    /// Services whose IAM policy matches the declared state.
    pub in_sync: i64,
    /// Services whose IAM policy differs.
    pub drifted: i64,
    /// Services that could not be read or written.
    pub failed: i64,
    /// Services where something is held back.
    pub held: i64,
    /// Declared grants that IAM does not have.
    pub missing: i64,
    /// Grants in IAM that no policy lists.
    pub unexpected: i64,
}

/// State of a service under a policy.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub enum ServiceState {
    Failed,
    NotFound,
    Held,
    Drifted,
    InSync,
}

/// One service of a policy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Region of the service.
    pub region: String,
    /// Name of the service.
    pub name: String,
    /// InSync, Drifted, Held, Failed or NotFound.
    pub state: ServiceState,
    /// Declared members that are not granted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Members granted that no policy lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unexpected: Vec<String>,
    /// Members that are never removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protected: Vec<String>,
    /// Members that may invoke by other roles on the service, with the role; up to 20. The operator
    /// never changes these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_invokers: Vec<String>,
    /// Anyone can call this service.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exposed: bool,
    /// Another writer keeps changing the same grants.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub contested: bool,
    /// The actor of the drift, if known from the audit log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift_by: Option<ChangedBy>,
    /// Hash that approves exactly the plan that is held here: the value for the annotation
    /// run-invoker.dev/approve. Empty where only an approver can approve.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub approve: String,
    /// Hash of the plan that is held here, for spec.plan of an InvokerApproval.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub plan: String,
    /// More in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Since when the service is in this state.
    pub since: Time,
}
