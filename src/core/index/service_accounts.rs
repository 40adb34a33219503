//! ServiceAccounts and the Google service accounts that they are linked to.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::PolicyKey;
use crate::intent::AccountKey;

/// The longest e-mail address that IAM knows; what is longer is nobody's, and is not kept.
const MAX_EMAIL: usize = 320;

/// The links of ServiceAccounts, and which policies name them.
#[derive(Debug, Default)]
pub struct ServiceAccounts {
    /// With the value of the annotation.
    emails: HashMap<AccountKey, Arc<str>>,
    state: State,
    named_by: HashMap<AccountKey, BTreeSet<PolicyKey>>,
    listing: Option<HashSet<AccountKey>>,
    /// What a list in progress has changed.
    changed: BTreeSet<PolicyKey>,
}

/// Whether the links are known.
#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    /// Not yet.
    #[default]
    Unknown,
    /// They cannot be read, and this is why.
    Unreadable(Arc<str>),
    Known,
}

impl ServiceAccounts {
    /// A policy names these accounts from now on, and no others.
    pub fn name<'a>(&mut self, policy: &PolicyKey, accounts: impl Iterator<Item = &'a AccountKey>) {
        for account in accounts {
            self.named_by
                .entry(account.clone())
                .or_default()
                .insert(policy.clone());
        }
    }

    /// A policy names these accounts no more.
    pub fn unname<'a>(
        &mut self,
        policy: &PolicyKey,
        accounts: impl Iterator<Item = &'a AccountKey>,
    ) {
        for account in accounts {
            if let Some(policies) = self.named_by.get_mut(account) {
                policies.remove(policy);
                if policies.is_empty() {
                    self.named_by.remove(account);
                }
            }
        }
    }

    /// The value of an account's annotation.
    pub fn email(&self, account: &AccountKey) -> Option<&str> {
        self.emails.get(account).map(|e| &**e)
    }

    pub fn are_known(&self) -> bool {
        self.state == State::Known
    }

    /// Why they cannot be read, if so.
    pub fn unreadable(&self) -> Option<&Arc<str>> {
        match &self.state {
            State::Unreadable(why) => Some(why),
            _ => None,
        }
    }

    /// Takes in an account as it is in the store. Returns the policies that this changes; while a
    /// list comes in for the first time, nobody's declaration is complete, and what changes follows
    /// at its end.
    pub fn apply(&mut self, account: AccountKey, email: Option<&str>) -> BTreeSet<PolicyKey> {
        if let Some(seen) = &mut self.listing {
            seen.insert(account.clone());
        }
        let bounded = email.map(|e| {
            if e.len() > MAX_EMAIL {
                "a value that is too long"
            } else {
                e
            }
        });
        if self.email(&account) == bounded {
            return BTreeSet::new();
        }
        let policies = self.named_by.get(&account).cloned().unwrap_or_default();
        match bounded {
            Some(email) => self.emails.insert(account, email.into()),
            None => self.emails.remove(&account),
        };
        if self.are_known() {
            return policies;
        }
        self.changed.extend(policies);
        BTreeSet::new()
    }

    pub fn begin_list(&mut self) {
        self.listing = Some(HashSet::new());
    }

    /// The list is complete. Returns the policies that this changes: those that name accounts which
    /// went, and all that name any if none was known before.
    pub fn end_list(&mut self) -> BTreeSet<PolicyKey> {
        let seen = self.listing.take().unwrap_or_default();
        let gone: Vec<AccountKey> = self
            .emails
            .keys()
            .filter(|a| !seen.contains(*a))
            .cloned()
            .collect();
        let mut changed = std::mem::take(&mut self.changed);
        for account in gone {
            self.emails.remove(&account);
            changed.extend(self.named_by.get(&account).into_iter().flatten().cloned());
        }
        if !self.are_known() {
            self.state = State::Known;
            changed.extend(self.named_by.values().flatten().cloned());
        }
        changed
    }

    /// They cannot be read. What was known of them stays. Returns the policies that this changes.
    pub fn broken(&mut self, why: &str) -> BTreeSet<PolicyKey> {
        if self.are_known() || self.unreadable().is_some_and(|w| **w == *why) {
            return BTreeSet::new();
        }
        self.state = State::Unreadable(why.into());
        self.named_by.values().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> AccountKey {
        AccountKey::new("ns", name)
    }
    fn policy(name: &str) -> PolicyKey {
        PolicyKey::new("ns", name)
    }
    fn known() -> ServiceAccounts {
        let mut accounts = ServiceAccounts::default();
        accounts.name(&policy("p"), [account("web")].iter());
        accounts.begin_list();
        accounts.apply(account("web"), Some("w@x.iam.gserviceaccount.com"));
        accounts.end_list();
        accounts
    }

    #[test]
    fn the_first_list_changes_whoever_names_an_account_and_a_relist_nobody() {
        let mut accounts = ServiceAccounts::default();
        accounts.name(&policy("p"), [account("web")].iter());
        accounts.begin_list();
        assert!(accounts.apply(account("web"), Some("w@x.co")).is_empty());
        assert!(!accounts.are_known());
        assert_eq!(accounts.end_list(), [policy("p")].into());
        accounts.begin_list();
        assert!(accounts.apply(account("web"), Some("w@x.co")).is_empty());
        assert!(accounts.end_list().is_empty());
    }

    #[test]
    fn only_those_who_name_an_account_hear_of_it() {
        let mut accounts = known();
        assert!(accounts.apply(account("other"), Some("o@x.co")).is_empty());
        assert_eq!(accounts.apply(account("web"), None), [policy("p")].into());
        accounts.unname(&policy("p"), [account("web")].iter());
        assert!(accounts.apply(account("web"), Some("w@x.co")).is_empty());
    }

    #[test]
    fn an_account_that_went_between_two_lists_changes_its_policies() {
        let mut accounts = known();
        accounts.begin_list();
        assert_eq!(accounts.end_list(), [policy("p")].into());
        assert_eq!(accounts.email(&account("web")), None);
    }

    #[test]
    fn what_is_too_long_is_not_kept() {
        let mut accounts = known();
        accounts.apply(account("web"), Some(&"x".repeat(200_000)));
        assert!(
            accounts
                .email(&account("web"))
                .is_some_and(|e| e.len() < 50)
        );
    }

    #[test]
    fn what_cannot_be_read_any_more_holds_on() {
        let mut accounts = ServiceAccounts::default();
        accounts.name(&policy("p"), [account("web")].iter());
        assert_eq!(accounts.broken("forbidden"), [policy("p")].into());
        assert!(accounts.broken("forbidden").is_empty());
        assert!(known().broken("forbidden").is_empty());
    }
}
