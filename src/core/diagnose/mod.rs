//! Why a request is let through or refused: facts in, steps with evidence and a verdict out. Pure:
//! nothing is read here.
//!
//! The order is that of the checks in front of a service, from the outside in; the first that fails
//! is the cause. Source: <https://docs.cloud.google.com/run/docs/troubleshooting>.

pub mod address;
mod caller;
pub mod condition;
mod fix;
mod front;
mod grants;
mod log_entry;
mod response;
pub mod symptom;
pub mod token;
pub mod troubleshooter;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::iam::{Carries, Policy, Principal, PrincipalKind, RunService, ServiceSettings};
use symptom::Symptom;
use token::Token;

pub use fix::{Declared, Fix, Requested};
pub use grants::Place;

/// How long IAM may take to act on a change.
///
/// Source: <https://docs.cloud.google.com/iam/docs/access-change-propagation>.
const PROPAGATION: SignedDuration = SignedDuration::from_mins(7);

/// How to see a step that has no way of its own.
const SEE: &str = "ask again with the right that the evidence names, or ask somebody who has it";

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

/// What a service that is not there belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// There is no such project, or it was deleted.
    Project,
    /// The Cloud Run API is off in it.
    Api,
}

impl<T> Known<T> {
    /// What was seen, if anything was.
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Is(value) => Some(value),
            _ => None,
        }
    }

    /// Why it could not be seen, where somebody asked.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Hidden(why) | Self::Absent(why) => Some(why),
            Self::Is(_) | Self::NotAsked => None,
        }
    }

    fn is_not_asked(&self) -> bool {
        matches!(self, Self::NotAsked)
    }
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
    /// What is gone, where the service is absent with all around it.
    pub gone: Option<Gone>,
    pub policy: Known<Policy>,
    /// What is above the service, whose allow policies hold for it too: its project, the folders
    /// that this is in and the organization, the nearest first. What could not even be named is a
    /// place that could not be seen.
    pub above: Vec<Place>,
    /// What Policy Troubleshooter says, where it was asked.
    pub troubleshooter: Known<troubleshooter::Answer>,
    /// Who may pass Identity-Aware Proxy, where that is in front: the policies of its resources
    /// for the service, its region and its project, the nearest first.
    pub iap: Vec<Place>,
    pub token: Option<Token>,
    pub symptom: Symptom,
    /// What policies of the cluster say about the principal on the service, those that list it
    /// first.
    pub declared: Known<Vec<Declared>>,
    /// When the operator last granted a member on the service.
    pub granted_at: BTreeMap<Principal, Timestamp>,
    /// Requests for access of the principal to the service, the latest first.
    pub requests: Vec<Requested>,
    /// The namespace in which a guardrail lets people ask for access to the service.
    pub requests_in: Option<String>,
}

impl Facts {
    /// The same, about whoever really calls: the one that the token is of, where only a set that it
    /// may be in was named, or nobody.
    fn about_the_caller(&self) -> Self {
        let mut facts = self.clone();
        if self.named_caller().is_none()
            && let Some(of) = self.token.as_ref().and_then(Token::principal)
        {
            facts.principal = Some(of);
        }
        facts
    }

    /// The principal, if it is one that can call, and not a set of them.
    fn named_caller(&self) -> Option<&Principal> {
        use PrincipalKind as K;
        let is_one = |p: &&Principal| {
            matches!(
                p.kind(),
                K::User | K::ServiceAccount | K::Federated | K::Deleted | K::Other
            )
        };
        self.principal.as_ref().filter(is_one)
    }

    /// Until when IAM may act nowhere on the grants of these members: the first end, if all of them
    /// were granted so lately. Of one that somebody else granted nobody knows when.
    fn propagating_until(&self, members: &[Principal]) -> Option<Timestamp> {
        let until = |member| Some(*self.granted_at.get(member)? + PROPAGATION);
        let all: Option<Vec<Timestamp>> = members.iter().map(until).collect();
        let first = all?.into_iter().min()?;
        (self.at < first).then_some(first)
    }

    /// What the allow policies of the service and of all above it come to.
    fn sum(
        &self,
        covers: grants::Covers<'_>,
        carries: &dyn Fn(&str) -> Carries,
    ) -> grants::Sum<'_> {
        let own = std::iter::once(("the service", &self.policy));
        let above = self.above.iter().map(|p| (p.name.as_str(), &p.policy));
        grants::Sum::of(own.chain(above), self, covers, carries)
    }
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    Pass,
    Fail,
    /// It may be the cause, and cannot be seen from here.
    Maybe,
    /// It had to be seen and could not be.
    Unknown,
    /// It was not checked, or decides nothing: nothing was given to check, nobody asked for it, or
    /// another step decides.
    Skipped,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    pub check: &'static str,
    pub outcome: Outcome,
    pub evidence: String,
    /// How to see what this leaves open, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub see: Option<String>,
}

