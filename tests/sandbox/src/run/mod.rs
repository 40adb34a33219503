//! A Cloud Run Admin API, v1 and v2, as far as services and their IAM policies go, and the state
//! that it shares with Google's other APIs ([`crate::google`]), which are served at the same address.
//!
//! Source: <https://cloud.google.com/run/docs/reference/rest>,
//! <https://docs.cloud.google.com/iam/docs/allow-policies> and error texts that users quote in
//! public reports. What is not known for sure is left out rather than invented.

pub mod audit;
mod gate;
pub mod policy;
pub(crate) mod rest;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{body::Body, http::Response};
use futures::future::BoxFuture;
use serde_json::{Value, json};

use crate::{
    clock::Clock,
    exchange::{Call, Handler},
    google::Google,
};
use audit::{Audit, Caller, Change};
use policy::StoredPolicy;

/// Project, region, name.
pub type ServiceKey = (String, String, String);

/// A Cloud Run service.
#[derive(Clone, Debug)]
pub struct Service {
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub invoker_iam_disabled: bool,
    /// Fields of the v2 service that stand for themselves: ingress, iapEnabled, customAudiences and
    /// the like.
    pub front: Value,
    pub created: String,
    pub generation: i64,
    pub policy: StoredPolicy,
}

/// How Google says no.
#[derive(Clone, Debug)]
pub struct Problem {
    pub code: u16,
    pub status: &'static str,
    pub message: String,
    pub details: Vec<Value>,
}

impl Problem {
    pub fn new(code: u16, status: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            status,
            message: message.into(),
            details: vec![],
        }
    }
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "INVALID_ARGUMENT", message)
    }
    /// The error document of Google's REST APIs.
    pub fn to_value(&self) -> Value {
        let mut error = json!({"code": self.code, "message": self.message, "status": self.status});
        if !self.details.is_empty() {
            error["details"] = json!(self.details);
        }
        json!({"error": error})
    }
}

/// What the world around Cloud Run looks like: who exists, what is allowed.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// E-mail addresses (and domains) that no identity has.
    pub unknown: BTreeSet<String>,
    /// If set, only members of these domains may be granted (`iam.allowedPolicyMemberDomains`).
    pub permitted_domains: Option<BTreeSet<String>>,
    /// (project, permission) that the caller lacks; a folder or an organization is written
    /// `folders/N`, `organizations/N`.
    pub denied: BTreeSet<(String, String)>,
    /// Credentials that came with a request do not count: they have expired.
    pub expired_credentials: bool,
    /// Projects in which the API is off.
    pub disabled: BTreeSet<String>,
    /// (consumer project, service) such as (`acme-prod`, `cloudasset.googleapis.com`): an API that
    /// is off. The project `*` stands for every consumer.
    pub disabled_services: BTreeSet<(String, String)>,
    /// Projects that may not pay for a call, and why.
    pub consumers: BTreeMap<String, ConsumerTrouble>,
    /// The project that the caller's credentials belong to, which pays where no quota project is
    /// named. Without it, the project that a request is about does.
    pub credentials_project: Option<String>,
    /// Projects behind a perimeter of VPC Service Controls that lets nobody in.
    pub perimeters: BTreeSet<String>,
    /// Custom constraints of the organization on allow policies.
    pub constraints: Vec<Constraint>,
    /// Requests per minute and consumer of an API other than Cloud Run, by service name, such as
    /// `iam.googleapis.com`: 5, the quota of IAM v2.
    pub quotas: BTreeMap<String, usize>,
    /// How long a change of a policy takes to be found by Cloud Asset's search. Where a resource
    /// hangs, and what a custom role contains, is found at once.
    pub search_delay: Duration,
    /// Projects that do not exist.
    pub gone: BTreeSet<String>,
    /// Regions that do not answer a listing over all regions.
    pub unreachable: BTreeSet<String>,
    /// Requests per minute for each project and region.
    pub read_quota: Option<usize>,
    pub write_quota: Option<usize>,
    /// Say only "Request contains an invalid argument." about unknown members.
    pub terse: bool,
    /// The most services or search results on a page, whatever the client asks for.
    pub page_cap: Option<usize>,
    /// Log sinks of projects, as the Logging API shows them.
    pub sinks: BTreeMap<String, Vec<Value>>,
    /// Pub/Sub subscriptions by name. Messages are carried by the emulator of Google, not here.
    pub subscriptions: BTreeMap<String, Value>,
}

/// Why a project may not pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsumerTrouble {
    /// There is no such project.
    Invalid,
    Suspended,
    BillingDisabled,
    /// The caller may not use it as a quota project.
    Denied,
}

