//! Whose a grant is. It belongs to every enforced policy that lists it, from when it lists it; when
//! the last of them stops, it is revoked, and only `Retain`, or a finalizer that somebody took off
//! by hand, lets go of it on purpose.

use std::collections::{BTreeMap, BTreeSet};

use super::{diff::RevokeCause, merge::Desired};
use crate::{iam::Grant, intent::PolicyId};

/// How a policy that a grant belongs to stands to the service now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OwnerState {
    /// It is gone and left the grant on purpose.
    LetGo,
    /// It is there and may not write now: nothing is taken away on its behalf, and nothing
    /// forgotten.
    Resting,
    /// It is enforced and means the service. Whether it lists the grant, the plan sees.
    Acting,
    /// It means the service no more, or is being deleted.
    Leaving(RevokeCause),
}

/// The policies that one grant belongs to. None: nobody's any more, to be revoked as soon as nobody
/// lists it.
pub type Owners = BTreeMap<PolicyId, OwnerState>;

/// Every grant that the operator answers for on a service.
pub type Lines = BTreeMap<Grant, BTreeSet<PolicyId>>;

/// Why a live grant that no policy lists is to be taken away on behalf of those it belongs to;
/// `None`: it is not.
pub fn revoke_cause(owners: &Owners) -> Option<RevokeCause> {
    let states = || owners.values();
    let leaving = states().filter_map(|s| match s {
        OwnerState::Leaving(cause) => Some(*cause),
        _ => None,
    });
    if let Some(cause) = leaving.max() {
        return Some(cause);
    }
    let abandoned = owners.is_empty() || states().any(|s| *s == OwnerState::Acting);
    abandoned.then_some(RevokeCause::NoLongerDeclared)
}

/// What the operator answers for once `grants` are made, while everything else that is live stays
/// as it is.
pub fn next_lines(
    ledger: &BTreeMap<Grant, Owners>,
    desired: &Desired,
    live: &BTreeSet<Grant>,
    grants: &BTreeMap<Grant, BTreeSet<PolicyId>>,
) -> Lines {
    let mut next = Lines::new();
    let real = live.iter().chain(grants.keys());
    for grant in real {
        let listing = desired.granted.get(grant);
        let Some(owners) = ledger.get(grant) else {
            if let Some(listing) = listing {
                next.insert(grant.clone(), listing.clone());
            }
            continue;
        };
        // While nobody lists it, it is being revoked, and who it belonged to is told of that. Where
        // somebody lists it who may not write, it stays; whoever leaves need not wait for that.
        let is_listed = desired.listed.contains_key(grant);
        let stays = |state: &OwnerState| match state {
            OwnerState::LetGo => false,
            OwnerState::Resting => true,
            OwnerState::Acting | OwnerState::Leaving(_) => !is_listed,
        };
        let staying = owners
            .iter()
            .filter(|(_, s)| stays(s))
            .map(|(id, _)| id.clone());
        let stay: BTreeSet<PolicyId> = listing
            .into_iter()
            .flatten()
            .cloned()
            .chain(staying)
            .collect();
        let let_go = !owners.is_empty() && owners.values().all(|s| *s == OwnerState::LetGo);
        if !stay.is_empty() || !let_go {
            next.insert(grant.clone(), stay);
        }
    }
    next
}

