use std::sync::LazyLock;

use serde_json::json;

use super::*;
use crate::{
    api::{EventReason, ServiceState},
    fault::FaultClass,
    plan::{Exposure, PublicRole},
};

fn intent(spec: serde_json::Value, generation: i64) -> Intent {
    let mut full = json!({"project": "acme-prod", "services": [{"name": "web", "region": "europe-west1"}],
        "invokers": [{"member": "user:a@acme.com"}], "mode": "Enforce"});
    full.as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    let policy = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy",
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": generation}, "spec": full});
    Intent::from_policy(&serde_json::from_value(policy).unwrap())
}
static PREDEFINED: LazyLock<InvokingRoles> = LazyLock::new(InvokingRoles::default);
fn at(s: &str) -> Timestamp {
    s.parse().unwrap()
}
type Looks<'a> = BTreeMap<RunService, Option<&'a Observation>>;
/// Facts of an ordinary day.
fn facts<'a>(intent: &'a Intent, observations: &'a Looks<'a>, now: &str) -> StatusInput<'a> {
    StatusInput {
        intent,
        observations,
        unmatched: &[],
        discovery: None,
        discovering: false,
        denied: &[],
        outside: 0,
        reach: None,
        stopped: None,
        back: &[],
        last_change: None,
        inherited: None,
        opened: &[],
        roles: &PREDEFINED,
        changed_at: observations
            .values()
            .flatten()
            .filter_map(|o| o.changed_at)
            .max(),
        writing: false,
        propagation: Duration::from_secs(420),
        now: at(now),
    }
}
fn run(
    intent: &Intent,
    observation: Option<Observation>,
    old: &InvokerPolicyStatus,
    now: &str,
) -> InvokerPolicyStatus {
    let service = RunService::new("acme-prod", "europe-west1", "web");
    let observations = BTreeMap::from([(service, observation.as_ref())]);
    let status = compute_status(&facts(intent, &observations, now), old);
    kstatus::check(&status, intent.generation).unwrap();
    status
}
fn ok(seen: Findings) -> Option<Observation> {
    Some(Observation {
        generation: 1,
        requested_at: None,
        result: Ok(seen),
        changed_at: None,
    })
}
fn unchanged(drift: &Drift) -> events::Changed<'_> {
    events::Changed {
        drifted: drift,
        by: By::NotAsked,
        written: vec![],
    }
}
fn cond<'a>(s: &'a InvokerPolicyStatus, t: &str) -> Option<(&'a str, &'a str)> {
    s.conditions
        .iter()
        .find(|c| c.type_ == t)
        .map(|c| (c.status.as_str(), c.reason.as_str()))
}
const T0: &str = "2026-11-23T12:00:00Z";
const T1: &str = "2026-11-23T12:01:00Z";

#[test]
fn a_policy_whose_services_were_not_read_is_reconciling() {
    let s = run(&intent(json!({}), 1), None, &Default::default(), T0);
    assert_eq!(cond(&s, "Ready"), Some(("Unknown", "Progressing")));
    assert_eq!(cond(&s, "Reconciling"), Some(("True", "Progressing")));
    assert_eq!(s.observed_generation, None);
}

#[test]
fn a_status_that_is_kept_takes_little_and_reads_back() {
    let mut seen = ok(Findings::default());
    seen.as_mut().unwrap().changed_at = Some(at(T0));
    let status = run(&intent(json!({}), 1), seen, &Default::default(), T1);
    let json = serde_json::to_string(&status).unwrap();
    let kept = crate::index::SerializedStatus::of(&status);
    assert_eq!(kept.get(), status);
    // A text that changes in such a status changes in typical-status.json too.
    assert!(
        kept.size() * 3 < json.len(),
        "{} of {}: {json}",
        kept.size(),
        json.len()
    );
    let other = InvokerPolicyStatus {
        last_change: Some("x".repeat(70_000)),
        ..status
    };
    assert_eq!(crate::index::SerializedStatus::of(&other).get(), other);
    assert_eq!(
        crate::index::SerializedStatus::default().get(),
        Default::default()
    );
}

