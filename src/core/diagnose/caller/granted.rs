//! Whether the principal of a token is let in, by whom, and since when.

use crate::{
    diagnose::{
        Cause, Fix, Known, Outcome, Walk,
        grants::{self, Held},
        symptom::{Refusal, Sender},
        troubleshooter::Says,
    },
    iam::{Invocation, Principal, carries_invoke},
};

impl Walk<'_> {
    pub(in crate::diagnose) fn principal_kind(&mut self) {
        let Some(principal) = &self.facts.principal else {
            return self.step(
                "principal",
                Outcome::Skipped,
                "who calls is not known (--as, --token or --log)",
            );
        };
        match principal.invocation() {
            Invocation::Supported => {
                self.step("principal", Outcome::Pass, format!("{principal}"));
            }
            Invocation::Disputed => self.open(
                "principal",
                Outcome::Maybe,
                format!("{principal} is of a workforce pool: Google's list of federated identities says that Cloud Run does not support these, its page for developers sends them there"),
                "call once as it, and give the answer (--body); or let it act as a service account, or come through Identity-Aware Proxy",
            ),
            Invocation::Unsupported => {
                self.step(
                    "principal",
                    Outcome::Fail,
                    format!("{principal} is a federated identity; Cloud Run does not let these invoke"),
                );
                self.conclude(
                    Cause::CannotInvoke,
                    "Federated identities cannot invoke Cloud Run services.",
                    "Let the workload act as a Google service account (impersonation), and grant that one.",
                );
            }
        }
    }

    pub(in crate::diagnose) fn grants(&mut self) {
        let facts = self.facts;
        let Some(principal) = &facts.principal else {
            return self.unnamed();
        };
        let policy = match &facts.policy {
            Known::Is(policy) => policy,
            Known::Hidden(_) if self.is_granted_elsewhere(&Held::default(), principal) => return,
            Known::Hidden(why) | Known::Absent(why) => {
                self.step("grants on the service", Outcome::Unknown, why.clone());
                return self.refused_unseen(principal);
            }
            Known::NotAsked => return,
        };
        let here = grants::held(policy, principal, facts, &carries_invoke);
        if let Some(how) = &here.yes {
            self.step("grants on the service", Outcome::Pass, how.clone());
            return self.granted();
        }
        let there = facts.project.value();
        let there = there.map(|p| grants::held(p, principal, facts, &carries_invoke));
        if let Some(how) = there.as_ref().and_then(|t| t.yes.clone()) {
            let evidence = evidence(&here, principal);
            self.step("grants on the service", Outcome::Skipped, evidence);
            self.step("grants on the project", Outcome::Pass, how);
            return self.let_in();
        }
        if self.is_granted_elsewhere(&here, principal)
            || self.depends_on_a_role(principal, &here, there.as_ref())
        {
            return;
        }
        let both = here.maybe.iter().chain(there.iter().flat_map(|t| &t.maybe));
        let maybe: Vec<String> = both.cloned().chain(self.maybe_above()).collect();
        let is_certain = self.is_surely_not_granted();
        let may_be_above = matches!(facts.project, Known::Hidden(_)) || self.facts.symptom.got_in();
        let outcome = if !is_certain && (may_be_above || !maybe.is_empty()) {
            Outcome::Maybe
        } else {
            Outcome::Fail
        };
        self.step("grants on the service", outcome, evidence(&here, principal));
        let (outcome, words) = match &facts.project {
            Known::Is(_) => (
                outcome,
                "none for this principal by itself; folder and organization cannot be seen here"
                    .to_owned(),
            ),
            Known::Hidden(why) => (Outcome::Unknown, why.clone()),
            _ => (
                Outcome::Skipped,
                "not looked at; folder and organization cannot be seen here either".to_owned(),
            ),
        };
        self.step("grants on the project", outcome, words);
        self.not_granted(principal, here, &maybe);
    }

    /// Nobody said who calls; the answer may say what was missing.
    fn unnamed(&mut self) {
        let facts = self.facts;
        let sent_by_google = matches!(facts.symptom.sent_by, Some(Sender::Google { .. }));
        match facts.symptom.refusal {
            Some(Refusal::NoGrant) => {
                let who = match facts.symptom.sent_by {
                    Some(Sender::Google { name, .. }) => format!("the service account of {name}"),
                    _ => "the caller".to_owned(),
                };
                self.conclude(
                    Cause::NotGranted,
                    format!("A valid token came, and {who} may not invoke the service."),
                    "Give the principal with --as: the fix is a grant for it.",
                );
            }
            Some(Refusal::NoTokenOrNoGrant) if sent_by_google => {
                let fix = self.send_one();
                self.conclude(
                    Cause::NoTokenOrNoGrant,
                    "Either the request came without a token, or its principal may not invoke the service: this text says both.",
                    Fix { words: format!("Without a token: {} With one: its service account is no invoker; give it with --as.", fix.words), ..fix },
                );
            }
            Some(Refusal::NoTokenOrNoGrant) => {
                let fix = self.mint("Give the principal with --as, and what was sent with --token. Without a token: send one, as below. With one: grant its principal.");
                self.conclude(
                    Cause::NoTokenOrNoGrant,
                    "Either the request came without a token, or its principal may not invoke the service: this text says both.",
                    fix,
                );
            }
            _ => {}
        }
    }

    /// The service's policy could not be read: what is left is what the answer says.
    fn refused_unseen(&mut self, principal: &Principal) {
        match self.facts.symptom.refusal {
            Some(Refusal::NoGrant) => self.conclude(
                Cause::NotGranted,
                format!("Cloud Run says that {principal} may not invoke the service."),
                self.grant_fix(principal, ""),
            ),
            Some(Refusal::NoTokenOrNoGrant) if self.facts.token.is_none() => self.conclude(
                Cause::CannotTell,
                format!("Either the request came without a token, or {principal} may not invoke the service; the service's policy could not be seen."),
                self.mint("Without a token: send one, as below. With one: ask who may read the service's policy."),
            ),
            _ => {}
        }
    }

    fn not_granted(&mut self, principal: &Principal, here: Held, maybe: &[String]) {
        let symptom = &self.facts.symptom;
        let also =
            if symptom.refusal == Some(Refusal::NoTokenOrNoGrant) && self.facts.token.is_none() {
                "And see that the request carries a token: without one Cloud Run answers the same. "
            } else {
                ""
            };
        let fix = self.grant_fix(principal, also);
        if self.facts.symptom.got_in() {
            return self.conclude(
                Cause::CannotTell,
                format!("{principal} got in, and neither service nor project names it: a grant on a folder or the organization does, or a group that it is in."),
                "Policy Troubleshooter shows which: principal, run.routes.invoke, the service's full name.",
            );
        }
        let is_certain = symptom.refusal == Some(Refusal::NoGrant) || self.is_granted_nowhere();
        let own = match &here.ended {
            Some((_, verdict)) => verdict.clone(),
            None => format!("{principal} has no grant of its own."),
        };
        if !maybe.is_empty() && !is_certain {
            let verdict = format!(
                "{own} Whether one of these lets it in cannot be seen here: {}.",
                maybe.join(", ")
            );
            let words = format!(
                "Ask who is in it. If it should not depend on that: {}",
                fix.words
            );
            let cause = match here.ended {
                Some(_) => Cause::CannotTell,
                None => Cause::MaybeThroughAGroup,
            };
            return self.conclude(cause, verdict, Fix { words, ..fix });
        }
        if let (Known::Hidden(_), false) = (&self.facts.project, is_certain) {
            let verdict = format!(
                "{own} Either a grant on the project lets it in, which could not be seen, or it may not invoke the service."
            );
            return self.conclude(Cause::CannotTell, verdict, fix);
        }
        if let Some((cause, verdict)) = here.ended {
            return self.conclude(cause, verdict, fix);
        }
        self.conclude(
            Cause::NotGranted,
            format!("{principal} may not invoke the service."),
            fix,
        );
    }

    /// A change that is so young that not every part of IAM acts on it. True: that is the verdict.
    pub(super) fn may_be_too_young(&mut self) -> bool {
        let Some(until) = self.facts.propagating_until() else {
            return false;
        };
        self.step(
            "propagation",
            Outcome::Maybe,
            format!(
                "the policy was changed lately; IAM may take until {until} to act on it everywhere"
            ),
        );
        self.conclude(
            Cause::Propagating,
            "The grant is there, and too young to count on.",
            format!("Wait until {until} and try again. Membership of groups can take hours."),
        );
        true
    }

    /// IAM lets it through; what is left to refuse it?
    pub(super) fn granted(&mut self) {
        // What is known of the last change is about the service's own policy.
        if !self.may_be_too_young() {
            self.let_in();
        }
    }

    /// Somebody grants it, on the service or above.
    pub(super) fn let_in(&mut self) {
        let symptom = &self.facts.symptom;
        if symptom.refusal == Some(Refusal::NoTokenOrNoGrant) && self.facts.token.is_none() {
            let fix = self.mint("Send its token, and give it here with --token if it is refused still; then look at deny policies (Policy Troubleshooter).");
            return self.conclude(
                Cause::NoTokenOrNoGrant,
                "The principal is granted, so the request most likely came without its token; or a deny policy refuses it. This text says both.",
                fix,
            );
        }
        let token = match self.facts.token {
            Some(_) => "",
            None => ", or the token that came was somebody else's (give it with --token)",
        };
        let above = match self.facts.troubleshooter.value().map(|a| a.denied) {
            Some(Says::No) => "a service perimeter",
            _ => "a deny policy or a service perimeter",
        };
        if symptom.is_platforms_refusal() && symptom.refusal.is_some() {
            return self.conclude(
                Cause::PerimeterOrDeny,
                format!("The principal is granted, so {above} refuses it{token}."),
                "Look at deny policies (--troubleshoot) and the perimeter: the policy log (method run.googleapis.com/HttpIngress).",
            );
        }
        if symptom.is_platforms_refusal() {
            return self.conclude(
                Cause::CannotTell,
                format!("The principal is granted. Either the application itself refuses this, or {above} does{token}."),
                "Give the whole answer (--body, as curl -si prints it), or the entry of the request log (--log): they say which.",
            );
        }
        self.public_does_not_matter();
        self.conclude(
            Cause::AccessExpected,
            "IAM lets this principal invoke the service.",
            "If it is refused all the same: the application answers so, a service perimeter stands in front, or the change is younger than seven minutes.",
        );
    }
}

/// Why a policy does not let a principal in.
pub(super) fn evidence(held: &Held, principal: &Principal) -> String {
    let mut parts = held.no.clone();
    if parts.is_empty() {
        parts.push(format!("no invoking role names {principal}"));
    }
    parts.extend(held.maybe.iter().map(|m| format!("perhaps through {m}")));
    parts.join("; ")
}
