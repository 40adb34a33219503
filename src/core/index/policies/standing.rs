//! How a policy stands: what stops it, what was seen of its services, whether it may be let go, and the status that follows.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;

use super::record::{Gauges, Record, SerializedStatus};
use crate::{
    api::{InvokerChangeSpec, InvokerPolicyStatus, Reason},
    history,
    iam::RunService,
    index::{Index, PolicyKey, RollbackState},
    intent::PolicyId,
    plan::PolicyOnService,
    status::{Observation, StatusInput, compute_status},
};

impl Index {
    /// Takes down what was observed for a policy. Services that a discovery may reach now come
    /// back.
    pub fn observe(
        &mut self,
        key: &PolicyKey,
        service: &RunService,
        observation: Observation,
    ) -> BTreeSet<RunService> {
        let Some(record) = self.policies.get(key) else {
            return BTreeSet::new();
        };
        let was_unseen = record.observation(service).is_none() && self.is_fresh(record, service);
        let Some(record) = self.policies.records.get_mut(key) else {
            return BTreeSet::new();
        };
        if record.targets.contains(service) || self.ledgers.owns(&record.intent.id.uid, service) {
            record
                .observations
                .insert(service.clone(), Box::new(observation));
        } else {
            record.observations.remove(service);
        }
        if let Some(record) = self.policies.get(key) {
            self.reach_changes(record, service, was_unseen);
        }
        self.release(key)
    }

    /// The finalizer of a policy was put on or taken off.
    pub fn set_finalizer(&mut self, id: &PolicyId, present: bool) {
        self.requests.set_finalizer(&id.key(), &id.uid, present);
        if let Some(record) = self
            .policies
            .get_mut(&id.key())
            .filter(|r| r.intent.id == *id)
        {
            record.has_finalizer = present;
        }
    }

    /// A status was computed: what the metrics show.
    pub fn set_gauges(&mut self, id: &PolicyId, gauges: Gauges) {
        if let Some(record) = self
            .policies
            .get_mut(&id.key())
            .filter(|r| r.intent.id == *id)
        {
            record.gauges = gauges;
        }
    }

    /// A status was written.
    pub fn set_status(&mut self, id: &PolicyId, status: SerializedStatus) {
        if let Some(record) = self
            .policies
            .get_mut(&id.key())
            .filter(|r| r.intent.id == *id)
        {
            record.status = status;
        }
    }

    /// A change was recorded for a policy. Returns whether it had an earlier one; `None`: there is
    /// no such policy.
    pub fn set_last_change(&mut self, key: &PolicyKey, uid: &str, name: &str) -> Option<bool> {
        let record = self
            .policies
            .get_mut(key)
            .filter(|r| *r.intent.id.uid == *uid)?;
        let earlier = record.last_change.is_some() || record.status.get().last_change.is_some();
        record.last_change = Some(name.into());
        Some(earlier)
    }

    /// The records that a policy wants to go back behind, as they were read: name and content, or
    /// why there is none.
    pub fn set_rollbacks(
        &mut self,
        key: &PolicyKey,
        asked: &[Arc<str>],
        found: Result<Vec<(Arc<str>, InvokerChangeSpec)>, Arc<str>>,
        now: Timestamp,
    ) -> BTreeSet<RunService> {
        let Some(record) = self
            .policies
            .get(key)
            .filter(|r| *r.intent.rollbacks == *asked)
        else {
            return BTreeSet::new();
        };
        let role = record.intent.role;
        let state = found.and_then(|changes| {
            let mut ways = HashMap::new();
            for (name, change) in changes {
                let way = history::rollback(name, &change, role, now).map_err(Arc::<str>::from)?;
                ways.insert(history::service(&change), Arc::new(way));
            }
            Ok(RollbackState::Ready(ways))
        });
        let Some(record) = self.policies.get_mut(key) else {
            return BTreeSet::new();
        };
        record.rollback = state.unwrap_or_else(RollbackState::Impossible);
        self.services_of(key)
    }

    /// Why a policy cannot go back: a record says so, or is about a service that the policy does
    /// not mean now.
    fn rollback_obstacle(&self, record: &Record) -> Option<Arc<str>> {
        let names = |s: &RunService| record.denied.iter().any(|d| d.service.as_ref() == Some(s));
        // A selector that was not answered yet may still turn out to mean it.
        let means =
            |s: &RunService| record.targets.contains(s) || names(s) || self.may_select(record, s);
        let mut ways: Vec<_> = record.rollback.all().filter(|(s, _)| !means(s)).collect();
        ways.sort_unstable_by_key(|(s, _)| *s);
        let stray = ways.first().map(|(service, way)| {
            format!(
                "InvokerChange {} is about {service}, which this policy does not name; correct or remove the annotation {}",
                way.change,
                crate::api::ROLLBACK
            )
        });
        record.rollback.obstacle().cloned().or(stray.map(Arc::from))
    }

    /// Why nothing is done for a policy now, although it is enforced.
    pub(in crate::index) fn stopped(&self, record: &Record) -> Option<(Reason, Arc<str>)> {
        if let Some(why) = &record.unreadable {
            return Some((
                Reason::InvalidSpec,
                format!("the object cannot be read: {why}; apply it again as the current definition wants it").into(),
            ));
        }
        if let Some(why) = self
            .rollback_obstacle(record)
            .filter(|_| !record.intent.deleting)
        {
            return Some((Reason::InvalidSpec, why));
        }
        if let Some(refusal) = record.terms.frozen() {
            return Some((Reason::GuardrailViolated, refusal.message.into()));
        }
        if record.rollback.is_loading() && !record.intent.deleting {
            return Some((
                Reason::Progressing,
                "the records of the changes to roll back are being read".into(),
            ));
        }
        if record.intent.accounts.is_none() || self.accounts.are_known() {
            return None;
        }
        let Some(why) = self.accounts.unreadable() else {
            return Some((
                Reason::Progressing,
                "the ServiceAccounts of this cluster are being read".into(),
            ));
        };
        let message = format!(
            "the ServiceAccounts of this cluster cannot be read: {why}; grant the operator list and watch on serviceaccounts"
        );
        Some((Reason::Unavailable, message.into()))
    }

