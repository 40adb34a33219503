//! What stands before the check of the caller: the service itself, its address, ingress,
//! Identity-Aware Proxy, and whether IAM is asked at all.

use super::{
    Cause, Known, Outcome, Walk,
    address::{self, Address},
    grants::{self, Held},
    symptom::{Answerer, Refusal},
};
use crate::iam::{IAP_ROLE, Policy, Principal, carries_iap};

impl Walk<'_> {
    pub(super) fn exists(&mut self) {
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
                let region = &self.facts.service.region;
                let words = match crate::iam::nearest_region(region) {
                    Some(near) => {
                        format!("{region} is not a region that is known here; did you mean {near}?")
                    }
                    None => "Deploy it, or correct project, region and name.".to_owned(),
                };
                self.settle(
                    Cause::ServiceNotFound,
                    format!("There is no service {name}."),
                    words,
                );
            }
            Known::Hidden(why) => self.step("exists", Outcome::Unknown, why.clone()),
            Known::NotAsked => self.step("exists", Outcome::Skipped, "not asked"),
        }
    }

    /// Answers that say by themselves that access is not the question, or who refused.
    pub(super) fn answer(&mut self) {
        let symptom = &self.facts.symptom;
        let status = symptom.status.unwrap_or_default();
        match symptom.refusal {
            Some(Refusal::NoInstance) => {
                self.step(
                    "answer",
                    Outcome::Fail,
                    "Cloud Run says that there was no instance for the request",
                );
                return self.settle(
                    Cause::NoInstance,
                    "There was no instance to serve it.",
                    "Raise maximum instances or concurrency (429), or let it scale faster: minimum instances, CPU boost (500). This is not about access.",
                );
            }
            Some(Refusal::Perimeter) => {
                self.step(
                    "answer",
                    Outcome::Fail,
                    "a VPC Service Controls perimeter refused it",
                );
                return self.settle(
                    Cause::PerimeterOrDeny,
                    "A VPC Service Controls perimeter refuses the caller.",
                    "Ask whoever runs the perimeter for an ingress rule for the caller; the policy log (method run.googleapis.com/HttpIngress) has the denial.",
                );
            }
            _ => {}
        }
        let succeeded = (200..300).contains(&status);
        // What ingress or a wrong address answers with 404 leaves no entry.
        let is_logged_404 = status == 404 && symptom.logged == Some(true);
        let is_own = symptom.answered_by == Some(Answerer::Application) || is_logged_404;
        if is_own && status > 0 && !succeeded {
            let evidence = format!(
                "the {status} is none of Cloud Run's own: the request reached the application"
            );
            self.step("answer", Outcome::Fail, evidence);
            return self.settle(
                Cause::TheApplication,
                format!("The service itself answered {status}."),
                "Look at the application's routes, its own checks of the caller, and its log. Cloud Run let the request through.",
            );
        }
        if (500..600).contains(&status) || status == 429 {
            self.step("answer", Outcome::Fail, format!("{status} is no refusal"));
            self.settle(
                Cause::NotAboutAccess,
                format!("{status} is not about access."),
                "Look at the application's log, its memory and its limits.",
            );
        }
    }

    pub(super) fn address(&mut self) {
        let facts = self.facts;
        let Some(url) = &facts.url else {
            return self.step("address", Outcome::Skipped, "no URL was given");
        };
        if self.is_reserved_path(url) {
            return;
        }
        let Known::Is(front) = &facts.front else {
            return self.step(
                "address",
                Outcome::Unknown,
                "the service's URLs are not known",
            );
        };
        let address = address::of(url, &facts.service, front);
        let (host, path) = address::host_and_path(url);
        let is_default = match address {
            Address::Own | Address::Tag(_) => host.ends_with(".run.app"),
            Address::Function => true,
            _ => false,
        };
        if is_default && front.default_url_disabled {
            self.step(
                "address",
                Outcome::Fail,
                "the run.app URLs are switched off, and with them those of tags and functions",
            );
            return self.conclude(
                Cause::DefaultUrlDisabled,
                "The default URL of the service is switched off.",
                "Call it through its load balancer or custom domain.",
            );
        }
        let (outcome, evidence) = described(&address, &host, &path, &front.urls);
        self.step("address", outcome, evidence);
        self.wrong_url(&address, address::url(front));
    }

    fn is_reserved_path(&mut self, url: &str) -> bool {
        let (_, path) = address::host_and_path(url);
        let path = path.split('?').next().unwrap_or_default();
        if !path.ends_with('z') || !self.may_be_unlogged_404() {
            return false;
        }
        self.step(
            "address",
            Outcome::Fail,
            format!("{path} ends in z; Google's front end keeps some of these paths for itself"),
        );
        self.conclude(
            Cause::ReservedPath,
            format!("The path {path} never reaches the service."),
            "Use another path, for example /health.",
        );
        true
    }

    fn wrong_url(&mut self, address: &Address, url: &str) {
        match address {
            Address::UnknownTag(tag) => self.conclude(
                Cause::WrongUrl,
                format!("The service has no tag {tag}."),
                format!("Tag a revision (gcloud run services update-traffic --update-tags), or call {url}."),
            ),
            Address::Another => self.conclude(
                Cause::WrongUrl,
                "That URL is not the service's.",
                format!("Call {url}."),
            ),
            _ => {}
        }
    }

    /// A 404 that, as far as is known, left no entry in the request log.
    fn may_be_unlogged_404(&self) -> bool {
        let symptom = &self.facts.symptom;
        symptom.status == Some(404) && symptom.logged != Some(true)
    }

    pub(super) fn ingress(&mut self) {
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
                self.step("ingress", Outcome::Pass, "everybody may reach it");
                return self.perimeter();
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
        if !self.may_be_unlogged_404() {
            return self.step("ingress", Outcome::Maybe, evidence);
        }
        self.step("ingress", Outcome::Fail, evidence);
        self.conclude(
            Cause::IngressBlocks,
            "Ingress refuses the caller before IAM is asked.",
            "Call from inside (route egress of the caller through the VPC), or through the load balancer. IAM is not the cause.",
        );
    }

    /// What everybody may reach, and yet left no entry, was refused by a perimeter.
    fn perimeter(&mut self) {
        let symptom = &self.facts.symptom;
        if symptom.status == Some(403) && symptom.logged == Some(false) {
            self.conclude(
                Cause::PerimeterOrDeny,
                "A 403 without an entry in the request log comes from a VPC Service Controls perimeter.",
                "Look at the policy log: resource.type=\"audited_resource\" log_id(\"cloudaudit.googleapis.com/policy\") resource.labels.method=\"run.googleapis.com/HttpIngress\".",
            );
        }
    }

    /// IAM answers 401 and 403 only: a 404 ends here.
    pub(super) fn not_found(&mut self) {
        let facts = self.facts;
        if facts.symptom.status != Some(404) || self.found.is_some() {
            return;
        }
        let is_foreign = facts.url.as_deref().is_some_and(|url| {
            let front = facts.front.value();
            front.is_some_and(|f| address::of(url, &facts.service, f) == Address::Foreign)
        });
        if is_foreign && facts.symptom.logged != Some(true) {
            return self.settle(
                Cause::LoadBalancerRoute,
                "The load balancer in front has no route for it.",
                "Compare its host and path rules and the URL mask of its serverless NEG with the URL; a mask that does not fit answers 404.",
            );
        }
        self.settle(
            Cause::CannotTell,
            "A 404 never comes from IAM. With an entry in the request log it is the application's; without one the request did not reach the service.",
            "Look for it in the request log, and give the entry with --log.",
        );
    }

    pub(super) fn iap(&mut self) {
        let facts = self.facts;
        let answers = facts.symptom.refusal == Some(Refusal::Iap);
        let Known::Is(front) = &facts.front else {
            if answers {
                self.iap_decides("Identity-Aware Proxy gave the answer");
            }
            return;
        };
        if !front.iap {
            if answers {
                return self.iap_decides(
                    "Identity-Aware Proxy gave the answer and is not on the service: it is on the load balancer in front",
                );
            }
            return self.step(
                "iap",
                Outcome::Pass,
                "no Identity-Aware Proxy on the service",
            );
        }
        let is_agent = |p: &Principal| p.key().contains("@gcp-sa-iap.iam.gserviceaccount.com");
        let has_agent = facts
            .policy
            .value()
            .map(|policy| policy.grants().iter().any(|g| is_agent(&g.principal)));
        if has_agent == Some(false) && !front.invoker_iam_disabled {
            self.step(
                "iap",
                Outcome::Fail,
                "Identity-Aware Proxy is on, and its own service agent is no invoker: nobody gets through",
            );
            return self.settle(
                Cause::IapAgentMissing,
                "IAP may not call the service itself.",
                "Grant roles/run.invoker to service-PROJECT_NUMBER@gcp-sa-iap.iam.gserviceaccount.com, IAP's service agent.",
            );
        }
        match &facts.principal {
            Some(principal) => self.iap_grants(principal),
            None => self.iap_decides(
                "Identity-Aware Proxy decides who gets in; invoker bindings of callers do not count",
            ),
        }
    }

    fn iap_decides(&mut self, evidence: &str) {
        self.step("iap", Outcome::Maybe, evidence);
        self.settle(
            Cause::IapDecides,
            "Identity-Aware Proxy stands in front and decides.",
            format!("Grant the caller {IAP_ROLE} on the IAP resource of the service; an invoker grant changes nothing."),
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
            let refused = facts.symptom.refusal == Some(Refusal::Iap);
            return if refused {
                self.settle(
                    Cause::IapDecides,
                    format!("{principal} may pass Identity-Aware Proxy, and it refused nevertheless."),
                    "Look at access levels on the IAP resource, at the age of the grant (minutes), and at which account is signed in; a program needs an ID token for IAP's OAuth client.",
                )
            } else {
                self.settle(
                    Cause::AccessExpected,
                    format!("Identity-Aware Proxy lets {principal} in."),
                    "If it is refused all the same: another account is signed in, an access level is not met, or the application answers so.",
                )
            };
        }
        let unseen = [&facts.iap, &facts.project]
            .into_iter()
            .find_map(Known::unseen);
        let is_open = |h: &Held| !h.maybe.is_empty() || !h.unknown.is_empty();
        let maybe = |held: &Option<Held>| held.as_ref().is_none_or(is_open);
        if let Some(why) = unseen {
            self.step("iap", Outcome::Unknown, why);
            return self.settle(
                Cause::CannotTell,
                format!("Identity-Aware Proxy decides. Either it lets {principal} in, or {principal} lacks {IAP_ROLE}: that could not be seen."),
                "Ask again with the right that the step marked ?? names, or ask somebody who has it.",
            );
        }
        if maybe(&own) || maybe(&inherited) {
            return self.iap_decides(&format!(
                "Identity-Aware Proxy decides who gets in; whether {principal} has {IAP_ROLE} cannot be told from here"
            ));
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

    pub(super) fn iam_check(&mut self) {
        let Known::Is(front) = &self.facts.front else {
            return;
        };
        if front.invoker_iam_disabled {
            self.step(
                "iam check",
                Outcome::Pass,
                "the IAM check is switched off: whoever passes ingress may call",
            );
            self.settle(
                Cause::IamCheckOff,
                "IAM is not asked at all.",
                "A 401 or 403 comes from the application itself. Note that the service is exposed.",
            );
        }
    }
}

/// How an address counts, in words.
fn described(address: &Address, host: &str, path: &str, urls: &[String]) -> (Outcome, String) {
    match address {
        Address::Own => (Outcome::Pass, format!("{host} is the service's")),
        Address::Function => (
            Outcome::Pass,
            format!("{host}{path} is the URL of the function"),
        ),
        Address::Tag(tag) => (
            Outcome::Pass,
            format!("{host} is the URL of the service's tag {tag}"),
        ),
        Address::UnknownTag(tag) => (
            Outcome::Fail,
            format!("no revision of the service has the tag {tag}"),
        ),
        Address::Another => (
            Outcome::Fail,
            format!("{host} is none of {}", urls.join(", ")),
        ),
        Address::Foreign => (
            Outcome::Maybe,
            format!(
                "{host} is no run.app URL: a domain or load balancer in front decides where it leads"
            ),
        ),
    }
}
