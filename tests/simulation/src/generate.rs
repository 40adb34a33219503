//! A story from a seed: people with GitOps, a platform team, owners of accounts and services,
//! rivals; weather; crashes.
//!
//! Small worlds find most: one to three services, one to four policies, two namespaces, and many
//! small gaps.

use serde_json::{Value, json};

use crate::{
    dice::{Dice, Stream},
    story::{Action, Agreement, Crash, Moment, Setup, Story, What},
    weather::weather,
    world::{FOLDER, ORGANIZATION},
};

const PROJECT: &str = "acme-prod";
const OTHER: &str = "acme-dev";
const NAMESPACES: [&str; 2] = ["team-a", "team-b"];
const SERVICES: [&str; 4] = [
    "acme-prod/europe-west1/web",
    "acme-prod/europe-west1/api",
    "acme-prod/us-central1/web",
    "acme-dev/europe-west1/web",
];
const MEMBERS: [&str; 9] = [
    "user:a@acme.com",
    "group:b@acme.com",
    "serviceAccount:c@acme-prod.iam.gserviceaccount.com",
    "user:D@Acme.com",
    "user:e@acme.com",
    "user:ghost1@acme.com",
    "group:ghost2@acme.com",
    "user:m@evil.com",
    "serviceAccount:service-1@gcp-sa-iap.iam.gserviceaccount.com",
];
const INTRUDERS: [&str; 5] = [
    "user:intruder@evil.com",
    "user:a@acme.com",
    "serviceAccount:Service-2@GCP-sa-run.iam.gserviceaccount.com",
    "allUsers",
    "user:d@acme.com",
];
/// Names of records that the operator did not write begin so.
pub const FORGED: &str = "forged-";
const ROLE: &str = "roles/run.invoker";

