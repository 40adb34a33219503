//! Which member IAM refuses, where it does not say. What is refused together is written in halves
//! until one is left; what is accepted on the way is in force at once. The search outlives a
//! reconcile: it goes on where it stopped.
//!
//! What takes access away never waits for it: revokes are written without the grants that are in
//! doubt.

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, Plan, RejectedMember, Withheld, WithheldReason};
use crate::iam::Grant;

/// Grants that are written together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    grants: BTreeSet<Grant>,
    /// They were refused as they are.
    refused: bool,
}

/// What is in doubt on one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// The last is tried next.
    groups: Vec<Group>,
}

/// The part of a plan that one write carries out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub grants: BTreeSet<Grant>,
    pub revokes: BTreeSet<Grant>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.grants.is_empty() && self.revokes.is_empty()
    }
}

/// What a refusal without a name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clue {
    /// One of several, or it is not known yet whether a grant is the reason at all.
    Narrowed,
    /// This one.
    Found(Grant),
    /// No grant: IAM refuses the policy as it is.
    Unrelated,
}

impl Search {
    pub fn is_over(&self) -> bool {
        self.groups.is_empty()
    }

    /// What to write next of a plan. `alone` are grants that IAM refused before and that are tried
    /// again: each by itself.
    pub fn next(&mut self, plan: &Plan, alone: &BTreeMap<Grant, RejectedMember>) -> Batch {
        for group in &mut self.groups {
            group.grants.retain(|g| plan.grants.contains_key(g));
        }
        self.groups.retain(|g| !g.grants.is_empty());
        let doubtful: BTreeSet<&Grant> = self.grants().collect();
        // Together, also while others are in doubt: those who come may be the ones on whose ground
        // somebody may go.
        let free = plan
            .grants
            .keys()
            .filter(|g| !doubtful.contains(g) && !alone.contains_key(*g));
        let free: BTreeSet<Grant> = free.cloned().collect();
        let revokes: BTreeSet<Grant> = plan.revokes.keys().cloned().collect();
        if !(free.is_empty() && revokes.is_empty()) {
            return Batch {
                grants: free,
                revokes,
            };
        }
        if let Some(grants) = self.next_group() {
            return Batch {
                grants,
                ..Batch::default()
            };
        }
        let retried = plan.grants.keys().find(|g| alone.contains_key(*g));
        Batch {
            grants: retried.into_iter().cloned().collect(),
            ..Batch::default()
        }
    }

    fn next_group(&mut self) -> Option<BTreeSet<Grant>> {
        let last = self.groups.last()?;
        if !last.refused || last.grants.len() == 1 {
            return Some(last.grants.clone());
        }
        let whole = self.groups.pop()?.grants;
        let (left, right): (Vec<_>, Vec<_>) = whole
            .iter()
            .cloned()
            .enumerate()
            .partition(|(i, _)| *i < whole.len() / 2);
        for half in [right, left] {
            let grants = half.into_iter().map(|(_, g)| g).collect();
            self.groups.push(Group {
                grants,
                refused: false,
            });
        }
        self.groups.last().map(|g| g.grants.clone())
    }

