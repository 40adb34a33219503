//! Grants as a record keeps them: bounded, and known to be whole or not.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    api::{ChangeGrant, ConditionSpec},
    iam::{Condition, Grant, Principal, Role},
};

/// The most grants in one list of a record: what an IAM policy can hold.
const MAX_GRANTS: usize = crate::iam::MAX_MEMBERS;

/// The most bytes in one list of a record: two policies with 200 members each can share a condition
/// of 4 KiB, which a record has once for each member.
const MAX_LIST_BYTES: usize = 256 * 1024;

/// Ends a text that a record could not hold whole. It is in no member and in no condition that
/// could be declared.
const CUT: char = '…';

/// A text within the bound that the definition sets: a record that is refused would keep every
/// write from being made.
fn bounded(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain([CUT]).collect()
}

/// A grant as a record holds it.
pub(super) fn record(grant: &Grant) -> ChangeGrant {
    ChangeGrant {
        role: grant.role.as_str().into(),
        member: bounded(grant.principal.as_str(), 512),
        condition: grant.condition.as_ref().map(|c| ConditionSpec {
            title: bounded(if c.title.is_empty() { "-" } else { &c.title }, 100),
            description: bounded(&c.description, 256),
            expression: bounded(
                if c.expression.is_empty() {
                    "-"
                } else {
                    &c.expression
                },
                4096,
            ),
        }),
    }
}

/// Whether a record holds all of a grant.
pub(super) fn is_whole(record: &ChangeGrant) -> bool {
    let cut = |text: &str| text.ends_with(CUT);
    !cut(&record.member)
        && record
            .condition
            .as_ref()
            .is_none_or(|c| !cut(&c.title) && !cut(&c.description) && !cut(&c.expression))
}

/// A grant as a record held it; `None` for a role that is not ours.
pub(super) fn grant(record: &ChangeGrant) -> Option<Grant> {
    Some(Grant {
        principal: Principal::from_live(&record.member),
        role: Role::from_name(&record.role)?,
        condition: record.condition.as_ref().map(|c| {
            Arc::new(Condition::new(
                c.title.clone(),
                c.description.clone(),
                c.expression.clone(),
            ))
        }),
    })
}

/// As many grants as fit into one list of a record, and how many did not: four lists have to stay
/// within what the API server stores.
pub(super) fn bounded_list(grants: &BTreeSet<Grant>) -> (Vec<ChangeGrant>, i64) {
    let mut left = MAX_LIST_BYTES;
    let mut list = Vec::with_capacity(grants.len().min(MAX_GRANTS));
    for grant in grants.iter().take(MAX_GRANTS) {
        let record = record(grant);
        let condition = record.condition.as_ref();
        let size = record.member.len()
            + 80
            + condition.map_or(0, |c| {
                c.title.len() + c.description.len() + c.expression.len() + 64
            });
        if size > left {
            break;
        }
        left -= size;
        list.push(record);
    }
    let omitted = (grants.len() - list.len()) as i64;
    (list, omitted)
}
