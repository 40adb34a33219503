//! What the cluster says about the service of a diagnosis: policies, requests for access, and what
//! the operator did.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, api::ListParams, core::PartialObjectMeta};

use super::super::{context::Kube, world::list_all};
use crate::{
    api::{
        InvokerAccessRequest, InvokerChange, InvokerGuardrail, InvokerPolicy, Mode, RequestPhase,
    },
    diagnose::{Declared, Facts, Known, Requested},
    iam::{Ingress, Principal, RunService, ServiceInfo},
    intent::{self, AccessRequest, AccountKey, GOOGLE_SERVICE_ACCOUNT, Guardrail, Intent, Target},
};

/// What policies and requests say about the service, and when the operator last granted whom.
pub(super) async fn ask(kube: &Kube, facts: &mut Facts) -> anyhow::Result<()> {
    let policies =
        list_all::<InvokerPolicy>(&Api::all(kube.client.clone()), ListParams::default()).await?;
    let meant = Meant::of(facts);
    let (mut declared, mut namespaces) = (Vec::new(), Vec::new());
    for policy in &policies {
        let mut intent = Intent::from_policy(policy);
        if meant.by(policy, &intent) {
            let links = links(kube, &intent).await;
            intent.link_accounts(|account| links.get(account).map(String::as_str));
            declared.push(declaration(policy, &intent, &links, facts));
            namespaces.push(intent.id.namespace.clone());
        }
    }
    // Those that list the principal first.
    declared.sort_by_key(|d| (d.lists.is_none(), d.policy.clone()));
    facts.declared = Known::Is(declared);
    let changes =
        list_all::<InvokerChange>(&Api::all(kube.client.clone()), ListParams::default()).await?;
    let of_service = changes
        .iter()
        .filter(|c| crate::history::service(&c.spec) == facts.service);
    for change in of_service.filter(|c| c.spec.at.0 <= facts.at) {
        for grant in &change.spec.added {
            let member = Principal::from_live(&grant.member);
            let at = facts.granted_at.entry(member).or_insert(change.spec.at.0);
            *at = (*at).max(change.spec.at.0);
        }
    }
    ask_for_requests(kube, &namespaces, &meant, facts).await;
    Ok(())
}

/// Requests of the principal for the service, and in which of the namespaces of its policies it may
/// be asked for. Whoever may not see these, or has none of the kind, gets the rest of the answer.
async fn ask_for_requests(kube: &Kube, namespaces: &[Arc<str>], meant: &Meant, facts: &mut Facts) {
    let all = Api::all(kube.client.clone());
    let found = list_all::<InvokerAccessRequest>(&all, ListParams::default()).await;
    let mut found = found.unwrap_or_default();
    found.sort_by_key(|r| std::cmp::Reverse(r.metadata.creation_timestamp.clone()));
    let requests = found.iter().filter(|r| is_asked_for(r, meant, facts));
    facts.requests = requests.map(requested).collect();
    let all = Api::all(kube.client.clone());
    let found = list_all::<InvokerGuardrail>(&all, ListParams::default()).await;
    let found = found.unwrap_or_default();
    let guardrails = found.iter().filter(|g| g.spec.requests.is_some());
    let guardrails: Vec<Guardrail> = guardrails.map(Guardrail::from_object).collect();
    let mut namespaces = namespaces.iter();
    let asked_in = namespaces.find(|n| guardrails.iter().any(|g| g.selects(n)));
    facts.requests_in = asked_in.map(|n| n.to_string());
}

/// Whether a request is for the principal and the service.
fn is_asked_for(request: &InvokerAccessRequest, meant: &Meant, facts: &Facts) -> bool {
    let asked = Principal::from_live(&request.spec.member);
    let Ok(read) = AccessRequest::from_object(request) else {
        return false;
    };
    let policy = read.declaration(facts.at, false);
    facts.principal.as_ref() == Some(&asked) && meant.by(&policy, &Intent::from_policy(&policy))
}

fn requested(request: &InvokerAccessRequest) -> Requested {
    let status = request.status.clone().unwrap_or_default();
    Requested {
        namespace: request.metadata.namespace.clone().unwrap_or_default(),
        name: request.metadata.name.clone().unwrap_or_default(),
        phase: status.phase.unwrap_or(RequestPhase::Pending),
        message: status.message.unwrap_or_default(),
    }
}

