//! What one tenant costs its neighbours, with the default budgets.
//!
//! Every neighbour has a project and region of its own: nothing but the operator itself is shared.
//! `quota`: a thousand first grants wait for the writes of one region. `worst-tenant`: policies as
//! large as the schema and the store take them, and annotations that change all the time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sandbox::{Api, Fault, Rule, Sandbox};
use serde_json::{Value, json};

use super::{Bench, LATENCY_MS, Operator, is_ready, kubeconfig, percentile};

const NEIGHBOURS: usize = 120;
/// Between two edits of neighbours.
const PAUSE: Duration = Duration::from_millis(250);
/// No edit begins later than this in a phase, so that a stalled operator does not hold a run up.
const LONGEST: Duration = Duration::from_secs(120);
/// An edit that is not written by then counts as so long.
const PATIENCE: Duration = Duration::from_secs(60);
const REGIONS: [&str; 4] = ["europe-west1", "us-central1", "asia-northeast1", "us-east1"];

fn neighbour(i: usize) -> (String, &'static str, String) {
    let project = format!("neighbour-{:03}", i / REGIONS.len());
    (project, REGIONS[i % REGIONS.len()], format!("ordinary-{i}"))
}

fn neighbours_policy(i: usize, edit: Option<usize>) -> Value {
    let (project, region, name) = neighbour(i);
    let mut invokers = vec![
        json!({"member": format!("serviceAccount:caller@{project}.iam.gserviceaccount.com")}),
        json!({"member": "group:oncall@acme.com"}),
    ];
    invokers.extend(edit.map(|e| json!({"member": format!("user:edit{e}@acme.com")})));
    json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy",
        "metadata": {"name": format!("n-{i}"), "namespace": "neighbours"},
        "spec": {"project": project, "services": [{"name": name, "region": region}], "mode": "Enforce",
            "interval": "60s", "invokers": invokers}})
}

fn policies(namespace: &str) -> String {
    format!("/apis/run-invoker.dev/v1alpha1/namespaces/{namespace}/invokerpolicies")
}

/// Milliseconds from sending an edit.
#[derive(Default)]
struct Delays {
    /// To the API server's answer: the part in which the operator has none.
    answered: Vec<f64>,
    /// To the end of the read-back that follows the write.
    verified: Vec<f64>,
    /// To `Ready` with the generation of the edit.
    ready: Vec<f64>,
}

