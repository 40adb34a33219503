//! Faults to order: which requests to hurt, how, and how often.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::journal::Api;

/// What happens to a request.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Fault {
    /// Answered as usual, but later.
    Latency { milliseconds: u64 },
    /// Answered with this status and body instead of being carried out.
    Error {
        status: u16,
        /// A document; text is sent as it is, and none is an empty answer.
        #[serde(default)]
        body: Value,
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// The connection is cut before anything is carried out.
    Drop,
    /// Carried out, but the connection is cut instead of an answer.
    LostResponse,
    /// Neither carried out nor answered, until the client gives up.
    Hang,
}

/// Which requests, and how many of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// `kube` or `run`.
    pub api: String,
    /// HTTP method; any if empty.
    #[serde(default)]
    pub method: String,
    /// The request's path and query contain this.
    #[serde(default)]
    pub contains: String,
    /// How many requests are hurt; without it, all until the rule is cleared.
    #[serde(default)]
    pub times: Option<u32>,
    /// So many matching requests pass first.
    #[serde(default)]
    pub skip: u32,
    pub fault: Fault,
}

impl Rule {
    pub fn run(method: &str, contains: &str, fault: Fault) -> Self {
        Self {
            api: "run".into(),
            method: method.into(),
            contains: contains.into(),
            times: None,
            skip: 0,
            fault,
        }
    }
    pub fn kube(method: &str, contains: &str, fault: Fault) -> Self {
        Self {
            api: "kube".into(),
            ..Self::run(method, contains, fault)
        }
    }
    pub fn times(self, n: u32) -> Self {
        Self {
            times: Some(n),
            ..self
        }
    }
}

/// The rules in force.
#[derive(Debug, Default)]
pub struct Faults {
    rules: Mutex<Vec<Rule>>,
}

impl Faults {
    pub fn add(&self, rule: Rule) {
        self.rules
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(rule);
    }

    pub fn clear(&self) {
        self.rules
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    pub fn rules(&self) -> Vec<Rule> {
        self.rules
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What to do to a request: all latencies together, and the first other fault.
    pub fn judge(&self, api: Api, method: &str, target: &str) -> (Duration, Option<Fault>) {
        let api = match api {
            Api::Kube => "kube",
            Api::Run => "run",
            Api::Control => return (Duration::ZERO, None),
        };
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut delay, mut chosen) = (Duration::ZERO, None);
        for rule in rules.iter_mut() {
            let hit = rule.api == api
                && (rule.method.is_empty() || rule.method == method)
                && (rule.contains.is_empty() || target.contains(&rule.contains));
            if !hit || rule.times == Some(0) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            match &rule.fault {
                Fault::Latency { milliseconds } => delay += Duration::from_millis(*milliseconds),
                _ if chosen.is_some() => continue,
                other => chosen = Some(other.clone()),
            }
            if let Some(n) = rule.times.as_mut() {
                *n -= 1;
            }
        }
        rules.retain(|r| r.times != Some(0));
        (delay, chosen)
    }
}
