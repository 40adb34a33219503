//! One entry of the log, parsed.
//!
//! Source:
//! <https://docs.cloud.google.com/logging/docs/reference/audit/auditlog/rest/Shared.Types/AuditLog>,
//! <https://docs.cloud.google.com/run/docs/audit-logging> and entries of Cloud Run in public
//! detection rules.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde_json::Value;

use crate::{
    api::ChangedBy,
    iam::{Condition, Grant, Policy, Principal, Role},
};

/// Log entries are at most 256 KiB; whatever is much larger was not written by Cloud Logging.
///
/// Source: <https://docs.cloud.google.com/logging/quotas>.
const MAX_BYTES: usize = 1 << 20;
/// Members of a delegation chain that are kept.
const MAX_CHAIN: usize = 8;

/// A change of a service that succeeded.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub project: Arc<str>,
    /// Not in every entry: the Knative form of a name has none.
    pub region: Option<Arc<str>>,
    pub service: Arc<str>,
    pub kind: Kind,
    pub by: Arc<ChangedBy>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// The allow policy was replaced.
    PolicySet(PolicySet),
    /// The service was created, updated, replaced or deleted.
    ServiceChanged,
}

/// A new allow policy, as far as the entry says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicySet {
    /// Version that the writer planned from, where it gave one.
    pub etag_before: Option<Arc<str>>,
    /// Version that came of it.
    pub etag_after: Option<Arc<str>>,
    /// The managed grants after it.
    pub after: Option<BTreeSet<Grant>>,
    /// What was added and removed, where the entry says so itself (`serviceData.policyDelta`).
    pub delta: Option<(BTreeSet<Grant>, BTreeSet<Grant>)>,
}

/// Why a message is no log entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("{0} bytes are too many for a log entry")]
    TooLarge(usize),
    #[error("no JSON object")]
    NoJson,
    #[error("{0} is missing or has another form")]
    Field(&'static str),
}

/// Reads a log entry as a sink publishes it. `None`: it is about something else, or about a call
/// that failed.
///
/// # Errors
/// [`Malformed`], if it is no entry of the audit log at all.
pub fn parse(data: &[u8]) -> Result<Option<Entry>, Malformed> {
    if data.len() > MAX_BYTES {
        return Err(Malformed::TooLarge(data.len()));
    }
    let value: Value = serde_json::from_slice(data).map_err(|_| Malformed::NoJson)?;
    if !value.is_object() {
        return Err(Malformed::NoJson);
    }
    let payload = &value["protoPayload"];
    if !payload.is_object() {
        return Err(Malformed::Field("protoPayload"));
    }
    let method = payload["methodName"]
        .as_str()
        .ok_or(Malformed::Field("protoPayload.methodName"))?;
    if payload["serviceName"].as_str() != Some("run.googleapis.com") {
        return Ok(None);
    }
    // A long change logs its completion here, without who asked for it and possibly on a revision.
    // What there is to know was in the entry of its beginning.
    let log = value["logName"].as_str().unwrap_or_default();
    if log.ends_with("cloudaudit.googleapis.com%2Fsystem_event") {
        return Ok(None);
    }
    let Some(sets_policy) = change_of(method) else {
        return Ok(None);
    };
    // A status with a code is a call that failed: nothing changed.
    if payload["status"]["code"].as_i64().unwrap_or_default() != 0 {
        return Ok(None);
    }
    let name = payload["resourceName"]
        .as_str()
        .ok_or(Malformed::Field("protoPayload.resourceName"))?;
    if name.contains("/revisions/") {
        return Ok(None);
    }
    let place = place(name, &value["resource"]["labels"])
        .ok_or(Malformed::Field("protoPayload.resourceName"))?;
    let at: Timestamp = value["timestamp"]
        .as_str()
        .and_then(|t| t.parse().ok())
        .ok_or(Malformed::Field("timestamp"))?;
    let kind = if sets_policy {
        Kind::PolicySet(policy_set(payload))
    } else {
        Kind::ServiceChanged
    };
    let (project, region, service) = place;
    let by = Arc::new(changed_by(payload, method, at));
    Ok(Some(Entry {
        project,
        region,
        service,
        kind,
        by,
    }))
}

