//! Who may do what: role-based access control for ServiceAccounts.
//!
//! The token `sa:NAMESPACE:NAME` is that ServiceAccount's, and may do what the roles that are bound
//! to it allow; every other token is a cluster admin's. Left out: aggregated ClusterRoles, and the
//! check against escalation when roles are written.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>.

use serde_json::Value;

use super::{
    status::Refusal,
    store::{Store, Table},
};

/// What a request wants to do.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: Option<&'a str>,
    pub namespace: Option<&'a str>,
    pub name: Option<&'a str>,
}

/// Namespace and name of the ServiceAccount whose token this is.
pub fn service_account(authorization: &str) -> Option<(&str, &str)> {
    authorization
        .strip_prefix("Bearer ")?
        .strip_prefix("sa:")?
        .split_once(':')
}

/// Lets a request of a ServiceAccount through, or says what it may not do.
///
/// # Errors
/// 403 in the words of a real API server.
pub fn authorize(
    store: &Store,
    account: (&str, &str),
    wants: &Attributes<'_>,
) -> Result<(), Refusal> {
    let table =
        |plural: &str| -> Table { ("rbac.authorization.k8s.io".to_owned(), plural.to_owned()) };
    let rules_of = |binding: &Value| -> Option<Vec<Value>> {
        let (kind, name) = (
            binding["roleRef"]["kind"].as_str()?,
            binding["roleRef"]["name"].as_str()?,
        );
        let key = match kind {
            "ClusterRole" => (String::new(), name.to_owned()),
            _ => (
                binding["metadata"]["namespace"].as_str()?.to_owned(),
                name.to_owned(),
            ),
        };
        let plural = if kind == "ClusterRole" {
            "clusterroles"
        } else {
            "roles"
        };
        store.get(&table(plural), &key)?["rules"]
            .as_array()
            .cloned()
    };
    let everywhere = store.list(&table("clusterrolebindings"), None);
    let here = wants
        .namespace
        .map(|n| store.list(&table("rolebindings"), Some(n)))
        .unwrap_or_default();
    let allowed = everywhere
        .iter()
        .chain(&here)
        .filter(|b| {
            b["subjects"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|s| is_subject(s, account))
        })
        .filter_map(|b| rules_of(b))
        .flatten()
        .any(|rule| allows(&rule, wants));
    if allowed {
        return Ok(());
    }
    let full = wants.subresource.map_or(wants.resource.to_owned(), |s| {
        format!("{}/{s}", wants.resource)
    });
    let object = wants.name.map_or(full.clone(), |name| {
        let dotted = if wants.group.is_empty() {
            wants.resource.to_owned()
        } else {
            format!("{}.{}", wants.resource, wants.group)
        };
        format!("{dotted} \"{name}\"")
    });
    let object = if wants.name.is_none() && !wants.group.is_empty() {
        format!("{full}.{}", wants.group)
    } else {
        object
    };
    let scope = match wants.namespace {
        Some(namespace) => format!("in the namespace \"{namespace}\""),
        None => "at the cluster scope".to_owned(),
    };
    Err(Refusal::new(
        403,
        "Forbidden",
        format!(
            "{object} is forbidden: User \"system:serviceaccount:{}:{}\" cannot {} resource \"{full}\" in API group \"{}\" {scope}",
            account.0, account.1, wants.verb, wants.group
        ),
    ))
}

fn is_subject(subject: &Value, (namespace, name): (&str, &str)) -> bool {
    let text = |k: &str| subject[k].as_str().unwrap_or_default();
    match text("kind") {
        "ServiceAccount" => text("namespace") == namespace && text("name") == name,
        "User" => text("name") == format!("system:serviceaccount:{namespace}:{name}"),
        "Group" => {
            ["system:authenticated", "system:serviceaccounts"].contains(&text("name"))
                || text("name") == format!("system:serviceaccounts:{namespace}")
        }
        _ => false,
    }
}

fn allows(rule: &Value, wants: &Attributes<'_>) -> bool {
    let list = |k: &str| {
        rule[k]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
    };
    let full = wants.subresource.map_or(wants.resource.to_owned(), |s| {
        format!("{}/{s}", wants.resource)
    });
    let any_of = wants.subresource.map(|s| format!("*/{s}"));
    let named = list("resourceNames");
    list("verbs").iter().any(|v| *v == "*" || *v == wants.verb)
        && list("apiGroups").iter().any(|g| *g == "*" || *g == wants.group)
        && list("resources").iter().any(|r| *r == "*" || *r == full || Some(*r) == any_of.as_deref())
        // A request without a name, such as create or an unfiltered list, matches no rule that has
        // names.
        && (named.is_empty() || wants.name.is_some_and(|n| named.contains(&n)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_allows_what_it_says_and_nothing_beside() {
        let wants = |verb, resource, subresource, name| Attributes {
            verb,
            group: "g",
            resource,
            subresource,
            namespace: Some("n"),
            name,
        };
        let rule = json!({"apiGroups": ["g"], "resources": ["things", "*/status"], "verbs": ["get", "update"]});
        assert!(allows(&rule, &wants("get", "things", None, Some("a"))));
        assert!(allows(
            &rule,
            &wants("update", "others", Some("status"), Some("a"))
        ));
        assert!(!allows(&rule, &wants("update", "others", None, Some("a"))));
        assert!(!allows(&rule, &wants("list", "things", None, None)));
        let one = json!({"apiGroups": ["*"], "resources": ["things"], "verbs": ["*"], "resourceNames": ["a"]});
        assert!(allows(&one, &wants("delete", "things", None, Some("a"))));
        assert!(!allows(&one, &wants("delete", "things", None, Some("b"))));
        assert!(!allows(&one, &wants("create", "things", None, None)));
        assert!(!allows(
            &one,
            &wants("get", "things", Some("status"), Some("a"))
        ));
    }

    #[test]
    fn only_tokens_of_service_accounts_are_bound() {
        assert_eq!(
            service_account("Bearer sa:platform:run-invoker"),
            Some(("platform", "run-invoker"))
        );
        assert_eq!(service_account("Bearer sandbox"), None);
        assert_eq!(service_account(""), None);
    }
}
