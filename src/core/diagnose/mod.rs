//! Why a request is let through or refused: facts in, steps with evidence and a verdict out. Pure:
//! nothing is read here.
//!
//! The order is that of the checks in front of a service, from the outside in; the first that fails
//! is the cause. Source: <https://docs.cloud.google.com/run/docs/troubleshooting>.

pub mod condition;
pub mod symptom;
pub mod token;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::iam::{Policy, Principal, PrincipalKind, RunService, ServiceSettings};
use condition::Truth;
use symptom::Symptom;
use token::{Token, TokenKind};

/// How long IAM may take to act on a change.
///
/// Source: <https://docs.cloud.google.com/iam/docs/access-change-propagation>.
const PROPAGATION: SignedDuration = SignedDuration::from_mins(7);

/// Something that was read, or why it could not be.
#[derive(Clone, Debug)]
pub enum Known<T> {
    Is(T),
    /// It is not there.
    Absent(String),
    /// It could not be read.
    Hidden(String),
    /// Nobody asked.
    NotAsked,
}

/// What a policy of the cluster says about the principal on the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Namespace and name.
    pub policy: String,
    /// It lists the principal.
    pub lists: bool,
    pub enforced: bool,
    /// Why it is not granted, where the policy says so.
    pub reason: Option<String>,
}

/// All that the verdict depends on.
#[derive(Clone, Debug)]
pub struct Facts {
    pub service: RunService,
    pub at: Timestamp,
    /// Who calls, where that is known.
    pub principal: Option<Principal>,
    /// The address that was called.
    pub url: Option<String>,
    pub front: Known<ServiceSettings>,
    pub policy: Known<Policy>,
    /// The project's own allow policy.
    pub project: Known<Policy>,
    pub token: Option<Token>,
    pub symptom: Symptom,
    pub declared: Vec<Declared>,
    /// When the operator last changed the service's policy.
    pub changed_at: Option<Timestamp>,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    Pass,
    Fail,
    /// It may be the cause, and cannot be told from here.
    Maybe,
    /// It could not be looked at.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    pub check: &'static str,
    pub outcome: Outcome,
    pub evidence: String,
}

/// What it comes to. A closed list; `tests/diagnose.rs` has a case for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Cause {
    ServiceNotFound,
    WrongUrl,
    DefaultUrlDisabled,
    IngressBlocks,
    ReservedPath,
    IapDecides,
    IapAgentMissing,
    IamCheckOff,
    NoToken,
    NotAnIdToken,
    ForeignIssuer,
    WrongAudience,
    TokenExpired,
    SignatureRemoved,
    CannotInvoke,
    AccessEnded,
    ConditionFalse,
    NotGranted,
    MaybeThroughAGroup,
    Propagating,
    PerimeterOrDeny,
    NoInstance,
    TheApplication,
    AccessExpected,
    CannotTell,
}

/// How to mend it. Never wider than what is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fix {
    pub words: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gcloud: String,
}

/// `diagnose -o json`, version 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    pub kind: &'static str,
    pub version: u32,
    pub service: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    pub cause: Cause,
    pub verdict: String,
    pub steps: Vec<Step>,
    pub fix: Fix,
}

struct Walk<'a> {
    facts: &'a Facts,
    steps: Vec<Step>,
    found: Option<(Cause, String, Fix)>,
}

/// Walks the checks.
pub fn diagnose(facts: &Facts) -> Diagnosis {
    let mut walk = Walk {
        facts,
        steps: Vec::new(),
        found: None,
    };
    walk.exists();
    if walk
        .found
        .as_ref()
        .is_none_or(|(c, ..)| *c != Cause::ServiceNotFound)
    {
        walk.address();
        walk.ingress();
        walk.iap();
        walk.iam_check();
        // Where somebody else decides, what IAM holds for the caller says nothing.
        let decided = |f: &(Cause, String, Fix)| {
            matches!(
                f.0,
                Cause::IamCheckOff | Cause::IapDecides | Cause::IapAgentMissing
            )
        };
        if !walk.found.as_ref().is_some_and(decided) {
            walk.token();
            walk.principal_kind();
            walk.grants();
            walk.beyond();
        }
    }
    let Walk { steps, found, .. } = walk;
    let (cause, verdict, fix) = found.unwrap_or((
        Cause::CannotTell,
        "Nothing that can be seen from here refuses this request.".into(),
        Fix {
            words: "Give more to go by: --as or --token, --url, --log.".into(),
            ..Fix::default()
        },
    ));
    Diagnosis {
        kind: "Diagnosis",
        version: 1,
        service: facts.service.to_string(),
        principal: facts.principal.as_ref().map(ToString::to_string),
        cause,
        verdict,
        steps,
        fix,
    }
}

