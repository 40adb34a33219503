//! The Kubernetes side: what is watched, and what is written (status, finalizer, ledger, records of
//! changes, marks, events). Decides nothing.

mod approvals;
mod changes;
mod ledgers;
mod marks;
mod permissions;
pub mod watch;

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};
pub use ledgers::{LedgerWrite, StoredLedger};
pub use marks::CircuitMark;
use permissions::Denied;
use serde_json::json;

use crate::{
    api::{
        FIELD_MANAGER, FINALIZER, InvokerAccessRequest, InvokerPolicy, InvokerPolicyStatus, Reason,
    },
    fault::{Fault, FaultClass},
    intent::PolicyId,
    status::{events::Note, whole_seconds},
};

/// Writes to the Kubernetes API. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// Names this process in events.
    instance: String,
    /// The operator's own namespace: for records that belong nowhere else, and for the mark of the
    /// circuit breaker.
    home: String,
    /// Name of the Lease that marks the circuit breaker as open.
    circuit: String,
    /// Name of the Lease that marks audit events as unreliable.
    events: String,
    timeout: Duration,
    denied: Arc<Denied>,
}

/// Kubernetes error to [`Fault`].
fn fault(error: kube::Error) -> Fault {
    let class = match &error {
        kube::Error::Api(s) if s.code == 409 => FaultClass::Conflict,
        _ => FaultClass::Kubernetes,
    };
    let message = match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    };
    Fault::new(class, message)
}

/// How writing a finalizer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinalizerWrite {
    /// It is as it should be.
    Done,
    /// The policy is gone.
    Gone,
    /// The policy is gone, and another one is under its name.
    Replaced,
    /// The policy is being deleted, and the API server takes no new finalizer then.
    Deleting,
    /// The policy is of another generation than the one that was decided on.
    Changed,
}

/// How writing a status ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusWrite {
    Written,
    /// The object would be larger than the store takes.
    TooLarge,
    /// The policy is gone.
    Gone,
}

/// The API server and etcd say it in different ways.
fn is_too_large(status: &kube::core::Status) -> bool {
    let says = |text| status.message.contains(text);
    status.code == 413 || says("request is too large") || says("larger than max")
}

/// Whether an object is there already. 409 alone does not say so: a quota that is being counted
/// answers it too.
fn exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(s) if s.code == 409 && s.reason == "AlreadyExists")
}

/// Whether the API server says that an object is not there. 404 alone does not say so, and kube
/// takes it for that (its `get_opt` too): a proxy's page is about something else.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(s) if s.code == 404 && s.reason == "NotFound")
}

/// What was asked for, if it is there.
fn if_there<T>(answer: Result<T, kube::Error>) -> Result<Option<T>, Fault> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(fault(e)),
    }
}

impl Cluster {
    /// `instance` names this process in events; `home` is the operator's own namespace, `lease` the
    /// name of its Lease.
    pub fn new(
        client: Client,
        instance: &str,
        home: String,
        lease: &str,
        timeout: Duration,
    ) -> Self {
        // The API server refuses a longer one.
        let instance = instance.chars().take(128).collect();
        let (circuit, events) = (format!("{lease}-circuit"), format!("{lease}-events"));
        Self {
            client,
            instance,
            home,
            circuit,
            events,
            timeout,
            denied: Arc::default(),
        }
    }

