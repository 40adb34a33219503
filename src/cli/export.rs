//! `export`: policies from what IAM holds today, or from what Config Connector and Terraform
//! declare.

mod declared;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use anyhow::Context as _;
use jiff::Timestamp;
use kube::core::{Selector, SelectorExt as _};
use serde_json::{Value, json};

use super::{
    Exit,
    context::{Context, print},
    select::{Requirement, google_name, label_selector, selector_text},
    world,
};
use crate::{
    config::CloudArgs,
    iam::{
        Condition, Grant, InvokingRoles, Policy, PrincipalKind, Role, RunService, ServiceInfo,
        describe_with,
    },
    render::count,
};

#[derive(Clone, Debug, clap::Args)]
pub struct ExportCommand {
    /// Projects to read.
    #[arg(long, value_delimiter = ',', required_unless_present = "from", value_parser = google_name)]
    pub project: Vec<String>,

    /// Only this region.
    #[arg(long, value_parser = google_name)]
    pub region: Option<String>,

    /// Only services with these labels, as in team=shop,tier in (web,api).
    #[arg(long, value_parser = selector_text)]
    pub selector: Option<String>,

    /// One policy for all services of a project with the same invokers, instead of one for each
    /// service.
    #[arg(long)]
    pub group: bool,

    /// Config Connector YAML (a file or a folder) or the output of terraform show -json, in place
    /// of Google.
    #[arg(long, value_name = "PATH")]
    pub from: Vec<PathBuf>,

    #[command(flatten, next_help_heading = crate::cli::help::GOOGLE)]
    pub cloud: CloudArgs,
}

/// What somebody holds on services.
type Held = BTreeMap<RunService, BTreeSet<Grant>>;

/// What could not be carried over, and why.
#[derive(Debug, Default)]
struct Unmapped(BTreeSet<String>);

impl Unmapped {
    fn add(&mut self, what: impl Into<String>) {
        self.0.insert(what.into());
    }
}

pub async fn run(context: &Context, command: &ExportCommand) -> anyhow::Result<Exit> {
    let mut unmapped = Unmapped::default();
    let mut held = Held::new();
    if command.from.is_empty() {
        read_iam(context, command, &mut held, &mut unmapped).await?;
    } else {
        for path in &command.from {
            declared::read(path, &mut held, &mut unmapped)?;
        }
        held.retain(|s, _| {
            command.project.is_empty() || command.project.iter().any(|p| **p == *s.project)
        });
        held.retain(|s, _| command.region.as_ref().is_none_or(|r| **r == *s.region));
    }
    let namespace = context.offline_namespace();
    let policies = policies(&held, command.group, &namespace, context.now, &mut unmapped);
    let mut text = String::new();
    for policy in &policies {
        if !text.is_empty() {
            text.push_str("---\n");
        }
        text.push_str(&serde_saphyr::to_string(policy)?);
    }
    print(&text);
    for what in &unmapped.0 {
        context.complain(&format!("note: {what}"));
    }
    context.complain(&format!(
        "{} for {}, in Audit",
        count(policies.len(), "policy").replace("policys", "policies"),
        count(held.len(), "service")
    ));
    Ok(Exit::Nothing)
}

