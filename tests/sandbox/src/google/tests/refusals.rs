//! Rights, quotas, and APIs that are off.

use axum::http::{HeaderMap, Method};
use serde_json::{Value, json};

use super::{INVOKE, ask_with, get, post, world};

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
