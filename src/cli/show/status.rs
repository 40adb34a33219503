//! `status`: how policies stand.

use std::collections::BTreeSet;

use jiff::Timestamp;
use kube::{Resource as _, ResourceExt as _};
use serde::Serialize;

use super::{ago, condition, tabulated};
use crate::{
    api::{InvokerPolicy, InvokerPolicyStatus, ServiceState, ServiceStatus},
    cli::{
        Exit,
        context::{Context, print},
        output::ListOutput,
        select::Selection,
    },
    render::{Style, Tone},
};

#[derive(Clone, Debug, clap::Args)]
pub struct StatusCommand {
    #[command(flatten)]
    pub chosen: Selection,
    /// Form of the answer; TEMPLATE as kubectl takes it, over the document of -o json.
    #[arg(short, long, default_value = "text", value_name = "FORM")]
    pub output: ListOutput,
}

/// `status -o json`, version 1.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusDocument {
    pub(super) kind: &'static str,
    pub(super) version: u32,
    policies: Vec<PolicyLine>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyLine {
    pub(super) namespace: String,
    pub(super) name: String,
    project: String,
    mode: String,
    ready: String,
    pub(super) reason: String,
    pub(super) services: i64,
    drifted: i64,
    pub(super) missing: i64,
    pub(super) unexpected: i64,
    pub(super) message: String,
    /// The InvokerChanges that are rolled back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rollback: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_change: Option<String>,
}

pub async fn status(context: &Context, command: &StatusCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    let chosen = command.chosen.policies(&kube).await?;
    let absent = chosen.complain(context);
    let found = chosen.found;
    let document = StatusDocument {
        kind: "Status",
        version: 1,
        policies: found.iter().map(policy_line).collect(),
    };
    let lines = &document.policies;
    let is_off = |l: &PolicyLine| l.ready != "True" || l.missing + l.unexpected > 0;
    let exit = if absent {
        Exit::Error
    } else if lines.iter().any(is_off) {
        Exit::Differences
    } else {
        Exit::Nothing
    };
    if let Some(text) = command
        .output
        .for_programs(&document, resource_names(&found))?
    {
        print(&text);
        return Ok(exit);
    }
    if found.is_empty() {
        command
            .chosen
            .say_nothing(context, "policies", &kube.namespace);
        return Ok(exit);
    }
    let mut text = status_table(context, command, lines);
    // Policies that are named are shown in full.
    if !command.chosen.names.is_empty() && command.output == ListOutput::Text {
        for (policy, line) in found.iter().zip(lines) {
            text.push_str(&in_full(context, policy, line, found.len() > 1));
        }
    }
    print(&text);
    Ok(exit)
}

/// Resource and name, as kubectl prints them for `-o name`.
pub(super) fn resource_names(found: &[InvokerPolicy]) -> Vec<String> {
    let name = |p: &InvokerPolicy| {
        format!(
            "invokerpolicy.{}/{}",
            InvokerPolicy::group(&()),
            p.name_any()
        )
    };
    found.iter().map(name).collect()
}

fn policy_line(policy: &InvokerPolicy) -> PolicyLine {
    let status = policy.status.clone().unwrap_or_default();
    let summary = status.summary.clone().unwrap_or_default();
    let (ready, reason, message) = readiness(policy, &status);
    let asked = policy.annotations().get(crate::api::ROLLBACK);
    let asked = asked.map(String::as_str).unwrap_or_default();
    let changes = asked.split([',', ' ']).filter(|w| !w.is_empty());
    PolicyLine {
        namespace: policy.namespace().unwrap_or_default(),
        name: policy.name_any(),
        project: policy.spec.project.clone(),
        mode: if policy.spec.suspend {
            "Suspended".into()
        } else {
            format!("{:?}", policy.spec.mode)
        },
        ready,
        reason,
        services: summary.services,
        drifted: summary.drifted,
        missing: summary.missing,
        unexpected: summary.unexpected,
        message,
        rollback: changes.map(str::to_owned).collect(),
        last_change: status.last_change,
    }
}

/// Ready, its reason and what to say of it. What was true of an earlier spec is not shown as true
/// of this one.
fn readiness(policy: &InvokerPolicy, status: &InvokerPolicyStatus) -> (String, String, String) {
    let unknown = |reason: &str, message: &str| ("Unknown".into(), reason.into(), message.into());
    let ready = condition(status, "Ready");
    let current = ready.is_some_and(|r| Some(r.observed_generation) == policy.metadata.generation);
    match ready {
        Some(r) if current || policy.metadata.generation.is_none() => {
            let message = condition(status, "Stalled").unwrap_or(r).message.clone();
            (r.status.clone(), r.reason.clone(), message)
        }
        _ if policy.spec.suspend => {
            unknown("Suspended", "suspended: IAM is neither read nor written")
        }
        Some(_) => unknown(
            "Progressing",
            "the operator has not reconciled this version of the spec yet",
        ),
        None => unknown(
            "Progressing",
            "the operator has not reconciled this policy yet",
        ),
    }
}