async fn read_iam(
    context: &Context,
    command: &ExportCommand,
    held: &mut Held,
    unmapped: &mut Unmapped,
) -> anyhow::Result<()> {
    let selector = match &command.selector {
        Some(text) => Some(service_selector(text)?),
        None => None,
    };
    let cloud = context.limited(&command.cloud).await?;
    let region = command.region.as_deref();
    let mut services: Vec<ServiceInfo> = Vec::new();
    for project in &command.project {
        let listing = world::list_project(&cloud, project, region).await?;
        for region in &listing.unreachable {
            unmapped.add(format!(
                "region {region} of {project} did not answer; its services are not in this export"
            ));
        }
        services.extend(listing.services);
    }
    services.retain(|s| selector.as_ref().is_none_or(|sel| sel.matches(&s.labels)));
    let roles = InvokingRoles::default();
    for (info, live) in world::read_services(&cloud, services).await {
        let live: Policy =
            live.with_context(|| format!("cannot read the IAM policy of {}", info.service))?;
        if info.invoker_iam_disabled {
            unmapped.add(format!(
                "{}: its IAM check is switched off, so anyone can call it whatever IAM says",
                info.service
            ));
        }
        let perhaps = live.perhaps_invokers(&roles).into_iter();
        for (principal, role) in perhaps.filter(|(p, _)| p.is_public()) {
            unmapped.add(format!(
                "{}: {principal} has {role}, which no policy touches, and perhaps may invoke by it ({})",
                info.service,
                describe_with(role)
            ));
        }
        for (principal, role) in live.other_invokers(&roles) {
            unmapped.add(format!(
                "{}: {principal} may also invoke by {role}, which no policy touches",
                info.service
            ));
        }
        held.insert(info.service, live.grants());
    }
    Ok(())
}

/// A selector over the labels of Cloud Run services.
fn service_selector(text: &str) -> anyhow::Result<Selector> {
    let requirements = label_selector(text).map_err(anyhow::Error::msg)?;
    let expression =
        |r: &Requirement| json!({"key": r.key, "operator": r.operator, "values": r.values});
    let all: Vec<_> = requirements.iter().map(expression).collect();
    let selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector =
        serde_json::from_value(json!({"matchExpressions": all}))?;
    Selector::try_from(selector).map_err(|e| anyhow::anyhow!("--selector {text:?}: {e}"))
}

/// The end of a grant, where it has exactly the form that `expires` takes: any other spelling would
/// come back as a difference.
fn end_of(condition: &Condition) -> Option<Timestamp> {
    condition
        .expiry()
        .filter(|until| Condition::expiring(*until, None) == *condition)
}

/// Whether a policy can declare a grant, as it is.
fn declarable(grant: &Grant, now: Timestamp) -> Result<(), String> {
    let principal = &grant.principal;
    if grant
        .condition
        .as_ref()
        .and_then(|c| c.expiry())
        .is_some_and(|end| end <= now)
    {
        return Err("has ended".into());
    }
    match principal.kind() {
        PrincipalKind::Deleted => return Err("is what is left of a deleted identity".into()),
        PrincipalKind::Other => return Err("has a form that policies do not take".into()),
        _ => {}
    }
    if let Err(e) = crate::iam::Principal::parse(principal.as_str()) {
        return Err(e.to_string());
    }
    if let Some(c) = &grant.condition {
        if principal.is_public() {
            return Err("is public under a condition, which IAM does not evaluate".into());
        }
        let too_long =
            c.title.len() > 100 || c.description.len() > 256 || c.expression.len() > 4096;
        if end_of(c).is_none() && (c.title.is_empty() || too_long) {
            return Err("has a condition without a title, or one that is too long".into());
        }
    }
    Ok(())
}

/// An entry of `spec.invokers`.
fn invoker(grant: &Grant) -> Value {
    let mut entry = json!({"member": grant.principal.as_str()});
    if let Some(c) = &grant.condition {
        match end_of(c) {
            Some(until) => entry["expires"] = json!(until.to_string()),
            None => {
                entry["condition"] = json!({"title": c.title, "expression": c.expression});
                if !c.description.is_empty() {
                    entry["condition"]["description"] = json!(c.description);
                }
            }
        }
    }
    entry
}

/// The most invokers that one policy takes (the schema's bound).
const MOST: usize = 200;
const MOST_SERVICES: usize = 64;

/// What services must have in common to be in one policy; without `--group` the service is part of
/// it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Common {
    project: Arc<str>,
    role: Role,
    grants: Vec<Grant>,
    service: Option<RunService>,
}

