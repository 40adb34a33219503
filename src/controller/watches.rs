//! What comes in from the store: policies, guardrails, ledgers, ServiceAccounts; and what each
//! change sets in motion.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::StreamExt as _;
use tokio::sync::mpsc;

use super::{Controller, Priority};
use crate::{
    api::{InvokerLedger, InvokerPolicy},
    cloudrun::CloudRun,
    cluster::watch::{self as streams, Change, Malformed},
    iam::RunService,
    index::policies::Effect,
    intent::{AccountKey, GOOGLE_SERVICE_ACCOUNT, Guardrail, PolicyId, PolicyKey},
    ledger::{Version, service_of},
};

/// Most changes are settled before this is over, and need one status instead of two.
const FOLD: Duration = Duration::from_millis(500);
/// Objects that cannot be read and wait to be marked; more wait for the next list.
const MAX_UNMARKED: usize = 256;

impl<C: CloudRun> Controller<C> {
    /// Sets in motion what follows from a change.
    pub(super) fn set_in_motion(&self, effect: &Effect, priority: Priority, soon: Duration) {
        self.ask(&effect.services, priority);
        for project in effect.lists.iter().filter(|p| self.works_on(p)) {
            self.listings.soon(project);
        }
        for key in &effect.policies {
            self.statuses.add(key, soon);
            self.ask_approvals(key);
            if key.request().is_some() {
                self.requests.add(key, soon);
            }
        }
        self.rollbacks.load(&effect.rollbacks);
    }

    /// Keeps the index current with the policies in the store.
    pub(super) async fn watch_policies(self: Arc<Self>, unreadable: mpsc::Sender<Malformed>) {
        let mut stream = std::pin::pin!(streams::policies(self.cluster.client()));
        while let Some(change) = stream.next().await {
            match change {
                Change::Restart => self.index.with(|i| i.begin_policy_list()),
                Change::Synced => {
                    let effect = self.index.with(|i| i.end_policy_list());
                    self.set_in_motion(&effect, Priority::Declared, FOLD);
                    if !self.policies_synced.swap(true, Ordering::AcqRel) {
                        let policies = self.index.with(|i| i.policies().iter().count());
                        tracing::info!(policies, "policies are cached");
                    }
                }
                Change::Applied(policy) => self.policy_applied(&policy),
                Change::Deleted(policy) => self.policy_deleted(&id_of(&policy)),
                Change::Malformed(object) => {
                    tracing::error!(namespace = %object.namespace, name = %object.name, why = %object.why, "an InvokerPolicy cannot be parsed; what it granted is left as it is");
                    let key = key_of(&object);
                    let effect = self
                        .index
                        .with(|i| i.apply_unreadable_policy(&key, &object.uid, &object.why));
                    self.set_in_motion(&effect, Priority::Declared, FOLD);
                    // Marking it may take long, and must not keep the next change from coming in.
                    if unreadable.try_send(object).is_err() {
                        tracing::debug!(
                            "too many policies cannot be read to mark them all at once"
                        );
                    }
                }
                Change::MalformedDeleted(object) => {
                    let effect = self
                        .index
                        .with(|i| i.remove_unreadable_policy(&key_of(&object), &object.uid));
                    self.set_in_motion(&effect, Priority::Declared, FOLD);
                }
                Change::Broken(why) => {
                    tracing::warn!(%why, "the watch of policies broke; taking it up again")
                }
            }
        }
    }

    fn policy_applied(&self, policy: &InvokerPolicy) {
        let now = self.elapsed();
        let (key, effect) = self.index.with(|i| i.apply_policy(policy, now));
        let is_deleting = policy.metadata.deletion_timestamp.is_some();
        self.set_in_motion(
            &effect,
            Priority::Declared,
            if is_deleting { Duration::ZERO } else { FOLD },
        );
        if self.index.with(|i| {
            i.policies()
                .get(&key)
                .is_some_and(|r| r.intent.accounts.is_some())
        }) {
            self.accounts_wanted.notify_one();
        }
    }

