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
            // One whose URLs are off may list none.
            Address::Another => {
                front.urls.is_empty() && address::may_be_of(&host, &facts.service.name)
            }
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
                match urls {
                    [] => {
                        format!("{host}{path} is not the service's, which lists no URL of its own")
                    }
                    urls => format!("{host}{path} is at none of {}", urls.join(", ")),
                },
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

    /// Paths that Google's front end keeps for itself: of those that end in `z` only some. True: that
    /// is the verdict.
    ///
    /// Source: <https://cloud.google.com/run/docs/issues>.
    fn is_reserved_path(&mut self, path: &str) -> bool {
        let is_kept = path == "/eventlog" || path.starts_with("/_ah/");
        if !(is_kept || path.ends_with('z')) || self.passed_ingress() {
            return false;
        }
        let evidence = match is_kept {
            true => format!("Google's front end keeps {path} for itself"),
            false => {
                format!("{path} ends in z; Google's front end keeps some of these paths for itself")
            }
        };
        // Nothing else answers 404 at a URL that leads to a service which everybody may reach.
        let front = self.facts.front.value();
        let is_reachable =
            self.is_open_to_all() && front.is_some_and(|front| !front.default_url_disabled);
        if self.is_unlogged_404() && is_reachable && self.is_own() {
            self.step("address", Outcome::Fail, evidence);
            self.conclude(
                Cause::ReservedPath,
                format!("The path {path} never reaches the service."),
                "Use another path, for example /health.",
            );
            return true;
        }
        self.open(
            "path",
            Outcome::Maybe,
            evidence,
            "call another path, for example /health; what is kept gets 404 and leaves no entry in the request log",
        );
        false
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
                match self.facts.front.value().is_some_and(|f| f.urls.is_empty()) {
                    true => "The service lists no URL of its own: call it through its load balancer or custom domain.".to_owned(),
                    false => format!("Call {url}."),
                },
            ),
            _ => {}
        }
    }
}
