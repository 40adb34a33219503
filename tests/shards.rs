//! Three replicas as processes of their own share four shards: one is killed, one is stopped beyond
//! its Leases and wakes up, one is cut off from the API server. On the sandbox, and on a real API
//! server where `KUBEBUILDER_ASSETS` says where it is.
#![expect(clippy::unwrap_used, reason = "a test that fails panics")]
#![expect(clippy::print_stdout, reason = "says what it measured")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use common::{Envtest, eventually, free_port};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use run_invoker::api::InvokerPolicy;
use sandbox::{Api as Side, Entry, Fault, Rule, Sandbox};
use serde_json::{Value, json};

const SHARDS: usize = 4;
const PROJECTS: usize = 12;
const REGION: &str = "europe-west1";

fn project(n: usize) -> String {
    format!("acme-{n}")
}

/// A way to the API server that can be cut.
struct Wire {
    port: u16,
    cut: Arc<AtomicBool>,
}

impl Wire {
    fn to(port: u16) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let (here, is_cut) = (listener.local_addr().unwrap().port(), cut.clone());
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        tokio::spawn(async move {
            loop {
                let Ok((mut near, _)) = listener.accept().await else {
                    return;
                };
                let is_cut = is_cut.clone();
                tokio::spawn(async move {
                    if is_cut.load(Ordering::Acquire) {
                        return;
                    }
                    let Ok(mut far) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await
                    else {
                        return;
                    };
                    let severed = async {
                        while !is_cut.load(Ordering::Acquire) {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = severed => {}
                    }
                });
            }
        });
        Self { port: here, cut }
    }
}

/// The operator's program, as in a Pod of its own.
struct Replica {
    name: &'static str,
    child: Child,
    wire: Wire,
    metrics: u16,
}

impl Replica {
    fn start(name: &'static str, kubeconfig: &str, api: u16, run_url: &str) -> Self {
        let wire = Wire::to(api);
        let file = std::env::temp_dir().join(format!(
            "run-invoker-shards-{}-{name}-{}",
            std::process::id(),
            wire.port
        ));
        std::fs::write(
            &file,
            kubeconfig.replace(&format!(":{api}"), &format!(":{}", wire.port)),
        )
        .unwrap();
        let metrics = free_port();
        // By default settings, but for the quota and the namespace.
        let child = Command::new(env!("CARGO_BIN_EXE_run-invoker"))
            .args([
                "--shards",
                &SHARDS.to_string(),
                "--identity",
                name,
                "--lease-namespace",
                "default",
                "--anonymous",
            ])
            .args([
                "--cloud-run-endpoint",
                run_url,
                "--listen",
                &format!("127.0.0.1:{metrics}"),
            ])
            .args(["--writes-per-minute", "600"])
            .env("KUBECONFIG", &file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            name,
            child,
            wire,
            metrics,
        }
    }

