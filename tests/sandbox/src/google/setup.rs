//! How a test, or the control API, sets what Google's other APIs know.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{
    hierarchy::{self, DEFAULT_ORGANIZATION, Kind},
    iap::WebResource,
    request::is_web_resource,
    service_key,
};
use crate::run::Run;

impl Run {
    /// Makes an organization, or renames it: `organizations/N`.
    ///
    /// # Errors
    /// When the name is none of an organization.
    pub fn put_organization(&self, name: &str, display_name: Option<&str>) -> Result<(), String> {
        let now = self.clock.now().to_string();
        self.lock()
            .google
            .hierarchy
            .put_organization(name, display_name, &now)
    }

    /// Makes a folder, or moves or renames it: `folders/N`, below `folders/N` or `organizations/N`.
    ///
    /// # Errors
    /// When the name is none of a folder, or the parent cannot be one.
    pub fn put_folder(
        &self,
        name: &str,
        display_name: Option<&str>,
        parent: Option<&str>,
    ) -> Result<(), String> {
        let now = self.clock.now().to_string();
        self.lock()
            .google
            .hierarchy
            .put_folder(name, display_name, parent, &now)
    }

    /// Makes a project by its id, or moves it or gives it a number.
    ///
    /// # Errors
    /// When the number is none or another project's, or the parent cannot be one.
    pub fn put_project(
        &self,
        id: &str,
        number: Option<&str>,
        parent: Option<&str>,
    ) -> Result<(), String> {
        let now = self.clock.now().to_string();
        self.lock()
            .google
            .hierarchy
            .put_project(id, number, parent, &now)
    }

    /// Every organization, folder and project by name: number, parent and policy.
    pub fn hierarchy(&self) -> Value {
        let state = self.lock();
        let node = |(name, node): (&String, &hierarchy::Node)| {
            let shown = json!({"number": node.number, "displayName": node.display_name,
                "parent": node.parent, "policy": node.policy.view(3)});
            (name.clone(), shown)
        };
        Value::Object(state.google.hierarchy.all().map(node).collect())
    }

    /// Replaces the bindings of a project, folder or organization as somebody else would. A project
    /// that does not exist yet is made.
    ///
    /// # Errors
    /// When there is no such resource.
    pub fn set_node_bindings(&self, name: &str, bindings: &Value) -> Result<(), String> {
        if let Some((Kind::Project, id)) = hierarchy::parse(name) {
            let now = self.clock.now().to_string();
            let mut state = self.lock();
            if state.google.hierarchy.resolve(Kind::Project, id).is_none() {
                state.google.hierarchy.know_project(id, &now);
            }
        }
        let mut state = self.lock();
        let etag = state.google.etags.next(&self.clock);
        let kept = hierarchy::parse(name).and_then(|(k, id)| state.google.hierarchy.resolve(k, id));
        let node = kept
            .as_deref()
            .and_then(|n| state.google.hierarchy.get_mut(n));
        let Some(node) = node else {
            return Err(format!("{name} does not exist"));
        };
        node.policy
            .replace(bindings.as_array().cloned().unwrap_or_default(), etag);
        state.changed(&self.clock, kept.as_deref().unwrap_or(name));
        Ok(())
    }

    /// Sets the bindings of a project's own allow policy.
    pub fn set_project_bindings(&self, project: &str, bindings: &Value) {
        // A project is made where it is missing, so this cannot fail.
        self.set_node_bindings(&format!("projects/{project}"), bindings)
            .ok();
    }

    /// Sets who may pass Identity-Aware Proxy in front of a service.
    pub fn set_iap_bindings(&self, project: &str, region: &str, name: &str, bindings: &Value) {
        let path = format!("projects/{project}/iap_web/cloud_run-{region}/services/{name}");
        // The name is well formed, so this cannot fail.
        self.set_web_bindings(&path, bindings).ok();
    }

    /// Replaces the bindings of a web resource of Identity-Aware Proxy: `projects/ID/iap_web`, or
    /// `cloud_run-R` or `cloud_run-R/services/S` below it.
    ///
    /// # Errors
    /// When the name is none of a web resource.
    pub fn set_web_bindings(&self, name: &str, bindings: &Value) -> Result<(), String> {
        let mut state = self.lock();
        let etag = state.google.etags.next(&self.clock);
        let kept = web_resource(&mut state.google.iap, name)?;
        kept.policy
            .replace(bindings.as_array().cloned().unwrap_or_default(), etag);
        Ok(())
    }

    /// Sets `IapSettings` of a web resource.
    ///
    /// # Errors
    /// When the name is none of a web resource, or the settings are no object.
    pub fn set_iap_settings(&self, name: &str, settings: &Value) -> Result<(), String> {
        if !settings.is_object() {
            return Err("settings must be an object".into());
        }
        let mut state = self.lock();
        web_resource(&mut state.google.iap, name)?.settings = settings.clone();
        Ok(())
    }

    /// Replaces the bindings of any resource by its relative name: a service, a web resource of
    /// Identity-Aware Proxy, a project, a folder, an organization.
    ///
    /// # Errors
    /// When there is no such resource.
    pub fn set_policy(&self, name: &str, bindings: &Value) -> Result<(), String> {
        if name.contains("/iap_web") {
            return self.set_web_bindings(name, bindings);
        }
        let Some((project, region, service)) = service_key(name) else {
            return self.set_node_bindings(name, bindings);
        };
        if self.policy(&project, &region, &service).is_none() {
            return Err(format!("{name} does not exist"));
        }
        self.set_bindings(&project, &region, &service, bindings);
        Ok(())
    }

    /// Makes or replaces a custom role: `projects/P/roles/R` or `organizations/N/roles/R`.
    ///
    /// # Errors
    /// When the name is none of a custom role.
    pub fn set_role(&self, name: &str, permissions: BTreeSet<String>) -> Result<(), String> {
        self.lock().google.roles.put(name, permissions)
    }

    /// Says who is in a group or a domain, so that whoever asks can see it: `group:E-MAIL`,
    /// `domain:NAME`, and e-mail addresses.
    pub fn set_group(&self, group: &str, members: BTreeSet<String>) {
        self.lock()
            .google
            .groups
            .insert(group.to_lowercase(), members);
    }

    /// The name of the organization under which projects hang by default.
    pub fn default_organization() -> &'static str {
        DEFAULT_ORGANIZATION
    }
}

fn web_resource<'a>(
    iap: &'a mut BTreeMap<String, WebResource>,
    name: &str,
) -> Result<&'a mut WebResource, String> {
    let path = name
        .strip_prefix("projects/")
        .and_then(|rest| rest.split_once('/'));
    if !path.is_some_and(|(_, path)| is_web_resource(path)) {
        return Err(format!(
            "{name} is not projects/ID/iap_web, .../cloud_run-REGION or .../cloud_run-REGION/services/S"
        ));
    }
    Ok(iap.entry(name.to_owned()).or_default())
}
