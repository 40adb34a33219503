//! What stands before the check of the caller: the service itself, its ingress, and whether IAM is
//! asked at all; its address, the answer and Identity-Aware Proxy in rooms of their own.

mod address;
mod answer;
mod iap;

use super::{
    Cause, Gone, Known, Outcome, Step, Walk,
    address::{self as url, Address},
    symptom::{Answerer, Refusal, Text},
};

const INGRESS: &str = "ingress";
const TO_ALL: &str = "INGRESS_TRAFFIC_ALL";
const NOBODY: &str = "nobody";

impl Walk<'_> {
    pub(super) fn exists(&mut self) {
        let name = self.facts.service.to_string();
        match &self.facts.front {
            Known::Is(front) if front.reconciling => self.open(
                "exists",
                Outcome::Maybe,
                format!("{name} is there; a change of it is under way"),
                "ask again when the change is done (gcloud run services describe)",
            ),
            Known::Is(_) => self.step("exists", Outcome::Pass, format!("{name} is there")),
            Known::Absent(why) => self.not_there(why),
            Known::Hidden(why) => self.step("exists", Outcome::Unknown, why.clone()),
            Known::NotAsked => self.step("exists", Outcome::Skipped, "not asked"),
        }
    }

    /// Nothing answers there: the service is not there, or its whole project is not.
    fn not_there(&mut self, why: &str) {
        let service = &self.facts.service;
        let project = &service.project;
        self.step("exists", Outcome::Fail, why);
        match self.facts.gone {
            Some(Gone::Project) => self.settle(
                Cause::ProjectNotFound,
                format!("There is no project {project}, or it was deleted."),
                "Correct the project id (not its name or number): gcloud projects list. A deleted project can be restored for 30 days: gcloud projects undelete.",
            ),
            Some(Gone::Api) => self.settle(
                Cause::ApiDisabled,
                format!("The Cloud Run API is off in {project}, and its services with it."),
                format!("gcloud services enable run.googleapis.com --project {project}"),
            ),
            None => {
                let region = &service.region;
                let words = match crate::iam::nearest_region(region) {
                    Some(near) => {
                        format!("{region} is not a region that is known here; did you mean {near}?")
                    }
                    None => "Deploy it, or correct project, region and name.".to_owned(),
                };
                self.settle(
                    Cause::ServiceNotFound,
                    format!("There is no service {service}."),
                    words,
                );
            }
        }
    }

    /// A 404 that did not come from the service: it left no entry in the request log, or it is the
    /// page of Google's front end.
    fn is_unlogged_404(&self) -> bool {
        let symptom = &self.facts.symptom;
        symptom.status == Some(404)
            && symptom.logged != Some(true)
            && (symptom.logged == Some(false) || symptom.text == Some(Text::FrontEnd))
    }

    pub(super) fn ingress(&mut self) {
        let facts = self.facts;
        let Known::Is(front) = &facts.front else {
            return self.step(
                INGRESS,
                Outcome::Unknown,
                "the service's settings could not be read",
            );
        };
        let wanted = match front.ingress.as_str() {
            TO_ALL => {
                self.step(INGRESS, Outcome::Pass, "everybody may reach it");
                return self.perimeter();
            }
            "INGRESS_TRAFFIC_INTERNAL_ONLY" => "callers inside of the VPC and some Google services",
            "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER" => {
                "callers inside of the VPC, and through a load balancer"
            }
            "INGRESS_TRAFFIC_NONE" => NOBODY,
            _ => {
                return self.open(
                    INGRESS,
                    Outcome::Unknown,
                    "no ingress setting is in force",
                    "ask again when a revision of the service is ready",
                );
            }
        };
        if self.passed_ingress() {
            let evidence = format!("ingress lets in only {wanted}, and it let this request in");
            return self.step(INGRESS, Outcome::Pass, evidence);
        }
        let evidence = format!(
            "ingress lets in only {wanted}; others get 404 and leave no entry in the request log"
        );
        if wanted != NOBODY && !(self.is_unlogged_404() && self.is_own()) {
            return self.open(
                INGRESS,
                Outcome::Maybe,
                evidence,
                "call from where the caller is, and give the answer (--body), the entry of the request log (--log), or that there is none (--no-log-entry)",
            );
        }
        self.step(INGRESS, Outcome::Fail, evidence);
        self.conclude(
            Cause::IngressBlocks,
            "Ingress refuses the caller before IAM is asked.",
            "Call from inside (route egress of the caller through the VPC), or through the load balancer. IAM is not the cause.",
        );
    }

    /// Whether the answer is one that only the check of the caller gives.
    fn is_refused_by_iam(&self) -> bool {
        matches!(
            self.facts.symptom.refusal,
            Some(
                Refusal::NoToken | Refusal::NoGrant | Refusal::NoTokenOrNoGrant | Refusal::BadToken
            )
        )
    }

    /// Whether the answer is one that only comes from behind ingress: what ingress refuses gets 404
    /// and leaves no entry.
    fn passed_ingress(&self) -> bool {
        let symptom = &self.facts.symptom;
        self.is_refused_by_iam()
            || symptom.refusal == Some(Refusal::NoInstance)
            || symptom.logged == Some(true)
            || symptom.answered_by == Some(Answerer::Application)
            || symptom.got_in()
    }

    /// What everybody may reach, and yet left no entry, was refused by a perimeter, or by something
    /// that is not Google's front end: a mesh or a proxy of the caller's, a load balancer's firewall.
    fn perimeter(&mut self) {
        const LOG: &str = "Look at the policy log: resource.type=\"audited_resource\" log_id(\"cloudaudit.googleapis.com/policy\") resource.labels.method=\"run.googleapis.com/HttpIngress\".";
        let symptom = &self.facts.symptom;
        let is_behind_iap = self.facts.front.value().is_some_and(|front| front.iap);
        if symptom.status != Some(403) || symptom.logged != Some(false) || is_behind_iap {
            return;
        }
        if symptom.is_by_front_end && self.is_own() {
            return self.conclude(
                Cause::PerimeterOrDeny,
                "A 403 of Google's front end without an entry in the request log comes from a VPC Service Controls perimeter.",
                LOG,
            );
        }
        self.conclude(
            Cause::CannotTell,
            "A 403 without an entry in the request log comes from a VPC Service Controls perimeter, or from something in between: a mesh, a proxy, the firewall of a load balancer.",
            format!("{LOG} Or give the whole answer (--body, as curl -si prints it): its headers say who sent it."),
        );
    }

    /// What the URL is to the service, where both are known.
    fn called(&self) -> Option<Address> {
        let facts = self.facts;
        let called = facts.url.as_deref().zip(facts.front.value());
        called.map(|(u, f)| url::of(u, &facts.service, f))
    }

    /// Whether ingress lets everybody in.
    fn is_open_to_all(&self) -> bool {
        let front = self.facts.front.value();
        front.is_some_and(|front| front.ingress == TO_ALL)
    }

    /// Whether the URL is one of the service's that Google made: nothing of the user's stands in
    /// front of it.
    fn is_own(&self) -> bool {
        matches!(
            self.called(),
            Some(Address::Own | Address::Tag(_) | Address::Function)
        )
    }

    /// IAM answers 401 and 403 only: a 404 ends here.
    pub(super) fn not_found(&mut self) {
        let facts = self.facts;
        if facts.symptom.status != Some(404) || self.found.is_some() {
            return;
        }
        if self.called() == Some(Address::Foreign)
            && self.is_unlogged_404()
            && self.is_open_to_all()
        {
            return self.settle(
                Cause::LoadBalancerRoute,
                "The load balancer in front has no route for it.",
                "Compare its host and path rules and the URL mask of its serverless NEG with the URL; a mask that does not fit answers 404.",
            );
        }
        let is_open = |step: &Step| step.check == INGRESS && step.is_open();
        let (verdict, fix) = if self.steps.iter().any(is_open) {
            (
                "Either ingress refuses the caller, who gets 404 before IAM is asked, or the request got in and the application answered 404. A 404 never comes from IAM.",
                "With an entry in the request log (--log) it is the application's; without one (--no-log-entry) call from inside, or through the load balancer.",
            )
        } else if self.is_unlogged_404() {
            (
                "A 404 never comes from IAM, and this one does not come from the service: the request did not reach it.",
                "Compare the URL that was called (--url) with the service's, and see what stands in between: a proxy, a load balancer, a DNS name that leads elsewhere.",
            )
        } else {
            (
                "A 404 never comes from IAM. With an entry in the request log it is the application's; without one the request did not reach the service.",
                "Look for it in the request log, and give the entry with --log, or say that there is none with --no-log-entry.",
            )
        };
        self.settle(Cause::CannotTell, verdict, fix);
    }

    pub(super) fn iam_check(&mut self) {
        let Known::Is(front) = &self.facts.front else {
            return;
        };
        if front.invoker_iam_disabled && self.is_refused_by_iam() {
            self.step(
                "iam check",
                Outcome::Maybe,
                "the IAM check is switched off, and the answer is of that check",
            );
            return self.settle(
                Cause::CannotTell,
                "The IAM check refused the request, and it is switched off now: it was switched off after that, or not everywhere yet; or another service answered.",
                "Ask again, and give the answer of that (--body).",
            );
        }
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
