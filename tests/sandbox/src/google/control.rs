//! The control API's part for Google's other APIs.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::run::{Constraint, ConsumerTrouble, Run, World};

pub const HELP: &str = "\
Who can invoke a service beyond its own policy (resources by relative name: projects/P, folders/N, organizations/N,
projects/P/locations/R/services/S, projects/P/iap_web/cloud_run-R/services/S):
  GET    /hierarchy                     every organization, folder and project, its parent and its policy
  POST   /hierarchy                     {organizations?: [{name, displayName?}], folders?: [{name, displayName?, parent?}], projects?: [{id, number?, parent?}]} in this order
  POST   /policies                      {resource, bindings} replaces an allow policy behind the operator's back
  POST   /roles                         {name: projects/P/roles/R, permissions: [run.routes.invoke]} a custom role
  POST   /groups                        {group: group:E-MAIL, members: [E-MAIL]} whom whoever asks can see in a group
  POST   /deny                          {resource, policies: [{id, displayName?, rules: [{denyRule: {deniedPrincipals, deniedPermissions, ...}}]}]} instead of those that are attached
  POST   /iap                           {resource, settings} settings of Identity-Aware Proxy
";

/// Fields of `POST /world` about what stands before the calls of every API.
pub const WORLD: [&str; 7] = [
    "disabledServices",
    "quotas",
    "searchDelayMilliseconds",
    "consumers",
    "credentialsProject",
    "perimeters",
    "constraints",
];

/// Carries out a control request, if it is one about these APIs.
pub fn act(run: &Run, method: &str, path: &[&str], body: &Value) -> Option<Result<Value, String>> {
    let result = match (method, path) {
        ("GET", ["hierarchy"]) => return Some(Ok(run.hierarchy())),
        ("POST", ["hierarchy"]) => put_hierarchy(run, body),
        ("POST", ["policies"]) => text(body, "resource")
            .and_then(|resource| run.set_policy(resource, list(body, "bindings")?)),
        ("POST", ["roles"]) => text(body, "name")
            .and_then(|name| run.set_role(name, strings(list(body, "permissions")?)?)),
        ("POST", ["groups"]) => text(body, "group").and_then(|group| {
            run.set_group(group, strings(list(body, "members")?)?);
            Ok(())
        }),
        ("POST", ["deny"]) => text(body, "resource")
            .and_then(|resource| run.set_deny_policies(resource, &body["policies"])),
        ("POST", ["iap"]) => text(body, "resource")
            .and_then(|resource| run.set_iap_settings(resource, &body["settings"])),
        _ => return None,
    };
    Some(result.map(|()| json!({})))
}

/// Takes over what `POST /world` says about these APIs.
///
/// # Errors
/// When a field is not of its form.
pub fn change_world(world: &mut World, body: &Value) -> Result<(), String> {
    if let Some(delay) = body.get("searchDelayMilliseconds") {
        let delay = delay
            .as_u64()
            .ok_or("searchDelayMilliseconds must be a number")?;
        world.search_delay = std::time::Duration::from_millis(delay);
    }
    if body.get("disabledServices").is_some() {
        let entries = list(body, "disabledServices")?
            .as_array()
            .into_iter()
            .flatten();
        world.disabled_services = entries
            .map(|e| {
                Ok((
                    text(e, "project")?.to_owned(),
                    text(e, "service")?.to_owned(),
                ))
            })
            .collect::<Result<_, String>>()?;
    }
    if let Some(quotas) = body.get("quotas") {
        let quotas = quotas.as_object().ok_or("quotas must be an object")?;
        world.quotas = quotas
            .iter()
            .map(|(service, quota)| {
                let quota = quota
                    .as_u64()
                    .ok_or_else(|| format!("{service} needs a number"))?;
                Ok((service.clone(), quota as usize))
            })
            .collect::<Result<_, String>>()?;
    }
    if let Some(consumers) = body.get("consumers") {
        let consumers = consumers.as_object().ok_or("consumers must be an object")?;
        world.consumers = consumers
            .iter()
            .map(|(project, trouble)| Ok((project.clone(), consumer_trouble(trouble)?)))
            .collect::<Result<_, String>>()?;
    }
    if let Some(project) = body.get("credentialsProject") {
        world.credentials_project = project.as_str().map(str::to_owned);
    }
    if body.get("perimeters").is_some() {
        world.perimeters = strings(list(body, "perimeters")?)?;
    }
    if body.get("constraints").is_some() {
        let entries = list(body, "constraints")?.as_array().into_iter().flatten();
        world.constraints = entries.map(constraint).collect::<Result<_, String>>()?;
    }
    Ok(())
}

fn consumer_trouble(value: &Value) -> Result<ConsumerTrouble, String> {
    match value.as_str() {
        Some("invalid") => Ok(ConsumerTrouble::Invalid),
        Some("suspended") => Ok(ConsumerTrouble::Suspended),
        Some("billingDisabled") => Ok(ConsumerTrouble::BillingDisabled),
        Some("denied") => Ok(ConsumerTrouble::Denied),
        _ => Err(format!(
            "a consumer is invalid, suspended, billingDisabled or denied, not {value}"
        )),
    }
}

fn constraint(entry: &Value) -> Result<Constraint, String> {
    Ok(Constraint {
        name: text(entry, "name")?.to_owned(),
        display_name: text(entry, "displayName")?.to_owned(),
        forbids: strings(list(entry, "forbids")?)?.into_iter().collect(),
    })
}

