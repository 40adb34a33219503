//! What people declare, read from the objects they write. Nothing here is shared with the operator.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;

use crate::iam::{Condition, Grant, member_key};

/// Project, region, name.
pub type Service = (String, String, String);

/// Services that a policy means.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    Named {
        region: String,
        name: String,
    },
    Selected {
        regions: Option<Vec<String>>,
        labels: BTreeMap<String, String>,
        expressions: Vec<Expression>,
    },
}

/// One of a selector's `matchExpressions`.
#[derive(Clone, Debug, PartialEq)]
pub struct Expression {
    key: String,
    operator: String,
    values: Vec<String>,
}

impl Expression {
    /// As Kubernetes defines them: what is not there is in no list, and `NotIn` every one.
    fn matches(&self, have: &BTreeMap<String, String>) -> bool {
        let value = have.get(&self.key);
        let is_listed = value.is_some_and(|v| self.values.contains(v));
        match self.operator.as_str() {
            "In" => is_listed,
            "NotIn" => !is_listed,
            "Exists" => value.is_some(),
            _ => value.is_none(),
        }
    }
}

/// Who is declared.
#[derive(Clone, Debug, PartialEq)]
pub enum Who {
    Member(String),
    /// Namespace and name of a ServiceAccount.
    Account(String, String),
}

/// One entry of a list of invokers.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub who: Who,
    pub condition: Option<Condition>,
}

/// An InvokerPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub generation: i64,
    pub deleting: bool,
    pub finalizer: bool,
    pub project: String,
    pub targets: Vec<Target>,
    pub entries: Vec<Entry>,
    pub role: String,
    pub enforced: bool,
    pub suspended: bool,
    pub authoritative: bool,
    pub retain: bool,
    pub allow_empty: bool,
    pub interval: i64,
    pub approvals: Vec<String>,
    pub rollbacks: Vec<String>,
}

fn text(v: &Value) -> String {
    v.as_str().unwrap_or_default().to_owned()
}

fn texts(v: &Value) -> Vec<String> {
    v.as_array().into_iter().flatten().map(text).collect()
}

/// Seconds of `1h30m`.
pub(crate) fn seconds(text: &str) -> Option<i64> {
    let (mut total, mut number) = (0, String::new());
    for c in text.chars() {
        match c {
            '0'..='9' => number.push(c),
            'h' => total += std::mem::take(&mut number).parse::<i64>().ok()? * 3600,
            'm' => total += std::mem::take(&mut number).parse::<i64>().ok()? * 60,
            's' => total += std::mem::take(&mut number).parse::<i64>().ok()?,
            _ => return None,
        }
    }
    number.is_empty().then_some(total)
}