    /// A policy's word on a service. `left`: it means the service no more, and something there
    /// still belongs to it.
    pub(in crate::index) fn word(
        &self,
        record: &Record,
        service: &RunService,
        left: bool,
    ) -> PolicyOnService {
        let mut word = PolicyOnService::new(record.intent.clone(), record.terms.clone());
        word.left = left;
        word.rollback = record
            .rollback
            .on(service)
            .filter(|_| !record.intent.deleting && !left)
            .cloned();
        word.stopped = self.stopped(record).map(|(_, why)| why);
        if !left && !self.is_established(record, service) {
            word.spread = self.spread(record);
        }
        word.agreements = self.agreements(record, service);
        word.denials = self.denials(record);
        word.reached_by = self.reached_by(record, service);
        word
    }

    /// Whether the finalizer has to be on a policy: its deletion revokes something, or will.
    pub fn needs_finalizer(&self, record: &Record) -> bool {
        let intent = &record.intent;
        // Also one that would let go: whether it still does is seen when it is deleted, and not
        // before.
        !intent.deleting && (intent.enforces() || self.owns_any(record))
    }

    /// Whether any grant belongs to a policy.
    pub fn owns_any(&self, record: &Record) -> bool {
        self.ledgers
            .owned_by(&record.intent.id.uid)
            .next()
            .is_some()
    }

    /// Whether nothing is left for which the finalizer should hold a policy.
    pub fn may_release(&self, record: &Record) -> bool {
        let intent = &record.intent;
        if !intent.deleting {
            return !self.needs_finalizer(record);
        }
        if intent.retains() {
            return true;
        }
        if record.unreadable.is_some() || self.owns_any(record) {
            return false;
        }
        if !intent.enforces() {
            return true;
        }
        let project = self.projects.get(&intent.project);
        let may_list = record.terms.refuse_project(&intent.project).is_none();
        if intent.has_selector() && may_list && project.is_none_or(|p| !p.is_answered()) {
            return false;
        }
        record
            .targets
            .iter()
            .all(|service| match record.observations.get(service) {
                Some(observation) if observation.answers(intent) => match &observation.result {
                    Ok(findings) => findings.unexpected.is_empty(),
                    Err(fault) => fault.class.row().gone,
                },
                _ => false,
            })
    }

    /// When the operator last changed a service that is a policy's business: as was seen for it, and
    /// as the ledgers know.
    pub fn changed_at(&self, record: &Record) -> Option<Timestamp> {
        let seen = record.observations().filter_map(|(_, o)| o.changed_at);
        let owned = self.ledgers.owned_by(&record.intent.id.uid);
        let services = record.targets.iter().chain(owned);
        let written = services.filter_map(|s| self.ledgers.written_at(s));
        seen.chain(written).max()
    }

    /// The status that a policy should have now.
    pub fn status_of(
        &self,
        key: &PolicyKey,
        propagation: Duration,
        now: Timestamp,
    ) -> Option<InvokerPolicyStatus> {
        let record = self.policies.get(key)?;
        let intent = &record.intent;
        // Where it is not known whether its selectors mean a service, nothing is said of it.
        let concerned = self
            .services_of(key)
            .into_iter()
            .filter(|s| !self.may_select(record, s));
        let observations: BTreeMap<RunService, Option<&Observation>> = concerned
            .map(|s| (s.clone(), record.observation(&s)))
            .collect();
        let project = self.projects.get(&intent.project);
        let selecting =
            intent.has_selector() && record.terms.refuse_project(&intent.project).is_none();
        let back: Vec<(&RunService, &str)> =
            record.rollbacks().map(|(s, r)| (s, &*r.change)).collect();
        let reach = if record.targets.len() > record.terms.max_new_services() {
            self.reach(record)
        } else {
            None
        };
        let unmatched = self.unmatched(record);
        let inherited = self.inherited_view(record, now);
        let opened = self.opened_from_above(record, now);
        let input = StatusInput {
            intent,
            observations: &observations,
            unmatched: &unmatched,
            discovery: project.and_then(|p| p.fault()).filter(|_| selecting),
            discovering: selecting && project.is_none_or(|p| !p.is_answered()),
            denied: &record.denied,
            outside: record.outside,
            reach: reach.as_ref(),
            stopped: self.stopped(record),
            back: &back,
            last_change: record.last_change.as_deref(),
            roles: self.inherited.roles(),
            inherited: inherited.as_ref(),
            opened: &opened,
            changed_at: self.changed_at(record),
            writing: observations.keys().any(|s| self.ledgers.is_pending(s)),
            propagation,
            now,
        };
        Some(compute_status(&input, &record.status.get()))
    }

    /// Forgets what was observed for the policies of these projects.
    pub(in crate::index) fn forget_observations(&mut self, among: &dyn Fn(&str) -> bool) {
        let keys: Vec<PolicyKey> = self
            .policies
            .iter()
            .filter(|(_, r)| among(&r.intent.project))
            .map(|(k, _)| k.clone())
            .collect();
        for key in keys {
            self.retarget(&key);
            let Some(record) = self.policies.get_mut(&key) else {
                continue;
            };
            record.observations.clear();
            record.released.clear();
            record.reach = Mutex::default();
        }
    }
}
