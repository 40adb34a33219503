//! What is remembered of the events: whom to expect, what came, and which subscription is silent.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::witness::Witness;
use crate::{
    api::ChangedBy,
    audit::{PolicySet, Trail},
    iam::RunService,
};

/// Reads of one service because of hints: so many at once, and then one in each period.
pub(super) const BURST: u32 = 3;

const PERIOD: Duration = Duration::from_secs(5);

/// Changes that are remembered over all services; the oldest go first.
pub(super) const MAX_REMEMBERED: usize = 20_000;

/// A subscription that cannot be reached for so long is not relied on.
pub(super) const OUTAGE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) witnesses: HashMap<RunService, Witness>,
    pub(super) trails: HashMap<RunService, Trail>,
    /// Services in the order in which they were added to.
    pub(super) order: VecDeque<RunService>,
    /// Reported while the service was worked on: whether that read has seen it is known when it is
    /// over.
    pub(super) parked: HashMap<RunService, Vec<Option<Arc<str>>>>,
    /// When the allowance of each service is whole again.
    pub(super) paced: HashMap<RunService, Instant>,
    /// Of each project a change that an event should report, and until when.
    pub(super) awaited: HashMap<Arc<str>, Instant>,
    /// Projects whose events are missing.
    pub(super) dark: BTreeSet<Arc<str>>,
    /// Subscriptions that cannot be reached, since when and why.
    pub(super) cut: BTreeMap<Arc<str>, (Instant, String)>,
}

pub(super) fn hash(etag: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    etag.hash(&mut hasher);
    hasher.finish()
}

impl State {
    /// When a hint about a service may be followed: `None` for now.
    pub(super) fn pace(&mut self, service: &RunService, now: Instant) -> Option<Instant> {
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

    pub(super) fn remember(&mut self, service: &RunService, set: PolicySet, by: Arc<ChangedBy>) {
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

    pub(super) fn unreachable(&self, now: Instant) -> Option<(&Arc<str>, &str)> {
        self.cut
            .iter()
            .find(|(_, (since, _))| now.duration_since(*since) > OUTAGE)
            .map(|(s, (_, why))| (s, why.as_str()))
    }

    /// Projects in which a change was seen and not reported, since the last time that this was
    /// asked.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<Arc<str>> {
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

    pub(super) fn condition(&self, now: Instant) -> Option<(&'static str, String)> {
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
                "a change in project {first}{tail} was found by polling and no audit event was received for it: check the log sink and its topic; services there are polled at spec.interval"
            ),
        ))
    }

    /// Whether what happens in a project is reported.
    pub(super) fn relied_on(&self, project: &str, now: Instant) -> bool {
        self.unreachable(now).is_none() && !self.dark.contains(project)
    }
}