impl Delays {
    fn report(mut self) -> Value {
        let of = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            let at = |p| percentile(times, p).round();
            json!({"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0)})
        };
        json!({"edits": self.verified.len(), "verifiedMs": of(&mut self.verified),
            "readyMs": of(&mut self.ready), "apiServerMs": of(&mut self.answered)})
    }
}

async fn create_namespace(bench: &Bench, name: &str) {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    bench
        .put(&format!("/api/v1/namespaces/{name}"), &object)
        .await;
}

/// A sandbox with the neighbours in it.
async fn world() -> Arc<Bench> {
    let bench = Bench {
        sandbox: Sandbox::start(Default::default()).await.unwrap(),
        http: reqwest::Client::new(),
        size: NEIGHBOURS,
    };
    bench.sandbox.journal.leave_bodies_out();
    bench.define().await;
    create_namespace(&bench, "neighbours").await;
    for i in 0..NEIGHBOURS {
        let (project, region, name) = neighbour(i);
        bench.sandbox.run.deploy(&project, region, &name, &[]);
        let path = format!("{}/n-{i}", policies("neighbours"));
        bench.put(&path, &neighbours_policy(i, None)).await;
    }
    let latency = Fault::Latency {
        milliseconds: LATENCY_MS,
    };
    bench.sandbox.faults.add(Rule::run("", "", latency));
    Arc::new(bench)
}

async fn edit(bench: &Bench, i: usize, n: usize, delays: &mut Delays) {
    let (_, _, name) = neighbour(i);
    let policy = format!("n-{i}");
    let journal = &bench.sandbox.journal;
    let (mark, sent) = (journal.last(), Instant::now());
    let elapsed = || sent.elapsed().as_secs_f64() * 1000.0;
    let path = format!("{}/{policy}", policies("neighbours"));
    bench.put(&path, &neighbours_policy(i, Some(n))).await;
    delays.answered.push(elapsed());
    let (get, set) = (
        format!("/{name}:getIamPolicy"),
        format!("/{name}:setIamPolicy"),
    );
    let is_verified = || {
        let calls = journal.since(mark, |e| {
            let about_it = e.path().ends_with(&get) || e.path().ends_with(&set);
            e.api == Api::Run && e.status == 200 && about_it
        });
        let mut after = calls.iter().skip_while(|e| !e.path().ends_with(&set));
        after.any(|e| e.path().ends_with(&get))
    };
    let is_told = || {
        let all = bench
            .sandbox
            .kube
            .objects("run-invoker.dev", "invokerpolicies");
        let mut found = all.iter().filter(|p| p["metadata"]["name"] == *policy);
        found.any(|p| is_ready(p))
    };
    let (mut verified, mut ready) = (None, None);
    while verified.is_none() || ready.is_none() {
        if verified.is_none() && is_verified() {
            verified = Some(elapsed());
        }
        if ready.is_none() && is_told() {
            ready = Some(elapsed());
        }
        if sent.elapsed() > PATIENCE {
            eprintln!("edit {n} of {policy}: verified {verified:?} ms, Ready {ready:?} ms");
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    delays.verified.push(verified.unwrap_or_else(elapsed));
    delays.ready.push(ready.unwrap_or_else(elapsed));
}

/// Edits one neighbour after the other.
async fn edits(bench: &Bench, from: usize, number: usize) -> Delays {
    let (mut delays, began) = (Delays::default(), Instant::now());
    for n in from..from + number {
        if began.elapsed() > LONGEST {
            break;
        }
        edit(bench, (n * 7) % NEIGHBOURS, n, &mut delays).await;
        tokio::time::sleep(PAUSE).await;
    }
    delays
}

/// A part of a run, with what the operator used in it.
struct Phase<'a> {
    operator: &'a Operator,
    began: Instant,
    cpu: f64,
}

impl<'a> Phase<'a> {
    fn begin(operator: &'a Operator) -> Self {
        operator.forget_peak();
        Self {
            operator,
            began: Instant::now(),
            cpu: operator.cpu(),
        }
    }

    fn end(self, name: &str, delays: Delays) -> Value {
        let seconds = self.began.elapsed().as_secs_f64();
        let mut found = delays.report();
        found["phase"] = json!(name);
        found["seconds"] = json!(seconds.round());
        found["cpuSeconds"] = json!((self.operator.cpu() - self.cpu) as f32);
        found["rssMib"] = json!(self.operator.rss_mib().round());
        found["rssAnonMib"] = json!(self.operator.mib("RssAnon").round());
        found["peakRssMib"] = json!(self.operator.peak_rss_mib().round());
        show(&found);
        found
    }
}

fn show(found: &Value) {
    let number = |v: &Value| v.as_f64().unwrap_or_default();
    let times = |v: &Value| {
        let [p50, p90, p99, max] = ["p50", "p90", "p99", "max"].map(|p| number(&v[p]));
        format!("{p50:.0} / {p90:.0} / {p99:.0} / {max:.0}")
    };
    println!(
        "{}: {} edits of neighbours in {} s; p50 / p90 / p99 / max in ms: verified {}, Ready {}, API server alone {}; operator: CPU {:.1} s, RSS {} MiB, anonymous {} MiB, peak RSS {} MiB",
        found["phase"].as_str().unwrap_or_default(),
        found["edits"],
        number(&found["seconds"]),
        times(&found["verifiedMs"]),
        times(&found["readyMs"]),
        times(&found["apiServerMs"]),
        number(&found["cpuSeconds"]),
        number(&found["rssMib"]),
        number(&found["rssAnonMib"]),
        number(&found["peakRssMib"]),
    );
}

/// First grants that wait for the writes of one region.
const CROWD: usize = 1000;

fn crowd_policy(i: usize) -> Value {
    json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy",
        "metadata": {"name": format!("c-{i}"), "namespace": "crowd"},
        "spec": {"project": "crowded", "services": [{"name": format!("crowd-{i}"), "region": REGIONS[0]}],
            "mode": "Enforce", "invokers": [{"member": "group:oncall@acme.com"}]}})
}