impl Policy {
    /// Reads an InvokerPolicy; `None` for one that nobody could read.
    pub fn read(o: &Value) -> Option<Self> {
        let (meta, spec) = (&o["metadata"], &o["spec"]);
        let words = |name: &str| -> Vec<String> {
            let list = text(&meta["annotations"][format!("run-invoker.dev/{name}")]);
            list.split([',', ' '])
                .filter(|w| !w.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let one_of = |v: &Value, known: [&str; 2]| -> Option<bool> {
            match v.as_str() {
                None if v.is_null() => Some(false),
                Some(s) if s == known[0] => Some(false),
                Some(s) if s == known[1] => Some(true),
                _ => None,
            }
        };
        let mut targets = Vec::new();
        for s in spec["services"].as_array()? {
            targets.push(match s["selector"].is_object() {
                true => Target::Selected {
                    regions: s["regions"].is_array().then(|| texts(&s["regions"])),
                    labels: s["selector"]["matchLabels"]
                        .as_object()
                        .into_iter()
                        .flatten()
                        .map(|(k, v)| (k.clone(), text(v)))
                        .collect(),
                    expressions: s["selector"]["matchExpressions"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .map(|e| Expression {
                            key: text(&e["key"]),
                            operator: text(&e["operator"]),
                            values: texts(&e["values"]),
                        })
                        .collect(),
                },
                false => Target::Named {
                    region: text(&s["region"]),
                    name: text(&s["name"]),
                },
            });
        }
        let namespace = text(&meta["namespace"]);
        let mut entries = Vec::new();
        for e in spec["invokers"].as_array()? {
            let ends = e["expires"]
                .as_str()
                .map(str::parse::<Timestamp>)
                .transpose()
                .ok()?;
            let ends = ends.and_then(|e| Timestamp::from_second(e.as_second()).ok());
            let c = &e["condition"];
            let own = c.is_object().then(|| {
                (
                    text(&c["title"]),
                    text(&c["description"]),
                    text(&c["expression"]),
                )
            });
            let condition = (own.is_some() || ends.is_some()).then_some(Condition { own, ends });
            let account = &e["kubernetesServiceAccount"];
            let who = if account.is_object() {
                let of = account["namespace"]
                    .as_str()
                    .unwrap_or(&namespace)
                    .to_owned();
                Who::Account(of, text(&account["name"]))
            } else {
                Who::Member(e["member"].as_str()?.to_owned())
            };
            entries.push(Entry { who, condition });
        }
        Some(Self {
            name: text(&meta["name"]),
            uid: text(&meta["uid"]),
            generation: meta["generation"].as_i64().unwrap_or(0),
            deleting: meta["deletionTimestamp"].is_string(),
            finalizer: texts(&meta["finalizers"])
                .iter()
                .any(|f| f == "run-invoker.dev/revoke"),
            project: spec["project"].as_str()?.to_owned(),
            targets,
            entries,
            role: spec["role"]
                .as_str()
                .unwrap_or("roles/run.invoker")
                .to_owned(),
            enforced: one_of(&spec["mode"], ["Audit", "Enforce"])?,
            suspended: spec["suspend"] == true,
            authoritative: !one_of(&spec["membership"], ["Authoritative", "Additive"])?,
            retain: one_of(&spec["onDelete"], ["Revoke", "Retain"])?,
            allow_empty: spec["allowEmpty"] == true,
            interval: seconds(spec["interval"].as_str().unwrap_or("5m"))?.max(10),
            approvals: words("approve"),
            rollbacks: words("rollback"),
            namespace,
        })
    }

    /// Whether it may write now.
    pub fn acts(&self) -> bool {
        self.enforced && !self.suspended
    }

    /// Whether it means a service that has these labels; `None` for labels: they are not known.
    pub fn means(&self, service: &Service, labels: Option<&BTreeMap<String, String>>) -> bool {
        service.0 == self.project
            && self.targets.iter().any(|t| match t {
                Target::Named { region, name } => *region == service.1 && *name == service.2,
                Target::Selected {
                    regions,
                    labels: wanted,
                    expressions,
                } => {
                    let fits = |have: &BTreeMap<String, String>| {
                        wanted.iter().all(|(k, v)| have.get(k) == Some(v))
                            && expressions.iter().all(|e| e.matches(have))
                    };
                    regions.as_ref().is_none_or(|r| r.contains(&service.1))
                        && labels.is_some_and(fits)
                }
            })
    }

    pub fn has_selector(&self) -> bool {
        self.targets
            .iter()
            .any(|t| matches!(t, Target::Selected { .. }))
    }
}

/// Whether this could be the e-mail of a Google service account; what could not stands for nobody.
fn is_account(email: &str) -> bool {
    email.split_once('@').is_some_and(|(name, domain)| {
        !name.is_empty() && domain.contains('.') && !domain.contains('@')
    })
}

/// Text with `*` and `?`.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.first(), text.first()) {
        (None, None) => true,
        (Some(b'*'), _) => {
            glob(&pattern[1..], text) || (!text.is_empty() && glob(pattern, &text[1..]))
        }
        (Some(b'?'), Some(_)) => glob(&pattern[1..], &text[1..]),
        (Some(p), Some(t)) if p == t => glob(&pattern[1..], &text[1..]),
        _ => false,
    }
}

/// Whether a text matches a pattern.
pub fn matches(pattern: &str, text: &str) -> bool {
    glob(pattern.as_bytes(), text.as_bytes())
}

/// An InvokerGuardrail; `readable: false` for one that nobody can read.
#[derive(Clone, Debug, PartialEq)]
pub struct Guardrail {
    pub readable: bool,
    namespaces: Option<Vec<String>>,
    projects: Option<Vec<String>>,
    services: Option<Vec<String>>,
    members: Option<Vec<String>>,
    public: bool,
    lifetime: bool,
    pub max_removals: Option<usize>,
    /// Only an InvokerApproval counts.
    pub approver: bool,
    pub requests: Option<Requests>,
}

/// What requests may ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct Requests {
    /// Seconds.
    pub longest: i64,
    /// What the reason has to match.
    pub reason: Option<String>,
    by_themselves: Vec<String>,
}