#[test]
fn an_observation_for_an_older_spec_does_not_count() {
    let s = run(
        &intent(json!({}), 2),
        ok(Findings::default()),
        &Default::default(),
        T0,
    );
    assert_eq!(cond(&s, "Ready"), Some(("Unknown", "Progressing")));
}

#[test]
fn in_sync_is_ready_and_times_move_only_with_status() {
    let i = intent(json!({}), 1);
    let first = run(&i, ok(Findings::default()), &Default::default(), T0);
    let second = run(&i, ok(Findings::default()), &first, T1);
    assert_eq!(cond(&first, "Ready"), Some(("True", "InSync")));
    assert_eq!(first, second);
}

#[test]
fn after_a_restart_the_old_status_stands_until_the_first_observation() {
    let i = intent(json!({}), 1);
    let told = run(&i, ok(Findings::default()), &Default::default(), T0);
    assert_eq!(run(&i, None, &told, T1), told);
    let edited = intent(json!({}), 2);
    assert_eq!(
        cond(&run(&edited, None, &told, T1), "Ready"),
        Some(("Unknown", "Progressing"))
    );
}

#[test]
fn what_was_reported_of_a_service_stands_until_it_is_read_again() {
    let before = run(
        &intent(json!({}), 1),
        ok(Findings::default()),
        &Default::default(),
        T0,
    );
    let mut asked = intent(json!({}), 1);
    asked.requested_at = Some("now".into());
    let after = run(&asked, None, &before, T1);
    assert_eq!(cond(&after, "Ready"), Some(("Unknown", "Progressing")));
    assert_eq!(after.services, before.services);
    let suspended = run(&intent(json!({"suspend": true}), 2), None, &before, T1);
    assert!(suspended.services.is_empty(), "nobody looks at it any more");
}

#[test]
fn an_audited_difference_is_ready_and_drifted() {
    let seen = Findings {
        missing: ["user:a@acme.com"].into_iter().collect(),
        ..Default::default()
    };
    let s = run(
        &intent(json!({"mode": "Audit"}), 1),
        ok(seen),
        &Default::default(),
        T0,
    );
    assert_eq!(cond(&s, "Ready"), Some(("True", "Audited")));
    assert_eq!(cond(&s, "Drifted"), Some(("True", "Drifted")));
    assert!(
        s.conditions
            .iter()
            .any(|c| c.message == "web (europe-west1): missing user:a@acme.com")
    );
}

#[test]
fn a_permanent_failure_stalls_and_a_passing_one_reconciles() {
    let i = intent(json!({}), 1);
    for (class, condition, reason) in [
        (FaultClass::PermissionDenied, "Stalled", "PermissionDenied"),
        (FaultClass::ServiceNotFound, "Stalled", "ServiceNotFound"),
        (FaultClass::Unavailable, "Reconciling", "Unavailable"),
        (FaultClass::QuotaExceeded, "Reconciling", "QuotaExceeded"),
    ] {
        let observation = Observation {
            generation: 1,
            requested_at: None,
            result: Err(Fault::new(class, "said Google.")),
            changed_at: None,
        };
        let s = run(&i, Some(observation), &Default::default(), T0);
        assert_eq!(cond(&s, "Ready"), Some(("False", reason)));
        assert_eq!(cond(&s, condition), Some(("True", reason)));
    }
}

#[test]
fn a_refused_member_stalls_and_is_named() {
    let held = Held {
        member: "user:x@acme.com".into(),
        reason: Reason::InvalidMember,
        message: "User x does not exist.".into(),
    };
    let seen = Findings {
        missing: ["user:x@acme.com"].into_iter().collect(),
        held: vec![held],
        ..Default::default()
    };
    let s = run(&intent(json!({}), 1), ok(seen), &Default::default(), T0);
    assert_eq!(cond(&s, "Stalled"), Some(("True", "InvalidMember")));
    assert_eq!(s.services[0].state, ServiceState::Held);
    assert!(
        s.services[0]
            .message
            .contains("user:x@acme.com: User x does not exist.")
    );
}