/// Edits of neighbours, before and while a thousand first grants wait for quota in one project.
pub async fn quota() -> Value {
    let bench = world().await;
    create_namespace(&bench, "crowd").await;
    for i in 0..CROWD {
        let name = format!("crowd-{i}");
        bench.sandbox.run.deploy("crowded", REGIONS[0], &name, &[]);
    }
    let config = kubeconfig(&bench.sandbox);
    let operator = Operator::start_with(&bench.sandbox, &config, &[]);
    bench.all_ready(Instant::now()).await;

    let phase = Phase::begin(&operator);
    let alone = phase.end("nothing waits", edits(&bench, 0, NEIGHBOURS).await);

    let phase = Phase::begin(&operator);
    let arriving = bench.clone();
    let crowd = tokio::spawn(async move {
        for i in 0..CROWD {
            let path = format!("{}/c-{i}", policies("crowd"));
            arriving.put(&path, &crowd_policy(i)).await;
        }
    });
    let delays = edits(&bench, NEIGHBOURS, NEIGHBOURS).await;
    crowd.await.unwrap();
    let name = format!("{CROWD} first grants wait in one project");
    let mut waiting = phase.end(&name, delays);
    let is_granted = |p: &&Arc<Value>| p["metadata"]["namespace"] == "crowd" && is_ready(p);
    let all = bench
        .sandbox
        .kube
        .objects("run-invoker.dev", "invokerpolicies");
    let granted = all.iter().filter(is_granted).count();
    waiting["stillWaiting"] = json!(CROWD - granted);
    println!("{} of them wait at the end", CROWD - granted);
    drop(operator);
    std::fs::remove_file(&config).ok();
    json!([alone, waiting])
}

/// Policies on services of their own, and such that share the services of the first.
const APART: usize = 8;
const TOGETHER: usize = 4;
/// Policies whose selector means every service of a fleet.
const WIDE: usize = 8;
const FLEET: usize = 2000;
const NAMED: usize = 48;
const SELECTORS: usize = 16;
const MEMBERS: usize = 150;
const ACCOUNTS: usize = 50;
/// Between two edits of the tenant, at least.
const TENANTS_PAUSE: Duration = Duration::from_millis(100);
/// Kubernetes takes 256 KiB of annotations on one object.
const ANNOTATION: usize = 240 * 1024;

/// `text`, made `length` long.
fn long(text: &str, length: usize) -> String {
    format!("{text}{}", "x".repeat(length.saturating_sub(text.len())))
}

fn tenant() -> String {
    long("tenant-", 63)
}
fn tenants_project() -> String {
    long("tenant-", 30)
}
fn tenants_region(i: usize) -> String {
    format!("{}{:02}", long("tenant-", 38), i % 40)
}
fn tenants_service(group: usize, i: usize) -> String {
    long(&format!("worst-{group}-{i}-"), 63)
}
fn tenants_policy(i: usize) -> String {
    long(&format!("policy-{i}-"), 63)
}
fn account(i: usize) -> String {
    long(&format!("account-{i}-"), 253)
}
fn team(group: usize, i: usize) -> String {
    long(&format!("team-{group}-{i}-"), 63)
}
fn email(i: usize, turn: usize) -> String {
    let account = long(&format!("runner-{i}-{turn}-"), 60);
    format!("{account}@{}.iam.gserviceaccount.com", tenants_project())
}

