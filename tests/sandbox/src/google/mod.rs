//! Google's other APIs, as far as who can invoke a service goes: Resource Manager, Cloud Asset,
//! Policy Troubleshooter, deny policies of IAM v2, and Identity-Aware Proxy.
//!
//! All are served at the address of Cloud Run. Their paths share the prefixes v1, v2 and v3, but no
//! two of these methods have the same path: [`request`] tells them apart by shape.

mod admission;
pub mod asset;
mod asset_index;
mod asset_query;
pub mod control;
mod deny;
mod enums;
pub mod hierarchy;
mod iap;
pub mod refusal;
mod request;
mod resource_manager;
pub mod roles;
mod setup;
#[cfg(test)]
mod tests;
mod troubleshooter;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

pub use request::{Request, rpc};

use crate::{
    clock::Clock,
    exchange::Call,
    run::{Etags, Problem, Run, State, policy::StoredPolicy, rest::integers},
};

/// What these APIs know.
#[derive(Debug, Default)]
pub(crate) struct Google {
    pub hierarchy: hierarchy::Hierarchy,
    pub roles: roles::Roles,
    /// Members of groups and domains that whoever asks may see, by `group:E-MAIL`, `domain:NAME`.
    pub groups: BTreeMap<String, BTreeSet<String>>,
    /// Web resources of Identity-Aware Proxy, by `projects/ID/iap_web…`.
    pub iap: BTreeMap<String, iap::WebResource>,
    /// Deny policies by the node that they are attached to.
    pub deny: BTreeMap<String, Vec<deny::DenyPolicy>>,
    /// What the search of Cloud Asset sees, while that lags behind.
    index: Option<asset_index::Index>,
    /// Apart from those of Cloud Run, whose etags do not depend on what else is changed.
    etags: Etags,
    /// Times of requests by consumer and service, for quotas.
    used: BTreeMap<(String, &'static str), crate::quota::Minute>,
}

/// Answers a request.
pub fn answer(run: &Run, call: &Call, request: &Request<'_>) -> Result<Value, Problem> {
    let mut answer = match request {
        Request::Node(node) => resource_manager::answer(run, call, node),
        Request::Iap(iap) => iap::answer(run, call, iap),
        Request::Deny(deny) => deny::answer(run, call, deny),
        Request::Troubleshoot => troubleshooter::answer(run, call),
        Request::Search { scope } => asset::search(run, call, scope),
    }?;
    if integers(call) {
        enums::number(&mut answer);
    }
    Ok(answer)
}

impl State {
    /// The allow policy of a service, project, folder or organization, by relative name.
    pub(crate) fn stored_policy(&self, name: &str) -> Option<&StoredPolicy> {
        match service_key(name) {
            Some(key) => self.services.get(&key).map(|s| &s.policy),
            None => self.google.hierarchy.get(name).map(|n| &n.policy),
        }
    }

    /// Whether a name is that of a project that was deleted.
    pub(crate) fn is_gone(&self, name: &str) -> bool {
        name.strip_prefix("projects/")
            .is_some_and(|id| self.world.gone.contains(id))
    }

    /// Tells the search of a change.
    pub(crate) fn changed(&mut self, clock: &Clock, name: &str) {
        if self.google.index.is_none() {
            return;
        }
        let bindings = self.stored_policy(name).map(|p| p.bindings().to_vec());
        if let Some(index) = &mut self.google.index {
            index.record(clock.now(), self.world.search_delay, name, bindings);
        }
    }

    /// Follows a change of the world: who exists, and what lags behind.
    pub(crate) fn world_changed(&mut self, clock: &Clock) {
        let now = clock.now().to_string();
        for (project, _) in &self.world.denied {
            if !project.contains('/') {
                self.google.hierarchy.know_project(project, &now);
            }
        }
        if self.world.search_delay.is_zero() {
            self.google.index = None;
        } else if self.google.index.is_none() {
            self.google.index = Some(asset_index::Index::new(asset::live(self)));
        }
    }
}

/// `projects/P/locations/R/services/S`.
pub(crate) fn service_key(name: &str) -> Option<crate::run::ServiceKey> {
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        ["projects", p, "locations", r, "services", s] => {
            Some(((*p).into(), (*r).into(), (*s).into()))
        }
        _ => None,
    }
}
