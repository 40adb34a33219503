//! The resource hierarchy: organizations hold folders and projects, folders hold folders and
//! projects. Each has an allow policy, which everything below it inherits.
//!
//! Sources: <https://docs.cloud.google.com/resource-manager/docs/cloud-platform-resource-hierarchy>,
//! <https://docs.cloud.google.com/iam/docs/resource-hierarchy-access-control>.

use std::collections::BTreeMap;

use crate::run::policy::StoredPolicy;

/// Where a project hangs that nobody put anywhere else.
pub const DEFAULT_ORGANIZATION: &str = "organizations/123456789012";

/// The most folders above each other below an organization
/// (<https://docs.cloud.google.com/resource-manager/docs/limits>).
const MAX_DEPTH: usize = 10;

/// What a resource of the hierarchy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Project,
    Folder,
    Organization,
}

impl Kind {
    /// By the collection in a resource name.
    pub fn of(collection: &str) -> Option<Self> {
        match collection {
            "projects" => Some(Self::Project),
            "folders" => Some(Self::Folder),
            "organizations" => Some(Self::Organization),
            _ => None,
        }
    }

    pub fn collection(self) -> &'static str {
        match self {
            Self::Project => "projects",
            Self::Folder => "folders",
            Self::Organization => "organizations",
        }
    }

    /// As `ResourceId.type` of Resource Manager v1 has it.
    pub fn singular(self) -> &'static str {
        self.collection().trim_end_matches('s')
    }

    /// The asset type (<https://docs.cloud.google.com/asset-inventory/docs/asset-types>).
    pub fn asset_type(self) -> &'static str {
        match self {
            Self::Project => "cloudresourcemanager.googleapis.com/Project",
            Self::Folder => "cloudresourcemanager.googleapis.com/Folder",
            Self::Organization => "cloudresourcemanager.googleapis.com/Organization",
        }
    }
}

/// An organization, a folder or a project.
#[derive(Clone, Debug)]
pub struct Node {
    /// The number; of folders and organizations it is the id as well.
    pub number: String,
    pub display_name: String,
    /// `folders/N` or `organizations/N`; an organization has none.
    pub parent: Option<String>,
    pub created: String,
    pub policy: StoredPolicy,
}

/// All nodes by name: `projects/ID`, `folders/N`, `organizations/N`.
#[derive(Debug, Default)]
pub struct Hierarchy {
    nodes: BTreeMap<String, Node>,
}

impl Hierarchy {
    /// A project that exists because something in it does.
    pub fn know_project(&mut self, id: &str, now: &str) {
        if !self.nodes.contains_key(&format!("projects/{id}")) {
            // Neither can fail: the default organization is made where it is missing.
            self.put_organization(DEFAULT_ORGANIZATION, None, now).ok();
            self.put_project(id, None, None, now).ok();
        }
    }

    /// Makes an organization, or renames it.
    ///
    /// # Errors
    /// When the name is none of an organization.
    pub fn put_organization(
        &mut self,
        name: &str,
        display_name: Option<&str>,
        now: &str,
    ) -> Result<(), String> {
        let number = number_in(name, Kind::Organization)?;
        let node = self.nodes.entry(name.to_owned()).or_insert_with(|| Node {
            number: number.to_owned(),
            display_name: "acme.com".into(),
            parent: None,
            created: now.to_owned(),
            policy: StoredPolicy::default(),
        });
        if let Some(display_name) = display_name {
            node.display_name = display_name.to_owned();
        }
        Ok(())
    }

    /// Makes a folder, or moves or renames it. Without a parent it stays where it is, and a new one
    /// hangs under [`DEFAULT_ORGANIZATION`].
    ///
    /// # Errors
    /// When the name is none of a folder, or the parent cannot be one.
    pub fn put_folder(
        &mut self,
        name: &str,
        display_name: Option<&str>,
        parent: Option<&str>,
        now: &str,
    ) -> Result<(), String> {
        let number = number_in(name, Kind::Folder)?.to_owned();
        let display_name = display_name.unwrap_or(&number).to_owned();
        self.put(name, &number, &display_name, parent, now)
    }

