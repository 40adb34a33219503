//! The APIs over their paths, as tables.

use axum::http::{HeaderMap, Method};
use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::{
    Clock,
    exchange::Call,
    run::{Run, rest},
};

const INVOKE: &str = "query=policy.role.permissions%3Arun.routes.invoke";

/// What a path answers: the status and the JSON.
async fn ask(run: &Run, method: Method, target: &str, body: Value) -> (u16, Value) {
    ask_with(run, method, target, body, HeaderMap::new()).await
}

async fn ask_with(
    run: &Run,
    method: Method,
    target: &str,
    body: Value,
    headers: HeaderMap,
) -> (u16, Value) {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let call = Call::new(method, &target.parse().unwrap(), headers, body.into());
    let response = rest::answer(run, &call);
    let status = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX)
        .await
        .unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

pub async fn get(run: &Run, target: &str) -> (u16, Value) {
    ask(run, Method::GET, target, Value::Null).await
}

pub async fn post(run: &Run, target: &str, body: Value) -> (u16, Value) {
    ask(run, Method::POST, target, body).await
}

pub fn to(role: &str, members: &[&str]) -> Value {
    json!({"role": role, "members": members})
}

/// organizations/1 > folders/10 > folders/11 > shop (number 77), with a service; and another
/// project under the default organization.
pub fn world() -> Run {
    let run = Run::new(Clock::default());
    run.put_organization("organizations/1", None).unwrap();
    run.put_folder("folders/10", Some("eu"), Some("organizations/1"))
        .unwrap();
    run.put_folder("folders/11", None, Some("folders/10"))
        .unwrap();
    run.put_project("shop", Some("77"), Some("folders/11"))
        .unwrap();
    run.deploy("shop", "europe-west1", "web", &[]);
    run.deploy("other", "europe-west1", "api", &[]);
    let bindings = json!([
        to("roles/run.invoker", &["user:a@acme.com"]),
        to("roles/run.viewer", &["user:v@acme.com"])
    ]);
    run.set_bindings("shop", "europe-west1", "web", &bindings);
    run.set_bindings(
        "other",
        "europe-west1",
        "api",
        &json!([to("roles/run.invoker", &["allUsers"])]),
    );
    run.set_policy(
        "projects/shop",
        &json!([to("roles/editor", &["user:e@acme.com"])]),
    )
    .unwrap();
    run.set_policy(
        "folders/10",
        &json!([to("roles/run.admin", &["group:ops@acme.com"])]),
    )
    .unwrap();
    run.set_policy(
        "folders/11",
        &json!([to("roles/viewer", &["user:v@acme.com"])]),
    )
    .unwrap();
    run.set_policy(
        "organizations/1",
        &json!([to("roles/owner", &["user:o@acme.com"])]),
    )
    .unwrap();
    run
}

fn resources(answer: &Value) -> Vec<&str> {
    let results = answer["results"].as_array();
    results
        .into_iter()
        .flatten()
        .filter_map(|r| r["resource"].as_str())
        .collect()
}

const WEB: &str = "//run.googleapis.com/projects/shop/locations/europe-west1/services/web";
const SHOP: &str = "//cloudresourcemanager.googleapis.com/projects/shop";
const EU: &str = "//cloudresourcemanager.googleapis.com/folders/10";
const ORGANIZATION: &str = "//cloudresourcemanager.googleapis.com/organizations/1";

#[tokio::test]
async fn a_search_finds_what_is_in_its_scope_and_nothing_above() {
    let run = world();
    let viewers = "query=policy%3Av%40acme.com";
    let services = format!("{INVOKE}&assetTypes=run.googleapis.com/Service");
    let folders = format!("{INVOKE}&assetTypes=.*Folder&assetTypes=.*Organization");
    let descending = format!("{INVOKE}&orderBy=assetType%20DESC,resource");
    let cases: [(&str, &str, &[&str]); 9] = [
        ("projects/shop", INVOKE, &[SHOP, WEB]),
        ("projects/77", INVOKE, &[SHOP, WEB]),
        ("folders/11", INVOKE, &[SHOP, WEB]),
        ("folders/10", INVOKE, &[EU, SHOP, WEB]),
        ("organizations/1", INVOKE, &[EU, ORGANIZATION, SHOP, WEB]),
        ("organizations/1", &services, &[WEB]),
        ("organizations/1", &folders, &[EU, ORGANIZATION]),
        (
            "organizations/1",
            &descending,
            &[WEB, SHOP, ORGANIZATION, EU],
        ),
        (
            "folders/11",
            viewers,
            &["//cloudresourcemanager.googleapis.com/folders/11", WEB],
        ),
    ];
    for (scope, query, found) in cases {
        let (status, answer) =
            get(&run, &format!("/v1/{scope}:searchAllIamPolicies?{query}")).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(resources(&answer), found, "{scope} {query}");
    }
}

