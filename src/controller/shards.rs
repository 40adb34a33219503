//! What changes when a shard comes here, and when it goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{Controller, Priority};
use crate::{
    api::BUDGETS,
    cloudrun::CloudRun,
    fault::Fault,
    iam::RunService,
    intent::PolicyKey,
    leader::{InFlightGuard, Note},
};

impl<C: CloudRun> Controller<C> {
    fn taken(&self) -> Vec<Option<u64>> {
        self.taken.with(|t| t.clone())
    }

    /// Whether a project is worked on here: its shard is held, stays, and was taken up.
    pub(super) fn works_on(&self, project: &str) -> bool {
        let shard = self.shards.of(project);
        let term = self.shards.terms().get(shard).copied().flatten();
        term.is_some() && self.taken.with(|t| t.get(shard).copied().flatten()) == term
    }

    /// What is said on the Lease of a shard: the budgets of its projects.
    pub fn lease_note(self: Arc<Self>) -> Note
    where
        C: 'static,
    {
        Note(Arc::new(move |shard| {
            let ours = |project: &str| self.shards.of(project) == shard;
            let report = self.cloud.budgets().report(&ours);
            let text = serde_json::to_string(&report).unwrap_or_default();
            BTreeMap::from([(BUDGETS.to_owned(), text)])
        }))
    }

    /// Whether anything is worked on here.
    pub(super) fn takes_part(&self) -> bool {
        self.taken.with(|t| t.iter().any(Option::is_some)) && self.shards.holds_any()
    }

    /// Begins a piece of work on a project, if it is worked on here.
    pub(super) fn enter(&self, project: &str) -> Option<InFlightGuard> {
        if self.works_on(project) {
            self.shards.enter(project)
        } else {
            None
        }
    }

