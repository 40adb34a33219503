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
    iam::{Ingress, Principal, ServiceInfo},
    intent::{self, AccessRequest, AccountKey, GOOGLE_SERVICE_ACCOUNT, Guardrail, Intent, Target},
};

/// What policies and requests say about the service, and when the operator last changed it.
pub(super) async fn ask(kube: &Kube, facts: &mut Facts) -> anyhow::Result<()> {
    let policies =
        list_all::<InvokerPolicy>(&Api::all(kube.client.clone()), ListParams::default()).await?;
    let mut declared = Vec::new();
    for policy in &policies {
        let mut intent = Intent::from_policy(policy);
        if is_about(policy, &intent, facts) {
            let links = links(kube, &intent).await;
            intent.link_accounts(|account| links.get(account).map(String::as_str));
            declared.push(declaration(policy, &intent, &links, facts));
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
    let times = of_service.map(|c| c.spec.at.0);
    facts.changed_at = times.filter(|at| *at <= facts.at).max();
    ask_for_requests(kube, &policies, facts).await;
    Ok(())
}

/// Requests of the principal for the service, and where it may be asked for. Whoever may not see
/// these, or has none of the kind, gets the rest of the answer.
async fn ask_for_requests(kube: &Kube, policies: &[InvokerPolicy], facts: &mut Facts) {
    let all = Api::all(kube.client.clone());
    let found = list_all::<InvokerAccessRequest>(&all, ListParams::default()).await;
    let mut found = found.unwrap_or_default();
    found.sort_by_key(|r| std::cmp::Reverse(r.metadata.creation_timestamp.clone()));
    let requests = found.iter().filter(|r| is_asked_for(r, facts));
    facts.requests = requests.map(requested).collect();
    let all = Api::all(kube.client.clone());
    let found = list_all::<InvokerGuardrail>(&all, ListParams::default()).await;
    let found = found.unwrap_or_default();
    let guardrails = found.iter().filter(|g| g.spec.requests.is_some());
    let guardrails: Vec<Guardrail> = guardrails.map(Guardrail::from_object).collect();
    let managing = policies
        .iter()
        .filter(|p| is_about(p, &Intent::from_policy(p), facts));
    let mut namespaces = managing.filter_map(|p| p.metadata.namespace.clone());
    facts.requests_in = namespaces.find(|n| guardrails.iter().any(|g| g.selects(n)));
}

/// Whether a request is for the principal and the service.
fn is_asked_for(request: &InvokerAccessRequest, facts: &Facts) -> bool {
    let asked = Principal::from_live(&request.spec.member);
    let Ok(read) = AccessRequest::from_object(request) else {
        return false;
    };
    let policy = read.declaration(facts.at, false);
    facts.principal.as_ref() == Some(&asked)
        && is_about(&policy, &Intent::from_policy(&policy), facts)
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

/// Whether a policy names or selects the service. Where its labels could not be read, its status
/// says what its selectors found.
fn is_about(policy: &InvokerPolicy, intent: &Intent, facts: &Facts) -> bool {
    let s = &facts.service;
    let Known::Is(front) = &facts.front else {
        let found = policy.status.iter().flat_map(|status| &status.services);
        let mut named = intent.targets.iter();
        return named.any(|t| matches!(t, Target::Named(n) if n == s))
            || intent.project == s.project
                && found
                    .into_iter()
                    .any(|x| *x.name == *s.name && *x.region == *s.region);
    };
    let info = ServiceInfo {
        service: s.clone(),
        uid: "".into(),
        labels: Arc::new(front.labels.clone()),
        invoker_iam_disabled: front.invoker_iam_disabled,
        ingress: Ingress::from_v2(&front.ingress),
        iap: front.iap,
    };
    intent.project == s.project && intent.targets.iter().any(|t| t.selects(&info))
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