    /// Makes a project, or moves it or gives it a number. Without a parent it stays where it is, and
    /// a new one hangs under [`DEFAULT_ORGANIZATION`].
    ///
    /// # Errors
    /// When the number is none or another project's, or the parent cannot be one.
    pub fn put_project(
        &mut self,
        id: &str,
        number: Option<&str>,
        parent: Option<&str>,
        now: &str,
    ) -> Result<(), String> {
        let name = format!("projects/{id}");
        if id.is_empty() || id.contains('/') {
            return Err(format!("{id} is not a project id"));
        }
        let number = match (number, self.nodes.get(&name)) {
            (Some(number), _) => number.to_owned(),
            (None, Some(node)) => node.number.clone(),
            (None, None) => project_number(id),
        };
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("{number} is not a project number"));
        }
        let is_other = |(other, node): (&String, &Node)| {
            other.starts_with("projects/") && *other != name && node.number == number
        };
        if self.nodes.iter().any(is_other) {
            return Err(format!(
                "project number {number} belongs to another project"
            ));
        }
        self.put(&name, &number, id, parent, now)
    }

    fn put(
        &mut self,
        name: &str,
        number: &str,
        display_name: &str,
        parent: Option<&str>,
        now: &str,
    ) -> Result<(), String> {
        if let Some(parent) = parent {
            self.check_parent(name, parent)?;
        }
        if parent.is_none_or(|p| p == DEFAULT_ORGANIZATION) {
            self.put_organization(DEFAULT_ORGANIZATION, None, now)?;
        }
        let node = self.nodes.entry(name.to_owned()).or_insert_with(|| Node {
            number: number.to_owned(),
            display_name: display_name.to_owned(),
            parent: Some(DEFAULT_ORGANIZATION.to_owned()),
            created: now.to_owned(),
            policy: StoredPolicy::default(),
        });
        node.number = number.to_owned();
        node.display_name = display_name.to_owned();
        if let Some(parent) = parent {
            node.parent = Some(parent.to_owned());
        }
        Ok(())
    }

    fn check_parent(&self, name: &str, parent: &str) -> Result<(), String> {
        if parent.starts_with("projects/") {
            return Err(format!("{name}: a project cannot be a parent"));
        }
        if parent != DEFAULT_ORGANIZATION && !self.nodes.contains_key(parent) {
            return Err(format!(
                "{name}: its parent {parent} does not exist; create it first"
            ));
        }
        let above = self.chain(parent);
        if above.iter().any(|a| a == name) {
            return Err(format!("{name} cannot be below itself"));
        }
        if above.len() > MAX_DEPTH + usize::from(name.starts_with("projects/")) {
            return Err(format!("{name}: folders nest at most {MAX_DEPTH} deep"));
        }
        Ok(())
    }

    /// The name under which a node is kept: projects may be named by number.
    pub fn resolve(&self, kind: Kind, id: &str) -> Option<String> {
        let name = format!("{}/{id}", kind.collection());
        if self.nodes.contains_key(&name) {
            return Some(name);
        }
        let by_number = |(name, node): &(&String, &Node)| {
            kind == Kind::Project && name.starts_with("projects/") && node.number == id
        };
        self.nodes
            .iter()
            .find(by_number)
            .map(|(name, _)| name.clone())
    }

    pub fn get(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    pub fn get_mut(&mut self, name: &str) -> Option<&mut Node> {
        self.nodes.get_mut(name)
    }

    /// Every node and its name.
    pub fn all(&self) -> impl Iterator<Item = (&String, &Node)> {
        self.nodes.iter()
    }

    /// A node and all above it, the nearest first.
    pub fn chain(&self, name: &str) -> Vec<String> {
        let mut chain = vec![name.to_owned()];
        while let Some(parent) = chain.last().and_then(|n| self.nodes.get(n)?.parent.clone()) {
            chain.push(parent);
        }
        chain
    }

    /// The same, as Google writes it in answers: projects by number.
    pub fn numbered(&self, name: &str) -> String {
        match self.nodes.get(name) {
            Some(node) if name.starts_with("projects/") => format!("projects/{}", node.number),
            _ => name.to_owned(),
        }
    }

    /// Renames a member in every policy; names the nodes that have it.
    pub fn rename_member(&mut self, from: &str, to: &str, etag: &[u8]) -> Vec<String> {
        let mut renamed = Vec::new();
        for (name, node) in &mut self.nodes {
            if node.policy.rename_member(from, to, etag) {
                renamed.push(name.clone());
            }
        }
        renamed
    }
}

