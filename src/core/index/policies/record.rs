//! What is kept of one policy.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use lz4_flex::block;

use crate::{
    api::{FINALIZER, InvokerPolicy, InvokerPolicyStatus, StatusSummary},
    iam::RunService,
    index::{RollbackState, selector_impact::Reach},
    intent::{Agreement, Intent, Terms},
    status::{DeniedTarget, Observation},
};

/// One policy and what is known about it.
#[derive(Debug)]
pub struct Record {
    pub intent: Arc<Intent>,
    /// As the API server last had it.
    pub(super) status: SerializedStatus,
    /// What the policy's metric series show.
    pub(super) gauges: Gauges,
    /// What was last observed on each service.
    pub(super) observations: HashMap<RunService, Box<Observation>>,
    /// Services that it means now and may touch: named, and selected from the last listing.
    pub(super) targets: BTreeSet<RunService>,
    /// What its namespace has to satisfy.
    pub(super) terms: Arc<Terms>,
    /// What it names and may not touch.
    pub(super) denied: Box<[DeniedTarget]>,
    /// Services that its selectors match and that it may not touch.
    pub(super) outside: usize,
    /// Services for which somebody agreed that a discovery may reach them, and by which approval
    /// where it was one.
    pub(in crate::index) released: HashMap<RunService, Option<Arc<Agreement>>>,
    /// How far its selectors reach, once somebody asked.
    pub(in crate::index) reach: Mutex<Option<Box<Reach>>>,
    pub(super) rollback: RollbackState,
    /// Name of the last record of a change for it.
    pub(super) last_change: Option<Arc<str>>,
    pub(super) has_finalizer: bool,
    /// The object in the store cannot be read any more, and this is why; what was known of it
    /// stands still.
    pub(super) unreadable: Option<Arc<str>>,
    /// When this state of the policy was first seen, for the time to convergence.
    declared_at: Duration,
}

/// A status as it is in the store, as compressed JSON: ten thousand of them are kept, they are much
/// alike, and hardly one is ever read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SerializedStatus(Box<[u8]>);

/// What statuses have in common. Of another one less is gained, and nothing lost: it is compressed
/// and read back with the same text within one process.
const TYPICAL_STATUS: &[u8] = include_bytes!("typical-status.json");

impl SerializedStatus {
    pub fn of(status: &InvokerPolicyStatus) -> Self {
        let json = serde_json::to_vec(status).unwrap_or_default();
        Self(block::compress_prepend_size_with_dict(&json, TYPICAL_STATUS).into())
    }

    pub fn get(&self) -> InvokerPolicyStatus {
        let json = block::decompress_size_prepended_with_dict(&self.0, TYPICAL_STATUS);
        json.ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .unwrap_or_default()
    }

    /// Bytes that it takes.
    pub fn size(&self) -> usize {
        self.0.len()
    }
}

/// What the operator itself wrote into the object of a policy.
pub(super) struct Stored {
    pub(super) status: SerializedStatus,
    pub(super) gauges: Gauges,
    pub(super) has_finalizer: bool,
}

impl Stored {
    pub(super) fn of(policy: &InvokerPolicy) -> Self {
        let status = policy.status.clone().unwrap_or_default();
        let mut finalizers = policy.metadata.finalizers.iter().flatten();
        Self {
            status: SerializedStatus::of(&status),
            gauges: Gauges::of(&status),
            has_finalizer: finalizers.any(|f| f == FINALIZER),
        }
    }
}

/// The numbers behind the metric series of a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    pub ready: bool,
    pub missing: i64,
    pub unexpected: i64,
    /// Somebody whom no policy lists may invoke by a grant above the services.
    pub bypassed: bool,
}

impl Gauges {
    pub fn of(status: &InvokerPolicyStatus) -> Self {
        let is_true = |type_: &str| {
            let mut conditions = status.conditions.iter();
            conditions.any(|c| c.type_ == type_ && c.status == "True")
        };
        let summary = status.summary.as_ref();
        let count = |f: fn(&StatusSummary) -> i64| summary.map_or(0, f);
        Self {
            ready: is_true("Ready"),
            bypassed: is_true("Bypassed"),
            missing: count(|s| s.missing),
            unexpected: count(|s| s.unexpected),
        }
    }
}

impl Record {
    pub(super) fn new(intent: Intent, stored: Stored, terms: Arc<Terms>, now: Duration) -> Self {
        Self {
            intent: Arc::new(intent),
            status: stored.status,
            gauges: stored.gauges,
            observations: HashMap::new(),
            targets: BTreeSet::new(),
            terms,
            denied: [].into(),
            outside: 0,
            released: HashMap::new(),
            reach: Mutex::default(),
            rollback: RollbackState::None,
            last_change: None,
            has_finalizer: stored.has_finalizer,
            unreadable: None,
            declared_at: now,
        }
    }

    /// The object again, its spec as before. Whether its status is another one.
    pub(super) fn refresh(&mut self, stored: Stored) -> bool {
        self.has_finalizer = stored.has_finalizer;
        if self.status == stored.status {
            return false;
        }
        self.status = stored.status;
        // A replica that does not lead shows what the leader found.
        self.gauges = stored.gauges;
        true
    }

    /// Takes over what was known of the policy in its state before.
    pub(super) fn inherit(&mut self, mut previous: Option<Self>) {
        let asked = &self.intent.rollbacks;
        self.rollback = match &mut previous {
            Some(p) if p.intent.rollbacks == *asked => std::mem::take(&mut p.rollback),
            _ if asked.is_empty() => RollbackState::None,
            _ => RollbackState::Loading,
        };
        if let Some(previous) = previous {
            self.observations = previous.observations;
            self.released = previous.released;
            // An approval is for one spec; by whatever else it was agreed, that is as it was.
            if previous.intent.spec_digest != self.intent.spec_digest {
                self.released.retain(|_, by| by.is_none());
            }
            self.last_change = previous.last_change;
        }
    }

    pub fn status(&self) -> &SerializedStatus {
        &self.status
    }
    pub fn gauges(&self) -> Gauges {
        self.gauges
    }
    pub fn targets(&self) -> &BTreeSet<RunService> {
        &self.targets
    }
    pub fn terms(&self) -> &Arc<Terms> {
        &self.terms
    }
    pub fn has_finalizer(&self) -> bool {
        self.has_finalizer
    }
    pub fn declared_at(&self) -> Duration {
        self.declared_at
    }
    pub fn observations(&self) -> impl Iterator<Item = (&RunService, &Observation)> {
        self.observations.iter().map(|(s, o)| (s, &**o))
    }
    pub fn observation(&self, service: &RunService) -> Option<&Observation> {
        self.observations.get(service).map(|o| &**o)
    }
    /// Whether a project may be listed for its sake.
    pub fn may_list(&self, project: &str) -> bool {
        self.terms.frozen().is_none() && self.terms.refuse_project(project).is_none()
    }
    /// What it names and may not touch.
    pub fn denied_targets(&self) -> &[DeniedTarget] {
        &self.denied
    }
    /// How many of its targets, or selectors, a guardrail denies.
    pub fn denied(&self) -> usize {
        self.denied.len()
    }
    /// How many services its selectors match that it may not touch.
    pub fn outside(&self) -> usize {
        self.outside
    }
    pub fn last_change(&self) -> Option<&str> {
        self.last_change.as_deref()
    }
    pub fn is_readable(&self) -> bool {
        self.unreadable.is_none()
    }
    /// What stands in for the spec on some services.
    pub fn rollbacks(&self) -> impl Iterator<Item = (&RunService, &Arc<crate::plan::Rollback>)> {
        self.rollback.all()
    }
}
