//! Who calls, with what, and whether that one is granted.

mod granted;
mod roles;
mod token;

use super::{Cause, Known, Outcome, Walk, grants};
use crate::iam::{Principal, carries_invoke};

impl Walk<'_> {
    /// A service that is public, or that a policy declares so: a token is not asked for there, and
    /// one that Cloud Run cannot verify is no cause before the grant is there.
    pub(super) fn public(&mut self) {
        let facts = self.facts;
        let everybody = Principal::from_live("allUsers");
        let (mut how, mut unknown) = (None, Vec::new());
        for policy in [&facts.policy, &facts.project]
            .into_iter()
            .filter_map(Known::value)
        {
            let held = grants::held(policy, &everybody, facts, &carries_invoke);
            how = how.or(held.yes);
            unknown.extend(held.unknown);
        }
        if let Some(how) = how {
            self.step("public access", Outcome::Pass, how);
            return self.is_public();
        }
        if !unknown.is_empty() && !facts.symptom.is_platforms_refusal() {
            let evidence = roles::not_known(&unknown);
            self.step("public access", Outcome::Maybe, evidence);
        }
        let mut declared = facts.declared.value().into_iter().flatten();
        let Some(by) = declared.find(|d| d.public) else {
            return;
        };
        if let Known::Is(_) = &facts.policy {
            let evidence = format!(
                "InvokerPolicy {} declares the service public, and IAM does not hold that",
                by.policy
            );
            self.step("public access", Outcome::Fail, evidence);
            let verdict = "The service is meant to be public, and is not. Until it is, Cloud Run tries to verify whatever token the application's users send.";
            return self.settle(Cause::PublicGrantMissing, verdict, by.listing_fix());
        }
        let evidence = format!(
            "InvokerPolicy {} declares the service public; whether IAM holds that could not be seen",
            by.policy
        );
        self.step("public access", Outcome::Unknown, evidence);
        if facts.symptom.is_platforms_refusal() {
            self.settle(
                Cause::CannotTell,
                "Either the public grant is missing or young, or a token came that is not valid: the service is meant to be public.",
                by.listing_fix(),
            );
        }
    }

    /// Nobody needs a grant or a token of their own.
    fn is_public(&mut self) {
        if !self.facts.symptom.is_platforms_refusal() {
            return self.settle(
                Cause::AccessExpected,
                "The service is public: IAM lets everybody invoke it.",
                "If it is refused all the same: the application answers so, or a perimeter stands in front.",
            );
        }
        if !self.may_be_too_young() {
            self.settle(
                Cause::PerimeterOrDeny,
                "The service is public, so a deny policy or a service perimeter refuses it, or it was asked before it became public.",
                "Try again; if it is refused still, look at deny policies and at the policy log (method run.googleapis.com/HttpIngress).",
            );
        }
        self.is_over = true;
    }

    pub(super) fn beyond(&mut self) {
        if let Known::Is(_) = self.facts.troubleshooter {
            return self.step(
                "perimeters",
                Outcome::Skipped,
                "VPC Service Controls cannot be asked; a refusal by them is in the policy log",
            );
        }
        self.step("deny policies, perimeters", Outcome::Skipped, "they stand above the service and cannot be seen with the rights that this needs; --troubleshoot asks Policy Troubleshooter");
    }
}
