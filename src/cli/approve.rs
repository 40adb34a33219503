//! `approve`: agrees to what a policy holds, by an InvokerApproval where one is wanted.

use jiff::{SignedDuration, Timestamp};
use kube::{Api, ResourceExt as _, api::PostParams};

use super::{
    Exit,
    act::{MANAGER, annotation, full_name, patch},
    context::{Context, Kube, print},
    select::{ObjectName, policy},
};
use crate::{
    api::{
        APPROVE, ApprovalState, Decision, InvokerApproval, InvokerApprovalSpec,
        InvokerApprovalStatus, InvokerPolicyStatus, ServiceStatus,
    },
    render::{Style, Tone},
    status::{NEW_TO_POLICY, whole_seconds},
};

/// How long an approval may be used that is created here.
const LIFETIME: SignedDuration = SignedDuration::from_hours(7 * 24);

#[derive(Clone, Debug, clap::Args)]
pub struct ApproveCommand {
    /// Names of policies, each NAME or NAMESPACE/NAME.
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<ObjectName>,
    /// Agree to this hash and no other; without it, to what is held now and shown.
    #[arg(long)]
    pub hash: Option<String>,
    /// Why, for the record. Needed where an approver has to agree.
    #[arg(long)]
    pub reason: Option<String>,
    /// Wait for up to a minute until the operator says what became of the approval. Exits with 2
    /// where it was not used.
    #[arg(long, requires = "reason")]
    pub wait: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
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
        held.retain(|plan| plan.annotation == *wanted || plan.plan == *wanted);
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
    let wants_approver = held.iter().any(|plan| plan.annotation.is_empty());
    if wants_approver && command.reason.is_none() {
        anyhow::bail!("an approver has to agree here, and says why: add --reason TEXT");
    }
    if !context.confirm(&format!("Approve exactly this for {full}?"), command.yes)? {
        context.complain("nothing was changed");
        return Ok(Exit::Error);
    }
    if let Some(reason) = &command.reason {
        let names = create(context, kube, name, &held, reason).await?;
        if command.wait {
            return wait(context, kube, &names).await;
        }
        return Ok(Exit::Nothing);
    }
    let hashes: Vec<&str> = held.iter().map(|plan| plan.annotation.as_str()).collect();
    let approved = annotation(APPROVE, Some(&hashes.join(",")));
    patch(kube, name, approved).await?;
    print(&format!("{full} approved\n"));
    Ok(Exit::Nothing)
}

async fn create(
    context: &Context,
    kube: &Kube,
    policy: &str,
    held: &[HeldPlan],
    reason: &str,
) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::with_capacity(held.len());
    let api: Api<InvokerApproval> = Api::namespaced(kube.client.clone(), &kube.namespace);
    let params = PostParams {
        field_manager: Some(MANAGER.into()),
        ..PostParams::default()
    };
    for plan in held {
        if plan.plan.is_empty() {
            anyhow::bail!(
                "the operator is too old for approvals; leave --reason out, or upgrade it"
            );
        }
        let approval = approval(policy, &plan.plan, reason, context.now);
        match api.create(&params, &approval).await {
            Ok(_) => {}
            Err(kube::Error::Api(s)) if s.code == 403 => anyhow::bail!(
                "you may not create InvokerApprovals in namespace {}; ask somebody to whom the role run-invoker-approver is bound there ({})",
                kube.namespace,
                s.message
            ),
            Err(other) => return Err(other.into()),
        }
        let done = format!(
            "{policy} approved by InvokerApproval {}; what becomes of it: kubectl -n {} get iva {}",
            approval.name_any(),
            kube.namespace,
            approval.name_any()
        );
        print(&format!("{}\n", context.style().wrap(0, &done)));
        names.push(approval.name_any());
    }
    Ok(names)
}