/// A policy of the largest size: with its status it is just below what etcd takes.
fn largest(i: usize) -> Value {
    let group = i.saturating_sub(TOGETHER - 1);
    let condition = |n: usize| {
        json!({"title": long(&format!("c-{i}-{n}-"), 100), "description": long("d", 256),
            "expression": long(&format!("request.path != \"/{i}/{n}\" //"), 4096)})
    };
    let mut services: Vec<Value> = (0..NAMED)
        .map(|n| json!({"name": tenants_service(group, n), "region": tenants_region(n)}))
        .collect();
    services.extend((NAMED..NAMED + SELECTORS).map(|n| {
        let regions: Vec<String> = (0..64)
            .map(|r| format!("{}{r:02}", long("tenant-", 38)))
            .collect();
        let mut values = vec![team(group, n)];
        values.extend((0..120).map(|v| long(&format!("other-{v}-"), 63)));
        let expression = json!({"key": long("team-", 63), "operator": "In", "values": values});
        json!({"regions": regions, "selector": {"matchExpressions": [expression]}})
    }));
    let mut invokers: Vec<Value> = (0..MEMBERS)
        .map(|n| {
            let name = long(&format!("user:m-{i}-{n}-"), 309);
            json!({"member": format!("{name}@acme.co.uk"), "condition": condition(n)})
        })
        .collect();
    invokers.extend((0..ACCOUNTS).map(|n| {
        let account = json!({"name": account(n), "namespace": tenant()});
        json!({"kubernetesServiceAccount": account, "condition": condition(MEMBERS + n)})
    }));
    json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy",
        "metadata": {"name": tenants_policy(i), "namespace": tenant(), "annotations": {"example.com/junk": "x".repeat(ANNOTATION)}},
        "spec": {"project": tenants_project(), "services": services, "mode": "Enforce", "interval": "10s", "invokers": invokers}})
}

/// As many members, on as many services as there are. Its first write waits for approval.
fn wide(i: usize) -> Value {
    let mut policy = largest(APART + TOGETHER + i);
    let selector = json!({"matchLabels": {"fleet": "all"}});
    policy["spec"]["services"] = json!([{"selector": selector}]);
    policy
}

/// The tenant's policies.
fn tenants_policies() -> impl Iterator<Item = Value> {
    let large = (0..APART + TOGETHER).map(largest);
    large.chain((0..WIDE).map(wide))
}

/// The tenant's ServiceAccounts and policies.
async fn arrive(bench: &Bench) {
    let accounts = format!(
        "{}/api/v1/namespaces/{}/serviceaccounts",
        bench.sandbox.kube_url(),
        tenant()
    );
    for i in 0..2 * ACCOUNTS {
        // Half of them are named by policies; the links of the others are longer than any address.
        let link = if i < ACCOUNTS {
            email(i, 0)
        } else {
            "x".repeat(1024)
        };
        let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account(i), "namespace": tenant(),
            "annotations": {"iam.gke.io/gcp-service-account": link, "example.com/junk": "x".repeat(ANNOTATION)}}});
        bench
            .send(json_body(bench.http.post(&accounts)), &object)
            .await;
    }
    let url = format!("{}{}", bench.sandbox.kube_url(), policies(&tenant()));
    for policy in tenants_policies() {
        bench.send(json_body(bench.http.post(&url)), &policy).await;
    }
}

fn json_body(request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
    request.header("content-type", "application/json")
}

fn deploy_tenant(bench: &Bench) {
    for i in 0..FLEET {
        let name = long(&format!("fleet-{i}-"), 63);
        let (project, region) = (tenants_project(), tenants_region(i));
        bench
            .sandbox
            .run
            .deploy(&project, &region, &name, &[("fleet", "all")]);
    }
    for group in 0..APART + 1 {
        for n in 0..NAMED + SELECTORS {
            let label = (long("team-", 63), team(group, n));
            let (project, region) = (tenants_project(), tenants_region(n));
            let name = tenants_service(group, n);
            let labels = [(label.0.as_str(), label.1.as_str())];
            bench.sandbox.run.deploy(&project, &region, &name, &labels);
        }
    }
}

