//! Audit events at work: each is a hint that brings a service up at once, and a witness of who made
//! a drift. And whether they can be relied on: while they can, periodic resyncs are only the safety
//! net.

mod state;
mod witness;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::time::Instant;

use super::{
    Controller, Priority, next_slot,
    owned::{Owned, Rank},
    spread,
};
use crate::{
    api::ChangedBy,
    audit::{self, Drift, Kind, PolicySet},
    cloudrun::CloudRun,
    iam::{Grant, Policy, RunService},
    index::PlanInputs,
    ledger::Pending,
    plan::{View, claim},
    subscription::{Answer, MessageHandler},
};

use state::{State, hash};
use witness::{VERSIONS, Witness};

/// How audit events are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventOptions {
    /// Periodic resyncs are at least this far apart where events can be relied on.
    pub interval: Duration,
    /// A change that was read and that no event reported within so long means that events are
    /// missing.
    pub patience: Duration,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageResult {
    /// It brought a service up, or a listing.
    Hint,
    /// It reports a version that was read already, as those of our own writes do.
    Known,
    /// About a service that no policy means, a call that failed, or something else altogether.
    Foreign,
    /// It is no log entry.
    Malformed,
    /// Another replica works on that project, or is about to: the message is to be given back.
    Elsewhere,
}

impl MessageResult {
    pub const ALL: [Self; 5] = [
        Self::Hint,
        Self::Known,
        Self::Foreign,
        Self::Malformed,
        Self::Elsewhere,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::Hint => "hint",
            Self::Known => "known",
            Self::Foreign => "foreign",
            Self::Malformed => "malformed",
            Self::Elsewhere => "elsewhere",
        }
    }
}

/// What audit events reported, and whether they can be relied on.
#[derive(Debug)]
pub(super) struct AuditEvents {
    state: Owned<State>,
}

impl Default for AuditEvents {
    fn default() -> Self {
        Self {
            state: Owned::new(Rank::AuditEvents, State::default()),
        }
    }
}

impl AuditEvents {
    /// Forgets projects that somebody else works on from now on.
    pub fn let_go(&self, among: impl Fn(&str) -> bool) {
        self.state.with(|s| {
            s.awaited.retain(|p, _| !among(p));
            s.dark.retain(|p| !among(p));
            s.parked.retain(|service, _| !among(&service.project));
            s.witnesses.retain(|service, _| !among(&service.project));
        });
    }

    /// Forgets a service that nobody is about any more.
    pub fn forget(&self, service: &RunService) {
        self.state.with(|s| {
            s.witnesses.remove(service);
            s.paced.remove(service);
        });
    }
}

impl<C: CloudRun> Controller<C> {
    /// Takes in one message. It never says what is real: the most that it causes is a read, and few
    /// of those.
    pub fn handle_message(&self, message: &[u8]) -> MessageResult {
        let result = match audit::parse(message) {
            Ok(Some(entry)) => self.heed(&entry),
            Ok(None) => MessageResult::Foreign,
            Err(why) => {
                tracing::debug!(%why, "a message is no log entry");
                MessageResult::Malformed
            }
        };
        self.metrics.message_handled(result.label());
        result
    }

    fn heed(&self, entry: &audit::Entry) -> MessageResult {
        let targets = self.index.with(|index| match &entry.region {
            Some(region) => {
                let service = RunService::new(&*entry.project, &**region, &*entry.service);
                BTreeSet::from_iter(index.means(&service).then_some(service))
            }
            None => index.named(&entry.project, &entry.service),
        });
        let about = !targets.is_empty()
            || self
                .index
                .with(|i| i.policies().of_project(&entry.project).next().is_some());
        let lists = entry.kind == Kind::ServiceChanged;
        if !about || (targets.is_empty() && !lists) {
            return MessageResult::Foreign;
        }
        if !self.works_on(&entry.project) {
            return MessageResult::Elsewhere;
        }
        if lists {
            // Labels, exposure and whether it is there at all come with the listing.
            self.listings.soon(&entry.project);
        }
        let mut result = if lists {
            MessageResult::Hint
        } else {
            MessageResult::Known
        };
        for service in &targets {
            if self.heed_for(service, entry) {
                result = MessageResult::Hint;
            }
        }
        result
    }

    /// False: there was no need to read.
    fn heed_for(&self, service: &RunService, entry: &audit::Entry) -> bool {
        let etag = match &entry.kind {
            Kind::PolicySet(set) => {
                self.audit_events
                    .state
                    .with(|s| s.remember(service, set.clone(), entry.by.clone()));
                set.etag_after.clone()
            }
            Kind::ServiceChanged => None,
        };
        if self.queue.is_running(service) {
            // Whether the read that is under way has seen it is known when that is over.
            self.audit_events
                .state
                .with(|s| s.parked.entry(service.clone()).or_default().push(etag));
            return true;
        }
        self.follow(service, etag.as_deref())
    }

