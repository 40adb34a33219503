//! `access`: who can invoke what, and how.

use std::{collections::BTreeMap, sync::Arc};

use clap::ValueEnum;
use jiff::Timestamp;
use serde::Serialize;

use super::{
    Exit, WorldArgs,
    context::{Context, print},
    effective::{EffectiveArgs, Searched, look_above, stands_for},
    reach::one_of_many,
    select::google_name,
    world::{ClusterSnapshot, Sources, list_project, read_services},
};
use crate::{
    cloudrun::CloudRun,
    iam::{Invocation, Policy, Principal, PrincipalKind, ServiceInfo},
    render::{Format, Style, Tone, count, data, html, table},
};

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

    #[arg(short, long, value_enum, default_value = "table")]
    pub output: AccessOutput,

    #[command(flatten)]
    pub world: WorldArgs,
}

/// `access -o json`, version 1.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessDocument {
    pub kind: &'static str,
    pub version: u32,
    pub services: Vec<ServiceAccess>,
    /// What is not in here.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccess {
    pub project: String,
    pub region: String,
    pub service: String,
    /// IAM is not asked: anyone who passes ingress may call.
    pub iam_check_off: bool,
    /// From where somebody without an account can call it once it is public; absent: from nowhere,
    /// because Identity-Aware Proxy asks first, or ingress lets nobody in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_to: Option<&'static str>,
    pub invokers: Vec<Invoker>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Invoker {
    pub member: String,
    pub role: String,
    /// Namespace and name of the policies that list it; empty: nobody does.
    pub policies: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Access has ended, although the binding is still there.
    pub ended: bool,
    pub public: bool,
    /// It is granted, and Cloud Run does not let it invoke.
    pub cannot_invoke: bool,
    /// Where above the service it is granted; absent: on the service itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inherited_from: Option<InheritedFrom>,
}

/// Where above a service something is granted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InheritedFrom {
    /// project, folder or organization.
    pub level: &'static str,
    /// projects/ID, folders/NUMBER or organizations/NUMBER.
    pub resource: String,
}

impl ServiceAccess {
    /// That anyone can call it, and from where; or why that is not so although its IAM would let
    /// everybody.
    fn open(&self) -> Option<Open> {
        let public = self.invokers.iter().find(|i| i.public && !i.ended);
        let by = match public {
            _ if self.iam_check_off => "the IAM check is switched off",
            Some(public) => public.member.as_str(),
            None => return None,
        };
        Some(match self.open_to {
            Some(from) => Open::Yes(format!("{from}: {by}")),
            None => Open::No(format!(
                "{by}, and Identity-Aware Proxy or ingress keeps out who has no account"
            )),
        })
    }
}

enum Open {
    Yes(String),
    No(String),
}

impl Invoker {
    /// In a few words.
    fn how(&self) -> String {
        let mut words = Vec::new();
        if self.public {
            words.push("PUBLIC".to_owned());
        }
        if self.ended {
            words.push("ended".into());
        } else if let Some(until) = self.until {
            words.push(format!("until {until}"));
        }
        if let Some(title) = &self.condition {
            words.push(format!("if {title}"));
        }
        if self.role != "roles/run.invoker" {
            words.push(format!("as {}", self.role));
        }
        if let Some(from) = &self.inherited_from {
            words.push(format!("from {}", from.resource));
        }
        if self.cannot_invoke {
            words.push("cannot invoke: federated identity".into());
        }
        words.push(if self.policies.is_empty() {
            "unlisted".into()
        } else {
            format!("by {}", self.policies.join(", "))
        });
        words.join("; ")
    }

    fn kind(&self) -> html::CellKind {
        match self {
            i if i.public => html::CellKind::Public,
            i if i.ended || i.cannot_invoke => html::CellKind::Dead,
            i if i.until.is_some() || i.condition.is_some() => html::CellKind::Conditional,
            i if i.policies.is_empty() => html::CellKind::Unlisted,
            _ => html::CellKind::Listed,
        }
    }
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
    let projects = projects(&world, command)?;
    let mut notes = Vec::new();
    let mut failed = false;
    let mut above = None;
    if command.effective.is_wanted() {
        let google = context.google(&command.world.cloud).await?;
        let searched = look_above(&google, &command.effective, &projects).await?;
        notes.extend(searched.notes.iter().cloned());
        failed = searched.failed;
        above = Some(searched);
    } else {
        notes.push(
            "Only what is granted on the services themselves: roles on the project, folder or organization add to it (--effective)."
                .to_owned(),
        );
    }
    notes.extend(world.notes.iter().map(|n| format!("Note: {n}.")));
    let infos = list(&mut world, &cloud, command, &projects, &mut notes).await?;
    let mut read = read_services(&cloud, infos).await;
    read.sort_by(|(a, _), (b, _)| a.service.cmp(&b.service));
    let (mut services, mut unread) = (Vec::new(), false);
    for (info, live) in read {
        let live = match live {
            Ok(live) => live,
            Err(fault) => {
                unread = true;
                let why = one_of_many(&fault);
                notes.push(format!("{} could not be read: {why}", info.service));
                continue;
            }
        };
        let mut found = access(&world, &info, &live, command.member.as_ref());
        add_inherited(&mut found, &world, &info, above.as_ref(), asked.as_ref());
        services.push(found);
    }
    if unread {
        failed = true;
        notes.push(format!("{}.", context.servers().google_asked()));
    }
    if command.member.is_some() || asked.is_some() {
        services.retain(|s| !s.invokers.is_empty() || s.iam_check_off);
    }
    let document = AccessDocument {
        kind: "Access",
        version: 1,
        services,
        notes,
    };
    print(&rendered(context, command.output, &document)?);
    Ok(if failed { Exit::Error } else { Exit::Nothing })
}

