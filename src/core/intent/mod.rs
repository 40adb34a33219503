//! From a raw `InvokerPolicy` to what it means. Past this door no string stands for a principal or
//! a service.
//!
//! An entry that is refused names its field and does not take the others with it: the API server's
//! rules catch nearly all of them, but an object may have been stored before a rule existed.

mod account;
mod approval;
mod condition;
mod guardrail;
mod invokers;
mod keys;
mod remarks;
mod request;

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::core::{Selector, SelectorExt};

use crate::{
    api::{
        APPROVE, InvokerPolicy, InvokerPolicySpec, Membership, Mode, OnDelete, REQUESTED_AT,
        ROLLBACK, RoleName, request_of,
    },
    iam::{Grant, Role, RunService, ServiceInfo},
};

pub use account::{AccountEntry, Accounts, GOOGLE_SERVICE_ACCOUNT};
pub use approval::{Agreement, WITHSTANDS, denial_of, digest};
pub use guardrail::{Consent, Guardrail, Limits, Refusal, Terms};
pub use keys::{AccountKey, ApprovalKey, ChangeKey, PolicyKey};
pub use request::AccessRequest;

/// A policy, or a request (see [`PolicyKey`]), by name and uid: one that is made again under its name
/// is another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub uid: Arc<str>,
}

impl PolicyId {
    /// Namespace and name.
    pub fn key(&self) -> PolicyKey {
        PolicyKey::new(self.namespace.clone(), self.name.clone())
    }

    /// The name of the InvokerAccessRequest that it stands for, if it does.
    pub fn request(&self) -> Option<&str> {
        request_of(&self.name)
    }
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key().fmt(f)
    }
}

/// Services that a policy names.
#[derive(Clone, Debug)]
pub enum Target {
    Named(RunService),
    /// `regions: None` means every region.
    Selected {
        regions: Option<BTreeSet<Arc<str>>>,
        selector: Selector,
    },
}

impl Target {
    /// Whether the service that a listing shows is meant.
    pub fn selects(&self, found: &ServiceInfo) -> bool {
        match self {
            Self::Named(service) => *service == found.service,
            Self::Selected { regions, selector } => {
                regions
                    .as_ref()
                    .is_none_or(|r| r.contains(&found.service.region))
                    && selector.matches(&found.labels)
            }
        }
    }
}

/// An entry of a spec that cannot be acted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Path of the field, as kubectl prints it.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// A grant that is declared, and the end of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Declared {
    pub grant: Grant,
    pub expires: Option<Timestamp>,
}

/// What a policy wants, validated.
#[derive(Clone, Debug)]
pub struct Intent {
    pub id: PolicyId,
    pub generation: i64,
    /// Stands for the spec, also before it is in any cluster: what an approval of a plan is for.
    pub spec_digest: Arc<str>,
    pub project: Arc<str>,
    pub targets: Vec<Target>,
    /// Sorted, each once. A slice, not a set: thousands of policies with a few members each are
    /// mostly this.
    pub declared: Box<[Declared]>,
    /// What is declared by Kubernetes ServiceAccounts, if anything is.
    pub accounts: Option<Box<Accounts>>,
    pub role: Role,
    pub mode: Mode,
    pub membership: Membership,
    pub on_delete: OnDelete,
    pub suspended: bool,
    pub interval: Duration,
    /// The object is marked for deletion.
    pub deleting: bool,
    /// Value of the reconcile-now annotation.
    pub requested_at: Option<Arc<str>>,
    /// Hashes of held plans that somebody agreed to.
    pub approvals: Box<[Arc<str>]>,
    /// Names of InvokerChanges to go back behind.
    pub rollbacks: Box<[Arc<str>]>,
    /// An empty list of invokers is meant.
    pub allow_empty: bool,
    pub rejections: Vec<Rejection>,
    /// What is acted on and is probably not what was meant.
    pub remarks: Vec<Rejection>,
}