#[tokio::test]
async fn a_result_says_where_it_is_and_has_only_bindings_that_match() {
    let run = world();
    let (_, answer) = get(
        &run,
        &format!("/v1/organizations/1:searchAllIamPolicies?{INVOKE}"),
    )
    .await;
    assert_eq!(
        answer["results"][3],
        json!({"resource": WEB, "assetType": "run.googleapis.com/Service",
            "project": "projects/77", "folders": ["folders/11", "folders/10"],
            "organization": "organizations/1",
            "policy": {"bindings": [to("roles/run.invoker", &["user:a@acme.com"])]}})
    );
    assert_eq!(
        answer["results"][1],
        json!({"resource": ORGANIZATION, "organization": "organizations/1",
            "assetType": "cloudresourcemanager.googleapis.com/Organization",
            "policy": {"bindings": [to("roles/owner", &["user:o@acme.com"])]}})
    );
}

#[tokio::test]
async fn a_search_is_answered_in_pages() {
    let run = world();
    let base = format!("/v1/organizations/1:searchAllIamPolicies?{INVOKE}&pageSize=3");
    let (_, first) = get(&run, &base).await;
    let token = first["nextPageToken"].as_str().unwrap();
    let (_, last) = get(&run, &format!("{base}&pageToken={token}")).await;
    assert_eq!((resources(&first).len(), resources(&last)), (3, vec![WEB]));
    assert!(last.get("nextPageToken").is_none());
    // "The values of all other method parameters must be identical."
    let other = format!("/v1/folders/10:searchAllIamPolicies?{INVOKE}&pageToken={token}");
    assert_eq!(get(&run, &other).await.0, 400);
}

#[tokio::test]
async fn a_search_that_makes_no_sense_is_refused() {
    let run = world();
    let cases = [
        ("folders/x", "", "Invalid scope"),
        ("projects/shop", "query=amy", "does not support"),
        ("projects/shop", "pageSize=x", "page_size"),
        ("projects/shop", "pageToken=x", "page token"),
        ("projects/shop", "orderBy=policy", "order by"),
        (
            "projects/shop",
            "assetTypes=compute.googleapis.com/Disk",
            "no asset type",
        ),
        ("projects/shop", "assetTypes=(", "asset type"),
        ("projects/shop", "filter=x", "Unknown name"),
    ];
    for (scope, query, why) in cases {
        let (status, answer) =
            get(&run, &format!("/v1/{scope}:searchAllIamPolicies?{query}")).await;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(
            (status, answer["error"]["status"].as_str()),
            (400, Some("INVALID_ARGUMENT"))
        );
        assert!(message.contains(why), "{scope} {query}: {message}");
    }
}

#[tokio::test]
async fn a_search_sees_changes_after_a_while() {
    let run = world();
    run.change_world(|w| w.search_delay = std::time::Duration::from_secs(60));
    let path = format!("/v1/projects/shop:searchAllIamPolicies?{INVOKE}");
    run.set_policy("projects/shop", &json!([])).unwrap();
    run.clock.advance(SignedDuration::from_secs(30));
    run.remove("shop", "europe-west1", "web");
    assert_eq!(resources(&get(&run, &path).await.1), [SHOP, WEB]);
    run.clock.advance(SignedDuration::from_secs(31));
    assert_eq!(resources(&get(&run, &path).await.1), [WEB]);
    run.clock.advance(SignedDuration::from_secs(31));
    assert_eq!(get(&run, &path).await.1, json!({}));
    run.change_world(|w| w.search_delay = std::time::Duration::ZERO);
    run.set_policy(
        "projects/shop",
        &json!([to("roles/owner", &["user:a@acme.com"])]),
    )
    .unwrap();
    assert_eq!(resources(&get(&run, &path).await.1), [SHOP]);
}

#[tokio::test]
async fn custom_roles_are_found_by_what_they_contain() {
    let run = world();
    let role = "projects/shop/roles/caller";
    run.set_role(role, ["run.routes.invoke".to_owned()].into())
        .unwrap();
    run.set_policy("projects/shop", &json!([to(role, &["user:c@acme.com"])]))
        .unwrap();
    let path = format!("/v1/projects/shop:searchAllIamPolicies?{INVOKE}");
    assert_eq!(resources(&get(&run, &path).await.1), [SHOP, WEB]);
    // Who may not read the role does not see who has it.
    let denied = ("shop".to_owned(), "iam.roles.get".to_owned());
    run.change_world(|w| w.denied = [denied].into());
    assert_eq!(get(&run, &path).await.1, json!({}));
}

