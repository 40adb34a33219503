//! Who may invoke by a grant above the services, seen from one policy.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::{Index, policies::Record};
use crate::{
    fault::Fault,
    iam::{RunService, ServiceInfo},
    inherited::{Above, Inherited, InheritedGrant, Level, Search, SearchScope},
    intent::{Declared, PolicyKey},
    status::InheritedView,
};

impl Index {
    /// From now on grants above the services are searched for in these scopes.
    pub fn expect_inherited(&mut self, scopes: &[SearchScope]) {
        self.inherited = Inherited::of(scopes);
    }

    /// A search came to its end. Returns the policies whose status may change: all where something
    /// is another than before, and else those of projects where somebody may invoke from above, since
    /// others may have begun or ceased to list them.
    pub fn apply_inherited(
        &mut self,
        scope: &SearchScope,
        result: Result<Search, Fault>,
    ) -> BTreeSet<PolicyKey> {
        let is_news = self.inherited.apply(scope, result);
        self.policies
            .projects()
            .filter(|p| is_news || !self.inherited.lets_nobody_in(p))
            .flat_map(|p| self.policies.keys_of_project(p))
            .cloned()
            .collect()
    }

    /// Projects of policies that no search shows, and for which something is searched.
    pub fn unplaced_projects(&self) -> Vec<Arc<str>> {
        let projects = self.policies.projects();
        projects
            .filter(|p| self.inherited.needs_place(p))
            .cloned()
            .collect()
    }

    /// What is above a project that no search shows. Returns its policies.
    pub fn place_project(&mut self, project: &str, above: Vec<Arc<str>>) -> Vec<PolicyKey> {
        self.inherited.place(project, above);
        self.policies.keys_of_project(project).cloned().collect()
    }

    /// How many principals may invoke by grants on each level.
    pub fn inherited_principals(&self) -> BTreeMap<Level, usize> {
        self.inherited.principals()
    }

    /// What a policy is told of grants above its services; `None` where nobody asks, or where it
    /// has no services.
    pub(super) fn inherited_view(
        &self,
        record: &Record,
        now: Timestamp,
    ) -> Option<InheritedView<'_>> {
        let is_asked = self.inherited.is_on()
            && !record.targets().is_empty()
            && !record.terms().ignores_inherited();
        if !is_asked {
            return None;
        }
        let above = self.inherited.above(&record.intent.project);
        let listed = match &above {
            Above::Known { grants, .. } => {
                let lists = self.lists_on(record.targets(), now);
                let is_listed =
                    |g: &&InheritedGrant| lists.values().all(|l| l.contains(g.principal.key()));
                grants.iter().map(is_listed).collect()
            }
            _ => Vec::new(),
        };
        Some(InheritedView { above, listed })
    }

    /// The services of a policy that anybody can call by a public grant above them, which is not
    /// declared: by which, and from where. Whoever does not want to hear of grants above hears of
    /// these.
    pub fn opened_from_above<'a>(
        &self,
        record: &'a Record,
        now: Timestamp,
    ) -> Vec<(&'a RunService, String)> {
        let project = &record.intent.project;
        if !self.inherited.is_on() || !self.inherited.lets_everybody_in(project) {
            return Vec::new();
        }
        let Above::Known { grants, .. } = self.inherited.above(project) else {
            return Vec::new();
        };
        let public = || grants.iter().filter(|g| g.principal.is_public());
        let opened = record.targets().iter().filter_map(|service| {
            let from = ServiceInfo::open_to(self.info(service))?;
            let listed = self.listed(self.policies.keys_on(service), now);
            let grant = public().find(|g| !listed.contains(g.principal.key()))?;
            let (role, resource) = (&grant.role, &grant.resource);
            let how = format!(
                "{} may invoke it by {role} on {resource}, {from}",
                grant.principal
            );
            Some((service, how))
        });
        opened.collect()
    }

    /// Everybody whom a policy lists, by service; services that the same policies are about share
    /// one list.
    fn lists_on(
        &self,
        services: &BTreeSet<RunService>,
        now: Timestamp,
    ) -> BTreeMap<&[PolicyKey], HashSet<&str>> {
        let mut lists: BTreeMap<&[PolicyKey], HashSet<&str>> = BTreeMap::new();
        for service in services {
            let policies = self.policies.keys_on(service);
            lists
                .entry(policies)
                .or_insert_with(|| self.listed(policies, now));
        }
        lists
    }

    /// Everybody who is declared to invoke now, without a condition but an end, by a policy that is
    /// in force and may do so: nobody vouches for what a guardrail refuses, what has ended, or what
    /// is suspended.
    fn listed(&self, policies: &[PolicyKey], now: Timestamp) -> HashSet<&str> {
        let records = policies.iter().filter_map(|k| self.policies.get(k));
        let vouching = records.filter(|r| !r.intent.deleting && !r.intent.suspended);
        let declared = vouching.flat_map(|r| r.intent.declared.iter().map(move |d| (r, d)));
        let counts = |(record, declared): &(&Record, &Declared)| {
            let condition = declared.grant.condition.as_ref();
            condition.is_none_or(|c| c.expiry().is_some())
                && declared.expires.is_none_or(|e| e > now)
                && record.terms().refuse_grant(declared, now).is_none()
        };
        declared
            .filter(counts)
            .map(|(_, d)| d.grant.principal.key())
            .collect()
    }
}
