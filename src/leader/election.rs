//! The election: takes, renews and hands over the Leases of the shards.
//!
//! Own code for two reasons: kube-leader-election renews without a precondition, and
//! kube-lease-manager writes strategic merge patches, which not every server takes for Leases;
//! neither shares several. Every write here is a replace under the resourceVersion that was read,
//! and time is this process's monotonic clock only: how long a holder has been silent is measured
//! here, never read from another machine's clock.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, PostParams},
};
use tokio::{sync::watch, time::Instant};

use super::{Shards, share::quota};

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

/// A state of something that others renew, and when it was first seen here.
#[derive(Debug)]
struct Seen {
    state: String,
    since: Instant,
}

/// Takes down a state; how long it has stood.
fn silence(seen: &mut HashMap<String, Seen>, name: &str, state: String) -> Duration {
    let now = Instant::now();
    match seen.get_mut(name) {
        Some(known) if known.state == state => now - known.since,
        _ => {
            seen.insert(name.to_owned(), Seen { state, since: now });
            Duration::ZERO
        }
    }
}

/// Who has a shard.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    Nobody,
    Me,
    /// Somebody else, for at least this long unless renewed.
    Other(String, Duration),
}

/// What the Leases say.
#[derive(Debug, Default)]
struct View {
    shards: Vec<Option<(Lease, Holder)>>,
    /// Replicas that were started with another number of shards still hold some.
    foreign: Option<Duration>,
    members: Option<Lease>,
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

    /// Reads every Lease at once.
    async fn read_leases(&mut self) -> Result<View, kube::Error> {
        let count = self.shards.count();
        let members = self.options.members(count);
        let list = self.within(self.api.list(&ListParams::default())).await?;
        let mut view = View {
            shards: (0..count).map(|_| None).collect(),
            ..View::default()
        };
        for lease in list.items {
            let name = lease.name_any();
            if count > 1 && name == members {
                view.members = Some(lease);
                continue;
            }
            let Some((shard, of)) = self.options.shard(&name) else {
                continue;
            };
            let holder = self.holder(&name, lease.spec.as_ref());
            if of == count && shard < count {
                view.shards[shard] = Some((lease, holder));
            } else if let Holder::Other(_, left) = holder {
                view.foreign = Some(view.foreign.map_or(left, |l: Duration| l.min(left)));
            }
        }
        Ok(view)
    }

    fn holder(&mut self, name: &str, spec: Option<&LeaseSpec>) -> Holder {
        let holder = spec
            .and_then(|s| s.holder_identity.clone())
            .filter(|h| !h.is_empty());
        let renewals = spec
            .and_then(|s| s.renew_time.as_ref())
            .map(|t| t.0.to_string());
        let silent = silence(&mut self.seen, name, format!("{holder:?} {renewals:?}"));
        let theirs = spec
            .and_then(|s| s.lease_duration_seconds)
            .and_then(|s| u64::try_from(s).ok())
            .map_or(self.options.duration, Duration::from_secs);
        match holder {
            None => Holder::Nobody,
            Some(h) if h == self.options.identity => Holder::Me,
            Some(_) if silent >= theirs => Holder::Nobody,
            Some(h) => Holder::Other(h, theirs - silent),
        }
    }

    /// Says that this replica is there, and reads who else is. Returns how many shards each of them
    /// holds.
    async fn members(&mut self, view: &View) -> Result<BTreeMap<String, usize>, kube::Error> {
        let me = self.options.identity.clone();
        let mut held = BTreeMap::from([(me.clone(), 0)]);
        if self.shards.count() > 1 {
            let listed = view.members.as_ref().map(signs_of_life).unwrap_or_default();
            let mut dead = Vec::new();
            for (member, sign) in &listed {
                let silent = silence(&mut self.seen, &format!("member {member}"), sign.clone());
                if silent < self.options.duration {
                    held.entry(member.clone()).or_insert(0);
                } else if silent > self.options.duration * 3 {
                    dead.push(member.clone());
                }
            }
            self.sign(view.members.clone(), &dead).await?;
        }
        for (_, holder) in view.shards.iter().flatten() {
            let name = match holder {
                Holder::Me => &me,
                Holder::Other(name, _) => name,
                Holder::Nobody => continue,
            };
            if let Some(n) = held.get_mut(name) {
                *n += 1;
            }
        }
        Ok(held)
    }

