//! The approvals that a merge would need, as a file that is reviewed and merged with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{approve::approval, files, world::ClusterSnapshot};
use crate::{
    api::{ApprovalState, InvokerApproval},
    intent::{Agreement, ApprovalKey},
    render::plan::{NeededApproval, PlanDocument},
};

/// An approval of an earlier run is kept while it can be used for so long.
const LEFT: SignedDuration = SignedDuration::from_hours(24);

const HEAD: &str = "# Written by kubectl invoker plan --approvals. Merging it approves exactly these plans, once.\n";

/// What the file is to hold.
pub struct Review<'a> {
    pub file: &'a Path,
    /// Why, for approvals that are new.
    pub reason: &'a str,
    /// Namespace of documents that name none.
    pub namespace: &'a str,
}

/// Writes the approvals that the plans of a document need. Those that the file has already, and
/// that can still be used, stay as they are. Returns how many there are.
///
/// # Errors
/// When the file cannot be read or written.
pub fn write(
    review: &Review<'_>,
    world: &ClusterSnapshot,
    document: &PlanDocument,
) -> anyhow::Result<usize> {
    let before = earlier(review, world)?;
    let needed = needed(document);
    let mut text = HEAD.to_owned();
    for need in &needed {
        let known = before.get(&(need.policy.clone(), need.plan.clone()));
        let object = known
            .cloned()
            .unwrap_or_else(|| new(need, review.reason, world.now));
        let mut value = serde_json::to_value(&object)?;
        if let Some(map) = value.as_object_mut() {
            map.remove("status");
        }
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&value)?);
    }
    let about = || format!("{} cannot be written", review.file.display());
    fs::write(review.file, text).with_context(about)?;
    Ok(needed.len())
}

fn new(need: &NeededApproval, reason: &str, now: Timestamp) -> InvokerApproval {
    let (namespace, name) = need.policy.split_once('/').unwrap_or(("", &need.policy));
    let mut object = approval(name, &need.plan, reason, now);
    object.metadata.namespace = Some(namespace.to_owned());
    object.spec.effect = need.effect.clone();
    object
}

/// The approvals of an earlier run that can still be used, by policy and plan.
fn earlier(
    review: &Review<'_>,
    world: &ClusterSnapshot,
) -> anyhow::Result<BTreeMap<(String, String), InvokerApproval>> {
    if !review.file.exists() {
        return Ok(BTreeMap::new());
    }
    let loaded = files::load(&[PathBuf::from(review.file)], review.namespace)?;
    let fresh = |approval: &InvokerApproval| {
        let mut dated = approval.clone();
        dated.metadata.creation_timestamp = Some(Time(world.now));
        let agreement = Agreement::from_object(&dated).ok()?;
        let in_cluster = world.approvals.get(&ApprovalKey::of(&approval.metadata));
        let state = in_cluster.and_then(|a| a.status.as_ref()?.state);
        let soon = world.now.checked_add(LEFT).ok()?;
        let works = world.index.approval_status_of(&agreement, soon).state;
        let is_over = [state, works]
            .iter()
            .flatten()
            .any(|s| s.is_final() || *s == ApprovalState::Refused);
        let policy = agreement.policy().to_string();
        (!is_over).then(|| ((policy, agreement.plan.to_string()), approval.clone()))
    };
    Ok(loaded.approvals.iter().filter_map(fresh).collect())
}

/// One approval for each part of what is held: where several policies are shown the same part, one
/// of them is enough.
fn needed(document: &PlanDocument) -> Vec<NeededApproval> {
    let mut chosen: BTreeMap<(String, String), NeededApproval> = BTreeMap::new();
    for service in &document.services {
        let mut covered: BTreeSet<&String> = BTreeSet::new();
        for need in &service.approvals {
            let taken: Vec<&String> = need.revoked().collect();
            if !taken.is_empty() && taken.iter().all(|l| covered.contains(*l)) {
                continue;
            }
            covered.extend(taken);
            chosen.insert((need.policy.clone(), need.plan.clone()), need.clone());
        }
    }
    chosen.into_values().collect()
}
