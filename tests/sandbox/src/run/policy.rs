//! An allow policy as IAM keeps it: versions, etags, limits and refusals.

use std::collections::{BTreeSet, hash_map::DefaultHasher};
use std::hash::{Hash, Hasher};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{Problem, World};
use crate::google::refusal::against_constraint;

/// The most members in one policy.
const MAX_MEMBERS: usize = 1500;

/// A policy that was or was not ever set.
#[derive(Clone, Debug, Default)]
pub struct StoredPolicy {
    bindings: Vec<Value>,
    /// Empty until the policy was set once.
    etag: Vec<u8>,
}

impl StoredPolicy {
    fn etag_text(&self) -> String {
        // A policy that was never set has the etag ACAB in public samples.
        if self.etag.is_empty() {
            "ACAB".into()
        } else {
            STANDARD.encode(&self.etag)
        }
    }

    fn has_conditions(&self) -> bool {
        self.bindings.iter().any(|b| b["condition"].is_object())
    }

    /// The bindings with their conditions.
    pub fn bindings(&self) -> &[Value] {
        &self.bindings
    }

    /// The policy as a reader that asks for `version` sees it.
    pub fn view(&self, version: i64) -> Value {
        if self.etag.is_empty() {
            return json!({"etag": self.etag_text()});
        }
        let mut bindings = self.bindings.clone();
        if version < 3 {
            // Conditions are hidden; a hash in the role's name says that there is one.
            for b in &mut bindings {
                if b["condition"].is_object() {
                    let mut hasher = DefaultHasher::new();
                    b["condition"].to_string().hash(&mut hasher);
                    b["role"] = json!(format!(
                        "{}_withcond_{:020x}",
                        b["role"].as_str().unwrap_or_default(),
                        hasher.finish()
                    ));
                    if let Some(map) = b.as_object_mut() {
                        map.remove("condition");
                    }
                }
            }
        }
        let shown = if version >= 3 && self.has_conditions() {
            3
        } else {
            1
        };
        let mut policy = json!({"version": shown, "etag": self.etag_text()});
        if !bindings.is_empty() {
            policy["bindings"] = json!(bindings);
        }
        policy
    }

    /// Puts bindings in place without asking anything.
    pub fn replace(&mut self, bindings: Vec<Value>, etag: Vec<u8>) {
        self.bindings = bindings;
        self.etag = etag;
    }

    pub fn edit_member(&mut self, role: &str, member: &str, add: bool, etag: Vec<u8>) {
        let index = self
            .bindings
            .iter()
            .position(|b| b["role"] == role && b["condition"].is_null());
        match (index, add) {
            (None, true) => self
                .bindings
                .push(json!({"role": role, "members": [member]})),
            (Some(i), true) => {
                if let Some(list) = self.bindings[i]["members"].as_array_mut()
                    && !list.iter().any(|m| m == member)
                {
                    list.push(json!(member));
                }
            }
            (Some(i), false) => {
                if let Some(list) = self.bindings[i]["members"].as_array_mut() {
                    list.retain(|m| m != member);
                    if list.is_empty() {
                        self.bindings.remove(i);
                    }
                }
            }
            (None, false) => {}
        }
        self.etag = etag;
    }

    /// Whether the member was there.
    pub fn rename_member(&mut self, from: &str, to: &str, etag: &[u8]) -> bool {
        let mut renamed = false;
        for b in &mut self.bindings {
            for m in b["members"].as_array_mut().into_iter().flatten() {
                if m == from {
                    *m = json!(to);
                    self.etag = etag.to_vec();
                    renamed = true;
                }
            }
        }
        renamed
    }