impl Intent {
    /// Reads a policy. Never fails as a whole: what cannot be understood is in
    /// [`Intent::rejections`].
    pub fn from_policy(policy: &InvokerPolicy) -> Self {
        let spec = &policy.spec;
        let mut rejections = Vec::new();
        let mut remarks = remarks::of(spec);
        let role = match spec.role {
            RoleName::Invoker => Role::Invoker,
            RoleName::ServicesInvoker => Role::ServicesInvoker,
        };
        let interval = parse_interval(&spec.interval).unwrap_or_else(|| {
            rejections.push(Rejection {
                field: "spec.interval".into(),
                message: format!(
                    "{:?} is not a duration such as 5m; 5m is used",
                    spec.interval
                ),
            });
            DEFAULT_INTERVAL
        });
        let meta = &policy.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let targets = targets(spec, &mut rejections);
        let (declared, entries) = invokers::read(spec, namespace, role, &mut rejections);
        remarks.extend(invokers::duplicates(spec));
        let accounts = (!entries.is_empty()).then(|| {
            Box::new(Accounts {
                entries,
                members: declared.clone(),
                unlinked: Vec::new(),
            })
        });
        let annotation = |name: &str| {
            meta.annotations
                .as_ref()
                .and_then(|a| a.get(name))
                .map(String::as_str)
        };
        Self {
            id: PolicyId {
                namespace: namespace.into(),
                name: meta.name.as_deref().unwrap_or_default().into(),
                uid: meta.uid.as_deref().unwrap_or_default().into(),
            },
            generation: meta.generation.unwrap_or_default(),
            spec_digest: spec_digest(spec),
            project: spec.project.as_str().into(),
            targets,
            declared,
            accounts,
            role,
            mode: spec.mode,
            membership: spec.membership,
            on_delete: spec.on_delete,
            suspended: spec.suspend,
            interval: interval.max(Duration::from_secs(10)),
            deleting: meta.deletion_timestamp.is_some(),
            requested_at: annotation(REQUESTED_AT).map(Into::into),
            approvals: words(annotation(APPROVE)),
            rollbacks: words(annotation(ROLLBACK)),
            allow_empty: spec.allow_empty,
            rejections,
            remarks,
        }
    }

    /// Declared grants whose end has passed.
    pub fn expired(&self, now: Timestamp) -> impl Iterator<Item = &Grant> {
        let is_over = move |d: &&Declared| d.expires.is_some_and(|e| e <= now);
        self.declared.iter().filter(is_over).map(|d| &d.grant)
    }

    /// The next time at which a declared grant ends.
    pub fn next_expiry(&self, now: Timestamp) -> Option<Timestamp> {
        self.declared
            .iter()
            .filter_map(|d| d.expires)
            .filter(|e| *e > now)
            .min()
    }

    /// Whether this policy may write to IAM: enforced and not suspended.
    pub fn enforces(&self) -> bool {
        self.mode == Mode::Enforce && !self.suspended
    }

    /// Whether what belongs to it is let go when it is deleted.
    pub fn retains(&self) -> bool {
        self.on_delete == OnDelete::Retain
    }

    /// Whether it says that nobody at all may invoke its services.
    pub fn allows_nobody(&self) -> bool {
        self.allow_empty && self.declared.is_empty()
    }

    /// Whether all of it could be understood. What an entry meant that could not is not known, so
    /// until it is mended nothing is taken away on behalf of the policy.
    pub fn is_whole(&self) -> bool {
        self.rejections.is_empty()
    }

    /// Whether whoever it does not list may not stay.
    pub fn is_complete(&self) -> bool {
        self.membership == Membership::Authoritative && self.is_whole()
    }

    /// Whether a selector is among the targets, so that the project must be listed.
    pub fn has_selector(&self) -> bool {
        self.targets
            .iter()
            .any(|t| matches!(t, Target::Selected { .. }))
    }
}

/// Stands for a spec, in which a field that is absent and one that has its default are the same.
fn spec_digest(spec: &InvokerPolicySpec) -> Arc<str> {
    fn tidy(value: &mut serde_json::Value) {
        if let serde_json::Value::Object(map) = value {
            map.values_mut().for_each(tidy);
            map.retain(|_, v| !v.is_null());
        } else if let serde_json::Value::Array(list) = value {
            list.iter_mut().for_each(tidy);
        }
    }
    let mut value = serde_json::to_value(spec).unwrap_or_default();
    tidy(&mut value);
    value.sort_all_objects();
    digest(WITHSTANDS, [value.to_string().as_str()])
}

/// The words of an annotation that holds a list. More than a few dozen are nobody's intention.
fn words(text: Option<&str>) -> Box<[Arc<str>]> {
    text.unwrap_or_default()
        .split([',', ' '])
        .filter(|w| !w.is_empty())
        .take(64)
        .map(Into::into)
        .collect()
}

fn targets(spec: &InvokerPolicySpec, rejections: &mut Vec<Rejection>) -> Vec<Target> {
    let mut targets = Vec::with_capacity(spec.services.len());
    for (i, entry) in spec.services.iter().enumerate() {
        let mut reject = |message: String| {
            rejections.push(Rejection {
                field: format!("spec.services[{i}]"),
                message,
            })
        };
        match (&entry.name, &entry.region, &entry.selector) {
            (Some(name), Some(region), None) => {
                targets.push(Target::Named(RunService::new(
                    spec.project.as_str(),
                    region.as_str(),
                    name.as_str(),
                )));
            }
            (None, None, Some(selector)) => match Selector::try_from(selector.clone()) {
                Ok(parsed) if !parsed.selects_all() => targets.push(Target::Selected {
                    regions: entry
                        .regions
                        .as_ref()
                        .map(|r| r.iter().map(|s| s.as_str().into()).collect()),
                    selector: parsed,
                }),
                Ok(_) => reject("selector must name at least one label".into()),
                Err(e) => reject(format!("selector is not valid: {e}")),
            },
            _ => reject("give either name and region, or selector".into()),
        }
    }
    targets
}

