//! The Kubernetes API of this operator: its kinds, their schema and CEL rules, and the names that
//! are a contract with users. Pure: no client.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt as _;

mod approval;
#[expect(
    clippy::duplicated_attributes,
    reason = "kube's derive takes one attribute per column"
)]
mod change;
#[expect(
    clippy::duplicated_attributes,
    reason = "kube's derive takes one attribute per column"
)]
mod guardrail;
#[expect(
    clippy::duplicated_attributes,
    reason = "kube's derive takes one attribute per column"
)]
mod ledger;
mod member;
mod policy;
mod reason;
mod request;

pub use approval::{
    ApprovalState, Decision, InvokerApproval, InvokerApprovalSpec, InvokerApprovalStatus,
};
pub use change::{
    ChangeApproval, ChangeGrant, ChangeOutcome, ChangePhase, ChangePolicy, ChangeReason, ChangedBy,
    InvokerChange, InvokerChangeSpec, OUTCOME_LABEL, POLICY_LABEL_PREFIX, REASON_LABEL,
    change_label,
};
pub use guardrail::{
    ApprovedBy, InheritedAccess, InvokerGuardrail, InvokerGuardrailSpec, PublicAccess, RequestTerms,
};
pub use ledger::{
    HeldRemoval, InvokerLedger, InvokerLedgerSpec, LedgerCorrection, LedgerGrant, LedgerMember,
    LedgerOwner, PendingApproval, PendingChange, UsedApproval,
};
pub use policy::{
    ConditionSpec, InheritedGrantStatus, InheritedStatus, InvokerPolicy, InvokerPolicySpec,
    InvokerPolicyStatus, InvokerSpec, Membership, Mode, OnDelete, RoleName,
    ServiceAccountReference, ServiceSpec, ServiceState, ServiceStatus, StatusCondition,
    StatusSummary,
};
pub use reason::{ConditionType, EventReason, Reason};
pub use request::{
    InvokerAccessRequest, InvokerAccessRequestSpec, InvokerAccessRequestStatus, REQUEST_PREFIX,
    RequestPhase, request_of,
};

/// The definitions of all kinds, in the order in which they are installed.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut all = vec![
        InvokerPolicy::crd(),
        InvokerGuardrail::crd(),
        InvokerChange::crd(),
        InvokerLedger::crd(),
        InvokerApproval::crd(),
        InvokerAccessRequest::crd(),
    ];
    let versions = all.iter_mut().flat_map(|crd| &mut crd.spec.versions);
    let schemas = versions.filter_map(|v| v.schema.as_mut()?.open_api_v3_schema.as_mut());
    schemas.for_each(|schema| {
        unwrap_descriptions(schema);
        state_defaults(schema);
        narrow_selectors(schema);
    });
    for crd in &mut all {
        let kind = crd.spec.names.kind.as_str();
        let first = crd.spec.versions.iter_mut().next();
        let schema = first.and_then(|v| v.schema.as_mut()?.open_api_v3_schema.as_mut());
        let mut properties = schema.and_then(|s| s.properties.as_mut());
        if let Some(status) = properties.as_mut().and_then(|p| p.get_mut("status")) {
            status.default = status_before_the_first(kind).map(JSON);
        }
        let is_record = ["InvokerChange", "InvokerLedger"].contains(&kind);
        if let Some(spec) = properties.and_then(|p| p.get_mut("spec"))
            && is_record
        {
            state_omissions(spec);
        }
    }
    all
}

/// What stands in a status until the operator writes it.
const WAITING: &str = "waiting for the operator";

/// The status of an object that no operator has seen yet, so that columns are not empty after an
/// apply, also where no operator runs. The Gateway API does the same. It holds nothing by which the
/// operator knows what it has said itself.
///
/// Source: <https://gateway-api.sigs.k8s.io/reference/spec/> (default of `status.conditions`).
fn status_before_the_first(kind: &str) -> Option<serde_json::Value> {
    Some(match kind {
        "InvokerPolicy" => policy_before_the_first(),
        "InvokerAccessRequest" => serde_json::json!({"phase": "Pending", "message": WAITING}),
        "InvokerApproval" => serde_json::json!({"state": "Waiting", "message": WAITING}),
        _ => return None,
    })
}

