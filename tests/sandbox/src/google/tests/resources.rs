//! Resource Manager, Identity-Aware Proxy and deny policies.

use serde_json::{Value, json};

use super::{get, post, to, world};
use crate::run::Run;

#[tokio::test]
async fn resource_manager_describes_the_hierarchy() {
    let run = world();
    let cases = [
        (
            "/v1/projects/77",
            json!({"projectId": "shop", "projectNumber": "77", "lifecycleState": "ACTIVE", "parent": {"type": "folder", "id": "11"}}),
        ),
        (
            "/v3/projects/shop",
            json!({"name": "projects/77", "projectId": "shop", "state": "ACTIVE", "parent": "folders/11"}),
        ),
        (
            "/v3/projects/other",
            json!({"parent": "organizations/123456789012"}),
        ),
        (
            "/v2/folders/10",
            json!({"name": "folders/10", "displayName": "eu", "parent": "organizations/1", "lifecycleState": "ACTIVE"}),
        ),
        (
            "/v3/folders/11",
            json!({"name": "folders/11", "parent": "folders/10", "state": "ACTIVE"}),
        ),
        (
            "/v1/organizations/1",
            json!({"name": "organizations/1", "lifecycleState": "ACTIVE"}),
        ),
        (
            "/v3/organizations/1",
            json!({"name": "organizations/1", "state": "ACTIVE"}),
        ),
    ];
    for (target, expected) in cases {
        let (status, answer) = get(&run, target).await;
        assert_eq!(status, 200, "{target}");
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(&answer[field], value, "{target} {field}");
        }
    }
    let (_, ancestry) = post(&run, "/v1/projects/shop:getAncestry", json!({})).await;
    let ids: Vec<_> = ancestry["ancestor"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| &a["resourceId"])
        .collect();
    assert_eq!(
        json!(ids),
        json!([{"type": "project", "id": "shop"}, {"type": "folder", "id": "11"},
            {"type": "folder", "id": "10"}, {"type": "organization", "id": "1"}])
    );
}

#[tokio::test]
async fn policies_above_services_have_etags_versions_and_conditions() {
    let run = world();
    for (version, resource) in [
        ("v1", "projects/shop"),
        ("v3", "projects/shop"),
        ("v2", "folders/10"),
        ("v3", "organizations/1"),
        (
            "v1",
            "projects/77/iap_web/cloud_run-europe-west1/services/web",
        ),
    ] {
        let path = |verb: &str| format!("/{version}/{resource}:{verb}");
        read_and_write(&run, &path("getIamPolicy"), &path("setIamPolicy")).await;
        let unknown = json!({"policy": {"bindings": [to("roles/run.invoker", &["nobody"])]}});
        assert_eq!(
            post(&run, &path("setIamPolicy"), unknown).await.0,
            400,
            "{resource}"
        );
        let asked = json!({"options": {"requestedPolicyVersion": 2}});
        assert_eq!(
            post(&run, &path("getIamPolicy"), asked).await.0,
            400,
            "{resource}"
        );
        assert_eq!(
            post(&run, &path("setIamPolicy"), json!([1])).await.0,
            400,
            "{resource}"
        );
    }
    let public = json!({"policy": {"bindings": [to("roles/run.invoker", &["allUsers"])]}});
    assert_eq!(
        post(&run, "/v3/projects/shop:setIamPolicy", public.clone())
            .await
            .0,
        400
    );
    assert_eq!(
        post(&run, "/v3/organizations/1:setIamPolicy", public)
            .await
            .0,
        200
    );
}

/// A condition is written with the etag that was read, read back, and not written a second time.
async fn read_and_write(run: &Run, get: &str, set: &str) {
    let condition =
        json!({"title": "t", "expression": "request.time < timestamp('2030-01-01T00:00:00Z')"});
    let mut bound = to("roles/run.invoker", &["user:a@acme.com"]);
    bound["condition"] = condition;
    let options = json!({"options": {"requestedPolicyVersion": 3}});
    let (_, before) = post(run, get, options.clone()).await;
    let policy = json!({"version": 3, "etag": before["etag"], "bindings": [bound]});
    let (status, after) = post(run, set, json!({"policy": policy})).await;
    assert_eq!(
        (status, &after["version"]),
        (200, &json!(3)),
        "{set}: {after}"
    );
    assert_eq!(post(run, get, options).await.1, after);
    // Who does not ask for version 3 does not see the condition.
    let (_, hidden) = post(run, get, Value::Null).await;
    let role = hidden["bindings"][0]["role"].as_str().unwrap();
    assert!(role.contains("_withcond_"), "{get}: {role}");
    let (status, stale) = post(run, set, json!({"policy": policy})).await;
    assert_eq!(
        (status, &stale["error"]["status"]),
        (409, &json!("ABORTED")),
        "{set}"
    );
}

