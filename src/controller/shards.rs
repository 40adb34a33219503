//! What changes when a shard comes here, and when it goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use super::Controller;
use crate::{
    cloudrun::{CloudRun, Priority},
    iam::RunService,
    leader::InFlightGuard,
};

impl<C: CloudRun> Controller<C> {
    fn taken(&self) -> MutexGuard<'_, Vec<Option<u64>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a project is worked on here: its shard is held, stays, and was taken up.
    pub(super) fn works_on(&self, project: &str) -> bool {
        let shard = self.shards.of(project);
        let term = self.shards.terms().get(shard).copied().flatten();
        term.is_some() && self.taken().get(shard).copied().flatten() == term
    }

    /// Whether anything is worked on here.
    pub(super) fn takes_part(&self) -> bool {
        self.taken().iter().any(Option::is_some) && self.shards.holds_any()
    }

    /// Begins a piece of work on a project, if it is worked on here.
    pub(super) fn enter(&self, project: &str) -> Option<InFlightGuard> {
        if self.works_on(project) { self.shards.enter(project) } else { None }
    }

    /// Asks for those of the services that are worked on here. What is not will be asked for by who takes it up.
    pub(super) fn ask<'a>(&self, services: impl IntoIterator<Item = &'a RunService>, lane: Priority) {
        self.queue.add_all(services.into_iter().filter(|s| self.works_on(&s.project)), lane);
    }

    /// Takes up what the election brings, and lets go of what it takes.
    pub(super) async fn follow_shards(self: Arc<Self>) {
        let mut changes = self.shards.changes();
        loop {
            changes.borrow_and_update();
            let settled = self.is_synced() && self.settle_shards().await;
            // Without word of a change, as when a Lease ran out between two rounds of the election.
            let wait = if settled { Duration::from_millis(500) } else { Duration::from_millis(20) };
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
        let before = self.taken().clone();
        let differ = |shard: &usize| terms.get(*shard) != before.get(*shard);
        let changed: BTreeSet<usize> = (0..terms.len()).filter(differ).collect();
        if changed.is_empty() {
            return true;
        }
        for shard in &changed {
            if let Some(taken) = self.taken().get_mut(*shard) {
                *taken = None;
            }
        }
        self.let_go(&changed);
        let gained: BTreeSet<usize> =
            changed.into_iter().filter(|s| terms.get(*s).copied().flatten().is_some()).collect();
        if gained.is_empty() {
            return true;
        }
        if let Err(fault) = self.recover(&gained).await {
            tracing::warn!(%fault, "what was left from before could not be read; it is tried again");
            tokio::time::sleep(Duration::from_secs(1)).await;
            return false;
        }
        for shard in &gained {
            if let Some(taken) = self.taken().get_mut(*shard) {
                *taken = terms.get(*shard).copied().flatten();
            }
            self.metrics.audited(*shard, self.now());
        }
        self.take_up(&gained);
        true
    }

    /// Forgets what was seen of shards: somebody else may change all of it from now on.
    fn let_go(&self, shards: &BTreeSet<usize>) {
        let among = |project: &str| shards.contains(&self.shards.of(project));
        self.events.let_go(among);
        self.index().let_go(among);
        self.kept().retain(|s, _| !among(&s.project));
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).retain(|s, _| !among(&s.project));
        self.open_changes.lock().unwrap_or_else(PoisonError::into_inner).retain(|s, _| !among(&s.project));
        self.waiting_for_circuit.lock().unwrap_or_else(PoisonError::into_inner).retain(|s| !among(&s.project));
    }

    /// Asks for everything that there is to do in shards. What was declared while nobody was there goes before what only
    /// has to be looked at again; grants of policies that name their service no more are looked at too.
    fn take_up(&self, shards: &BTreeSet<usize>) {
        let among = |project: &str| shards.contains(&self.shards.of(project));
        let index = self.index();
        let (mut known, mut news) = (BTreeSet::new(), BTreeSet::new());
        let mut lists = BTreeSet::new();
        for (key, record) in index.policies().filter(|(_, r)| among(&r.intent.project)) {
            let intent = &record.intent;
            let status = record.status.get();
            let told = status.observed_generation == Some(intent.generation)
                && status.last_handled_requested_at.as_deref() == intent.requested_at.as_deref();
            let calm = told && !intent.deleting;
            let into = if calm { &mut known } else { &mut news };
            into.extend(record.services.iter().cloned());
            into.extend(index.owned_by(&intent.id.uid));
            if !intent.suspended && record.terms.refuse_project(&intent.project).is_none() {
                lists.insert((intent.project.clone(), if calm { Priority::Periodic } else { Priority::Declared }));
            }
            self.reports.add(key, if intent.deleting { Duration::ZERO } else { Duration::from_millis(500) });
        }
        known.extend(index.orphans().into_iter().filter(|s| among(&s.project)));
        drop(index);
        self.queue.add_all(&news, Priority::Declared);
        self.queue.add_all(&known, Priority::Periodic);
        for (project, lane) in lists {
            self.lists.now(&project, lane);
        }
    }

    /// Brings the gauges of the shards up to date.
    pub(super) fn shard_gauges(&self) {
        let mut intervals: BTreeMap<usize, Duration> = BTreeMap::new();
        for (_, record) in self.index().policies() {
            let interval = self.interval(&record.intent.project, record.intent.interval);
            let shortest = intervals.entry(self.shards.of(&record.intent.project)).or_insert(interval);
            *shortest = interval.min(*shortest);
        }
        for (shard, term) in self.shards.terms().into_iter().enumerate() {
            self.metrics.shard(shard, term.is_some(), intervals.get(&shard).copied());
        }
    }
}