fn policy_before_the_first() -> serde_json::Value {
    serde_json::json!({
        "conditions": [{
            "type": "Ready",
            "status": "Unknown",
            "reason": "Progressing",
            "message": WAITING,
            "lastTransitionTime": "1970-01-01T00:00:00Z",
            "observedGeneration": 0,
        }],
        "summary": {
            "services": 0, "inSync": 0, "drifted": 0, "failed": 0, "held": 0, "missing": 0, "unexpected": 0,
        },
    })
}

/// `kubectl explain` shows the description, and not the default.
fn state_defaults(schema: &mut JSONSchemaProps) {
    for property in schema.properties.iter_mut().flat_map(|p| p.values_mut()) {
        if let (Some(text), Some(JSON(default))) = (&mut property.description, &property.default)
            && !default.is_object()
            && !default.is_array()
            && default != ""
        {
            let default = default
                .as_str()
                .map_or_else(|| default.to_string(), str::to_owned);
            text.push_str(&format!(" Default: {default}."));
        }
        state_defaults(property);
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut property.items {
            state_defaults(items);
        }
    }
}

/// What the operator writes itself it leaves out where there is nothing to write.
fn state_omissions(schema: &mut JSONSchemaProps) {
    let required = schema.required.clone().unwrap_or_default();
    for (name, property) in schema.properties.iter_mut().flatten() {
        if let Some(text) = &mut property.description
            && !required.contains(name)
            && !text.contains("Omitted: ")
            && !text.contains("Default: ")
        {
            text.push_str(" Omitted: none.");
        }
        state_omissions(property);
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut property.items {
            state_omissions(items);
        }
    }
}

/// Lines end where the source is narrow; `kubectl explain` and editors wrap by themselves.
fn unwrap_descriptions(schema: &mut JSONSchemaProps) {
    if let Some(text) = &mut schema.description {
        let paragraphs = text.split("\n\n").map(|p| p.replace('\n', " "));
        *text = paragraphs.collect::<Vec<_>>().join("\n\n");
    }
    let properties = schema.properties.iter_mut().flat_map(|p| p.values_mut());
    properties.for_each(unwrap_descriptions);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        unwrap_descriptions(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        unwrap_descriptions(values);
    }
}

/// Kubernetes' own schema of a label selector takes any word for an operator, and lists of any
/// length, over which no rule could be checked within the API server's budget.
///
/// Source: <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors>.
fn narrow_selectors(schema: &mut JSONSchemaProps) {
    for (name, property) in schema.properties.iter_mut().flatten() {
        if name == "operator" {
            let known = ["In", "NotIn", "Exists", "DoesNotExist"];
            property.enum_ = Some(known.map(|o| JSON(o.into())).into());
        }
        if name == "matchExpressions" {
            property.max_items = Some(16);
        }
        // Of an expression, whose operator is beside it.
        if name == "values" {
            property.max_items = Some(64);
        }
        narrow_selectors(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        narrow_selectors(items);
    }
}

/// API group of all kinds.
pub const GROUP: &str = "run-invoker.dev";
/// Set on an enforced policy whose deletion revokes.
pub const FINALIZER: &str = "run-invoker.dev/revoke";
/// A new value asks for a look at once; it is echoed in `status.lastHandledRequestedAt`.
pub const REQUESTED_AT: &str = "run-invoker.dev/requested-at";
/// Hashes of held plans that may be carried out, separated by commas.
pub const APPROVE: &str = "run-invoker.dev/approve";
/// Names of InvokerChanges to go back behind, separated by commas.
pub const ROLLBACK: &str = "run-invoker.dev/rollback";
/// Who created an approval or a request. Anybody may write it, so it counts only where admission
/// sees to it that it is true.
pub const CREATED_BY: &str = "run-invoker.dev/created-by";
/// Who edited the spec of a policy last. The operator does not read it; admission policies do.
pub const EDITED_BY: &str = "run-invoker.dev/edited-by";
/// Field manager of every write to the Kubernetes API, and reporting controller of events.
pub const FIELD_MANAGER: &str = "run-invoker";
/// On the Lease of a shard, by its holder: budget and use of calls to Cloud Run, as JSON.
pub const BUDGETS: &str = "run-invoker.dev/budgets";
/// Annotations of the Lease that tells that audit events cannot be relied on.
pub const EVENTS_REASON: &str = "run-invoker.dev/reason";
pub const EVENTS_MESSAGE: &str = "run-invoker.dev/message";
/// Most services shown in a status.
pub const MAX_STATUS_SERVICES: usize = 100;
/// Most members named in one list of a status.
pub const MAX_STATUS_MEMBERS: usize = 20;