    /// Those in doubt.
    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.groups.iter().flat_map(|g| &g.grants)
    }

    /// A batch went through.
    pub fn accepted(&mut self, batch: &Batch) {
        for group in &mut self.groups {
            group.grants.retain(|g| !batch.grants.contains(g));
        }
        self.groups.retain(|g| !g.grants.is_empty());
    }

    /// A grant is known to be refused; it is not in doubt any more.
    pub fn settle(&mut self, grant: &Grant) {
        self.accepted(&Batch {
            grants: [grant.clone()].into(),
            ..Batch::default()
        });
    }

    /// IAM refused a batch without naming a member.
    pub fn refused(&mut self, batch: &Batch) -> Clue {
        let Some(first) = batch.grants.first() else {
            return Clue::Unrelated;
        };
        if batch.grants.len() == 1 && batch.revokes.is_empty() {
            let found = first.clone();
            self.settle(&found);
            return Clue::Found(found);
        }
        self.accepted(batch);
        self.groups.push(Group {
            grants: batch.grants.clone(),
            refused: batch.grants.len() > 1,
        });
        Clue::Narrowed
    }

    /// Says of the grants in doubt that are left to do that they are.
    pub fn withhold(&self, plan: &mut Plan) {
        let among = self.groups.iter().map(|g| g.grants.len()).sum();
        for grant in self.grants() {
            if plan.grants.remove(grant).is_some() {
                let (grant, why) = (grant.clone(), WithheldReason::Suspect { among });
                plan.withheld.push(Withheld {
                    change: Change::Grant,
                    grant,
                    why,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        iam::{Principal, Role, RunService},
        plan::RevokeCause,
    };

    fn grant(i: usize) -> Grant {
        Grant::new(
            Principal::from_live(&format!("user:m{i:03}@a.co")),
            Role::Invoker,
        )
    }
    fn plan(grants: usize, revokes: usize) -> Plan {
        let mut plan = Plan::nothing(&RunService::new("p", "r", "s"));
        plan.grants = (0..grants).map(|i| (grant(i), BTreeSet::new())).collect();
        plan.revokes = (900..900 + revokes)
            .map(|i| (grant(i), RevokeCause::Unlisted))
            .collect();
        plan
    }

    /// Carries a plan out against an IAM that refuses `bad` without naming them; returns the
    /// writes, and whom it found.
    fn carry_out(mut plan: Plan, bad: &[usize]) -> (usize, BTreeSet<Grant>, Vec<usize>) {
        let bad: BTreeSet<Grant> = bad.iter().map(|i| grant(*i)).collect();
        let (mut search, mut found, mut revoked_at) =
            (Search::default(), BTreeSet::new(), Vec::new());
        for write in 1..10_000 {
            let batch = search.next(&plan, &BTreeMap::new());
            if batch.is_empty() {
                assert!(search.is_over());
                return (write - 1, found, revoked_at);
            }
            if batch.grants.is_disjoint(&bad) {
                search.accepted(&batch);
                plan.grants.retain(|g, _| !batch.grants.contains(g));
                revoked_at.extend(batch.revokes.iter().map(|_| write));
                plan.revokes.retain(|g, _| !batch.revokes.contains(g));
            } else if let Clue::Found(g) = search.refused(&batch) {
                assert!(bad.contains(&g), "{g} was accused");
                plan.grants.remove(&g);
                found.insert(g);
            }
        }
        panic!("it never ends");
    }

    #[test]
    fn every_refused_member_is_found_and_nobody_else_waits() {
        for bad in [&[3][..], &[0, 7], &[0, 1, 2, 3, 4, 5, 6, 7], &[]] {
            let (writes, found, _) = carry_out(plan(8, 0), bad);
            assert_eq!(found.len(), bad.len());
            assert!(
                writes <= 1 + 8 * bad.len().max(1),
                "{writes} writes for {bad:?}"
            );
        }
        let (writes, found, _) = carry_out(plan(200, 0), &[17]);
        assert_eq!(found.len(), 1);
        assert!(writes <= 20, "{writes}");
    }

    #[test]
    fn what_is_to_be_taken_away_goes_first_whatever_is_refused() {
        let (_, found, revoked_at) = carry_out(plan(2, 3), &[0, 1]);
        assert_eq!((found.len(), revoked_at), (2, vec![2, 2, 2]));
    }

    #[test]
    fn what_comes_while_it_is_searched_is_no_suspect() {
        let mut search = Search::default();
        let mut p = plan(4, 0);
        let batch = search.next(&p, &BTreeMap::new());
        assert_eq!(search.refused(&batch), Clue::Narrowed);
        p.grants.insert(grant(50), BTreeSet::new());
        assert_eq!(search.next(&p, &BTreeMap::new()).grants, [grant(50)].into());
        p.grants.remove(&grant(50));
        assert_eq!(
            search.next(&p, &BTreeMap::new()).grants,
            [grant(0), grant(1)].into()
        );
        p.grants.clear();
        assert!(
            search.next(&p, &BTreeMap::new()).is_empty() && search.is_over(),
            "nobody wants them any more"
        );
    }

    #[test]
    fn one_that_was_refused_before_is_tried_by_itself() {
        let mut search = Search::default();
        let before = RejectedMember {
            reason: crate::api::Reason::InvalidMember,
            message: "no".into(),
        };
        let (mut p, alone) = (plan(3, 0), BTreeMap::from([(grant(1), before)]));
        assert_eq!(search.next(&p, &alone).grants, [grant(0), grant(2)].into());
        p.grants.retain(|g, _| *g == grant(1));
        assert_eq!(search.next(&p, &alone).grants, [grant(1)].into());
    }

    #[test]
    fn a_policy_that_iam_refuses_as_it_is_accuses_nobody() {
        let mut search = Search::default();
        let p = plan(1, 1);
        let both = search.next(&p, &BTreeMap::new());
        assert_eq!(search.refused(&both), Clue::Narrowed);
        let revokes = search.next(&p, &BTreeMap::new());
        assert_eq!(
            (revokes.grants.len(), search.refused(&revokes)),
            (0, Clue::Unrelated)
        );
    }

    #[test]
    fn those_in_doubt_are_named() {
        let mut search = Search::default();
        let mut p = plan(3, 0);
        let batch = search.next(&p, &BTreeMap::new());
        search.refused(&batch);
        search.withhold(&mut p);
        assert!(p.grants.is_empty());
        assert!(
            p.withheld
                .iter()
                .all(|w| w.why == WithheldReason::Suspect { among: 3 })
        );
    }
}