/// Whether a method that changes a service sets its policy; `None`: it is about something else.
///
/// Services have `google.cloud.run.v1.Services.SetIamPolicy` and so on. Functions, Firebase's too,
/// are deployed as `google.cloud.serverless.internal.InternalServices.ReplaceInternalService`, by
/// the robot of Cloud Functions; that one is recorded, its siblings follow its form.
fn change_of(method: &str) -> Option<bool> {
    let (service, verb) = method.rsplit_once('.')?;
    if service.ends_with(".InternalServices") {
        let object = verb.strip_suffix("InternalService")?;
        return ["Create", "Update", "Replace", "Delete"]
            .contains(&object)
            .then_some(false);
    }
    if !service.ends_with(".Services") {
        return None;
    }
    match verb {
        "SetIamPolicy" => Some(true),
        "CreateService" | "UpdateService" | "ReplaceService" | "DeleteService" => Some(false),
        _ => None,
    }
}

/// Project, region if it is said, service.
type Place = (Arc<str>, Option<Arc<str>>, Arc<str>);

/// `projects/P/locations/R/services/S`, or `namespaces/P/services/S`, whose region and, where P is
/// a number, project are in the labels of the resource.
fn place(name: &str, labels: &Value) -> Option<Place> {
    let label = |k: &str| labels[k].as_str().filter(|v| !v.is_empty());
    let parts: Vec<&str> = name
        .trim_start_matches("//run.googleapis.com/")
        .split('/')
        .collect();
    let (project, region, service) = match parts.as_slice() {
        ["projects", p, "locations", r, "services", s] => (*p, Some(*r), *s),
        ["namespaces", p, "services", s] => (*p, label("location"), *s),
        // The parent, as creations have it: the service is in the labels.
        ["projects", p, "locations", r] => (*p, Some(*r), label("service_name")?),
        ["namespaces", p] => (*p, label("location"), label("service_name")?),
        _ => return None,
    };
    let number = project.bytes().all(|b| b.is_ascii_digit());
    let project = if number {
        label("project_id")?
    } else {
        project
    };
    let word = |w: &str| {
        (1..=63).contains(&w.len())
            && w.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b))
    };
    (word(project) && word(service) && region.is_none_or(word))
        .then(|| (project.into(), region.map(Into::into), service.into()))
}

fn text(value: &Value) -> Option<&str> {
    value.as_str().filter(|t| !t.is_empty())
}

/// What is shown to people, and kept: printable, on one line, of bounded length. Anything that a
/// terminal could obey, or that turns the direction of a text, is a blank.
fn shown(text: &str, most: usize) -> String {
    text.chars()
        .map(|c| {
            if c.is_ascii_graphic() || c.is_alphanumeric() {
                c
            } else {
                ' '
            }
        })
        .take(most)
        .collect()
}