/// The projects that are asked about, or those of the policies.
fn projects(world: &ClusterSnapshot, command: &AccessCommand) -> anyhow::Result<Vec<Arc<str>>> {
    let projects: Vec<Arc<str>> = if command.project.is_empty() {
        world.index.policies().projects().cloned().collect()
    } else {
        command.project.iter().map(|p| p.as_str().into()).collect()
    };
    if projects.is_empty() {
        anyhow::bail!("no policy names a project; give --project");
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
        let region = command.region.as_ref().map(|r| format!(" in {r}"));
        anyhow::bail!(
            "there is no service {absent}{} in {}",
            region.unwrap_or_default(),
            projects.join(", ")
        );
    }
    infos.retain(|i| command.service.iter().any(|n| **n == *i.service.name));
    Ok(())
}

fn rendered(
    context: &Context,
    output: AccessOutput,
    document: &AccessDocument,
) -> anyhow::Result<String> {
    Ok(match output {
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
                inherited_from: None,
            }
        })
        .collect();
    invokers.extend(live.other_invokers().into_iter().map(|(p, role)| Invoker {
        member: p.to_string(),
        role: role.to_owned(),
        policies: Vec::new(),
        condition: None,
        until: None,
        ended: false,
        public: p.is_public(),
        cannot_invoke: p.invocation() == Invocation::Unsupported,
        inherited_from: None,
    }));
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

fn text(document: &AccessDocument, style: &Style) -> String {
    let mut text = String::new();
    for s in &document.services {
        text.push_str(&style.paint(
            Tone::Strong,
            &format!("{} ({}, {})", s.service, s.region, s.project),
        ));
        text.push('\n');
        let line = match s.open() {
            Some(Open::Yes(words)) => Some((Tone::Bad, format!("ANYONE, {words}"))),
            Some(Open::No(words)) => Some((Tone::Warn, words)),
            None => None,
        };
        if let Some((tone, words)) = line {
            text.push_str(&style.paint(tone, &style.wrap(2, &words)));
            text.push('\n');
        }
        for i in &s.invokers {
            let tone = if i.public {
                Tone::Bad
            } else if i.policies.is_empty() {
                Tone::Warn
            } else {
                Tone::Good
            };
            text.push_str(&format!("  {}\n", style.paint(tone, &i.member)));
            text.push_str(&style.paint(Tone::Dim, &style.wrap(6, &i.how())));
            text.push('\n');
        }
        if s.invokers.is_empty() && !s.iam_check_off {
            text.push_str("  nobody\n");
        }
        text.push('\n');
    }
    let principals: std::collections::BTreeSet<&str> = document
        .services
        .iter()
        .flat_map(|s| s.invokers.iter().map(|i| i.member.as_str()))
        .collect();
    text.push_str(&format!(
        "{}, {}\n",
        count(document.services.len(), "service"),
        count(principals.len(), "principal")
    ));
    for note in &document.notes {
        text.push_str(&style.paint(Tone::Dim, &style.wrap(0, note)));
        text.push('\n');
    }
    text
}

fn markdown(document: &AccessDocument) -> String {
    let mut rows = Vec::new();
    for s in &document.services {
        let place = format!("{} ({}, {})", s.service, s.region, s.project);
        if let Some(Open::Yes(words) | Open::No(words)) = s.open() {
            rows.push(vec![place.clone(), "anyone".into(), format!("**{words}**")]);
        }
        rows.extend(
            s.invokers
                .iter()
                .map(|i| vec![place.clone(), format!("`{}`", i.member), i.how()]),
        );
    }
    let notes: String = document.notes.iter().map(|n| format!("\n{n}\n")).collect();
    format!(
        "{}{notes}",
        table::markdown(&["service", "member", "how"], &rows)
    )
}

fn page(document: &AccessDocument, now: Timestamp) -> String {
    let columns: Vec<html::Column> = document
        .services
        .iter()
        .map(|s| html::Column {
            name: s.service.clone(),
            place: format!("{}, {}", s.region, s.project),
            open: s.iam_check_off && s.open_to.is_some(),
        })
        .collect();
    let mut rows: BTreeMap<String, Vec<html::Cell>> = BTreeMap::new();
    for (n, s) in document.services.iter().enumerate() {
        for i in &s.invokers {
            let cell = html::Cell {
                column: n,
                kind: i.kind(),
                words: i.how(),
            };
            rows.entry(i.member.clone()).or_default().push(cell);
        }
    }
    html::matrix(
        &columns,
        &rows,
        &document.notes,
        &now.strftime("%Y-%m-%d %H:%M UTC").to_string(),
    )
}
