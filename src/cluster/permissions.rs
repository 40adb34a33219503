//! Permissions that the operator lacks in Kubernetes. What comes of it differs: a status stays old,
//! an event is not there, a record stays open. The log names the permission in every case.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long a permission that was named is not named again.
const QUIET: Duration = Duration::from_secs(600);
/// Most permissions that are remembered; a cluster has fewer that the operator asks for.
const MOST: usize = 100;

/// The permissions that the log named, and when.
#[derive(Debug, Default)]
pub(super) struct Denied {
    named: Mutex<HashMap<String, Instant>>,
}

impl Denied {
    /// Warns of a permission that an answer says is missing, once in a while.
    pub(super) fn warn(&self, answer: &kube::core::Status) {
        let Some(permission) = missing(answer) else {
            return;
        };
        if self.is_news(permission, Instant::now()) {
            tracing::warn!(why = %answer.message, "the operator lacks a permission in Kubernetes; compare its roles with those of the chart");
        }
    }

    fn is_news(&self, permission: &str, now: Instant) -> bool {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named
            .get(permission)
            .is_some_and(|then| now.duration_since(*then) < QUIET)
        {
            return false;
        }
        if named.len() >= MOST {
            named.clear();
        }
        named.insert(permission.to_owned(), now);
        true
    }
}

/// The verb and the resource that the authorizer refused. Quotas, admission policies and namespaces
/// that are going away answer 403 too, in other words.
fn missing(answer: &kube::core::Status) -> Option<&str> {
    if answer.code != 403 {
        return None;
    }
    let (_, wanted) = answer.message.split_once("\" cannot ")?;
    let end = [" in the namespace \"", " at the cluster scope"]
        .into_iter()
        .filter_map(|scope| wanted.find(scope))
        .min()?;
    Some(&wanted[..end]).filter(|w| w.contains("resource \""))
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn answer(code: u16, message: &str) -> Status {
        Status::failure(message, "Forbidden").with_code(code)
    }

    #[test]
    fn a_missing_permission_is_distinguished_from_other_refusals() {
        let one = answer(
            403,
            "invokerpolicies.run-invoker.dev \"web\" is forbidden: User \"system:serviceaccount:platform:run-invoker\" cannot patch resource \"invokerpolicies/status\" in API group \"run-invoker.dev\" in the namespace \"team-a\"",
        );
        assert_eq!(
            missing(&one),
            Some("patch resource \"invokerpolicies/status\" in API group \"run-invoker.dev\"")
        );
        let all = answer(
            403,
            "serviceaccounts is forbidden: User \"x\" cannot list resource \"serviceaccounts\" in API group \"\" at the cluster scope: RBAC: clusterrole.rbac.authorization.k8s.io \"y\" not found",
        );
        assert_eq!(
            missing(&all),
            Some("list resource \"serviceaccounts\" in API group \"\"")
        );
        for (code, other) in [
            (
                403,
                "invokerchanges.run-invoker.dev \"c\" is forbidden: unable to create new content in namespace team-a because it is being terminated",
            ),
            (
                403,
                "invokerchanges.run-invoker.dev \"c\" is forbidden: exceeded quota: q, requested: count/invokerchanges=1",
            ),
            (409, &one.message),
        ] {
            assert_eq!(missing(&answer(code, other)), None, "{other}");
        }
    }

    #[test]
    fn the_log_names_each_once_in_a_while() {
        let (denied, now) = (Denied::default(), Instant::now());
        assert!(denied.is_news("get a", now) && denied.is_news("get b", now));
        assert!(!denied.is_news("get a", now + QUIET / 2));
        assert!(denied.is_news("get a", now + QUIET));
        for n in 0..2 * MOST {
            denied.is_news(&n.to_string(), now);
        }
        assert!(denied.named.lock().unwrap().len() <= MOST);
    }
}