    pub(super) fn policy_deleted(&self, id: &PolicyId) {
        let effect = self.index.with(|index| {
            let record = index
                .policies()
                .get(&id.key())
                .filter(|r| r.intent.id == *id);
            let is_settled = record
                .is_some_and(|r| r.intent.deleting && !r.intent.retains() && index.may_release(r));
            let mut effect = index.remove_policy(id);
            if is_settled {
                // What its deletion had to revoke is revoked and read back already. A ledger that
                // only remembers corrections by now is to go, and that takes no read.
                let is_open =
                    |s: &RunService| index.ledgers().is_bare(s) || index.ledgers().is_pending(s);
                effect
                    .services
                    .retain(|s| !index.policies().means(s) && is_open(s));
            }
            effect
        });
        self.statuses.forget(&id.key());
        self.ask_approvals(&id.key());
        self.set_in_motion(&effect, Priority::Declared, FOLD);
    }

    /// Marks objects that cannot be read, so that their authors learn of it.
    pub(super) async fn mark_unreadable(self: Arc<Self>, mut objects: mpsc::Receiver<Malformed>) {
        while let Some(object) = objects.recv().await {
            let Malformed {
                namespace,
                name,
                why,
                deleting,
                ..
            } = object;
            // Which project it is about cannot be read: whoever has the shard of its name marks it.
            if !self.shards.holds(&format!("{namespace}/{name}")) {
                continue;
            }
            if let Err(fault) = self
                .cluster
                .mark_unreadable(&namespace, &name, &why, deleting, self.now())
                .await
            {
                tracing::warn!(%fault, "a policy that cannot be read could not be marked");
            }
        }
        std::future::pending().await
    }

    /// The way from the watch of policies to [`Self::mark_unreadable`].
    pub(super) fn unreadable() -> (mpsc::Sender<Malformed>, mpsc::Receiver<Malformed>) {
        mpsc::channel(MAX_UNMARKED)
    }

    /// Keeps the guardrails current. A change of one is a change of every policy that it selects.
    pub(super) async fn watch_guardrails(self: Arc<Self>) {
        let mut stream = std::pin::pin!(streams::guardrails(self.cluster.client()));
        while let Some(change) = stream.next().await {
            let effect = match change {
                Change::Restart => {
                    self.index.with(|i| i.begin_guardrail_list());
                    continue;
                }
                Change::Applied(object) => {
                    let guardrail = Guardrail::from_object(&object);
                    if let Some(refusal) = guardrail.frozen() {
                        tracing::error!(why = %refusal.message, "a guardrail cannot be read");
                    }
                    self.index.with(|i| i.apply_guardrail(guardrail))
                }
                Change::Deleted(object) => self.index.with(|i| i.remove_guardrail(&object)),
                Change::Malformed(Malformed { name, why, .. }) => {
                    tracing::error!(%name, %why, "a guardrail cannot be read; what was known of it holds on");
                    self.index
                        .with(|i| i.apply_unreadable_guardrail(&name, why))
                }
                Change::MalformedDeleted(Malformed { name, .. }) => {
                    self.index.with(|i| i.remove_guardrail_named(&name))
                }
                Change::Broken(why) => {
                    tracing::warn!(%why, "the watch of guardrails broke; taking it up again");
                    continue;
                }
                Change::Synced => self.index.with(|i| i.end_guardrail_list()),
            };
            // Behind people's edits: one guardrail can be about everything.
            self.set_in_motion(&effect, Priority::Drift, Duration::from_millis(100));
            if self.index.with(|i| i.guardrails_are_listed()) {
                self.guardrails_synced.store(true, Ordering::Release);
            }
        }
    }

