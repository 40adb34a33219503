//! Whole stories: each folder of `tests/scenarios` is one, run by this harness on the sandbox's
//! Kubernetes API and, where `KUBEBUILDER_ASSETS` says where it is, on a real API server. Cloud Run
//! is the sandbox's in both, and so are the journal and the ordered faults: requests to the real API
//! server go through the sandbox.
//!
//! Every scenario ends the same way: all policies are asked to be looked at again, no write to IAM
//! may follow, and all conditions must pass a kstatus check. `SCENARIO=name,name cargo test --test
//! scenarios` runs only these.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]
#![expect(
    clippy::print_stdout,
    reason = "says which scenario ran, and for how long"
)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use common::{Deployed, Envtest, Operator, Setup, deploy, eventually};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Namespace, ServiceAccount},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
};
use run_invoker::{
    api::{
        APPROVE, BUDGETS, InvokerAccessRequest, InvokerApproval, InvokerChange, InvokerGuardrail,
        InvokerLedger, InvokerPolicy, REQUESTED_AT, ROLLBACK,
    },
    inherited::SearchScope,
    status::kstatus,
};
use sandbox::{Api as Side, Rule, Sandbox};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Scenario {
    /// What is shown, in a sentence.
    description: String,
    #[serde(default)]
    services: Vec<Deployed>,
    #[serde(default)]
    settings: SettingsDef,
    steps: Vec<Step>,
    /// The end would write on purpose (a fault that stays), so the last look is left out; says why.
    no_last_look: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SettingsDef {
    #[serde(default)]
    allow_public: bool,
    propagation_seconds: Option<u64>,
    max_removals: Option<usize>,
    max_new_services: Option<usize>,
    #[serde(default)]
    require_guardrail: bool,
    #[serde(default)]
    approver: bool,
    breaker_corrections: Option<usize>,
    breaker_seconds: Option<i64>,
    keep_changes: Option<usize>,
    quota_project: Option<String>,
    /// Scopes that are searched for grants above the services, every second.
    #[serde(default)]
    inherited: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Step {
    /// Objects, as `kubectl apply --server-side` sends them. The kind is InvokerPolicy and the
    /// namespace `team-a` unless given.
    Apply(Vec<Value>),
    /// Deletes an object that is no policy.
    Remove {
        kind: String,
        name: String,
        #[serde(default)]
        namespace: Option<String>,
    },
    /// Agrees to the plan that the policy's status says is held.
    Approve(String),
    /// Creates an InvokerApproval, in the policy's namespace, for the plan that the policy's status
    /// says is held, or for the one that was remembered last.
    ApproveAs(ApproveAs),
    /// Creates an InvokerApproval in team-a for the plan that the status of a request shows, or for
    /// the one that was remembered last.
    AnswerRequest(AnswerRequest),
    /// Remembers the plan that the status of a request shows.
    RememberRequest(String),
    /// Remembers the plan that the policy's status says is held.
    RememberPlan(String),
    /// Takes every finalizer off an object and deletes it.
    DropFinalizer {
        kind: String,
        name: String,
    },
    /// Deletes an object and makes it again from what is left of it in a backup.
    Restore {
        kind: String,
        name: String,
    },
    /// Goes back behind one of the changes in the policy's namespace: 0 is the newest.
    RollBack {
        policy: String,
        newest: usize,
    },
    /// Tries to change a record, which must be refused with these words: 0 is the newest.
    AlterChange {
        policy: String,
        newest: usize,
        merge: Value,
        contains: String,
    },
    /// Deletes the mark of the open circuit breaker, as a person does.
    ResetCircuit,
    /// An object that must be refused with this in the message.
    Refuse {
        object: Value,
        contains: Vec<String>,
    },
    /// A merge patch on a policy.
    Patch {
        policy: String,
        merge: Value,
    },
    /// Any object as a merge patch on its status, as somebody with too many rights would.
    ForgeStatus {
        #[serde(default)]
        kind: Option<String>,
        policy: String,
        status: Value,
    },
    Delete(String),
    Deploy(Deployed),
    Undeploy(String),
    Member {
        service: String,
        #[serde(default)]
        role: Option<String>,
        add: Option<String>,
        remove: Option<String>,
    },
    DeleteIdentity {
        member: String,
        uid: u64,
    },
    World(Value),
    /// Organizations, folders and projects, as the sandbox's control API takes them.
    Hierarchy(Value),
    /// The whole allow policy of a project, folder or organization, changed by somebody else.
    PolicyAbove {
        resource: String,
        bindings: Value,
    },
    /// A custom role, and the permissions in it.
    Role {
        name: String,
        permissions: Vec<String>,
    },
    /// Searches of grants above the services since the mark, at most.
    Searches(usize),
    /// Waits for the first search after this, and counts its pages, exactly.
    Pages {
        scope: String,
        pages: usize,
    },
    /// Questions since the mark to the Resource Manager where a project is, exactly.
    Ancestries(BTreeMap<String, usize>),
    Fault(Rule),
    ClearFaults,
    /// Waits until the given seconds passed.
    Sleep(f64),
    /// Asks for a look now.
    Nudge(String),
    /// Moves the operator's clock.
    AdvanceSeconds(i64),
    /// Stops the operator as SIGTERM does, and starts it anew.
    Restart,
    /// The same with these protected members.
    Protect(Vec<String>),
    /// Ends the operator at once, and starts it anew.
    Crash,
    StopOperator,
    StartOperator,
    KubeOutage {
        milliseconds: u64,
    },
    CompactWatches,
    Expect(Box<Expect>),
    /// Counts calls from here.
    Mark,
    /// The calls to Cloud Run since the mark, exactly.
    Calls {
        get: usize,
        set: usize,
        list: Option<usize>,
    },
    /// The writes to policies' status since the mark, exactly.
    StatusWrites(usize),
    /// No request to Cloud Run since the mark named this.
    Untouched(String),
    /// Every request for objects of this kind asked for their metadata only, and there was one.
    MetadataOnly(String),
    /// A grant is there in every single policy that was written since the mark.
    NeverAbsent {
        service: String,
        member: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ApproveAs {
    policy: String,
    name: String,
    #[serde(default)]
    remembered: bool,
    not_after: Option<String>,
    /// It says no.
    #[serde(default)]
    deny: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AnswerRequest {
    request: String,
    name: String,
    #[serde(default)]
    deny: bool,
    #[serde(default)]
    remembered: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Expect {
    policy: Option<String>,
    /// A request in team-a.
    request: Option<String>,
    /// Type to `Status Reason`, or `absent`.
    #[serde(default)]
    conditions: BTreeMap<String, String>,
    /// Contained in the message of the condition.
    #[serde(default)]
    messages: BTreeMap<String, String>,
    #[serde(default)]
    summary: BTreeMap<String, i64>,
    /// `region/name` to state.
    #[serde(default)]
    states: BTreeMap<String, String>,
    /// `project/region/name` to invokers: `MEMBER`, `MEMBER if TITLE`, `ROLE: MEMBER`.
    #[serde(default)]
    iam: BTreeMap<String, BTreeSet<String>>,
    /// `REASON` or `REASON: WORDS OF THE NOTE` of events on the policy, or on the request where one
    /// is given, each at least once.
    #[serde(default)]
    events: Vec<String>,
    /// How many events of a reason there are, exactly (repeats on one event do not count).
    #[serde(default)]
    event_count: BTreeMap<String, usize>,
    gone: Option<bool>,
    finalizer: Option<bool>,
    /// Lines of /metrics that must be there.
    #[serde(default)]
    metrics: Vec<String>,
    /// Contained in what the operator says about its budgets on its Lease.
    budgets: Option<String>,
    ledger_entries: Option<usize>,
    /// Writes that the ledgers have as open.
    pending: Option<usize>,
    /// `region/name` to those that may invoke by other roles.
    #[serde(default)]
    also_invokers: BTreeMap<String, Vec<String>>,
    /// How many grants above the services are named in the status: `shown`; how many principals
    /// there are: `principals`, `unlisted`.
    #[serde(default)]
    inherited: BTreeMap<String, usize>,
    /// `region/name` to words of the message.
    #[serde(default)]
    said: BTreeMap<String, String>,
    /// `status.lastChange` is the name of a record that is there.
    #[serde(default)]
    last_change: bool,
    /// Approvals in team-a to `STATE` or `STATE: WORDS OF THE MESSAGE`.
    #[serde(default)]
    approvals: BTreeMap<String, String>,
    /// Requests in team-a to `PHASE` or `PHASE: WORDS OF THE MESSAGE`, or `gone`.
    #[serde(default)]
    requests: BTreeMap<String, String>,
    /// The records of changes in the policy's namespace, oldest first: `REASON OUTCOME +ADDED
    /// -REMOVED`, and ` by APPROVAL` for each.
    changes: Option<Vec<String>>,
    #[serde(default = "ten")]
    within_seconds: f64,
}
fn ten() -> f64 {
    10.0
}

/// A real API server that scenarios share, one after the other.
type Real = Arc<tokio::sync::Mutex<Envtest>>;

struct World {
    sandbox: Sandbox,
    /// The API server behind the sandbox, where it is a real one.
    real: Option<Real>,
    client: Client,
    setup: Setup,
    operator: Option<Operator>,
    mark: u64,
    /// Hash of a plan.
    remembered: String,
}

fn parts(service: &str) -> (&str, &str, &str) {
    let mut p = service.split('/');
    (p.next().unwrap(), p.next().unwrap(), p.next().unwrap())
}

impl World {
    async fn new(real: Option<Real>, scenario: &Scenario) -> Self {
        let sandbox = match &real {
            Some(real) => real.lock().await.behind_a_sandbox().await,
            None => Sandbox::start(Default::default()).await.unwrap(),
        };
        let client = common::client(&sandbox.kubeconfig()).await;
        common::install(&client).await;
        let mut setup = Setup::default();
        let limits = &mut setup.settings.limits;
        limits.public = scenario.settings.allow_public;
        limits.require_guardrail = scenario.settings.require_guardrail;
        limits.approver = scenario.settings.approver;
        limits.max_removals = scenario
            .settings
            .max_removals
            .unwrap_or(limits.max_removals);
        limits.max_new_services = scenario
            .settings
            .max_new_services
            .unwrap_or(limits.max_new_services);
        setup.breaker.corrections = scenario
            .settings
            .breaker_corrections
            .unwrap_or(setup.breaker.corrections);
        if let Some(s) = scenario.settings.breaker_seconds {
            setup.breaker.window = jiff::SignedDuration::from_secs(s);
        }
        setup.retention.number = scenario
            .settings
            .keep_changes
            .unwrap_or(setup.retention.number);
        setup.quota_project = scenario.settings.quota_project.clone();
        let scopes = scenario.settings.inherited.iter();
        setup.inherited = scopes.map(|s| SearchScope::parse(s).unwrap()).collect();
        if let Some(s) = scenario.settings.propagation_seconds {
            setup.propagation = Duration::from_secs(s);
        }
        for s in &scenario.services {
            deploy(&sandbox, s);
        }
        common::namespace(&client, "team-a").await;
        common::namespace(&client, "team-b").await;
        let mut world = Self {
            sandbox,
            real,
            client,
            setup,
            operator: None,
            mark: 0,
            remembered: String::new(),
        };
        world.start_operator().await;
        world
    }

    async fn start_operator(&mut self) {
        self.operator =
            Some(Operator::start(self.client.clone(), self.sandbox.run_url(), &self.setup).await);
    }

    fn policies(&self, namespace: &str) -> Api<InvokerPolicy> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Objects of a kind, in a namespace where the kind has one.
    fn objects(&self, kind: &str, namespace: &str) -> Api<DynamicObject> {
        let (resource, scoped) = match kind {
            "InvokerPolicy" => (ApiResource::erase::<InvokerPolicy>(&()), true),
            "InvokerApproval" => (ApiResource::erase::<InvokerApproval>(&()), true),
            "InvokerAccessRequest" => (ApiResource::erase::<InvokerAccessRequest>(&()), true),
            "CustomResourceDefinition" => {
                (ApiResource::erase::<CustomResourceDefinition>(&()), false)
            }
            "InvokerChange" => (ApiResource::erase::<InvokerChange>(&()), true),
            "InvokerGuardrail" => (ApiResource::erase::<InvokerGuardrail>(&()), false),
            "ServiceAccount" => (ApiResource::erase::<ServiceAccount>(&()), true),
            "Namespace" => (ApiResource::erase::<Namespace>(&()), false),
            other => panic!("no idea what a {other} is"),
        };
        if scoped {
            Api::namespaced_with(self.client.clone(), namespace, &resource)
        } else {
            Api::all_with(self.client.clone(), &resource)
        }
    }

    fn split<'a>(&self, policy: &'a str) -> (&'a str, &'a str) {
        policy.split_once('/').unwrap_or(("team-a", policy))
    }

    async fn apply(&self, object: &Value) -> Result<(), kube::Error> {
        let mut object = object.clone();
        let kind = object["kind"]
            .as_str()
            .unwrap_or("InvokerPolicy")
            .to_owned();
        let ours = kind.starts_with("Invoker");
        object["apiVersion"] = json!(if ours {
            "run-invoker.dev/v1alpha1"
        } else {
            "v1"
        });
        object["kind"] = json!(kind);
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or("team-a")
            .to_owned();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        if kind != "InvokerGuardrail" {
            object["metadata"]["namespace"] = json!(namespace);
        }
        let params = PatchParams {
            field_validation: Some(kube::api::ValidationDirective::Strict),
            ..PatchParams::apply("git").force()
        };
        self.objects(&kind, &namespace)
            .patch(&name, &params, &Patch::Apply(object))
            .await
            .map(|_| ())
    }

    async fn annotate(&self, policy: &str, annotation: &str, value: &str) {
        let (ns, name) = self.split(policy);
        let patch = json!({"metadata": {"annotations": {annotation: value}}});
        self.policies(ns)
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    /// The hash that the policy's status asks somebody to agree to.
    async fn held_hash(&self, policy: &str) -> String {
        let (ns, name) = self.split(policy);
        let status = self
            .policies(ns)
            .get(name)
            .await
            .unwrap()
            .status
            .unwrap_or_default();
        let of_service = status
            .services
            .iter()
            .map(|s| s.approve.clone())
            .find(|h| !h.is_empty());
        let of_message = status.conditions.iter().find_map(|c| {
            let (_, rest) = c.message.split_once(" --hash ")?;
            Some(rest.chars().take_while(char::is_ascii_hexdigit).collect())
        });
        of_service
            .or(of_message)
            .unwrap_or_else(|| panic!("{policy} asks for no approval: {status:?}"))
    }

    /// The plan that the policy's status says is held.
    async fn held_plan(&self, policy: &str) -> String {
        let (ns, name) = self.split(policy);
        let status = self.policies(ns).get(name).await.unwrap().status;
        let services = status.clone().unwrap_or_default().services;
        let mut plans = services.into_iter().map(|s| s.plan);
        plans
            .find(|p| !p.is_empty())
            .unwrap_or_else(|| panic!("{policy} holds no plan: {status:?}"))
    }

    async fn approve_as(&self, approval: &ApproveAs) {
        let (namespace, policy) = self.split(&approval.policy);
        let plan = match approval.remembered {
            true => self.remembered.clone(),
            false => self.held_plan(&approval.policy).await,
        };
        let mut object = json!({"kind": "InvokerApproval", "metadata": {"name": approval.name, "namespace": namespace},
            "spec": {"policy": policy, "plan": plan, "reason": "CHG-1"}});
        if let Some(end) = &approval.not_after {
            object["spec"]["notAfter"] = json!(end);
        }
        if approval.deny {
            object["spec"]["decision"] = json!("Deny");
        }
        self.apply(&object).await.unwrap();
    }

    async fn restore(&self, kind: &str, name: &str) {
        let api = self.objects(kind, "team-a");
        let backup = api.get(name).await.unwrap();
        api.delete(name, &DeleteParams::default()).await.unwrap();
        let object = json!({"kind": kind, "metadata": {"name": name}, "spec": backup.data["spec"]});
        self.apply(&object).await.unwrap();
    }

    async fn approvals_hold(&self, wanted: &BTreeMap<String, String>) -> Result<(), String> {
        let api: Api<InvokerApproval> = Api::namespaced(self.client.clone(), "team-a");
        for (name, wanted) in wanted {
            let status = api.get(name).await.map_err(|e| e.to_string())?.status;
            let status = status.unwrap_or_default();
            let (state, text) = wanted.split_once(": ").unwrap_or((wanted, ""));
            let have = status.state.map(|s| format!("{s:?}")).unwrap_or_default();
            let message = status.message.clone().unwrap_or_default();
            if have != state || !message.contains(text) {
                return Err(format!("approval {name} is {status:?}, wanted {wanted}"));
            }
        }
        Ok(())
    }

    fn requests(&self) -> Api<InvokerAccessRequest> {
        Api::namespaced(self.client.clone(), "team-a")
    }

    async fn requested_plan(&self, name: &str) -> String {
        let status = async || self.requests().get(name).await.unwrap().status;
        // Until the operator has seen it the status is the default of the definition.
        eventually(Duration::from_secs(10), "it shows a plan", || async {
            let status = status().await.unwrap_or_default();
            let is_seen = status.plan.is_some();
            is_seen.then_some(()).ok_or_else(|| format!("{status:?}"))
        })
        .await;
        status().await.unwrap().plan.unwrap()
    }

    async fn answer_request(&self, answer: &AnswerRequest) {
        let plan = match answer.remembered {
            true => self.remembered.clone(),
            false => self.requested_plan(&answer.request).await,
        };
        let decision = if answer.deny { "Deny" } else { "Approve" };
        let object = json!({"kind": "InvokerApproval", "metadata": {"name": answer.name},
            "spec": {"request": answer.request, "plan": plan, "reason": "CHG-1", "decision": decision}});
        self.apply(&object).await.unwrap();
    }

    async fn requests_stand(&self, wanted: &BTreeMap<String, String>) -> Result<(), String> {
        for (name, wanted) in wanted {
            let found = self.requests().get_opt(name).await;
            let Some(found) = found.map_err(|e| e.to_string())? else {
                if wanted == "gone" {
                    continue;
                }
                return Err(format!("there is no request {name}"));
            };
            let status = found.status.unwrap_or_default();
            let (phase, text) = wanted.split_once(": ").unwrap_or((wanted, ""));
            let have = status.phase.map_or("", |p| p.as_str());
            let message = status.message.clone().unwrap_or_default();
            if have != phase || !message.contains(text) {
                return Err(format!("request {name} is {status:?}, wanted {wanted}"));
            }
        }
        Ok(())
    }

    /// The records of changes in a namespace, oldest first.
    async fn changes(&self, namespace: &str) -> Vec<InvokerChange> {
        let api: Api<InvokerChange> = Api::namespaced(self.client.clone(), namespace);
        let mut list = api.list(&ListParams::default()).await.unwrap().items;
        list.sort_by_key(|c| c.spec.at.0);
        list
    }

    fn calls(&self) -> (usize, usize, usize) {
        let count = |f: &dyn Fn(&sandbox::Entry) -> bool| {
            self.sandbox
                .journal
                .since(self.mark, |e| e.api == Side::Run && f(e))
                .len()
        };
        (
            count(&|e| e.path().ends_with(":getIamPolicy")),
            count(&|e| e.path().ends_with(":setIamPolicy")),
            count(&|e| e.path().ends_with("/services")),
        )
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Apply(objects) => {
                for object in objects {
                    self.apply(object)
                        .await
                        .unwrap_or_else(|e| panic!("apply refused: {e}"));
                }
            }
            Step::Refuse { object, contains } => {
                let error = self
                    .apply(object)
                    .await
                    .expect_err("the object was accepted")
                    .to_string();
                for text in contains {
                    assert!(error.contains(text), "{text:?} is not in {error:?}");
                }
            }
            Step::Patch { policy, merge } => {
                let (ns, name) = self.split(policy);
                self.policies(ns)
                    .patch(name, &PatchParams::default(), &Patch::Merge(merge))
                    .await
                    .unwrap();
            }
            Step::ForgeStatus {
                kind,
                policy,
                status,
            } => {
                let (ns, name) = self.split(policy);
                let patch = json!({"status": status});
                self.objects(kind.as_deref().unwrap_or("InvokerPolicy"), ns)
                    .patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
                    .await
                    .unwrap();
            }
            Step::Delete(policy) => {
                let (ns, name) = self.split(policy);
                self.policies(ns)
                    .delete(name, &DeleteParams::default())
                    .await
                    .unwrap();
            }
            Step::Remove {
                kind,
                name,
                namespace,
            } => {
                let api = self.objects(kind, namespace.as_deref().unwrap_or("team-a"));
                api.delete(name, &DeleteParams::default()).await.unwrap();
            }
            Step::Approve(policy) => {
                let hash = self.held_hash(policy).await;
                self.annotate(policy, APPROVE, &hash).await;
            }
            Step::ApproveAs(approval) => self.approve_as(approval).await,
            Step::AnswerRequest(answer) => self.answer_request(answer).await,
            Step::RememberRequest(name) => self.remembered = self.requested_plan(name).await,
            Step::RememberPlan(policy) => self.remembered = self.held_plan(policy).await,
            Step::Restore { kind, name } => self.restore(kind, name).await,
            Step::DropFinalizer { kind, name } => {
                let none = json!({"metadata": {"finalizers": null}});
                let api = self.objects(kind, "team-a");
                let params = PatchParams::default();
                api.patch(name, &params, &Patch::Merge(none)).await.unwrap();
                api.delete(name, &DeleteParams::default()).await.unwrap();
            }
            Step::RollBack { policy, newest } => {
                let changes = self.changes(self.split(policy).0).await;
                let change = changes
                    .iter()
                    .rev()
                    .nth(*newest)
                    .unwrap_or_else(|| panic!("only {} changes", changes.len()));
                self.annotate(policy, ROLLBACK, &change.name_any()).await;
            }
            Step::AlterChange {
                policy,
                newest,
                merge,
                contains,
            } => {
                let namespace = self.split(policy).0;
                let changes = self.changes(namespace).await;
                let name = changes
                    .iter()
                    .rev()
                    .nth(*newest)
                    .expect("too few changes")
                    .name_any();
                let api: Api<InvokerChange> = Api::namespaced(self.client.clone(), namespace);
                let result = api
                    .patch(&name, &PatchParams::default(), &Patch::Merge(merge))
                    .await;
                let error = result.expect_err("the record was changed").to_string();
                assert!(error.contains(contains), "{contains:?} is not in {error:?}");
            }
            Step::ResetCircuit => {
                let leases: Api<Lease> = Api::namespaced(self.client.clone(), "default");
                leases
                    .delete("run-invoker-circuit", &DeleteParams::default())
                    .await
                    .unwrap();
            }
            Step::Deploy(service) => deploy(&self.sandbox, service),
            Step::Undeploy(service) => {
                let (p, r, n) = parts(service);
                assert!(self.sandbox.run.remove(p, r, n), "{service} was not there");
            }
            Step::Member {
                service,
                role,
                add,
                remove,
            } => {
                let (p, r, n) = parts(service);
                let role = role.as_deref().unwrap_or("roles/run.invoker");
                if let Some(m) = add {
                    self.sandbox.run.add_member(p, r, n, role, m);
                }
                if let Some(m) = remove {
                    self.sandbox.run.remove_member(p, r, n, role, m);
                }
            }
            Step::DeleteIdentity { member, uid } => self.sandbox.run.delete_identity(member, *uid),
            Step::Hierarchy(hierarchy) => {
                common::control(&self.sandbox, "hierarchy", hierarchy).await
            }
            Step::PolicyAbove { resource, bindings } => {
                let policy = json!({"resource": resource, "bindings": bindings});
                common::control(&self.sandbox, "policies", &policy).await;
            }
            Step::Role { name, permissions } => {
                let role = json!({"name": name, "permissions": permissions});
                common::control(&self.sandbox, "roles", &role).await;
            }
            Step::Pages { scope, pages } => self.pages_are(scope, *pages).await,
            Step::Ancestries(wanted) => {
                for (project, wanted) in wanted {
                    let target = format!("/v1/projects/{project}:getAncestry");
                    let asked = self
                        .sandbox
                        .journal
                        .since(self.mark, |e| e.path() == target);
                    assert_eq!(asked.len(), *wanted, "{project}: {asked:#?}");
                }
            }
            Step::Searches(most) => {
                let searches = self
                    .sandbox
                    .journal
                    .calls(self.mark, "SearchAllIamPolicies");
                assert!((1..=*most).contains(&searches), "{searches} searches");
            }
            Step::World(change) => {
                common::control(&self.sandbox, "world", change).await;
            }
            Step::Fault(rule) => self.sandbox.faults.add(rule.clone()),
            Step::ClearFaults => self.sandbox.faults.clear(),
            Step::Sleep(seconds) => tokio::time::sleep(Duration::from_secs_f64(*seconds)).await,
            Step::Nudge(policy) => self.nudge(policy).await,
            Step::AdvanceSeconds(by) => {
                self.setup.offset.fetch_add(*by, Ordering::Relaxed);
            }
            Step::Restart => {
                self.operator.take().unwrap().stop().await;
                self.start_operator().await;
            }
            Step::Protect(members) => {
                self.setup.settings.protected = members.clone();
                self.operator.take().unwrap().stop().await;
                self.start_operator().await;
            }
            Step::Crash => {
                drop(self.operator.take());
                self.start_operator().await;
            }
            Step::StopOperator => self.operator.take().unwrap().stop().await,
            Step::StartOperator => self.start_operator().await,
            Step::KubeOutage { milliseconds } => {
                self.sandbox
                    .restart_kube(Duration::from_millis(*milliseconds))
                    .await
            }
            Step::CompactWatches => match &self.real {
                Some(real) => {
                    real.lock().await.compact().await;
                    common::install(&self.client).await;
                }
                None => self.sandbox.kube.compact(),
            },
            Step::Mark => self.mark = self.sandbox.journal.last(),
            Step::Calls { get, set, list } => {
                let calls = self.calls();
                let wanted = (*get, *set, list.unwrap_or(calls.2));
                let lines: Vec<String> = self
                    .sandbox
                    .journal
                    .since(self.mark, |e| !e.target.contains("lease"))
                    .iter()
                    .map(|e| format!("{:6} {} {} {}", e.elapsed_ms, e.method, e.target, e.status))
                    .collect();
                assert_eq!(
                    calls,
                    wanted,
                    "(get, set, list) calls, in full:\n{}",
                    lines.join("\n")
                );
            }
            Step::StatusWrites(wanted) => {
                let writes = self.sandbox.journal.since(self.mark, |e| {
                    e.api == Side::Kube && e.method == "PATCH" && e.path().ends_with("/status")
                });
                assert_eq!(writes.len(), *wanted, "{writes:#?}");
            }
            Step::Untouched(text) => {
                let touched = self
                    .sandbox
                    .journal
                    .since(self.mark, |e| e.api == Side::Run && e.target.contains(text));
                assert!(touched.is_empty(), "{touched:#?}");
            }
            Step::MetadataOnly(plural) => {
                let path = format!("/api/v1/{plural}");
                let asked = self
                    .sandbox
                    .journal
                    .since(0, |e| e.method == "GET" && e.path() == path);
                assert!(!asked.is_empty(), "nobody asked for {plural}");
                for e in asked {
                    assert!(
                        e.accept.contains("PartialObjectMetadata"),
                        "{} asked for whole objects",
                        e.target
                    );
                }
            }
            Step::NeverAbsent { service, member } => {
                let name = format!("/{}:setIamPolicy", parts(service).2);
                let writes = self
                    .sandbox
                    .journal
                    .since(self.mark, |e| e.path().ends_with(&name));
                assert!(!writes.is_empty(), "nothing was written to {service}");
                for write in writes {
                    assert!(
                        write.body.to_string().contains(&format!("\"{member}\"")),
                        "{member} is absent in {}",
                        write.body
                    );
                }
            }
            Step::Expect(expect) => {
                let within = Duration::from_secs_f64(expect.within_seconds);
                let this = &*self;
                eventually(within, "expectation", || async { this.holds(expect).await }).await;
            }
        }
    }

    async fn nudge(&self, policy: &str) {
        let (ns, name) = self.split(policy);
        let value = format!("{}", self.sandbox.journal.last());
        let patch = json!({"metadata": {"annotations": {REQUESTED_AT: value}}});
        let object = self
            .policies(ns)
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        if object.metadata.deletion_timestamp.is_some() {
            return;
        }
        eventually(
            Duration::from_secs(20),
            "the request to look is answered",
            || async {
                let object = self
                    .policies(ns)
                    .get(name)
                    .await
                    .map_err(|e| e.to_string())?;
                let handled = object.status.and_then(|s| s.last_handled_requested_at);
                if handled.as_deref() == Some(&value) {
                    Ok(())
                } else {
                    Err(format!("handled {handled:?}, asked {value}"))
                }
            },
        )
        .await;
    }

    /// The events of a policy, or of a request.
    async fn events_hold(&self, expect: &Expect, about: &str) -> Result<(), String> {
        if expect.events.is_empty() && expect.event_count.is_empty() {
            return Ok(());
        }
        let (ns, name) = self.split(about);
        let kind = match expect.request {
            Some(_) => "InvokerAccessRequest",
            None => "InvokerPolicy",
        };
        let events: Api<k8s_openapi::api::events::v1::Event> =
            Api::namespaced(self.client.clone(), ns);
        let list = events.list(&ListParams::default()).await;
        let list = list.map_err(|e| e.to_string())?.items.into_iter();
        let is_about = |e: &k8s_openapi::api::events::v1::Event| {
            let regarding = e.regarding.as_ref();
            regarding
                .is_some_and(|r| r.name.as_deref() == Some(name) && r.kind.as_deref() == Some(kind))
        };
        let found: Vec<(String, String)> = list
            .filter(is_about)
            .filter_map(|e| Some((e.reason?, e.note.unwrap_or_default())))
            .collect();
        let is_there = |wanted: &&String| {
            let (reason, words) = wanted.split_once(": ").unwrap_or((wanted, ""));
            found
                .iter()
                .any(|(r, note)| r == reason && note.contains(words))
        };
        if let Some(absent) = expect.events.iter().find(|w| !is_there(w)) {
            return Err(format!("no event {absent}, only {found:?}"));
        }
        let reasons: Vec<&String> = found.iter().map(|(reason, _)| reason).collect();
        for (reason, n) in &expect.event_count {
            let have = reasons.iter().filter(|r| **r == reason).count();
            if have != *n {
                return Err(format!("{have} events {reason}, not {n}"));
            }
        }
        Ok(())
    }

    async fn holds(&self, expect: &Expect) -> Result<(), String> {
        if let Some(policy) = &expect.policy {
            let (ns, name) = self.split(policy);
            let found = self
                .policies(ns)
                .get_opt(name)
                .await
                .map_err(|e| e.to_string())?;
            match (expect.gone, found) {
                (Some(true), None) => {}
                (Some(true), Some(p)) => return Err(format!("still there: {:?}", p.status)),
                (_, None) => return Err("not there".into()),
                (_, Some(p)) => self.policy_holds(expect, &p)?,
            }
        }
        let about = expect.request.as_deref().or(expect.policy.as_deref());
        if let Some(about) = about {
            self.events_hold(expect, about).await?;
        }
        if let Some(wanted) = &expect.changes {
            let namespace = expect
                .policy
                .as_deref()
                .map_or("team-a", |p| self.split(p).0);
            let have: Vec<String> = self
                .changes(namespace)
                .await
                .iter()
                .map(|c| {
                    let s = &c.spec;
                    let (reason, phase) = (s.reason.as_str(), s.outcome.phase.as_str());
                    let by = s.approvals.iter().map(|a| format!(" by {}", a.name));
                    let by: String = by.collect();
                    format!(
                        "{reason} {phase} +{} -{}{by}",
                        s.added_count, s.removed_count
                    )
                })
                .collect();
            if have != *wanted {
                return Err(format!("changes are {have:#?}, wanted {wanted:#?}"));
            }
        }
        self.approvals_hold(&expect.approvals).await?;
        self.requests_stand(&expect.requests).await?;
        for (service, wanted) in &expect.iam {
            let (p, r, n) = parts(service);
            let policy = self
                .sandbox
                .run
                .policy(p, r, n)
                .ok_or(format!("{service} is not deployed"))?;
            let have = invokers(&policy);
            if have != *wanted {
                return Err(format!("{service}: IAM has {have:?}, wanted {wanted:?}"));
            }
        }
        if !expect.metrics.is_empty() {
            let operator = self.operator.as_ref().unwrap();
            let text = operator
                .metrics
                .render(&operator.controller.refresh_gauges());
            if let Some(absent) = expect
                .metrics
                .iter()
                .find(|m| !text.lines().any(|l| l == **m))
            {
                let name = absent.split(['{', ' ']).next().unwrap();
                let near: Vec<_> = text.lines().filter(|l| l.starts_with(name)).collect();
                return Err(format!("no line {absent:?}, only {near:?}"));
            }
        }
        if let Some(text) = &expect.budgets {
            let name = &self.setup.lease;
            let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.setup.home);
            let lease = leases.get(name).await.map_err(|e| e.to_string())?;
            let told = lease.annotations().get(BUDGETS).cloned();
            if !told.as_ref().is_some_and(|t| t.contains(text)) {
                return Err(format!("the Lease says {told:?}, not {text:?}"));
            }
        }
        if let Some(n) = expect.pending {
            let ledgers: Api<InvokerLedger> = Api::all(self.client.clone());
            let list = ledgers
                .list(&ListParams::default())
                .await
                .map_err(|e| e.to_string())?;
            let have: usize = list.items.iter().map(|l| l.spec.pending.len()).sum();
            if have != n {
                return Err(format!("{have} open writes, not {n}"));
            }
        }
        if let Some(n) = expect.ledger_entries {
            let ledgers: Api<InvokerLedger> = Api::all(self.client.clone());
            let have = ledgers
                .list(&ListParams::default())
                .await
                .map_err(|e| e.to_string())?
                .items;
            if have.len() != n {
                return Err(format!("{} ledger entries, not {n}: {have:#?}", have.len()));
            }
        }
        Ok(())
    }

    fn policy_holds(&self, expect: &Expect, p: &InvokerPolicy) -> Result<(), String> {
        let status = p.status.clone().unwrap_or_default();
        for (type_, wanted) in &expect.conditions {
            let found = status.conditions.iter().find(|c| c.type_ == *type_);
            let have = found.map_or("absent".to_owned(), |c| {
                format!("{} {}", c.status, c.reason)
            });
            if have != *wanted {
                return Err(format!(
                    "{type_} is {have:?}, wanted {wanted:?}; {:#?}",
                    status
                ));
            }
            if found.is_some_and(|c| Some(c.observed_generation) != p.metadata.generation) {
                return Err(format!("{type_} speaks of an older generation"));
            }
        }
        for (type_, text) in &expect.messages {
            let message = status
                .conditions
                .iter()
                .find(|c| c.type_ == *type_)
                .map(|c| c.message.clone())
                .unwrap_or_default();
            if !message.contains(text) {
                return Err(format!("{type_} says {message:?}, not {text:?}"));
            }
        }
        let summary = serde_json::to_value(status.summary.clone().unwrap_or_default()).unwrap();
        for (key, wanted) in &expect.summary {
            if summary[key] != *wanted {
                return Err(format!(
                    "summary.{key} is {}, wanted {wanted}",
                    summary[key]
                ));
            }
        }
        for (place, wanted) in &expect.states {
            let (region, name) = place.split_once('/').unwrap();
            let have = status
                .services
                .iter()
                .find(|s| s.region == region && s.name == name)
                .map(|s| format!("{:?}", s.state));
            if have.as_deref() != Some(wanted) {
                return Err(format!("{place} is {have:?}, wanted {wanted}"));
            }
        }
        for (place, wanted) in &expect.also_invokers {
            let (region, name) = place.split_once('/').unwrap();
            let found = status
                .services
                .iter()
                .find(|s| s.region == region && s.name == name);
            if found.map(|s| &s.also_invokers) != Some(wanted) {
                return Err(format!("also invokers: {found:?}"));
            }
        }
        for (place, words) in &expect.said {
            let (region, name) = place.split_once('/').unwrap();
            let mut services = status.services.iter();
            let found = services.find(|s| s.region == region && s.name == name);
            let message = found.map(|s| s.message.as_str()).unwrap_or_default();
            if !message.contains(words) || (words.is_empty() && !message.is_empty()) {
                return Err(format!("{place} says {message:?}, not {words:?}"));
            }
        }
        if !expect.inherited.is_empty() {
            let above = status.inherited.clone().unwrap_or_default();
            let have = [
                ("principals", above.principals as usize),
                ("shown", above.grants.len()),
                ("unlisted", above.unlisted as usize),
            ];
            let have: BTreeMap<String, usize> = have.map(|(what, n)| (what.to_owned(), n)).into();
            if expect.inherited != have {
                return Err(format!("above the services: {have:?}"));
            }
        }
        if expect.last_change && status.last_change.is_none() {
            return Err("no lastChange".into());
        }
        if let Some(wanted) = expect.finalizer
            && p.finalizers()
                .iter()
                .any(|f| f == run_invoker::api::FINALIZER)
                != wanted
        {
            return Err(format!("finalizers are {:?}", p.finalizers()));
        }
        Ok(())
    }

    /// The pages of the next whole search of a scope: the first names no page, and each other the
    /// one that the page before it named.
    async fn pages_are(&self, scope: &str, pages: usize) {
        let from = self.sandbox.journal.last();
        let path = format!("/v1/{scope}:searchAllIamPolicies");
        let is_first = |target: &String| !target.contains("pageToken=");
        eventually(Duration::from_secs(10), "a whole search", || async {
            let asked = self.sandbox.journal.since(from, |e| e.path() == path);
            let targets: Vec<String> = asked.into_iter().map(|e| e.target).collect();
            let mut whole = targets.split(|t| is_first(t)).skip(1);
            // The last one may be under way.
            let count = targets.iter().filter(|t| is_first(t)).count();
            let further = whole.next().map(<[String]>::len);
            match further {
                Some(further) if count > 1 && further + 1 == pages => Ok(()),
                _ => Err(format!("{targets:#?}")),
            }
        })
        .await;
    }

    /// Planning again finds nothing to do, and every status is well-formed.
    async fn last_look(&mut self) {
        self.sandbox.faults.clear();
        let all: Api<InvokerPolicy> = Api::all(self.client.clone());
        let before = self.sandbox.journal.last();
        for policy in all.list(&ListParams::default()).await.unwrap() {
            if policy.metadata.deletion_timestamp.is_none() {
                self.nudge(&format!(
                    "{}/{}",
                    policy.namespace().unwrap(),
                    policy.name_any()
                ))
                .await;
            }
        }
        let writes = self
            .sandbox
            .journal
            .since(before, |e| e.path().ends_with(":setIamPolicy"));
        assert!(
            writes.is_empty(),
            "planning again still writes: {writes:#?}"
        );
    }

    async fn check_statuses(&self) {
        let all: Api<InvokerPolicy> = Api::all(self.client.clone());
        for policy in all.list(&ListParams::default()).await.unwrap() {
            if let Err(broken) = kstatus::check(
                policy.status.as_ref().unwrap_or(&Default::default()),
                policy.metadata.generation.unwrap(),
            ) {
                panic!("{}: {broken:?}", policy.name_any());
            }
        }
    }

    /// Leaves nothing behind for the next scenario on the same API server.
    async fn clean(&mut self) {
        drop(self.operator.take());
        let all: Api<InvokerPolicy> = Api::all(self.client.clone());
        for policy in all.list(&ListParams::default()).await.unwrap() {
            let api = self.policies(&policy.namespace().unwrap());
            let none = json!({"metadata": {"finalizers": null}});
            api.delete(&policy.name_any(), &DeleteParams::default())
                .await
                .ok();
            api.patch(
                &policy.name_any(),
                &PatchParams::default(),
                &Patch::Merge(none),
            )
            .await
            .ok();
        }
        let guardrails: Api<InvokerGuardrail> = Api::all(self.client.clone());
        guardrails
            .delete_collection(&DeleteParams::default(), &ListParams::default())
            .await
            .ok();
        let ledgers: Api<InvokerLedger> = Api::all(self.client.clone());
        ledgers
            .delete_collection(&DeleteParams::default(), &ListParams::default())
            .await
            .ok();
        for ns in ["team-a", "team-b", "default"] {
            let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), ns);
            accounts
                .delete_collection(&DeleteParams::default(), &ListParams::default())
                .await
                .ok();
            let approvals: Api<InvokerApproval> = Api::namespaced(self.client.clone(), ns);
            approvals
                .delete_collection(&DeleteParams::default(), &ListParams::default())
                .await
                .ok();
            let requests: Api<InvokerAccessRequest> = Api::namespaced(self.client.clone(), ns);
            let left = requests.list(&ListParams::default()).await;
            for request in left.iter().flatten() {
                let (name, none) = (
                    request.name_any(),
                    json!({"metadata": {"finalizers": null}}),
                );
                let params = PatchParams::default();
                requests.delete(&name, &DeleteParams::default()).await.ok();
                requests
                    .patch(&name, &params, &Patch::Merge(none))
                    .await
                    .ok();
            }
            let changes: Api<InvokerChange> = Api::namespaced(self.client.clone(), ns);
            changes
                .delete_collection(&DeleteParams::default(), &ListParams::default())
                .await
                .ok();
            let events: Api<k8s_openapi::api::events::v1::Event> =
                Api::namespaced(self.client.clone(), ns);
            events
                .delete_collection(&DeleteParams::default(), &ListParams::default())
                .await
                .ok();
        }
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "default");
        leases
            .delete(&self.setup.lease, &DeleteParams::default())
            .await
            .ok();
        leases
            .delete(
                &format!("{}-circuit", self.setup.lease),
                &DeleteParams::default(),
            )
            .await
            .ok();
        eventually(Duration::from_secs(10), "clean", || async {
            let left = all
                .list(&ListParams::default())
                .await
                .map_err(|e| e.to_string())?
                .items
                .len();
            if left == 0 {
                Ok(())
            } else {
                Err(format!("{left} policies left"))
            }
        })
        .await;
    }
}

fn invokers(policy: &Value) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for b in policy["bindings"].as_array().into_iter().flatten() {
        let role = b["role"].as_str().unwrap();
        for m in b["members"].as_array().into_iter().flatten() {
            let mut line = m.as_str().unwrap().to_owned();
            if role != "roles/run.invoker" {
                line = format!("{role}: {line}");
            }
            if let Some(title) = b["condition"]["title"].as_str() {
                line = format!("{line} if {title}");
            }
            lines.insert(line);
        }
    }
    lines
}

