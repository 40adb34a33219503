//! `plan`: what an apply would do to IAM.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use clap::ValueEnum;

use super::{
    Exit, Output, WorldArgs,
    context::{Context, print},
    files::{self, Loaded},
    output::Form,
    reach::{hint, one_of_many},
    review::{self, Review},
    select::nothing_in,
    world::ClusterSnapshot,
};
use crate::{
    api::Mode,
    iam::{Grant, RunService},
    index::{Index, policies::Record},
    intent::{Guardrail, PolicyId, PolicyKey},
    plan::{
        self, Change, Exposure, HeldPlan, Input, Plan, PolicyOnService, RevokeCause,
        SelectorImpact, Withheld, WithheldReason,
    },
    render::{
        count,
        plan::{Action, FailOn, Line, NeededApproval, PlanDocument, PolicyNote, ServicePlan},
    },
};

#[derive(Clone, Debug, clap::Args)]
pub struct PlanCommand {
    /// Files or folders with policies and guardrails; - is the standard input. They count as
    /// applied, and the plan is that of the services they change.
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub files: Vec<PathBuf>,

    /// With -f: the plan of the whole state, not only of what the files change.
    #[arg(long, requires = "files")]
    pub all: bool,

    /// Look at no cluster: files and Google only. What the operator granted before is not known
    /// then.
    #[arg(long)]
    pub offline: bool,

    /// Form of the answer; TEMPLATE as kubectl takes it, over the document of -o json.
    #[arg(short, long, default_value = "text", value_name = "FORM")]
    pub output: Form<Output>,

    /// Write the approvals that an apply of these files would need, as InvokerApprovals to be
    /// reviewed and merged with them. Those that the file has and that can still be used stay.
    #[arg(long, value_name = "FILE", requires = "files")]
    pub approvals: Option<PathBuf>,

    /// Why, in the approvals that are written.
    #[arg(
        long,
        requires = "approvals",
        default_value = "reviewed and merged with the change"
    )]
    pub reason: String,

    /// Exit with 2 only for these; without it, for any difference.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND")]
    pub fail_on: Vec<FailOnArg>,

    #[command(flatten)]
    pub world: WorldArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailOnArg {
    /// Something would change, or would if it were enforced.
    Drift,
    /// Something is held.
    Held,
    /// Anyone can call a service.
    Exposed,
}

impl From<FailOnArg> for FailOn {
    fn from(arg: FailOnArg) -> Self {
        match arg {
            FailOnArg::Drift => Self::Drift,
            FailOnArg::Held => Self::Held,
            FailOnArg::Exposed => Self::Exposed,
        }
    }
}

pub async fn run(context: &Context, command: &PlanCommand) -> anyhow::Result<Exit> {
    if command.offline && command.files.is_empty() {
        anyhow::bail!("--offline needs files to plan: give -f PATH");
    }
    let loaded = load(context, command)?;
    let kube = if command.offline {
        None
    } else {
        Some(context.kube().await?)
    };
    let mut world = ClusterSnapshot::with(
        context,
        &command.world,
        kube.as_ref(),
        &loaded,
        command.approvals.is_none(),
    )
    .await?;
    let cloud = context.limited(&command.world.cloud).await?;
    let about = match context.asked_namespace() {
        _ if command.all => None,
        // The namespace of documents that name none.
        _ if !command.files.is_empty() => Some(about(&world, &loaded)),
        Some(namespace) => Some(keys_in(&world, namespace)),
        None => None,
    };
    world.read(&cloud, about.as_ref()).await?;
    let document = document(&world);
    let is_text = command.output == Form::Of(Output::Text);
    let empty = context
        .asked_namespace()
        .filter(|namespace| command.files.is_empty() && keys_in(&world, namespace).is_empty());
    if let Some(namespace) = empty {
        let next = "omit -n to plan every namespace";
        context.complain(&nothing_in("policies", namespace, next));
    }
    // To call nothing as declared would be no answer; programs get their document.
    if !(is_text && empty.is_some()) {
        let style = context.style();
        print(&match &command.output {
            Form::Of(form) => document
                .render((*form).into(), &style)
                .map_err(anyhow::Error::msg)?,
            Form::JsonPath(template) => template.over(&document)?,
        });
    }
    if let Some(file) = &command.approvals {
        let review = Review {
            file,
            reason: &command.reason,
            namespace: &loaded.namespace,
        };
        let written = review::write(&review, &world, &document)?;
        let done = format!("{written} approvals in {}", file.display());
        context.complain(&done);
    }
    for note in &world.notes {
        context.complain(&format!("note: {note}"));
    }
    if world.is_refused() {
        let asked = context.servers().google_asked();
        context.complain(&format!("note: {asked}"));
    }
    if document.summary.failed + document.summary.unlisted > 0 {
        return Ok(Exit::Error);
    }
    let kinds: Vec<FailOn> = match command.fail_on.as_slice() {
        [] => vec![FailOn::Drift, FailOn::Held, FailOn::Exposed],
        some => some.iter().map(|k| (*k).into()).collect(),
    };
    Ok(if kinds.into_iter().any(|k| document.has(k)) {
        Exit::Differences
    } else {
        Exit::Nothing
    })
}

