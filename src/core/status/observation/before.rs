//! What was known before: seen by this process, or as the status of the policy tells it.

use std::collections::BTreeSet;

use super::{
    Observation,
    findings::{Findings, Held},
    members::Members,
};
use crate::{
    api::{InvokerPolicyStatus, MAX_STATUS_MEMBERS, ServiceState, ServiceStatus},
    fault::{Fault, FaultClass},
    iam::RunService,
};

/// What is known from before.
#[derive(Clone, Copy, Debug)]
pub enum Before<'a> {
    /// Nothing: nobody has read the service on behalf of the policy yet.
    Nothing,
    Seen(&'a Observation),
    /// After a restart, what the status says.
    Reported(&'a ServiceStatus),
}

impl<'a> Before<'a> {
    pub(super) fn seen(self) -> Option<&'a Observation> {
        match self {
            Self::Seen(observation) => Some(observation),
            _ => None,
        }
    }

    /// What was found then. Of what a status does not hold word for word, that which could be what
    /// is `found` now.
    pub(in crate::status) fn findings(self, found: &Findings) -> Option<Findings> {
        match self {
            Self::Nothing => None,
            Self::Seen(observation) => observation.result.as_ref().ok().cloned(),
            Self::Reported(entry)
                if matches!(entry.state, ServiceState::Failed | ServiceState::NotFound) =>
            {
                None
            }
            Self::Reported(entry) => Some(reported(entry, found)),
        }
    }

    pub(super) fn fault(self) -> Option<FaultClass> {
        match self {
            Self::Nothing => None,
            Self::Seen(observation) => observation.result.as_ref().err().map(|f| f.class),
            Self::Reported(entry) => FaultClass::ALL
                .into_iter()
                .find(|c| entry.message.ends_with(c.row().hint)),
        }
    }

    /// The fault as it was reported the first time: a failure that repeats is no news, although
    /// every request has its own id.
    pub(super) fn first_reported(self, fault: &Fault) -> Fault {
        let seen = self.seen().and_then(|o| o.result.as_ref().err());
        if let Some(same) = seen.filter(|f| f.says_the_same(fault)) {
            return same.clone();
        }
        if let Self::Reported(entry) = self
            && let Some(first) = fault.told_in(&entry.message)
        {
            return first;
        }
        fault.clone()
    }
}

/// What a status says was not as declared, for reasons of our own: what others did and nobody has
/// undone yet, in a fight or under an open circuit breaker, is not among it. `None`: it does not
/// say, or not all of it.
pub fn was_outstanding(entry: &ServiceStatus, circuit_open: bool) -> Option<BTreeSet<&str>> {
    match entry.state {
        ServiceState::Drifted | ServiceState::Held if entry.contested || circuit_open => {
            Some(BTreeSet::new())
        }
        // Nothing was read where the policy may not touch the service at all.
        ServiceState::Held if entry.missing.is_empty() && entry.unexpected.is_empty() => None,
        ServiceState::InSync | ServiceState::Drifted | ServiceState::Held => {
            let named = entry
                .missing
                .iter()
                .chain(&entry.unexpected)
                .map(String::as_str)
                .collect();
            let is_whole = [&entry.missing, &entry.unexpected]
                .iter()
                .all(|list| list.len() <= MAX_STATUS_MEMBERS);
            is_whole.then_some(named)
        }
        ServiceState::Failed | ServiceState::NotFound => None,
    }
}

/// What a status says of a service.
pub fn entry_of<'a>(
    status: &'a InvokerPolicyStatus,
    service: &RunService,
) -> Option<&'a ServiceStatus> {
    status
        .services
        .iter()
        .find(|s| *s.region == *service.region && *s.name == *service.name)
}

pub(super) fn reported(entry: &ServiceStatus, found: &Findings) -> Findings {
    let members = |shown: &[String], now: &Members| {
        if *shown == now.shown() {
            now.clone()
        } else {
            shown.iter().collect()
        }
    };
    let (missing, unexpected) = (
        members(&entry.missing, &found.missing),
        members(&entry.unexpected, &found.unexpected),
    );
    let drift: Members = entry.missing.iter().chain(&entry.unexpected).collect();
    let drift = if found.drift.are_among(&drift) {
        found.drift.clone()
    } else {
        drift
    };
    let said = |h: &&Held| {
        entry
            .message
            .contains(&format!("{}: {}", h.member, h.message))
    };
    Findings {
        missing,
        unexpected,
        drift,
        held: found.held.iter().filter(said).cloned().collect(),
        contested: if entry.contested {
            found.contested.clone()
        } else {
            Members::default()
        },
        ..Findings::default()
    }
}