impl Step {
    /// Whether something may still refuse the request here, as far as was seen.
    pub fn is_open(&self) -> bool {
        self.see.is_some() || !matches!(self.outcome, Outcome::Pass | Outcome::Skipped)
    }
}

/// What it comes to. A closed list; `tests/diagnose.rs` has a case for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Cause {
    ServiceNotFound,
    ProjectNotFound,
    /// The Cloud Run API is off in the project.
    ApiDisabled,
    WrongUrl,
    DefaultUrlDisabled,
    IngressBlocks,
    ReservedPath,
    /// A load balancer in front has no route for it.
    LoadBalancerRoute,
    IapDecides,
    IapNotGranted,
    IapAgentMissing,
    IamCheckOff,
    /// A policy declares the service public, and IAM does not hold that.
    PublicGrantMissing,
    NoToken,
    /// The answer is the same for both, and nothing else distinguishes them.
    NoTokenOrNoGrant,
    NotAnIdToken,
    /// The token is somebody else's than the principal that was asked about.
    WrongPrincipal,
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
    /// The status code says that something else than access went wrong.
    NotAboutAccess,
    TheApplication,
    AccessExpected,
    /// Nothing that was seen refuses it, and not everything was seen.
    AccessUnverified,
    CannotTell,
}

impl Cause {
    /// How many causes there are.
    pub const COUNT: usize = Self::CannotTell as usize + 1;

    /// Whether it is left open why, or whether, the request is refused.
    pub fn is_open(self) -> bool {
        matches!(
            self,
            Self::AccessUnverified
                | Self::CannotTell
                | Self::MaybeThroughAGroup
                | Self::NoTokenOrNoGrant
                | Self::Propagating
        )
    }

    /// Who refuses a request like this by it, if anybody does.
    fn refuses(self) -> Option<Refuser> {
        match self {
            Self::PublicGrantMissing
            | Self::NoToken
            | Self::NotAnIdToken
            | Self::ForeignIssuer
            | Self::WrongAudience
            | Self::TokenExpired
            | Self::SignatureRemoved
            | Self::CannotInvoke
            | Self::AccessEnded
            | Self::ConditionFalse
            | Self::NotGranted => Some(Refuser::IamCheck),
            Self::IngressBlocks
            | Self::ReservedPath
            | Self::IapDecides
            | Self::IapNotGranted
            | Self::IapAgentMissing
            | Self::Propagating
            | Self::PerimeterOrDeny => Some(Refuser::Another),
            Self::ServiceNotFound
            | Self::ProjectNotFound
            | Self::ApiDisabled
            | Self::WrongUrl
            | Self::DefaultUrlDisabled
            | Self::LoadBalancerRoute
            | Self::IamCheckOff
            | Self::NoTokenOrNoGrant
            | Self::WrongPrincipal
            | Self::MaybeThroughAGroup
            | Self::NoInstance
            | Self::NotAboutAccess
            | Self::TheApplication
            | Self::AccessExpected
            | Self::AccessUnverified
            | Self::CannotTell => None,
        }
    }
}

/// Who refuses a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refuser {
    /// Cloud Run, by what IAM says of the caller or its token.
    IamCheck,
    Another,
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
    /// What is further in decides nothing any more.
    is_over: bool,
}

/// Walks the checks.
pub fn diagnose(facts: &Facts) -> Diagnosis {
    let facts = facts.about_the_caller();
    let mut walk = Walk {
        facts: &facts,
        steps: Vec::new(),
        found: None,
        is_over: false,
    };
    for check in Walk::checks() {
        check(&mut walk);
        if walk.is_over {
            break;
        }
    }
    walk.finish()
}