/// Reads the files, and says what is wrong in them before anything else is read.
fn load(context: &Context, command: &PlanCommand) -> anyhow::Result<Loaded> {
    let loaded = files::load(&command.files, &context.namespace())?;
    for ignored in &loaded.ignored {
        context.complain(&format!("note: ignored: {ignored}"));
    }
    for problem in &loaded.problems {
        context.complain(&format!("error: {problem}"));
    }
    let paths: Vec<String> = command
        .files
        .iter()
        .map(|p| p.display().to_string())
        .collect();
    if !loaded.problems.is_empty() {
        let n = count(loaded.problems.len(), "problem");
        anyhow::bail!("{n} in {}; nothing was planned", paths.join(", "));
    }
    if loaded.is_empty() && !paths.is_empty() {
        anyhow::bail!(
            "no InvokerPolicy and no InvokerGuardrail in {}",
            paths.join(", ")
        );
    }
    Ok(loaded)
}

/// The policies that files change: those in them, and those of the namespaces that a guardrail in
/// them selects.
fn about(world: &ClusterSnapshot, loaded: &Loaded) -> BTreeSet<PolicyKey> {
    let rails: Vec<Guardrail> = loaded
        .guardrails
        .iter()
        .map(Guardrail::from_object)
        .collect();
    let own = loaded.policies.iter().map(|p| PolicyKey::of(&p.metadata));
    let all = world.index.policies().iter().map(|(key, _)| key);
    let selected = all.filter(|k| rails.iter().any(|g| g.selects(&k.namespace)));
    own.chain(selected.cloned()).collect()
}

/// The policies of a namespace.
fn keys_in(world: &ClusterSnapshot, namespace: &str) -> BTreeSet<PolicyKey> {
    let all = world.index.policies().iter().map(|(key, _)| key);
    all.filter(|k| *k.namespace == *namespace)
        .cloned()
        .collect()
}

/// The plan of a world.
pub fn document(world: &ClusterSnapshot) -> PlanDocument {
    let services = world
        .live
        .keys()
        .filter(|s| world.focus.as_ref().is_none_or(|f| f.services.contains(s)))
        .map(|service| service_plan(world, service))
        .collect();
    let mut policies: Vec<_> = world.index.policies().iter().collect();
    policies.sort_by_key(|(key, _)| *key);
    let mut notes = Vec::new();
    let is_meant = |key: &PolicyKey| {
        world
            .focus
            .as_ref()
            .is_none_or(|f| f.policies.contains(key))
    };
    for (_, record) in policies.into_iter().filter(|(key, _)| is_meant(key)) {
        let messages = messages(world, record).into_iter();
        notes.extend(messages.map(|message| PolicyNote {
            policy: record.intent.id.to_string(),
            message,
        }));
    }
    let mut document = PlanDocument::new(services, notes);
    let asked = world.index.policies().iter();
    let asked = asked.filter(|(key, record)| is_meant(key) && record.intent.has_selector());
    let projects: BTreeSet<&Arc<str>> = asked.map(|(_, record)| &record.intent.project).collect();
    let is_unlisted = |p: &&&Arc<str>| world.index.project(p).is_some_and(|p| p.fault().is_some());
    document.summary.unlisted = projects.iter().filter(is_unlisted).count();
    document
}

