//! `access`: who can invoke what, and how.

mod document;

use std::{collections::BTreeSet, sync::Arc};

use clap::ValueEnum;

use super::{
    Exit, WorldArgs,
    context::{Context, print},
    effective::{EffectiveArgs, Searched, look_above, stands_for},
    output::Form,
    reach::one_of_many,
    select::google_name,
    world::{ClusterSnapshot, Sources, list_project, no_service, read_services},
};
use crate::{
    cloudrun::{CloudRun, google::Side},
    fault::FaultClass,
    iam::{
        Invocation, InvokingRoles, Policy, Principal, PrincipalKind, ServiceInfo, describe_with,
    },
    intent::PolicyKey,
    render::{Format, data},
};
pub use document::{AccessDocument, InheritedFrom, Invoker, ServiceAccess};
use document::{markdown, page, text};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccessOutput {
    Table,
    Json,
    Yaml,
    Markdown,
    Html,
}

#[derive(Clone, Debug, clap::Args)]
pub struct AccessCommand {
    /// Projects to read; those of the cluster's policies if none is given.
    #[arg(long, value_delimiter = ',', value_parser = google_name)]
    pub project: Vec<String>,

    /// Only this region.
    #[arg(long, value_parser = google_name)]
    pub region: Option<String>,

    /// Only services of this name.
    #[arg(long, value_delimiter = ',', value_parser = google_name)]
    pub service: Vec<String>,

    /// Only this member, as IAM writes it.
    #[arg(long, value_parser = member)]
    pub member: Option<Principal>,

    #[command(flatten)]
    pub effective: EffectiveArgs,

    /// Look at no cluster: which policy is behind a grant is not known then.
    #[arg(long, requires = "project")]
    pub offline: bool,

    /// Form of the answer; TEMPLATE as kubectl takes it, over the document of -o json.
    #[arg(short, long, default_value = "table", value_name = "FORM")]
    pub output: Form<AccessOutput>,

    #[command(flatten)]
    pub world: WorldArgs,
}

pub async fn run(context: &Context, command: &AccessCommand) -> anyhow::Result<Exit> {
    let asked = command.effective.asked()?;
    let sources = Sources {
        files: &[],
        offline: command.offline,
        approved: true,
    };
    let (mut world, _) = ClusterSnapshot::declared(context, &command.world, &sources).await?;
    let cloud = context.limited(&command.world.cloud).await?;
    let projects = projects(context, &world, command)?;
    let mut notes = Vec::new();
    let above = above(context, command, &projects, &mut notes).await?;
    let mut failed = above.as_ref().is_some_and(|a| a.failed);
    notes.extend(world.notes.iter().map(|n| format!("Note: {n}.")));
    let infos = list(&mut world, &cloud, command, &projects, &mut notes).await?;
    for project in &command.project {
        if !infos.iter().any(|i| *i.service.project == **project) {
            failed |= !is_seen(context, command, project, &mut notes).await?;
        }
    }
    let infos = of_namespace(context, &world, infos);
    let mut read = read_services(&cloud, infos).await;
    read.sort_by(|(a, _), (b, _)| a.service.cmp(&b.service));
    let roles = above.as_ref().map(Searched::roles).cloned();
    let roles = roles.unwrap_or_default();
    let (mut services, mut refused) = (Vec::new(), false);
    for (info, live) in read {
        let live = match live {
            Ok(live) => live,
            Err(fault) => {
                failed = true;
                refused |= fault.class == FaultClass::PermissionDenied;
                let why = one_of_many(&fault);
                notes.push(format!("{} could not be read: {why}", info.service));
                continue;
            }
        };
        let mut found = access(&world, &info, &live, command.member.as_ref(), &roles);
        add_inherited(&mut found, &world, &info, above.as_ref(), asked.as_ref());
        services.push(found);
    }
    if refused {
        notes.push(format!("{}.", context.servers().google_asked()));
    }
    if command.member.is_some() || asked.is_some() {
        services.retain(|s| !s.invokers.is_empty() || s.iam_check_off);
    }
    notes.extend(unknown_roles(&services));
    let document = AccessDocument {
        kind: "Access",
        version: 1,
        services,
        notes,
    };
    print(&rendered(context, &command.output, &document)?);
    Ok(if failed { Exit::Error } else { Exit::Nothing })
}

