//! Bad weather that needs more than a scenario file: a rival writer, killed and stopped processes,
//! two replicas, a real API server that goes away.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]
#![expect(clippy::print_stdout, reason = "says what it measured")]

mod common;

use std::{
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::{Envtest, Operator, Setup, eventually};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use run_invoker::api::{InvokerChange, InvokerGuardrail, InvokerPolicy, REQUESTED_AT};
use sandbox::{Api as Side, Fault, Rule, Sandbox};
use serde_json::{Value, json};

const PLACE: (&str, &str, &str) = ("acme-prod", "europe-west1", "web");

fn policy(members: &[&str]) -> InvokerPolicy {
    serde_json::from_value(json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"project": PLACE.0, "services": [{"name": PLACE.2, "region": PLACE.1}], "mode": "Enforce",
            "invokers": members.iter().map(|m| json!({"member": m})).collect::<Vec<_>>()}}))
    .unwrap()
}

async fn sandbox() -> (Sandbox, Client) {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    sandbox.run.deploy(PLACE.0, PLACE.1, PLACE.2, &[]);
    (sandbox, client)
}

fn policies(client: &Client) -> Api<InvokerPolicy> {
    Api::namespaced(client.clone(), "default")
}

async fn in_sync(client: &Client, generation: i64, within: u64) {
    eventually(
        Duration::from_secs(within),
        "the policy is in sync",
        || async {
            let p = policies(client)
                .get("web")
                .await
                .map_err(|e| e.to_string())?;
            let status = p.status.unwrap_or_default();
            let ready = status.conditions.iter().any(|c| {
                c.type_ == "Ready" && c.status == "True" && c.observed_generation >= generation
            });
            if ready {
                Ok(())
            } else {
                Err(format!("{:?}", status.conditions))
            }
        },
    )
    .await;
}

