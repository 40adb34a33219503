//! Kubernetes ServiceAccounts as invokers: each stands for the Google service account that its
//! annotation names.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;

use super::{AccountKey, Declared, Intent, Rejection};
use crate::iam::{Condition, Grant, Principal};

/// Annotation by which GKE links a ServiceAccount to a Google service account.
///
/// Source: <https://docs.cloud.google.com/kubernetes-engine/docs/how-to/workload-identity>.
pub const GOOGLE_SERVICE_ACCOUNT: &str = "iam.gke.io/gcp-service-account";

/// An entry of a spec that names a ServiceAccount.
#[derive(Clone, Debug)]
pub struct AccountEntry {
    pub account: AccountKey,
    /// Place in `spec.invokers`.
    pub position: usize,
    pub expires: Option<Timestamp>,
    pub condition: Option<Arc<Condition>>,
}

/// What a policy declares by ServiceAccounts.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    pub entries: Vec<AccountEntry>,
    /// What it declares by member.
    pub members: Box<[Declared]>,
    /// Entries that stand for nobody now.
    pub unlinked: Vec<Rejection>,
}

impl Intent {
    /// Makes [`Intent::declared`] anew from what each ServiceAccount's annotation says now.
    /// `linked` gives the annotation's value, or `None` where there is no such ServiceAccount or no
    /// annotation.
    pub fn link_accounts<'a>(&mut self, linked: impl Fn(&AccountKey) -> Option<&'a str>) {
        let Some(accounts) = &mut self.accounts else {
            return;
        };
        let mut declared: BTreeSet<Declared> = accounts.members.iter().cloned().collect();
        accounts.unlinked.clear();
        for entry in &accounts.entries {
            let account = &entry.account;
            let mut reject = |message: String| {
                let field = format!("spec.invokers[{}].kubernetesServiceAccount", entry.position);
                accounts.unlinked.push(Rejection { field, message });
            };
            let Some(email) = linked(account) else {
                reject(format!(
                    "ServiceAccount {account} does not exist or has no annotation {GOOGLE_SERVICE_ACCOUNT}; annotate it with the Google service account that it acts as"
                ));
                continue;
            };
            let principal = match Principal::parse(&format!("serviceAccount:{email}")) {
                Ok(principal) => principal,
                Err(why) => {
                    reject(format!(
                        "the annotation {GOOGLE_SERVICE_ACCOUNT} of ServiceAccount {account} {why}; it must be the e-mail of a Google service account"
                    ));
                    continue;
                }
            };
            declared.insert(Declared {
                grant: Grant {
                    principal,
                    role: self.role,
                    condition: entry.condition.clone(),
                },
                expires: entry.expires,
            });
        }
        self.declared = declared.into_iter().collect();
    }
}