/// What searches show, where they are wanted.
async fn above(
    context: &Context,
    command: &AccessCommand,
    projects: &[Arc<str>],
    notes: &mut Vec<String>,
) -> anyhow::Result<Option<Searched>> {
    if !command.effective.is_wanted() {
        notes.push(
            "Only what is granted on the services themselves: roles on the project, folder or organization add to it (--effective)."
                .to_owned(),
        );
        return Ok(None);
    }
    let google = context.google(&command.world.cloud).await?;
    let searched = look_above(&google, &command.effective, projects).await?;
    notes.extend(searched.notes.iter().cloned());
    Ok(Some(searched))
}

/// The roles by which somebody perhaps may invoke, and how to see what is in them.
fn unknown_roles(services: &[ServiceAccess]) -> Option<String> {
    let invokers = services.iter().flat_map(|s| &s.invokers);
    let unknown = invokers.filter(|i| i.role_unknown);
    let roles: BTreeSet<&str> = unknown.map(|i| i.role.as_str()).collect();
    let (names, first): (Vec<&str>, _) = (roles.iter().copied().collect(), roles.first()?);
    Some(format!(
        "Perhaps: the permissions of {} are not known here, and run.routes.invoke may be among them: {}.",
        names.join(", "),
        describe_with(first)
    ))
}

/// The projects that are asked about, or those of the policies.
fn projects(
    context: &Context,
    world: &ClusterSnapshot,
    command: &AccessCommand,
) -> anyhow::Result<Vec<Arc<str>>> {
    let namespace = context.asked_namespace();
    if command.offline && namespace.is_some() {
        anyhow::bail!("-n is about policies, and --offline looks at none; leave one of them out");
    }
    let is_meant = |key: &PolicyKey| namespace.is_none_or(|n| *key.namespace == *n);
    let projects: BTreeSet<Arc<str>> = if command.project.is_empty() {
        let all = world.index.policies().iter();
        let meant = all.filter(|(key, _)| is_meant(key));
        meant
            .map(|(_, record)| record.intent.project.clone())
            .collect()
    } else {
        command.project.iter().map(|p| p.as_str().into()).collect()
    };
    let projects: Vec<Arc<str>> = projects.into_iter().collect();
    if projects.is_empty() {
        let place = namespace.map_or(String::new(), |n| format!(" of namespace {n}"));
        anyhow::bail!("no policy{place} names a project; give --project");
    }
    Ok(projects)
}

/// Who may invoke from above, beside those on the service; of all of them only the one asked for.
fn add_inherited(
    found: &mut ServiceAccess,
    world: &ClusterSnapshot,
    info: &ServiceInfo,
    above: Option<&Searched>,
    asked: Option<&Principal>,
) {
    if let Some(above) = above {
        let claims = world.index.words(&info.service);
        let inherited = above.invokers(&info.service.project, &claims);
        found.invokers.extend(inherited);
    }
    if let Some(asked) = asked {
        found.invokers.retain(|i| stands_for(&i.member, asked));
    }
}