impl Walk<'_> {
    /// The checks, from the outside in.
    fn checks() -> [fn(&mut Self); 13] {
        [
            Self::exists,
            Self::answer,
            Self::address,
            Self::ingress,
            Self::not_found,
            Self::iap,
            Self::iam_check,
            Self::public,
            Self::token,
            Self::principal_kind,
            Self::troubleshooter,
            Self::grants,
            Self::beyond,
        ]
    }

    fn step(&mut self, check: &'static str, outcome: Outcome, evidence: impl Into<String>) {
        self.steps.push(Step {
            check,
            outcome,
            evidence: evidence.into(),
            see: None,
        });
    }

    /// A step that leaves open whether it is the cause. `see` is how to close it.
    fn open(
        &mut self,
        check: &'static str,
        outcome: Outcome,
        evidence: impl Into<String>,
        see: impl Into<String>,
    ) {
        self.steps.push(Step {
            check,
            outcome,
            evidence: evidence.into(),
            see: Some(see.into()),
        });
    }

    /// The first cause stands.
    fn conclude(&mut self, cause: Cause, verdict: impl Into<String>, fix: impl Into<Fix>) {
        let fix = fix.into();
        self.found.get_or_insert((cause, verdict.into(), fix));
    }

    /// Somebody decides here, and what comes behind says nothing.
    fn settle(&mut self, cause: Cause, verdict: impl Into<String>, fix: impl Into<Fix>) {
        self.conclude(cause, verdict, fix);
        self.is_over = true;
    }

    fn open_steps(&self) -> Vec<&Step> {
        self.steps.iter().filter(|s| s.is_open()).collect()
    }

    /// How to see what is left open, each way once.
    fn how_to_see(open: &[&Step]) -> String {
        let mut ways: Vec<(&str, Vec<&str>)> = Vec::new();
        for step in open {
            let way = step.see.as_deref().unwrap_or(SEE);
            match ways.iter_mut().find(|(known, _)| *known == way) {
                Some((_, checks)) => checks.push(step.check),
                None => ways.push((way, vec![step.check])),
            }
        }
        let ways = ways
            .into_iter()
            .map(|(way, checks)| format!("{}: {way}", checks.join(", ")));
        format!("To see the rest: {}.", Vec::from_iter(ways).join("; "))
    }

    /// What was seen now does not fit to an answer that shows the request let in.
    fn contradicted(&mut self) {
        let Some((cause, verdict, fix)) = &mut self.found else {
            return;
        };
        if !self.facts.symptom.got_in() || cause.refuses().is_none() {
            return;
        }
        *cause = Cause::CannotTell;
        *verdict =
            format!("The answer shows that the request got in, which does not fit: {verdict}");
        *fix = Fix::from(format!(
            "Somebody else sent it, or something was changed since: ask about a request that is refused, with its answer (--body). If it is this one now: {}",
            fix.words
        ));
        self.soften();
    }

    /// An answer that is none of Cloud Run's was not given for what IAM says.
    fn of_somebody_else(&mut self) {
        let symptom = &self.facts.symptom;
        let is_foreign = symptom.answered_by.is_none()
            && (symptom.text.is_some() || matches!(symptom.status, Some(300..=399)));
        let Some((cause, verdict, _)) = &mut self.found else {
            return;
        };
        if !is_foreign || cause.refuses() != Some(Refuser::IamCheck) {
            return;
        }
        *cause = Cause::CannotTell;
        *verdict = format!(
            "{verdict} But the answer is none of Cloud Run's: something in front of it gave that, or the application."
        );
        self.soften();
    }

    /// What would be the cause is one of several.
    fn soften(&mut self) {
        for step in &mut self.steps {
            if step.outcome == Outcome::Fail {
                step.outcome = Outcome::Maybe;
            }
        }
    }

    /// That nothing refuses a request is said only if everything that this checks was seen.
    fn finish(mut self) -> Diagnosis {
        self.contradicted();
        self.of_somebody_else();
        let open = self.open_steps();
        let unseen: Vec<&str> = open.iter().map(|s| s.check).collect();
        let unseen = unseen.join(", ");
        let facts = self.facts;
        let (cause, verdict, fix) = match &self.found {
            Some((Cause::AccessExpected, ..)) if !open.is_empty() => (
                Cause::AccessUnverified,
                format!(
                    "Nothing that was seen refuses this, but not everything was seen: {unseen}."
                ),
                Self::how_to_see(&open).into(),
            ),
            None if !open.is_empty() => (
                Cause::CannotTell,
                format!("What was seen does not decide it; not seen: {unseen}."),
                Self::how_to_see(&open).into(),
            ),
            Some(found) => found.clone(),
            None => (
                Cause::CannotTell,
                "What was given is too little to tell.".into(),
                "Give more to go by: --as or --token, --url, --log.".into(),
            ),
        };
        Diagnosis {
            kind: "Diagnosis",
            version: 1,
            service: facts.service.to_string(),
            principal: facts.principal.as_ref().map(ToString::to_string),
            cause,
            verdict,
            steps: self.steps,
            fix,
        }
    }
}
