//! `helm upgrade --reuse-values` from every earlier chart of this repository: it brings the values
//! of the chart that was installed, which lack what was added since and have what was dropped.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use futures::{StreamExt as _, stream};
use sandbox::Sandbox;
use serde_json::Value;

use super::*;

/// A folder with every earlier chart: those that are stored, and those that the history has beside
/// them. A clean checkout has no history.
fn earlier_charts() -> (PathBuf, Vec<PathBuf>) {
    let folder = common::own_path("charts");
    fs::create_dir_all(&folder).unwrap();
    let to = folder.to_str().unwrap();
    let stored = repository("tests/earlier-charts.tar.xz");
    let (fine, text) = tool("tar", &["xJf", stored.to_str().unwrap(), "-C", to], &folder);
    assert!(fine, "{text}");
    let names = || -> Vec<String> {
        let entries = fs::read_dir(&folder).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.collect()
    };
    assert!(names().len() >= 14, "{:?}", names());
    let root = repository("");
    let git = |args: &[&str]| match common::which("git") {
        Some(_) => tool("git", args, &root),
        None => (false, String::new()),
    };
    let chart = "charts/run-invoker";
    let (fine, commits) = git(&["log", "--reverse", "--format=%H", "HEAD", "--", chart]);
    for commit in commits.lines().filter(|_| fine) {
        let (_, tree) = git(&["rev-parse", &format!("{commit}:{chart}")]);
        let tree = &tree.trim()[..12];
        if names().iter().any(|n| n.ends_with(tree)) {
            continue;
        }
        let new = folder.join(format!("{:02}-{tree}", names().len() + 1));
        fs::create_dir(&new).unwrap();
        let tar = new.with_extension("tar");
        let (fine, text) = git(&[
            "archive",
            "-o",
            tar.to_str().unwrap(),
            &format!("{commit}:{chart}"),
        ]);
        assert!(fine, "{text}");
        let (fine, text) = tool("tar", &["xf", tar.to_str().unwrap()], &new);
        assert!(fine, "{text}");
        fs::remove_file(tar).unwrap();
    }
    let mut charts: Vec<PathBuf> = names().iter().map(|n| folder.join(n)).collect();
    charts.sort();
    (folder, charts)
}

/// What the user of an earlier chart had set.
const OWN: [&str; 6] = [
    "--set",
    IMAGE,
    "--set",
    "replicas=3",
    "--set",
    "settings.public=allow",
];

/// Objects by kind and name.
fn by_name(text: &str) -> BTreeMap<String, Value> {
    let name = |o: &Value| format!("{} {}", o["kind"], o["metadata"]["name"]);
    objects(text).into_iter().map(|o| (name(&o), o)).collect()
}

