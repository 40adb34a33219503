//! What an allow policy comes to for one principal.

use super::{
    Cause, Facts,
    condition::{self, Truth},
};
use crate::iam::{Binding, Carries, Invocation, Policy, Principal, PrincipalKind};

/// What a policy comes to for a principal.
#[derive(Default)]
pub(super) struct Held {
    pub yes: Option<String>,
    /// Sets that it may be in.
    pub maybe: Vec<String>,
    /// Grants that do not hold now, in words.
    pub no: Vec<String>,
    pub ended: Option<(Cause, String)>,
    /// Grants of roles of which nobody knows what they carry.
    pub unknown: Vec<UnknownRole>,
}

/// A role of which nobody knows what it carries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct UnknownRole {
    pub role: String,
    /// Who has it.
    pub what: String,
}

/// What the bindings come to for a principal; `carries`: whether a role carries what is asked for.
pub(super) fn held(
    policy: &Policy,
    principal: &Principal,
    facts: &Facts,
    carries: &dyn Fn(&str) -> Carries,
) -> Held {
    let mut held = Held::default();
    for binding in &policy.bindings {
        let carries = carries(&binding.role);
        if carries == Carries::No {
            continue;
        }
        for member in &binding.members {
            let listed = Principal::from_live(member);
            let covers = covers(&listed, principal);
            match carries {
                _ if covers == Some(false) => {}
                Carries::Yes => held.add(binding, &listed, principal, covers.is_some(), facts),
                _ => held.add_unknown(binding, &listed, facts),
            }
        }
    }
    held
}

impl Held {
    /// Adds a member, by a role of which nobody knows what it carries. Whatever that is, it gives
    /// nothing while its condition does not hold.
    fn add_unknown(&mut self, binding: &Binding, listed: &Principal, facts: &Facts) {
        if truth(binding, facts) != Truth::False {
            self.unknown.push(UnknownRole {
                role: binding.role.clone(),
                what: format!("{listed} has {}", binding.role),
            });
        }
    }

    /// Adds a member that stands for the principal; not `surely`: that may.
    fn add(
        &mut self,
        binding: &Binding,
        listed: &Principal,
        principal: &Principal,
        surely: bool,
        facts: &Facts,
    ) {
        let (title, expression) = match &binding.condition {
            None => (String::new(), ""),
            Some(c) => (format!(" if {}", c.title), c.expression.as_str()),
        };
        let truth = truth(binding, facts);
        let what = format!("{listed} has {}{title}", binding.role);
        match truth {
            Truth::True if surely => self.yes = self.yes.take().or(Some(what)),
            Truth::True => self.maybe.push(listed.to_string()),
            Truth::Unknown(why) => self.maybe.push(format!(
                "{listed} under a condition that cannot be evaluated here ({why})"
            )),
            Truth::False => {
                let when = facts.at;
                self.no
                    .push(format!("{what}, which is false at {when} ({expression})"));
                if surely {
                    self.ended.get_or_insert(why_false(expression, principal));
                }
            }
        }
    }
}

/// Whether the condition of a binding holds.
fn truth(binding: &Binding, facts: &Facts) -> Truth {
    match &binding.condition {
        None => Truth::True,
        Some(c) => condition::evaluate(&c.expression, facts.at, facts.url.as_deref()),
    }
}

fn why_false(expression: &str, principal: &Principal) -> (Cause, String) {
    let ends = expression.starts_with("request.time < timestamp(") && !expression.contains("&&");
    if ends {
        let verdict = format!("The access of {principal} has ended ({expression}).");
        (Cause::AccessEnded, verdict)
    } else {
        let verdict = format!("The condition of its grant does not hold now: {expression}.");
        (Cause::ConditionFalse, verdict)
    }
}

/// Whether a member of a policy stands for a principal; `None`: it may.
fn covers(listed: &Principal, principal: &Principal) -> Option<bool> {
    use PrincipalKind as K;
    if listed == principal {
        return Some(true);
    }
    match listed.kind() {
        K::AllUsers => Some(true),
        // Neither those without an account nor federated identities have a Google account.
        K::AllAuthenticatedUsers => Some(!matches!(principal.kind(), K::AllUsers | K::Federated)),
        K::Domain => {
            let domain = listed.key().strip_prefix("domain:").unwrap_or_default();
            let at = principal.key().rsplit('@').next().unwrap_or_default();
            Some(matches!(principal.kind(), K::User | K::Group) && at == domain)
        }
        K::Group if matches!(principal.kind(), K::User | K::ServiceAccount | K::Group) => None,
        K::FederatedSet if principal.kind() == K::ServiceAccount => {
            if listed.invocation() == Invocation::Supported {
                None
            } else {
                Some(false)
            }
        }
        K::FederatedSet if principal.kind() == K::Federated => in_pool(listed, principal),
        _ => Some(false),
    }
}

/// Whether a set of a pool has a member of that pool: all of it has, another set may.
fn in_pool(set: &Principal, principal: &Principal) -> Option<bool> {
    let pool = principal
        .as_str()
        .strip_prefix("principal:")
        .and_then(|rest| rest.split_once("/subject/"))
        .map(|(pool, _)| pool)?;
    let rest = set
        .as_str()
        .strip_prefix("principalSet:")
        .and_then(|rest| rest.strip_prefix(pool));
    match rest {
        Some("/*") => Some(true),
        Some(rest) if rest.starts_with('/') => None,
        _ => Some(false),
    }
}
