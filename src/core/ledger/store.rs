//! The ledger of a service as an object in the store, and back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{Corrected, Ledger, MAX_BYTES, Pending, Version};
use crate::{
    api::{
        APPROVE, ConditionSpec, InvokerLedger, InvokerLedgerSpec, LedgerCorrection, LedgerGrant,
        LedgerMember, LedgerOwner, PendingChange,
    },
    iam::{Condition, Grant, Principal, Role, RunService},
    intent::PolicyId,
};

fn condition_of(spec: &ConditionSpec) -> Arc<Condition> {
    Arc::new(spec.into())
}

/// Makes places in tables for what repeats.
#[derive(Default)]
struct Tables {
    policies: Vec<LedgerOwner>,
    conditions: Vec<ConditionSpec>,
    policy_places: BTreeMap<PolicyId, u32>,
    condition_places: BTreeMap<Condition, u32>,
}

impl Tables {
    fn policy(&mut self, id: &PolicyId) -> u32 {
        let next = self.policies.len() as u32;
        let place = *self.policy_places.entry(id.clone()).or_insert(next);
        if place == next {
            self.policies.push(LedgerOwner {
                namespace: id.namespace.to_string(),
                name: id.name.to_string(),
                uid: id.uid.to_string(),
            });
        }
        place
    }

    fn condition(&mut self, grant: &Grant) -> Option<u32> {
        let condition = grant.condition.as_deref()?;
        let next = self.conditions.len() as u32;
        let place = *self
            .condition_places
            .entry(condition.clone())
            .or_insert(next);
        if place == next {
            self.conditions.push(condition.into());
        }
        Some(place)
    }

    fn member(&mut self, grant: &Grant) -> LedgerMember {
        LedgerMember {
            role: grant.role.as_str().into(),
            member: grant.principal.as_str().into(),
            condition_index: self.condition(grant),
        }
    }

    fn members<'a>(&mut self, grants: impl IntoIterator<Item = &'a Grant>) -> Vec<LedgerMember> {
        grants.into_iter().map(|g| self.member(g)).collect()
    }
}

/// About how many bytes a grant takes in a list of a ledger, its condition left out.
fn bytes(grant: &Grant) -> usize {
    grant.principal.as_str().len() + 80
}

/// A ledger as an object. `known` is the version that it was planned from.
pub fn to_object(service: &RunService, ledger: &Ledger, known: Option<&Version>) -> InvokerLedger {
    let mut object = InvokerLedger::new(&name(service), to_spec(service, ledger));
    object.metadata.resource_version = known.map(|v| v.as_str().to_owned());
    if !ledger.approvals.is_empty() {
        let hashes: Vec<&str> = ledger.approvals.iter().map(|h| &**h).collect();
        object.metadata.annotations = Some([(APPROVE.to_owned(), hashes.join(","))].into());
    }
    object
}

/// Reads an object.
///
/// # Errors
/// Those of [`from_spec`].
pub fn from_object(object: &InvokerLedger) -> Result<Ledger, String> {
    let annotation = object
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(APPROVE));
    let hashes = annotation
        .into_iter()
        .flat_map(|a| a.split([',', ' ']))
        .filter(|h| !h.is_empty());
    let approvals = hashes.take(16).map(Arc::from).collect();
    Ok(Ledger {
        approvals,
        ..from_spec(&object.spec)?
    })
}