    fn signal(&self, signal: &str) {
        assert!(
            Command::new("kill")
                .args([signal, &self.child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }

    async fn owned(&self) -> BTreeSet<usize> {
        let text = scrape(self.metrics).await;
        let line = |l: &str| {
            l.strip_prefix("run_invoker_shard_owned{shard=\"")?
                .strip_suffix("\"} 1")?
                .parse()
                .ok()
        };
        text.lines().filter_map(line).collect()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

async fn scrape(port: u16) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let Ok(mut stream) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else {
        return String::new();
    };
    stream
        .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
        .await
        .ok();
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(1), stream.read_to_string(&mut text))
        .await
        .ok();
    text
}

struct Fleet {
    sandbox: Sandbox,
    client: Client,
    kubeconfig: String,
    api: u16,
}

fn is_write(entry: &Entry) -> bool {
    entry.api == Side::Run && entry.path().ends_with(":setIamPolicy")
}

impl Fleet {
    async fn new(real: Option<&Envtest>) -> Self {
        let sandbox = Sandbox::start(Default::default()).await.unwrap();
        let kubeconfig = real.map_or_else(|| sandbox.kubeconfig(), Envtest::kubeconfig);
        let client = common::client(&kubeconfig).await;
        common::install(&client).await;
        let digits = kubeconfig.split("127.0.0.1:").nth(1).unwrap();
        let api = digits
            .chars()
            .take_while(char::is_ascii_digit)
            .collect::<String>()
            .parse()
            .unwrap();
        let this = Self {
            sandbox,
            client,
            kubeconfig,
            api,
        };
        for n in 0..PROJECTS {
            this.sandbox.run.deploy(&project(n), REGION, "web", &[]);
            let policy = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy",
                "metadata": {"name": project(n), "namespace": "default"},
                "spec": {"project": project(n), "services": [{"name": "web", "region": REGION}], "mode": "Enforce",
                    "interval": "10s", "invokers": [{"member": "user:a@acme.com"}]}});
            let policy: InvokerPolicy = serde_json::from_value(policy).unwrap();
            this.policies()
                .create(&PostParams::default(), &policy)
                .await
                .unwrap();
        }
        this
    }

    fn policies(&self) -> Api<InvokerPolicy> {
        Api::namespaced(self.client.clone(), "default")
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), "default")
    }

    fn start(&self, name: &'static str) -> Replica {
        Replica::start(name, &self.kubeconfig, self.api, &self.sandbox.run_url())
    }

    /// Shard to holder, of the Leases that somebody holds.
    async fn holders(&self) -> Result<BTreeMap<usize, String>, String> {
        let list = self
            .leases()
            .list(&ListParams::default())
            .await
            .map_err(|e| e.to_string())?;
        let entry = |l: &Lease| {
            let shard = l
                .name_any()
                .strip_prefix("run-invoker-")?
                .strip_suffix("-of-4")?
                .parse()
                .ok()?;
            Some((
                shard,
                l.spec
                    .as_ref()?
                    .holder_identity
                    .clone()
                    .filter(|h| !h.is_empty())?,
            ))
        };
        Ok(list.items.iter().filter_map(entry).collect())
    }

    /// Waits until the shards are shared fairly among `names`.
    async fn shared_among(&self, names: &[&str], within: u64) {
        eventually(
            Duration::from_secs(within),
            &format!("{names:?} have fair shares"),
            || async {
                let holders = self.holders().await?;
                let mut shares: BTreeMap<&str, usize> = names.iter().map(|n| (*n, 0)).collect();
                for holder in holders.values() {
                    *shares
                        .get_mut(holder.as_str())
                        .ok_or(format!("{holders:?}"))? += 1;
                }
                let (most, least) = (
                    shares.values().max().unwrap(),
                    shares.values().min().unwrap(),
                );
                if holders.len() == SHARDS && most - least <= 1 {
                    Ok(())
                } else {
                    Err(format!("{holders:?}"))
                }
            },
        )
        .await;
    }

    fn members(&self, n: usize) -> Vec<String> {
        self.sandbox
            .run
            .members(&project(n), REGION, "web", "roles/run.invoker")
    }

    /// Somebody grants himself access everywhere; waits until the operator took it back. How long
    /// that took for the last.
    async fn drift_is_corrected(&self, member: &str, within: u64) -> Duration {
        let started = Instant::now();
        for n in 0..PROJECTS {
            self.sandbox.run.add_member(
                &project(n),
                REGION,
                "web",
                "roles/run.invoker",
                "user:intruder@evil.com",
            );
        }
        eventually(
            Duration::from_secs(within),
            "drift is corrected",
            || async {
                for n in 0..PROJECTS {
                    if self.members(n) != [member] {
                        return Err(format!("{}: {:?}", project(n), self.members(n)));
                    }
                }
                Ok(())
            },
        )
        .await;
        started.elapsed()
    }

    async fn all_ready(&self) {
        eventually(
            Duration::from_secs(30),
            "every policy is in sync",
            || async {
                for policy in self
                    .policies()
                    .list(&ListParams::default())
                    .await
                    .map_err(|e| e.to_string())?
                {
                    let name = policy.name_any();
                    let generation = policy.metadata.generation;
                    let conditions = policy.status.unwrap_or_default().conditions;
                    let ready = |t: &str, s: &str| {
                        conditions.iter().any(|c| {
                            c.type_ == t
                                && c.status == s
                                && Some(c.observed_generation) == generation
                        })
                    };
                    if !ready("Ready", "True") {
                        return Err(format!("{name}: {conditions:?}"));
                    }
                }
                Ok(())
            },
        )
        .await;
    }

    /// Waits until one replica holds every Lease.
    async fn all_held_by(&self, name: &str, seconds: u64, what: &str) {
        eventually(Duration::from_secs(seconds), what, || async {
            let holders = self.holders().await?;
            if holders.len() == SHARDS && holders.values().all(|h| h == name) {
                Ok(())
            } else {
                Err(format!("{holders:?}"))
            }
        })
        .await;
    }

    /// How many writes to IAM were asked for since.
    fn writes(&self, since: u64) -> usize {
        self.sandbox.journal.since(since, is_write).len()
    }

    async fn set_invokers(&self, member: &str) {
        for n in 0..PROJECTS {
            let patch = json!({"spec": {"invokers": [{"member": member}]}});
            self.policies()
                .patch(&project(n), &PatchParams::default(), &Patch::Merge(patch))
                .await
                .unwrap();
        }
    }

    async fn clean(&self) {
        self.policies()
            .delete_collection(&DeleteParams::default(), &ListParams::default())
            .await
            .unwrap();
        for n in 0..PROJECTS {
            let none: Value = json!({"metadata": {"finalizers": null}});
            self.policies()
                .patch(&project(n), &PatchParams::default(), &Patch::Merge(none))
                .await
                .ok();
        }
        self.leases()
            .delete_collection(&DeleteParams::default(), &ListParams::default())
            .await
            .ok();
    }
}

