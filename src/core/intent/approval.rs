//! From a raw `InvokerApproval` to what it agrees to, and until when.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use sha2::{Digest as _, Sha256};

use super::{ApprovalKey, PolicyKey};
use crate::api::{CREATED_BY, ChangeApproval, Decision, InvokerApproval, PendingApproval};

/// How long an approval without `notAfter` may be used.
const LIFETIME: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Somebody who may approve agreed to a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    pub key: ApprovalKey,
    pub uid: Arc<str>,
    /// Name of the policy, or of the request as [`PolicyKey`] has it, in the namespace of the
    /// approval.
    pub policy: Arc<str>,
    pub decision: Decision,
    /// Hash of the plan.
    pub plan: Arc<str>,
    /// Why, in the words of whoever agreed.
    pub reason: Arc<str>,
    /// Who created it, where the cluster's admission stamps that.
    pub by: Arc<str>,
    pub created: Timestamp,
    /// `notAfter`, where it is given.
    pub not_after: Option<Timestamp>,
    /// What the plan does, as it was reviewed; empty: that was not written down.
    pub effect: Box<[Box<str>]>,
    /// Stands for the approval by what it says: the same object restored from a backup has another
    /// uid, another creation time, and this digest.
    pub digest: Arc<str>,
}

impl Agreement {
    /// Reads an approval.
    ///
    /// # Errors
    /// The field that cannot be understood, in words; then it agrees to nothing.
    pub fn from_object(object: &InvokerApproval) -> Result<Self, String> {
        let (meta, spec) = (&object.metadata, &object.spec);
        let not_after = match &spec.not_after {
            None => None,
            Some(text) => Some(
                text.parse::<Timestamp>()
                    .map_err(|e| format!("spec.notAfter {text:?} is not a timestamp: {e}"))?,
            ),
        };
        let key = ApprovalKey::of(meta);
        let policy = match (&spec.policy, &spec.request) {
            (Some(policy), None) => PolicyKey::new(key.namespace.clone(), policy.as_str()),
            (None, Some(request)) => PolicyKey::of_request(key.namespace.clone(), request),
            _ => return Err("give either spec.policy or spec.request".into()),
        };
        let denies = match spec.decision {
            Decision::Approve => "",
            Decision::Deny => "deny",
        };
        let until = spec.not_after.as_deref().unwrap_or_default();
        let parts = [
            &*key.namespace,
            &*key.name,
            &policy.name,
            &spec.plan,
            &spec.reason,
            until,
            denies,
        ];
        // What approvals of plans were used is on ledgers under the digest that they always had.
        let parts = parts
            .into_iter()
            .take(if denies.is_empty() { 6 } else { 7 });
        Ok(Self {
            digest: digest(WITHSTANDS, parts),
            key,
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            policy: policy.name,
            decision: spec.decision,
            by: meta
                .annotations
                .as_ref()
                .and_then(|a| a.get(CREATED_BY))
                .map_or("", String::as_str)
                .into(),
            plan: spec.plan.as_str().into(),
            reason: spec.reason.as_str().into(),
            created: meta
                .creation_timestamp
                .as_ref()
                .map_or(Timestamp::MIN, |t| t.0),
            not_after,
            effect: spec.effect.iter().map(|l| l.as_str().into()).collect(),
        })
    }

    /// Whether it says no.
    pub fn denies(&self) -> bool {
        self.decision == Decision::Deny
    }

    /// Whether what was reviewed is what the plan of its hash does.
    pub fn shows(&self, lines: &[String]) -> bool {
        let is_shown = || {
            self.effect
                .iter()
                .map(|l| &**l)
                .eq(lines.iter().map(String::as_str))
        };
        self.effect.is_empty() || is_shown()
    }

    /// About how many bytes it takes.
    pub fn size(&self) -> usize {
        self.effect.iter().map(|l| l.len() + 16).sum::<usize>() + self.reason.len() + 300
    }

    /// The policy whose plan it is about.
    pub fn policy(&self) -> PolicyKey {
        PolicyKey::new(self.key.namespace.clone(), self.policy.clone())
    }

    /// When it may be used no more.
    pub fn ends(&self) -> Timestamp {
        let default = || self.created.checked_add(LIFETIME).unwrap_or(Timestamp::MAX);
        self.not_after.unwrap_or_else(default)
    }

    /// As a write that it lets through has it in the ledger.
    pub fn pending(&self) -> PendingApproval {
        PendingApproval {
            record: ChangeApproval {
                namespace: self.key.namespace.to_string(),
                name: self.key.name.to_string(),
                uid: self.uid.to_string(),
                policy: self.policy.to_string(),
                plan: self.plan.to_string(),
                reason: self.reason.chars().take(512).collect(),
                by: self.by.chars().take(512).collect(),
            },
            approval: self.digest.to_string(),
            not_after: self.not_after.map(MicroTime),
        }
    }
}

/// The approval among these that says no to a plan. One whose time is over is not kept.
pub fn denial_of<'a>(all: &'a [Arc<Agreement>], plan: &str) -> Option<&'a Arc<Agreement>> {
    all.iter().find(|a| a.denies() && *a.plan == *plan)
}

/// Bytes of a hash that has to withstand a search for two plans with one hash: tenants choose what
/// goes in.
pub const WITHSTANDS: usize = 20;

/// The first `bytes` (at most 32) of a hash over `parts`, in hexadecimal digits; each part is closed
/// by a zero byte, so that none can run into the next.
pub fn digest<'a>(bytes: usize, parts: impl IntoIterator<Item = &'a str>) -> Arc<str> {
    use std::fmt::Write as _;
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    let mut text = String::with_capacity(2 * bytes);
    for byte in hasher.finalize().iter().take(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(uid: &str, spec: Value) -> Result<Agreement, String> {
        let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerApproval",
            "metadata": {"namespace": "n", "name": "a", "uid": uid, "creationTimestamp": "2026-11-26T12:00:00Z"},
            "spec": spec});
        Agreement::from_object(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn an_approval_restored_from_a_backup_is_the_same_one() {
        let spec = json!({"policy": "p", "plan": "a".repeat(40), "reason": "CHG-1"});
        let (old, new) = (read("1", spec.clone()).unwrap(), read("2", spec).unwrap());
        assert!(old.digest == new.digest && old.uid != new.uid);
        let other = json!({"policy": "p", "plan": "a".repeat(40), "reason": "CHG-2"});
        assert_ne!(read("1", other).unwrap().digest, old.digest);
    }

    #[test]
    fn it_ends_when_it_says_or_after_a_week() {
        let mut spec = json!({"policy": "p", "plan": "a".repeat(40), "reason": "CHG-1"});
        let week = read("1", spec.clone()).unwrap().ends();
        assert_eq!(week.to_string(), "2026-12-03T12:00:00Z");
        spec["notAfter"] = json!("2026-11-27T00:00:00+02:00");
        let said = read("1", spec.clone()).unwrap().ends();
        assert_eq!(said.to_string(), "2026-11-26T22:00:00Z");
        spec["notAfter"] = json!("2026-02-30T00:00:00Z");
        assert!(read("1", spec).unwrap_err().contains("spec.notAfter"));
    }
}
