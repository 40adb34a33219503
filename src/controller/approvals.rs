//! InvokerApprovals: what comes in from the store, and the status that says what became of each.
//! Whoever may approve in one namespace costs others nothing: statuses are written one after the
//! other, and what fails waits for itself.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::StreamExt as _;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{
    Controller, Priority,
    due::Due,
    owned::{Owned, Rank},
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
/// Nothing is waited for longer than this in one piece.
const FAR: Duration = Duration::from_secs(86_400);
/// How long it is not said again that approvals cannot be watched.
const QUIET: Duration = Duration::from_secs(6 * 3600);
/// Statuses of approvals that are not kept and wait to be written; more wait for the next list.
const MAX_UNKEPT: usize = 256;

/// A status of an approval that is not kept: it is over, or does not count.
pub(super) struct Unkept {
    key: ApprovalKey,
    uid: Arc<str>,
    status: InvokerApprovalStatus,
}

/// Approvals whose status is to be brought up to date.
#[derive(Debug)]
pub(super) struct ApprovalStatuses {
    due: Owned<Due<ApprovalKey>>,
    changed: Notify,
}

impl Default for ApprovalStatuses {
    fn default() -> Self {
        Self {
            due: Owned::new(Rank::Approvals, Due::default()),
            changed: Notify::new(),
        }
    }
}

impl ApprovalStatuses {
    /// Looks at an approval after `delay`, or earlier if that was asked for already.
    pub fn add(&self, key: &ApprovalKey, delay: Duration) {
        let at = Instant::now() + delay;
        self.due.with(|due| due.no_later(key, at));
        self.changed.notify_one();
    }
}

impl<C: CloudRun> Controller<C> {
    /// The way from the watch of approvals to [`Self::tend_approvals`].
    pub(super) fn unkept() -> (mpsc::Sender<Unkept>, mpsc::Receiver<Unkept>) {
        mpsc::channel(MAX_UNKEPT)
    }

    /// Keeps the approvals current. An older installation does not have their kind, or does not let
    /// the operator watch it: then nothing is approved by them, and the log says so once.
    pub(super) async fn watch_approvals(self: Arc<Self>, unkept: mpsc::Sender<Unkept>) {
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

    fn approval_applied(&self, object: &InvokerApproval, unkept: &mpsc::Sender<Unkept>) {
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
        if !is_told && unkept.try_send(Unkept { key, uid, status }).is_err() {
            tracing::debug!("too many approvals do not count to tell them all at once");
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
    pub(super) async fn tend_approvals(self: Arc<Self>, mut unkept: mpsc::Receiver<Unkept>) {
        loop {
            let (due, wake) = self.approvals.due.with(|due| {
                let now = Instant::now();
                (due.take(now, |_| true), due.wake(|_| true))
            });
            if let Some(key) = due {
                self.tend_approval(&key).await;
                continue;
            }
            let wake = wake.unwrap_or_else(|| Instant::now() + FAR);
            tokio::select! {
                biased;
                () = self.approvals.changed.notified() => {}
                () = tokio::time::sleep_until(wake) => {}
                told = unkept.recv() => match told {
                    Some(told) => self.tell_unkept(told).await,
                    None => std::future::pending().await,
                },
            }
        }
    }

    async fn tell_unkept(&self, told: Unkept) {
        let policyless = PolicyKey::new(told.key.namespace.clone(), told.key.name.clone());
        if !self.tells(&policyless) {
            return;
        }
        let written = self
            .cluster
            .write_approval_status(&told.key, &told.uid, &told.status);
        if let Err(fault) = written.await {
            tracing::debug!(%fault, "an approval could not be told that it does not count");
        }
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
        let left = Duration::try_from(agreement.ends().duration_since(now)).unwrap_or_default();
        self.approvals
            .add(key, left.min(FAR) + Duration::from_millis(10));
    }
}
