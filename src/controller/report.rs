//! What goes out: statuses, finalizers that come off, events and gauges. Status is written only when it says something
//! new.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::Controller;
use crate::{
    api::{Mode, OnDelete, ServiceState},
    cloudrun::CloudRun,
    cluster::index::{Gauges, Index, PolicyKey, Record, SerializedStatus},
    fault::FaultClass,
    intent::PolicyId,
    metrics::{Metrics, PolicySeries},
    status::{self, events::Note},
};

/// Status writes under way at once.
const WRITERS: usize = 16;
/// Events that wait; more than this are dropped, oldest first: an event is a courtesy, the status is the truth.
const MAX_NOTES: usize = 5000;

/// Policies to report on, and events to publish.
#[derive(Debug, Default)]
pub struct Reports {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    due: BTreeSet<(Instant, PolicyKey)>,
    at: HashMap<PolicyKey, Instant>,
    busy: BTreeSet<PolicyKey>,
    notes: VecDeque<(PolicyId, Note)>,
}

impl Reports {
    /// Reports on a policy after `delay`, or earlier if that was asked for already.
    pub fn add(&self, key: &PolicyKey, delay: Duration) {
        let at = Instant::now() + delay;
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match inner.at.get(key).copied() {
            Some(before) if before <= at => return,
            Some(before) => {
                inner.due.remove(&(before, key.clone()));
            }
            None => {}
        }
        inner.at.insert(key.clone(), at);
        inner.due.insert((at, key.clone()));
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Publishes an event.
    pub fn note(&self, id: PolicyId, note: Note) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.notes.len() == MAX_NOTES {
            inner.notes.pop_front();
        }
        inner.notes.push_back((id, note));
        drop(inner);
        self.changed.notify_waiters();
    }

    /// What is due now, or soon where nothing comes after.
    fn take(&self, ahead: Duration) -> (Option<PolicyKey>, Option<(PolicyId, Note)>, Option<Instant>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let note = inner.notes.pop_front();
        let now = Instant::now() + ahead;
        let ready = inner.due.iter().take_while(|(at, _)| *at <= now).find(|(_, k)| !inner.busy.contains(k)).cloned();
        if let Some((at, key)) = &ready {
            inner.due.remove(&(*at, key.clone()));
            inner.at.remove(key);
            inner.busy.insert(key.clone());
        }
        let wake = inner.due.iter().find(|(_, k)| !inner.busy.contains(k)).map(|(at, _)| *at);
        (ready.map(|(_, k)| k), note, wake)
    }

    fn done(&self, key: &PolicyKey) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).busy.remove(key);
        self.changed.notify_waiters();
    }
}

/// Writes reports until `stop`, and then those that are left.
pub async fn run<C: CloudRun>(this: Arc<Controller<C>>, mut stop: watch::Receiver<bool>) {
    let mut running = tokio::task::JoinSet::new();
    loop {
        while running.try_join_next().is_some() {}
        if running.len() >= WRITERS {
            running.join_next().await;
            continue;
        }
        let changed = this.reports.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let stopping = *stop.borrow();
        {
            // Statuses that wait a moment to be folded go out before the end; those set for much later do not.
            let (key, note, wake) = this.reports.take(if stopping { Duration::from_secs(2) } else { Duration::ZERO });
            let idle = key.is_none() && note.is_none();
            if let Some(key) = key {
                let this = this.clone();
                running.spawn(async move {
                    this.report(&key).await;
                    this.reports.done(&key);
                });
            }
            if let Some((id, note)) = note {
                let this = this.clone();
                running.spawn(async move {
                    if let Err(fault) = this.cluster.publish(&id, &note, this.now()).await {
                        tracing::debug!(%fault, "an event could not be published");
                    }
                });
            }
            if !idle {
                continue;
            }
            if stopping {
                while running.join_next().await.is_some() {}
                return;
            }
            let wake = wake.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep_until(wake) => {}
                _ = stop.changed() => {}
            }
        }
    }
}

