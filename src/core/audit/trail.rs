//! The changes of one service's policy, as the log has them, and which of them made what differs
//! now.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use super::PolicySet;
use crate::{
    api::ChangedBy,
    iam::{Grant, Policy},
};

/// Changes of one service that are remembered.
const MAX_CHANGES: usize = 8;

/// What differs, and which way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    pub missing: BTreeSet<Grant>,
    pub unexpected: BTreeSet<Grant>,
}

#[derive(Clone, Debug, PartialEq)]
struct Change {
    set: PolicySet,
    by: Arc<ChangedBy>,
}

/// How it was before a change, as far as that is known: from the change before, or because it was
/// settled.
struct Before<'a> {
    grants: Option<&'a BTreeSet<Grant>>,
    was_settled: bool,
}

impl Change {
    /// Whether it made one part of the drift. `there`: that part is a grant that is there now.
    fn made(&self, grant: &Grant, there: bool, before: &Before<'_>) -> bool {
        if let Some((added, removed)) = &self.set.delta {
            let made = if there { added } else { removed };
            return made.contains(grant);
        }
        let Some(after) = &self.set.after else {
            return false;
        };
        let was = match before.grants {
            Some(before) => before.contains(grant) == there,
            None if before.was_settled => false,
            None => return false,
        };
        after.contains(grant) == there && !was
    }
}

/// The last changes of one service's policy that the log reported.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trail {
    changes: VecDeque<Change>,
}

impl Trail {
    /// Takes down a change. False: it was known, or says nothing that could be checked against the
    /// live policy. What the operator did itself is known better than the log has it, and whoever
    /// the log names for such a version is left out.
    pub fn add(&mut self, set: PolicySet, by: Arc<ChangedBy>) -> bool {
        let same = |c: &Change| c.set.etag_after == set.etag_after;
        let known = |c: &Change| same(c) && (c.by == by || c.by.is_operator());
        if set.etag_after.is_none() || self.changes.iter().any(known) {
            return false;
        }
        if by.is_operator() {
            self.changes.retain(|c| !same(c));
        }
        if self.changes.len() == MAX_CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back(Change { set, by });
        true
    }

    /// Whether the log has the change that led to a version.
    pub fn has(&self, etag: &str) -> bool {
        self.changes
            .iter()
            .any(|c| !c.by.is_operator() && c.set.etag_after.as_deref() == Some(etag))
    }

    /// Which of these differences the operator made itself, and by which write. They are no drift.
    pub fn own(&self, live: &Policy, differences: &Drift) -> BTreeMap<Grant, Arc<ChangedBy>> {
        let mut made = self.blame(live, None, differences);
        made.retain(|_, by| by.is_operator());
        made
    }

    /// Who made each part of the drift. `settled` is the version that was last found as it should
    /// be, `live` is what is real. What cannot be proven is left out.
    ///
    /// Changes are followed by their etags from the live policy back, so that neither the order in
    /// which messages came in nor one that was lost or made up puts the blame on somebody: a
    /// version that the log reports must be the one that was read, or the one that a proven change
    /// was planned from.
    pub fn blame(
        &self,
        live: &Policy,
        settled: Option<&str>,
        drift: &Drift,
    ) -> BTreeMap<Grant, Arc<ChangedBy>> {
        let mut found = BTreeMap::new();
        let mut version: &str = &live.etag.0;
        for step in 0..=MAX_CHANGES {
            if settled == Some(version) || version.is_empty() {
                break;
            }
            // What is real is known: a message that says otherwise was made up.
            let honest =
                |c: &&Change| step > 0 || c.set.after.as_ref().is_none_or(|a| *a == live.grants());
            let mut candidates = self.leading_to(version).filter(honest);
            let (Some(change), None) = (candidates.next(), candidates.next()) else {
                break;
            };
            let earlier = change.set.etag_before.as_deref();
            let before = Before {
                grants: earlier
                    .and_then(|e| self.leading_to(e).next())
                    .and_then(|c| c.set.after.as_ref()),
                was_settled: earlier.is_some() && earlier == settled,
            };
            let missing = drift.missing.iter().map(|g| (g, false));
            let unexpected = drift.unexpected.iter().map(|g| (g, true));
            for (grant, there) in missing.chain(unexpected) {
                if !found.contains_key(grant) && change.made(grant, there, &before) {
                    found.insert(grant.clone(), change.by.clone());
                }
            }
            match earlier {
                Some(e) if e != version => version = e,
                _ => break,
            }
        }
        found
    }

