//! `approve`, `reconcile`, `suspend`, `resume`, `rollback`: through annotations and fields that the
//! operator acts on, so that guardrails and the record hold.

use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    Exit,
    context::{Context, Kube, print},
    show::policy,
};
use crate::{
    api::{APPROVE, ChangeGrant, InvokerChange, InvokerPolicy, REQUESTED_AT, ROLLBACK},
    render::Tone,
};

/// Writes as this field manager.
const MANAGER: &str = "kubectl-invoker";

#[derive(Clone, Debug, clap::Args)]
pub struct NameCommand {
    /// Name of the policy.
    pub name: String,
}

#[derive(Clone, Debug, clap::Args)]
pub struct ApproveCommand {
    /// Name of the policy.
    pub name: String,
    /// Agree to this hash and no other; without it, to what is held now and shown.
    #[arg(long)]
    pub hash: Option<String>,
    /// Ask nothing.
    #[arg(long, short)]
    pub yes: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub struct RollbackCommand {
    /// Name of the InvokerChange to go back behind; history shows them.
    #[arg(required_unless_present = "end")]
    pub change: Option<String>,
    /// The policy, where several are behind the change.
    #[arg(long)]
    pub policy: Option<String>,
    /// End the rollback of the policy: its spec rules again.
    #[arg(long, requires = "policy", conflicts_with = "change")]
    pub end: bool,
    /// Ask nothing.
    #[arg(long, short)]
    pub yes: bool,
}

async fn patch(kube: &Kube, name: &str, patch: Value) -> anyhow::Result<()> {
    let api: Api<InvokerPolicy> = Api::namespaced(kube.client.clone(), &kube.namespace);
    let params = PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    };
    api.patch(name, &params, &Patch::Merge(patch)).await?;
    Ok(())
}

fn annotation(name: &str, value: Option<&str>) -> Value {
    json!({"metadata": {"annotations": {name: value}}})
}

pub async fn approve(context: &Context, command: &ApproveCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    let found = policy(&kube, &command.name).await?;
    let status = found.status.clone().unwrap_or_default();
    let style = context.style();
    // Held on a service, or for the reach of a selector.
    let mut held: Vec<(String, String)> = status
        .services
        .iter()
        .filter(|s| !s.approve.is_empty())
        .map(|s| {
            let members: Vec<String> = s
                .unexpected
                .iter()
                .map(|m| format!("\n    - {m}"))
                .collect();
            (
                s.approve.clone(),
                format!("{} ({}): takes away{}", s.name, s.region, members.concat()),
            )
        })
        .collect();
    for c in &status.conditions {
        for (_, rest) in c
            .message
            .match_indices(&format!("{APPROVE}="))
            .map(|(at, m)| ("", &c.message[at + m.len()..]))
        {
            let hash: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
            if !hash.is_empty() && !held.iter().any(|(h, _)| *h == hash) {
                held.push((hash, c.message.clone()));
            }
        }
    }
    if let Some(wanted) = &command.hash {
        held.retain(|(h, _)| h == wanted);
        if held.is_empty() {
            anyhow::bail!(
                "{} holds no plan {wanted} now: reality or the policy has changed; look again",
                command.name
            );
        }
    }
    if held.is_empty() {
        context.complain(&format!(
            "{} holds no plan; there is nothing to agree to",
            command.name
        ));
        return Ok(Exit::Nothing);
    }
    for (hash, what) in &held {
        print(&format!(
            "{}\n",
            style.paint(Tone::Warn, &format!("plan {hash}"))
        ));
        let lines: Vec<String> = what
            .lines()
            .map(|l| {
                if l.starts_with("    ") {
                    l.to_owned()
                } else {
                    style.wrap(2, l)
                }
            })
            .collect();
        print(&format!("{}\n", lines.join("\n")));
    }
    if !context.confirm("Let exactly this through?", command.yes)? {
        context.complain("nothing was changed");
        return Ok(Exit::Error);
    }
    let hashes: Vec<&str> = held.iter().map(|(h, _)| h.as_str()).collect();
    patch(
        &kube,
        &command.name,
        annotation(APPROVE, Some(&hashes.join(","))),
    )
    .await?;
    print(&format!("{} approved\n", command.name));
    Ok(Exit::Nothing)
}

