//! `history`: what the operator changed, and why.

use jiff::Timestamp;
use kube::{Api, ResourceExt as _, api::ListParams};

use super::{ago, tabulated};
use crate::{
    api::{ChangePhase, InvokerChange, InvokerChangeSpec, POLICY_LABEL_PREFIX},
    cli::{
        Exit, Output,
        context::{Context, print},
        world::list_all,
    },
    render::{Format, data},
};

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

/// Why it was written, and by which approvals.
fn why(spec: &InvokerChangeSpec) -> String {
    let mut lines = vec![match spec.outcome.phase {
        ChangePhase::Applied => spec.reason.as_str().to_owned(),
        other => format!("{}, {}", spec.reason.as_str(), other.as_str()),
    }];
    let approved = spec.approvals.iter();
    lines.extend(approved.map(|a| format!("by {}: {}", a.name, a.reason)));
    lines.join("\n")
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
        why(spec),
        grants.join("\n"),
    ]
}
