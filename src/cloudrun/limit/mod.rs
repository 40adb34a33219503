//! Cloud Run within a budget: token buckets for each project and region, reads and writes apart.
//!
//! Nothing waits in here. A call needs a [`Token`]; who gets none is told when to ask again, and
//! waits where waiting holds nothing that others need (the queue of services). A bucket never lets
//! more through in any 60 seconds than its budget: burst and refill add up to it. A 429 halves the
//! refill and stops the bucket for as long as Google asked, within reason; where it names the real
//! limit, at most half of that is used from then on.

mod bucket;
mod client;
mod report;
mod tokens;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::Scope;
use crate::{fault::Fault, iam::RunService};

use bucket::Bucket;
pub use client::Limited;
pub use report::{BudgetReport, CallReport, PlaceReport};
pub use tokens::{Token, Tokens};

/// Calls per minute, for each project and region.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Projects were seen with 600 in a minute and region.
    pub reads_per_minute: u32,
    /// Projects were seen with 30, and with 60, in a minute and region; people and pipelines need
    /// their part.
    pub writes_per_minute: u32,
    /// Services worked on at once, over everything.
    pub concurrency: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            reads_per_minute: 300,
            writes_per_minute: 15,
            concurrency: 64,
        }
    }
}

/// A project and region: Google counts calls for each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub project: Arc<str>,
    /// `-`: a list over every region.
    pub region: Arc<str>,
}

impl Place {
    /// Where a service is.
    pub fn of(service: &RunService) -> Self {
        Self {
            project: service.project.clone(),
            region: service.region.clone(),
        }
    }

    /// Where a list is counted.
    pub fn of_list(project: &Arc<str>, scope: &Scope) -> Self {
        let region = match scope {
            Scope::Region(region) => region.clone(),
            Scope::AllRegions => "-".into(),
        };
        Self {
            project: project.clone(),
            region,
        }
    }
}

/// What a call counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Read,
    Write,
}

/// How many calls somebody is about to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Needs {
    pub reads: u32,
    pub writes: u32,
}

impl Needs {
    /// To look at a service.
    pub const READ: Self = Self {
        reads: 1,
        writes: 0,
    };
    /// To write one that was read, and read it back.
    pub const WRITE: Self = Self {
        reads: 1,
        writes: 1,
    };
    /// To look at a service that will have to be written, write it, and read it back.
    pub const CHANGE: Self = Self {
        reads: 2,
        writes: 1,
    };
}

/// Places beyond which those that are as good as new are forgotten.
const MANY_PLACES: usize = 1024;

#[derive(Debug)]
struct Buckets {
    reads: Bucket,
    writes: Bucket,
}

impl Buckets {
    fn of(&mut self, kind: Kind) -> &mut Bucket {
        match kind {
            Kind::Read => &mut self.reads,
            Kind::Write => &mut self.writes,
        }
    }
}

/// The budgets of every place.
#[derive(Debug)]
pub struct Budgets {
    budget: Budget,
    places: Mutex<HashMap<Place, Buckets>>,
}

/// The most that a bucket lets through, as it was learnt or is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub reads_per_minute: u32,
    pub writes_per_minute: u32,
}

/// The worst of all places, each number by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tightest {
    /// Calls a minute that the operator lets itself have.
    pub budget: u32,
    /// The least limit that Google named within the last hour.
    pub limit: Option<u32>,
    /// The largest share of a budget that was used within a minute; over 1 where a budget shrank.
    pub used: f64,
}

impl Budgets {
    pub fn new(budget: Budget) -> Arc<Self> {
        Arc::new(Self {
            budget,
            places: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, Buckets>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(&self, place: &Place, now: Instant, f: impl FnOnce(&mut Buckets) -> R) -> R {
        let mut places = self.lock();
        if !places.contains_key(place) {
            if places.len() >= MANY_PLACES {
                places.retain(|_, b| !(b.reads.is_as_new(now) && b.writes.is_as_new(now)));
            }
            let buckets = Buckets {
                reads: Bucket::new(self.budget.reads_per_minute, Kind::Read, now),
                writes: Bucket::new(self.budget.writes_per_minute, Kind::Write, now),
            };
            places.insert(place.clone(), buckets);
        }
        match places.get_mut(place) {
            Some(buckets) => f(buckets),
            None => unreachable!("it was just put there"),
        }
    }

    /// How long until these calls may be made; zero: now.
    pub fn wait(&self, place: &Place, needs: Needs) -> Duration {
        let now = Instant::now();
        self.with(place, now, |b| {
            b.reads
                .wait(needs.reads, now)
                .max(b.writes.wait(needs.writes, now))
        })
    }

    /// Tokens for these calls.
    ///
    /// # Errors
    /// When to ask again. Nothing is held then.
    pub fn reserve(self: &Arc<Self>, place: &Place, needs: Needs) -> Result<Tokens, Duration> {
        let now = Instant::now();
        self.with(place, now, |b| {
            let wait = b
                .reads
                .wait(needs.reads, now)
                .max(b.writes.wait(needs.writes, now));
            if !wait.is_zero() {
                return Err(wait);
            }
            b.reads.held += needs.reads;
            b.writes.held += needs.writes;
            Ok(())
        })?;
        let token = |kind| Token {
            budgets: self.clone(),
            place: place.clone(),
            kind,
        };
        Ok(Tokens {
            reads: (0..needs.reads).map(|_| token(Kind::Read)).collect(),
            writes: (0..needs.writes).map(|_| token(Kind::Write)).collect(),
            has_written: false,
        })
    }

    fn pushed_back(&self, place: &Place, kind: Kind, fault: &Fault) {
        let now = Instant::now();
        self.with(place, now, |b| {
            b.of(kind)
                .pushed_back(now, fault.retry_after, fault.quota_limit)
        });
    }

    /// What a place lets through in a minute.
    pub fn limits(&self, place: &Place) -> Limits {
        self.with(place, Instant::now(), |b| Limits {
            reads_per_minute: b.reads.per_minute,
            writes_per_minute: b.writes.per_minute,
        })
    }

    /// Of the place that is nearest to its budget.
    pub fn tightest(&self, kind: Kind) -> Tightest {
        let now = Instant::now();
        let mut tightest = Tightest {
            budget: match kind {
                Kind::Read => self.budget.reads_per_minute,
                Kind::Write => self.budget.writes_per_minute,
            },
            ..Tightest::default()
        };
        for buckets in self.lock().values_mut() {
            let bucket = buckets.of(kind);
            bucket.refill(now);
            let used = bucket.usage.per_minute(now) / f64::from(bucket.per_minute);
            tightest.budget = tightest.budget.min(bucket.per_minute);
            let limit = bucket.learnt.map(|(_, limit)| limit);
            tightest.limit = [tightest.limit, limit].into_iter().flatten().min();
            tightest.used = tightest.used.max(used);
        }
        tightest
    }
}

#[cfg(test)]
mod tests;