fn put_hierarchy(run: &Run, body: &Value) -> Result<(), String> {
    let entries = |field: &str| body[field].as_array().cloned().unwrap_or_default();
    for entry in entries("organizations") {
        run.put_organization(text(&entry, "name")?, entry["displayName"].as_str())?;
    }
    for entry in entries("folders") {
        let (display_name, parent) = (entry["displayName"].as_str(), entry["parent"].as_str());
        run.put_folder(text(&entry, "name")?, display_name, parent)?;
    }
    for entry in entries("projects") {
        let (number, parent) = (entry["number"].as_str(), entry["parent"].as_str());
        run.put_project(text(&entry, "id")?, number, parent)?;
    }
    Ok(())
}

fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str, String> {
    value[field]
        .as_str()
        .ok_or_else(|| format!("{field} is needed"))
}

fn list<'a>(value: &'a Value, field: &str) -> Result<&'a Value, String> {
    let found = &value[field];
    if found.is_array() {
        Ok(found)
    } else {
        Err(format!("{field} must be a list"))
    }
}

fn strings(list: &Value) -> Result<BTreeSet<String>, String> {
    let texts = list.as_array().into_iter().flatten();
    texts
        .map(|t| {
            t.as_str()
                .map(str::to_owned)
                .ok_or_else(|| format!("{t} is not a string"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Clock;

    #[test]
    fn what_is_not_of_its_form_is_refused() {
        let run = Run::new(Clock::default());
        run.deploy("p", "r", "s", &[]);
        let service = "projects/p/locations/r/services/s";
        let cases = [
            (
                "hierarchy",
                json!({"folders": [{"name": "folders/1"}]}),
                true,
            ),
            (
                "hierarchy",
                json!({"projects": [{"id": "q", "parent": "folders/1"}]}),
                true,
            ),
            (
                "hierarchy",
                json!({"projects": [{"id": "q", "parent": "folders/2"}]}),
                false,
            ),
            ("hierarchy", json!({"folders": [{}]}), false),
            (
                "policies",
                json!({"resource": service, "bindings": []}),
                true,
            ),
            (
                "policies",
                json!({"resource": "projects/new", "bindings": []}),
                true,
            ),
            (
                "policies",
                json!({"resource": "projects/p/iap_web", "bindings": []}),
                true,
            ),
            (
                "policies",
                json!({"resource": "folders/9", "bindings": []}),
                false,
            ),
            (
                "policies",
                json!({"resource": format!("{service}x"), "bindings": []}),
                false,
            ),
            ("policies", json!({"resource": service}), false),
            (
                "roles",
                json!({"name": "projects/p/roles/r", "permissions": ["a.b"]}),
                true,
            ),
            (
                "roles",
                json!({"name": "projects/p/roles/r", "permissions": [1]}),
                false,
            ),
            (
                "groups",
                json!({"group": "group:g@acme.com", "members": ["a@acme.com"]}),
                true,
            ),
            ("groups", json!({"members": []}), false),
            (
                "deny",
                json!({"resource": "folders/1", "policies": []}),
                true,
            ),
            ("deny", json!({"resource": "folders/1"}), false),
            (
                "iap",
                json!({"resource": "projects/p/iap_web", "settings": {}}),
                true,
            ),
            ("iap", json!({"resource": "projects/p/iap_web"}), false),
        ];
        for (path, body, is_fine) in cases {
            let result = act(&run, "POST", &[path], &body).unwrap();
            assert_eq!(result.is_ok(), is_fine, "{path} {body}: {result:?}");
        }
        let shown = act(&run, "GET", &["hierarchy"], &Value::Null)
            .unwrap()
            .unwrap();
        assert_eq!(shown["projects/q"]["parent"], "folders/1");
        assert!(act(&run, "GET", &["services"], &Value::Null).is_none());
    }

    #[test]
    fn the_world_of_these_apis() {
        let mut world = World::default();
        let body = json!({"searchDelayMilliseconds": 5, "quotas": {"iam.googleapis.com": 5},
            "disabledServices": [{"project": "*", "service": "cloudasset.googleapis.com"}]});
        change_world(&mut world, &body).unwrap();
        assert_eq!(world.search_delay, std::time::Duration::from_millis(5));
        assert_eq!(world.quotas["iam.googleapis.com"], 5);
        assert_eq!(world.disabled_services.len(), 1);
        let body = json!({"consumers": {"ops": "billingDisabled"}, "credentialsProject": "ops", "perimeters": ["p"],
            "constraints": [{"name": "customConstraints/custom.x", "displayName": "x", "forbids": ["group:"]}]});
        change_world(&mut world, &body).unwrap();
        assert_eq!(world.consumers["ops"], ConsumerTrouble::BillingDisabled);
        assert_eq!(world.constraints[0].forbids, ["group:"]);
        for odd in [
            json!({"searchDelayMilliseconds": "x"}),
            json!({"quotas": []}),
            json!({"quotas": {"iam.googleapis.com": "x"}}),
            json!({"disabledServices": [{"project": "p"}]}),
            json!({"disabledServices": {}}),
            json!({"consumers": {"ops": "poor"}}),
            json!({"constraints": [{"name": "x"}]}),
        ] {
            assert!(change_world(&mut world, &odd).is_err(), "{odd}");
        }
    }
}
