//! Audit events at work: each is a hint that brings a service up at once, and a witness of who made
//! a drift. And whether they can be relied on: while they can, periodic resyncs are only the safety
//! net.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
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
    audit::{self, Drift, Kind, PolicySet, Trail},
    cloudrun::CloudRun,
    iam::{Grant, Policy, RunService},
    index::PlanInputs,
    ledger::{Ledger, Pending},
    plan::{View, claim},
    subscription::{Answer, MessageHandler},
};

/// Reads of one service because of hints: so many at once, and then one in each period.
const BURST: u32 = 3;
const PERIOD: Duration = Duration::from_secs(5);
/// Changes that are remembered over all services; the oldest go first.
const MAX_REMEMBERED: usize = 20_000;
/// A subscription that cannot be reached for so long is not relied on.
const OUTAGE: Duration = Duration::from_secs(30);
/// Versions of a policy that are remembered as read.
const VERSIONS: usize = 4;

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

/// What is kept of a service for the sake of events.
#[derive(Debug, Default)]
struct Witness {
    /// Hashes of the versions that were read last.
    versions: VecDeque<u64>,
    /// The version after which everything that differs is to be explained.
    base: Option<Arc<str>>,
    unexplained: BTreeSet<Grant>,
    /// Who made what differs, or what was corrected lately.
    blame: BTreeMap<Grant, Arc<ChangedBy>>,
}

impl Witness {
    /// Takes in who made what was corrected lately, as the ledger has it.
    fn recall(&mut self, ledger: &Ledger) {
        for (grant, corrected) in &ledger.corrections {
            if let Some(by) = &corrected.by {
                let known = self.blame.entry(grant.clone());
                known.or_insert_with(|| by.clone());
            }
        }
    }

    /// Takes in who made what differs now, as far as the log proves it. `by`: the fingerprint of
    /// the declarations.
    fn explain(
        &mut self,
        inputs: &PlanInputs,
        by: u64,
        live: &Policy,
        differs: &Drift,
        trail: Option<&Trail>,
    ) {
        self.recall(&inputs.ledger);
        let open = |g: &&Grant| {
            !self.blame.contains_key(*g)
                && (self.unexplained.contains(*g) || inputs.drift.is_drift(by, g))
        };
        let drift = Drift {
            missing: differs.missing.iter().filter(open).cloned().collect(),
            unexpected: differs.unexpected.iter().filter(open).cloned().collect(),
        };
        let blame = trail
            .map(|t| t.blame(live, self.base.as_deref(), &drift))
            .unwrap_or_default();
        // What we took away ourselves, for a guardrail, is no drift and nobody's doing else.
        let own = trail.map(|t| t.own(live, differs)).unwrap_or_default();
        let drifted = drift.missing.iter().chain(&drift.unexpected);
        let unexplained = drifted.filter(|g| !blame.contains_key(*g));
        self.unexplained = unexplained.cloned().collect();
        self.blame.extend(blame);
        self.own_up(own);
        let lately = |g: &Grant| {
            differs.missing.contains(g)
                || differs.unexpected.contains(g)
                || inputs.drift.was_corrected(g)
        };
        self.blame.retain(|g, _| lately(g));
        if self.unexplained.is_empty() {
            self.base = Some(live.etag.0.as_str().into());
        }
    }