    /// Makes the Lease of the members if there is none, with this replica in it.
    async fn announce(&self) -> Result<(), kube::Error> {
        let name = self.options.members(self.shards.count());
        let list = self.api.list(&ListParams::default()).await?;
        self.sign(list.items.into_iter().find(|l| l.name_any() == name), &[])
            .await
    }

    /// Renews this replica's sign of life, and takes out those of the dead. A lost race is made
    /// good in the next election.
    async fn sign(&self, lease: Option<Lease>, dead: &[String]) -> Result<(), kube::Error> {
        let name = self.options.members(self.shards.count());
        let mut signs = lease.as_ref().map(signs_of_life).unwrap_or_default();
        signs.retain(|m, _| !dead.contains(m));
        signs.insert(
            self.options.identity.clone(),
            (self.options.now.0)().to_string(),
        );
        let text = serde_json::to_string(&signs).unwrap_or_default();
        let fresh = lease.is_none();
        let mut lease = lease.unwrap_or_default();
        lease.metadata.name = Some(name.clone());
        lease
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(MEMBERS.into(), text);
        let result = if fresh {
            self.within(self.api.create(&PostParams::default(), &lease))
                .await
        } else {
            self.within(self.api.replace(&name, &PostParams::default(), &lease))
                .await
        };
        won(result).map(|_| ())
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

    /// Takes shards that nobody has. Returns how many it got.
    async fn take(
        &self,
        view: &View,
        free: impl Iterator<Item = &usize>,
    ) -> Result<usize, kube::Error> {
        let calls = free.map(|shard| async move {
            let asked = Instant::now();
            let lease = view
                .shards
                .get(*shard)
                .and_then(Option::as_ref)
                .map(|(lease, _)| lease);
            self.write(*shard, lease)
                .await
                .map(|got| (*shard, asked, got))
        });
        let mut taken = Vec::new();
        for result in join_all(calls).await {
            match result {
                Ok((shard, asked, true)) => taken.push((shard, asked)),
                Ok(_) => {}
                Err(e) => tracing::warn!(error = %e, "a lease could not be taken"),
            }
        }
        if taken.is_empty() {
            return Ok(0);
        }
        // Whoever took a shard under another number at the same moment sees this one, or is seen
        // here.
        let count = self.shards.count();
        let list = self.within(self.api.list(&ListParams::default())).await?;
        let foreign = list.items.iter().any(|l| {
            let held = l
                .spec
                .as_ref()
                .and_then(|s| s.holder_identity.as_deref())
                .is_some_and(|h| !h.is_empty());
            let stale = self
                .seen
                .get(&l.name_any())
                .is_some_and(|s| s.since.elapsed() >= self.options.duration);
            held && !stale
                && self
                    .options
                    .shard(&l.name_any())
                    .is_some_and(|(_, of)| of != count)
        });
        if foreign {
            for (shard, _) in taken {
                self.release(shard).await?;
            }
            return Ok(0);
        }
        for (shard, asked) in &taken {
            tracing::info!(shard, of = count, "this shard is worked on here");
            self.shards.keep(*shard, self.until(*asked));
        }
        Ok(taken.len())
    }

    /// Gives up the shards that are left, once nothing is under way on them.
    async fn hand_over(&mut self) -> Result<(), kube::Error> {
        let ready = |(s, since): &(&usize, &Instant)| {
            self.shards.is_idle(**s) || since.elapsed() > self.options.grace
        };
        let done: Vec<usize> = self.leaving.iter().filter(ready).map(|(s, _)| *s).collect();
        for shard in done {
            // From here on nothing of ours may write, whatever is still under way.
            self.shards.lose(shard);
            self.leaving.remove(&shard);
            self.release(shard).await?;
        }
        let lost: Vec<usize> = self
            .leaving
            .keys()
            .filter(|s| !self.shards.is_leaving(**s))
            .copied()
            .collect();
        for shard in lost {
            self.leaving.remove(&shard);
        }
        Ok(())
    }

    /// Writes this replica into a shard's Lease. False: somebody else was first.
    async fn write(&self, shard: usize, lease: Option<&Lease>) -> Result<bool, kube::Error> {
        let name = self.options.lease(shard, self.shards.count());
        let Some(lease) = lease else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(name);
            lease.spec = Some(hold(&self.options, None));
            return won(self
                .within(self.api.create(&PostParams::default(), &lease))
                .await);
        };
        let mut lease = lease.clone();
        lease.spec = Some(hold(&self.options, lease.spec.as_ref()));
        won(self
            .within(self.api.replace(&name, &PostParams::default(), &lease))
            .await)
    }

