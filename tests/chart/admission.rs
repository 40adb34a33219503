//! Names that count: the admission policies that the chart can install. Those that validate are
//! shown by the real plugin, on a real API server; those that mutate by the sandbox.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;

const KINDS: &str = "/apis/run-invoker.dev/v1alpha1";
const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const ON: &str = "admission.enabled=true";
const POLICIES: &str = "invokerpolicies";
const REQUESTS: &str = "invokeraccessrequests";

/// The ends of the names of the policies that validate, in the order of the alphabet.
const VALIDATING: [&str; 5] = [
    "created-by",
    "edited-by",
    "own-approval",
    "own-edit",
    "own-request",
];

fn names<'a>(rendered: &'a [Value], kind: &'a str) -> Vec<&'a str> {
    let mut names: Vec<_> = of_kind(rendered, kind)
        .map(|o| o["metadata"]["name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    names
}

fn args(rendered: &[Value]) -> &Vec<Value> {
    let deployment = of_kind(rendered, "Deployment").next().unwrap();
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    container["args"].as_array().unwrap()
}

#[test]
fn admission_policies_are_off_by_default_and_have_the_name_of_the_release() {
    let of_admission = |o: &&Value| o["kind"].as_str().unwrap().contains("AdmissionPolicy");
    let stamps = json!("--admission-stamps");
    let rendered = objects(&render(&[]));
    assert_eq!(rendered.iter().filter(of_admission).count(), 0);
    assert!(!args(&rendered).contains(&stamps));

    let with = |set: &str, version: &str| {
        let all = [
            "--set",
            ON,
            "--set",
            set,
            "--set",
            "fullnameOverride=access",
            "--kube-version",
            version,
        ];
        objects(&render(&all))
    };
    let named = |ends: &[&str]| -> Vec<String> {
        let mut names: Vec<_> = ends.iter().map(|e| format!("access-{e}")).collect();
        names.sort();
        names
    };
    let every = [&VALIDATING[..], &["own-account"]].concat();
    for (set, version, validating, mutating) in [
        ("replicas=2", "1.30", &VALIDATING[..], &[][..]),
        ("admission.sameAccount.enabled=true", "1.30", &every, &[]),
        (
            "admission.mutate=true",
            "1.35.9",
            &VALIDATING,
            &["created-by", "edited-by"],
        ),
        (
            "admission.mutate=true",
            "1.36.0-gke.100",
            &VALIDATING,
            &["created-by", "edited-by"],
        ),
    ] {
        let rendered = with(set, version);
        assert!(args(&rendered).contains(&stamps), "{set}");
        for (kind, ends) in [("Validating", validating), ("Mutating", mutating)] {
            let kind = format!("{kind}AdmissionPolicy");
            assert_eq!(names(&rendered, &kind), named(ends), "{set}");
            let binding = format!("{kind}Binding");
            assert_eq!(names(&rendered, &binding), named(ends), "{set}");
            for policy in of_kind(&rendered, &kind) {
                assert_eq!(policy["spec"]["failurePolicy"], "Fail", "{policy}");
            }
            for binding in of_kind(&rendered, &binding) {
                assert_eq!(binding["spec"]["policyName"], binding["metadata"]["name"]);
            }
        }
        // Served by default, or not at all: the first version is on nowhere by itself.
        for policy in rendered.iter().filter(of_admission) {
            let beta =
                version.starts_with("1.35") && policy["kind"].as_str().unwrap().starts_with('M');
            let version = if beta { "v1beta1" } else { "v1" };
            assert_eq!(
                policy["apiVersion"],
                format!("admissionregistration.k8s.io/{version}")
            );
        }
    }
}

#[test]
fn what_does_nothing_without_admission_policies_is_refused_without_them() {
    for set in [
        "admission.mutate=true",
        "admission.sameAccount.enabled=true",
    ] {
        let (fine, text) = tool(
            "helm",
            &["template", "x", ".", "--set", IMAGE, "--set", set],
            &repository("charts/run-invoker"),
        );
        let words = "do nothing without admission.enabled=true";
        assert!(!fine && text.contains(words), "{set}: {text}");
    }
}

/// Who writes.
struct Person {
    name: &'static str,
    client: Client,
}

/// A write, and whether it has to be refused. See the file.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Step {
    who: String,
    post: Option<String>,
    apply: Option<String>,
    patch: Option<String>,
    json: Option<String>,
    put: Option<String>,
    #[serde(rename = "in", default = "team_a")]
    namespace: String,
    #[serde(default = "new")]
    name: String,
    by: Option<String>,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    with: Value,
    #[serde(default)]
    keep: bool,
    refused: Option<(String, String)>,
    named: Option<String>,
}

fn team_a() -> String {
    "team-a".into()
}
fn new() -> String {
    "new".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Story {
    values: Vec<String>,
    /// The policy on editors is the one for clusters that write the names.
    #[serde(default)]
    mutate: bool,
    steps: Vec<Step>,
}

/// A request to the API server.
struct Write {
    method: &'static str,
    path: String,
    content: &'static str,
    body: Value,
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (into, Value::Null) if into.is_object() => {}
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn collection(namespace: &str, plural: &str) -> String {
    format!("{KINDS}/namespaces/{namespace}/{plural}")
}

/// An object of the kind with a valid spec, and this put over it.
fn object(plural: &str, namespace: &str, name: &str, over: &Value) -> Value {
    let web = json!([{"name": "web", "region": "europe-west1"}]);
    let (kind, spec) = match plural {
        POLICIES => (
            "InvokerPolicy",
            json!({"project": "acme-prod", "services": web, "mode": "Enforce", "invokers": [{"member": "user:a@acme.com"}]}),
        ),
        REQUESTS => (
            "InvokerAccessRequest",
            json!({"project": "acme-prod", "services": web, "member": "user:eve@acme.com", "duration": "1h", "reason": "INC-1"}),
        ),
        _ => {
            let about = json!({"policy": "web", "plan": "0".repeat(40), "reason": "CHG-1"});
            ("InvokerApproval", about)
        }
    };
    let mut object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": namespace}, "spec": spec});
    merge(&mut object["spec"], over);
    if over["request"].is_string() {
        object["spec"].as_object_mut().unwrap().remove("policy");
    }
    object
}

/// The annotation that says who.
fn signature(plural: &str) -> &'static str {
    match plural {
        POLICIES => api::EDITED_BY,
        _ => api::CREATED_BY,
    }
}

impl Step {
    /// Plural, name if there is one, subresource if there is one.
    fn target(&self) -> &str {
        let Self {
            post,
            apply,
            patch,
            json,
            put,
            ..
        } = self;
        let mut targets = [post, apply, patch, json, put].into_iter().flatten();
        targets.next().unwrap()
    }

    fn plural_and_name(&self) -> (&str, &str) {
        let mut parts = self.target().split('/');
        (parts.next().unwrap(), parts.next().unwrap_or(&self.name))
    }

    fn write(&self, me: &str, keep: bool) -> Write {
        let (plural, name) = self.plural_and_name();
        let (method, content) = match self {
            Self { post: Some(_), .. } => ("POST", ""),
            Self { put: Some(_), .. } => ("PUT", ""),
            Self { apply: Some(_), .. } => ("PATCH", APPLY),
            Self { patch: Some(_), .. } => ("PATCH", MERGE),
            _ => ("PATCH", "application/json-patch+json"),
        };
        let mut body = match content {
            "" | APPLY => object(plural, &self.namespace, name, &self.spec),
            MERGE if !self.spec.is_null() => json!({"spec": self.spec}),
            MERGE => json!({}),
            _ => Value::Null,
        };
        merge(&mut body, &self.with);
        if let Some(by) = &self.by {
            let by = match by.as_str() {
                "me" => json!(me),
                "nobody" => Value::Null,
                name => json!(name),
            };
            body["metadata"]["annotations"][signature(plural)] = by;
        }
        let apply = match content {
            APPLY => "&fieldManager=argocd&force=true",
            _ => "",
        };
        let dry_run = if keep { "" } else { "&dryRun=All" };
        let path = collection(&self.namespace, self.target());
        Write {
            method,
            path: format!("{path}?{apply}{dry_run}"),
            content,
            body,
        }
    }
}

/// The status code of an answer, and its message.
async fn said(
    client: &Client,
    method: &str,
    path: &str,
    content: &str,
    body: &Value,
) -> (u16, String) {
    use http_body_util::BodyExt as _;
    let content = match method {
        "PATCH" => content,
        _ => "application/json",
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content)
        .body(body.to_string().into_bytes().into())
        .unwrap();
    let answer = client.send(request).await.unwrap();
    let code = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    let object: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let message = object["message"].as_str().unwrap_or_default();
    (code, message.to_owned())
}

/// A team's namespaces on a real API server with the chart: all may do there what anybody may.
struct Team {
    ground: Ground,
    admin: Client,
    people: BTreeMap<&'static str, Person>,
    /// Every step is kept.
    keeps: bool,
}

impl Team {
    async fn on(ground: Ground, values: &[String]) -> Self {
        let config = ground.real.as_ref().unwrap().kubeconfig();
        let set = values.iter().flat_map(|v| ["--set", v]);
        let install: Vec<&str> = INSTALL.into_iter().chain(set).collect();
        ground.helm().run(&install).await;
        let admin = common::client(&config).await;
        for namespace in ["team-a", "team-b"] {
            common::namespace(&admin, namespace).await;
            for role in ["edit", "run-invoker-approver"] {
                bind(&admin, namespace, role, role, &json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "team"}])).await;
            }
        }
        let argo = [
            "team",
            "system:serviceaccounts",
            "system:serviceaccounts:argocd",
        ];
        let mut people = BTreeMap::new();
        for (person, name, groups) in [
            ("ada", "ada@acme.com", &["team"][..]),
            ("bob", "bob@acme.com", &["team"]),
            ("carol", "carol@acme.com", &["team"]),
            ("desk", "help@acme.com", &["team", "desk@acme.com"]),
            // A Google service account.
            ("robot", "ci@acme-prod.iam.gserviceaccount.com", &["team"]),
            (
                "argo",
                "system:serviceaccount:argocd:argocd-application-controller",
                &argo,
            ),
        ] {
            let client = common::client(&acting_as(&config, name, groups)).await;
            people.insert(person, Person { name, client });
        }
        let of_operator = ground.sandbox.kubeconfig_of("platform", "run-invoker");
        for (person, name, client) in [
            ("admin", "admin", admin.clone()),
            (
                "operator",
                "system:serviceaccount:platform:run-invoker",
                common::client(&of_operator).await,
            ),
        ] {
            people.insert(person, Person { name, client });
        }
        Self {
            ground,
            admin,
            people,
            keeps: false,
        }
    }

    /// Does it until it has its verdict: policies act, and hear of other objects, a moment later.
    async fn play(&self, step: &Step) {
        let who = &self.people[step.who.as_str()];
        let w = step.write(who.name, step.keep || self.keeps);
        let what = format!("{step:?}");
        eventually(Duration::from_secs(20), &what, || async {
            let (code, message) =
                said(&who.client, w.method, &w.path, w.content, &w.body).await;
            let as_it_has_to = match &step.refused {
                None => code == 200 || code == 201,
                Some((by, words)) => {
                    let by = format!(
                        "ValidatingAdmissionPolicy 'run-invoker-{by}' with binding 'run-invoker-{by}' denied request: "
                    );
                    (code == 403 || code == 422)
                        && message.contains(&by)
                        && message.contains(words)
                }
            };
            match as_it_has_to {
                true => Ok(()),
                false => Err(format!("{code}: {message}")),
            }
        })
        .await;
        let Some(named) = &step.named else { return };
        let (plural, name) = step.plural_and_name();
        let path = collection(&step.namespace, &format!("{plural}/{name}"));
        let request = http::Request::get(path).body(vec![]).unwrap();
        let found: Value = self.admin.request(request).await.unwrap();
        let wanted = match named.as_str() {
            "nobody" => Value::Null,
            person => json!(self.people[person].name),
        };
        let found = &found["metadata"]["annotations"][signature(plural)];
        assert_eq!(*found, wanted, "{what}");
    }
}

