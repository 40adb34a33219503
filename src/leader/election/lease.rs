//! Taking a lease, handing it over and giving it up.

use futures::future::join_all;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    ResourceExt as _,
    api::{ListParams, PostParams},
};
use tokio::time::Instant;

use super::{
    Election, MEMBERS, Options,
    members::{View, signs_of_life},
};

impl Election {
    /// Takes shards that nobody has. Returns how many it got.
    pub(super) async fn take(
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
    pub(super) async fn hand_over(&mut self) -> Result<(), kube::Error> {
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
    pub(super) async fn write(
        &self,
        shard: usize,
        lease: Option<&Lease>,
    ) -> Result<bool, kube::Error> {
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
        let note = (self.options.note.0)(shard);
        if !note.is_empty() {
            lease
                .metadata
                .annotations
                .get_or_insert_default()
                .extend(note);
        }
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
    pub(super) async fn retire(&self, held: &[usize]) -> Result<(), kube::Error> {
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

/// A lost race is no error: somebody else was first.
pub(super) fn won(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(s)) if s.code == 409 => Ok(false),
        Err(e) => Err(e),
    }
}

pub(super) fn hold(options: &Options, before: Option<&LeaseSpec>) -> LeaseSpec {
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