impl Walk<'_> {
    fn step(&mut self, check: &'static str, outcome: Outcome, evidence: impl Into<String>) {
        self.steps.push(Step {
            check,
            outcome,
            evidence: evidence.into(),
        });
    }

    /// The first cause stands.
    fn conclude(&mut self, cause: Cause, verdict: impl Into<String>, fix: Fix) {
        self.found.get_or_insert((cause, verdict.into(), fix));
    }

    fn exists(&mut self) {
        let name = self.facts.service.to_string();
        match &self.facts.front {
            Known::Is(front) if front.reconciling => {
                self.step(
                    "exists",
                    Outcome::Maybe,
                    format!("{name} is there; a change of it is under way"),
                );
            }
            Known::Is(_) => self.step("exists", Outcome::Pass, format!("{name} is there")),
            Known::Absent(why) => {
                self.step("exists", Outcome::Fail, why.clone());
                let words = "Deploy it, or correct project, region and name.";
                self.conclude(
                    Cause::ServiceNotFound,
                    format!("There is no service {name}."),
                    words.into(),
                );
            }
            Known::Hidden(why) => self.step("exists", Outcome::Unknown, why.clone()),
            Known::NotAsked => self.step("exists", Outcome::Unknown, "not asked"),
        }
    }

    fn address(&mut self) {
        let facts = self.facts;
        let Some(url) = &facts.url else {
            return self.step("address", Outcome::Unknown, "no URL was given");
        };
        let (host, path) = symptom::host_and_path(url);
        if path.split('?').next().is_some_and(|p| p.ends_with('z'))
            && facts.symptom.status == Some(404)
            && !facts.symptom.logged
        {
            self.step(
                "address",
                Outcome::Fail,
                format!(
                    "{path} ends in z; Google's front end keeps some of these paths for itself"
                ),
            );
            let words = "Use another path, for example /health.";
            return self.conclude(
                Cause::ReservedPath,
                format!("The path {path} never reaches the service."),
                words.into(),
            );
        }
        let Known::Is(front) = &facts.front else {
            return self.step(
                "address",
                Outcome::Unknown,
                "the service's URLs are not known",
            );
        };
        let known = front
            .urls
            .iter()
            .any(|u| symptom::host_and_path(u).0 == host);
        if known && front.default_url_disabled && host.ends_with(".run.app") {
            self.step(
                "address",
                Outcome::Fail,
                "the run.app URLs are switched off",
            );
            let words = "Call it through its load balancer or custom domain.";
            return self.conclude(
                Cause::DefaultUrlDisabled,
                "The default URL of the service is switched off.",
                words.into(),
            );
        }
        if known {
            return self.step("address", Outcome::Pass, format!("{host} is the service's"));
        }
        if host.ends_with(".run.app") {
            self.step(
                "address",
                Outcome::Fail,
                format!("{host} is none of {}", front.urls.join(", ")),
            );
            let words = format!(
                "Call {}.",
                front
                    .urls
                    .first()
                    .map_or("the service's URL", String::as_str)
            );
            return self.conclude(
                Cause::WrongUrl,
                "That URL is not the service's.",
                words.as_str().into(),
            );
        }
        self.step(
            "address",
            Outcome::Maybe,
            format!("{host} is no run.app URL: a domain or load balancer in front decides where it leads"),
        );
    }

    fn ingress(&mut self) {
        let facts = self.facts;
        let Known::Is(front) = &facts.front else {
            return self.step(
                "ingress",
                Outcome::Unknown,
                "the service's settings could not be read",
            );
        };
        let wanted = match front.ingress.as_str() {
            "INGRESS_TRAFFIC_ALL" => {
                return self.step("ingress", Outcome::Pass, "everybody may reach it");
            }
            "INGRESS_TRAFFIC_INTERNAL_ONLY" => "callers inside of the VPC and some Google services",
            "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER" => {
                "callers inside of the VPC, and through a load balancer"
            }
            "INGRESS_TRAFFIC_NONE" => "nobody",
            _ => {
                return self.step(
                    "ingress",
                    Outcome::Unknown,
                    "no ingress setting is in force",
                );
            }
        };
        let evidence = format!(
            "ingress lets in only {wanted}; others get 404 and leave no entry in the request log"
        );
        if facts.symptom.status == Some(404) && !facts.symptom.logged {
            self.step("ingress", Outcome::Fail, evidence);
            let words = "Call from inside (route egress of the caller through the VPC), or through the load balancer. IAM is not the cause.";
            self.conclude(
                Cause::IngressBlocks,
                "Ingress refuses the caller before IAM is asked.",
                words.into(),
            );
        } else {
            self.step("ingress", Outcome::Maybe, evidence);
        }
    }

    fn iap(&mut self) {
        let facts = self.facts;
        let Known::Is(front) = &facts.front else {
            return;
        };
        if !front.iap {
            return self.step(
                "iap",
                Outcome::Pass,
                "no Identity-Aware Proxy on the service",
            );
        }
        let agent = |p: &Principal| p.key().contains("@gcp-sa-iap.iam.gserviceaccount.com");
        let has_agent = match &facts.policy {
            Known::Is(policy) => Some(policy.grants().iter().any(|g| agent(&g.principal))),
            _ => None,
        };
        if has_agent == Some(false) {
            self.step(
                "iap",
                Outcome::Fail,
                "Identity-Aware Proxy is on, and its own service agent is no invoker: nobody gets through",
            );
            let words = "Grant roles/run.invoker to service-PROJECT_NUMBER@gcp-sa-iap.iam.gserviceaccount.com, IAP's service agent.";
            return self.conclude(
                Cause::IapAgentMissing,
                "IAP may not call the service itself.",
                words.into(),
            );
        }
        self.step(
            "iap",
            Outcome::Maybe,
            "Identity-Aware Proxy decides who gets in; invoker bindings of callers do not count",
        );
        let words = "Grant the caller roles/iap.httpsResourceAccessor on the IAP resource of the service; an invoker grant changes nothing.";
        self.conclude(
            Cause::IapDecides,
            "Identity-Aware Proxy stands in front and decides.",
            words.into(),
        );
    }

    fn iam_check(&mut self) {
        let facts = self.facts;
        if facts.symptom.no_instance {
            self.step(
                "instances",
                Outcome::Fail,
                "Cloud Run says that there was no instance for the request",
            );
            let words = "Raise maximum instances or concurrency. This is not about access.";
            self.conclude(
                Cause::NoInstance,
                "There was no instance to serve it.",
                words.into(),
            );
        }
        if facts.symptom.status == Some(404) && facts.symptom.logged {
            let words = "Look at the application's routes and log.";
            self.conclude(
                Cause::TheApplication,
                "The service itself answered 404.",
                words.into(),
            );
        }
        let Known::Is(front) = &facts.front else {
            return;
        };
        if front.invoker_iam_disabled {
            self.step(
                "iam check",
                Outcome::Pass,
                "the IAM check is switched off: whoever passes ingress may call",
            );
            let words =
                "A 401 or 403 comes from the application itself. Note that the service is exposed.";
            self.conclude(Cause::IamCheckOff, "IAM is not asked at all.", words.into());
        }
    }

    fn token(&mut self) {
        let facts = self.facts;
        let Some(token) = &facts.token else {
            if facts.symptom.no_token {
                self.step(
                    "token",
                    Outcome::Fail,
                    "Cloud Run says that no credentials came with the request",
                );
                let words = "Send an ID token: Authorization: Bearer TOKEN, with the service's URL as audience. A browser sends none; for people, use IAP or gcloud run services proxy.";
                return self.conclude(
                    Cause::NoToken,
                    "The request came without a token.",
                    words.into(),
                );
            }
            if facts.symptom.bad_token {
                self.step(
                    "token",
                    Outcome::Fail,
                    "Cloud Run says that the token could not be verified",
                );
                let words = "Send a Google-signed ID token whose audience is the service's URL; give it here with --token to see what is wrong with it.";
                return self.conclude(
                    Cause::NotAnIdToken,
                    "A token came that is no valid ID token for this service.",
                    words.into(),
                );
            }
            return self.step("token", Outcome::Unknown, "no token was given (--token)");
        };
        let bad = |walk: &mut Self, cause, evidence: String, verdict: &str, words: &str| {
            walk.step("token", Outcome::Fail, evidence);
            walk.conclude(cause, verdict, words.into());
        };
        let mint = "Mint an ID token for the service's URL: gcloud auth print-identity-token --audiences=URL, or the metadata server's identity endpoint.";
        match &token.kind {
            TokenKind::Access => {
                return bad(
                    self,
                    Cause::NotAnIdToken,
                    "it is an access token, not an ID token".into(),
                    "Cloud Run takes ID tokens only.",
                    mint,
                );
            }
            TokenKind::Unreadable(why) => {
                return bad(
                    self,
                    Cause::NotAnIdToken,
                    format!("it is no JWT: {why}"),
                    "That is no ID token.",
                    mint,
                );
            }
            TokenKind::SignatureRemoved => {
                let evidence = "its signature reads SIGNATURE_REMOVED_BY_GOOGLE: it was taken from a request that Cloud Run had let through".into();
                return bad(
                    self,
                    Cause::SignatureRemoved,
                    evidence,
                    "The token's signature was removed; it cannot be used again.",
                    mint,
                );
            }
            TokenKind::Jwt => {}
        }
        if !matches!(
            token.issuer.as_str(),
            "https://accounts.google.com" | "accounts.google.com"
        ) {
            let evidence = format!("its issuer is {:?}, not Google", token.issuer);
            return bad(
                self,
                Cause::ForeignIssuer,
                evidence,
                "The token is not signed by Google.",
                "Exchange it for a Google ID token (service account impersonation), or send it in another header and a Google ID token in X-Serverless-Authorization.",
            );
        }
        if token.expires.is_some_and(|e| e <= facts.at) {
            let evidence = format!(
                "it ended at {}",
                token.expires.map_or(String::new(), |e| e.to_string())
            );
            return bad(
                self,
                Cause::TokenExpired,
                evidence,
                "The token has expired.",
                "Mint a new one; ID tokens last an hour.",
            );
        }
        if let Known::Is(front) = &facts.front {
            let accepted: Vec<&str> = front
                .urls
                .iter()
                .chain(&front.custom_audiences)
                .map(String::as_str)
                .collect();
            let fits = token.audiences.iter().any(|a| {
                accepted
                    .iter()
                    .any(|u| a.trim_end_matches('/') == *u || a == u)
            });
            if !fits && !front.iap {
                let evidence = format!(
                    "its audience is {}; accepted: {}",
                    token.audiences.join(", "),
                    accepted.join(", ")
                );
                return bad(
                    self,
                    Cause::WrongAudience,
                    evidence,
                    "The token is for another audience.",
                    "Mint it for the service's URL without a path, or add the audience to the service's custom audiences.",
                );
            }
        }
        self.step(
            "token",
            Outcome::Pass,
            format!(
                "a Google ID token for this service, of {}",
                token.email.as_deref().unwrap_or("nobody by e-mail")
            ),
        );
    }

    fn principal_kind(&mut self) {
        let Some(principal) = &self.facts.principal else {
            return self.step(
                "principal",
                Outcome::Unknown,
                "who calls is not known (--as, --token or --log)",
            );
        };
        if !principal.can_invoke() {
            self.step(
                "principal",
                Outcome::Fail,
                format!("{principal} is a federated identity; Cloud Run does not let these invoke"),
            );
            let words = "Let the workload act as a Google service account (impersonation), and grant that one.";
            return self.conclude(
                Cause::CannotInvoke,
                "Federated identities cannot invoke Cloud Run services.",
                words.into(),
            );
        }
        self.step("principal", Outcome::Pass, format!("{principal}"));
    }

    fn grants(&mut self) {
        let facts = self.facts;
        let Some(principal) = &facts.principal else {
            return;
        };
        let policy = match &facts.policy {
            Known::Is(policy) => policy,
            Known::Hidden(why) | Known::Absent(why) => {
                return self.step("grants on the service", Outcome::Unknown, why.clone());
            }
            Known::NotAsked => return,
        };
        let here = held(policy, principal, facts);
        if let Some(how) = &here.yes {
            self.step("grants on the service", Outcome::Pass, how.clone());
            return self.granted();
        }
        let mut evidence = here.no.clone();
        if evidence.is_empty() {
            evidence.push(format!("no invoking role names {principal}"));
        }
        let at_project = match &facts.project {
            Known::Is(project) => {
                let there = held(project, principal, facts);
                if let Some(how) = there.yes {
                    self.step("grants on the service", Outcome::Maybe, evidence.join("; "));
                    self.step("grants on the project", Outcome::Pass, how);
                    return self.granted();
                }
                there
            }
            _ => Held::default(),
        };
        let maybe: Vec<String> = here
            .maybe
            .iter()
            .chain(&at_project.maybe)
            .cloned()
            .collect();
        let outcome = if maybe.is_empty() {
            Outcome::Fail
        } else {
            Outcome::Maybe
        };
        evidence.extend(here.maybe.iter().map(|m| format!("perhaps through {m}")));
        self.step("grants on the service", outcome, evidence.join("; "));
        match &facts.project {
            Known::Is(_) => self.step(
                "grants on the project",
                outcome,
                "none for this principal by itself; folder and organization cannot be seen here",
            ),
            Known::Hidden(why) => self.step("grants on the project", Outcome::Unknown, why.clone()),
            _ => self.step(
                "grants on the project",
                Outcome::Unknown,
                "not looked at; folder and organization cannot be seen here either",
            ),
        }
        let fix = self.grant_fix(principal);
        if let Some((cause, verdict)) = here.ended.clone() {
            return self.conclude(cause, verdict, fix);
        }
        if !maybe.is_empty() {
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
        self.conclude(
            Cause::NotGranted,
            format!("{principal} may not invoke the service."),
            fix,
        );
    }

    /// IAM lets it through; what is left to refuse it?
    fn granted(&mut self) {
        let facts = self.facts;
        if let Some(at) = facts.changed_at
            && facts.at.duration_since(at) < PROPAGATION
        {
            let until = at + PROPAGATION;
            self.step(
                "propagation",
                Outcome::Maybe,
                format!("the policy was changed at {at}; IAM may take until {until} to act on it everywhere"),
            );
            let words =
                format!("Wait until {until} and try again. Membership of groups can take hours.");
            return self.conclude(
                Cause::Propagating,
                "The grant is there, and too young to count on.",
                words.as_str().into(),
            );
        }
        match facts.symptom.status {
            Some(403) if !facts.symptom.logged_by_application => {
                let words = "Look at deny policies and the perimeter: the policy log (method run.googleapis.com/HttpIngress), and Policy Troubleshooter for run.routes.invoke on the service.";
                self.conclude(Cause::PerimeterOrDeny, "The service's policy grants it, so a deny policy or a service perimeter refuses it, or the application itself.", words.into());
            }
            _ => {
                let words = "If it is refused all the same: the application answers so, a deny policy or a service perimeter stands above, or the change is younger than seven minutes.";
                self.conclude(
                    Cause::AccessExpected,
                    "IAM lets this principal invoke the service.",
                    words.into(),
                );
            }
        }
    }

    fn beyond(&mut self) {
        self.step("deny policies, perimeters", Outcome::Unknown, "they stand above the service and cannot be seen with the rights that this needs; Policy Troubleshooter shows them");
    }

    /// The narrowest grant.
    fn grant_fix(&self, principal: &Principal) -> Fix {
        let facts = self.facts;
        let s = &facts.service;
        let member = principal.as_str();
        let listing = facts.declared.iter().find(|d| d.lists);
        let words = match (listing, facts.declared.first()) {
            (Some(d), _) if !d.enforced => format!(
                "InvokerPolicy {} lists it, in Audit: set mode: Enforce.",
                d.policy
            ),
            (Some(d), _) => match &d.reason {
                Some(reason) => format!(
                    "InvokerPolicy {} lists it and says why it is not granted: {reason}",
                    d.policy
                ),
                None => format!(
                    "InvokerPolicy {} lists it; the operator will grant it at its next look.",
                    d.policy
                ),
            },
            (None, Some(d)) => format!(
                "Add the member to spec.invokers of InvokerPolicy {}.",
                d.policy
            ),
            (None, None) => "Declare it, and only it:".into(),
        };
        if listing.is_some() {
            return Fix {
                words,
                ..Fix::default()
            };
        }
        // Additive: a snippet that is applied as it is must not take anything away.
        let policy = format!(
            "apiVersion: run-invoker.dev/v1alpha1\nkind: InvokerPolicy\nmetadata: {{name: {}-{}}}\nspec:\n  project: {}\n  services: [{{name: {}, region: {}}}]\n  invokers:\n  - member: \"{member}\"\n  mode: Enforce\n  membership: Additive\n",
            s.name, "access", s.project, s.name, s.region
        );
        let gcloud = format!(
            "gcloud run services add-iam-policy-binding {} --project {} --region {} --member '{member}' --role roles/run.invoker",
            s.name, s.project, s.region
        );
        Fix {
            words,
            policy,
            gcloud,
        }
    }
}