fn status_table(context: &Context, command: &StatusCommand, lines: &[PolicyLine]) -> String {
    let wide = command.output == ListOutput::Wide;
    let mut head = vec!["policy", "mode", "ready", "reason", "services", "drifted"];
    if wide {
        head.extend(["missing", "unexpected", "project"]);
        head.extend(["rollback", "last change", "message"]);
    }
    let or_none = |text: String| {
        if text.is_empty() {
            "<none>".to_owned()
        } else {
            text
        }
    };
    let row = |l: &PolicyLine| {
        let mut cells = vec![
            if command.chosen.shows_namespaces() {
                format!("{}/{}", l.namespace, l.name)
            } else {
                l.name.clone()
            },
            l.mode.clone(),
            l.ready.clone(),
            l.reason.clone(),
            l.services.to_string(),
            l.drifted.to_string(),
        ];
        if wide {
            cells.push(l.missing.to_string());
            cells.push(l.unexpected.to_string());
            cells.push(l.project.clone());
            cells.push(or_none(l.rollback.join(",")));
            cells.push(or_none(l.last_change.clone().unwrap_or_default()));
            cells.push(l.message.clone());
        }
        cells
    };
    let rows: Vec<Vec<String>> = lines.iter().map(row).collect();
    tabulated(context, &command.output, &head, &rows)
}

/// A policy in full; each message once.
fn in_full(
    context: &Context,
    p: &InvokerPolicy,
    line: &PolicyLine,
    one_of_several: bool,
) -> String {
    let style = context.style();
    let status = p.status.clone().unwrap_or_default();
    let mut text = String::from("\n");
    if one_of_several {
        let name = format!("{}/{}", line.namespace, line.name);
        text.push_str(&format!("{}\n", style.paint(Tone::Strong, &name)));
    }
    let ready = condition(&status, "Ready");
    if ready.is_none_or(|r| r.reason != line.reason) {
        // What stands in the status is about an earlier spec.
        let head = format!("Ready={} ({})", line.ready, line.reason);
        text.push_str(&format!("{}\n", style.paint(Tone::Strong, &head)));
        text.push_str(&format!("{}\n", style.wrap(2, &line.message)));
        return text;
    }
    let mut said = BTreeSet::new();
    for c in &status.conditions {
        // The default of the definition has no time.
        let since = match c.last_transition_time.0 {
            at if at == Timestamp::UNIX_EPOCH => String::new(),
            at => format!(", since {}", ago(context.now, at)),
        };
        let head = format!("{}={} ({}){since}", c.type_, c.status, c.reason);
        text.push_str(&format!("{}\n", style.paint(Tone::Strong, &head)));
        if !c.message.is_empty() && said.insert(c.message.clone()) {
            text.push_str(&format!("{}\n", style.wrap(2, &c.message)));
        }
    }
    let off = status.services.iter();
    for s in off.filter(|s| s.state != ServiceState::InSync) {
        text.push_str(&service(context, &style, s, &unsaid(s, &said)));
    }
    text
}

/// What the message of a service says beyond the conditions. Those name the service behind the
/// member (`M on S (R): why`), it does not (`M: why`).
fn unsaid(s: &ServiceStatus, said: &BTreeSet<String>) -> String {
    let place = format!(" on {} ({})", s.name, s.region);
    let said: Vec<String> = said.iter().map(|m| m.replace(&place, "")).collect();
    let is_new = |part: &&str| !said.iter().any(|m| m.contains(*part));
    let parts: Vec<&str> = s.message.split("; ").filter(is_new).collect();
    parts.join("; ")
}

fn service(context: &Context, style: &Style, s: &ServiceStatus, message: &str) -> String {
    let since = ago(context.now, s.since.0);
    let head = format!("{} ({}): {:?}, since {since}", s.name, s.region, s.state);
    let mut text = format!("\n{}\n", style.wrap(0, &head));
    for (sign, members) in [("+", &s.missing), ("-", &s.unexpected), ("=", &s.protected)] {
        for member in members {
            text.push_str(&format!("{}\n", style.wrap(2, &format!("{sign} {member}"))));
        }
    }
    if let Some(by) = &s.drift_by {
        text.push_str(&format!("{}\n", style.wrap(2, &format!("by {by}"))));
    }
    if !message.is_empty() {
        text.push_str(&format!("{}\n", style.wrap(2, message)));
    }
    text
}
