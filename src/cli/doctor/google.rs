//! What is asked of Google: rights, the subscription and its sink.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    cluster::VERBS,
    findings::{Findings, Outcome},
};
use crate::{
    cloudrun::google::{Google, Side},
    fault::{Fault, FaultClass},
};

/// What the operator needs on every project; product.md 20.
const PERMISSIONS: [&str; 5] = [
    "run.services.get",
    "run.services.list",
    "run.services.getIamPolicy",
    "run.services.setIamPolicy",
    "run.locations.list",
];

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

pub(super) async fn permissions_are_there(google: &Google, project: &str, findings: &mut Findings) {
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
pub(super) async fn subscription_is_read(
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

pub(super) async fn sink_covers(
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
