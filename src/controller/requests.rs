//! InvokerAccessRequests: what comes in from the store, and the status that says where each stands.
//! That somebody's access was approved, and until when, is in the status before anything is granted:
//! whatever happens in between, it ends then.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use tokio::{sync::mpsc, time::Instant};

use super::{
    Controller, Priority,
    tended::{Next, Unkept},
};
use crate::{
    api::{EventReason, InvokerAccessRequest, InvokerAccessRequestStatus, RequestPhase},
    cloudrun::CloudRun,
    cluster::{
        FinalizerWrite,
        watch::{self as streams, Change},
    },
    intent::{AccessRequest, PolicyKey},
    status::events::Note,
};

/// Most changes are settled before this is over.
const FOLD: Duration = Duration::from_millis(100);
/// Before a status that could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long it is not said again that requests cannot be watched.
const QUIET: Duration = Duration::from_secs(6 * 3600);

/// A request that is not kept, and why.
pub(super) struct Untold {
    key: PolicyKey,
    uid: Arc<str>,
    why: String,
}

fn key_of(object: &InvokerAccessRequest) -> PolicyKey {
    let meta = &object.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    PolicyKey::of_request(namespace, meta.name.as_deref().unwrap_or_default())
}

impl<C: CloudRun> Controller<C> {
    /// Keeps the requests current. An older installation does not have their kind: then there are
    /// none, and what belongs to some is touched by nobody until they can be watched.
    pub(super) async fn watch_requests(self: Arc<Self>, unkept: mpsc::Sender<Untold>) {
        let mut stream = std::pin::pin!(streams::requests(self.cluster.client()));
        let mut told: Option<Instant> = None;
        while let Some(change) = stream.next().await {
            let effect = match change {
                Change::Restart => {
                    self.index.with(|i| i.begin_request_list());
                    continue;
                }
                Change::Applied(object) => {
                    self.request_applied(&object, &unkept);
                    continue;
                }
                Change::Deleted(object) => {
                    let key = key_of(&object);
                    self.statuses.forget(&key);
                    self.ask_approvals(&key);
                    self.index.with(|i| i.remove_request(&key))
                }
                Change::Malformed(object) => {
                    tracing::error!(namespace = %object.namespace, name = %object.name, why = %object.why, "an InvokerAccessRequest cannot be parsed; what it granted is left as it is");
                    let key = PolicyKey::of_request(object.namespace.as_str(), &object.name);
                    self.index
                        .with(|i| i.apply_unreadable_request(&key, &object.uid, &object.why))
                }
                Change::MalformedDeleted(object) => {
                    let key = PolicyKey::of_request(object.namespace.as_str(), &object.name);
                    self.index.with(|i| {
                        let mut effect = i.remove_unreadable_policy(&key, &object.uid);
                        effect.merge(i.remove_request(&key));
                        effect
                    })
                }
                Change::Synced => self.index.with(|i| i.end_request_list()),
                Change::Broken(why) => {
                    if told.is_none_or(|at| at.elapsed() > QUIET) {
                        told = Some(Instant::now());
                        tracing::warn!(%why, "InvokerAccessRequests cannot be watched; until they can, none is granted. Where their kind is missing: kubectl apply --server-side -f crds/invokeraccessrequests.yaml, or upgrade the chart");
                    }
                    continue;
                }
            };
            self.set_in_motion(&effect, Priority::Declared, FOLD);
        }
    }

    fn request_applied(&self, object: &InvokerAccessRequest, unkept: &mpsc::Sender<Untold>) {
        let now = self.elapsed();
        let stored = object.status.clone().unwrap_or_default();
        let taken = AccessRequest::from_object(object).and_then(|request| {
            self.index
                .with(|i| i.apply_request(request, stored.clone(), now))
        });
        let why = match taken {
            Ok(effect) => return self.set_in_motion(&effect, Priority::Declared, FOLD),
            Err(why) => why,
        };
        let key = key_of(object);
        let uid = object.metadata.uid.as_deref().unwrap_or_default().into();
        let is_told = stored.message.as_deref() == Some(&*why);
        if !is_told && unkept.try_send(Untold { key, uid, why }).is_err() {
            tracing::debug!("too many refused requests to update all of their statuses at once");
        }
    }

