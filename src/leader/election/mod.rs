//! The election: takes, renews and hands over the Leases of the shards.
//!
//! Own code for two reasons: kube-leader-election renews without a precondition, and
//! kube-lease-manager writes strategic merge patches, which not every server takes for Leases;
//! neither shares several. Every write here is a replace under the resourceVersion that was read,
//! and time is this process's monotonic clock only: how long a holder has been silent is measured
//! here, never read from another machine's clock.

mod lease;
mod members;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use tokio::{sync::watch, time::Instant};

use super::{Shards, share::quota};

use members::{Holder, Seen, View, is_free};

/// On the Lease of the members: a JSON object from the identity of each replica to the time of its
/// last sign of life.
const MEMBERS: &str = "run-invoker.dev/members";

/// How Leases are kept.
#[derive(Clone, Debug)]
pub struct Options {
    pub namespace: String,
    /// Name of the Lease; with several shards, what their names begin with.
    pub name: String,
    /// Names this replica in the Leases.
    pub identity: String,
    /// After this much silence of a holder another replica takes over.
    pub duration: Duration,
    /// How often a holder renews.
    pub renew: Duration,
    /// How long work under way may delay that a shard is handed over.
    pub grace: Duration,
    /// The wall clock, for the times that people read in a Lease.
    pub now: Now,
    /// What else is said on the Leases that are held.
    pub note: Note,
}

/// Annotations for the Lease of a shard. They are written with a renewal, and never cause one.
#[derive(Clone)]
pub struct Note(pub Arc<dyn Fn(usize) -> BTreeMap<String, String> + Send + Sync>);

impl Default for Note {
    fn default() -> Self {
        Self(Arc::new(|_| BTreeMap::new()))
    }
}

impl std::fmt::Debug for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a note")
    }
}

/// A wall clock.
#[derive(Clone)]
pub struct Now(pub Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>);

impl std::fmt::Debug for Now {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a clock")
    }
}

impl Options {
    /// Name of a shard's Lease. The number of shards is in it: with another number, projects are in
    /// other shards.
    fn lease(&self, shard: usize, count: usize) -> String {
        if count == 1 {
            self.name.clone()
        } else {
            format!("{}-{shard}-of-{count}", self.name)
        }
    }

    /// Of a Lease that is a shard's: which, of how many.
    fn shard(&self, lease: &str) -> Option<(usize, usize)> {
        if lease == self.name {
            return Some((0, 1));
        }
        let (shard, count) = lease
            .strip_prefix(&self.name)?
            .strip_prefix('-')?
            .split_once("-of-")?;
        Some((shard.parse().ok()?, count.parse().ok()?))
    }

    /// Name of the Lease in which the replicas say that they are there.
    fn members(&self, count: usize) -> String {
        format!("{}-members-of-{count}", self.name)
    }

    /// What others wait for, in the whole seconds that a Lease can say.
    fn seconds(&self) -> u64 {
        (self.duration.as_millis().div_ceil(1000) as u64).max(1)
    }

    /// Differs between replicas, so that they do not all reach for the same thing at once.
    fn jitter(&self) -> Duration {
        Duration::from_millis(
            20 + self
                .identity
                .bytes()
                .fold(0u64, |h, b| (h * 31 + u64::from(b)) % 80),
        )
    }
}

struct Election {
    api: Api<Lease>,
    options: Options,
    shards: Arc<Shards>,
    seen: HashMap<String, Seen>,
    /// When each shard began to be left.
    leaving: HashMap<usize, Instant>,
}

