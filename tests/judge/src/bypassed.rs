//! What a status says of grants above the services, which nobody may be silent about.
//!
//! Source: the page "Who can invoke a service" of the docs.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Judge,
    declared::{Policy, Service, Target},
    iam::member_key,
    liveness::{End, condition},
};

/// Roles of these worlds that carry `run.routes.invoke`.
const CARRY: [&str; 2] = ["roles/run.invoker", "roles/run.admin"];

impl Judge {
    /// L6: what a status says of who gets past every policy from above that is not so.
    pub(crate) fn bypass_untrue(
        &self,
        at: Timestamp,
        p: &Policy,
        status: &Value,
        end: &End,
    ) -> Option<String> {
        let d = &self.store.declared;
        // Those that it names are its own also while they are not there.
        let named = p.targets.iter().filter_map(|t| match t {
            Target::Named { region, name } => {
                Some((p.project.clone(), region.clone(), name.clone()))
            }
            Target::Selected { .. } => None,
        });
        let services: BTreeSet<Service> = named
            .chain(end.services.keys().cloned())
            .filter(|s| d.on(s).any(|o| o.uid == p.uid))
            .collect();
        if !self.settings.inherited || services.is_empty() || d.is_frozen(&p.namespace) {
            return None;
        }
        let said = condition(status, "Bypassed")
            .map_or("nothing", |c| c["status"].as_str().unwrap_or_default());
        let listed = |member: &String| services.iter().all(|s| self.is_listed(at, s, member));
        let above = grants_above(&end.above, &p.project);
        let members: BTreeSet<&String> = above.iter().map(|(member, ..)| member).collect();
        let unlisted: Vec<&&String> = members.iter().filter(|m| !listed(m)).collect();
        let expected = if unlisted.is_empty() { "False" } else { "True" };
        let inherited = &status["inherited"];
        let shown = inherited["grants"].as_array().into_iter().flatten();
        let text = |g: &Value, key: &str| g[key].as_str().unwrap_or_default().to_owned();
        let shown: BTreeSet<Above> = shown
            .map(|g| {
                let member = member_key(&text(g, "member"));
                (member, text(g, "role"), text(g, "resource"))
            })
            .collect();
        let counts = inherited["principals"] == members.len() && shown == above;
        // Nobody looks for what the selectors of a suspended one mean: its services may be those of
        // another time, or none.
        let is_said = if p.suspended && p.has_selector() {
            said == "nothing" || counts
        } else {
            said == expected && counts && inherited["unlisted"] == unlisted.len()
        };
        (!is_said).then(|| {
            format!(
                "{unlisted:?} may invoke from above past {}/{}, whose status says {said}: {}",
                p.namespace, p.name, inherited
            )
        })
    }

    /// Whether a policy vouches for a member on a service: one that is not suspended and not going,
    /// by an entry without a condition of its own, that holds and that guardrails allow.
    fn is_listed(&self, at: Timestamp, service: &Service, member: &str) -> bool {
        let d = &self.store.declared;
        let vouching = d.on(service).filter(|o| !o.suspended && !o.deleting);
        vouching
            .flat_map(|o| d.lists(o, at, self.settings.public))
            .any(|g| g.member == member && g.is_plain())
    }
}

/// Member, role, and the resource on which it is granted.
type Above = (String, String, String);

/// Who may invoke in a project by a grant on it or above it. In these worlds a status has room for
/// all of them.
fn grants_above(above: &Value, project: &str) -> BTreeSet<Above> {
    let mut found = BTreeSet::new();
    let mut node = format!("projects/{project}");
    while let Some(here) = above.get(&node) {
        let bindings = here["policy"]["bindings"].as_array();
        for binding in bindings.into_iter().flatten() {
            let role = binding["role"].as_str().unwrap_or_default();
            let members = binding["members"].as_array().into_iter().flatten();
            let members = members.filter_map(Value::as_str).map(member_key);
            let grants = members.map(|m| (m, role.to_owned(), node.clone()));
            found.extend(grants.filter(|_| CARRY.contains(&role)));
        }
        node = here["parent"].as_str().unwrap_or_default().to_owned();
    }
    found
}