/// Who and what there is in a world.
struct Cast {
    services: Vec<&'static str>,
    policies: Vec<(&'static str, String)>,
    /// Rivals go for these.
    rivals: bool,
    guardrails: bool,
    accounts: bool,
}

/// A policy as its author has it in Git.
#[derive(Clone)]
struct Draft {
    project: &'static str,
    services: Value,
    invokers: Vec<Value>,
    spec: Value,
}

/// The story of a seed.
pub fn story(seed: u64) -> Story {
    let dice = Dice::new(seed);
    let mut cast = dice.stream("cast");
    let setup = setup(&dice);
    let length_ms = 20_000 + cast.between(0, 220_000);
    let n = 1 + cast.below(3);
    let mut services: Vec<&'static str> = SERVICES.to_vec();
    cast.0.shuffle(&mut services);
    services.truncate(n);
    let policies: Vec<(&'static str, String)> = (0..1 + cast.below(4))
        .map(|i| (*cast.pick(&NAMESPACES), format!("p{i}")))
        .collect();
    let cast = Cast {
        services,
        policies,
        rivals: cast.chance(0.6),
        guardrails: cast.chance(0.35),
        accounts: cast.chance(0.3),
    };
    let mut actions = beginning(&dice, &cast);
    actions.extend(authors(&dice, &cast, length_ms));
    if cast.guardrails {
        actions.extend(platform(&dice, length_ms));
    }
    if cast.accounts {
        actions.extend(accounts(&dice, length_ms));
    }
    actions.extend(owners(&dice, &cast, length_ms));
    actions.extend(projects(&dice, length_ms));
    if cast.rivals {
        actions.extend(rivals(&dice, &cast, length_ms));
    }
    actions.extend(operations(&dice, &setup, length_ms));
    actions.extend(agreements(&dice, &cast, length_ms));
    actions.extend(requests(&dice, &cast, length_ms));
    actions.extend(forgers(&dice, &cast, length_ms));
    if setup.inherited {
        actions.extend(above(&dice, length_ms));
    }
    if setup.events {
        actions.extend(publishers(&dice, &cast, length_ms));
    }
    actions.sort_by_key(|a| a.at_ms);
    Story {
        seed,
        weather: weather(&dice, length_ms),
        crashes: crashes(&dice, &setup, length_ms),
        setup,
        actions,
    }
}

fn setup(dice: &Dice) -> Setup {
    let mut d = dice.stream("setup");
    let replicas = if d.chance(0.3) { 2 } else { 1 };
    let short = d.chance(0.3);
    Setup {
        replicas,
        shards: if replicas == 2 && d.chance(0.4) { 2 } else { 1 },
        lease_ms: if short { 7_000 } else { 15_000 },
        renew_ms: if short { 1_500 } else { 5_000 },
        max_removals: *d.pick(&[20, 20, 1, 2]),
        breaker: *d.pick(&[50, 50, 50, 3]),
        reads: *d.pick(&[300, 300, 60]),
        writes: *d.pick(&[60, 15, 15, 4]),
        events: d.chance(0.25),
        inherited: dice.stream("inherited").chance(0.3),
        rests: true,
    }
}

/// People who grant above the services, where one grant reaches all of them.
fn above(dice: &Dice, length_ms: u64) -> Vec<Action> {
    let mut d = dice.stream("above");
    let grant = |d: &mut Stream, at_ms: u64| {
        let node = *d.pick(&[
            "projects/acme-prod",
            "projects/acme-dev",
            FOLDER,
            ORGANIZATION,
        ]);
        let role = *d.pick(&[ROLE, "roles/run.admin", "roles/viewer"]);
        let members = [MEMBERS[0], MEMBERS[1], MEMBERS[3], MEMBERS[4], INTRUDERS[0]];
        let what = What::Above {
            node: node.into(),
            role: role.into(),
            member: (*d.pick(&members)).into(),
            add: d.chance(0.6),
        };
        at(at_ms, what)
    };
    let before = d.below(3);
    let during = d.below(4);
    let mut all: Vec<Action> = (0..before).map(|_| grant(&mut d, 0)).collect();
    for _ in 0..during {
        let when = d.between(1, length_ms);
        all.push(grant(&mut d, when));
    }
    all
}

fn at(at_ms: u64, what: What) -> Action {
    Action { at_ms, what }
}

fn labels(d: &mut Stream) -> Vec<(String, String)> {
    let mut labels = vec![];
    if d.chance(0.6) {
        labels.push(("team".to_owned(), (*d.pick(&["pay", "shop"])).to_owned()));
    }
    labels
}

fn beginning(dice: &Dice, cast: &Cast) -> Vec<Action> {
    let mut d = dice.stream("beginning");
    let mut actions = vec![];
    for email in ["ghost1@acme.com", "ghost2@acme.com"] {
        actions.push(at(
            0,
            What::Identity {
                email: email.into(),
                exists: false,
            },
        ));
    }
    actions.push(at(0, What::Terse(d.chance(0.5))));
    for s in &cast.services {
        if d.chance(0.9) {
            actions.push(at(
                0,
                What::Deploy {
                    service: (*s).into(),
                    labels: labels(&mut d),
                },
            ));
        }
        // What others granted before.
        for _ in 0..d.below(3) {
            let (role, condition) = foreign(&mut d);
            let member = (*d.pick(&INTRUDERS)).to_owned();
            let condition = conditional(&member, condition);
            actions.push(at(
                0,
                What::Member {
                    service: (*s).into(),
                    role,
                    member,
                    add: true,
                    condition,
                },
            ));
        }
    }
    actions
}

/// Mostly invokers; sometimes another role, or under a condition of somebody's own.
fn foreign(d: &mut Stream) -> (String, Option<Value>) {
    match d.below(6) {
        0 => ("roles/run.admin".into(), None),
        1 => (
            ROLE.into(),
            Some(json!({"title": "theirs", "expression": "request.path == '/x'"})),
        ),
        _ => (ROLE.into(), None),
    }
}

/// IAM takes no condition on everybody.
fn conditional(member: &str, condition: Option<Value>) -> Option<Value> {
    condition.filter(|_| !member.starts_with("all"))
}

fn entry(d: &mut Stream, cast: &Cast, now_ms: u64) -> Value {
    if cast.accounts && d.chance(0.3) {
        return json!({"kubernetesServiceAccount": {"name": *d.pick(&["web", "job"])}});
    }
    let mut entry = json!({"member": *d.pick(&MEMBERS)});
    match d.below(10) {
        // Ends within the story, or long after.
        0 => entry["expires"] = json!(expiry(now_ms + d.between(5_000, 120_000))),
        1 => entry["expires"] = json!("2099-01-01T00:00:00Z"),
        2 => {
            entry["condition"] =
                json!({"title": "office", "expression": "request.time.getHours('UTC') < 18"})
        }
        _ => {}
    }
    entry
}

fn expiry(ms: u64) -> String {
    let begin: jiff::Timestamp = crate::world::BEGINNING.parse().expect("a time");
    let at = begin + jiff::SignedDuration::from_secs((ms / 1000) as i64);
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn draft(d: &mut Stream, cast: &Cast, now_ms: u64) -> Draft {
    let service = *d.pick(&cast.services);
    let project = if service.starts_with(OTHER) {
        OTHER
    } else {
        PROJECT
    };
    let mut targets = vec![];
    let of = |s: &&&str| s.split('/').next() == Some(project);
    for s in cast.services.iter().filter(of) {
        if *s == service || d.chance(0.3) {
            let p: Vec<&str> = s.split('/').collect();
            targets.push(json!({"name": p[2], "region": p[1]}));
        }
    }
    if d.chance(0.25) {
        let mut selector =
            json!({"selector": {"matchLabels": {"team": *d.pick(&["pay", "shop"])}}});
        if d.chance(0.3) {
            selector["regions"] = json!(["europe-west1"]);
        }
        if d.chance(0.5) {
            targets.clear();
        }
        targets.push(selector);
    }
    let mut invokers: Vec<Value> = vec![];
    for _ in 0..1 + d.below(4) {
        let e = entry(d, cast, now_ms);
        if !invokers.iter().any(|i| {
            i["member"] == e["member"]
                && i["kubernetesServiceAccount"] == e["kubernetesServiceAccount"]
        }) {
            invokers.push(e);
        }
    }
    let mut spec = json!({
        "mode": if d.chance(0.8) { "Enforce" } else { "Audit" },
        "membership": if d.chance(0.6) { "Authoritative" } else { "Additive" },
        "onDelete": if d.chance(0.85) { "Revoke" } else { "Retain" },
        "interval": *d.pick(&["10s", "20s", "1m", "1m"]),
    });
    if d.chance(0.1) {
        spec["role"] = json!("roles/run.servicesInvoker");
    }
    Draft {
        project,
        services: json!(targets),
        invokers,
        spec,
    }
}

impl Draft {
    fn object(&self, namespace: &str, name: &str) -> Value {
        let mut spec = self.spec.clone();
        spec["project"] = json!(self.project);
        spec["services"] = self.services.clone();
        spec["invokers"] = json!(self.invokers);
        if self.invokers.is_empty() {
            spec["allowEmpty"] = json!(true);
        }
        json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec})
    }

    fn edit(&mut self, d: &mut Stream, cast: &Cast, now_ms: u64) {
        match d.below(12) {
            0..=2 if self.invokers.len() > 1 => {
                let i = d.below(self.invokers.len());
                self.invokers.remove(i);
            }
            0..=4 => {
                let e = entry(d, cast, now_ms);
                let same = |i: &Value| {
                    i["member"] == e["member"]
                        && i["kubernetesServiceAccount"] == e["kubernetesServiceAccount"]
                };
                if !self.invokers.iter().any(same) {
                    self.invokers.push(e);
                }
            }
            5 => {
                self.spec["mode"] = json!(if self.spec["mode"] == "Audit" {
                    "Enforce"
                } else {
                    "Audit"
                })
            }
            6 => self.spec["membership"] = json!(*d.pick(&["Authoritative", "Additive"])),
            7 => self.spec["onDelete"] = json!(*d.pick(&["Revoke", "Retain", "Revoke"])),
            8 => self.spec["suspend"] = json!(self.spec["suspend"] != true),
            9 => {
                let other = draft(d, cast, now_ms);
                if other.project == self.project {
                    self.services = other.services;
                }
            }
            10 => self.spec["interval"] = json!(*d.pick(&["10s", "30s", "1m"])),
            _ => self.invokers = draft(d, cast, now_ms).invokers,
        }
    }
}

/// People with GitOps.
fn authors(dice: &Dice, cast: &Cast, length_ms: u64) -> Vec<Action> {
    let mut actions = vec![];
    for (i, (namespace, name)) in cast.policies.iter().enumerate() {
        let mut d = dice.stream(&format!("author {i}"));
        let mut now = if d.chance(0.5) {
            0
        } else {
            d.gap().as_millis() as u64
        };
        let mut current = draft(&mut d, cast, now);
        let (mut ns, mut name) = (*namespace, name.clone());
        let mut there = true;
        actions.push(at(now, What::Apply(current.object(ns, &name))));
        let deeds = 1 + d.below(7);
        for k in 0..deeds {
            now = (now + d.gap().as_millis() as u64).min(length_ms);
            let policy = || "InvokerPolicy".to_owned();
            let delete = |ns: &str, name: &str| What::Delete {
                kind: policy(),
                namespace: ns.into(),
                name: name.into(),
            };
            if !there {
                there = true;
                if d.chance(0.5) {
                    current = draft(&mut d, cast, now);
                }
                actions.push(at(now, What::Apply(current.object(ns, &name))));
                continue;
            }
            match d.below(16) {
                0 | 1 => {
                    actions.push(at(now, delete(ns, &name)));
                    there = false;
                }
                2 => {
                    // A rename in Git: the new object first, then the old one goes.
                    let fresh = format!("{name}-{k}");
                    actions.push(at(now, What::Apply(current.object(ns, &fresh))));
                    now += d.gap().as_millis() as u64;
                    actions.push(at(now, delete(ns, &name)));
                    name = fresh;
                }
                3 => {
                    // A move between namespaces.
                    let to = if ns == NAMESPACES[0] {
                        NAMESPACES[1]
                    } else {
                        NAMESPACES[0]
                    };
                    actions.push(at(now, What::Apply(current.object(to, &name))));
                    now += d.gap().as_millis() as u64;
                    actions.push(at(now, delete(ns, &name)));
                    ns = to;
                }
                4 => {
                    // Deleted and made again under the name.
                    actions.push(at(now, delete(ns, &name)));
                    now += d.between(0, 400);
                    if d.chance(0.5) {
                        current.edit(&mut d, cast, now);
                    }
                    actions.push(at(now, What::Apply(current.object(ns, &name))));
                }
                5 => {
                    let how = *d.pick(&[
                        Agreement::Shown,
                        Agreement::Shown,
                        Agreement::Stale,
                        Agreement::Garbage,
                    ]);
                    actions.push(at(
                        now,
                        What::Approve {
                            namespace: ns.into(),
                            name: name.clone(),
                            how,
                        },
                    ));
                }
                6 => {
                    let newest = d.chance(0.7).then(|| d.below(3));
                    actions.push(at(
                        now,
                        What::RollBack {
                            namespace: ns.into(),
                            name: name.clone(),
                            newest,
                        },
                    ));
                }
                7 => actions.push(at(
                    now,
                    What::Annotate {
                        namespace: ns.into(),
                        name: name.clone(),
                        key: "run-invoker.dev/requested-at".into(),
                        value: Some(now.to_string()),
                    },
                )),
                8 if d.chance(0.4) => {
                    actions.push(at(
                        now,
                        What::DropFinalizer {
                            namespace: ns.into(),
                            name: name.clone(),
                        },
                    ));
                }
                9 if d.chance(0.3) => {
                    // What an older definition let in, or a newer one.
                    let mut object = current.object(ns, &name);
                    object["spec"]["mode"] = json!("Weird");
                    actions.push(at(
                        now,
                        What::Force {
                            plural: "invokerpolicies".into(),
                            object,
                        },
                    ));
                    now += d.gap().as_millis() as u64;
                    actions.push(at(now, What::Apply(current.object(ns, &name))));
                }
                _ => {
                    current.edit(&mut d, cast, now);
                    actions.push(at(now, What::Apply(current.object(ns, &name))));
                }
            }
        }
        // Whoever is asked agrees in the end, or at least tries to.
        if d.chance(0.5) {
            now = (now + d.gap().as_millis() as u64).min(length_ms + 60_000);
            actions.push(at(
                now,
                What::Approve {
                    namespace: ns.into(),
                    name,
                    how: Agreement::Shown,
                },
            ));
        }
    }
    actions
}

/// Guardrails that come, tighten, go, become unreadable.
fn platform(dice: &Dice, length_ms: u64) -> Vec<Action> {
    let mut d = dice.stream("platform");
    let mut actions = vec![];
    let mut now = if d.chance(0.6) {
        0
    } else {
        d.between(0, length_ms / 2)
    };
    for _ in 0..1 + d.below(4) {
        let name = *d.pick(&["wide", "narrow"]);
        let mut spec = json!({});
        if d.chance(0.4) {
            spec["namespaces"] = json!([*d.pick(&["team-a", "team-*"])]);
        }
        match d.below(6) {
            0 => {
                spec["members"] = json!([
                    "*@acme.com",
                    "serviceAccount:*@acme-prod.iam.gserviceaccount.com"
                ])
            }
            1 => spec["members"] = json!(["user:*@acme.com"]),
            2 => spec["services"] = json!(["api*"]),
            3 => spec["projects"] = json!(["acme-prod"]),
            4 => {
                spec["maxRemovals"] = json!(d.below(3));
                if d.chance(0.5) {
                    spec["approvals"] = json!("Approver");
                }
            }
            _ => spec["public"] = json!("Allow"),
        }
        let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerGuardrail", "metadata": {"name": name}, "spec": spec});
        actions.push(at(now, What::Apply(object.clone())));
        now = (now + d.gap().as_millis() as u64).min(length_ms);
        if d.chance(0.4) {
            actions.push(at(
                now,
                What::Delete {
                    kind: "InvokerGuardrail".into(),
                    namespace: String::new(),
                    name: name.into(),
                },
            ));
        } else if d.chance(0.2) {
            let mut broken = object.clone();
            broken["spec"]["public"] = json!("Perhaps");
            actions.push(at(
                now,
                What::Force {
                    plural: "invokerguardrails".into(),
                    object: broken,
                },
            ));
            now += d.gap().as_millis() as u64;
            actions.push(at(now, What::Apply(object)));
        }
        now = (now + d.gap().as_millis() as u64).min(length_ms);
    }
    actions
}

/// Owners of ServiceAccounts: annotations that come, change, go.
fn accounts(dice: &Dice, length_ms: u64) -> Vec<Action> {
    let mut d = dice.stream("accounts");
    let mut actions = vec![];
    for ns in NAMESPACES {
        let mut now = if d.chance(0.5) {
            0
        } else {
            d.gap().as_millis() as u64
        };
        for _ in 0..1 + d.below(3) {
            let name = *d.pick(&["web", "job"]);
            let email = *d.pick(&[
                "w1@acme-prod.iam.gserviceaccount.com",
                "W2@acme-prod.iam.gserviceaccount.com",
                "not-an-email",
            ]);
            let mut object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": ns}});
            if d.chance(0.8) {
                object["metadata"]["annotations"] =
                    json!({"iam.gke.io/gcp-service-account": email});
            }
            actions.push(at(now, What::Apply(object)));
            now = (now + d.gap().as_millis() as u64).min(length_ms);
            if d.chance(0.25) {
                actions.push(at(
                    now,
                    What::Delete {
                        kind: "ServiceAccount".into(),
                        namespace: ns.into(),
                        name: name.into(),
                    },
                ));
            }
        }
    }
    actions
}

/// Owners of services.
fn owners(dice: &Dice, cast: &Cast, length_ms: u64) -> Vec<Action> {
    let mut d = dice.stream("owners");
    let mut actions = vec![];
    for service in &cast.services {
        let service = (*service).to_owned();
        for _ in 0..d.below(3) {
            let mut now = d.between(0, length_ms);
            match d.below(5) {
                0 | 1 => actions.push(at(
                    now,
                    What::Deploy {
                        service: service.clone(),
                        labels: labels(&mut d),
                    },
                )),
                2 => {
                    actions.push(at(
                        now,
                        What::Undeploy {
                            service: service.clone(),
                        },
                    ));
                    if d.chance(0.8) {
                        now += d.gap().as_millis() as u64;
                        actions.push(at(
                            now,
                            What::Deploy {
                                service: service.clone(),
                                labels: labels(&mut d),
                            },
                        ));
                    }
                }
                3 => actions.push(at(
                    now,
                    What::IamCheck {
                        service: service.clone(),
                        off: d.chance(0.5),
                    },
                )),
                _ => {}
            }
        }
    }
    if d.chance(0.3) {
        let now = d.between(0, length_ms);
        actions.push(at(
            now,
            What::Identity {
                email: (*d.pick(&["ghost1@acme.com", "ghost2@acme.com"])).into(),
                exists: true,
            },
        ));
    }
    if d.chance(0.1) {
        actions.push(at(
            d.between(0, length_ms),
            What::DeleteIdentity {
                member: (*d.pick(&MEMBERS[..3])).into(),
            },
        ));
    }
    actions
}

/// A project is deleted, and restored within its thirty days.
fn projects(dice: &Dice, length_ms: u64) -> Vec<Action> {
    let mut d = dice.stream("projects");
    if !d.chance(0.08) {
        return vec![];
    }
    let project = (*d.pick(&[PROJECT, PROJECT, OTHER])).to_owned();
    let gone = d.between(0, length_ms);
    let back = gone + d.between(1_000, 60_000);
    let turn = |at_ms, gone| {
        let project = project.clone();
        at(at_ms, What::Project { project, gone })
    };
    vec![turn(gone, true), turn(back, false)]
}

/// The console, Terraform, a second operator.
fn rivals(dice: &Dice, cast: &Cast, length_ms: u64) -> Vec<Action> {
    let mut d = dice.stream("rivals");
    let mut actions = vec![];
    for _ in 0..1 + d.below(5) {
        let service = (*d.pick(&cast.services)).to_owned();
        let (role, condition) = foreign(&mut d);
        let (member, add) = if d.chance(0.6) {
            ((*d.pick(&INTRUDERS)).to_owned(), true)
        } else {
            ((*d.pick(&MEMBERS)).to_owned(), false)
        };
        let now = d.between(0, length_ms);
        let condition = conditional(&member, condition).filter(|_| add);
        actions.push(at(
            now,
            What::Member {
                service,
                role,
                member,
                add,
                condition,
            },
        ));
    }
    if d.chance(0.2) {
        // One that does not give up.
        let service = (*d.pick(&cast.services)).to_owned();
        let (member, add) = if d.chance(0.5) {
            (INTRUDERS[0], true)
        } else {
            (MEMBERS[0], false)
        };
        let every = d.between(3_000, 20_000);
        let mut now = d.between(0, length_ms / 2);
        for _ in 0..4 + d.below(6) {
            let service = service.clone();
            actions.push(at(
                now,
                What::Member {
                    service,
                    role: ROLE.into(),
                    member: member.into(),
                    add,
                    condition: None,
                },
            ));
            now += every;
        }
    }
    actions
}

fn operations(dice: &Dice, setup: &Setup, length_ms: u64) -> Vec<Action> {
    let mut d = dice.stream("operations");
    let mut actions = vec![];
    if d.chance(0.15) {
        actions.push(at(d.between(0, length_ms), What::Compact));
    }
    if d.chance(0.1) {
        actions.push(at(d.between(0, length_ms), What::ResetCircuit));
    }
    if d.chance(0.15) {
        let replica = d.below(setup.replicas);
        actions.push(at(
            d.between(1, length_ms),
            What::Restart {
                replica,
                after_ms: d.between(0, 20_000),
            },
        ));
    }
    actions
}

/// Whoever looks after ledgers agrees to what nobody else is asked about.
fn agreements(dice: &Dice, cast: &Cast, length_ms: u64) -> Vec<Action> {
    let mut d = dice.stream("agreements");
    let mut actions = vec![];
    for service in &cast.services {
        if d.chance(0.3) {
            let how = *d.pick(&[Agreement::Shown, Agreement::Shown, Agreement::Garbage]);
            let service = (*service).to_owned();
            let now = d.between(length_ms / 2, length_ms + 30_000);
            actions.push(at(now, What::ApproveLedger { service, how }));
        }
    }
    actions
}

/// People who ask for access for a time, and approvers who answer, or do not.
fn requests(dice: &Dice, cast: &Cast, length_ms: u64) -> Vec<Action> {
    let mut d = dice.stream("requests");
    let mut actions = vec![];
    if !d.chance(0.3) {
        return actions;
    }
    let mut now = 0;
    for _ in 0..1 + d.below(3) {
        let mut terms = json!({"maxDuration": *d.pick(&["10m", "1h", "4h"])});
        if d.chance(0.4) {
            terms["autoApprove"] = json!([*d.pick(&["*@acme.com", "user:*@acme.com"])]);
        }
        if d.chance(0.3) {
            terms["reasonPattern"] = json!("^INC-");
        }
        let mut spec = json!({"requests": terms});
        if d.chance(0.4) {
            spec["namespaces"] = json!(["team-a"]);
        }
        let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerGuardrail", "metadata": {"name": "asks"}, "spec": spec});
        actions.push(at(now, What::Apply(object)));
        now = d.between(now, length_ms);
    }
    for n in 0..1 + d.below(3) {
        actions.extend(request(&mut d, cast, n, length_ms));
    }
    actions
}

/// The life of one request, and of what people make again under its name.
fn request(d: &mut Stream, cast: &Cast, n: usize, length_ms: u64) -> Vec<Action> {
    let mut actions = vec![];
    let (namespace, name) = (*d.pick(&NAMESPACES), format!("r{n}"));
    let service = *d.pick(&cast.services);
    let (project, region, service) = crate::story::parts(service);
    let spec = json!({"project": project, "services": [{"name": service, "region": region}],
        "member": *d.pick(&MEMBERS[..6]), "duration": *d.pick(&["1m", "5m", "20m", "2h"]),
        "reason": *d.pick(&["INC-1", "INC-2: down", "because"])});
    let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerAccessRequest",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec});
    let mut now = d.between(0, length_ms);
    actions.push(at(now, What::Apply(object.clone())));
    for _ in 0..d.below(5) {
        now = (now + d.gap().as_millis() as u64).min(length_ms + 60_000);
        let answer = |how, deny| What::AnswerRequest {
            namespace: namespace.into(),
            name: name.clone(),
            how,
            deny,
        };
        let what = match d.below(10) {
            0..5 => answer(Agreement::Shown, false),
            5 => answer(Agreement::Stale, false),
            6 => answer(Agreement::Garbage, d.chance(0.5)),
            7 => answer(Agreement::Shown, true),
            8 => What::Delete {
                kind: "InvokerAccessRequest".into(),
                namespace: namespace.into(),
                name: name.clone(),
            },
            _ => What::Apply(object.clone()),
        };
        actions.push(at(now, what));
    }
    actions
}

/// Records that the operator did not write, of any age, for any reason, also such as nobody can
/// read.
fn forgers(dice: &Dice, cast: &Cast, length_ms: u64) -> Vec<Action> {
    let mut d = dice.stream("forgers");
    let mut actions = vec![];
    if !d.chance(0.12) {
        return actions;
    }
    for n in 0..1 + d.below(4) {
        let service = *d.pick(&cast.services);
        let now = if d.chance(0.3) {
            0
        } else {
            d.between(0, length_ms)
        };
        actions.push(at(
            now,
            What::Force {
                plural: "invokerchanges".into(),
                object: forged(&mut d, service, n, now),
            },
        ));
    }
    actions
}

fn forged(d: &mut Stream, service: &str, n: usize, now_ms: u64) -> Value {
    let p: Vec<&str> = service.split('/').collect();
    let namespace = *d.pick(&NAMESPACES);
    let when = match d.below(3) {
        0 => "9999-12-31T23:59:59Z".to_owned(),
        1 => "0001-01-01T00:00:00Z".to_owned(),
        _ => expiry(now_ms),
    };
    let outcome = *d.pick(&["Applied", "Pending", "Pending"]);
    let grant = json!({"role": ROLE, "member": *d.pick(&MEMBERS)});
    let mut spec = json!({
        "project": p[0], "region": p[1], "service": p[2], "at": when,
        "reason": *d.pick(&["Drift", "Drift", "SpecChanged", "Guardrail"]),
        "policies": [{"namespace": namespace, "name": "p0", "uid": "forged", "generation": 1}],
        "added": [], "addedCount": 0, "removed": [grant], "removedCount": 1,
        "before": [grant], "beforeCount": 1,
    });
    if d.chance(0.2) {
        spec["policies"] = json!("all of them");
    }
    json!({
        "apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerChange",
        "metadata": {"name": format!("{FORGED}{n}"), "namespace": namespace, "labels": {
            "policy.run-invoker.dev/p0": "",
            "run-invoker.dev/outcome": outcome,
            "run-invoker.dev/reason": spec["reason"],
        }},
        "spec": spec,
    })
}

/// Messages on the subscription that tell of nothing that happened.
fn publishers(dice: &Dice, cast: &Cast, length_ms: u64) -> Vec<Action> {
    let mut d = dice.stream("publishers");
    let mut actions = vec![];
    for _ in 0..d.below(4) {
        let service = *d.pick(&cast.services);
        let p: Vec<&str> = service.split('/').collect();
        let text = match d.below(3) {
            0 => "{".to_owned(),
            1 => json!({"protoPayload": {"methodName": "SetIamPolicy"}}).to_string(),
            _ => json!({
                "insertId": "forged", "timestamp": "9999-12-31T23:59:59Z",
                "logName": format!("projects/{}/logs/cloudaudit.googleapis.com%2Factivity", p[0]),
                "resource": {"type": "cloud_run_revision",
                    "labels": {"project_id": p[0], "location": p[1], "service_name": ""}},
                "protoPayload": {
                    "@type": "type.googleapis.com/google.cloud.audit.AuditLog",
                    "serviceName": "run.googleapis.com",
                    "methodName": "google.cloud.run.v1.Services.SetIamPolicy",
                    "resourceName":
                        format!("projects/{}/locations/{}/services/{}", p[0], p[1], p[2]),
                    "authenticationInfo": {"principalEmail": "nobody@acme.com"},
                    "request": {"policy": {"bindings": [{"role": ROLE, "members": [MEMBERS[0]]}]}},
                    "response": {"etag": "BwForged", "bindings": []},
                },
            })
            .to_string(),
        };
        actions.push(at(d.between(1, length_ms), What::Message(text)));
    }
    actions
}

fn crashes(dice: &Dice, setup: &Setup, length_ms: u64) -> Vec<Crash> {
    let mut d = dice.stream("crashes");
    let mut crashes = vec![];
    let mut more = |d: &mut Stream, p: f64| {
        if !d.chance(p) {
            return;
        }
        let replica = d.below(setup.replicas);
        let pause = d.chance(0.3);
        let moment = match d.below(3) {
            0 => Moment::At(d.between(100, length_ms)),
            1 => Moment::Before(d.between(5, 120)),
            _ => Moment::After(d.between(5, 120)),
        };
        let back_ms = if pause {
            d.between(200, 40_000)
        } else {
            *d.pick(&[100, 1_000, 20_000])
        };
        crashes.push(Crash {
            replica,
            moment,
            back_ms,
            pause,
        });
    };
    more(&mut d, 0.4);
    more(&mut d, 0.2);
    crashes
}