/// Until each approval was used, or cannot be.
async fn wait(context: &Context, kube: &Kube, names: &[String]) -> anyhow::Result<Exit> {
    let api: Api<InvokerApproval> = Api::namespaced(kube.client.clone(), &kube.namespace);
    let mut exit = Exit::Nothing;
    for name in names {
        let mut last = InvokerApprovalStatus::default();
        for _ in 0..300 {
            last = api.get(name).await?.status.unwrap_or_default();
            let is_over = |s: ApprovalState| s.is_final() || s == ApprovalState::Refused;
            if last.state.is_some_and(is_over) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        let state = last
            .state
            .map_or("not looked at".to_owned(), |s| format!("{s:?}"));
        let words = last.message.unwrap_or_default();
        let line = format!("{name}: {state}: {words}");
        print(&format!("{}\n", context.style().wrap(0, &line)));
        if last.state != Some(ApprovalState::Used) {
            exit = Exit::Differences;
        }
    }
    Ok(exit)
}

/// An approval of a plan from now on. Its name says what for and when: the same plan, come up
/// again, needs another one.
pub(super) fn approval(policy: &str, plan: &str, reason: &str, now: Timestamp) -> InvokerApproval {
    let name = format!(
        "{policy}-{}-{}",
        plan.get(..8).unwrap_or(plan),
        now.strftime("%Y%m%d-%H%M%S")
    );
    let spec = InvokerApprovalSpec {
        policy: Some(policy.to_owned()),
        request: None,
        decision: Decision::Approve,
        plan: plan.to_owned(),
        reason: reason.to_owned(),
        not_after: now
            .checked_add(LIFETIME)
            .ok()
            .map(|end| whole_seconds(end).to_string()),
        effect: Vec::new(),
    };
    InvokerApproval::new(&name, spec)
}

/// A plan that waits for approval.
struct HeldPlan {
    /// Value for the annotation; empty where only an approver can agree.
    annotation: String,
    /// What an InvokerApproval names; empty where the operator is too old to say.
    plan: String,
    /// What it would do, in words.
    what: String,
}

impl HeldPlan {
    fn shown(&self, style: &Style) -> String {
        let hash = match self.annotation.as_str() {
            "" => &self.plan,
            annotation => annotation,
        };
        let head = style.paint(Tone::Warn, &format!("plan {hash}"));
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
    let waits = |s: &&ServiceStatus| !s.approve.is_empty() || !s.plan.is_empty();
    let (reached, changed): (Vec<&ServiceStatus>, Vec<_>) = status
        .services
        .iter()
        .filter(waits)
        .partition(|s| s.message.contains(NEW_TO_POLICY));
    let mut held: Vec<HeldPlan> = changed.into_iter().map(on_service).collect();
    if let Some(first) = reached.first() {
        let name = |s: &&ServiceStatus| format!("\n    + {} ({})", s.name, s.region);
        let services: String = reached.iter().map(name).collect();
        held.push(HeldPlan {
            annotation: String::new(),
            plan: first.plan.clone(),
            what: format!("its selector newly reaches{services}"),
        });
    }
    // The annotation for a selector stands in the message of the condition alone.
    for c in &status.conditions {
        for (at, _) in c.message.match_indices(HASH) {
            let rest = &c.message[at + HASH.len()..];
            let hash: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
            if hash.is_empty() || held.iter().any(|plan| plan.annotation == hash) {
                continue;
            }
            let plan = held
                .pop_if(|plan| plan.annotation.is_empty())
                .map_or(String::new(), |reach| reach.plan);
            held.push(HeldPlan {
                annotation: hash,
                plan,
                // This is the command that the message names.
                what: c
                    .message
                    .split(" To let exactly this through")
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            });
        }
    }
    held
}

fn on_service(s: &ServiceStatus) -> HeldPlan {
    let member = |m: &String| format!("\n    - {m}");
    let members: String = s.unexpected.iter().map(member).collect();
    HeldPlan {
        annotation: s.approve.clone(),
        plan: s.plan.clone(),
        what: format!("{} ({}): revokes{members}", s.name, s.region),
    }
}
