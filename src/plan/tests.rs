//! Rules of product.md §2 as a table, and the properties that hold for every plan.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    api::{Mode, OnDelete},
    iam::{Condition, Principal, Role},
    intent::Declared,
};

const NOW: &str = "2026-11-23T12:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}
fn grant(member: &str) -> Grant {
    Grant::new(Principal::from_live(member), Role::Invoker)
}
fn intent(name: &str, members: &[&str]) -> Intent {
    Intent {
        id: PolicyId { namespace: "ns".into(), name: name.into(), uid: format!("uid-{name}").into() },
        generation: 1,
        project: "acme".into(),
        targets: vec![],
        declared: members.iter().map(|m| Declared { grant: grant(m), expires: None }).collect(),
        role: Role::Invoker,
        mode: Mode::Enforce,
        membership: Membership::Authoritative,
        on_delete: OnDelete::Revoke,
        suspended: false,
        interval: Duration::from_secs(300),
        deleting: false,
        requested_at: None,
        rejections: vec![],
    }
}
fn live(members: &[&str]) -> Policy {
    serde_json::from_value(json!({"etag": "E", "bindings": [
        {"role": "roles/run.admin", "members": ["user:root@acme.com"]},
        {"role": "roles/run.invoker", "members": members},
        {"role": "roles/run.invoker", "members": ["user:foreign@acme.com"], "condition": {"title": "x", "expression": "y"}},
    ]}))
    .unwrap()
}
#[derive(Debug)]
struct Case {
    intents: Vec<Intent>,
    live: Policy,
    ledger: BTreeMap<Grant, Standing>,
    aside: BTreeMap<Grant, Aside>,
    settings: Settings,
}
impl Case {
    fn new(intents: Vec<Intent>, live: Policy) -> Self {
        Self { intents, live, ledger: BTreeMap::new(), aside: BTreeMap::new(), settings: Settings::default() }
    }
    fn with<R>(&self, f: impl FnOnce(&Input<'_>) -> R) -> R {
        let service = RunService::new("acme", "europe-west1", "web");
        let intents: Vec<&Intent> = self.intents.iter().collect();
        f(&Input {
            service: &service,
            intents: &intents,
            live: &self.live,
            ledger: &self.ledger,
            aside: &self.aside,
            settings: &self.settings,
            now: now(),
        })
    }
    fn plan(&self) -> Plan {
        self.with(|input| {
            let p = plan(input);
            check(&p, input).unwrap();
            p
        })
    }
}
fn names<V>(map: &BTreeMap<Grant, V>) -> Vec<String> {
    map.keys().map(|g| g.principal.to_string()).collect()
}

#[test]
fn an_authoritative_policy_grants_what_is_missing_and_revokes_what_nobody_lists() {
    let p = Case::new(
        vec![intent("a", &["user:new@acme.com", "user:stays@acme.com"])],
        live(&["user:stays@acme.com", "user:old@acme.com"]),
    )
    .plan();
    assert_eq!(names(&p.grants), ["user:new@acme.com"]);
    assert_eq!(names(&p.revokes), ["user:old@acme.com"]);
}

#[test]
fn a_member_that_an_audited_or_suspended_policy_lists_is_not_removed() {
    let mut audited = intent("audited", &["user:a@acme.com"]);
    audited.mode = Mode::Audit;
    let mut suspended = intent("suspended", &["user:s@acme.com"]);
    suspended.suspended = true;
    let p = Case::new(
        vec![intent("e", &["user:e@acme.com"]), audited, suspended],
        live(&["user:a@acme.com", "user:s@acme.com", "user:x@acme.com"]),
    )
    .plan();
    assert_eq!(names(&p.revokes), ["user:x@acme.com"]);
}

#[test]
fn an_audited_policy_writes_nothing_and_sees_everything() {
    let mut audited = intent("a", &["user:new@acme.com"]);
    audited.mode = Mode::Audit;
    let case = Case::new(vec![audited], live(&["user:old@acme.com"]));
    let p = case.plan();
    assert!(p.is_empty());
    assert_eq!(p.withheld[0].why, Hold::Audited);
    let v = case.with(|input| view(input.intents[0], input));
    assert_eq!((v.missing.len(), v.unexpected.len()), (1, 1));
}

#[test]
fn deleting_one_of_two_policies_leaves_the_member_that_both_list() {
    let mut leaving = intent("leaving", &["user:both@acme.com", "user:only@acme.com"]);
    leaving.deleting = true;
    let mut other = intent("other", &["user:both@acme.com"]);
    other.membership = Membership::Additive;
    let p = Case::new(vec![leaving, other], live(&["user:both@acme.com", "user:only@acme.com"])).plan();
    assert_eq!(p.revokes, [(grant("user:only@acme.com"), RevokeCause::PolicyDeleted)].into());
}

#[test]
fn additive_revokes_only_what_the_operator_granted() {
    let mut additive = intent("a", &["user:listed@acme.com"]);
    additive.membership = Membership::Additive;
    let mut case =
        Case::new(vec![additive], live(&["user:listed@acme.com", "user:ours@acme.com", "user:theirs@acme.com"]));
    case.ledger.insert(grant("user:ours@acme.com"), Standing::Enforcing);
    assert_eq!(case.plan().revokes, [(grant("user:ours@acme.com"), RevokeCause::NoLongerDeclared)].into());
}

#[test]
fn a_grant_whose_policy_was_retained_is_forgotten_and_left() {
    let mut case = Case::new(vec![], live(&["user:kept@acme.com"]));
    case.ledger.insert(grant("user:kept@acme.com"), Standing::Gone);
    let p = case.plan();
    assert!(p.is_empty());
    assert_eq!(p.forget, [grant("user:kept@acme.com")].into());
}

#[test]
fn what_was_granted_is_kept_while_its_policy_is_only_audited() {
    let mut audited = intent("a", &[]);
    audited.mode = Mode::Audit;
    let mut case = Case::new(vec![audited], live(&["user:ours@acme.com"]));
    case.ledger.insert(grant("user:ours@acme.com"), Standing::Passive);
    let p = case.plan();
    assert!(p.is_empty() && p.forget.is_empty());
}

#[test]
fn google_service_agents_are_protected_and_shown() {
    let agent = "serviceAccount:service-123@gcp-sa-iap.iam.gserviceaccount.com";
    let case = Case::new(vec![intent("a", &["user:a@acme.com"])], live(&["user:a@acme.com", agent]));
    assert!(case.plan().is_empty());
    assert_eq!(case.with(|i| view(i.intents[0], i)).protected, [grant(agent)].into());
}

#[test]
fn a_deleted_leftover_goes_when_authoritative_and_stays_when_additive() {
    let leftover = "deleted:serviceAccount:x@acme.iam.gserviceaccount.com?uid=1";
    let mut case = Case::new(vec![intent("a", &["user:a@acme.com"])], live(&["user:a@acme.com", leftover]));
    assert_eq!(names(&case.plan().revokes), [leftover]);
    case.intents[0].membership = Membership::Additive;
    assert!(case.plan().is_empty());
}

#[test]
fn an_expired_grant_is_removed_and_no_longer_wanted() {
    let ended: Timestamp = "2026-11-23T11:00:00Z".parse().unwrap();
    let condition = Condition::expiring(ended, None);
    let g = Grant { condition: Some(condition.clone().into()), ..grant("user:temp@acme.com") };
    let mut temp = intent("a", &["user:a@acme.com"]);
    temp.membership = Membership::Additive;
    temp.declared = [&temp.declared[..], &[Declared { grant: g.clone(), expires: Some(ended) }]].concat().into();
    let mut policy = live(&["user:a@acme.com"]);
    policy.bindings.push(crate::iam::Binding {
        role: "roles/run.invoker".into(),
        members: vec!["user:temp@acme.com".into()],
        condition: Some((&condition).into()),
        extra: Default::default(),
    });
    assert_eq!(Case::new(vec![temp], policy).plan().revokes, [(g, RevokeCause::Expired)].into());
}

#[test]
fn public_members_need_permission() {
    let mut case = Case::new(vec![intent("a", &["allUsers"])], live(&[]));
    let p = case.plan();
    assert!(p.is_empty());
    assert_eq!(p.withheld.last().map(|w| w.why.clone()), Some(Hold::Public));
    case.settings.allow_public = true;
    assert_eq!(names(&case.plan().grants), ["allUsers"]);
}

#[test]
fn a_member_that_iam_refused_does_not_hold_the_others_up() {
    let mut case = Case::new(vec![intent("a", &["user:good@acme.com", "user:bad@acme.com"])], live(&[]));
    case.aside.insert(grant("user:bad@acme.com"), Aside { reason: Reason::InvalidMember, message: "no".into() });
    let p = case.plan();
    assert_eq!(names(&p.grants), ["user:good@acme.com"]);
    assert_eq!(p.withheld.iter().filter(|w| w.why.reason() == Reason::InvalidMember).count(), 1);
}

#[test]
fn the_member_limit_is_checked_before_the_call() {
    let many: Vec<String> = (0..1499).map(|i| format!("user:u{i}@acme.com")).collect();
    let mut additive = intent("a", &["user:x@acme.com", "user:y@acme.com"]);
    additive.membership = Membership::Additive;
    let mut policy = live(&[]);
    policy.bindings = vec![crate::iam::Binding { role: "roles/run.admin".into(), members: many, ..Default::default() }];
    let p = Case::new(vec![additive], policy).plan();
    assert_eq!(names(&p.grants), ["user:x@acme.com"]);
    assert_eq!(p.withheld[0].why, Hold::MemberLimit { would_be: 1501 });
}

#[test]
fn hashed_conditions_refuse_every_write() {
    let mut policy = live(&["user:old@acme.com"]);
    policy.bindings[2].role = "roles/run.invoker_withcond_0123".into();
    let p = Case::new(vec![intent("a", &["user:new@acme.com"])], policy).plan();
    assert!(p.is_empty());
    assert!(p.withheld.iter().all(|w| w.why == Hold::HashedConditions));
}

#[test]
fn only_the_role_that_is_declared_is_authoritative() {
    let mut services = intent("a", &["user:a@acme.com"]);
    services.role = Role::ServicesInvoker;
    services.declared = services
        .declared
        .into_iter()
        .map(|mut d| {
            d.grant.role = Role::ServicesInvoker;
            d
        })
        .collect();
    let p = Case::new(vec![services], live(&["user:other@acme.com"])).plan();
    assert!(p.revokes.is_empty());
    assert_eq!(p.grants.len(), 1);
}

// ---- properties ----

const POOL: &[&str] = &[
    "user:a@acme.com",
    "user:A@acme.com",
    "user:b@acme.com",
    "group:c@acme.com",
    "serviceAccount:d@p.iam.gserviceaccount.com",
    "serviceAccount:service-1@gcp-sa-iap.iam.gserviceaccount.com",
    "deleted:user:e@acme.com?uid=1",
    "domain:acme.com",
    "principal://iam.googleapis.com/projects/1/x/subject/S",
    "allUsers",
];

fn condition() -> impl Strategy<Value = Option<Condition>> {
    prop_oneof![
        3 => Just(None),
        1 => Just(Some(Condition { title: "t".into(), description: String::new(), expression: "request.path == '/'".into() })),
        1 => (-2i64..3).prop_map(|h| Some(Condition::expiring(now() + jiff::SignedDuration::from_hours(h), None))),
    ]
}
fn any_grant() -> impl Strategy<Value = Grant> {
    (0..POOL.len(), any::<bool>(), condition()).prop_map(|(i, services, c)| Grant {
        principal: Principal::from_live(POOL[i]),
        role: if services { Role::ServicesInvoker } else { Role::Invoker },
        condition: c.map(Into::into),
    })
}
fn any_intent(name: usize) -> impl Strategy<Value = Intent> {
    (proptest::collection::vec((0..POOL.len(), condition()), 0..5), any::<[bool; 6]>()).prop_map(move |(members, b)| {
        let role = if b[0] { Role::Invoker } else { Role::ServicesInvoker };
        let mut i = intent(&format!("p{name}"), &[]);
        i.role = role;
        i.declared = members
            .into_iter()
            .map(|(m, c)| Declared {
                expires: c.as_ref().and_then(Condition::expiry),
                grant: Grant { principal: Principal::from_live(POOL[m]), role, condition: c.map(Into::into) },
            })
            .collect();
        i.mode = if b[1] || b[2] { Mode::Enforce } else { Mode::Audit };
        i.suspended = b[3] && b[4];
        i.membership = if b[4] { Membership::Authoritative } else { Membership::Additive };
        i.deleting = b[5] && b[1];
        i
    })
}
fn any_live() -> impl Strategy<Value = Policy> {
    let member = (0..POOL.len()).prop_map(|i| POOL[i].to_owned());
    let role = prop_oneof![
        Just("roles/run.invoker"),
        Just("roles/run.servicesInvoker"),
        Just("roles/run.admin"),
        Just("projects/p/roles/custom")
    ];
    let binding =
        (role, proptest::collection::vec(member, 1..5), condition(), any::<bool>()).prop_map(|(r, m, c, unknown)| {
            crate::iam::Binding {
                role: r.into(),
                members: m,
                condition: c.as_ref().map(Into::into),
                extra: if unknown {
                    json!({"bindingId": "7"}).as_object().cloned().unwrap()
                } else {
                    Default::default()
                },
            }
        });
    (proptest::collection::vec(binding, 0..6), any::<bool>()).prop_map(|(bindings, audit)| Policy {
        version: 3,
        bindings,
        etag: crate::iam::Etag("E".into()),
        extra: if audit {
            json!({"auditConfigs": [{"service": "all"}]}).as_object().cloned().unwrap()
        } else {
            Default::default()
        },
    })
}
fn any_case() -> impl Strategy<Value = Case> {
    let intents = (any_intent(0), any_intent(1), any_intent(2), 0usize..4)
        .prop_map(|(a, b, c, n)| [a, b, c].into_iter().take(n).collect::<Vec<_>>());
    let standing = prop_oneof![Just(Standing::Gone), Just(Standing::Passive), Just(Standing::Enforcing)];
    (intents, any_live(), proptest::collection::btree_map(any_grant(), standing, 0..4), any::<bool>()).prop_map(
        |(intents, live, ledger, public)| Case {
            intents,
            live,
            ledger,
            aside: BTreeMap::new(),
            settings: Settings { allow_public: public, ..Settings::default() },
        },
    )
}

proptest! {
    #[test]
    fn planning_again_after_applying_is_empty(mut case in any_case()) {
        let first = case.plan();
        case.live = first.applied_to(&case.live);
        let second = case.plan();
        prop_assert!(second.is_empty(), "{second:?}");
    }

    #[test]
    fn bindings_of_other_roles_and_unknown_conditions_are_untouched(case in any_case()) {
        let after = case.plan().applied_to(&case.live);
        let foreign = |p: &Policy| p.bindings.iter().filter(|b| Role::from_name(&b.role).is_none()).cloned().collect::<Vec<_>>();
        prop_assert_eq!(foreign(&after), foreign(&case.live));
        prop_assert_eq!(&after.extra, &case.live.extra);
        // Members that stay keep their spelling and their order.
        for (role, condition) in case.live.bindings.iter().map(|b| (&b.role, &b.condition)) {
            let texts = |p: &Policy| p.bindings.iter().filter(|b| b.role == *role && b.condition == *condition).flat_map(|b| b.members.clone()).collect::<Vec<_>>();
            let (old, new) = (texts(&case.live), texts(&after));
            let kept: Vec<_> = new.iter().filter(|m| old.contains(m)).cloned().collect();
            let expected: Vec<_> = old.iter().filter(|m| new.contains(m)).cloned().collect();
            prop_assert_eq!(kept, expected);
        }
    }

    #[test]
    fn the_order_of_policies_does_not_matter(mut case in any_case()) {
        let forward = case.plan();
        case.intents.reverse();
        prop_assert_eq!(forward, case.plan());
    }

    #[test]
    fn no_grant_that_any_remaining_policy_lists_is_absent_while_another_goes(case in any_case()) {
        let before = case.live.grants();
        let after = case.plan().applied_to(&case.live).grants();
        for i in case.intents.iter().filter(|i| !i.deleting) {
            for g in i.grants_at(now()) {
                prop_assert!(!before.contains(g) || after.contains(g), "{g} went");
            }
        }
    }

    #[test]
    fn an_enforced_policy_sees_no_drift_after_its_plan_unless_something_is_withheld(mut case in any_case()) {
        let p = case.plan();
        case.live = p.applied_to(&case.live);
        case.with(|input| {
            for i in input.intents.iter().filter(|i| i.enforces() && !i.deleting) {
                let v = view(i, input);
                for g in v.missing.iter().chain(&v.unexpected) {
                    assert!(p.withheld.iter().any(|w| w.grant == *g), "{g} is neither in sync nor withheld");
                }
            }
        });
    }
}
