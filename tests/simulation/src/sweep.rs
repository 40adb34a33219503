//! The three sweeps of Sieve (Sun et al., OSDI '22) over what people do in the scenarios: the
//! operator dies after each of its requests, the answer to each request is lost, and each change
//! comes to it only with the next list.
//!
//! A scenario's steps are taken as what somebody does; what it expects is left to the judge, who
//! holds for every order.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::story::{Action, Crash, Harm, Moment, Setup, Side, Storm, Story, What};

/// Between two steps, so that one is done before the next.
const STEP_MS: u64 = 4000;

/// Where the scenarios are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios")
}

/// Every scenario as a story, by name.
pub fn scenarios() -> Vec<(String, Story)> {
    let mut found: Vec<(String, Story)> = std::fs::read_dir(folder())
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| {
            let text = std::fs::read_to_string(e.path().join("scenario.yaml")).ok()?;
            let name = e.file_name().to_string_lossy().into_owned();
            let scenario: Value =
                serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
            Some((name, told(&scenario)))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// A scenario as a story.
fn told(scenario: &Value) -> Story {
    let mut teller = Teller::default();
    for service in scenario["services"].as_array().into_iter().flatten() {
        teller.deploy(service);
    }
    teller.now = STEP_MS;
    for step in scenario["steps"].as_array().into_iter().flatten() {
        teller.step(step);
    }
    let settings = &scenario["settings"];
    let number = |key: &str, usual: usize| settings[key].as_u64().map_or(usual, |n| n as usize);
    let usual = Setup::default();
    let setup = Setup {
        max_removals: number("maxRemovals", 10),
        breaker: number("breakerCorrections", usual.breaker),
        replicas: 1,
        shards: 1,
        ..usual
    };
    Story {
        seed: 1,
        setup,
        actions: teller.actions,
        ..Story::default()
    }
}

#[derive(Default)]
struct Teller {
    now: u64,
    actions: Vec<Action>,
    /// Objects as they were last applied, by kind and name.
    objects: BTreeMap<(String, String), Value>,
}

impl Teller {
    fn does(&mut self, what: What) {
        self.actions.push(Action {
            at_ms: self.now,
            what,
        });
    }

    fn deploy(&mut self, service: &Value) {
        let name = service["service"].as_str().unwrap_or_default().to_owned();
        let labels = service["labels"].as_object().into_iter().flatten();
        let labels = labels
            .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
            .collect();
        self.does(What::Deploy {
            service: name.clone(),
            labels,
        });
        for binding in service["bindings"].as_array().into_iter().flatten() {
            let role = binding["role"].as_str().unwrap_or_default();
            for member in binding["members"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
            {
                let condition = binding.get("condition").cloned();
                let (service, role, member) = (name.clone(), role.to_owned(), member.to_owned());
                self.does(What::Member {
                    service,
                    role,
                    member,
                    add: true,
                    condition,
                });
            }
        }
    }

    fn apply(&mut self, mut object: Value) {
        let kind = object["kind"]
            .as_str()
            .unwrap_or("InvokerPolicy")
            .to_owned();
        let ours = kind.starts_with("Invoker");
        object["kind"] = json!(kind);
        object["apiVersion"] = json!(if ours {
            "run-invoker.dev/v1alpha1"
        } else {
            "v1"
        });
        if kind != "InvokerGuardrail"
            && kind != "Namespace"
            && object["metadata"]["namespace"].is_null()
        {
            object["metadata"]["namespace"] = json!("team-a");
        }
        let name = object["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        self.objects.insert((kind, name), object.clone());
        self.does(What::Apply(object));
    }

    fn step(&mut self, step: &Value) {
        let Some((what, given)) = step.as_object().and_then(|o| o.iter().next()) else {
            return;
        };
        let text = |key: &str| given[key].as_str().unwrap_or_default().to_owned();
        let policy = |name: &str| {
            let (namespace, name) = name.split_once('/').unwrap_or(("team-a", name));
            (namespace.to_owned(), name.to_owned())
        };
        match what.as_str() {
            "apply" => given
                .as_array()
                .into_iter()
                .flatten()
                .for_each(|o| self.apply(o.clone())),
            "patch" => {
                let key = ("InvokerPolicy".to_owned(), text("policy"));
                let Some(mut object) = self.objects.get(&key).cloned() else {
                    return;
                };
                merge(&mut object, &given["merge"]);
                self.apply(object);
            }
            "remove" => {
                let kind = text("kind");
                let namespace = match (kind.as_str(), given["namespace"].as_str()) {
                    ("InvokerGuardrail" | "Namespace" | "CustomResourceDefinition", _) => {
                        String::new()
                    }
                    (_, given) => given.unwrap_or("team-a").to_owned(),
                };
                self.does(What::Delete {
                    kind,
                    namespace,
                    name: text("name"),
                });
            }
            "delete" => {
                let (namespace, name) = policy(given.as_str().unwrap_or_default());
                self.does(What::Delete {
                    kind: "InvokerPolicy".into(),
                    namespace,
                    name,
                });
            }
            "approve" => {
                let (namespace, name) = policy(given.as_str().unwrap_or_default());
                self.does(What::Approve {
                    namespace,
                    name,
                    how: crate::story::Agreement::Shown,
                });
            }
            "answerRequest" => {
                let (namespace, name) = policy(&text("request"));
                self.does(What::AnswerRequest {
                    namespace,
                    name,
                    how: crate::story::Agreement::Shown,
                    deny: given["deny"] == true,
                });
            }
            "approveAs" => {
                let (namespace, name) = policy(&text("policy"));
                self.does(What::Approve {
                    namespace,
                    name,
                    how: crate::story::Agreement::Shown,
                });
            }
            "rollBack" => {
                let (namespace, name) = policy(&text("policy"));
                let newest = given["newest"].as_u64().map(|n| n as usize);
                self.does(What::RollBack {
                    namespace,
                    name,
                    newest,
                });
            }
            "nudge" => {
                let (namespace, name) = policy(given.as_str().unwrap_or_default());
                let (key, value) = (
                    "run-invoker.dev/requested-at".to_owned(),
                    Some(self.now.to_string()),
                );
                self.does(What::Annotate {
                    namespace,
                    name,
                    key,
                    value,
                });
            }
            "deploy" => self.deploy(given),
            "undeploy" => self.does(What::Undeploy {
                service: given.as_str().unwrap_or_default().into(),
            }),
            "member" => {
                let role = given["role"].as_str().unwrap_or("roles/run.invoker");
                for (key, add) in [("add", true), ("remove", false)] {
                    if let Some(member) = given[key].as_str() {
                        let (service, role, member) =
                            (text("service"), role.to_owned(), member.to_owned());
                        self.does(What::Member {
                            service,
                            role,
                            member,
                            add,
                            condition: None,
                        });
                    }
                }
            }
            "sleep" => self.now += (given.as_f64().unwrap_or(0.0) * 1000.0) as u64,
            "advanceSeconds" => self.now += given.as_u64().unwrap_or(0).min(7200) * 1000,
            // Restarts, outages and faults are what the sweeps themselves are about; the rest only
            // looks.
            _ => return,
        }
        self.now += STEP_MS;
    }
}

/// A merge patch (RFC 7396).
fn merge(object: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            if let Some(o) = object.as_object_mut() {
                o.remove(key);
            }
        } else {
            merge(&mut object[key], value);
        }
    }
}

/// One of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// Dies after its nth request was carried out, and comes back.
    Dies(u64),
    /// The answer to its nth request is lost.
    LosesTheAnswer(u64),
    /// The nth thing that people do comes only with the next list.
    HearsLate(usize),
}

impl Sweep {
    /// All of them over a story in which a replica made so many requests.
    pub fn all(story: &Story, requests: u64, step: usize) -> Vec<Self> {
        let requests = (0..requests).step_by(step);
        let actions = (0..story.actions.len()).step_by(step).map(Self::HearsLate);
        requests
            .flat_map(|n| [Self::Dies(n), Self::LosesTheAnswer(n)])
            .chain(actions)
            .collect()
    }

    /// The story with it.
    pub fn over(self, story: &Story) -> Story {
        let mut story = story.clone();
        let storm = |from_ms, to_ms, side, only: &str, nth, harm| Storm {
            from_ms,
            to_ms,
            side,
            only: only.into(),
            replica: None,
            nth,
            percent: 100,
            harm,
        };
        let end = story.length_ms() + 60_000;
        match self {
            Self::Dies(n) => {
                story.crashes.push(Crash {
                    replica: 0,
                    moment: Moment::After(n),
                    back_ms: 500,
                    pause: false,
                });
            }
            Self::LosesTheAnswer(n) => {
                for side in [Side::Kube, Side::Run] {
                    story
                        .weather
                        .push(storm(0, end, side, "", Some(n), Harm::Lost));
                }
            }
            Self::HearsLate(n) => {
                let at = story.actions.get(n).map_or(0, |a| a.at_ms);
                story.weather.push(storm(
                    at,
                    at + 200,
                    Side::Kube,
                    "watch=true",
                    None,
                    Harm::Stalled(8000),
                ));
            }
        }
        story
    }
}
