//! A Kubernetes API server for custom resources, Events, Leases and the few built-in kinds around
//! them.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/>.

pub mod access;
pub mod docs;
pub mod managed;
pub mod mutating;
pub mod protobuf;
pub mod registry;
pub mod schema;
pub mod select;
pub mod status;
pub mod store;
pub mod table;
pub mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::{body::Body, http::Response};
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};

use crate::{
    clock::Clock,
    exchange::{Call, Handler, json as answer},
};
use managed::Manager;
use registry::Resource;
use schema::Schema;
use select::Selector;
use status::{Cause, Refusal, full_name};
use store::{Key, Store, Table};

const CRD: (&str, &str) = ("apiextensions.k8s.io", "customresourcedefinitions");
/// What etcd takes in one request unless it is told otherwise:
/// <https://etcd.io/docs/v3.6/dev-guide/limit/>.
const MAX_OBJECT: usize = 3 * 1024 * 1024 / 2;

#[derive(Debug)]
struct State {
    store: Store,
    resources: Vec<Resource>,
    uids: u64,
}

/// Tells watches of every change. No watch channel: that wakes its receivers in an order of chance.
#[derive(Debug, Default)]
struct Changed {
    notify: tokio::sync::Notify,
}

impl Changed {
    fn raise(&self) {
        self.notify.notify_waiters();
    }
    fn next(&self) -> tokio::sync::futures::Notified<'_> {
        self.notify.notified()
    }
}

/// The API server.
#[derive(Debug)]
pub struct Kube {
    state: Mutex<State>,
    changed: Changed,
    clock: Clock,
}

/// A path below `/api` or `/apis`, taken apart; whether it is served is another question.
struct Place {
    group: String,
    version: String,
    plural: String,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<String>,
}

impl Place {
    fn of(call: &Call) -> Option<Self> {
        let parts: Vec<&str> = call.path.split('/').filter(|p| !p.is_empty()).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let own = |s: &str| Some(s.to_owned());
        // `namespaces/X` alone is the namespace itself, `namespaces/X/status` its status.
        let (namespace, plural, tail) = match rest {
            ["namespaces", ns, plural, tail @ ..]
                if *plural != "status" && *plural != "finalize" =>
            {
                (own(ns), *plural, tail)
            }
            [plural, tail @ ..] => (None, *plural, tail),
            [] => return None,
        };
        let (name, subresource) = match tail {
            [] => (None, None),
            [name] => (own(name), None),
            [name, sub] => (own(name), own(sub)),
            _ => return None,
        };
        Some(Self {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: plural.to_owned(),
            namespace,
            name,
            subresource,
        })
    }

    fn table(&self) -> Table {
        table_of(&self.group, &self.plural)
    }
}

/// Events are one thing in two groups.
fn table_of(group: &str, plural: &str) -> Table {
    let group = match plural {
        "events" => "events.k8s.io",
        _ => group,
    };
    (group.to_owned(), plural.to_owned())
}

/// What is served there.
struct Target {
    resource: Resource,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<String>,
}

impl Target {
    fn table(&self) -> Table {
        table_of(&self.resource.group, &self.resource.plural)
    }
    fn key(&self, name: &str) -> Key {
        let namespace = if self.resource.namespaced {
            self.namespace.clone().unwrap_or_default()
        } else {
            String::new()
        };
        (namespace, name.to_owned())
    }
    fn not_found(&self, name: &str) -> Refusal {
        Refusal::not_found(&self.resource.group, &self.resource.plural, name)
    }
}

/// How a new state of an object came about.
struct Writing {
    manager: Manager,
    /// Ownership was settled by server-side apply already.
    applied: bool,
    dry_run: bool,
    strict: bool,
    /// Who writes.
    user: String,
}

impl Kube {
    pub fn new(clock: Clock) -> Self {
        Self::serving(clock, registry::builtins())
    }