/// A custom constraint on `iam.googleapis.com/AllowPolicy`, as far as members go.
#[derive(Clone, Debug)]
pub struct Constraint {
    /// `customConstraints/custom.NAME`.
    pub name: String,
    /// What it says to whoever is refused.
    pub display_name: String,
    /// How members begin that it forbids.
    pub forbids: Vec<String>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) services: BTreeMap<ServiceKey, Service>,
    pub(crate) world: World,
    /// What Google's other APIs know.
    pub(crate) google: Google,
    uids: u64,
    etags: Etags,
    /// Denials by perimeters so far: each has an identifier of its own.
    denials: u64,
    /// Times of requests by (consumer, region, is write), for quotas.
    used: BTreeMap<(String, String, bool), crate::quota::Minute>,
}

/// Etags of policies: 0x07 and the time of the change in microseconds, as etags in public samples
/// decode. Never twice the same.
#[derive(Debug, Default)]
pub(crate) struct Etags {
    last: i64,
}

impl Etags {
    pub(crate) fn next(&mut self, clock: &Clock) -> Vec<u8> {
        self.last = clock.now().as_microsecond().max(self.last + 1);
        let mut bytes = vec![0x07];
        bytes.extend_from_slice(&self.last.to_be_bytes()[1..]);
        bytes
    }
}

/// The API.
#[derive(Debug)]
pub struct Run {
    state: Mutex<State>,
    pub clock: Clock,
    pub audit: Audit,
}