/// How many bytes lines take in the store, about.
pub fn stored_size(lines: &Lines) -> usize {
    let conditions: BTreeSet<_> = lines
        .keys()
        .filter_map(|g| g.condition.as_deref())
        .collect();
    let owners: BTreeSet<_> = lines.values().flatten().collect();
    let text =
        |c: &&crate::iam::Condition| c.title.len() + c.description.len() + c.expression.len() + 64;
    lines
        .iter()
        .map(|(g, by)| g.principal.as_str().len() + 80 + by.len() * 5)
        .sum::<usize>()
        + conditions.iter().map(text).sum::<usize>()
        + owners.len() * 220
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iam::{Principal, Role};

    fn grant(name: &str) -> Grant {
        Grant::new(
            Principal::from_live(&format!("user:{name}@acme.com")),
            Role::Invoker,
        )
    }
    fn id(name: &str) -> PolicyId {
        PolicyId {
            namespace: "ns".into(),
            name: name.into(),
            uid: name.into(),
        }
    }
    fn owners(list: &[(&str, OwnerState)]) -> Owners {
        list.iter().map(|(n, s)| (id(n), *s)).collect()
    }
    fn line(ledger: &[(&str, OwnerState)], listed_by: &[&str]) -> Option<Vec<String>> {
        let ledger = BTreeMap::from([(grant("g"), owners(ledger))]);
        let mut desired = Desired::default();
        if !listed_by.is_empty() {
            desired
                .granted
                .insert(grant("g"), listed_by.iter().map(|n| id(n)).collect());
            desired.listed = desired.granted.clone();
        }
        let next = next_lines(&ledger, &desired, &[grant("g")].into(), &BTreeMap::new());
        next.get(&grant("g"))
            .map(|o| o.iter().map(|i| i.name.to_string()).collect())
    }

    const DELETED: OwnerState = OwnerState::Leaving(RevokeCause::PolicyDeleted);

    #[test]
    fn a_grant_passes_on_to_whoever_lists_it() {
        assert_eq!(
            line(&[("old", DELETED)], &["new"]),
            Some(vec!["new".into()])
        );
        assert_eq!(
            line(&[("a", OwnerState::Acting)], &["a", "b"]),
            Some(vec!["a".into(), "b".into()])
        );
    }

    #[test]
    fn whoever_leaves_without_letting_go_answers_for_a_grant_until_it_is_revoked() {
        for leaving in [
            DELETED,
            OwnerState::Acting,
            OwnerState::Leaving(RevokeCause::NoLongerDeclared),
        ] {
            assert_eq!(
                line(&[("a", leaving)], &[]),
                Some(vec!["a".into()]),
                "{leaving:?}"
            );
            assert_eq!(
                line(&[("a", leaving), ("b", OwnerState::LetGo)], &[]),
                Some(vec!["a".into()]),
                "{leaving:?}"
            );
        }
        assert_eq!(
            line(&[], &[]),
            Some(vec![]),
            "nobody's stays nobody's until it is gone"
        );
    }

    #[test]
    fn a_deletion_does_not_wait_for_somebody_who_lists_and_may_not_write() {
        let ledger = BTreeMap::from([(grant("g"), owners(&[("a", DELETED)]))]);
        let desired = Desired {
            listed: [(grant("g"), [id("audited")].into())].into(),
            ..Desired::default()
        };
        let next = next_lines(&ledger, &desired, &[grant("g")].into(), &BTreeMap::new());
        assert_eq!(
            next,
            BTreeMap::from([(grant("g"), BTreeSet::new())]),
            "nobody's: revoked when nobody lists it"
        );
    }

    #[test]
    fn only_retain_lets_go() {
        assert_eq!(line(&[("a", OwnerState::LetGo)], &[]), None);
        assert_eq!(
            line(&[("a", OwnerState::LetGo)], &["b"]),
            Some(vec!["b".into()])
        );
    }

    #[test]
    fn a_policy_that_rests_keeps_what_is_its_own() {
        assert_eq!(
            line(&[("a", OwnerState::Resting), ("b", DELETED)], &["c"]),
            Some(vec!["a".into(), "c".into()])
        );
        assert_eq!(revoke_cause(&owners(&[("a", OwnerState::Resting)])), None);
    }

    #[test]
    fn what_is_revoked_says_why() {
        assert_eq!(
            revoke_cause(&owners(&[])),
            Some(RevokeCause::NoLongerDeclared)
        );
        assert_eq!(
            revoke_cause(&owners(&[("a", OwnerState::Acting)])),
            Some(RevokeCause::NoLongerDeclared)
        );
        assert_eq!(
            revoke_cause(&owners(&[("a", OwnerState::Acting), ("b", DELETED)])),
            Some(RevokeCause::PolicyDeleted)
        );
        assert_eq!(revoke_cause(&owners(&[("a", OwnerState::LetGo)])), None);
    }
}