/// The kubeconfig of an admin as somebody else's.
fn acting_as(admin: &str, name: &str, groups: &[&str]) -> String {
    let token = "{token: sandbox}";
    assert!(admin.contains(token));
    let user = format!("{{token: sandbox, as: \"{name}\", as-groups: {groups:?}}}");
    admin.replace(token, &user)
}

/// Binds a ClusterRole in a namespace.
async fn bind(admin: &Client, namespace: &str, name: &str, role: &str, subjects: &Value) {
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}, "subjects": subjects});
    let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings");
    assert_eq!(answer(admin, "POST", &path, "", &binding).await, 201);
}

/// A story of the file.
fn read(name: &str) -> Story {
    let text = fs::read_to_string(repository("tests/chart/admission.yaml")).unwrap();
    let mut stories: BTreeMap<String, Story> = serde_saphyr::from_str(&text).unwrap();
    stories.remove(name).unwrap()
}

/// Plays a story on a real API server.
async fn story(name: &str) {
    let story = read(name);
    let Some(ground) = Ground::real(&format!("admission policies: {name}")).await else {
        return;
    };
    let team = Team::on(ground, &story.values).await;
    if story.mutate {
        let rendered = objects(&render(&["--set", ON, "--set", "admission.mutate=true"]));
        let policy = of_kind(&rendered, "ValidatingAdmissionPolicy")
            .find(|p| p["metadata"]["name"] == "run-invoker-edited-by")
            .unwrap();
        let path = format!("{ADMISSION}/validatingadmissionpolicies/run-invoker-edited-by");
        let spec = json!({"spec": policy["spec"]});
        assert_eq!(answer(&team.admin, "PATCH", &path, MERGE, &spec).await, 200);
    }
    for step in &story.steps {
        team.play(step).await;
    }
    println!("{name}: {} writes", story.steps.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_created_an_approval_or_a_request_is_true_and_stays() {
    story("created-by").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_approves_their_own_request_or_edit() {
    story("own").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_edited_a_policy_last_is_true_and_is_not_passed_on() {
    story("edited-by").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_edits_without_a_name_where_the_cluster_is_to_write_it() {
    story("edited-by-somebody").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_asks_asks_for_the_account_that_they_are() {
    story("own-account").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_operator_works_under_the_policies_and_they_go_with_the_release() {
    let Some(ground) = Ground::real("an operator under admission policies").await else {
        return;
    };
    let values = [ON, "admission.sameAccount.enabled=true"].map(str::to_owned);
    let team = Team::on(ground, &values).await;
    let play = async |steps: &str| {
        for step in serde_saphyr::from_str::<Vec<Step>>(steps).unwrap() {
            team.play(&step).await;
        }
    };
    let (sandbox, admin) = (&team.ground.sandbox, &team.admin);
    sandbox.run.deploy("acme-prod", "europe-west1", "web", &[]);
    let before = sandbox.journal.last();
    let setup = Setup {
        home: "platform".into(),
        ..Setup::default()
    };
    let rail = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerGuardrail", "metadata": {"name": "g"},
        "spec": {"requests": {"maxDuration": "1h"}, "approvals": "Approver"}});
    let rails = format!("{KINDS}/invokerguardrails");
    assert_eq!(answer(admin, "POST", &rails, "", &rail).await, 201);
    let operator = team.ground.operator(&setup).await;
    play(
        "- {who: ada, post: invokerapprovals, refused: [created-by, is missing]}
- {who: ada, post: invokerpolicies, name: web, by: me, keep: true}
- {who: ada, post: invokeraccessrequests, name: inc, by: me, spec: {member: 'user:ada@acme.com'}, keep: true}",
    )
    .await;
    ready(&Api::namespaced(admin.clone(), "team-a"), "web").await;
    let requests: Api<InvokerAccessRequest> = Api::namespaced(admin.clone(), "team-a");
    let reaches = async |wanted: RequestPhase| {
        eventually(Duration::from_secs(15), wanted.as_str(), || async {
            let found = requests.get("inc").await.map_err(|e| e.to_string())?;
            match found.status.as_ref().and_then(|s| s.phase) {
                Some(phase) if phase == wanted => Ok(()),
                _ => Err(format!("{:?}", found.status)),
            }
        })
        .await;
        let found = requests.get("inc").await.unwrap();
        found.status.and_then(|s| s.plan).unwrap()
    };
    let plan = reaches(RequestPhase::Pending).await;
    play(&format!(
        "- {{who: ada, post: invokerapprovals, by: me, spec: {{request: inc, plan: '{plan}'}}, refused: [own-request, inc yourself]}}
- {{who: bob, post: invokerapprovals, by: me, spec: {{request: inc, plan: '{plan}'}}, keep: true}}"
    ))
    .await;
    reaches(RequestPhase::Active).await;
    // What is deleted goes: the finalizer is taken off again.
    let ada = &team.people["ada"].client;
    for path in [format!("{REQUESTS}/inc"), format!("{POLICIES}/web")] {
        let path = collection("team-a", &path);
        assert_eq!(answer(ada, "DELETE", &path, "", &Value::Null).await, 200);
        eventually(Duration::from_secs(15), &path, || async {
            match answer(ada, "GET", &path, "", &Value::Null).await {
                404 => Ok(()),
                code => Err(format!("{code}")),
            }
        })
        .await;
    }
    operator.stop().await;
    let calls = team.ground.calls_of_the_operator(before);
    let refused = |e: &&Entry| e.status == 403 || e.status == 422;
    let refused: Vec<_> = calls.iter().filter(refused).collect();
    assert!(refused.is_empty(), "{refused:#?}");

    team.ground.helm().run(&["uninstall", "run-invoker"]).await;
    nothing_is_left(admin, &["validating"]).await;
}

/// The plugin signs what it writes, so that it works under the policies.
#[cfg(feature = "cli")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_plugin_writes_under_the_name_of_who_calls_it() {
    let Some(ground) = Ground::real("the plugin under admission policies").await else {
        return;
    };
    let team = Team::on(ground, &[ON.to_owned()]).await;
    let sandbox = &team.ground.sandbox;
    sandbox.run.deploy("acme-prod", "europe-west1", "web", &[]);
    for step in read("plugin").steps {
        team.play(&step).await;
    }
    let real = team.ground.real.as_ref().unwrap();
    let config = common::own_path("bob");
    fs::write(
        &config,
        acting_as(&real.kubeconfig(), "bob@acme.com", &["team"]),
    )
    .unwrap();
    let plugin = async |args: &[&str]| {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_kubectl-invoker"))
            .args(args)
            .args(["--namespace", "team-a"])
            .env("KUBECONFIG", &config)
            .env(
                "RUN_INVOKER_CLOUD_RUN_ENDPOINT",
                team.ground.sandbox.run_url(),
            )
            .env("RUN_INVOKER_ANONYMOUS", "true")
            .output();
        let output = output.await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
    };
    let notes = async |plural: &str, name: &str| {
        let path = collection("team-a", &format!("{plural}/{name}"));
        let request = http::Request::get(path).body(vec![]).unwrap();
        let found: Value = team.admin.request(request).await.unwrap();
        found["metadata"]["annotations"].clone()
    };
    let bob = "bob@acme.com";
    plugin(&["suspend", "named", "unnamed"]).await;
    assert_eq!(notes(POLICIES, "named").await, json!({api::EDITED_BY: bob}));
    // Nobody is named who was not.
    assert_eq!(notes(POLICIES, "unnamed").await, Value::Null);
    plugin(&["rollback", "--end", "--policy", "rolled-back", "--yes"]).await;
    let left = notes(POLICIES, "rolled-back").await;
    assert_eq!(left, json!({api::EDITED_BY: bob}));
    let about = ["--service", "web", "--region", "europe-west1"];
    let asked = [
        "request",
        "--name",
        "inc",
        "--project",
        "acme-prod",
        "--for",
        "1h",
        "--reason",
        "INC-1",
    ];
    plugin(&[&asked[..], &about].concat()).await;
    assert_eq!(notes(REQUESTS, "inc").await, json!({api::CREATED_BY: bob}));
    fs::remove_file(config).unwrap();
}

/// Of no policy of these sorts, nor of its binding.
async fn nothing_is_left(client: &Client, sorts: &[&str]) {
    for sort in sorts {
        for plural in ["policies", "policybindings"] {
            let path = format!("{ADMISSION}/{sort}admission{plural}");
            let request = http::Request::get(&path).body(vec![]).unwrap();
            let list: Value = client.request(request).await.unwrap();
            assert_eq!(list["items"], json!([]), "{path}");
        }
    }
}

/// The sandbox carries the policies out that mutate, with another evaluator than the API server's.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_cluster_stamps_names_where_it_is_told_to() {
    let ground = Ground::sandbox().await;
    let sandbox = &ground.sandbox;
    let admin = common::client(&sandbox.kubeconfig()).await;
    ground.helm().run(&INSTALL).await;
    common::namespace(&admin, "team-a").await;
    let mut people = BTreeMap::new();
    for (person, name, role) in [
        ("ada", "system:serviceaccount:team-a:ada", "edit"),
        ("bob", "system:serviceaccount:team-a:bob", "edit"),
        (
            "lea",
            "system:serviceaccount:team-a:lea",
            "run-invoker-approver",
        ),
        ("operator", "system:serviceaccount:platform:run-invoker", ""),
    ] {
        let (namespace, account) = name.rsplit_once(':').unwrap();
        let (_, namespace) = namespace.rsplit_once(':').unwrap();
        if !role.is_empty() {
            let account =
                json!([{"kind": "ServiceAccount", "name": account, "namespace": namespace}]);
            bind(&admin, "team-a", person, role, &account).await;
        }
        let client = common::client(&sandbox.kubeconfig_of(namespace, account)).await;
        people.insert(person, Person { name, client });
    }
    let old = object(POLICIES, "team-a", "old", &Value::Null);
    let policies = collection("team-a", POLICIES);
    assert_eq!(answer(&admin, "POST", &policies, "", &old).await, 201);
    let story = read("stamped");
    let upgrade = ["upgrade", "run-invoker", ".", "--reuse-values"];
    let set = story.values.iter().flat_map(|v| ["--set", v]);
    let upgrade: Vec<&str> = upgrade.into_iter().chain(set).collect();
    ground.helm().run(&upgrade).await;
    let team = Team {
        ground,
        admin,
        people,
        keeps: true,
    };
    for step in &story.steps {
        team.play(step).await;
    }
    // A name that nobody gave belongs to nobody: the next apply does not take it off.
    let path = collection("team-a", &format!("{REQUESTS}/a"));
    let request = http::Request::get(&path).body(vec![]).unwrap();
    let found: Value = team.admin.request(request).await.unwrap();
    let owned = found["metadata"]["managedFields"].to_string();
    assert!(owned.contains("f:spec") && !owned.contains(api::CREATED_BY));

    let helm = team.ground.helm();
    helm.run(&["uninstall", "run-invoker"]).await;
    nothing_is_left(&team.admin, &["validating", "mutating"]).await;
}
