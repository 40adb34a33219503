//! Everything that can go wrong outside, as one type, and the one table that says what follows from
//! it.
//!
//! Each edge turns its foreign error into a [`Fault`] in one function; nobody else looks at a
//! status code. Pure: no client, clock, log or metric.

use std::{fmt, time::Duration};

use crate::api::Reason;

/// What kind of failure this is. A row of the table: see [`FaultClass::row`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultClass {
    /// The policy changed between read and write.
    Conflict,
    /// A member that IAM does not know or does not accept.
    InvalidMember,
    /// An organization policy forbids the change.
    OrganizationPolicy,
    /// The operator lacks a permission (or, on Cloud Run, the service does not exist and the
    /// operator may not know).
    PermissionDenied,
    ServiceNotFound,
    ProjectNotFound,
    ApiDisabled,
    QuotaExceeded,
    /// Server errors, resets and refused connections.
    Unavailable,
    /// No answer within the time allowed.
    Timeout,
    /// The operator's own credentials could not be obtained.
    Credentials,
    /// The policy came back in the view that hides conditions; nothing may be written.
    HashedConditions,
    /// The project that pays for the calls (the quota project, or that of the credentials) may not:
    /// its API or its billing is off, it is suspended, or there is none. The operator's trouble,
    /// and nothing about the target.
    ConsumerUnavailable,
    /// VPC Service Controls stand in between.
    PerimeterDenied,
    /// An answer that somebody else than Cloud Run gave: a proxy, or a wrong endpoint.
    ForeignAnswer,
    /// The operator's own memory of the service cannot be read.
    UnreadableLedger,
    /// Another replica may be at work; nothing was sent.
    LeaseLost,
    /// The Kubernetes API refused or failed.
    Kubernetes,
    /// An answer that no rule covers.
    Unexpected,
}

/// How work that failed is taken up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Read again at once and plan anew.
    Now,
    /// Soon, with exponential back-off and jitter: it will probably pass by itself.
    Backoff,
    /// Rarely: a person has to do something first.
    Slow,
}

/// What follows from a [`FaultClass`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub reason: Reason,
    pub retry: Retry,
    /// Label of `run_invoker_reconcile_total{result}`.
    pub label: &'static str,
    /// What a person should do; shown behind Google's own message.
    pub hint: &'static str,
    /// Nothing is left to revoke on: a deletion need not wait for it.
    pub gone: bool,
}

