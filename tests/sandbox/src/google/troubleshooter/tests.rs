//! Tables: who can do what, and why.

use serde_json::{Value, json};

use crate::google::tests::{post, to, world};
use crate::run::Run;

const WEB: &str = "//run.googleapis.com/projects/shop/locations/europe-west1/services/web";

async fn ask(run: &Run, principal: &str, resource: &str, context: Value) -> Value {
    let tuple = json!({"principal": principal, "fullResourceName": resource,
        "permission": "run.routes.invoke", "conditionContext": context});
    let (status, answer) = post(run, "/v3/iam:troubleshoot", json!({"accessTuple": tuple})).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

async fn state(run: &Run, principal: &str) -> String {
    let answer = ask(run, principal, WEB, Value::Null).await;
    answer["overallAccessState"].as_str().unwrap().to_owned()
}

fn deny(run: &Run, holder: &str, permission: &str) {
    let entry = (holder.to_owned(), permission.to_owned());
    run.change_world(|w| w.denied = [entry].into());
}

#[tokio::test]
async fn access_comes_from_the_service_and_from_all_above_it() {
    let run = world();
    // folders/10 grants a group, whose members nobody has told.
    let cases = [
        ("a@acme.com", "CAN_ACCESS"),
        ("A@Acme.com", "CAN_ACCESS"),
        ("e@acme.com", "CAN_ACCESS"),
        ("o@acme.com", "CAN_ACCESS"),
        ("v@acme.com", "UNKNOWN_INFO"),
        ("ops-member@acme.com", "UNKNOWN_INFO"),
    ];
    for (principal, expected) in cases {
        assert_eq!(state(&run, principal).await, expected, "{principal}");
    }
    run.set_group(
        "group:ops@acme.com",
        ["ops-member@acme.com".to_owned()].into(),
    );
    for (principal, expected) in [
        ("ops-member@acme.com", "CAN_ACCESS"),
        ("v@acme.com", "CANNOT_ACCESS"),
    ] {
        assert_eq!(state(&run, principal).await, expected, "{principal}");
    }
    let unknown = [
        "//run.googleapis.com/projects/shop/locations/europe-west1/services/gone",
        "//run.googleapis.com/projects/nowhere/locations/europe-west1/services/web",
    ];
    for resource in unknown {
        let answer = ask(&run, "v@acme.com", resource, Value::Null).await;
        assert_eq!(answer["overallAccessState"], "UNKNOWN_INFO", "{resource}");
    }
}

const ACCOUNT: &str = "bot@shop.iam.gserviceaccount.com";

/// A member of a policy, who asks, whether the first includes the second.
const MEMBERS: [(&str, &str, &str); 11] = [
    ("allUsers", "x@acme.com", "MATCHED"),
    ("allAuthenticatedUsers", ACCOUNT, "MATCHED"),
    ("user:x@acme.com", "x@acme.com", "MATCHED"),
    ("user:x@acme.com", "y@acme.com", "NOT_MATCHED"),
    (
        "serviceAccount:bot@shop.iam.gserviceaccount.com",
        ACCOUNT,
        "MATCHED",
    ),
    ("deleted:user:x@acme.com?uid=1", "x@acme.com", "NOT_MATCHED"),
    ("group:g@acme.com", "x@acme.com", "UNKNOWN_INFO"),
    ("domain:acme.com", "x@acme.com", "UNKNOWN_INFO"),
    ("domain:acme.com", ACCOUNT, "NOT_MATCHED"),
    (
        "principal://iam.googleapis.com/locations/global/x",
        "x@acme.com",
        "UNKNOWN_UNSUPPORTED",
    ),
    ("projectOwner:shop", "x@acme.com", "UNKNOWN_UNSUPPORTED"),
];

#[tokio::test]
async fn members_of_every_kind() {
    let run = world();
    run.set_policy("folders/10", &json!([])).unwrap();
    for (member, principal, membership) in MEMBERS {
        let bindings = json!([to("roles/run.invoker", &[member])]);
        run.set_bindings("shop", "europe-west1", "web", &bindings);
        let answer = ask(&run, principal, WEB, Value::Null).await;
        let policy = &answer["allowPolicyExplanation"]["explainedPolicies"][0];
        let binding = &policy["bindingExplanations"][0];
        let word = json!(format!("MEMBERSHIP_{membership}"));
        assert_eq!(
            binding["memberships"][member]["membership"], word,
            "{member} {principal}"
        );
        assert_eq!(
            binding["combinedMembership"]["membership"], word,
            "{member} {principal}"
        );
        assert_eq!(binding["rolePermission"], "ROLE_PERMISSION_INCLUDED");
        let overall = match membership {
            "MATCHED" => "CAN_ACCESS",
            "NOT_MATCHED" => "CANNOT_ACCESS",
            _ => "UNKNOWN_INFO",
        };
        assert_eq!(
            answer["overallAccessState"], overall,
            "{member} {principal}"
        );
    }
}

#[tokio::test]
async fn what_may_not_be_seen_is_unknown_and_not_shown() {
    let run = world();
    run.set_policy("folders/10", &json!([])).unwrap();
    let cases = [
        ("shop", "run.services.getIamPolicy", 0),
        ("shop", "resourcemanager.projects.getIamPolicy", 1),
        ("folders/11", "resourcemanager.folders.getIamPolicy", 2),
        ("folders/10", "resourcemanager.folders.getIamPolicy", 3),
        (
            "organizations/1",
            "resourcemanager.organizations.getIamPolicy",
            4,
        ),
    ];
    for (holder, permission, index) in cases {
        deny(&run, holder, permission);
        let answer = ask(&run, "v@acme.com", WEB, Value::Null).await;
        assert_eq!(
            answer["overallAccessState"], "UNKNOWN_INFO",
            "{holder} {permission}"
        );
        let policies = answer["allowPolicyExplanation"]["explainedPolicies"]
            .as_array()
            .unwrap();
        assert_eq!(policies.len(), 5);
        for (i, policy) in policies.iter().enumerate() {
            let hidden = json!({"allowAccessState": "ALLOW_ACCESS_STATE_UNKNOWN_INFO"});
            assert_eq!(*policy == hidden, i == index, "{holder} {permission}: {i}");
        }
    }
    // What grants is enough, whatever else may not be seen.
    assert_eq!(state(&run, "a@acme.com").await, "CAN_ACCESS");
    deny(&run, "folders/11", "iam.denypolicies.list");
    assert_eq!(state(&run, "a@acme.com").await, "UNKNOWN_INFO");
    deny(&run, "shop", "iam.roles.get");
    let answer = ask(&run, "a@acme.com", WEB, Value::Null).await;
    let binding =
        &answer["allowPolicyExplanation"]["explainedPolicies"][0]["bindingExplanations"][0];
    assert_eq!(binding["rolePermission"], "ROLE_PERMISSION_UNKNOWN_INFO");
}

#[tokio::test]
async fn a_condition_needs_context() {
    let run = world();
    run.set_policy("folders/10", &json!([])).unwrap();
    let bound = json!({"role": "roles/run.invoker", "members": ["user:c@acme.com"],
        "condition": {"title": "until 2030", "expression": "request.time < timestamp('2030-01-01T00:00:00Z')"}});
    run.set_bindings("shop", "europe-west1", "web", &json!([bound]));
    let at = |time: &str| json!({"request": {"receiveTime": time}});
    let cases = [
        (Value::Null, Value::Null, "UNKNOWN_CONDITIONAL"),
        (at("2026-01-01T00:00:00Z"), json!(true), "CAN_ACCESS"),
        (at("2031-01-01T00:00:00Z"), json!(false), "CANNOT_ACCESS"),
    ];
    for (context, value, overall) in cases {
        let answer = ask(&run, "c@acme.com", WEB, context.clone()).await;
        let binding =
            &answer["allowPolicyExplanation"]["explainedPolicies"][0]["bindingExplanations"][0];
        assert_eq!(answer["overallAccessState"], overall, "{context}");
        assert_eq!(
            binding["conditionExplanation"],
            json!({"value": value}),
            "{context}"
        );
        assert_eq!(binding["condition"]["title"], "until 2030");
    }
    assert_eq!(
        state(&run, "x@acme.com").await,
        "CANNOT_ACCESS",
        "whom it does not name"
    );
}

#[tokio::test]
async fn a_deny_rule_takes_access_away() {
    let run = world();
    let all = "principalSet://goog/public:all";
    let a = "principal://goog/subject/a@acme.com";
    let account =
        "principal://iam.googleapis.com/projects/-/serviceAccounts/bot@x.iam.gserviceaccount.com";
    let invoke = "run.googleapis.com/routes.invoke";
    let group = "principalSet://goog/group/g@acme.com";
    let tag = json!({"title": "t", "expression": "resource.matchTag('1/env', 'prod')"});
    let cases = [
        (
            json!({"deniedPrincipals": [all], "deniedPermissions": [invoke]}),
            "CANNOT_ACCESS",
        ),
        (
            json!({"deniedPrincipals": [a], "deniedPermissions": ["run.googleapis.com/*.*"]}),
            "CANNOT_ACCESS",
        ),
        (
            json!({"deniedPrincipals": [account], "deniedPermissions": [invoke]}),
            "CAN_ACCESS",
        ),
        (
            json!({"deniedPrincipals": [all], "exceptionPrincipals": [a], "deniedPermissions": [invoke]}),
            "CAN_ACCESS",
        ),
        (
            json!({"deniedPrincipals": [all], "deniedPermissions": ["run.googleapis.com/*.*"], "exceptionPermissions": [invoke]}),
            "CAN_ACCESS",
        ),
        (
            json!({"deniedPrincipals": [all], "deniedPermissions": ["run.googleapis.com/services.setIamPolicy"]}),
            "CAN_ACCESS",
        ),
        (
            json!({"deniedPrincipals": [group], "deniedPermissions": [invoke]}),
            "UNKNOWN_INFO",
        ),
        (
            json!({"deniedPrincipals": [all], "exceptionPrincipals": [group], "deniedPermissions": [invoke]}),
            "UNKNOWN_INFO",
        ),
        (
            json!({"deniedPrincipals": [all], "deniedPermissions": [invoke], "denialCondition": tag}),
            "UNKNOWN_CONDITIONAL",
        ),
    ];
    for node in ["projects/shop", "folders/10", "organizations/1"] {
        for (rule, overall) in &cases {
            let policies = json!([{"id": "no", "rules": [{"denyRule": rule}]}]);
            run.set_deny_policies(node, &policies).unwrap();
            assert_eq!(state(&run, "a@acme.com").await, *overall, "{node} {rule}");
        }
        run.set_deny_policies(node, &json!([])).unwrap();
    }
    assert_eq!(state(&run, "a@acme.com").await, "CAN_ACCESS");
}

#[tokio::test]
async fn the_deny_explanation_climbs_from_the_project() {
    let run = world();
    let rule = json!({"deniedPrincipals": ["principalSet://goog/public:all"],
        "deniedPermissions": ["run.googleapis.com/routes.invoke"]});
    let policies = json!([{"id": "no", "displayName": "nobody", "rules": [{"denyRule": rule}]}]);
    run.set_deny_policies("folders/11", &policies).unwrap();
    let answer = ask(&run, "a@acme.com", WEB, Value::Null).await;
    assert_eq!(
        answer["accessTuple"]["permissionFqdn"],
        "run.googleapis.com/routes.invoke"
    );
    let deny = &answer["denyPolicyExplanation"];
    assert_eq!(deny["denyAccessState"], "DENY_ACCESS_STATE_DENIED");
    assert_eq!(deny["permissionDeniable"], true);
    let states: Vec<_> = deny["explainedResources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| {
            (
                r["fullResourceName"].as_str().unwrap(),
                r["denyAccessState"].as_str().unwrap(),
            )
        })
        .collect();
    let manager = "//cloudresourcemanager.googleapis.com";
    let (not, yes) = ("DENY_ACCESS_STATE_NOT_DENIED", "DENY_ACCESS_STATE_DENIED");
    let expected = [
        ("projects/shop", not),
        ("folders/11", yes),
        ("folders/10", not),
        ("organizations/1", not),
    ];
    let expected = expected.map(|(name, state)| (format!("{manager}/{name}"), state));
    assert_eq!(
        states,
        expected
            .iter()
            .map(|(n, s)| (n.as_str(), *s))
            .collect::<Vec<_>>()
    );
    let policy = &deny["explainedResources"][1]["explainedPolicies"][0];
    assert_eq!(
        policy["policy"]["name"],
        "policies/cloudresourcemanager.googleapis.com%2Ffolders%2F11/denypolicies/no"
    );
    let rule = &policy["ruleExplanations"][0];
    assert_eq!(
        rule["combinedDeniedPrincipal"]["membership"],
        "MEMBERSHIP_MATCHED"
    );
    assert_eq!(
        rule["combinedDeniedPermission"]["permissionMatchingState"],
        "PERMISSION_PATTERN_MATCHED"
    );
    assert_eq!(
        rule["combinedExceptionPrincipal"]["membership"],
        "MEMBERSHIP_NOT_MATCHED"
    );
}