    /// Brings a service up because of a hint, unless it reports what was read. False: there was no
    /// need.
    fn follow(&self, service: &RunService, etag: Option<&str>) -> bool {
        let (known, puzzled) = self.audit_events.state.with(|s| {
            let witness = s.witnesses.get(service);
            let read = |w: &Witness| etag.is_some_and(|e| w.versions.contains(&hash(e)));
            (
                witness.is_some_and(read),
                witness.is_some_and(|w| !w.unexplained.is_empty()),
            )
        });
        if known {
            self.proven(&service.project);
            if !puzzled {
                return false;
            }
        }
        match self
            .audit_events
            .state
            .with(|s| s.pace(service, Instant::now()))
        {
            None => self.queue.add(service, Priority::Drift),
            Some(at) => self.queue.add_at(service, Priority::Drift, at),
        }
        true
    }

    /// After a reconcile: what was reported meanwhile and was not seen by it brings the service up
    /// again.
    pub(super) fn unpark(&self, service: &RunService) {
        for etag in self
            .audit_events
            .state
            .with(|s| s.parked.remove(service))
            .unwrap_or_default()
        {
            self.follow(service, etag.as_deref());
        }
    }

    /// Takes down that a version of a policy was read.
    pub(super) fn saw(&self, service: &RunService, policy: &Policy) {
        if self.options.events.is_none() {
            return;
        }
        let version = hash(&policy.etag.0);
        self.audit_events.state.with(|s| {
            let versions = &mut s.witnesses.entry(service.clone()).or_default().versions;
            if !versions.contains(&version) {
                if versions.len() == VERSIONS {
                    versions.pop_front();
                }
                versions.push_back(version);
            }
        });
    }

    /// Our own write should be reported as well: a project in which it is not has no sink, or one
    /// that is broken.
    pub(super) fn expect_event(&self, project: &Arc<str>) {
        let Some(options) = self.options.events else {
            return;
        };
        let until = Instant::now() + options.patience;
        self.audit_events.state.with(|s| {
            s.awaited.entry(project.clone()).or_insert(until);
        });
    }

    /// A write of our own was seen to its end: what it changed is known to be ours before the log
    /// reports it, and whoever that names. Where somebody else wrote in between, the version is not
    /// ours.
    pub(super) fn wrote(&self, service: &RunService, pending: &Pending, live: Option<&Policy>) {
        let Some(live) = live.filter(|_| self.options.events.is_some()) else {
            return;
        };
        let real = live.grants();
        let kept = pending.before.difference(&pending.removed);
        let expected: BTreeSet<&Grant> = kept.chain(&pending.added).collect();
        if pending.before_omitted > 0 || !real.iter().eq(expected) {
            return;
        }
        let by = ChangedBy::operator(&pending.name, MicroTime(pending.at));
        let set = PolicySet {
            etag_before: Some(pending.etag_before.as_str().into()),
            etag_after: Some(live.etag.0.as_str().into()),
            after: Some(real),
            delta: Some((pending.added.clone(), pending.removed.clone())),
        };
        self.audit_events
            .state
            .with(|s| s.remember(service, set, Arc::new(by)));
    }

    /// An event reported a version that was really read: events of that project come in.
    fn proven(&self, project: &Arc<str>) {
        let was_dark = self.audit_events.state.with(|s| {
            s.awaited.remove(project);
            s.dark.remove(project)
        });
        if was_dark {
            tracing::info!(%project, "audit events come in again; intervals stretch");
        }
    }

    /// Who made what differs from the declarations.
    pub(super) fn attribute(
        &self,
        inputs: &PlanInputs,
        live: &Policy,
        views: &[View],
    ) -> BTreeMap<Grant, Arc<ChangedBy>> {
        if self.options.events.is_none() {
            return BTreeMap::new();
        }
        let service = &inputs.service;
        let mut differs = Drift::default();
        for view in views {
            differs.missing.extend(view.missing.iter().cloned());
            differs.unexpected.extend(view.unexpected.iter().cloned());
        }
        let by = claim::fingerprint(&inputs.claims);
        let (is_logged, blame, puzzled) = self.audit_events.state.with(|s| {
            let witness = s.witnesses.entry(service.clone()).or_default();
            let trail = s.trails.get(service);
            witness.explain(inputs, by, live, &differs, trail);
            (
                trail.is_some_and(|t| t.has(&live.etag.0)),
                witness.blame.clone(),
                !witness.unexplained.is_empty(),
            )
        });
        if is_logged {
            self.proven(&service.project);
        } else if puzzled {
            self.expect_event(&service.project);
        }
        blame
    }

