//! The Helm chart: lint, schema, goldens of what it renders, and that the rights it asks for are
//! those that the operator uses: no fewer and no more.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]
#![expect(clippy::print_stdout, reason = "says how much it tried")]

#[path = "chart/admission.rs"]
mod admission;
mod common;
#[path = "chart/package.rs"]
mod package;
#[path = "chart/upgrade.rs"]
mod upgrade;
#[path = "chart/values.rs"]
mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use clap::Parser as _;
use common::{Envtest, OPERATOR, Operator, Setup, comes_true, eventually, repository, tool};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use run_invoker::{
    api::{
        self, ApprovalState, ChangePhase, InvokerAccessRequest, InvokerApproval, InvokerChange,
        InvokerGuardrail, InvokerLedger, InvokerPolicy, OUTCOME_LABEL, ROLLBACK, RequestPhase,
        StatusCondition,
    },
    config::Args,
    controller::audit_events::EventOptions,
};
use sandbox::{Api as Side, Entry, Fault, Rule, Sandbox};
use serde_json::{Value, json};

/// No image is published, so every installation names one.
const IMAGE: &str = "image.repository=registry.example.com/run-invoker";

/// What the chart renders with these arguments.
fn render(args: &[&str]) -> String {
    let mut all = vec!["template", "run-invoker", ".", "--namespace", "platform"];
    all.extend(["--set", IMAGE]);
    all.extend(args);
    let (fine, text) = tool("helm", &all, &repository("charts/run-invoker"));
    assert!(fine, "{text}");
    text
}
fn objects(text: &str) -> Vec<Value> {
    let documents = text.split("\n---").map(|d| d.trim_start_matches("---"));
    documents
        .filter_map(|d| serde_saphyr::from_str::<Value>(d).ok())
        .filter(|v| v["kind"].is_string())
        .collect()
}
fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |o| o["kind"] == kind)
}

#[test]
fn the_chart_passes_lint_with_every_switch_off_and_on() {
    let folder = repository("charts/run-invoker");
    for values in ["values.yaml", "tests/full-values.yaml"] {
        let (fine, text) = tool(
            "helm",
            &["lint", ".", "--strict", "--values", values],
            &folder,
        );
        assert!(fine, "{values}: {text}");
    }
}

#[test]
fn what_the_chart_renders_is_golden() {
    // The definitions have their own check, and would drown the rest.
    insta::assert_snapshot!("chart_defaults", render(&["--set", "crds.enabled=false"]));
    insta::assert_snapshot!(
        "chart_full",
        render(&[
            "--values",
            "tests/full-values.yaml",
            "--api-versions",
            "run-invoker.dev/v1alpha1/InvokerGuardrail",
            // Some versions of kinds go by it.
            "--kube-version",
            "1.36.0",
            // Its own check below.
            "--set",
            "metrics.dashboards.enabled=false"
        ])
    );
}

/// Where the chart says that the runbooks are, unless somebody says otherwise.
const RUNBOOKS: &str = "https://github.com/run-invoker/run-invoker/blob/main/docs/runbooks";

#[test]
fn the_dashboards_in_the_chart_are_the_files() {
    let rendered = objects(&render(&["--values", "tests/full-values.yaml"]));
    for view in ["fleet", "policy"] {
        let name = format!("run-invoker-dashboard-{view}");
        let map = of_kind(&rendered, "ConfigMap")
            .find(|m| m["metadata"]["name"] == name.as_str())
            .unwrap();
        assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
        let file = repository("charts/run-invoker/files/dashboards").join(format!("{view}.json"));
        let (in_map, in_file): (Value, Value) = (
            serde_json::from_str(
                map["data"][format!("run-invoker-{view}.json")]
                    .as_str()
                    .unwrap(),
            )
            .unwrap(),
            serde_json::from_str(
                &fs::read_to_string(file)
                    .unwrap()
                    .replace("RUNBOOKS", RUNBOOKS),
            )
            .unwrap(),
        );
        assert_eq!(in_map, in_file);
    }
    assert_eq!(of_kind(&objects(&render(&[])), "ConfigMap").count(), 0);
}

/// Names of the series in a query.
fn series(query: &str) -> BTreeSet<String> {
    let name = regex::Regex::new(r"\brun_invoker_[a-z_]+").unwrap();
    name.find_iter(query)
        .map(|m| m.as_str().to_owned())
        .collect()
}

/// Every alert has a panel on the fleet dashboard that shows what it watches and links to its
/// runbook, and whatever a panel links to is there.
#[test]
fn every_alert_has_a_panel_that_links_to_its_runbook() {
    let folder = repository("charts/run-invoker/files");
    let rules: Value =
        serde_saphyr::from_str(&fs::read_to_string(folder.join("alerts.yaml")).unwrap()).unwrap();
    let rules = rules["groups"].as_array().unwrap().iter();
    let alerts: BTreeMap<String, BTreeSet<String>> = rules
        .flat_map(|g| g["rules"].as_array().unwrap())
        .map(|r| {
            let name = r["alert"].as_str().unwrap();
            (name.to_owned(), series(r["expr"].as_str().unwrap()))
        })
        .collect();
    for view in ["fleet", "policy"] {
        let file = folder.join(format!("dashboards/{view}.json"));
        let board: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        let mut linked = BTreeSet::new();
        for panel in board["panels"].as_array().unwrap() {
            let title = &panel["title"];
            let shown = series(&panel["targets"].to_string());
            for link in panel["links"].as_array().into_iter().flatten() {
                let url = link["url"].as_str().unwrap();
                let name = url
                    .strip_prefix("RUNBOOKS/")
                    .and_then(|l| l.strip_suffix(".md"));
                let name = name.unwrap_or_else(|| panic!("{title} links to {url}"));
                let runbook = repository("docs/runbooks").join(format!("{name}.md"));
                assert!(runbook.is_file(), "{title} links to {name}");
                if !alerts[name].is_disjoint(&shown) {
                    linked.insert(name.to_owned());
                }
            }
        }
        let wanted: BTreeSet<String> = match view {
            "fleet" => alerts.keys().cloned().collect(),
            _ => ["RunInvokerDrift", "RunInvokerPolicyNotReady"]
                .map(str::to_owned)
                .into(),
        };
        assert_eq!(linked, wanted, "{view}");
    }
}