    /// Writes the statuses of requests.
    pub(super) async fn tend_requests(self: Arc<Self>, mut unkept: Unkept<Untold>) {
        loop {
            match self.requests.next(&mut unkept).await {
                Next::Kept(key) => self.tend_request(&key).await,
                Next::Unkept(told) => {
                    if let Some(told) = self.tell_unkept_request(told).await {
                        unkept.again(told);
                    }
                }
            }
        }
    }

    /// Tells a request that it does not count. What comes back is to be told later: by whoever holds
    /// its shard then.
    async fn tell_unkept_request(&self, told: Untold) -> Option<Untold> {
        if self.index.with(|i| i.requests().get(&told.key).is_some()) {
            // There is room for it now.
            return None;
        }
        if !self.shards.holds(&told.key.to_string()) {
            return Some(told);
        }
        let status = InvokerAccessRequestStatus {
            phase: Some(RequestPhase::Refused),
            message: Some(told.why.chars().take(1024).collect()),
            ..InvokerAccessRequestStatus::default()
        };
        let written = self
            .cluster
            .write_request_status(&told.key, &told.uid, &status);
        if let Err(fault) = written.await {
            tracing::debug!(%fault, "the status of a refused request could not be written");
            return Some(told);
        }
        None
    }

    async fn tend_request(&self, key: &PolicyKey) {
        let Some(request) = self.index.with(|i| i.requests().get(key).cloned()) else {
            return;
        };
        if !self.works_on(request.project()) {
            // Whoever works on it writes what it comes to, and the watch brings that here.
            return;
        }
        if !self.is_synced() {
            self.requests.add(key, Duration::from_secs(1));
            return;
        }
        let now = self.now();
        let (status, before) = self.index.with(|i| {
            let status = i.request_status(key, self.options.propagation, now);
            let stored = i.requests().stored(key);
            let before = stored.and_then(InvokerAccessRequestStatus::written_phase);
            (status, before)
        });
        if let Some(status) = status {
            let written = self
                .cluster
                .write_request_status(key, &request.uid, &status);
            match written.await {
                Ok(true) => self.request_written(&request, before, status),
                // The watch says what is there now, unless that was about something else.
                Ok(false) => {
                    self.requests.add(key, AGAIN);
                    return;
                }
                Err(fault) => {
                    tracing::debug!(%fault, "the status of a request could not be written; it is tried again");
                    self.requests.add(key, AGAIN);
                    return;
                }
            }
        }
        if let Some(id) = self.index.with(|i| i.bound_for_nothing(key)) {
            match self.cluster.take_finalizer(&id, request.generation()).await {
                Ok(FinalizerWrite::Changed) => {}
                Ok(_) => {
                    let effect = self.index.with(|i| i.release_request(&id));
                    self.set_in_motion(&effect, Priority::Declared, Duration::ZERO);
                    return;
                }
                Err(fault) => {
                    tracing::debug!(%fault, "the finalizer of a request could not be taken off; it is tried again");
                    self.requests.add(key, AGAIN);
                    return;
                }
            }
        }
        let next = self.index.with(|i| i.request_changes_at(key, now));
        if let Some(at) = next {
            self.requests.add_at(key, at, now);
        }
    }

    /// What is in the store is in force from now on.
    fn request_written(
        &self,
        request: &AccessRequest,
        before: Option<RequestPhase>,
        status: InvokerAccessRequestStatus,
    ) {
        let (key, phase) = (&request.key, status.phase);
        let text = status.message.clone().unwrap_or_default();
        let elapsed = self.elapsed();
        let effect = self
            .index
            .with(|i| i.set_request_status(key, &request.uid, status, elapsed));
        self.set_in_motion(&effect, Priority::Declared, FOLD);
        self.ask_approvals(key);
        let Some(phase) = phase.filter(|p| before != Some(*p)) else {
            return;
        };
        let (reason, warning) = match phase {
            RequestPhase::Pending => (EventReason::AccessRequested, false),
            RequestPhase::Approved => (EventReason::AccessApproved, false),
            RequestPhase::Active => (EventReason::AccessGranted, false),
            RequestPhase::Ended => (EventReason::AccessEnded, false),
            RequestPhase::Denied => (EventReason::AccessDenied, true),
            RequestPhase::Refused => (EventReason::GuardrailViolated, true),
        };
        let note = Note {
            reason,
            warning,
            text: text.chars().take(900).collect(),
        };
        self.statuses.note(request.id(), note);
    }
}
