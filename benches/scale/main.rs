//! `make bench`: the release binary on the sandbox, with 50 ms between it and Cloud Run.
//!
//! Each policy names one service of its own, enforced, read every 60 s. The sandbox shares the
//! machine with the operator, so times are upper bounds. The budgets of calls per minute are raised
//! out of the way and reported; with the default budget of 15 writes a minute and region, that
//! budget is the bound and nothing else.
//!
//! `cargo bench --bench scale -- 100 1000` runs these sizes only; `events` measures how fast drift
//! is undone that the audit log tells of, through Google's Pub/Sub emulator, which must be
//! installed for that. `memory` measures memory alone, at these sizes or at all. `quota` and `worst-tenant` measure what one tenant costs its neighbours.
#![expect(clippy::unwrap_used, reason = "a benchmark that fails panics")]
#![expect(clippy::print_stdout, reason = "the figures are its result")]

mod neighbours;

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sandbox::{Api, Fault, Pubsub, Rule, Sandbox};
use serde_json::{Value, json};

const LATENCY_MS: u64 = 50;
const INTERVAL: Duration = Duration::from_secs(60);
const EDITS: usize = 60;
const NO_BOUND: &str = "raised to 1000000 a minute, so that they bound nothing";
const RAISED: [&str; 4] = [
    "--reads-per-minute",
    "1000000",
    "--writes-per-minute",
    "1000000",
];

struct Operator {
    child: Child,
    port: u16,
}
impl Drop for Operator {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Operator {
    fn start(sandbox: &Sandbox, config: &std::path::Path) -> Self {
        Self::start_with(sandbox, config, &RAISED)
    }

    fn start_with(sandbox: &Sandbox, config: &std::path::Path, more: &[&str]) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        // Another build of it, such as that of the image (profile dist).
        let other = std::env::var_os("RUN_INVOKER_BINARY");
        let program = other.unwrap_or_else(|| env!("CARGO_BIN_EXE_run-invoker").into());
        let child = Command::new(program)
            .args([
                "--cloud-run-endpoint",
                &sandbox.run_url(),
                "--anonymous",
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--log",
                "warn",
            ])
            .args(["--lease-duration", "3s", "--lease-renew", "1s"])
            .args(more)
            .env("KUBECONFIG", config)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, port }
    }

    fn rss_mib(&self) -> f64 {
        self.mib("VmRSS")
    }

    fn peak_rss_mib(&self) -> f64 {
        self.mib("VmHWM")
    }

    /// A line of `/proc/PID/status`.
    fn mib(&self, line: &str) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find(|l| l.starts_with(line)).unwrap();
        let kib = line.split_whitespace().nth(1).unwrap();
        kib.parse::<f64>().unwrap() / 1024.0
    }

    /// The peak is counted anew from now on.
    fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").ok();
    }

    /// Seconds of CPU so far.
    fn cpu(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = text
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }
}

fn place(i: usize) -> (String, &'static str, String) {
    // A hundred services in each project, over four regions.
    let region = ["europe-west1", "us-central1", "asia-northeast1", "us-east1"][i % 4];
    (
        format!("acme-prod-{:03}", i / 100),
        region,
        format!("svc-{i}"),
    )
}

fn policy(i: usize, extra: Option<usize>) -> Value {
    let (project, region, name) = place(i);
    let mut invokers = vec![
        json!({"member": format!("serviceAccount:caller@{project}.iam.gserviceaccount.com")}),
        json!({"member": "group:oncall@acme.com"}),
        json!({"member": format!("serviceAccount:{name}@{project}.iam.gserviceaccount.com")}),
    ];
    invokers.extend(extra.map(|e| json!({"member": format!("user:edit{e}@acme.com")})));
    json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": format!("p-{i}"), "namespace": "default"},
        "spec": {"project": project, "services": [{"name": name, "region": region}], "mode": "Enforce", "interval": "60s", "invokers": invokers}})
}

struct Bench {
    sandbox: Sandbox,
    http: reqwest::Client,
    size: usize,
}

impl Bench {
    /// Server-side apply.
    async fn put(&self, path: &str, body: &Value) {
        let url = format!(
            "{}{path}?fieldManager=bench&force=true",
            self.sandbox.kube_url()
        );
        let request = self
            .http
            .patch(url)
            .header("content-type", "application/apply-patch+yaml");
        self.send(request, body).await;
    }

