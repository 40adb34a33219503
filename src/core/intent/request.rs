//! From a raw `InvokerAccessRequest` to what it asks for, and to what it declares once somebody
//! agreed: a policy that adds one invoker and ends.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::{Declared, PolicyId, PolicyKey, WITHSTANDS, digest, parse_interval};
use crate::{
    api::{
        FINALIZER, InvokerAccessRequest, InvokerAccessRequestSpec, InvokerPolicy,
        InvokerPolicySpec, InvokerSpec, Membership, Mode, OnDelete, RoleName, ServiceSpec,
    },
    iam::{Condition, Grant, Principal, Role, RunService},
};

/// How long a request waits for somebody to agree.
const PATIENCE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Somebody asks for access.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessRequest {
    /// Its place among policies.
    pub key: PolicyKey,
    pub uid: Arc<str>,
    pub principal: Principal,
    pub duration: Duration,
    pub reason: Arc<str>,
    /// Stands for the request and for what it would grant: what an approval names. The uid is in it,
    /// so an approval is never about another request under its name.
    pub plan: Arc<str>,
    pub created: Timestamp,
    /// The object as far as a declaration needs it.
    meta: ObjectMeta,
    spec: InvokerAccessRequestSpec,
}

impl AccessRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// The field that cannot be understood, in words; then it asks for nothing.
    pub fn from_object(object: &InvokerAccessRequest) -> Result<Self, String> {
        let (meta, spec) = (&object.metadata, &object.spec);
        let duration = parse_interval(&spec.duration).ok_or_else(|| {
            format!(
                "spec.duration {:?} is not a duration such as 1h",
                spec.duration
            )
        })?;
        let principal = Principal::parse(&spec.member).map_err(|e| format!("spec.member: {e}"))?;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let key = PolicyKey::of_request(namespace, meta.name.as_deref().unwrap_or_default());
        let uid = meta.uid.as_deref().unwrap_or_default();
        let mut said = serde_json::to_value(spec).unwrap_or_default();
        said.sort_all_objects();
        let said = said.to_string();
        Ok(Self {
            plan: digest(WITHSTANDS, [namespace, &*key.name, uid, said.as_str()]),
            key,
            uid: uid.into(),
            principal,
            duration,
            reason: spec.reason.as_str().into(),
            created: meta
                .creation_timestamp
                .as_ref()
                .map_or(Timestamp::MIN, |t| t.0),
            meta: ObjectMeta {
                namespace: meta.namespace.clone(),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
                generation: meta.generation,
                finalizers: meta.finalizers.clone(),
                deletion_timestamp: meta.deletion_timestamp.clone(),
                ..ObjectMeta::default()
            },
            spec: spec.clone(),
        })
    }

    /// The project of its services.
    pub fn project(&self) -> &str {
        &self.spec.project
    }

    /// What it is called among policies.
    pub fn id(&self) -> PolicyId {
        PolicyId {
            namespace: self.key.namespace.clone(),
            name: self.key.name.clone(),
            uid: self.uid.clone(),
        }
    }

    /// The generation of the object.
    pub fn generation(&self) -> i64 {
        self.meta.generation.unwrap_or_default()
    }

    /// Its name, as people write it.
    pub fn name(&self) -> &str {
        self.key.request().unwrap_or(&self.key.name)
    }

    /// Whether the object is marked for deletion.
    pub fn is_deleting(&self) -> bool {
        self.meta.deletion_timestamp.is_some()
    }

    /// Whether its deletion waits until what it was given is gone.
    pub fn has_finalizer(&self) -> bool {
        let mut finalizers = self.meta.finalizers.iter().flatten();
        finalizers.any(|f| f == FINALIZER)
    }

    /// The same with or without that finalizer.
    #[must_use]
    pub fn with_finalizer(&self, present: bool) -> Self {
        let mut request = self.clone();
        let finalizers = request.meta.finalizers.get_or_insert_default();
        finalizers.retain(|f| f != FINALIZER);
        if present {
            finalizers.push(FINALIZER.into());
        }
        request
    }

    /// The services that it names; those of its selectors are not known here.
    pub fn named(&self) -> impl Iterator<Item = RunService> {
        let named = |s: &ServiceSpec| {
            let (name, region) = (s.name.as_deref()?, s.region.as_deref()?);
            Some(RunService::new(&*self.spec.project, region, name))
        };
        self.spec.services.iter().filter_map(named)
    }

    /// Whether it asks for services by their labels.
    pub fn has_selector(&self) -> bool {
        self.spec.services.iter().any(|s| s.selector.is_some())
    }

    /// What it would grant, until `end`.
    pub fn declared(&self, end: Timestamp) -> Declared {
        let role = match self.spec.role {
            RoleName::Invoker => Role::Invoker,
            RoleName::ServicesInvoker => Role::ServicesInvoker,
        };
        let mut grant = Grant::new(self.principal.clone(), role);
        grant.condition = Some(Arc::new(Condition::expiring(end, None)));
        Declared {
            grant,
            expires: Some(end),
        }
    }

    /// What it would do, in the words that an approval may show a reviewer.
    pub fn lines(&self) -> Vec<String> {
        let (member, time, project) = (&self.principal, &self.spec.duration, &self.spec.project);
        let place = |s: &ServiceSpec| match (&s.name, &s.region, &s.selector) {
            (Some(name), Some(region), _) => format!("{project}/{region}/{name}"),
            (_, _, Some(selector)) => {
                let selector = serde_json::to_string(selector).unwrap_or_default();
                format!("services of {project} with {selector}")
            }
            _ => format!("nothing of {project}"),
        };
        let services = self.spec.services.iter();
        let grant = |s| format!("grant {member} on {} for {time}", place(s));
        services.map(grant).collect()
    }

    /// When access ends that is approved at `now`.
    pub fn end(&self, now: Timestamp) -> Timestamp {
        let end = now.checked_add(SignedDuration::try_from(self.duration).unwrap_or_default());
        let end = end.unwrap_or(Timestamp::MAX);
        Timestamp::from_second(end.as_second()).unwrap_or(end)
    }

    /// Until when somebody may agree to it.
    pub fn waits_until(&self) -> Timestamp {
        let end = self.created.checked_add(PATIENCE);
        end.unwrap_or(Timestamp::MAX)
    }

    /// What it declares once it is granted until `end`: one invoker more, nobody less. `over`: what
    /// was granted is to go, as with a policy that is deleted.
    pub fn declaration(&self, end: Timestamp, over: bool) -> InvokerPolicy {
        let spec = InvokerPolicySpec {
            project: self.spec.project.clone(),
            services: self.spec.services.clone(),
            invokers: vec![InvokerSpec {
                member: Some(self.spec.member.clone()),
                expires: Some(end.to_string()),
                ..InvokerSpec::default()
            }],
            role: self.spec.role,
            mode: Mode::Enforce,
            membership: Membership::Additive,
            on_delete: OnDelete::Revoke,
            interval: "5m".into(),
            suspend: false,
            allow_empty: false,
        };
        let mut metadata = self.meta.clone();
        metadata.name = Some(self.key.name.to_string());
        if over && metadata.deletion_timestamp.is_none() {
            metadata.deletion_timestamp = Some(Time(end));
        }
        InvokerPolicy {
            metadata,
            spec,
            status: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::intent::Intent;

    fn read(uid: &str, spec: Value) -> Result<AccessRequest, String> {
        let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerAccessRequest",
            "metadata": {"namespace": "n", "name": "inc-1", "uid": uid, "creationTimestamp": "2026-11-26T12:00:00Z", "generation": 1},
            "spec": spec});
        AccessRequest::from_object(&serde_json::from_value(object).unwrap())
    }
    fn spec() -> Value {
        json!({"project": "acme-prod", "services": [{"name": "web", "region": "europe-west1"}],
            "member": "user:ada@acme.com", "duration": "1h30m", "reason": "INC-1"})
    }

    #[test]
    fn what_is_granted_is_one_invoker_more_that_ends() {
        let request = read("1", spec()).unwrap();
        let now = "2026-11-26T12:00:00.4Z".parse().unwrap();
        let end = request.end(now);
        assert_eq!(end.to_string(), "2026-11-26T13:30:00Z");
        let intent = Intent::from_policy(&request.declaration(end, false));
        assert!(intent.rejections.is_empty() && intent.enforces() && !intent.is_complete());
        assert_eq!(*intent.declared, [request.declared(end)]);
        assert_eq!(intent.id.to_string(), "n/request/inc-1");
        assert_eq!(intent.id.request(), Some("inc-1"));
        assert!(!intent.deleting && Intent::from_policy(&request.declaration(end, true)).deleting);
    }

    #[test]
    fn an_approval_is_for_one_request_and_for_what_it_asks() {
        let plan = |uid: &str, spec: Value| read(uid, spec).unwrap().plan;
        let mut longer = spec();
        longer["duration"] = json!("2h");
        assert_eq!(plan("1", spec()), plan("1", spec()));
        assert_ne!(
            plan("1", spec()),
            plan("2", spec()),
            "made anew under its name"
        );
        assert_ne!(plan("1", spec()), plan("1", longer));
    }
}
