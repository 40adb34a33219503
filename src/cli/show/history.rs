//! `history`: what the operator changed, and why.

use std::collections::BTreeSet;

use jiff::Timestamp;
use kube::{Resource as _, ResourceExt as _, api::ListParams};
use serde::Serialize;

use super::{ago, tabulated};
use crate::{
    api::{
        ChangePhase, InvokerChange, InvokerChangeSpec, InvokerPolicy, REQUEST_PREFIX, change_label,
    },
    cli::{
        Exit,
        context::{Context, Kube, print},
        output::ListOutput,
        request,
        select::{Chosen, Selection},
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

/// The changes that are on record of what was chosen.
async fn changes(kube: &Kube, chosen: &Selection) -> anyhow::Result<Chosen<InvokerChange>> {
    let mut found: Chosen<InvokerChange> = Chosen::default();
    if chosen.names.is_empty() {
        let api = kube.api::<InvokerChange>(chosen.all_namespaces);
        if chosen.selector.is_none() {
            found.found = list_all(&api, ListParams::default()).await?;
            return Ok(found);
        }
        // Labels are those of policies; a record has labels of its own.
        let policies = chosen.policies(kube).await?.found;
        let meant: BTreeSet<(Option<String>, String)> = policies
            .iter()
            .map(|p| (p.namespace(), p.name_any()))
            .collect();
        found.found = list_all(&api, ListParams::default()).await?;
        found.found.retain(|c| {
            let mut behind = c.spec.policies.iter();
            behind.any(|p| meant.contains(&(Some(p.namespace.clone()), p.name.clone())))
        });
        return Ok(found);
    }
    for name in &chosen.names {
        let kube = kube.in_namespace_of(name);
        match of_name(&kube, &name.name).await? {
            Some(changes) => found.found.extend(changes),
            None => found.absent.push(format!(
                "namespace {} has no InvokerPolicy and no InvokerAccessRequest {name}, and no change of one is on record; see kubectl invoker history -n {}",
                kube.namespace,
                kube.namespace,
                name = name.name
            )),
        }
    }
    let changes = &mut found.found;
    changes.sort_by_key(|c| (c.namespace(), c.name_any()));
    changes.dedup_by_key(|c| (c.namespace(), c.name_any()));
    Ok(found)
}

/// The changes of a policy or a request, which may be gone itself; `None`: neither is there, nor a
/// change of one.
async fn of_name(kube: &Kube, name: &str) -> anyhow::Result<Option<Vec<InvokerChange>>> {
    let api = kube.api::<InvokerChange>(false);
    let mut found = Vec::new();
    for label in [
        change_label(name),
        change_label(&format!("{REQUEST_PREFIX}{name}")),
    ] {
        found.extend(list_all(&api, ListParams::default().labels(&label)).await?);
    }
    if !found.is_empty() {
        return Ok(Some(found));
    }
    // Who may not read one of these kinds is not told that there is none.
    let policy = kube.api::<InvokerPolicy>(false).get_opt(name).await;
    let is_there =
        !matches!(policy, Ok(None)) || !matches!(request::find(kube, name).await, Ok(None));
    Ok(is_there.then_some(found))
}

pub async fn history(context: &Context, command: &HistoryCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    let chosen = changes(&kube, &command.chosen).await?;
    let exit = if chosen.complain(context) {
        Exit::Error
    } else {
        Exit::Nothing
    };
    let mut found = chosen.found;
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
        return Ok(exit);
    }
    if found.is_empty() {
        if exit == Exit::Nothing {
            say_nothing(context, &kube, command);
        }
        return Ok(exit);
    }
    let mut head = vec!["change", "age", "service", "reason", "grants"];
    if command.output == ListOutput::Wide {
        head.extend(["project", "policies", "against"]);
    }
    let row = |c: &InvokerChange| history_row(context.now, command, c);
    let rows: Vec<Vec<String>> = found.iter().map(row).collect();
    print(&tabulated(context, &command.output, &head, &rows));
    Ok(exit)
}

/// That nothing is on record of what was chosen.
fn say_nothing(context: &Context, kube: &Kube, command: &HistoryCommand) {
    let what = match &command.service {
        Some(service) => format!("changes of service {service} on record"),
        None if command.chosen.selector.is_some() => "changes on record of policies".to_owned(),
        None => "changes on record".to_owned(),
    };
    let chosen = &command.chosen;
    if chosen.names.is_empty() {
        chosen.say_nothing(context, &what, &kube.namespace);
        return;
    }
    let names: Vec<String> = chosen
        .names
        .iter()
        .map(|n| format!("{}/{}", kube.in_namespace_of(n).namespace, n.name))
        .collect();
    context.complain(&format!("no {what} for {}", names.join(", ")));
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
