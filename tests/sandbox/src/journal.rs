//! Every request that was received, in order, so that tests can count calls.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use serde::Serialize;
use serde_json::Value;

/// Which of the sandbox's APIs was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    Kube,
    Run,
    Control,
}

/// One request.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub number: u64,
    pub at: String,
    /// Milliseconds since the sandbox started, on a monotonic clock.
    pub elapsed_ms: u64,
    pub api: Api,
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Service and method of a request to Google's APIs, such as
    /// `AssetService.SearchAllIamPolicies`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rpc: String,
    pub user_agent: String,
    /// What the client asked to be answered with.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub accept: String,
    /// 0 where the connection was cut without an answer.
    pub status: u16,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub body: Value,
}

impl Entry {
    /// The path without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// The most entries that are kept; the oldest go first.
const CAPACITY: usize = 400_000;

/// The journal.
#[derive(Debug)]
pub struct Journal {
    entries: Mutex<(u64, std::collections::VecDeque<Entry>)>,
    started: tokio::time::Instant,
    without_bodies: AtomicBool,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            started: tokio::time::Instant::now(),
            without_bodies: AtomicBool::new(false),
        }
    }
}

impl Journal {
    fn lock(&self) -> MutexGuard<'_, (u64, std::collections::VecDeque<Entry>)> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps no bodies from now on: for measuring with objects of a megabyte.
    pub fn leave_bodies_out(&self) {
        self.without_bodies.store(true, Ordering::Relaxed);
    }

    pub(crate) fn keeps_bodies(&self) -> bool {
        !self.without_bodies.load(Ordering::Relaxed)
    }

    /// Enters a request; its number comes back, so that the answer can be added.
    pub fn enter(&self, mut entry: Entry) -> u64 {
        let elapsed = self.started.elapsed().as_millis() as u64;
        let mut inner = self.lock();
        inner.0 += 1;
        entry.number = inner.0;
        entry.elapsed_ms = elapsed;
        let number = entry.number;
        if inner.1.len() == CAPACITY {
            inner.1.pop_front();
        }
        inner.1.push_back(entry);
        number
    }

    /// Adds the status of the answer.
    pub fn answered(&self, number: u64, status: u16) {
        let mut inner = self.lock();
        let Some(first) = inner.1.front().map(|e| e.number) else {
            return;
        };
        if let Some(entry) = number
            .checked_sub(first)
            .and_then(|i| inner.1.get_mut(i as usize))
        {
            entry.status = status;
        }
    }

    /// How often a method of Google's APIs was called after `number`: `Projects.GetIamPolicy`, or
    /// `GetIamPolicy` of whatever service.
    pub fn calls(&self, number: u64, rpc: &str) -> usize {
        let is_it = |e: &Entry| {
            let method = e.rpc.rsplit('.').next().unwrap_or_default();
            e.api == Api::Run && (e.rpc == rpc || method == rpc)
        };
        self.since(number, is_it).len()
    }

    /// The number of the last request.
    pub fn last(&self) -> u64 {
        self.lock().0
    }

    /// The requests after `number` that pass `keep`.
    pub fn since(&self, number: u64, keep: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let inner = self.lock();
        let first = inner.1.front().map_or(0, |e| e.number);
        let older = (number + 1).saturating_sub(first) as usize;
        inner
            .1
            .iter()
            .skip(older)
            .filter(|e| keep(e))
            .cloned()
            .collect()
    }
}