    /// `setIamPolicy`: all or nothing.
    pub fn set(&mut self, request: &Value, world: &World, etag: Vec<u8>) -> Result<(), Problem> {
        let policy = &request["policy"];
        if let Some(mask) = request["updateMask"].as_str() {
            // Only what the mask names is written; without a mask that is bindings and etag.
            if !mask.split(',').any(|m| m.trim() == "bindings") {
                return Ok(());
            }
        }
        let version = policy["version"].as_i64().unwrap_or(0);
        if ![0, 1, 3].contains(&version) {
            return Err(Problem::invalid(format!(
                "Invalid policy version: {version}. Valid versions are 0, 1, and 3."
            )));
        }
        if let Some(given) = policy["etag"].as_str().filter(|e| !e.is_empty()) {
            let Some(given) = bytes_of(given) else {
                return Err(Problem::invalid(
                    "Invalid value at 'policy.etag' (TYPE_BYTES), Base64 decoding failed for etag",
                ));
            };
            if Some(given) != bytes_of(&self.etag_text()) {
                return Err(Problem::new(
                    409,
                    "ABORTED",
                    "There were concurrent policy changes. Please retry the whole read-modify-write with exponential backoff.",
                ));
            }
            if version < 3 && self.has_conditions() {
                return Err(Problem::invalid(
                    "Policy version must be 3 to change a policy that contains conditions.",
                ));
            }
        }
        let bindings = normalise(policy["bindings"].as_array().cloned().unwrap_or_default());
        if version < 3 && bindings.iter().any(|b| b["condition"].is_object()) {
            return Err(Problem::invalid(
                "Policy version must be 3 to set a policy that contains conditions.",
            ));
        }
        self.judge(&bindings, world)?;
        self.bindings = bindings;
        self.etag = etag;
        Ok(())
    }

    fn judge(&self, bindings: &[Value], world: &World) -> Result<(), Problem> {
        let before: BTreeSet<(String, String, String)> = triples(&self.bindings).collect();
        let mut total = 0;
        for b in bindings {
            let role = b["role"].as_str().unwrap_or_default();
            let conditional = b["condition"].is_object();
            if role.contains("_withcond_") {
                return Err(Problem::invalid(
                    "Policy cannot contain both conditions and condition hashes.",
                ));
            }
            if !(role.starts_with("roles/") || role.contains("/roles/")) {
                return Err(Problem::invalid(format!(
                    "Role {role} is not supported for this resource."
                )));
            }
            if conditional
                && (b["condition"]["expression"]
                    .as_str()
                    .unwrap_or_default()
                    .is_empty()
                    || b["condition"]["title"]
                        .as_str()
                        .unwrap_or_default()
                        .is_empty())
            {
                return Err(Problem::invalid("Request contains an invalid argument."));
            }
            for m in b["members"].as_array().into_iter().flatten() {
                let m = m.as_str().unwrap_or_default();
                total += 1;
                if conditional && (m == "allUsers" || m == "allAuthenticatedUsers") {
                    return Err(Problem::invalid(
                        "Conditions are not supported with public members.",
                    ));
                }
            }
        }
        if total > MAX_MEMBERS {
            return Err(Problem::invalid(format!(
                "The number of members in the policy ({total}) is larger than the maximum allowed size {MAX_MEMBERS}."
            )));
        }
        for (role, condition, member) in triples(bindings) {
            let fresh = !before.contains(&(role, condition, member.clone()));
            existence(&member, fresh, world)?;
            if fresh {
                permitted(&member, world)?;
                unconstrained(&member, world)?;
            }
        }
        Ok(())
    }
}

/// Bytes in JSON: "either standard or URL-safe base64 encoding with/without paddings are accepted"
/// (<https://protobuf.dev/programming-guides/json/>). gcloud sends the URL-safe alphabet.
fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let standard: String = text
        .trim_end_matches('=')
        .replace('-', "+")
        .replace('_', "/");
    base64::engine::general_purpose::STANDARD_NO_PAD
        .decode(standard)
        .ok()
}

