//! Guardrails, compiled: what a namespace may declare, and who says no to the rest.

mod members;
mod requests;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use wildmatch::WildMatch;

use super::{AccessRequest, Declared, parse_interval};
use crate::{
    api::{ApprovedBy, InheritedAccess, InvokerGuardrail, PublicAccess},
    iam::RunService,
};
use members::MemberGlob;
pub use requests::Consent;
use requests::Requests;

/// Limits of the whole installation, for where no guardrail speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Whether `allUsers` and `allAuthenticatedUsers` may be declared.
    pub public: bool,
    /// The most invokers that one write may take from one service without approval.
    pub max_removals: usize,
    /// The most services that one discovery may add to a policy without approval.
    pub max_new_services: usize,
    /// Namespaces that no guardrail selects may declare nothing.
    pub require_guardrail: bool,
    /// Only an InvokerApproval lets a held plan through.
    pub approver: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            public: false,
            max_removals: 20,
            max_new_services: 50,
            require_guardrail: false,
            approver: false,
        }
    }
}

/// Who refused something, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// What a person reads; names the guardrail.
    pub message: String,
}

/// One guardrail.
#[derive(Clone, Debug, PartialEq)]
pub struct Guardrail {
    pub name: Arc<str>,
    namespaces: Option<Vec<WildMatch>>,
    projects: Option<Vec<WildMatch>>,
    services: Option<Vec<WildMatch>>,
    members: Option<Vec<MemberGlob>>,
    public: bool,
    max_lifetime: Option<Duration>,
    max_removals: Option<usize>,
    inherited: Option<InheritedAccess>,
    approvals: Option<ApprovedBy>,
    requests: Option<Requests>,
    /// It cannot be read, and this is why.
    unreadable: Option<String>,
}

fn one_of(globs: Option<&Vec<WildMatch>>, text: &str) -> bool {
    globs.is_none_or(|g| g.iter().any(|g| g.matches(text)))
}

impl Guardrail {
    /// Reads a guardrail. A field that cannot be understood makes the whole unreadable: a limit
    /// that is guessed is none.
    pub fn from_object(object: &InvokerGuardrail) -> Self {
        let name: Arc<str> = object.metadata.name.as_deref().unwrap_or_default().into();
        let spec = &object.spec;
        let globs = |list: &Option<Vec<String>>| {
            list.as_ref()
                .map(|l| l.iter().map(|p| WildMatch::new(p)).collect())
        };
        let max_lifetime = match spec.max_lifetime.as_deref().map(|t| (t, parse_interval(t))) {
            Some((text, None)) => {
                let why = format!("spec.maxLifetime {text:?} is not a duration such as 720h");
                return Self {
                    // Whom it is about can be read: nobody else waits for its repair.
                    namespaces: globs(&spec.namespaces),
                    ..Self::unreadable(name, why)
                };
            }
            Some((_, Some(lifetime))) => Some(lifetime),
            None => None,
        };
        Self {
            name,
            namespaces: globs(&spec.namespaces),
            projects: globs(&spec.projects),
            services: globs(&spec.services),
            members: spec
                .members
                .as_ref()
                .map(|l| l.iter().map(|p| MemberGlob::parse(p)).collect()),
            public: spec.public == PublicAccess::Allow,
            max_lifetime,
            max_removals: spec.max_removals.map(|n| n as usize),
            inherited: spec.inherited,
            approvals: spec.approvals,
            requests: spec.requests.as_ref().map(Requests::of),
            unreadable: None,
        }
    }

    /// A guardrail that is there and cannot be read: nobody knows what it forbids, so nothing is
    /// written for anybody.
    pub fn unreadable(name: Arc<str>, why: String) -> Self {
        Self {
            name,
            namespaces: None,
            projects: None,
            services: None,
            members: None,
            public: false,
            max_lifetime: None,
            max_removals: None,
            inherited: None,
            approvals: None,
            requests: None,
            unreadable: Some(why),
        }
    }

    /// Whether the policies of a namespace must satisfy it.
    pub fn selects(&self, namespace: &str) -> bool {
        one_of(self.namespaces.as_ref(), namespace)
    }

    /// Why nobody knows what it forbids, if so.
    pub fn frozen(&self) -> Option<Refusal> {
        let why = self.unreadable.as_ref()?;
        Some(self.no(format_args!(
            "cannot be read, so nothing is written until it is repaired: {why}"
        )))
    }

    fn no(&self, why: impl std::fmt::Display) -> Refusal {
        Refusal {
            message: format!("guardrail {} {why}", self.name),
        }
    }

