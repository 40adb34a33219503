//! `status`: how policies stand.

use kube::ResourceExt as _;
use serde::Serialize;

use super::{ago, condition, policies, tabulated};
use crate::{
    api::{InvokerPolicy, ServiceState},
    cli::{
        Exit, Output,
        context::{Context, print},
    },
    render::{Format, Tone, data},
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
    mode: String,
    ready: String,
    pub(super) reason: String,
    pub(super) services: i64,
    pub(super) missing: i64,
    pub(super) unexpected: i64,
    pub(super) message: String,
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
