//! Where a request stands, and the status that says so.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

use super::Entry;
use crate::{
    api::{ConditionType, InvokerAccessRequestStatus, RequestPhase, StatusCondition},
    index::{Index, PolicyKey},
    intent::{AccessRequest, Agreement, Consent, Terms},
    status::{on_one_line, whole_seconds},
};

/// Where a request stands, and since when and by whom.
#[derive(Clone, Debug)]
struct Standing {
    phase: RequestPhase,
    message: String,
    approval: Option<String>,
    approved_at: Option<MicroTime>,
    until: Option<Time>,
    /// What was given stays although it is to be taken back: until when, and why.
    remains: Option<String>,
}

impl Standing {
    /// Where it stands in words, and what stays.
    fn words(&self) -> String {
        let parts = [&*self.message].into_iter().chain(self.remains.as_deref());
        let words = parts.collect::<Vec<_>>().join("; ");
        words.chars().take(1024).collect()
    }
}

impl Index {
    /// The status that a request should have now, if it is another one than it has.
    pub fn request_status(
        &self,
        key: &PolicyKey,
        propagation: Duration,
        now: Timestamp,
    ) -> Option<InvokerAccessRequestStatus> {
        let Entry { request, stored } = self.requests.by_key.get(key)?;
        let mut standing = self.standing(request, stored, propagation, now);
        if standing.phase.takes_back() {
            standing.remains = self.remains(request, stored, now);
        }
        let record = self.policies.get(key);
        let last_change = record.and_then(|r| r.last_change()).map(str::to_owned);
        let status = InvokerAccessRequestStatus {
            phase: Some(standing.phase),
            message: Some(standing.words()),
            plan: Some(request.plan.to_string()),
            conditions: conditions(&standing, stored, now),
            approved_at: standing.approved_at,
            until: standing.until,
            approval: standing.approval,
            last_change: last_change.or_else(|| stored.last_change.clone()),
        };
        (status != *stored).then_some(status)
    }

    /// When the standing of a request changes by itself.
    pub fn request_changes_at(&self, key: &PolicyKey, now: Timestamp) -> Option<Timestamp> {
        let Entry { request, stored } = self.requests.by_key.get(key)?;
        let ends = stored
            .until
            .as_ref()
            .map_or_else(|| request.waits_until(), |t| t.0);
        let approvals = self.approvals.of(key).iter().map(|a| a.ends());
        approvals.chain([ends]).filter(|at| *at > now).min()
    }

    fn standing(
        &self,
        request: &AccessRequest,
        stored: &InvokerAccessRequestStatus,
        propagation: Duration,
        now: Timestamp,
    ) -> Standing {
        let as_it_was = |phase, message| Standing {
            phase,
            message,
            approval: stored.approval.clone(),
            approved_at: stored.approved_at.clone(),
            until: stored.until.clone(),
            remains: None,
        };
        if let Some(phase) = stored.phase.filter(|p| p.is_final()) {
            return as_it_was(phase, how_it_ended(stored));
        }
        if request.is_deleting() {
            let message = "the request was deleted, and with it what it was given";
            return as_it_was(RequestPhase::Ended, message.into());
        }
        let said = self.said_of(request, now);
        if let Some(no) = said.iter().find(|a| a.denies()) {
            let message = format!("denied by {}: {}", no.key.name, on_one_line(&no.reason));
            return Standing {
                approval: Some(no.key.name.to_string()),
                ..as_it_was(RequestPhase::Denied, message)
            };
        }
        let until = stored.until.as_ref().map(|t| t.0);
        if let Some(end) = until.filter(|end| *end <= now) {
            let message = format!("access ended at {end}, as it was requested");
            return as_it_was(RequestPhase::Ended, message);
        }
        let terms = self.guardrails.terms_of(&request.key.namespace);
        if let (Some(refusal), Some(_)) = (terms.frozen_requests(), until) {
            // What was granted holds on as it was: nobody knows what the guardrail forbids.
            let phase = stored.phase.unwrap_or(RequestPhase::Approved);
            return as_it_was(phase, refusal.message);
        }
        if until.is_none()
            && self
                .settings
                .protects(&request.declared(request.end(now)).grant)
        {
            let message = format!(
                "{} is a protected member (--protected-member of the operator): what it is granted is never revoked, so nobody can request it for a time; list it in an InvokerPolicy",
                request.principal
            );
            return as_it_was(RequestPhase::Refused, message);
        }
        let consent = match may_be_granted(&terms, request, until, now) {
            Ok(consent) => consent,
            Err(why) => return as_it_was(RequestPhase::Refused, why),
        };
        if let Some(end) = until {
            let (phase, message) = self.granted(request, stored, end, propagation, now);
            return as_it_was(phase, message);
        }
        if request.waits_until() <= now {
            let message = "nobody approved it within seven days; create another under another name";
            return as_it_was(RequestPhase::Ended, message.into());
        }
        let by = match (&consent, said.first()) {
            (_, Some(approval)) => approval.key.name.to_string(),
            (Consent::Guardrail(name), None) if self.approvals.are_listed() => {
                format!("guardrail {name}")
            }
            _ => {
                let message = format!(
                    "waits for approval: ask somebody who may create InvokerApprovals in namespace {0} to run: kubectl invoker approve {1} --request -n {0} --reason WHY",
                    request.key.namespace,
                    request.name()
                );
                return as_it_was(RequestPhase::Pending, message);
            }
        };
        let end = request.end(now);
        Standing {
            phase: RequestPhase::Approved,
            message: format!("approved by {by}; access until {end} is being granted"),
            approval: Some(by),
            approved_at: Some(MicroTime(crate::history::whole_microseconds(now))),
            until: Some(Time(end)),
            remains: None,
        }
    }

