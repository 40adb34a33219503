//! `drift`: what differs from what is declared, and what was corrected lately.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use serde::Serialize;

use super::{ago, policies};
use crate::{
    api::{ChangedBy, InvokerPolicy, ServiceState},
    cli::{
        Exit, Output,
        context::{Context, print},
    },
    render::{Format, Tone, data, table},
};

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

/// `drift -o json`, version 1.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct DriftDocument {
    pub(super) kind: &'static str,
    pub(super) version: u32,
    pub(super) services: Vec<DriftLine>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct DriftLine {
    pub(super) namespace: String,
    pub(super) policy: String,
    pub(super) region: String,
    pub(super) service: String,
    pub(super) state: ServiceState,
    pub(super) since: Timestamp,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) missing: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) unexpected: Vec<String>,
    exposed: bool,
    contested: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) drift_by: Option<ChangedBy>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) message: String,
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
