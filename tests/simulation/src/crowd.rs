//! Large worlds for one question: does anybody wait because of what somebody else does?
//!
//! One namespace does whatever it may, in one project, as much and as often as it likes. Another
//! one, in another project, is edited now and then, and each edit must be in force soon.

use serde_json::{Value, json};

use crate::{
    dice::{Dice, Stream},
    story::{Action, Setup, Story, What},
};

/// How long an edit may take until it is verified, in milliseconds. The calls that it needs take
/// up to half a second here.
pub const PROMPT_MS: u64 = 3_000;
const LENGTH_MS: u64 = 90_000;
const THEIRS: &str = "acme-prod";
const OURS: &str = "acme-dev";

/// What a namespace can do to be in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nuisance {
    /// First grants on many services, far more than the project's budget.
    ManyGrants,
    /// Members that IAM refuses without naming them.
    RefusedMembers,
    /// Every policy is nudged several times a second.
    Nudges,
    /// Policies that are made, deleted and made again.
    Churn,
    /// Rollbacks behind changes that there are not.
    Rollbacks,
    /// A ServiceAccount that many entries name gets another identity again and again.
    Accounts,
    /// Selectors that change what they select.
    Selectors,
    /// Statuses as large as they can get.
    Large,
}

impl Nuisance {
    pub const ALL: [Self; 8] = [
        Self::ManyGrants,
        Self::RefusedMembers,
        Self::Nudges,
        Self::Churn,
        Self::Rollbacks,
        Self::Accounts,
        Self::Selectors,
        Self::Large,
    ];
}

/// The story of a seed: one nuisance after the other, and from the eighth on two at once.
pub fn story(seed: u64) -> Story {
    let dice = Dice::new(seed);
    let all = Nuisance::ALL;
    let one = all[seed as usize % all.len()];
    let other = all[(seed as usize / all.len() * 3 + seed as usize + 1) % all.len()];
    let mut actions = beginning();
    actions.extend(nuisance(one, &dice));
    if seed as usize >= all.len() && other != one {
        actions.extend(nuisance(other, &dice));
    }
    actions.extend(neighbour(&dice));
    actions.sort_by_key(|a| a.at_ms);
    let setup = Setup {
        writes: 15,
        reads: 300,
        rests: false,
        ..Setup::default()
    };
    Story {
        seed,
        setup,
        actions,
        ..Story::default()
    }
}

fn at(at_ms: u64, what: What) -> Action {
    Action { at_ms, what }
}

fn policy(namespace: &str, name: &str, spec: &Value) -> What {
    What::Apply(
        json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec}),
    )
}

fn beginning() -> Vec<Action> {
    let web = format!("{OURS}/europe-west1/web");
    vec![
        at(
            0,
            What::Deploy {
                service: web,
                labels: vec![],
            },
        ),
        at(0, What::Terse(true)),
    ]
}

fn neighbour(dice: &Dice) -> Vec<Action> {
    let mut d = dice.stream("neighbour");
    let mut actions = vec![];
    let mut now = 2_000 + d.between(0, 3_000);
    while now < LENGTH_MS {
        let members = ["user:a@acme.com", "user:b@acme.com", "user:c@acme.com"];
        let mut invokers: Vec<Value> = members
            .iter()
            .filter(|_| d.chance(0.5))
            .map(|m| json!({"member": m}))
            .collect();
        invokers.push(json!({"member": "user:always@acme.com"}));
        let spec = json!({"project": OURS, "mode": "Enforce", "membership": "Authoritative",
            "services": [{"name": "web", "region": "europe-west1"}], "invokers": invokers});
        actions.push(at(now, policy("team-b", "neighbour", &spec)));
        let (namespace, name) = ("team-b".to_owned(), "neighbour".to_owned());
        actions.push(at(now + PROMPT_MS, What::Expect { namespace, name }));
        now += PROMPT_MS + 1_500 + d.between(0, 6_000);
    }
    actions
}

/// Policies of the nuisance, each with services of its own.
fn policies(count: usize, mut spec: impl FnMut(usize) -> Value) -> Vec<Action> {
    (0..count)
        .map(|i| at(1_000, policy("team-a", &format!("p{i}"), &spec(i))))
        .collect()
}

fn services(count: usize) -> Vec<Action> {
    let deploy = |i: usize| What::Deploy {
        service: format!("{THEIRS}/europe-west1/s{i}"),
        labels: vec![("team".to_owned(), "pay".to_owned())],
    };
    (0..count).map(|i| at(0, deploy(i))).collect()
}

fn named(range: std::ops::Range<usize>) -> Value {
    range
        .map(|i| json!({"name": format!("s{i}"), "region": "europe-west1"}))
        .collect()
}

fn enforced(services: &Value, invokers: &Value) -> Value {
    json!({"project": THEIRS, "mode": "Enforce", "interval": "10s", "services": services,
        "invokers": invokers})
}