#[test]
fn nonsense_in_the_values_is_refused_by_its_name() {
    for (set, names) in [
        ("settings.public=yes", "/settings/public"),
        ("settings.maxRemoval=3", "maxRemoval"),
        ("settings.breakerWindow=5", "/settings/breakerWindow"),
        ("replicas=0", "/replicas"),
        ("image.digest=latest", "/image/digest"),
        (
            "serviceAccount.googleServiceAccount=run-invoker",
            "/serviceAccount/googleServiceAccount",
        ),
        ("metrics.monitor=Monitor", "/metrics/monitor"),
        ("metrics.port=80", "/metrics/port"),
        ("replica=2", "replica"),
        ("fullnameOverride=A", "/fullnameOverride"),
        ("extraVolumes[0].secret=x", "/extraVolumes/0"),
        ("extraVolumeMounts[0].name=x", "/extraVolumeMounts/0"),
        ("service.annotations.a=1", "/service/annotations/a"),
        ("extraObjects[0]=1", "/extraObjects/0"),
        ("admission.enabled=maybe", "/admission/enabled"),
        (
            "admission.sameAccount.exceptGroup=a'b",
            "/admission/sameAccount/exceptGroup",
        ),
        (
            "admission.selfApproval.exceptGroup=a'b",
            "/admission/selfApproval/exceptGroup",
        ),
        ("shards=0", "/shards"),
    ] {
        let (fine, text) = tool(
            "helm",
            &["template", "x", ".", "--set", IMAGE, "--set", set],
            &repository("charts/run-invoker"),
        );
        assert!(!fine && text.contains(names), "{set}: {text}");
    }
}

#[test]
fn the_definitions_in_the_chart_are_those_of_crds() {
    for crd in api::definitions() {
        let file = format!("{}.yaml", crd.spec.names.plural);
        let read =
            |folder: &str| fs::read_to_string(repository(folder).join(&file)).unwrap_or_default();
        assert_eq!(
            read("crds"),
            read("charts/run-invoker/files/crds"),
            "{file}: run make crds"
        );
    }
    let rendered = objects(&render(&[]));
    assert_eq!(
        of_kind(&rendered, "CustomResourceDefinition").count(),
        api::definitions().len()
    );
    for crd in of_kind(&rendered, "CustomResourceDefinition") {
        assert_eq!(
            crd["metadata"]["annotations"]["helm.sh/resource-policy"],
            "keep"
        );
    }
    let dropped = objects(&render(&["--set", "crds.keep=false"]));
    assert!(
        of_kind(&dropped, "CustomResourceDefinition")
            .all(|c| c["metadata"]["annotations"].is_null())
    );
}

#[test]
fn the_deployment_is_restricted_and_its_arguments_are_the_operators() {
    for args in [vec![], vec!["--values", "tests/full-values.yaml"]] {
        let rendered = objects(&render(&args));
        let deployment = of_kind(&rendered, "Deployment").next().unwrap();
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        // The profile "restricted":
        // https://kubernetes.io/docs/concepts/security/pod-security-standards/
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        let security = &container["securityContext"];
        // Overrides of single keys leave the others as they are.
        if !args.is_empty() {
            assert_eq!(pod["securityContext"]["fsGroup"], 65532);
            assert_eq!(security["runAsNonRoot"], true);
        }
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(pod["volumes"].is_null(), args.is_empty());
        assert!(pod["hostNetwork"].is_null());
        let given = container["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| a.as_str().unwrap());
        let parsed = Args::try_parse_from(std::iter::once("run-invoker").chain(given))
            .unwrap_or_else(|e| panic!("{e}"));
        parsed.check().unwrap();
        assert_eq!(parsed.lease_name, "run-invoker");
    }
}

/// One verb on one resource, and on one object of it where a rule names objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    group: String,
    resource: String,
    name: Option<String>,
    verb: String,
}

impl Right {
    /// Whether a request that needs this right is let through by `granted`.
    fn is_covered_by(&self, granted: &Self) -> bool {
        let names = granted.name.is_none() || granted.name == self.name;
        let same = |f: fn(&Self) -> &String| f(self) == f(granted);
        names && same(|r| &r.group) && same(|r| &r.resource) && same(|r| &r.verb)
    }
}

/// The rights that a request needs.
fn rights(entry: &Entry) -> Vec<Right> {
    let path: Vec<&str> = entry.path().trim_start_matches('/').split('/').collect();
    let (group, rest) = match path.as_slice() {
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        _ => return vec![],
    };
    let rest = match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let (resource, name) = match rest {
        [plural] => ((*plural).to_owned(), None),
        [plural, name] => ((*plural).to_owned(), Some((*name).to_owned())),
        [plural, name, sub] => (format!("{plural}/{sub}"), Some((*name).to_owned())),
        _ => return vec![],
    };
    let verbs: &[&str] = match (entry.method.as_str(), name.is_some()) {
        ("GET", false) if entry.target.contains("watch=true") => &["watch"],
        ("GET", false) => &["list"],
        ("GET", true) => &["get"],
        ("POST", _) => &["create"],
        ("PUT", _) => &["update"],
        // Server-side apply of an object that is not there needs both.
        ("PATCH", _) if entry.status == 201 => &["patch", "create"],
        ("PATCH", _) => &["patch"],
        ("DELETE", true) => &["delete"],
        ("DELETE", false) => &["deletecollection"],
        other => panic!("{other:?}"),
    };
    let right = |verb: &&str| Right {
        group: group.to_owned(),
        resource: resource.clone(),
        name: name.clone(),
        verb: (*verb).to_owned(),
    };
    verbs.iter().map(right).collect()
}

/// The operator's own roles.
fn roles(rendered: &[Value]) -> impl Iterator<Item = &Value> {
    of_kind(rendered, "ClusterRole")
        .chain(of_kind(rendered, "Role"))
        .filter(|o| o["metadata"]["name"] == "run-invoker")
}