async fn three_replicas(fleet: &Fleet, server: &str) {
    let (a, b, c) = (fleet.start("a"), fleet.start("b"), fleet.start("c"));
    fleet.shared_among(&["a", "b", "c"], 30).await;
    fleet.all_ready().await;
    // Which replica the metrics say and which the Leases say are one.
    let holders = fleet.holders().await.unwrap();
    for replica in [&a, &b, &c] {
        let by_lease: BTreeSet<usize> = holders
            .iter()
            .filter(|(_, h)| *h == replica.name)
            .map(|(s, _)| *s)
            .collect();
        assert_eq!(replica.owned().await, by_lease, "{}", replica.name);
    }
    let before = fleet.sandbox.journal.last();
    fleet.drift_is_corrected("user:a@acme.com", 25).await;
    assert_eq!(
        fleet.writes(before),
        PROJECTS,
        "each correction was written by one replica, once"
    );
    fleet.all_ready().await;

    // One is killed: its shards have new owners, and their projects a first look, within ten
    // seconds by default settings.
    let killed = Instant::now();
    let looked = fleet.sandbox.journal.last();
    let lost: Vec<String> = {
        let owned = a.owned().await;
        (0..PROJECTS)
            .map(project)
            .filter(|p| owned.contains(&shard_of(p)))
            .collect()
    };
    drop(a);
    let after_kill = fleet.sandbox.journal.last();
    assert!(
        !lost.is_empty(),
        "the replica that is killed works on something"
    );
    eventually(
        Duration::from_secs(20),
        "the survivors look at what the dead one worked on",
        || async {
            for project in &lost {
                let part = format!("projects/{project}/");
                if fleet
                    .sandbox
                    .journal
                    .since(after_kill, |e| e.target.contains(&part))
                    .is_empty()
                {
                    return Err(format!("{project} not yet"));
                }
            }
            Ok(())
        },
    )
    .await;
    println!(
        "{server}: killed to the first look at all of its {} projects: {:.1?}",
        lost.len(),
        killed.elapsed()
    );
    assert!(looked <= after_kill);
    fleet.shared_among(&["b", "c"], 20).await;
    fleet.all_ready().await;

    // One is stopped right after a change was declared, with work under way or about to begin: its
    // time runs out, and others take over. When it wakes up, what it believes is stale, and it must
    // not write.
    let shards_of_b = b.owned().await;
    fleet.set_invokers("user:b@acme.com").await;
    b.signal("-STOP");
    fleet.all_held_by("c", 30, "c takes over everything").await;
    fleet.set_invokers("user:c@acme.com").await;
    eventually(
        Duration::from_secs(30),
        "c makes the newest declaration real",
        || async {
            for n in 0..PROJECTS {
                if fleet.members(n) != ["user:c@acme.com"] {
                    return Err(format!("{}: {:?}", project(n), fleet.members(n)));
                }
            }
            Ok(())
        },
    )
    .await;
    fleet.all_ready().await;
    let asleep = fleet.sandbox.journal.last();
    b.signal("-CONT");
    fleet.shared_among(&["b", "c"], 30).await;
    fleet.all_ready().await;
    // A request that was already handed to its connection when the process was stopped goes out when
    // it wakes up; its etag is of before, and it is refused. More than these few there must not be.
    let late = fleet.sandbox.journal.since(asleep, is_write);
    assert!(
        late.iter().all(|e| e.status == 409),
        "it had {shards_of_b:?}, and wrote: {late:?}"
    );
    assert!(
        late.len() <= PROJECTS,
        "the one that woke up goes on writing: {late:?}"
    );

    // One is cut off from the API server, not from Google: it lets go by itself, and the other one
    // takes over.
    let shards_of_c = c.owned().await;
    assert!(!shards_of_c.is_empty());
    c.wire.cut.store(true, Ordering::Release);
    let cut = Instant::now();
    while !c.owned().await.is_empty() {
        assert!(
            cut.elapsed() < Duration::from_secs(7),
            "still at work when another replica may take over"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = fleet.sandbox.journal.last();
    let took = fleet.drift_is_corrected("user:c@acme.com", 30).await;
    println!(
        "{server}: cut off to corrected by another one: {:.1?}, of it {took:.1?} with drift",
        cut.elapsed()
    );
    assert_eq!(
        fleet.writes(before),
        PROJECTS,
        "the one that is cut off wrote too"
    );
    fleet.shared_among(&["b"], 20).await;
    c.wire.cut.store(false, Ordering::Release);
    fleet.shared_among(&["b", "c"], 30).await;
    fleet.all_ready().await;

    // An orderly end needs no waiting.
    b.signal("-TERM");
    let ended = Instant::now();
    fleet
        .all_held_by("c", 6, "the leases of one that stops are free at once")
        .await;
    println!(
        "{server}: an orderly end to everything taken over: {:.1?}",
        ended.elapsed()
    );
}

/// By what the documents say, not by the code: the highest of SHA-256("SHARD/PROJECT"), first eight
/// bytes.
fn shard_of(project: &str) -> usize {
    use sha2::Digest as _;
    (0..SHARDS)
        .max_by_key(|s| sha2::Sha256::digest(format!("{s}/{project}"))[..8].to_vec())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_replicas_on_the_sandbox() {
    let fleet = Fleet::new(None).await;
    three_replicas(&fleet, "sandbox").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_replicas_on_a_real_api_server() {
    let Some(server) = Envtest::start("three replicas").await else {
        return;
    };
    let fleet = Fleet::new(Some(&server)).await;
    three_replicas(&fleet, "real").await;
    fleet.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_wait_for_quota_does_not_let_a_write_out_after_the_lease_is_lost() {
    use common::{Operator, Setup};
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    let budget = run_invoker::cloudrun::limit::Budget {
        reads_per_minute: 6000,
        writes_per_minute: 12,
        concurrency: 64,
    };
    let operator = Operator::start(
        client.clone(),
        sandbox.run_url(),
        &Setup {
            budget,
            ..Setup::default()
        },
    )
    .await;
    let services: Vec<Value> = (0..20)
        .map(|n| {
            sandbox
                .run
                .deploy("acme-prod", REGION, &format!("web-{n}"), &[]);
            json!({"name": format!("web-{n}"), "region": REGION})
        })
        .collect();
    let policy = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"project": "acme-prod", "services": services, "mode": "Enforce", "invokers": [{"member": "user:a@acme.com"}]}});
    let api: Api<InvokerPolicy> = Api::namespaced(client.clone(), "default");
    api.create(
        &PostParams::default(),
        &serde_json::from_value(policy).unwrap(),
    )
    .await
    .unwrap();
    let writes = || {
        sandbox
            .journal
            .since(0, |e| e.path().ends_with(":setIamPolicy"))
            .len()
    };
    eventually(Duration::from_secs(10), "writes wait for quota", || async {
        if writes() >= 3 {
            Ok(())
        } else {
            Err(format!("{}", writes()))
        }
    })
    .await;
    sandbox.faults.add(Rule::kube("", "leases", Fault::Drop));
    eventually(Duration::from_secs(5), "the lease is lost", || async {
        if operator.shards.holds_any() {
            Err("held".into())
        } else {
            Ok(())
        }
    })
    .await;
    let then = writes();
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(then < 20, "there was nothing left to wait for");
    assert_eq!(
        writes(),
        then,
        "a write went out although the lease is lost"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn replicas_with_another_number_of_shards_wait_until_the_others_are_gone() {
    use common::{Operator, Setup};
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    let start = |identity: &str, shards| {
        let setup = Setup {
            identity: identity.into(),
            shards,
            ..Setup::default()
        };
        let (client, url) = (client.clone(), sandbox.run_url());
        async move { Operator::start(client, url, &setup).await }
    };
    let one = start("one", 1).await;
    eventually(Duration::from_secs(5), "the first works", || async {
        if one.shards.holds_any() {
            Ok(())
        } else {
            Err("not yet".into())
        }
    })
    .await;
    let three = start("three", 3).await;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(
            one.shards.holds_any() && !three.shards.holds_any(),
            "two layouts at work at once"
        );
    }
    one.stop().await;
    eventually(
        Duration::from_secs(5),
        "the second has all shards",
        || async {
            if (0..3).all(|s| three.shards.holds_shard(s)) {
                Ok(())
            } else {
                Err("not yet".into())
            }
        },
    )
    .await;
    // And back, without a word this time.
    drop(three);
    let one = start("again", 1).await;
    eventually(Duration::from_secs(10), "the first works again", || async {
        if one.shards.holds_any() {
            Ok(())
        } else {
            Err("not yet".into())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_circuit_breaker_counts_over_all_replicas_and_opens_and_closes_for_all() {
    use common::{Operator, Setup};
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    let start = async |identity: &str| {
        let mut setup = Setup {
            identity: identity.into(),
            shards: 2,
            ..Setup::default()
        };
        setup.breaker.corrections = 3;
        Operator::start(client.clone(), sandbox.run_url(), &setup).await
    };
    let (a, b) = (start("a").await, start("b").await);
    let api: Api<InvokerPolicy> = Api::namespaced(client.clone(), "default");
    for n in 0..4 {
        sandbox.run.deploy(&project(n), REGION, "web", &[]);
        let policy = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": project(n), "namespace": "default"},
            "spec": {"project": project(n), "services": [{"name": "web", "region": REGION}], "mode": "Enforce", "invokers": [{"member": "user:a@acme.com"}]}});
        api.create(
            &PostParams::default(),
            &serde_json::from_value(policy).unwrap(),
        )
        .await
        .unwrap();
    }
    let members = |n: usize| {
        sandbox
            .run
            .members(&project(n), REGION, "web", "roles/run.invoker")
    };
    let holds = |o: &Operator| (0..2).map(|s| o.shards.holds_shard(s)).collect::<Vec<_>>();
    eventually(
        Duration::from_secs(15),
        "each has a shard, and all is granted",
        || async {
            let shares = (holds(&a), holds(&b));
            let fair = shares.0.iter().filter(|h| **h).count() == 1
                && shares.1.iter().filter(|h| **h).count() == 1;
            if fair && (0..4).all(|n| members(n) == ["user:a@acme.com"]) {
                Ok(())
            } else {
                Err(format!("{shares:?}"))
            }
        },
    )
    .await;
    let of_a: Vec<usize> = (0..4).filter(|n| a.shards.holds(&project(*n))).collect();
    assert!(
        !of_a.is_empty() && of_a.len() < 4,
        "projects of both shards are needed: {of_a:?}"
    );
    let look = async |n: usize, value: &str| {
        let nudge = json!({"metadata": {"annotations": {"run-invoker.dev/requested-at": value}}});
        api.patch(&project(n), &PatchParams::default(), &Patch::Merge(nudge))
            .await
            .unwrap();
    };
    let intrude = |n: usize| {
        sandbox.run.add_member(
            &project(n),
            REGION,
            "web",
            "roles/run.invoker",
            "user:x@evil.com",
        )
    };
    // One after the other, so that each replica can hear of what the others did: three are
    // corrected, the fourth is not.
    eventually(Duration::from_secs(10), "settled", || async {
        for policy in api
            .list(&ListParams::default())
            .await
            .map_err(|e| e.to_string())?
        {
            let status = policy.status.unwrap_or_default();
            if !status
                .conditions
                .iter()
                .any(|c| c.type_ == "Ready" && c.status == "True")
            {
                return Err(policy.metadata.name.unwrap());
            }
        }
        Ok(())
    })
    .await;
    for n in 0..3 {
        intrude(n);
        look(n, "1").await;
        eventually(Duration::from_secs(10), "corrected", || async {
            if members(n) == ["user:a@acme.com"] {
                Ok(())
            } else {
                Err(format!("{n}: {:?}", members(n)))
            }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    intrude(3);
    look(3, "1").await;
    let open = |o: &Operator| {
        o.metrics
            .render(&o.controller.refresh_gauges())
            .contains("\nrun_invoker_circuit_open 1\n")
    };
    eventually(
        Duration::from_secs(10),
        "the breaker is open in both",
        || async {
            if open(&a) && open(&b) {
                Ok(())
            } else {
                Err(format!("{} {}", open(&a), open(&b)))
            }
        },
    )
    .await;
    assert_eq!(members(3).len(), 2, "the fourth correction was made");
    // A person closes it.
    let leases: Api<Lease> = Api::namespaced(client.clone(), "default");
    leases
        .delete("run-invoker-circuit", &DeleteParams::default())
        .await
        .unwrap();
    eventually(
        Duration::from_secs(10),
        "closed in both, and the rest is corrected",
        || async {
            if !open(&a) && !open(&b) && members(3) == ["user:a@acme.com"] {
                Ok(())
            } else {
                Err(format!("{:?}", members(3)))
            }
        },
    )
    .await;
    // Every policy is told of by one replica, so sums over replicas are right.
    let series = |o: &Operator| {
        let text = o.metrics.render(&o.controller.refresh_gauges());
        text.lines()
            .filter(|l| l.starts_with("run_invoker_policy_ready{"))
            .count()
    };
    assert_eq!(series(&a) + series(&b), 4);
}