#[test]
fn propagation_ends_by_itself_and_survives_a_restart() {
    let i = intent(json!({}), 1);
    let observation = Some(Observation {
        generation: 1,
        requested_at: None,
        result: Ok(Findings::default()),
        changed_at: Some(at(T0)),
    });
    let fresh = run(&i, observation, &Default::default(), T0);
    assert_eq!(cond(&fresh, "Propagated"), Some(("False", "Progressing")));
    let restarted = run(&i, ok(Findings::default()), &fresh, T1);
    assert_eq!(
        cond(&restarted, "Propagated"),
        Some(("False", "Progressing"))
    );
    let later = run(
        &i,
        ok(Findings::default()),
        &restarted,
        "2026-11-23T12:07:00Z",
    );
    assert_eq!(cond(&later, "Propagated"), Some(("True", "InSync")));
}

#[test]
fn long_lists_are_bounded_and_say_how_much_is_missing() {
    let service = |n: usize| RunService::new("acme-prod", "europe-west1", format!("s{n:03}"));
    let observation = Observation {
        generation: 1,
        requested_at: None,
        result: Ok(Findings {
            missing: (0..30).map(|i| format!("user:u{i}@a.co")).collect(),
            ..Default::default()
        }),
        changed_at: None,
    };
    let fine = Observation {
        generation: 1,
        requested_at: None,
        result: Ok(Findings::default()),
        changed_at: None,
    };
    let observations = (0..150)
        .map(|n| {
            (
                service(n),
                Some(if n == 149 { &observation } else { &fine }),
            )
        })
        .collect();
    let i = intent(json!({}), 1);
    let s = compute_status(&facts(&i, &observations, T0), &Default::default());
    assert_eq!((s.services.len(), s.services_omitted), (100, Some(50)));
    assert_eq!(s.services[0].name, "s149");
    assert_eq!(
        s.services[0].missing.last().map(String::as_str),
        Some("and 10 more")
    );
}

#[test]
fn a_second_observation_that_finds_the_same_makes_no_event() {
    let service = RunService::new("acme-prod", "europe-west1", "web");
    let held = Held {
        member: "user:a@acme.com".into(),
        reason: Reason::InvalidMember,
        message: "no".into(),
    };
    let found = Findings {
        held: vec![held],
        ..Default::default()
    };
    let drift = Drift::default();
    let nothing = unchanged(&drift);
    let first = events::notes(&service, None, &found, &nothing);
    assert_eq!(
        first.iter().map(|n| n.reason.as_str()).collect::<Vec<_>>(),
        ["InvalidMember"]
    );
    assert!(events::notes(&service, Some(&found), &found, &nothing).is_empty());
}

/// A custom role is what it is: nobody claims that its holders invoke, and nobody keeps quiet where
/// everybody has it. Once a search shows what it carries, both are plain.
#[test]
fn a_role_that_nobody_knows_is_said_as_that_until_a_search_shows_it() {
    let service = RunService::new("acme-prod", "europe-west1", "web");
    let role: Arc<str> = "projects/acme-prod/roles/caller".into();
    let public = PublicRole {
        member: "allUsers".into(),
        role: role.clone(),
        from: "from the internet",
    };
    let deployers = ["user:d@acme.com (projects/acme-prod/roles/caller)"];
    let found = Findings {
        also: ["user:root@acme.com (roles/run.admin)"]
            .into_iter()
            .collect(),
        perhaps_also: [(role.clone(), deployers.into_iter().collect())].into(),
        exposed: Some(Exposure::Perhaps([public].into())),
        ..Findings::default()
    };
    let (seen, i) = (ok(found.clone()).unwrap(), intent(json!({}), 1));
    let observations: Looks<'_> = BTreeMap::from([(service.clone(), Some(&seen))]);
    let input = facts(&i, &observations, T0);
    let before = compute_status(&input, &Default::default());
    kstatus::check(&before, 1).unwrap();
    assert_eq!(cond(&before, "Ready"), Some(("True", "InSync")));
    assert_eq!(cond(&before, "Exposed"), Some(("Unknown", "Drifted")));
    let entry = &before.services[0];
    assert_eq!(
        entry.also_invokers,
        ["user:root@acme.com (roles/run.admin)"]
    );
    assert!(!entry.exposed && entry.message.contains("gcloud iam roles describe caller"));
    let told = |old: &InvokerPolicyStatus, new: &InvokerPolicyStatus| {
        let notes = events::announcements(old, new, false).into_iter();
        notes.map(|n| n.text).collect::<Vec<_>>()
    };
    let perhaps = told(&Default::default(), &before);
    assert!(
        perhaps[0].starts_with("perhaps anyone can call web"),
        "{perhaps:?}"
    );
    assert!(told(&before, &before).is_empty(), "the same is no news");

    let roles = InvokingRoles::shown([&role]);
    let input = StatusInput {
        roles: &roles,
        ..facts(&i, &observations, T0)
    };
    let after = compute_status(&input, &before);
    assert_eq!(cond(&after, "Exposed"), Some(("True", "Drifted")));
    let entry = &after.services[0];
    assert!(entry.exposed && entry.message.is_empty(), "{entry:?}");
    assert_eq!(entry.also_invokers[1..], deployers);
    let surely = told(&before, &after);
    assert!(surely[0].starts_with("anyone can call web"), "{surely:?}");
    assert!(told(&after, &before).is_empty(), "less is no alarm");
}

