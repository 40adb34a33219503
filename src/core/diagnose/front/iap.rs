//! Identity-Aware Proxy: whether it is in front, and whom it lets through.

use crate::{
    diagnose::{
        Cause, Known, Outcome, Walk,
        grants::{Sum, covers},
        symptom::Refusal,
    },
    iam::{IAP_ROLE, Principal, PrincipalKind, carries_iap, carries_invoke},
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
        if self.is_own() && self.facts.symptom.is_by_front_end {
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
        if self.is_refused_by_iam() {
            return self.refuses_iap();
        }
        // What it refused itself, it called nothing for.
        if !symptom.is_iaps() && !symptom.is_sign_in && self.has_no_agent() {
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

    /// Cloud Run itself refused: it judges Identity-Aware Proxy's own account, which let the caller
    /// pass.
    fn refuses_iap(&mut self) {
        if self.has_no_agent() {
            return;
        }
        self.step(
            "iap",
            Outcome::Maybe,
            "Identity-Aware Proxy is on, and Cloud Run itself refused: either Identity-Aware Proxy's own call, or one from before it was on",
        );
        self.settle(
            Cause::CannotTell,
            "Cloud Run refused Identity-Aware Proxy's own call, or the request came before Identity-Aware Proxy was on.",
            "See that IAP's service agent is an invoker of the service, and that no deny policy refuses it; then ask again.",
        );
    }

    /// Whether Identity-Aware Proxy may not call the service itself. True: that is the verdict.
    fn has_no_agent(&mut self) -> bool {
        let facts = self.facts;
        let front = facts.front.value();
        if facts.symptom.got_in() || front.is_some_and(|front| front.invoker_iam_disabled) {
            return false;
        }
        let sum = facts.sum(&is_agent, &carries_invoke);
        if sum.yes().is_some() {
            return false;
        }
        if !sum.is_no() {
            self.open(
                "iap agent",
                Outcome::Unknown,
                "whether Identity-Aware Proxy's own service agent is an invoker could not be seen",
                "ask again with the rights to see the policies of the service, its project, folders and organization",
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

    /// Whoever asks whether it lets somebody in has to say who; that it refused, its answer says.
    fn iap_decides(&mut self, evidence: &str) {
        let symptom = &self.facts.symptom;
        let fix = format!(
            "Grant the caller {IAP_ROLE} on the IAP resource of the service; an invoker grant changes nothing."
        );
        if symptom.got_in() && !symptom.is_iaps() {
            let see =
                "ask Policy Troubleshooter in the console, for iap.webServiceVersions.accessViaIAP";
            self.open("iap", Outcome::Maybe, evidence, see);
            return self.settle(
                Cause::AccessExpected,
                "Identity-Aware Proxy let the request in.",
                "",
            );
        }
        self.step("iap", Outcome::Maybe, evidence);
        if symptom.is_iaps() {
            let verdict = "Identity-Aware Proxy stands in front, and refused.";
            return self.settle(Cause::IapDecides, verdict, fix);
        }
        self.settle(
            Cause::CannotTell,
            "Identity-Aware Proxy stands in front and decides.",
            format!("Say who calls (--as). {fix}"),
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

    /// Whether Identity-Aware Proxy lets a principal in, by its own policies or by those above.
    fn iap_grants(&mut self, principal: &Principal) {
        let facts = self.facts;
        let places = facts.iap.iter().chain(&facts.above);
        let places = places.map(|p| (p.name.as_str(), &p.policy));
        let sum = Sum::of(
            places,
            facts,
            &|listed| covers(listed, principal),
            &carries_iap,
        );
        if let Some((at, held)) = sum.yes() {
            let (place, _) = sum.places[at];
            let (_, how) = &held.yes[0];
            self.step("iap", Outcome::Pass, format!("{how} on {place}"));
            return self.iap_lets_in(principal);
        }
        if facts.symptom.got_in() {
            return self.iap_decides(&format!(
                "Identity-Aware Proxy let the request in; by what {principal} has {IAP_ROLE} was not seen"
            ));
        }
        let unknown = sum.unknown();
        if !unknown.is_empty() {
            let what: Vec<&str> = unknown.iter().map(|r| r.what.as_str()).collect();
            return self.iap_may_let_in(principal, &what.join(", "));
        }
        let maybe = sum.maybe();
        if !maybe.is_empty() {
            return self.iap_may_let_in(principal, &maybe.join(", "));
        }
        // It says itself that it did not let somebody in; of whom nothing hints that it would have.
        let unseen = if facts.iap.is_empty() {
            vec!["the IAP resource of the service"]
        } else {
            sum.unseen()
        };
        if !unseen.is_empty() {
            let unseen = unseen.join(", ");
            let why =
                format!("{principal} has {IAP_ROLE} on nothing that was seen; not seen: {unseen}");
            if facts.symptom.is_iaps() {
                return self.iap_decides(&why);
            }
            self.step("iap", Outcome::Unknown, why);
            return self.settle(
                Cause::CannotTell,
                format!("Identity-Aware Proxy decides. Either it lets {principal} in, or {principal} lacks {IAP_ROLE}: that could not be seen."),
                "Ask again with the rights to see these policies, or ask somebody who has them.",
            );
        }
        self.step(
            "iap",
            Outcome::Fail,
            format!("{principal} has {IAP_ROLE} neither on the service nor on anything above it"),
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
            format!("Ask who is in it, or whether its condition (such as an access level) holds. To grant {principal} {IAP_ROLE} past a condition is for whoever set it to decide; an invoker grant changes nothing."),
        );
    }

    fn iap_lets_in(&mut self, principal: &Principal) {
        let symptom = &self.facts.symptom;
        if symptom.refusal == Some(Refusal::Iap) {
            return self.settle(
                Cause::CannotTell,
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

/// Whether a member stands for the account by which Identity-Aware Proxy calls services; `None`: it
/// may.
fn is_agent(listed: &Principal) -> Option<bool> {
    let domain = "@gcp-sa-iap.iam.gserviceaccount.com";
    match listed.kind() {
        PrincipalKind::AllUsers | PrincipalKind::AllAuthenticatedUsers => Some(true),
        PrincipalKind::Group => None,
        _ => Some(listed.key().contains(domain)),
    }
}
