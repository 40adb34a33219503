//! The alerts: that they fire and stay silent as they should (promtool), that each has a runbook, and that every series they
//! look at is really exported.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{collections::BTreeSet, fs, time::Duration};

use common::{Operator, Setup, eventually, repository, tool};
use kube::{Api, api::PostParams};
use run_invoker::api::InvokerPolicy;
use sandbox::Sandbox;
use serde_json::{Value, json};

fn rules() -> Vec<Value> {
    let text = fs::read_to_string(repository("charts/run-invoker/files/alerts.yaml")).unwrap();
    let value: Value = serde_saphyr::from_str(&text).unwrap();
    value["groups"].as_array().unwrap().iter().flat_map(|g| g["rules"].as_array().unwrap().clone()).collect()
}

#[test]
fn every_alert_fires_and_stays_silent_as_it_should() {
    let folder = repository("charts/run-invoker/tests");
    let (fine, text) = tool("promtool", &["check", "rules", "../files/alerts.yaml"], &folder);
    assert!(fine, "{text}");
    let (fine, text) = tool("promtool", &["test", "rules", "alerts_test.yaml"], &folder);
    assert!(fine, "{text}");
    let tests = fs::read_to_string(folder.join("alerts_test.yaml")).unwrap();
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        for kind in ["fires", "stays silent"] {
            assert!(tests.contains(&format!("- name: {name} {kind}\n")), "no test that {name} {kind}");
        }
    }
}

#[test]
fn every_alert_says_what_it_is_and_has_a_runbook() {
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        assert!(["critical", "warning", "info"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        for text in ["summary", "description"] {
            assert!(rule["annotations"][text].as_str().is_some_and(|t| t.len() > 15), "{name} has no {text}");
        }
        assert_eq!(rule["annotations"]["runbook_url"], format!("RUNBOOKS/{name}.md"));
        let book = fs::read_to_string(repository("docs/runbooks").join(format!("{name}.md"))).unwrap();
        for part in ["What it means", "Who is hit", "How to look", "How to fix", "How to undo"] {
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
    let soon =
        (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(3)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let policy = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"project": "acme-prod", "services": [{"name": "web", "region": "europe-west1"}], "mode": "Enforce",
            "invokers": [{"member": "user:a@acme.com"}, {"member": "user:t@acme.com", "expires": soon}]}});
    let api: Api<InvokerPolicy> = Api::namespaced(client, "default");
    api.create(&PostParams::default(), &serde_json::from_value(policy).unwrap()).await.unwrap();
    let render = || operator.metrics.render(&operator.controller.refresh_gauges());
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
    let wanted: BTreeSet<&str> =
        rules.iter().flat_map(|r| name.find_iter(r["expr"].as_str().unwrap()).map(|m| m.as_str())).collect();
    assert!(wanted.len() >= 12, "{wanted:?}");
    for series in wanted {
        assert!(
            text.lines().any(|l| l.strip_prefix(series).is_some_and(|r| r.starts_with(['{', ' ']))),
            "{series} is not exported"
        );
    }
    operator.stop().await;
}
