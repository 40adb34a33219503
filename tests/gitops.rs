//! The samples for Argo CD, Flux and Terraform: the health check runs, the copies agree, the
//! permissions are the five.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

use std::{collections::BTreeSet, fs, path::Path};

use mlua::{Lua, LuaSerdeExt as _};
use serde_json::{Value, json};

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Runs the health check as Argo CD does: the object is the global `obj`, and a table with status
/// and message comes back.
fn health(object: &Value) -> (String, String) {
    let lua = Lua::new();
    lua.globals()
        .set("obj", lua.to_value(object).unwrap())
        .unwrap();
    let result: mlua::Table = lua.load(file("samples/argocd/health.lua")).eval().unwrap();
    (
        result.get("status").unwrap(),
        result.get("message").unwrap(),
    )
}

fn object(suspend: bool, observed: i64, conditions: &[(&str, &str, &str)]) -> Value {
    let conditions: Vec<Value> = conditions
        .iter()
        .map(|(type_, status, message)| json!({"type": type_, "status": status, "reason": "R", "message": message}))
        .collect();
    json!({"metadata": {"generation": 3}, "spec": {"suspend": suspend}, "status": {"observedGeneration": observed, "conditions": conditions}})
}

#[test]
fn argo_cd_sees_what_is() {
    let ready = ("Ready", "True", "as declared");
    let not_ready = ("Ready", "False", "quota");
    let stalled = ("Stalled", "True", "a person is needed");
    let busy = ("Reconciling", "True", "1 of 2 services looked at");
    let drifted = ("Drifted", "True", "missing user:a@acme.com");
    for (what, given, status, message) in [
        (
            "nothing was said yet",
            json!({"metadata": {"generation": 1}, "spec": {}}),
            "Progressing",
            "waiting",
        ),
        (
            "an older generation",
            object(false, 2, &[ready]),
            "Progressing",
            "not seen the last change",
        ),
        (
            "in sync",
            object(false, 3, &[ready]),
            "Healthy",
            "as declared",
        ),
        (
            "audited, with drift",
            object(false, 3, &[ready, drifted]),
            "Healthy",
            "missing user:a",
        ),
        (
            "settling",
            object(false, 3, &[not_ready, busy]),
            "Progressing",
            "1 of 2",
        ),
        (
            "failing, to be tried again",
            object(false, 3, &[not_ready]),
            "Degraded",
            "quota",
        ),
        (
            "stalled",
            object(false, 3, &[not_ready, stalled]),
            "Degraded",
            "a person",
        ),
        (
            "unreadable, so no generation",
            object(false, 0, &[not_ready, stalled]),
            "Degraded",
            "a person",
        ),
        (
            "suspended",
            object(true, 2, &[not_ready]),
            "Suspended",
            "nothing is read",
        ),
    ] {
        let (have, said) = health(&given);
        assert_eq!(have, status, "{what}: {said}");
        assert!(said.contains(message), "{what}: {said}");
    }
}

#[test]
fn the_config_map_has_the_same_check() {
    let map: Value = serde_saphyr::from_str(&file("samples/argocd/argocd-cm.yaml")).unwrap();
    let check = map["data"]["resource.customizations.health.run-invoker.dev_InvokerPolicy"]
        .as_str()
        .unwrap();
    assert_eq!(check.trim(), file("samples/argocd/health.lua").trim());
}

#[test]
fn every_sample_is_yaml_with_a_kind() {
    let mut kinds = BTreeSet::new();
    for path in [
        "samples/argocd/application.yaml",
        "samples/flux/policies.yaml",
    ] {
        for document in file(path).split("\n---\n") {
            let value: Value =
                serde_saphyr::from_str(document).unwrap_or_else(|e| panic!("{path}: {e}"));
            kinds.insert(
                value["kind"]
                    .as_str()
                    .unwrap_or_else(|| panic!("{path}: no kind"))
                    .to_owned(),
            );
            if value["kind"] == "Kustomization" {
                assert_eq!(
                    value["spec"]["wait"], true,
                    "{path}: without wait nothing is understood"
                );
            }
        }
    }
    let wanted = [
        "Application",
        "GitRepository",
        "HelmRelease",
        "Kustomization",
    ];
    assert_eq!(kinds, wanted.map(str::to_owned).into());
}

/// product.md §2, 20: these and no other.
const PERMISSIONS: [&str; 5] = [
    "run.locations.list",
    "run.services.get",
    "run.services.getIamPolicy",
    "run.services.list",
    "run.services.setIamPolicy",
];

#[test]
fn wherever_a_role_is_made_it_has_exactly_the_five_permissions_and_the_condition() {
    let permission = regex::Regex::new(r"\brun\.[a-z]+\.[a-zA-Z]+\b").unwrap();
    let terraform = file("samples/terraform/main.tf");
    let in_terraform: BTreeSet<&str> = permission
        .find_iter(&terraform)
        .map(|m| m.as_str())
        .collect();
    assert_eq!(in_terraform, PERMISSIONS.into());
    for page in ["docs/several-projects.md", "docs/google-cloud.md"] {
        let text = file(page);
        let (_, command) = text
            .split_once("gcloud iam roles create")
            .unwrap_or_else(|| panic!("{page}: no role"));
        let command = command
            .split("\n\n")
            .next()
            .unwrap()
            .split("gcloud iam service-accounts")
            .next()
            .unwrap();
        let found: BTreeSet<&str> = permission.find_iter(command).map(|m| m.as_str()).collect();
        assert_eq!(found, PERMISSIONS.into(), "{page}");
    }
    let condition = "api.getAttribute('iam.googleapis.com/modifiedGrantsByRole', []).hasOnly(['roles/run.invoker','roles/run.servicesInvoker'])";
    for place in [
        "docs/several-projects.md",
        "docs/google-cloud.md",
        "samples/terraform/main.tf",
    ] {
        assert!(
            file(place).contains(condition),
            "{place}: the condition is missing or another one"
        );
    }
}