/// The rights that a role grants, one by one.
fn granted(role: &Value) -> Vec<Right> {
    let mut all = Vec::new();
    for rule in role["rules"].as_array().unwrap() {
        let list = |k: &str| -> Vec<String> {
            let list = rule[k].as_array().into_iter().flatten();
            list.map(|v| v.as_str().unwrap().to_owned()).collect()
        };
        let names = match rule["resourceNames"].is_null() {
            true => vec![None],
            false => list("resourceNames").into_iter().map(Some).collect(),
        };
        for group in list("apiGroups") {
            for resource in list("resources") {
                assert!(!group.contains('*') && !resource.contains('*'));
                for name in &names {
                    all.extend(list("verbs").into_iter().map(|verb| Right {
                        group: group.clone(),
                        resource: resource.clone(),
                        name: name.clone(),
                        verb,
                    }));
                }
            }
        }
    }
    all
}

/// A rule that grants this alone.
fn rule(right: &Right) -> Value {
    let mut rule =
        json!({"apiGroups": [right.group], "resources": [right.resource], "verbs": [right.verb]});
    if let Some(name) = &right.name {
        rule["resourceNames"] = json!([name]);
    }
    rule
}

const INSTALL: [&str; 6] = [
    "install",
    "run-invoker",
    ".",
    "--create-namespace",
    "--set",
    IMAGE,
];

/// helm against the sandbox, or any cluster that a kubeconfig names.
struct Helm {
    config: String,
}

impl Helm {
    async fn run(&self, args: &[&str]) -> String {
        let mut all: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        all.extend(["--namespace", "platform", "--kubeconfig", &self.config].map(str::to_owned));
        let run = move || {
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            tool("helm", &all, &repository("charts/run-invoker"))
        };
        let (fine, text) = tokio::task::spawn_blocking(run).await.unwrap();
        assert!(fine, "{args:?}: {text}");
        text
    }