/// Members of one role and condition come together in one binding; empty bindings are not kept.
fn normalise(bindings: Vec<Value>) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    for b in bindings {
        let Some(members) = b["members"].as_array().filter(|m| !m.is_empty()) else {
            continue;
        };
        match out
            .iter_mut()
            .find(|o| o["role"] == b["role"] && o.get("condition") == b.get("condition"))
        {
            Some(existing) => {
                if let Some(list) = existing["members"].as_array_mut() {
                    for m in members {
                        if !list.contains(m) {
                            list.push(m.clone());
                        }
                    }
                }
            }
            None => out.push(b),
        }
    }
    out
}

fn triples(bindings: &[Value]) -> impl Iterator<Item = (String, String, String)> {
    bindings.iter().flat_map(|b| {
        let role = b["role"].as_str().unwrap_or_default().to_owned();
        let condition = b["condition"].to_string();
        b["members"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|m| m.as_str())
            .map(move |m| (role.clone(), condition.clone(), m.to_owned()))
            .collect::<Vec<_>>()
    })
}

/// Refuses what no identity answers to. One such member fails the whole request.
fn existence(member: &str, fresh: bool, world: &World) -> Result<(), Problem> {
    let refuse = |text: String| {
        Err(Problem::invalid(if world.terse {
            "Request contains an invalid argument.".into()
        } else {
            text
        }))
    };
    if member == "allUsers" || member == "allAuthenticatedUsers" {
        return Ok(());
    }
    let Some((kind, rest)) = member.split_once(':') else {
        return Err(Problem::invalid("Request contains an invalid argument."));
    };
    if kind == "deleted" {
        // What is there may be written back; nobody can add such a member.
        return if fresh {
            Err(Problem::invalid("Request contains an invalid argument."))
        } else {
            Ok(())
        };
    }
    let known =
        !world.unknown.contains(&rest.to_ascii_lowercase()) && !world.unknown.contains(rest);
    match kind {
        "user" | "group" | "serviceAccount"
            if !rest.contains('@') && !rest.contains(".svc.id.goog[") =>
        {
            Err(Problem::invalid("Request contains an invalid argument."))
        }
        "user" if !known => refuse(format!("User {rest} does not exist.")),
        "group" if !known => refuse(format!("Group {rest} does not exist.")),
        "serviceAccount" if !known => refuse(format!("Service account {rest} does not exist.")),
        "domain" if !known => refuse(format!("Domain {rest} does not exist.")),
        "user" | "group" | "serviceAccount" | "domain" => Ok(()),
        "principal" | "principalSet" if rest.starts_with("//") => Ok(()),
        "projectOwner" | "projectEditor" | "projectViewer" if !fresh => Ok(()),
        _ => Err(Problem::invalid("Request contains an invalid argument.")),
    }
}

/// Domain restricted sharing, which judges what is new.
fn permitted(member: &str, world: &World) -> Result<(), Problem> {
    let Some(domains) = &world.permitted_domains else {
        return Ok(());
    };
    let domain = member
        .split_once(':')
        .map(|(_, r)| r.rsplit('@').next().unwrap_or(r).to_ascii_lowercase());
    let fine = match &domain {
        None => false,
        Some(d) => domains.contains(d) || d.ends_with(".gserviceaccount.com"),
    };
    if fine {
        return Ok(());
    }
    // Two spaces, as Cloud Run writes it.
    Err(Problem::new(
        400,
        "FAILED_PRECONDITION",
        "One or more users named in the policy do not belong to a permitted customer,  perhaps due to an organization policy.",
    ))
}

