//! The index as a whole: whose a grant is, what is left behind, and what comes late.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Index;
use crate::{
    api::InvokerPolicy,
    iam::{Condition, Grant, Principal, Role, RunService},
    intent::{Limits, PolicyId},
    ledger::{Ledger, Version},
    plan::{OwnerState, Settings},
};

fn service() -> RunService {
    RunService::new("acme-prod", "europe-west1", "web")
}

fn grant() -> Grant {
    Grant::new(Principal::from_live("user:a@acme.com"), Role::Invoker)
}

fn policy(name: &str, generation: i64, spec: &Value) -> InvokerPolicy {
    let mut object = json!({
        "apiVersion": "run-invoker.dev/v1alpha1",
        "kind": "InvokerPolicy",
        "metadata": {"namespace": "team-a", "name": name, "uid": name, "generation": generation},
        "spec": {
            "project": "acme-prod",
            "mode": "Enforce",
            "services": [{"name": "web", "region": "europe-west1"}],
            "invokers": [{"member": "user:a@acme.com"}],
        },
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn id(name: &str) -> PolicyId {
    PolicyId {
        namespace: "team-a".into(),
        name: name.into(),
        uid: name.into(),
    }
}

fn owned_by(names: &[&str]) -> Ledger {
    let owners: BTreeSet<PolicyId> = names.iter().map(|n| id(n)).collect();
    Ledger {
        lines: [(grant(), owners)].into(),
        ..Ledger::default()
    }
}

fn index(ledger: &Ledger) -> Index {
    let mut index = Index::new(Settings::default());
    index.set_ledger(&service(), ledger, Version::new("10"));
    index
}

fn state(index: &Index, name: &str) -> Option<OwnerState> {
    index
        .owners(&service())
        .get(&grant())?
        .get(&id(name))
        .copied()
}

#[test]
fn a_policy_that_means_the_service_acts_and_one_that_rests_keeps_what_it_has() {
    let mut index = index(&owned_by(&["p"]));
    index.apply_policy(&policy("p", 1, &json!({})), Duration::ZERO);
    assert_eq!(state(&index, "p"), Some(OwnerState::Acting));
    index.apply_policy(&policy("p", 2, &json!({"suspend": true})), Duration::ZERO);
    assert_eq!(state(&index, "p"), Some(OwnerState::Resting));
    index.apply_policy(&policy("p", 3, &json!({"mode": "Audit"})), Duration::ZERO);
    assert_eq!(state(&index, "p"), Some(OwnerState::Resting));
}

#[test]
fn a_service_that_a_policy_names_no_more_is_left_behind_until_nothing_belongs_to_it() {
    let mut index = index(&owned_by(&["p"]));
    index.apply_policy(&policy("p", 1, &json!({})), Duration::ZERO);
    let elsewhere = json!({"services": [{"name": "api", "region": "europe-west1"}]});
    let (_, effect) = index.apply_policy(&policy("p", 2, &elsewhere), Duration::ZERO);
    assert!(effect.services.contains(&service()), "{effect:?}");
    assert!(matches!(state(&index, "p"), Some(OwnerState::Leaving(_))));
    assert_eq!(index.left_behind(), [service()]);
    index.erase_ledger(&service(), Version::new("10"));
    assert!(index.left_behind().is_empty());
}

#[test]
fn a_policy_that_retains_rests_while_it_goes_and_lets_go_once_it_is_gone() {
    let mut index = index(&owned_by(&["p"]));
    let mut going = policy("p", 1, &json!({"onDelete": "Retain"}));
    going.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-11-24T12:00:00Z")).unwrap();
    index.apply_policy(&going, Duration::ZERO);
    assert_eq!(state(&index, "p"), Some(OwnerState::Resting));
    let effect = index.remove_policy(&id("p"));
    assert!(effect.services.contains(&service()));
    assert_eq!(state(&index, "p"), Some(OwnerState::LetGo));
}

#[test]
fn what_is_nobodys_is_reconciled_unless_somebody_lists_it_for_good() {
    let mut index = index(&owned_by(&[]));
    assert_eq!(index.left_behind_from(&service()), Some(Timestamp::MIN));
    index.apply_policy(&policy("p", 1, &json!({"suspend": true})), Duration::ZERO);
    assert_eq!(index.left_behind_from(&service()), None);
}

#[test]
fn what_is_nobodys_and_listed_for_a_time_is_reconciled_when_that_ends() {
    let end = "2026-11-24T12:01:00Z";
    let listing = policy(
        "p",
        1,
        &json!({"suspend": true, "invokers": [{"member": "user:a@acme.com", "expires": end}]}),
    );
    let grant = crate::intent::Intent::from_policy(&listing)
        .declared
        .first()
        .unwrap()
        .grant
        .clone();
    let mut index = index(&Ledger {
        lines: [(grant, BTreeSet::new())].into(),
        ..Ledger::default()
    });
    assert_eq!(
        index.left_behind_from(&service()),
        Some(Timestamp::MIN),
        "nobody lists it"
    );
    index.apply_policy(&listing, Duration::ZERO);
    assert_eq!(
        index.left_behind_from(&service()),
        Some(end.parse().unwrap())
    );
}

#[test]
fn what_is_nobodys_and_protected_waits_for_its_own_end() {
    let end: Timestamp = "2026-11-24T12:01:00Z".parse().unwrap();
    let grant = Grant {
        condition: Some(Condition::expiring(end, None).into()),
        ..grant()
    };
    let mut index = index(&Ledger {
        lines: [(grant, BTreeSet::new())].into(),
        ..Ledger::default()
    });
    index.settings.protected = vec!["user:a@*".into()];
    assert_eq!(index.left_behind_from(&service()), Some(end));
}

#[test]
fn an_older_state_of_a_ledger_does_not_come_back() {
    let mut index = index(&owned_by(&["p"]));
    let mut late =
        crate::ledger::to_object(&service(), &owned_by(&["older"]), Some(&Version::new("9")));
    assert!(!index.apply_ledger(&late));
    late.metadata.resource_version = Some("11".into());
    assert!(index.apply_ledger(&late));
    assert!(
        !index.remove_ledger(&service(), &Version::new("10")),
        "gone in a state that is older than the one known"
    );
}

/// Searches the policy's project, where these may invoke.
fn searched(index: &mut Index, members: &[&str]) -> BTreeSet<String> {
    use crate::inherited::{Search, SearchScope, read_page};
    let bindings = if members.is_empty() {
        json!([])
    } else {
        json!([{"role": "roles/owner", "members": members}])
    };
    let page = json!({"results": [{"resource": "//cloudresourcemanager.googleapis.com/projects/acme-prod",
        "assetType": "cloudresourcemanager.googleapis.com/Project", "project": "projects/7", "policy": {"bindings": bindings}}]});
    let scope = SearchScope::parse("projects/acme-prod").unwrap();
    let mut search = Search::default();
    search.add(read_page(&page).unwrap());
    let changed = index.apply_inherited(&scope, Ok(search));
    changed.iter().map(|k| k.name.to_string()).collect()
}

/// How many principals bypass a policy's list, and the services that everybody can call from above.
fn bypassed(index: &Index, name: &str) -> (Option<i64>, usize) {
    let status = index
        .status_of(&id(name).key(), Duration::ZERO, Timestamp::UNIX_EPOCH)
        .unwrap();
    let record = index.policies().get(&id(name).key()).unwrap();
    (
        status.inherited.map(|i| i.unlisted),
        index.opened_from_above(record, Timestamp::UNIX_EPOCH).len(),
    )
}

/// Nobody is vouched for by an entry that is refused, that has ended, that holds only sometimes, or
/// that is suspended; and a guardrail that ignores what is above ignores no public service.
#[test]
fn only_entries_that_are_in_force_vouch_for_who_gets_in_from_above() {
    use crate::{inherited::SearchScope, intent::Guardrail};
    let named = |name: &str, spec: serde_json::Value| {
        let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerGuardrail", "metadata": {"name": name}, "spec": spec});
        Guardrail::from_object(&serde_json::from_value(object).unwrap())
    };
    let mut index = Index::new(Settings::default());
    index.expect_inherited(&[SearchScope::parse("projects/acme-prod").unwrap()]);
    index.apply_policy(&policy("p", 1, &json!({})), Duration::ZERO);
    searched(&mut index, &["allUsers", "user:b@acme.com"]);
    let unlisted = (Some(2), 1);
    assert_eq!(bypassed(&index, "p"), unlisted);
    let b = json!({"member": "user:b@acme.com"});
    let ended = json!({"member": "user:b@acme.com", "expires": "1969-01-01T00:00:00Z"});
    let office = json!({"member": "user:b@acme.com", "condition": {"title": "office", "expression": "false"}});
    for spec in [
        json!({"invokers": [{"member": "allUsers"}]}),
        json!({"invokers": [ended]}),
        json!({"invokers": [office]}),
        json!({"invokers": [b], "suspend": true}),
    ] {
        index.apply_policy(&policy("q", 1, &spec), Duration::ZERO);
        assert_eq!(bypassed(&index, "p"), unlisted, "{spec}");
    }
    index.apply_policy(&policy("q", 2, &json!({"invokers": [b]})), Duration::ZERO);
    assert_eq!(bypassed(&index, "p"), (Some(1), 1));
    let narrow = json!({"members": ["user:a@acme.com"]});
    index.apply_guardrail(named("narrow", narrow));
    assert_eq!(bypassed(&index, "p"), unlisted);
    index.apply_guardrail(named("quiet", json!({"inherited": "Ignore"})));
    assert_eq!(bypassed(&index, "p"), (None, 1));
}

#[test]
fn only_whom_no_policy_lists_on_every_service_bypasses_a_policy() {
    use crate::inherited::SearchScope;
    let mut index = Index::new(Settings {
        limits: Limits {
            public: true,
            ..Limits::default()
        },
        ..Settings::default()
    });
    let both = json!({"services": [{"name": "web", "region": "europe-west1"}, {"name": "api", "region": "europe-west1"}]});
    index.apply_policy(&policy("p", 1, &both), Duration::ZERO);
    let api = json!({"services": [{"name": "api", "region": "europe-west1"}], "invokers": [{"member": "user:b@acme.com"}]});
    index.apply_policy(&policy("q", 1, &api), Duration::ZERO);
    assert_eq!(bypassed(&index, "p"), (None, 0), "nobody searches");
    index.expect_inherited(&[SearchScope::parse("projects/acme-prod").unwrap()]);
    assert_eq!(
        searched(&mut index, &["user:A@acme.com", "user:b@acme.com"]).len(),
        2
    );
    // b is listed on api by q, and on web by nobody.
    assert_eq!(bypassed(&index, "p"), (Some(1), 0));
    assert_eq!(bypassed(&index, "q"), (Some(0), 0));
    searched(&mut index, &["allUsers"]);
    assert_eq!(bypassed(&index, "p"), (Some(1), 2));
    let public = json!({"invokers": [{"member": "allUsers"}]});
    index.apply_policy(&policy("r", 1, &public), Duration::ZERO);
    assert_eq!(
        bypassed(&index, "p"),
        (Some(1), 1),
        "web is meant to be public"
    );
    assert_eq!(searched(&mut index, &[]).len(), 3);
    assert!(
        searched(&mut index, &[]).is_empty(),
        "nothing is news for nobody"
    );
    assert_eq!(bypassed(&index, "p"), (Some(0), 0));
}