    fn to(kubeconfig: &str) -> Self {
        let file = common::own_path("helm");
        fs::write(&file, kubeconfig).unwrap();
        Self {
            config: file.display().to_string(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_rights_in_the_chart_are_those_that_the_operator_uses() {
    a_life_with_the_rights_of_the_chart(&Ground::sandbox().await, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_rights_in_the_chart_on_a_real_api_server() {
    if let Some(ground) = Ground::real("the operator with the rights in the chart").await {
        a_life_with_the_rights_of_the_chart(&ground, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_several_shards_too() {
    a_life_with_the_rights_of_the_chart(&Ground::sandbox().await, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_several_shards_on_a_real_api_server_too() {
    if let Some(ground) = Ground::real("several shards with the rights in the chart").await {
        a_life_with_the_rights_of_the_chart(&ground, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_tenant_may_declare_in_its_namespace_and_nothing_else() {
    a_tenant_with_the_roles_of_the_chart(&Ground::sandbox().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_tenant_on_a_real_api_server_may_declare_in_its_namespace_and_nothing_else() {
    if let Some(ground) = Ground::real("a tenant with the roles in the chart").await {
        a_tenant_with_the_roles_of_the_chart(&ground).await;
    }
}

/// A cluster to install the chart on: requests are in the sandbox's journal, whether its own
/// Kubernetes API answers them or a real one.
struct Ground {
    sandbox: Sandbox,
    real: Option<Envtest>,
}

impl Ground {
    async fn sandbox() -> Self {
        Self {
            sandbox: Sandbox::start(Default::default()).await.unwrap(),
            real: None,
        }
    }

    async fn real(what: &str) -> Option<Self> {
        let real = Envtest::start(what).await?;
        Some(Self {
            sandbox: real.behind_a_sandbox().await,
            real: Some(real),
        })
    }

    /// helm goes to a real API server itself: it sends no token over plain HTTP.
    fn helm(&self) -> Helm {
        Helm::to(&match &self.real {
            Some(real) => real.kubeconfig(),
            None => self.sandbox.kubeconfig(),
        })
    }

    /// The operator, as the ServiceAccount of the chart.
    async fn operator(&self, setup: &Setup) -> Operator {
        let kubeconfig = self.sandbox.kubeconfig_of("platform", "run-invoker");
        let client = common::operators_client(&kubeconfig).await;
        Operator::start(client, self.sandbox.run_url(), setup).await
    }

    /// What the operator asked the API server for.
    fn calls_of_the_operator(&self, since: u64) -> Vec<Entry> {
        let journal = &self.sandbox.journal;
        journal.since(since, |e| e.api == Side::Kube && e.user_agent == OPERATOR)
    }
}

fn nothing_was_refused(calls: &[Entry]) {
    let refused: Vec<_> = calls
        .iter()
        .filter(|e| e.status == 403)
        .map(|e| (&e.method, &e.target))
        .collect();
    assert!(
        refused.is_empty(),
        "refused with the rights of the chart: {refused:?}"
    );
}

#[test]
fn the_table_of_permissions_is_that_of_the_chart() {
    const VERBS: [&str; 7] = [
        "get", "list", "watch", "create", "update", "patch", "delete",
    ];
    let page = fs::read_to_string(repository("docs/platform.md")).unwrap();
    let (_, table) = page
        .split_once("Permissions that the operator needs")
        .unwrap();
    let rows = table.lines().skip_while(|l| !l.starts_with("| `"));
    let written: BTreeSet<(String, String)> = rows
        .take_while(|l| l.starts_with('|'))
        .flat_map(|row| {
            let resource = row.split('`').nth(1).unwrap().to_owned();
            let verbs = row.split('|').nth(2).unwrap().split([' ', ',']);
            let verbs = verbs.filter(|w| VERBS.contains(w)).map(str::to_owned);
            verbs
                .map(move |v| (resource.clone(), v))
                .collect::<Vec<_>>()
        })
        .collect();
    let rendered = objects(&render(&["--set", "shards=2", "--set", SUBSCRIPTION]));
    let granted: BTreeSet<(String, String)> = roles(&rendered)
        .flat_map(granted)
        .map(|r| (r.resource, r.verb))
        .collect();
    assert_eq!(written, granted);
}

/// Helm installs the chart, and an operator runs with the ServiceAccount and the rights that it
/// brings: the API server refuses everything else, and no right may be left unused.
async fn a_life_with_the_rights_of_the_chart(ground: &Ground, shards: usize) {
    let sandbox = &ground.sandbox;
    let count = format!("shards={shards}");
    let values = ["--set", &count, "--set", SUBSCRIPTION];
    ground.helm().run(&[&INSTALL[..], &values].concat()).await;
    let as_operator =
        common::operators_client(&sandbox.kubeconfig_of("platform", "run-invoker")).await;
    for (path, what) in [
        (
            "/api/v1/namespaces/platform/secrets",
            r#"cannot list resource "secrets" in API group "" in the namespace "platform""#,
        ),
        (
            "/apis/coordination.k8s.io/v1/namespaces/default/leases",
            r#"cannot list resource "leases" in API group "coordination.k8s.io" in the namespace "default""#,
        ),
        (
            "/apis/run-invoker.dev/v1alpha1/invokerchanges?watch=true",
            r#"cannot watch resource "invokerchanges" in API group "run-invoker.dev" at the cluster scope"#,
        ),
    ] {
        let request = http::Request::get(path).body(vec![]).unwrap();
        let error = as_operator
            .request::<Value>(request)
            .await
            .expect_err("the API server lets everything through");
        let words = format!("User \"system:serviceaccount:platform:run-invoker\" {what}");
        assert!(error.to_string().contains(&words), "{error}");
    }
    let before = sandbox.journal.last();
    live(ground, shards, Duration::from_secs(15)).await.unwrap();
    let calls = ground.calls_of_the_operator(before);
    nothing_was_refused(&calls);
    let used: BTreeSet<Right> = calls.iter().flat_map(rights).collect();
    let granted: Vec<Right> = roles(&objects(&render(&values)))
        .flat_map(granted)
        .collect();
    let missing: Vec<_> = used
        .iter()
        .filter(|u| !granted.iter().any(|g| u.is_covered_by(g)))
        .collect();
    let spare: Vec<_> = granted
        .iter()
        .filter(|g| !used.iter().any(|u| u.is_covered_by(g)))
        .collect();
    assert!(
        missing.is_empty() && spare.is_empty(),
        "missing in the chart: {missing:?}; never used: {spare:?}"
    );
}

/// What the chart is told so that the operator has audit events.
const SUBSCRIPTION: &str = "events.subscriptions={projects/acme-ops/subscriptions/run-invoker}";

/// A life of the operator in which everything happens that it ever asks the API server for. `Err`
/// says what did not come true within this patience.
async fn live(ground: &Ground, shards: usize, patience: Duration) -> Result<(), String> {
    let sandbox = &ground.sandbox;
    let client = common::client(&sandbox.kubeconfig()).await;
    let expect = async |name: &str, type_: &str, wanted: &str| {
        let api: Api<InvokerPolicy> = Api::namespaced(client.clone(), "default");
        comes_true(patience, &format!("{name} is {wanted}"), || async {
            let policy = api.get(name).await.map_err(|e| e.to_string())?;
            let conditions = policy.status.unwrap_or_default().conditions;
            let found = |c: &StatusCondition| c.type_ == type_ && c.reason == wanted;
            if conditions.iter().any(found) {
                Ok(())
            } else {
                Err(format!("{conditions:?}"))
            }
        })
        .await
    };
    for name in ["web", "api"] {
        sandbox.run.deploy("acme-prod", "europe-west1", name, &[]);
    }
    let mut setup = Setup {
        home: "platform".into(),
        shards,
        ..Setup::default()
    };
    setup.breaker.corrections = 2;
    setup.retention.number = 1;
    // None comes, and that is told; looks are no further apart for it.
    setup.events = Some(EventOptions {
        interval: Duration::ZERO,
        patience: Duration::from_secs(1),
    });
    let policies: Api<InvokerPolicy> = Api::namespaced(client.clone(), "default");
    let changes: Api<InvokerChange> = Api::namespaced(client.clone(), "default");
    let policy = |name: &str| {
        json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": name, "namespace": "default"},
            "spec": {"project": "acme-prod", "services": [{"name": name, "region": "europe-west1"}], "mode": "Enforce",
                "invokers": [{"member": "user:a@acme.com"}, {"kubernetesServiceAccount": {"name": "web"}}]}})
    };
    // What a version before 0.2 left behind: a policy, and a record that it did not get to close.
    policies
        .create(
            &PostParams::default(),
            &serde_json::from_value(policy("web")).unwrap(),
        )
        .await
        .unwrap();
    let open = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerChange",
        "metadata": {"name": "left-open", "namespace": "default", "labels": {OUTCOME_LABEL: "Pending"}},
        "spec": {"project": "acme-prod", "region": "europe-west1", "service": "web", "reason": "SpecChanged", "at": "2026-11-20T12:00:00.000000Z",
            "policies": [], "added": [], "addedCount": 0, "removed": [], "removedCount": 0, "before": [], "etagBefore": "BwX",
            "outcome": {"phase": "Pending"}}});
    changes
        .create(
            &PostParams::default(),
            &serde_json::from_value(open).unwrap(),
        )
        .await
        .unwrap();
    // Once a ledger is another than the operator knows, so that it reads it.
    let conflict = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409, "message": "the object has been modified"});
    sandbox.faults.add(
        Rule::kube(
            "PUT",
            "/invokerledgers/",
            Fault::Error {
                status: 409,
                body: conflict,
                headers: vec![],
            },
        )
        .times(1),
    );
    let operator = ground.operator(&setup).await;
    let rail = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerGuardrail", "metadata": {"name": "g"},
        "spec": {"requests": {"maxDuration": "1h", "autoApprove": ["*@acme.com"]}}});
    let rails: Api<InvokerGuardrail> = Api::all(client.clone());
    rails
        .create(
            &PostParams::default(),
            &serde_json::from_value(rail).unwrap(),
        )
        .await
        .unwrap();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web", "namespace": "default",
        "annotations": {"iam.gke.io/gcp-service-account": "web@acme-prod.iam.gserviceaccount.com"}}});
    let accounts: Api<DynamicObject> = Api::namespaced_with(
        client.clone(),
        "default",
        &kube::api::ApiResource::erase::<k8s_openapi::api::core::v1::ServiceAccount>(&()),
    );
    accounts
        .create(
            &PostParams::default(),
            &serde_json::from_value(account).unwrap(),
        )
        .await
        .unwrap();
    policies
        .create(
            &PostParams::default(),
            &serde_json::from_value(policy("api")).unwrap(),
        )
        .await
        .unwrap();
    for name in ["web", "api"] {
        expect(name, "Ready", "InSync").await?;
    }
    let closed = changes.get("left-open").await.unwrap().spec.outcome.phase;
    if closed == ChangePhase::Pending {
        return Err("what an older version left open stays open".into());
    }
    // Drift twice in the same words, so that an event is counted; then a third time, which opens
    // the breaker.
    for turn in 0..3 {
        sandbox.run.add_member(
            "acme-prod",
            "europe-west1",
            "web",
            "roles/run.invoker",
            "user:x@acme.com",
        );
        let nudge = json!({"metadata": {"annotations": {"run-invoker.dev/requested-at": format!("{turn}")}}});
        policies
            .patch("web", &PatchParams::default(), &Patch::Merge(nudge))
            .await
            .unwrap();
        comes_true(patience, "looked at", || async {
            let status = policies
                .get("web")
                .await
                .map_err(|e| e.to_string())?
                .status
                .unwrap_or_default();
            let handled = status.last_handled_requested_at;
            if handled.as_deref() == Some(&format!("{turn}")) {
                Ok(())
            } else {
                Err(format!("{handled:?}"))
            }
        })
        .await?;
    }
    expect("web", "Stalled", "CircuitOpen").await?;
    if shards > 1 {
        // Drift that is found now is told to the other replicas.
        let told =
            |e: &Entry| e.method == "PATCH" && e.path().ends_with("leases/run-invoker-circuit");
        comes_true(patience, "unrest is told", || async {
            if sandbox.journal.since(0, told).is_empty() {
                Err("not yet".into())
            } else {
                Ok(())
            }
        })
        .await?;
    }
    setup
        .offset
        .fetch_add(600, std::sync::atomic::Ordering::Relaxed);
    expect("web", "Ready", "InSync").await?;
    // Back behind the last change, and away.
    let of_api = changes
        .list(&Default::default())
        .await
        .unwrap()
        .items
        .into_iter()
        .find(|c| c.spec.service == "api");
    let back =
        json!({"metadata": {"annotations": {ROLLBACK: of_api.ok_or("no record")?.name_any()}}});
    policies
        .patch("api", &PatchParams::default(), &Patch::Merge(back))
        .await
        .unwrap();
    expect("api", "Stalled", "ApprovalRequired").await?;
    let status = policies.get("api").await.unwrap().status;
    let services = status.unwrap_or_default().services;
    let plan = services.iter().map(|s| &s.plan).find(|p| !p.is_empty());
    let approval = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerApproval",
        "metadata": {"name": "chg-1", "namespace": "default"},
        "spec": {"policy": "api", "plan": plan.ok_or("no plan")?, "reason": "CHG-1"}});
    let approvals: Api<InvokerApproval> = Api::namespaced(client.clone(), "default");
    approvals
        .create(
            &PostParams::default(),
            &serde_json::from_value(approval).unwrap(),
        )
        .await
        .unwrap();
    expect("api", "Ready", "RolledBack").await?;
    comes_true(patience, "the approval is used", || async {
        let status = approvals
            .get("chg-1")
            .await
            .map_err(|e| e.to_string())?
            .status;
        match status.as_ref().and_then(|s| s.state) {
            Some(ApprovalState::Used) => Ok(()),
            _ => Err(format!("{status:?}")),
        }
    })
    .await?;
    // Access on request, ended early.
    let request = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerAccessRequest",
        "metadata": {"name": "inc-1", "namespace": "default"},
        "spec": {"project": "acme-prod", "services": [{"name": "api", "region": "europe-west1"}],
            "member": "user:ada@acme.com", "duration": "1h", "reason": "INC-1"}});
    let requests: Api<InvokerAccessRequest> = Api::namespaced(client.clone(), "default");
    let request = serde_json::from_value(request).unwrap();
    let asked = requests.create(&PostParams::default(), &request).await;
    asked.unwrap();
    comes_true(patience, "the request is granted", || async {
        let found = requests.get("inc-1").await.map_err(|e| e.to_string())?;
        match found.status.as_ref().and_then(|s| s.phase) {
            Some(RequestPhase::Active) => Ok(()),
            _ => Err(format!("{:?}", found.status)),
        }
    })
    .await?;
    let gone = requests.delete("inc-1", &DeleteParams::default()).await;
    gone.unwrap();
    comes_true(patience, "the request is gone", || async {
        match requests.get_opt("inc-1").await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    policies
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    comes_true(patience, "gone", || async {
        let left = policies.get_opt("web").await.map_err(|e| e.to_string())?;
        if left.is_none() {
            Ok(())
        } else {
            Err("still there".into())
        }
    })
    .await?;
    // Its ledger remembers nothing but corrections now, and goes after it.
    let ledgers: Api<InvokerLedger> = Api::all(client.clone());
    comes_true(patience, "its ledger is gone", || async {
        let left = ledgers
            .get_opt("acme-prod.europe-west1.web")
            .await
            .map_err(|e| e.to_string())?;
        if left.is_none() {
            Ok(())
        } else {
            Err("still there".into())
        }
    })
    .await?;
    operator.stop().await;
    Ok(())
}

/// The last line of defence is the log: the operator says there which right it lacks, whatever else
/// becomes of it. Each right is taken away from an operator of its own.
#[test]
fn without_any_one_of_its_rights_the_operator_says_which_one_it_lacks() {
    let rendered = Arc::new(objects(&render(&["--set", SUBSCRIPTION])));
    let rights: Vec<Right> = roles(&rendered).flat_map(granted).collect();
    let waiting = Arc::new(Mutex::new(rights.clone()));
    let workers: Vec<_> = (0..6)
        .map(|_| {
            let (waiting, rendered) = (waiting.clone(), rendered.clone());
            std::thread::spawn(move || {
                let mut silent = Vec::new();
                loop {
                    let Some(right) = waiting.lock().unwrap().pop() else {
                        return silent;
                    };
                    if let Err(log) = lives_without(&right, &rendered) {
                        silent.push((right, log));
                    }
                }
            })
        })
        .collect();
    let silent: Vec<_> = workers
        .into_iter()
        .flat_map(|w| w.join().unwrap())
        .collect();
    println!("{} rights taken away, one after the other", rights.len());
    assert!(silent.is_empty(), "nobody hears of it: {silent:#?}");
}

/// A life of an operator that lacks a right, until its log says so. `Err` is what it said instead.
fn lives_without(right: &Right, rendered: &[Value]) -> Result<(), String> {
    /// Where a log goes.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || writer.clone())
        .finish();
    // The operator's tasks stay on this thread, and so does its log.
    let _guard = tracing::subscriber::set_default(subscriber);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let words = format!("cannot {} resource \"{}\"", right.verb, right.resource);
    // Some fields come with their quotes escaped.
    let text = || String::from_utf8_lossy(&log.0.lock().unwrap()).replace('\\', "");
    runtime.block_on(async {
        let ground = Ground::sandbox().await;
        let admin = common::client(&ground.sandbox.kubeconfig()).await;
        common::install(&admin).await;
        common::namespace(&admin, "platform").await;
        let bindings =
            of_kind(rendered, "ClusterRoleBinding").chain(of_kind(rendered, "RoleBinding"));
        let lacking = roles(rendered).map(|role| {
            let mut role = role.clone();
            role["rules"] = granted(&role)
                .iter()
                .filter(|r| *r != right)
                .map(rule)
                .collect();
            role
        });
        for object in lacking.chain(bindings.cloned()) {
            let plural = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
            let path = match object["metadata"]["namespace"].as_str() {
                Some(namespace) => format!("namespaces/{namespace}/{plural}"),
                None => plural,
            };
            let path = format!("/apis/rbac.authorization.k8s.io/v1/{path}");
            assert_eq!(answer(&admin, "POST", &path, "", &object).await, 201);
        }
        let said = async {
            while !text().contains(&words) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            biased;
            () = said => Ok(()),
            end = live(&ground, 1, Duration::from_secs(5)) => Err(format!("{end:?}: {}", text())),
        }
    })
}

/// A namespace whose people have the roles `edit` and `view` that every cluster has, to which the
/// chart adds its kinds; the operator beside them with its own rights.
async fn a_tenant_with_the_roles_of_the_chart(ground: &Ground) {
    const KINDS: &str = "/apis/run-invoker.dev/v1alpha1";
    const MERGE: &str = "application/merge-patch+json";
    let sandbox = &ground.sandbox;
    let admin = common::client(&sandbox.kubeconfig()).await;
    ground.helm().run(&INSTALL).await;
    for (namespace, account, role) in [
        ("team-a", "editor", "edit"),
        ("team-a", "viewer", "view"),
        ("team-b", "editor", "edit"),
        ("team-a", "approver", "run-invoker-approver"),
        ("team-a", "requester", "run-invoker-requester"),
    ] {
        common::namespace(&admin, namespace).await;
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": account},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]});
        let path =
            format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings");
        assert_eq!(answer(&admin, "POST", &path, "", &binding).await, 201);
    }
    for name in ["web", "api"] {
        sandbox.run.deploy("acme-prod", "europe-west1", name, &[]);
    }
    let before = sandbox.journal.last();
    let setup = Setup {
        home: "platform".into(),
        ..Setup::default()
    };
    let operator = ground.operator(&setup).await;
    let editor = common::client(&sandbox.kubeconfig_of("team-a", "editor")).await;
    let viewer = common::client(&sandbox.kubeconfig_of("team-a", "viewer")).await;
    let other = common::client(&sandbox.kubeconfig_of("team-b", "editor")).await;
    let approver = common::client(&sandbox.kubeconfig_of("team-a", "approver")).await;
    let requester = common::client(&sandbox.kubeconfig_of("team-a", "requester")).await;
    let policy = |namespace: &str, name: &str| {
        json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": name, "namespace": namespace},
            "spec": {"project": "acme-prod", "services": [{"name": name, "region": "europe-west1"}], "mode": "Enforce",
                "invokers": [{"member": "user:a@acme.com"}]}})
    };
    let at = |namespace: &str, kind: &str| format!("{KINDS}/namespaces/{namespace}/{kind}");
    let one = |namespace: &str, kind: &str, name: &str| format!("{}/{name}", at(namespace, kind));
    let policies = at("team-a", "invokerpolicies");
    let web = one("team-a", "invokerpolicies", "web");

    // What a tenant does: declares, follows what became of it, reads the history, and takes it back.
    let apply = format!("{web}?fieldManager=git&fieldValidation=Strict");
    let applied = policy("team-a", "web");
    assert_eq!(
        answer(
            &editor,
            "PATCH",
            &apply,
            "application/apply-patch+yaml",
            &applied
        )
        .await,
        201
    );
    let theirs = policy("team-b", "api");
    let there = at("team-b", "invokerpolicies");
    assert_eq!(answer(&other, "POST", &there, "", &theirs).await, 201);
    let seen: Api<InvokerPolicy> = Api::namespaced(editor.clone(), "team-a");
    ready(&seen, "web").await;
    ready(&Api::namespaced(other.clone(), "team-b"), "api").await;
    let history: Api<InvokerChange> = Api::namespaced(editor.clone(), "team-a");
    let history = history.list(&Default::default()).await.unwrap().items;
    assert_eq!(history.len(), 1, "{history:#?}");
    let change = one("team-a", "invokerchanges", &history[0].name_any());
    let ledger = format!("{KINDS}/invokerledgers/acme-prod.europe-west1.web");
    let guardrail = format!("{KINDS}/invokerguardrails/g");
    let rail = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerGuardrail", "metadata": {"name": "g"}, "spec": {}});
    let rails = format!("{KINDS}/invokerguardrails");
    assert_eq!(answer(&admin, "POST", &rails, "", &rail).await, 201);
    // All that is refused below is there to be written: an admin may.
    for path in [&change, &ledger, &guardrail] {
        assert_eq!(
            answer(&admin, "GET", path, "", &Value::Null).await,
            200,
            "{path}"
        );
    }

    let note = json!({"metadata": {"annotations": {"team": "a"}}});
    let forged = json!({"status": {"observedGeneration": 7}});
    let record = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerChange", "metadata": {"name": "forged"}, "spec": {}});
    let approval = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerApproval", "metadata": {"name": "chg-1"},
        "spec": {"policy": "web", "plan": "0".repeat(40), "reason": "CHG-1"}});
    let (approvals, chg) = (
        at("team-a", "invokerapprovals"),
        one("team-a", "invokerapprovals", "chg-1"),
    );
    assert_eq!(
        answer(&approver, "POST", &approvals, "", &approval).await,
        201
    );
    let request = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerAccessRequest", "metadata": {"name": "inc-1"},
        "spec": {"project": "acme-prod", "services": [{"name": "web", "region": "europe-west1"}],
            "member": "user:ada@acme.com", "duration": "1h", "reason": "INC-1"}});
    let (requests, inc) = (
        at("team-a", "invokeraccessrequests"),
        one("team-a", "invokeraccessrequests", "inc-1"),
    );
    let asked = answer(&requester, "POST", &requests, "", &request).await;
    assert_eq!(asked, 201);
    let (inc_status, requests_of_b) = (
        format!("{inc}/status"),
        at("team-b", "invokeraccessrequests"),
    );
    let granted = json!({"status": {"phase": "Active", "until": "2040-01-01T00:00:00Z"}});
    let (chg_status, approvals_of_b) = (format!("{chg}/status"), at("team-b", "invokerapprovals"));
    let none = Value::Null;
    let (ledgers, changes) = (
        format!("{KINDS}/invokerledgers"),
        at("team-a", "invokerchanges"),
    );
    let (status, change_status) = (format!("{web}/status"), format!("{change}/status"));
    let api_of_b = one("team-b", "invokerpolicies", "api");
    let status_of_b = format!("{api_of_b}/status");
    let changes_of_b = at("team-b", "invokerchanges");
    let anywhere = format!("{KINDS}/invokerpolicies");
    let roles = "/apis/rbac.authorization.k8s.io/v1";
    let role = format!("{roles}/clusterroles/run-invoker");
    let bindings = format!("{roles}/clusterrolebindings");
    let lease = "/apis/coordination.k8s.io/v1/namespaces/platform/leases/run-invoker";
    let refused: Vec<(&Client, &str, &str, &Value)> = vec![
        (&editor, "PATCH", &status, &forged),
        (&editor, "PUT", &status, &forged),
        (&editor, "POST", &changes, &record),
        (&editor, "PATCH", &change, &note),
        (&editor, "PUT", &change, &record),
        (&editor, "DELETE", &change, &none),
        (&editor, "DELETE", &changes, &none),
        (&editor, "PATCH", &change_status, &forged),
        (&editor, "POST", &rails, &rail),
        (&editor, "PATCH", &guardrail, &note),
        (&editor, "DELETE", &guardrail, &none),
        (&editor, "DELETE", &rails, &none),
        // A RoleBinding is about what lies in its namespace.
        (&editor, "GET", &guardrail, &none),
        (&viewer, "GET", &rails, &none),
        (&editor, "GET", &ledger, &none),
        (&editor, "GET", &ledgers, &none),
        (&editor, "PATCH", &ledger, &note),
        (&editor, "DELETE", &ledger, &none),
        (&editor, "DELETE", &ledgers, &none),
        (&editor, "GET", &api_of_b, &none),
        (&editor, "GET", &there, &none),
        (&editor, "POST", &there, &theirs),
        (&editor, "PATCH", &api_of_b, &note),
        (&editor, "DELETE", &api_of_b, &none),
        (&editor, "DELETE", &there, &none),
        (&editor, "PATCH", &status_of_b, &forged),
        (&editor, "GET", &changes_of_b, &none),
        (&editor, "GET", &anywhere, &none),
        (&editor, "GET", lease, &none),
        (&editor, "DELETE", lease, &none),
        (&editor, "PATCH", &role, &note),
        (&editor, "POST", &bindings, &none),
        (&viewer, "POST", &policies, &applied),
        (&viewer, "PATCH", &web, &note),
        (&viewer, "DELETE", &web, &none),
        (&viewer, "PATCH", &status, &forged),
        (&viewer, "DELETE", &change, &none),
        (&viewer, "GET", &ledger, &none),
        (&other, "GET", &web, &none),
        (&other, "PATCH", &web, &note),
        // Who may write a policy may not approve, and who may approve writes nothing else.
        (&editor, "POST", &approvals, &approval),
        (&editor, "PATCH", &chg, &note),
        (&editor, "DELETE", &chg, &none),
        (&editor, "PATCH", &chg_status, &forged),
        (&viewer, "POST", &approvals, &approval),
        (&other, "GET", &chg, &none),
        (&approver, "PATCH", &chg_status, &forged),
        (&approver, "PATCH", &web, &note),
        (&approver, "POST", &policies, &applied),
        (&approver, "POST", &approvals_of_b, &approval),
        (&approver, "GET", &ledger, &none),
        // Who may ask grants nothing, and nobody grants by hand.
        (&requester, "PATCH", &inc_status, &granted),
        (&editor, "PATCH", &inc_status, &granted),
        (&approver, "PATCH", &inc_status, &granted),
        (&approver, "POST", &requests, &request),
        (&requester, "POST", &approvals, &approval),
        (&requester, "POST", &policies, &applied),
        (&requester, "POST", &requests_of_b, &request),
        (&requester, "GET", &web, &none),
        (&other, "GET", &inc, &none),
    ];
    for (who, method, path, body) in refused {
        let code = answer(who, method, path, MERGE, body).await;
        assert_eq!(code, 403, "{method} {path}");
    }
    // As docs/platform.md says.
    let reader = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "guardrail-reader"},
        "rules": [{"apiGroups": ["run-invoker.dev"], "resources": ["invokerguardrails"], "verbs": ["get", "list", "watch"]}]});
    let everybody = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "guardrail-reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "guardrail-reader"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:authenticated"}]});
    let cluster_roles = format!("{roles}/clusterroles");
    for (path, object) in [(&cluster_roles, &reader), (&bindings, &everybody)] {
        assert_eq!(answer(&admin, "POST", path, "", object).await, 201);
    }
    eventually(Duration::from_secs(5), "guardrails may be read", || async {
        match answer(&editor, "GET", &guardrail, "", &none).await {
            200 => Ok(()),
            code => Err(format!("{code}")),
        }
    })
    .await;
    let watch = format!("{policies}?watch=true&timeoutSeconds=1");
    let allowed: Vec<(&Client, &str, &str, &Value)> = vec![
        (&editor, "PATCH", &web, &note),
        (&editor, "GET", &web, &none),
        (&editor, "GET", &policies, &none),
        (&editor, "GET", &watch, &none),
        (&editor, "GET", &change, &none),
        (&editor, "GET", &changes, &none),
        (&viewer, "GET", &web, &none),
        (&viewer, "GET", &policies, &none),
        (&viewer, "GET", &watch, &none),
        (&viewer, "GET", &change, &none),
        (&viewer, "GET", &changes, &none),
        (&viewer, "GET", &chg, &none),
        (&approver, "GET", &web, &none),
        (&approver, "GET", &changes, &none),
        (&approver, "DELETE", &chg, &none),
        (&approver, "GET", &inc, &none),
        (&viewer, "GET", &inc, &none),
        (&requester, "GET", &requests, &none),
        (&requester, "DELETE", &inc, &none),
        (&editor, "DELETE", &web, &none),
    ];
    for (who, method, path, body) in allowed {
        let code = answer(who, method, path, MERGE, body).await;
        assert_eq!(code, 200, "{method} {path}");
    }
    eventually(Duration::from_secs(10), "gone", || async {
        match answer(&editor, "GET", &web, "", &none).await {
            404 => Ok(()),
            code => Err(format!("{code}")),
        }
    })
    .await;
    let left = |name| {
        sandbox
            .run
            .members("acme-prod", "europe-west1", name, "roles/run.invoker")
    };
    assert!(left("web").is_empty(), "{:?}", left("web"));
    assert_eq!(left("api"), ["user:a@acme.com"]);
    operator.stop().await;
    nothing_was_refused(&ground.calls_of_the_operator(before));
}

