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
        let url = format!("{}/{path}", sandbox.control_url());
        let answer = reqwest::Client::new()
            .post(url)
            .json(&body)
            .send()
            .await
            .unwrap();
        let status = answer.status();
        assert!(
            status.is_success(),
            "{path}: {}",
            answer.text().await.unwrap()
        );
    }
    sandbox
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn gcloud_finds_who_can_invoke_above_the_service() {
    let Some(program) = need("gcloud") else {
        return;
    };
    let sandbox = sandbox().await;
    let gcloud = common::gcloud(program, &sandbox);
    let search = [
        "asset",
        "search-all-iam-policies",
        INVOKE,
        "--format=json",
        "--page-size=2",
    ];
    let within = |scope: &'static str| [search.as_slice(), &["--scope", scope]].concat();
    let found = parsed(&gcloud.ok(&within("organizations/1")).await);
    let names: Vec<&str> = found
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|r| r["resource"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            &format!("{MANAGER}/folders/10"),
            &format!("{MANAGER}/projects/acme-prod"),
            WEB
        ]
    );
    assert_eq!(
        found[2]["policy"]["bindings"][0]["members"],
        json!(["user:a@acme.com", "user:d@acme.com"])
    );
    assert_eq!(
        sandbox
            .journal
            .calls(0, "AssetService.SearchAllIamPolicies"),
        2,
        "three results, two on a page"
    );
    let (fine, text) = gcloud.run(&within("folders/404"), "").await;
    assert!(
        !fine && text.contains("reason: IAM_PERMISSION_DENIED"),
        "{text}"
    );

    let ancestors = gcloud.ok(&["projects", "get-ancestors", "acme-prod"]).await;
    let words: Vec<&str> = ancestors.split_whitespace().collect();
    assert_eq!(
        words,
        [
            "ID",
            "TYPE",
            "acme-prod",
            "project",
            "10",
            "folder",
            "1",
            "organization"
        ]
    );
    let policy = gcloud
        .ok(&["projects", "get-iam-policy", "acme-prod", "--format=json"])
        .await;
    assert_eq!(parsed(&policy)["bindings"][0]["role"], "roles/editor");
    let chain = [
        "projects",
        "get-ancestors-iam-policy",
        "acme-prod",
        "--include-deny",
        "--format=json",
    ];
    let chain = parsed(&gcloud.ok(&chain).await);
    let types: Vec<&str> = chain
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|c| c["type"].as_str())
        .collect();
    assert_eq!(
        types,
        ["project", "folder", "folder", "organization"],
        "the folder's deny policy too"
    );
    assert_eq!(sandbox.journal.calls(0, "ListPolicies"), 3);

    let member = "--member=user:new@acme.com";
    let add = [
        "projects",
        "add-iam-policy-binding",
        "acme-prod",
        member,
        "--role=roles/run.invoker",
        "--condition=None",
    ];
    assert!(gcloud.ok(&add).await.contains("user:new@acme.com"));
    let found = parsed(&gcloud.ok(&within("projects/acme-prod")).await);
    assert_eq!(
        found[0]["policy"]["bindings"].as_array().unwrap().len(),
        2,
        "{found}"
    );
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
