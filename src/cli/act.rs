//! `reconcile`, `suspend`, `resume`, `rollback`: through annotations and fields that the
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
    api::{ChangeGrant, InvokerChange, InvokerPolicy, REQUESTED_AT, ROLLBACK},
    render::Style,
};

/// Writes as this field manager.
pub(super) const MANAGER: &str = "kubectl-invoker";

#[derive(Clone, Debug, clap::Args)]
pub struct NameCommand {
    /// Name of the policy.
    pub name: String,
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

pub(super) async fn patch(kube: &Kube, name: &str, patch: Value) -> anyhow::Result<()> {
    let api: Api<InvokerPolicy> = Api::namespaced(kube.client.clone(), &kube.namespace);
    let params = PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    };
    api.patch(name, &params, &Patch::Merge(patch)).await?;
    Ok(())
}

pub(super) fn annotation(name: &str, value: Option<&str>) -> Value {
    json!({"metadata": {"annotations": {name: value}}})
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
    let name = policy_behind(&change, &kube.namespace, command.policy.as_deref())?;
    let found = policy(&kube, &name).await?;
    print(&restored(&change, &context.style()));
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
    let before = found.annotations().get(ROLLBACK);
    let before = before.map(String::as_str).unwrap_or_default();
    let mut names: Vec<&str> = before.split([',', ' ']).filter(|w| !w.is_empty()).collect();
    if !names.contains(&change_name.as_str()) {
        names.push(&change_name);
    }
    patch(&kube, &name, annotation(ROLLBACK, Some(&names.join(",")))).await?;
    let done = format!("{name} goes back; kubectl invoker rollback --end --policy {name} ends it");
    print(&format!("{}\n", context.style().wrap(0, &done)));
    Ok(Exit::Nothing)
}

/// The policy that goes back behind a change: the one that was asked for, or the only one.
fn policy_behind(
    change: &InvokerChange,
    namespace: &str,
    wanted: Option<&str>,
) -> anyhow::Result<String> {
    let own = change.spec.policies.iter();
    let own = own.filter(|p| p.namespace == namespace);
    let behind: Vec<&str> = own.map(|p| p.name.as_str()).collect();
    match (wanted, behind.as_slice()) {
        (Some(name), list) if list.contains(&name) => Ok(name.to_owned()),
        (Some(name), list) => {
            anyhow::bail!("{name} is not behind that change; {} is", list.join(", "))
        }
        (None, [one]) => Ok((*one).to_owned()),
        (None, []) => anyhow::bail!("no policy of namespace {namespace} is behind that change"),
        (None, several) => anyhow::bail!(
            "several policies are behind that change; name one with --policy: {}",
            several.join(", ")
        ),
    }
}

/// What a service had before a change, for the person who is asked.
fn restored(change: &InvokerChange, style: &Style) -> String {
    let spec = &change.spec;
    let head = format!(
        "{} ({}) goes back to what it had before {}:",
        spec.service,
        spec.region,
        change.name_any()
    );
    let line = |g: &ChangeGrant| {
        let condition = g.condition.as_ref();
        let condition = condition.map(|c| format!(" if {}", c.title));
        format!("    {}{}\n", g.member, condition.unwrap_or_default())
    };
    let before: String = spec.before.iter().map(line).collect();
    let note = "As long as the annotation is there, this stands in for spec.invokers on that service; guardrails and approval hold as always.";
    format!(
        "{}\n{before}{}\n",
        style.wrap(0, &head),
        style.wrap(2, note)
    )
}