impl Requests {
    fn read(o: &Value) -> Option<Self> {
        o.is_object().then(|| Self {
            longest: seconds(o["maxDuration"].as_str().unwrap_or_default()).unwrap_or(0),
            reason: o["reasonPattern"].as_str().map(str::to_owned),
            by_themselves: texts(&o["autoApprove"]),
        })
    }

    /// Whether nobody has to agree for a member.
    pub fn approves_by_itself(&self, member: &str) -> bool {
        self.by_themselves.iter().any(|p| names_member(p, member))
    }
}

/// Whether a pattern of members names one, given by its key. A pattern without a colon is about the
/// e-mail of users, groups and service accounts.
fn names_member(pattern: &str, member: &str) -> bool {
    let (kind, rest) = member.split_once(':').unwrap_or_default();
    match pattern.split_once(':') {
        None => {
            matches!(kind, "user" | "group" | "serviceAccount")
                && matches(&pattern.to_lowercase(), rest)
        }
        Some((k, p)) => k == kind && matches(&p.to_lowercase(), rest),
    }
}

impl Guardrail {
    pub fn read(o: &Value) -> Self {
        let spec = &o["spec"];
        let list = |k: &str| spec[k].is_array().then(|| texts(&spec[k]));
        let broken = !spec.is_object()
            || ["namespaces", "projects", "services", "members"]
                .iter()
                .any(|k| !spec[k].is_array() && !spec[k].is_null())
            || !matches!(spec["public"].as_str(), None | Some("Allow" | "Deny"));
        Self {
            readable: !broken,
            namespaces: list("namespaces"),
            projects: list("projects"),
            services: list("services"),
            members: list("members"),
            public: spec["public"] == "Allow",
            lifetime: spec["maxLifetime"].is_string(),
            max_removals: spec["maxRemovals"].as_u64().map(|n| n as usize),
            approver: spec["approvals"] == "Approver",
            requests: Requests::read(&spec["requests"]),
        }
    }

    pub fn selects(&self, namespace: &str) -> bool {
        one_of(self.namespaces.as_ref(), namespace)
    }

    pub fn allows_service(&self, service: &Service) -> bool {
        one_of(self.projects.as_ref(), &service.0) && one_of(self.services.as_ref(), &service.2)
    }

    pub fn allows_project(&self, project: &str) -> bool {
        one_of(self.projects.as_ref(), project)
    }

    pub fn allows_grant(&self, grant: &Grant) -> bool {
        let named = self
            .members
            .as_ref()
            .is_none_or(|list| list.iter().any(|p| names_member(p, &grant.member)));
        (if grant.is_public() {
            self.public
        } else {
            named
        }) && (!self.lifetime || grant.condition.as_ref().is_some_and(|c| c.ends.is_some()))
    }
}

fn one_of(list: Option<&Vec<String>>, text: &str) -> bool {
    list.is_none_or(|l| l.iter().any(|p| matches(p, text)))
}

