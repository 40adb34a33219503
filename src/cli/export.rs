//! `export`: policies from what IAM holds today, or from what Config Connector and Terraform
//! declare.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::Arc,
};

use futures::StreamExt as _;
use jiff::Timestamp;
use kube::core::{Selector, SelectorExt as _};
use serde_json::{Value, json};

use super::{
    Exit,
    context::{Context, print, progress},
};
use crate::{
    cloudrun::{CloudRun as _, Scope, list_services},
    config::CloudArgs,
    iam::{Condition, Grant, Policy, PrincipalKind, Role, RunService, ServiceInfo},
    render::count,
};

#[derive(Clone, Debug, clap::Args)]
pub struct ExportCommand {
    /// Projects to read.
    #[arg(long, value_delimiter = ',', required_unless_present = "from")]
    pub project: Vec<String>,

    /// Only this region.
    #[arg(long)]
    pub region: Option<String>,

    /// Only services with these labels, as in team=shop,tier in (web,api).
    #[arg(long)]
    pub selector: Option<String>,

    /// One policy for all services of a project with the same invokers, instead of one for each
    /// service.
    #[arg(long)]
    pub group: bool,

    /// Config Connector YAML (a file or a folder) or the output of terraform show -json, in place
    /// of Google.
    #[arg(long, value_name = "PATH")]
    pub from: Vec<PathBuf>,

    #[command(flatten)]
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
            read_declared(path, &mut held, &mut unmapped)?;
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
        text.push_str(&serde_saphyr::to_string(policy).map_err(|e| anyhow::anyhow!("{e}"))?);
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
        Some(text) => Some(parse_selector(text)?),
        None => None,
    };
    let cloud = context.limited(&command.cloud).await?;
    let mut services: Vec<ServiceInfo> = Vec::new();
    for project in &command.project {
        let scope = command
            .region
            .as_deref()
            .map_or(Scope::AllRegions, |r| Scope::Region(r.into()));
        let listing = list_services(&cloud, project, &scope)
            .await
            .map_err(|f| anyhow::anyhow!("listing the services of {project}: {}", f.advice()))?;
        for region in &listing.unreachable {
            unmapped.add(format!(
                "region {region} of {project} did not answer; its services are not in this export"
            ));
        }
        services.extend(listing.services);
    }
    services.retain(|s| selector.as_ref().is_none_or(|sel| sel.matches(&s.labels)));
    let bar = progress("reading IAM", services.len());
    let found: Vec<_> = futures::stream::iter(services)
        .map(|info| {
            let cloud = &cloud;
            async move {
                let live = cloud.read_policy(&info.service).await;
                (info, live)
            }
        })
        .buffer_unordered(64)
        .inspect(|_| bar.inc(1))
        .collect()
        .await;
    bar.finish_and_clear();
    for (info, live) in found {
        let live: Policy =
            live.map_err(|f| anyhow::anyhow!("reading {}: {}", info.service, f.advice()))?;
        if info.invoker_iam_disabled {
            unmapped.add(format!(
                "{}: its IAM check is switched off, so anyone can call it whatever IAM says",
                info.service
            ));
        }
        for (principal, role) in live.other_invokers() {
            unmapped.add(format!(
                "{}: {principal} may also invoke by {role}, which no policy touches",
                info.service
            ));
        }
        held.insert(info.service, live.grants());
    }
    Ok(())
}

fn parse_selector(text: &str) -> anyhow::Result<Selector> {
    // kubectl's form: the equality part as labels, the set part as expressions.
    let mut labels = serde_json::Map::new();
    let mut expressions = Vec::new();
    let part = outer_parts(text)?;
    for p in part {
        let p = p.trim();
        if let Some((key, rest)) = p.split_once(" in ").or_else(|| p.split_once(" notin ")) {
            let operator = if p.contains(" notin ") { "NotIn" } else { "In" };
            let values: Vec<&str> = rest
                .trim()
                .trim_matches(['(', ')'])
                .split(',')
                .map(str::trim)
                .collect();
            expressions.push(json!({"key": key.trim(), "operator": operator, "values": values}));
        } else if let Some((key, value)) = p.split_once("!=") {
            expressions
                .push(json!({"key": key.trim(), "operator": "NotIn", "values": [value.trim()]}));
        } else if let Some((key, value)) = p.split_once("==").or_else(|| p.split_once('=')) {
            labels.insert(key.trim().into(), json!(value.trim()));
        } else if let Some(key) = p.strip_prefix('!') {
            expressions.push(json!({"key": key.trim(), "operator": "DoesNotExist"}));
        } else if !p.is_empty() {
            expressions.push(json!({"key": p, "operator": "Exists"}));
        }
    }
    let selector = json!({"matchLabels": labels, "matchExpressions": expressions});
    let selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector =
        serde_json::from_value(selector)?;
    Selector::try_from(selector).map_err(|e| anyhow::anyhow!("--selector {text:?}: {e}"))
}

