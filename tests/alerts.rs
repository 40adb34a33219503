//! The alerts and the dashboards: that alerts fire and stay silent as they should (promtool), that
//! each has a runbook, that every series they look at is really exported, and that every panel has
//! something to show.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

mod common;

use std::{
    collections::BTreeSet,
    fs,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{Operator, Setup, eventually, free_port, repository, tool, which};
use kube::{Api, api::PostParams};
use run_invoker::api::InvokerPolicy;
use sandbox::Sandbox;
use serde_json::{Value, json};

fn rules() -> Vec<Value> {
    let text = fs::read_to_string(repository("charts/run-invoker/files/alerts.yaml")).unwrap();
    let value: Value = serde_saphyr::from_str(&text).unwrap();
    value["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|g| g["rules"].as_array().unwrap().clone())
        .collect()
}

#[test]
fn every_alert_fires_and_stays_silent_as_it_should() {
    let folder = repository("charts/run-invoker/tests");
    let (fine, text) = tool(
        "promtool",
        &["check", "rules", "../files/alerts.yaml"],
        &folder,
    );
    assert!(fine, "{text}");
    let (fine, text) = tool("promtool", &["test", "rules", "alerts_test.yaml"], &folder);
    assert!(fine, "{text}");
    let tests = fs::read_to_string(folder.join("alerts_test.yaml")).unwrap();
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        for kind in ["fires", "stays silent"] {
            assert!(
                tests.contains(&format!("- name: {name} {kind}\n")),
                "no test that {name} {kind}"
            );
        }
    }
}

#[test]
fn every_alert_says_what_it_is_and_has_a_runbook() {
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        assert!(
            ["critical", "warning", "info"].contains(&rule["labels"]["severity"].as_str().unwrap()),
            "{name}"
        );
        for text in ["summary", "description"] {
            assert!(
                rule["annotations"][text]
                    .as_str()
                    .is_some_and(|t| t.len() > 15),
                "{name} has no {text}"
            );
        }
        assert_eq!(
            rule["annotations"]["runbook_url"],
            format!("RUNBOOKS/{name}.md")
        );
        let book =
            fs::read_to_string(repository("docs/runbooks").join(format!("{name}.md"))).unwrap();
        for part in ["Meaning", "Impact", "Diagnosis", "Mitigation", "Rollback"] {
            assert!(book.contains(&format!("**{part}.**")), "{name}: no {part}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_series_that_the_alerts_look_at_is_exported() {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    sandbox.run.deploy("acme-prod", "europe-west1", "web", &[]);
    let operator = Operator::start(client.clone(), sandbox.run_url(), &Setup::default()).await;
    let soon = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(3))
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string();
    let policy = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"project": "acme-prod", "services": [{"name": "web", "region": "europe-west1"}], "mode": "Enforce",
            "invokers": [{"member": "user:a@acme.com"}, {"member": "user:t@acme.com", "expires": soon}]}});
    let api: Api<InvokerPolicy> = Api::namespaced(client, "default");
    api.create(
        &PostParams::default(),
        &serde_json::from_value(policy).unwrap(),
    )
    .await
    .unwrap();
    let render = || {
        operator
            .metrics
            .render(&operator.controller.refresh_gauges())
    };
    eventually(Duration::from_secs(10), "the policy is ready", || async {
        if render().contains("run_invoker_policy_ready{namespace=\"default\",policy=\"web\"} 1") {
            Ok(())
        } else {
            Err(render())
        }
    })
    .await;
    let text = render();
    assert!(text.contains("\nrun_invoker_expiring_grants 1\n"));
    let name = regex::Regex::new("run_invoker_[a-z_]+").unwrap();
    let rules = rules();
    let wanted: BTreeSet<&str> = rules
        .iter()
        .flat_map(|r| {
            name.find_iter(r["expr"].as_str().unwrap())
                .map(|m| m.as_str())
        })
        .collect();
    assert!(wanted.len() >= 12, "{wanted:?}");
    for series in wanted {
        assert!(
            text.lines().any(|l| l
                .strip_prefix(series)
                .is_some_and(|r| r.starts_with(['{', ' ']))),
            "{series} is not exported"
        );
    }
    operator.stop().await;
}

