//! What comes in: policies, the ledger, and listings of projects.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use futures::StreamExt as _;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{Controller, report::may_release, spread};
use crate::{
    api::InvokerPolicy,
    cloudrun::{CloudRun, Listing, Priority},
    cluster::{
        index::Effect,
        watch::{self as streams, Change},
    },
    fault::{Fault, Retry},
    intent::{AccountKey, GOOGLE_SERVICE_ACCOUNT, Guardrail, PolicyId},
};

/// When each project is listed next.
#[derive(Debug, Default)]
pub struct Lists {
    due: Mutex<HashMap<Arc<str>, (Instant, Priority)>>,
    changed: Notify,
}

impl Lists {
    /// Lists a project no later than `at`.
    pub(super) fn at(&self, project: &Arc<str>, at: Instant, lane: Priority) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = due.entry(project.clone()).or_insert((at, lane));
        if at < entry.0 {
            *entry = (at, lane);
        }
        drop(due);
        self.changed.notify_waiters();
    }

    /// Lists a project now.
    pub(super) fn now(&self, project: &Arc<str>, lane: Priority) {
        self.at(project, Instant::now(), lane);
    }

    async fn next(&self) -> (Arc<str>, Priority) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let first = {
                let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
                let first = due
                    .iter()
                    .min_by_key(|(p, (at, _))| (*at, (*p).clone()))
                    .map(|(p, (at, lane))| (p.clone(), *at, *lane));
                if let Some((project, at, lane)) = &first
                    && *at <= Instant::now()
                {
                    due.remove(project);
                    return (project.clone(), *lane);
                }
                first
            };
            match first {
                Some((_, at, _)) => {
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep_until(at) => {}
                        () = changed => {}
                    }
                }
                None => changed.await,
            }
        }
    }
}

/// Keeps the index current with the policies in the store.
pub async fn policies<C: CloudRun>(this: Arc<Controller<C>>) {
    let mut stream = std::pin::pin!(streams::policies(this.cluster.client()));
    while let Some(change) = stream.next().await {
        match change {
            Change::Restart => this.index().begin_list(),
            Change::Synced => {
                let gone = this.index().end_list();
                this.ask(&gone, Priority::Declared);
                if !this.policies_synced.swap(true, Ordering::AcqRel) {
                    tracing::info!(policies = this.index().policies().count(), "policies are cached");
                }
            }
            Change::Applied(policy) => policy_applied(&this, &policy),
            Change::Deleted(policy) => {
                let meta = &policy.metadata;
                let id = PolicyId {
                    namespace: meta.namespace.as_deref().unwrap_or_default().into(),
                    name: meta.name.as_deref().unwrap_or_default().into(),
                    uid: meta.uid.as_deref().unwrap_or_default().into(),
                };
                let (settled, touched) = {
                    let mut index = this.index();
                    let key = (id.namespace.clone(), id.name.clone());
                    // What its deletion had to revoke is revoked and read back already.
                    let settled = index.record(&key).is_some_and(|r| {
                        r.intent.id == id && r.intent.deleting && r.intent.revokes_on_delete() && may_release(r, &index)
                    });
                    (settled, index.remove_policy(&id))
                };
                if !settled {
                    this.ask(&touched, Priority::Declared);
                }
            }
            Change::Malformed(namespace, name, why) => malformed(&this, &namespace, &name, &why).await,
            Change::Broken(why) => tracing::warn!(%why, "the watch of policies broke; taking it up again"),
        }
    }
}

fn policy_applied<C: CloudRun>(this: &Arc<Controller<C>>, policy: &InvokerPolicy) {
    let (key, effect) = this.index().apply_policy(policy, Instant::now());
    let deleting = policy.metadata.deletion_timestamp.is_some();
    this.ask(&effect.services, Priority::Declared);
    if let Some(project) = effect.list.as_ref().filter(|p| this.works_on(p)) {
        this.lists.now(project, Priority::Declared);
    }
    if this.index().record(&key).is_some_and(|r| r.intent.accounts.is_some()) {
        this.accounts_wanted.notify_one();
    }
    if effect.load {
        let asked = this.index().record(&key).map(|r| r.intent.rollbacks.clone());
        if let Some(asked) = asked {
            tokio::spawn(this.clone().load_rollbacks(key.clone(), asked));
        }
    }
    if effect.status {
        // Most changes are settled before this is over, and need one status instead of two.
        this.reports.add(&key, if deleting { Duration::ZERO } else { Duration::from_millis(500) });
    }
}

