//! Who may invoke by a grant above the service: on its project, a folder or the organization.
//!
//! Nothing here is ever written to. Groups are not expanded, and neither deny policies nor
//! principal access boundaries are seen.

mod page;
mod places;
mod sum;

use std::sync::Arc;

use crate::iam::Principal;

pub use page::{Page, read_ancestry, read_page};
pub use sum::{Above, Inherited, Search};

/// Where in the resource hierarchy a grant is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    Project,
    Folder,
    Organization,
}

impl Level {
    pub const ALL: [Self; 3] = [Self::Project, Self::Folder, Self::Organization];

    /// Label in metrics and word in status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Folder => "folder",
            Self::Organization => "organization",
        }
    }
}

/// A principal that may invoke every service below a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InheritedGrant {
    pub principal: Principal,
    /// A role that carries `run.routes.invoke`, as IAM writes it.
    pub role: Arc<str>,
    pub level: Level,
    /// `projects/ID`, `folders/NUMBER` or `organizations/NUMBER`.
    pub resource: Arc<str>,
    /// It holds only where a condition does, which is not judged.
    pub conditional: bool,
}

impl InheritedGrant {
    /// As a message names it.
    pub fn words(&self) -> String {
        let sometimes = if self.conditional {
            ", under a condition"
        } else {
            ""
        };
        format!(
            "{} ({} on {}{sometimes})",
            self.principal, self.role, self.resource
        )
    }
}

/// A place in the hierarchy that is searched, with everything below it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SearchScope(Arc<str>);

impl SearchScope {
    /// Reads `organizations/NUMBER`, `folders/NUMBER` or `projects/ID`.
    ///
    /// # Errors
    /// In words that say what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is_number = |t: &str| !t.is_empty() && t.chars().all(|c| c.is_ascii_digit());
        let is_project = |t: &str| {
            let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c);
            (1..=80).contains(&t.len()) && t.chars().all(known)
        };
        let fits = match text.split_once('/') {
            Some(("organizations" | "folders", number)) => is_number(number),
            Some(("projects", id)) => is_project(id),
            _ => false,
        };
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(format!(
                "{text:?} is none of organizations/NUMBER, folders/NUMBER and projects/ID"
            ))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one project that it is, if it is one.
    pub fn project(&self) -> Option<&str> {
        self.0.strip_prefix("projects/")
    }
}

/// How one page of a search is asked for, behind the address of Cloud Asset's API.
///
/// Source: <https://cloud.google.com/asset-inventory/docs/reference/rest/v1/TopLevel/searchAllIamPolicies>;
/// the query by permission matches bindings of every role that carries it.
pub fn search_path(scope: &SearchScope, page: &str) -> String {
    let mut path = format!(
        "v1/{}:searchAllIamPolicies?query=policy.role.permissions:run.routes.invoke&pageSize=500",
        scope.as_str()
    );
    if !page.is_empty() {
        path.push_str("&pageToken=");
        path.extend(page.bytes().map(escaped));
    }
    path
}

/// A byte of a query's value (RFC 3986, section 2.3).
fn escaped(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

#[cfg(test)]
mod tests;
