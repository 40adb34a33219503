//! One page of Cloud Asset's `searchAllIamPolicies`.

use std::{collections::BTreeSet, sync::Arc};

use serde::Deserialize;

use super::{InheritedGrant, Level};
use crate::iam::{Carries, Invocation, Principal, PrincipalKind, carries_invoke};

/// The longest member, role or name that IAM has; what is longer is no answer of Google's.
const LONGEST: usize = 2048;

/// What one page shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// Grants on projects, folders and organizations.
    pub grants: Vec<InheritedGrant>,
    /// Where projects are: their ids and numbers, with what is above them.
    pub places: Vec<Place>,
    /// Roles that carry `run.routes.invoke`, which only a search shows.
    pub roles: BTreeSet<Arc<str>>,
    /// Token of the next page; empty at the last one.
    pub next: String,
}

/// Where a project is in the hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its id.
    pub project: Arc<str>,
    /// `projects/NUMBER`.
    pub number: Arc<str>,
    /// The row is that of the project itself, and not of a service in it.
    pub own: bool,
    /// `folders/NUMBER`, the nearest first, and `organizations/NUMBER`.
    pub ancestors: Arc<[Arc<str>]>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Answer {
    results: Vec<Found>,
    next_page_token: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Found {
    resource: String,
    asset_type: String,
    project: String,
    folders: Vec<String>,
    organization: String,
    policy: FoundPolicy,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct FoundPolicy {
    bindings: Vec<FoundBinding>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct FoundBinding {
    role: String,
    members: Vec<String>,
    condition: Option<serde_json::Value>,
}

/// Reads an answer. Results of other kinds of resources are left out.
///
/// # Errors
/// What is not as documented, in words: an answer that is read in part would hide somebody.
pub fn read_page(answer: &serde_json::Value) -> Result<Page, String> {
    let fields = answer.as_object().ok_or("it is no object")?;
    let known = ["results", "nextPageToken"];
    if let Some(other) = fields.keys().find(|k| !known.contains(&k.as_str())) {
        return Err(format!("it has a field {other:?} that it never has"));
    }
    let read = Answer::deserialize(answer).map_err(|e| e.to_string())?;
    let mut page = Page {
        next: read.next_page_token,
        ..Page::default()
    };
    for found in &read.results {
        found.add_to(&mut page)?;
    }
    Ok(page)
}

impl Found {
    fn add_to(&self, page: &mut Page) -> Result<(), String> {
        let (level, resource) = match self.asset_type.as_str() {
            "cloudresourcemanager.googleapis.com/Project" => {
                let name = self.name_under("//cloudresourcemanager.googleapis.com/")?;
                page.places.push(self.place(name, true)?);
                (Level::Project, name)
            }
            "cloudresourcemanager.googleapis.com/Folder" => (
                Level::Folder,
                self.name_under("//cloudresourcemanager.googleapis.com/")?,
            ),
            "cloudresourcemanager.googleapis.com/Organization" => (
                Level::Organization,
                self.name_under("//cloudresourcemanager.googleapis.com/")?,
            ),
            "run.googleapis.com/Service" => {
                let name = self.name_under("//run.googleapis.com/")?;
                let mut parts = name.splitn(3, '/');
                if let (Some("projects"), Some(id)) = (parts.next(), parts.next()) {
                    let place = self.place(&format!("projects/{id}"), false)?;
                    page.places.push(place);
                }
                // Who is granted there is read from the service's own policy.
                return self.add_roles(page);
            }
            _ => return Ok(()),
        };
        let resource: Arc<str> = resource.into();
        self.add_roles(page)?;
        for binding in &self.policy.bindings {
            let role: Arc<str> = named(&binding.role)?.into();
            for member in &binding.members {
                let principal = Principal::from_live(named(member)?);
                // What is left of a deleted principal lets nobody in, nor does a federated identity.
                if principal.kind() == PrincipalKind::Deleted
                    || principal.invocation() == Invocation::Unsupported
                {
                    continue;
                }
                page.grants.push(InheritedGrant {
                    principal,
                    role: role.clone(),
                    level,
                    resource: resource.clone(),
                    conditional: binding.condition.is_some(),
                });
            }
        }
        Ok(())
    }

    /// The search finds bindings by what their roles carry, so it tells what is in a custom role.
    fn add_roles(&self, page: &mut Page) -> Result<(), String> {
        for binding in &self.policy.bindings {
            let role = named(&binding.role)?;
            if carries_invoke(role) != Carries::Yes {
                page.roles.insert(role.into());
            }
        }
        Ok(())
    }

    fn name_under(&self, service: &str) -> Result<&str, String> {
        let name = self.resource.strip_prefix(service);
        name.filter(|n| n.contains('/') && n.len() <= LONGEST)
            .ok_or_else(|| format!("it has a {} without its name", self.asset_type))
    }

    /// `name`: `projects/ID`.
    fn place(&self, name: &str, own: bool) -> Result<Place, String> {
        let id = name.strip_prefix("projects/").unwrap_or(name);
        let above = self.folders.iter().chain([&self.organization]);
        let named = above.filter(|a| !a.is_empty());
        let ancestors: Result<Vec<Arc<str>>, String> =
            named.map(|a| Ok(bounded(a)?.into())).collect();
        Ok(Place {
            project: id.into(),
            number: bounded(&self.project)?.into(),
            own,
            ancestors: ancestors?.into(),
        })
    }
}

/// Reads what Resource Manager's `projects.getAncestry` says of a project: the names of the folders
/// and the organization above it, the nearest first.
///
/// # Errors
/// What is not as documented, in words.
pub fn read_ancestry(answer: &serde_json::Value) -> Result<Vec<Arc<str>>, String> {
    let ancestors = answer["ancestor"].as_array().ok_or("it has no ancestor")?;
    let mut above = Vec::new();
    for ancestor in ancestors {
        let text = |k: &str| ancestor["resourceId"][k].as_str().unwrap_or_default();
        let id = bounded(text("id"))?;
        match text("type") {
            "project" => {}
            "folder" => above.push(format!("folders/{id}").into()),
            "organization" => above.push(format!("organizations/{id}").into()),
            other => return Err(format!("it has an ancestor of type {other:?}")),
        }
    }
    Ok(above)
}

fn bounded(text: &str) -> Result<&str, String> {
    if text.len() > LONGEST {
        return Err(format!("it has a name of {} characters", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("it has a name with control characters: {text:?}"));
    }
    Ok(text)
}

/// A member or a role; none has no name.
fn named(text: &str) -> Result<&str, String> {
    if text.is_empty() {
        return Err("it has a binding with an empty role or member".into());
    }
    bounded(text)
}
