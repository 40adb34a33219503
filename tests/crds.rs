//! The definitions: that what is checked in is what the code makes, and the conventions they keep.
#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use std::process::Command;

use kube::{Api, Client, ResourceExt as _, api::PostParams};
use run_invoker::{
    api::{self, InvokerPolicy},
    iam::Principal,
};
use sandbox::Sandbox;
use serde_json::{Value, json};

#[test]
fn the_definitions_in_crds_are_current() {
    let output = Command::new(env!("CARGO_BIN_EXE_crdgen"))
        .args(["--check", concat!(env!("CARGO_MANIFEST_DIR"), "/crds")])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Fields that a person writes or reads, with their paths.
fn fields(schema: &Value, path: &str, out: &mut Vec<(String, Value)>) {
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        let at = format!("{path}.{name}");
        out.push((at.clone(), child.clone()));
        fields(child, &at, out);
        fields(&child["items"], &format!("{at}[]"), out);
    }
}

#[test]
fn every_field_is_explained_and_every_list_of_the_spec_is_bounded() {
    for crd in api::definitions() {
        let crd = serde_json::to_value(crd).unwrap();
        let mut all = Vec::new();
        fields(
            &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
            "",
            &mut all,
        );
        assert!(all.len() > 5);
        for (path, schema) in &all {
            // Kubernetes' own label selector explains itself and brings its own bounds.
            if path.contains(".selector.") {
                continue;
            }
            assert!(
                schema["description"].as_str().is_some_and(|d| d.len() > 8),
                "{path} is not explained"
            );
            // The ledger is written by the operator only, and has no rules.
            let is_bounded =
                crd["spec"]["names"]["kind"] != "InvokerLedger" && path.starts_with(".spec");
            if is_bounded && schema["type"] == "array" {
                assert!(schema["maxItems"].is_u64(), "{path} has no bound");
            }
            let free = schema["enum"].is_null() && schema["format"].is_null();
            if is_bounded && schema["type"] == "string" && free {
                assert!(schema["maxLength"].is_u64(), "{path} has no bound");
            }
        }
    }
}

#[test]
fn every_default_is_stated_where_kubectl_explain_shows_it() {
    let mut seen = 0;
    for crd in api::definitions() {
        let crd = serde_json::to_value(crd).unwrap();
        let mut all = Vec::new();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        fields(schema, "", &mut all);
        for (path, schema) in all
            .iter()
            .filter(|(p, s)| p.starts_with(".spec") && !s["default"].is_null())
        {
            if schema["default"] == "" {
                continue;
            }
            seen += 1;
            let default = schema["default"].as_str().map(str::to_owned);
            let default = default.unwrap_or_else(|| schema["default"].to_string());
            let text = schema["description"].as_str().unwrap();
            assert!(
                text.ends_with(&format!("Default: {default}.")),
                "{path}: {text}"
            );
        }
    }
    assert!(seen >= 7, "only {seen} defaults");
}

/// Optional fields of the spec, with their paths; those of lists of objects too.
fn optional_fields(schema: &Value, path: &str, out: &mut Vec<(String, Value)>) {
    let required = schema["required"].as_array();
    let is_required = |name: &String| required.is_some_and(|r| r.iter().any(|n| n == name));
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        let at = format!("{path}.{name}");
        if !is_required(name) {
            out.push((at.clone(), child.clone()));
        }
        // Kubernetes' own label selector explains itself.
        if name != "selector" {
            optional_fields(child, &at, out);
            optional_fields(&child["items"], &format!("{at}[]"), out);
        }
    }
}

#[test]
fn every_field_that_may_be_omitted_says_what_that_means() {
    for crd in api::definitions() {
        let crd = serde_json::to_value(crd).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut all = Vec::new();
        optional_fields(&schema["properties"]["spec"], "spec", &mut all);
        assert!(!all.is_empty());
        for (path, schema) in &all {
            let text = schema["description"].as_str().unwrap_or_default();
            let says = text.contains("Omitted: ") || text.contains("Default: ");
            assert!(says, "{}, {path}: {text}", crd["spec"]["names"]["kind"]);
        }
    }
}

#[test]
fn every_rule_has_a_message_that_says_what_to_do() {
    fn walk(v: &Value, seen: &mut usize) {
        if let Some(list) = v["x-kubernetes-validations"].as_array() {
            for rule in list {
                *seen += 1;
                let message = rule["message"].as_str();
                let message = message.or(rule["messageExpression"].as_str());
                assert!(
                    message.is_some_and(|m| m.len() > 20),
                    "{rule} has no message"
                );
            }
        }
        match v {
            Value::Object(m) => m.values().for_each(|c| walk(c, seen)),
            Value::Array(l) => l.iter().for_each(|c| walk(c, seen)),
            _ => {}
        }
    }
    let mut seen = 0;
    api::definitions()
        .iter()
        .for_each(|crd| walk(&serde_json::to_value(crd).unwrap(), &mut seen));
    assert!(seen >= 30, "only {seen} rules");
}

/// Members that are nearly one, and some that are none.
const REFUSED: [&str; 31] = [
    "allusers",
    "AllUsers",
    "allauthenticatedusers",
    "ada@acme.com",
    "web@acme-prod.iam.gserviceaccount.com",
    "acme.com",
    "nonsense",
    "allUsers ",
    "user: ada@acme.com",
    " group:ops@acme.com\t",
    "user:\u{430}da@acme.com",
    "user:ad\u{a0}a @acme.com",
    "user:",
    "group:@",
    "domain:",
    "user:ada",
    "user:ada@",
    "user:ada@acme",
    "user:@acme.com",
    "group:a@b@c.com",
    "Group:ops@acme.com",
    "serviceAccount:web",
    "serviceAccount:web@",
    "serviceAccount:web@acme-prod",
    "serviceaccount:web@acme-prod.iam.gserviceaccount.com",
    "domain:acme",
    "domain:-acme.com",
    "Domain:acme.com",
    "PrincipalSet://iam.googleapis.com/x/y",
    "deleted:user:a@b.com?uid=1",
    "projectOwner:acme-prod",
];

/// Whoever applies and whoever asks the plugin reads the same, once.
async fn refuses_in_the_same_words(client: Client) {
    common::install(&client).await;
    common::namespace(&client, "team-a").await;
    let policies: Api<InvokerPolicy> = Api::namespaced(client, "team-a");
    for member in REFUSED {
        let why = Principal::parse(member).unwrap_err();
        let wanted = format!("member {why}");
        let policy = serde_json::from_value(
            json!({"metadata": {"name": "x"}, "spec": {"project": "acme-prod",
            "services": [{"name": "web", "region": "europe-west1"}], "invokers": [{"member": member}]}}),
        );
        let policy: InvokerPolicy = policy.unwrap();
        let refused = policies.create(&PostParams::default(), &policy).await;
        let error = match refused.map(|p| p.name_any()).expect_err(member) {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        };
        assert!(error.contains(&wanted), "{wanted:?} is not in {error:?}");
        assert_eq!(error.matches("Invalid value").count(), 1, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_refused_in_the_words_of_the_plugin() {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    refuses_in_the_same_words(common::client(&sandbox.kubeconfig()).await).await;
    if let Some(server) = common::Envtest::start("words about members").await {
        refuses_in_the_same_words(common::client(&server.kubeconfig()).await).await;
    }
}
