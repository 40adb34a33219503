//! Which roles contain which permissions, as far as invoking Cloud Run goes.
//!
//! Source: the predefined roles of 2026-08-22, and
//! <https://docs.cloud.google.com/iam/docs/roles-permissions/run>. `roles/run.developer` contains
//! `run.routes.invoke`; `roles/run.viewer` and `roles/viewer` do not.

use std::collections::{BTreeMap, BTreeSet};

pub const INVOKE: &str = "run.routes.invoke";

/// The permissions whose roles are known here. What contains another one cannot be answered.
const MODELLED: [(&str, &[&str]); 3] = [
    (INVOKE, INVOKERS),
    (
        "run.services.setIamPolicy",
        &[
            "roles/cloudfunctions.admin",
            "roles/firebase.admin",
            "roles/firebase.developAdmin",
            "roles/firebasemods.serviceAgent",
            "roles/iam.securityAdmin",
            "roles/owner",
            "roles/run.admin",
        ],
    ),
    (
        "iap.webServiceVersions.accessViaIAP",
        &["roles/iap.httpsResourceAccessor"],
    ),
];

/// Every predefined role that contains `run.routes.invoke`.
const INVOKERS: &[&str] = &[
    "roles/aiplatform.serviceAgent",
    "roles/ces.serviceAgent",
    "roles/cloudfunctions.admin",
    "roles/cloudfunctions.developer",
    "roles/cloudfunctions.editor",
    "roles/cloudfunctions.serviceAgent",
    "roles/dialogflow.serviceAgent",
    "roles/editor",
    "roles/firebase.admin",
    "roles/firebase.developAdmin",
    "roles/firebaseapphosting.serviceAgent",
    "roles/firebasedataconnect.serviceAgent",
    "roles/iam.dataScientist",
    "roles/iam.devOps",
    "roles/iam.mlEngineer",
    "roles/integrations.serviceAgent",
    "roles/monitoring.notificationServiceAgent",
    "roles/owner",
    "roles/run.admin",
    "roles/run.developer",
    "roles/run.editor",
    "roles/run.invoker",
    "roles/run.serviceAgent",
    "roles/run.servicesInvoker",
    "roles/run.sourceDeveloper",
    "roles/serverless.serviceAgent",
    "roles/spanner.serviceAgent",
    "roles/visionai.serviceAgent",
];

/// Predefined and custom roles.
#[derive(Debug, Default)]
pub struct Roles {
    /// `projects/P/roles/R` or `organizations/N/roles/R`, and its permissions.
    custom: BTreeMap<String, BTreeSet<String>>,
}

impl Roles {
    /// Makes or replaces a custom role.
    ///
    /// # Errors
    /// When the name is none of a custom role: those belong to a project or an organization
    /// (<https://docs.cloud.google.com/iam/docs/roles-overview#custom>).
    pub fn put(&mut self, name: &str, permissions: BTreeSet<String>) -> Result<(), String> {
        let is_custom = custom_parent(name).is_some_and(|parent| {
            parent.starts_with("projects/") || parent.starts_with("organizations/")
        });
        if !is_custom {
            return Err(format!(
                "{name} is not projects/P/roles/ROLE or organizations/N/roles/ROLE"
            ));
        }
        self.custom.insert(name.to_owned(), permissions);
        Ok(())
    }

    /// The permissions of a role, of those that are known here. A custom role that does not exist
    /// has none.
    pub fn permissions(&self, role: &str) -> Vec<&str> {
        if let Some(permissions) = self.custom.get(role) {
            return permissions.iter().map(String::as_str).collect();
        }
        let has = |(_, roles): &&(&str, &[&str])| roles.contains(&role);
        MODELLED.iter().filter(has).map(|(p, _)| *p).collect()
    }

    /// Whether it is known here which roles contain a permission.
    pub fn knows(&self, permission: &str) -> bool {
        MODELLED.iter().any(|(p, _)| *p == permission)
    }

    /// The permissions whose predefined roles are known here, and those of custom roles.
    pub fn known_permissions(&self) -> Vec<&str> {
        let custom = self.custom.values().flatten().map(String::as_str);
        MODELLED.iter().map(|(p, _)| *p).chain(custom).collect()
    }

    pub fn contains(&self, role: &str, permission: &str) -> bool {
        self.permissions(role).contains(&permission)
    }
}

/// `projects/P` or `organizations/N` of a custom role.
pub fn custom_parent(role: &str) -> Option<&str> {
    let (parent, id) = role.split_once("/roles/")?;
    (super::hierarchy::parse(parent).is_some() && !id.is_empty()).then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_that_can_invoke() {
        let mut roles = Roles::default();
        let caller = "projects/shop/roles/caller";
        roles.put(caller, [INVOKE.to_owned()].into()).unwrap();
        roles
            .put("organizations/1/roles/none", BTreeSet::new())
            .unwrap();
        let cases = [
            ("roles/run.invoker", true),
            ("roles/run.servicesInvoker", true),
            ("roles/run.admin", true),
            ("roles/run.developer", true),
            ("roles/owner", true),
            ("roles/editor", true),
            (caller, true),
            ("roles/viewer", false),
            ("roles/run.viewer", false),
            ("roles/run.jobsExecutor", false),
            ("roles/storage.admin", false),
            ("organizations/1/roles/none", false),
            ("projects/shop/roles/unknown", false),
        ];
        for (role, can) in cases {
            assert_eq!(roles.contains(role, INVOKE), can, "{role}");
        }
        for name in [
            "roles/run.invoker",
            "folders/1/roles/x",
            "projects/p/roles/",
            "x",
        ] {
            assert!(roles.put(name, BTreeSet::new()).is_err(), "{name}");
        }
    }
}