    /// The operator's own namespace.
    pub fn home(&self) -> &str {
        &self.home
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, kube::Error> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(result) => {
                if let Err(kube::Error::Api(status)) = &result {
                    self.denied.warn(status);
                }
                result
            }
            Err(_) => Err(kube::Error::Service(
                "the Kubernetes API did not answer in time".into(),
            )),
        }
    }

    fn policies(&self, id: &PolicyId) -> Api<InvokerPolicy> {
        Api::namespaced(self.client.clone(), &id.namespace)
    }

    /// The kind of the object that declares, the way to it, and its name.
    fn declaring<'a>(&self, id: &'a PolicyId) -> (ApiResource, Api<DynamicObject>, &'a str) {
        let (kind, name) = match id.request() {
            Some(name) => (ApiResource::erase::<InvokerAccessRequest>(&()), name),
            None => (ApiResource::erase::<InvokerPolicy>(&()), &*id.name),
        };
        let api = Api::namespaced_with(self.client.clone(), &id.namespace, &kind);
        (kind, api, name)
    }

    /// Replaces the status. A policy that is gone meanwhile is no failure.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn write_status(
        &self,
        id: &PolicyId,
        status: &InvokerPolicyStatus,
    ) -> Result<StatusWrite, Fault> {
        // The uid makes the write miss a policy that was made again under the name.
        let patch = json!({"metadata": {"uid": &*id.uid}, "status": status});
        let api = self.policies(id);
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        match self
            .within(api.patch_status(&id.name, &params, &Patch::Merge(patch)))
            .await
        {
            Err(kube::Error::Api(s)) if is_too_large(&s) => Ok(StatusWrite::TooLarge),
            Err(e) if is_gone(&e) => Ok(StatusWrite::Gone),
            Err(e) => Err(fault(e)),
            Ok(_) => Ok(StatusWrite::Written),
        }
    }

    /// Adds the finalizer, leaving those of others.
    ///
    /// # Errors
    /// [`FaultClass::Conflict`] if the object keeps changing, or what the API server says.
    pub async fn put_finalizer(&self, id: &PolicyId) -> Result<FinalizerWrite, Fault> {
        self.write_finalizer(id, true, None).await
    }

    /// Takes the finalizer away from a policy of this `generation`, leaving those of others.
    ///
    /// # Errors
    /// [`FaultClass::Conflict`] if the object keeps changing, or what the API server says.
    pub async fn take_finalizer(
        &self,
        id: &PolicyId,
        generation: i64,
    ) -> Result<FinalizerWrite, Fault> {
        self.write_finalizer(id, false, Some(generation)).await
    }

    /// Every attempt is made on a fresh reading and under its resourceVersion, so that nothing
    /// another writer put there is lost.
    async fn write_finalizer(
        &self,
        id: &PolicyId,
        present: bool,
        generation: Option<i64>,
    ) -> Result<FinalizerWrite, Fault> {
        let (kind, api, name) = self.declaring(id);
        for _ in 0..5 {
            let meta = match if_there(self.within(api.get_metadata(name)).await)? {
                Some(object) if object.metadata.uid.as_deref() == Some(&id.uid) => object.metadata,
                Some(_) => return Ok(FinalizerWrite::Replaced),
                None => return Ok(FinalizerWrite::Gone),
            };
            let mut list = meta.finalizers.unwrap_or_default();
            if list.iter().any(|f| f == FINALIZER) == present {
                return Ok(FinalizerWrite::Done);
            }
            if present && meta.deletion_timestamp.is_some() {
                // The API server takes no new ones then.
                return Ok(FinalizerWrite::Deleting);
            }
            if generation.is_some() && meta.generation != generation {
                return Ok(FinalizerWrite::Changed);
            }
            list.retain(|f| f != FINALIZER);
            if present {
                list.push(FINALIZER.into());
            }
            let patch = json!({"metadata": {"uid": &*id.uid, "resourceVersion": meta.resource_version, "finalizers": list}});
            let params = PatchParams {
                field_manager: Some(FIELD_MANAGER.into()),
                ..PatchParams::default()
            };
            match self
                .within(api.patch_metadata(name, &params, &Patch::Merge(patch)))
                .await
            {
                Ok(_) => return Ok(FinalizerWrite::Done),
                Err(e) if is_gone(&e) => return Ok(FinalizerWrite::Gone),
                Err(kube::Error::Api(s)) if s.code == 409 => {}
                Err(e) => return Err(fault(e)),
            }
        }
        Err(Fault::new(
            FaultClass::Conflict,
            format!(
                "the {} keeps changing; its finalizer could not be set",
                kind.kind
            ),
        ))
    }

    /// Marks an object that cannot be read as an InvokerPolicy, so that its author learns of it.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn mark_unreadable(
        &self,
        namespace: &str,
        name: &str,
        why: &str,
        deleting: bool,
        now: Timestamp,
    ) -> Result<(), Fault> {
        // Whether its grants were to stay is in what cannot be read, so nobody decides that here.
        let how = if deleting {
            format!(
                "; it is being deleted, and whether its grants go or stay cannot be read: apply it again as the current definition wants it, or take the finalizer {FINALIZER} off by hand, which leaves its grants"
            )
        } else {
            "; apply it again as the current definition wants it".to_owned()
        };
        let now = whole_seconds(now).to_string();
        let condition = |t: &str, s: &str| {
            json!({"type": t, "status": s, "reason": Reason::InvalidSpec.as_str(), "lastTransitionTime": now, "observedGeneration": 0,
                "message": format!("the object cannot be read: {why}{how}")})
        };
        let patch = json!({"status": {"conditions": [condition("Ready", "False"), condition("Stalled", "True")]}});
        // The typed object cannot be read back, so the answer is taken as it comes.
        let resource = ApiResource::erase::<InvokerPolicy>(&());
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource);
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        self.within(api.patch_status(name, &params, &Patch::Merge(patch)))
            .await
            .map(|_| ())
            .map_err(fault)
    }

    /// Publishes an event on a policy or a request. The same words on the same one are counted on the event
    /// that is there; other words are an event of their own, so that no drift hides behind an
    /// earlier one.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn publish(&self, id: &PolicyId, note: &Note, now: Timestamp) -> Result<(), Fault> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &id.namespace);
        let mut hasher = DefaultHasher::new();
        (&id.uid, note.reason.as_str(), &note.text).hash(&mut hasher);
        let (kind, _, object) = self.declaring(id);
        let name = format!("{object}.{:016x}", hasher.finish());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(id.namespace.to_string()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            type_: Some(if note.warning { "Warning" } else { "Normal" }.into()),
            reason: Some(note.reason.as_str().into()),
            note: Some(note.text.clone()),
            action: Some("Reconcile".into()),
            reporting_controller: Some(FIELD_MANAGER.into()),
            reporting_instance: Some(self.instance.clone()),
            regarding: Some(ObjectReference {
                api_version: Some(kind.api_version),
                kind: Some(kind.kind),
                namespace: Some(id.namespace.to_string()),
                name: Some(object.to_owned()),
                uid: Some(id.uid.to_string()),
                ..ObjectReference::default()
            }),
            ..Event::default()
        };
        match self
            .within(api.create(&PostParams::default(), &event))
            .await
        {
            Err(e) if exists(&e) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(fault(e)),
        }
        let count = self
            .within(api.get(&name))
            .await
            .map_err(fault)?
            .series
            .map_or(1, |s| s.count);
        let series = json!({"series": {"count": count + 1, "lastObservedTime": MicroTime(now)}});
        self.within(api.patch(&name, &PatchParams::default(), &Patch::Merge(series)))
            .await
            .map(|_| ())
            .map_err(fault)
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn only_the_api_servers_own_words_say_that_something_is_or_is_not_there() {
        let error = |code, reason: &str| {
            kube::Error::Api(Status::failure("", reason).with_code(code).boxed())
        };
        assert!(is_gone(&error(404, "NotFound")));
        assert!(
            !is_gone(&error(404, "Failed to parse error data")),
            "a page that is no document of the API server"
        );
        assert!(!is_gone(&error(404, "")));
        assert!(exists(&error(409, "AlreadyExists")) && !exists(&error(409, "Conflict")));
        assert!(matches!(
            if_there::<()>(Err(error(404, "NotFound"))),
            Ok(None)
        ));
        assert!(if_there::<()>(Err(error(404, "Failed to parse error data"))).is_err());
    }
}
