//! The rules of kstatus as a check, so that `kubectl wait`, Argo CD and Flux read our conditions as
//! they are meant.
//!
//! Source: <https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md>.

use crate::api::{ConditionType, InvokerPolicyStatus, Reason};

/// Checks a status of an object at `generation`.
///
/// # Errors
/// Every rule that is broken, in words.
pub fn check(status: &InvokerPolicyStatus, generation: i64) -> Result<(), Vec<String>> {
    let mut broken = Vec::new();
    let get = |t: ConditionType| status.conditions.iter().find(|c| c.type_ == t.as_str());
    let mut seen = std::collections::BTreeSet::new();
    for c in &status.conditions {
        if !seen.insert(&c.type_) {
            broken.push(format!("condition {} twice", c.type_));
        }
        if !ConditionType::ALL.iter().any(|t| t.as_str() == c.type_) {
            broken.push(format!("unknown condition {}", c.type_));
        }
        if !Reason::ALL.iter().any(|r| r.as_str() == c.reason) {
            broken.push(format!("{}: unknown reason {}", c.type_, c.reason));
        }
        if c.message.is_empty() {
            broken.push(format!("{}: no message", c.type_));
        }
        if c.observed_generation > generation {
            broken.push(format!("{}: observedGeneration from the future", c.type_));
        }
    }
    match get(ConditionType::Ready) {
        None => broken.push("no Ready condition".into()),
        Some(ready) => {
            let reconciling = get(ConditionType::Reconciling);
            let stalled = get(ConditionType::Stalled);
            for abnormal in [reconciling, stalled].into_iter().flatten() {
                if abnormal.status != "True" {
                    broken.push(format!(
                        "{} is present and {}",
                        abnormal.type_, abnormal.status
                    ));
                }
                if ready.status == "True" {
                    broken.push(format!("Ready and {} at once", abnormal.type_));
                }
            }
            if reconciling.is_some() && stalled.is_some() {
                broken.push("Reconciling and Stalled at once".into());
            }
            if ready.status == "False" && reconciling.is_none() && stalled.is_none() {
                broken.push("Ready is False, but neither Reconciling nor Stalled says why".into());
            }
        }
    }
    if broken.is_empty() {
        Ok(())
    } else {
        Err(broken)
    }
}