/// The status code of an answer.
async fn answer(who: &Client, method: &str, path: &str, content: &str, body: &Value) -> u16 {
    let content = match method {
        "PATCH" => content,
        _ => "application/json",
    };
    let bytes = match body {
        Value::Null => vec![],
        body => body.to_string().into_bytes(),
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content)
        .body(bytes.into())
        .unwrap();
    who.send(request).await.unwrap().status().as_u16()
}

async fn ready(policies: &Api<InvokerPolicy>, name: &str) {
    eventually(Duration::from_secs(15), name, || async {
        let policy = policies.get(name).await.map_err(|e| e.to_string())?;
        let conditions = policy.status.unwrap_or_default().conditions;
        let ready = |c: &StatusCondition| c.type_ == "Ready" && c.reason == "InSync";
        if conditions.iter().any(ready) {
            Ok(())
        } else {
            Err(format!("{conditions:?}"))
        }
    })
    .await;
}

/// Real helm, from the first installation to the end: on the sandbox, or on the cluster that
/// `CHART_KUBECONFIG` names (`make chart KUBECONFIG=FILE`).
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn helm_installs_upgrades_rolls_back_and_uninstalls_without_touching_iam() {
    let ground = Ground::sandbox().await;
    let helm = match std::env::var("CHART_KUBECONFIG") {
        Ok(file) if !file.is_empty() => Helm { config: file },
        _ => ground.helm(),
    };
    the_life_of_a_release(&ground.sandbox, helm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn helm_does_so_on_a_real_api_server_too() {
    if let Some(ground) = Ground::real("helm").await {
        the_life_of_a_release(&ground.sandbox, ground.helm()).await;
    }
}

async fn the_life_of_a_release(sandbox: &Sandbox, helm: Helm) {
    let config = fs::read_to_string(&helm.config).unwrap();
    let client = common::client(&config).await;
    let get = async |path: &str| -> Option<Value> {
        let request = http::Request::get(path).body(vec![]).unwrap();
        client.request::<Value>(request).await.ok()
    };
    let deployment = "/apis/apps/v1/namespaces/platform/deployments/run-invoker";
    let guardrail = "/apis/run-invoker.dev/v1alpha1/invokerguardrails/default";
    let notes = helm
        .run(&[&INSTALL[..], &["--set", "defaultGuardrail.enabled=true"]].concat())
        .await;
    assert!(
        notes.contains("THE DEFAULT GUARDRAIL IS NOT INSTALLED YET"),
        "{notes}"
    );
    assert!(
        notes.contains("--set settings.requireGuardrail=true"),
        "{notes}"
    );
    assert_eq!(get(deployment).await.unwrap()["spec"]["replicas"], 2);
    assert!(get(guardrail).await.is_none());

    // What a tenant has by then.
    let policy = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"project": "acme-prod", "services": [{"name": "web", "region": "europe-west1"}], "invokers": [{"member": "user:a@acme.com"}]}});
    let policies: Api<InvokerPolicy> = Api::namespaced(client.clone(), "default");
    policies
        .create(
            &PostParams::default(),
            &serde_json::from_value(policy).unwrap(),
        )
        .await
        .unwrap();

    helm.run(&[
        "upgrade",
        "run-invoker",
        ".",
        "--reuse-values",
        "--set",
        "replicas=3",
    ])
    .await;
    assert_eq!(get(deployment).await.unwrap()["spec"]["replicas"], 3);
    assert_eq!(get(guardrail).await.unwrap()["spec"]["public"], "Deny");
    helm.run(&["rollback", "run-invoker", "1"]).await;
    assert_eq!(get(deployment).await.unwrap()["spec"]["replicas"], 2);
    let said = helm.run(&["uninstall", "run-invoker"]).await;
    assert!(said.contains("invokerpolicies.run-invoker.dev"), "{said}");
    assert!(get(deployment).await.is_none());
    for role in [
        "clusterroles/run-invoker",
        "clusterroles/run-invoker-edit",
        "clusterrolebindings/run-invoker",
    ] {
        assert!(
            get(&format!("/apis/rbac.authorization.k8s.io/v1/{role}"))
                .await
                .is_none(),
            "{role} is left"
        );
    }
    assert!(
        policies.get("web").await.is_ok(),
        "policies stay with their definitions"
    );
    assert!(
        sandbox.journal.since(0, |e| e.api == Side::Run).is_empty(),
        "helm has no business with Google"
    );
}
