//! What Config Connector and Terraform declare, read from files.

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use serde_json::Value;

use super::{Held, Unmapped};
use crate::iam::{Condition, Grant, Principal, Role, RunService};

/// Config Connector or Terraform, by what the file looks like.
pub(super) fn read(path: &PathBuf, held: &mut Held, unmapped: &mut Unmapped) -> anyhow::Result<()> {
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
            .with_context(|| format!("{} cannot be read", file.display()))?;
        let shown = file.display().to_string();
        if file.extension().is_some_and(|e| e == "json") {
            let value: Value =
                serde_json::from_str(&text).with_context(|| format!("{shown}: invalid JSON"))?;
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
                .with_context(|| format!("{shown}, document {}: invalid YAML", n + 1))?;
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

/// The members of a list.
fn members(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// One resource that grants something on a service.
struct Resource<'a> {
    /// What messages call it.
    what: &'a str,
    held: &'a mut Held,
    unmapped: &'a mut Unmapped,
}

impl Resource<'_> {
    fn unmapped(&mut self, why: impl std::fmt::Display) {
        self.unmapped.add(format!("{}: {why}", self.what));
    }

    /// Somebody in a role, as `role`, `member` and `condition` say.
    fn enter(&mut self, service: RunService, role: &Value, member: &str, condition: &Value) {
        let role = role.as_str().unwrap_or_default();
        let Some(role) = Role::from_name(role) else {
            return self.unmapped(format!("role {role} is none that policies manage"));
        };
        self.held.entry(service).or_default().insert(Grant {
            principal: Principal::from_live(member),
            role,
            condition: condition_of(condition),
        });
    }

    /// The object behind `memberFrom` is not in the files.
    fn enter_or_reference(&mut self, service: RunService, member: Option<&str>, binding: &Value) {
        match member {
            Some(member) => self.enter(service, &binding["role"], member, &binding["condition"]),
            None => {
                self.unmapped("memberFrom names another object; what that is cannot be seen here")
            }
        }
    }
}

/// IAMPolicyMember, IAMPartialPolicy and IAMPolicy about a RunService.
fn config_connector(value: &Value, held: &mut Held, unmapped: &mut Unmapped) {
    let kind = value["kind"].as_str().unwrap_or_default();
    if kind.ends_with("List") {
        members(&value["items"]).for_each(|v| config_connector(v, held, unmapped));
        return;
    }
    let version = value["apiVersion"].as_str().unwrap_or_default();
    let spec = &value["spec"];
    let reference = &spec["resourceRef"];
    if !version.starts_with("iam.cnrm.cloud.google.com/") || reference["kind"] != "RunService" {
        return;
    }
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    let what = format!("{kind} {name}");
    let mut resource = Resource {
        what: &what,
        held,
        unmapped,
    };
    let Some(service) = reference["external"].as_str().and_then(service_of) else {
        let object = reference["name"].as_str().unwrap_or("no name");
        return resource.unmapped(format!(
            "it names the RunService by its object ({object}); which project and region that is in cannot be seen here"
        ));
    };
    match kind {
        "IAMPolicyMember" => {
            resource.enter_or_reference(service, spec["member"].as_str(), spec);
        }
        "IAMPartialPolicy" | "IAMPolicy" => {
            resource.held.entry(service.clone()).or_default();
            for binding in members(&spec["bindings"]) {
                for member in members(&binding["members"]) {
                    let name = member.as_str().or_else(|| member["member"].as_str());
                    resource.enter_or_reference(service.clone(), name, binding);
                }
            }
        }
        _ => resource.unmapped("this kind is not read"),
    }
}

/// `google_cloud_run_service_iam_*` and `google_cloud_run_v2_service_iam_*` in every module.
fn terraform(module: &Value, held: &mut Held, unmapped: &mut Unmapped) {
    for resource in members(&module["resources"]) {
        let type_ = resource["type"].as_str().unwrap_or_default();
        let kind = type_
            .strip_prefix("google_cloud_run_v2_service_iam_")
            .or_else(|| type_.strip_prefix("google_cloud_run_service_iam_"));
        let Some(kind) = kind else { continue };
        let what = resource["address"].as_str().unwrap_or(type_);
        terraform_resource(
            kind,
            &resource["values"],
            &mut Resource {
                what,
                held,
                unmapped,
            },
        );
    }
    for child in members(&module["child_modules"]) {
        terraform(child, held, unmapped);
    }
}

fn terraform_resource(kind: &str, values: &Value, resource: &mut Resource<'_>) {
    let Some(service) = terraform_service(values) else {
        return resource.unmapped("its service cannot be told; is the plan applied?");
    };
    let mut enter = |member: &str, binding: &Value| {
        let (role, condition) = (&binding["role"], &binding["condition"]);
        resource.enter(service.clone(), role, member, condition);
    };
    match kind {
        "member" => enter(values["member"].as_str().unwrap_or_default(), values),
        "binding" => members(&values["members"])
            .filter_map(Value::as_str)
            .for_each(|m| enter(m, values)),
        "policy" => {
            let data = values["policy_data"].as_str().unwrap_or_default();
            let data: Value = serde_json::from_str(data).unwrap_or_default();
            for binding in members(&data["bindings"]) {
                members(&binding["members"])
                    .filter_map(Value::as_str)
                    .for_each(|m| enter(m, binding));
            }
        }
        _ => resource.unmapped("this type is not read"),
    }
}

/// The service of a resource; v1 writes `locations/R/namespaces/P/services/S` into `service`.
fn terraform_service(values: &Value) -> Option<RunService> {
    let text = |key: &str| values[key].as_str().unwrap_or_default();
    let name = match text("name") {
        "" => text("service"),
        name => name,
    };
    let parts: Vec<&str> = name.split('/').collect();
    service_of(name).or_else(|| match parts.as_slice() {
        ["locations", r, "namespaces", p, "services", s] => Some(RunService::new(*p, *r, *s)),
        [s] if !text("project").is_empty() && !text("location").is_empty() => {
            Some(RunService::new(text("project"), text("location"), *s))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
}