/// Each service more is news, also where the condition is True already.
#[test]
fn whatever_is_newly_exposed_is_told_once() {
    let exposed = |names: &[&str]| {
        let open = |name: &&str| {
            let found = Findings {
                exposed: Some(Exposure::Surely("why".into())),
                ..Findings::default()
            };
            let service = RunService::new("acme-prod", "europe-west1", *name);
            (service, ok(found).unwrap())
        };
        let seen: Vec<_> = names.iter().map(open).collect();
        let observations = seen.iter().map(|(s, o)| (s.clone(), Some(o))).collect();
        compute_status(
            &facts(&intent(json!({}), 1), &observations, T0),
            &Default::default(),
        )
    };
    let states = [exposed(&[]), exposed(&["a"]), exposed(&["a", "b"])];
    for (i, old) in states.iter().enumerate() {
        for (j, new) in states.iter().enumerate() {
            let told = events::announcements(old, new, false);
            let told: Vec<_> = told.iter().map(|n| n.reason.as_str()).collect();
            let wanted: &[&str] = if j > i { &["Exposed"] } else { &[] };
            assert_eq!(told, wanted, "{i} to {j}");
        }
    }
}

/// Names stay few whatever is found above; the numbers are of all.
#[test]
fn of_many_grants_above_a_status_shows_the_first_twenty_unlisted_ones_first() {
    use crate::inherited::{Above, InheritedGrant, Level};
    let grant = |n: usize| InheritedGrant {
        principal: crate::iam::Principal::from_live(&format!("user:u{n:02}@acme.com")),
        role: "roles/owner".into(),
        level: Level::Project,
        resource: "projects/acme-prod".into(),
        conditional: false,
    };
    let grants: Vec<InheritedGrant> = (0..25).map(grant).collect();
    let view = InheritedView {
        above: Above::Known {
            grants: grants.iter().collect(),
            unseen: None,
            unsearched: None,
            stale: false,
        },
        listed: (0..25).map(|n| n < 3).collect(),
    };
    let (seen, i) = (ok(Findings::default()).unwrap(), intent(json!({}), 1));
    let service = RunService::new("acme-prod", "europe-west1", "web");
    let observations: Looks<'_> = BTreeMap::from([(service, Some(&seen))]);
    let input = StatusInput {
        inherited: Some(&view),
        ..facts(&i, &observations, T0)
    };
    let status = compute_status(&input, &Default::default());
    let shown = status.inherited.clone().unwrap();
    assert_eq!((shown.principals, shown.unlisted), (25, 22));
    let members: Vec<&str> = shown.grants.iter().map(|g| g.member.as_str()).collect();
    assert_eq!(members.len(), 20);
    assert_eq!(
        (members[0], members[19]),
        ("user:u03@acme.com", "user:u22@acme.com")
    );
    let bypassed = status.conditions.iter().find(|c| c.type_ == "Bypassed");
    let message = &bypassed.unwrap().message;
    assert!(message.contains("user:u07@acme.com") && message.contains(", and 17 more"));
    assert!(!message.contains("user:u08@acme.com"), "{message}");
}

