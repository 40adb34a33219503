//! What a replica says about its calls: on the Leases of its shards, where `doctor` reads it with
//! the right that it has already.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Budgets, bucket::Bucket};

/// The places that a report names: a Lease is written every few seconds.
const MOST: usize = 20;

/// The budgets of a shard's projects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetReport {
    /// The fullest first.
    pub places: Vec<PlaceReport>,
    /// How many more there are, none of them fuller.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub others: usize,
}

/// A project and region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceReport {
    pub project: String,
    /// `-`: lists over every region.
    pub region: String,
    pub reads: CallReport,
    pub writes: CallReport,
}

/// Calls in a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallReport {
    /// What Google named as its limit within the last hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// What the operator lets itself have.
    pub budget: u32,
    pub used: u32,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl CallReport {
    fn of(bucket: &mut Bucket, now: Instant) -> Self {
        bucket.refill(now);
        Self {
            limit: bucket.learnt.map(|(_, limit)| limit),
            budget: bucket.per_minute,
            used: bucket.usage.per_minute(now).round() as u32,
        }
    }

    /// The share of the budget that is used.
    pub fn share(&self) -> f64 {
        f64::from(self.used) / f64::from(self.budget.max(1))
    }
}

impl PlaceReport {
    /// How near the place is to either of its budgets.
    pub fn share(&self) -> f64 {
        self.reads.share().max(self.writes.share())
    }
}

impl BudgetReport {
    fn of(mut places: Vec<PlaceReport>) -> Self {
        let name = |p: &PlaceReport| (p.project.clone(), p.region.clone());
        places.sort_by(|a, b| {
            let fuller = b.share().total_cmp(&a.share());
            fuller.then_with(|| name(a).cmp(&name(b)))
        });
        let others = places.len().saturating_sub(MOST);
        places.truncate(MOST);
        Self { places, others }
    }
}

impl BudgetReport {
    /// Reads what is on a Lease. `None`: no operator wrote that.
    pub fn read(text: &str) -> Option<Self> {
        let report: Self = serde_json::from_str(text).ok()?;
        (report.places.len() <= MOST).then_some(report)
    }
}

impl Budgets {
    /// The budgets of projects that are `ours`, as far as they were used or a limit was learnt.
    pub fn report(&self, ours: &dyn Fn(&str) -> bool) -> BudgetReport {
        let now = Instant::now();
        let mut places = self.lock();
        let told = places.iter_mut().filter(|(place, _)| ours(&place.project));
        BudgetReport::of(
            told.map(|(place, buckets)| PlaceReport {
                project: place.project.to_string(),
                region: place.region.to_string(),
                reads: CallReport::of(&mut buckets.reads, now),
                writes: CallReport::of(&mut buckets.writes, now),
            })
            .filter(|p| {
                let calls = [p.reads, p.writes];
                calls.iter().any(|c| c.used > 0 || c.limit.is_some())
            })
            .collect(),
        )
    }
}