impl FaultClass {
    /// The table of product.md §4.
    pub fn row(self) -> Row {
        use FaultClass as C;
        let (reason, retry, label, gone, hint) = match self {
            C::Conflict => (
                Reason::Conflict,
                Retry::Now,
                "conflict",
                false,
                "another writer changed the policy; it is read again",
            ),
            C::InvalidMember => (
                Reason::InvalidMember,
                Retry::Slow,
                "invalid_member",
                false,
                "check that the member exists and is spelled as IAM shows it",
            ),
            C::OrganizationPolicy => (
                Reason::OrganizationPolicy,
                Retry::Slow,
                "organization_policy",
                false,
                "a constraint of the organization forbids this grant; use a principal that it permits, or ask who administers it for an exception",
            ),
            C::PermissionDenied => (
                Reason::PermissionDenied,
                Retry::Slow,
                "permission_denied",
                false,
                "grant the operator the permission that the message names; for a service that does not exist Cloud Run answers the same",
            ),
            C::ServiceNotFound => (
                Reason::ServiceNotFound,
                Retry::Slow,
                "service_not_found",
                true,
                "deploy the service, or correct its name and region",
            ),
            C::ProjectNotFound => (
                Reason::ProjectNotFound,
                Retry::Slow,
                "project_not_found",
                true,
                "correct spec.project",
            ),
            C::ApiDisabled => (
                Reason::ApiDisabled,
                Retry::Slow,
                "api_disabled",
                true,
                "enable run.googleapis.com in the project",
            ),
            C::ConsumerUnavailable => (
                Reason::ConsumerUnavailable,
                Retry::Slow,
                "consumer_unavailable",
                false,
                "the project that pays for the operator's calls (--quota-project, or that of its credentials) has to have run.googleapis.com and billing on",
            ),
            C::PerimeterDenied => (
                Reason::PerimeterDenied,
                Retry::Slow,
                "perimeter_denied",
                false,
                "let the operator's service account into the VPC Service Controls perimeter; the identifier finds the denial in the audit log",
            ),
            C::ForeignAnswer => (
                Reason::Unavailable,
                Retry::Backoff,
                "foreign_answer",
                false,
                "check --cloud-run-endpoint and any proxy in between; nothing is taken for gone because of it",
            ),
            C::UnreadableLedger => (
                Reason::Unavailable,
                Retry::Slow,
                "unreadable_ledger",
                false,
                "repair the InvokerLedger, or delete it to forget what was granted on this service",
            ),
            C::LeaseLost => (
                Reason::Unavailable,
                Retry::Backoff,
                "lease_lost",
                false,
                "whoever holds the Lease goes on",
            ),
            C::QuotaExceeded => (
                Reason::QuotaExceeded,
                Retry::Backoff,
                "quota_exceeded",
                false,
                "the operator slows down by itself; raise the Cloud Run Admin API quota if this stays",
            ),
            C::Unavailable => (
                Reason::Unavailable,
                Retry::Backoff,
                "unavailable",
                false,
                "it is tried again by itself",
            ),
            C::Timeout => (
                Reason::Unavailable,
                Retry::Backoff,
                "timeout",
                false,
                "it is tried again by itself",
            ),
            C::Credentials => (
                Reason::Unavailable,
                Retry::Backoff,
                "credentials",
                false,
                "check the operator's Application Default Credentials or Workload Identity binding",
            ),
            C::HashedConditions => (
                Reason::Unavailable,
                Retry::Slow,
                "hashed_conditions",
                false,
                "IAM answered with hashed conditions; nothing is written, or the conditions would be lost",
            ),
            C::Kubernetes => (
                Reason::Unavailable,
                Retry::Backoff,
                "kubernetes",
                false,
                "it is tried again by itself",
            ),
            C::Unexpected => (
                Reason::Unavailable,
                Retry::Backoff,
                "unexpected",
                false,
                "please report this answer with its request id",
            ),
        };
        Row {
            reason,
            retry,
            label,
            hint,
            gone,
        }
    }

    /// Whether a call that ended like this certainly did nothing. After any other the write may
    /// have been made, or may yet be: reality decides.
    pub fn did_nothing(self) -> bool {
        use FaultClass as C;
        match self {
            C::Conflict
            | C::InvalidMember
            | C::OrganizationPolicy
            | C::PermissionDenied
            | C::ServiceNotFound
            | C::ProjectNotFound
            | C::ApiDisabled
            | C::QuotaExceeded
            | C::Credentials
            | C::HashedConditions
            | C::ConsumerUnavailable
            | C::PerimeterDenied
            | C::UnreadableLedger
            | C::LeaseLost => true,
            C::Unavailable | C::Timeout | C::ForeignAnswer | C::Kubernetes | C::Unexpected => false,
        }
    }

    /// Every class, for tables in docs and tests.
    pub const ALL: [Self; 19] = [
        Self::Conflict,
        Self::InvalidMember,
        Self::OrganizationPolicy,
        Self::PermissionDenied,
        Self::ServiceNotFound,
        Self::ProjectNotFound,
        Self::ApiDisabled,
        Self::QuotaExceeded,
        Self::Unavailable,
        Self::Timeout,
        Self::Credentials,
        Self::HashedConditions,
        Self::ConsumerUnavailable,
        Self::PerimeterDenied,
        Self::ForeignAnswer,
        Self::UnreadableLedger,
        Self::LeaseLost,
        Self::Kubernetes,
        Self::Unexpected,
    ];
}