fn writes(sandbox: &Sandbox, since: u64) -> Vec<sandbox::Entry> {
    sandbox.journal.since(since, |e| {
        e.api == Side::Run && e.path().ends_with(":setIamPolicy") && !e.user_agent.contains("rival")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rival_writer_loses_nothing_in_a_thousand_contended_rounds() {
    const ROUNDS: usize = 1000;
    let (sandbox, client) = sandbox().await;
    let mut setup = Setup::default();
    setup.breaker.corrections = usize::MAX;
    let operator = Operator::start(client.clone(), sandbox.run_url(), &setup).await;
    policies(&client)
        .create(&PostParams::default(), &policy(&["user:declared@acme.com"]))
        .await
        .unwrap();
    in_sync(&client, 1, 20).await;

    let done = Arc::new(AtomicBool::new(false));
    // Somebody asks for a look all the time, so that the operator is always between a read and a
    // write.
    let asking = {
        let (client, done) = (client.clone(), done.clone());
        tokio::spawn(async move {
            let mut n = 0;
            while !done.load(Ordering::Relaxed) {
                n += 1;
                let patch = json!({"metadata": {"annotations": {REQUESTED_AT: format!("{n}")}}});
                policies(&client)
                    .patch("web", &PatchParams::default(), &Patch::Merge(patch))
                    .await
                    .ok();
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        })
    };
    // The rival does its read-modify-write as Google asks for: foreign members in a foreign role,
    // and an invoker that nobody declared.
    let http = reqwest::Client::builder()
        .user_agent("rival")
        .build()
        .unwrap();
    let base = format!(
        "{}/v1/projects/{}/locations/{}/services/{}",
        sandbox.run_url(),
        PLACE.0,
        PLACE.1,
        PLACE.2
    );
    let mut conflicts = 0;
    for round in 0..ROUNDS {
        // An hour between two rounds, or the operator would call it a fight and stop contending.
        setup.offset.fetch_add(3600, Ordering::Relaxed);
        loop {
            let mut policy: Value = http
                .get(format!(
                    "{base}:getIamPolicy?options.requestedPolicyVersion=3"
                ))
                .send()
                .await
                .unwrap()
                .json()
                .await
                .unwrap();
            let bindings = policy["bindings"].as_array().cloned().unwrap_or_default();
            let mut viewers: Vec<Value> = bindings
                .iter()
                .find(|b| b["role"] == "roles/run.viewer")
                .and_then(|b| b["members"].as_array().cloned())
                .unwrap_or_default();
            viewers.push(json!(format!("user:Viewer{round}@acme.com")));
            let mut next: Vec<Value> = bindings
                .into_iter()
                .filter(|b| b["role"] != "roles/run.viewer" && b["role"] != "roles/run.invoker")
                .collect();
            next.push(json!({"role": "roles/run.viewer", "members": viewers}));
            next.push(json!({"role": "roles/run.invoker", "members": [format!("user:intruder{round}@evil.com")]}));
            policy["bindings"] = json!(next);
            policy["version"] = json!(3);
            if round % 4 == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let answer = http
                .post(format!("{base}:setIamPolicy"))
                .json(&json!({"policy": policy}))
                .send()
                .await
                .unwrap();
            match answer.status().as_u16() {
                200 => break,
                409 => conflicts += 1,
                other => panic!("the rival got {other}: {}", answer.text().await.unwrap()),
            }
        }
    }
    done.store(true, Ordering::Relaxed);
    asking.await.unwrap();

    eventually(
        Duration::from_secs(30),
        "converged against the rival",
        || async {
            let members = sandbox
                .run
                .members(PLACE.0, PLACE.1, PLACE.2, "roles/run.invoker");
            if members == ["user:declared@acme.com"] {
                Ok(())
            } else {
                Err(format!("{members:?}"))
            }
        },
    )
    .await;
    let viewers = sandbox
        .run
        .members(PLACE.0, PLACE.1, PLACE.2, "roles/run.viewer");
    assert_eq!(viewers.len(), ROUNDS, "foreign changes were lost");
    let refused = writes(&sandbox, 0)
        .iter()
        .filter(|e| e.status == 409)
        .count();
    let accepted = writes(&sandbox, 0)
        .iter()
        .filter(|e| e.status == 200)
        .count();
    println!(
        "{ROUNDS} rounds: the operator wrote {accepted} times and lost {refused} races, the rival lost {conflicts}"
    );
    assert!(refused + conflicts > 20, "there was no contention");
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_service_at_the_edge_of_contention_converges_within_ten_seconds() {
    let (sandbox, client) = sandbox().await;
    let operator = Operator::start(client.clone(), sandbox.run_url(), &Setup::default()).await;
    policies(&client)
        .create(&PostParams::default(), &policy(&["user:declared@acme.com"]))
        .await
        .unwrap();
    in_sync(&client, 1, 20).await;
    // Every write of the operator meets a change in between, eight times in a row: more than it
    // tries at once.
    sandbox.faults.add(
        Rule::run("POST", ":setIamPolicy", Fault::Error {
            status: 409,
            body: json!({"error": {"code": 409, "status": "ABORTED", "message": "There were concurrent policy changes. Please retry the whole read-modify-write with exponential backoff."}}),
            headers: vec![],
        })
        .times(8),
    );
    let before = sandbox.journal.last();
    let patch = json!({"spec": {"invokers": [{"member": "user:next@acme.com"}]}});
    policies(&client)
        .patch("web", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    in_sync(&client, 2, 10).await;
    let reads = sandbox
        .journal
        .since(before, |e| e.path().ends_with(":getIamPolicy"))
        .len();
    assert_eq!(writes(&sandbox, before).len(), 9);
    assert!(
        reads >= 9,
        "a write was repeated without reading again: {reads} reads"
    );
    operator.stop().await;
}

/// The real binary.
fn spawn(kubeconfig: &std::path::Path, run_url: &str, identity: &str) -> Child {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    Command::new(env!("CARGO_BIN_EXE_run-invoker"))
        .args([
            "--cloud-run-endpoint",
            run_url,
            "--anonymous",
            "--identity",
            identity,
            "--listen",
            &format!("127.0.0.1:{port}"),
        ])
        .args([
            "--lease-duration",
            "3s",
            "--lease-renew",
            "750ms",
            "--log",
            "warn",
        ])
        .env("KUBECONFIG", kubeconfig)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn kubeconfig(sandbox: &Sandbox, name: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!(
        "run-invoker-{name}-{}.kubeconfig",
        std::process::id()
    ));
    std::fs::write(&path, sandbox.kubeconfig()).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn killed_between_write_and_status_it_comes_back_without_a_needless_write() {
    let (sandbox, client) = sandbox().await;
    let config = kubeconfig(&sandbox, "kill");
    sandbox
        .faults
        .add(Rule::kube("PATCH", "/status", Fault::Hang));
    let mut first = spawn(&config, &sandbox.run_url(), "first");
    policies(&client)
        .create(&PostParams::default(), &policy(&["user:a@acme.com"]))
        .await
        .unwrap();
    eventually(
        Duration::from_secs(20),
        "IAM is written and the status hangs",
        || async {
            let hangs = !sandbox
                .journal
                .since(0, |e| e.path().ends_with("/status"))
                .is_empty();
            if writes(&sandbox, 0).len() == 1 && hangs {
                Ok(())
            } else {
                Err("not yet".into())
            }
        },
    )
    .await;
    first.kill().unwrap();
    first.wait().unwrap();
    sandbox.faults.clear();
    let mut second = spawn(&config, &sandbox.run_url(), "second");
    in_sync(&client, 1, 20).await;
    assert_eq!(
        writes(&sandbox, 0).len(),
        1,
        "a second write after the restart"
    );
    assert_eq!(
        sandbox
            .run
            .members(PLACE.0, PLACE.1, PLACE.2, "roles/run.invoker"),
        ["user:a@acme.com"]
    );
    second.kill().unwrap();
    second.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_sigterm_it_finishes_what_is_in_flight_and_gives_the_lease_up() {
    let (sandbox, client) = sandbox().await;
    let config = kubeconfig(&sandbox, "term");
    sandbox.run.deploy(PLACE.0, PLACE.1, "later", &[]);
    let mut process = spawn(&config, &sandbox.run_url(), "only");
    sandbox.faults.add(Rule::run(
        "POST",
        ":setIamPolicy",
        Fault::Latency { milliseconds: 1500 },
    ));
    policies(&client)
        .create(&PostParams::default(), &policy(&["user:a@acme.com"]))
        .await
        .unwrap();
    eventually(Duration::from_secs(20), "a write is in flight", || async {
        if writes(&sandbox, 0).is_empty() {
            Err("not yet".into())
        } else {
            Ok(())
        }
    })
    .await;
    let pid = process.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    // What comes in now is not begun.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut late = policy(&["user:b@acme.com"]);
    late.metadata.name = Some("later".into());
    late.spec.services[0].name = Some("later".into());
    policies(&client)
        .create(&PostParams::default(), &late)
        .await
        .unwrap();
    let code = tokio::task::spawn_blocking(move || process.wait().unwrap())
        .await
        .unwrap();
    assert!(code.success(), "exit {code}");
    assert_eq!(
        sandbox
            .run
            .members(PLACE.0, PLACE.1, PLACE.2, "roles/run.invoker"),
        ["user:a@acme.com"]
    );
    in_sync(&client, 1, 1).await;
    assert!(
        sandbox
            .journal
            .since(0, |e| e.api == Side::Run
                && e.target.contains("services/later"))
            .is_empty(),
        "new work was begun"
    );
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
        Api::namespaced(client.clone(), "default");
    let holder = leases
        .get("run-invoker")
        .await
        .unwrap()
        .spec
        .unwrap()
        .holder_identity;
    assert_eq!(holder.as_deref(), Some(""), "the lease was not given up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_replicas_one_works_and_the_other_takes_over() {
    let (sandbox, client) = sandbox().await;
    let a = Operator::start(
        client.clone(),
        sandbox.run_url(),
        &Setup {
            identity: "a".into(),
            ..Setup::default()
        },
    )
    .await;
    let b = Operator::start(
        client.clone(),
        sandbox.run_url(),
        &Setup {
            identity: "b".into(),
            ..Setup::default()
        },
    )
    .await;
    policies(&client)
        .create(&PostParams::default(), &policy(&["user:a@acme.com"]))
        .await
        .unwrap();
    in_sync(&client, 1, 20).await;
    let calls = |since| sandbox.journal.since(since, |e| e.api == Side::Run).len();
    assert_eq!(
        calls(0),
        4,
        "read, write, read-back and one list, by one replica only"
    );
    let (a_leads, b_leads) = (a.shards.holds_any(), b.shards.holds_any());
    assert!(a_leads != b_leads, "exactly one leads");
    let (leader, follower) = if a_leads { (a, b) } else { (b, a) };

    // The leader vanishes without a word.
    drop(leader);
    sandbox.run.add_member(
        PLACE.0,
        PLACE.1,
        PLACE.2,
        "roles/run.invoker",
        "user:intruder@evil.com",
    );
    let gone = std::time::Instant::now();
    eventually(
        Duration::from_secs(10),
        "the other replica corrects the drift",
        || async {
            let members = sandbox
                .run
                .members(PLACE.0, PLACE.1, PLACE.2, "roles/run.invoker");
            if members == ["user:a@acme.com"] {
                Ok(())
            } else {
                Err(format!("{members:?}"))
            }
        },
    )
    .await;
    println!(
        "failover to the first correction in {:?} with a lease of 3 s",
        gone.elapsed()
    );
    assert!(follower.shards.holds_any());
    follower.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_replica_cut_off_from_the_api_server_stops_before_another_may_start() {
    let (sandbox, client) = sandbox().await;
    let a = Operator::start(
        client.clone(),
        sandbox.run_url(),
        &Setup {
            identity: "a".into(),
            ..Setup::default()
        },
    )
    .await;
    policies(&client)
        .create(&PostParams::default(), &policy(&["user:a@acme.com"]))
        .await
        .unwrap();
    in_sync(&client, 1, 20).await;
    sandbox.faults.add(Rule::kube("", "leases", Fault::Drop));
    let cut = tokio::time::Instant::now();
    while a.shards.holds_any() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(
            cut.elapsed() < Duration::from_secs(3),
            "still leading when another replica could have taken over"
        );
    }
    // Its watch still works, so it hears of the change; it must not act on it.
    let before = sandbox.journal.last();
    let patch = json!({"spec": {"invokers": [{"member": "user:b@acme.com"}]}});
    policies(&client)
        .patch("web", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(
        writes(&sandbox, before).is_empty(),
        "a deposed leader wrote"
    );
    sandbox.faults.clear();
    in_sync(&client, 2, 20).await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_object_that_cannot_be_read_is_marked_and_stops_nobody_else() {
    let (sandbox, client) = sandbox().await;
    common::loosen_policies(&client).await;
    let put = |path: &str, body: &Value| {
        http::Request::patch(format!("{path}?fieldManager=old&force=true"))
            .header("content-type", "application/apply-patch+yaml")
            .body(body.to_string().into_bytes())
            .unwrap()
    };
    let broken = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": "broken", "finalizers": ["run-invoker.dev/revoke"]}, "spec": {"project": 7}});
    client
        .request::<Value>(put(
            "/apis/run-invoker.dev/v1alpha1/namespaces/default/invokerpolicies/broken",
            &broken,
        ))
        .await
        .unwrap();
    let operator = Operator::start(client.clone(), sandbox.run_url(), &Setup::default()).await;
    let fine = serde_json::to_value(policy(&["user:a@acme.com"])).unwrap();
    client
        .request::<Value>(put(
            "/apis/run-invoker.dev/v1alpha1/namespaces/default/invokerpolicies/web",
            &fine,
        ))
        .await
        .unwrap();
    eventually(
        Duration::from_secs(10),
        "the other policy is in force",
        || async {
            let members = sandbox
                .run
                .members(PLACE.0, PLACE.1, PLACE.2, "roles/run.invoker");
            if members == ["user:a@acme.com"] {
                Ok(())
            } else {
                Err(format!("{members:?}"))
            }
        },
    )
    .await;
    // Marked once it is seen by a leader; the next state of the object is such a moment.
    let touched = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": "broken", "finalizers": ["run-invoker.dev/revoke"], "labels": {"a": "b"}}, "spec": {"project": 7}});
    client
        .request::<Value>(put(
            "/apis/run-invoker.dev/v1alpha1/namespaces/default/invokerpolicies/broken",
            &touched,
        ))
        .await
        .unwrap();
    let broken = "/apis/run-invoker.dev/v1alpha1/namespaces/default/invokerpolicies/broken";
    let says = async |what: &str, words: &str| {
        eventually(Duration::from_secs(10), what, || async {
            let request = http::Request::get(broken).body(vec![]).unwrap();
            let object: Value = client.request(request).await.map_err(|e| e.to_string())?;
            let condition = &object["status"]["conditions"][0];
            let message = condition["message"].as_str().unwrap_or_default();
            if condition["reason"] == "InvalidSpec" && message.contains(words) {
                Ok(())
            } else {
                Err(object.to_string())
            }
        })
        .await;
    };
    says("the broken one is marked", "cannot be read").await;
    // Its deletion waits for somebody who knows whether its grants were to stay, and says so.
    let delete = http::Request::delete(broken).body(vec![]).unwrap();
    client.request::<Value>(delete).await.unwrap();
    let way_out = "take the finalizer run-invoker.dev/revoke off by hand";
    says("the deleted one says how to go on", way_out).await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_member_appears_in_metrics_or_in_logs_at_info() {
    let (sandbox, client) = sandbox().await;
    let config = kubeconfig(&sandbox, "redact");
    let log = std::env::temp_dir().join(format!("run-invoker-redact-{}.log", std::process::id()));
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut process = Command::new(env!("CARGO_BIN_EXE_run-invoker"))
        .args([
            "--cloud-run-endpoint",
            &sandbox.run_url(),
            "--anonymous",
            "--identity",
            "x",
            "--listen",
            &format!("127.0.0.1:{port}"),
            "--log",
            "info",
        ])
        .env("KUBECONFIG", &config)
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    sandbox
        .run
        .change_world(|w| w.unknown = ["ghost@secret.example".to_owned()].into());
    sandbox.run.add_member(
        PLACE.0,
        PLACE.1,
        PLACE.2,
        "roles/run.invoker",
        "user:intruder@secret.example",
    );
    // One is refused by a guardrail, one by IAM; others lose access by a plan that is held, and one
    // comes back for ever.
    let rail = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerGuardrail", "metadata": {"name": "g"},
        "spec": {"members": ["*@secret.example"], "maxRemovals": 1}});
    let rails: Api<InvokerGuardrail> = Api::all(client.clone());
    rails
        .create(
            &PostParams::default(),
            &serde_json::from_value(rail).unwrap(),
        )
        .await
        .unwrap();
    sandbox.run.deploy(PLACE.0, PLACE.1, "held", &[]);
    for n in 0..3 {
        sandbox.run.add_member(
            PLACE.0,
            PLACE.1,
            "held",
            "roles/run.invoker",
            &format!("user:old{n}@secret.example"),
        );
    }
    let mut held = policy(&["user:ada@secret.example"]);
    held.metadata.name = Some("held".into());
    held.spec.services[0].name = Some("held".into());
    policies(&client)
        .create(&PostParams::default(), &held)
        .await
        .unwrap();
    let members = [
        "user:ada@secret.example",
        "user:ghost@secret.example",
        "user:x@evil.secret.example",
    ];
    policies(&client)
        .create(&PostParams::default(), &policy(&members))
        .await
        .unwrap();
    eventually(Duration::from_secs(20), "written", || async {
        let members = sandbox
            .run
            .members(PLACE.0, PLACE.1, PLACE.2, "roles/run.invoker");
        if members == ["user:ada@secret.example"] {
            Ok(())
        } else {
            Err(format!("{members:?}"))
        }
    })
    .await;
    eventually(Duration::from_secs(10), "told", || async {
        let p = policies(&client)
            .get("web")
            .await
            .map_err(|e| e.to_string())?;
        let told = p
            .status
            .unwrap_or_default()
            .conditions
            .iter()
            .any(|c| c.type_ == "Stalled" && c.reason == "InvalidMember");
        if told { Ok(()) } else { Err("not yet".into()) }
    })
    .await;
    for turn in 0..4 {
        sandbox.run.add_member(
            PLACE.0,
            PLACE.1,
            PLACE.2,
            "roles/run.invoker",
            "user:rival@secret.example",
        );
        let patch = json!({"metadata": {"annotations": {REQUESTED_AT: format!("{turn}")}}});
        policies(&client)
            .patch("web", &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        eventually(Duration::from_secs(10), "looked at", || async {
            let status = policies(&client)
                .get("web")
                .await
                .map_err(|e| e.to_string())?
                .status
                .unwrap_or_default();
            let handled = status.last_handled_requested_at;
            let members = sandbox
                .run
                .members(PLACE.0, PLACE.1, PLACE.2, "roles/run.invoker");
            // The fourth is held back by the fight.
            let corrected = turn == 3 || members == ["user:ada@secret.example"];
            let looked = handled.as_deref() == Some(&format!("{turn}"));
            if looked && corrected {
                Ok(())
            } else {
                Err(format!("{handled:?} {members:?}"))
            }
        })
        .await;
    }
    let get = |path: &str| {
        let url = format!("http://127.0.0.1:{port}{path}");
        async move { reqwest::get(url).await.unwrap() }
    };
    assert_eq!(get("/healthz").await.status(), 200);
    assert_eq!(get("/readyz").await.status(), 200);
    let metrics = get("/metrics").await.text().await.unwrap();
    for name in [
        "policy_ready",
        "services",
        "exposed_services",
        "contested_services 1",
        "held_plans 1",
        "circuit_open 0",
        "drift_detected_total",
        "corrections_total",
        "reconcile_total",
        "reconcile_duration_seconds_count",
        "cloud_requests_total",
        "cloud_request_duration_seconds_count",
        "limiter_wait_seconds_count",
        "queue_depth",
        "last_audit_timestamp_seconds",
        "shard_owned",
        "build_info",
        "convergence_seconds_count",
        "drift_detection_seconds_count",
    ] {
        assert!(
            metrics.contains(&format!("\nrun_invoker_{name}")),
            "no {name}"
        );
    }
    assert!(metrics.contains("process_resident_memory_bytes"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    process.kill().unwrap();
    process.wait().unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("IAM policy changed"), "{text}");
    assert!(
        !metrics.contains("secret.example"),
        "a member is in the metrics"
    );
    assert!(
        !text.contains("secret.example"),
        "a member is in the log: {text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stuck_queue_turns_liveness_red_and_heals() {
    let (sandbox, client) = sandbox().await;
    let setup = Setup {
        stuck_after: Duration::from_millis(800),
        timeout: Duration::from_secs(4),
        ..Setup::default()
    };
    let operator = Operator::start(client.clone(), sandbox.run_url(), &setup).await;
    sandbox
        .faults
        .add(Rule::run("GET", ":getIamPolicy", Fault::Hang).times(1));
    assert!(operator.controller.health().is_ok());
    policies(&client)
        .create(&PostParams::default(), &policy(&["user:a@acme.com"]))
        .await
        .unwrap();
    eventually(Duration::from_secs(4), "red", || async {
        match operator.controller.health() {
            Err(why) if why.contains("stuck") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    in_sync(&client, 1, 20).await;
    assert!(operator.controller.health().is_ok());
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn spans_go_to_a_collector_when_asked_for() {
    let (sandbox, client) = sandbox().await;
    let received = Arc::new(std::sync::Mutex::new(Vec::<u8>::new()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let collector = format!("http://{}", listener.local_addr().unwrap());
    let sink = received.clone();
    let app = axum::Router::new().route(
        "/v1/traces",
        axum::routing::post(move |body: axum::body::Bytes| {
            sink.lock().unwrap().extend_from_slice(&body);
            async {}
        }),
    );
    tokio::spawn(async move { axum::serve(listener, app).await });
    let mut process = Command::new(env!("CARGO_BIN_EXE_run-invoker"))
        .args([
            "--cloud-run-endpoint",
            &sandbox.run_url(),
            "--anonymous",
            "--identity",
            "x",
            "--listen",
            "127.0.0.1:0",
        ])
        .args(["--otlp-endpoint", &collector, "--log", "warn"])
        .env("KUBECONFIG", kubeconfig(&sandbox, "otlp"))
        .env("OTEL_BSP_SCHEDULE_DELAY", "200")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    policies(&client)
        .create(&PostParams::default(), &policy(&["user:a@acme.com"]))
        .await
        .unwrap();
    in_sync(&client, 1, 20).await;
    // Protobuf keeps strings as they are: a span per service, named and placed.
    eventually(Duration::from_secs(15), "spans arrive", || async {
        let text = String::from_utf8_lossy(&received.lock().unwrap()).into_owned();
        let whole = text.contains("run-invoker") && text.contains("acme-prod/europe-west1/web");
        if whole {
            Ok(())
        } else {
            Err(format!("{} bytes", text.len()))
        }
    })
    .await;
    process.kill().unwrap();
    process.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_real_api_server_that_goes_away_loses_nothing() {
    let Some(mut server) = Envtest::start("a restart").await else {
        return;
    };
    let client = common::client(&server.kubeconfig()).await;
    common::install(&client).await;
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    sandbox.run.deploy(PLACE.0, PLACE.1, PLACE.2, &[]);
    let operator = Operator::start(client.clone(), sandbox.run_url(), &Setup::default()).await;
    policies(&client)
        .create(&PostParams::default(), &policy(&["user:a@acme.com"]))
        .await
        .unwrap();
    in_sync(&client, 1, 20).await;
    let before = sandbox.journal.last();
    server.stop_server();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(writes(&sandbox, before).is_empty());
    server.start_server().await;
    // It answers before it serves every kind.
    eventually(
        Duration::from_secs(20),
        "policies are served again",
        || async {
            policies(&client)
                .get("web")
                .await
                .map(|_| ())
                .map_err(|e| e.to_string())
        },
    )
    .await;
    let patch = json!({"spec": {"invokers": [{"member": "user:b@acme.com"}]}});
    policies(&client)
        .patch("web", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    in_sync(&client, 2, 60).await;
    assert_eq!(writes(&sandbox, before).len(), 1);
    assert_eq!(
        sandbox
            .run
            .members(PLACE.0, PLACE.1, PLACE.2, "roles/run.invoker"),
        ["user:b@acme.com"]
    );
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn records_that_are_too_old_are_taken_away_in_every_namespace() {
    let (sandbox, client) = sandbox().await;
    let mut setup = Setup::default();
    setup.retention.age = jiff::SignedDuration::from_secs(2);
    let operator = Operator::start(client.clone(), sandbox.run_url(), &setup).await;
    policies(&client)
        .create(&PostParams::default(), &policy(&["user:a@acme.com"]))
        .await
        .unwrap();
    in_sync(&client, 1, 20).await;
    let changes: Api<InvokerChange> = Api::all(client.clone());
    let left = || async { changes.list(&Default::default()).await.unwrap().items.len() };
    operator.controller.discard_old_changes().await.unwrap();
    assert_eq!(left().await, 1, "young records stay");
    tokio::time::sleep(Duration::from_millis(3100)).await;
    operator.controller.discard_old_changes().await.unwrap();
    assert_eq!(left().await, 0);
    operator.stop().await;
}