    /// Changes that made a version of the policy.
    fn leading_to<'a>(&'a self, etag: &'a str) -> impl Iterator<Item = &'a Change> {
        let made = move |c: &&Change| c.set.etag_after.as_deref() == Some(etag);
        self.changes.iter().filter(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iam::{Binding, Etag, Principal, Role};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    fn g(name: &str) -> Grant {
        Grant::new(
            Principal::from_live(&format!("user:{name}@acme.com")),
            Role::Invoker,
        )
    }
    fn set(names: &[&str]) -> BTreeSet<Grant> {
        names.iter().map(|n| g(n)).collect()
    }
    fn by(name: &str) -> Arc<ChangedBy> {
        let at = MicroTime("2026-11-24T12:00:00Z".parse().unwrap());
        Arc::new(ChangedBy {
            principal: name.into(),
            via: vec![],
            tool: String::new(),
            user_agent: String::new(),
            method: String::new(),
            at,
            change: String::new(),
        })
    }
    fn operator(change: &str) -> Arc<ChangedBy> {
        let at = MicroTime("2026-11-24T12:00:00Z".parse().unwrap());
        Arc::new(ChangedBy::operator(change, at))
    }
    fn change(from: &str, to: &str, after: &[&str]) -> PolicySet {
        PolicySet {
            etag_before: Some(from.into()),
            etag_after: Some(to.into()),
            after: Some(set(after)),
            delta: None,
        }
    }
    fn live(etag: &str, members: &[&str]) -> Policy {
        let members = members
            .iter()
            .map(|m| format!("user:{m}@acme.com"))
            .collect();
        let binding = Binding {
            role: "roles/run.invoker".into(),
            members,
            ..Binding::default()
        };
        Policy {
            etag: Etag(etag.into()),
            bindings: vec![binding],
            ..Policy::default()
        }
    }
    fn names(blame: &BTreeMap<Grant, Arc<ChangedBy>>) -> Vec<String> {
        blame
            .iter()
            .map(|(g, b)| format!("{g}: {}", b.principal))
            .collect()
    }
    fn drift(missing: &[&str], unexpected: &[&str]) -> Drift {
        Drift {
            missing: set(missing),
            unexpected: set(unexpected),
        }
    }

    #[test]
    fn each_part_of_a_drift_has_its_own_maker_in_whatever_order_messages_came() {
        let steps = [
            (change("e0", "e1", &["a", "m"]), "mallory"),
            (change("e1", "e2", &["m"]), "bob"),
        ];
        for order in [[0, 1], [1, 0]] {
            let mut trail = Trail::default();
            order
                .iter()
                .for_each(|i| assert!(trail.add(steps[*i].0.clone(), by(steps[*i].1))));
            assert!(!trail.add(steps[0].0.clone(), by("mallory")), "a duplicate");
            let blame = trail.blame(&live("e2", &["m"]), Some("e0"), &drift(&["a"], &["m"]));
            assert_eq!(
                names(&blame),
                ["user:a@acme.com: bob", "user:m@acme.com: mallory"]
            );
        }
    }

    #[test]
    fn what_the_operator_did_is_its_own_whoever_the_log_names_and_whenever_its_entry_comes() {
        let revoked = PolicySet {
            delta: Some((set(&[]), set(&["b"]))),
            ..change("e1", "e2", &["a"])
        };
        let logged = change("e1", "e2", &["a"]);
        for is_logged_first in [false, true] {
            let mut trail = Trail::default();
            if is_logged_first {
                trail.add(logged.clone(), by("robot"));
            }
            assert!(trail.add(revoked.clone(), operator("web-1")));
            assert!(!trail.add(logged.clone(), by("robot")));
            assert!(!trail.has("e2"), "the log does not have it, or not yet");
            let missing = drift(&["b"], &["m"]);
            let names = |made: &BTreeMap<Grant, Arc<ChangedBy>>| {
                let name = |(g, b): (&Grant, &Arc<ChangedBy>)| format!("{g}: {b}");
                made.iter().map(name).collect::<Vec<_>>()
            };
            let own =
                "user:b@acme.com: run-invoker itself (InvokerChange web-1) at 2026-11-24T12:00:00Z";
            assert_eq!(names(&trail.own(&live("e2", &["a"]), &missing)), [own]);
            // Somebody else comes after that: theirs is theirs, and ours stays ours.
            trail.add(change("e2", "e3", &["a", "m"]), by("mallory"));
            let now = live("e3", &["a", "m"]);
            assert_eq!(names(&trail.own(&now, &missing)), [own]);
            let found = trail.blame(&now, Some("e2"), &drift(&[], &["m"]));
            assert_eq!(found[&g("m")].principal, "mallory");
        }
    }

    #[test]
    fn a_member_that_went_and_came_back_is_blamed_on_the_last_one() {
        let mut trail = Trail::default();
        trail.add(change("e0", "e1", &["a", "m"]), by("first"));
        trail.add(change("e1", "e2", &["a"]), by("fixer"));
        trail.add(change("e2", "e3", &["a", "m"]), by("last"));
        assert_eq!(
            names(&trail.blame(&live("e3", &["a", "m"]), Some("e0"), &drift(&[], &["m"]))),
            ["user:m@acme.com: last"]
        );
    }

    #[test]
    fn what_cannot_be_proven_is_unknown() {
        let unexpected = drift(&[], &["m"]);
        let real = live("e2", &["a", "m"]);
        // The message about e2 is late or lost.
        let mut trail = Trail::default();
        trail.add(change("e0", "e1", &["a", "m"]), by("mallory"));
        assert!(trail.blame(&real, Some("e0"), &unexpected).is_empty());
        // What was before e1 is not known.
        let mut trail = Trail::default();
        trail.add(change("e1", "e2", &["a", "m"]), by("somebody"));
        assert!(trail.blame(&real, Some("e0"), &unexpected).is_empty());
        assert_eq!(trail.blame(&real, Some("e1"), &unexpected).len(), 1);
        // Nothing happened since it was settled.
        assert!(trail.blame(&real, Some("e2"), &unexpected).is_empty());
    }

    #[test]
    fn a_made_up_message_puts_the_blame_on_nobody() {
        let unexpected = drift(&[], &["m"]);
        let real = live("e1", &["a", "m"]);
        let mut trail = Trail::default();
        trail.add(change("e0", "e1", &["a", "x", "m"]), by("framed"));
        assert!(
            trail.blame(&real, Some("e0"), &unexpected).is_empty(),
            "it says what is not real"
        );
        trail.add(change("e0", "e1", &["a", "m"]), by("mallory"));
        assert_eq!(
            names(&trail.blame(&real, Some("e0"), &unexpected)),
            ["user:m@acme.com: mallory"]
        );
        trail.add(change("e0", "e1", &["a", "m"]), by("framed too"));
        assert!(
            trail.blame(&real, Some("e0"), &unexpected).is_empty(),
            "two that cannot both be true"
        );
    }

    #[test]
    fn a_delta_needs_no_version_before_it() {
        let mut trail = Trail::default();
        let mut logged = change("e8", "e9", &["a", "m"]);
        logged.etag_before = None;
        logged.delta = Some((set(&["m"]), set(&[])));
        trail.add(logged, by("mallory"));
        assert_eq!(
            trail
                .blame(&live("e9", &["a", "m"]), None, &drift(&["b"], &["m"]))
                .len(),
            1
        );
    }

    #[test]
    fn a_trail_is_bounded_and_circles_end() {
        let mut trail = Trail::default();
        for i in 0..100 {
            trail.add(
                change(&format!("e{i}"), &format!("e{}", i + 1), &["a"]),
                by("x"),
            );
        }
        assert_eq!(trail.changes.len(), MAX_CHANGES);
        let mut circle = Trail::default();
        circle.add(change("e1", "e2", &["m"]), by("x"));
        circle.add(change("e2", "e1", &["m"]), by("y"));
        assert!(
            circle
                .blame(&live("e2", &["m"]), None, &drift(&[], &["m"]))
                .is_empty()
        );
    }
}