    /// How far apart periodic resyncs are: as declared, or the safety net where events say what
    /// happens.
    pub(super) fn interval(&self, project: &str, declared: Duration) -> Duration {
        let now = Instant::now();
        match self.options.events {
            Some(options) if self.audit_events.state.with(|s| s.relied_on(project, now)) => {
                declared.max(options.interval)
            }
            _ => declared,
        }
    }

    /// How a subscription fares: `Err` says why it cannot be read now.
    pub fn subscription(&self, name: &str, state: Result<(), String>) {
        let now = Instant::now();
        self.audit_events.state.with(|s| match state {
            Ok(()) => {
                s.cut.remove(name);
            }
            Err(why) => {
                s.cut
                    .entry(name.into())
                    .or_insert_with(|| (now, String::new()))
                    .1 = why
            }
        });
    }

    /// Why events cannot be relied on: a reason of a condition, and in words.
    pub fn events_condition(&self) -> Option<(&'static str, String)> {
        self.audit_events
            .state
            .with(|s| s.condition(Instant::now()))
    }

    /// Watches over the events: what is overdue, and what that means for the intervals.
    pub(super) async fn watch_events(self: Arc<Self>) {
        if self.options.events.is_none() {
            return std::future::pending().await;
        }
        let mut cut = false;
        // A mark that an earlier process left is not known of.
        let mut marked = Some("");
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = Instant::now();
            let (lost, is_cut) = self
                .audit_events
                .state
                .with(|s| (s.overdue(now), s.unreachable(now).is_some()));
            for project in &lost {
                tracing::warn!(%project, "found a change by polling for which no audit event was received; falling back to spec.interval");
                self.shrink(&|p| p == &**project);
            }
            if is_cut && !cut {
                tracing::warn!("a subscription of audit events cannot be read; intervals shrink");
                self.shrink(&|_| true);
            }
            cut = is_cut;
            self.mark_events(&mut marked).await;
        }
    }

    /// Tells in the store whether the events can be relied on, if that is another thing than it
    /// says.
    async fn mark_events(&self, marked: &mut Option<&'static str>) {
        let condition = self.events_condition();
        self.metrics
            .events
            .events_reliable
            .set(i64::from(condition.is_none()));
        let reason = condition.as_ref().map(|(reason, _)| *reason);
        if *marked == Some("") && self.shards.holds_any() && !self.shards.holds_shard(0) {
            // It may be another replica's.
            *marked = None;
        }
        if reason == *marked || !self.shards.holds_any() {
            return;
        }
        let result = match &condition {
            Some((reason, message)) => self.cluster.mark_events(reason, message, self.now()).await,
            None => self.cluster.unmark_events().await,
        };
        match result {
            Ok(()) => *marked = reason,
            Err(fault) => {
                tracing::debug!(%fault, "the condition of the events could not be marked; it is tried again");
            }
        }
    }

    /// Brings forward resyncs that were set for an interval that does not hold any more.
    fn shrink(&self, among: &dyn Fn(&str) -> bool) {
        let (services, projects) = self.index.with(|index| {
            let projects = index.policies().projects().filter(|p| among(p));
            let projects = projects.filter_map(|p| Some((p.clone(), index.project_interval(p)?)));
            (index.intervals(), projects.collect::<Vec<_>>())
        });
        let ours = |p: &str| among(p) && self.works_on(p);
        for (service, interval) in services.into_iter().filter(|(s, _)| ours(&s.project)) {
            let wait = next_slot(
                self.elapsed(),
                interval,
                spread(self.options.seed, &service),
            );
            self.queue
                .add_at(&service, Priority::Periodic, Instant::now() + wait);
        }
        for (project, interval) in projects.into_iter().filter(|(p, _)| ours(p)) {
            let wait = next_slot(
                self.elapsed(),
                interval,
                spread(self.options.seed, &project),
            );
            self.listings.no_later(&project, Instant::now() + wait);
        }
    }
}

impl<C: CloudRun> MessageHandler for Controller<C> {
    fn listens(&self) -> bool {
        self.is_synced() && self.takes_part()
    }

    fn handle(&self, data: &[u8]) -> Answer {
        if Controller::handle_message(self, data) == MessageResult::Elsewhere {
            Answer::NotOurs
        } else {
            Answer::Taken
        }
    }

    fn on_state(&self, subscription: &str, state: Result<(), String>) {
        self.subscription(subscription, state);
    }
}

#[cfg(test)]
mod tests;