    fn refuse_member(&self, declared: &Declared, now: Timestamp) -> Option<Refusal> {
        let principal = &declared.grant.principal;
        if principal.is_public() {
            if !self.public {
                return Some(self.no("denies public access"));
            }
        } else {
            let named = self
                .members
                .as_ref()
                .is_some_and(|m| m.iter().any(|g| g.matches(principal)));
            if self.members.is_some() && !named {
                return Some(Refusal {
                    message: format!(
                        "not allowed by guardrail {} (see its spec.members)",
                        self.name
                    ),
                });
            }
            let named_as_set = self
                .members
                .as_ref()
                .is_some_and(|m| m.iter().any(|g| g.is_about_sets() && g.matches(principal)));
            if principal.is_everybody_of_something() && !self.public && !named_as_set {
                return Some(
                    self.no("does not name this set of everybody, and denies public access"),
                );
            }
        }
        let most = self.max_lifetime?;
        let hours = most.as_secs().div_ceil(3600);
        match declared.expires {
            None => Some(self.no(format_args!(
                "wants every access to end within {hours}h; add expires"
            ))),
            Some(at)
                if at.duration_since(now)
                    > jiff::SignedDuration::try_from(most).unwrap_or_default() =>
            {
                Some(self.no(format_args!(
                    "wants every access to end within {hours}h; {at} is later"
                )))
            }
            Some(_) => None,
        }
    }
}

/// Everything that a namespace has to satisfy.
#[derive(Clone, Debug)]
pub struct Terms {
    rails: Vec<Arc<Guardrail>>,
    limits: Limits,
}

/// Which other namespaces a guardrail is for makes no difference to one that it is for.
impl PartialEq for Terms {
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &Guardrail, b: &Guardrail| {
            Guardrail {
                namespaces: None,
                ..a.clone()
            } == Guardrail {
                namespaces: None,
                ..b.clone()
            }
        };
        self.limits == other.limits
            && self.rails.len() == other.rails.len()
            && self
                .rails
                .iter()
                .zip(&other.rails)
                .all(|(a, b)| Arc::ptr_eq(a, b) || same(a, b))
    }
}

