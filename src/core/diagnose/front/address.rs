//! Whether the URL that was called leads to the service.

use crate::diagnose::{
    Cause, Known, Outcome, Walk,
    address::{self, Address},
};

impl Walk<'_> {
    pub(in crate::diagnose) fn address(&mut self) {
        let facts = self.facts;
        let Some(url) = &facts.url else {
            return self.unknown_address();
        };
        let (host, path) = address::host_and_path(url);
        if facts.symptom.logged == Some(true) {
            // Wherever a domain, a load balancer or a tag leads by now.
            let evidence = format!("{host} led to the service: it has the request in its log");
            return self.step("address", Outcome::Pass, evidence);
        }
        if self.is_reserved_path(&path) {
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
        self.leads_to(&address, &host, &path, &front.urls);
        self.wrong_url(&address, address::url(front));
    }

    fn unknown_address(&mut self) {
        let front = self.facts.front.value();
        if !front.is_some_and(|front| front.default_url_disabled) {
            return self.step("address", Outcome::Skipped, "no URL was given");
        }
        self.open(
            "address",
            Outcome::Maybe,
            "the run.app URLs are switched off, and which one is called is not known",
            "give the URL (--url)",
        );
    }

    fn leads_to(&mut self, address: &Address, host: &str, path: &str, urls: &[String]) {
        let (outcome, evidence) = match address {
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
                format!("{host}{path} is at none of {}", urls.join(", ")),
            ),
            Address::Foreign => {
                return self.open(
                    "address",
                    Outcome::Maybe,
                    format!("{host} is no run.app URL: a domain or load balancer in front decides where it leads"),
                    "call the service's own URL, or give the entry of its request log (--log)",
                );
            }
        };
        self.step("address", outcome, evidence);
    }

    fn is_reserved_path(&mut self, path: &str) -> bool {
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
}
