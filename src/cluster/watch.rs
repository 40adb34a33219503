//! The watches that keep the index current. A stream that breaks is taken up again with back-off;
//! what is cached stays.

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{
    Api, Client, ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        WatchStreamExt,
        watcher::{self, Config},
    },
};

use crate::api::{
    InvokerAccessRequest, InvokerApproval, InvokerGuardrail, InvokerLedger, InvokerPolicy,
};

/// A change of what is cached.
#[derive(Debug)]
pub enum Change<T> {
    /// A list begins: what is not in it is gone.
    Restart,
    /// An object is there, or is there in a new state. It arrived with the list or later.
    Applied(Box<T>),
    /// An object that is there and cannot be read as its kind.
    Malformed(Malformed),
    Deleted(Box<T>),
    /// An object that could not be read as its kind is gone.
    MalformedDeleted(Malformed),
    /// The list is complete.
    Synced,
    /// The connection failed; the text is for the log.
    Broken(String),
}

/// What is known of an object that cannot be read.
#[derive(Clone, Debug, Default)]
pub struct Malformed {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub version: String,
    /// Why it cannot be read.
    pub why: String,
    /// It is marked for deletion.
    pub deleting: bool,
}

impl From<kube::core::error_boundary::InvalidObject> for Malformed {
    fn from(invalid: kube::core::error_boundary::InvalidObject) -> Self {
        let why: String = invalid.error.to_string().chars().take(500).collect();
        Self {
            deleting: invalid.metadata.deletion_timestamp.is_some(),
            namespace: invalid.metadata.namespace.unwrap_or_default(),
            name: invalid.metadata.name.unwrap_or_default(),
            uid: invalid.metadata.uid.unwrap_or_default(),
            version: invalid.metadata.resource_version.unwrap_or_default(),
            why,
        }
    }
}

fn slim<K: ResourceExt>(object: &mut K) {
    // Memory: nobody here reads these, and they are most of an object.
    object.managed_fields_mut().clear();
    object
        .annotations_mut()
        .remove("kubectl.kubernetes.io/last-applied-configuration");
}

fn changes<K>(api: Api<DeserializeGuard<K>>) -> impl Stream<Item = Change<K>> + Send
where
    K: ResourceExt<DynamicType = ()>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug
        + Send
        + 'static,
{
    watcher::watcher(api, Config::default().page_size(250))
        .default_backoff()
        .map(|event| match event {
            Ok(watcher::Event::Init) => Change::Restart,
            Ok(watcher::Event::InitDone) => Change::Synced,
            Ok(watcher::Event::InitApply(guard) | watcher::Event::Apply(guard)) => match guard.0 {
                Ok(mut object) => {
                    slim(&mut object);
                    Change::Applied(Box::new(object))
                }
                Err(invalid) => Change::Malformed(invalid.into()),
            },
            Ok(watcher::Event::Delete(guard)) => match guard.0 {
                Ok(object) => Change::Deleted(Box::new(object)),
                Err(invalid) => Change::MalformedDeleted(invalid.into()),
            },
            Err(e) => Change::Broken(e.to_string()),
        })
}

/// Changes of policies in every namespace.
pub fn policies(client: Client) -> impl Stream<Item = Change<InvokerPolicy>> + Send {
    changes(Api::all(client))
}

/// Changes of ServiceAccounts: of their metadata only, nothing else of them is asked for.
pub fn accounts(
    client: Client,
) -> impl Stream<Item = Change<PartialObjectMeta<ServiceAccount>>> + Send {
    let config = Config::default().page_size(250);
    watcher::watcher(
        Api::<PartialObjectMeta<ServiceAccount>>::all(client),
        config,
    )
    .default_backoff()
    .map(|event| match event {
        Ok(watcher::Event::Init) => Change::Restart,
        Ok(watcher::Event::InitDone) => Change::Synced,
        Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
            Change::Applied(Box::new(object))
        }
        Ok(watcher::Event::Delete(object)) => Change::Deleted(Box::new(object)),
        Err(e) => Change::Broken(e.to_string()),
    })
}

/// Changes of guardrails.
pub fn guardrails(client: Client) -> impl Stream<Item = Change<InvokerGuardrail>> + Send {
    changes(Api::all(client))
}

/// Changes of approvals in every namespace.
pub fn approvals(client: Client) -> impl Stream<Item = Change<InvokerApproval>> + Send {
    changes(Api::all(client))
}

/// Changes of requests for access in every namespace.
pub fn requests(client: Client) -> impl Stream<Item = Change<InvokerAccessRequest>> + Send {
    changes(Api::all(client))
}

/// Changes of the ledger.
pub fn ledgers(client: Client) -> impl Stream<Item = Change<InvokerLedger>> + Send {
    changes(Api::all(client))
}
