//! Who may do what: role-based access control for ServiceAccounts.
//!
//! The token `sa:NAMESPACE:NAME` is that ServiceAccount's, and may do what the roles that are bound
//! to it allow; every other token is a cluster admin's. ClusterRoles that are put together from
//! others by their labels are put together when asked for; `admin`, `edit` and `view` are such, and
//! have nothing but what others add to them. Left out: the check against escalation when roles are
//! written.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>.

use serde_json::{Value, json};

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

/// Who whoever brings this token is.
pub fn username(authorization: &str) -> String {
    match service_account(authorization) {
        Some((namespace, name)) => format!("system:serviceaccount:{namespace}:{name}"),
        None => "kubernetes-admin".to_owned(),
    }
}

fn table(plural: &str) -> Table {
    ("rbac.authorization.k8s.io".to_owned(), plural.to_owned())
}

/// The rules of a ClusterRole: its own, or those of the roles that its selectors find.
fn cluster_role(store: &Store, name: &str, seen: &mut Vec<String>) -> Option<Vec<Value>> {
    if seen.iter().any(|s| s == name) {
        return None;
    }
    seen.push(name.to_owned());
    let role = store.get(&table("clusterroles"), &(String::new(), name.to_owned()));
    let selectors = match &role {
        Some(role) if role["aggregationRule"].is_null() => {
            return role["rules"].as_array().cloned();
        }
        Some(role) => role["aggregationRule"]["clusterRoleSelectors"].clone(),
        None if ["admin", "edit", "view"].contains(&name) => {
            let label = format!("rbac.authorization.k8s.io/aggregate-to-{name}");
            json!([{"matchLabels": {label: "true"}}])
        }
        None => return None,
    };
    let fits = |selector: &Value, labels: &Value| {
        let wanted = selector["matchLabels"].as_object();
        wanted.is_some_and(|w| w.iter().all(|(k, v)| labels[k] == *v))
    };
    let parts = store.list(&table("clusterroles"), None);
    let parts = parts.iter().filter(|part| {
        let selectors = selectors.as_array().into_iter().flatten();
        selectors
            .into_iter()
            .any(|s| fits(s, &part["metadata"]["labels"]))
    });
    Some(
        parts
            .filter_map(|part| cluster_role(store, part["metadata"]["name"].as_str()?, seen))
            .flatten()
            .collect(),
    )
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
    let rules_of = |binding: &Value| -> Option<Vec<Value>> {
        let (kind, name) = (
            binding["roleRef"]["kind"].as_str()?,
            binding["roleRef"]["name"].as_str()?,
        );
        match kind {
            "ClusterRole" => cluster_role(store, name, &mut vec![]),
            _ => {
                let namespace = binding["metadata"]["namespace"].as_str()?.to_owned();
                store.get(&table("roles"), &(namespace, name.to_owned()))?["rules"]
                    .as_array()
                    .cloned()
            }
        }
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
    fn a_cluster_role_is_put_together_from_others_by_their_labels() {
        let mut store = Store::default();
        let mut put = |name: &str, object: Value| {
            store.put(
                &table("clusterroles"),
                &(String::new(), name.into()),
                object,
            );
        };
        let rule =
            |verb: &str| json!([{"apiGroups": ["g"], "resources": ["things"], "verbs": [verb]}]);
        let labels = |role: &str| json!({(format!("rbac.authorization.k8s.io/aggregate-to-{role}")): "true"});
        put(
            "read",
            json!({"metadata": {"name": "read", "labels": labels("view")}, "rules": rule("get")}),
        );
        put(
            "write",
            json!({"metadata": {"name": "write", "labels": labels("edit")}, "rules": rule("create")}),
        );
        put(
            "both",
            json!({"metadata": {"name": "both", "labels": labels("both")}, "rules": rule("never"),
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": labels("view")}, {"matchLabels": labels("edit")}, {"matchLabels": labels("both")}]}}),
        );
        let of = |name: &str| {
            let rules = cluster_role(&store, name, &mut vec![])?;
            let verbs = rules
                .iter()
                .map(|r| r["verbs"][0].as_str().unwrap().to_owned());
            Some(verbs.collect::<Vec<_>>())
        };
        assert_eq!(of("view").unwrap(), ["get"]);
        assert_eq!(of("edit").unwrap(), ["create"]);
        assert_eq!(of("both").unwrap(), ["get", "create"]);
        assert!(of("admin").unwrap().is_empty());
        assert_eq!(of("nobody"), None);
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
