//! `approve`, `reconcile`, `suspend`, `resume`: through annotations and fields that the
//! operator acts on, so that guardrails and the record hold.

use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    Exit,
    context::{Context, Kube, print},
    select::{ObjectName, Selection, policy},
};
use crate::{
    api::{APPROVE, InvokerPolicy, InvokerPolicyStatus, REQUESTED_AT, ServiceStatus},
    render::{Style, Tone},
};

/// Writes as this field manager.
const MANAGER: &str = "kubectl-invoker";

#[derive(Clone, Debug, clap::Args)]
pub struct NameCommand {
    #[command(flatten)]
    pub chosen: Selection,
}

impl NameCommand {
    /// The policies that are meant: nothing is done to all of a namespace because no name was given.
    async fn policies(&self, context: &Context, kube: &Kube) -> anyhow::Result<Vec<InvokerPolicy>> {
        if !self.chosen.is_explicit() {
            anyhow::bail!("name policies, or choose them with -l or -A");
        }
        let found = self.chosen.policies(kube).await?;
        if found.is_empty() {
            context.complain(&self.chosen.nothing("policies", &kube.namespace));
        }
        Ok(found)
    }
}

/// `NAMESPACE/NAME`.
fn full_name(policy: &InvokerPolicy) -> String {
    format!(
        "{}/{}",
        policy.namespace().unwrap_or_default(),
        policy.name_any()
    )
}

/// The cluster in the namespace of an object.
fn at(kube: &Kube, policy: &InvokerPolicy) -> Kube {
    kube.in_namespace_of(&ObjectName {
        namespace: policy.namespace(),
        name: policy.name_any(),
    })
}