/// What a person should know of one policy as a whole.
fn messages(world: &ClusterSnapshot, record: &Record) -> Vec<String> {
    let intent = &record.intent;
    let mut messages = Vec::new();
    for rejection in intent.rejections.iter().chain(&intent.remarks) {
        messages.push(format!("{}: {}", rejection.field, rejection.message));
    }
    for denied in record.denied_targets() {
        messages.push(match &denied.service {
            Some(service) => {
                format!("{} ({}): {}", service.name, service.region, denied.message)
            }
            None => denied.message.clone(),
        });
    }
    if record.outside() > 0 {
        messages.push(format!(
            "{} services that its selectors match are outside of its guardrails",
            record.outside()
        ));
    }
    for account in intent.accounts.iter().flat_map(|a| &a.unlinked) {
        messages.push(account.message.clone());
    }
    let project = world.index.project(&intent.project);
    if let Some(fault) = project.and_then(|p| p.fault())
        && intent.has_selector()
    {
        let why = fault.advice_with(hint(fault.class));
        messages.push(format!("its services cannot be listed: {why}"));
    }
    messages
}

pub fn service_plan(world: &ClusterSnapshot, service: &RunService) -> ServicePlan {
    let shown = ServicePlan {
        project: service.project.to_string(),
        region: service.region.to_string(),
        service: service.name.to_string(),
        ..ServicePlan::default()
    };
    let names = |claims: &[PolicyOnService]| -> Vec<String> {
        claims.iter().map(|c| c.intent.id.to_string()).collect()
    };
    let Some(planned) = world.plan(service) else {
        let read = world.live.get(service);
        let fault = read.and_then(|l| l.as_ref().err());
        return ServicePlan {
            policies: names(&world.index.words(service)),
            error: fault.map(one_of_many),
            ..shown
        };
    };
    let (inputs, plan) = (&planned.inputs, &planned.plan);
    let input = inputs.input(planned.live, &world.settings, world.now);
    let mut lines = Lines::default();
    lines.add_changes(plan);
    for withheld in &plan.withheld {
        lines.add_withheld(withheld);
    }
    lines.add_audited(&input);
    lines.add_unlisted(&input);
    let (approve, approvals) = to_agree(&inputs.claims, plan);
    let agreements = plan.approvals.iter().chain(&plan.reached_by);
    let approved_by = agreements.map(|a| format!("{}: {}", a.key, a.reason));
    ServicePlan {
        policies: names(&inputs.claims),
        changes: lines.lines.into_iter().collect(),
        ledger: (inputs.claims.is_empty() && approve.is_some())
            .then(|| Index::ledger_name(service)),
        approve: approve.map(|hash| hash.to_string()),
        approvals,
        approved_by: approved_by.collect(),
        exposed: plan::exposed(inputs.info.as_ref(), &input).map(|e| exposure(&e)),
        ..shown
    }
}

/// By what anyone can call a service, or perhaps can.
fn exposure(exposure: &Exposure) -> String {
    let perhaps = if exposure.is_sure() { "" } else { "perhaps: " };
    format!("{perhaps}{exposure}")
}

/// What lets through what is held: the annotation, where it counts, and the plan of each policy for
/// which an InvokerApproval could be created.
fn to_agree(claims: &[PolicyOnService], plan: &Plan) -> (Option<Arc<str>>, Vec<NeededApproval>) {
    let needed = |id: &PolicyId, held: &HeldPlan| NeededApproval {
        policy: id.to_string(),
        plan: held.hash.to_string(),
        effect: held.lines.to_vec(),
    };
    let mut hash = None;
    let mut all = Vec::new();
    let held = plan.withheld.iter().find_map(|w| match &w.why {
        WithheldReason::Approval(a) => Some(a),
        _ => None,
    });
    if let Some(a) = held {
        hash = a.approver.is_none().then(|| a.hash.clone());
        all.extend(a.effects.iter().map(|(id, held)| needed(id, held)));
    }
    for claim in claims {
        if let Some(SelectorImpact::Held {
            hash: own, plan, ..
        }) = &claim.spread
        {
            let is_asked = claim.terms.approver().is_some();
            hash = hash.or_else(|| (!is_asked).then(|| own.clone()));
            all.push(needed(&claim.intent.id, plan));
        }
    }
    (hash, all)
}