/// Marks an object that cannot be read, and lets the rest go on.
async fn malformed<C: CloudRun>(this: &Controller<C>, namespace: &str, name: &str, why: &str) {
    tracing::error!(%namespace, %name, %why, "a policy in the store cannot be read and is skipped");
    // Which project it is about cannot be read: whoever has the shard of its name marks it.
    if !this.shards.holds(&format!("{namespace}/{name}")) {
        return;
    }
    if let Err(fault) = this.cluster.mark_unreadable(namespace, name, why, this.now()).await {
        tracing::warn!(%fault, "a policy that cannot be read could not be marked");
    }
}

/// Keeps the guardrails current. A change of one is a change of every policy that it selects.
pub async fn guardrails<C: CloudRun>(this: Arc<Controller<C>>) {
    let mut stream = std::pin::pin!(streams::guardrails(this.cluster.client()));
    while let Some(change) = stream.next().await {
        let effect = match change {
            Change::Restart => {
                this.index().begin_guardrail_list();
                continue;
            }
            Change::Applied(object) => {
                let guardrail = Guardrail::from_object(&object);
                if let Some(refusal) = guardrail.frozen() {
                    tracing::error!(why = %refusal.message, "a guardrail cannot be read");
                }
                this.index().apply_guardrail(guardrail)
            }
            Change::Deleted(object) => this.index().remove_guardrail(&object),
            Change::Malformed(_, name, why) => {
                tracing::error!(%name, %why, "a guardrail cannot be read; what was known of it holds on");
                this.index().unreadable_guardrail(&name, why)
            }
            Change::Broken(why) => {
                tracing::warn!(%why, "the watch of guardrails broke; taking it up again");
                continue;
            }
            Change::Synced => {
                let effect = this.index().end_guardrail_list();
                settle_effect(&this, effect);
                this.guardrails_synced.store(true, Ordering::Release);
                continue;
            }
        };
        settle_effect(&this, effect);
    }
}

/// Keeps the links of ServiceAccounts current, from the first policy that names one: nobody else's cluster needs the
/// right to watch them.
pub async fn accounts<C: CloudRun>(this: Arc<Controller<C>>) {
    this.accounts_wanted.notified().await;
    let mut stream = std::pin::pin!(streams::accounts(this.cluster.client()));
    while let Some(change) = stream.next().await {
        let effect = match change {
            Change::Restart => {
                this.index().begin_account_list();
                continue;
            }
            Change::Applied(object) => {
                let email = object.metadata.annotations.as_ref().and_then(|a| a.get(GOOGLE_SERVICE_ACCOUNT));
                this.index().apply_account(account_key(&object.metadata), email.map(String::as_str))
            }
            Change::Deleted(object) => this.index().apply_account(account_key(&object.metadata), None),
            Change::Synced => this.index().end_account_list(),
            Change::Broken(why) | Change::Malformed(_, _, why) => {
                tracing::warn!(%why, "the watch of ServiceAccounts broke; taking it up again");
                this.index().accounts_broken(&why)
            }
        };
        settle_effect(&this, effect);
    }
}

fn account_key(meta: &kube::core::ObjectMeta) -> AccountKey {
    (meta.namespace.as_deref().unwrap_or_default().into(), meta.name.as_deref().unwrap_or_default().into())
}

/// Sets in motion what follows from a change that is not one of a policy.
fn settle_effect<C: CloudRun>(this: &Controller<C>, effect: Effect) {
    this.ask(&effect.services, Priority::Declared);
    for project in effect.lists.iter().filter(|p| this.works_on(p)) {
        this.lists.now(project, Priority::Declared);
    }
    for key in &effect.policies {
        this.reports.add(key, Duration::from_millis(100));
    }
}