/// Policies in Audit, in a fixed order. What applies to a service in two roles, or to more members
/// than one policy takes, becomes several.
fn policies(
    held: &Held,
    group: bool,
    namespace: &str,
    now: Timestamp,
    unmapped: &mut Unmapped,
) -> Vec<Value> {
    let sets = sets(held, group, now, unmapped);
    let mut names = BTreeSet::new();
    let mut made = Vec::new();
    for (common, services) in sets {
        let (role, grants) = (common.role, &common.grants);
        let of_role = |h: &BTreeSet<Grant>| h.iter().filter(|g| g.role == role).count();
        let lost = |s: &RunService| held.get(s).is_some_and(|h| of_role(h) > grants.len());
        let left_out = services.iter().any(lost);
        let slices = slices(grants);
        for part in services.chunks(MOST_SERVICES) {
            for slice in &slices {
                let name = unique(&mut names, part, role);
                let spec = spec(&common.project, role, part, slice, left_out);
                made.push(
                    json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy",
                    "metadata": {"name": name, "namespace": namespace}, "spec": spec}),
                );
            }
        }
    }
    let name = |p: &Value| {
        p["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    made.sort_by_key(name);
    made
}

/// Services by what they have in common.
fn sets(
    held: &Held,
    group: bool,
    now: Timestamp,
    unmapped: &mut Unmapped,
) -> BTreeMap<Common, Vec<RunService>> {
    let mut sets: BTreeMap<Common, Vec<RunService>> = BTreeMap::new();
    for (service, grants) in held {
        for role in [Role::Invoker, Role::ServicesInvoker] {
            let of_role: Vec<&Grant> = grants.iter().filter(|g| g.role == role).collect();
            let mut fit = Vec::new();
            for grant in &of_role {
                match declarable(grant, now) {
                    Ok(()) => fit.push((*grant).clone()),
                    Err(why) => unmapped.add(format!(
                        "{service}: {} {why}; it is left out",
                        grant.principal
                    )),
                }
            }
            // A service that nobody may invoke is worth a policy that says so; a second role that
            // nobody uses is not.
            if of_role.is_empty()
                && (role == Role::ServicesInvoker
                    || grants.iter().any(|g| g.role == Role::ServicesInvoker))
            {
                continue;
            }
            let common = Common {
                project: service.project.clone(),
                role,
                grants: fit,
                service: (!group).then(|| service.clone()),
            };
            sets.entry(common).or_default().push(service.clone());
        }
    }
    sets
}

/// `left_out`: not all that is granted could be declared.
fn spec(
    project: &str,
    role: Role,
    services: &[RunService],
    grants: &[Grant],
    left_out: bool,
) -> Value {
    let target = |s: &RunService| json!({"name": &*s.name, "region": &*s.region});
    let targets: Vec<Value> = services.iter().map(target).collect();
    let invokers: Vec<Value> = grants.iter().map(invoker).collect();
    let mut spec =
        json!({"project": project, "services": targets, "invokers": invokers, "mode": "Audit"});
    if role != Role::Invoker {
        spec["role"] = json!(role.as_str());
    }
    if grants.is_empty() {
        spec["allowEmpty"] = json!(true);
    }
    // What could not be declared must not look like drift.
    if left_out {
        spec["membership"] = json!("Additive");
    }
    spec
}

/// What fits into one policy each: at most [`MOST`], and no member twice under one title or end,
/// which the API server takes for a mistake.
fn slices(grants: &[Grant]) -> Vec<Vec<Grant>> {
    let mut layers: Vec<Vec<Grant>> = vec![Vec::new()];
    let mut seen: BTreeMap<(String, String), usize> = BTreeMap::new();
    for grant in grants {
        let title = grant
            .condition
            .as_ref()
            .map(|c| end_of(c).map_or(c.title.clone(), |e| format!("until {e}")));
        let n = seen
            .entry((
                grant.principal.as_str().to_owned(),
                title.unwrap_or_default(),
            ))
            .or_default();
        if layers.len() <= *n {
            layers.push(Vec::new());
        }
        if let Some(layer) = layers.get_mut(*n) {
            layer.push(grant.clone());
        }
        *n += 1;
    }
    let first_is_empty = layers.iter().all(Vec::is_empty);
    if first_is_empty {
        return layers;
    }
    layers
        .iter()
        .flat_map(|l| l.chunks(MOST).map(<[Grant]>::to_vec))
        .collect()
}

/// A name from the services, at most 63 characters, each once.
fn unique(names: &mut BTreeSet<String>, services: &[RunService], role: Role) -> String {
    let base = match services {
        [one] => one.name.to_string(),
        [first, rest @ ..] => format!("{}-and-{}-more", first.name, rest.len()),
        [] => "none".into(),
    };
    let mut tries = vec![base.clone()];
    if let [one] = services {
        tries.push(format!("{base}-{}", one.region));
        tries.push(format!("{base}-{}-{}", one.region, one.project));
    }
    if role == Role::ServicesInvoker {
        tries = tries.into_iter().map(|t| format!("{t}-services")).collect();
    }
    let stem = tries.last().cloned().unwrap_or_default();
    let numbered = (2..).map(|n| format!("{stem}-{n}"));
    for name in tries.into_iter().chain(numbered) {
        let name: String = if name.len() > 63 {
            name.chars().skip(name.len() - 63).collect()
        } else {
            name
        };
        let name = name.trim_matches('-').to_owned();
        if names.insert(name.clone()) {
            return name;
        }
    }
    stem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read_as_kubectl_reads_them() {
        let selector = service_selector("team=shop,tier in (web,api),!legacy,env!=dev").unwrap();
        let labels = |l: &[(&str, &str)]| {
            l.iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        assert!(selector.matches(&labels(&[("team", "shop"), ("tier", "api")])));
        assert!(!selector.matches(&labels(&[("team", "shop"), ("tier", "db")])));
        assert!(!selector.matches(&labels(&[
            ("team", "shop"),
            ("tier", "web"),
            ("legacy", "1")
        ])));
        assert!(service_selector("tier > 1").is_err());
    }

    #[test]
    fn equal_sets_meet_in_one_policy_and_names_are_unique() {
        let grant = |m: &str| Grant::new(crate::iam::Principal::from_live(m), Role::Invoker);
        let service = |r: &str, n: &str| RunService::new("acme-prod", r, n);
        let held: Held = [
            (
                service("europe-west1", "web"),
                [grant("user:a@acme.com")].into(),
            ),
            (
                service("us-central1", "web"),
                [grant("user:a@acme.com")].into(),
            ),
            (
                service("us-central1", "api"),
                [
                    grant("user:b@acme.com"),
                    grant("deleted:user:x@acme.com?uid=1"),
                ]
                .into(),
            ),
            (service("us-central1", "idle"), BTreeSet::new()),
        ]
        .into();
        let mut unmapped = Unmapped::default();
        let names = |l: &[Value]| {
            l.iter()
                .map(|p| p["metadata"]["name"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let single = policies(&held, false, "shop", Timestamp::UNIX_EPOCH, &mut unmapped);
        assert_eq!(names(&single), ["api", "idle", "web", "web-us-central1"]);
        assert_eq!(single[0]["spec"]["membership"], "Additive");
        assert_eq!(single[1]["spec"]["allowEmpty"], true);
        let grouped = policies(&held, true, "shop", Timestamp::UNIX_EPOCH, &mut unmapped);
        assert_eq!(names(&grouped), ["api", "idle", "web-and-1-more"]);
        assert_eq!(unmapped.0.len(), 1);
        for policy in single.iter().chain(&grouped) {
            assert_eq!(
                super::super::files::check("InvokerPolicy", policy),
                Vec::<String>::new()
            );
        }
    }
}