/// Installs an earlier chart, with its defaults or with every switch on, upgrades to the present
/// one, and compares with what the present one makes of the same values and its own defaults for
/// the rest.
async fn upgrades(ground: &Ground, old: &Path, full: bool) {
    let client = common::client(&ground.sandbox.kubeconfig()).await;
    let helm = ground.helm();
    let what = format!("{} full={full}", old.display());
    let switches = old.join("tests/full-values.yaml");
    let mut own = OWN.to_vec();
    if full {
        own.extend(["--values", switches.to_str().unwrap()]);
        // Their kinds are the Prometheus operator's, which is not there.
        own.extend(["--set", "metrics.monitor=,metrics.rules.enabled=false"]);
        // This is about the definitions too.
        own.extend(["--set", "crds.enabled=true"]);
    }
    let install = ["install", "run-invoker", old.to_str().unwrap()];
    helm.run(&[&install[..], &["--create-namespace"], &own].concat())
        .await;
    // What a tenant has by then.
    let policy = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": "web"},
        "spec": {"project": "acme-prod", "services": [{"name": "web", "region": "europe-west1"}], "invokers": [{"member": "user:a@acme.com"}]}});
    let policies: Api<InvokerPolicy> = Api::namespaced(client.clone(), "default");
    let policy = serde_json::from_value(policy).unwrap();
    let policy = policies.create(&PostParams::default(), &policy).await;
    let policy = policy.unwrap();

    helm.run(&["upgrade", "run-invoker", ".", "--reuse-values"])
        .await;
    let manifest = helm.run(&["get", "manifest", "run-invoker"]).await;
    let (present, defaults) = (repository("charts/run-invoker"), old.join("values.yaml"));
    let mut expected = vec!["template", "run-invoker", ".", "--namespace", "platform"];
    expected.extend(["--is-upgrade", "--values", defaults.to_str().unwrap()]);
    // As the sandbox says; some versions of kinds go by it.
    expected.extend(["--kube-version", "1.36.0"]);
    expected.extend(&own);
    let (fine, expected) = tool("helm", &expected, &present);
    assert!(fine, "{what}: {expected}");
    let (found, expected) = (by_name(&manifest), by_name(&expected));
    let names = |o: &BTreeMap<String, Value>| o.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected), "{what}");
    for (name, object) in &found {
        assert_eq!(object, &expected[name], "{what}: {name}");
    }
    let deployment = &found[r#""Deployment" "run-invoker""#];
    assert_eq!(deployment["spec"]["replicas"], 3, "{what}");
    let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array();
    let args = args.unwrap().iter().map(|a| a.as_str().unwrap());
    let args: Vec<&str> = std::iter::once("run-invoker").chain(args).collect();
    assert!(args.contains(&"--public=allow"), "{what}: {args:?}");
    let parsed = Args::try_parse_from(&args).unwrap_or_else(|e| panic!("{what}: {e}"));
    parsed.check().unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(
        args.iter().all(|a| !a.ends_with('=')),
        "{what}: an argument without a value: {args:?}"
    );
    let kept = policies.get("web").await.unwrap();
    assert_eq!(
        (kept.metadata.uid, kept.spec.invokers.len()),
        (policy.metadata.uid, 1),
        "{what}"
    );
    // The same command again changes nothing.
    helm.run(&["upgrade", "run-invoker", ".", "--reuse-values"])
        .await;
    let again = helm.run(&["get", "manifest", "run-invoker"]).await;
    assert_eq!(by_name(&again), found, "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn helm_upgrades_with_reuse_values_from_every_earlier_chart() {
    let (folder, charts) = earlier_charts();
    stream::iter(charts.iter().flat_map(|c| [(c, false), (c, true)]))
        .for_each_concurrent(3, |(chart, full)| async move {
            let ground = Ground::sandbox().await;
            upgrades(&ground, chart, full).await;
            let sandbox: &Sandbox = &ground.sandbox;
            assert!(sandbox.journal.since(0, |e| e.api == Side::Run).is_empty());
        })
        .await;
    println!("upgraded from {} charts", charts.len());
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_new_can_be_switched_on_by_the_upgrade_that_brings_it() {
    let (folder, charts) = earlier_charts();
    let ground = Ground::sandbox().await;
    let helm = ground.helm();
    let first = charts[0].to_str().unwrap();
    let install = ["install", "run-invoker", first, "--create-namespace"];
    helm.run(&[&install[..], &OWN].concat()).await;
    let upgrade = ["upgrade", "run-invoker", ".", "--reuse-values", "--set"];
    helm.run(&[&upgrade[..], &["admission.enabled=true"]].concat())
        .await;
    let found = by_name(&helm.run(&["get", "manifest", "run-invoker"]).await);
    let policy = r#""ValidatingAdmissionPolicy" "run-invoker-created-by""#;
    assert!(found.contains_key(policy), "{:?}", found.keys());
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn helm_upgrades_from_the_first_chart_on_a_real_api_server_too() {
    if let Some(ground) = Ground::real("an upgrade from the first chart").await {
        let (folder, charts) = earlier_charts();
        upgrades(&ground, &charts[0], true).await;
        fs::remove_dir_all(folder).unwrap();
    }
}