/// The services of the projects that are meant. What selectors mean is known by their labels, so the
/// world learns of all of them.
async fn list<C: CloudRun>(
    world: &mut ClusterSnapshot,
    cloud: &C,
    command: &AccessCommand,
    projects: &[Arc<str>],
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<ServiceInfo>> {
    let mut infos: Vec<ServiceInfo> = Vec::new();
    for project in projects {
        let listing = list_project(cloud, project, command.region.as_deref()).await?;
        let unreachable = listing.unreachable.iter();
        notes.extend(unreachable.map(|r| format!("Region {r} of {project} did not answer.")));
        // What selectors declare is known once their services are.
        infos.extend(listing.services.iter().cloned());
        world.index.apply_listing(project, 1, Ok(listing));
    }
    only_named(&mut infos, command, projects)?;
    Ok(infos)
}

/// A member, as an argument.
fn member(text: &str) -> Result<Principal, String> {
    Principal::parse(text).map_err(|e| format!("{text:?} {e}"))
}

/// Whether a project in which no service was found is there: one with a slip in its id has none
/// either.
async fn is_seen(
    context: &Context,
    command: &AccessCommand,
    project: &str,
    notes: &mut Vec<String>,
) -> anyhow::Result<bool> {
    let google = context.google(&command.world.cloud).await?;
    let side = Side::ResourceManager;
    let answer = google
        .ask(side, &format!("v3/projects/{project}"), None)
        .await;
    let Err(fault) = answer else {
        return Ok(true);
    };
    let (why, _) = context.servers().google_refused(side, &fault);
    notes.push(format!(
        "No service was found in {project}, and whether there is such a project cannot be seen; check its id ({why})."
    ));
    Ok(false)
}

/// Those that policies of the namespace declare that was asked for.
fn of_namespace(
    context: &Context,
    world: &ClusterSnapshot,
    mut infos: Vec<ServiceInfo>,
) -> Vec<ServiceInfo> {
    if let Some(namespace) = context.asked_namespace() {
        let is_declared = |info: &ServiceInfo| {
            let claims = world.index.words(&info.service);
            claims.iter().any(|c| *c.intent.id.namespace == *namespace)
        };
        infos.retain(is_declared);
    }
    infos
}

/// Keeps the services that are named.
fn only_named(
    infos: &mut Vec<ServiceInfo>,
    command: &AccessCommand,
    projects: &[Arc<str>],
) -> anyhow::Result<()> {
    if command.service.is_empty() {
        return Ok(());
    }
    let is_there = |name: &&String| infos.iter().any(|i| *i.service.name == **name);
    if let Some(absent) = command.service.iter().find(|n| !is_there(n)) {
        let region = command.region.as_deref();
        anyhow::bail!(no_service(absent, region, &projects.join(", ")));
    }
    infos.retain(|i| command.service.iter().any(|n| **n == *i.service.name));
    Ok(())
}

fn rendered(
    context: &Context,
    output: &Form<AccessOutput>,
    document: &AccessDocument,
) -> anyhow::Result<String> {
    let form = match output {
        Form::Of(form) => form,
        Form::JsonPath(template) => return template.over(document),
    };
    Ok(match form {
        AccessOutput::Table => text(document, &context.style()),
        AccessOutput::Json => data(document, Format::Json).map_err(anyhow::Error::msg)?,
        AccessOutput::Yaml => data(document, Format::Yaml).map_err(anyhow::Error::msg)?,
        AccessOutput::Markdown => markdown(document),
        AccessOutput::Html => page(document, context.now),
    })
}

fn access(
    world: &ClusterSnapshot,
    info: &ServiceInfo,
    live: &Policy,
    wanted: Option<&Principal>,
    roles: &InvokingRoles,
) -> ServiceAccess {
    let claims = world.index.words(&info.service);
    let mut invokers: Vec<Invoker> = live
        .grants()
        .iter()
        .filter(|g| g.principal.kind() != PrincipalKind::Deleted)
        .map(|g| {
            let until = g.condition.as_ref().and_then(|c| c.expiry());
            let lists =
                |c: &&crate::plan::PolicyOnService| c.declared().iter().any(|d| d.grant == *g);
            Invoker {
                member: g.principal.to_string(),
                role: g.role.as_str().to_owned(),
                policies: claims
                    .iter()
                    .filter(lists)
                    .map(|c| c.intent.id.to_string())
                    .collect(),
                condition: g
                    .condition
                    .as_ref()
                    .filter(|_| until.is_none())
                    .map(|c| c.title.clone()),
                until,
                ended: until.is_some_and(|u| u <= world.now),
                public: g.principal.is_public(),
                cannot_invoke: g.principal.invocation() == Invocation::Unsupported,
                role_unknown: false,
                inherited_from: None,
            }
        })
        .collect();
    let others = live.other_invokers(roles).into_iter();
    invokers.extend(others.map(|(p, role)| Invoker::by_role(&p, role, false)));
    let perhaps = live.perhaps_invokers(roles).into_iter();
    invokers.extend(perhaps.map(|(p, role)| Invoker::by_role(&p, role, true)));
    if let Some(wanted) = wanted {
        let is = |i: &Invoker| i.public || Principal::from_live(&i.member) == *wanted;
        invokers.retain(is);
    }
    ServiceAccess {
        project: info.service.project.to_string(),
        region: info.service.region.to_string(),
        service: info.service.name.to_string(),
        iam_check_off: info.invoker_iam_disabled,
        open_to: ServiceInfo::open_to(Some(info)),
        invokers,
    }
}
