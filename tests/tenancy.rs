//! Nothing that a namespace writes makes a call for what it may not touch, nor a grant for whom it
//! may not declare.
//!
//! What is allowed is decided here a second time, by other code, from the text of the guardrails:
//! `allowed` shares nothing with `src/core/intent/guardrail`. Random worlds go through the index
//! and the plan; one of them goes through the whole operator on the sandbox, where the journal
//! shows every call.
#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use common::{Operator, Setup, eventually};
use jiff::Timestamp;
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use run_invoker::{
    api::{InvokerGuardrail, InvokerPolicy},
    cloudrun::Listing,
    iam::{Ingress, Policy, RunService, ServiceInfo},
    index::{Index, PlanInputs},
    intent::Guardrail,
    plan::{self, Settings},
};
use sandbox::{Api as Side, Sandbox};
use serde_json::{Value, json};

const NAMESPACES: &[&str] = &["team-a", "team-b", "search"];
const PROJECTS: &[&str] = &["acme-prod", "acme-test", "other-prod"];
const SERVICES: &[&str] = &["pay-web", "pay-api", "search", "vault"];
const MEMBERS: &[&str] = &[
    "user:ada@acme.com",
    "user:ADA@acme.com",
    "user:x@evil.org",
    "user:x@evil-acme.com",
    "group:ops@acme.com",
    "serviceAccount:w@acme-prod.iam.gserviceaccount.com",
    "domain:acme.com",
    "allUsers",
    "allAuthenticatedUsers",
    "principal://iam.googleapis.com/projects/6/locations/global/workloadIdentityPools/p/subject/ada@acme.com",
    "principalSet://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/*",
];
const REGION: &str = "europe-west1";

/// `*` and `?` as shells mean them, by recursion.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.first(), text.first()) {
        (None, None) => true,
        (Some(b'*'), _) => {
            glob(&pattern[1..], text) || (!text.is_empty() && glob(pattern, &text[1..]))
        }
        (Some(b'?'), Some(_)) => glob(&pattern[1..], &text[1..]),
        (Some(p), Some(t)) if p == t => glob(&pattern[1..], &text[1..]),
        _ => false,
    }
}
fn fits_one(list: &Value, text: &str) -> bool {
    list.as_array().is_none_or(|l| {
        l.iter()
            .any(|p| glob(p.as_str().unwrap().as_bytes(), text.as_bytes()))
    })
}
fn selecting<'a>(rails: &'a [Value], namespace: &'a str) -> impl Iterator<Item = &'a Value> {
    rails
        .iter()
        .map(|r| &r["spec"])
        .filter(move |s| fits_one(&s["namespaces"], namespace))
}
fn may_name(rails: &[Value], namespace: &str, project: &str) -> bool {
    selecting(rails, namespace).all(|s| fits_one(&s["projects"], project))
}
fn may_touch(rails: &[Value], namespace: &str, project: &str, service: &str) -> bool {
    may_name(rails, namespace, project)
        && selecting(rails, namespace).all(|s| fits_one(&s["services"], service))
}
/// Whether a member may be declared without an end.
fn may_declare(rails: &[Value], namespace: &str, member: &str) -> bool {
    let public = member.starts_with("all");
    let everybody = member.ends_with("/*");
    let fits = |pattern: &str| {
        let member = member.to_lowercase();
        let (kind, rest) = member.split_once(':').unwrap();
        match pattern.split_once(':') {
            Some((k, p)) => {
                k.to_lowercase() == kind && glob(p.to_lowercase().as_bytes(), rest.as_bytes())
            }
            None if pattern == "*" => !everybody,
            None => {
                ["user", "group", "serviceaccount"].contains(&kind)
                    && glob(pattern.to_lowercase().as_bytes(), rest.as_bytes())
            }
        }
    };
    let mut selected = selecting(rails, namespace).peekable();
    if selected.peek().is_none() {
        return !public && !everybody;
    }
    selected.all(|s| {
        let lifetime = s["maxLifetime"].is_null();
        let allowed = match &s["members"] {
            _ if public => s["public"] == "Allow",
            Value::Array(list) => {
                let list: Vec<&str> = list.iter().map(|p| p.as_str().unwrap()).collect();
                let named_set = list
                    .iter()
                    .any(|p| p.starts_with("principalSet:") && fits(p));
                list.iter().any(|p| fits(p)) && (!everybody || named_set || s["public"] == "Allow")
            }
            _ => !everybody || s["public"] == "Allow",
        };
        lifetime && allowed
    })
}

#[derive(Debug, Clone)]
struct World {
    rails: Vec<Value>,
    policies: Vec<Value>,
}

