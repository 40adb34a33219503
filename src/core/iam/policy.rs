//! The allow policy of a service as IAM holds it, and the one way it is changed.
//!
//! A policy is replaced as a whole, so whatever is not ours must go back exactly as it was read:
//! other roles, other conditions, unknown fields, the spelling and order of members.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Carries, Condition, Grant, InvokingRoles, Principal, PrincipalKind, Role};

/// The most members an allow policy may have, every occurrence counted.
///
/// Source: <https://docs.cloud.google.com/iam/docs/quotas>.
pub const MAX_MEMBERS: usize = 1500;

/// The version of a policy that a write must be planned from: opaque, base64.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Etag(pub String);

/// The etag of a policy that nobody has ever written, as every service starts.
pub const UNTOUCHED: &str = "ACAB";

impl Etag {
    /// That of a policy which nobody has ever written: a service that was just made, also in place
    /// of one of the same name.
    pub fn is_untouched(&self) -> bool {
        self.0 == UNTOUCHED
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `google.iam.v1.Policy` in its JSON form, unknown fields kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    #[serde(default, skip_serializing_if = "is_zero")]
    pub version: i64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bindings: Vec<Binding>,
    #[serde(default, skip_serializing_if = "Etag::is_empty")]
    pub etag: Etag,
    /// Everything else, audit configs among it.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `google.iam.v1.Binding`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Binding {
    #[serde(default)]
    pub role: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Expr>,
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `google.type.Expr`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Expr {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub expression: String,
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

impl From<&Condition> for Expr {
    fn from(c: &Condition) -> Self {
        Self {
            title: c.title.clone(),
            description: c.description.clone(),
            expression: c.expression.clone(),
            extra: Map::new(),
        }
    }
}

impl From<&Expr> for Condition {
    fn from(e: &Expr) -> Self {
        Self::new(e.title.clone(), e.description.clone(), e.expression.clone())
    }
}

impl Binding {
    fn matches(&self, role: Role, condition: Option<&Condition>) -> bool {
        self.role == role.as_str()
            && match (&self.condition, condition) {
                (None, None) => true,
                (Some(e), Some(c)) => {
                    e.title == c.title
                        && e.description == c.description
                        && e.expression == c.expression
                }
                _ => false,
            }
    }
}

impl Policy {
    /// The grants of the managed roles. Foreign roles are not in it.
    pub fn grants(&self) -> BTreeSet<Grant> {
        let mut found = BTreeSet::new();
        for binding in &self.bindings {
            let Some(role) = Role::from_name(&binding.role) else {
                continue;
            };
            let condition = binding.condition.as_ref().map(Condition::from);
            let condition = condition.map(std::sync::Arc::new);
            for member in &binding.members {
                found.insert(Grant {
                    principal: Principal::from_live(member),
                    role,
                    condition: condition.clone(),
                });
            }
        }
        found
    }

    /// Members that may invoke by a role that is not managed here, with the role, each once and in
    /// order.
    pub fn other_invokers(&self, roles: &InvokingRoles) -> BTreeSet<(Principal, &str)> {
        self.by_other_roles(roles, Carries::Yes)
    }

    /// Members with a role of which nobody knows whether it lets them invoke, with the role, each
    /// once and in order.
    pub fn perhaps_invokers(&self, roles: &InvokingRoles) -> BTreeSet<(Principal, &str)> {
        self.by_other_roles(roles, Carries::Unknown)
    }

    fn by_other_roles(
        &self,
        roles: &InvokingRoles,
        carries: Carries,
    ) -> BTreeSet<(Principal, &str)> {
        let is_foreign = |b: &&Binding| Role::from_name(&b.role).is_none();
        let bindings = self.bindings.iter().filter(is_foreign);
        let such = bindings.filter(|b| roles.carries(&b.role) == carries);
        such.flat_map(|b| {
            let members = b.members.iter();
            members.map(|m| (Principal::from_live(m), b.role.as_str()))
        })
        .filter(|(p, _)| p.kind() != PrincipalKind::Deleted)
        .collect()
    }

    /// Members as the cap of [`MAX_MEMBERS`] counts them: every occurrence, audit exemptions
    /// included.
    pub fn member_count(&self) -> usize {
        let exempted = self
            .extra
            .get("auditConfigs")
            .and_then(Value::as_array)
            .map_or(0, |configs| {
                configs
                    .iter()
                    .filter_map(|c| c.get("auditLogConfigs")?.as_array())
                    .flatten()
                    .filter_map(|c| Some(c.get("exemptedMembers")?.as_array()?.len()))
                    .sum()
            });
        exempted + self.bindings.iter().map(|b| b.members.len()).sum::<usize>()
    }

    /// Whether this is a view in which conditions were replaced by hashes in role names. Writing it
    /// back would destroy them, so nothing may be written.
    ///
    /// Source: <https://docs.cloud.google.com/iam/docs/troubleshooting-withcond>.
    pub fn has_hashed_conditions(&self) -> bool {
        self.bindings.iter().any(|b| b.role.contains("_withcond_"))
    }

    /// This policy with `revoke` taken out and `grant` put in, as version 3, carrying the same
    /// etag.
    ///
    /// # Guarantees
    /// Everything else is as it was: order, spelling, unknown fields, bindings of other roles and
    /// conditions. A binding disappears only if the last of its members was revoked here. A grant
    /// that is there already is not repeated.
    pub fn with_changes(&self, grant: &BTreeSet<Grant>, revoke: &BTreeSet<Grant>) -> Self {
        let mut next = self.clone();
        next.version = 3;
        // (role, condition) of what goes, so that foreign bindings are not even read.
        let mut gone: BTreeMap<(Role, Option<&Condition>), BTreeSet<&str>> = BTreeMap::new();
        for g in revoke {
            gone.entry((g.role, g.condition.as_deref()))
                .or_default()
                .insert(g.principal.key());
        }
        for ((role, condition), keys) in gone {
            next.bindings.retain_mut(|binding| {
                if !binding.matches(role, condition) {
                    return true;
                }
                let before = binding.members.len();
                binding
                    .members
                    .retain(|m| !keys.contains(Principal::from_live(m).key()));
                before == binding.members.len() || !binding.members.is_empty()
            });
        }
        let present = next.grants();
        for g in grant.iter().filter(|g| !present.contains(g)) {
            let member = g.principal.as_str().to_owned();
            match next
                .bindings
                .iter_mut()
                .find(|b| b.matches(g.role, g.condition.as_deref()))
            {
                Some(binding) => binding.members.push(member),
                None => next.bindings.push(Binding {
                    role: g.role.as_str().into(),
                    members: vec![member],
                    condition: g.condition.as_deref().map(Expr::from),
                    extra: Map::new(),
                }),
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(v: Value) -> Policy {
        serde_json::from_value(v).unwrap()
    }
    fn invoker(m: &str) -> Grant {
        Grant::new(Principal::from_live(m), Role::Invoker)
    }

    #[test]
    fn foreign_parts_survive_a_change_byte_for_byte() {
        let before = policy(json!({
        "version": 3, "etag": "BwX=", "futureField": {"a": [1]},
        "auditConfigs": [{"service": "x", "auditLogConfigs": [{"logType": "DATA_READ", "exemptedMembers": ["user:a@b.c"]}]}],
        "bindings": [
            {"role": "roles/run.admin", "members": ["user:Root@Acme.com"], "bindingId": "7"},
            {"role": "roles/run.invoker", "members": ["user:Old@acme.com", "user:Keep@Acme.com"]},
            {"role": "roles/run.invoker", "members": ["user:old@acme.com"],
             "condition": {"title": "t", "expression": "e", "location": "l"}},
        ]}));
        let after = before.with_changes(
            &[invoker("user:new@acme.com")].into(),
            &[invoker("user:old@ACME.com")].into(),
        );
        assert_eq!(
            serde_json::to_value(&after).unwrap(),
            json!({
            "version": 3, "etag": "BwX=", "futureField": {"a": [1]},
            "auditConfigs": [{"service": "x", "auditLogConfigs": [{"logType": "DATA_READ", "exemptedMembers": ["user:a@b.c"]}]}],
            "bindings": [
                {"role": "roles/run.admin", "members": ["user:Root@Acme.com"], "bindingId": "7"},
                {"role": "roles/run.invoker", "members": ["user:Keep@Acme.com", "user:new@acme.com"]},
                {"role": "roles/run.invoker", "members": ["user:old@acme.com"],
                 "condition": {"title": "t", "expression": "e", "location": "l"}},
            ]})
        );
        assert_eq!(after.member_count(), 5);
    }

    #[test]
    fn a_binding_goes_only_with_its_last_member() {
        let before = policy(
            json!({"etag": "A", "bindings": [{"role": "roles/run.invoker", "members": ["user:a@b.co"]}]}),
        );
        let after = before.with_changes(&BTreeSet::new(), &[invoker("user:a@b.co")].into());
        assert!(after.bindings.is_empty());
        assert_eq!(after.version, 3);
    }

    #[test]
    fn a_member_that_is_there_in_another_spelling_is_not_repeated() {
        let before = policy(
            json!({"bindings": [{"role": "roles/run.invoker", "members": ["user:A@b.co"]}]}),
        );
        let after = before.with_changes(&[invoker("user:a@B.co")].into(), &BTreeSet::new());
        assert_eq!(after.bindings, before.bindings);
    }

    #[test]
    fn hashed_conditions_are_recognised() {
        let p = policy(
            json!({"bindings": [{"role": "roles/run.invoker_withcond_a1b2", "members": ["user:a@b.co"]}]}),
        );
        assert!(p.has_hashed_conditions());
    }
}