/// A ledger as it is stored. What does not fit of what was there before a write is left out and
/// counted.
pub fn to_spec(service: &RunService, ledger: &Ledger) -> InvokerLedgerSpec {
    let mut tables = Tables::default();
    let grants = ledger.lines.iter().map(|(grant, owners)| {
        let LedgerMember {
            role,
            member,
            condition_index,
        } = tables.member(grant);
        let owned_by = owners.iter().map(|id| tables.policy(id)).collect();
        LedgerGrant {
            role,
            member,
            condition_index,
            owned_by,
            condition: None,
            owners: vec![],
        }
    });
    let grants: Vec<LedgerGrant> = grants.collect();
    let corrections = ledger.corrections.iter().map(|(grant, corrected)| {
        let LedgerMember {
            role,
            member,
            condition_index,
        } = tables.member(grant);
        let at = corrected.at.iter().map(|t| MicroTime(*t)).collect();
        LedgerCorrection {
            role,
            member,
            condition_index,
            at,
            drift_by: corrected.by.as_deref().cloned(),
        }
    });
    let corrections: Vec<LedgerCorrection> = corrections.collect();
    let mut left = MAX_BYTES.saturating_sub(used(ledger));
    // The latest has the first claim to what is left.
    let mut pending: Vec<PendingChange> = ledger
        .pending
        .iter()
        .rev()
        .map(|p| pending_spec(p, &mut tables, &mut left))
        .collect();
    pending.reverse();
    InvokerLedgerSpec {
        project: service.project.to_string(),
        region: service.region.to_string(),
        service: service.name.to_string(),
        policies: tables.policies,
        conditions: tables.conditions,
        grants,
        pending,
        held: ledger.held.clone(),
        corrections,
        corrected_under: ledger.corrected_under.map(|hash| format!("{hash:016x}")),
        written_at: ledger.written_at.map(MicroTime),
        used_approvals: ledger.used.clone(),
    }
}

fn used(ledger: &Ledger) -> usize {
    let changed = |p: &Pending| (p.added.len() + p.removed.len()) * 200;
    crate::plan::stored_size(&ledger.lines)
        + ledger.corrections.len() * 400
        + ledger.used.len() * 300
        + ledger.pending.iter().map(changed).sum::<usize>()
}

fn pending_spec(pending: &Pending, tables: &mut Tables, left: &mut usize) -> PendingChange {
    let mut known: BTreeSet<&Condition> = BTreeSet::new();
    let mut before: Vec<&Grant> = Vec::with_capacity(pending.before.len());
    for grant in &pending.before {
        let fresh = grant.condition.as_deref().filter(|c| known.insert(c));
        let size = bytes(grant)
            + fresh.map_or(0, |c| {
                c.title.len() + c.description.len() + c.expression.len() + 64
            });
        if size > *left {
            break;
        }
        *left -= size;
        before.push(grant);
    }
    let omitted = (pending.before.len() - before.len()) as i64 + pending.before_omitted;
    PendingChange {
        name: pending.name.clone(),
        reason: pending.reason,
        at: MicroTime(pending.at),
        etag_before: pending.etag_before.clone(),
        added: tables.members(&pending.added),
        removed: tables.members(&pending.removed),
        before: tables.members(before),
        before_omitted: omitted,
        drift: tables.members(&pending.drift),
        policies: pending.policies.clone(),
        drift_by: pending.drift_by.clone(),
        approvals: pending.approvals.clone(),
    }
}

/// Reads a ledger, in this form or in that of earlier operators.
///
/// # Errors
/// What cannot be understood, in words: a ledger that is read in part would forget the rest.
pub fn from_spec(spec: &InvokerLedgerSpec) -> Result<Ledger, String> {
    let stored = Stored {
        conditions: spec.conditions.iter().map(condition_of).collect(),
        policies: spec.policies.iter().map(owner_of).collect(),
    };
    // Another version hashes otherwise, and then nothing is known: no reason to take the ledger for
    // unreadable.
    let corrected_under = spec
        .corrected_under
        .as_deref()
        .and_then(|hash| u64::from_str_radix(hash, 16).ok());
    let mut ledger = Ledger {
        held: spec.held.clone(),
        corrected_under,
        written_at: spec.written_at.as_ref().map(|at| at.0),
        used: spec.used_approvals.clone(),
        ..Ledger::default()
    };
    for line in &spec.grants {
        let (grant, owners) = stored.line(line)?;
        ledger.lines.insert(grant, owners);
    }
    for c in &spec.corrections {
        let corrected = Corrected {
            at: c.at.iter().map(|t| t.0).collect(),
            by: c.drift_by.clone().map(Arc::new),
        };
        let grant = stored.grant(&c.role, &c.member, c.condition_index, None)?;
        ledger.corrections.insert(grant, corrected);
    }
    for pending in &spec.pending {
        ledger.pending.push(stored.pending(pending)?);
    }
    Ok(ledger)
}