/// Parts between commas that are not in parentheses.
fn outer_parts(text: &str) -> anyhow::Result<Vec<String>> {
    let (mut parts, mut depth) = (vec![String::new()], 0i32);
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    if depth != 0 {
        anyhow::bail!("--selector {text:?}: a parenthesis is not closed");
    }
    Ok(parts)
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
type Common = (Arc<str>, Role, Vec<Grant>, Option<RunService>);

/// Policies in Audit, in a fixed order. What applies to a service in two roles, or to more members
/// than one policy takes, becomes several.
fn policies(
    held: &Held,
    group: bool,
    namespace: &str,
    now: Timestamp,
    unmapped: &mut Unmapped,
) -> Vec<Value> {
    let mut sets: BTreeMap<Common, Vec<RunService>> = BTreeMap::new();
    for (service, grants) in held {
        for role in [Role::Invoker, Role::ServicesInvoker] {
            let mut fit = Vec::new();
            let of_role: Vec<&Grant> = grants.iter().filter(|g| g.role == role).collect();
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
            let own = (!group).then(|| service.clone());
            sets.entry((service.project.clone(), role, fit, own))
                .or_default()
                .push(service.clone());
        }
    }
    let mut names = BTreeSet::new();
    let mut made = Vec::new();
    for ((project, role, grants, _), services) in sets {
        let left_out = services.iter().any(|s| {
            held.get(s)
                .is_some_and(|h| h.iter().filter(|g| g.role == role).count() > grants.len())
        });
        for part in services.chunks(MOST_SERVICES) {
            for slice in &slices(&grants) {
                let name = unique(&mut names, part, role);
                let targets: Vec<Value> = part
                    .iter()
                    .map(|s| json!({"name": &*s.name, "region": &*s.region}))
                    .collect();
                let mut spec = json!({"project": &*project, "services": targets,
                    "invokers": slice.iter().map(invoker).collect::<Vec<_>>(), "mode": "Audit"});
                if role != Role::Invoker {
                    spec["role"] = json!(role.as_str());
                }
                if slice.is_empty() {
                    spec["allowEmpty"] = json!(true);
                }
                // What could not be declared must not look like drift.
                if left_out {
                    spec["membership"] = json!("Additive");
                }
                made.push(
                    json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy",
                    "metadata": {"name": name, "namespace": namespace}, "spec": spec}),
                );
            }
        }
    }
    made.sort_by_key(|p| {
        p["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    });
    made
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

/// Config Connector or Terraform, by what the file looks like.
fn read_declared(path: &PathBuf, held: &mut Held, unmapped: &mut Unmapped) -> anyhow::Result<()> {
    let mut files = vec![path.clone()];
    if path.is_dir() {
        files = fs::read_dir(path)?
            .filter_map(|e| e.ok().map(|e| e.path()))
            .filter(|p| p.is_file())
            .collect();
        files.sort();
    }
    for file in files {
        let text = fs::read_to_string(&file)
            .map_err(|e| anyhow::anyhow!("{} cannot be read: {e}", file.display()))?;
        let shown = file.display().to_string();
        if file.extension().is_some_and(|e| e == "json") {
            let value: Value = serde_json::from_str(&text)
                .map_err(|e| anyhow::anyhow!("{shown} is no JSON: {e}"))?;
            if value["format_version"].is_string() {
                terraform(&value["values"]["root_module"], held, unmapped);
                continue;
            }
        }
        for (n, document) in text.split("\n---").enumerate() {
            let document = document.trim_start_matches("---");
            if document.trim().is_empty() {
                continue;
            }
            let value: Value = serde_saphyr::from_str(document)
                .map_err(|e| anyhow::anyhow!("{shown}, document {}: is no YAML: {e}", n + 1))?;
            config_connector(&value, held, unmapped);
        }
    }
    Ok(())
}

/// `projects/P/locations/R/services/S`.
fn service_of(path: &str) -> Option<RunService> {
    let parts: Vec<&str> = path
        .trim_start_matches("//run.googleapis.com/")
        .split('/')
        .collect();
    match parts.as_slice() {
        ["projects", p, "locations", r, "services", s] => Some(RunService::new(*p, *r, *s)),
        _ => None,
    }
}

fn condition_of(value: &Value) -> Option<Arc<Condition>> {
    // Terraform has a list of one.
    let value = if value.is_array() { &value[0] } else { value };
    value["expression"].as_str().map(|expression| {
        let text = |k: &str| value[k].as_str().unwrap_or_default().to_owned();
        Arc::new(Condition::new(
            text("title"),
            text("description"),
            expression.to_owned(),
        ))
    })
}

fn enter(
    held: &mut Held,
    unmapped: &mut Unmapped,
    what: &str,
    service: RunService,
    role: &str,
    member: &str,
    condition: &Value,
) {
    let Some(role) = Role::from_name(role) else {
        unmapped.add(format!("{what}: role {role} is none that policies manage"));
        return;
    };
    let principal = crate::iam::Principal::from_live(member);
    held.entry(service).or_default().insert(Grant {
        principal,
        role,
        condition: condition_of(condition),
    });
}

/// IAMPolicyMember, IAMPartialPolicy and IAMPolicy about a RunService.
fn config_connector(value: &Value, held: &mut Held, unmapped: &mut Unmapped) {
    if value["kind"].as_str().is_some_and(|k| k.ends_with("List")) {
        value["items"]
            .as_array()
            .into_iter()
            .flatten()
            .for_each(|v| config_connector(v, held, unmapped));
        return;
    }
    let kind = value["kind"].as_str().unwrap_or_default();
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    let what = format!("{kind} {name}");
    if !value["apiVersion"]
        .as_str()
        .unwrap_or_default()
        .starts_with("iam.cnrm.cloud.google.com/")
    {
        return;
    }
    let reference = &value["spec"]["resourceRef"];
    if reference["kind"] != "RunService" {
        return;
    }
    let Some(service) = reference["external"].as_str().and_then(service_of) else {
        unmapped.add(format!(
            "{what}: it names the RunService by its object ({}); which project and region that is in cannot be seen here",
            reference["name"].as_str().unwrap_or("no name")
        ));
        return;
    };
    let spec = &value["spec"];
    match kind {
        "IAMPolicyMember" => match spec["member"].as_str() {
            Some(member) => {
                let role = spec["role"].as_str().unwrap_or_default();
                enter(
                    held,
                    unmapped,
                    &what,
                    service,
                    role,
                    member,
                    &spec["condition"],
                );
            }
            None => unmapped.add(format!(
                "{what}: memberFrom names another object; what that is cannot be seen here"
            )),
        },
        "IAMPartialPolicy" | "IAMPolicy" => {
            held.entry(service.clone()).or_default();
            for binding in spec["bindings"].as_array().into_iter().flatten() {
                let role = binding["role"].as_str().unwrap_or_default();
                for member in binding["members"].as_array().into_iter().flatten() {
                    match member.as_str().or_else(|| member["member"].as_str()) {
                        Some(m) => enter(held, unmapped, &what, service.clone(), role, m, &binding["condition"]),
                        None => unmapped
                            .add(format!("{what}: memberFrom names another object; what that is cannot be seen here")),
                    }
                }
            }
        }
        _ => unmapped.add(format!("{what}: this kind is not read")),
    }
}

/// `google_cloud_run_service_iam_*` and `google_cloud_run_v2_service_iam_*` in every module.
fn terraform(module: &Value, held: &mut Held, unmapped: &mut Unmapped) {
    for resource in module["resources"].as_array().into_iter().flatten() {
        let type_ = resource["type"].as_str().unwrap_or_default();
        let rest = type_
            .strip_prefix("google_cloud_run_v2_service_iam_")
            .or_else(|| type_.strip_prefix("google_cloud_run_service_iam_"));
        let Some(rest) = rest else { continue };
        let what = resource["address"].as_str().unwrap_or(type_).to_owned();
        let v = &resource["values"];
        let text = |k: &str| v[k].as_str().unwrap_or_default();
        let full = if text("name").is_empty() {
            text("service")
        } else {
            text("name")
        };
        let service = match service_of(full) {
            Some(service) => service,
            None => {
                // v1 writes locations/R/namespaces/P/services/S into service.
                let parts: Vec<&str> = full.split('/').collect();
                match parts.as_slice() {
                    ["locations", r, "namespaces", p, "services", s] => RunService::new(*p, *r, *s),
                    [s] if !text("project").is_empty() && !text("location").is_empty() => {
                        RunService::new(text("project"), text("location"), *s)
                    }
                    _ => {
                        unmapped.add(format!(
                            "{what}: its service cannot be told; is the plan applied?"
                        ));
                        continue;
                    }
                }
            }
        };
        match rest {
            "member" => enter(
                held,
                unmapped,
                &what,
                service,
                text("role"),
                text("member"),
                &v["condition"],
            ),
            "binding" => {
                for member in v["members"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                {
                    enter(
                        held,
                        unmapped,
                        &what,
                        service.clone(),
                        text("role"),
                        member,
                        &v["condition"],
                    );
                }
            }
            "policy" => {
                let data: Value = serde_json::from_str(text("policy_data")).unwrap_or_default();
                for binding in data["bindings"].as_array().into_iter().flatten() {
                    for member in binding["members"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(Value::as_str)
                    {
                        let role = binding["role"].as_str().unwrap_or_default();
                        enter(
                            held,
                            unmapped,
                            &what,
                            service.clone(),
                            role,
                            member,
                            &binding["condition"],
                        );
                    }
                }
            }
            _ => unmapped.add(format!("{what}: this type is not read")),
        }
    }
    for child in module["child_modules"].as_array().into_iter().flatten() {
        terraform(child, held, unmapped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read_as_kubectl_reads_them() {
        let selector = parse_selector("team=shop,tier in (web,api),!legacy,env!=dev").unwrap();
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
        assert!(parse_selector("tier in (web").is_err());
    }

    #[test]
    fn config_connector_and_terraform_are_read_and_what_cannot_be_is_said() {
        let (mut held, mut unmapped) = (Held::new(), Unmapped::default());
        for object in [
            json!({"apiVersion": "iam.cnrm.cloud.google.com/v1beta1", "kind": "IAMPolicyMember", "metadata": {"name": "a"},
                "spec": {"member": "user:a@acme.com", "role": "roles/run.invoker",
                    "resourceRef": {"kind": "RunService", "external": "projects/acme-prod/locations/europe-west1/services/web"}}}),
            json!({"apiVersion": "iam.cnrm.cloud.google.com/v1beta1", "kind": "IAMPartialPolicy", "metadata": {"name": "b"},
                "spec": {"resourceRef": {"kind": "RunService", "external": "projects/acme-prod/locations/europe-west1/services/web"},
                    "bindings": [{"role": "roles/run.invoker", "members": [{"member": "user:b@acme.com"}, {"memberFrom": {}}]},
                                 {"role": "roles/run.admin", "members": [{"member": "user:c@acme.com"}]}]}}),
            json!({"apiVersion": "iam.cnrm.cloud.google.com/v1beta1", "kind": "IAMPolicyMember", "metadata": {"name": "c"},
                "spec": {"member": "user:a@acme.com", "role": "roles/run.invoker", "resourceRef": {"kind": "RunService", "name": "web"}}}),
        ] {
            config_connector(&object, &mut held, &mut unmapped);
        }
        let tf = json!({"resources": [
            {"address": "google_cloud_run_v2_service_iam_member.x", "type": "google_cloud_run_v2_service_iam_member",
                "values": {"name": "projects/acme-prod/locations/us-central1/services/api", "role": "roles/run.invoker", "member": "allUsers"}},
            {"type": "google_storage_bucket", "values": {}}],
            "child_modules": [{"resources": [
                {"address": "module.m.google_cloud_run_service_iam_binding.y", "type": "google_cloud_run_service_iam_binding",
                    "values": {"project": "acme-prod", "location": "us-central1", "service": "api", "role": "roles/run.invoker",
                        "members": ["user:d@acme.com"], "condition": [{"title": "t", "expression": "e"}]}}]}]});
        terraform(&tf, &mut held, &mut unmapped);
        let names: Vec<String> = held.values().flatten().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "user:a@acme.com",
                "user:b@acme.com",
                "allUsers",
                "user:d@acme.com (if t)"
            ]
        );
        assert_eq!(unmapped.0.len(), 3, "{unmapped:?}");
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