/// Takes part in the election until `stop` is true, then gives every Lease up.
pub async fn run(
    client: Client,
    options: Options,
    shards: Arc<Shards>,
    mut stop: watch::Receiver<bool>,
) {
    let api = Api::namespaced(client, &options.namespace);
    let mut this = Election {
        api,
        options,
        shards,
        seen: HashMap::new(),
        leaving: HashMap::new(),
    };
    if this.shards.count() > 1 {
        // Replicas that start together see each other before the first takes everything.
        let _ = this.within(this.announce()).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    loop {
        let limit = this.options.renew.max(Duration::from_millis(500));
        // A call that hangs must not outlive the certainty that the last renewal gave.
        let wake = match tokio::time::timeout(limit, this.elect()).await {
            Ok(Ok(wake)) => wake,
            Ok(Err(e)) => {
                tracing::warn!(error = %e, "the leases could not be read or renewed");
                this.options.renew / 2
            }
            Err(_) => Duration::from_millis(50),
        };
        this.shards.expire();
        // Also between two elections a shard can run out.
        tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s) => break,
            () = tokio::time::sleep(wake.min(this.options.renew)) => {}
        }
    }
    let held: Vec<usize> = (0..this.shards.count())
        .filter(|s| this.shards.holds_shard(*s))
        .collect();
    for shard in 0..this.shards.count() {
        this.shards.lose(shard);
    }
    let _ = tokio::time::timeout(this.options.renew, this.retire(&held)).await;
}

impl Election {
    async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, kube::Error> {
        match tokio::time::timeout(self.options.renew, call).await {
            Ok(result) => result,
            Err(_) => Err(kube::Error::Service(
                "the Kubernetes API did not answer in time".into(),
            )),
        }
    }

    /// Reads every Lease, renews what is held, and takes or gives up what fairness says. Returns
    /// when to do it again.
    async fn elect(&mut self) -> Result<Duration, kube::Error> {
        let count = self.shards.count();
        let view = self.read_leases().await?;
        let members = self.members(&view).await?;
        self.renew(&view).await;
        let mine = |s: &usize| self.shards.holds_shard(*s) && !self.shards.is_leaving(*s);
        let mut led: Vec<usize> = (0..count).filter(mine).collect();
        let quota = quota(count, &self.options.identity, &members);
        while led.len() > quota
            && let Some(shard) = led.pop()
        {
            tracing::info!(
                shard,
                replicas = members.len(),
                "this shard is handed over, for fair shares"
            );
            self.shards.leave(shard);
            self.leaving.insert(shard, Instant::now());
        }
        self.hand_over().await?;
        let mut wake = self.options.renew;
        if !self.leaving.is_empty() {
            wake = Duration::from_millis(50);
        }
        for (_, holder) in view.shards.iter().flatten() {
            if let Holder::Other(_, left) = holder {
                wake = wake.min(*left + self.options.jitter());
            }
        }
        if let Some(left) = view.foreign {
            tracing::info!(
                "replicas with another number of shards are at work; this one waits until they are gone"
            );
            return Ok(wake.min(left + self.options.jitter()));
        }
        let free: Vec<usize> = (0..count)
            .filter(|s| !self.shards.holds_shard(*s) && is_free(&view, *s))
            .collect();
        let wanted = quota.saturating_sub(led.len());
        let taken = self.take(&view, free.iter().take(wanted)).await?;
        if taken < wanted.min(free.len()) {
            // Somebody else was first; what is free now shows at the next read.
            wake = wake.min(Duration::from_millis(100) + self.options.jitter());
        }
        Ok(wake)
    }

    /// Renews every Lease that is held here.
    async fn renew(&self, view: &View) {
        let mine = view
            .shards
            .iter()
            .enumerate()
            .filter_map(|(shard, lease)| match lease {
                Some((lease, Holder::Me)) if self.shards.holds_shard(shard) => Some((shard, lease)),
                _ => None,
            });
        let calls = mine.map(|(shard, lease)| async move {
            let asked = Instant::now();
            match self.write(shard, Some(lease)).await {
                Ok(true) => self.shards.keep(shard, self.until(asked)),
                Ok(false) => self.shards.lose(shard),
                // It holds for as long as the last renewal said.
                Err(e) => tracing::warn!(shard, error = %e, "a lease could not be renewed"),
            }
        });
        join_all(calls).await;
        for (shard, lease) in view.shards.iter().enumerate() {
            if !matches!(lease, Some((_, Holder::Me))) {
                self.shards.lose(shard);
            }
        }
    }

    /// Counted from before the request, and shorter than what others wait.
    fn until(&self, asked: Instant) -> Instant {
        asked + self.options.duration.saturating_sub(self.options.renew)
    }
}

#[cfg(test)]
mod tests;