fn owner_of(owner: &LedgerOwner) -> PolicyId {
    PolicyId {
        namespace: owner.namespace.as_str().into(),
        name: owner.name.as_str().into(),
        uid: owner.uid.as_str().into(),
    }
}

/// The tables of a stored ledger, by which its entries name conditions and policies: [`Tables`],
/// read back.
struct Stored {
    conditions: Vec<Arc<Condition>>,
    policies: Vec<PolicyId>,
}

impl Stored {
    fn grant(
        &self,
        role: &str,
        member: &str,
        index: Option<u32>,
        own: Option<&ConditionSpec>,
    ) -> Result<Grant, String> {
        let role = Role::from_name(role)
            .ok_or_else(|| format!("the role {role} is not one that is managed here"))?;
        let condition = match index {
            Some(i) => {
                let found = self.conditions.get(i as usize);
                let found = found.ok_or_else(|| format!("there is no condition number {i}"))?;
                Some(found.clone())
            }
            None => own.map(condition_of),
        };
        Ok(Grant {
            principal: Principal::from_live(member),
            role,
            condition,
        })
    }

    fn members(&self, list: &[LedgerMember]) -> Result<BTreeSet<Grant>, String> {
        list.iter()
            .map(|m| self.grant(&m.role, &m.member, m.condition_index, None))
            .collect()
    }

    fn line(&self, line: &LedgerGrant) -> Result<(Grant, BTreeSet<PolicyId>), String> {
        let mut owners: BTreeSet<PolicyId> = line.owners.iter().map(owner_of).collect();
        for i in &line.owned_by {
            let found = self.policies.get(*i as usize);
            let found = found.ok_or_else(|| format!("there is no policy number {i}"))?;
            owners.insert(found.clone());
        }
        let own = line.condition.as_ref();
        let grant = self.grant(&line.role, &line.member, line.condition_index, own)?;
        Ok((grant, owners))
    }

    fn pending(&self, pending: &PendingChange) -> Result<Pending, String> {
        Ok(Pending {
            name: pending.name.clone(),
            reason: pending.reason,
            at: pending.at.0,
            etag_before: pending.etag_before.clone(),
            added: self.members(&pending.added)?,
            removed: self.members(&pending.removed)?,
            before: self.members(&pending.before)?,
            before_omitted: pending.before_omitted,
            drift: self.members(&pending.drift)?,
            policies: pending.policies.clone(),
            drift_by: pending.drift_by.clone(),
            approvals: pending.approvals.clone(),
        })
    }
}

/// Name of the ledger of a service. Project ids, regions and service names hold no dots but those
/// of a domain-scoped project id, which come first; so this is unique.
pub fn name(service: &RunService) -> String {
    format!(
        "{}.{}.{}",
        service.project.replace(':', "."),
        service.region,
        service.name
    )
}

/// The service whose ledger has a name: [`name`] the other way round.
pub fn service_named(name: &str) -> Option<RunService> {
    let mut parts = name.rsplitn(3, '.');
    let (service, region, project) = (parts.next()?, parts.next()?, parts.next()?);
    let project = match project.rsplit_once('.') {
        Some((domain, project)) => format!("{domain}:{project}"),
        None => project.to_owned(),
    };
    Some(RunService::new(project, region, service))
}

/// The service that a ledger is about.
pub fn service_of(spec: &InvokerLedgerSpec) -> RunService {
    RunService::new(
        spec.project.as_str(),
        spec.region.as_str(),
        spec.service.as_str(),
    )
}
