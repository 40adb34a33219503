//! How to mend a refusal so that it stays mended: where a policy manages the service, the fix is a
//! change of that policy, because anything else is what the operator takes away again.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Known, Walk};
use crate::{api::RequestPhase, iam::Principal};

/// What a policy of the cluster says about the principal on the service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Namespace and name.
    pub policy: String,
    /// Where it lists the principal: the place in `spec.invokers`.
    pub lists: Option<usize>,
    /// The end of that entry, where it has passed.
    pub ended: Option<Timestamp>,
    /// It lists `allUsers`.
    pub public: bool,
    /// Its mode is Enforce.
    pub enforced: bool,
    pub suspended: bool,
    /// Why it is not granted, where the policy says so.
    pub reason: Option<String>,
}

/// A request for access of the principal to the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requested {
    pub namespace: String,
    pub name: String,
    pub phase: RequestPhase,
    /// What its status says.
    pub message: String,
}

/// How to mend it. Never wider than what is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fix {
    pub words: String,
    /// A policy to apply, where none manages the service.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// A change of the policy that manages it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<Patch>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gcloud: String,
}

/// A change of one policy's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Patch {
    /// Namespace and name of the policy.
    pub policy: String,
    /// The change as a JSON patch (RFC 6902), as `kubectl patch --type json` and Kustomize take it.
    pub operations: Value,
    /// The same as lines of the file, `+` in front of what is new and `-` of what goes.
    pub lines: String,
}

impl From<&str> for Fix {
    fn from(words: &str) -> Self {
        words.to_owned().into()
    }
}

impl From<String> for Fix {
    fn from(words: String) -> Self {
        Self {
            words,
            ..Self::default()
        }
    }
}

impl Declared {
    fn patch(&self, operations: Value, lines: &str) -> Option<Patch> {
        Some(Patch {
            policy: self.policy.clone(),
            operations,
            lines: lines.to_owned(),
        })
    }

    /// What to do about a policy that lists the member, which is not granted.
    pub(super) fn listing_fix(&self) -> Fix {
        let policy = &self.policy;
        if let Some(ended) = self.ended {
            let place = self.lists.unwrap_or_default();
            return format!("InvokerPolicy {policy} lists it until {ended}, which has passed: set a later time in spec.invokers[{place}].expires, in its file.").into();
        }
        if self.suspended {
            let lines = " spec:\n-  suspend: true\n+  suspend: false\n";
            return Fix {
                words: format!(
                    "InvokerPolicy {policy} lists it, and is suspended: resume it, in its file."
                ),
                patch: self.patch(
                    json!([{"op": "replace", "path": "/spec/suspend", "value": false}]),
                    lines,
                ),
                ..Fix::default()
            };
        }
        if !self.enforced {
            let lines = " spec:\n-  mode: Audit\n+  mode: Enforce\n";
            return Fix {
                words: format!(
                    "InvokerPolicy {policy} lists it, in Audit: set mode: Enforce, in its file, when the rest of its plan is meant too (kubectl invoker plan)."
                ),
                patch: self.patch(
                    json!([{"op": "add", "path": "/spec/mode", "value": "Enforce"}]),
                    lines,
                ),
                ..Fix::default()
            };
        }
        match &self.reason {
            // IAM names the pool and means whoever is in it.
            Some(reason) if reason.contains("Identity Pool does not exist") => format!(
                "InvokerPolicy {policy} lists it and says why it is not granted: {reason}. That is about every member of the pool: it exists when a GKE cluster of the project has Workload Identity on. Or list the Google service account that the ServiceAccount is annotated with (kubernetesServiceAccount)."
            ),
            Some(reason) => {
                format!("InvokerPolicy {policy} lists it and says why it is not granted: {reason}")
            }
            None => format!(
                "InvokerPolicy {policy} lists it; the operator will grant it with its next reconcile."
            ),
        }
        .into()
    }

