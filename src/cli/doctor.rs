//! `doctor`: what stands between the operator and its work, and what to do about it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::Lease,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Exit, Output,
    context::{Context, Kube, print},
    world::list_all,
};
use crate::{
    api::{EVENTS_MESSAGE, EVENTS_REASON, InvokerPolicy, definitions},
    cloudrun::{
        google::{Google, Side},
        limit::Place,
    },
    config::CloudArgs,
    fault::{Fault, FaultClass},
    render::{Format, Tone, count, data},
};

/// What the operator needs on every project; product.md 20.
const PERMISSIONS: [&str; 5] = [
    "run.services.get",
    "run.services.list",
    "run.services.getIamPolicy",
    "run.services.setIamPolicy",
    "run.locations.list",
];
/// Verbs of the log that must get through the filter of the sink.
const VERBS: [&str; 6] = [
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

#[derive(Clone, Debug, clap::Args)]
pub struct DoctorCommand {
    /// Project to check; those of all policies if not given.
    #[arg(long = "project")]
    pub projects: Vec<String>,
    /// Name of the operator's Lease, which is that of its release.
    #[arg(long, default_value = "run-invoker")]
    pub release: String,
    /// Namespace of the operator.
    #[arg(long, default_value = "run-invoker")]
    pub release_namespace: String,
    /// Subscription with audit events: projects/PROJECT/subscriptions/NAME.
    #[arg(
        long = "event-subscription",
        env = "RUN_INVOKER_EVENT_SUBSCRIPTIONS",
        value_delimiter = ','
    )]
    pub event_subscriptions: Vec<String>,
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
    #[command(flatten)]
    pub cloud: CloudArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
enum Outcome {
    Pass,
    /// Cannot be seen from here.
    Unknown,
    Warn,
    Fail,
}

/// One finding of `doctor -o json`, version 1.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    check: &'static str,
    subject: String,
    outcome: Outcome,
    evidence: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    fix: String,
}

#[derive(Debug, Serialize)]
struct Document {
    kind: &'static str,
    version: u32,
    findings: Vec<Finding>,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        check: &'static str,
        subject: impl Into<String>,
        outcome: Outcome,
        evidence: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.0.push(Finding {
            check,
            subject: subject.into(),
            outcome,
            evidence: evidence.into(),
            fix: fix.into(),
        });
    }
    fn pass(
        &mut self,
        check: &'static str,
        subject: impl Into<String>,
        evidence: impl Into<String>,
    ) {
        self.add(check, subject, Outcome::Pass, evidence, "");
    }
}

pub async fn run(context: &Context, command: &DoctorCommand) -> anyhow::Result<Exit> {
    let mut findings = Findings::default();
    let mut policies = Vec::new();
    match context.kube().await {
        Ok(kube) => {
            definitions_are_current(&kube, &mut findings).await;
            operator_works(context, &kube, command, &mut findings).await;
            policies = policies_stand(&kube, &mut findings).await;
        }
        Err(why) => findings.add(
            "cluster",
            "kubeconfig",
            Outcome::Fail,
            why.to_string(),
            "set KUBECONFIG, or --kubeconfig and --context",
        ),
    }
    let google = match context.google(&command.cloud).await {
        Ok(google) => google,
        Err(why) => {
            let why = why.to_string();
            let (what, fix) = why.split_once('\n').unwrap_or((&why, ""));
            findings.add("credentials", "Google", Outcome::Fail, what, fix);
            return report(context, command, findings);
        }
    };
    let mut projects: BTreeSet<String> = command.projects.iter().cloned().collect();
    if projects.is_empty() {
        projects.extend(policies.iter().map(|p| p.spec.project.clone()));
    }
    for project in &projects {
        permissions_are_there(&google, project, &mut findings).await;
    }
    let mut topics = BTreeSet::new();
    for subscription in &command.event_subscriptions {
        topics.extend(subscription_is_read(&google, subscription, &mut findings).await);
    }
    if command.event_subscriptions.is_empty() {
        findings.add(
            "events",
            "-",
            Outcome::Unknown,
            "no --event-subscription was given",
            "name it to have it checked; docs/events.md sets it up",
        );
    } else {
        for project in &projects {
            sink_covers(&google, project, &topics, &mut findings).await;
        }
    }
    quota_suffices(&policies, command, &mut findings);
    report(context, command, findings)
}