/// What holds where an interval cannot be read.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(300);

/// An interval as a policy has it; 5m where it cannot be read.
pub fn interval(text: &str) -> Duration {
    parse_interval(text).unwrap_or(DEFAULT_INTERVAL)
}

/// Whole hours, minutes and seconds, as in `1h30m`.
fn parse_interval(text: &str) -> Option<Duration> {
    let mut total = 0u64;
    let mut number = None::<u64>;
    for c in text.chars() {
        match (c, number) {
            ('0'..='9', n) => {
                number = Some(
                    n.unwrap_or(0)
                        .checked_mul(10)?
                        .checked_add(u64::from(c.to_digit(10)?))?,
                );
            }
            ('h' | 'm' | 's', Some(n)) => {
                let unit = match c {
                    'h' => 3600,
                    'm' => 60,
                    _ => 1,
                };
                total = total.checked_add(n.checked_mul(unit)?)?;
                number = None;
            }
            _ => return None,
        }
    }
    (number.is_none() && total > 0).then(|| Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn intent(spec: serde_json::Value) -> Intent {
        let policy = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy",
            "metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
        Intent::from_policy(&serde_json::from_value(policy).unwrap())
    }

    #[test]
    fn one_bad_entry_is_named_and_the_others_stay() {
        let i = intent(json!({"project": "acme-prod",
            "services": [{"name": "a", "region": "r1"}, {"name": "b"}],
            "invokers": [{"member": "user:a@b.co"}, {"member": "nonsense"},
                         {"member": "user:c@b.co", "expires": "2026-02-30T00:00:00Z"}]}));
        assert_eq!(i.targets.len(), 1);
        assert_eq!(i.declared.len(), 1);
        let fields: Vec<_> = i.rejections.iter().map(|r| r.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.services[1]",
                "spec.invokers[1].member",
                "spec.invokers[2].expires"
            ]
        );
    }

    #[test]
    fn what_is_probably_not_meant_is_remarked_and_acted_on() {
        let i = intent(json!({"project": "example.com:shop",
            "services": [{"name": "a", "region": "europe-wset1"}, {"selector": {"matchLabels": {"a": "b"}}, "regions": ["us-central1", "us-centrl1"]}, {"name": "b", "region": "moon-north1"}],
            "invokers": [{"member": "user:Ada@acme.com"}, {"member": "user:b@acme.com"}, {"member": "user:ada@ACME.com"},
                {"member": "user:ada@acme.com", "expires": "2026-12-24T18:00:00Z"}]}));
        assert!(i.rejections.is_empty());
        assert_eq!((i.targets.len(), i.declared.len()), (3, 3));
        let remarks: Vec<String> = i
            .remarks
            .iter()
            .map(|r| format!("{}: {}", r.field, r.message))
            .collect();
        assert_eq!(
            remarks,
            [
                "spec.services[0].region: europe-wset1 is not a region that is known here; did you mean europe-west1?",
                "spec.services[1].regions: us-centrl1 is not a region that is known here; did you mean us-central1?",
                "spec.invokers[2].member: \"user:ada@ACME.com\" is the member of spec.invokers[0] once more, case does not count in IAM; keep one",
            ]
        );
        let at = "2026-12-24T18:00:00Z".parse().unwrap();
        let ended: Vec<String> = i.expired(at).map(ToString::to_string).collect();
        assert_eq!(ended, ["user:ada@acme.com (until 2026-12-24T18:00:00Z)"]);
    }

    #[test]
    fn an_expiry_ends_at_its_instant_and_not_before() {
        let i = intent(
            json!({"project": "acme-prod", "services": [{"name": "a", "region": "r1"}],
            "invokers": [{"member": "user:a@b.co", "expires": "2026-12-24T18:00:00Z"}]}),
        );
        let at = |s: &str| s.parse::<Timestamp>().unwrap();
        assert_eq!(i.declared[0].expires, Some(at("2026-12-24T18:00:00Z")));
        assert_eq!(
            i.next_expiry(at("2026-12-24T17:59:59Z")),
            Some(at("2026-12-24T18:00:00Z"))
        );
        assert_eq!(i.next_expiry(at("2026-12-24T18:00:00Z")), None);
    }

    #[test]
    fn intervals_are_read_as_people_write_them() {
        for (text, seconds) in [
            ("5m", Some(300)),
            ("1h30m", Some(5400)),
            ("10s", Some(10)),
            ("5", None),
            ("", None),
            ("m", None),
            ("0s", None),
        ] {
            assert_eq!(parse_interval(text).map(|d| d.as_secs()), seconds, "{text}");
        }
    }
}
