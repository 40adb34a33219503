//! The Helm chart: lint, schema, goldens of what it renders, and that the rights it asks for are
//! those that the operator uses: no fewer and no more.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::{collections::BTreeSet, fs, time::Duration};

use clap::Parser as _;
use common::{OPERATOR, Operator, Setup, eventually, repository, tool};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use run_invoker::{
    api::{
        self, ChangePhase, InvokerChange, InvokerGuardrail, InvokerLedger, InvokerPolicy,
        OUTCOME_LABEL, ROLLBACK,
    },
    config::Args,
    controller::audit_events::EventOptions,
};
use sandbox::{Api as Side, Entry, Fault, Rule, Sandbox};
use serde_json::{Value, json};

/// What the chart renders with these arguments.
fn render(args: &[&str]) -> String {
    let mut all = vec!["template", "run-invoker", ".", "--namespace", "platform"];
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
            // Its own check below.
            "--set",
            "metrics.dashboards.enabled=false"
        ])
    );
}

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
            serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap(),
        );
        assert_eq!(in_map, in_file);
    }
    assert_eq!(of_kind(&objects(&render(&[])), "ConfigMap").count(), 0);
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
        ("shards=0", "/shards"),
    ] {
        let (fine, text) = tool(
            "helm",
            &["template", "x", ".", "--set", set],
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
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
        assert!(pod["volumes"].is_null() && pod["hostNetwork"].is_null());
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

/// `group/resource: verb`, where a request needs that right.
fn rights(entry: &Entry) -> BTreeSet<String> {
    let path: Vec<&str> = entry.path().trim_start_matches('/').split('/').collect();
    let (group, rest) = match path.as_slice() {
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        _ => return BTreeSet::new(),
    };
    let rest = match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let (resource, named) = match rest {
        [plural] => ((*plural).to_owned(), false),
        [plural, _] => ((*plural).to_owned(), true),
        [plural, _, sub] => (format!("{plural}/{sub}"), true),
        _ => return BTreeSet::new(),
    };
    let verbs: &[&str] = match (entry.method.as_str(), named) {
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
    verbs
        .iter()
        .map(|v| format!("{group}/{resource}: {v}"))
        .collect()
}

async fn expect(client: &Client, name: &str, type_: &str, wanted: &str) {
    let api: Api<InvokerPolicy> = Api::namespaced(client.clone(), "default");
    eventually(Duration::from_secs(15), name, || async {
        let status = api
            .get(name)
            .await
            .map_err(|e| e.to_string())?
            .status
            .unwrap_or_default();
        let found = status
            .conditions
            .iter()
            .any(|c| c.type_ == type_ && c.reason == wanted);
        if found {
            Ok(())
        } else {
            Err(format!("{:?}", status.conditions))
        }
    })
    .await;
}

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

    fn to(sandbox: &Sandbox) -> Self {
        let file = std::env::temp_dir().join(format!(
            "run-invoker-helm-{}-{}",
            std::process::id(),
            common::free_port()
        ));
        fs::write(&file, sandbox.kubeconfig()).unwrap();
        Self {
            config: file.display().to_string(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_rights_in_the_chart_are_those_that_the_operator_uses() {
    a_life_with_the_rights_of_the_chart(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_several_shards_too() {
    a_life_with_the_rights_of_the_chart(2).await;
}

/// Helm installs the chart, and an operator runs with the ServiceAccount and the rights that it
/// brings: the sandbox refuses everything else. In its life everything happens that it ever asks
/// the API server for, so no right may be left unused.
async fn a_life_with_the_rights_of_the_chart(shards: usize) {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    let count = format!("shards={shards}");
    Helm::to(&sandbox)
        .run(&[
            "install",
            "run-invoker",
            ".",
            "--create-namespace",
            "--set",
            &count,
            "--set",
            "events.subscriptions={projects/acme-ops/subscriptions/run-invoker}",
        ])
        .await;
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
    let as_operator =
        common::operators_client(&sandbox.kubeconfig_of("platform", "run-invoker")).await;
    for forbidden in [
        "/api/v1/namespaces/platform/secrets",
        "/apis/coordination.k8s.io/v1/namespaces/default/leases",
    ] {
        let request = http::Request::get(forbidden).body(vec![]).unwrap();
        let error = as_operator
            .request::<Value>(request)
            .await
            .expect_err("the sandbox lets everything through");
        assert!(
            error
                .to_string()
                .contains("system:serviceaccount:platform:run-invoker"),
            "{error}"
        );
    }
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
    let before = sandbox.journal.last();
    let operator = Operator::start(as_operator, sandbox.run_url(), &setup).await;
    let rail = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerGuardrail", "metadata": {"name": "g"}, "spec": {}});
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
        expect(&client, name, "Ready", "InSync").await;
    }
    let closed = changes.get("left-open").await.unwrap().spec.outcome.phase;
    assert!(
        closed != ChangePhase::Pending,
        "what an older version left open stays open"
    );
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
        eventually(Duration::from_secs(10), "looked at", || async {
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
        .await;
    }
    expect(&client, "web", "Stalled", "CircuitOpen").await;
    if shards > 1 {
        // Drift that is found now is told to the other replicas.
        let told =
            |e: &Entry| e.method == "PATCH" && e.path().ends_with("leases/run-invoker-circuit");
        eventually(Duration::from_secs(10), "unrest is told", || async {
            if sandbox.journal.since(before, told).is_empty() {
                Err("not yet".into())
            } else {
                Ok(())
            }
        })
        .await;
    }
    setup
        .offset
        .fetch_add(600, std::sync::atomic::Ordering::Relaxed);
    expect(&client, "web", "Ready", "InSync").await;
    // Back behind the last change, and away.
    let of_api = changes
        .list(&Default::default())
        .await
        .unwrap()
        .items
        .into_iter()
        .find(|c| c.spec.service == "api");
    let back = json!({"metadata": {"annotations": {ROLLBACK: of_api.unwrap().name_any()}}});
    policies
        .patch("api", &PatchParams::default(), &Patch::Merge(back))
        .await
        .unwrap();
    expect(&client, "api", "Stalled", "ApprovalRequired").await;
    policies
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    eventually(Duration::from_secs(10), "gone", || async {
        let left = policies.get_opt("web").await.map_err(|e| e.to_string())?;
        if left.is_none() {
            Ok(())
        } else {
            Err("still there".into())
        }
    })
    .await;
    // Its ledger remembers nothing but corrections now, and goes after it.
    let ledgers: Api<InvokerLedger> = Api::all(client.clone());
    eventually(Duration::from_secs(10), "its ledger is gone", || async {
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
    .await;
    operator.stop().await;

    let calls = sandbox
        .journal
        .since(before, |e| e.api == Side::Kube && e.user_agent == OPERATOR);
    let refused: Vec<_> = calls
        .iter()
        .filter(|e| e.status == 403)
        .map(|e| (&e.method, &e.target))
        .collect();
    assert!(
        refused.is_empty(),
        "refused with the rights of the chart: {refused:?}"
    );
    let used: BTreeSet<String> = calls.iter().flat_map(rights).collect();
    let rendered = objects(&render(&["--set", &count]));
    let mut granted = BTreeSet::new();
    let own = |o: &&Value| o["metadata"]["name"] == "run-invoker";
    for role in of_kind(&rendered, "ClusterRole")
        .chain(of_kind(&rendered, "Role"))
        .filter(own)
    {
        for rule in role["rules"].as_array().unwrap() {
            let list = |k: &str| {
                rule[k]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|v| v.as_str().unwrap())
                    .collect::<Vec<_>>()
            };
            for (group, resource) in list("apiGroups")
                .into_iter()
                .flat_map(|g| list("resources").into_iter().map(move |r| (g, r)))
            {
                assert!(!group.contains('*') && !resource.contains('*'));
                granted.extend(
                    list("verbs")
                        .into_iter()
                        .map(|v| format!("{group}/{resource}: {v}")),
                );
            }
        }
    }
    let missing: Vec<_> = used.difference(&granted).collect();
    let spare: Vec<_> = granted.difference(&used).collect();
    assert!(
        missing.is_empty() && spare.is_empty(),
        "missing in the chart: {missing:?}; never used: {spare:?}"
    );
}

/// Real helm, from the first installation to the end: on the sandbox, or on the cluster that
/// `CHART_KUBECONFIG` names (`make chart KUBECONFIG=FILE`).
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn helm_installs_upgrades_rolls_back_and_uninstalls_without_touching_iam() {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let (config, helm) = match std::env::var("CHART_KUBECONFIG")
        .ok()
        .filter(|f| !f.is_empty())
    {
        Some(file) => (fs::read_to_string(&file).unwrap(), Helm { config: file }),
        None => (sandbox.kubeconfig(), Helm::to(&sandbox)),
    };
    let client = common::client(&config).await;
    let get = async |path: &str| -> Option<Value> {
        let request = http::Request::get(path).body(vec![]).unwrap();
        client.request::<Value>(request).await.ok()
    };
    let deployment = "/apis/apps/v1/namespaces/platform/deployments/run-invoker";
    let guardrail = "/apis/run-invoker.dev/v1alpha1/invokerguardrails/default";
    let notes = helm
        .run(&[
            "install",
            "run-invoker",
            ".",
            "--create-namespace",
            "--set",
            "defaultGuardrail.enabled=true",
        ])
        .await;
    assert!(
        notes.contains("THE DEFAULT GUARDRAIL IS NOT INSTALLED YET"),
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
