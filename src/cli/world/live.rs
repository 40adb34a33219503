//! The live state: which services there are, and what IAM holds.

use std::{collections::BTreeSet, sync::Arc};

use futures::StreamExt as _;

use super::ClusterSnapshot;
use crate::{
    cli::{context::progress, reach::is_cut_off},
    cloudrun::{CloudRun, Listing, list_services},
    fault::FaultClass,
    iam::{Policy, RunService},
    index::{PlanInputs, Scope},
    intent::PolicyKey,
    plan::{self, Plan},
    status::{Findings, Observation},
};

/// What a command is about, of all that it has to read.
pub struct Focus {
    pub policies: BTreeSet<PolicyKey>,
    pub services: BTreeSet<RunService>,
}

/// One service, planned.
pub struct Planned<'a> {
    pub inputs: PlanInputs,
    pub live: &'a Policy,
    pub plan: Plan,
}

impl ClusterSnapshot {
    /// Lists every project that a policy is about, and reads the IAM policy of every service that
    /// one means or that the ledger knows: what the operator would read, in the same budget. With
    /// `about` only what the plans of these policies' services depend on.
    ///
    /// # Errors
    /// When Google cannot be reached at all: that is said once, and not for each service.
    pub async fn read<C: CloudRun>(
        &mut self,
        cloud: &C,
        about: Option<&BTreeSet<PolicyKey>>,
    ) -> anyhow::Result<()> {
        let is_wanted = |p: &Arc<str>| {
            about.is_none_or(|keys| {
                self.index
                    .policies()
                    .keys_of_project(p)
                    .any(|k| keys.contains(k))
            })
        };
        let projects = self.index.policies().projects();
        let projects: Vec<Arc<str>> = projects.filter(|p| is_wanted(p)).cloned().collect();
        self.list(cloud, projects).await?;
        self.focus = about.map(|keys| Focus {
            policies: keys.clone(),
            services: self.services_of(keys),
        });
        let mut services: Vec<RunService> = match &self.focus {
            None => self.index.services().into_iter().collect(),
            Some(focus) => {
                // Whoever else means these services: how far a selector reaches follows from all
                // that it finds.
                let keys = focus
                    .services
                    .iter()
                    .flat_map(|s| self.index.policies().keys_on(s));
                let keys: BTreeSet<PolicyKey> = keys.chain(&focus.policies).cloned().collect();
                self.services_of(&keys).into_iter().collect()
            }
        };
        services.retain(|s| PlanInputs::of(s, &self.index).needs_read(self.now));
        let bar = progress("reading IAM", services.len());
        self.live = futures::stream::iter(services)
            .map(|service| async move {
                let live = cloud.read_policy(&service).await;
                (service, live)
            })
            .buffer_unordered(64)
            .inspect(|_| bar.inc(1))
            .collect()
            .await;
        bar.finish_and_clear();
        if let Some(fault) = self.live.values().next().and_then(|l| l.as_ref().err())
            && self
                .live
                .values()
                .all(|l| l.as_ref().is_err_and(is_cut_off))
        {
            return Err(anyhow::Error::from(fault.clone()).context("cannot read IAM"));
        }
        self.settle_reach();
        Ok(())
    }

    /// Services that policies mean, or where something still belongs to them.
    fn services_of(&self, keys: &BTreeSet<PolicyKey>) -> BTreeSet<RunService> {
        let concerns = |s: &RunService| {
            let claims = self.index.words(s);
            claims.iter().any(|c| keys.contains(&c.intent.id.key()))
        };
        self.index.services().into_iter().filter(concerns).collect()
    }

    /// Lists projects, as far as selectors ask for it.
    async fn list<C: CloudRun>(
        &mut self,
        cloud: &C,
        projects: Vec<Arc<str>>,
    ) -> anyhow::Result<()> {
        let bar = progress("listing projects", projects.len());
        let wanted: Vec<(Arc<str>, Vec<Scope>)> = projects
            .into_iter()
            .map(|p| (p.clone(), self.index.scopes(&p)))
            .filter(|(_, s)| !s.is_empty())
            .collect();
        let listings: Vec<_> = futures::stream::iter(wanted)
            .map(|(project, scopes)| async move {
                let mut whole = Listing::default();
                for scope in &scopes {
                    match list_services(cloud, &project, scope).await {
                        Ok(part) => {
                            whole.services.extend(part.services);
                            whole.unreachable.extend(part.unreachable);
                        }
                        Err(fault) => return (project, Err(fault)),
                    }
                }
                (project, Ok(whole))
            })
            .buffer_unordered(16)
            .inspect(|_| bar.inc(1))
            .collect()
            .await;
        bar.finish_and_clear();
        for (project, result) in listings {
            if let Err(fault) = &result
                && is_cut_off(fault)
            {
                let why = format!("cannot list the services of {project}");
                return Err(anyhow::Error::from(fault.clone()).context(why));
            }
            self.index.apply_listing(&project, 1, result);
        }
        Ok(())
    }

    /// How far a selector reaches is known once everything that it found was read.
    fn settle_reach(&mut self) {
        for (service, live) in &self.live {
            let inputs = PlanInputs::of(service, &self.index);
            let views = live
                .as_ref()
                .map(|live| plan::views(&inputs.input(live, &self.settings, self.now)));
            for (place, claim) in inputs.claims.iter().enumerate() {
                let intent = &claim.intent;
                let result = match &views {
                    Ok(views) => {
                        Ok(views
                            .get(place)
                            .map_or_else(Findings::default, |view| Findings {
                                missing: view.missing.iter().collect(),
                                unexpected: view.unexpected.iter().collect(),
                                ..Findings::default()
                            }))
                    }
                    Err(fault) => Err((*fault).clone()),
                };
                let observation = Observation {
                    generation: intent.generation,
                    requested_at: intent.requested_at.clone(),
                    result,
                    changed_at: None,
                };
                self.index.observe(&intent.id.key(), service, observation);
            }
        }
    }

    /// Whether something could not be read for want of a permission.
    pub fn is_refused(&self) -> bool {
        let mut faults = self.live.values().filter_map(|l| l.as_ref().err());
        faults.any(|fault| fault.class == FaultClass::PermissionDenied)
    }

    /// The plan of a service that could be read.
    pub fn plan(&self, service: &RunService) -> Option<Planned<'_>> {
        let live = self.live.get(service)?.as_ref().ok()?;
        let inputs = PlanInputs::of(service, &self.index);
        let plan = plan::plan(&inputs.input(live, &self.settings, self.now));
        Some(Planned { inputs, live, plan })
    }
}
