//! `rollback`: restores the state before a change, and ends that again. Both show the difference
//! that the operator will make, and ask.

use kube::ResourceExt;
use serde_json::json;

use super::{
    Exit, WorldArgs,
    act::{annotation, edit},
    context::{Context, Kube, print},
    files::Loaded,
    plan::service_plan,
    select::{ObjectName, policy},
    world::ClusterSnapshot,
};
use crate::{
    api::{ChangeGrant, InvokerChange, InvokerPolicy, Mode, ROLLBACK, request_of},
    history,
    iam::RunService,
    intent::{Intent, PolicyKey},
    render::{
        Style, Tone,
        plan::{Action, ServicePlan},
    },
};

#[derive(Clone, Debug, clap::Args)]
pub struct RollbackCommand {
    /// The InvokerChange before which the state is restored, NAME or NAMESPACE/NAME; history shows
    /// them.
    #[arg(required_unless_present = "end")]
    pub change: Option<ObjectName>,
    /// The policy, where several are behind the change.
    #[arg(long, value_name = "NAME")]
    pub policy: Option<ObjectName>,
    /// End the rollback of the policy: its spec is in force again.
    #[arg(long, requires = "policy", conflicts_with = "change")]
    pub end: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
    #[command(flatten)]
    pub world: WorldArgs,
}

pub async fn rollback(context: &Context, command: &RollbackCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    match (&command.change, &command.policy) {
        (None, Some(name)) => end(context, command, &kube.in_namespace_of(name), &name.name).await,
        (Some(change), _) => begin(context, command, &kube.in_namespace_of(change), change).await,
        (None, None) => anyhow::bail!("give the change to roll back, or --end --policy NAME"),
    }
}

async fn begin(
    context: &Context,
    command: &RollbackCommand,
    kube: &Kube,
    change: &ObjectName,
) -> anyhow::Result<Exit> {
    let (namespace, change) = (&kube.namespace, &change.name);
    let Some(record) = kube.api::<InvokerChange>(false).get_opt(change).await? else {
        anyhow::bail!(
            "namespace {namespace} has no InvokerChange {change}; kubectl invoker history -n {namespace} shows them"
        )
    };
    let wanted = command.policy.as_ref().map(|p| p.name.as_str());
    let found = policy_behind(kube, &record, wanted).await?;
    let name = found.name_any();
    let mut names = rolled_back(&found);
    if !names.contains(change) {
        names.push(change.clone());
    }
    let value = names.join(",");
    let service = history::service(&record.spec);
    let style = context.style();
    let head = format!(
        "{} ({}): to its state before {change}",
        service.name, service.region
    );
    print(&format!(
        "{}\n",
        style.paint(Tone::Strong, &style.wrap(0, &head))
    ));
    let planned = difference(context, command, kube, &found, &value, &[service]).await;
    print(&match planned {
        Ok(services) => shown(&services, &style),
        Err(why) => {
            context.complain(&format!(
                "note: the difference is that of the record, because the live policy cannot be read: {}",
                context.explain(&why)
            ));
            recorded(&record, &style)
        }
    });
    if found.spec.mode != Mode::Enforce || found.spec.suspend {
        context.complain(&format!(
            "note: {namespace}/{name} is not enforced, so nothing is written until it is"
        ));
    }
    let note = "Until the rollback ends this takes the place of spec.invokers on that service; guardrails and approval hold.";
    print(&format!("{}\n", style.wrap(0, note)));
    if !context.confirm("Roll back?", command.yes)? {
        context.complain("nothing was changed");
        return Ok(Exit::Error);
    }
    edit(kube, &found, annotation(ROLLBACK, Some(&value))).await?;
    print(&format!(
        "{namespace}/{name} rolled back; to end it:\n  kubectl invoker rollback --end --policy {name} -n {namespace}\n"
    ));
    Ok(Exit::Nothing)
}

async fn end(
    context: &Context,
    command: &RollbackCommand,
    kube: &Kube,
    name: &str,
) -> anyhow::Result<Exit> {
    let namespace = &kube.namespace;
    let found = policy(kube, name).await?;
    let names = rolled_back(&found);
    if names.is_empty() {
        context.complain(&format!("{namespace}/{name} is not rolled back"));
        return Ok(Exit::Nothing);
    }
    let mut services = Vec::new();
    for change in &names {
        let record = kube.api::<InvokerChange>(false).get_opt(change).await?;
        services.extend(record.map(|r| history::service(&r.spec)));
    }
    services.sort();
    services.dedup();
    let style = context.style();
    let head = format!(
        "{namespace}/{name}: back to its spec, ending the rollback of {}",
        names.join(", ")
    );
    print(&format!(
        "{}\n",
        style.paint(Tone::Strong, &style.wrap(0, &head))
    ));
    match difference(context, command, kube, &found, "", &services).await {
        Ok(planned) => print(&shown(&planned, &style)),
        Err(why) => context.complain(&format!(
            "note: what changes is not known, because the live policy cannot be read: {}",
            context.explain(&why)
        )),
    }
    if !context.confirm("End the rollback?", command.yes)? {
        context.complain("nothing was changed");
        return Ok(Exit::Error);
    }
    edit(kube, &found, annotation(ROLLBACK, None)).await?;
    print(&format!(
        "{namespace}/{name}: rollback ended, its spec is in force\n"
    ));
    Ok(Exit::Nothing)
}

