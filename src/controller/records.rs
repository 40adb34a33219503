//! The records of changes while they are open: written before IAM is, closed from reality after, thinned out with time.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
    time::Duration,
};

use super::Controller;
use crate::{
    api::{ChangePhase, InvokerChange},
    cloudrun::{CloudRun, Priority},
    cluster::{index::PolicyKey, place_of},
    fault::Fault,
    history,
    iam::{Policy, RunService},
    plan::drift,
};

/// A record that nobody closed yet.
#[derive(Debug)]
pub(super) struct Open {
    change: InvokerChange,
    /// Found in the store, left there by a process that ended.
    found: bool,
}

impl<C: CloudRun> Controller<C> {
    pub(super) fn has_open_changes(&self, service: &RunService) -> bool {
        self.open_changes.lock().unwrap_or_else(PoisonError::into_inner).contains_key(service)
    }

    pub(super) fn add_open_changes(&self, service: &RunService, changes: Vec<InvokerChange>) {
        {
            let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            counted.extend(changes.iter().map(|c| (place_of(c).1.to_owned(), c.spec.at.0)));
        }
        let mut open = self.open_changes.lock().unwrap_or_else(PoisonError::into_inner);
        open.entry(service.clone())
            .or_default()
            .extend(changes.into_iter().map(|change| Open { change, found: false }));
    }

    fn take_open_changes(&self, service: &RunService) -> Vec<Open> {
        self.open_changes.lock().unwrap_or_else(PoisonError::into_inner).remove(service).unwrap_or_default()
    }

    fn keep_open(&self, service: &RunService, change: Open) {
        self.open_changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(service.clone())
            .or_default()
            .push(change);
    }

    /// Closes what is open on a service from reality; `None`: the service is gone.
    pub(super) async fn settle_changes(&self, service: &RunService, live: Option<&Policy>) {
        for open in self.take_open_changes(service) {
            let outcome = history::settle(&open.change.spec, live, self.now());
            let (namespace, name) = place_of(&open.change);
            // Refused as a whole: there is nothing to record, unless nobody knows any more how it went.
            let untouched = live.is_some_and(|l| l.etag.0 == open.change.spec.etag_before) && !open.found;
            let result = if untouched {
                self.cluster.discard_change(namespace, name).await
            } else {
                self.cluster.close_change(&open.change, &outcome).await
            };
            match result {
                Err(fault) => {
                    tracing::debug!(%fault, "a record could not be closed yet");
                    self.keep_open(service, open);
                }
                Ok(()) if untouched || outcome.phase == ChangePhase::NotApplied => {}
                Ok(()) => self.closed(&open.change),
            }
        }
    }

    /// Takes away what was recorded for a write that was not made.
    pub(super) async fn discard_changes(&self, service: &RunService) {
        for open in self.take_open_changes(service) {
            let (namespace, name) = place_of(&open.change);
            if let Err(fault) = self.cluster.discard_change(namespace, name).await {
                tracing::debug!(%fault, "a record could not be taken away yet");
                self.keep_open(service, open);
            }
        }
    }

    /// A change is on record: its policies say so, and their oldest records make room.
    fn closed(&self, change: &InvokerChange) {
        let (namespace, name) = place_of(change);
        let mut crowded = Vec::new();
        for policy in change.spec.policies.iter().filter(|p| p.namespace == namespace) {
            let key: PolicyKey = (policy.namespace.as_str().into(), policy.name.as_str().into());
            let mut index = self.index();
            let Some(record) = index.record_mut(&key).filter(|r| *r.intent.id.uid == *policy.uid) else {
                crowded.push(policy.name.clone());
                continue;
            };
            // The first record of a policy crowds nobody out; thousands of policies come at once where a fleet is new.
            if record.last_change.is_some() || record.status.get().last_change.is_some() {
                crowded.push(policy.name.clone());
            }
            record.last_change = Some(name.into());
            drop(index);
            self.reports.add(&key, Duration::from_millis(100));
        }
        if crowded.is_empty() {
            return;
        }
        let (cluster, keep, now) = (self.cluster.clone(), self.options.retention, self.now());
        let namespace = namespace.to_owned();
        tokio::spawn(async move {
            for policy in crowded {
                let result: Result<(), Fault> = async {
                    for name in history::outlived(&cluster.changes_of(&namespace, &policy).await?, keep, now) {
                        cluster.discard_change(&namespace, &name).await?;
                    }
                    Ok(())
                }
                .await;
                if let Err(fault) = result {
                    tracing::debug!(%fault, "old records could not be taken away; the next change tries again");
                }
            }
        });
    }