#[tokio::test]
async fn identity_aware_proxy_has_settings() {
    let run = world();
    let resource = "projects/shop/iap_web/cloud_run-europe-west1/services/web";
    let settings = json!({"accessSettings": {"allowedDomainsSettings": {"enable": true, "domains": ["acme.com"]}}});
    run.set_iap_settings(resource, &settings).unwrap();
    let (status, answer) = get(&run, &format!("/v1/{resource}:iapSettings")).await;
    assert_eq!(
        (status, &answer["accessSettings"]),
        (200, &settings["accessSettings"])
    );
    assert_eq!(
        answer["name"],
        "projects/77/iap_web/cloud_run-europe-west1/services/web"
    );
    let (_, above) = get(&run, "/v1/projects/77/iap_web:iapSettings").await;
    assert_eq!(above, json!({"name": "projects/77/iap_web"}));
    assert!(run.set_iap_settings("projects/shop", &settings).is_err());
}

#[tokio::test]
async fn deny_policies_are_listed_without_their_rules() {
    let run = world();
    let rule = json!({"denyRule": {"deniedPrincipals": ["principalSet://goog/public:all"],
        "deniedPermissions": ["run.googleapis.com/routes.invoke"]}});
    let policies = json!([{"id": "first", "rules": [rule]}, {"id": "second", "rules": [rule]}]);
    run.set_deny_policies("projects/shop", &policies).unwrap();
    let point = |node: &str| {
        format!(
            "/v2/policies/cloudresourcemanager.googleapis.com%2F{}/denypolicies",
            node.replace('/', "%2F")
        )
    };
    let name = "policies/cloudresourcemanager.googleapis.com%2Fprojects%2F77/denypolicies";
    let (status, list) = get(&run, &point("projects/shop")).await;
    assert_eq!(
        (status, &list["policies"][1]["name"]),
        (200, &json!(format!("{name}/second")))
    );
    assert!(list["policies"][0].get("rules").is_none(), "{list}");
    let (_, first) = get(&run, &format!("{}?pageSize=1", point("projects/77"))).await;
    assert_eq!(first["nextPageToken"], "1");
    let (_, one) = get(&run, &format!("/v2/{name}/first")).await;
    assert_eq!(
        (&one["rules"][0], &one["kind"]),
        (&rule, &json!("DenyPolicy"))
    );
    let cases = [
        (format!("/v2/{name}/third"), 404),
        (point("folders/404"), 403),
        (point("folders/x"), 400),
        (format!("{}?pageSize=x", point("folders/10")), 400),
        (point("folders/10"), 200),
    ];
    for (target, status) in cases {
        assert_eq!(get(&run, &target).await.0, status, "{target}");
    }
    let denied = ("shop".to_owned(), "iam.denypolicies.list".to_owned());
    run.change_world(|w| w.denied = [denied].into());
    assert_eq!(get(&run, &point("projects/shop")).await.0, 403);
    run.change_world(|w| w.quotas = [("iam.googleapis.com".to_owned(), 0)].into());
    assert_eq!(get(&run, &point("folders/10")).await.0, 429);
    for odd in [
        json!([{"id": "x", "rules": [{"denyRule": {"deniedPrincipals": ["user:a@acme.com"], "deniedPermissions": ["run.googleapis.com/routes.invoke"]}}]}]),
        json!([{"id": "x", "rules": [{"denyRule": {"deniedPrincipals": ["principal://goog/subject/a@b.co"], "deniedPermissions": ["run.routes.invoke"]}}]}]),
        json!([{"id": "x", "rules": [{}]}]),
        json!([{"rules": []}]),
        json!({}),
    ] {
        assert!(
            run.set_deny_policies("projects/shop", &odd).is_err(),
            "{odd}"
        );
    }
}
