//! InvokerApprovals: what comes in from the store, and the status that says what became of each.
//! Whoever may approve in one namespace costs others nothing: statuses are written one after the
//! other, and what fails waits for itself.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::StreamExt as _;
use tokio::{sync::mpsc, time::Instant};

use super::{
    Controller, Priority,
    tended::{Next, Unkept},
};
use crate::{
    api::{ApprovalState, InvokerApproval, InvokerApprovalStatus},
    cloudrun::CloudRun,
    cluster::watch::{self as streams, Change},
    intent::{Agreement, ApprovalKey, PolicyKey},
};

/// Most changes are settled before this is over.
const FOLD: Duration = Duration::from_millis(300);
/// Before a status that could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// How long it is not said again that approvals cannot be watched.
const QUIET: Duration = Duration::from_secs(6 * 3600);

/// A status of an approval that is not kept: it is over, or does not count.
pub(super) struct Untold {
    key: ApprovalKey,
    uid: Arc<str>,
    status: InvokerApprovalStatus,
}

impl<C: CloudRun> Controller<C> {
    /// Keeps the approvals current. An older installation does not have their kind, or does not let
    /// the operator watch it: then nothing is approved by them, and the log says so once.
    pub(super) async fn watch_approvals(self: Arc<Self>, unkept: mpsc::Sender<Untold>) {
        let mut stream = std::pin::pin!(streams::approvals(self.cluster.client()));
        let mut told: Option<Instant> = None;
        while let Some(change) = stream.next().await {
            let effect = match change {
                Change::Restart => {
                    self.index.with(|i| i.begin_approval_list());
                    continue;
                }
                Change::Applied(object) => {
                    self.approval_applied(&object, &unkept);
                    continue;
                }
                Change::Deleted(object) => {
                    let key = ApprovalKey::of(&object.metadata);
                    self.index.with(|i| i.remove_approval(&key))
                }
                Change::Malformed(object) | Change::MalformedDeleted(object) => {
                    let key = ApprovalKey::new(object.namespace.as_str(), object.name.as_str());
                    self.index.with(|i| i.remove_approval(&key))
                }
                Change::Synced => self.index.with(|i| i.end_approval_list()),
                Change::Broken(why) => {
                    if told.is_none_or(|at| at.elapsed() > QUIET) {
                        told = Some(Instant::now());
                        tracing::warn!(%why, "InvokerApprovals cannot be watched; until they can, none counts. Where their kind is missing: kubectl apply --server-side -f crds/invokerapprovals.yaml, or upgrade the chart");
                    }
                    continue;
                }
            };
            self.set_in_motion(&effect, Priority::Declared, FOLD);
        }
    }

    fn approval_applied(&self, object: &InvokerApproval, unkept: &mpsc::Sender<Untold>) {
        let key = ApprovalKey::of(&object.metadata);
        let stored = object.status.clone().unwrap_or_default();
        let refused = |why: String| InvokerApprovalStatus {
            state: Some(ApprovalState::Refused),
            message: Some(why.chars().take(1024).collect()),
            ..InvokerApprovalStatus::default()
        };
        let now = self.now();
        let status = match Agreement::from_object(object) {
            Err(why) => {
                let effect = self.index.with(|i| i.remove_approval(&key));
                self.set_in_motion(&effect, Priority::Declared, FOLD);
                refused(why)
            }
            Ok(mut agreement) => {
                if !self.options.stamped {
                    agreement.by = "".into();
                }
                let taken = self
                    .index
                    .with(|i| i.apply_approval(agreement.clone(), stored.clone(), now));
                match taken {
                    Ok(effect) => {
                        self.set_in_motion(&effect, Priority::Declared, FOLD);
                        if self.index.with(|i| i.approvals().get(&key).is_some()) {
                            self.approvals.add(&key, FOLD);
                            return;
                        }
                        self.index.with(|i| i.approval_status_of(&agreement, now))
                    }
                    Err(why) => refused(why),
                }
            }
        };
        // Where it stands for good, or was told so already, there is nothing to write.
        let is_told = stored == status || stored.state.is_some_and(ApprovalState::is_final);
        let uid = object.metadata.uid.as_deref().unwrap_or_default().into();
        if !is_told && unkept.try_send(Untold { key, uid, status }).is_err() {
            tracing::debug!("too many refused approvals to update all of their statuses at once");
        }
    }

    /// Looks at the approvals of a policy again.
    pub(super) fn ask_approvals(&self, policy: &PolicyKey) {
        let keys: Vec<ApprovalKey> = self.index.with(|i| {
            let agreements = i.approvals().of(policy).iter();
            agreements.map(|a| a.key.clone()).collect()
        });
        for key in keys {
            self.approvals.add(&key, FOLD);
        }
    }

    /// Writes the statuses of approvals, and lets go of those whose time is over.
    pub(super) async fn tend_approvals(self: Arc<Self>, mut unkept: Unkept<Untold>) {
        loop {
            match self.approvals.next(&mut unkept).await {
                Next::Kept(key) => self.tend_approval(&key).await,
                Next::Unkept(told) => {
                    if let Some(told) = self.tell_unkept(told).await {
                        unkept.again(told);
                    }
                }
            }
        }
    }

    /// Tells an approval that it is over, or does not count. What comes back is to be told later: by
    /// whoever holds its shard then.
    async fn tell_unkept(&self, told: Untold) -> Option<Untold> {
        if self.index.with(|i| i.approvals().get(&told.key).is_some()) {
            // There is room for it now.
            return None;
        }
        let policyless = PolicyKey::new(told.key.namespace.clone(), told.key.name.clone());
        if !self.tells(&policyless) {
            return Some(told);
        }
        let written = self
            .cluster
            .write_approval_status(&told.key, &told.uid, &told.status);
        if let Err(fault) = written.await {
            tracing::debug!(%fault, "the status of a refused approval could not be written");
            return Some(told);
        }
        None
    }

    /// Whether this replica writes the statuses of a policy's approvals.
    fn tells(&self, policy: &PolicyKey) -> bool {
        let project = self
            .index
            .with(|i| i.policies().get(policy).map(|r| r.intent.project.clone()));
        match project {
            Some(project) => self.works_on(&project),
            None => self.shards.holds(&policy.to_string()),
        }
    }

    async fn tend_approval(&self, key: &ApprovalKey) {
        let now = self.now();
        let Some(agreement) = self.index.with(|i| i.approvals().get(key).cloned()) else {
            return;
        };
        let is_known = self.policies_synced.load(Ordering::Acquire)
            && self.ledgers_synced.load(Ordering::Acquire);
        if !is_known {
            self.approvals.add(key, Duration::from_secs(1));
            return;
        }
        let status = self.index.with(|i| i.approval_status(key, now));
        if let Some(status) = status.filter(|_| self.tells(&agreement.policy())) {
            let written = self
                .cluster
                .write_approval_status(key, &agreement.uid, &status);
            if let Err(fault) = written.await {
                tracing::debug!(%fault, "the status of an approval could not be written; it is tried again");
                self.approvals.add(key, AGAIN);
                return;
            }
            self.index.with(|i| i.set_approval_status(key, status));
        }
        if agreement.ends() <= now {
            let effect = self.index.with(|i| i.remove_approval(key));
            self.set_in_motion(&effect, Priority::Declared, FOLD);
            return;
        }
        self.approvals.add_at(key, agreement.ends(), now);
    }
}