fn report(context: &Context, command: &DoctorCommand, findings: Findings) -> anyhow::Result<Exit> {
    let worst = findings
        .0
        .iter()
        .map(|f| f.outcome)
        .max()
        .unwrap_or(Outcome::Pass);
    let format = Format::from(command.output);
    if matches!(format, Format::Json | Format::Yaml) {
        print(
            &data(
                &Document {
                    kind: "Doctor",
                    version: 1,
                    findings: findings.0,
                },
                format,
            )
            .map_err(anyhow::Error::msg)?,
        );
    } else {
        let style = context.style();
        let mut text = String::new();
        for f in &findings.0 {
            let (mark, tone) = match f.outcome {
                Outcome::Pass => ("ok  ", Tone::Good),
                Outcome::Unknown => ("?   ", Tone::Dim),
                Outcome::Warn => ("warn", Tone::Warn),
                Outcome::Fail => ("FAIL", Tone::Bad),
            };
            text.push_str(&format!(
                "{} {}: {}\n",
                style.paint(tone, mark),
                f.check,
                f.subject
            ));
            text.push_str(&format!("{}\n", style.wrap(5, &f.evidence)));
            if !f.fix.is_empty() {
                text.push_str(&format!("{}\n", style.wrap(5, &format!("-> {}", f.fix))));
            }
        }
        text.push_str(&style.wrap(
            0,
            "Permissions are those of the credentials in use here. To check the operator's: gcloud auth application-default login --impersonate-service-account OPERATOR",
        ));
        text.push('\n');
        print(&text);
    }
    Ok(if worst >= Outcome::Warn {
        Exit::Differences
    } else {
        Exit::Nothing
    })
}

/// Every field that a schema knows, as paths.
fn fields(schema: &Value, path: &str, into: &mut BTreeSet<String>) {
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        fields(inner, &path, into);
        into.insert(path);
    }
    if schema["items"].is_object() {
        fields(&schema["items"], &format!("{path}[]"), into);
    }
}

async fn definitions_are_current(kube: &Kube, findings: &mut Findings) {
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
            Err(why) => findings.add(
                DEFINITION,
                name,
                Outcome::Unknown,
                why.to_string(),
                "needs get on customresourcedefinitions",
            ),
        }
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

