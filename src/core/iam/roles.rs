//! Which roles let their holders invoke: those that carry `run.routes.invoke`.

use std::{collections::BTreeSet, sync::Arc};

use super::Role;

/// Whether a role carries a permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carries {
    Yes,
    No,
    /// A custom role, or a predefined one that is newer than the lists here: what is in it only IAM
    /// knows.
    Unknown,
}

/// Predefined roles other than the managed ones that carry `run.routes.invoke`.
///
/// Source: <https://docs.cloud.google.com/iam/docs/roles-permissions/run>, and the roles of
/// 2026-08-22.
const OTHER_INVOKING_ROLES: &[&str] = &[
    "roles/aiplatform.serviceAgent",
    "roles/cloudfunctions.admin",
    "roles/cloudfunctions.developer",
    "roles/cloudfunctions.editor",
    "roles/cloudfunctions.serviceAgent",
    "roles/dialogflow.serviceAgent",
    "roles/editor",
    "roles/firebase.admin",
    "roles/firebase.developAdmin",
    "roles/iam.dataScientist",
    "roles/iam.devOps",
    "roles/iam.mlEngineer",
    "roles/integrations.serviceAgent",
    "roles/monitoring.notificationServiceAgent",
    "roles/owner",
    "roles/run.admin",
    "roles/run.developer",
    "roles/run.editor",
    "roles/run.serviceAgent",
    "roles/run.sourceDeveloper",
    "roles/serverless.serviceAgent",
    "roles/spanner.serviceAgent",
];

/// Roles of the two services about Cloud Run that do not carry it.
///
/// Source: the same.
const RUN_ROLES_WITHOUT_INVOKE: &[&str] = &[
    "roles/cloudfunctions.invoker",
    "roles/cloudfunctions.viewer",
    "roles/run.builder",
    "roles/run.jobsExecutor",
    "roles/run.jobsExecutorWithOverrides",
    "roles/run.sourceViewer",
    "roles/run.viewer",
];

/// The role that lets a principal through Identity-Aware Proxy.
///
/// Source: <https://docs.cloud.google.com/iap/docs/managing-access>; of the predefined roles no
/// other one carries `iap.webServiceVersions.accessViaIAP`.
pub const IAP_ROLE: &str = "roles/iap.httpsResourceAccessor";

/// Whether a role carries `run.routes.invoke`, as far as that is known without asking IAM.
pub fn carries_invoke(role: &str) -> Carries {
    if Role::from_name(role).is_some() || OTHER_INVOKING_ROLES.contains(&role) {
        Carries::Yes
    } else if is_without_invoke(role) {
        Carries::No
    } else {
        Carries::Unknown
    }
}

/// Whether a role lets a principal through Identity-Aware Proxy.
pub fn carries_iap(role: &str) -> Carries {
    match role {
        IAP_ROLE => Carries::Yes,
        _ if carries_invoke(role) == Carries::Unknown => Carries::Unknown,
        _ => Carries::No,
    }
}

/// Whether a role is predefined and does not carry it. One that is newer than the lists here may:
/// if it is about Cloud Run or its functions, or of an agent of Google's that calls services. That
/// any other predefined role began to would be news of Google's.
fn is_without_invoke(role: &str) -> bool {
    let Some(name) = role.strip_prefix("roles/").filter(|n| !n.is_empty()) else {
        return false;
    };
    let is_about_run = name.starts_with("run.") || name.starts_with("cloudfunctions.");
    let may_be_new = is_about_run || name.ends_with("erviceAgent");
    RUN_ROLES_WITHOUT_INVOKE.contains(&role) || !(may_be_new || is_hidden_condition(name))
}

/// In an old view of a policy a condition is a hash in the name of the role.
fn is_hidden_condition(name: &str) -> bool {
    name.contains("_withcond_")
}