    async fn send(&self, request: reqwest::RequestBuilder, body: &Value) {
        let answer = request.body(body.to_string()).send().await.unwrap();
        assert!(
            answer.status().is_success(),
            "{}",
            answer.text().await.unwrap()
        );
    }

    async fn define(&self) {
        let crds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
        for file in std::fs::read_dir(crds).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let crd: Value = serde_saphyr::from_str(&text).unwrap();
            self.put(
                &format!(
                    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}",
                    crd["metadata"]["name"].as_str().unwrap()
                ),
                &crd,
            )
            .await;
        }
    }

    fn ready(&self) -> usize {
        self.sandbox
            .kube
            .objects("run-invoker.dev", "invokerpolicies")
            .iter()
            .filter(|p| is_ready(p))
            .count()
    }

    async fn all_ready(&self, since: Instant) -> f64 {
        loop {
            if self.ready() == self.size {
                return since.elapsed().as_secs_f64();
            }
            assert!(
                since.elapsed() < Duration::from_secs(600),
                "only {} of {} in 10 minutes",
                self.ready(),
                self.size
            );
            tokio::time::sleep(Duration::from_millis(if self.size > 1000 {
                250
            } else {
                20
            }))
            .await;
        }
    }

    /// Milliseconds from sending an edit to the end of the read-back, and the calls that it took.
    async fn edit(&self, i: usize, n: usize) -> (f64, usize) {
        let (_, _, name) = place(i);
        let mark = self.sandbox.journal.last();
        let sent = Instant::now();
        self.put(
            &format!("/apis/run-invoker.dev/v1alpha1/namespaces/default/invokerpolicies/p-{i}"),
            &policy(i, Some(n)),
        )
        .await;
        let (get, set) = (
            format!("/{name}:getIamPolicy"),
            format!("/{name}:setIamPolicy"),
        );
        loop {
            let calls = self.sandbox.journal.since(mark, |e| {
                e.api == Api::Run && (e.path().ends_with(&get) || e.path().ends_with(&set))
            });
            let written = calls
                .iter()
                .position(|e| e.path().ends_with(&set) && e.status == 200);
            if let Some(w) = written {
                // The answer to the read-back is entered when it leaves, latency included.
                if calls[w + 1..]
                    .iter()
                    .any(|e| e.path().ends_with(&get) && e.status == 200)
                {
                    return (sent.elapsed().as_secs_f64() * 1000.0, calls.len());
                }
            }
            assert!(
                sent.elapsed() < Duration::from_secs(60),
                "the edit of {name} is not written"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn is_ready(policy: &Value) -> bool {
    let conditions = policy["status"]["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|c| c["type"] == "Ready");
    ready.is_some_and(|c| {
        c["status"] == "True" && c["observedGeneration"] == policy["metadata"]["generation"]
    })
}

fn percentile(sorted: &[f64], p: f64) -> f64 {
    sorted[((sorted.len() as f64 * p).ceil() as usize).clamp(1, sorted.len()) - 1]
}

fn kubeconfig(sandbox: &Sandbox) -> std::path::PathBuf {
    let name = format!("run-invoker-bench-{}.kubeconfig", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, sandbox.kubeconfig()).unwrap();
    path
}

/// A sandbox with `size` services, a policy on each, and Cloud Run `LATENCY_MS` away.
async fn fleet(size: usize) -> (Bench, std::path::PathBuf) {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let bench = Bench {
        sandbox,
        http: reqwest::Client::new(),
        size,
    };
    bench.define().await;
    for i in 0..size {
        let (p, r, n) = place(i);
        bench.sandbox.run.deploy(&p, r, &n, &[]);
        bench
            .put(
                &format!("/apis/run-invoker.dev/v1alpha1/namespaces/default/invokerpolicies/p-{i}"),
                &policy(i, None),
            )
            .await;
    }
    bench.sandbox.faults.add(Rule::run(
        "",
        "",
        Fault::Latency {
            milliseconds: LATENCY_MS,
        },
    ));
    let config = kubeconfig(&bench.sandbox);
    (bench, config)
}

/// Milliseconds from the moment at which a drift is published to the answer to the write that
/// undoes it, one at a time and a hundred at once; and the calls for each.
async fn events(size: usize) -> Value {
    let pubsub = Pubsub::start()
        .await
        .unwrap()
        .expect("the Pub/Sub emulator of the gcloud SDK is not installed");
    let (bench, config) = fleet(size).await;
    let endpoint = pubsub.endpoint();
    let mut more = RAISED.to_vec();
    more.extend([
        "--event-subscription",
        Pubsub::SUBSCRIPTION,
        "--event-endpoint",
        &endpoint,
        "--breaker-corrections",
        "1000000",
    ]);
    let operator = Operator::start_with(&bench.sandbox, &config, &more);
    bench.all_ready(Instant::now()).await;
    bench.sandbox.run.audit.publish_to(&endpoint, Pubsub::TOPIC);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let drift = |i: usize| {
        let (p, r, n) = place(i);
        bench
            .sandbox
            .run
            .add_member(&p, r, &n, "roles/run.invoker", "user:x@evil.org");
        format!("/{n}:setIamPolicy")
    };
    let written = |mark: u64, path: &str| {
        let found = bench.sandbox.journal.since(mark, |e| {
            e.api == Api::Run && e.path().ends_with(path) && e.status == 200
        });
        !found.is_empty()
    };
    let begin = bench.sandbox.journal.last();
    let mut alone = Vec::new();
    for n in 0..200 {
        let mark = bench.sandbox.journal.last();
        let made = Instant::now();
        let path = drift((n * 7919) % size);
        while !written(mark, &path) {
            assert!(
                made.elapsed() < Duration::from_secs(30),
                "drift {n} is not undone"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        alone.push(made.elapsed().as_secs_f64() * 1000.0);
    }
    // The read-backs and the events about our own writes are over.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let calls = bench
        .sandbox
        .journal
        .since(begin, |e| {
            e.api == Api::Run && e.path().ends_with("IamPolicy")
        })
        .len();
    let mut together = Vec::new();
    let mark = bench.sandbox.journal.last();
    let made = Instant::now();
    let mut open: Vec<String> = (0..100).map(|n| drift((n * 7919 + 13) % size)).collect();
    while !open.is_empty() {
        assert!(
            made.elapsed() < Duration::from_secs(60),
            "{} are not undone",
            open.len()
        );
        let before = open.len();
        open.retain(|path| !written(mark, path));
        together.extend(std::iter::repeat_n(
            made.elapsed().as_secs_f64() * 1000.0,
            before - open.len(),
        ));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let rss = operator.rss_mib();
    drop(operator);
    std::fs::remove_file(&config).ok();
    alone.sort_by(f64::total_cmp);
    together.sort_by(f64::total_cmp);
    json!({
        "policies": size,
        "oneAtATimeMs": {"p50": percentile(&alone, 0.5), "p99": percentile(&alone, 0.99), "drifts": alone.len()},
        "hundredAtOnceMs": {"p50": percentile(&together, 0.5), "p99": percentile(&together, 0.99)},
        "callsPerDrift": calls as f64 / alone.len() as f64,
        "rssMib": rss,
    })
}

/// Writes to the Kubernetes API since a mark, those of Leases left out.
fn cluster_writes(bench: &Bench, mark: u64) -> usize {
    let is_write = |e: &sandbox::Entry| {
        let path = e.path();
        e.api == Api::Kube && e.method != "GET" && !path.contains("/leases")
    };
    bench.sandbox.journal.since(mark, is_write).len()
}

async fn run(size: usize) -> Value {
    let (bench, config) = fleet(size).await;

    // From nothing: every policy has its service read, written, read back, and its status says so.
    let (started, begun) = (Instant::now(), bench.sandbox.journal.last());
    let operator = Operator::start(&bench.sandbox, &config);
    let cold = bench.all_ready(started).await;
    let after_cold = (operator.rss_mib(), operator.peak_rss_mib());
    let first_writes = cluster_writes(&bench, begun) as f64 / size as f64;

    // Edits while nothing else goes on.
    let mut idle = Vec::new();
    let mut calls = Vec::new();
    let edits = bench.sandbox.journal.last();
    for n in 0..EDITS {
        let (ms, made) = bench.edit((n * 7919) % size, n).await;
        idle.push(ms);
        calls.push(made as f64);
    }
    bench.all_ready(Instant::now()).await;
    // The edits themselves are not the operator's.
    let change_writes = cluster_writes(&bench, edits) as f64 / EDITS as f64 - 1.0;
    // A look is at least half an interval after the last, so the rhythm is steady after one and a
    // half.
    tokio::time::sleep(INTERVAL.mul_f64(1.6)).await;

    // A whole interval in which nothing changes.
    let mark = bench.sandbox.journal.last();
    let cpu = operator.cpu();
    let began = Instant::now();
    tokio::time::sleep(INTERVAL).await;
    let seconds = began.elapsed().as_secs_f64();
    let cpu_millicores = (operator.cpu() - cpu) / seconds * 1000.0;
    let entries = bench.sandbox.journal.since(mark, |_| true);
    let reads: Vec<u64> = entries
        .iter()
        .filter(|e| e.path().ends_with(":getIamPolicy"))
        .map(|e| e.elapsed_ms / 1000)
        .collect();
    let lists = entries
        .iter()
        .filter(|e| e.api == Api::Run && e.path().ends_with("/services"))
        .count();
    let writes = entries
        .iter()
        .filter(|e| e.path().ends_with(":setIamPolicy"))
        .count();
    let status = entries
        .iter()
        .filter(|e| e.api == Api::Kube && e.path().ends_with("/status"))
        .count();
    let mut by_second = std::collections::BTreeMap::<u64, usize>::new();
    for second in &reads {
        *by_second.entry(*second).or_default() += 1;
    }
    let mean = reads.len() as f64 / seconds;
    let peak = by_second.values().max().copied().unwrap_or(0) as f64 / mean.max(f64::MIN_POSITIVE);
    let steady = (operator.rss_mib(), operator.mib("RssAnon"));

    // Everything is looked at anew, and people edit meanwhile.
    drop(operator);
    let operator = Operator::start(&bench.sandbox, &config);
    let mark = bench.sandbox.journal.last();
    while bench
        .sandbox
        .journal
        .since(mark, |e| e.path().ends_with(":getIamPolicy"))
        .is_empty()
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut busy = Vec::new();
    let total = || {
        bench
            .sandbox
            .journal
            .since(mark, |e| e.path().ends_with(":getIamPolicy"))
            .len()
    };
    for n in 0..EDITS {
        let (ms, _) = bench.edit((n * 7919 + 13) % size, 1000 + n).await;
        busy.push(ms);
        if total() >= size && busy.len() >= 5 {
            break;
        }
    }
    let within_resync = busy.len();
    drop(operator);
    std::fs::remove_file(&config).ok();

    idle.sort_by(f64::total_cmp);
    busy.sort_by(f64::total_cmp);
    json!({
        "policies": size,
        "coldStartSeconds": cold,
        "editIdleMs": {"p50": percentile(&idle, 0.5), "p99": percentile(&idle, 0.99), "edits": idle.len()},
        "editInResyncMs": {"p50": percentile(&busy, 0.5), "p99": percentile(&busy, 0.99), "edits": within_resync},
        "callsPerChange": calls.iter().sum::<f64>() / calls.len() as f64,
        "readsPerServiceAndInterval": reads.len() as f64 / size as f64 * INTERVAL.as_secs_f64() / seconds,
        "listCallsPerInterval": lists,
        "peakToMeanReads": peak,
        "iamWritesInSteadyInterval": writes,
        "statusWritesInSteadyInterval": status,
        "rssMib": {"afterColdStart": after_cold.0, "peak": after_cold.1, "steady": steady.0},
        "rssAnonMib": steady.1,
        "clusterWrites": {"perFirstGrant": first_writes, "perChange": change_writes},
        "cpuMillicoresSteady": cpu_millicores,
    })
}

/// Memory alone: after the cold start, and when the connections that it took are closed, MiB of RSS
/// and of RssAnon.
async fn memory(size: usize) -> [(f64, f64); 2] {
    let (bench, config) = fleet(size).await;
    let operator = Operator::start(&bench.sandbox, &config);
    bench.all_ready(Instant::now()).await;
    let now = || (operator.rss_mib(), operator.mib("RssAnon"));
    let after_cold = now();
    // Clients close what was idle for 90 s, and look for it as often.
    tokio::time::sleep(INTERVAL.mul_f64(3.3)).await;
    let steady = now();
    drop(operator);
    std::fs::remove_file(&config).ok();
    [after_cold, steady]
}

/// Seconds until every policy is in force, from nothing, and seconds of the operator's CPU.
async fn cold(size: usize) -> (f64, f64) {
    let (bench, config) = fleet(size).await;
    let operator = Operator::start(&bench.sandbox, &config);
    let cold = bench.all_ready(Instant::now()).await;
    let cpu = operator.cpu();
    drop(operator);
    std::fs::remove_file(&config).ok();
    (cold, cpu)
}

/// Milliseconds from starting the program to an answer of `/healthz`, several times over, in order.
async fn startup() -> Vec<f64> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let config = kubeconfig(&sandbox);
    let mut times = Vec::new();
    for _ in 0..21 {
        let started = Instant::now();
        let operator = Operator::start(&sandbox, &config);
        let mut answer = [0; 12];
        loop {
            if let Ok(mut stream) =
                tokio::net::TcpStream::connect(("127.0.0.1", operator.port)).await
                && stream
                    .write_all(b"GET /healthz HTTP/1.0\r\n\r\n")
                    .await
                    .is_ok()
                && stream.read_exact(&mut answer).await.is_ok()
            {
                break;
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        assert!(
            answer.ends_with(b" 200"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    std::fs::remove_file(&config).ok();
    times.sort_by(f64::total_cmp);
    times
}

fn machine(budgets: &str) -> Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map(|l| l.trim_start_matches([' ', '\t', ':']).to_owned());
    let git = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .output()
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    json!({"cpu": model, "cores": std::thread::available_parallelism().map_or(0, usize::from), "commit": git.unwrap_or_default(),
        "command": format!("make bench SIZES={:?}", named().join(" ")), "cloudLatencyMs": LATENCY_MS, "intervalSeconds": INTERVAL.as_secs(),
        "budgets": budgets})
}

/// What is to be measured.
fn named() -> Vec<String> {
    std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect()
}

fn main() {
    let named = named();
    let mut sizes: Vec<usize> = named.iter().filter_map(|a| a.parse().ok()).collect();
    if named.is_empty() {
        sizes = vec![100, 1000, 10_000];
    }
    let with_events =
        named.iter().any(|n| n == "events") || (named.is_empty() && Pubsub::program().is_some());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    // Each beside others alone: what one tenant costs its neighbours.
    let mut beside = serde_json::Map::new();
    if named.iter().any(|n| n == "quota") {
        let found = runtime.block_on(neighbours::quota());
        beside.insert("quota".into(), found);
    }
    if named.iter().any(|n| n == "worst-tenant") {
        let found = runtime.block_on(neighbours::worst_tenant());
        beside.insert("worstTenant".into(), found);
    }
    if !beside.is_empty() && beside.len() == named.len() {
        println!("machine: {}", machine("the defaults"));
        write(
            &json!({"machine": machine("the defaults"), "beside": beside}),
            "neighbours.json",
        );
        return;
    }
    if named.iter().any(|n| n == "cold") {
        for _ in 0..5 {
            let (seconds, cpu) = runtime.block_on(cold(1000));
            println!("cold start of 1,000 policies: {seconds:.2} s, {cpu:.2} s of CPU");
        }
        println!("machine: {}", machine(NO_BOUND));
        return;
    }
    if named.iter().any(|n| n == "memory") {
        if sizes.is_empty() {
            sizes = vec![100, 1000, 10_000];
        }
        for size in sizes {
            let [after_cold, steady] = runtime.block_on(memory(size));
            println!(
                "{size} policies, RSS / RssAnon, MiB: {:.1} / {:.1} after the cold start, {:.1} / {:.1} steady",
                after_cold.0, after_cold.1, steady.0, steady.1
            );
        }
        println!("machine: {}", machine(NO_BOUND));
        return;
    }
    let startup = runtime.block_on(startup());
    println!(
        "start to an answer of /healthz, {} times: p50 {:.1} ms, slowest {:.1} ms (goal 100 ms)",
        startup.len(),
        percentile(&startup, 0.5),
        percentile(&startup, 1.0)
    );
    let told = with_events.then(|| runtime.block_on(events(1000)));
    if let Some(e) = &told {
        let pair = |v: &Value| {
            format!(
                "p50 {:.0} ms, p99 {:.0} ms",
                v["p50"].as_f64().unwrap(),
                v["p99"].as_f64().unwrap()
            )
        };
        println!(
            "drift that the audit log tells of, published to undone, 1,000 services: {} (goal p99 2000 ms)",
            pair(&e["oneAtATimeMs"])
        );
        println!(
            "the same, 100 at once: {}; calls for each {:.2}; RSS {:.1} MiB",
            pair(&e["hundredAtOnceMs"]),
            e["callsPerDrift"].as_f64().unwrap(),
            e["rssMib"].as_f64().unwrap()
        );
    }
    if sizes.is_empty() {
        println!("machine: {}", machine(NO_BOUND));
        return;
    }
    let results: Vec<Value> = sizes
        .iter()
        .map(|size| {
            eprintln!("{size} policies ...");
            runtime.block_on(run(*size))
        })
        .collect();
    let machine = machine(NO_BOUND);
    println!("\nmachine: {machine}\n");
    let row = |name: &str, goal: &str, cell: &dyn Fn(&Value) -> String| {
        print!("{name:<44}");
        for r in &results {
            print!("{:>14}", cell(r));
        }
        println!("   {goal}");
    };
    row(
        "policies",
        "goal (stretch column of reference/field.md)",
        &|r| r["policies"].to_string(),
    );
    row(
        "cold start to all in steady state, s",
        "20 at 1,000",
        &|r| format!("{:.1}", r["coldStartSeconds"].as_f64().unwrap()),
    );
    let pair = |v: &Value| {
        format!(
            "{:.0} / {:.0}",
            v["p50"].as_f64().unwrap(),
            v["p99"].as_f64().unwrap()
        )
    };
    row("edit to verified write, idle, p50 / p99 ms", "300", &|r| {
        pair(&r["editIdleMs"])
    });
    row("the same in a full resync, p50 / p99 ms", "1000", &|r| {
        pair(&r["editInResyncMs"])
    });
    row("calls per change", "3 (read, write, read-back)", &|r| {
        format!("{:.2}", r["callsPerChange"].as_f64().unwrap())
    });
    row("reads per service and interval", "1", &|r| {
        format!("{:.3}", r["readsPerServiceAndInterval"].as_f64().unwrap())
    });
    row("list calls per interval", "1 per project and scope", &|r| {
        r["listCallsPerInterval"].to_string()
    });
    row("reads per second, peak to mean", "1.5", &|r| {
        format!("{:.2}", r["peakToMeanReads"].as_f64().unwrap())
    });
    row("IAM writes when nothing changes", "0", &|r| {
        r["iamWritesInSteadyInterval"].to_string()
    });
    row("status writes when nothing changes", "0", &|r| {
        r["statusWritesInSteadyInterval"].to_string()
    });
    row("RSS steady, MiB", "15 / 24 / 64", &|r| {
        format!("{:.1}", r["rssMib"]["steady"].as_f64().unwrap())
    });
    row(
        "of it the operator's own (RssAnon), MiB",
        "6 / 12 / 64",
        &|r| format!("{:.1}", r["rssAnonMib"].as_f64().unwrap()),
    );
    row("RSS peak of the cold start, MiB", "", &|r| {
        format!("{:.1}", r["rssMib"]["peak"].as_f64().unwrap())
    });
    row(
        "writes to the cluster per first grant / change",
        "5 / 4",
        &|r| {
            let writes = |k: &str| r["clusterWrites"][k].as_f64().unwrap();
            format!(
                "{:.1} / {:.1}",
                writes("perFirstGrant"),
                writes("perChange")
            )
        },
    );
    row("CPU steady, millicores", "20 at 1,000", &|r| {
        format!("{:.1}", r["cpuMillicoresSteady"].as_f64().unwrap())
    });
    write(
        &json!({"machine": machine, "startupMs": startup, "events": told, "results": results}),
        "bench.json",
    );
}

fn write(found: &Value, name: &str) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let path = folder.join(name);
    std::fs::write(&path, serde_json::to_string_pretty(found).unwrap()).unwrap();
    println!("\nwritten to {}", path.display());
}
