//! `history`: what the operator changed, and why.

use jiff::Timestamp;
use kube::{Resource as _, ResourceExt as _};
use serde::Serialize;

use super::{ago, tabulated};
use crate::{
    api::{ChangePhase, InvokerChange, InvokerChangeSpec, change_label},
    cli::{
        Exit,
        context::{Context, Kube, print},
        output::ListOutput,
        select::Selection,
        world::list_all,
    },
};

#[derive(Clone, Debug, clap::Args)]
pub struct HistoryCommand {
    #[command(flatten)]
    pub chosen: Selection,
    /// Only changes of this Cloud Run service.
    #[arg(long)]
    pub service: Option<String>,
    /// The members of each change, too.
    #[arg(long)]
    pub members: bool,
    /// Form of the answer; TEMPLATE as kubectl takes it, over the document of -o json.
    #[arg(short, long, default_value = "text", value_name = "FORM")]
    pub output: ListOutput,
}

/// `history -o json`, version 1.
#[derive(Debug, Serialize)]
struct HistoryDocument<'a> {
    kind: &'static str,
    version: u32,
    changes: Vec<RecordedChange<'a>>,
}

#[derive(Debug, Serialize)]
struct RecordedChange<'a> {
    namespace: Option<String>,
    name: String,
    spec: &'a InvokerChangeSpec,
}

impl<'a> RecordedChange<'a> {
    fn of(change: &'a InvokerChange) -> Self {
        Self {
            namespace: change.namespace(),
            name: change.name_any(),
            spec: &change.spec,
        }
    }
}

/// The changes of the policies that are named, or of all that were chosen.
async fn changes(kube: &Kube, chosen: &Selection) -> anyhow::Result<Vec<InvokerChange>> {
    if chosen.names.is_empty() {
        let api = kube.api::<InvokerChange>(chosen.all_namespaces);
        return list_all(&api, chosen.list_params()).await;
    }
    let mut found: Vec<InvokerChange> = Vec::new();
    for name in &chosen.names {
        let api = kube.in_namespace_of(name).api::<InvokerChange>(false);
        let labels = change_label(&name.name);
        let params = kube::api::ListParams::default().labels(&labels);
        let of_policy = list_all(&api, params).await?;
        found.extend(of_policy);
    }
    found.sort_by_key(|c| (c.namespace(), c.name_any()));
    found.dedup_by_key(|c| (c.namespace(), c.name_any()));
    Ok(found)
}

pub async fn history(context: &Context, command: &HistoryCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    let mut found = changes(&kube, &command.chosen).await?;
    if let Some(service) = &command.service {
        found.retain(|c| c.spec.service == *service);
    }
    found.sort_by_key(|c| std::cmp::Reverse(c.spec.at.0));
    let document = HistoryDocument {
        kind: "History",
        version: 1,
        changes: found.iter().map(RecordedChange::of).collect(),
    };
    let group = InvokerChange::group(&());
    let names = found
        .iter()
        .map(|c| format!("invokerchange.{group}/{}", c.name_any()));
    if let Some(text) = command.output.for_programs(&document, names)? {
        print(&text);
        return Ok(Exit::Nothing);
    }
    if found.is_empty() {
        let what = match &command.service {
            Some(service) => format!("changes of service {service} on record"),
            None => "changes on record".to_owned(),
        };
        context.complain(&command.chosen.nothing(&what, &kube.namespace));
        return Ok(Exit::Nothing);
    }
    let mut head = vec!["change", "age", "service", "reason", "grants"];
    if command.output == ListOutput::Wide {
        head.extend(["project", "policies", "against"]);
    }
    let row = |c: &InvokerChange| history_row(context.now, command, c);
    let rows: Vec<Vec<String>> = found.iter().map(row).collect();
    print(&tabulated(context, &command.output, &head, &rows));
    Ok(Exit::Nothing)
}

/// Why it was written, and by which approvals.
fn why(spec: &InvokerChangeSpec) -> String {
    let mut lines = vec![match spec.outcome.phase {
        ChangePhase::Applied => spec.reason.as_str().to_owned(),
        other => format!("{}, {}", spec.reason.as_str(), other.as_str()),
    }];
    lines.extend(spec.approvals.iter().map(|a| match a.by.as_str() {
        "" => format!("by {}: {}", a.name, a.reason),
        who => format!("by {who} ({}): {}", a.name, a.reason),
    }));
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
    let mut cells = vec![
        match change
            .namespace()
            .filter(|_| command.chosen.shows_namespaces())
        {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name,
        },
        ago(now, spec.at.0),
        format!("{} ({})", spec.service, spec.region),
        why(spec),
        grants.join("\n"),
    ];
    if command.output == ListOutput::Wide {
        let policies = spec
            .policies
            .iter()
            .map(|p| format!("{}/{}", p.namespace, p.name));
        cells.push(spec.project.clone());
        cells.push(policies.collect::<Vec<_>>().join(" "));
        cells.push(
            spec.drift_by
                .as_ref()
                .map_or("<none>".into(), ToString::to_string),
        );
    }
    cells
}
