//! What allow policies come to for one principal: one by one, and all that hold for a resource
//! together.

use std::collections::BTreeSet;

use super::{
    Cause, Facts, Known,
    condition::{self, Truth},
};
use crate::iam::{Binding, Carries, Invocation, Policy, Principal, PrincipalKind};

/// A resource with an allow policy of its own, which holds for whatever is below it.
#[derive(Clone, Debug)]
pub struct Place {
    /// As messages name it: `the project`, `folders/11`.
    pub name: String,
    pub policy: Known<Policy>,
}

impl Place {
    pub fn new(name: impl Into<String>, policy: Known<Policy>) -> Self {
        Self {
            name: name.into(),
            policy,
        }
    }
}

/// How a grant is named whose condition cannot be evaluated here.
pub(super) const UNDER_A_CONDITION: &str = "under a condition";

/// Whether a member of a policy stands for whoever is asked about; `None`: it may.
pub(super) type Covers<'a> = &'a dyn Fn(&Principal) -> Option<bool>;

/// What a policy comes to for a principal.
#[derive(Default)]
pub(super) struct Held {
    /// Members that let it in, each with words for it.
    pub yes: Vec<(Principal, String)>,
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

/// What the policies that hold for a resource come to together, the nearest first: its own, and
/// those of what is above it.
pub(super) struct Sum<'a> {
    /// Name of the place, and what its policy comes to, or why that could not be seen.
    pub places: Vec<(&'a str, Result<Held, &'a str>)>,
}

impl<'a> Sum<'a> {
    /// `carries`: whether a role carries what is asked for.
    pub fn of(
        places: impl Iterator<Item = (&'a str, &'a Known<Policy>)>,
        facts: &Facts,
        covers: Covers<'_>,
        carries: &dyn Fn(&str) -> Carries,
    ) -> Self {
        let at = |(name, policy): (&'a str, &'a Known<Policy>)| {
            let held = match policy {
                Known::Is(policy) => Ok(held(policy, facts, covers, carries)),
                Known::Hidden(why) | Known::Absent(why) => Err(why.as_str()),
                Known::NotAsked => Err("not looked at"),
            };
            (name, held)
        };
        Self {
            places: places.map(at).collect(),
        }
    }

    fn seen(&self) -> impl Iterator<Item = &Held> {
        self.places
            .iter()
            .filter_map(|(_, held)| held.as_ref().ok())
    }

    /// The nearest place that lets it in, and how many are nearer.
    pub fn yes(&self) -> Option<(usize, &Held)> {
        let mut all = self.places.iter().enumerate();
        all.find_map(|(at, (_, held))| {
            let held = held.as_ref().ok()?;
            (!held.yes.is_empty()).then_some((at, held))
        })
    }

    /// All members that let it in.
    pub fn by(&self) -> Vec<Principal> {
        let all = self.seen().flat_map(|held| &held.yes);
        all.map(|(listed, _)| listed.clone()).collect()
    }

    /// Sets that it may be in, on any of the places.
    pub fn maybe(&self) -> Vec<String> {
        self.seen().flat_map(|held| held.maybe.clone()).collect()
    }

    /// Grants of roles of which nobody knows what they carry.
    pub fn unknown(&self) -> BTreeSet<&UnknownRole> {
        self.seen().flat_map(|held| &held.unknown).collect()
    }

    pub fn ended(&self) -> Option<(Cause, String)> {
        self.seen().find_map(|held| held.ended.clone())
    }

    /// Names of the places whose policies could not be seen.
    pub fn unseen(&self) -> Vec<&'a str> {
        let unseen = self.places.iter().filter(|(_, held)| held.is_err());
        unseen.map(|(name, _)| *name).collect()
    }

    /// Whether something that was seen may let it in.
    pub fn is_open(&self) -> bool {
        self.seen().any(Held::is_open)
    }

    /// Whether it is certain that none of them lets it in.
    pub fn is_no(&self) -> bool {
        let no = |held: &Held| held.yes.is_empty() && !held.is_open();
        let mut all = self.places.iter();
        all.all(|(_, held)| held.as_ref().is_ok_and(no))
    }
}

/// What the bindings of a policy come to.
fn held(
    policy: &Policy,
    facts: &Facts,
    covers: Covers<'_>,
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
            let covers = covers(&listed);
            match carries {
                _ if covers == Some(false) => {}
                Carries::Yes => held.add(binding, listed, covers.is_some(), facts),
                _ => held.add_unknown(binding, &listed, facts),
            }
        }
    }
    held
}

impl Held {
    /// Whether something of it may let somebody in.
    pub fn is_open(&self) -> bool {
        !self.maybe.is_empty() || !self.unknown.is_empty()
    }

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
    fn add(&mut self, binding: &Binding, listed: Principal, surely: bool, facts: &Facts) {
        let (title, expression) = match &binding.condition {
            None => (String::new(), ""),
            Some(c) => (format!(" if {}", c.title), c.expression.as_str()),
        };
        let truth = truth(binding, facts);
        let what = format!("{listed} has {}{title}", binding.role);
        match truth {
            Truth::True if surely => self.yes.push((listed, what)),
            Truth::True => self.maybe.push(listed.to_string()),
            Truth::Unknown(why) => self.maybe.push(format!(
                "{listed} {UNDER_A_CONDITION} that cannot be evaluated here ({why})"
            )),
            Truth::False => {
                let when = facts.at;
                self.no
                    .push(format!("{what}, which is false at {when} ({expression})"));
                if surely {
                    self.ended.get_or_insert(why_false(expression, &listed));
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

fn why_false(expression: &str, listed: &Principal) -> (Cause, String) {
    let ends = expression.starts_with("request.time < timestamp(") && !expression.contains("&&");
    if ends {
        let verdict = format!("The access of {listed} has ended ({expression}).");
        (Cause::AccessEnded, verdict)
    } else {
        let verdict =
            format!("The condition of the grant of {listed} does not hold now: {expression}.");
        (Cause::ConditionFalse, verdict)
    }
}

/// Whether a member of a policy stands for a principal; `None`: it may.
pub(super) fn covers(listed: &Principal, principal: &Principal) -> Option<bool> {
    use PrincipalKind as K;
    if listed == principal {
        return Some(true);
    }
    match listed.kind() {
        K::AllUsers => Some(true),
        // A federated identity in either spelling has no Google account.
        K::AllAuthenticatedUsers if principal.invocation() == Invocation::Unsupported => {
            Some(false)
        }
        // Neither those without an account nor federated identities have a Google account.
        K::AllAuthenticatedUsers => Some(!matches!(principal.kind(), K::AllUsers | K::Federated)),
        K::Domain => {
            let domain = listed.key().strip_prefix("domain:").unwrap_or_default();
            let at = principal.key().rsplit('@').next().unwrap_or_default();
            // IAM means the customer that has the domain, and with it all its other domains. Google's
            // own are nobody's.
            let is_consumers = matches!(at, "gmail.com" | "googlemail.com");
            match principal.kind() {
                K::User | K::Group if at == domain => Some(true),
                K::User | K::Group | K::ServiceAccount if !is_consumers => None,
                _ => Some(false),
            }
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
