//! `InvokerGuardrail`: what the platform team allows namespaces to declare.

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What the platform team allows namespaces to declare. Every guardrail that selects a namespace
/// must be satisfied.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "run-invoker.dev",
    version = "v1alpha1",
    kind = "InvokerGuardrail",
    plural = "invokerguardrails",
    shortname = "ivg",
    category = "run-invoker",
    derive = "PartialEq",
    doc = "InvokerGuardrail says what namespaces may declare: which projects, services and members, whether public access, for how long, and how much one write may take away. Every guardrail that selects a namespace must be satisfied; what violates one is not applied, and the policy says which guardrail refused it.",
    printcolumn(name = "Namespaces", type_ = "string", json_path = ".spec.namespaces"),
    printcolumn(name = "Projects", type_ = "string", json_path = ".spec.projects"),
    printcolumn(name = "Public", type_ = "string", json_path = ".spec.public"),
    printcolumn(
        name = "Max Lifetime",
        type_ = "string",
        json_path = ".spec.maxLifetime"
    ),
    printcolumn(
        name = "Max Removals",
        type_ = "integer",
        json_path = ".spec.maxRemovals"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct InvokerGuardrailSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "namespaces")]
    #[x_kube(validation = Rule::new("self.all(p, p.matches('^[a-z0-9*?-]+$'))")
        .message("namespaces holds names of namespaces, in which * stands for any text and ? for any character"))]
    pub namespaces: Option<Vec<String>>,

    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "projects")]
    #[x_kube(validation = Rule::new("self.all(p, p.matches('^[a-z0-9.:*?-]+$'))")
        .message("projects holds Google Cloud project ids, in which * stands for any text and ? for any character"))]
    pub projects: Option<Vec<String>>,

    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "services")]
    #[x_kube(validation = Rule::new("self.all(p, p.matches('^[a-z0-9*?-]+$'))")
        .message("services holds names of Cloud Run services, in which * stands for any text and ? for any character"))]
    pub services: Option<Vec<String>>,

    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "members")]
    #[x_kube(
        validation = Rule::new("self.all(p, !p.startsWith('all'))")
            .message("allUsers and allAuthenticatedUsers are allowed by public: Allow, not by members"),
        validation = Rule::new("self.all(p, p.matches('^[!-9;-~]+$') || p.matches('^(user|group|serviceAccount|domain|principal|principalSet):[!-~]+$'))")
            .message("members holds patterns such as *@acme.com, user:*@acme.com, serviceAccount:*@acme-prod.iam.gserviceaccount.com, domain:acme.com or principalSet://...; what stands before the colon must be written out")
    )]
    pub members: Option<Vec<String>>,

    /// Whether allUsers and allAuthenticatedUsers may be declared.
    #[serde(default)]
    pub public: PublicAccess,

    /// The longest time for which access may be declared, for example 720h: every invoker needs
    /// expires, at most this far ahead. Omitted: access need not end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,6}(s|m|h))+$') && self.matches('[1-9]')")
        .message("maxLifetime must be a duration of whole hours, minutes and seconds, for example 720h"))]
    pub max_lifetime: Option<String>,

    /// The most invokers of one service that one write may revoke without approval. 0: every
    /// revocation needs approval. Omitted: the operator's own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1500))]
    pub max_removals: Option<u32>,

    /// Whether policies say (condition Bypassed, status.inherited) who may invoke by a grant on the
    /// project, a folder or the organization, where the operator searches for it. Report: they do.
    /// Ignore: they do not, it is another team's business. Omitted: they do, unless another
    /// guardrail says Ignore; of several that say something Report counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inherited: Option<InheritedAccess>,
    /// Who approves a held plan. Tenant: whoever may write the policy, by the annotation
    /// run-invoker.dev/approve, or an approver. Approver: only somebody who may create an
    /// InvokerApproval; the annotation is ignored. Omitted: the operator's own setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvals: Option<ApprovedBy>,
    /// What InvokerAccessRequests may ask for. Omitted: this guardrail says nothing of them; where no
    /// guardrail that selects a namespace has it, there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<RequestTerms>,
}

/// What requests for access may ask for.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RequestTerms {
    /// The longest time for which access may be requested, for example 4h.
    #[schemars(length(max = 20))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,6}(s|m|h))+$') && self.matches('[1-9]')")
        .message("maxDuration must be a duration of whole hours, minutes and seconds, for example 4h"))]
    pub max_duration: String,
    /// Members whose requests need nobody's approval, as in members. Omitted: every request needs
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "auto_approve")]
    #[x_kube(validation = Rule::new("self.all(p, p.matches('^[!-9;-~]+$') || p.matches('^(user|group|serviceAccount):[!-~]+$'))")
        .message("autoApprove holds patterns such as *@acme.com, user:*@acme.com or serviceAccount:*@acme-prod.iam.gserviceaccount.com"))]
    pub auto_approve: Option<Vec<String>>,
    /// A regular expression that the reason of a request has to match, for example
    /// ^(INC|CHG)-[0-9]+. RE2 syntax, but \d, \w and \s also match characters outside of ASCII.
    /// Omitted: any reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    // What is no expression is an error of matches(), and refuses the object.
    #[x_kube(validation = Rule::new("''.matches(self) || !''.matches(self)")
        .message("reasonPattern must be a regular expression (RE2)"))]
    pub reason_pattern: Option<String>,
}

fn globs(description: &str, most: u32, length: u32) -> Schema {
    json_schema!({
        "type": "array", "nullable": true, "minItems": 1, "maxItems": most, "x-kubernetes-list-type": "set",
        "description": description,
        "items": {"type": "string", "minLength": 1, "maxLength": length},
    })
}
fn namespaces(_: &mut SchemaGenerator) -> Schema {
    globs(
        "Namespaces that this guardrail is for; * stands for any text. Omitted: all.",
        64,
        63,
    )
}
fn projects(_: &mut SchemaGenerator) -> Schema {
    globs(
        "Google Cloud projects that may be named; * stands for any text. Omitted: all.",
        64,
        63,
    )
}
fn services(_: &mut SchemaGenerator) -> Schema {
    globs(
        "Cloud Run services that may be named or selected; * stands for any text. Omitted: all.",
        64,
        63,
    )
}
fn members(_: &mut SchemaGenerator) -> Schema {
    globs(
        "Members that may be declared. A pattern without a colon is about the e-mail of users, groups and service accounts (*@acme.com); with one, about that kind of member only (serviceAccount:*@acme-prod.iam.gserviceaccount.com). * stands for any text. Sets of everybody in a pool, project or organization need a pattern that begins with principalSet:. Omitted: all but those and public ones.",
        64,
        320,
    )
}
fn auto_approve(_: &mut SchemaGenerator) -> Schema {
    globs(
        "Members whose requests need nobody's approval, as in members. Omitted: every request needs one.",
        64,
        320,
    )
}

/// What is done about grants above the services.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
// Variants have no text of their own: with one, the text of the type takes the place of the field's.
pub enum InheritedAccess {
    Report,
    Ignore,
}

/// Who agrees to a plan that is held.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApprovedBy {
    Tenant,
    Approver,
}

/// Whether everybody may be let in.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PublicAccess {
    #[default]
    Deny,
    Allow,
}
