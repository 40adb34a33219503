//! How a record that was left open ends: what the live policy proves about a write whose answer never came.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{MAY_ARRIVE, text::bounded_list};
use crate::{
    api::{ChangeOutcome, ChangePhase},
    iam::{Grant, Policy, UNTOUCHED},
    ledger::Pending,
};

/// What is known of the end of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// IAM took it.
    Accepted,
    /// IAM refused it, or it was never sent.
    Refused,
    /// Nobody saw: reality decides.
    Unknown,
    /// Nobody saw, and reality cannot tell.
    Untold,
}

/// What became of a write. `live: None`: the service is gone.
pub fn settle(
    pending: &Pending,
    ending: Ending,
    live: Option<&Policy>,
    at: Timestamp,
) -> ChangeOutcome {
    let closed = |phase, message: &str| closed(phase, message, live, at);
    let Some(live) = live else {
        let (phase, message) = match ending {
            Ending::Accepted => (ChangePhase::Applied, "the service is gone"),
            Ending::Refused => (ChangePhase::NotApplied, "the service is gone"),
            Ending::Unknown | Ending::Untold => (
                ChangePhase::Unknown,
                "the service was gone before anybody saw whether it was made",
            ),
        };
        return closed(phase, message);
    };
    let (real, etag) = (live.grants(), &live.etag);
    let is_unchanged = etag.0 == pending.etag_before;
    // Nobody has ever written this policy: the service was made again, and what was written is gone
    // with the one before.
    let is_another = etag.is_untouched() && !is_unchanged;
    let done = pending.added.iter().filter(|g| real.contains(g)).count()
        + pending.removed.iter().filter(|g| !real.contains(g)).count();
    let all = pending.added.len() + pending.removed.len();
    match ending {
        Ending::Refused => closed(ChangePhase::NotApplied, ""),
        Ending::Unknown if is_unchanged && !etag.is_untouched() => {
            closed(ChangePhase::NotApplied, "")
        }
        Ending::Accepted if done == all => closed(ChangePhase::Applied, ""),
        Ending::Unknown if done == all && !is_another && !is_unchanged => {
            closed(ChangePhase::Applied, "")
        }
        Ending::Accepted => {
            let message = format!(
                "{done} of {all} changes are in effect: another writer changed the policy at the same time"
            );
            closed(ChangePhase::Applied, &message)
        }
        Ending::Unknown if !is_unchanged => {
            // Made and partly undone, or never made and partly done by somebody else.
            let message = format!(
                "another writer changed the policy before the result was known; {done} of {all} changes are in effect"
            );
            closed(ChangePhase::Unknown, &message)
        }
        Ending::Unknown | Ending::Untold => closed(
            ChangePhase::Unknown,
            "the result is unknown: the service was deleted and recreated since",
        ),
    }
}

pub(super) fn closed(
    phase: ChangePhase,
    message: &str,
    live: Option<&Policy>,
    at: Timestamp,
) -> ChangeOutcome {
    let after = live.map(Policy::grants).unwrap_or_default();
    ChangeOutcome {
        phase,
        message: message.into(),
        after: bounded_list(&after).0,
        etag_after: live.map_or_else(String::new, |l| l.etag.0.clone()),
        closed_at: Some(MicroTime(at)),
    }
}

/// What became of the writes that were open on a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settled {
    pub closed: Vec<(Pending, ChangeOutcome)>,
    /// Sent, without an answer, from the state that is real now: they may still arrive.
    pub open: Vec<Pending>,
}

/// Settles every open write of a service. `endings` are those that were seen, by the name of the
/// write.
///
/// An etag is one version of an IAM policy: of several writes that were planned from one version
/// IAM takes one at most, and none once another version is real. That of a policy that nobody has
/// ever written is no version: a service that is deleted and made again starts with it again, and
/// what was written to the one before is gone without a trace.
pub fn settle_all(
    pending: &[Pending],
    endings: &BTreeMap<String, Ending>,
    live: Option<&Policy>,
    at: Timestamp,
) -> Settled {
    let ending = |p: &Pending| endings.get(&p.name).copied().unwrap_or(Ending::Unknown);
    let taken: BTreeSet<&str> = pending
        .iter()
        .filter(|p| ending(p) == Ending::Accepted)
        .map(|p| p.etag_before.as_str())
        .collect();
    let unseen =
        |p: &&Pending| ending(p) == Ending::Unknown && !taken.contains(p.etag_before.as_str());
    // Of several that could be the one: that which explains most of what is real.
    let mut likely: BTreeMap<&str, &Pending> = BTreeMap::new();
    for p in live.into_iter().flat_map(|_| pending.iter().filter(unseen)) {
        let best = likely.entry(&p.etag_before).or_insert(p);
        if live.is_some_and(|l| explains(p, l) >= explains(best, l)) {
            *best = p;
        }
    }
    let mut settled = Settled::default();
    for p in pending {
        let waits = live.is_some_and(|l| unseen(&p) && l.etag.0 == p.etag_before)
            && at.duration_since(p.at) < MAY_ARRIVE;
        if waits {
            settled.open.push(p.clone());
            continue;
        }
        let is_likely = likely
            .get(p.etag_before.as_str())
            .is_some_and(|l| l.name == p.name);
        let is_refuted = taken.contains(p.etag_before.as_str()) || (live.is_some() && !is_likely);
        let known = match ending(p) {
            Ending::Unknown if is_refuted && p.etag_before == UNTOUCHED => Ending::Untold,
            Ending::Unknown if is_refuted => Ending::Refused,
            known => known,
        };
        settled.closed.push((p.clone(), settle(p, known, live, at)));
    }
    settled
}

/// How well a write explains what is real: exactly, and by how many of its changes.
fn explains(pending: &Pending, live: &Policy) -> (bool, usize) {
    let real = live.grants();
    let mut expected: BTreeSet<Grant> = pending
        .before
        .difference(&pending.removed)
        .cloned()
        .collect();
    expected.extend(pending.added.iter().cloned());
    let done =
        pending.added.intersection(&real).count() + pending.removed.difference(&real).count();
    (pending.before_omitted == 0 && expected == real, done)
}