fn changed_by(payload: &Value, method: &str, at: Timestamp) -> ChangedBy {
    let auth = &payload["authenticationInfo"];
    // A workforce or workload identity has no e-mail.
    let principal = text(&auth["principalEmail"])
        .or_else(|| text(&auth["principalSubject"]))
        .unwrap_or_default();
    let link = |d: &Value| {
        text(&d["firstPartyPrincipal"]["principalEmail"])
            .or_else(|| text(&d["principalSubject"]))
            .map(|t| shown(t, 512))
    };
    let chain = auth["serviceAccountDelegationInfo"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(link);
    let agent = text(&payload["requestMetadata"]["callerSuppliedUserAgent"]).unwrap_or_default();
    ChangedBy {
        principal: shown(principal, 512),
        via: chain.take(MAX_CHAIN).collect(),
        tool: tool(agent),
        user_agent: shown(agent, 256),
        method: shown(method, 128),
        at: MicroTime(at),
        change: String::new(),
    }
}

/// The tool behind a user agent; its first product, if it is none that is known.
///
/// Forms seen in public log samples: `google-cloud-sdk gcloud/528.0.0
/// command/gcloud.run.services…`, `Terraform/1.9.2 (+https://www.terraform.io) …
/// terraform-provider-google/6.1`, `FirebaseCLI/13.0`, browsers for the console.
fn tool(agent: &str) -> String {
    const KNOWN: &[(&str, &str)] = &[
        ("run-invoker", "run-invoker"),
        ("terraform", "Terraform"),
        ("pulumi", "Pulumi"),
        ("firebase", "Firebase CLI"),
        ("config-connector", "Config Connector"),
        ("cnrm", "Config Connector"),
        ("gcloud", "gcloud"),
        ("google-cloud-sdk", "gcloud"),
        ("mozilla/", "Google Cloud console"),
    ];
    let lower = agent.to_ascii_lowercase();
    match KNOWN.iter().find(|(mark, _)| lower.contains(mark)) {
        Some((_, name)) => (*name).to_owned(),
        None => shown(agent.split([' ', '/']).next().unwrap_or_default(), 64),
    }
}

fn policy_set(payload: &Value) -> PolicySet {
    let etag = |v: &Value| text(v).map(Arc::<str>::from);
    let response = serde_json::from_value::<Policy>(payload["response"].clone()).ok();
    // A response that was left out because it was too large says nothing about what is there.
    let response = response.filter(|r| !r.etag.is_empty() || !r.bindings.is_empty());
    PolicySet {
        etag_before: etag(&payload["request"]["policy"]["etag"]),
        etag_after: response
            .as_ref()
            .filter(|r| !r.etag.is_empty())
            .map(|r| r.etag.0.as_str().into()),
        after: response.map(|r| r.grants()),
        delta: delta(&payload["serviceData"]["policyDelta"]["bindingDeltas"])
            .or_else(|| delta(&payload["metadata"]["policyDelta"]["bindingDeltas"])),
    }
}

fn delta(deltas: &Value) -> Option<(BTreeSet<Grant>, BTreeSet<Grant>)> {
    let (mut added, mut removed) = (BTreeSet::new(), BTreeSet::new());
    for d in deltas.as_array()? {
        let (Some(role), Some(member)) = (
            d["role"].as_str().and_then(Role::from_name),
            text(&d["member"]),
        ) else {
            continue;
        };
        let condition = d["condition"].as_object().map(|c| {
            let part = |k: &str| {
                c.get(k)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            Arc::new(Condition::new(
                part("title"),
                part("description"),
                part("expression"),
            ))
        });
        let grant = Grant {
            principal: Principal::from_live(member),
            role,
            condition,
        };
        match d["action"].as_str() {
            Some("ADD") => added.insert(grant),
            Some("REMOVE") => removed.insert(grant),
            _ => continue,
        };
    }
    Some((added, removed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry() -> Value {
        json!({
            "logName": "projects/acme-prod/logs/cloudaudit.googleapis.com%2Factivity",
            "timestamp": "2026-11-24T12:00:00.123456Z",
            "resource": {"type": "cloud_run_revision", "labels": {"project_id": "acme-prod", "location": "europe-west1", "service_name": ""}},
            "protoPayload": {
                "@type": "type.googleapis.com/google.cloud.audit.AuditLog",
                "serviceName": "run.googleapis.com",
                "methodName": "google.cloud.run.v1.Services.SetIamPolicy",
                "resourceName": "projects/acme-prod/locations/europe-west1/services/web",
                "authenticationInfo": {"principalEmail": "alice@acme.com"},
                "requestMetadata": {"callerSuppliedUserAgent": "google-cloud-sdk gcloud/528.0.0 command/gcloud.run.services.add-iam-policy-binding"},
                "request": {"policy": {"etag": "BwX1", "bindings": []}},
                "response": {"etag": "BwX2", "bindings": [{"role": "roles/run.invoker", "members": ["user:mallory@acme.com"]}, {"role": "roles/run.admin", "members": ["user:x@acme.com"]}]},
            }
        })
    }
    fn read(value: &Value) -> Result<Option<Entry>, Malformed> {
        parse(value.to_string().as_bytes())
    }

    #[test]
    fn an_entry_says_who_what_and_how() {
        let found = read(&entry()).unwrap().unwrap();
        assert_eq!(
            (&*found.project, found.region.as_deref(), &*found.service),
            ("acme-prod", Some("europe-west1"), "web")
        );
        assert_eq!(
            found.by.to_string(),
            "alice@acme.com with gcloud at 2026-11-24T12:00:00Z"
        );
        let Kind::PolicySet(set) = found.kind else {
            panic!()
        };
        assert_eq!(
            (set.etag_before.as_deref(), set.etag_after.as_deref()),
            (Some("BwX1"), Some("BwX2"))
        );
        assert_eq!(
            set.after
                .unwrap()
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            ["user:mallory@acme.com"]
        );
        assert_eq!(set.delta, None);
    }

    #[test]
    fn both_forms_of_a_name_and_the_parent_of_a_new_service() {
        let cases = [
            (
                "projects/acme-prod/locations/us-central1/services/web",
                Some(("acme-prod", Some("us-central1"), "web")),
            ),
            (
                "namespaces/acme-prod/services/web",
                Some(("acme-prod", Some("europe-west1"), "web")),
            ),
            (
                "namespaces/123456/services/web",
                Some(("acme-prod", Some("europe-west1"), "web")),
            ),
            ("projects/acme-prod/locations/us-central1", None),
            ("services/web", None),
            ("", None),
            ("projects/acme-prod/locations/r/services/../../x", None),
        ];
        for (name, expected) in cases {
            let mut value = entry();
            value["protoPayload"]["resourceName"] = json!(name);
            let found = read(&value).ok().flatten();
            let found = found
                .as_ref()
                .map(|e| (&*e.project, e.region.as_deref(), &*e.service));
            assert_eq!(found, expected, "{name}");
        }
        let mut value = entry();
        value["protoPayload"]["resourceName"] = json!("namespaces/acme-prod");
        value["protoPayload"]["methodName"] = json!("google.cloud.run.v1.Services.CreateService");
        value["resource"]["labels"]["service_name"] = json!("new");
        let found = read(&value).unwrap().unwrap();
        assert_eq!(
            (&*found.service, &found.kind),
            ("new", &Kind::ServiceChanged)
        );
        value["resource"]["labels"]["location"] = json!("");
        assert_eq!(read(&value).unwrap().unwrap().region, None);
    }

    #[test]
    fn failed_and_foreign_entries_are_passed_over() {
        let changes: [(&str, Value); 5] = [
            (
                "/protoPayload/status",
                json!({"code": 7, "message": "denied"}),
            ),
            ("/protoPayload/serviceName", json!("storage.googleapis.com")),
            (
                "/protoPayload/methodName",
                json!("google.cloud.run.v1.Services.GetIamPolicy"),
            ),
            (
                "/protoPayload/methodName",
                json!("google.cloud.run.v1.Jobs.SetIamPolicy"),
            ),
            ("/protoPayload/methodName", json!("SetIamPolicy")),
        ];
        for (path, with) in changes {
            let mut value = entry();
            let (parent, key) = path.rsplit_once('/').unwrap();
            value.pointer_mut(parent).unwrap()[key] = with;
            assert_eq!(read(&value), Ok(None), "{path}");
        }
        let mut fine = entry();
        fine["protoPayload"]["status"] = json!({});
        assert!(read(&fine).unwrap().is_some());
    }

    #[test]
    fn what_is_no_entry_is_refused_by_what_is_wrong() {
        for (bytes, expected) in [
            (&b"\xff\x00"[..], Malformed::NoJson),
            (b"[]", Malformed::NoJson),
            (b"{}", Malformed::Field("protoPayload")),
            (
                br#"{"protoPayload":{}}"#,
                Malformed::Field("protoPayload.methodName"),
            ),
        ] {
            assert_eq!(parse(bytes), Err(expected));
        }
        assert_eq!(
            parse(&vec![b' '; MAX_BYTES + 1]),
            Err(Malformed::TooLarge(MAX_BYTES + 1))
        );
        let mut value = entry();
        value["timestamp"] = json!("yesterday");
        assert_eq!(read(&value), Err(Malformed::Field("timestamp")));
    }

    #[test]
    fn functions_are_changed_by_methods_of_their_own() {
        let function = |verb: &str| {
            let mut value = entry();
            let payload = &mut value["protoPayload"];
            payload["methodName"] = json!(format!(
                "google.cloud.serverless.internal.InternalServices.{verb}"
            ));
            payload["resourceName"] = json!("namespaces/acme-prod/services/on-order");
            payload["authenticationInfo"] =
                json!({"principalEmail": "service-1@gcf-admin-robot.iam.gserviceaccount.com"});
            value["resource"]["labels"]["service_name"] = json!("on-order");
            read(&value).unwrap()
        };
        for verb in ["Create", "Replace", "Delete", "Update"] {
            let found = function(&format!("{verb}InternalService")).unwrap();
            assert_eq!(
                (&*found.project, found.region.as_deref(), &*found.service),
                ("acme-prod", Some("europe-west1"), "on-order")
            );
            assert_eq!(found.kind, Kind::ServiceChanged);
        }
        assert_eq!(function("GetInternalService"), None);
        assert_eq!(function("ReplaceService"), None);
    }

    #[test]
    fn a_completion_is_neither_a_change_nor_malformed() {
        for (method, name) in [
            (
                "/Services.ReplaceService",
                "namespaces/acme-prod/services/web",
            ),
            (
                "/Services.ReplaceService",
                "namespaces/acme-prod/revisions/web-00001-abc",
            ),
            (
                "google.cloud.run.v1.Services.ReplaceService",
                "namespaces/acme-prod/revisions/web-00001-abc",
            ),
        ] {
            for log in ["system_event", "activity"] {
                let mut value = entry();
                value["logName"] = json!(format!(
                    "projects/acme-prod/logs/cloudaudit.googleapis.com%2F{log}"
                ));
                value["protoPayload"]["methodName"] = json!(method);
                value["protoPayload"]["resourceName"] = json!(name);
                assert_eq!(read(&value), Ok(None), "{log} {method} {name}");
            }
        }
    }

    #[test]
    fn an_impersonated_account_names_who_is_behind_it() {
        let mut value = entry();
        value["protoPayload"]["authenticationInfo"] = json!({"principalEmail": "deploy@acme-prod.iam.gserviceaccount.com",
            "serviceAccountDelegationInfo": [{"firstPartyPrincipal": {"principalEmail": "alice@acme.com"}}, {"principalSubject": "principal://iam.googleapis.com/x"}]});
        value["protoPayload"]["requestMetadata"]["callerSuppliedUserAgent"] =
            json!("Terraform/1.9 (+https://www.terraform.io) terraform-provider-google/6.1,gzip");
        let by = read(&value).unwrap().unwrap().by;
        assert_eq!(
            by.to_string(),
            "deploy@acme-prod.iam.gserviceaccount.com (impersonated by alice@acme.com, principal://iam.googleapis.com/x) with Terraform at 2026-11-24T12:00:00Z"
        );
        value["protoPayload"]["authenticationInfo"] = json!({});
        value["protoPayload"]["requestMetadata"] = Value::Null;
        assert_eq!(
            read(&value).unwrap().unwrap().by.to_string(),
            "an unnamed principal at 2026-11-24T12:00:00Z"
        );
    }

    #[test]
    fn tools_by_their_user_agents() {
        for (agent, expected) in [
            ("google-cloud-sdk gcloud/528.0.0", "gcloud"),
            ("FirebaseCLI/13.0.0,gzip(gfe)", "Firebase CLI"),
            ("Mozilla/5.0 (X11; Linux x86_64)", "Google Cloud console"),
            ("run-invoker/0.1.0 gl-rust/1.95", "run-invoker"),
            ("curl/8.5.0", "curl"),
            ("", ""),
            ("a\nb", "a b"),
            ("\u{202e}x\u{1b}[31m", " x [31m"),
        ] {
            assert_eq!(tool(agent), expected, "{agent}");
        }
    }

    #[test]
    fn deltas_are_read_where_they_are_given() {
        let mut value = entry();
        value["protoPayload"]["serviceData"] = json!({"policyDelta": {"bindingDeltas": [
            {"action": "ADD", "role": "roles/run.invoker", "member": "user:b@acme.com", "condition": {"title": "t", "expression": "true"}},
            {"action": "REMOVE", "role": "roles/run.invoker", "member": "user:a@acme.com"},
            {"action": "ADD", "role": "roles/owner", "member": "user:c@acme.com"}, {"odd": 1}]}});
        let Kind::PolicySet(PolicySet {
            delta: Some((added, removed)),
            ..
        }) = read(&value).unwrap().unwrap().kind
        else {
            panic!()
        };
        assert_eq!((added.len(), removed.len()), (1, 1));
    }
}