#[test]
fn what_else_is_held_is_not_said_to_be_applied() {
    let held = |member: &str| Held {
        member: member.into(),
        reason: Reason::GuardrailViolated,
        message: "not allowed by guardrail staff".into(),
    };
    let seen = Findings {
        held: vec![held("user:x@acme.com"), held("user:y@acme.com")],
        ..Default::default()
    };
    let i = intent(json!({"mode": "Enforce"}), 1);
    let said = run(&i, ok(seen), &Default::default(), T0).conditions[0]
        .message
        .clone();
    assert!(said.contains(", and 1 more are held"), "{said}");
}

#[test]
fn in_audit_nobody_says_that_the_rest_is_applied() {
    let held = Held {
        member: "user:x@acme.com".into(),
        reason: Reason::GuardrailViolated,
        message: "not allowed by guardrail staff".into(),
    };
    let seen = Findings {
        missing: ["user:x@acme.com"].into_iter().collect(),
        held: vec![held],
        ..Default::default()
    };
    let ready = |mode: &str| {
        let i = intent(json!({"mode": mode}), 1);
        let s = run(&i, ok(seen.clone()), &Default::default(), T0);
        s.conditions[0].message.clone()
    };
    assert!(ready("Enforce").ends_with("; everything else is applied"));
    assert!(ready("Audit").ends_with("; audit only, nothing is written"));
    let bad = json!({"mode": "Audit", "invokers": [{"member": "user:a@acme.com", "expires": "2026-02-30T00:00:00Z"}]});
    let s = run(
        &intent(bad, 1),
        ok(Findings::default()),
        &Default::default(),
        T0,
    );
    let message = &s.conditions[0].message;
    assert!(
        message.ends_with("; audit only, nothing is written"),
        "{message}"
    );
}

#[test]
fn a_suspended_policy_does_not_show_what_was_found_before() {
    let found = Findings {
        unexpected: ["user:b@acme.com"].into_iter().collect(),
        ..Default::default()
    };
    let suspended = intent(json!({"suspend": true}), 2);
    let s = run(&suspended, ok(found), &Default::default(), T0);
    assert_eq!(cond(&s, "Ready"), Some(("Unknown", "Suspended")));
    assert_eq!(cond(&s, "Drifted"), Some(("Unknown", "Suspended")));
    let summary = s.summary.unwrap();
    assert_eq!(
        (s.services.len(), summary.unexpected, summary.drifted),
        (0, 0, 0)
    );
}

#[test]
fn a_rollback_in_force_has_a_reason_a_condition_and_an_event_at_its_begin_and_end() {
    let service = RunService::new("acme-prod", "europe-west1", "web");
    let (seen, i) = (ok(Findings::default()).unwrap(), intent(json!({}), 1));
    let observations: Looks<'_> = BTreeMap::from([(service.clone(), Some(&seen))]);
    let plain = facts(&i, &observations, T0);
    let back = [(&service, "web-1")];
    let rolled = StatusInput {
        back: &back,
        ..facts(&i, &observations, T0)
    };
    let before = compute_status(&plain, &Default::default());
    let during = compute_status(&rolled, &before);
    kstatus::check(&during, 1).unwrap();
    assert_eq!(cond(&during, "Ready"), Some(("True", "RolledBack")));
    assert_eq!(cond(&during, "RolledBack"), Some(("True", "RolledBack")));
    let reasons = |old, new| -> Vec<EventReason> {
        let notes = events::announcements(old, new, false);
        notes.iter().map(|n| n.reason).collect()
    };
    assert_eq!(reasons(&before, &during), [EventReason::RolledBack]);
    assert_eq!(reasons(&during, &during), []);
    let after = compute_status(&plain, &during);
    assert_eq!(cond(&after, "RolledBack"), None);
    assert_eq!(reasons(&during, &after), [EventReason::RollbackEnded]);
    let audited = intent(json!({"mode": "Audit"}), 1);
    let rolled = StatusInput {
        back: &back,
        ..facts(&audited, &observations, T0)
    };
    let audited = compute_status(&rolled, &before);
    assert_eq!(cond(&audited, "RolledBack"), None, "nothing is written");
}

