//! What is asked of Google: rights, the subscription and its sink.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    checks::Checks,
    cluster::VERBS,
    findings::{Findings, Outcome},
};
use crate::cloudrun::google::Side;

/// What the operator needs on every project; product.md 20.
const PERMISSIONS: [&str; 5] = [
    "run.services.get",
    "run.services.list",
    "run.services.getIamPolicy",
    "run.services.setIamPolicy",
    "run.locations.list",
];

fn granted(answer: &Value) -> BTreeSet<&str> {
    answer["permissions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

pub(super) async fn permissions_are_there(checks: &mut Checks<'_>, project: &str) {
    const CHECK: &str = "permissions";
    let side = Side::ResourceManager;
    let path = format!("v3/projects/{project}:testIamPermissions");
    let body = json!({"permissions": PERMISSIONS});
    match checks.ask(side, &path, Some(&body)).await {
        None => {}
        Some(Err(fault)) => checks.refused(CHECK, project, (side, &fault), ""),
        Some(Ok(answer)) => {
            let findings = &mut checks.findings;
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
pub(super) async fn subscription_is_read(checks: &mut Checks<'_>, name: &str) -> Option<String> {
    let consume = "pubsub.subscriptions.consume";
    let path = format!("v1/{name}:testIamPermissions");
    let body = json!({"permissions": [consume]});
    match checks.ask(Side::PubSub, &path, Some(&body)).await? {
        Ok(answer) if granted(&answer).contains(consume) => {
            checks.findings.pass(SUBSCRIPTION, name, "it may be read")
        }
        Ok(_) => checks.findings.add(
            SUBSCRIPTION,
            name,
            Outcome::Fail,
            format!("{consume} is missing, or there is no such subscription"),
            "grant roles/pubsub.subscriber on it: docs/events.md",
        ),
        Err(fault) if fault.class.row().gone => {
            let (evidence, fix) = ("it is not there", "docs/events.md sets it up");
            let findings = &mut checks.findings;
            findings.add(SUBSCRIPTION, name, Outcome::Fail, evidence, fix);
            return None;
        }
        Err(fault) => checks.refused(SUBSCRIPTION, name, (Side::PubSub, &fault), ""),
    }
    topic_of(checks, name).await
}

const SUBSCRIPTION: &str = "subscription";

async fn topic_of(checks: &mut Checks<'_>, name: &str) -> Option<String> {
    let side = Side::PubSub;
    let found = match checks.ask(side, &format!("v1/{name}"), None).await? {
        Ok(found) => found,
        Err(fault) => {
            let needs =
                "its topic needs pubsub.subscriptions.get, which the operator itself does not";
            checks.refused(SUBSCRIPTION, name, (side, &fault), needs);
            return None;
        }
    };
    let topic = found["topic"].as_str().unwrap_or_default();
    if topic.is_empty() || topic == "_deleted-topic_" {
        checks.findings.add(
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

pub(super) async fn sink_covers(checks: &mut Checks<'_>, project: &str, topics: &BTreeSet<String>) {
    let path = format!("v2/projects/{project}/sinks");
    let side = Side::Logging;
    let sinks = match checks.ask(side, &path, None).await {
        None => return,
        Some(Ok(found)) => found,
        Some(Err(fault)) => {
            let needs = "needs logging.sinks.list";
            return checks.refused(SINK, project, (side, &fault), needs);
        }
    };
    let leads_to = |destination: &str| {
        let mut topics = topics.iter();
        topics.any(|t| destination == format!("pubsub.googleapis.com/{t}"))
    };
    let ours = |s: &&Value| leads_to(s["destination"].as_str().unwrap_or_default());
    match sinks["sinks"].as_array().into_iter().flatten().find(ours) {
        Some(sink) => sink_lets_through(project, sink, checks.findings),
        None => checks.findings.add(
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
