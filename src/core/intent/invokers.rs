//! Who may invoke: the entries of `spec.invokers`, each by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::{AccountEntry, AccountKey, Declared, Rejection};
use crate::{
    api::{InvokerPolicySpec, InvokerSpec},
    iam::{Condition, Grant, Principal, Role, is_whole},
};

/// What is declared by member, and the entries that name a ServiceAccount.
pub(super) fn read(
    spec: &InvokerPolicySpec,
    namespace: &str,
    role: Role,
    rejections: &mut Vec<Rejection>,
) -> (Box<[Declared]>, Vec<AccountEntry>) {
    let mut invokers = Invokers {
        namespace,
        role,
        declared: BTreeSet::new(),
        accounts: Vec::new(),
        conditions: BTreeSet::new(),
    };
    for (position, entry) in spec.invokers.iter().enumerate() {
        if let Err((field, message)) = invokers.read(position, entry) {
            rejections.push(Rejection {
                field: format!("spec.invokers[{position}].{field}"),
                message,
            });
        }
    }
    (invokers.declared.into_iter().collect(), invokers.accounts)
}

/// Field of an entry, and what is wrong with it.
type Refused = (&'static str, String);

struct Invokers<'a> {
    namespace: &'a str,
    role: Role,
    declared: BTreeSet<Declared>,
    accounts: Vec<AccountEntry>,
    conditions: BTreeSet<Arc<Condition>>,
}

impl Invokers<'_> {
    fn read(&mut self, position: usize, entry: &InvokerSpec) -> Result<(), Refused> {
        let expires = expiry(entry)?;
        let condition = condition(entry, expires)?.map(|c| self.share(c));
        match (&entry.member, &entry.kubernetes_service_account) {
            (Some(member), None) => self.declare(member, expires, condition),
            (None, Some(account)) => {
                let namespace = account.namespace.as_deref().unwrap_or(self.namespace);
                self.accounts.push(AccountEntry {
                    account: AccountKey::new(namespace, account.name.as_str()),
                    position,
                    expires,
                    condition,
                });
                Ok(())
            }
            _ => Err((
                "member",
                "give either member or kubernetesServiceAccount".into(),
            )),
        }
    }

    fn declare(
        &mut self,
        member: &str,
        expires: Option<Timestamp>,
        condition: Option<Arc<Condition>>,
    ) -> Result<(), Refused> {
        let principal =
            Principal::parse(member).map_err(|why| ("member", format!("{member:?} {why}")))?;
        if principal.is_public() && condition.is_some() {
            let why = format!("{principal} cannot have a condition or expires");
            return Err(("member", why));
        }
        self.declared.insert(Declared {
            grant: Grant {
                principal,
                role: self.role,
                condition,
            },
            expires,
        });
        Ok(())
    }

    /// Two hundred members often share one, and it is as long as its author likes.
    fn share(&mut self, condition: Condition) -> Arc<Condition> {
        if let Some(known) = self.conditions.get(&condition) {
            return known.clone();
        }
        let fresh = Arc::new(condition);
        self.conditions.insert(fresh.clone());
        fresh
    }
}

/// Granting without the end that was meant would widen access, so an entry whose end cannot be read
/// is refused.
fn expiry(entry: &InvokerSpec) -> Result<Option<Timestamp>, Refused> {
    let Some(expires) = &entry.expires else {
        return Ok(None);
    };
    let parsed = expires.parse().ok().or_else(|| last_day(expires));
    let why = || format!("{expires:?} is not a timestamp; write for example 2026-12-24T18:00:00Z");
    parsed.map(Some).ok_or_else(|| ("expires", why()))
}

/// 9999-12-31 is RFC 3339 and means never to whoever writes it; the last day that is counted here is
/// the one before.
fn last_day(expires: &str) -> Option<Timestamp> {
    let clock = expires.strip_prefix("9999-12-31")?;
    let is_time = format!("9998-12-31{clock}").parse::<Timestamp>().is_ok();
    is_time.then_some(LAST)
}

/// 9999-12-30T22:00:00Z.
const LAST: Timestamp = Timestamp::constant(253_402_207_200, 0);

/// The condition of the grant: the end of it, its own, or both.
///
/// An expression that is not whole by itself could take the end with it.
fn condition(
    entry: &InvokerSpec,
    expires: Option<Timestamp>,
) -> Result<Option<Condition>, Refused> {
    let own = entry.condition.as_ref().map(Condition::from);
    if let Some(own) = &own {
        is_whole(&own.expression).map_err(|why| ("condition.expression", why.to_owned()))?;
    }
    Ok(match expires {
        Some(until) => Some(Condition::expiring(until, own.as_ref())),
        None => own,
    })
}

/// Entries that are one grant to IAM, which ignores the case of e-mail addresses. The rule of the
/// API server compares letter by letter: what it costs to compare otherwise is more than it allows.
pub(super) fn duplicates(spec: &InvokerPolicySpec) -> Vec<Rejection> {
    let mut seen = BTreeMap::new();
    let mut remarks = Vec::new();
    for (i, entry) in spec.invokers.iter().enumerate() {
        let Some(member) = &entry.member else {
            continue;
        };
        let of = (
            Principal::from_live(member),
            &entry.expires,
            &entry.condition,
        );
        let first = *seen.entry(of).or_insert(i);
        if first != i {
            remarks.push(Rejection {
                field: format!("spec.invokers[{i}].member"),
                message: format!(
                    "{member:?} is the member of spec.invokers[{first}] once more, case does not count in IAM; keep one"
                ),
            });
        }
    }
    remarks
}