    /// Serves these kinds. Definitions take long to compile: several servers can share them (see
    /// [`Kube::resources`]).
    pub fn serving(clock: Clock, resources: Vec<Resource>) -> Self {
        let kube = Self {
            state: Mutex::new(State {
                store: Store::default(),
                resources,
                uids: 0,
            }),
            changed: Changed::default(),
            clock,
        };
        for name in ["default", "kube-system"] {
            let mut state = kube.lock();
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "uid": uid(&mut state),
                "creationTimestamp": kube.now()}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
            state.store.put(
                &(String::new(), "namespaces".into()),
                &(String::new(), name.into()),
                object,
            );
        }
        kube
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> String {
        self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// Every object of a kind, without a request: for measuring.
    pub fn objects(&self, group: &str, plural: &str) -> Vec<Arc<Value>> {
        self.lock()
            .store
            .list(&(group.to_owned(), plural.to_owned()), None)
    }

    /// The kinds that are served.
    pub fn resources(&self) -> Vec<Resource> {
        self.lock().resources.clone()
    }

    /// Puts an object into the store as it is, past every check: what another version, or an older
    /// definition, let in.
    pub fn force(&self, group: &str, plural: &str, mut object: Value) {
        let mut state = self.lock();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let key = (
            text(&object["metadata"]["namespace"]),
            text(&object["metadata"]["name"]),
        );
        let table = (group.to_owned(), plural.to_owned());
        let kept = state.store.get(&table, &key);
        for (field, fresh) in [
            ("uid", json!(uid(&mut state))),
            ("creationTimestamp", json!(self.now())),
        ] {
            if object["metadata"][field].is_null() {
                object["metadata"][field] = kept
                    .as_ref()
                    .map_or(fresh, |k| k["metadata"][field].clone());
            }
        }
        let generation = kept
            .as_ref()
            .and_then(|k| k["metadata"]["generation"].as_i64())
            .unwrap_or(0);
        object["metadata"]["generation"] = json!(generation + 1);
        state.store.put(&table, &key, object);
        drop(state);
        self.changed.raise();
    }

    /// Every change after a version, in order, without a request; and the version that this leads
    /// up to.
    pub fn history_since(&self, version: u64) -> (u64, Vec<store::Change>) {
        let state = self.lock();
        (state.store.version(), state.store.all_since(version))
    }

    /// Forgets all history: watches from before get 410 Gone.
    pub fn compact(&self) {
        self.lock().store.compact();
        self.changed.raise();
    }

    /// How many changes watches can look back.
    pub fn set_log_capacity(&self, capacity: usize) {
        self.lock().store.log_capacity = capacity;
    }

    fn route(&self, place: Place) -> Result<Target, Refusal> {
        let resource = self
            .lock()
            .resources
            .iter()
            .find(|r| {
                r.group == place.group && r.version == place.version && r.plural == place.plural
            })
            .cloned()
            .ok_or_else(Refusal::no_such_path)?;
        let nowhere = resource.namespaced && place.namespace.is_none() && place.name.is_some();
        let served = |s: &String| s == "status" && resource.status_subresource;
        if nowhere || !place.subresource.as_ref().is_none_or(served) {
            return Err(Refusal::no_such_path());
        }
        Ok(Target {
            resource,
            namespace: place.namespace,
            name: place.name,
            subresource: place.subresource,
        })
    }

    fn handle_call(self: &Arc<Self>, call: &Call) -> Result<Response<Body>, Refusal> {
        let method = call.method.as_str();
        if method == "GET"
            && let Some(document) = self.document(call)
        {
            return document;
        }
        if method == "POST"
            && let Some(review) = self.review(call)
        {
            return review;
        }
        let place = Place::of(call).ok_or_else(Refusal::no_such_path)?;
        // Who may not ask does not hear what there is.
        self.authorize(call, &place)?;
        let target = self.route(place)?;
        match (method, &target.name) {
            ("GET", None) if call.flag("watch") => watch::serve(
                self,
                call,
                &target.resource,
                &target.table(),
                target.namespace.as_deref(),
            ),
            ("GET", None) => self.list(call, &target),
            ("GET", Some(name)) => self.get(call, &target, name),
            ("POST", None) => self.create(call, &target),
            ("PUT", Some(name)) => self.update(call, &target, name),
            ("PATCH", Some(name)) => self.patch(call, &target, name),
            ("DELETE", Some(name)) => self.delete(call, &target, name),
            ("DELETE", None) => self.delete_collection(call, &target),
            _ => Err(Refusal::new(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            )),
        }
    }

    /// What whoever calls may do, and who that is: anybody may ask.
    ///
    /// Source: <https://kubernetes.io/docs/reference/access-authn-authz/authorization/#checking-api-access>,
    /// <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#self-subject-review>.
    fn review(&self, call: &Call) -> Option<Result<Response<Body>, Refusal>> {
        let account = access::service_account(call.header("authorization"));
        let path = call.path.trim_end_matches('/');
        if !path.starts_with("/apis/auth") {
            return None;
        }
        let mut review = match Self::parse(call) {
            Ok(review) => review,
            Err(refusal) => return Some(Err(refusal)),
        };
        match path {
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" => {
                let wanted = &review["spec"]["resourceAttributes"];
                let text = |k: &str| wanted[k].as_str().filter(|t| !t.is_empty());
                let wants = access::Attributes {
                    verb: text("verb").unwrap_or_default(),
                    group: text("group").unwrap_or_default(),
                    resource: text("resource").unwrap_or_default(),
                    subresource: text("subresource"),
                    namespace: text("namespace"),
                    name: text("name"),
                };
                let state = self.lock();
                let allowed =
                    account.is_none_or(|a| access::authorize(&state.store, a, &wants).is_ok());
                review["status"] = json!({"allowed": allowed});
            }
            "/apis/authentication.k8s.io/v1/selfsubjectreviews" => {
                let name = access::username(call.header("authorization"));
                review["status"] =
                    json!({"userInfo": {"username": name, "groups": ["system:authenticated"]}});
            }
            _ => return None,
        }
        Some(Ok(answer(201, &review)))
    }

    /// Asks whether who calls may do this.
    fn authorize(&self, call: &Call, place: &Place) -> Result<(), Refusal> {
        let Some(account) = access::service_account(call.header("authorization")) else {
            return Ok(());
        };
        let verb = match (call.method.as_str(), &place.name) {
            ("GET", None) if call.flag("watch") => "watch",
            ("GET", None) => "list",
            ("GET", Some(_)) => "get",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", Some(_)) => "delete",
            ("DELETE", None) => "deletecollection",
            _ => return Ok(()),
        };
        // A field selector for one name counts as the name.
        let by_field = call
            .param("fieldSelector")
            .and_then(|f| f.strip_prefix("metadata.name="));
        let name = place.name.as_deref().or(by_field);
        // A namespace lies in itself: a RoleBinding in it may be about it.
        let itself = name.filter(|_| place.group.is_empty() && place.plural == "namespaces");
        let wants = access::Attributes {
            verb,
            group: &place.group,
            resource: &place.plural,
            subresource: place.subresource.as_deref(),
            namespace: place.namespace.as_deref().or(itself),
            name,
        };
        let state = self.lock();
        access::authorize(&state.store, account, &wants)?;
        // Server-side apply that makes an object needs the right to create as well.
        let is_absent = |name: &String| {
            let namespace = place.namespace.clone().unwrap_or_default();
            let key = (namespace, name.clone());
            state.store.get(&place.table(), &key).is_none()
        };
        if verb == "patch"
            && place.subresource.is_none()
            && place.name.as_ref().is_some_and(is_absent)
        {
            let create = access::Attributes {
                verb: "create",
                ..wants
            };
            access::authorize(&state.store, account, &create)?;
        }
        Ok(())
    }

