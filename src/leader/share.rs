//! Which shard a project is in, and how many shards a replica holds. No state, no clock.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

/// The shard of a project, by rendezvous hashing: of all shards the one with the highest weight for
/// the project. With another number of shards only the projects move that have to. Replicas of
/// different versions must agree, so the hash is SHA-256, which does not change, and not the
/// standard library's, which may.
pub fn shard_of(project: &str, count: usize) -> usize {
    (0..count)
        .max_by_key(|shard| weight(project, *shard))
        .unwrap_or(0)
}

fn weight(project: &str, shard: usize) -> u64 {
    let digest = Sha256::digest(format!("{shard}/{project}"));
    digest
        .iter()
        .take(8)
        .fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

/// The number of shards that `me` may hold, where `members` says how many each replica holds now.
/// Shares differ by one at most; those who hold more keep the larger share, so that as few shards
/// as possible change hands.
pub fn quota(count: usize, me: &str, members: &BTreeMap<String, usize>) -> usize {
    let replicas = members.len().max(1);
    let (base, extra) = (count / replicas, count % replicas);
    let mut ranks: Vec<_> = members
        .iter()
        .map(|(name, held)| (std::cmp::Reverse(*held), name))
        .collect();
    ranks.sort();
    let rank = ranks
        .iter()
        .position(|(_, name)| *name == me)
        .unwrap_or(replicas);
    base + usize::from(rank < extra)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn projects_spread_evenly_and_for_ever_in_the_same_way() {
        let mut sizes = [0; 4];
        for n in 0..4000 {
            sizes[shard_of(&format!("acme-{n}"), 4)] += 1;
        }
        assert!(sizes.iter().all(|s| (850..1150).contains(s)), "{sizes:?}");
        // Another result would let two versions work on one project at once.
        let fixed: Vec<usize> = ["acme-prod", "acme-test", "payments", "web"]
            .map(|p| shard_of(p, 8))
            .into();
        assert_eq!(fixed, FIXED);
    }
    const FIXED: [usize; 4] = [3, 5, 7, 4];

    #[test]
    fn another_shard_moves_only_what_goes_there() {
        for n in 0..1000 {
            let project = format!("acme-{n}");
            let (before, after) = (shard_of(&project, 3), shard_of(&project, 4));
            assert!(before == after || after == 3);
        }
    }

    proptest! {
        /// Replicas that come and go, each of which gives up or takes one shard at a time by its
        /// own view, end with fair shares and no shard without an owner.
        #[test]
        fn replicas_come_to_fair_shares(count in 1usize..12, replicas in 1usize..8, held in proptest::collection::vec(0usize..8, 12)) {
            let names: Vec<String> = (0..replicas).map(|n| format!("r{n}")).collect();
            let mut owner: Vec<Option<usize>> = (0..count).map(|s| Some(held[s]).filter(|h| *h < replicas)).collect();
            let mut moves = 0;
            loop {
                let before = owner.clone();
                for me in 0..replicas {
                    let members: BTreeMap<String, usize> = names
                        .iter()
                        .enumerate()
                        .map(|(n, name)| (name.clone(), owner.iter().filter(|o| **o == Some(n)).count()))
                        .collect();
                    let (mine, quota) = (members[&names[me]], quota(count, &names[me], &members));
                    if mine > quota {
                        let last = owner.iter().rposition(|o| *o == Some(me)).unwrap();
                        owner[last] = None;
                        moves += 1;
                    } else if mine < quota && let Some(free) = owner.iter().position(Option::is_none) {
                        owner[free] = Some(me);
                    }
                }
                if owner == before {
                    break;
                }
            }
            prop_assert!(owner.iter().all(Option::is_some));
            let shares: Vec<usize> = (0..replicas).map(|n| owner.iter().filter(|o| **o == Some(n)).count()).collect();
            prop_assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
            prop_assert!(moves <= count);
        }
    }
}
