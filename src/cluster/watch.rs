//! The watches that keep the index current. A stream that breaks is taken up again with back-off; what is cached stays.

use std::sync::Arc;

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

use crate::api::{ChangeReason, InvokerChange, InvokerGuardrail, InvokerLedger, InvokerPolicy, REASON_LABEL};

/// A change of what is cached.
#[derive(Debug)]
pub enum Change<T> {
    /// A list begins: what is not in it is gone.
    Restart,
    /// An object is there, or is there in a new state. It arrived with the list or later.
    Applied(Box<T>),
    /// An object that could not be read as its kind: its namespace, name, and why.
    Malformed(String, String, String),
    Deleted(Box<T>),
    /// The list is complete.
    Synced,
    /// The connection failed; the text is for the log.
    Broken(String),
}

fn slim<K: ResourceExt>(object: &mut K) {
    // Memory: nobody here reads these, and they are most of an object.
    object.managed_fields_mut().clear();
    object.annotations_mut().remove("kubectl.kubernetes.io/last-applied-configuration");
}

fn changes<K>(api: Api<DeserializeGuard<K>>) -> impl Stream<Item = Change<K>> + Send
where
    K: ResourceExt<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    changes_with(api, Config::default())
}

fn changes_with<K>(api: Api<DeserializeGuard<K>>, config: Config) -> impl Stream<Item = Change<K>> + Send
where
    K: ResourceExt<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    watcher::watcher(api, config.page_size(250)).default_backoff().map(|event| match event {
        Ok(watcher::Event::Init) => Change::Restart,
        Ok(watcher::Event::InitDone) => Change::Synced,
        Ok(watcher::Event::InitApply(guard) | watcher::Event::Apply(guard)) => match guard.0 {
            Ok(mut object) => {
                slim(&mut object);
                Change::Applied(Box::new(object))
            }
            Err(invalid) => {
                let name = invalid.metadata.name.unwrap_or_default();
                Change::Malformed(invalid.metadata.namespace.unwrap_or_default(), name, invalid.error.to_string())
            }
        },
        Ok(watcher::Event::Delete(guard)) => match guard.0 {
            Ok(object) => Change::Deleted(Box::new(object)),
            Err(invalid) => Change::Malformed(
                invalid.metadata.namespace.unwrap_or_default(),
                invalid.metadata.name.unwrap_or_default(),
                "deleted".into(),
            ),
        },
        Err(e) => Change::Broken(e.to_string()),
    })
}

/// Changes of policies in every namespace.
pub fn policies(client: Client) -> impl Stream<Item = Change<InvokerPolicy>> + Send {
    changes(Api::all(client))
}

/// Changes of ServiceAccounts: of their metadata only, nothing else of them is asked for.
pub fn accounts(client: Client) -> impl Stream<Item = Change<PartialObjectMeta<ServiceAccount>>> + Send {
    let config = Config::default().page_size(250);
    watcher::watcher(Api::<PartialObjectMeta<ServiceAccount>>::all(client), config).default_backoff().map(|event| {
        match event {
            Ok(watcher::Event::Init) => Change::Restart,
            Ok(watcher::Event::InitDone) => Change::Synced,
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => Change::Applied(Box::new(object)),
            Ok(watcher::Event::Delete(object)) => Change::Deleted(Box::new(object)),
            Err(e) => Change::Broken(e.to_string()),
        }
    })
}

/// Changes of guardrails.
pub fn guardrails(client: Client) -> impl Stream<Item = Change<InvokerGuardrail>> + Send {
    changes(Api::all(client))
}

/// Records of writes that corrected drift.
pub fn corrections(client: Client) -> impl Stream<Item = Change<InvokerChange>> + Send {
    let label = format!("{REASON_LABEL}={}", ChangeReason::Drift.as_str());
    changes_with(Api::all(client), Config::default().labels(&label))
}

/// Changes of the ledger.
pub fn ledgers(client: Client) -> impl Stream<Item = Change<InvokerLedger>> + Send {
    changes(Api::all(client))
}

/// Texts that repeat over thousands of objects, kept once.
#[derive(Debug, Default)]
pub struct Interner {
    texts: std::collections::HashSet<Arc<str>>,
    /// Size at which those that nobody uses any more are let go.
    sweep_at: usize,
}

impl Interner {
    /// The shared copy of a text.
    pub fn share(&mut self, text: &Arc<str>) -> Arc<str> {
        if let Some(shared) = self.texts.get(text) {
            return shared.clone();
        }
        if self.texts.len() >= self.sweep_at.max(1024) {
            self.texts.retain(|t| Arc::strong_count(t) > 1);
            self.sweep_at = self.texts.len() * 2;
        }
        self.texts.insert(text.clone());
        text.clone()
    }
}
