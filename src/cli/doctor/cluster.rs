//! What is asked of the API server: definitions, Leases, policies.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::Value;

use super::{
    DoctorCommand,
    findings::{Findings, Outcome},
    quota::Reports,
};
use crate::{
    api::{EVENTS_MESSAGE, EVENTS_REASON, InvokerPolicy, definitions},
    cli::{
        context::{Context, Kube},
        select::ObjectName,
        world::list_all,
    },
    render::count,
};

/// Verbs of the log that must get through the filter of the sink.
pub(super) const VERBS: [&str; 6] = [
    "SetIamPolicy",
    "CreateService",
    "UpdateService",
    "ReplaceService",
    "DeleteService",
    // Functions are deployed by methods of their own.
    "InternalService",
];

/// A Lease that was not renewed for so long, in seconds, is nobody's.
const STALE: i64 = 60;

/// Every field that a schema knows, as paths.
pub(super) fn fields(schema: &Value, path: &str, into: &mut BTreeSet<String>) {
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        fields(inner, &path, into);
        into.insert(path);
    }
    if schema["items"].is_object() {
        fields(&schema["items"], &format!("{path}[]"), into);
    }
}

pub(super) async fn definitions_are_current(
    context: &Context,
    kube: &Kube,
    findings: &mut Findings,
) {
    let api: Api<CustomResourceDefinition> = Api::all(kube.client.clone());
    for ours in definitions() {
        let name = ours.name_any();
        match api.get_opt(&name).await {
            Ok(Some(theirs)) => definition_is_current(&ours, &theirs, findings),
            Ok(None) => findings.add(
                DEFINITION,
                name,
                Outcome::Fail,
                "it is not installed",
                INSTALL,
            ),
            Err(why) => {
                // The others are refused in the same way.
                let fix = "needs get on customresourcedefinitions";
                let evidence = refusal(context, &why.into());
                return findings.add(DEFINITION, name, Outcome::Unknown, evidence, fix);
            }
        }
    }
}

/// Why something could not be seen; as whom it was asked is said once, below all findings.
fn refusal(context: &Context, error: &anyhow::Error) -> String {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => status.message.clone(),
        _ => context.explain(error),
    }
}

const DEFINITION: &str = "definition";

const INSTALL: &str =
    "upgrade the chart (crds.enabled=true), or: kubectl apply --server-side -f crds/";

fn definition_is_current(
    ours: &CustomResourceDefinition,
    theirs: &CustomResourceDefinition,
    findings: &mut Findings,
) {
    let name = ours.name_any();
    let Some(theirs) = served_fields(theirs) else {
        return findings.add(
            DEFINITION,
            name,
            Outcome::Fail,
            "version v1alpha1 is not served",
            INSTALL,
        );
    };
    let Some(ours) = served_fields(ours) else {
        return;
    };
    let missing: Vec<&String> = ours
        .difference(&theirs)
        .filter(|f| !f.starts_with(".metadata"))
        .collect();
    if missing.is_empty() {
        let evidence = "installed, v1alpha1, all fields of this version";
        return findings.pass(DEFINITION, name, evidence);
    }
    let named: Vec<&str> = missing.iter().take(3).map(|f| f.as_str()).collect();
    let evidence = format!(
        "older than this plugin: {} unknown there, such as {}",
        count(missing.len(), "field"),
        named.join(", ")
    );
    findings.add(DEFINITION, name, Outcome::Warn, evidence, INSTALL);
}

/// The fields of v1alpha1, where that is served.
fn served_fields(definition: &CustomResourceDefinition) -> Option<BTreeSet<String>> {
    let mut versions = definition.spec.versions.iter();
    let served = versions.find(|v| v.name == "v1alpha1" && v.served)?;
    let schema = served.schema.as_ref()?.open_api_v3_schema.as_ref()?;
    let mut all = BTreeSet::new();
    fields(&serde_json::to_value(schema).ok()?, "", &mut all);
    Some(all)
}

/// What the operator says about its calls, if it says anything.
pub(super) async fn operator_works(
    context: &Context,
    kube: &Kube,
    command: &DoctorCommand,
    findings: &mut Findings,
) -> Reports {
    let api: Api<Lease> = Api::namespaced(kube.client.clone(), &command.release_namespace);
    let place = format!("{}/{}", command.release_namespace, command.release);
    let leases = match list_all(&api, ListParams::default()).await {
        Ok(found) => found,
        Err(why) => {
            let fix = "needs list on leases in the operator's namespace";
            let evidence = refusal(context, &why);
            findings.add(OPERATOR, place, Outcome::Unknown, evidence, fix);
            return Reports::default();
        }
    };
    let of_release = |l: &&Lease| {
        let name = l.name_any();
        name == command.release
            || (name.starts_with(&format!("{}-", command.release))
                && name.contains("-of-")
                && !name.contains("-members-"))
    };
    let shards: Vec<&Lease> = leases.iter().filter(of_release).collect();
    if shards.is_empty() {
        let fix = "install it, or name its release and namespace (--release, --release-namespace)";
        findings.add(
            OPERATOR,
            &place,
            Outcome::Fail,
            "no Lease of an operator is there: none runs, or it has another name",
            fix,
        );
    }
    let mut reports = Reports::default();
    for lease in shards {
        let name = format!("{}/{}", command.release_namespace, lease.name_any());
        if let Some(holder) = shard_is_led(context.now, lease, &name, findings) {
            reports.add(&name, lease);
            holder_is_a_pod(context, kube, command, &holder, findings).await;
        }
    }
    for lease in &leases {
        state_is_good(&command.release, lease, findings);
    }
    reports
}

