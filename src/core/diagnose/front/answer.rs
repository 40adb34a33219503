//! Answers that say by themselves that access is not the question, or who refused.

use crate::diagnose::{
    Cause, Outcome, Walk,
    symptom::{Answerer, Refusal, Text},
};

impl Walk<'_> {
    pub(in crate::diagnose) fn answer(&mut self) {
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
        if let Some(evidence) = self.is_the_applications() {
            self.step("answer", Outcome::Fail, evidence);
            let what = match status {
                0 => "The application has the request in its log".to_owned(),
                _ => format!("The service itself answered {status}"),
            };
            return self.settle(
                Cause::TheApplication,
                format!("{what}."),
                "Look at the application's routes, its own checks of the caller, and its log. Cloud Run let the request through.",
            );
        }
        if (400..600).contains(&status) && !matches!(status, 401 | 403 | 404) {
            self.step(
                "answer",
                Outcome::Fail,
                format!(
                    "{status} is no refusal: what decides about access answers 401, 403 or 404"
                ),
            );
            let fix = match status {
                429 => {
                    "Look at the application's own limits, and at maximum instances and concurrency."
                }
                500.. => "Look at the application's log, its memory and its limits.",
                _ => {
                    "Look at what was asked for, at the application's log, and at what stands in front."
                }
            };
            let verdict = format!("{status} is not about access.");
            return self.settle(Cause::NotAboutAccess, verdict, fix);
        }
        self.undecided_answer();
    }

    /// What shows that the application gave the answer.
    fn is_the_applications(&self) -> Option<String> {
        let symptom = &self.facts.symptom;
        let refused = symptom.status.filter(|_| !symptom.got_in());
        if symptom.answered_by == Some(Answerer::Application) {
            return match symptom.status {
                None => Some("the entry is of the application's own log".into()),
                Some(_) => refused.map(|status| {
                    format!("the {status} is none of Cloud Run's own: the request reached the application")
                }),
            };
        }
        let status = refused?;
        if status == 404 && symptom.logged == Some(true) {
            // What ingress or a wrong address answers with 404 leaves no entry.
            return Some("Cloud Run logged the 404: the request reached the application".into());
        }
        // Cloud Run refuses with a page, Identity-Aware Proxy with one of its sentences; gateways,
        // meshes and proxies in front refuse as applications do, and do not name Google's front end.
        let may_be_iaps = self.facts.front.value().is_none_or(|front| front.iap);
        (symptom.text == Some(Text::Other)
            && symptom.is_by_front_end
            && symptom.logged != Some(false)
            && self.is_own()
            && !may_be_iaps)
            .then(|| {
                format!("the text of the {status} came through Google's front end at the service's own URL, and is none of Cloud Run's: the request reached the application")
            })
    }

    /// An answer that several may have given.
    fn undecided_answer(&mut self) {
        let symptom = &self.facts.symptom;
        // That of a sign-in is for Identity-Aware Proxy to say.
        if symptom.answered_by.is_some() || symptom.got_in() || symptom.is_sign_in {
            return;
        }
        const SEE: &str = "give the entry of the request log (--log): an application's answer names its instance there, Cloud Run's has its reason as text";
        let (evidence, see) = match (symptom.text, symptom.status) {
            (Some(Text::Page), _) => (
                "the page has none of Cloud Run's sentences: the application wrote it, or a proxy or load balancer in between",
                SEE,
            ),
            (Some(Text::FrontEnd), _) => return,
            (Some(Text::Other), None) => (
                "the text has none of Cloud Run's sentences, and its status is not known",
                "give the status too (--status, or the whole of curl -si)",
            ),
            (Some(Text::Other), _) => (
                "the text has none of Cloud Run's sentences: the application wrote it, or something in front of it, such as a gateway, a mesh or a proxy",
                SEE,
            ),
            (None, Some(401 | 403)) => (
                "Cloud Run and the application both answer so, and the text is not known",
                "give the whole answer (--body, as curl -si prints it), or the entry of the request log (--log)",
            ),
            (None, Some(300..=399)) => (
                "a redirect, by the application or something in front of it",
                "give the whole answer (--body, as curl -si prints it): where it leads says who sent it",
            ),
            (None, _) => return,
        };
        self.open("answer", Outcome::Maybe, evidence, see);
    }
}