    /// Everything that describes the API itself.
    fn document(&self, call: &Call) -> Option<Result<Response<Body>, Refusal>> {
        let aggregated = call.header("accept").contains("as=APIGroupDiscoveryList")
            && call.header("accept").contains("v=v2;");
        let path = call.path.trim_end_matches('/');
        let resources = self.lock().resources.clone();
        let found = |v: Value| Some(Ok(answer(200, &v)));
        let with_type = |v: Value| {
            let mut r = answer(200, &v);
            r.headers_mut().insert(
                "content-type",
                axum::http::HeaderValue::from_static(
                    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                ),
            );
            Some(Ok(r))
        };
        match path {
            "/healthz" | "/livez" | "/readyz" => Some(Ok(Response::new(Body::from("ok")))),
            "/version" => found(
                json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0-sandbox", "gitCommit": "", "gitTreeState": "clean",
                "buildDate": "2026-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64"}),
            ),
            "/api" if aggregated => with_type(docs::aggregated(&resources, true)),
            "/apis" if aggregated => with_type(docs::aggregated(&resources, false)),
            "/api" => found(
                json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
            ),
            "/apis" => found(docs::group_list(&resources)),
            "/openapi/v3" => found(docs::openapi_index(&resources)),
            _ => {
                if let Some(rest) = path.strip_prefix("/openapi/v3/") {
                    return Some(
                        docs::openapi(&resources, rest)
                            .map(|d| answer(200, &d))
                            .ok_or_else(Refusal::no_such_path),
                    );
                }
                let parts: Vec<&str> = path.split('/').skip(1).collect();
                match parts.as_slice() {
                    ["api", "v1"] => {
                        docs::resource_list(&resources, "", "v1").map(|v| Ok(answer(200, &v)))
                    }
                    ["apis", group] => Some(
                        docs::group_of(&resources, group)
                            .map(|v| answer(200, &v))
                            .ok_or_else(Refusal::no_such_path),
                    ),
                    ["apis", group, version] => Some(
                        docs::resource_list(&resources, group, version)
                            .map(|v| answer(200, &v))
                            .ok_or_else(Refusal::no_such_path),
                    ),
                    _ => None,
                }
            }
        }
    }

    /// An object in the form of the version and group that was asked for.
    fn present(resource: &Resource, object: &Value) -> Value {
        if resource.plural == "events" {
            return watch::event_in(resource, object);
        }
        let mut shown = object.clone();
        shown["apiVersion"] = json!(resource.api_version());
        shown
    }

    fn get(&self, call: &Call, target: &Target, name: &str) -> Result<Response<Body>, Refusal> {
        let found = self
            .lock()
            .store
            .get(&target.table(), &target.key(name))
            .ok_or_else(|| target.not_found(name))?;
        let object = Self::present(&target.resource, &found);
        Ok(self.shaped(
            call,
            &target.resource,
            &[&object],
            json!({"resourceVersion": object["metadata"]["resourceVersion"]}),
            Some(&object),
        ))
    }

    fn list(&self, call: &Call, target: &Target) -> Result<Response<Body>, Refusal> {
        let selector = self.selector(call, &target.resource)?;
        let mut state = self.lock();
        let limit = call
            .param("limit")
            .and_then(|l| l.parse::<usize>().ok())
            .filter(|l| *l > 0);
        let (version, all) = match call.param("continue").filter(|c| !c.is_empty()) {
            Some(token) => token.parse().ok().and_then(|t| state.store.rest(t)).ok_or_else(|| {
                Refusal::new(410, "Expired", "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.")
            })?,
            None => {
                let asked = call.param("resourceVersion").and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
                if asked > state.store.version() {
                    return Err(Refusal::new(504, "Timeout", format!("Too large resource version: {asked}, current: {}", state.store.version())));
                }
                let all = state.store.list(&target.table(), target.namespace.as_deref());
                // Only events look different in their two groups; a copy of every object would be
                // most of a list's time.
                let events = target.resource.plural == "events";
                let matches = |o: &Arc<Value>| {
                    if events { selector.matches(&Self::present(&target.resource, o)) } else { selector.matches(o) }
                };
                let all: Vec<_> = all.into_iter().filter(matches).collect();
                (state.store.version(), all)
            }
        };
        let mut meta = json!({"resourceVersion": version.to_string(), "continue": ""});
        let (chunk, rest) = match limit {
            Some(limit) if all.len() > limit => (all[..limit].to_vec(), all[limit..].to_vec()),
            _ => (all, vec![]),
        };
        if !rest.is_empty() {
            meta["remainingItemCount"] = json!(rest.len());
            meta["continue"] = json!(state.store.keep_rest(version, rest).to_string());
        }
        drop(state);
        let items: Vec<Value> = chunk
            .iter()
            .map(|o| Self::present(&target.resource, o))
            .collect();
        let views: Vec<&Value> = items.iter().collect();
        Ok(self.shaped(call, &target.resource, &views, meta, None))
    }

    /// A list, a single object, or either as a Table or as metadata only.
    fn shaped(
        &self,
        call: &Call,
        resource: &Resource,
        items: &[&Value],
        meta: Value,
        single: Option<&Value>,
    ) -> Response<Body> {
        let accept = call.header("accept");
        if accept.contains("as=Table") {
            let include = call.param("includeObject").unwrap_or("Metadata");
            return answer(
                200,
                &table::table(resource, items, meta, include, self.clock.now()),
            );
        }
        if accept.contains("as=PartialObjectMetadata") {
            let short = |o: &Value| json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": o["metadata"]});
            return match single {
                Some(object) => answer(200, &short(object)),
                None => answer(
                    200,
                    &json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta,
                    "items": items.iter().map(|o| short(o)).collect::<Vec<_>>()}),
                ),
            };
        }
        match single {
            Some(object) => answer(200, object),
            None => answer(
                200,
                &json!({"kind": resource.list_kind, "apiVersion": resource.api_version(), "metadata": meta, "items": items}),
            ),
        }
    }

    fn selector(&self, call: &Call, resource: &Resource) -> Result<Selector, Refusal> {
        let selector = Selector::parse(call.param("labelSelector"), call.param("fieldSelector"))?;
        if let Some(known) = &resource.selectable
            && let Some(strange) = selector.field_paths().find(|p| {
                *p != "metadata.name" && *p != "metadata.namespace" && !known.iter().any(|k| k == p)
            })
        {
            return Err(Refusal::bad_request(format!(
                "field label not supported: {strange}"
            )));
        }
        Ok(selector)
    }

    fn writing(call: &Call, target: &Target, apply: bool) -> Result<Writing, Refusal> {
        let manager = match call.param("fieldManager").filter(|m| !m.is_empty()) {
            Some(m) => m.to_owned(),
            None if apply => {
                let cause = Cause {
                    reason: "FieldValueRequired",
                    field: "fieldManager".into(),
                    message: "Required value: is required for apply patch".into(),
                };
                return Err(Refusal::invalid(
                    "meta.k8s.io",
                    "PatchOptions",
                    "",
                    &[cause],
                ));
            }
            None => call
                .header("user-agent")
                .split('/')
                .next()
                .filter(|s| !s.is_empty())
                .unwrap_or("unknown")
                .to_owned(),
        };
        Ok(Writing {
            manager: Manager {
                name: manager,
                apply,
                subresource: target.subresource.clone().unwrap_or_default(),
                api_version: target.resource.api_version(),
            },
            applied: false,
            dry_run: call.param("dryRun") == Some("All"),
            strict: call.param("fieldValidation") == Some("Strict"),
            user: access::username(call.header("authorization")),
        })
    }

    fn parse(call: &Call) -> Result<Value, Refusal> {
        if call.header("content-type").contains("yaml") {
            let text = String::from_utf8_lossy(&call.body);
            return serde_saphyr::from_str(&text)
                .map_err(|e| Refusal::bad_request(format!("error decoding YAML: {e}")));
        }
        if call.header("content-type").contains("protobuf") {
            return protobuf::read(&call.body)
                .map_err(|why| Refusal::new(415, "UnsupportedMediaType", why));
        }
        serde_json::from_slice(&call.body)
            .map_err(|e| Refusal::bad_request(format!("the object provided is unrecognized: {e}")))
    }

    fn create(&self, call: &Call, target: &Target) -> Result<Response<Body>, Refusal> {
        let object = Self::parse(call)?;
        let writing = Self::writing(call, target, false)?;
        let mut state = self.lock();
        let created = self.create_locked(&mut state, target, object, &writing)?;
        drop(state);
        self.changed.raise();
        Ok(self
            .shaped(
                call,
                &target.resource,
                &[&created],
                json!({}),
                Some(&created),
            )
            .map_status(201))
    }

    fn create_locked(
        &self,
        state: &mut State,
        target: &Target,
        mut object: Value,
        writing: &Writing,
    ) -> Result<Value, Refusal> {
        let resource = &target.resource;
        if object["kind"].as_str().is_some_and(|k| k != resource.kind) {
            return Err(Refusal::bad_request(format!(
                "{} in version \"{}\" cannot be handled as a {}: no kind \"{}\" is registered",
                resource.kind,
                resource.version,
                resource.kind,
                object["kind"].as_str().unwrap_or_default()
            )));
        }
        object["kind"] = json!(resource.kind);
        object["apiVersion"] = json!(resource.api_version());
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        let meta = &mut object["metadata"];
        if meta["name"].as_str().unwrap_or_default().is_empty() {
            match meta["generateName"].as_str() {
                Some(prefix) if !prefix.is_empty() => {
                    state.uids += 1;
                    let name = format!("{prefix}{:05x}", (state.uids * 7919) % 0xfffff);
                    meta["name"] = json!(name);
                }
                _ => {
                    let mut causes = vec![Cause {
                        reason: "FieldValueRequired",
                        field: "metadata.name".into(),
                        message: "Required value: name or generateName is required".into(),
                    }];
                    causes.extend(
                        resource
                            .schema
                            .iter()
                            .flat_map(|s| s.validate(&object, None, "")),
                    );
                    return Err(Refusal::invalid(
                        &resource.group,
                        &resource.kind,
                        "",
                        &causes,
                    ));
                }
            }
        }
        if resource.namespaced {
            let namespace = target.namespace.clone().unwrap_or_else(|| "default".into());
            if meta["namespace"].as_str().is_some_and(|n| n != namespace) {
                return Err(Refusal::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            meta["namespace"] = json!(namespace);
            let ns = state.store.get(
                &(String::new(), "namespaces".into()),
                &(String::new(), namespace.clone()),
            );
            match ns {
                None => return Err(Refusal::not_found("", "namespaces", &namespace)),
                Some(ns) if ns["metadata"]["deletionTimestamp"].is_string() => {
                    let why = format!(
                        "unable to create new content in namespace {namespace} because it is being terminated"
                    );
                    let name = meta["name"].as_str().unwrap_or_default();
                    let full = full_name(&resource.group, &resource.plural);
                    let cause = json!({"reason": "NamespaceTerminating", "field": "metadata.namespace",
                        "message": format!("namespace {namespace} is being terminated")});
                    return Err(Refusal {
                        details: json!({"name": name, "group": resource.group, "kind": resource.plural, "causes": [cause]}),
                        ..Refusal::new(
                            403,
                            "Forbidden",
                            format!("{full} \"{name}\" is forbidden: {why}"),
                        )
                    });
                }
                Some(_) => {}
            }
        }
        let name = meta["name"].as_str().unwrap_or_default().to_owned();
        if !valid_name(&name) {
            return Err(Refusal::invalid(
                &resource.group,
                &resource.kind,
                &name,
                &[Cause {
                    reason: "FieldValueInvalid",
                    field: "metadata.name".into(),
                    message: format!(
                        "Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"
                    ),
                }],
            ));
        }
        if state
            .store
            .get(&target.table(), &target.key(&name))
            .is_some()
        {
            return Err(Refusal {
                details: json!({"name": name, "group": resource.group, "kind": resource.plural}),
                ..Refusal::new(
                    409,
                    "AlreadyExists",
                    format!(
                        "{} \"{name}\" already exists",
                        full_name(&resource.group, &resource.plural)
                    ),
                )
            });
        }
        if meta["resourceVersion"]
            .as_str()
            .is_some_and(|v| !v.is_empty())
        {
            return Err(Refusal::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        if let Some(map) = meta.as_object_mut() {
            for key in [
                "uid",
                "creationTimestamp",
                "deletionTimestamp",
                "generation",
                "resourceVersion",
                "selfLink",
            ] {
                map.remove(key);
            }
            map.insert("uid".into(), json!(uid(state)));
            map.insert("creationTimestamp".into(), json!(self.now()));
            if resource.custom || resource.plural == CRD.1 {
                map.insert("generation".into(), json!(1));
            }
        }
        if resource.status_subresource
            && resource.custom
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
        if resource.plural == "namespaces" {
            object["spec"] = json!({"finalizers": ["kubernetes"]});
            object["status"] = json!({"phase": "Active"});
        }
        let object = self.admit(&state.store, target, None, object, writing)?;
        if writing.dry_run {
            return Ok(Self::present(resource, &object));
        }
        let stored = state.store.put(&target.table(), &target.key(&name), object);
        self.after_write(state, target, &stored);
        Ok(Self::present(resource, &stored))
    }

    /// Defaulting, pruning, validation, ownership and mutation: what every write goes through. What
    /// a mutation does belongs to nobody, as upstream; that it is not validated is not as upstream.
    fn admit(
        &self,
        store: &Store,
        target: &Target,
        old: Option<&Value>,
        mut new: Value,
        writing: &Writing,
    ) -> Result<Value, Refusal> {
        let resource = &target.resource;
        let name = new["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let schema: Option<&Schema> = resource.schema.as_deref();
        if let Some(schema) = schema {
            let mut unknown = Vec::new();
            let meta = new["metadata"].clone();
            let (kind, version) = (new["kind"].clone(), new["apiVersion"].clone());
            if let Some(map) = new.as_object_mut() {
                for k in ["metadata", "kind", "apiVersion"] {
                    map.remove(k);
                }
            }
            schema.prune(&mut new, "", &mut unknown);
            schema.default_into(&mut new);
            new["metadata"] = meta;
            new["kind"] = kind;
            new["apiVersion"] = version;
            if !unknown.is_empty() && writing.strict {
                let list: Vec<String> = unknown
                    .iter()
                    .map(|u| format!("unknown field \"{u}\""))
                    .collect();
                return Err(Refusal::bad_request(format!(
                    "{} in version \"{}\" cannot be handled as a {}: strict decoding error: {}",
                    resource.kind,
                    resource.version,
                    resource.kind,
                    list.join(", ")
                )));
            }
            let view = schema::root_for_rules(&new);
            let old_view = old.map(schema::root_for_rules);
            let mut body = view.clone();
            if let Some(map) = body.as_object_mut() {
                for k in ["kind", "apiVersion"] {
                    map.remove(k);
                }
            }
            let causes = schema.validate(&body, old_view.as_ref(), "");
            if !causes.is_empty() {
                return Err(Refusal::invalid(
                    &resource.group,
                    &resource.kind,
                    &name,
                    &causes,
                ));
            }
        }
        if resource.plural == CRD.1 && resource.group == CRD.0 {
            registry::from_definition(&new)?;
        }
        if !writing.applied {
            managed::track_update(old, &mut new, &writing.manager, schema, &self.now());
        }
        if target.subresource.is_none() {
            let user = &*writing.user;
            let request = mutating::Request {
                resource,
                user,
                old,
            };
            new = mutating::mutate(store, &request, new)?;
        }
        if serde_json::to_vec(&new).map_or(0, |bytes| bytes.len()) > MAX_OBJECT {
            return Err(Refusal::new(500, "", "etcdserver: request is too large"));
        }
        Ok(new)
    }

    /// What the server itself does once an object is stored.
    fn after_write(&self, state: &mut State, target: &Target, stored: &Value) {
        if target.resource.plural == CRD.1
            && target.resource.group == CRD.0
            && let Ok(resources) = registry::from_definition(stored)
        {
            let (group, plural) = (
                stored["spec"]["group"].clone(),
                stored["spec"]["names"]["plural"].clone(),
            );
            state.resources.retain(|r| {
                !(r.custom && group == r.group.as_str() && plural == r.plural.as_str())
            });
            state.resources.extend(resources);
            if stored["status"]["conditions"].is_null() {
                let mut next = stored.clone();
                let now = self.now();
                next["status"] = json!({"acceptedNames": stored["spec"]["names"], "storedVersions": [stored["spec"]["versions"][0]["name"]],
                        "conditions": [
                            {"type": "NamesAccepted", "status": "True", "reason": "NoConflicts", "message": "no conflicts found", "lastTransitionTime": now},
                            {"type": "Established", "status": "True", "reason": "InitialNamesAccepted", "message": "the initial names have been accepted", "lastTransitionTime": now}]});
                let name = stored["metadata"]["name"].as_str().unwrap_or_default();
                state.store.put(&target.table(), &target.key(name), next);
            }
        }
    }

    fn update(&self, call: &Call, target: &Target, name: &str) -> Result<Response<Body>, Refusal> {
        let object = Self::parse(call)?;
        let writing = Self::writing(call, target, false)?;
        let mut state = self.lock();
        let old = state
            .store
            .get(&target.table(), &target.key(name))
            .ok_or_else(|| target.not_found(name))?;
        let stored = self.replace_locked(&mut state, target, name, &old, object, &writing)?;
        drop(state);
        self.changed.raise();
        Ok(self.shaped(call, &target.resource, &[&stored], json!({}), Some(&stored)))
    }

    fn patch(&self, call: &Call, target: &Target, name: &str) -> Result<Response<Body>, Refusal> {
        let content = call.header("content-type");
        let apply = content.starts_with("application/apply-patch");
        let mut writing = Self::writing(call, target, apply)?;
        let mut state = self.lock();
        let old = state.store.get(&target.table(), &target.key(name));
        let shown = old.as_ref().map(|o| Self::present(&target.resource, o));
        let patch: Value = if apply {
            serde_saphyr::from_str(&String::from_utf8_lossy(&call.body))
                .map_err(|e| Refusal::bad_request(format!("error decoding YAML: {e}")))?
        } else {
            Self::parse(call)?
        };
        if let Some(fault) = apply
            .then(|| managed::set_of_objects(&patch, target.resource.schema.as_deref(), ""))
            .flatten()
        {
            return Err(Refusal::new(
                500,
                "InternalError",
                format!("failed to create typed patch object: {fault}"),
            ));
        }
        let Some(old) = old else {
            if !apply || target.subresource.is_some() {
                return Err(target.not_found(name));
            }
            // Server-side apply creates what is not there.
            let mut fresh = patch.clone();
            fresh["metadata"]["name"] = json!(name);
            let base = json!({"apiVersion": target.resource.api_version(), "kind": target.resource.kind, "metadata": fresh["metadata"]});
            let mut object = managed::apply(
                &base,
                &fresh,
                &writing.manager,
                target.resource.schema.as_deref(),
                true,
                &self.now(),
            )
            .unwrap_or(base);
            if object["metadata"]["resourceVersion"].is_string() {
                return Err(Refusal::conflict(
                    &target.resource.group,
                    &target.resource.plural,
                    name,
                    "resourceVersion was given, but the object does not exist",
                ));
            }
            object["apiVersion"] = patch["apiVersion"].clone();
            writing.applied = true;
            let created = self.create_locked(&mut state, target, object, &writing)?;
            drop(state);
            self.changed.raise();
            return Ok(answer(201, &created));
        };
        let current = shown.unwrap_or_default();
        let next = if apply {
            if patch["metadata"]
                .get("managedFields")
                .is_some_and(|m| !m.is_null())
            {
                return Err(Refusal::bad_request("metadata.managedFields must be nil"));
            }
            writing.applied = true;
            let mut applied = patch.clone();
            if target.resource.status_subresource && target.resource.custom {
                // Each endpoint owns its half.
                if let Some(map) = applied.as_object_mut() {
                    if target.subresource.is_some() {
                        map.retain(|k, _| {
                            k == "status" || k == "apiVersion" || k == "kind" || k == "metadata"
                        });
                        map.insert("metadata".into(), json!({}));
                    } else {
                        map.remove("status");
                    }
                }
            }
            managed::apply(
                &current,
                &applied,
                &writing.manager,
                target.resource.schema.as_deref(),
                call.flag("force"),
                &self.now(),
            )
            .map_err(|conflicts| {
                let with = |c: &managed::Conflict| format!("conflict with \"{}\" using {}", c.manager, c.api_version);
                let causes: Vec<Value> = conflicts
                    .iter()
                    .map(|c| json!({"reason": "FieldManagerConflict", "message": with(c), "field": c.field}))
                    .collect();
                let message = match conflicts.as_slice() {
                    [single] => format!("Apply failed with 1 conflict: {}: {}", with(single), single.field),
                    many => {
                        let lines: Vec<String> = many.iter().map(|c| format!("{}: {}", with(c), c.field)).collect();
                        format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
                    }
                };
                Refusal { details: json!({"causes": causes}), ..Refusal::new(409, "Conflict", message) }
            })?
        } else if content.starts_with("application/json-patch+json") {
            let operations: json_patch::Patch =
                serde_json::from_value(patch).map_err(|e| Refusal::bad_request(e.to_string()))?;
            let mut next = current.clone();
            json_patch::patch(&mut next, &operations).map_err(|e| {
                Refusal::new(
                    422,
                    "Invalid",
                    format!("the server rejected our request due to an error in our request: {e}"),
                )
            })?;
            next
        } else if content.starts_with("application/merge-patch+json")
            || (content.starts_with("application/strategic-merge-patch+json")
                && !target.resource.custom)
        {
            let mut next = current.clone();
            json_patch::merge(&mut next, &patch);
            next
        } else {
            return Err(Refusal::new(
                415,
                "UnsupportedMediaType",
                "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
            ));
        };
        let stored = self.replace_locked(&mut state, target, name, &old, next, &writing)?;
        drop(state);
        self.changed.raise();
        Ok(self.shaped(call, &target.resource, &[&stored], json!({}), Some(&stored)))
    }

    /// Puts `new` in place of `old`, as update and every kind of patch do.
    fn replace_locked(
        &self,
        state: &mut State,
        target: &Target,
        name: &str,
        old: &Arc<Value>,
        mut new: Value,
        writing: &Writing,
    ) -> Result<Value, Refusal> {
        let resource = &target.resource;
        let asked = new["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default();
        if !asked.is_empty() && old["metadata"]["resourceVersion"] != asked {
            return Err(Refusal::conflict(
                &resource.group,
                &resource.plural,
                name,
                "the object has been modified; please apply your changes to the latest version and try again",
            ));
        }
        if new["metadata"]["uid"]
            .as_str()
            .is_some_and(|u| !u.is_empty() && old["metadata"]["uid"] != u)
        {
            return Err(Refusal::conflict(
                &resource.group,
                &resource.plural,
                name,
                "Precondition failed: UID in precondition does not match",
            ));
        }
        if new["metadata"]["name"].as_str().is_some_and(|n| n != name) {
            return Err(Refusal::bad_request(
                "the name of the object does not match the name on the URL",
            ));
        }
        if resource.plural == "events" {
            new = watch::event_in(resource, &watch::stored_event(&new));
        }
        // What only the server sets.
        let mut meta = new["metadata"].as_object().cloned().unwrap_or_default();
        for key in [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "generation",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "resourceVersion",
        ] {
            match old["metadata"].get(key) {
                Some(v) => meta.insert(key.into(), v.clone()),
                None => meta.remove(key),
            };
        }
        if meta.get("managedFields").is_none_or(Value::is_null)
            && let Some(m) = old["metadata"].get("managedFields")
        {
            meta.insert("managedFields".into(), m.clone());
        }
        meta.retain(|_, v| {
            !v.is_null()
                && v.as_object().is_none_or(|o| !o.is_empty())
                && v.as_array().is_none_or(|a| !a.is_empty())
        });
        new["metadata"] = Value::Object(meta);
        new["kind"] = json!(resource.kind);
        new["apiVersion"] = json!(resource.api_version());
        if resource.status_subresource && resource.custom {
            if target.subresource.is_some() {
                let managed = new["metadata"]["managedFields"].clone();
                let status = new.get("status").cloned();
                new = (**old).clone();
                match (status, new.as_object_mut()) {
                    (Some(s), Some(map)) if !s.is_null() => map.insert("status".into(), s),
                    (_, Some(map)) => map.remove("status"),
                    _ => None,
                };
                if !managed.is_null() {
                    new["metadata"]["managedFields"] = managed;
                }
            } else {
                match (old.get("status"), new.as_object_mut()) {
                    (Some(s), Some(map)) => map.insert("status".into(), s.clone()),
                    (None, Some(map)) => map.remove("status"),
                    _ => None,
                };
            }
        }
        if old["metadata"]["deletionTimestamp"].is_string() {
            let had = |f: &Value| {
                old["metadata"]["finalizers"]
                    .as_array()
                    .is_some_and(|l| l.contains(f))
            };
            if let Some(f) = new["metadata"]["finalizers"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|f| !had(f))
            {
                return Err(Refusal::invalid(
                    &resource.group,
                    &resource.kind,
                    name,
                    &[Cause {
                        reason: "FieldValueForbidden",
                        field: "metadata.finalizers".into(),
                        message: format!(
                            "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers [{f}]"
                        ),
                    }],
                ));
            }
        }
        let mut new = self.admit(&state.store, target, Some(old), new, writing)?;
        if resource.custom || resource.plural == CRD.1 {
            let relevant = |v: &Value| {
                let mut map = v.as_object().cloned().unwrap_or_else(Map::new);
                map.remove("metadata");
                if resource.status_subresource || resource.plural == CRD.1 {
                    map.remove("status");
                }
                map
            };
            if relevant(&new) != relevant(old) {
                new["metadata"]["generation"] =
                    json!(old["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
            }
        }
        let same = |a: &Value, b: &Value| {
            let strip = |v: &Value| {
                let mut v = v.clone();
                if let Some(m) = v["metadata"].as_object_mut() {
                    m.remove("resourceVersion");
                }
                for e in v["metadata"]["managedFields"]
                    .as_array_mut()
                    .into_iter()
                    .flatten()
                {
                    e["time"] = Value::Null;
                }
                v
            };
            strip(a) == strip(b)
        };
        if same(&new, old) || writing.dry_run {
            let shown = if writing.dry_run {
                new
            } else {
                (**old).clone()
            };
            return Ok(Self::present(resource, &shown));
        }
        let gone = new["metadata"]["deletionTimestamp"].is_string()
            && new["metadata"]["finalizers"]
                .as_array()
                .is_none_or(Vec::is_empty);
        if gone {
            state
                .store
                .put(&target.table(), &target.key(name), new.clone());
            self.remove_locked(state, &target.table(), &target.key(name));
            return Ok(Self::present(resource, &new));
        }
        let stored = state.store.put(&target.table(), &target.key(name), new);
        self.after_write(state, target, &stored);
        Ok(Self::present(resource, &stored))
    }

    fn delete(&self, call: &Call, target: &Target, name: &str) -> Result<Response<Body>, Refusal> {
        let options = serde_json::from_slice::<Value>(&call.body).unwrap_or_default();
        let mut state = self.lock();
        let table = target.table();
        let key = target.key(name);
        let old = state
            .store
            .get(&table, &key)
            .ok_or_else(|| target.not_found(name))?;
        for (field, value) in [
            ("uid", &options["preconditions"]["uid"]),
            (
                "resourceVersion",
                &options["preconditions"]["resourceVersion"],
            ),
        ] {
            if value.is_string() && old["metadata"][field] != *value {
                return Err(Refusal::conflict(
                    &target.resource.group,
                    &target.resource.plural,
                    name,
                    &format!("the {field} in the precondition does not match"),
                ));
            }
        }
        if call.param("dryRun") == Some("All") || options["dryRun"][0] == "All" {
            return Ok(answer(200, &Self::present(&target.resource, &old)));
        }
        let result = self.delete_locked(&mut state, &table, &key);
        drop(state);
        self.changed.raise();
        match result {
            Some(pending) => Ok(answer(200, &Self::present(&target.resource, &pending))),
            None => Ok(answer(
                200,
                &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {"name": name, "group": target.resource.group, "kind": target.resource.plural, "uid": old["metadata"]["uid"]}}),
            )),
        }
    }

    /// Deletes, or marks for deletion while finalizers are there; returns what is still there.
    fn delete_locked(&self, state: &mut State, table: &Table, key: &Key) -> Option<Arc<Value>> {
        let old = state.store.get(table, key)?;
        let finalizers = old["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|f| !f.is_empty());
        let is_namespace = table.0.is_empty() && table.1 == "namespaces";
        if is_namespace {
            let mut next = (*old).clone();
            next["metadata"]["deletionTimestamp"] = json!(self.now());
            next["status"] = json!({"phase": "Terminating"});
            let marked = state.store.put(table, key, next);
            for (t, k) in state.store.in_namespace(&key.1) {
                self.delete_locked(state, &t, &k);
            }
            if state.store.namespace_is_empty(&key.1) {
                state.store.remove(table, key);
                return None;
            }
            return Some(marked);
        }
        if !finalizers {
            self.remove_locked(state, table, key);
            return None;
        }
        if old["metadata"]["deletionTimestamp"].is_string() {
            return Some(old);
        }
        let mut next = (*old).clone();
        next["metadata"]["deletionTimestamp"] = json!(self.now());
        next["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        next["metadata"]["generation"] =
            json!(old["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
        Some(state.store.put(table, key, next))
    }

    fn remove_locked(&self, state: &mut State, table: &Table, key: &Key) {
        let Some(gone) = state.store.remove(table, key) else {
            return;
        };
        if table.0 == CRD.0 && table.1 == CRD.1 {
            let own = (
                gone["spec"]["group"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                gone["spec"]["names"]["plural"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            );
            for object in state.store.list(&own, None) {
                let meta = &object["metadata"];
                let key = (
                    meta["namespace"].as_str().unwrap_or_default().to_owned(),
                    meta["name"].as_str().unwrap_or_default().to_owned(),
                );
                state.store.remove(&own, &key);
            }
            state
                .resources
                .retain(|r| !(r.custom && r.group == own.0 && r.plural == own.1));
        }
        let namespaces = (String::new(), "namespaces".to_owned());
        let ns = (String::new(), key.0.clone());
        let terminating = state
            .store
            .get(&namespaces, &ns)
            .is_some_and(|n| n["metadata"]["deletionTimestamp"].is_string());
        if !key.0.is_empty() && terminating && state.store.namespace_is_empty(&key.0) {
            state.store.remove(&namespaces, &ns);
        }
    }

    fn delete_collection(&self, call: &Call, target: &Target) -> Result<Response<Body>, Refusal> {
        let selector = self.selector(call, &target.resource)?;
        let mut state = self.lock();
        let table = target.table();
        let items = state.store.list(&table, target.namespace.as_deref());
        for object in items
            .iter()
            .filter(|o| selector.matches(&Self::present(&target.resource, o)))
        {
            let meta = &object["metadata"];
            let key = (
                meta["namespace"].as_str().unwrap_or_default().to_owned(),
                meta["name"].as_str().unwrap_or_default().to_owned(),
            );
            self.delete_locked(&mut state, &table, &key);
        }
        drop(state);
        self.changed.raise();
        Ok(answer(
            200,
            &json!({"kind": target.resource.list_kind, "apiVersion": target.resource.api_version(), "metadata": {}, "items": items}),
        ))
    }
}

trait MapStatus {
    fn map_status(self, status: u16) -> Self;
}
impl MapStatus for Response<Body> {
    fn map_status(mut self, status: u16) -> Self {
        *self.status_mut() =
            axum::http::StatusCode::from_u16(status).unwrap_or(axum::http::StatusCode::OK);
        self
    }
}

fn uid(state: &mut State) -> String {
    state.uids += 1;
    format!("5a4db0c5-0000-4000-8000-{:012x}", state.uids)
}

fn valid_name(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= 253
        && edge(name.chars().next())
        && edge(name.chars().last())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.')
}

impl Handler for Kube {
    fn handle(self: Arc<Self>, call: Call) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            self.handle_call(&call)
                .unwrap_or_else(Refusal::into_response)
        })
    }
}
