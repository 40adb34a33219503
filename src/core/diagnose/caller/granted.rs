//! Whether the principal of a token is let in, by whom, and since when.
//!
//! A verdict is a cause only if what was seen leaves nothing else: what could not be seen, and what
//! only may let the principal in, leaves it open. Cloud Run's own word that the principal lacks the
//! permission settles what could not be seen.

use crate::{
    diagnose::{
        Cause, Fix, Outcome, Walk,
        grants::{Held, Sum, UNDER_A_CONDITION, covers},
        symptom::{Refusal, Sender},
    },
    iam::{Invocation, Principal, carries_invoke},
};

pub(super) const ON_SERVICE: &str = "grants on the service";
const ON_PROJECT: &str = "grants on the project";
const ABOVE: &str = "grants above the project";

/// The step that a place belongs to, by how many places are nearer to the service.
pub(super) fn check_of(at: usize) -> &'static str {
    [ON_SERVICE, ON_PROJECT].get(at).unwrap_or(&ABOVE)
}

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
        if facts.policy.is_not_asked() {
            return;
        }
        let sum = facts.sum(&|listed| covers(listed, principal), &carries_invoke);
        if let Some((at, held)) = sum.yes() {
            let (_, how) = &held.yes[0];
            self.grant_steps(&sum, principal, at);
            self.step(check_of(at), Outcome::Pass, how.clone());
            return self.granted(&sum.by());
        }
        if self.is_granted_elsewhere(&sum, principal) {
            return;
        }
        self.grant_steps(&sum, principal, sum.places.len());
        self.not_granted(principal, &sum);
    }

    /// What the first places come to, none of which lets the principal in for sure.
    fn grant_steps(&mut self, sum: &Sum<'_>, principal: &Principal, end: usize) {
        let is_decided = end < sum.places.len();
        let is_certain = self.is_surely_not_granted(sum);
        for (at, (name, held)) in sum.places.iter().enumerate().take(end) {
            let check = check_of(at);
            let (outcome, words) = match held {
                Ok(held) => {
                    let outcome = match (is_decided, is_certain) {
                        (false, true) => Outcome::Fail,
                        (false, false) if held.is_open() => Outcome::Maybe,
                        // Another place decides.
                        _ => Outcome::Skipped,
                    };
                    (outcome, evidence(held, principal))
                }
                Err(why) if is_decided => (Outcome::Skipped, (*why).to_owned()),
                Err(why) => (Outcome::Unknown, (*why).to_owned()),
            };
            let words = if check == ABOVE {
                format!("{name}: {words}")
            } else {
                words
            };
            self.step(check, outcome, words);
        }
    }

    /// Nobody said who calls; the answer may say what was missing.
    fn unnamed(&mut self) {
        let facts = self.facts;
        let sent_by = facts.symptom.sent_by;
        match facts.symptom.refusal {
            Some(Refusal::NoGrant) => {
                let who = match sent_by {
                    Some(Sender::Google { name, .. }) => format!("the service account of {name}"),
                    _ => "the caller".to_owned(),
                };
                self.conclude(
                    Cause::CannotTell,
                    format!("A valid token came, and {who} lacks run.routes.invoke: it has no grant, or one whose condition does not hold, or a deny policy refuses it."),
                    "Give the principal with --as; the policies say which.",
                );
            }
            Some(Refusal::NoTokenOrNoGrant) => {
                let both = match sent_by {
                    Some(Sender::Google { .. }) => Some((
                        "Without a token:",
                        "With one: its service account is no invoker; give it with --as.",
                    )),
                    Some(Sender::Browser) => Some((
                        "Without a token, as browsers send none:",
                        "With one: give its principal with --as.",
                    )),
                    None => None,
                };
                let fix = match both {
                    Some((without, with)) => {
                        let fix = self.send_one();
                        Fix {
                            words: format!("{without} {} {with}", fix.words),
                            ..fix
                        }
                    }
                    None => self.mint("Give the principal with --as, and what was sent with --token. Without a token: send one, as below. With one: grant its principal."),
                };
                self.conclude(
                    Cause::NoTokenOrNoGrant,
                    "Either the request came without a token, or its principal may not invoke the service: this text says both.",
                    fix,
                );
            }
            _ => {}
        }
    }

    /// Whether nothing can let the principal in: all was seen, or somebody who knows says so. What
    /// may let it in, by a group or by an unknown role, is then not left open either: Policy
    /// Troubleshooter has looked into it.
    fn is_surely_not_granted(&self, sum: &Sum<'_>) -> bool {
        if self.is_granted_nowhere() {
            return true;
        }
        // Cloud Run's word that the permission is lacking is enough where nothing that was seen says
        // that it may be there. Where something does, a deny policy or another token can be behind
        // the same words.
        let lacks = self.says_that_the_caller_lacks();
        self.maybe_above().is_none() && (sum.is_no() || (lacks && !sum.is_open()))
    }

    /// Whether Cloud Run says that the caller lacks the permission: behind Identity-Aware Proxy it
    /// says so of that.
    fn says_that_the_caller_lacks(&self) -> bool {
        self.facts.symptom.refusal == Some(Refusal::NoGrant)
            && self.facts.front.value().is_some_and(|front| !front.iap)
    }

    fn not_granted(&mut self, principal: &Principal, sum: &Sum<'_>) {
        let symptom = &self.facts.symptom;
        let also =
            if symptom.refusal == Some(Refusal::NoTokenOrNoGrant) && self.facts.token.is_none() {
                "And see that the request carries a token: without one Cloud Run answers the same. "
            } else {
                ""
            };
        let fix = self.grant_fix(principal, also);
        if self.is_surely_not_granted(sum) {
            let (cause, verdict) = sum.ended().unwrap_or_else(|| {
                let verdict = format!("{principal} may not invoke the service.");
                (Cause::NotGranted, verdict)
            });
            return self.conclude(cause, verdict, fix);
        }
        if !sum.unknown().is_empty() {
            return self.depends_on_a_role(principal, sum, fix);
        }
        let own = match sum.ended() {
            Some((_, verdict)) => verdict,
            None => format!("{principal} has no grant of its own."),
        };
        let maybe: Vec<String> = sum.maybe().into_iter().chain(self.maybe_above()).collect();
        if maybe.is_empty() {
            let unseen = sum.unseen().join(", ");
            let verdict = format!(
                "{own} Whether it is let in from one of these could not be seen: {unseen}."
            );
            let words = format!("{}Where nothing does: {}", self.ask_above(), fix.words);
            return self.conclude(Cause::CannotTell, verdict, Fix { words, ..fix });
        }
        let maybe = maybe.join(", ");
        let (verdict, ask) = match symptom.refusal {
            Some(Refusal::NoGrant) => (
                format!(
                    "{own} Cloud Run says that the caller lacks run.routes.invoke: either {principal} is not let in by one of these ({maybe}), or a deny policy refuses it, or the token was somebody else's."
                ),
                "Ask who is in it, and since when: membership can take hours to count.",
            ),
            _ => (
                format!("{own} Whether one of these lets it in cannot be seen here: {maybe}."),
                "Ask who is in it.",
            ),
        };
        let condition = if maybe.contains(UNDER_A_CONDITION) {
            " See whether the condition holds for the request; a grant without it goes past it."
        } else {
            ""
        };
        let words = format!(
            "{ask}{condition} If it should not depend on that: {}",
            fix.words
        );
        let cause = match sum.ended() {
            Some(_) => Cause::CannotTell,
            None => Cause::MaybeThroughAGroup,
        };
        self.conclude(cause, verdict, Fix { words, ..fix });
    }

    /// How to see what is above the service.
    fn ask_above(&self) -> &'static str {
        if self.facts.troubleshooter.is_not_asked() {
            "Ask Policy Troubleshooter (--troubleshoot), which sees every level. "
        } else {
            "Ask somebody who may see these. "
        }
    }

    /// Grants that are all so young that not every part of IAM acts on them. True: that is the
    /// verdict.
    pub(super) fn may_be_too_young(&mut self, by: &[Principal]) -> bool {
        let Some(until) = self.facts.propagating_until(by) else {
            return false;
        };
        self.step(
            "propagation",
            Outcome::Maybe,
            format!("it was granted lately; IAM may take until {until} to act on it everywhere"),
        );
        self.conclude(
            Cause::Propagating,
            "The grant is there, and too young to count on.",
            format!("Wait until {until} and try again. Membership of groups can take hours."),
        );
        true
    }

    /// IAM lets it through, by these members of a policy; what is left to refuse it?
    pub(super) fn granted(&mut self, by: &[Principal]) {
        if self.is_granted_nowhere() {
            self.reopen_troubleshooter();
        }
        if self.facts.symptom.got_in() || !self.may_be_too_young(by) {
            self.let_in();
        }
    }

    /// What may refuse a principal that is granted, as far as it was not seen that it does not.
    fn others(&self) -> String {
        let mut others = vec!["the grant is too young for Cloud Run to act on it"];
        if !self.is_surely_not_denied() {
            others.push("a deny policy refuses it");
        }
        if self.facts.token.is_none() {
            others.push("the token that came was somebody else's (give it with --token)");
        } else if self.facts.symptom.refusal == Some(Refusal::NoTokenOrNoGrant) {
            others.push("the token did not arrive");
        }
        others.join(", or ")
    }

    /// Somebody grants it, on the service or above.
    fn let_in(&mut self) {
        let symptom = &self.facts.symptom;
        if symptom.refusal == Some(Refusal::NoTokenOrNoGrant) && self.facts.token.is_none() {
            let fix = self.mint("Send its token, and give it here with --token if it is refused still; then look at deny policies (Policy Troubleshooter).");
            return self.conclude(
                Cause::NoTokenOrNoGrant,
                "The principal is granted, so the request most likely came without its token; or a deny policy refuses it. This text says both.",
                fix,
            );
        }
        if symptom.is_platforms_refusal() && symptom.refusal.is_some() {
            let ask = if self.facts.troubleshooter.is_not_asked() {
                " Look at deny policies (--troubleshoot)."
            } else {
                ""
            };
            return self.conclude(
                Cause::CannotTell,
                format!(
                    "The principal is granted, and Cloud Run refused it: {}.",
                    self.others()
                ),
                format!("Try again when the grant is seven minutes old.{ask}"),
            );
        }
        if symptom.is_platforms_refusal() {
            return self.conclude(
                Cause::CannotTell,
                format!("The principal is granted. Either the application itself refuses this, or a service perimeter does, or {}.", self.others()),
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
    if parts.is_empty() && held.unknown.is_empty() {
        parts.push(format!("no invoking role names {principal}"));
    }
    parts.extend(held.maybe.iter().map(|m| format!("perhaps through {m}")));
    let unknown = held.unknown.iter();
    parts.extend(unknown.map(|r| format!("{}, whose permissions are not known here", r.what)));
    parts.join("; ")
}