    /// Asks for those of the services that are worked on here. What is not will be asked for by who
    /// takes it up.
    pub(super) fn ask<'a>(
        &self,
        services: impl IntoIterator<Item = &'a RunService>,
        priority: Priority,
    ) {
        let ours: Vec<&RunService> = services
            .into_iter()
            .filter(|s| self.works_on(&s.project))
            .collect();
        self.queue.add_all(ours, priority);
    }

    /// Takes up what the election brings, and lets go of what it takes.
    pub(super) async fn follow_shards(self: Arc<Self>) {
        let mut changes = self.shards.changes();
        loop {
            changes.borrow_and_update();
            let settled = self.is_synced() && self.settle_shards().await;
            // Without word of a change, as when a Lease ran out between two elections.
            let wait = if settled {
                Duration::from_millis(500)
            } else {
                Duration::from_millis(20)
            };
            tokio::select! {
                biased;
                _ = changes.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// False: something could not be done, and is to be tried again.
    async fn settle_shards(&self) -> bool {
        let terms = self.shards.terms();
        let before = self.taken();
        let differ = |shard: &usize| terms.get(*shard) != before.get(*shard);
        let changed: BTreeSet<usize> = (0..terms.len()).filter(differ).collect();
        if changed.is_empty() {
            return true;
        }
        self.taken.with(|taken| {
            for (_, taken) in taken
                .iter_mut()
                .enumerate()
                .filter(|(shard, _)| changed.contains(shard))
            {
                *taken = None;
            }
        });
        self.let_go(&changed);
        let gained: BTreeSet<usize> = changed
            .into_iter()
            .filter(|s| terms.get(*s).copied().flatten().is_some())
            .collect();
        if gained.is_empty() {
            return true;
        }
        if let Err(fault) = self.recover().await {
            tracing::warn!(%fault, "what was left from before could not be read; it is tried again");
            tokio::time::sleep(Duration::from_secs(1)).await;
            return false;
        }
        for shard in &gained {
            self.taken.with(|taken| {
                if let Some(taken) = taken.get_mut(*shard) {
                    *taken = terms.get(*shard).copied().flatten();
                }
            });
            self.metrics.audited(*shard, self.now());
        }
        self.take_up(&gained);
        true
    }

    /// Brings back what must survive a change of the replica that works on shards: the state of the
    /// circuit breaker. What was corrected lately is in the ledgers.
    ///
    /// # Errors
    /// Those of the Kubernetes API; then no work may begin.
    async fn recover(&self) -> Result<(), Fault> {
        let circuit = self.cluster.circuit_mark().await?;
        let now = self.now();
        let corrections: Vec<_> = self.index.with(|i| {
            i.ledgers()
                .corrections()
                .map(|(s, at)| (s.clone(), at))
                .collect()
        });
        for (service, at) in corrections {
            self.breaker.remember(&service, [at], now);
        }
        if let Some(mark) = circuit {
            self.breaker.reopen(mark.since, now);
        }
        Ok(())
    }

    /// Forgets what was seen of shards: somebody else may change all of it from now on.
    fn let_go(&self, shards: &BTreeSet<usize>) {
        let project = |project: &str| shards.contains(&self.shards.of(project));
        let service = |service: &RunService| project(&service.project);
        self.index.with(|i| i.let_go(project));
        self.memories.let_go(service);
        self.change_log.let_go(service);
        self.breaker.let_go(service);
        self.audit_events.let_go(project);
        self.listings.let_go(project);
        self.queue.let_go(service);
    }

    /// Asks for everything that there is to do in shards. What was declared while nobody was there
    /// goes before what only has to be resynced; grants of policies that name their service no more
    /// are reconciled too.
    fn take_up(&self, shards: &BTreeSet<usize>) {
        let among = |project: &str| shards.contains(&self.shards.of(project));
        let (mut known, mut news, mut lists) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut rollbacks = BTreeSet::new();
        self.index.with(|index| {
            for (key, record) in index
                .policies()
                .iter()
                .filter(|(_, r)| among(&r.intent.project))
            {
                let intent = &record.intent;
                let status = record.status().get();
                let is_reported = status.observed_generation == Some(intent.generation)
                    && status.last_handled_requested_at.as_deref()
                        == intent.requested_at.as_deref();
                let is_calm = is_reported && !intent.deleting;
                let into = if is_calm { &mut known } else { &mut news };
                into.extend(index.services_of(key));
                if !intent.suspended && record.terms().refuse_project(&intent.project).is_none() {
                    lists.insert(intent.project.clone());
                }
                if !intent.rollbacks.is_empty() {
                    rollbacks.insert(key.clone());
                }
                let soon = if intent.deleting {
                    Duration::ZERO
                } else {
                    Duration::from_millis(500)
                };
                self.statuses.add(key, soon);
            }
            known.extend(
                index
                    .left_behind()
                    .into_iter()
                    .filter(|s| among(&s.project)),
            );
        });
        self.queue.add_all(&news, Priority::Declared);
        self.queue.add_all(&known, Priority::Periodic);
        for project in &lists {
            self.listings.soon(project);
        }
        self.rollbacks.load(&rollbacks);
        for agreement in self
            .index
            .with(|i| i.approvals().iter().cloned().collect::<Vec<_>>())
        {
            self.approvals.add(&agreement.key, Duration::from_secs(1));
        }
        let requests: Vec<PolicyKey> = self.index.with(|i| {
            let all = i.requests().iter();
            let ours = all.filter(|(r, _)| among(r.project()));
            ours.map(|(r, _)| r.key.clone()).collect()
        });
        for key in &requests {
            self.requests.add(key, Duration::ZERO);
        }
        self.change_log.recall(shards);
    }

    /// Brings the gauges of the shards up to date.
    pub(super) fn shard_gauges(&self) {
        let mut intervals: BTreeMap<usize, Duration> = BTreeMap::new();
        let projects: Vec<_> = self.index.with(|index| {
            let projects = index.policies().projects();
            projects
                .filter_map(|p| Some((p.clone(), index.shortest_interval(p)?)))
                .collect()
        });
        for (project, interval) in projects {
            let interval = self.interval(&project, interval);
            let shortest = intervals
                .entry(self.shards.of(&project))
                .or_insert(interval);
            *shortest = interval.min(*shortest);
        }
        for (shard, term) in self.shards.terms().into_iter().enumerate() {
            self.metrics
                .shard(shard, term.is_some(), intervals.get(&shard).copied());
        }
    }
}