impl Terms {
    /// The terms of a namespace under all guardrails there are.
    pub fn of<'a>(
        namespace: &str,
        rails: impl IntoIterator<Item = &'a Arc<Guardrail>>,
        limits: Limits,
    ) -> Self {
        Self {
            rails: rails
                .into_iter()
                .filter(|g| g.selects(namespace))
                .cloned()
                .collect(),
            limits,
        }
    }

    /// Why nothing at all may be written for the namespace and nothing taken away, until somebody
    /// repairs a guardrail.
    pub fn frozen(&self) -> Option<Refusal> {
        self.rails.iter().find_map(|g| g.frozen())
    }

    /// Why a project may not be named.
    pub fn refuse_project(&self, project: &str) -> Option<Refusal> {
        if self.rails.is_empty() && self.limits.require_guardrail {
            let message = "no guardrail selects this namespace, and the operator requires one; ask the platform team";
            return Some(Refusal {
                message: message.into(),
            });
        }
        let rail = self
            .rails
            .iter()
            .find(|g| !one_of(g.projects.as_ref(), project))?;
        Some(rail.no(format_args!("does not allow project {project}")))
    }

    /// Why a service may not be touched, not even read.
    pub fn refuse_service(&self, service: &RunService) -> Option<Refusal> {
        self.refuse_project(&service.project).or_else(|| {
            let rail = self
                .rails
                .iter()
                .find(|g| !one_of(g.services.as_ref(), &service.name))?;
            Some(rail.no(format_args!("does not allow service {}", service.name)))
        })
    }

    /// Whether nothing is said of grants above the services.
    pub fn ignores_inherited(&self) -> bool {
        let mut said = self.rails.iter().filter_map(|g| g.inherited).peekable();
        said.peek().is_some() && said.all(|i| i == InheritedAccess::Ignore)
    }

    /// Why a grant may not be declared at `now`.
    pub fn refuse_grant(&self, declared: &Declared, now: Timestamp) -> Option<Refusal> {
        if let Some(refusal) = self
            .rails
            .iter()
            .find_map(|g| g.refuse_member(declared, now))
        {
            return Some(refusal);
        }
        let principal = &declared.grant.principal;
        let everybody = principal.is_public() || principal.is_everybody_of_something();
        (self.rails.is_empty() && everybody && !self.limits.public).then(|| Refusal {
            message: format!(
                "{principal} stands for everybody and no guardrail allows it; ask the platform team"
            ),
        })
    }

    /// The most invokers that one write may take from one service without approval.
    pub fn max_removals(&self) -> usize {
        self.rails
            .iter()
            .filter_map(|g| g.max_removals)
            .min()
            .unwrap_or(self.limits.max_removals)
    }

    /// Who says that only an InvokerApproval lets a held plan through, in words; `None`: whoever may
    /// write the policy may agree as well.
    pub fn approver(&self) -> Option<Arc<str>> {
        let asks = |g: &&Arc<Guardrail>| g.approvals == Some(ApprovedBy::Approver);
        if let Some(rail) = self.rails.iter().find(asks) {
            return Some(format!("guardrail {}", rail.name).into());
        }
        let is_said = self.rails.iter().any(|g| g.approvals.is_some());
        (self.limits.approver && !is_said).then(|| "the operator's setting".into())
    }

    /// The most services that one discovery may add to a policy without approval.
    pub fn max_new_services(&self) -> usize {
        self.limits.max_new_services
    }

    /// Why nobody knows what requests may ask for, until somebody repairs a guardrail.
    pub fn frozen_requests(&self) -> Option<Refusal> {
        let broken = |g: &Arc<Guardrail>| {
            let why = g.requests.as_ref()?.unreadable()?;
            Some(g.no(why))
        };
        self.frozen().or_else(|| self.rails.iter().find_map(broken))
    }

    /// Whether a request for access may be granted, and who has to agree. Every guardrail that says
    /// something of requests must be satisfied; where none does there are none.
    ///
    /// # Errors
    /// Which guardrail refuses it, and why.
    pub fn consent(&self, request: &AccessRequest) -> Result<Consent, Refusal> {
        if let Some(refusal) = self.frozen() {
            return Err(refusal);
        }
        let saying = || {
            self.rails
                .iter()
                .filter_map(|g| Some((g, g.requests.as_ref()?)))
        };
        if saying().next().is_none() {
            let message = "no guardrail that selects this namespace allows requests for access; ask the platform team for one with spec.requests";
            return Err(Refusal {
                message: message.into(),
            });
        }
        for (rail, requests) in saying() {
            if let Some(why) = requests.against(request) {
                return Err(rail.no(why));
            }
        }
        let by_itself = |r: &Requests| r.approves_by_itself(&request.principal);
        // What a selector reaches nobody has looked at.
        if !request.has_selector()
            && saying().all(|(_, requests)| by_itself(requests))
            && let Some((rail, _)) = saying().next()
        {
            return Ok(Consent::Guardrail(rail.name.clone()));
        }
        Ok(Consent::Approver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iam::{Grant, Principal, Role};
    use serde_json::json;

    const NOW: &str = "2026-11-23T12:00:00Z";

    fn rail(name: &str, spec: serde_json::Value) -> Arc<Guardrail> {
        let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerGuardrail", "metadata": {"name": name}, "spec": spec});
        Arc::new(Guardrail::from_object(
            &serde_json::from_value(object).unwrap(),
        ))
    }
    fn terms(rails: &[Arc<Guardrail>]) -> Terms {
        Terms::of("team-a", rails, Limits::default())
    }
    fn declared(member: &str, expires: Option<&str>) -> Declared {
        let expires = expires.map(|e| e.parse().unwrap());
        Declared {
            grant: Grant::new(Principal::from_live(member), Role::Invoker),
            expires,
        }
    }
    fn refused(t: &Terms, member: &str) -> bool {
        t.refuse_grant(&declared(member, None), NOW.parse().unwrap())
            .is_some()
    }

    #[test]
    fn one_guardrail_that_wants_an_approver_is_enough_and_the_setting_holds_where_none_speaks() {
        let (tenant, approver) = (
            rail("t", json!({"approvals": "Tenant"})),
            rail("a", json!({"approvals": "Approver"})),
        );
        let silent = rail("s", json!({}));
        let says = |rails: &[Arc<Guardrail>], default: bool| {
            let limits = Limits {
                approver: default,
                ..Limits::default()
            };
            Terms::of("team-a", rails, limits).approver()
        };
        assert_eq!(says(&[], false), None);
        assert_eq!(
            says(std::slice::from_ref(&silent), true).as_deref(),
            Some("the operator's setting")
        );
        assert_eq!(says(&[silent, tenant.clone()], true), None);
        assert_eq!(
            says(&[tenant, approver], false).as_deref(),
            Some("guardrail a")
        );
    }

    #[test]
    fn a_pattern_is_about_what_it_says_and_nothing_else() {
        for (pattern, member, allowed) in [
            ("*@acme.com", "user:ada@acme.com", true),
            ("*@acme.com", "user:Ada@ACME.com", true),
            ("*@Acme.com", "group:ops@acme.com", true),
            ("*@acme.com", "serviceAccount:x@acme.com", true),
            ("*@acme.com", "user:ada@evil-acme.com", false),
            ("*@acme.com", "user:ada@acme.com.evil.org", false),
            ("*@acme.com", "domain:acme.com", false),
            (
                "*@acme.com",
                "principal://iam.googleapis.com/projects/6/locations/global/x/subject/ada@acme.com",
                false,
            ),
            (
                "*@acme.com",
                "principalSet://iam.googleapis.com/projects/6/x/attribute.email/ada@acme.com",
                false,
            ),
            ("user:*@acme.com", "group:ops@acme.com", false),
            ("domain:acme.com", "domain:ACME.com", true),
            (
                "serviceAccount:*@acme-*.iam.gserviceaccount.com",
                "serviceAccount:w@acme-prod.iam.gserviceaccount.com",
                true,
            ),
            (
                "serviceAccount:*@acme-*.iam.gserviceaccount.com",
                "user:w@acme-prod.iam.gserviceaccount.com",
                false,
            ),
            ("*", "user:anyone@anywhere.org", true),
            ("*", "allUsers", false),
            ("*", "allAuthenticatedUsers", false),
            (
                "*",
                "principalSet://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/*",
                false,
            ),
            (
                "*",
                "principalSet://cloudresourcemanager.googleapis.com/organizations/1/type/ServiceAccount",
                false,
            ),
            ("all*", "allUsers", false),
            ("*:*", "allUsers", false),
            ("*:*", "user:ada@acme.com", false),
            (
                "principalSet://iam.googleapis.com/projects/1/*",
                "principalSet://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/*",
                true,
            ),
            (
                "principalSet://iam.googleapis.com/projects/1/*",
                "principalSet://iam.googleapis.com/projects/12/locations/global/workloadIdentityPools/p/*",
                false,
            ),
        ] {
            let t = terms(&[rail("r", json!({"members": [pattern]}))]);
            assert_eq!(!refused(&t, member), allowed, "{pattern} {member}");
        }
    }

    #[test]
    fn public_members_need_every_guardrail_and_no_pattern_replaces_that() {
        let open = rail("open", json!({"public": "Allow"}));
        let shut = rail("shut", json!({"members": ["*"]}));
        assert!(!refused(&terms(std::slice::from_ref(&open)), "allUsers"));
        assert!(refused(&terms(&[open, shut]), "allUsers"));
        assert!(refused(&terms(&[]), "allAuthenticatedUsers"));
        assert!(refused(
            &terms(&[]),
            "principalSet://iam.googleapis.com/x/y/*"
        ));
        let allowed = Terms::of(
            "n",
            [],
            Limits {
                public: true,
                ..Limits::default()
            },
        );
        assert!(!refused(&allowed, "allUsers"));
    }

    #[test]
    fn every_guardrail_that_selects_the_namespace_must_be_satisfied() {
        let t = terms(&[
            rail("wide", json!({"projects": ["acme-*"]})),
            rail(
                "narrow",
                json!({"namespaces": ["team-*"], "services": ["pay-*"]}),
            ),
            rail(
                "others",
                json!({"namespaces": ["search"], "projects": ["other"]}),
            ),
        ]);
        let service = |p: &str, n: &str| {
            t.refuse_service(&RunService::new(p, "r1", n))
                .map(|r| r.message)
        };
        assert_eq!(service("acme-prod", "pay-web"), None);
        assert_eq!(
            service("other", "pay-web").as_deref(),
            Some("guardrail wide does not allow project other")
        );
        assert_eq!(
            service("acme-prod", "web").as_deref(),
            Some("guardrail narrow does not allow service web")
        );
    }

    #[test]
    fn access_must_end_within_the_longest_lifetime() {
        let t = terms(&[rail("temp", json!({"maxLifetime": "24h"}))]);
        let ask =
            |at: Option<&str>| t.refuse_grant(&declared("user:a@b.co", at), NOW.parse().unwrap());
        assert!(ask(None).is_some_and(|r| r.message.contains("add expires")));
        assert!(ask(Some("2026-11-24T12:00:01Z")).is_some());
        assert_eq!(ask(Some("2026-11-24T12:00:00Z")), None);
    }

    #[test]
    fn limits_of_the_operator_hold_where_no_guardrail_speaks() {
        assert_eq!(terms(&[]).max_removals(), 20);
        assert_eq!(
            terms(&[rail("a", json!({})), rail("b", json!({"maxRemovals": 3}))]).max_removals(),
            3
        );
        let strict = Terms::of(
            "n",
            [],
            Limits {
                require_guardrail: true,
                ..Limits::default()
            },
        );
        assert!(strict.refuse_project("acme-prod").is_some());
        assert!(
            terms(&[rail("a", json!({}))])
                .refuse_project("acme-prod")
                .is_none()
        );
    }

    #[test]
    fn a_guardrail_that_cannot_be_read_freezes_instead_of_being_skipped() {
        let t = terms(&[rail("odd", json!({"maxLifetime": "soon"}))]);
        assert!(
            t.frozen()
                .is_some_and(|r| r.message.contains("maxLifetime"))
        );
        assert!(terms(&[]).frozen().is_none());
    }
}
