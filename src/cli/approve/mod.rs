//! `approve` and `deny`: agrees to what a policy holds or a request asks for, by an InvokerApproval
//! where one is wanted, or says no.

mod held;
mod ledger;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{ListParams, PostParams},
};

use super::{
    Exit,
    act::{MANAGER, annotation, full_name, patch},
    context::{Context, Kube, complain, print},
    request,
    select::{ObjectName, policy},
    world::list_all,
};
use crate::{
    api::{
        APPROVE, ApprovalState, CREATED_BY, Decision, InvokerAccessRequest, InvokerApproval,
        InvokerApprovalSpec, InvokerApprovalStatus, RequestPhase,
    },
    intent::{AccessRequest, Agreement, denial_of},
    status::{denied_by, on_one_line, whole_seconds},
};
use held::{HeldPlan, held_plans};

/// How long an approval may be used that is created here.
const LIFETIME: SignedDuration = SignedDuration::from_hours(7 * 24);

#[derive(Clone, Debug, clap::Args)]
pub struct ApproveCommand {
    #[command(flatten)]
    pub which: Which,
    /// The names are of InvokerLedgers: removals that wait where no policy is left that could be
    /// asked.
    #[arg(long, conflicts_with_all = ["request", "reason", "wait"])]
    pub ledger: bool,
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

#[derive(Clone, Debug, clap::Args)]
pub struct DenyCommand {
    #[command(flatten)]
    pub which: Which,
    /// Why, for the record and for whoever asked.
    #[arg(long)]
    pub reason: String,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
}

/// What somebody decides about.
#[derive(Clone, Debug, clap::Args)]
pub struct Which {
    /// Names of policies, or of requests with --request, each NAME or NAMESPACE/NAME.
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<ObjectName>,
    /// The names are of InvokerAccessRequests. Needed only where a policy has the same name.
    #[arg(long)]
    pub request: bool,
    /// This hash and no other; without it, what waits now and is shown.
    #[arg(long)]
    pub hash: Option<String>,
}

/// What waits for a decision under one name.
struct Asked {
    /// `NAMESPACE/NAME`.
    full: String,
    /// The fields of an InvokerApproval that say what it is about.
    policy: Option<String>,
    request: Option<String>,
    held: Vec<HeldPlan>,
    /// Where nothing waits: why.
    nothing: String,
}

pub async fn approve(context: &Context, command: &ApproveCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    let mut exit = Exit::Nothing;
    for name in &command.which.names {
        let kube = kube.in_namespace_of(name);
        let ended = if command.ledger {
            ledger::approve(context, command, &kube, &name.name).await?
        } else {
            approve_one(context, command, &kube, &name.name).await?
        };
        if exit != Exit::Error && ended != Exit::Nothing {
            exit = ended;
        }
    }
    Ok(exit)
}

pub async fn deny(context: &Context, command: &DenyCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    for name in &command.which.names {
        let kube = kube.in_namespace_of(name);
        let asked = asked(&kube, &command.which, &name.name, Decision::Deny).await?;
        if !asked.shown(context) {
            continue;
        }
        may_decide(&kube).await?;
        let question = format!("Say no to this for {}?", asked.full);
        if !context.confirm(&question, command.yes)? {
            context.complain("nothing was changed");
            return Ok(Exit::Error);
        }
        create(context, &kube, &asked, Decision::Deny, &command.reason).await?;
    }
    Ok(Exit::Nothing)
}

async fn approve_one(
    context: &Context,
    command: &ApproveCommand,
    kube: &Kube,
    name: &str,
) -> anyhow::Result<Exit> {
    let asked = asked(kube, &command.which, name, Decision::Approve).await?;
    if !asked.shown(context) {
        return Ok(Exit::Nothing);
    }
    asked.not_denied(kube, context.now).await?;
    let wants_approver = asked.held.iter().any(|plan| plan.annotation.is_empty());
    if wants_approver || command.reason.is_some() {
        may_decide(kube).await?;
    }
    if wants_approver && command.reason.is_none() {
        anyhow::bail!("an approver has to agree here, and says why: add --reason TEXT");
    }
    let question = format!("Approve exactly this for {}?", asked.full);
    if !context.confirm(&question, command.yes)? {
        context.complain("nothing was changed");
        return Ok(Exit::Error);
    }
    if let Some(reason) = &command.reason {
        let names = create(context, kube, &asked, Decision::Approve, reason).await?;
        if command.wait {
            return wait(context, kube, &names).await;
        }
        return Ok(Exit::Nothing);
    }
    let hashes: Vec<&str> = asked.held.iter().map(|p| p.annotation.as_str()).collect();
    let approved = annotation(APPROVE, Some(&hashes.join(",")));
    patch(kube, name, approved).await?;
    print(&format!("{} approved by its annotation\n", asked.full));
    Ok(Exit::Nothing)
}

/// Asks the API server before anybody is asked to agree: what it would refuse is no question.
/// Where it does not say, the attempt does.
async fn may_decide(kube: &Kube) -> anyhow::Result<()> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(InvokerApproval::group(&()).into_owned()),
                resource: Some(InvokerApproval::plural(&()).into_owned()),
                namespace: Some(kube.namespace.clone()),
                verb: Some("create".into()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(kube.client.clone());
    let answer = api.create(&PostParams::default(), &review).await;
    match answer.ok().and_then(|a| a.status) {
        Some(status) if !status.allowed => Err(not_an_approver(kube, None)),
        _ => Ok(()),
    }
}

fn not_an_approver(kube: &Kube, why: Option<&str>) -> anyhow::Error {
    let why = why.map_or(String::new(), |why| format!(" ({why})"));
    anyhow::anyhow!(
        "you may not create InvokerApprovals in namespace {}; ask somebody to whom the role run-invoker-approver is bound there{why}",
        kube.namespace
    )
}

/// What waits under a name: of a policy, or of a request where one is meant or no policy has it.
async fn asked(
    kube: &Kube,
    which: &Which,
    name: &str,
    decision: Decision,
) -> anyhow::Result<Asked> {
    if which.request {
        let Some(found) = request::find(kube, name).await? else {
            anyhow::bail!(request::no_request(kube, name));
        };
        let found = request::looked_at(kube, found).await?;
        return requested(kube, which, found, decision);
    }
    let found = match policy(kube, name).await {
        Ok(found) => found,
        Err(error) => {
            return match request::find(kube, name).await {
                Ok(Some(found)) => {
                    let found = request::looked_at(kube, found).await?;
                    requested(kube, which, found, decision)
                }
                _ => Err(error),
            };
        }
    };
    if matches!(request::find(kube, name).await, Ok(Some(_))) {
        complain(&format!(
            "note: {0}/{name} is a policy and a request; this is about the policy, and --request is about the request",
            kube.namespace
        ));
    }
    let full = full_name(&found);
    let mut held = held_plans(&found.status.unwrap_or_default());
    if let Some(wanted) = &which.hash {
        held.retain(|plan| plan.annotation == *wanted || plan.plan == *wanted);
        if held.is_empty() {
            anyhow::bail!(
                "{full} holds no plan {wanted} now: the live policy or the spec has changed; see kubectl invoker status {name} -n {}",
                kube.namespace
            );
        }
    }
    Ok(Asked {
        nothing: format!(
            "{full} holds no plan; there is nothing to {}",
            match decision {
                Decision::Approve => "approve",
                Decision::Deny => "deny",
            }
        ),
        full,
        policy: Some(name.to_owned()),
        request: None,
        held,
    })
}

/// What a request asks for, as long as the decision can still change something.
fn requested(
    kube: &Kube,
    which: &Which,
    found: InvokerAccessRequest,
    decision: Decision,
) -> anyhow::Result<Asked> {
    let name = found.name_any();
    let full = format!("{}/{name}", kube.namespace);
    let status = found.status.clone().unwrap_or_default();
    let (Some(phase), Some(plan)) = (status.phase, status.plan) else {
        anyhow::bail!(
            "the operator has not looked at request {full} yet; is it running? See kubectl invoker doctor"
        );
    };
    if let Some(wanted) = which.hash.as_ref().filter(|wanted| **wanted != plan) {
        anyhow::bail!("request {full} is {plan}, not {wanted}: it was made anew");
    }
    let asks = AccessRequest::from_object(&found).map_err(anyhow::Error::msg)?;
    let is_open = match decision {
        Decision::Approve => phase == RequestPhase::Pending,
        Decision::Deny => !phase.is_final(),
    };
    let reason = on_one_line(&asks.reason);
    let what = format!("{}\nbecause: {reason}", asks.lines().join("\n"));
    let held = is_open.then_some(HeldPlan {
        annotation: String::new(),
        plan,
        what,
        denied: None,
    });
    let message = status.message.unwrap_or_default();
    Ok(Asked {
        nothing: format!("request {full} is {}: {message}", phase.as_str()),
        full: format!("request {full}"),
        policy: None,
        request: Some(name),
        held: held.into_iter().collect(),
    })
}

impl Asked {
    /// Refuses what an approver said no to: while that holds no approval counts, nor an annotation.
    /// Who may not list approvals goes by what the operator says.
    async fn not_denied(&self, kube: &Kube, now: Timestamp) -> anyhow::Result<()> {
        let Some(policy) = &self.policy else {
            return Ok(());
        };
        let api: Api<InvokerApproval> = kube.api(false);
        let found = list_all(&api, ListParams::default()).await;
        let agreements = found.unwrap_or_default();
        let agreements = agreements.iter().map(Agreement::from_object);
        let said: Vec<Arc<Agreement>> = agreements
            .filter_map(Result::ok)
            .filter(|a| *a.policy == **policy && a.ends() > now)
            .map(Arc::new)
            .collect();
        for plan in &self.held {
            let listed = denial_of(&said, &plan.plan).map(|no| {
                let undo = format!("kubectl -n {} delete iva {}", kube.namespace, no.key.name);
                (
                    denied_by(no),
                    format!("to approve it after all, delete that first: {undo}"),
                )
            });
            let told = || {
                let told = plan.denied.clone()?;
                Some((
                    told,
                    "to approve it after all, somebody has to delete that first".into(),
                ))
            };
            if let Some((denied, undo)) = listed.or_else(told) {
                anyhow::bail!(
                    "{}: plan {} is denied, so no approval of it counts. {denied}; {undo}",
                    self.full,
                    plan.plan
                );
            }
        }
        Ok(())
    }