/// Keeps what the operator granted current.
pub async fn ledgers<C: CloudRun>(this: Arc<Controller<C>>) {
    let mut stream = std::pin::pin!(streams::ledgers(this.cluster.client()));
    while let Some(change) = stream.next().await {
        match change {
            Change::Restart => this.index().begin_ledger_list(),
            Change::Applied(entry) => this.index().apply_ledger(&entry),
            Change::Deleted(entry) => this.index().remove_ledger(&entry),
            Change::Malformed(_, name, why) => {
                tracing::error!(%name, %why, "a ledger entry cannot be read and is skipped")
            }
            Change::Broken(why) => tracing::warn!(%why, "the watch of the ledger broke; taking it up again"),
            Change::Synced => {
                this.index().end_ledger_list();
                this.ledgers_synced.store(true, Ordering::Release);
            }
        }
    }
}

/// Counts what other replicas correct: the circuit breaker is about the whole fleet, and their records say it all.
pub async fn corrections<C: CloudRun>(this: Arc<Controller<C>>) {
    if this.shards.count() == 1 {
        return std::future::pending().await;
    }
    let mut stream = std::pin::pin!(streams::corrections(this.cluster.client()));
    while let Some(change) = stream.next().await {
        if let Change::Applied(record) = change
            && !this.works_on(&record.spec.project)
        {
            this.count_correction(&record);
        }
    }
}

/// Lists each project once per interval for all policies together, and at once where a declaration needs it.
pub async fn lists<C: CloudRun>(this: Arc<Controller<C>>, mut stop: watch::Receiver<bool>) {
    let mut failures: HashMap<Arc<str>, u32> = HashMap::new();
    let mut running = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s) => break,
            (project, lane) = this.lists.next() => {
                // Whoever takes its shard up lists it.
                let Some(turn) = this.enter(&project) else { continue };
                let scopes = this.index().scopes(&project);
                if scopes.is_empty() {
                    continue;
                }
                let this = this.clone();
                running.spawn(async move {
                    let mut whole = Listing::default();
                    for scope in &scopes {
                        match this.cloud.list_services(&project, scope, lane).await {
                            Ok(mut part) => {
                                whole.services.append(&mut part.services);
                                whole.unreachable.append(&mut part.unreachable);
                            }
                            Err(fault) => return (project, Err(fault), turn),
                        }
                    }
                    (project, Ok(whole), turn)
                });
            }
            Some(done) = running.join_next() => {
                let Ok((project, result, turn)) = done else { continue };
                let fails = failures.entry(project.clone()).or_default();
                *fails = if result.is_ok() { 0 } else { fails.saturating_add(1) };
                let fails = *fails;
                listed(&this, &project, result, fails);
                drop(turn);
            }
        }
    }
    // Nothing new is begun; the end comes with the end of the controller.
    std::future::pending().await
}

fn listed<C: CloudRun>(this: &Arc<Controller<C>>, project: &Arc<str>, result: Result<Listing, Fault>, failures: u32) {
    let retry = result.as_ref().err().map(|f| (f.class.row().retry, f.retry_after));
    if let (Err(fault), 1) = (&result, failures) {
        tracing::warn!(%project, class = fault.class.row().label, "services could not be listed");
    }
    let (touched, changed, interval) = {
        let mut index = this.index();
        let (touched, changed) = index.apply_listing(project, result, this.now());
        (touched, changed, index.project_interval(project))
    };
    let interval = interval.map(|i| this.interval(project, i));
    this.ask(&touched, Priority::Drift);
    for key in &changed {
        this.reports.add(key, Duration::from_millis(300));
    }
    let Some(interval) = interval else { return };
    let wait = match retry {
        None => super::next_slot(this.elapsed(), interval, spread(this.options.seed, project)),
        Some((Retry::Slow, _)) => interval,
        Some((_, after)) => after
            .unwrap_or_else(|| super::reconcile::backoff(failures, this.options.seed, project))
            .min(interval.max(Duration::from_secs(1))),
    };
    this.lists.at(project, Instant::now() + wait, Priority::Periodic);
}