    /// What to do about a policy that manages the service and does not list the member.
    fn adding_fix(&self, member: &str) -> Fix {
        let policy = &self.policy;
        let rest = match (self.suspended, self.enforced) {
            (true, _) => " It is suspended: nothing is granted before it is resumed.",
            (_, false) => " It only audits: nothing is granted before its mode is Enforce.",
            _ => "",
        };
        let operations =
            json!([{"op": "add", "path": "/spec/invokers/-", "value": {"member": member}}]);
        let lines = format!(" spec:\n   invokers:\n+  - member: \"{member}\"\n");
        Fix {
            words: format!(
                "InvokerPolicy {policy} manages the service: add the member to spec.invokers, in its file. What is granted past it does not stay.{rest}"
            ),
            patch: self.patch(operations, &lines),
            ..Fix::default()
        }
    }
}

impl Walk<'_> {
    /// The narrowest grant that holds. `also` goes before it.
    pub(super) fn grant_fix(&self, principal: &Principal, also: &str) -> Fix {
        let member = principal.as_str();
        let fix = match &self.facts.declared {
            Known::Is(all) => match (all.iter().find(|d| d.lists.is_some()), managing(all)) {
                (Some(listing), _) => listing.listing_fix(),
                (None, Some(manager)) => manager.adding_fix(member),
                (None, None) => self.new_grant(member, "Declare it, and only it:"),
            },
            _ => self.new_grant(member, "If a policy manages the service, add the member to its spec.invokers: what is granted past it does not stay. If none does, declare it, and only it:"),
        };
        let requests = self.requests(member);
        Fix {
            words: format!("{also}{}{requests}", fix.words),
            ..fix
        }
    }

    /// What became of the last request for this access, or how to ask for it.
    fn requests(&self, member: &str) -> String {
        let facts = self.facts;
        let s = &facts.service;
        let ask = |namespace: &str| {
            format!(
                "kubectl invoker request -n {namespace} --project {} --region {} --service {} --member '{member}' --for 1h --reason WHY",
                s.project, s.region, s.name
            )
        };
        let Some(request) = facts.requests.first() else {
            let way = facts.requests_in.as_deref().map(ask);
            return way.map_or_else(String::new, |way| {
                format!(" Or ask for it for a time: {way}")
            });
        };
        let Requested {
            namespace,
            name,
            phase,
            message,
        } = request;
        let request = format!("InvokerAccessRequest {namespace}/{name}");
        match phase {
            RequestPhase::Pending => format!(
                " {request} of it waits for approval: kubectl invoker approve {name} -n {namespace} --request --reason WHY"
            ),
            RequestPhase::Approved | RequestPhase::Active => {
                format!(" {request} of it is approved: {message}")
            }
            RequestPhase::Denied | RequestPhase::Refused => {
                format!(" {request} of it was not granted: {message}")
            }
            RequestPhase::Ended => {
                format!(
                    " {request} of it is over: {message}. Ask again: {}",
                    ask(namespace)
                )
            }
        }
    }

    fn new_grant(&self, member: &str, words: &str) -> Fix {
        let s = &self.facts.service;
        // Additive: a snippet that is applied as it is must not take anything away.
        let policy = format!(
            "apiVersion: run-invoker.dev/v1alpha1\nkind: InvokerPolicy\nmetadata: {{name: {}-{}, namespace: NAMESPACE}}\nspec:\n  project: {}\n  services: [{{name: {}, region: {}}}]\n  invokers:\n  - member: \"{member}\"\n  mode: Enforce\n  membership: Additive\n",
            s.name, "access", s.project, s.name, s.region
        );
        let gcloud = format!(
            "gcloud run services add-iam-policy-binding {} --project {} --region {} --member '{member}' --role roles/run.invoker",
            s.name, s.project, s.region
        );
        Fix {
            words: words.to_owned(),
            policy,
            gcloud,
            patch: None,
        }
    }
}

/// The policy to change: rather one that is carried out.
fn managing(all: &[Declared]) -> Option<&Declared> {
    all.iter().max_by_key(|d| {
        (
            d.enforced && !d.suspended,
            d.enforced,
            std::cmp::Reverse(&d.policy),
        )
    })
}
