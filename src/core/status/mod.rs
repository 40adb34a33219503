//! From what was found on each service to the status of a policy. Pure: `now` is passed in.

pub mod conditions;
mod entries;
pub mod events;
mod inherited;
pub mod kstatus;
pub mod observation;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use crate::{
    api::{InvokerPolicyStatus, Reason},
    fault::Fault,
    iam::{InvokingRoles, RunService},
    intent::{Agreement, Intent},
    plan::SelectorImpact,
};
use conditions::ConditionInput;
pub use conditions::propagated_at;
pub use entries::{NEW_TO_POLICY, PERHAPS_EXPOSED, shortened, state_of};
use entries::{denied_services, needs_person};
pub use inherited::InheritedView;
pub use observation::{
    Applied, Before, By, Drift, Findings, FoundDrift, Held, Members, News, Observation, Reconciled,
    Written,
};
pub use text::{DENIED, denied_by, how_to_agree, on_one_line, whole_seconds};

/// Something that a policy names and may not touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedTarget {
    /// The service; `None` where a selector may not list at all.
    pub service: Option<RunService>,
    /// Who says no, and why.
    pub message: String,
}

/// Services that selectors found and that the policy may not change yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReachedServices {
    pub spread: SelectorImpact,
    pub services: BTreeSet<RunService>,
    /// Who says that only an InvokerApproval counts, if somebody does.
    pub approver: Option<Arc<str>>,
    /// Who said no to it, if somebody did.
    pub denied: Option<Arc<Agreement>>,
}

/// All that the status of a policy depends on.
#[derive(Debug)]
pub struct StatusInput<'a> {
    pub intent: &'a Intent,
    /// The services that the policy names now, with the last observation of each; `None` where
    /// there was none yet.
    pub observations: &'a BTreeMap<RunService, Option<&'a Observation>>,
    /// Selectors, by their place among the targets, that are known to match no service.
    pub unmatched: &'a [usize],
    /// Why services cannot be found by selector, where that is so.
    pub discovery: Option<&'a Fault>,
    /// A selector has not been answered yet.
    pub discovering: bool,
    /// What it names and may not touch.
    pub denied: &'a [DeniedTarget],
    /// How many services its selectors match that it may not touch.
    pub outside: usize,
    /// What its selectors found and it may not change yet.
    pub reach: Option<&'a ReachedServices>,
    /// Nothing is done for it, and why.
    pub stopped: Option<(Reason, Arc<str>)>,
    /// Services on which it goes back, and behind which change.
    pub back: &'a [(&'a RunService, &'a str)],
    /// Name of the last InvokerChange made for it.
    pub last_change: Option<&'a str>,
    /// What searches have shown of roles.
    pub roles: &'a InvokingRoles,
    /// What is known of grants above its services; `None` where nobody asks.
    pub inherited: Option<&'a InheritedView<'a>>,
    /// Services that anybody can call by a grant above them: by which, and from where.
    pub opened: &'a [(&'a RunService, String)],
    /// When the operator last changed what concerns it.
    pub changed_at: Option<Timestamp>,
    /// A write to one of its services is under way, or its end is not on record: it may be sent, or
    /// sent again, at any moment.
    pub writing: bool,
    /// How long IAM may take to act on a change.
    pub propagation: Duration,
    pub now: Timestamp,
}

impl StatusInput<'_> {
    /// What was found on the services that could be read.
    fn findings(&self) -> impl Iterator<Item = (&RunService, &Findings)> {
        self.observations
            .iter()
            .filter_map(|(service, observation)| {
                Some((service, observation.as_ref()?.result.as_ref().ok()?))
            })
    }

    /// Whether a service was not read since the last change.
    fn is_pending(&self) -> bool {
        let is_unseen = |seen: &Option<&Observation>| seen.is_none_or(|o| !o.answers(self.intent));
        !is_suspended(self.intent)
            && !is_halted(self)
            && (self.discovering || self.observations.values().any(is_unseen))
    }
}

/// Folds the facts into a status. `old` gives the times that stay.
pub fn compute_status(facts: &StatusInput<'_>, old: &InvokerPolicyStatus) -> InvokerPolicyStatus {
    let intent = facts.intent;
    if still_stands(facts, old) {
        return old.clone();
    }
    let mut services = entries::service_entries(facts, old);
    let summary = entries::summarise(facts, &services);
    let pending = facts.is_pending();
    let conditions = conditions::all(&ConditionInput {
        facts,
        old,
        services: &services,
        summary: &summary,
        pending,
    });
    let all = services.len();
    services.truncate(entries::shown(&services));
    let omitted = all - services.len();
    InvokerPolicyStatus {
        observed_generation: if pending {
            old.observed_generation
        } else {
            Some(intent.generation)
        },
        last_handled_requested_at: if pending {
            old.last_handled_requested_at.clone()
        } else {
            intent.requested_at.as_deref().map(str::to_owned)
        },
        last_change: facts
            .last_change
            .map(str::to_owned)
            .or_else(|| old.last_change.clone()),
        conditions,
        expired: intent.expired(facts.now).collect::<Members>().shown(),
        inherited: inherited::status(facts, old),
        summary: Some(summary),
        services,
        services_omitted: (omitted > 0).then_some(omitted as i64),
    }
}

/// After a restart what was said before is true until an observation says otherwise: a restart is
/// no news, and must not make thousands of policies look unsettled while their services are read
/// one by one.
fn still_stands(facts: &StatusInput<'_>, old: &InvokerPolicyStatus) -> bool {
    let intent = facts.intent;
    let observed = old.observed_generation == Some(intent.generation)
        && old.last_handled_requested_at.as_deref() == intent.requested_at.as_deref()
        && !old.conditions.is_empty();
    let unseen = facts.discovering || facts.observations.values().any(Option::is_none);
    // Services that were not there before are news, seen or not.
    let known = old.summary.as_ref().is_some_and(|s| {
        facts.discovering
            || s.services == (facts.observations.len() + denied_services(facts).count()) as i64
    });
    observed && unseen && known && !is_halted(facts) && !intent.suspended && !intent.deleting
}

/// Whether nothing is done because somebody said so. Its deletion takes back what belongs to it
/// nevertheless.
fn is_suspended(intent: &Intent) -> bool {
    intent.suspended && !intent.deleting
}

/// Whether nothing is done for the policy until something changes, as opposed to until something is
/// read.
fn is_halted(facts: &StatusInput<'_>) -> bool {
    facts
        .stopped
        .as_ref()
        .is_some_and(|(reason, _)| *reason != Reason::Progressing)
}

#[cfg(test)]
mod tests;