impl From<&str> for Fix {
    fn from(words: &str) -> Self {
        Self {
            words: words.to_owned(),
            ..Self::default()
        }
    }
}

/// What a policy comes to for a principal.
#[derive(Default)]
struct Held {
    yes: Option<String>,
    /// Sets that it may be in.
    maybe: Vec<String>,
    /// Grants that do not hold now, in words.
    no: Vec<String>,
    ended: Option<(Cause, String)>,
}

fn held(policy: &Policy, principal: &Principal, facts: &Facts) -> Held {
    let mut held = Held::default();
    for binding in &policy.bindings {
        if !crate::iam::carries_invoke(&binding.role) {
            continue;
        }
        for member in &binding.members {
            let listed = Principal::from_live(member);
            let covers = covers(&listed, principal);
            if covers == Some(false) {
                continue;
            }
            let truth = match &binding.condition {
                None => Truth::True,
                Some(c) => condition::evaluate(&c.expression, facts.at, facts.url.as_deref()),
            };
            let title = binding
                .condition
                .as_ref()
                .map(|c| format!(" if {}", c.title))
                .unwrap_or_default();
            let what = format!("{listed} has {}{title}", binding.role);
            match (covers, truth) {
                (Some(true), Truth::True) => held.yes = held.yes.or(Some(what)),
                (None, Truth::True) => held.maybe.push(listed.to_string()),
                (_, Truth::False) => {
                    let expression = binding
                        .condition
                        .as_ref()
                        .map_or("", |c| c.expression.as_str());
                    let ended = expression.starts_with("request.time < timestamp(")
                        && !expression.contains("&&");
                    held.no.push(format!(
                        "{what}, which is false at {} ({expression})",
                        facts.at
                    ));
                    if covers == Some(true) {
                        let cause = if ended {
                            Cause::AccessEnded
                        } else {
                            Cause::ConditionFalse
                        };
                        let verdict = match cause {
                            Cause::AccessEnded => {
                                format!("The access of {principal} has ended ({expression}).")
                            }
                            _ => format!(
                                "The condition of its grant does not hold now: {expression}."
                            ),
                        };
                        held.ended.get_or_insert((cause, verdict));
                    }
                }
                (_, Truth::Unknown(why)) => held.maybe.push(format!(
                    "{listed} under a condition that cannot be evaluated here ({why})"
                )),
                (Some(false), Truth::True) => {}
            }
        }
    }
    held
}

/// Whether a member of a policy stands for a principal; `None`: it may.
fn covers(listed: &Principal, principal: &Principal) -> Option<bool> {
    use PrincipalKind as K;
    if listed == principal {
        return Some(true);
    }
    match listed.kind() {
        K::AllUsers | K::AllAuthenticatedUsers => Some(true),
        K::Domain => {
            let domain = listed.key().strip_prefix("domain:").unwrap_or_default();
            let at = principal.key().rsplit('@').next().unwrap_or_default();
            Some(matches!(principal.kind(), K::User | K::Group) && at == domain)
        }
        K::Group if matches!(principal.kind(), K::User | K::ServiceAccount | K::Group) => None,
        K::FederatedSet if listed.can_invoke() && principal.kind() == K::ServiceAccount => None,
        _ => Some(false),
    }
}