fn some(from: &'static [&'static str]) -> impl Strategy<Value = Option<Vec<&'static str>>> {
    proptest::option::of(
        proptest::collection::btree_set(proptest::sample::select(from), 1..3)
            .prop_map(|s| s.into_iter().collect()),
    )
}
fn world() -> impl Strategy<Value = World> {
    let rail = (
        some(&["team-*", "team-a", "search", "*"]),
        some(&["acme-*", "acme-prod", "other-prod"]),
        some(&["pay-*", "search", "vaul?"]),
        some(&[
            "*@acme.com",
            "*",
            "user:*",
            "domain:acme.com",
            "serviceAccount:*@acme-*.iam.gserviceaccount.com",
            "principalSet://iam.googleapis.com/projects/1/*",
        ]),
        any::<bool>(),
        proptest::bool::weighted(0.2),
    )
        .prop_map(|(namespaces, projects, services, members, public, lifetime)| {
            json!({"namespaces": namespaces, "projects": projects, "services": services, "members": members,
                "public": if public { "Allow" } else { "Deny" }, "maxLifetime": lifetime.then_some("24h")})
        });
    let target = prop_oneof![
        3 => proptest::sample::select(SERVICES).prop_map(|s| json!({"name": s, "region": REGION})),
        1 => Just(json!({"selector": {"matchLabels": {"all": "yes"}}})),
    ];
    let policy = (
        proptest::sample::select(NAMESPACES),
        proptest::sample::select(PROJECTS),
        proptest::collection::vec(target, 1..4),
        proptest::collection::btree_set(proptest::sample::select(MEMBERS), 1..5),
        any::<[bool; 3]>(),
    );
    (proptest::collection::vec(rail, 0..4), proptest::collection::vec(policy, 1..6)).prop_map(|(rails, policies)| World {
        rails: rails
            .into_iter()
            .enumerate()
            .map(|(n, spec)| json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerGuardrail", "metadata": {"name": format!("g{n}")}, "spec": spec}))
            .collect(),
        policies: policies
            .into_iter()
            .enumerate()
            .map(|(n, (namespace, project, services, members, b))| {
                json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy",
                    "metadata": {"name": format!("p{n}"), "namespace": namespace, "uid": format!("u{n}"), "generation": 1},
                    "spec": {"project": project, "services": services, "invokers": members.iter().map(|m| json!({"member": m})).collect::<Vec<_>>(),
                        "mode": if b[0] || b[1] { "Enforce" } else { "Audit" }, "membership": if b[2] { "Additive" } else { "Authoritative" }}})
            })
            .collect(),
    })
}

