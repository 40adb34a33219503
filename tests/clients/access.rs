//! Who can invoke a service beyond its own policy, asked by gcloud and by Google's Python clients.

use sandbox::Sandbox;
use serde_json::{Value, json};

use crate::{common, need, witness};

const WEB: &str = "//run.googleapis.com/projects/acme-prod/locations/europe-west1/services/web";
const MANAGER: &str = "//cloudresourcemanager.googleapis.com";
const INVOKE: &str = "--query=policy.role.permissions:run.routes.invoke";

/// organizations/1 > folders/10 > acme-prod (number 77), each level set over the control API.
async fn sandbox() -> Sandbox {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let allow = |role: &str, members: &[&str]| json!([{"role": role, "members": members}]);
    sandbox.run.deploy("acme-prod", "europe-west1", "web", &[]);
    let rule = json!({"denyRule": {"deniedPrincipals": ["principal://goog/subject/d@acme.com"],
        "deniedPermissions": ["run.googleapis.com/routes.invoke"]}});
    for (path, body) in [
        (
            "hierarchy",
            json!({"organizations": [{"name": "organizations/1", "displayName": "acme.example"}],
                "folders": [{"name": "folders/10", "parent": "organizations/1"}],
                "projects": [{"id": "acme-prod", "number": "77", "parent": "folders/10"}]}),
        ),
        (
            "policies",
            json!({"resource": "projects/acme-prod/locations/europe-west1/services/web",
                "bindings": allow("roles/run.invoker", &["user:a@acme.com", "user:d@acme.com"])}),
        ),
        (
            "policies",
            json!({"resource": "projects/acme-prod", "bindings": allow("roles/editor", &["user:e@acme.com"])}),
        ),
        (
            "policies",
            json!({"resource": "folders/10", "bindings": allow("roles/run.admin", &["group:ops@acme.com"])}),
        ),
        (
            "deny",
            json!({"resource": "folders/10", "policies": [{"id": "no", "rules": [rule]}]}),
        ),
    ] {
        common::control(&sandbox, path, &body).await;
    }
    sandbox
}

fn texts<'a>(list: &'a Value, field: &str) -> Vec<&'a str> {
    let entries = list.as_array().into_iter().flatten();
    entries.filter_map(|entry| entry[field].as_str()).collect()
}

fn parsed(text: &str) -> Value {
    let value = serde_json::from_str(text);
    assert!(value.is_ok(), "{text}");
    value.unwrap()
}

/// The arguments of a search, two results on a page.
fn search(scope: &'static str) -> [&'static str; 7] {
    [
        "asset",
        "search-all-iam-policies",
        INVOKE,
        "--format=json",
        "--page-size=2",
        "--scope",
        scope,
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn gcloud_finds_who_can_invoke_above_the_service() {
    let Some(program) = need("gcloud") else {
        return;
    };
    let sandbox = sandbox().await;
    let gcloud = common::gcloud(program, &sandbox);
    let found = parsed(&gcloud.ok(&search("organizations/1")).await);
    let project = format!("{MANAGER}/projects/acme-prod");
    assert_eq!(
        texts(&found, "resource"),
        [&format!("{MANAGER}/folders/10"), &project, WEB]
    );
    let members = &found[2]["policy"]["bindings"][0]["members"];
    assert_eq!(*members, json!(["user:a@acme.com", "user:d@acme.com"]));
    let pages = sandbox
        .journal
        .calls(0, "AssetService.SearchAllIamPolicies");
    assert_eq!(pages, 2, "three results, two on a page");
    let (fine, text) = gcloud.run(&search("folders/404"), "").await;
    assert!(
        !fine && text.contains("reason: IAM_PERMISSION_DENIED"),
        "{text}"
    );

    let member = "--member=user:new@acme.com";
    let (role, condition) = ("--role=roles/run.invoker", "--condition=None");
    let add = [
        "projects",
        "add-iam-policy-binding",
        "acme-prod",
        member,
        role,
        condition,
    ];
    assert!(gcloud.ok(&add).await.contains("user:new@acme.com"));
    let found = parsed(&gcloud.ok(&search("projects/acme-prod")).await);
    let bindings = found[0]["policy"]["bindings"].as_array().unwrap();
    assert_eq!(bindings.len(), 2, "{found}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn gcloud_climbs_from_a_project_to_its_organization() {
    let Some(program) = need("gcloud") else {
        return;
    };
    let sandbox = sandbox().await;
    let gcloud = common::gcloud(program, &sandbox);
    let ancestors = gcloud.ok(&["projects", "get-ancestors", "acme-prod"]).await;
    let words: Vec<&str> = ancestors.split_whitespace().collect();
    let expected = [
        "ID",
        "TYPE",
        "acme-prod",
        "project",
        "10",
        "folder",
        "1",
        "organization",
    ];
    assert_eq!(words, expected);
    let policy = gcloud
        .ok(&["projects", "get-iam-policy", "acme-prod", "--format=json"])
        .await;
    assert_eq!(parsed(&policy)["bindings"][0]["role"], "roles/editor");
    let chain = [
        "projects",
        "get-ancestors-iam-policy",
        "acme-prod",
        "--include-deny",
    ];
    let chain = parsed(
        &gcloud
            .ok(&[chain.as_slice(), &["--format=json"]].concat())
            .await,
    );
    // Twice the folder: its deny policy is an entry of its own.
    assert_eq!(
        texts(&chain, "type"),
        ["project", "folder", "folder", "organization"]
    );
    assert_eq!(sandbox.journal.calls(0, "ListPolicies"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn gcloud_troubleshoots_access() {
    let Some(program) = need("gcloud") else {
        return;
    };
    let sandbox = sandbox().await;
    let gcloud = common::gcloud(program, &sandbox);
    for (principal, overall) in [
        ("a@acme.com", "CAN_ACCESS"),
        ("d@acme.com", "CANNOT_ACCESS"),
        ("x@acme.com", "UNKNOWN_INFO"),
    ] {
        let email = format!("--principal-email={principal}");
        let args = [
            "policy-intelligence",
            "troubleshoot-policy",
            "iam",
            WEB,
            &email,
            "--permission=run.routes.invoke",
            "--format=json",
        ];
        let answer = parsed(&gcloud.ok(&args).await);
        assert_eq!(
            answer["overallAccessState"], overall,
            "{principal}: {answer}"
        );
    }
    assert_eq!(sandbox.journal.calls(0, "TroubleshootIamPolicy"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn googles_python_clients_find_who_can_invoke_above_the_service() {
    let sandbox = sandbox().await;
    witness(&sandbox, "tests/witness_access.py").await;
}