/// The service that policies may mean.
struct Meant {
    service: RunService,
    /// As a listing shows it; `None` where its labels could not be read.
    info: Option<ServiceInfo>,
}

impl Meant {
    fn of(facts: &Facts) -> Self {
        let service = facts.service.clone();
        let info = facts.front.value().map(|front| ServiceInfo {
            service: service.clone(),
            uid: "".into(),
            labels: Arc::new(front.labels.clone()),
            invoker_iam_disabled: front.invoker_iam_disabled,
            ingress: Ingress::from_v2(&front.ingress),
            iap: front.iap,
        });
        Self { service, info }
    }

    /// Whether a policy names or selects it. Where its labels could not be read, the policy's status
    /// says what its selectors found.
    fn by(&self, policy: &InvokerPolicy, intent: &Intent) -> bool {
        if intent.project != self.service.project {
            return false;
        }
        let mut targets = intent.targets.iter();
        if let Some(info) = &self.info {
            return targets.any(|t| t.selects(info));
        }
        let mut found = policy.status.iter().flat_map(|status| &status.services);
        targets.any(|t| matches!(t, Target::Named(n) if *n == self.service))
            || found.any(|s| *s.name == *self.service.name && *s.region == *self.service.region)
    }
}

/// The Google service accounts behind the ServiceAccounts that a policy names. One that may not be
/// read is not followed.
async fn links(kube: &Kube, intent: &Intent) -> BTreeMap<AccountKey, String> {
    let mut links = BTreeMap::new();
    let entries = intent.accounts.iter().flat_map(|a| &a.entries);
    for account in entries.map(|e| &e.account) {
        let api: Api<PartialObjectMeta<ServiceAccount>> =
            Api::namespaced(kube.client.clone(), &account.namespace);
        let found = api.get_metadata_opt(&account.name).await.ok().flatten();
        let notes = found.and_then(|a| a.metadata.annotations);
        if let Some(email) = notes.and_then(|n| n.get(GOOGLE_SERVICE_ACCOUNT).cloned()) {
            links.insert(account.clone(), email);
        }
    }
    links
}

fn declaration(
    policy: &InvokerPolicy,
    intent: &Intent,
    links: &BTreeMap<AccountKey, String>,
    facts: &Facts,
) -> Declared {
    let ready = policy.status.iter().flat_map(|s| &s.conditions);
    let reason = ready
        .into_iter()
        .find(|c| c.type_ == "Ready" && c.status != "True")
        .map(|c| format!("{}: {}", c.reason, c.message));
    let own = facts.principal.as_ref();
    let declares = |principal: &Principal| {
        intent
            .declared
            .iter()
            .filter(|d| d.grant.principal == *principal)
            .collect::<Vec<_>>()
    };
    let entries = own.map(declares).unwrap_or_default();
    // An entry that still holds goes before one that has ended.
    let is_over = |d: &&&intent::Declared| d.expires.is_some_and(|e| e <= facts.at);
    let ended = entries.iter().all(|d| is_over(&d));
    Declared {
        policy: intent.id.to_string(),
        lists: own
            .filter(|_| !entries.is_empty())
            .map(|p| place_of(policy, intent, links, p)),
        ended: entries
            .iter()
            .filter_map(|d| d.expires)
            .max()
            .filter(|_| ended),
        public: !declares(&Principal::from_live("allUsers")).is_empty(),
        enforced: intent.mode == Mode::Enforce,
        suspended: intent.suspended,
        reason,
    }
}

/// The place of a principal in `spec.invokers`, by member or by ServiceAccount.
fn place_of(
    policy: &InvokerPolicy,
    intent: &Intent,
    links: &BTreeMap<AccountKey, String>,
    principal: &Principal,
) -> usize {
    let is = |text: &str| Principal::from_live(text) == *principal;
    let mut members = policy.spec.invokers.iter();
    let by_member = members.rposition(|i| i.member.as_deref().is_some_and(is));
    let mut accounts = intent.accounts.iter().flat_map(|a| &a.entries);
    let linked = |account| {
        links
            .get(account)
            .is_some_and(|e| is(&format!("serviceAccount:{e}")))
    };
    let by_account = || accounts.find(|e| linked(&e.account)).map(|e| e.position);
    by_member.or_else(by_account).unwrap_or_default()
}
