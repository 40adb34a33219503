//! What must hold for any bytes at all. Shared by the cargo-fuzz targets and by `tests/fuzz.rs`,
//! which runs a bounded number of mutations on stable Rust.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use run_invoker::{
    audit::{self, Drift, Kind, Trail},
    cloudrun::list_v1,
    iam::{Grant, Policy, Principal, PrincipalKind, Role, RunService},
    intent::{Declared, Guardrail, Limits, Terms},
};

/// A target: its name, which is also the folder of its corpus, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("member", member),
    ("policy", policy),
    ("services", services),
    ("selector", selector),
    ("glob", glob),
    ("audit", audit),
];

/// Members as people declare them and as IAM returns them.
pub fn member(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let live = Principal::from_live(text);
    assert_eq!(
        live.as_str(),
        text,
        "the text of a member is kept byte for byte"
    );
    assert_eq!(
        Principal::from_live(live.key()).key(),
        live.key(),
        "the key of a key is itself"
    );
    assert_eq!(
        live.is_public(),
        text == "allUsers" || text == "allAuthenticatedUsers"
    );
    if let Ok(declared) = Principal::parse(text) {
        assert!(
            text.bytes().all(|b| b.is_ascii_graphic()),
            "accepted {text:?}"
        );
        assert!(
            !matches!(
                declared.kind(),
                PrincipalKind::Deleted | PrincipalKind::Other
            ),
            "accepted {text:?}"
        );
        assert_eq!(declared, live);
    }
}