    /// Shows what waits. False: nothing does, and that was said.
    fn shown(&self, context: &Context) -> bool {
        if self.held.is_empty() {
            context.complain(&self.nothing);
            return false;
        }
        for plan in &self.held {
            print(&plan.shown(&context.style()));
        }
        true
    }
}

async fn create(
    context: &Context,
    kube: &Kube,
    asked: &Asked,
    decision: Decision,
    reason: &str,
) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::with_capacity(asked.held.len());
    let api: Api<InvokerApproval> = Api::namespaced(kube.client.clone(), &kube.namespace);
    let params = PostParams {
        field_manager: Some(MANAGER.into()),
        ..PostParams::default()
    };
    let myself = request::myself(kube).await;
    for plan in &asked.held {
        if plan.plan.is_empty() {
            anyhow::bail!(
                "the operator is too old for approvals; leave --reason out, or upgrade it"
            );
        }
        let about = asked.policy.as_ref().or(asked.request.as_ref());
        let about = about.map_or("", String::as_str);
        let mut approval = approval(about, &plan.plan, reason, context.now);
        approval.spec.policy.clone_from(&asked.policy);
        approval.spec.request.clone_from(&asked.request);
        approval.spec.decision = decision;
        if decision == Decision::Deny {
            // Whoever changes their mind does so within a second, too.
            approval.metadata.name = Some(format!("{}-deny", approval.name_any()));
        }
        // Where admission checks the name, it has to be there; where it does not, it counts for
        // nothing.
        approval.metadata.annotations = myself
            .clone()
            .map(|me| [(CREATED_BY.to_owned(), me)].into());
        match create_once(&api, &params, &mut approval).await {
            Ok(()) => {}
            Err(kube::Error::Api(s)) if s.code == 403 => {
                return Err(not_an_approver(kube, Some(&s.message)));
            }
            Err(other) => return Err(other.into()),
        }
        let (name, verb) = (
            approval.name_any(),
            match decision {
                Decision::Approve => "approved",
                Decision::Deny => "denied",
            },
        );
        let done = format!(
            "{} {verb} by InvokerApproval {name}; what becomes of it: kubectl -n {} get iva {name}",
            asked.full, kube.namespace,
        );
        print(&format!("{}\n", context.style().wrap(0, &done)));
        names.push(name);
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

/// Creates an approval, under another name where one was made within the same second.
async fn create_once(
    api: &Api<InvokerApproval>,
    params: &PostParams,
    approval: &mut InvokerApproval,
) -> Result<(), kube::Error> {
    const MOST: usize = 9;
    let base = approval.name_any();
    for n in 2..=MOST {
        match api.create(params, approval).await {
            Err(kube::Error::Api(s)) if s.code == 409 && s.reason == "AlreadyExists" => {
                approval.metadata.name = Some(format!("{base}-{n}"));
            }
            answer => return answer.map(|_| ()),
        }
    }
    api.create(params, approval).await.map(|_| ())
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
