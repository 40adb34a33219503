//! A service that is public, or that a policy declares so.

use super::roles;
use crate::{
    diagnose::{Cause, Outcome, Step, Walk, grants::covers, symptom::Refusal},
    iam::{Principal, carries_invoke},
};

const PUBLIC: &str = "public access";

impl Walk<'_> {
    /// Whether everybody is let in decides nothing for whoever is granted by itself.
    pub(super) fn public_does_not_matter(&mut self) {
        let open = |step: &&mut Step| step.check == PUBLIC && step.outcome == Outcome::Maybe;
        for step in self.steps.iter_mut().filter(open) {
            step.outcome = Outcome::Skipped;
        }
    }

    /// A service that is public, or that a policy declares so: a token is not asked for there, and
    /// one that Cloud Run cannot verify is no cause before the grant is there.
    pub(in crate::diagnose) fn public(&mut self) {
        let facts = self.facts;
        let everybody = Principal::from_live("allUsers");
        let sum = facts.sum(&|listed| covers(listed, &everybody), &carries_invoke);
        if let Some((_, held)) = sum.yes() {
            let (_, how) = &held.yes[0];
            self.step(PUBLIC, Outcome::Pass, how.clone());
            return self.is_public(&sum.by());
        }
        let unknown = sum.unknown();
        if !unknown.is_empty() && !facts.symptom.is_platforms_refusal() {
            let evidence = roles::not_known(&unknown);
            self.step(PUBLIC, Outcome::Maybe, evidence);
        }
        let mut declared = facts.declared.value().into_iter().flatten();
        let Some(by) = declared.find(|d| d.public) else {
            return;
        };
        // Whoever is refused for want of a token or a grant shows that it is not.
        let is_shown = matches!(
            facts.symptom.refusal,
            Some(Refusal::NoToken | Refusal::NoGrant | Refusal::NoTokenOrNoGrant)
        );
        if sum.is_no() || (is_shown && facts.policy.value().is_some()) {
            let evidence = format!(
                "InvokerPolicy {} declares the service public, and IAM does not hold that",
                by.policy
            );
            self.step(PUBLIC, Outcome::Fail, evidence);
            let verdict = "The service is meant to be public, and is not. Until it is, Cloud Run tries to verify whatever token the application's users send.";
            return self.settle(Cause::PublicGrantMissing, verdict, by.listing_fix());
        }
        let evidence = format!(
            "InvokerPolicy {} declares the service public; whether IAM holds that could not be seen",
            by.policy
        );
        self.step(PUBLIC, Outcome::Unknown, evidence);
        if facts.symptom.is_platforms_refusal() {
            self.settle(
                Cause::CannotTell,
                "Either the public grant is missing or young, or a token came that is not valid: the service is meant to be public.",
                by.listing_fix(),
            );
        }
    }

    /// Nobody needs a grant or a token of their own: what is left is what refuses everybody. `by`:
    /// the members that make it public.
    fn is_public(&mut self, by: &[Principal]) {
        let symptom = &self.facts.symptom;
        self.is_over = true;
        if symptom.is_platforms_refusal() && self.may_be_too_young(by) {
            return;
        }
        if symptom.refusal == Some(Refusal::BadToken) {
            return self.bad_token_to_all();
        }
        self.troubleshooter();
        if self.is_granted_nowhere() {
            self.reopen_troubleshooter();
        }
        match symptom.refusal {
            Some(_) => {
                let (deny, look) = match self.is_surely_not_denied() {
                    true => ("", ""),
                    false => (
                        "a deny policy does, or ",
                        " If it is refused still, look at deny policies (--as with --troubleshoot).",
                    ),
                };
                self.conclude(
                    Cause::CannotTell,
                    format!("The service is public, and Cloud Run refused the request: {deny}it was asked before the service was public for everybody."),
                    format!("Try again.{look}"),
                );
            }
            None if symptom.is_platforms_refusal() => self.conclude(
                Cause::CannotTell,
                "The service is public. Either the application itself refuses this, or Cloud Run does: a deny policy, a service perimeter, or a token that it cannot verify.",
                "Give the whole answer (--body, as curl -si prints it), or the entry of the request log (--log): they say which.",
            ),
            None => {
                self.token_to_all();
                self.beyond();
                self.conclude(
                    Cause::AccessExpected,
                    "The service is public: IAM lets everybody invoke it.",
                    "If it is refused all the same: the application answers so, or a perimeter stands in front.",
                );
            }
        }
    }

    /// A token that is asked for by nobody, and that Cloud Run may not be able to verify.
    fn token_to_all(&mut self) {
        let flaw = self.facts.token.as_ref().and_then(|t| self.flaw(t));
        let Some((_, evidence, _)) = flaw.filter(|_| !self.facts.symptom.got_in()) else {
            return;
        };
        self.open(
            "token",
            Outcome::Maybe,
            format!("{evidence}; a public service needs none, and Cloud Run may answer 401 to one that it cannot verify"),
            "call with it, and give the answer (--body); or leave it out, or send it in another header",
        );
    }

    /// Who is public asks for no token, and yet Cloud Run verifies one that comes.
    fn bad_token_to_all(&mut self) {
        let evidence = match self.facts.token.as_ref().and_then(|t| self.flaw(t)) {
            Some((_, evidence, _)) => {
                format!("Cloud Run could not verify the token that came: {evidence}")
            }
            None => "Cloud Run could not verify the token that came".to_owned(),
        };
        self.step("token", Outcome::Fail, evidence);
        self.conclude(
            Cause::NotAnIdToken,
            "The service is public and needs no token, and Cloud Run tries to verify any bearer token that comes.",
            "Send no Authorization header, or the application's own token in another one. Where it has to stay in Authorization, send a Google ID token in X-Serverless-Authorization: Cloud Run looks at that one then. If it became public less than seven minutes before, try again.",
        );
    }
}