    /// Keeps the links of ServiceAccounts current, from the first policy that names one: nobody
    /// else's cluster needs the right to watch them.
    pub(super) async fn watch_accounts(self: Arc<Self>) {
        self.accounts_wanted.notified().await;
        let mut stream = std::pin::pin!(streams::accounts(self.cluster.client()));
        while let Some(change) = stream.next().await {
            let effect = match change {
                Change::Restart => {
                    self.index.with(|i| i.begin_account_list());
                    continue;
                }
                Change::Applied(object) => {
                    let email = object
                        .metadata
                        .annotations
                        .as_ref()
                        .and_then(|a| a.get(GOOGLE_SERVICE_ACCOUNT));
                    let account = AccountKey::of(&object.metadata);
                    self.index
                        .with(|i| i.apply_account(account, email.map(String::as_str)))
                }
                Change::Deleted(object) => self
                    .index
                    .with(|i| i.apply_account(AccountKey::of(&object.metadata), None)),
                Change::Synced => self.index.with(|i| i.end_account_list()),
                Change::Broken(why) => {
                    tracing::warn!(%why, "the watch of ServiceAccounts broke; taking it up again");
                    self.index.with(|i| i.accounts_broken(&why))
                }
                // Only metadata is asked for, and that can always be read.
                Change::Malformed(_) | Change::MalformedDeleted(_) => continue,
            };
            self.set_in_motion(&effect, Priority::Drift, Duration::from_millis(100));
        }
    }

    /// Keeps what the operator answers for current.
    pub(super) async fn watch_ledgers(self: Arc<Self>) {
        let mut stream = std::pin::pin!(streams::ledgers(self.cluster.client()));
        while let Some(change) = stream.next().await {
            match change {
                Change::Restart => self.index.with(|i| i.begin_ledger_list()),
                Change::Applied(ledger) => self.ledger_applied(&ledger),
                Change::Deleted(ledger) => {
                    let service = service_of(&ledger.spec);
                    let version = ledger
                        .metadata
                        .resource_version
                        .as_deref()
                        .unwrap_or_default();
                    let is_running = self.queue.is_running(&service);
                    let is_news = self
                        .index
                        .with(|i| i.remove_ledger(&service, &Version::new(version)));
                    if is_news && !is_running {
                        self.ask([&service], Priority::Drift);
                    }
                }
                Change::Malformed(object) => {
                    let Malformed {
                        name, why, version, ..
                    } = object;
                    tracing::error!(%name, %why, "a ledger cannot be read; nothing is written to its service");
                    let service = self
                        .index
                        .with(|i| i.spoil_ledger_named(&name, &why, Version::new(&version)));
                    self.ask(&service, Priority::Drift);
                }
                Change::MalformedDeleted(object) => {
                    let version = Version::new(&object.version);
                    let service = self
                        .index
                        .with(|i| i.remove_ledger_named(&object.name, &version));
                    self.ask(&service, Priority::Drift);
                }
                Change::Broken(why) => {
                    tracing::warn!(%why, "the watch of the ledgers broke; taking it up again")
                }
                Change::Synced => {
                    let gone: BTreeSet<RunService> = self.index.with(|i| i.end_ledger_list());
                    self.ask(&gone, Priority::Drift);
                    self.ledgers_synced.store(true, Ordering::Release);
                }
            }
        }
    }

    fn ledger_applied(&self, ledger: &InvokerLedger) {
        let service = service_of(&ledger.spec);
        // The event of our own write can be here before its answer; and whoever writes sees that
        // somebody else did. Asked before the ledger is taken in: a reconcile that ends in between
        // has made it known.
        let is_running = self.queue.is_running(&service);
        let (is_news, corrections) = self.index.with(|i| {
            let is_news = i.apply_ledger(ledger);
            (
                is_news,
                if is_news {
                    i.ledgers().corrections_of(&service)
                } else {
                    BTreeSet::new()
                },
            )
        });
        if !is_news {
            return;
        }
        if self.works_on(&service.project) {
            if !is_running {
                tracing::debug!(%service, "a ledger was changed by somebody else");
                self.queue.add(&service, Priority::Drift);
            }
        } else {
            // The circuit breaker is about the whole fleet.
            self.breaker.remember(&service, corrections, self.now());
        }
    }
}

fn id_of(policy: &InvokerPolicy) -> PolicyId {
    let meta = &policy.metadata;
    PolicyId {
        namespace: meta.namespace.as_deref().unwrap_or_default().into(),
        name: meta.name.as_deref().unwrap_or_default().into(),
        uid: meta.uid.as_deref().unwrap_or_default().into(),
    }
}

fn key_of(object: &Malformed) -> PolicyKey {
    PolicyKey::new(object.namespace.as_str(), object.name.as_str())
}