/// Edits annotations of the tenant until `stop`; returns how many edits the API server took.
async fn keep_editing(bench: Arc<Bench>, stop: Arc<AtomicBool>) -> usize {
    let base = bench.sandbox.kube_url();
    let mut taken = 0;
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let began = Instant::now();
        let number = turn / 5;
        let accounts = format!("{base}/api/v1/namespaces/{}/serviceaccounts", tenant());
        let (path, annotations) = match turn % 5 {
            // A link moves: the grants of every policy change.
            0 => (
                format!("{accounts}/{}", account(number % ACCOUNTS)),
                json!({"iam.gke.io/gcp-service-account": email(number % ACCOUNTS, turn)}),
            ),
            1 => (
                format!("{accounts}/{}", account(number % (2 * ACCOUNTS))),
                json!({"example.com/junk": long(&turn.to_string(), ANNOTATION)}),
            ),
            _ => {
                let i = turn % (APART + TOGETHER + WIDE);
                let words: Vec<String> = (0..64).map(|w| format!("w-{turn}-{w}")).collect();
                let mut annotations = json!({"example.com/junk": long(&turn.to_string(), ANNOTATION),
                    "run-invoker.dev/requested-at": turn.to_string(), "run-invoker.dev/approve": words.join(",")});
                if i == 0 {
                    annotations["run-invoker.dev/rollback"] = json!(words.join(","));
                }
                let path = format!("{base}{}/{}", policies(&tenant()), tenants_policy(i));
                (path, annotations)
            }
        };
        let patch = json!({"metadata": {"annotations": annotations}}).to_string();
        let request = bench.http.patch(path).body(patch);
        let request = request.header("content-type", "application/merge-patch+json");
        let answer = request.send().await.unwrap();
        if answer.status().is_success() {
            taken += 1;
        } else {
            eprintln!(
                "edit {turn} of the tenant: {}",
                answer.text().await.unwrap()
            );
        }
        tokio::time::sleep(TENANTS_PAUSE.saturating_sub(began.elapsed())).await;
    }
    taken
}

/// A tenant that takes all that the schema allows, beside neighbours with ordinary policies.
pub async fn worst_tenant() -> Value {
    let bench = world().await;
    // What the API server keeps for watches is of no interest here, and large.
    bench.sandbox.kube.set_log_capacity(500);
    create_namespace(&bench, &tenant()).await;
    deploy_tenant(&bench);
    let config = kubeconfig(&bench.sandbox);
    let operator = Operator::start_with(&bench.sandbox, &config, &[]);
    bench.all_ready(Instant::now()).await;
    let mut phases = Vec::new();
    let size = largest(0).to_string().len();
    println!(
        "the tenant: {} policies of {size} bytes, {} services, {} ServiceAccounts of {ANNOTATION} bytes",
        APART + TOGETHER + WIDE,
        (APART + 1) * (NAMED + SELECTORS) + FLEET,
        2 * ACCOUNTS
    );

    let phase = Phase::begin(&operator);
    phases.push(phase.end("without the tenant", edits(&bench, 0, 60).await));

    let phase = Phase::begin(&operator);
    let arriving = bench.clone();
    let arrival = tokio::spawn(async move { arrive(&arriving).await });
    let delays = edits(&bench, 60, NEIGHBOURS).await;
    arrival.await.unwrap();
    phases.push(phase.end("the tenant arrives", delays));

    let phase = Phase::begin(&operator);
    phases.push(phase.end("the tenant is there", edits(&bench, 180, 60).await));

    let phase = Phase::begin(&operator);
    let stop = Arc::new(AtomicBool::new(false));
    let editing = tokio::spawn(keep_editing(bench.clone(), stop.clone()));
    let delays = edits(&bench, 240, NEIGHBOURS).await;
    stop.store(true, Ordering::Relaxed);
    let taken = editing.await.unwrap();
    let mut found = phase.end("the tenant edits all the time", delays);
    found["tenantsEdits"] = json!(taken);
    println!("{taken} edits of the tenant");
    phases.push(found);

    drop(operator);
    let operator = Operator::start_with(&bench.sandbox, &config, &[]);
    let phase = Phase::begin(&operator);
    phases.push(phase.end("after a restart", edits(&bench, 360, 60).await));
    drop(operator);
    std::fs::remove_file(&config).ok();
    json!(phases)
}
