//! What the search of Cloud Asset sees while it lags behind: "almost all" changes are found within
//! minutes (<https://docs.cloud.google.com/asset-inventory/docs/faq>, data freshness).

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// Bindings by relative resource name.
pub type Policies = BTreeMap<String, Vec<Value>>;

/// Policies as they were a while ago, and the changes that have not been seen yet.
#[derive(Debug)]
pub struct Index {
    seen: Policies,
    /// In the order of time. Without bindings the resource is gone.
    coming: VecDeque<(Timestamp, String, Option<Vec<Value>>)>,
}

impl Index {
    pub fn new(seen: Policies) -> Self {
        Self {
            seen,
            coming: VecDeque::new(),
        }
    }

    /// A policy is different from `now` on.
    pub fn record(
        &mut self,
        now: Timestamp,
        delay: Duration,
        name: &str,
        bindings: Option<Vec<Value>>,
    ) {
        self.settle(now, delay);
        self.coming.push_back((now, name.to_owned(), bindings));
    }

    /// The policies as they were `delay` ago.
    pub fn settle(&mut self, now: Timestamp, delay: Duration) -> &Policies {
        let delay = SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX);
        let is_due = |at: &Timestamp| now.duration_since(*at) >= delay;
        while self.coming.front().is_some_and(|(at, ..)| is_due(at)) {
            match self.coming.pop_front() {
                Some((_, name, Some(bindings))) => {
                    self.seen.insert(name, bindings);
                }
                Some((_, name, None)) => {
                    self.seen.remove(&name);
                }
                None => {}
            }
        }
        &self.seen
    }
}