/// Allow policies as IAM returns them.
pub fn policy(data: &[u8]) {
    let Ok(policy) = serde_json::from_slice::<Policy>(data) else {
        return;
    };
    let text = serde_json::to_vec(&policy).expect("what was read can be written");
    assert_eq!(
        serde_json::from_slice::<Policy>(&text).expect("and read again"),
        policy
    );
    let none = BTreeSet::new();
    let same = policy.with_changes(&none, &none);
    assert_eq!(
        (&same.bindings, &same.etag, &same.extra),
        (&policy.bindings, &policy.etag, &policy.extra)
    );

    let before = policy.grants();
    let extra = Grant::new(Principal::from_live("user:fuzz@acme.com"), Role::Invoker);
    let with = policy.with_changes(&[extra.clone()].into(), &none);
    assert!(with.grants().contains(&extra));
    let without = with.with_changes(&none, &[extra.clone()].into());
    assert!(!without.grants().contains(&extra));
    let expected: BTreeSet<_> = before.iter().filter(|g| **g != extra).cloned().collect();
    assert_eq!(without.grants(), expected, "the others stay");
    let empty = policy.with_changes(&none, &before);
    assert!(
        empty.grants().is_empty(),
        "everything that is listed can be revoked"
    );
    let foreign = |p: &Policy| {
        p.bindings
            .iter()
            .filter(|b| Role::from_name(&b.role).is_none())
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(
        foreign(&empty),
        foreign(&policy),
        "other roles are untouched"
    );
    assert!(policy.member_count() >= before.len());
    let roles = run_invoker::iam::InvokingRoles::default();
    policy.other_invokers(&roles);
    policy.perhaps_invokers(&roles);
}

/// Lists of services as the v1 API returns them.
pub fn services(data: &[u8]) {
    let Ok((listing, _)) = list_v1::read_page("acme-prod", data) else {
        return;
    };
    for info in listing.services {
        let RunService {
            project,
            region,
            name,
        } = &info.service;
        assert_eq!(&**project, "acme-prod");
        let clean = |s: &str| {
            !s.is_empty()
                && s.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        assert!(
            clean(region) && clean(name),
            "{:?} would end up in a URL",
            info.service
        );
    }
}

/// Log entries as anybody who may publish to the topic could write them.
pub fn audit(data: &[u8]) {
    let Ok(Some(entry)) = audit::parse(data) else {
        return;
    };
    let words = entry.by.to_string();
    assert!(
        !words.chars().any(char::is_control),
        "a terminal would obey {words:?}"
    );
    let by = &entry.by;
    let bounds = [
        (&by.principal, 512),
        (&by.tool, 64),
        (&by.user_agent, 256),
        (&by.method, 128),
    ];
    assert!(
        bounds
            .iter()
            .all(|(text, most)| text.chars().count() <= *most),
        "the API server would refuse the record"
    );
    assert!(by.via.len() <= 8 && by.via.iter().all(|v| v.chars().count() <= 512));
    let Kind::PolicySet(set) = entry.kind else {
        return;
    };
    // Whatever it says, nobody is blamed for what is not real.
    let mut trail = Trail::default();
    trail.add(set, entry.by);
    let live = Policy::default();
    let drift = Drift {
        missing: [Grant::new(
            Principal::from_live("user:a@acme.com"),
            Role::Invoker,
        )]
        .into(),
        ..Drift::default()
    };
    assert!(trail.blame(&live, None, &drift).is_empty());
}

/// Label selectors, against a second opinion.
pub fn selector(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Some((first, second)) = text.split_once('\n') else {
        return;
    };
    let Ok(raw) = serde_json::from_str::<LabelSelector>(first) else {
        return;
    };
    let labels: BTreeMap<String, String> = serde_json::from_str(second).unwrap_or_default();
    let Ok(parsed) = Selector::try_from(raw.clone()) else {
        return;
    };
    let exact = raw
        .match_labels
        .iter()
        .flatten()
        .all(|(k, v)| labels.get(k) == Some(v));
    let expressions = raw.match_expressions.iter().flatten().all(|e| {
        let value = labels.get(&e.key);
        let listed = value.is_some_and(|v| e.values.iter().flatten().any(|x| x == v));
        match e.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            other => panic!("{other} was accepted as an operator"),
        }
    });
    assert_eq!(
        parsed.matches(&labels),
        exact && expressions,
        "{raw:?} {labels:?}"
    );
}

/// Globs of guardrails, against a second opinion.
pub fn glob(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Some((pattern, subject)) = text.split_once('\n') else {
        return;
    };
    // The second opinion takes its time with many stars.
    if pattern.len() > 24 || subject.len() > 64 {
        return;
    }
    let rail = |spec: serde_json::Value| {
        let object = serde_json::json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerGuardrail",
            "metadata": {"name": "g"}, "spec": spec});
        let object = serde_json::from_value(object).expect("a guardrail");
        let rails = [std::sync::Arc::new(Guardrail::from_object(&object))];
        Terms::of("team-a", &rails, Limits::default())
    };
    let terms = rail(serde_json::json!({"services": [pattern]}));
    let allowed = terms
        .refuse_service(&RunService::new("p", "r", subject))
        .is_none();
    let (p, s): (Vec<char>, Vec<char>) = (pattern.chars().collect(), subject.chars().collect());
    assert_eq!(allowed, matches(&p, &s), "{pattern:?} {subject:?}");

    let terms = rail(serde_json::json!({"members": [pattern]}));
    let principal = Principal::from_live(subject);
    let declared = Declared {
        grant: Grant::new(principal.clone(), Role::Invoker),
        expires: None,
    };
    if terms
        .refuse_grant(&declared, jiff::Timestamp::UNIX_EPOCH)
        .is_none()
    {
        assert!(!principal.is_public(), "{pattern:?} let {subject:?} in");
        let federated = matches!(
            principal.kind(),
            PrincipalKind::Federated | PrincipalKind::FederatedSet
        );
        assert!(
            !federated || pattern == "*" || pattern.starts_with("principal"),
            "{pattern:?} let {subject:?} in"
        );
        assert!(
            !principal.is_everybody_of_something() || pattern.starts_with("principalSet:"),
            "{pattern:?} {subject:?}"
        );
    }
}

fn matches(pattern: &[char], text: &[char]) -> bool {
    match (pattern.first(), text.first()) {
        (None, None) => true,
        (Some('*'), _) => {
            matches(&pattern[1..], text) || (!text.is_empty() && matches(pattern, &text[1..]))
        }
        (Some('?'), Some(_)) => matches(&pattern[1..], &text[1..]),
        (Some(p), Some(t)) if p == t => matches(&pattern[1..], &text[1..]),
        _ => false,
    }
}
