//! `searchAllIamPolicies`.

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{INVOKE, get, to, world};

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
