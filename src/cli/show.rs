//! `status`, `drift`, `history`: what the cluster says.

use std::time::Duration;

use jiff::Timestamp;
use kube::{Api, ResourceExt as _, api::ListParams};
use serde::Serialize;

use super::{
    Exit, Output,
    context::{Context, Kube, print},
    world::list_all,
};
use crate::{
    api::{
        ChangePhase, ChangedBy, InvokerChange, InvokerPolicy, InvokerPolicyStatus,
        POLICY_LABEL_PREFIX, ServiceState,
    },
    render::{Format, Tone, data, table},
};

#[derive(Clone, Debug, clap::Args)]
pub struct StatusCommand {
    /// Name of a policy; all of the namespace if not given.
    pub name: Option<String>,
    /// Every namespace.
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

#[derive(Clone, Debug, clap::Args)]
pub struct DriftCommand {
    /// Name of a policy; all of the namespace if not given.
    pub name: Option<String>,
    /// Every namespace.
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
    /// Show it again whenever it changes, until interrupted.
    #[arg(long, short)]
    pub watch: bool,
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

#[derive(Clone, Debug, clap::Args)]
pub struct HistoryCommand {
    /// Name of a policy; all of the namespace if not given.
    pub name: Option<String>,
    /// Every namespace.
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
    /// Only changes of this Cloud Run service.
    #[arg(long)]
    pub service: Option<String>,
    /// The members of each change, too.
    #[arg(long)]
    pub members: bool,
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// `status -o json`, version 1.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusDocument {
    kind: &'static str,
    version: u32,
    policies: Vec<PolicyLine>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyLine {
    namespace: String,
    name: String,
    mode: String,
    ready: String,
    reason: String,
    services: i64,
    missing: i64,
    unexpected: i64,
    message: String,
}

/// `drift -o json`, version 1.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct DriftDocument {
    kind: &'static str,
    version: u32,
    services: Vec<DriftLine>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct DriftLine {
    namespace: String,
    policy: String,
    region: String,
    service: String,
    state: ServiceState,
    since: Timestamp,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unexpected: Vec<String>,
    exposed: bool,
    contested: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    drift_by: Option<ChangedBy>,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

async fn policies(
    kube: &Kube,
    name: Option<&str>,
    all: bool,
) -> anyhow::Result<Vec<InvokerPolicy>> {
    if let Some(name) = name {
        if all {
            anyhow::bail!("give either a name or -A, not both");
        }
        return Ok(vec![policy(kube, name).await?]);
    }
    let api = if all {
        Api::all(kube.client.clone())
    } else {
        Api::namespaced(kube.client.clone(), &kube.namespace)
    };
    let mut found = list_all(&api, ListParams::default()).await?;
    found.sort_by_key(|p: &InvokerPolicy| (p.namespace(), p.name_any()));
    Ok(found)
}

/// One policy of the namespace.
///
/// # Errors
/// When it is not there, with what there is.
pub async fn policy(kube: &Kube, name: &str) -> anyhow::Result<InvokerPolicy> {
    let api: Api<InvokerPolicy> = Api::namespaced(kube.client.clone(), &kube.namespace);
    if let Some(found) = api.get_opt(name).await? {
        return Ok(found);
    }
    let there = list_all(&api, ListParams::default()).await?;
    let names: Vec<String> = there.iter().map(|p| p.name_any()).take(10).collect();
    let hint = if names.is_empty() {
        "it has no policies; -n names another".to_owned()
    } else {
        format!("it has {}", names.join(", "))
    };
    anyhow::bail!(
        "namespace {} has no InvokerPolicy {name}; {hint}",
        kube.namespace
    )
}

/// `3m`, `2h5m`, `4d`: the two largest units.
pub fn ago(now: Timestamp, at: Timestamp) -> String {
    let seconds = now.duration_since(at).as_secs().max(0);
    let (d, h, m, s) = (
        seconds / 86_400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m"),
        (0, _, 0) => format!("{h}h"),
        (0, ..) => format!("{h}h{m}m"),
        (_, 0, _) => format!("{d}d"),
        _ => format!("{d}d{h}h"),
    }
}

fn condition<'a>(
    status: &'a InvokerPolicyStatus,
    type_: &str,
) -> Option<&'a crate::api::StatusCondition> {
    status.conditions.iter().find(|c| c.type_ == type_)
}

pub async fn status(context: &Context, command: &StatusCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    let found = policies(&kube, command.name.as_deref(), command.all_namespaces).await?;
    let lines: Vec<PolicyLine> = found.iter().map(policy_line).collect();
    let is_off = |l: &PolicyLine| l.ready != "True" || l.missing + l.unexpected > 0;
    let exit = if lines.iter().any(is_off) {
        Exit::Differences
    } else {
        Exit::Nothing
    };
    let text = match Format::from(command.output) {
        format @ (Format::Json | Format::Yaml) => {
            let document = StatusDocument {
                kind: "Status",
                version: 1,
                policies: lines,
            };
            data(&document, format).map_err(anyhow::Error::msg)?
        }
        _ if found.is_empty() => {
            context.complain("no policies");
            String::new()
        }
        format => {
            let mut text = status_table(context, command.all_namespaces, &lines, format);
            // One policy is shown in full.
            if let (Some(_), [p], Format::Text) = (&command.name, found.as_slice(), format) {
                text.push_str(&in_full(context, p));
            }
            text
        }
    };
    print(&text);
    Ok(exit)
}

fn policy_line(policy: &InvokerPolicy) -> PolicyLine {
    let status = policy.status.clone().unwrap_or_default();
    let ready = condition(&status, "Ready");
    let summary = status.summary.clone().unwrap_or_default();
    PolicyLine {
        namespace: policy.namespace().unwrap_or_default(),
        name: policy.name_any(),
        mode: if policy.spec.suspend {
            "Suspended".into()
        } else {
            format!("{:?}", policy.spec.mode)
        },
        ready: ready.map_or("Unknown".into(), |r| r.status.clone()),
        reason: ready.map_or(String::new(), |r| r.reason.clone()),
        services: summary.services,
        missing: summary.missing,
        unexpected: summary.unexpected,
        message: condition(&status, "Stalled")
            .or(ready)
            .map_or(String::new(), |c| c.message.clone()),
    }
}

fn status_table(
    context: &Context,
    all_namespaces: bool,
    lines: &[PolicyLine],
    format: Format,
) -> String {
    let head = ["policy", "mode", "ready", "reason", "svc", "miss", "extra"];
    let row = |l: &PolicyLine| {
        vec![
            if all_namespaces {
                format!("{}/{}", l.namespace, l.name)
            } else {
                l.name.clone()
            },
            l.mode.clone(),
            l.ready.clone(),
            l.reason.clone(),
            l.services.to_string(),
            l.missing.to_string(),
            l.unexpected.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = lines.iter().map(row).collect();
    tabulated(context, format, &head, &rows)
}

fn tabulated(context: &Context, format: Format, head: &[&str], rows: &[Vec<String>]) -> String {
    if format == Format::Markdown {
        table::markdown(head, rows)
    } else {
        table::table(&context.style(), head, rows)
    }
}

fn in_full(context: &Context, p: &InvokerPolicy) -> String {
    let style = context.style();
    let status = p.status.clone().unwrap_or_default();
    let mut text = String::from("\n");
    for c in &status.conditions {
        let since = ago(context.now, c.last_transition_time.0);
        let head = format!("{}={} ({}), since {since}", c.type_, c.status, c.reason);
        text.push_str(&style.paint(Tone::Strong, &head));
        text.push('\n');
        if !c.message.is_empty() {
            text.push_str(&style.wrap(2, &c.message));
            text.push('\n');
        }
    }
    for s in status
        .services
        .iter()
        .filter(|s| s.state != ServiceState::InSync)
    {
        text.push_str(&format!(
            "\n{} ({}): {:?}, since {}\n",
            s.name,
            s.region,
            s.state,
            ago(context.now, s.since.0)
        ));
        for (sign, members) in [("+", &s.missing), ("-", &s.unexpected), ("=", &s.protected)] {
            for member in members {
                text.push_str(&format!("  {sign} {member}\n"));
            }
        }
        if let Some(by) = &s.drift_by {
            text.push_str(&style.wrap(2, &format!("by {by}")));
            text.push('\n');
        }
        if !s.message.is_empty() {
            text.push_str(&style.wrap(2, &s.message));
            text.push('\n');
        }
    }
    text
}

pub async fn drift(context: &Context, command: &DriftCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    let mut last = None;
    loop {
        let found = policies(&kube, command.name.as_deref(), command.all_namespaces).await?;
        let document = drift_document(&found);
        if last.as_ref() != Some(&document) {
            let text = drift_text(context, command, &document)?;
            print(&text);
        }
        if !command.watch {
            return Ok(if document.services.is_empty() {
                Exit::Nothing
            } else {
                Exit::Differences
            });
        }
        last = Some(document);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

fn drift_document(found: &[InvokerPolicy]) -> DriftDocument {
    let mut services: Vec<DriftLine> = found
        .iter()
        .flat_map(|p| {
            p.status
                .iter()
                .flat_map(|s| &s.services)
                .map(move |s| (p, s))
        })
        .filter(|(_, s)| s.state != ServiceState::InSync || s.exposed || s.contested)
        .map(|(p, s)| DriftLine {
            namespace: p.namespace().unwrap_or_default(),
            policy: p.name_any(),
            region: s.region.clone(),
            service: s.name.clone(),
            state: s.state,
            since: s.since.0,
            missing: s.missing.clone(),
            unexpected: s.unexpected.clone(),
            exposed: s.exposed,
            contested: s.contested,
            drift_by: s.drift_by.clone(),
            message: s.message.clone(),
        })
        .collect();
    services.sort_by_key(|l| {
        (
            l.since,
            l.namespace.clone(),
            l.policy.clone(),
            l.region.clone(),
            l.service.clone(),
        )
    });
    DriftDocument {
        kind: "Drift",
        version: 1,
        services,
    }
}

fn drift_text(
    context: &Context,
    command: &DriftCommand,
    document: &DriftDocument,
) -> anyhow::Result<String> {
    match Format::from(command.output) {
        format @ (Format::Json | Format::Yaml) => {
            data(document, format).map_err(anyhow::Error::msg)
        }
        _ if document.services.is_empty() => Ok("as declared everywhere\n".into()),
        Format::Markdown => {
            let head = ["policy", "service", "state", "since", "what"];
            let rows: Vec<Vec<String>> = document.services.iter().map(drift_row).collect();
            Ok(table::markdown(&head, &rows))
        }
        _ => Ok(drift_lines(context, document)),
    }
}

/// What differs on a service, each in a few words.
fn differences(line: &DriftLine) -> Vec<String> {
    let mut all: Vec<String> = line.missing.iter().map(|m| format!("+ {m}")).collect();
    all.extend(line.unexpected.iter().map(|m| format!("- {m}")));
    if line.exposed {
        all.push("EXPOSED: anyone can call it".to_owned());
    }
    if line.contested {
        all.push("CONTESTED: somebody else keeps changing it".to_owned());
    }
    all.extend(line.drift_by.as_ref().map(|by| format!("by {by}")));
    all.extend((!line.message.is_empty()).then(|| line.message.clone()));
    all
}

fn drift_row(line: &DriftLine) -> Vec<String> {
    vec![
        format!("{}/{}", line.namespace, line.policy),
        format!("{} ({})", line.service, line.region),
        format!("{:?}", line.state),
        line.since.to_string(),
        differences(line).join("; "),
    ]
}

fn drift_lines(context: &Context, document: &DriftDocument) -> String {
    let style = context.style();
    let mut text = String::new();
    for l in &document.services {
        let head = format!("{} ({})", l.service, l.region);
        let since = ago(context.now, l.since);
        text.push_str(&style.paint(Tone::Strong, &head));
        text.push_str(&format!(
            "  {:?} since {since}, policy {}/{}\n",
            l.state, l.namespace, l.policy
        ));
        for line in differences(l) {
            let tone = if line.starts_with('+') {
                Tone::Good
            } else {
                Tone::Bad
            };
            text.push_str(&style.paint(tone, &style.wrap(2, &line)));
            text.push('\n');
        }
        text.push('\n');
    }
    let legend = "+ declared and not there, - there and not declared. By whom: where audit events tell (docs/events.md).";
    text.push_str(&style.paint(Tone::Dim, &style.wrap(0, legend)));
    text.push('\n');
    text
}

pub async fn history(context: &Context, command: &HistoryCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    let api: Api<InvokerChange> = if command.all_namespaces {
        Api::all(kube.client.clone())
    } else {
        Api::namespaced(kube.client.clone(), &kube.namespace)
    };
    let params = match &command.name {
        Some(name) => ListParams::default().labels(&format!("{POLICY_LABEL_PREFIX}{name}")),
        None => ListParams::default(),
    };
    let mut found = list_all(&api, params).await?;
    if let Some(service) = &command.service {
        found.retain(|c| c.spec.service == *service);
    }
    found.sort_by_key(|c| std::cmp::Reverse(c.spec.at.0));
    let format = Format::from(command.output);
    if matches!(format, Format::Json | Format::Yaml) {
        let changes: Vec<_> = found
            .iter()
            .map(|c| serde_json::json!({"namespace": c.namespace(), "name": c.name_any(), "spec": c.spec}))
            .collect();
        let document = serde_json::json!({"kind": "History", "version": 1, "changes": changes});
        print(&data(&document, format).map_err(anyhow::Error::msg)?);
        return Ok(Exit::Nothing);
    }
    if found.is_empty() {
        context.complain("no changes are on record");
        return Ok(Exit::Nothing);
    }
    let head = ["change", "age", "service", "reason", "grants"];
    let row = |c: &InvokerChange| history_row(context.now, command, c);
    let rows: Vec<Vec<String>> = found.iter().map(row).collect();
    print(&tabulated(context, format, &head, &rows));
    Ok(Exit::Nothing)
}

fn history_row(now: Timestamp, command: &HistoryCommand, change: &InvokerChange) -> Vec<String> {
    let spec = &change.spec;
    let mut grants = vec![format!("+{} -{}", spec.added_count, spec.removed_count)];
    if command.members {
        grants.extend(spec.added.iter().map(|g| format!("+ {}", g.member)));
        grants.extend(spec.removed.iter().map(|g| format!("- {}", g.member)));
        grants.extend(spec.drift_by.as_ref().map(|by| format!("against {by}")));
    }
    let name = change.name_any();
    vec![
        match change.namespace().filter(|_| command.all_namespaces) {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name,
        },
        ago(now, spec.at.0),
        format!("{} ({})", spec.service, spec.region),
        match spec.outcome.phase {
            ChangePhase::Applied => spec.reason.as_str().into(),
            other => format!("{}, {}", spec.reason.as_str(), other.as_str()),
        },
        grants.join("\n"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        for (at, text) in [
            ("2026-11-24T11:59:48Z", "12s"),
            ("2026-11-24T11:55:00Z", "5m"),
            ("2026-11-24T09:55:00Z", "2h5m"),
            ("2026-11-20T11:00:00Z", "4d1h"),
            ("2026-11-25T00:00:00Z", "0s"),
        ] {
            assert_eq!(ago(now, at.parse().unwrap()), text);
        }
    }
}