    /// Takes in what we did ourselves: the last of it, as a grant is made for one reason and taken
    /// away for another. What somebody else did stays theirs.
    fn own_up(&mut self, own: BTreeMap<Grant, Arc<ChangedBy>>) {
        for (grant, by) in own {
            let known = self.blame.entry(grant).or_insert_with(|| by.clone());
            if known.is_operator() {
                *known = by;
            }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    witnesses: HashMap<RunService, Witness>,
    trails: HashMap<RunService, Trail>,
    /// Services in the order in which they were added to.
    order: VecDeque<RunService>,
    /// Reported while the service was worked on: whether that read has seen it is known when it is
    /// over.
    parked: HashMap<RunService, Vec<Option<Arc<str>>>>,
    /// When the allowance of each service is whole again.
    paced: HashMap<RunService, Instant>,
    /// Of each project a change that an event should report, and until when.
    awaited: HashMap<Arc<str>, Instant>,
    /// Projects whose events are missing.
    dark: BTreeSet<Arc<str>>,
    /// Subscriptions that cannot be reached, since when and why.
    cut: BTreeMap<Arc<str>, (Instant, String)>,
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

fn hash(etag: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    etag.hash(&mut hasher);
    hasher.finish()
}

impl State {
    /// When a hint about a service may be followed: `None` for now.
    fn pace(&mut self, service: &RunService, now: Instant) -> Option<Instant> {
        if self.paced.len() > MAX_REMEMBERED {
            self.paced.retain(|_, whole| *whole > now);
        }
        let whole = self.paced.entry(service.clone()).or_insert(now);
        let ahead = PERIOD * (BURST - 1);
        if *whole > now + ahead {
            return Some(*whole - ahead);
        }
        *whole = (*whole).max(now) + PERIOD;
        None
    }

    fn remember(&mut self, service: &RunService, set: PolicySet, by: Arc<ChangedBy>) {
        if !self.trails.entry(service.clone()).or_default().add(set, by) {
            return;
        }
        self.order.push_back(service.clone());
        while self.order.len() > MAX_REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.trails.remove(&oldest);
            }
        }
    }

    fn unreachable(&self, now: Instant) -> Option<(&Arc<str>, &str)> {
        self.cut
            .iter()
            .find(|(_, (since, _))| now.duration_since(*since) > OUTAGE)
            .map(|(s, (_, why))| (s, why.as_str()))
    }

    /// Projects in which a change was seen and not reported, since the last time that this was
    /// asked.
    fn overdue(&mut self, now: Instant) -> Vec<Arc<str>> {
        let overdue: Vec<Arc<str>> = self
            .awaited
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(p, _)| p.clone())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        for project in &overdue {
            self.awaited.remove(project);
        }
        overdue
            .into_iter()
            .filter(|p| self.dark.insert(p.clone()))
            .collect()
    }

    fn condition(&self, now: Instant) -> Option<(&'static str, String)> {
        if let Some((name, why)) = self.unreachable(now) {
            return Some((
                "SubscriptionUnreachable",
                format!("{name} cannot be read: {why}; services are read at their own intervals"),
            ));
        }
        let first = self.dark.first()?;
        let more = self.dark.len() - 1;
        let tail = if more > 0 {
            format!(" (and {more} more projects)")
        } else {
            String::new()
        };
        Some((
            "EventsMissing",
            format!(
                "a change in project {first}{tail} was seen by reading and no audit event told of it: check the log sink and its topic; services there are read at their own intervals"
            ),
        ))
    }

    /// Whether what happens in a project is reported.
    fn relied_on(&self, project: &str, now: Instant) -> bool {
        self.unreachable(now).is_none() && !self.dark.contains(project)
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
                tracing::warn!(%project, "a change was seen by reading and no audit event told of it; intervals shrink");
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
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_on_one_service_is_followed_at_a_bounded_rate_and_starves_no_other() {
        let mut inner = State::default();
        let (a, b) = (
            RunService::new("p", "r", "a"),
            RunService::new("p", "r", "b"),
        );
        let started = Instant::now();
        let mut followed = 0;
        for _ in 0..6000 {
            followed += u32::from(inner.pace(&a, Instant::now()).is_none());
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        assert_eq!(started.elapsed().as_secs(), 60);
        assert!((12..=BURST + 12).contains(&followed), "{followed}");
        while inner.pace(&a, Instant::now()).is_none() {}
        assert!(
            inner
                .pace(&a, Instant::now())
                .is_some_and(|at| at > Instant::now())
        );
        assert_eq!(inner.pace(&b, Instant::now()), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut inner = State::default();
        let by = Arc::new(ChangedBy {
            principal: "x".into(),
            via: vec![],
            tool: String::new(),
            user_agent: String::new(),
            method: String::new(),
            change: String::new(),
            at: MicroTime(jiff::Timestamp::UNIX_EPOCH),
        });
        for i in 0..MAX_REMEMBERED + 500 {
            let set = PolicySet {
                etag_after: Some(format!("e{i}").into()),
                ..PolicySet::default()
            };
            inner.remember(&RunService::new("p", "r", format!("s{i}")), set, by.clone());
        }
        assert_eq!(
            (inner.trails.len(), inner.order.len()),
            (MAX_REMEMBERED, MAX_REMEMBERED)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_outage_changes_nothing_and_a_long_one_all() {
        let mut inner = State::default();
        inner
            .cut
            .insert("s".into(), (Instant::now(), "refused".into()));
        tokio::time::advance(OUTAGE).await;
        assert!(inner.relied_on("p", Instant::now()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!inner.relied_on("p", Instant::now()));
        inner.cut.clear();
        inner.dark.insert("q".into());
        assert!(inner.relied_on("p", Instant::now()) && !inner.relied_on("q", Instant::now()));
    }
}