/// How somebody sees what is in a role.
pub fn describe_with(role: &str) -> String {
    let (parent, id) = role.split_once("/roles/").unwrap_or(("", role));
    let at = match parent.split_once('/') {
        Some(("projects", project)) => format!("{id} --project {project}"),
        Some(("organizations", number)) => format!("{id} --organization {number}"),
        _ => role.to_owned(),
    };
    format!("gcloud iam roles describe {at} --format='value(includedPermissions)'")
}

/// What is known of roles: the predefined ones, and those that a search showed to carry
/// `run.routes.invoke`. No search shows that a role does not: Cloud Asset leaves out the bindings of
/// roles that whoever asks may not look into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InvokingRoles {
    shown: Arc<BTreeSet<Arc<str>>>,
}

impl InvokingRoles {
    /// With the roles that a search showed to carry it.
    pub fn shown<'a>(roles: impl IntoIterator<Item = &'a Arc<str>>) -> Self {
        Self {
            shown: Arc::new(roles.into_iter().cloned().collect()),
        }
    }

    /// Whether a role carries `run.routes.invoke`.
    pub fn carries(&self, role: &str) -> Carries {
        if self.shown.contains(role) {
            return Carries::Yes;
        }
        carries_invoke(role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_carries_it_or_does_not_or_nobody_knows() {
        use Carries::{No, Unknown, Yes};
        for (role, invoke, iap) in [
            ("roles/run.invoker", Yes, No),
            ("roles/run.servicesInvoker", Yes, No),
            ("roles/run.admin", Yes, No),
            ("roles/run.developer", Yes, No),
            ("roles/run.serviceAgent", Yes, No),
            ("roles/editor", Yes, No),
            ("roles/run.viewer", No, No),
            ("roles/run.jobsExecutor", No, No),
            ("roles/viewer", No, No),
            ("roles/storage.admin", No, No),
            ("roles/iam.securityAdmin", No, No),
            (IAP_ROLE, No, Yes),
            ("roles/run.inventedLater", Unknown, Unknown),
            ("roles/inventedLater.serviceAgent", Unknown, Unknown),
            ("roles/run.invoker_withcond_a1b2c3", Unknown, Unknown),
            ("projects/acme-prod/roles/caller", Unknown, Unknown),
            ("projects/acme-prod/roles/run.invoker", Unknown, Unknown),
            ("organizations/1/roles/caller", Unknown, Unknown),
            ("", Unknown, Unknown),
        ] {
            assert_eq!(carries_invoke(role), invoke, "{role}");
            assert_eq!(carries_iap(role), iap, "{role} through IAP");
        }
    }

    #[test]
    fn no_role_is_in_both_lists() {
        for role in RUN_ROLES_WITHOUT_INVOKE {
            assert_eq!(carries_invoke(role), Carries::No, "{role}");
        }
        for role in OTHER_INVOKING_ROLES {
            assert!(!RUN_ROLES_WITHOUT_INVOKE.contains(role), "{role}");
        }
    }

    #[test]
    fn what_a_search_showed_counts_more_than_a_list() {
        let caller: Arc<str> = "projects/p/roles/caller".into();
        let changed: Arc<str> = "roles/run.viewer".into();
        let roles = InvokingRoles::shown([&caller, &changed]);
        assert_eq!(roles.carries(&caller), Carries::Yes);
        assert_eq!(roles.carries(&changed), Carries::Yes);
        assert_eq!(roles.carries("projects/p/roles/other"), Carries::Unknown);
        assert_eq!(roles.carries("roles/run.sourceViewer"), Carries::No);
    }

    #[test]
    fn whoever_wants_to_know_is_told_the_command() {
        for (role, command) in [
            ("projects/p/roles/caller", "describe caller --project p "),
            (
                "organizations/7/roles/caller",
                "describe caller --organization 7 ",
            ),
            ("roles/run.new", "describe roles/run.new --format"),
        ] {
            assert!(describe_with(role).contains(command), "{role}");
        }
    }
}