/// The lines of a service, and the grants that one of them is about.
#[derive(Default)]
struct Lines {
    lines: BTreeSet<Line>,
    grants: BTreeSet<Grant>,
}

impl Lines {
    fn add(&mut self, action: Action, grant: &Grant, reason: impl Into<String>) {
        self.lines.insert(line(action, grant, reason.into()));
        self.grants.insert(grant.clone());
    }

    fn add_changes(&mut self, plan: &Plan) {
        for (grant, by) in &plan.grants {
            let by: Vec<String> = by.iter().map(ToString::to_string).collect();
            self.add(
                Action::Grant,
                grant,
                format!("declared by {}", by.join(", ")),
            );
        }
        for (grant, cause) in &plan.revokes {
            self.add(Action::Revoke, grant, why_revoked(*cause));
        }
    }

    fn add_withheld(&mut self, withheld: &Withheld) {
        let why = withheld.why.explain();
        let (action, reason) = match (&withheld.why, withheld.change) {
            (WithheldReason::Audited, Change::Grant) => (Action::WouldGrant, why),
            (WithheldReason::Protected, _) => (Action::Leave, why),
            (WithheldReason::Suspended, _) => (
                Action::Leave,
                "the policy is suspended: not granted".to_owned(),
            ),
            (_, Change::Grant) => (Action::Hold, format!("not granted: {why}")),
            (_, Change::Revoke) => (Action::Hold, format!("not revoked: {why}")),
            (_, Change::Leave) => (Action::Leave, why),
        };
        self.add(action, &withheld.grant, reason);
    }

    /// What an audited policy would take away, if it were enforced.
    fn add_audited(&mut self, input: &Input<'_>) {
        let is_audited = |c: &&PolicyOnService| {
            c.intent.mode == Mode::Audit && !c.intent.suspended && !c.intent.deleting
        };
        for claim in input.claims.iter().filter(is_audited) {
            for grant in plan::view(claim, input).unexpected {
                if !self.grants.contains(&grant) {
                    let why = format!("{} is in Audit and does not list it", claim.intent.id);
                    self.add(Action::WouldRevoke, &grant, why);
                }
            }
        }
    }

    /// What is there, and no line has been about.
    fn add_unlisted(&mut self, input: &Input<'_>) {
        let declared = |g: &Grant| {
            let mut all = input.claims.iter().flat_map(PolicyOnService::declared);
            all.any(|d| d.grant == *g)
        };
        for grant in input.live.grants() {
            if !declared(&grant) && !self.grants.contains(&grant) {
                let why = "not listed, and no authoritative policy may revoke it";
                self.add(Action::Leave, &grant, why);
            }
        }
    }
}

fn line(action: Action, grant: &Grant, reason: String) -> Line {
    Line {
        action,
        member: grant.principal.to_string(),
        role: grant.role.as_str().to_owned(),
        condition: grant.condition.as_ref().map(|c| match c.expiry() {
            Some(until) => format!("before {until}"),
            None => c.title.clone(),
        }),
        reason,
    }
}

fn why_revoked(cause: RevokeCause) -> &'static str {
    match cause {
        RevokeCause::Unlisted => "no policy lists it, and an enforced one is authoritative",
        RevokeCause::NoLongerDeclared => {
            "the operator granted it, and its policy no longer lists it"
        }
        RevokeCause::Expired => "its end has passed",
        RevokeCause::PolicyDeleted => "its policy is being deleted",
        RevokeCause::Denied => "it was given on request, and an approver took it back",
        RevokeCause::Refused => "the operator granted it, and a guardrail refuses it now",
    }
}