pub(super) const OPERATOR: &str = "operator";

/// Whether a Lease is renewed, and by whom.
fn shard_is_led(
    now: Timestamp,
    lease: &Lease,
    name: &str,
    findings: &mut Findings,
) -> Option<String> {
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.filter(|h| !h.is_empty());
    let age = spec.renew_time.map(|t| now.duration_since(t.0).as_secs());
    let evidence = match (holder, age) {
        // A Lease from the future was not renewed by a clock that anybody shares.
        (Some(holder), Some(age)) if (-STALE..=STALE).contains(&age) => {
            let evidence = format!("{holder} renewed its Lease {}s ago", age.max(0));
            findings.pass(OPERATOR, name, evidence);
            return Some(holder);
        }
        (Some(holder), Some(age)) => format!("{holder} has not renewed its Lease for {age}s"),
        _ => "no replica holds its Lease".to_owned(),
    };
    let fix = "look at the Pods of the release and their logs";
    findings.add(OPERATOR, name, Outcome::Fail, evidence, fix);
    None
}

const REPLICA: &str = "replica";

/// Whoever may write Leases can renew one without being an operator: the holder has to be a Pod
/// that is ready.
async fn holder_is_a_pod(
    context: &Context,
    kube: &Kube,
    command: &DoctorCommand,
    holder: &str,
    findings: &mut Findings,
) {
    let namespace = &command.release_namespace;
    let subject = format!("{namespace}/{holder}");
    let api: Api<Pod> = Api::namespaced(kube.client.clone(), namespace);
    let mut add = |outcome, evidence: String, fix: String| {
        findings.add(REPLICA, subject.clone(), outcome, evidence, fix);
    };
    let Ok(name) = holder.parse::<ObjectName>() else {
        let evidence = "the holder of the Lease is no name of a Pod: it was not written by an operator in this cluster";
        return add(Outcome::Fail, evidence.into(), WHO_WRITES.into());
    };
    match api.get_opt(&name.name).await {
        Ok(Some(pod)) if is_ready(&pod) => {
            add(Outcome::Pass, "its Pod is ready".into(), String::new())
        }
        Ok(Some(_)) => {
            let fix = format!("kubectl describe pod {holder} -n {namespace}");
            add(Outcome::Fail, "its Pod is not ready".into(), fix);
        }
        Ok(None) => {
            let evidence = "there is no such Pod: the operator runs outside of this cluster, or the Lease is forged";
            add(Outcome::Unknown, evidence.into(), WHO_WRITES.into());
        }
        Err(why) => {
            let why = refusal(context, &why.into());
            let evidence = format!(
                "known by its Lease only, which whoever may write Leases there can forge: {why}"
            );
            let fix = format!("needs get on pods in namespace {namespace}");
            add(Outcome::Unknown, evidence, fix);
        }
    }
}

const WHO_WRITES: &str =
    "look at the operator itself, and at who may write Leases in its namespace";

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Leases of the release that say that its circuit is open, or that its events are not reliable.
fn state_is_good(release: &str, lease: &Lease, findings: &mut Findings) {
    let name = lease.name_any();
    let note = |key: &str| lease.annotations().get(key).cloned().unwrap_or_default();
    if name == format!("{release}-circuit") {
        findings.add(
            "circuit breaker",
            name,
            Outcome::Warn,
            "open: drift is not corrected",
            "find who changes so much; it closes by itself, or when this Lease is deleted",
        );
    } else if name == format!("{release}-events") {
        let evidence = format!("{}: {}", note(EVENTS_REASON), note(EVENTS_MESSAGE));
        findings.add(
            "events",
            name,
            Outcome::Warn,
            evidence,
            "see the findings about subscription and sink",
        );
    }
}

pub(super) async fn policies_stand(
    context: &Context,
    kube: &Kube,
    findings: &mut Findings,
) -> Vec<InvokerPolicy> {
    const CHECK: &str = "policies";
    let all: Api<InvokerPolicy> = Api::all(kube.client.clone());
    let policies = match list_all(&all, ListParams::default()).await {
        Ok(found) => found,
        Err(why) => {
            findings.add(
                CHECK,
                "all namespaces",
                Outcome::Unknown,
                refusal(context, &why),
                "needs list on invokerpolicies in every namespace",
            );
            return vec![];
        }
    };
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for p in &policies {
        let conditions = p.status.iter().flat_map(|s| &s.conditions);
        let ready = conditions.into_iter().find(|c| c.type_ == "Ready");
        if ready.is_none_or(|r| r.status != "True") {
            *reasons
                .entry(ready.map_or("never reconciled".into(), |r| r.reason.clone()))
                .or_default() += 1;
        }
    }
    let total = match policies.len() {
        1 => "1 policy".to_owned(),
        n => format!("{n} policies"),
    };
    if reasons.is_empty() {
        findings.pass(CHECK, total, "every one is Ready");
    } else {
        let words: Vec<String> = reasons.iter().map(|(r, n)| format!("{n} {r}")).collect();
        let denied = reasons.contains_key("PermissionDenied");
        let outcome = if denied { Outcome::Fail } else { Outcome::Warn };
        findings.add(
            CHECK,
            total,
            outcome,
            format!("not Ready: {}", words.join(", ")),
            "kubectl invoker status -A",
        );
    }
    policies
}
