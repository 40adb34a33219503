//! `reconcile`, `suspend`, `resume`: through annotations and fields that the
//! operator acts on, so that guardrails and the record hold.

use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    Exit,
    context::{Context, Kube, print},
    request::myself,
    select::{ObjectName, Selection},
};
use crate::api::{EDITED_BY, InvokerPolicy, InvokerPolicyStatus, REQUESTED_AT, StatusCondition};

/// Writes as this field manager.
pub(super) const MANAGER: &str = "kubectl-invoker";

#[derive(Clone, Debug, clap::Args)]
pub struct NameCommand {
    #[command(flatten)]
    pub chosen: Selection,
}

impl NameCommand {
    /// The policies that are meant, and how to exit where nothing goes wrong: nothing is done to all
    /// of a namespace because no name was given.
    async fn policies(
        &self,
        context: &Context,
        kube: &Kube,
    ) -> anyhow::Result<(Vec<InvokerPolicy>, Exit)> {
        if !self.chosen.is_explicit() {
            anyhow::bail!("name policies, or choose them with -l or -A");
        }
        let chosen = self.chosen.policies(kube).await?;
        let exit = if chosen.complain(context) {
            Exit::Error
        } else {
            Exit::Nothing
        };
        if chosen.found.is_empty() {
            self.chosen
                .say_nothing(context, "policies", &kube.namespace);
        }
        Ok((chosen.found, exit))
    }
}

/// `NAMESPACE/NAME`.
pub(super) fn full_name(policy: &InvokerPolicy) -> String {
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

pub(super) async fn patch(kube: &Kube, name: &str, patch: Value) -> anyhow::Result<()> {
    let api: Api<InvokerPolicy> = Api::namespaced(kube.client.clone(), &kube.namespace);
    let params = PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    };
    api.patch(name, &params, &Patch::Merge(patch)).await?;
    Ok(())
}

/// A patch that changes what a policy declares. Where the policy says who edited it last, that is now
/// the caller: admission refuses an edit under the name of somebody else.
pub(super) async fn edit(
    kube: &Kube,
    policy: &InvokerPolicy,
    mut change: Value,
) -> anyhow::Result<()> {
    if policy.annotations().contains_key(EDITED_BY)
        && let Some(me) = myself(kube).await
    {
        change["metadata"]["annotations"][EDITED_BY] = json!(me);
    }
    patch(kube, &policy.name_any(), change).await
}

pub(super) fn annotation(name: &str, value: Option<&str>) -> Value {
    json!({"metadata": {"annotations": {name: value}}})
}

/// Asks for a reconcile of each policy, and then waits for all of them.
pub async fn reconcile(context: &Context, command: &NameCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    let (found, mut exit) = command.policies(context, &kube).await?;
    let value = context.now.to_string();
    let asked = annotation(REQUESTED_AT, Some(&value));
    for policy in &found {
        patch(&at(&kube, policy), &policy.name_any(), asked.clone()).await?;
    }
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
        print(&format!(
            "{}\n",
            context.style().wrap(0, &reconciled(policy, &status))
        ));
        let is_ready = |c: &StatusCondition| c.type_ == "Ready" && c.status == "True";
        let is_fine = policy.spec.suspend || status.conditions.iter().any(is_ready);
        if !is_fine && exit == Exit::Nothing {
            exit = Exit::Differences;
        }
    }
    Ok(exit)
}

/// What a reconcile came to.
fn reconciled(policy: &InvokerPolicy, status: &InvokerPolicyStatus) -> String {
    let name = full_name(policy);
    if policy.spec.suspend {
        return format!(
            "{name} is suspended: nothing was read and nothing is written until kubectl invoker resume {} -n {}",
            policy.name_any(),
            policy.namespace().unwrap_or_default()
        );
    }
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
    let text = ready.map_or(String::new(), |c| {
        format!(": Ready={} ({}) {}", c.status, c.reason, c.message)
    });
    format!("{name} reconciled{text}")
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
    let (found, exit) = command.policies(context, &kube).await?;
    for found in found {
        let full = full_name(&found);
        if found.spec.suspend == suspend {
            let state = if suspend { "suspended" } else { "active" };
            context.complain(&format!("{full} is {state} already"));
            continue;
        }
        let spec = json!({"spec": {"suspend": suspend}});
        edit(&at(&kube, &found), &found, spec).await?;
        let done = if suspend { "suspended" } else { "resumed" };
        print(&format!("{full} {done}\n"));
        let mut labels = found.labels().keys();
        if labels.any(|k| k.contains("fluxcd.io") || k.contains("argocd.argoproj.io")) {
            context.complain(&format!(
                "note: {full} comes from Git; the next sync restores what is there"
            ));
        }
    }
    Ok(exit)
}