    /// Until when what a request was given stays although it is to be taken back, and why.
    fn remains(
        &self,
        request: &AccessRequest,
        stored: &InvokerAccessRequestStatus,
        now: Timestamp,
    ) -> Option<String> {
        let end = stored.until.as_ref().map(|t| t.0).filter(|e| *e > now)?;
        let grant = request.declared(end).grant;
        let stays =
            self.settings.protects(&grant) && self.ledgers.has_line(request.project(), &grant);
        stays.then(|| {
            format!(
                "{} may still invoke until {end}: it became a protected member (--protected-member of the operator), whose access is never revoked",
                request.principal
            )
        })
    }

    /// What approvers said of a request, a no first.
    fn said_of(&self, request: &AccessRequest, now: Timestamp) -> Vec<&Arc<Agreement>> {
        let all = self.approvals.of(&request.key).iter();
        let fits = |a: &&Arc<Agreement>| {
            let shows = a.shows(&request.lines());
            a.plan == request.plan && a.ends() > now && (shows || a.denies())
        };
        let mut said: Vec<_> = all.filter(fits).collect();
        said.sort_by_key(|a| !a.denies());
        said
    }

    /// How far a request is that was approved.
    fn granted(
        &self,
        request: &AccessRequest,
        stored: &InvokerAccessRequestStatus,
        end: Timestamp,
        propagation: Duration,
        now: Timestamp,
    ) -> (RequestPhase, String) {
        let by = stored.approval.as_deref().unwrap_or_default();
        let status = self.status_of(&request.key, propagation, now);
        let conditions = status.as_ref().map_or(&[][..], |s| &s.conditions);
        let find = |type_: ConditionType| conditions.iter().find(|c| c.type_ == type_.as_str());
        let ready = find(ConditionType::Ready);
        // With nothing to reach there is no access, however ready a policy would be.
        let reaches = status.as_ref().and_then(|s| s.summary.as_ref());
        let reaches = reaches.is_some_and(|s| s.services > 0);
        let is_ready = reaches && ready.is_some_and(|c| c.status == "True");
        let was_active = stored.phase == Some(RequestPhase::Active);
        let why = ready
            .filter(|c| c.status != "True" || !reaches)
            .map(|c| c.message.as_str());
        if !is_ready && !was_active {
            let why = why.unwrap_or("waiting for the first reconcile");
            let message = format!("approved by {by}; access until {end} is being granted: {why}");
            return (RequestPhase::Approved, message);
        }
        let mut message = format!(
            "approved by {by}; {} may invoke until {end}",
            request.principal
        );
        if let Some(why) = why {
            message.push_str(&format!("; now: {why}"));
        } else if find(ConditionType::Propagated).is_some_and(|c| c.status == "False") {
            message.push_str("; IAM takes some minutes to apply it everywhere");
        }
        (RequestPhase::Active, message)
    }
}

/// Who has to agree to a request, or why no guardrail lets it be granted. `until`: it was.
fn may_be_granted(
    terms: &Terms,
    request: &AccessRequest,
    until: Option<Timestamp>,
    now: Timestamp,
) -> Result<Consent, String> {
    let consent = terms.consent(request).map_err(|r| r.message)?;
    let declared = request.declared(until.unwrap_or_else(|| request.end(now)));
    let refusal = terms
        .refuse_project(request.project())
        .or_else(|| request.named().find_map(|s| terms.refuse_service(&s)))
        .or_else(|| terms.refuse_grant(&declared, now));
    refusal.map_or(Ok(consent), |r| Err(r.message))
}

/// Why a request is over, as its status says. What stays is said beside it.
fn how_it_ended(stored: &InvokerAccessRequestStatus) -> String {
    let mut conditions = stored.conditions.iter();
    let approved = conditions.find(|c| c.type_ == APPROVED);
    let message = approved.map(|c| &c.message).or(stored.message.as_ref());
    message.cloned().unwrap_or_default()
}

/// The condition that says whether somebody agreed.
const APPROVED: &str = "Approved";

/// Approved and Active, with the times at which they changed.
fn conditions(
    standing: &Standing,
    stored: &InvokerAccessRequestStatus,
    now: Timestamp,
) -> Vec<StatusCondition> {
    let phase = standing.phase;
    let approved = match phase {
        RequestPhase::Approved | RequestPhase::Active => "True",
        RequestPhase::Pending => "Unknown",
        RequestPhase::Ended if standing.until.is_some() => "True",
        _ => "False",
    };
    let active = if phase == RequestPhase::Active {
        "True"
    } else {
        "False"
    };
    let condition = |type_: &str, status: &str, message: String| {
        let mut known = stored.conditions.iter();
        let known = known.find(|c| c.type_ == type_ && c.status == status);
        StatusCondition {
            type_: type_.into(),
            status: status.into(),
            reason: phase.as_str().into(),
            message,
            last_transition_time: known.map_or_else(
                || Time(whole_seconds(now)),
                |c| c.last_transition_time.clone(),
            ),
            observed_generation: 1,
        }
    };
    let why = standing.message.chars().take(1024).collect();
    vec![
        condition(APPROVED, approved, why),
        condition("Active", active, standing.words()),
    ]
}
