//! Identity-Aware Proxy: whether it is in front, and whom it lets through.

use crate::{
    diagnose::{
        Cause, Known, Outcome, Walk,
        grants::{self, Held},
        symptom::Refusal,
    },
    iam::{Binding, Carries, IAP_ROLE, Policy, Principal, carries_iap, carries_invoke},
};

/// What a caller sends to Identity-Aware Proxy.
///
/// Source: <https://docs.cloud.google.com/iap/docs/authentication-howto>.
const CREDENTIALS: &str = "A browser signs in. A program sends an ID token for an OAuth client that IAP allows for programmatic access, or a JWT for the URL that its service account signed itself; an ID token for the service's URL is for Cloud Run, and IAP refuses it.";

impl Walk<'_> {
    pub(in crate::diagnose) fn iap(&mut self) {
        let facts = self.facts;
        let is_in_front = match &facts.front {
            Known::Is(front) => front.iap,
            // Whether it is could not be seen, which `exists` says.
            _ if !facts.symptom.is_iaps() && !facts.symptom.is_sign_in => return,
            _ => false,
        };
        if is_in_front {
            return self.behind_iap();
        }
        if facts.symptom.is_iaps() {
            let on_service = facts.front.value().is_some();
            let evidence = if on_service {
                "Identity-Aware Proxy gave the answer and is not on the service: it is on the load balancer in front"
            } else {
                "Identity-Aware Proxy gave the answer"
            };
            return match facts.symptom.refusal {
                Some(Refusal::IapCredentials) => self.iap_wants_credentials(evidence),
                _ => self.iap_decides(evidence),
            };
        }
        if facts.symptom.is_sign_in {
            return self.sign_in();
        }
        self.step(
            "iap",
            Outcome::Pass,
            "no Identity-Aware Proxy on the service",
        );
    }

    /// Somebody sends the caller to sign in with Google, and does not say who.
    fn sign_in(&mut self) {
        let is_own = self.facts.url.is_some() && !self.is_foreign();
        if is_own && self.facts.front.value().is_some() {
            self.step(
                "iap",
                Outcome::Pass,
                "no Identity-Aware Proxy on the service: the application sends its users to Google's sign-in",
            );
            return self.settle(
                Cause::TheApplication,
                "The service itself sends the caller to sign in.",
                "Sign in, or look at how the application lets programs in. Cloud Run let the request through.",
            );
        }
        self.open(
            "iap",
            Outcome::Maybe,
            "the answer leads to Google's sign-in, and does not say who sent it",
            "give the whole answer (--body, as curl -si prints it): Identity-Aware Proxy sends X-Goog-IAP-Generated-Response; and the URL (--url)",
        );
        self.settle(
            Cause::CannotTell,
            "Either Identity-Aware Proxy on a load balancer in front sends the caller to sign in, or the application does.",
            format!("If it is Identity-Aware Proxy: grant the caller {IAP_ROLE} there, and sign in. If it is the application: look at its own sign-in."),
        );
    }

    fn behind_iap(&mut self) {
        let symptom = &self.facts.symptom;
        if self.has_no_agent() {
            return;
        }
        if symptom.refusal == Some(Refusal::IapCredentials) || symptom.is_sign_in {
            return self.iap_wants_credentials("Identity-Aware Proxy is on, and gave the answer");
        }
        match &self.facts.principal {
            Some(principal) => self.iap_grants(principal),
            None => self.iap_decides(
                "Identity-Aware Proxy decides who gets in; invoker bindings of callers do not count",
            ),
        }
    }

    /// Whether Identity-Aware Proxy may not call the service itself. True: that is the verdict.
    fn has_no_agent(&mut self) -> bool {
        let facts = self.facts;
        let is_off = facts
            .front
            .value()
            .is_some_and(|front| front.invoker_iam_disabled);
        let lists = |policy: &Policy| {
            let of_agent = |b: &&Binding| b.members.iter().any(|m| is_agent(m));
            let roles = policy.bindings.iter().filter(of_agent);
            let mut carry = roles.map(|b| carries_invoke(&b.role));
            // One that nobody knows may do.
            match carry.clone().any(|c| c == Carries::Yes) {
                true => Some(true),
                false => carry.all(|c| c == Carries::No).then_some(false),
            }
        };
        let here = facts.policy.value().and_then(lists);
        let there = facts.project.value().and_then(lists);
        if is_off || here == Some(true) || there == Some(true) {
            return false;
        }
        if here.is_none() || there.is_none() {
            self.open(
                "iap agent",
                Outcome::Unknown,
                "whether Identity-Aware Proxy's own service agent is an invoker could not be seen",
                "ask again with run.services.getIamPolicy and resourcemanager.projects.getIamPolicy",
            );
            return false;
        }
        self.step(
            "iap",
            Outcome::Fail,
            "Identity-Aware Proxy is on, and its own service agent is no invoker: nobody gets through",
        );
        self.settle(
            Cause::IapAgentMissing,
            "IAP may not call the service itself.",
            "Grant roles/run.invoker to service-PROJECT_NUMBER@gcp-sa-iap.iam.gserviceaccount.com, IAP's service agent.",
        );
        true
    }

    fn iap_decides(&mut self, evidence: &str) {
        self.step("iap", Outcome::Maybe, evidence);
        self.settle(
            Cause::IapDecides,
            "Identity-Aware Proxy stands in front and decides.",
            format!("Grant the caller {IAP_ROLE} on the IAP resource of the service; an invoker grant changes nothing."),
        );
    }

    /// It answered before it asked whether the caller is granted.
    fn iap_wants_credentials(&mut self, evidence: &str) {
        self.step(
            "iap",
            Outcome::Fail,
            format!("{evidence}: no credentials came, or none that are for it"),
        );
        self.settle(
            Cause::IapDecides,
            "Identity-Aware Proxy got no credentials that it takes.",
            format!("{CREDENTIALS} Then the principal needs {IAP_ROLE}; an invoker grant changes nothing."),
        );
    }

    /// Whether Identity-Aware Proxy lets a principal in, by its own policy or by the project's.
    fn iap_grants(&mut self, principal: &Principal) {
        let facts = self.facts;
        let of = |known: &Known<Policy>| -> Option<Held> {
            Some(grants::held(known.value()?, principal, facts, &carries_iap))
        };
        let (own, inherited) = (of(&facts.iap), of(&facts.project));
        let places = [(&own, "the service"), (&inherited, "the project")];
        let yes = places
            .iter()
            .find_map(|(held, place)| Some((held.as_ref()?.yes.clone()?, place)));
        if let Some((how, place)) = yes {
            self.step("iap", Outcome::Pass, format!("{how} on {place}"));
            return self.iap_lets_in(principal);
        }
        let unseen = [&facts.iap, &facts.project]
            .into_iter()
            .find_map(Known::unseen);
        if let Some(why) = unseen {
            self.step("iap", Outcome::Unknown, why);
            return self.settle(
                Cause::CannotTell,
                format!("Identity-Aware Proxy decides. Either it lets {principal} in, or {principal} lacks {IAP_ROLE}: that could not be seen."),
                "Ask again with the right that the step marked ?? names, or ask somebody who has it.",
            );
        }
        let is_known = |held: &Option<Held>| held.as_ref().is_some_and(|h| h.unknown.is_empty());
        if !is_known(&own) || !is_known(&inherited) {
            return self.iap_decides(&format!(
                "Identity-Aware Proxy decides who gets in; whether {principal} has {IAP_ROLE}, or a role like it, is not known here"
            ));
        }
        let all = own.iter().chain(&inherited);
        let maybe: Vec<String> = all.flat_map(|held| held.maybe.clone()).collect();
        if !maybe.is_empty() {
            return self.iap_may_let_in(principal, &maybe.join(", "));
        }
        self.step(
            "iap",
            Outcome::Fail,
            format!("{principal} has {IAP_ROLE} neither on the service nor on the project; folder and organization cannot be seen here"),
        );
        self.settle(
            Cause::IapNotGranted,
            format!("Identity-Aware Proxy does not let {principal} in."),
            format!("Grant it {IAP_ROLE} on the IAP resource of the service; an invoker grant changes nothing."),
        );
    }

    /// Whether the principal is in one of the sets that are granted cannot be seen.
    fn iap_may_let_in(&mut self, principal: &Principal, sets: &str) {
        self.step(
            "iap",
            Outcome::Maybe,
            format!("{principal} has {IAP_ROLE} perhaps through {sets}"),
        );
        self.settle(
            Cause::CannotTell,
            format!("Identity-Aware Proxy decides. Whether one of these lets {principal} in cannot be seen here: {sets}."),
            format!("Ask who is in it. If it should not depend on that, grant {principal} {IAP_ROLE} on the IAP resource of the service; an invoker grant changes nothing."),
        );
    }

    fn iap_lets_in(&mut self, principal: &Principal) {
        let symptom = &self.facts.symptom;
        if symptom.refusal == Some(Refusal::Iap) {
            return self.settle(
                Cause::IapDecides,
                format!("{principal} may pass Identity-Aware Proxy, and it refused nevertheless."),
                format!("Look at access levels on the IAP resource, at the age of the grant (minutes), and at which account is signed in. {CREDENTIALS}"),
            );
        }
        if !symptom.got_in() {
            self.open(
                "deny policies",
                Outcome::Skipped,
                "those that deny iap.webServiceVersions.accessViaIAP are not looked at, nor is which account is signed in",
                "Policy Troubleshooter in the console, for iap.webServiceVersions.accessViaIAP",
            );
        }
        self.settle(
            Cause::AccessExpected,
            format!("Identity-Aware Proxy lets {principal} in."),
            "If it is refused all the same: another account is signed in, an access level is not met, or the application answers so.",
        );
    }
}

/// The account by which Identity-Aware Proxy calls services.
fn is_agent(member: &str) -> bool {
    let principal = Principal::from_live(member);
    principal
        .key()
        .contains("@gcp-sa-iap.iam.gserviceaccount.com")
}
