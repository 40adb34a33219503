//! What a guardrail says of requests for access.

use std::{sync::Arc, time::Duration};

use regex::{Regex, RegexBuilder};

use super::members::MemberGlob;
use crate::{
    api::RequestTerms,
    iam::Principal,
    intent::{AccessRequest, parse_interval},
};

/// Whether a request needs somebody to agree to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Consent {
    /// An approver has to.
    Approver,
    /// Nobody: this guardrail says so.
    Guardrail(Arc<str>),
}

/// What requests for access may ask for.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    /// As they are written: what is compared.
    spec: RequestTerms,
    longest: Duration,
    auto_approve: Vec<MemberGlob>,
    reason: Option<Regex>,
    /// A field cannot be understood, and this is why: no request is allowed then.
    unreadable: Option<String>,
}

impl PartialEq for Requests {
    fn eq(&self, other: &Self) -> bool {
        self.spec == other.spec
    }
}

impl Requests {
    pub(super) fn of(spec: &RequestTerms) -> Self {
        let longest = parse_interval(&spec.max_duration).ok_or_else(|| {
            let text = &spec.max_duration;
            format!("spec.requests.maxDuration {text:?} is not a duration such as 4h")
        });
        let reason = spec.reason_pattern.as_deref().map(|pattern| {
            let compiled = RegexBuilder::new(pattern).size_limit(1 << 20).build();
            compiled.map_err(|e| format!("spec.requests.reasonPattern cannot be used: {e}"))
        });
        let (unreadable, reason) = match reason.transpose() {
            Ok(reason) => (None, reason),
            Err(why) => (Some(why), None),
        };
        let globs = spec.auto_approve.iter().flatten();
        Self {
            auto_approve: globs.map(|p| MemberGlob::parse(p)).collect(),
            unreadable: longest.as_ref().err().cloned().or(unreadable),
            longest: longest.unwrap_or_default(),
            reason,
            spec: spec.clone(),
        }
    }

    /// Why nobody knows what it says, after its name.
    pub(super) fn unreadable(&self) -> Option<String> {
        let why = self.unreadable.as_ref()?;
        Some(format!(
            "cannot be read, so nothing may be requested: {why}"
        ))
    }

    /// What it says against a request, after its name.
    pub(super) fn against(&self, request: &AccessRequest) -> Option<String> {
        if let Some(why) = self.unreadable() {
            return Some(why);
        }
        if request.duration > self.longest {
            let most = &self.spec.max_duration;
            return Some(format!("lets nobody request access for longer than {most}"));
        }
        let pattern = self
            .reason
            .as_ref()
            .filter(|p| !p.is_match(&request.reason))?;
        Some(format!(
            "wants the reason of a request to match {}",
            pattern.as_str()
        ))
    }

    /// Whether nobody has to agree to a request for this principal.
    pub(super) fn approves_by_itself(&self, principal: &Principal) -> bool {
        self.auto_approve.iter().any(|g| g.matches(principal))
    }
}
