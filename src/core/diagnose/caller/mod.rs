//! Who calls, with what, and whether that one is granted.

mod granted;
mod public;
mod roles;
mod token;

use super::{Known, Outcome, Walk, troubleshooter};

impl Walk<'_> {
    /// Deny policies and perimeters. The verdict that nothing refuses a request is about IAM:
    /// deny policies are part of that, and perimeters are not.
    pub(super) fn beyond(&mut self) {
        let facts = self.facts;
        if facts.symptom.got_in() {
            return self.step(
                "deny policies, perimeters",
                Outcome::Pass,
                "none of them refused the request: it got in",
            );
        }
        if let Known::NotAsked = facts.troubleshooter {
            let can_ask = facts
                .principal
                .as_ref()
                .is_some_and(|p| troubleshooter::question(&facts.service, p).is_some());
            let see = if can_ask {
                "ask Policy Troubleshooter (--troubleshoot)"
            } else {
                "ask Policy Troubleshooter about one user or service account (--as, with --troubleshoot)"
            };
            self.open(
                "deny policies",
                Outcome::Skipped,
                "not looked at: they stand above the service (--troubleshoot)",
                see,
            );
        }
        self.step(
            "perimeters",
            Outcome::Skipped,
            "VPC Service Controls cannot be asked; a refusal by them is in the policy log",
        );
    }
}
