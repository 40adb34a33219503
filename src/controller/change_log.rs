//! The way of a write through the store: in the ledger before IAM is asked, settled from the live
//! policy after, a record for each namespace behind it, and old records taken away.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::Notify, time::Instant};

use super::{
    Controller, Priority,
    due::Due,
    owned::{Owned, Rank},
};
use crate::{
    api::{ChangePhase, InvokerChange},
    cloudrun::CloudRun,
    fault::Fault,
    history::{self, Ending},
    iam::{Policy, RunService},
    intent::{ChangeKey, PolicyKey},
    ledger::{Ledger, Pending},
    status::{Applied, observation::written_at},
};

/// What is known of the open writes of one service and is not in the store yet.
#[derive(Debug, Default)]
struct Entry {
    /// How writes ended that this process made.
    endings: BTreeMap<String, Ending>,
    /// Writes that are on record, while the ledger still has them as open.
    recorded: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<RunService, Entry>,
    /// Records that an earlier operator left open.
    legacy: HashMap<RunService, Vec<InvokerChange>>,
    /// Shards whose records are to be searched for such.
    recall: BTreeSet<usize>,
    /// Policies with a record more than before.
    crowded: Due<PolicyKey>,
}

/// Open writes and their records.
#[derive(Debug)]
pub(super) struct ChangeLog {
    state: Owned<State>,
    changed: Notify,
}

impl Default for ChangeLog {
    fn default() -> Self {
        Self {
            state: Owned::new(Rank::ChangeLog, State::default()),
            changed: Notify::new(),
        }
    }
}

/// The open writes of a service after it was read.
#[derive(Debug, Default)]
pub(super) struct Settlement {
    /// Those whose end is seen for the first time.
    pub applied: Vec<Applied>,
    /// Those that were not made.
    pub undone: Vec<Pending>,
    /// Those that may still arrive.
    pub open: Vec<Pending>,
    /// When the last of those that were made was over.
    pub written_at: Option<Timestamp>,
    /// Those that were made, or may have been: their approvals are used.
    pub spent: Vec<Pending>,
}

impl ChangeLog {
    /// A write of this process ended.
    pub fn ended(&self, service: &RunService, name: &str, ending: Ending) {
        self.state.with(|s| {
            s.open
                .entry(service.clone())
                .or_default()
                .endings
                .insert(name.to_owned(), ending)
        });
    }

    /// The ledger of a service has these open writes, and no others.
    pub fn stored(&self, service: &RunService, pending: &[Pending]) {
        let there = |name: &String| pending.iter().any(|p| p.name == *name);
        self.state.with(|s| {
            let Some(entry) = s.open.get_mut(service) else {
                return;
            };
            entry.endings.retain(|name, _| there(name));
            entry.recorded.retain(there);
            if entry.endings.is_empty() && entry.recorded.is_empty() {
                s.open.remove(service);
            }
        });
    }

    /// Whether there is a record of an earlier operator to close.
    pub fn has_legacy(&self, service: &RunService) -> bool {
        self.state.with(|s| s.legacy.contains_key(service))
    }

    /// Shards came here: their open records of earlier operators are to be found.
    pub fn recall(&self, shards: &BTreeSet<usize>) {
        self.state.with(|s| s.recall.extend(shards));
        self.changed.notify_one();
    }

    pub fn let_go(&self, among: impl Fn(&RunService) -> bool) {
        self.state.with(|s| {
            s.open.retain(|service, _| !among(service));
            s.legacy.retain(|service, _| !among(service));
        });
    }
}

impl<C: CloudRun> Controller<C> {
    /// Settles what the ledger has as open from the live policy, and puts it on record. `live:
    /// None`: the service is gone.
    ///
    /// # Errors
    /// When a record cannot be written; then nothing is settled, and the ledger still has it.
    pub(super) async fn settle(
        &self,
        service: &RunService,
        ledger: &Ledger,
        live: Option<&Policy>,
    ) -> Result<Settlement, Fault> {
        let mut settlement = Settlement::default();
        if ledger.pending.is_empty() {
            return Ok(settlement);
        }
        let log = &self.change_log.state;
        let (endings, recorded) = log.with(|s| {
            s.open
                .get(service)
                .map(|e| (e.endings.clone(), e.recorded.clone()))
                .unwrap_or_default()
        });
        let settled = history::settle_all(&ledger.pending, &endings, live, self.now());
        settlement.open = settled.open;
        for (pending, outcome) in settled.closed {
            if outcome.phase == ChangePhase::NotApplied {
                settlement.undone.push(pending);
                continue;
            }
            if !pending.approvals.is_empty() {
                settlement.spent.push(pending.clone());
            }
            if outcome.phase == ChangePhase::Applied {
                self.wrote(service, &pending, live);
            }
            // Also one that is on record already: the ledger may not have heard of it.
            settlement.written_at = settlement.written_at.max(written_at(&outcome));
            if recorded.contains(&pending.name) {
                continue;
            }
            for record in history::records(service, &pending, outcome.clone(), self.cluster.home())
            {
                self.cluster.create_change(&record).await?;
                self.recorded(&record);
            }
            log.with(|s| {
                s.open
                    .entry(service.clone())
                    .or_default()
                    .recorded
                    .insert(pending.name.clone())
            });
            settlement.applied.push(Applied { pending, outcome });
        }
        Ok(settlement)
    }

