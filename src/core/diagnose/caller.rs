//! Who calls, with what, and whether that one is granted.

use super::{
    Cause, Fix, Known, Outcome, Walk, address,
    grants::{self, Held},
    symptom::Refusal,
    token::{Token, TokenKind},
};
use crate::iam::{Invocation, Principal, carries_invoke};

/// Audience of the ID tokens that gcloud prints for its user accounts. Cloud Run accepts it for
/// users.
///
/// Sources: gcloud's `core/config.py`, and
/// <https://docs.cloud.google.com/run/docs/authenticating/developers>.
const GCLOUD: &str = "32555940559.apps.googleusercontent.com";

/// What is wrong with a token: the cause, the evidence, and the verdict.
type Flaw = (Cause, String, &'static str);

impl Walk<'_> {
    /// A service that is public, or that a policy declares so: a token is not asked for there, and
    /// one that Cloud Run cannot verify is no cause before the grant is there.
    pub(super) fn public(&mut self) {
        let facts = self.facts;
        let everybody = Principal::from_live("allUsers");
        let mut how = None;
        for policy in [&facts.policy, &facts.project]
            .into_iter()
            .filter_map(Known::value)
        {
            let held = grants::held(policy, &everybody, facts, &carries_invoke);
            how = how.or(held.yes);
        }
        if let Some(how) = how {
            self.step("public access", Outcome::Pass, how);
            return self.is_public();
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

    pub(super) fn token(&mut self) {
        let refusal = self.facts.symptom.refusal;
        match (&self.facts.token, refusal) {
            (Some(_), Some(Refusal::NoToken)) => {
                self.step(
                    "token",
                    Outcome::Fail,
                    "Cloud Run says that no credentials came with the request: this token did not arrive",
                );
                self.conclude(
                    Cause::NoToken,
                    "The token does not reach the service.",
                    "Something in between drops or replaces the Authorization header: send the ID token in X-Serverless-Authorization.",
                );
            }
            (Some(token), _) => self.given(token),
            (None, Some(Refusal::NoToken)) => self.no_token(),
            (None, Some(Refusal::BadToken)) => {
                self.step(
                    "token",
                    Outcome::Fail,
                    "Cloud Run says that the token could not be verified",
                );
                let fix = self.mint("Send one Google-signed ID token, in one Authorization header; a token of the application's own goes there only if the ID token goes in X-Serverless-Authorization. Give it here with --token to see what is wrong with it.");
                self.conclude(
                    Cause::NotAnIdToken,
                    "A token came that is no valid ID token for this service.",
                    fix,
                );
            }
            (None, Some(Refusal::NoGrant)) => self.step(
                "token",
                Outcome::Pass,
                "Cloud Run says that the principal lacks run.routes.invoke: a valid token came",
            ),
            (None, Some(Refusal::NoTokenOrNoGrant)) => self.step(
                "token",
                Outcome::Maybe,
                "Cloud Run says the same of a request without a token and of a principal without a grant",
            ),
            (None, _) => self.step("token", Outcome::Skipped, "no token was given (--token)"),
        }
    }

    fn no_token(&mut self) {
        self.step(
            "token",
            Outcome::Fail,
            "Cloud Run says that no credentials came with the request",
        );
        let fix = match self.facts.symptom.sent_by {
            Some(sender) => format!("Give {sender} a service account to authenticate as (OIDC), with the service's URL as audience, and make that account an invoker.").into(),
            None => self.mint("Send an ID token: Authorization: Bearer TOKEN, with the service's URL as audience. A browser sends none; for people, use IAP or gcloud run services proxy."),
        };
        self.conclude(Cause::NoToken, "The request came without a token.", fix);
    }

    /// What is known of a token that was given.
    fn given(&mut self, token: &Token) {
        let flaw = self
            .form(token)
            .or_else(|| self.issuer_and_end(token))
            .or_else(|| self.audience(token));
        if let Some((cause, evidence, verdict)) = flaw {
            self.step("token", Outcome::Fail, evidence);
            let fix = self.mint(match cause {
                Cause::ForeignIssuer => "Exchange it for a Google ID token (service account impersonation), or leave it in Authorization for the application and send a Google ID token in X-Serverless-Authorization.",
                Cause::TokenExpired => "Mint a new one; ID tokens last an hour.",
                Cause::WrongAudience => "Mint it for the service's URL without a path, or add the audience to the service's custom audiences.",
                Cause::SignatureRemoved => "Mint a new one and call with that, straight from where it was minted.",
                _ => "Mint an ID token for the service's URL.",
            });
            return self.conclude(cause, verdict, fix);
        }
        let of = token.principal();
        let other = self
            .facts
            .principal
            .as_ref()
            .filter(|p| of.as_ref().is_some_and(|of| of != *p));
        let outcome = |maybe: bool| if maybe { Outcome::Maybe } else { Outcome::Pass };
        let mut evidence = match &of {
            Some(of) => format!("a Google ID token for this service, of {of}"),
            None => "a Google ID token for this service that names nobody by e-mail; mint it with --include-email".to_owned(),
        };
        if let Some(other) = other {
            evidence.push_str(&format!(", and not of {other}"));
        }
        if self.facts.symptom.refusal == Some(Refusal::BadToken) {
            self.step("token", Outcome::Maybe, evidence);
            return self.conclude(
                Cause::NotAnIdToken,
                "The token that was given is in order, and Cloud Run could not verify the one that came.",
                "Something else was sent: a second Authorization header, two tokens in one, another token in X-Serverless-Authorization, or one with a changed signature.",
            );
        }
        self.step("token", outcome(of.is_none() || other.is_some()), evidence);
    }

    fn form(&self, token: &Token) -> Option<Flaw> {
        match &token.kind {
            TokenKind::Access => Some((
                Cause::NotAnIdToken,
                "it is an access token, not an ID token".into(),
                "Cloud Run takes ID tokens only.",
            )),
            TokenKind::Unreadable(why) => Some((
                Cause::NotAnIdToken,
                format!("it is no JWT: {why}"),
                "That is no ID token.",
            )),
            TokenKind::SignatureRemoved => Some((
                Cause::SignatureRemoved,
                "its signature reads SIGNATURE_REMOVED_BY_GOOGLE: it is a copy of what an application was handed, without what proves it".into(),
                "The token's signature was removed; it cannot be used again.",
            )),
            TokenKind::Jwt => None,
        }
    }

    fn issuer_and_end(&self, token: &Token) -> Option<Flaw> {
        let issuer = token.issuer.as_str();
        if !matches!(
            issuer,
            "https://accounts.google.com" | "accounts.google.com"
        ) {
            return Some((
                Cause::ForeignIssuer,
                format!("its issuer is {issuer:?}, not Google"),
                "The token is not signed by Google.",
            ));
        }
        let ended = token.expires.filter(|e| *e <= self.facts.at)?;
        Some((
            Cause::TokenExpired,
            format!("it ended at {ended}"),
            "The token has expired.",
        ))
    }

    fn audience(&mut self, token: &Token) -> Option<Flaw> {
        let facts = self.facts;
        let front = facts.front.value()?;
        let accepted = |a: &String| address::accepts(a, &facts.service, front);
        let is_user = token
            .principal()
            .is_some_and(|p| p.key().starts_with("user:"));
        if token.audiences.iter().any(accepted)
            || (is_user && token.audiences.iter().any(|a| a == GCLOUD))
        {
            return None;
        }
        let of_tag = |a: &String| front.tag_urls.iter().any(|u| a.trim_end_matches('/') == u);
        if token.audiences.iter().any(of_tag) {
            // Google documents the service's own URL, also for calls of a tag.
            self.step(
                "audience",
                Outcome::Maybe,
                format!(
                    "it is the URL of a tag; mint tokens for {}",
                    address::url(front)
                ),
            );
            return None;
        }
        let own: Vec<&str> = front
            .urls
            .iter()
            .chain(&front.custom_audiences)
            .map(String::as_str)
            .collect();
        let evidence = format!(
            "its audience is {}; accepted: {}",
            token.audiences.join(", "),
            own.join(", ")
        );
        let verdict = "The token is for another audience.";
        Some((Cause::WrongAudience, evidence, verdict))
    }

    /// How whoever calls gets a token. A user account cannot choose an audience with gcloud
    /// (`Requires valid service account`), and needs not.
    ///
    /// Source: gcloud's `surface/auth/print_identity_token.py`.
    fn mint(&self, words: &str) -> Fix {
        let facts = self.facts;
        let url = facts.front.value().map_or("URL", address::url);
        let caller = facts.principal.clone();
        let caller = caller.or_else(|| facts.token.as_ref().and_then(Token::principal));
        let account = |name: &str| {
            format!(
                "gcloud auth print-identity-token --impersonate-service-account={name} --audiences={url} --include-email"
            )
        };
        let user = "gcloud auth print-identity-token";
        let gcloud = match caller.as_ref().map(|c| c.as_str().split_once(':')) {
            Some(Some(("serviceAccount", email))) => account(email),
            Some(Some(("user", _))) => user.to_owned(),
            _ => format!("{user}    # as yourself\n{}", account("ACCOUNT")),
        };
        Fix {
            words: format!(
                "{words} On Google Cloud, the metadata server's identity endpoint mints one as well."
            ),
            gcloud,
            ..Fix::default()
        }
    }

    pub(super) fn principal_kind(&mut self) {
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
            Invocation::Disputed => self.step(
                "principal",
                Outcome::Maybe,
                format!("{principal} is of a workforce pool: Google's list of federated identities says that Cloud Run does not support these, its page for developers sends them there"),
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

    pub(super) fn grants(&mut self) {
        let facts = self.facts;
        let Some(principal) = &facts.principal else {
            return self.unnamed();
        };
        let policy = match &facts.policy {
            Known::Is(policy) => policy,
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
            self.step("grants on the service", Outcome::Maybe, evidence);
            self.step("grants on the project", Outcome::Pass, how);
            return self.granted();
        }
        let both = here.maybe.iter().chain(there.iter().flat_map(|t| &t.maybe));
        let maybe: Vec<String> = both.cloned().collect();
        let is_certain = facts.symptom.refusal == Some(Refusal::NoGrant);
        let may_be_above = matches!(facts.project, Known::Hidden(_)) || self.got_in();
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
        match facts.symptom.refusal {
            Some(Refusal::NoGrant) => {
                let who = facts.symptom.sent_by.map_or_else(
                    || "the caller".to_owned(),
                    |sender| format!("the service account of {sender}"),
                );
                self.conclude(
                    Cause::NotGranted,
                    format!("A valid token came, and {who} may not invoke the service."),
                    "Give the principal with --as: the fix is a grant for it.",
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

    fn got_in(&self) -> bool {
        let status = self.facts.symptom.status;
        status.is_some_and(|s| (200..300).contains(&s))
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
        if self.got_in() {
            return self.conclude(
                Cause::CannotTell,
                format!("{principal} got in, and neither service nor project names it: a grant on a folder or the organization does, or a group that it is in."),
                "Policy Troubleshooter shows which: principal, run.routes.invoke, the service's full name.",
            );
        }
        if let Some((cause, verdict)) = here.ended {
            return self.conclude(cause, verdict, fix);
        }
        let is_certain = symptom.refusal == Some(Refusal::NoGrant);
        if !maybe.is_empty() && !is_certain {
            let verdict = format!(
                "{principal} has no grant of its own; whether it is in one of these cannot be seen here: {}.",
                maybe.join(", ")
            );
            let words = format!(
                "Ask who is in it. If it should not depend on that: {}",
                fix.words
            );
            return self.conclude(Cause::MaybeThroughAGroup, verdict, Fix { words, ..fix });
        }
        if let (Known::Hidden(_), false) = (&self.facts.project, is_certain) {
            let verdict = format!(
                "{principal} has no grant on the service. Either one on the project lets it in, which could not be seen, or it may not invoke the service."
            );
            return self.conclude(Cause::CannotTell, verdict, fix);
        }
        self.conclude(
            Cause::NotGranted,
            format!("{principal} may not invoke the service."),
            fix,
        );
    }

    /// A change that is so young that not every part of IAM acts on it. True: that is the verdict.
    fn may_be_too_young(&mut self) -> bool {
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
    fn granted(&mut self) {
        if self.may_be_too_young() {
            return;
        }
        let symptom = &self.facts.symptom;
        if symptom.refusal == Some(Refusal::NoTokenOrNoGrant) && self.facts.token.is_none() {
            let fix = self.mint("Send its token, and give it here with --token if it is refused still; then look at deny policies (Policy Troubleshooter).");
            return self.conclude(
                Cause::NoTokenOrNoGrant,
                "The principal is granted, so the request most likely came without its token; or a deny policy refuses it. This text says both.",
                fix,
            );
        }
        if symptom.is_platforms_refusal() {
            return self.conclude(
                Cause::PerimeterOrDeny,
                "The service's policy grants it, so a deny policy or a service perimeter refuses it, or the application itself.",
                "Look at deny policies and the perimeter: the policy log (method run.googleapis.com/HttpIngress), and Policy Troubleshooter for run.routes.invoke on the service.",
            );
        }
        self.conclude(
            Cause::AccessExpected,
            "IAM lets this principal invoke the service.",
            "If it is refused all the same: the application answers so, a deny policy or a service perimeter stands above, or the change is younger than seven minutes.",
        );
    }

    pub(super) fn beyond(&mut self) {
        self.step("deny policies, perimeters", Outcome::Skipped, "they stand above the service and cannot be seen with the rights that this needs; Policy Troubleshooter shows them");
    }
}

/// Why a policy does not let a principal in.
fn evidence(held: &Held, principal: &Principal) -> String {
    let mut parts = held.no.clone();
    if parts.is_empty() {
        parts.push(format!("no invoking role names {principal}"));
    }
    parts.extend(held.maybe.iter().map(|m| format!("perhaps through {m}")));
    parts.join("; ")
}