impl Run {
    pub fn new(clock: Clock) -> Self {
        Self {
            state: Mutex::default(),
            clock,
            audit: Audit::default(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deploys a service; one that is there keeps its uid and its policy and gets the labels.
    pub fn deploy(&self, project: &str, region: &str, name: &str, labels: &[(&str, &str)]) {
        let (verb, key) = self.put(project, region, name, labels);
        self.enter_service("v1", verb, &key);
    }

    /// Deploys a function: a service like any other, by Cloud Functions' own way.
    pub fn deploy_function(
        &self,
        project: &str,
        region: &str,
        name: &str,
        labels: &[(&str, &str)],
    ) {
        let (verb, key) = self.put(project, region, name, labels);
        self.enter_service("internal", verb, &key);
    }

    fn put(
        &self,
        project: &str,
        region: &str,
        name: &str,
        labels: &[(&str, &str)],
    ) -> (&'static str, ServiceKey) {
        let labels: BTreeMap<_, _> = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let mut state = self.lock();
        state.uids += 1;
        let uid = format!("00000000-0000-4000-9000-{:012x}", state.uids);
        let created = self.clock.now().to_string();
        state.google.hierarchy.know_project(project, &created);
        let service = state
            .services
            .entry((project.into(), region.into(), name.into()))
            .or_insert_with(|| Service {
                uid,
                labels: BTreeMap::new(),
                invoker_iam_disabled: false,
                front: Value::Null,
                created,
                generation: 0,
                policy: StoredPolicy::default(),
            });
        service.labels = labels;
        service.generation += 1;
        let verb = if service.generation == 1 {
            "CreateService"
        } else {
            "ReplaceService"
        };
        (verb, (project.into(), region.into(), name.into()))
    }

    /// Enters a change of a service that somebody made in the console, or Cloud Functions did.
    fn enter_service(&self, version: &str, verb: &str, service: &ServiceKey) {
        let change = Change {
            version,
            verb,
            service,
            request: Value::Null,
            response: Value::Null,
            bindings: None,
            failed: None,
        };
        let caller = if version == "internal" {
            Caller::functions_robot()
        } else {
            Caller::console()
        };
        self.audit.enter(&self.clock, &caller, change);
    }

    /// Changes the policy of a service as somebody in the console does, who gives the etag that he
    /// read.
    fn edit(&self, service: &ServiceKey, edit: impl FnOnce(&mut StoredPolicy, Vec<u8>)) {
        let mut state = self.lock();
        let etag = state.etags.next(&self.clock);
        let Some(found) = state.services.get_mut(service) else {
            return;
        };
        let before = found.policy.view(3);
        edit(&mut found.policy, etag);
        let after = found.policy.view(3);
        state.changed(&self.clock, &service_name(service));
        let mut asked = after.clone();
        asked["etag"] = before["etag"].clone();
        let change = Change {
            version: "v1",
            verb: "SetIamPolicy",
            service,
            request: json!({"@type": "type.googleapis.com/google.iam.v1.SetIamPolicyRequest", "policy": asked}),
            response: with_type(&after),
            bindings: Some((before["bindings"].clone(), after["bindings"].clone())),
            failed: None,
        };
        self.audit.enter(&self.clock, &Caller::console(), change);
    }

    /// Deletes a service, and with it its policy.
    pub fn remove(&self, project: &str, region: &str, name: &str) -> bool {
        let key = (project.into(), region.into(), name.into());
        let mut state = self.lock();
        let was = state.services.remove(&key).is_some();
        state.changed(&self.clock, &service_name(&key));
        drop(state);
        if was {
            self.enter_service("v1", "DeleteService", &key);
        }
        was
    }

    /// Switches the invoker check of a service off or on.
    pub fn set_invoker_iam_disabled(
        &self,
        project: &str,
        region: &str,
        name: &str,
        disabled: bool,
    ) {
        let key = (project.into(), region.into(), name.into());
        if let Some(s) = self.lock().services.get_mut(&key)
            && s.invoker_iam_disabled != disabled
        {
            s.invoker_iam_disabled = disabled;
            s.generation += 1;
        } else {
            return;
        }
        self.enter_service("v2", "UpdateService", &key);
    }

    /// Changes who exists and what is allowed.
    pub fn change_world(&self, change: impl FnOnce(&mut World)) {
        let mut state = self.lock();
        change(&mut state.world);
        state.world_changed(&self.clock);
    }

    /// The policy of a service as a version 3 reader sees it, without a request.
    pub fn policy(&self, project: &str, region: &str, name: &str) -> Option<Value> {
        let state = self.lock();
        state
            .services
            .get(&(project.into(), region.into(), name.into()))
            .map(|s| s.policy.view(3))
    }

    /// Members of a role without a condition, sorted.
    pub fn members(&self, project: &str, region: &str, name: &str, role: &str) -> Vec<String> {
        let policy = self.policy(project, region, name).unwrap_or_default();
        let mut members: Vec<String> = policy["bindings"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|b| b["role"] == role && b["condition"].is_null())
            .flat_map(|b| b["members"].as_array().cloned().unwrap_or_default())
            .filter_map(|m| m.as_str().map(str::to_owned))
            .collect();
        members.sort();
        members
    }

    /// Replaces the bindings of a service as somebody else would, in one step and with a new etag.
    pub fn set_bindings(&self, project: &str, region: &str, name: &str, bindings: &Value) {
        let bindings = bindings.as_array().cloned().unwrap_or_default();
        self.edit(
            &(project.into(), region.into(), name.into()),
            |policy, etag| policy.replace(bindings, etag),
        );
    }

    /// Sets fields of the v2 service, as an update does.
    pub fn set_front(&self, project: &str, region: &str, name: &str, front: &Value) {
        let key = (project.into(), region.into(), name.into());
        match self.lock().services.get_mut(&key) {
            Some(s) => s.front = front.clone(),
            None => return,
        }
        self.enter_service("v2", "UpdateService", &key);
    }

    /// Adds one member to a role, as `add-iam-policy-binding` does.
    pub fn add_member(&self, project: &str, region: &str, name: &str, role: &str, member: &str) {
        self.edit_member(project, region, name, role, member, true);
    }

    /// Removes one member from a role, as `remove-iam-policy-binding` does.
    pub fn remove_member(&self, project: &str, region: &str, name: &str, role: &str, member: &str) {
        self.edit_member(project, region, name, role, member, false);
    }

    fn edit_member(
        &self,
        project: &str,
        region: &str,
        name: &str,
        role: &str,
        member: &str,
        add: bool,
    ) {
        self.edit(
            &(project.into(), region.into(), name.into()),
            |policy, etag| {
                policy.edit_member(role, member, add, etag);
            },
        );
    }

    /// Deletes an identity: its members turn into `deleted:…?uid=…` everywhere.
    pub fn delete_identity(&self, member: &str, uid: u64) {
        let mut state = self.lock();
        let etag = state.etags.next(&self.clock);
        let deleted = format!("deleted:{member}?uid={uid}");
        let mut renamed = Vec::new();
        for (key, service) in &mut state.services {
            if service.policy.rename_member(member, &deleted, &etag) {
                renamed.push(service_name(key));
            }
        }
        renamed.extend(
            state
                .google
                .hierarchy
                .rename_member(member, &deleted, &etag),
        );
        for name in renamed {
            state.changed(&self.clock, &name);
        }
        if let Some((_, email)) = member.split_once(':') {
            state.world.unknown.insert(email.to_owned());
        }
    }

    /// A service as it is.
    pub fn service(&self, project: &str, region: &str, name: &str) -> Option<Service> {
        self.lock()
            .services
            .get(&(project.into(), region.into(), name.into()))
            .cloned()
    }

    /// Who exists, and what is allowed.
    pub fn world(&self) -> World {
        self.lock().world.clone()
    }

    /// Every service's key.
    pub fn services(&self) -> Vec<ServiceKey> {
        self.lock().services.keys().cloned().collect()
    }
}

/// The relative resource name of a service.
pub(crate) fn service_name((project, region, name): &ServiceKey) -> String {
    format!("projects/{project}/locations/{region}/services/{name}")
}

/// A policy as an entry of the log has it.
pub(crate) fn with_type(policy: &Value) -> Value {
    let mut policy = policy.clone();
    policy["@type"] = json!("type.googleapis.com/google.iam.v1.Policy");
    policy
}

impl State {
    /// Refuses credentials that have expired.
    pub(crate) fn authenticate(&self) -> Result<(), Problem> {
        if self.world.expired_credentials {
            return Err(Problem::new(
                401,
                "UNAUTHENTICATED",
                "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project.",
            ));
        }
        Ok(())
    }
}

impl Handler for Run {
    fn handle(self: Arc<Self>, call: Call) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move { rest::answer(&self, &call) })
    }
}