fn names(policy: &Value, service: &str) -> bool {
    let targets = policy["spec"]["services"].as_array().unwrap();
    targets
        .iter()
        .any(|t| t["name"] == service || t["selector"].is_object())
}
fn all_services() -> impl Iterator<Item = (&'static str, &'static str)> {
    PROJECTS
        .iter()
        .flat_map(|p| SERVICES.iter().map(move |s| (*p, *s)))
}
fn namespace(policy: &Value) -> &str {
    policy["metadata"]["namespace"].as_str().unwrap()
}
fn index(world: &World, guardrails_first: bool) -> Index {
    let mut index = Index::new(Settings::default());
    let rails = |index: &mut Index| {
        for rail in &world.rails {
            let object: InvokerGuardrail = serde_json::from_value(rail.clone()).unwrap();
            index.apply_guardrail(Guardrail::from_object(&object));
        }
    };
    if guardrails_first {
        rails(&mut index);
    }
    for policy in &world.policies {
        let object: InvokerPolicy = serde_json::from_value(policy.clone()).unwrap();
        index.apply_policy(&object, Duration::ZERO);
    }
    if !guardrails_first {
        rails(&mut index);
    }
    for project in PROJECTS {
        if index.scopes(project).is_empty() {
            continue;
        }
        let services = SERVICES
            .iter()
            .map(|s| ServiceInfo {
                service: RunService::new(*project, REGION, *s),
                uid: "u".into(),
                labels: BTreeMap::from([("all".into(), "yes".into())]).into(),
                invoker_iam_disabled: false,
                ingress: Ingress::All,
                iap: false,
            })
            .collect();
        index.apply_listing(
            &(*project).into(),
            1,
            Ok(Listing {
                services,
                unreachable: BTreeSet::new(),
            }),
        );
    }
    index
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_namespace_reaches_what_its_guardrails_do_not_allow(world in world(), guardrails_first: bool) {
        let index = index(&world, guardrails_first);
        let settings = Settings::default();
        for project in PROJECTS {
            let someone = world.policies.iter().any(|p| p["spec"]["project"] == *project && may_name(&world.rails, namespace(p), project));
            prop_assert!(someone || index.scopes(project).is_empty(), "{project} would be listed for nobody");
        }
        for (project, name) in all_services() {
            let service = RunService::new(project, REGION, name);
            let inputs = PlanInputs::of(&service, &index);
            let behind: Vec<&Value> = world
                .policies
                .iter()
                .filter(|p| p["spec"]["project"] == project && names(p, name) && may_touch(&world.rails, namespace(p), project, name))
                .collect();
            prop_assert_eq!(inputs.needs_read(Timestamp::UNIX_EPOCH), !behind.is_empty(), "{}", service);
            let live = Policy::default();
            let input = inputs.input(&live, &settings, Timestamp::UNIX_EPOCH);
            let plan = plan::plan(&input);
            prop_assert_eq!(plan::check(&plan, &input), Ok(()));
            // Granted is exactly what an enforced policy declares that may.
            let wanted: BTreeSet<String> = behind
                .iter()
                .filter(|p| p["spec"]["mode"] == "Enforce")
                .flat_map(|p| {
                    let invokers = p["spec"]["invokers"].as_array().unwrap().iter().map(|i| i["member"].as_str().unwrap());
                    invokers.filter(|m| may_declare(&world.rails, namespace(p), m)).map(str::to_lowercase)
                })
                .collect();
            let granted: BTreeSet<String> = plan.grants.keys().map(|g| g.principal.as_str().to_lowercase()).collect();
            prop_assert_eq!(granted, wanted, "{}", service);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_leaves_the_operator_for_what_a_namespace_may_not_touch() {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    for namespace in NAMESPACES {
        common::namespace(&client, namespace).await;
    }
    for (project, name) in all_services() {
        sandbox.run.deploy(project, REGION, name, &[("all", "yes")]);
    }
    // A fixed seed: the same world every time, and one that forbids something.
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]),
    );
    let world = loop {
        let world = world().new_tree(&mut runner).unwrap().current();
        let touches = |p: &Value, n: &str| {
            may_touch(
                &world.rails,
                namespace(p),
                p["spec"]["project"].as_str().unwrap(),
                n,
            )
        };
        let forbidden = world
            .policies
            .iter()
            .filter(|p| SERVICES.iter().any(|n| names(p, n) && !touches(p, n)))
            .count();
        let allowed = world
            .policies
            .iter()
            .filter(|p| SERVICES.iter().any(|n| names(p, n) && touches(p, n)))
            .count();
        if world.rails.len() >= 2 && forbidden >= 2 && allowed >= 2 {
            break world;
        }
    };
    let guardrails: Api<InvokerGuardrail> = Api::all(client.clone());
    for rail in &world.rails {
        guardrails
            .create(
                &PostParams::default(),
                &serde_json::from_value(rail.clone()).unwrap(),
            )
            .await
            .unwrap();
    }
    let operator = Operator::start(client.clone(), sandbox.run_url(), &Setup::default()).await;
    for policy in &world.policies {
        let mut policy = policy.clone();
        policy["metadata"]
            .as_object_mut()
            .unwrap()
            .retain(|k, _| k == "name" || k == "namespace");
        let api: Api<InvokerPolicy> = Api::namespaced(client.clone(), namespace(&policy));
        api.create(
            &PostParams::default(),
            &serde_json::from_value(policy.clone()).unwrap(),
        )
        .await
        .unwrap();
    }
    eventually(
        Duration::from_secs(20),
        "every policy has its say",
        || async {
            let all: Api<InvokerPolicy> = Api::all(client.clone());
            let open = |p: &InvokerPolicy| {
                p.status
                    .as_ref()
                    .is_none_or(|s| s.observed_generation.is_none())
            };
            let waiting = all
                .list(&ListParams::default())
                .await
                .map_err(|e| e.to_string())?
                .items
                .into_iter()
                .filter(open)
                .count();
            if waiting == 0 {
                Ok(())
            } else {
                Err(format!("{waiting} wait"))
            }
        },
    )
    .await;
    let calls = sandbox.journal.since(0, |e| e.api == Side::Run);
    assert!(!calls.is_empty());
    for call in &calls {
        let path: Vec<&str> = call.path().split('/').collect();
        let project = path[path.iter().position(|p| *p == "projects").unwrap() + 1];
        let service = path.last().unwrap().split(':').next().unwrap();
        let asks = |p: &&Value| p["spec"]["project"] == project;
        let allowed = if service == "services" {
            world
                .policies
                .iter()
                .filter(asks)
                .any(|p| may_name(&world.rails, namespace(p), project))
        } else {
            world.policies.iter().filter(asks).any(|p| {
                names(p, service) && may_touch(&world.rails, namespace(p), project, service)
            })
        };
        assert!(
            allowed,
            "{} {} serves nobody who may: {world:#?}",
            call.method, call.target
        );
    }
    operator.stop().await;
}
