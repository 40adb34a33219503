//! Reads the records that policies want to go back behind. Tenants start this by an annotation, so
//! it is bounded: few at a time, one load for each policy however often the annotation changes, and
//! what fails waits for itself alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, task::JoinSet, time::Instant};

use super::{
    Controller, Priority,
    due::Due,
    owned::{Owned, Rank},
    reconcile::backoff,
};
use crate::{
    api::InvokerChangeSpec,
    cloudrun::CloudRun,
    fault::Fault,
    intent::{ChangeKey, PolicyKey},
};

/// Policies whose records are read at once.
const READERS: usize = 8;
/// The longest name that an object can have.
const MAX_NAME: usize = 253;
/// Before a policy's records are read again after the last time.
const GAP: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    due: Due<PolicyKey>,
    busy: BTreeSet<PolicyKey>,
    failures: BTreeMap<PolicyKey, u32>,
    last: BTreeMap<PolicyKey, Instant>,
}

/// Policies whose records are to be read.
#[derive(Debug)]
pub(super) struct Rollbacks {
    state: Owned<State>,
    changed: Notify,
}

impl Default for Rollbacks {
    fn default() -> Self {
        Self {
            state: Owned::new(Rank::Rollbacks, State::default()),
            changed: Notify::new(),
        }
    }
}

impl Rollbacks {
    /// Reads what a policy asks for now.
    pub fn load(&self, keys: &BTreeSet<PolicyKey>) {
        if keys.is_empty() {
            return;
        }
        let now = Instant::now();
        self.state.with(|s| {
            s.last.retain(|_, at| *at + GAP > now);
            for key in keys {
                s.failures.remove(key);
                let at = s.last.get(key).map_or(now, |last| (*last + GAP).max(now));
                s.due.no_later(key, at);
            }
        });
        self.changed.notify_one();
    }

    fn next(&self) -> Result<PolicyKey, Option<Instant>> {
        let now = Instant::now();
        self.state.with(|s| {
            if s.busy.len() >= READERS {
                return Err(None);
            }
            let busy = &s.busy;
            match s.due.take(now, |k| !busy.contains(k)) {
                Some(key) => {
                    s.busy.insert(key.clone());
                    s.last.insert(key.clone(), now);
                    Ok(key)
                }
                None => Err(s.due.wake(|k| !busy.contains(k))),
            }
        })
    }

    fn done(&self, key: &PolicyKey, failed: bool, seed: u64) {
        let now = Instant::now();
        self.state.with(|s| {
            s.busy.remove(key);
            if failed {
                let failures = s.failures.entry(key.clone()).or_default();
                *failures = failures.saturating_add(1);
                let wait = backoff(*failures, seed, key);
                s.due.no_later(key, now + wait);
            } else {
                s.failures.remove(key);
            }
        });
    }
}

type Loaded = Result<Vec<(Arc<str>, InvokerChangeSpec)>, Arc<str>>;

impl<C: CloudRun> Controller<C> {
    /// Reads records as they are asked for.
    pub(super) async fn load_rollbacks(self: Arc<Self>) {
        let mut running: JoinSet<(PolicyKey, Result<(), Fault>)> = JoinSet::new();
        loop {
            let changed = self.rollbacks.changed.notified();
            let wake = match self.rollbacks.next() {
                Ok(key) => {
                    let this = self.clone();
                    running.spawn(async move {
                        let result = this.load_rollback(&key).await;
                        (key, result)
                    });
                    continue;
                }
                Err(wake) => wake,
            };
            let wake = wake.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                Some(Ok((key, result))) = running.join_next() => {
                    if let Err(fault) = &result {
                        tracing::debug!(%fault, "records of changes to roll back could not be read; retrying");
                    }
                    self.rollbacks.done(&key, result.is_err(), self.options.seed);
                }
                () = changed => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    async fn load_rollback(&self, key: &PolicyKey) -> Result<(), Fault> {
        let asked = self
            .index
            .with(|i| i.policies().get(key).map(|r| r.intent.rollbacks.clone()));
        // Gone, or taken back meanwhile.
        let Some(asked) = asked.filter(|a| !a.is_empty()) else {
            return Ok(());
        };
        let found = self.read_records(key, &asked).await?;
        let now = self.now();
        let touched = self
            .index
            .with(|i| i.set_rollbacks(key, &asked, found, now));
        self.ask(&touched, Priority::Declared);
        self.statuses.add(key, Duration::from_millis(100));
        Ok(())
    }

    async fn read_records(&self, policy: &PolicyKey, asked: &[Arc<str>]) -> Result<Loaded, Fault> {
        let mut records = Vec::with_capacity(asked.len());
        for name in asked {
            let is_name =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
            if name.len() > MAX_NAME || !name.chars().all(is_name) {
                let start: String = name.chars().take(64).collect();
                return Ok(Err(format!(
                    "{start:?} is not the name of an InvokerChange; {CORRECT}"
                )
                .into()));
            }
            let namespace = &policy.namespace;
            let key = ChangeKey::new(namespace.clone(), name.clone());
            match self.cluster.change(&key).await? {
                Some(Ok(change)) => records.push((name.clone(), change.spec)),
                Some(Err(why)) => {
                    let why: String = why.chars().take(200).collect();
                    return Ok(Err(format!(
                        "InvokerChange {name} cannot be read ({why}); {CORRECT}"
                    )
                    .into()));
                }
                None => {
                    let why = format!(
                        "there is no InvokerChange {name} in namespace {namespace} to roll back; {CORRECT}"
                    );
                    return Ok(Err(why.into()));
                }
            }
        }
        Ok(Ok(records))
    }
}

const CORRECT: &str = "correct or remove the annotation run-invoker.dev/rollback";
