//! The conditions of a policy, each in a file of its own, and the one way to set them: transition
//! time moves only with status, generation always stands beside it.

mod bypassed;
mod contested;
mod drifted;
mod exposed;
mod propagated;
mod ready;
mod rolled_back;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub use propagated::propagated_at;

use super::{StatusInput, text::whole_seconds};
use crate::api::{
    ConditionType, InvokerPolicyStatus, Reason, ServiceStatus, StatusCondition, StatusSummary,
};

/// All that conditions follow from.
pub(super) struct ConditionInput<'a> {
    pub facts: &'a StatusInput<'a>,
    pub old: &'a InvokerPolicyStatus,
    pub services: &'a [ServiceStatus],
    pub summary: &'a StatusSummary,
    /// Not every service was read since the last change.
    pub pending: bool,
}

/// Every condition, in the order in which people read them.
pub(super) fn all(input: &ConditionInput<'_>) -> Vec<StatusCondition> {
    let facts = input.facts;
    let mut conditions = Conditions::new(&input.old.conditions, facts.intent.generation, facts.now);
    ready::set(&mut conditions, input);
    rolled_back::set(&mut conditions, facts);
    drifted::set(&mut conditions, input);
    propagated::set(&mut conditions, input);
    exposed::set(&mut conditions, facts);
    contested::set(&mut conditions, facts);
    bypassed::set(&mut conditions, input);
    conditions.into_list()
}

/// The three values of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// The longest message that `metav1.Condition` allows.
const MAX_MESSAGE: usize = 32_768;

/// Conditions being made anew from the old ones: what is not set is not there any more.
#[derive(Debug)]
pub struct Conditions<'a> {
    old: &'a [StatusCondition],
    new: Vec<StatusCondition>,
    generation: i64,
    now: Timestamp,
}

impl<'a> Conditions<'a> {
    pub fn new(old: &'a [StatusCondition], generation: i64, now: Timestamp) -> Self {
        Self {
            old,
            new: Vec::new(),
            generation,
            now: whole_seconds(now),
        }
    }

    /// Sets one condition.
    pub fn set(&mut self, type_: ConditionType, truth: Truth, reason: Reason, message: &str) {
        let since = self
            .old
            .iter()
            .find(|c| c.type_ == type_.as_str() && c.status == truth.as_str())
            // That of the definition's default is no time at which anything changed.
            .filter(|c| c.last_transition_time.0 != Timestamp::UNIX_EPOCH)
            .map_or(Time(self.now), |c| c.last_transition_time.clone());
        let (message, _) = message.split_at(message.floor_char_boundary(MAX_MESSAGE));
        self.new.push(StatusCondition {
            type_: type_.as_str().into(),
            status: truth.as_str().into(),
            reason: reason.as_str().into(),
            message: message.to_owned(),
            last_transition_time: since,
            observed_generation: self.generation,
        });
    }

    /// The conditions, Ready first.
    pub fn into_list(self) -> Vec<StatusCondition> {
        self.new
    }
}