/// The kind and the id in `projects/ID`, `folders/N`, `organizations/N`.
pub fn parse(name: &str) -> Option<(Kind, &str)> {
    let (collection, id) = name.split_once('/')?;
    let kind = Kind::of(collection)?;
    let is_id = !id.is_empty() && !id.contains('/');
    let is_number = id.bytes().all(|b| b.is_ascii_digit());
    (is_id && (kind == Kind::Project || is_number)).then_some((kind, id))
}

fn number_in(name: &str, kind: Kind) -> Result<&str, String> {
    match parse(name) {
        Some((found, number)) if found == kind => Ok(number),
        _ => Err(format!("{name} is not {}/NUMBER", kind.collection())),
    }
}

/// A number of twelve digits that is always the same for an id (FNV-1a).
fn project_number(id: &str) -> String {
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| {
        (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    (100_000_000_000 + hash % 900_000_000_000).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn tree() -> Hierarchy {
        let mut tree = Hierarchy::default();
        tree.put_organization("organizations/1", Some("shop.example"), NOW)
            .unwrap();
        tree.put_folder("folders/10", Some("eu"), Some("organizations/1"), NOW)
            .unwrap();
        tree.put_folder("folders/11", None, Some("folders/10"), NOW)
            .unwrap();
        tree.put_project("shop", Some("77"), Some("folders/11"), NOW)
            .unwrap();
        tree.know_project("other", NOW);
        tree
    }

    #[test]
    fn a_project_knows_what_is_above_it() {
        let tree = tree();
        let cases: [(&str, &[&str]); 4] = [
            (
                "projects/shop",
                &[
                    "projects/shop",
                    "folders/11",
                    "folders/10",
                    "organizations/1",
                ],
            ),
            ("projects/other", &["projects/other", DEFAULT_ORGANIZATION]),
            ("folders/10", &["folders/10", "organizations/1"]),
            ("organizations/1", &["organizations/1"]),
        ];
        for (name, chain) in cases {
            assert_eq!(tree.chain(name), chain, "{name}");
        }
    }

    #[test]
    fn projects_are_found_by_id_and_by_number() {
        let tree = tree();
        let cases = [
            (Kind::Project, "shop", Some("projects/shop")),
            (Kind::Project, "77", Some("projects/shop")),
            (Kind::Project, "10", None),
            (Kind::Folder, "10", Some("folders/10")),
            (Kind::Folder, "shop", None),
            (
                Kind::Organization,
                "123456789012",
                Some(DEFAULT_ORGANIZATION),
            ),
        ];
        for (kind, id, name) in cases {
            assert_eq!(tree.resolve(kind, id).as_deref(), name, "{id}");
        }
        assert_eq!(tree.numbered("projects/shop"), "projects/77");
        assert_eq!(tree.numbered("folders/10"), "folders/10");
    }

    #[test]
    fn what_cannot_be_a_tree_is_refused() {
        let mut tree = tree();
        let cases = [
            tree.put_folder("folders/10", None, Some("folders/11"), NOW),
            tree.put_folder("folders/x", None, None, NOW),
            tree.put_folder("folders/12", None, Some("folders/99"), NOW),
            tree.put_folder("folders/12", None, Some("projects/shop"), NOW),
            tree.put_project("third", Some("77"), None, NOW),
            tree.put_project("third", Some("x"), None, NOW),
            tree.put_organization("folders/1", None, NOW),
        ];
        for (index, case) in cases.into_iter().enumerate() {
            assert!(case.is_err(), "case {index}");
        }
    }

    #[test]
    fn folders_nest_ten_deep() {
        let mut tree = Hierarchy::default();
        let mut parent = DEFAULT_ORGANIZATION.to_owned();
        for n in 1..=10 {
            let name = format!("folders/{n}");
            tree.put_folder(&name, None, Some(&parent), NOW).unwrap();
            parent = name;
        }
        assert!(
            tree.put_folder("folders/11", None, Some(&parent), NOW)
                .is_err()
        );
        tree.put_project("deep", None, Some(&parent), NOW).unwrap();
    }
}
