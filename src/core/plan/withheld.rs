//! What a plan does not do although it is declared, and why.

use std::sync::Arc;

use super::{claim::SelectorImpact, drift::Fight, guard::Approval};
use crate::{
    api::Reason,
    iam::{Grant, MAX_MEMBERS},
    intent::Refusal,
};

/// Why a member is set aside: IAM refused a write because of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedMember {
    /// InvalidMember or OrganizationPolicy.
    pub reason: Reason,
    /// Google's words.
    pub message: String,
}

/// What was held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    Grant,
    Revoke,
    /// It is real, may not be declared, and is not ours to take away.
    Leave,
}

/// A change that is due but will not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld {
    pub change: Change,
    pub grant: Grant,
    pub why: WithheldReason,
}

impl Withheld {
    /// Whether it undoes what somebody else did, and waits only for that to end.
    pub fn is_others_doing(&self) -> bool {
        matches!(
            self.why,
            WithheldReason::Contested(_) | WithheldReason::CircuitOpen
        )
    }
}

/// The reason for a [`Withheld`] change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WithheldReason {
    /// Only audited policies ask for it.
    Audited,
    /// Only suspended policies ask for it.
    Suspended,
    /// The member is protected from removal.
    Protected,
    /// IAM refused the member.
    RejectedMember(RejectedMember),
    /// The platform team does not allow it.
    Guardrail(Refusal),
    /// It takes away too much; somebody has to agree.
    Approval(Approval),
    /// The discovery that leads here reaches too far; somebody has to agree, or it is still being
    /// counted.
    SelectorImpact(SelectorImpact),
    /// Somebody else keeps changing it back.
    Contested(Fight),
    /// Too much drift was corrected lately, over all services.
    CircuitOpen,
    /// A policy lists it whose selector may mean the service, and it is not known yet whether it
    /// does.
    UnansweredSelectors,
    /// The policy that asks for it is not carried out now.
    Stopped(Arc<str>),
    /// The policy would have more members than IAM accepts.
    MemberLimit { would_be: usize },
    /// What the operator has to remember of the service would be more than the API server stores.
    MemoryLimit,
    /// IAM refuses one of several members without naming it; which one is being found out.
    Suspect { among: usize },
    /// It waits for its turn within the quota.
    Quota,
    /// The policy was read in a view that hides conditions.
    HashedConditions,
}

/// What is said of a grant in a fight; more follows.
pub const CONTESTED: &str = "somebody else keeps changing it";

impl WithheldReason {
    /// The reason that conditions show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Audited => Reason::Audited,
            Self::Suspended => Reason::Suspended,
            Self::Protected => Reason::InSync,
            Self::RejectedMember(aside) => aside.reason,
            Self::Guardrail(_) => Reason::GuardrailViolated,
            Self::Approval(_) | Self::SelectorImpact(SelectorImpact::Held { .. }) => {
                Reason::ApprovalRequired
            }
            Self::SelectorImpact(SelectorImpact::Counting { .. }) => Reason::Progressing,
            Self::Contested(_) => Reason::Drifted,
            Self::CircuitOpen => Reason::CircuitOpen,
            Self::UnansweredSelectors => Reason::Progressing,
            Self::Stopped(_) => Reason::InvalidSpec,
            Self::MemberLimit { .. } | Self::MemoryLimit => Reason::MemberLimit,
            Self::Suspect { .. } => Reason::InvalidMember,
            Self::Quota => Reason::Progressing,
            Self::HashedConditions => Reason::Unavailable,
        }
    }

    /// The hash that lets it through, where one does.
    pub fn hash(&self) -> Option<&Arc<str>> {
        match self {
            Self::Approval(a) => Some(&a.hash),
            Self::SelectorImpact(SelectorImpact::Held { hash, .. }) => Some(hash),
            _ => None,
        }
    }

    /// What a person reads about it.
    pub fn explain(&self) -> String {
        match self {
            Self::Audited => "mode is Audit".into(),
            Self::Suspended => "the policy is suspended".into(),
            Self::Protected => "the member is protected from removal".into(),
            Self::RejectedMember(aside) => aside.message.clone(),
            Self::Guardrail(refusal) => refusal.message.clone(),
            Self::Approval(a) if a.last => {
                format!("this would take the last of its invokers away ({} in all)", a.removals)
            }
            Self::Approval(a) => {
                format!("this would take {} invokers away at once, and {} need no approval", a.removals, a.limit)
            }
            Self::SelectorImpact(SelectorImpact::Counting { unseen }) => {
                format!("{unseen} services that the selector matches are not read yet")
            }
            Self::SelectorImpact(SelectorImpact::Held { services, limit, .. }) => {
                format!("the selector reaches {services} services that this policy would change for the first time, and {limit} need no approval")
            }
            Self::Contested(fight) => format!(
                "{CONTESTED}: corrected {} times within an hour, next at {}",
                fight.corrections,
                fight.not_before.strftime("%H:%M:%SZ")
            ),
            Self::CircuitOpen => {
                "the circuit breaker is open: too many drift corrections across all services; it closes when that stops, or when its Lease is deleted".into()
            }
            Self::UnansweredSelectors => {
                "a policy lists it whose selector may mean this service; that is known when the project was listed".into()
            }
            Self::Stopped(why) => why.to_string(),
            Self::MemberLimit { would_be } => format!(
                "the policy would have {would_be} members and IAM accepts {MAX_MEMBERS}; use a group, or remove members"
            ),
            Self::MemoryLimit => {
                "the members and conditions of this service are more than the API server stores in one object; use a group, or fewer conditions".into()
            }
            Self::Suspect { among } => {
                format!("IAM refuses one of {among} members without naming it; they are tried one by one")
            }
            Self::Quota => "waits for its turn: writes to this project and region are limited, and others came first".into(),
            Self::HashedConditions => "IAM answered with hashed conditions, so nothing is written".into(),
        }
    }
}
