//! `plan`: what an apply would do to IAM.

use std::{collections::BTreeSet, path::PathBuf};

use clap::ValueEnum;

use super::{
    Exit, Output, WorldArgs,
    context::{Context, print},
    world::{ClusterSnapshot, Sources},
};
use crate::{
    iam::{Grant, RunService},
    plan::{self, Change, PolicyOnService, RevokeCause, WithheldReason},
    render::plan::{Action, FailOn, Line, PlanDocument, PolicyNote, ServicePlan},
};

#[derive(Clone, Debug, clap::Args)]
pub struct PlanCommand {
    /// Files or folders with policies and guardrails; - is the standard input. They count as
    /// applied.
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub files: Vec<PathBuf>,

    /// Look at no cluster: files and Google only. What the operator granted before is not known
    /// then.
    #[arg(long)]
    pub offline: bool,

    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,

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
    let sources = Sources {
        files: &command.files,
        offline: command.offline,
    };
    let (mut world, loaded) = ClusterSnapshot::declared(context, &command.world, &sources).await?;
    let cloud = context.limited(&command.world.cloud).await?;
    world.read(&cloud).await;
    let document = document(&world);
    print(
        &document
            .render(command.output.into(), &context.style())
            .map_err(anyhow::Error::msg)?,
    );
    for note in &world.notes {
        context.complain(&format!("note: {note}"));
    }
    for problem in &loaded.problems {
        context.complain(&format!("error: {problem}"));
    }
    if !loaded.problems.is_empty() || document.summary.failed > 0 {
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

/// The plan of a world.
pub fn document(world: &ClusterSnapshot) -> PlanDocument {
    let services = world
        .live
        .keys()
        .map(|service| service_plan(world, service))
        .collect();
    let mut notes = Vec::new();
    let mut policies: Vec<_> = world.index.policies().iter().collect();
    policies.sort_by_key(|(key, _)| *key);
    for ((namespace, name), record) in policies {
        let policy = format!("{namespace}/{name}");
        let mut note = |message: String| {
            notes.push(PolicyNote {
                policy: policy.clone(),
                message,
            })
        };
        let intent = &record.intent;
        for rejection in intent.rejections.iter().chain(&intent.remarks) {
            note(format!("{}: {}", rejection.field, rejection.message));
        }
        for denied in record.denied_targets() {
            note(match &denied.service {
                Some(service) => {
                    format!("{} ({}): {}", service.name, service.region, denied.message)
                }
                None => denied.message.clone(),
            });
        }
        if record.outside() > 0 {
            note(format!(
                "{} services that its selectors match are outside of its guardrails",
                record.outside()
            ));
        }
        for account in record.intent.accounts.iter().flat_map(|a| &a.unlinked) {
            note(account.message.clone());
        }
        if let Some(fault) = world
            .index
            .project(&record.intent.project)
            .and_then(|p| p.fault())
            && record.intent.has_selector()
        {
            note(format!("its services cannot be listed: {}", fault.advice()));
        }
    }
    PlanDocument::new(services, notes)
}

fn service_plan(world: &ClusterSnapshot, service: &RunService) -> ServicePlan {
    let mut shown = ServicePlan {
        project: service.project.to_string(),
        region: service.region.to_string(),
        service: service.name.to_string(),
        ..ServicePlan::default()
    };
    let Some(planned) = world.plan(service) else {
        let claims = world.index.words(service);
        shown.policies = claims.iter().map(|c| c.intent.id.to_string()).collect();
        shown.error = world
            .live
            .get(service)
            .and_then(|l| l.as_ref().err())
            .map(crate::fault::Fault::advice);
        return shown;
    };
    let (inputs, plan) = (&planned.inputs, &planned.plan);
    shown.policies = inputs
        .claims
        .iter()
        .map(|c| c.intent.id.to_string())
        .collect();
    let input = inputs.input(planned.live, &world.settings, world.now);
    let mut lines = BTreeSet::new();
    let mut told: BTreeSet<&Grant> = BTreeSet::new();
    for (grant, by) in &plan.grants {
        let by: Vec<String> = by.iter().map(ToString::to_string).collect();
        lines.insert(line(
            Action::Grant,
            grant,
            format!("declared by {}", by.join(", ")),
        ));
        told.insert(grant);
    }
    for (grant, cause) in &plan.revokes {
        lines.insert(line(Action::Revoke, grant, why_revoked(*cause).into()));
        told.insert(grant);
    }
    for withheld in &plan.withheld {
        told.insert(&withheld.grant);
        let why = withheld.why.explain();
        let shown = match (&withheld.why, withheld.change) {
            (WithheldReason::Audited, Change::Grant) => {
                line(Action::WouldGrant, &withheld.grant, why)
            }
            (WithheldReason::Protected, _) => line(Action::Leave, &withheld.grant, why),
            (WithheldReason::Suspended, _) => line(
                Action::Leave,
                &withheld.grant,
                "the policy is suspended: not granted".into(),
            ),
            (_, Change::Grant) => {
                line(Action::Hold, &withheld.grant, format!("not granted: {why}"))
            }
            (_, Change::Revoke) => {
                line(Action::Hold, &withheld.grant, format!("not revoked: {why}"))
            }
            (_, Change::Leave) => line(Action::Leave, &withheld.grant, why),
        };
        lines.insert(shown);
    }
    // What an audited policy would take away, if it were enforced.
    let audited = |c: &&PolicyOnService| {
        c.intent.mode == crate::api::Mode::Audit && !c.intent.suspended && !c.intent.deleting
    };
    let mut taken = BTreeSet::new();
    for claim in inputs.claims.iter().filter(audited) {
        for grant in plan::view(claim, &input).unexpected {
            if !told.contains(&grant) && taken.insert(grant.clone()) {
                lines.insert(line(
                    Action::WouldRevoke,
                    &grant,
                    format!("{} is in Audit and does not list it", claim.intent.id),
                ));
            }
        }
    }
    for grant in planned.live.grants() {
        let listed = inputs
            .claims
            .iter()
            .any(|c| c.declared().iter().any(|d| d.grant == grant));
        if !listed && !told.contains(&grant) && !taken.contains(&grant) {
            lines.insert(line(
                Action::Leave,
                &grant,
                "nobody lists it, and no authoritative policy may take it".into(),
            ));
        }
    }
    shown.approve = plan
        .withheld
        .iter()
        .find_map(|w| w.why.hash())
        .map(ToString::to_string);
    shown.exposed = plan::exposed(inputs.info.as_ref(), &input).map(|w| w.to_string());
    shown.changes = lines.into_iter().collect();
    shown
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
        RevokeCause::NoLongerDeclared => "the operator granted it, and its policy lists it no more",
        RevokeCause::Expired => "its end has passed",
        RevokeCause::PolicyDeleted => "its policy is being deleted",
        RevokeCause::Refused => "the operator granted it, and a guardrail refuses it now",
    }
}