/// The changes that a policy's annotation names.
fn rolled_back(found: &InvokerPolicy) -> Vec<String> {
    let rollbacks = Intent::from_policy(found).rollbacks;
    rollbacks.iter().map(ToString::to_string).collect()
}

/// What the operator will do on services once the annotation has this value.
async fn difference(
    context: &Context,
    command: &RollbackCommand,
    kube: &Kube,
    found: &InvokerPolicy,
    value: &str,
    services: &[RunService],
) -> anyhow::Result<Vec<ServicePlan>> {
    let mut policy = found.clone();
    let annotations = json!({ROLLBACK: value});
    policy.metadata.annotations = serde_json::from_value(annotations)?;
    let loaded = Loaded {
        policies: vec![policy],
        ..Loaded::default()
    };
    let mut world =
        ClusterSnapshot::with(context, &command.world, Some(kube), &loaded, true).await?;
    let cloud = context.limited(&command.world.cloud).await?;
    let key = PolicyKey::of(&found.metadata);
    world.read(&cloud, Some(&[key].into())).await?;
    if let Some(fault) = services
        .iter()
        .find_map(|s| world.live.get(s)?.as_ref().err())
    {
        return Err(fault.clone().into());
    }
    Ok(services.iter().map(|s| service_plan(&world, s)).collect())
}

fn shown(services: &[ServicePlan], style: &Style) -> String {
    let mut text = String::new();
    for service in services {
        let changes = service.changes.iter().filter(|l| l.action != Action::Leave);
        let mut none = true;
        for line in changes {
            none = false;
            line.push_text(&mut text, style, line.action == Action::Hold);
        }
        if none {
            text.push_str("  nothing to grant or revoke\n");
        }
    }
    text
}

/// The difference between before and after a change, as its record has it.
fn recorded(change: &InvokerChange, style: &Style) -> String {
    let spec = &change.spec;
    let words = |sign: char, g: &ChangeGrant| {
        let condition = g.condition.as_ref();
        let condition = condition.map(|c| format!(" if {}", c.title));
        format!("{sign} {}{}", g.member, condition.unwrap_or_default())
    };
    let back = spec.removed.iter().map(|g| (Tone::Good, words('+', g)));
    let gone = spec.added.iter().map(|g| (Tone::Bad, words('-', g)));
    let line = |(tone, text): (Tone, String)| format!("  {}\n", style.paint(tone, &text));
    back.chain(gone).map(line).collect()
}

/// The policy whose change is rolled back: the one that was asked for, or the only one that is
/// there.
async fn policy_behind(
    kube: &Kube,
    change: &InvokerChange,
    wanted: Option<&str>,
) -> anyhow::Result<InvokerPolicy> {
    let namespace = &kube.namespace;
    let own = change.spec.policies.iter();
    let own = own.filter(|p| p.namespace == *namespace);
    let behind: Vec<&str> = own.map(|p| p.name.as_str()).collect();
    let requests: Vec<&str> = behind.iter().copied().filter_map(request_of).collect();
    let mut gone = Vec::new();
    let mut there = Vec::new();
    for name in behind.iter().filter(|n| request_of(n).is_none()) {
        match kube.api::<InvokerPolicy>(false).get_opt(name).await? {
            Some(policy) => there.push(policy),
            None => gone.push(*name),
        }
    }
    let names: Vec<String> = there.iter().map(ResourceExt::name_any).collect();
    let offer = match names.as_slice() {
        [] => String::new(),
        names => format!("; {} is behind that change too", names.join(", ")),
    };
    let chosen = |p: &InvokerPolicy| wanted.is_none_or(|name| p.name_any() == name);
    let mut found: Vec<InvokerPolicy> = there.into_iter().filter(chosen).collect();
    match (found.len(), wanted) {
        (1, _) => Ok(found.remove(0)),
        (0, Some(name)) if requests.contains(&name) => {
            anyhow::bail!("{}{offer}", not_rolled_back(name, namespace))
        }
        (0, Some(name)) if gone.contains(&name) => {
            anyhow::bail!(
                "InvokerPolicy {namespace}/{name} was deleted, and only a policy can be rolled back{offer}"
            )
        }
        (0, Some(name)) => {
            anyhow::bail!("{name} is not behind that change; {} is", names.join(", "))
        }
        (0, None) if !gone.is_empty() => anyhow::bail!(
            "what is behind that change was deleted ({}), and only a policy can be rolled back; apply one that lists what is to be granted",
            gone.join(", ")
        ),
        (0, None) => match requests.first() {
            Some(name) => anyhow::bail!(not_rolled_back(name, namespace)),
            None => anyhow::bail!("no policy of namespace {namespace} is behind that change"),
        },
        _ => anyhow::bail!(
            "several policies are behind that change; name one with --policy: {}",
            names.join(", ")
        ),
    }
}

/// What is done instead where a request is behind a change.
fn not_rolled_back(request: &str, namespace: &str) -> String {
    format!(
        "request {namespace}/{request} cannot be rolled back: its access ends by itself, and now by kubectl -n {namespace} delete ivr {request}"
    )
}