    /// Empties a Lease, so that another replica need not wait for it to run out.
    async fn release(&self, shard: usize) -> Result<(), kube::Error> {
        let name = self.options.lease(shard, self.shards.count());
        let list = self.within(self.api.list(&ListParams::default())).await?;
        let Some(mut lease) = list.items.into_iter().find(|l| l.name_any() == name) else {
            return Ok(());
        };
        let mine =
            |s: &&mut LeaseSpec| s.holder_identity.as_deref() == Some(&self.options.identity);
        let Some(spec) = lease.spec.as_mut().filter(mine) else {
            return Ok(());
        };
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        won(self
            .within(self.api.replace(&name, &PostParams::default(), &lease))
            .await)
        .map(|_| ())
    }

    /// The end of this replica: its Leases are free, and it counts no more.
    async fn retire(&self, held: &[usize]) -> Result<(), kube::Error> {
        for shard in held {
            self.release(*shard).await?;
        }
        let count = self.shards.count();
        if count > 1 {
            let name = self.options.members(count);
            let list = self.within(self.api.list(&ListParams::default())).await?;
            if let Some(mut lease) = list.items.into_iter().find(|l| l.name_any() == name) {
                let mut signs = signs_of_life(&lease);
                signs.remove(&self.options.identity);
                let text = serde_json::to_string(&signs).unwrap_or_default();
                lease
                    .metadata
                    .annotations
                    .get_or_insert_default()
                    .insert(MEMBERS.into(), text);
                won(self
                    .within(self.api.replace(&name, &PostParams::default(), &lease))
                    .await)?;
            }
        }
        Ok(())
    }
}

/// Nobody has it, or a process of this very identity had it before.
fn is_free(view: &View, shard: usize) -> bool {
    view.shards
        .get(shard)
        .is_some_and(|s| !matches!(s, Some((_, Holder::Other(..)))))
}

/// What the replicas said last. What cannot be read says nothing.
fn signs_of_life(lease: &Lease) -> BTreeMap<String, String> {
    let text = lease
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(MEMBERS));
    text.and_then(|t| serde_json::from_str(t).ok())
        .unwrap_or_default()
}

/// A lost race is no error: somebody else was first.
fn won(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(s)) if s.code == 409 => Ok(false),
        Err(e) => Err(e),
    }
}

fn hold(options: &Options, before: Option<&LeaseSpec>) -> LeaseSpec {
    let now = MicroTime((options.now.0)());
    let same = before.is_some_and(|b| b.holder_identity.as_deref() == Some(&options.identity));
    let transitions = before.and_then(|b| b.lease_transitions).unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(options.identity.clone()),
        lease_duration_seconds: i32::try_from(options.seconds()).ok(),
        acquire_time: if same {
            before.and_then(|b| b.acquire_time.clone())
        } else {
            Some(now.clone())
        },
        renew_time: Some(now),
        lease_transitions: Some(if before.is_none() || same {
            transitions
        } else {
            transitions + 1
        }),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_leases_say_which_shard_of_how_many() {
        let options = Options {
            namespace: "n".into(),
            name: "run-invoker".into(),
            identity: "a".into(),
            duration: Duration::from_millis(6500),
            renew: Duration::from_secs(2),
            grace: Duration::from_secs(1),
            now: Now(Arc::new(|| jiff::Timestamp::UNIX_EPOCH)),
        };
        assert_eq!(options.lease(0, 1), "run-invoker");
        assert_eq!(options.lease(2, 4), "run-invoker-2-of-4");
        assert_eq!(options.shard("run-invoker-2-of-4"), Some((2, 4)));
        assert_eq!(options.shard("run-invoker"), Some((0, 1)));
        for other in [
            "run-invoker-circuit",
            "run-invoker-members-of-4",
            "run-invokers-2-of-4",
            "else",
        ] {
            assert_eq!(options.shard(other), None, "{other}");
        }
        assert_eq!(
            options.seconds(),
            7,
            "others never wait for less than the holder believes"
        );
    }
}