#[tokio::test]
async fn a_question_that_makes_no_sense_is_refused() {
    let run = world();
    let good = json!({"principal": "a@acme.com", "fullResourceName": WEB, "permission": "run.routes.invoke"});
    let cases = [
        ("principal", "user:a@acme.com"),
        ("principal", "allUsers"),
        ("principal", ""),
        ("fullResourceName", "projects/shop"),
        ("fullResourceName", "//run.googleapis.com/projects/shop"),
        ("fullResourceName", "//storage.googleapis.com/b"),
        ("permission", "invoke"),
        ("permission", "run.*"),
        ("permission", "storage.objects.get"),
    ];
    for (field, value) in cases {
        let mut tuple = good.clone();
        tuple[field] = json!(value);
        let (status, answer) =
            post(&run, "/v3/iam:troubleshoot", json!({"accessTuple": tuple})).await;
        assert_eq!(
            (status, &answer["error"]["status"]),
            (400, &json!("INVALID_ARGUMENT")),
            "{field} {value}"
        );
    }
    for body in [
        Value::Null,
        json!({}),
        json!([]),
        json!({"accessTuple": "x"}),
    ] {
        assert_eq!(
            post(&run, "/v3/iam:troubleshoot", body.clone()).await.0,
            400,
            "{body}"
        );
    }
    let mut v2 = good.clone();
    v2["permission"] = json!("run.googleapis.com/routes.invoke");
    let (status, answer) = post(&run, "/v3/iam:troubleshoot", json!({"accessTuple": v2})).await;
    assert_eq!(
        (status, &answer["overallAccessState"]),
        (200, &json!("CAN_ACCESS"))
    );
}