impl<C: CloudRun> Controller<C> {
    /// Brings one policy's status, finalizer and series up to date.
    async fn report(&self, key: &PolicyKey) {
        let window = self.options.propagation;
        let state = {
            let index = self.index();
            // What another replica works on is for it to tell.
            let Some(record) = index.record(key).filter(|r| self.works_on(&r.intent.project)) else { return };
            let Some(next) = index.status_of(key, window, self.now()) else { return };
            let release = record.has_finalizer() && may_release(record, &index);
            let bind = !record.has_finalizer() && !record.intent.deleting && record.intent.revokes_on_delete();
            let changed = record.looks.values().map(|l| l.changed_at);
            let settles = status::propagated_at(changed, window).filter(|at| *at > self.now());
            let wide = !record.barred.is_empty() || !index.reached(key).is_empty();
            (record.intent.clone(), record.status.clone(), next, release, bind, settles, wide)
        };
        let (intent, old, next, release, bind, settles, wide) = state;
        if let Some(record) = self.index().record_mut(key).filter(|r| r.intent.id == intent.id) {
            record.gauges = Gauges::of(&next);
        }
        let told = SerializedStatus::of(&next);
        if told != old {
            for note in status::events::announcements(&old.get(), &next, wide) {
                self.reports.note(intent.id.clone(), note);
            }
        }
        if let Some(at) = settles {
            // The window ends without anything happening elsewhere.
            let wait = Duration::try_from(at.duration_since(self.now())).unwrap_or_default();
            self.reports.add(key, wait + Duration::from_secs(1));
        } else if next.conditions.iter().any(|c| c.type_ == "Propagated" && c.status == "False") {
            self.reports.add(key, Duration::from_secs(15));
        }
        if bind {
            // Also where everything was real already: what the policy lists is what its deletion revokes.
            if let Err(fault) = self.ensure_finalizer(&intent).await {
                tracing::debug!(%fault, "a finalizer could not be added yet");
                self.reports.add(key, Duration::from_secs(1));
            }
        }
        if release {
            match self.cluster.set_finalizer(&intent.id, false).await {
                Ok(()) => {
                    if let Some(record) = self.index().record_mut(key).filter(|r| r.intent.id == intent.id) {
                        record.finalizers.retain(|f| f != crate::api::FINALIZER);
                    }
                    if intent.deleting {
                        return;
                    }
                }
                Err(fault) => {
                    // A conflict means that a newer state is on its way here.
                    let wait = if fault.class == FaultClass::Conflict { 100 } else { 1000 };
                    tracing::debug!(%fault, "a finalizer could not be removed yet");
                    self.reports.add(key, Duration::from_millis(wait));
                }
            }
        }
        if told == old {
            return;
        }
        match self.cluster.write_status(&intent.id, &next).await {
            Ok(()) => {
                self.metrics.status_writes_total.with_label_values(&["ok"]).inc();
                if let Some(record) = self.index().record_mut(key).filter(|r| r.intent.id == intent.id) {
                    record.status = told;
                }
            }
            Err(fault) => {
                self.metrics.status_writes_total.with_label_values(&[fault.class.row().label]).inc();
                tracing::warn!(policy = %intent.id, %fault, "a status could not be written; it is tried again");
                self.reports.add(key, Duration::from_secs(1));
            }
        }
    }
}

/// Whether nothing is left for which the finalizer should hold a policy.
pub(super) fn may_release(record: &Record, index: &Index) -> bool {
    let intent = &record.intent;
    if !intent.deleting {
        // Not enforced any more, or asked to retain: nothing would be revoked.
        return intent.mode == Mode::Audit || intent.on_delete == OnDelete::Retain;
    }
    if !intent.revokes_on_delete() {
        return true;
    }
    let project = index.project(&intent.project);
    let may_look = record.terms.refuse_project(&intent.project).is_none();
    if intent.has_selector() && may_look && project.is_none_or(|p| p.listed_at.is_none()) {
        return false;
    }
    record.services.iter().all(|service| match record.looks.get(service) {
        Some(look) if look.answers(intent) => match &look.result {
            Ok(seen) => seen.unexpected.is_empty(),
            Err(fault) => fault.class.row().gone,
        },
        _ => false,
    })
}

/// Gauges over all policies whose projects are `ours`: what every replica counts may be added up.
pub fn gauges(index: &Index, metrics: &Metrics, now: Timestamp, ours: &dyn Fn(&str) -> bool) -> PolicySeries {
    let mut states: HashMap<ServiceState, i64> = HashMap::new();
    let (mut exposed, mut contested, mut held) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let tomorrow = now + SignedDuration::from_hours(24);
    let mut expiring = 0;
    for (key, record) in index.policies().filter(|(_, r)| ours(&r.intent.project)) {
        if record.intent.enforces() && !record.intent.deleting {
            let ends = record.intent.declared.iter().filter_map(|d| d.expires);
            expiring += ends.filter(|e| *e > now && *e <= tomorrow).count();
        }
        *states.entry(ServiceState::Held).or_default() += record.barred.len() as i64;
        let reached = index.reached(key);
        for (service, look) in &record.looks {
            let waits = reached.contains(service);
            let state = if waits { ServiceState::Held } else { status::state_of(look) };
            *states.entry(state).or_default() += 1;
            let Ok(seen) = &look.result else { continue };
            if seen.exposed.is_some() {
                exposed.insert(service.clone());
            }
            if !seen.contested.is_empty() {
                contested.insert(service.clone());
            }
            if seen.approve.is_some() || waits {
                held.insert(service.clone());
            }
        }
    }
    metrics.service_states(|s| states.get(&s).copied().unwrap_or(0));
    metrics.exposed_services.set(exposed.len() as i64);
    metrics.expiring_grants.set(expiring as i64);
    metrics.contested_services.set(contested.len() as i64);
    metrics.held_plans.set(held.len() as i64);
    if !metrics.per_policy() {
        return PolicySeries::default();
    }
    let mut policies: Vec<_> = index.policies().filter(|(_, r)| ours(&r.intent.project)).collect();
    policies.sort_by_key(|(key, _)| *key);
    PolicySeries::of(
        policies.iter().map(|((namespace, name), r)| {
            (&**namespace, &**name, r.gauges.ready, r.gauges.missing, r.gauges.unexpected)
        }),
    )
}