#[derive(Clone, Debug, clap::Args)]
pub struct ApproveCommand {
    /// Names of policies, each NAME or NAMESPACE/NAME.
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<ObjectName>,
    /// Agree to this hash and no other; without it, to what is held now and shown.
    #[arg(long)]
    pub hash: Option<String>,
    /// Do not ask.
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

pub async fn approve(context: &Context, command: &ApproveCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    let mut exit = Exit::Nothing;
    for name in &command.names {
        let kube = kube.in_namespace_of(name);
        if approve_one(context, command, &kube, &name.name).await? != Exit::Nothing {
            exit = Exit::Error;
        }
    }
    Ok(exit)
}

async fn approve_one(
    context: &Context,
    command: &ApproveCommand,
    kube: &Kube,
    name: &str,
) -> anyhow::Result<Exit> {
    let found = policy(kube, name).await?;
    let full = full_name(&found);
    let mut held = held_plans(&found.status.unwrap_or_default());
    if let Some(wanted) = &command.hash {
        held.retain(|plan| plan.hash == *wanted);
        if held.is_empty() {
            anyhow::bail!(
                "{full} holds no plan {wanted} now: the live policy or the spec has changed; see kubectl invoker status {name} -n {}",
                kube.namespace
            );
        }
    }
    if held.is_empty() {
        context.complain(&format!(
            "{full} holds no plan; there is nothing to approve"
        ));
        return Ok(Exit::Nothing);
    }
    for plan in &held {
        print(&plan.shown(&context.style()));
    }
    if !context.confirm(&format!("Approve exactly this for {full}?"), command.yes)? {
        context.complain("nothing was changed");
        return Ok(Exit::Error);
    }
    let hashes: Vec<&str> = held.iter().map(|plan| plan.hash.as_str()).collect();
    let approved = annotation(APPROVE, Some(&hashes.join(",")));
    patch(kube, name, approved).await?;
    print(&format!("{full} approved\n"));
    Ok(Exit::Nothing)
}

/// A plan that waits for approval.
struct HeldPlan {
    hash: String,
    /// What it would do, in words.
    what: String,
}

impl HeldPlan {
    fn shown(&self, style: &Style) -> String {
        let head = style.paint(Tone::Warn, &format!("plan {}", self.hash));
        // Members stand on lines of their own.
        let wrapped = |line: &str| {
            if line.starts_with("    ") {
                line.to_owned()
            } else {
                style.wrap(2, line)
            }
        };
        let lines: Vec<String> = self.what.lines().map(wrapped).collect();
        format!("{head}\n{}\n", lines.join("\n"))
    }
}

/// What stands before the hash in the command that a condition's message names.
const HASH: &str = " --hash ";

/// Plans that are held on a service, or for the reach of a selector.
fn held_plans(status: &InvokerPolicyStatus) -> Vec<HeldPlan> {
    let on_service = |s: &ServiceStatus| {
        let member = |m: &String| format!("\n    - {m}");
        let members: String = s.unexpected.iter().map(member).collect();
        HeldPlan {
            hash: s.approve.clone(),
            what: format!("{} ({}): revokes{members}", s.name, s.region),
        }
    };
    let waiting = status.services.iter().filter(|s| !s.approve.is_empty());
    let mut held: Vec<HeldPlan> = waiting.map(on_service).collect();
    for c in &status.conditions {
        for (at, _) in c.message.match_indices(HASH) {
            let rest = &c.message[at + HASH.len()..];
            let hash: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
            if !hash.is_empty() && !held.iter().any(|plan| plan.hash == hash) {
                // This is the command that the message names.
                let what = c.message.split(" To let exactly this through").next();
                let what = what.unwrap_or_default().to_owned();
                held.push(HeldPlan { hash, what });
            }
        }
    }
    held
}

/// Asks for a reconcile of each policy, and then waits for all of them.
pub async fn reconcile(context: &Context, command: &NameCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    let found = command.policies(context, &kube).await?;
    let value = context.now.to_string();
    let asked = annotation(REQUESTED_AT, Some(&value));
    for policy in &found {
        patch(&at(&kube, policy), &policy.name_any(), asked.clone()).await?;
    }
    let mut exit = Exit::Nothing;
    let deadline = tokio::time::Instant::now() + ANSWER_WITHIN;
    for policy in &found {
        let (kube, name) = (at(&kube, policy), policy.name_any());
        let waiting = answered(&kube, &name, &value);
        let Ok(status) = tokio::time::timeout_at(deadline, waiting).await else {
            anyhow::bail!(
                "{} was not reconciled within {} s; is the operator running? See kubectl invoker doctor",
                full_name(policy),
                ANSWER_WITHIN.as_secs()
            );
        };
        let status = status?;
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
        let text = ready.map_or(String::new(), |c| {
            format!(": Ready={} ({}) {}", c.status, c.reason, c.message)
        });
        let line = format!("{} reconciled{text}", full_name(policy));
        print(&format!("{}\n", context.style().wrap(0, &line)));
        if ready.is_none_or(|c| c.status != "True") {
            exit = Exit::Differences;
        }
    }
    Ok(exit)
}

/// How long a reconcile that was asked for is waited for.
const ANSWER_WITHIN: std::time::Duration = std::time::Duration::from_secs(30);

/// The status once it echoes the request.
async fn answered(kube: &Kube, name: &str, value: &str) -> anyhow::Result<InvokerPolicyStatus> {
    let api: Api<InvokerPolicy> = kube.api(false);
    loop {
        let status = api.get(name).await?.status.unwrap_or_default();
        if status.last_handled_requested_at.as_deref() == Some(value) {
            return Ok(status);
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

pub async fn suspend(
    context: &Context,
    command: &NameCommand,
    suspend: bool,
) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    for found in command.policies(context, &kube).await? {
        let full = full_name(&found);
        if found.spec.suspend == suspend {
            let state = if suspend { "suspended" } else { "active" };
            context.complain(&format!("{full} is {state} already"));
            continue;
        }
        let spec = json!({"spec": {"suspend": suspend}});
        patch(&at(&kube, &found), &found.name_any(), spec).await?;
        let done = if suspend { "suspended" } else { "resumed" };
        print(&format!("{full} {done}\n"));
        let mut labels = found.labels().keys();
        if labels.any(|k| k.contains("fluxcd.io") || k.contains("argocd.argoproj.io")) {
            context.complain(&format!(
                "note: {full} comes from Git; the next sync restores what is there"
            ));
        }
    }
    Ok(Exit::Nothing)
}