#[test]
fn drift_that_was_corrected_is_named_by_its_members() {
    let service = RunService::new("acme-prod", "europe-west1", "web");
    let written = Written {
        granted: ["user:a@acme.com"].into_iter().collect(),
        revoked: ["user:x@evil.org", "allUsers"].into_iter().collect(),
        corrects_drift: true,
    };
    let notes = events::changes(&service, &[written]);
    let corrected = notes
        .iter()
        .find(|n| n.reason == EventReason::DriftCorrected);
    let text = &corrected.unwrap().text;
    for member in ["granted user:a@acme.com", "user:x@evil.org", "allUsers"] {
        assert!(text.contains(member), "{text}");
    }
}

/// The definition's default status is no observation: the first real one has a time of its own.
#[test]
fn the_default_of_the_definition_leaves_no_time_behind() {
    let crd = serde_json::to_value(&crate::api::definitions()[0]).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let default = schema["properties"]["status"]["default"].clone();
    let default: InvokerPolicyStatus = serde_json::from_value(default).unwrap();
    kstatus::check(&default, 1).unwrap();
    let s = run(&intent(json!({}), 1), None, &default, T0);
    assert_eq!(s.conditions[0].last_transition_time.0, at(T0));
}

/// A service in each state, by name.
fn one_of_each(
    observation: impl Fn(Result<Findings, Fault>) -> Observation,
) -> [(&'static str, Observation); 5] {
    let held = Held {
        member: "user:x@acme.com".into(),
        reason: Reason::InvalidMember,
        message: "User x@acme.com does not exist".into(),
    };
    let mut denied = Fault::new(
        FaultClass::PermissionDenied,
        "Permission 'run.services.setIamPolicy' denied on resource 'projects/acme-prod/locations/europe-west1/services/denied' (or resource may not exist).",
    );
    denied.request_id = Some("req-1".into());
    [
        (
            "fine",
            observation(Ok(Findings {
                protected: ["serviceAccount:service-1@gcp-sa-iap.iam.gserviceaccount.com"]
                    .into_iter()
                    .collect(),
                ..Findings::default()
            })),
        ),
        (
            "drifted",
            observation(Ok(Findings {
                missing: ["user:a@acme.com"].into_iter().collect(),
                unexpected: ["allUsers"].into_iter().collect(),
                exposed: Some(Exposure::Surely("allUsers may invoke it".into())),
                ..Findings::default()
            })),
        ),
        (
            "held",
            observation(Ok(Findings {
                missing: ["user:x@acme.com"].into_iter().collect(),
                held: vec![held],
                ..Findings::default()
            })),
        ),
        ("denied", observation(Err(denied))),
        (
            "absent",
            observation(Err(Fault::new(
                FaultClass::ServiceNotFound,
                "Resource 'absent' of kind 'SERVICE' in region 'europe-west1' in project 'acme-prod' does not exist.",
            ))),
        ),
    ]
}

/// What a person reads, as a whole: a change of words is a change of this file, to be looked at in
/// review.
#[test]
fn the_status_of_a_mixed_policy_is_golden() {
    let service = |n: &str| RunService::new("acme-prod", "europe-west1", n);
    let observation = |result| Observation {
        generation: 1,
        requested_at: None,
        result,
        changed_at: Some(at(T0)),
    };
    let observations = one_of_each(observation);
    let observations: BTreeMap<RunService, Option<&Observation>> = observations
        .iter()
        .map(|(n, l)| (service(n), Some(l)))
        .collect();
    let i = intent(json!({}), 1);
    let status = compute_status(&facts(&i, &observations, T0), &Default::default());
    kstatus::check(&status, 1).unwrap();
    insta::assert_yaml_snapshot!(status);
}