pub async fn reconcile(context: &Context, command: &NameCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    policy(&kube, &command.name).await?;
    let value = context.now.to_string();
    patch(&kube, &command.name, annotation(REQUESTED_AT, Some(&value))).await?;
    let api: Api<InvokerPolicy> = Api::namespaced(kube.client.clone(), &kube.namespace);
    for _ in 0..300 {
        let status = api.get(&command.name).await?.status.unwrap_or_default();
        if status.last_handled_requested_at.as_deref() == Some(&value) {
            let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
            let text = ready.map_or(String::new(), |c| {
                format!(": Ready={} ({}) {}", c.status, c.reason, c.message)
            });
            print(&format!(
                "{}\n",
                context
                    .style()
                    .wrap(0, &format!("{} was looked at{text}", command.name))
            ));
            return Ok(if ready.is_some_and(|c| c.status == "True") {
                Exit::Nothing
            } else {
                Exit::Differences
            });
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    anyhow::bail!(
        "the operator has not answered within 30 s; is it running? (kubectl get lease -A | grep run-invoker)"
    )
}

pub async fn suspend(
    context: &Context,
    command: &NameCommand,
    suspend: bool,
) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    let found = policy(&kube, &command.name).await?;
    if found.spec.suspend == suspend {
        context.complain(&format!(
            "{} is {} already",
            command.name,
            if suspend { "suspended" } else { "active" }
        ));
        return Ok(Exit::Nothing);
    }
    patch(&kube, &command.name, json!({"spec": {"suspend": suspend}})).await?;
    print(&format!(
        "{} {}\n",
        command.name,
        if suspend { "suspended" } else { "resumed" }
    ));
    if found.metadata.labels.as_ref().is_some_and(|l| {
        l.keys()
            .any(|k| k.contains("fluxcd.io") || k.contains("argocd.argoproj.io"))
    }) {
        context
            .complain("note: this policy comes from Git; what is there will win at the next sync");
    }
    Ok(Exit::Nothing)
}

pub async fn rollback(context: &Context, command: &RollbackCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    if command.end {
        let name = command.policy.clone().unwrap_or_default();
        policy(&kube, &name).await?;
        patch(&kube, &name, annotation(ROLLBACK, None)).await?;
        print(&format!("{name}: the spec rules again\n"));
        return Ok(Exit::Nothing);
    }
    let change_name = command.change.clone().unwrap_or_default();
    let api: Api<InvokerChange> = Api::namespaced(kube.client.clone(), &kube.namespace);
    let Some(change) = api.get_opt(&change_name).await? else {
        anyhow::bail!(
            "namespace {} has no InvokerChange {change_name}; kubectl invoker history shows them",
            kube.namespace
        )
    };
    let spec = &change.spec;
    let behind: Vec<&str> = spec
        .policies
        .iter()
        .filter(|p| p.namespace == kube.namespace)
        .map(|p| p.name.as_str())
        .collect();
    let name = match (&command.policy, behind.as_slice()) {
        (Some(name), list) if list.contains(&name.as_str()) => name.clone(),
        (Some(name), list) => {
            anyhow::bail!("{name} is not behind that change; {} is", list.join(", "))
        }
        (None, [one]) => (*one).to_owned(),
        (None, []) => anyhow::bail!(
            "no policy of namespace {} is behind that change",
            kube.namespace
        ),
        (None, several) => {
            anyhow::bail!(
                "several policies are behind that change; name one with --policy: {}",
                several.join(", ")
            )
        }
    };
    let found = policy(&kube, &name).await?;
    let style = context.style();
    let head = format!(
        "{} ({}) goes back to what it had before {}:",
        spec.service,
        spec.region,
        change.name_any()
    );
    print(&format!("{}\n", style.wrap(0, &head)));
    let line = |g: &ChangeGrant| {
        let condition = g
            .condition
            .as_ref()
            .map(|c| format!(" if {}", c.title))
            .unwrap_or_default();
        format!("    {}{condition}\n", g.member)
    };
    print(&spec.before.iter().map(line).collect::<String>());
    let note = "As long as the annotation is there, this stands in for spec.invokers on that service; guardrails and approval hold as always.";
    print(&format!("{}\n", style.wrap(2, note)));
    if found.spec.mode != crate::api::Mode::Enforce || found.spec.suspend {
        context.complain(&format!(
            "note: {name} is not enforced, so nothing will be written until it is"
        ));
    }
    if !context.confirm("Go back?", command.yes)? {
        context.complain("nothing was changed");
        return Ok(Exit::Error);
    }
    // Other services may be gone back on already.
    let mut names: Vec<String> = found
        .annotations()
        .get(ROLLBACK)
        .map(|v| {
            v.split([',', ' '])
                .filter(|w| !w.is_empty())
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default();
    if !names.contains(&change_name) {
        names.push(change_name);
    }
    patch(&kube, &name, annotation(ROLLBACK, Some(&names.join(",")))).await?;
    let done = format!("{name} goes back; kubectl invoker rollback --end --policy {name} ends it");
    print(&format!("{}\n", style.wrap(0, &done)));
    Ok(Exit::Nothing)
}