fn scenarios() -> Vec<(String, Scenario)> {
    let only = std::env::var("SCENARIO").ok();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(common::repository("tests/scenarios")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if only
            .as_ref()
            .is_none_or(|o| o.split(',').any(|o| o == name))
        {
            found.push((name, load(&path.join("scenario.yaml"))));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(!found.is_empty(), "no scenario");
    found
}

fn load(path: &Path) -> Scenario {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let value: Value =
        serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_value(value).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

async fn run(name: &str, scenario: &Scenario, real: Option<Real>) -> (f64, World) {
    let started = std::time::Instant::now();
    let mut world = World::new(real, scenario).await;
    for (i, step) in scenario.steps.iter().enumerate() {
        let result =
            futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(world.step(step))).await;
        if let Err(cause) = result {
            println!(
                "scenario {name} ({}) failed in step {}",
                scenario.description,
                i + 1
            );
            std::panic::resume_unwind(cause);
        }
    }
    if world.operator.is_some() {
        if scenario.no_last_look.is_none() {
            world.last_look().await;
        }
        world.check_statuses().await;
    }
    (started.elapsed().as_secs_f64(), world)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn scenarios_on_the_sandbox() {
    use futures::StreamExt as _;
    let all = scenarios();
    let count = all.len();
    let failed: Vec<String> = futures::stream::iter(all)
        .map(|(name, scenario)| async move {
            let task = tokio::spawn(async move {
                let (seconds, _) = run(&name, &scenario, None).await;
                println!(
                    "sandbox   {seconds:5.1} s  {name}: {}",
                    scenario.description
                );
                name
            });
            task.await.err().map(|e| e.to_string())
        })
        .buffer_unordered(6)
        .filter_map(|r| async move { r })
        .collect()
        .await;
    assert!(
        failed.is_empty(),
        "{} of {count} scenarios failed",
        failed.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn scenarios_on_a_real_api_server() {
    let Some(server) = Envtest::start("scenarios").await else {
        return;
    };
    let server = Arc::new(tokio::sync::Mutex::new(server));
    let mut failed = Vec::new();
    for (name, scenario) in scenarios() {
        let server = server.clone();
        let label = name.clone();
        let task = tokio::spawn(async move {
            let (seconds, mut world) = run(&name, &scenario, Some(server)).await;
            println!(
                "real      {seconds:5.1} s  {name}: {}",
                scenario.description
            );
            world.clean().await;
        });
        if task.await.is_err() {
            failed.push(label);
            break;
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}
