//! What stands before the check of the caller: the service itself, its ingress, and whether IAM is
//! asked at all; its address, the answer and Identity-Aware Proxy in rooms of their own.

mod address;
mod answer;
mod iap;

use super::{
    Cause, Gone, Known, Outcome, Walk,
    address::{self as url, Address},
    symptom::{Answerer, Refusal},
};

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
                return self.open(
                    "ingress",
                    Outcome::Unknown,
                    "no ingress setting is in force",
                    "ask again when a revision of the service is ready",
                );
            }
        };
        if self.passed_ingress() {
            let evidence = format!("ingress lets in only {wanted}, and it let this request in");
            return self.step("ingress", Outcome::Pass, evidence);
        }
        let evidence = format!(
            "ingress lets in only {wanted}; others get 404 and leave no entry in the request log"
        );
        if !self.may_be_unlogged_404() {
            return self.open(
                "ingress",
                Outcome::Maybe,
                evidence,
                "call from where the caller is, and give the answer (--body), or the entry of the request log (--log)",
            );
        }
        self.step("ingress", Outcome::Fail, evidence);
        self.conclude(
            Cause::IngressBlocks,
            "Ingress refuses the caller before IAM is asked.",
            "Call from inside (route egress of the caller through the VPC), or through the load balancer. IAM is not the cause.",
        );
    }

    /// Whether the answer is one that only comes from behind ingress: what ingress refuses gets 404
    /// and leaves no entry.
    fn passed_ingress(&self) -> bool {
        let symptom = &self.facts.symptom;
        let is_behind = matches!(
            symptom.refusal,
            Some(
                Refusal::NoToken
                    | Refusal::NoGrant
                    | Refusal::NoTokenOrNoGrant
                    | Refusal::BadToken
                    | Refusal::NoInstance
            )
        );
        is_behind
            || symptom.logged == Some(true)
            || symptom.answered_by == Some(Answerer::Application)
            || symptom.got_in()
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

    /// Whether the URL is one that somebody else leads to the service, or does not.
    fn is_foreign(&self) -> bool {
        let facts = self.facts;
        let front = facts.front.value();
        let called = facts.url.as_deref().zip(front);
        called.is_some_and(|(u, f)| url::of(u, &facts.service, f) == Address::Foreign)
    }

    /// IAM answers 401 and 403 only: a 404 ends here.
    pub(super) fn not_found(&mut self) {
        let facts = self.facts;
        if facts.symptom.status != Some(404) || self.found.is_some() {
            return;
        }
        if self.is_foreign() && facts.symptom.logged != Some(true) {
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