/// Custom constraints, which judge what is new
/// (<https://docs.cloud.google.com/iam/docs/custom-org-policies-allow-policies>).
fn unconstrained(member: &str, world: &World) -> Result<(), Problem> {
    let broken = world.constraints.iter().find(|constraint| {
        let mut forbidden = constraint.forbids.iter();
        forbidden.any(|start| member.starts_with(start.as_str()))
    });
    match broken {
        Some(constraint) => Err(against_constraint(
            &constraint.name,
            &constraint.display_name,
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(p: &mut StoredPolicy, policy: Value) -> Result<(), Problem> {
        p.set(
            &json!({"policy": policy}),
            &World::default(),
            vec![7, p.etag.len() as u8 + 1],
        )
    }

    #[test]
    fn a_policy_that_was_never_set_has_only_an_etag() {
        assert_eq!(StoredPolicy::default().view(3), json!({"etag": "ACAB"}));
    }

    #[test]
    fn versions_follow_conditions_and_version_one_hides_them() {
        let mut p = StoredPolicy::default();
        set(&mut p, json!({"version": 3, "bindings": [{"role": "roles/run.invoker", "members": ["user:a@b.co"]}]}))
            .unwrap();
        assert_eq!(p.view(3)["version"], 1);
        let etag = p.view(3)["etag"].clone();
        set(&mut p, json!({"version": 3, "etag": etag, "bindings": [{"role": "roles/run.invoker", "members": ["user:a@b.co"], "condition": {"title": "t", "expression": "e"}}]})).unwrap();
        assert_eq!(p.view(3)["version"], 3);
        assert!(
            p.view(1)["bindings"][0]["role"]
                .as_str()
                .unwrap()
                .contains("_withcond_")
        );
        let hidden = p.view(1);
        assert_eq!(set(&mut p, hidden).unwrap_err().code, 400);
    }

    #[test]
    fn a_stale_etag_is_refused() {
        let mut p = StoredPolicy::default();
        set(
            &mut p,
            json!({"bindings": [{"role": "roles/run.invoker", "members": ["user:a@b.co"]}]}),
        )
        .unwrap();
        let refused = set(&mut p, json!({"etag": "ACAB", "bindings": []})).unwrap_err();
        assert_eq!((refused.code, refused.status), (409, "ABORTED"));
    }

    #[test]
    fn one_unknown_member_refuses_everything() {
        let mut p = StoredPolicy::default();
        let world = World {
            unknown: ["x@b.co".to_owned()].into(),
            ..World::default()
        };
        let policy = json!({"policy": {"bindings": [{"role": "roles/run.invoker", "members": ["user:a@b.co", "group:x@b.co"]}]}});
        assert_eq!(
            p.set(&policy, &world, vec![1]).unwrap_err().message,
            "Group x@b.co does not exist."
        );
        assert_eq!(p.view(3), json!({"etag": "ACAB"}));
    }

    #[test]
    fn an_organization_judges_only_what_is_new() {
        let mut p = StoredPolicy::default();
        set(
            &mut p,
            json!({"bindings": [{"role": "roles/run.invoker", "members": ["user:a@other.com"]}]}),
        )
        .unwrap();
        let world = World {
            permitted_domains: Some(["acme.com".to_owned()].into()),
            ..World::default()
        };
        let old = json!({"policy": {"bindings": [{"role": "roles/run.invoker", "members": ["user:a@other.com", "user:b@acme.com"]}]}});
        p.set(&old, &world, vec![1]).unwrap();
        let new = json!({"policy": {"bindings": [{"role": "roles/run.invoker", "members": ["allUsers"]}]}});
        assert_eq!(
            p.set(&new, &world, vec![1]).unwrap_err().status,
            "FAILED_PRECONDITION"
        );
    }

    #[test]
    fn one_member_too_many_refuses_everything() {
        let mut p = StoredPolicy::default();
        let members =
            |n: usize| -> Vec<String> { (0..n).map(|i| format!("user:u{i}@b.co")).collect() };
        set(
            &mut p,
            json!({"bindings": [{"role": "roles/run.invoker", "members": members(1500)}]}),
        )
        .unwrap();
        let etag = p.view(3)["etag"].clone();
        let refused =
            set(&mut p, json!({"etag": etag, "bindings": [{"role": "roles/run.invoker", "members": members(1501)}]}))
                .unwrap_err();
        assert!(refused.message.contains("1501"), "{}", refused.message);
    }
}