#[tokio::test]
async fn refusals_say_what_is_missing() {
    let run = world();
    let search = "cloudasset.assets.searchAllIamPolicies";
    let deny = |holder: &str, permission: &str| {
        let entry = (holder.to_owned(), permission.to_owned());
        run.change_world(|w| w.denied = [entry].into());
    };
    deny("folders/10", search);
    let (status, answer) = get(
        &run,
        &format!("/v1/folders/10:searchAllIamPolicies?{INVOKE}"),
    )
    .await;
    let info = &answer["error"]["details"][0];
    assert_eq!(
        (status, &info["reason"]),
        (403, &json!("IAM_PERMISSION_DENIED"))
    );
    assert_eq!(info["domain"], "cloudasset.googleapis.com");
    assert_eq!(
        info["metadata"],
        json!({"permission": search, "resource": "folders/10"})
    );

    deny("shop", "resourcemanager.projects.getIamPolicy");
    for target in [
        "/v1/projects/shop:getIamPolicy",
        "/v3/projects/77:getIamPolicy",
    ] {
        let (status, answer) = post(&run, target, json!({})).await;
        let info = &answer["error"]["details"][0];
        assert_eq!(
            (status, &info["reason"]),
            (403, &json!("IAM_PERMISSION_DENIED"))
        );
        assert_eq!(
            info["metadata"]["permission"],
            "resourcemanager.projects.getIamPolicy"
        );
    }
    // What does not exist answers as what may not be seen.
    for target in [
        "/v3/projects/nowhere",
        "/v2/folders/404",
        "/v1/organizations/404",
    ] {
        assert_eq!(get(&run, target).await.0, 403, "{target}");
    }
}

#[tokio::test]
async fn an_api_can_be_off_and_its_quota_used_up() {
    let run = world();
    let path = format!("/v1/projects/shop:searchAllIamPolicies?{INVOKE}");
    let asset = "cloudasset.googleapis.com".to_owned();
    for (consumer, header, is_off) in [
        ("shop", "", true),
        ("*", "", true),
        ("ci", "ci", true),
        ("shop", "ci", false),
    ] {
        let entry = (consumer.to_owned(), asset.clone());
        run.change_world(|w| w.disabled_services = [entry].into());
        let mut headers = HeaderMap::new();
        if !header.is_empty() {
            headers.insert("x-goog-user-project", header.parse().unwrap());
        }
        let (status, answer) = ask_with(&run, Method::GET, &path, Value::Null, headers).await;
        assert_eq!(status == 403, is_off, "{consumer} {header}");
        if is_off {
            let info = &answer["error"]["details"][0];
            assert_eq!(info["reason"], "SERVICE_DISABLED");
            assert_eq!(info["metadata"]["service"], "cloudasset.googleapis.com");
        }
    }
    run.change_world(|w| {
        w.disabled_services.clear();
        w.quotas = [(asset, 2)].into();
    });
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(get(&run, &path).await.0);
    }
    assert_eq!(statuses, [200, 200, 429]);
    let (_, answer) = get(&run, &path).await;
    assert_eq!(
        answer["error"]["details"][0]["reason"],
        "RATE_LIMIT_EXCEEDED"
    );
    assert_eq!(
        get(&run, "/v3/projects/shop").await.0,
        200,
        "another API has its own quota"
    );
}

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
    let bound = json!({"role": "roles/run.invoker", "members": ["user:a@acme.com"],
        "condition": {"title": "t", "expression": "request.time < timestamp('2030-01-01T00:00:00Z')"}});
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
        let options = json!({"options": {"requestedPolicyVersion": 3}});
        let (_, before) = post(&run, &path("getIamPolicy"), options.clone()).await;
        let etag = before["etag"].as_str().unwrap();
        let policy = json!({"version": 3, "etag": etag, "bindings": [bound]});
        let (status, after) = post(&run, &path("setIamPolicy"), json!({"policy": policy})).await;
        assert_eq!(
            (status, &after["version"]),
            (200, &json!(3)),
            "{resource}: {after}"
        );
        assert_eq!(post(&run, &path("getIamPolicy"), options).await.1, after);
        // Who does not ask for version 3 does not see the condition.
        let (_, hidden) = post(&run, &path("getIamPolicy"), Value::Null).await;
        assert!(
            hidden["bindings"][0]["role"]
                .as_str()
                .unwrap()
                .contains("_withcond_")
        );
        let (status, stale) = post(&run, &path("setIamPolicy"), json!({"policy": policy})).await;
        assert_eq!(
            (status, &stale["error"]["status"]),
            (409, &json!("ABORTED")),
            "{resource}"
        );
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