    /// Lets the circuit breaker count a correction that it has not counted yet.
    pub(super) fn count_correction(&self, change: &InvokerChange) {
        let (now, window) = (self.now(), self.options.breaker.window);
        let recent = |at: jiff::Timestamp| now.duration_since(at) < window;
        let at = change.spec.at.0;
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.retain(|_, at| recent(*at));
        // One write that two namespaces are behind has two records of one name.
        if recent(at) && counted.insert(place_of(change).1.to_owned(), at).is_none() {
            self.breaker.lock().unwrap_or_else(PoisonError::into_inner).remember(at);
        }
    }

    /// Brings back what must survive a change of the replica that works on `shards`: open records, fights, and the state
    /// of the circuit breaker.
    ///
    /// # Errors
    /// Those of the Kubernetes API; then no work may begin.
    pub(super) async fn recover(&self, shards: &BTreeSet<usize>) -> Result<(), Fault> {
        let among = |change: &InvokerChange| shards.contains(&self.shards.of(&change.spec.project));
        let now = self.now();
        let open = self.cluster.open_changes().await?;
        let corrections = self.cluster.corrections().await?;
        let circuit = self.cluster.circuit_mark().await?;
        for change in &corrections {
            self.count_correction(change);
        }
        let mut kept = self.kept();
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = BTreeSet::new();
        for change in corrections.iter().filter(|c| among(c)) {
            let (_, name) = place_of(change);
            let at = change.spec.at.0;
            if now.duration_since(at) >= drift::WINDOW || !seen.insert(name) {
                continue;
            }
            let entry = kept.entry(history::service(&change.spec)).or_default();
            let by =
                change.spec.drift_by.as_ref().filter(|_| self.options.events.is_some()).map(|by| Arc::new(by.clone()));
            for grant in history::grants(&change.spec) {
                entry.memory.corrected(&grant, at);
                if let Some(by) = &by {
                    entry.witness.get_or_insert_default().blame.insert(grant, by.clone());
                }
            }
        }
        if let Some(mark) = circuit {
            breaker.reopen(mark.since, now);
        }
        drop((kept, breaker));
        let mut services = Vec::with_capacity(open.len());
        let mut map = self.open_changes.lock().unwrap_or_else(PoisonError::into_inner);
        for change in open.into_iter().filter(|c| among(c)) {
            let service = history::service(&change.spec);
            let known = map.entry(service.clone()).or_default();
            if !known.iter().any(|o| place_of(&o.change) == place_of(&change)) {
                known.push(Open { change, found: true });
            }
            services.push(service);
        }
        drop(map);
        if !services.is_empty() {
            tracing::info!(records = services.len(), "records of writes whose end is unknown; reality will tell");
        }
        self.queue.add_all(&services, Priority::Retry);
        Ok(())
    }

    /// Takes away records that are too old, once an hour.
    pub(super) async fn thin_out(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            if self.shards.holds_shard(0)
                && self.is_synced()
                && let Err(fault) = self.discard_old_changes().await
            {
                tracing::debug!(%fault, "old records could not be taken away; tried again in an hour");
            }
        }
    }

    /// Takes away the records that are older than they are kept, in every namespace.
    ///
    /// # Errors
    /// Those of the Kubernetes API; what is left is taken away the next time.
    pub async fn discard_old_changes(&self) -> Result<(), Fault> {
        // Kept for longer than there has been time: kept for ever.
        let Ok(before) = self.now().checked_sub(self.options.retention.age) else { return Ok(()) };
        for (namespace, name) in self.cluster.changes_before(before).await? {
            self.cluster.discard_change(&namespace, &name).await?;
        }
        Ok(())
    }

    /// Reads the records behind which a policy wants to go back.
    pub(super) async fn load_rollbacks(self: Arc<Self>, key: PolicyKey, asked: Box<[Arc<str>]>) {
        let found = 'asked: loop {
            let mut changes = Vec::with_capacity(asked.len());
            for name in &asked {
                match self.cluster.change(&key.0, name).await {
                    Ok(Some(change)) => changes.push((name.clone(), change.spec)),
                    Ok(None) => {
                        let why = format!(
                            "there is no InvokerChange {name} in namespace {} to go back behind; correct or remove the annotation {}",
                            key.0,
                            crate::api::ROLLBACK
                        );
                        break 'asked Err(why.into());
                    }
                    Err(fault) => {
                        tracing::debug!(%fault, "a record could not be read; it is tried again");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        continue 'asked;
                    }
                }
            }
            break Ok(changes);
        };
        let touched = self.index().set_rollbacks(&key, &asked, found, self.now());
        self.ask(&touched, Priority::Declared);
        self.reports.add(&key, Duration::from_millis(100));
    }
}