/// The same for every policy, again and again.
fn again(every_ms: u64, policies: usize, mut act: impl FnMut(usize, u64) -> What) -> Vec<Action> {
    let times = (2_000..LENGTH_MS).step_by(every_ms.max(1) as usize);
    times
        .enumerate()
        .map(|(n, now)| at(now, act(n % policies.max(1), now)))
        .collect()
}

fn annotate(policy: usize, key: &str, value: String) -> What {
    What::Annotate {
        namespace: "team-a".into(),
        name: format!("p{policy}"),
        key: format!("run-invoker.dev/{key}"),
        value: Some(value),
    }
}

fn nuisance(kind: Nuisance, dice: &Dice) -> Vec<Action> {
    let mut d = dice.stream(&format!("{kind:?}"));
    let mut actions = services(64);
    let ordinary = |i: usize| {
        enforced(
            &named(i * 2..i * 2 + 2),
            &json!([{"member": format!("user:u{i}@acme.com")}]),
        )
    };
    match kind {
        Nuisance::ManyGrants => actions.extend(policies(3, |i| {
            enforced(
                &named(0..64),
                &json!([{"member": format!("user:u{i}@acme.com")}]),
            )
        })),
        Nuisance::RefusedMembers => actions.extend(refused(&mut d)),
        Nuisance::Nudges => {
            actions.extend(policies(16, ordinary));
            let every = d.between(40, 150);
            actions.extend(again(every, 16, |i, now| {
                annotate(i, "requested-at", now.to_string())
            }));
        }
        Nuisance::Churn => {
            actions.extend(policies(16, ordinary));
            actions.extend(churn(&mut d, ordinary));
        }
        Nuisance::Rollbacks => {
            actions.extend(policies(16, ordinary));
            let names = "none-20261124-120000000-aaaaaa,".repeat(60);
            actions.extend(again(300, 16, |i, now| {
                annotate(i, "rollback", format!("{names}{now}"))
            }));
        }
        Nuisance::Accounts => actions.extend(accounts(&mut d)),
        Nuisance::Selectors => actions.extend(selectors()),
        Nuisance::Large => actions.extend(policies(8, large)),
    }
    actions
}

fn refused(d: &mut Stream) -> Vec<Action> {
    let ghosts: Vec<String> = (0..40).map(|i| format!("ghost{i}@acme.com")).collect();
    let unknown = |email: &String| What::Identity {
        email: email.clone(),
        exists: false,
    };
    let mut actions: Vec<Action> = ghosts.iter().map(|g| at(0, unknown(g))).collect();
    let mut invokers: Vec<Value> = ghosts
        .iter()
        .map(|g| json!({"member": format!("user:{g}")}))
        .collect();
    invokers.extend((0..40).map(|i| json!({"member": format!("user:good{i}@acme.com")})));
    d.0.shuffle(&mut invokers);
    let invokers = json!(invokers);
    actions.extend(policies(16, |i| {
        enforced(&named(i * 4..i * 4 + 4), &invokers)
    }));
    actions
}

fn churn(d: &mut Stream, spec: impl Fn(usize) -> Value) -> Vec<Action> {
    let gone = |i: usize| What::Delete {
        kind: "InvokerPolicy".into(),
        namespace: "team-a".into(),
        name: format!("p{i}"),
    };
    let every = d.between(100, 400);
    again(every, 16, |i, now| {
        if (now / every / 16).is_multiple_of(2) {
            gone(i)
        } else {
            policy("team-a", &format!("p{i}"), &spec(i))
        }
    })
}

fn accounts(d: &mut Stream) -> Vec<Action> {
    let account = json!([{"kubernetesServiceAccount": {"name": "web"}}]);
    let mut actions = policies(32, |i| enforced(&named(i * 2..i * 2 + 2), &account));
    let every = d.between(100, 1_000);
    actions.extend(again(every, 1, |_, now| {
        let email = format!("w{}@acme-prod.iam.gserviceaccount.com", now % 7);
        What::Apply(
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {
            "name": "web", "namespace": "team-a",
            "annotations": {"iam.gke.io/gcp-service-account": email}}}),
        )
    }));
    actions
}

fn selectors() -> Vec<Action> {
    let spec = |i: usize, team: &str| {
        let selector = json!([{"selector": {"matchLabels": {"team": team}}}]);
        enforced(
            &selector,
            &json!([{"member": format!("user:u{i}@acme.com")}]),
        )
    };
    let mut actions = policies(16, |i| spec(i, "pay"));
    actions.extend(again(250, 16, |i, now| {
        let team = if (now / 4_000).is_multiple_of(2) {
            "shop"
        } else {
            "pay"
        };
        policy("team-a", &format!("p{i}"), &spec(i, team))
    }));
    actions
}

/// Many members under conditions as long as they may be.
fn large(i: usize) -> Value {
    let expression = format!("request.path != '/{}'", "x".repeat(1_000));
    let invokers: Vec<Value> = (0..60)
        .map(|k| {
            json!({"member": format!("user:u{i}-{k}@acme.com"),
                "condition": {"title": format!("long {i}"), "expression": expression}})
        })
        .collect();
    enforced(&named(0..16), &json!(invokers))
}