struct Running(Child);
impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
fn start(program: &std::path::Path, args: &[String], env: &[(&str, &str)]) -> Running {
    let mut command = Command::new(program);
    // Alertmanager finds its templates from here.
    command
        .args(args)
        .current_dir(repository("."))
        .envs(env.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Running(
        command
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", program.display())),
    )
}

/// Real Prometheus and Alertmanager around the real operator: drift is made, the alert arrives at a
/// receiver, the drift is put right, and the receiver hears that too. The only thing changed in the
/// rules is how long a state must last.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_alert_about_drift_arrives_and_is_taken_back() {
    let tools = ["prometheus", "alertmanager"]
        .map(|t| which(t).unwrap_or_else(|| panic!("{t} is not there; run: make tools")));
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    let api: Api<InvokerPolicy> = Api::namespaced(client, "default");
    // One in audit, one enforced, and one about a service that is not there.
    for (name, mode) in [("web", "Audit"), ("api", "Enforce"), ("gone", "Audit")] {
        if name != "gone" {
            sandbox.run.deploy("acme-prod", "europe-west1", name, &[]);
        }
        let policy = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": name, "namespace": "default"},
            "spec": {"project": "acme-prod", "services": [{"name": name, "region": "europe-west1"}], "interval": "10s", "mode": mode,
                "invokers": [{"member": "user:a@acme.com"}]}});
        api.create(
            &PostParams::default(),
            &serde_json::from_value(policy).unwrap(),
        )
        .await
        .unwrap();
    }
    sandbox.run.add_member(
        "acme-prod",
        "europe-west1",
        "web",
        "roles/run.invoker",
        "user:a@acme.com",
    );

    let heard: Arc<Mutex<Vec<Value>>> = Arc::default();
    let sink = heard.clone();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let receiver = listener.local_addr().unwrap();
    let app = axum::Router::new().route(
        "/",
        axum::routing::post(move |body: axum::Json<Value>| {
            sink.lock()
                .unwrap()
                .extend(body["alerts"].as_array().cloned().unwrap_or_default());
            async {}
        }),
    );
    tokio::spawn(async move { axum::serve(listener, app).await });

    let folder = std::env::temp_dir().join(format!("run-invoker-alerts-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (metrics, prometheus, alertmanager) = (free_port(), free_port(), free_port());
    let rules = fs::read_to_string(repository("charts/run-invoker/files/alerts.yaml")).unwrap();
    let rules = file(
        "alerts.yaml",
        regex::Regex::new("for: [0-9]+m")
            .unwrap()
            .replace_all(&rules, "for: 1s")
            .into_owned(),
    );
    let scrape = file(
        "prometheus.yaml",
        format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{rules}]\nalerting: {{alertmanagers: [{{static_configs: [{{targets: ['127.0.0.1:{alertmanager}']}}]}}]}}\nscrape_configs: [{{job_name: run-invoker, honor_labels: true, static_configs: [{{targets: ['127.0.0.1:{metrics}']}}]}}]\n"
        ),
    );
    let route = file(
        "alertmanager.yaml",
        format!(
            "route: {{receiver: test, group_by: ['...'], group_wait: 0s, group_interval: 1s}}\nreceivers: [{{name: test, webhook_configs: [{{url: 'http://{receiver}/', send_resolved: true}}]}}]\n"
        ),
    );
    let kubeconfig = file("kubeconfig", sandbox.kubeconfig());
    let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let _operator = start(
        std::path::Path::new(env!("CARGO_BIN_EXE_run-invoker")),
        &words(format!(
            "--anonymous --cloud-run-endpoint {} --listen 127.0.0.1:{metrics} --identity x",
            sandbox.run_url()
        )),
        &[("KUBECONFIG", &kubeconfig)],
    );
    let at = folder.display();
    let _alertmanager = start(
        &tools[1],
        &words(format!(
            "--config.file={route} --storage.path={at}/am --web.listen-address=127.0.0.1:{alertmanager} --cluster.listen-address="
        )),
        &[],
    );
    let _prometheus = start(
        &tools[0],
        &words(format!(
            "--config.file={scrape} --storage.tsdb.path={at}/tsdb --web.listen-address=127.0.0.1:{prometheus}"
        )),
        &[],
    );
    let told = |alert: &str, status: &str| {
        let heard = heard.lock().unwrap();
        heard
            .iter()
            .any(|a| a["labels"]["alertname"] == alert && a["status"] == status)
    };
    let hears = async |alert: &'static str, status: &'static str, within: u64| {
        eventually(Duration::from_secs(within), alert, || async {
            if told(alert, status) {
                Ok(())
            } else {
                Err(format!("{status}: only {:?}", heard.lock().unwrap()))
            }
        })
        .await;
    };
    // In sync, scraped, and quiet.
    eventually(Duration::from_secs(20), "scraped", || async {
        let url =
            format!("http://127.0.0.1:{prometheus}/api/v1/query?query=run_invoker_policy_ready%7Bpolicy=%22web%22%7D");
        let answer: Value =
            reqwest::get(url).await.map_err(|e| e.to_string())?.json().await.map_err(|e| e.to_string())?;
        if answer["data"]["result"][0]["value"][1] == "1" { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
    assert!(!told("RunInvokerDrift", "firing"));

    let member = [
        "run",
        "services",
        "VERB",
        "web",
        "--region",
        "europe-west1",
        "--member",
        "user:x@evil.org",
        "--role",
        "roles/run.invoker",
    ];
    let by_hand = async |verb: &'static str| match which("gcloud") {
        Some(program) => {
            let args: Vec<&str> = member
                .iter()
                .map(|a| if *a == "VERB" { verb } else { a })
                .collect();
            common::gcloud(program, &sandbox).ok(&args).await;
        }
        None if verb.starts_with("add") => {
            sandbox.run.add_member(
                "acme-prod",
                "europe-west1",
                "web",
                "roles/run.invoker",
                "user:x@evil.org",
            );
        }
        None => {
            sandbox.run.remove_member(
                "acme-prod",
                "europe-west1",
                "web",
                "roles/run.invoker",
                "user:x@evil.org",
            );
        }
    };
    by_hand("add-iam-policy-binding").await;
    hears("RunInvokerDrift", "firing", 40).await;
    {
        let heard = heard.lock().unwrap();
        let alert = heard
            .iter()
            .find(|a| a["labels"]["alertname"] == "RunInvokerDrift")
            .unwrap();
        assert_eq!(alert["labels"]["policy"], "web");
        assert_eq!(alert["labels"]["kind"], "unexpected");
        assert!(
            alert["annotations"]["summary"]
                .as_str()
                .unwrap()
                .contains("default/web differs")
        );
        assert!(
            !alert.to_string().contains("evil.org"),
            "a member in an alert"
        );
    }
    // The enforced one is changed too, and corrected.
    let (project, region, role) = ("acme-prod", "europe-west1", "roles/run.invoker");
    let rival = "user:y@evil.org";
    sandbox.run.add_member(project, region, "api", role, rival);
    // By now there is something to see in every panel.
    every_panel_shows_something(prometheus).await;
    by_hand("remove-iam-policy-binding").await;
    hears("RunInvokerDrift", "resolved", 60).await;
    fs::remove_dir_all(&folder).ok();
}

const DASHBOARDS: [&str; 2] = ["fleet", "policy"];

fn dashboard(name: &str) -> Value {
    let path = repository("charts/run-invoker/files/dashboards").join(format!("{name}.json"));
    serde_json::from_str(&fs::read_to_string(&path).unwrap())
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Title, query and legend of every panel's queries.
fn queries(dashboard: &Value) -> Vec<(String, String, String)> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels
        .flat_map(|p| {
            p["targets"]
                .as_array()
                .into_iter()
                .flatten()
                .map(move |t| (p, t))
        })
        .map(|(p, t)| {
            let text = |v: &Value| v.as_str().unwrap().to_owned();
            (
                text(&p["title"]),
                text(&t["expr"]),
                text(&t["legendFormat"]),
            )
        })
        .collect()
}

/// Name and query of every annotation.
fn annotations(dashboard: &Value) -> Vec<(String, String)> {
    let all = dashboard["annotations"]["list"].as_array().unwrap().iter();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    all.map(|a| (text(&a["name"]), text(&a["expr"]))).collect()
}

/// Namespaces limit what has such a label. What has none is said to be about the whole fleet.
#[test]
fn every_panel_says_whether_it_is_about_the_namespace_or_the_whole_fleet() {
    let fleet = dashboard("fleet");
    let mut row = String::new();
    let mut counts = [0, 0];
    for panel in fleet["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        if panel["type"] == "row" {
            row = title.to_owned();
            let says = row.contains("$namespace") || row.ends_with("(whole fleet)");
            assert!(says, "row {row}");
            continue;
        }
        let is_limited = row.contains("$namespace");
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let limits = expression.contains("$namespace");
            assert_eq!(limits, is_limited, "{row}: {title}: {expression}");
            counts[usize::from(limits)] += 1;
        }
    }
    assert!(counts[0] > 20 && counts[1] >= 4, "{counts:?}");
    for (name, query) in annotations(&dashboard("policy")) {
        let limits = query.contains(r#"namespace="$namespace", policy="$policy""#);
        assert!(limits != name.ends_with("(whole fleet)"), "{name}: {query}");
    }
}