/// A failure of something outside, classified once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Fault {
    pub class: FaultClass,
    /// The other side's own words.
    pub message: String,
    /// Google's id of the request, for a support case.
    pub request_id: Option<String>,
    /// How long the other side asked to wait.
    pub retry_after: Option<Duration>,
    /// The member that the other side named as the culprit.
    pub member: Option<String>,
    /// Calls a minute that the other side says it allows.
    pub quota_limit: Option<u32>,
}

/// Before the identifier of a denial by VPC Service Controls.
pub const DENIAL: &str = "vpcServiceControlsUniqueIdentifier: ";

/// The identifier that a text gives a denial by a perimeter.
fn denial_in(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once(DENIAL)?;
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
    Some(&rest[..end]).filter(|id| !id.is_empty())
}

/// The most of a message that is kept: it ends up in statuses and events.
const MAX_MESSAGE: usize = 2048;

impl Fault {
    pub fn new(class: FaultClass, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        if message.len() > MAX_MESSAGE {
            message.truncate(message.floor_char_boundary(MAX_MESSAGE));
            message.push('…');
        }
        Self {
            class,
            message,
            request_id: None,
            retry_after: None,
            member: None,
            quota_limit: None,
        }
    }

    /// Whether it says the same as another one, which may have been told before: only the request
    /// is another, and the denial.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.class == other.class && self.message_of_any() == other.message_of_any()
    }

    /// The message of any denial like this one.
    fn message_of_any(&self) -> String {
        match denial_in(&self.message) {
            Some(id) => self.message.replace(id, ""),
            None => self.message.clone(),
        }
    }

    /// The same fault at the request that a text of [`Self::advice`] was about, if it says the
    /// same.
    pub fn told_in(&self, advice: &str) -> Option<Self> {
        let mut told = self.clone();
        if let Some((_, rest)) = advice.split_once("(request ") {
            told.request_id = rest.split_once(')').map(|(id, _)| id.to_owned());
        }
        if let Some(id) = denial_in(&self.message) {
            told.message = self.message.replace(id, denial_in(advice)?);
        }
        (told.advice() == advice).then_some(told)
    }

    /// Google's message, its request id, and what whoever runs the operator should do.
    pub fn advice(&self) -> String {
        self.advice_with(self.class.row().hint)
    }

    /// The same for somebody else, who has something else to do.
    pub fn advice_with(&self, hint: &str) -> String {
        let id = self
            .request_id
            .as_ref()
            .map(|id| format!(" (request {id})"))
            .unwrap_or_default();
        format!("{}{id}: {hint}", self.message.trim_end_matches('.'))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class.row().label, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_class_has_its_own_label() {
        let labels: BTreeSet<_> = FaultClass::ALL.iter().map(|c| c.row().label).collect();
        assert_eq!(labels.len(), FaultClass::ALL.len());
    }

    /// A perimeter gives each denial an identifier: a status that repeats itself keeps the first.
    #[test]
    fn another_denial_by_the_same_perimeter_is_no_news() {
        let denied = |id: &str| {
            let message = format!("Request is prohibited. {DENIAL}{id} (https://x;uniqueId={id})");
            Fault {
                request_id: Some(format!("req-{id}")),
                ..Fault::new(FaultClass::PerimeterDenied, message)
            }
        };
        let (first, second) = (denied("aB-1"), denied("cD_2"));
        assert!(first.says_the_same(&second));
        assert_eq!(second.told_in(&first.advice()), Some(first));
        assert_eq!(second.told_in("something else"), None);
        let other = Fault::new(FaultClass::PerimeterDenied, "another text");
        assert!(!other.says_the_same(&second));
    }

    #[test]
    fn only_what_is_gone_releases_a_deletion() {
        let gone: Vec<_> = FaultClass::ALL
            .into_iter()
            .filter(|c| c.row().gone)
            .collect();
        assert_eq!(
            gone,
            [
                FaultClass::ServiceNotFound,
                FaultClass::ProjectNotFound,
                FaultClass::ApiDisabled
            ]
        );
    }
}