/// What people declared, as somebody knows it.
#[derive(Clone, Debug, Default)]
pub struct Declared {
    /// By namespace and name; `None`: it is there and cannot be read.
    pub policies: BTreeMap<(String, String), Option<Policy>>,
    pub guardrails: BTreeMap<String, Guardrail>,
    /// Guardrails that are there and cannot be read now, whatever is known of them from before.
    pub spoiled: BTreeSet<String>,
    /// E-mail of the Google service account of a ServiceAccount.
    pub accounts: BTreeMap<(String, String), String>,
    /// Labels of services.
    pub labels: BTreeMap<Service, BTreeMap<String, String>>,
    /// `before` of each record, by namespace and name, as the service and its grants.
    pub records: BTreeMap<(String, String), (Service, Vec<Grant>)>,
}

impl Declared {
    /// The guardrails of a namespace.
    pub fn rails<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Guardrail> {
        self.guardrails
            .values()
            .filter(move |g| !g.readable || g.selects(namespace))
    }

    /// Whether nothing may be done for a namespace because nobody knows what its guardrails say.
    pub fn is_frozen(&self, namespace: &str) -> bool {
        self.rails(namespace).any(|g| !g.readable)
    }

    pub fn readable(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().flatten()
    }

    /// Policies that mean a service and may touch it; those that are being deleted too.
    pub fn on<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Policy> {
        let labels = self.labels.get(service);
        self.readable()
            .filter(move |p| p.means(service, labels))
            .filter(move |p| self.rails(&p.namespace).all(|g| g.allows_service(service)))
    }

    fn grant(&self, policy: &Policy, entry: &Entry) -> Option<Grant> {
        let member = match &entry.who {
            Who::Member(m) => member_key(m),
            Who::Account(ns, name) => {
                let email = self
                    .accounts
                    .get(&(ns.clone(), name.clone()))
                    .filter(|e| is_account(e))?;
                format!("serviceAccount:{}", email.to_lowercase())
            }
        };
        Some(Grant {
            role: policy.role.clone(),
            member,
            condition: entry.condition.clone(),
        })
    }

    fn allowed(&self, namespace: &str, grant: &Grant, public: bool) -> bool {
        let mut rails = self.rails(namespace).peekable();
        if rails.peek().is_none() {
            public || !grant.is_public()
        } else {
            rails.all(|g| g.allows_grant(grant))
        }
    }

    /// What a policy's spec lists, ended or not, forbidden or not.
    pub fn spelled_out(&self, policy: &Policy) -> Vec<Grant> {
        policy
            .entries
            .iter()
            .filter_map(|e| self.grant(policy, e))
            .collect()
    }

    /// What a policy wants on a service now, by its spec: not ended, allowed.
    pub fn lists(&self, policy: &Policy, now: Timestamp, public: bool) -> Vec<Grant> {
        let mut all = self.spelled_out(policy);
        all.retain(|g| g.in_force(now) && self.allowed(&policy.namespace, g, public));
        all
    }

    /// Everything in the record that a policy goes back behind on a service, allowed or not.
    pub fn went_back_to(&self, policy: &Policy, service: &Service) -> Vec<Grant> {
        let records = policy
            .rollbacks
            .iter()
            .filter_map(|r| self.records.get(&(policy.namespace.clone(), r.clone())));
        records
            .filter(|(s, _)| s == service)
            .flat_map(|(_, before)| before.iter().cloned())
            .collect()
    }

    /// What a policy goes back to on a service; `None`: it does not go back there.
    pub fn goes_back_to(
        &self,
        policy: &Policy,
        service: &Service,
        now: Timestamp,
        public: bool,
    ) -> Option<Vec<Grant>> {
        let records = policy
            .rollbacks
            .iter()
            .filter_map(|r| self.records.get(&(policy.namespace.clone(), r.clone())));
        let (_, before) = records.rev().find(|(s, _)| s == service)?;
        let fits = |g: &&Grant| {
            g.role == policy.role
                && g.in_force(now)
                && self.allowed(&policy.namespace, g, public)
                && !g.member.starts_with("deleted:")
        };
        Some(before.iter().filter(fits).cloned().collect())
    }
}
