//! Who else is there: leases and members as they were read, and who is silent.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{
    ResourceExt as _,
    api::{ListParams, PostParams},
};
use tokio::time::Instant;

use super::{Election, MEMBERS, lease::won};

/// A state of something that others renew, and when it was first seen here.
#[derive(Debug)]
pub(super) struct Seen {
    state: String,
    pub(super) since: Instant,
}

/// Takes down a state; how long it has stood.
pub(super) fn silence(seen: &mut HashMap<String, Seen>, name: &str, state: String) -> Duration {
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
pub(super) enum Holder {
    Nobody,
    Me,
    /// Somebody else, for at least this long unless renewed.
    Other(String, Duration),
}

/// What the Leases say.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) shards: Vec<Option<(Lease, Holder)>>,
    /// Replicas that were started with another number of shards still hold some.
    pub(super) foreign: Option<Duration>,
    pub(super) members: Option<Lease>,
}

impl Election {
    /// Reads every Lease at once.
    pub(super) async fn read_leases(&mut self) -> Result<View, kube::Error> {
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
    pub(super) async fn members(
        &mut self,
        view: &View,
    ) -> Result<BTreeMap<String, usize>, kube::Error> {
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
    pub(super) async fn announce(&self) -> Result<(), kube::Error> {
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
}

/// Nobody has it, or a process of this very identity had it before.
pub(super) fn is_free(view: &View, shard: usize) -> bool {
    view.shards
        .get(shard)
        .is_some_and(|s| !matches!(s, Some((_, Holder::Other(..)))))
}

/// What the replicas said last. What cannot be read says nothing.
pub(super) fn signs_of_life(lease: &Lease) -> BTreeMap<String, String> {
    let text = lease
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(MEMBERS));
    text.and_then(|t| serde_json::from_str(t).ok())
        .unwrap_or_default()
}