    /// A change is on record: its policies say so, and their oldest records make room.
    fn recorded(&self, change: &InvokerChange) {
        let record = ChangeKey::of(&change.metadata);
        for policy in change
            .spec
            .policies
            .iter()
            .filter(|p| *p.namespace == *record.namespace)
        {
            let key = PolicyKey::new(policy.namespace.as_str(), policy.name.as_str());
            let earlier = self
                .index
                .with(|i| i.set_last_change(&key, &policy.uid, &record.name));
            if earlier.is_some() {
                self.statuses.add(&key, Duration::from_millis(100));
            }
            // The first record of a policy crowds nobody out; thousands of policies come at once
            // where a fleet is new.
            if earlier != Some(false) {
                self.change_log
                    .state
                    .with(|s| s.crowded.no_later(&key, Instant::now()));
                self.change_log.changed.notify_one();
            }
        }
    }

    /// Closes what an earlier operator left open on a service.
    pub(super) async fn close_legacy(&self, service: &RunService, live: Option<&Policy>) {
        let log = &self.change_log.state;
        for change in log.with(|s| s.legacy.remove(service)).unwrap_or_default() {
            let pending = history::left_open(&ChangeKey::of(&change.metadata).name, &change.spec);
            let outcome = history::settle(&pending, Ending::Unknown, live, self.now());
            if let Err(fault) = self.cluster.close_change(&change, &outcome).await {
                tracing::debug!(%fault, "a record could not be closed yet");
                log.with(|s| s.legacy.entry(service.clone()).or_default().push(change));
            }
        }
    }

    /// Thins out the records of policies that got another one, and finds those that an older
    /// version left open.
    pub(super) async fn tend_change_log(self: Arc<Self>) {
        let log = &self.change_log;
        loop {
            let (crowded, shards) = log.state.with(|s| {
                (
                    s.crowded.take(Instant::now(), |_| true),
                    std::mem::take(&mut s.recall),
                )
            });
            if !shards.is_empty() && self.find_legacy(&shards).await.is_err() {
                log.state.with(|s| s.recall.extend(shards));
                tokio::time::sleep(Duration::from_secs(5)).await;
                continue;
            }
            match crowded {
                Some(policy) => {
                    if let Err(fault) = self.thin_out(&policy).await {
                        tracing::debug!(%fault, "old records could not be taken away; the next change tries again");
                    }
                }
                None => log.changed.notified().await,
            }
        }
    }

    async fn thin_out(&self, policy: &PolicyKey) -> Result<(), Fault> {
        let records = self.cluster.changes_of(policy).await?;
        for name in history::outlived(&records, self.options.retention, self.now()) {
            let key = ChangeKey::new(policy.namespace.clone(), name);
            self.cluster.discard_change(&key).await?;
        }
        Ok(())
    }

    /// Finds records that an earlier operator left open. Tenants may write in their namespaces, so
    /// a record says nothing but that a service is to be read, and it must be one that somebody is
    /// about.
    async fn find_legacy(&self, shards: &BTreeSet<usize>) -> Result<(), Fault> {
        let open = self.cluster.open_changes().await?;
        let mut services = BTreeSet::new();
        for change in open
            .into_iter()
            .filter(|c| shards.contains(&self.shards.of(&c.spec.project)))
        {
            let service = history::service(&change.spec);
            if !self.index.with(|i| i.means(&service)) {
                continue;
            }
            services.insert(service.clone());
            self.change_log
                .state
                .with(|s| s.legacy.entry(service).or_default().push(change));
        }
        if !services.is_empty() {
            tracing::info!(
                services = services.len(),
                "an older version left change records open; they are closed by what IAM holds"
            );
        }
        self.ask(&services, Priority::Retry);
        Ok(())
    }

    /// Takes away records that are too old, once an hour.
    pub(super) async fn thin_out_hourly(self: Arc<Self>) {
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
        let Ok(before) = self.now().checked_sub(self.options.retention.age) else {
            return Ok(());
        };
        for change in self.cluster.changes_before(before).await? {
            self.cluster.discard_change(&change).await?;
        }
        Ok(())
    }
}