async fn operator_works(
    context: &Context,
    kube: &Kube,
    command: &DoctorCommand,
    findings: &mut Findings,
) {
    let api: Api<Lease> = Api::namespaced(kube.client.clone(), &command.release_namespace);
    let place = format!("{}/{}", command.release_namespace, command.release);
    let leases = match list_all(&api, ListParams::default()).await {
        Ok(found) => found,
        Err(why) => {
            return findings.add(
                OPERATOR,
                place,
                Outcome::Unknown,
                why.to_string(),
                "needs list on leases in the operator's namespace",
            );
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
    for lease in shards {
        let name = format!("{}/{}", command.release_namespace, lease.name_any());
        shard_is_led(context.now, lease, name, findings);
    }
    for lease in &leases {
        state_is_good(&command.release, lease, findings);
    }
}

const OPERATOR: &str = "operator";

fn shard_is_led(now: Timestamp, lease: &Lease, name: String, findings: &mut Findings) {
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.filter(|h| !h.is_empty());
    let age = spec.renew_time.map(|t| now.duration_since(t.0).as_secs());
    let evidence = match (holder, age) {
        (Some(holder), Some(age)) if age <= STALE => {
            return findings.pass(OPERATOR, name, format!("{holder} works on it"));
        }
        (Some(holder), Some(age)) => format!("{holder} has not renewed its Lease for {age}s"),
        _ => "nobody works on it".to_owned(),
    };
    let fix = "look at the Pods of the release and their logs";
    findings.add(OPERATOR, name, Outcome::Fail, evidence, fix);
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
            "it is open: corrections of drift rest",
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

async fn policies_stand(kube: &Kube, findings: &mut Findings) -> Vec<InvokerPolicy> {
    const CHECK: &str = "policies";
    let all: Api<InvokerPolicy> = Api::all(kube.client.clone());
    let policies = match list_all(&all, ListParams::default()).await {
        Ok(found) => found,
        Err(why) => {
            findings.add(
                CHECK,
                "all namespaces",
                Outcome::Unknown,
                why.to_string(),
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
                .entry(ready.map_or("never looked at".into(), |r| r.reason.clone()))
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

/// What a refusal of a check means for the check.
fn refused(fault: &Fault) -> Outcome {
    match fault.class {
        FaultClass::PermissionDenied => Outcome::Unknown,
        _ => Outcome::Fail,
    }
}

fn granted(answer: &Value) -> BTreeSet<&str> {
    answer["permissions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

async fn permissions_are_there(google: &Google, project: &str, findings: &mut Findings) {
    const CHECK: &str = "permissions";
    let path = format!("v3/projects/{project}:testIamPermissions");
    match google
        .ask(
            Side::ResourceManager,
            &path,
            Some(&json!({"permissions": PERMISSIONS})),
        )
        .await
    {
        Err(fault) => findings.add(
            CHECK,
            project,
            refused(&fault),
            fault.to_string(),
            "is the project's id right, and is the Resource Manager API on?",
        ),
        Ok(answer) => {
            let held = granted(&answer);
            let missing: Vec<&str> = PERMISSIONS
                .iter()
                .copied()
                .filter(|p| !held.contains(p))
                .collect();
            match missing.as_slice() {
                [] => findings.pass(CHECK, project, "all five"),
                ["run.services.setIamPolicy"] => findings.add(
                    CHECK,
                    project,
                    Outcome::Warn,
                    "all but run.services.setIamPolicy: enough for mode Audit, not for Enforce",
                    "docs/google-cloud.md",
                ),
                missing => findings.add(
                    CHECK,
                    project,
                    Outcome::Fail,
                    format!("missing: {}", missing.join(", ")),
                    "docs/google-cloud.md has the role",
                ),
            }
        }
    }
}

/// The topic of the subscription, if it can be seen.
async fn subscription_is_read(
    google: &Google,
    name: &str,
    findings: &mut Findings,
) -> Option<String> {
    let consume = "pubsub.subscriptions.consume";
    let asked = google
        .ask(
            Side::PubSub,
            &format!("v1/{name}:testIamPermissions"),
            Some(&json!({"permissions": [consume]})),
        )
        .await;
    match asked {
        Ok(answer) if granted(&answer).contains(consume) => {
            findings.pass(SUBSCRIPTION, name, "it may be read")
        }
        Ok(_) => findings.add(
            SUBSCRIPTION,
            name,
            Outcome::Fail,
            format!("{consume} is missing, or there is no such subscription"),
            "grant roles/pubsub.subscriber on it: docs/events.md",
        ),
        Err(fault) => {
            let is_gone = fault.class.row().gone;
            let (outcome, evidence) = if is_gone {
                (Outcome::Fail, "it is not there".to_owned())
            } else {
                (refused(&fault), fault.to_string())
            };
            let fix = "docs/events.md sets it up";
            findings.add(SUBSCRIPTION, name, outcome, evidence, fix);
            if is_gone {
                return None;
            }
        }
    }
    topic_of(google, name, findings).await
}

const SUBSCRIPTION: &str = "subscription";

async fn topic_of(google: &Google, name: &str, findings: &mut Findings) -> Option<String> {
    let found = match google.ask(Side::PubSub, &format!("v1/{name}"), None).await {
        Ok(found) => found,
        Err(fault) => {
            findings.add(
                SUBSCRIPTION,
                name,
                Outcome::Unknown,
                format!("its topic cannot be seen: {fault}"),
                "needs pubsub.subscriptions.get, which the operator itself does not",
            );
            return None;
        }
    };
    let topic = found["topic"].as_str().unwrap_or_default();
    if topic.is_empty() || topic == "_deleted-topic_" {
        findings.add(
            SUBSCRIPTION,
            name,
            Outcome::Fail,
            "its topic was deleted",
            "make the topic and the subscription anew: docs/events.md",
        );
        return None;
    }
    Some(topic.to_owned())
}

async fn sink_covers(
    google: &Google,
    project: &str,
    topics: &BTreeSet<String>,
    findings: &mut Findings,
) {
    let path = format!("v2/projects/{project}/sinks");
    let sinks = match google.ask(Side::Logging, &path, None).await {
        Ok(found) => found,
        Err(fault) => {
            return findings.add(
                SINK,
                project,
                Outcome::Unknown,
                fault.to_string(),
                "needs logging.sinks.list",
            );
        }
    };
    let leads_to = |destination: &str| {
        let mut topics = topics.iter();
        topics.any(|t| destination == format!("pubsub.googleapis.com/{t}"))
    };
    let ours = |s: &&Value| leads_to(s["destination"].as_str().unwrap_or_default());
    match sinks["sinks"].as_array().into_iter().flatten().find(ours) {
        Some(sink) => sink_lets_through(project, sink, findings),
        None => findings.add(
            SINK,
            project,
            Outcome::Unknown,
            "no sink of the project itself leads to the topic; one of its folder or organization cannot be seen from here",
            "if there is none either: docs/events.md",
        ),
    }
}

const SINK: &str = "sink";

fn sink_lets_through(project: &str, sink: &Value, findings: &mut Findings) {
    let subject = format!("{project}: {}", sink["name"].as_str().unwrap_or_default());
    if sink["disabled"] == true {
        return findings.add(
            SINK,
            subject,
            Outcome::Fail,
            "it is disabled",
            "gcloud logging sinks update NAME --no-disabled",
        );
    }
    let filter = sink["filter"].as_str().unwrap_or_default();
    // An empty filter lets everything through.
    let is_lost = |verb: &&str| !filter.is_empty() && !filter.contains(*verb);
    let lost: Vec<&str> = VERBS.iter().copied().filter(is_lost).collect();
    if lost.is_empty() {
        let writer = sink["writerIdentity"].as_str().unwrap_or("-");
        let evidence = format!("leads to the topic, written by {writer}");
        return findings.pass(SINK, subject, evidence);
    }
    let evidence = format!("its filter does not name {}", lost.join(", "));
    findings.add(
        SINK,
        subject,
        Outcome::Warn,
        evidence,
        "docs/events.md has the filter",
    );
}

/// Reads in a minute that policies ask for, against what the operator lets itself have.
fn quota_suffices(policies: &[InvokerPolicy], command: &DoctorCommand, findings: &mut Findings) {
    const CHECK: &str = "quota";
    let mut places: BTreeMap<Place, BTreeMap<String, f64>> = BTreeMap::new();
    for p in policies.iter().filter(|p| !p.spec.suspend) {
        let interval = crate::intent::interval(&p.spec.interval)
            .as_secs_f64()
            .max(10.0);
        for s in p.status.iter().flat_map(|s| &s.services) {
            let place = Place {
                project: p.spec.project.as_str().into(),
                region: s.region.as_str().into(),
            };
            let services = places.entry(place).or_default();
            let rate = services.entry(s.name.clone()).or_default();
            *rate = rate.max(60.0 / interval);
        }
    }
    let fullest = places
        .iter()
        .map(|(place, services)| (services.values().sum::<f64>(), services.len(), place));
    let Some((rate, services, place)) = fullest.max_by(|a, b| a.0.total_cmp(&b.0)) else {
        return;
    };
    let budget = f64::from(command.cloud.reads_per_minute);
    let subject = format!("{} ({})", place.project, place.region);
    let evidence = format!(
        "the fullest of all: {} with {rate:.1} reads a minute; the operator lets itself have {budget:.0}, and half of the limit once Google names one (run_invoker_cloud_limit_per_minute)",
        count(services, "service")
    );
    if rate > budget * 0.8 {
        findings.add(
            CHECK,
            subject,
            Outcome::Warn,
            evidence,
            "raise spec.interval, or settings.readsPerMinute if Google's quota allows, or use audit events",
        );
    } else {
        findings.pass(CHECK, subject, evidence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_lists_too() {
        let schema = json!({"properties": {"spec": {"properties": {"a": {"items": {"properties": {"b": {}}}}}}}});
        let mut found = BTreeSet::new();
        fields(&schema, "", &mut found);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [".spec", ".spec.a", ".spec.a[].b"]
        );
    }
}
