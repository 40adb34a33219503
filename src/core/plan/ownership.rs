//! Whose a grant is. It belongs to every enforced policy that lists it, from when it lists it; when
//! the last of them stops, it is revoked, and only `Retain`, or a finalizer that somebody took off
//! by hand, lets go of it on purpose.

use std::collections::{BTreeMap, BTreeSet};

use super::{diff::RevokeCause, merge::Desired};
use crate::{
    iam::{Condition, Grant},
    intent::PolicyId,
};

/// How a policy that a grant belongs to stands to the service now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OwnerState {
    /// It is gone and left the grant on purpose.
    LetGo,
    /// It is there and may not write now: nothing is taken away on its behalf, and nothing
    /// forgotten.
    Resting,
    /// It is there and what it says is not known, as a whole or of an entry: it may list the grant,
    /// so nobody takes it away.
    Unread,
    /// It is enforced and means the service. Whether it lists the grant, the plan sees.
    Acting,
    /// It means the service no more, or is being deleted.
    Leaving(RevokeCause),
}

impl OwnerState {
    /// Whether there is nothing to do about the grant until the policy itself changes.
    pub fn waits(self) -> bool {
        matches!(self, Self::Resting | Self::Unread)
    }
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
/// as it is. What is protected belongs to nobody once nobody lists it: it is answered for until its
/// own end where it has one, and then taken away as ended, and no more where it has none.
pub fn next_lines(
    ledger: &BTreeMap<Grant, Owners>,
    desired: &Desired,
    live: &BTreeSet<Grant>,
    grants: &BTreeMap<Grant, BTreeSet<PolicyId>>,
    is_protected: &dyn Fn(&Grant) -> bool,
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
        // While nobody lists it, it is being revoked, and who it belonged to reports that. Where
        // somebody lists it who may not write, it stays; whoever leaves need not wait for that.
        let is_listed = desired.listed.contains_key(grant);
        let is_kept = !is_listed && is_protected(grant);
        if is_kept && grant.ends().is_none() {
            continue;
        }
        let stays = |state: &OwnerState| match state {
            OwnerState::LetGo => false,
            OwnerState::Resting | OwnerState::Unread => true,
            OwnerState::Acting | OwnerState::Leaving(_) => !is_listed && !is_kept,
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
    Stored::of(lines).bytes
}

/// How many of those that may go have to, the last ones first, until lines take at most `most`
/// bytes.
pub fn too_many(lines: &Lines, may_go: impl Fn(&Grant) -> bool, most: usize) -> usize {
    let (last, first): (Vec<_>, Vec<_>) = lines.iter().partition(|(g, _)| may_go(g));
    let mut stored = Stored::default();
    first.into_iter().for_each(|line| stored.add(line));
    let fits = last.iter().take_while(|line| {
        stored.add(**line);
        stored.bytes <= most
    });
    last.len() - fits.count()
}

/// What lines take in the store: each line, and each condition and each owner once.
#[derive(Default)]
struct Stored<'a> {
    conditions: BTreeSet<&'a Condition>,
    owners: BTreeSet<&'a PolicyId>,
    bytes: usize,
}

impl<'a> Stored<'a> {
    fn of(lines: &'a Lines) -> Self {
        let mut this = Self::default();
        lines.iter().for_each(|line| this.add(line));
        this
    }

    fn add(&mut self, (grant, owners): (&'a Grant, &'a BTreeSet<PolicyId>)) {
        self.bytes += grant.principal.as_str().len() + 80 + owners.len() * 5;
        let condition = grant.condition.as_deref();
        if let Some(c) = condition.filter(|c| self.conditions.insert(c)) {
            self.bytes += c.title.len() + c.description.len() + c.expression.len() + 64;
        }
        let fresh = owners.iter().filter(|o| self.owners.insert(o)).count();
        self.bytes += fresh * OWNER;
    }
}

/// Bytes of an owner: namespace, name and uid.
const OWNER: usize = 220;

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
    /// Of one grant that is there, while none is made and none is protected.
    fn next(ledger: &BTreeMap<Grant, Owners>, desired: &Desired) -> Lines {
        let live = [grant("g")].into();
        next_lines(ledger, desired, &live, &BTreeMap::new(), &|_| false)
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
        let next = next(&ledger, &desired);
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
        let next = next(&ledger, &desired);
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

    /// A line less is its text less, and its condition and owners once nobody else has them.
    #[test]
    fn what_has_to_go_is_counted_as_it_is_stored() {
        let condition = |text: &str| std::sync::Arc::new(Condition::new("c", "", text.repeat(100)));
        let lines: Lines = (0..40)
            .map(|i| {
                let grant = Grant {
                    condition: (i % 3 > 0).then(|| condition(["a", "b", "c"][i % 3])),
                    ..grant(&format!("m{i:02}"))
                };
                let owners = (0..i % 4).map(|o| id(&format!("p{o}"))).collect();
                (grant, owners)
            })
            .collect();
        for most in (0..=stored_size(&lines)).step_by(97) {
            let gone = too_many(&lines, |_| true, most);
            let left = |gone: usize| -> usize {
                let kept = lines.iter().take(lines.len() - gone);
                stored_size(&kept.map(|(g, o)| (g.clone(), o.clone())).collect())
            };
            assert!(left(gone) <= most);
            assert!(gone == 0 || left(gone - 1) > most);
        }
    }
}