#[test]
fn the_dashboards_are_whole() {
    let mut uids = BTreeSet::new();
    for name in DASHBOARDS {
        let board = dashboard(name);
        assert!(uids.insert(board["uid"].as_str().unwrap().to_owned()));
        let mut ids = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for panel in board["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            assert!(
                ids.insert(panel["id"].as_u64().unwrap()),
                "{title}: id twice"
            );
            let at = |k: &str| panel["gridPos"][k].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{title} is too wide");
            for cell in (at("x")..at("x") + at("w"))
                .flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
            {
                assert!(taken.insert(cell), "{title} lies on another panel");
            }
            if panel["type"] != "row" && panel["type"] != "text" {
                assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
                assert!(!panel["targets"].as_array().unwrap().is_empty(), "{title}");
            }
        }
    }
    // A dashboard that links to the other one names it as it is.
    assert!(
        dashboard("fleet")
            .to_string()
            .contains("/d/run-invoker-policy?")
    );
    assert!(
        dashboard("policy")
            .to_string()
            .contains("/d/run-invoker-fleet?")
    );
}

/// Asks the live Prometheus what Grafana would ask it, and keeps the answers in `target/dashboards`
/// for `make picture`.
async fn every_panel_shows_something(prometheus: u16) {
    let out = repository("target/dashboards");
    fs::create_dir_all(&out).unwrap();
    let http = reqwest::Client::new();
    let ask = async |path: &str, params: &[(&str, &str)]| -> Value {
        let url = format!("http://127.0.0.1:{prometheus}/api/v1/{path}");
        http.get(url)
            .query(params)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    };
    for name in DASHBOARDS {
        let board = dashboard(name);
        let mut answers = Vec::new();
        let filled_in = |query: String| {
            let variables = [
                ("$__rate_interval", "30s"),
                ("$__range", "5m"),
                ("$namespace", if name == "fleet" { ".*" } else { "default" }),
                ("$policy", "web"),
            ];
            variables.iter().fold(query, |q, (k, v)| q.replace(k, v))
        };
        let shows = async |title: &str, query: &str| {
            // A counter that was born a moment ago has no rate yet.
            let what = format!("{name}: {title}: {query}");
            eventually(Duration::from_secs(40), &what, || async {
                let answer = ask("query", &[("query", query)]).await;
                let result = answer["data"]["result"].as_array();
                let found = result.is_some_and(|r| !r.is_empty());
                if answer["status"] == "success" && found {
                    Ok(())
                } else {
                    Err(answer.to_string())
                }
            })
            .await;
        };
        // First, because an annotation is about a moment.
        let marks = annotations(&board);
        assert!(!marks.is_empty(), "{name} has no annotation");
        for (title, query) in marks {
            shows(&title, &filled_in(query)).await;
        }
        for (title, query, legend) in queries(&board) {
            let query = filled_in(query);
            shows(&title, &query).await;
            let now = jiff::Timestamp::now().as_second();
            let span = [
                ("start", (now - 60).to_string()),
                ("end", now.to_string()),
                ("step", "1".to_owned()),
            ];
            let mut params = vec![("query", query.as_str())];
            params.extend(span.iter().map(|(k, v)| (*k, v.as_str())));
            let range = ask("query_range", &params).await;
            answers.push(json!({"title": title, "legend": legend, "query": query, "result": range["data"]["result"]}));
        }
        assert!(answers.len() >= 6);
        for variable in board["templating"]["list"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|v| v["type"] == "query")
        {
            let query = variable["query"]["query"]
                .as_str()
                .unwrap()
                .replace("$namespace", "default");
            let inner = query
                .strip_prefix("label_values(")
                .and_then(|q| q.strip_suffix(')'))
                .unwrap();
            let (selector, label) = inner.rsplit_once(", ").unwrap();
            let answer = ask(&format!("label/{label}/values"), &[("match[]", selector)]).await;
            assert!(
                answer["data"].as_array().is_some_and(|d| !d.is_empty()),
                "{query}: {answer}"
            );
        }
        fs::write(
            out.join(format!("{name}.json")),
            json!({"board": board, "answers": answers}).to_string(),
        )
        .unwrap();
    }
}
