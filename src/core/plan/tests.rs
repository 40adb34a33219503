//! Rules of product.md §2 as a table, and the properties that hold for every plan.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{api::Reason, iam::ServiceInfo};
use crate::{
    api::{Membership, Mode, OnDelete},
    iam::{Condition, Ingress, Principal, Role},
    intent::{Agreement, Declared, Guardrail, Intent, Terms},
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
        id: PolicyId {
            namespace: "ns".into(),
            name: name.into(),
            uid: format!("uid-{name}").into(),
        },
        generation: 1,
        spec_digest: "spec".into(),
        project: "acme".into(),
        targets: vec![],
        declared: members
            .iter()
            .map(|m| Declared {
                grant: grant(m),
                expires: None,
            })
            .collect(),
        accounts: None,
        role: Role::Invoker,
        mode: Mode::Enforce,
        membership: Membership::Authoritative,
        on_delete: OnDelete::Revoke,
        suspended: false,
        interval: Duration::from_secs(300),
        deleting: false,
        requested_at: None,
        approvals: [].into(),
        rollbacks: [].into(),
        allow_empty: false,
        rejections: vec![],
        remarks: vec![],
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
    ledger: BTreeMap<Grant, Owners>,
    rejected: BTreeMap<Grant, RejectedMember>,
    settings: Settings,
    rails: Vec<Arc<Guardrail>>,
    memory: Memory,
    circuit_open: bool,
    doubtful: BTreeSet<Grant>,
    unanswered: UnansweredSelectors,
    /// Approvals on the ledger.
    approvals: BTreeSet<Arc<str>>,
    agreements: Vec<Arc<Agreement>>,
}
impl Case {
    fn new(intents: Vec<Intent>, live: Policy) -> Self {
        Self {
            intents,
            live,
            ledger: BTreeMap::new(),
            rejected: BTreeMap::new(),
            // Most of these cases are about other things than the blast radius.
            settings: Settings {
                limits: Limits {
                    max_removals: 1000,
                    ..Limits::default()
                },
                ..Settings::default()
            },
            rails: vec![],
            memory: Memory::default(),
            circuit_open: false,
            doubtful: BTreeSet::new(),
            unanswered: UnansweredSelectors::default(),
            approvals: BTreeSet::new(),
            agreements: vec![],
        }
    }
    fn claims(&self) -> Vec<PolicyOnService> {
        let terms = |i: &Intent| {
            Arc::new(Terms::of(
                &i.id.namespace,
                &self.rails,
                self.settings.limits,
            ))
        };
        self.intents
            .iter()
            .map(|i| {
                let mut claim = PolicyOnService::new(Arc::new(i.clone()), terms(i));
                let all = self.agreements.iter().filter(|a| a.policy == i.id.name);
                (claim.denials, claim.agreements) = all.cloned().partition(|a| a.denies());
                claim
            })
            .collect()
    }
    fn with<R>(&self, f: impl FnOnce(&Input<'_>) -> R) -> R {
        let service = RunService::new("acme", "europe-west1", "web");
        f(&Input {
            service: &service,
            claims: &self.claims(),
            live: &self.live,
            ledger: &self.ledger,
            unanswered: &self.unanswered,
            rejected: &self.rejected,
            doubtful: &self.doubtful,
            approvals: &self.approvals,
            memory: &self.memory,
            circuit_open: self.circuit_open,
            settings: &self.settings,
            now: now(),
        })
    }
    /// The ledger is as the plan left it: whose policies are there act, the others stand as they
    /// stood.
    fn remember(&mut self, plan: &Plan) {
        let states: BTreeMap<PolicyId, OwnerState> = self
            .ledger
            .values()
            .flatten()
            .map(|(i, s)| (i.clone(), *s))
            .collect();
        let state = |id: &PolicyId| states.get(id).copied().unwrap_or(OwnerState::Acting);
        self.ledger = plan
            .lines
            .iter()
            .map(|(g, by)| {
                (
                    g.clone(),
                    by.iter().map(|i| (i.clone(), state(i))).collect(),
                )
            })
            .collect();
    }
    fn plan(&self) -> Plan {
        self.with(|input| {
            let p = plan(input);
            check(&p, input).unwrap();
            p
        })
    }
}
/// The grant belongs to some policy that stands so.
fn owned(state: OwnerState) -> Owners {
    let id = PolicyId {
        namespace: "ns".into(),
        name: "owner".into(),
        uid: format!("uid-{state:?}").into(),
    };
    [(id, state)].into()
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
    assert_eq!(p.withheld[0].why, WithheldReason::Audited);
    let v = case.with(|input| view(&input.claims[0], input));
    assert_eq!((v.missing.len(), v.unexpected.len()), (1, 1));
}

#[test]
fn deleting_one_of_two_policies_leaves_the_member_that_both_list() {
    let mut leaving = intent("leaving", &["user:both@acme.com", "user:only@acme.com"]);
    leaving.deleting = true;
    let mut other = intent("other", &["user:both@acme.com"]);
    other.membership = Membership::Additive;
    let p = Case::new(
        vec![leaving, other],
        live(&["user:both@acme.com", "user:only@acme.com"]),
    )
    .plan();
    assert_eq!(
        p.revokes,
        [(grant("user:only@acme.com"), RevokeCause::PolicyDeleted)].into()
    );
}

#[test]
fn additive_revokes_only_what_the_operator_granted() {
    let mut additive = intent("a", &["user:listed@acme.com"]);
    additive.membership = Membership::Additive;
    let mut case = Case::new(
        vec![additive],
        live(&[
            "user:listed@acme.com",
            "user:ours@acme.com",
            "user:theirs@acme.com",
        ]),
    );
    case.ledger
        .insert(grant("user:ours@acme.com"), owned(OwnerState::Acting));
    assert_eq!(
        case.plan().revokes,
        [(grant("user:ours@acme.com"), RevokeCause::NoLongerDeclared)].into()
    );
}

#[test]
fn a_grant_whose_policy_was_retained_is_forgotten_and_left() {
    let mut case = Case::new(vec![], live(&["user:kept@acme.com"]));
    case.ledger
        .insert(grant("user:kept@acme.com"), owned(OwnerState::LetGo));
    let p = case.plan();
    assert!(p.is_empty());
    assert!(p.lines.is_empty());
}

#[test]
fn what_was_granted_is_kept_while_its_policy_is_only_audited() {
    let mut audited = intent("a", &[]);
    audited.mode = Mode::Audit;
    let mut case = Case::new(vec![audited], live(&["user:ours@acme.com"]));
    case.ledger
        .insert(grant("user:ours@acme.com"), owned(OwnerState::Resting));
    let p = case.plan();
    assert!(p.is_empty() && p.lines.contains_key(&grant("user:ours@acme.com")));
}

#[test]
fn google_service_agents_are_protected_and_shown() {
    let agent = "serviceAccount:service-123@gcp-sa-iap.iam.gserviceaccount.com";
    let case = Case::new(
        vec![intent("a", &["user:a@acme.com"])],
        live(&["user:a@acme.com", agent]),
    );
    assert!(case.plan().is_empty());
    assert_eq!(
        case.with(|i| view(&i.claims[0], i)).protected,
        [grant(agent)].into()
    );
}

#[test]
fn a_deleted_leftover_goes_when_authoritative_and_stays_when_additive() {
    let leftover = "deleted:serviceAccount:x@acme.iam.gserviceaccount.com?uid=1";
    let mut case = Case::new(
        vec![intent("a", &["user:a@acme.com"])],
        live(&["user:a@acme.com", leftover]),
    );
    assert_eq!(names(&case.plan().revokes), [leftover]);
    case.intents[0].membership = Membership::Additive;
    assert!(case.plan().is_empty());
}

#[test]
fn an_expired_grant_is_removed_and_no_longer_wanted() {
    let ended: Timestamp = "2026-11-23T11:00:00Z".parse().unwrap();
    let condition = Condition::expiring(ended, None);
    let g = Grant {
        condition: Some(condition.clone().into()),
        ..grant("user:temp@acme.com")
    };
    let mut temp = intent("a", &["user:a@acme.com"]);
    temp.membership = Membership::Additive;
    temp.declared = [
        &temp.declared[..],
        &[Declared {
            grant: g.clone(),
            expires: Some(ended),
        }],
    ]
    .concat()
    .into();
    let mut policy = live(&["user:a@acme.com"]);
    policy.bindings.push(crate::iam::Binding {
        role: "roles/run.invoker".into(),
        members: vec!["user:temp@acme.com".into()],
        condition: Some((&condition).into()),
        extra: Default::default(),
    });
    assert_eq!(
        Case::new(vec![temp], policy).plan().revokes,
        [(g, RevokeCause::Expired)].into()
    );
}

#[test]
fn public_members_need_permission() {
    let mut case = Case::new(vec![intent("a", &["allUsers"])], live(&[]));
    let p = case.plan();
    assert!(p.is_empty());
    assert_eq!(
        p.withheld.last().map(|w| w.why.reason()),
        Some(Reason::GuardrailViolated)
    );
    case.settings.limits.public = true;
    assert_eq!(names(&case.plan().grants), ["allUsers"]);
}

#[test]
fn a_member_that_iam_refused_does_not_hold_the_others_up() {
    let mut case = Case::new(
        vec![intent("a", &["user:good@acme.com", "user:bad@acme.com"])],
        live(&[]),
    );
    case.rejected.insert(
        grant("user:bad@acme.com"),
        RejectedMember {
            reason: Reason::InvalidMember,
            message: "no".into(),
        },
    );
    let p = case.plan();
    assert_eq!(names(&p.grants), ["user:good@acme.com"]);
    assert_eq!(
        p.withheld
            .iter()
            .filter(|w| w.why.reason() == Reason::InvalidMember)
            .count(),
        1
    );
}

#[test]
fn the_member_limit_is_checked_before_the_call() {
    let many: Vec<String> = (0..1499).map(|i| format!("user:u{i}@acme.com")).collect();
    let mut additive = intent("a", &["user:x@acme.com", "user:y@acme.com"]);
    additive.membership = Membership::Additive;
    let mut policy = live(&[]);
    policy.bindings = vec![crate::iam::Binding {
        role: "roles/run.admin".into(),
        members: many,
        ..Default::default()
    }];
    let p = Case::new(vec![additive], policy).plan();
    assert_eq!(names(&p.grants), ["user:x@acme.com"]);
    assert_eq!(
        p.withheld[0].why,
        WithheldReason::MemberLimit { would_be: 1501 }
    );
}

#[test]
fn hashed_conditions_refuse_every_write() {
    let mut policy = live(&["user:old@acme.com"]);
    policy.bindings[2].role = "roles/run.invoker_withcond_0123".into();
    let p = Case::new(vec![intent("a", &["user:new@acme.com"])], policy).plan();
    assert!(p.is_empty());
    assert!(
        p.withheld
            .iter()
            .all(|w| w.why == WithheldReason::HashedConditions)
    );
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

fn rail(name: &str, spec: serde_json::Value) -> Arc<Guardrail> {
    let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerGuardrail", "metadata": {"name": name}, "spec": spec});
    Arc::new(Guardrail::from_object(
        &serde_json::from_value(object).unwrap(),
    ))
}

#[test]
fn a_guardrail_that_is_tightened_takes_back_what_the_operator_granted_and_nothing_else() {
    let mut case = Case::new(
        vec![intent(
            "a",
            &[
                "user:ours@evil.org",
                "user:theirs@evil.org",
                "user:a@acme.com",
            ],
        )],
        live(&[
            "user:ours@evil.org",
            "user:theirs@evil.org",
            "user:a@acme.com",
        ]),
    );
    case.ledger
        .insert(grant("user:ours@evil.org"), owned(OwnerState::Acting));
    case.rails = vec![rail("strict", json!({"members": ["*@acme.com"]}))];
    let p = case.plan();
    assert_eq!(
        p.revokes,
        [(grant("user:ours@evil.org"), RevokeCause::Refused)].into()
    );
    let left: Vec<_> = p
        .withheld
        .iter()
        .map(|w| (w.change, w.grant.to_string(), w.why.reason()))
        .collect();
    assert_eq!(
        left,
        [(
            Change::Leave,
            "user:theirs@evil.org".into(),
            Reason::GuardrailViolated
        )]
    );
}

#[test]
fn deleting_a_policy_does_not_take_away_what_it_was_never_allowed_to_declare() {
    let mut leaving = intent("a", &["allUsers", "user:a@acme.com"]);
    leaving.deleting = true;
    let p = Case::new(vec![leaving], live(&["allUsers", "user:a@acme.com"])).plan();
    assert_eq!(names(&p.revokes), ["user:a@acme.com"]);
}

fn many(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("user:u{i:02}@acme.com")).collect()
}
fn refs(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

#[test]
fn a_plan_that_takes_too_much_is_held_until_exactly_it_is_approved() {
    let mut members = many(3);
    members.push("user:a@acme.com".into());
    let mut case = Case::new(
        vec![intent("a", &["user:a@acme.com", "user:new@acme.com"])],
        live(&refs(&members)),
    );
    case.settings.limits.max_removals = 2;
    let held = case.plan();
    assert!(held.revokes.is_empty());
    assert_eq!(
        names(&held.grants),
        ["user:new@acme.com"],
        "what adds access goes on"
    );
    let hash = held.withheld[0].why.hash().cloned().unwrap();
    case.intents[0].approvals = ["000000000000".into(), hash.clone()].into();
    assert_eq!(case.plan().revokes.len(), 3);
    // Reality changes, and with it what was agreed to.
    case.live.etag = crate::iam::Etag("F".into());
    let again = case.plan();
    assert!(again.revokes.is_empty() && again.withheld[0].why.hash() != Some(&hash));
}

/// A held plan, with the hash of what it does for each policy.
fn held(case: &Case) -> BTreeMap<String, Arc<str>> {
    let plan = case.plan();
    assert!(plan.revokes.is_empty(), "{:?}", plan.revokes);
    let why = plan.withheld.iter().map(|w| &w.why);
    let mut approvals = why.filter_map(|w| match w {
        WithheldReason::Approval(a) => Some(a),
        _ => None,
    });
    let effects = approvals.next().unwrap().effects.iter();
    effects
        .map(|(id, hash)| (id.name.to_string(), hash.hash.clone()))
        .collect()
}

fn agreement(policy: &str, plan: &Arc<str>) -> Arc<Agreement> {
    let spec = json!({"policy": policy, "plan": &**plan, "reason": "CHG-1"});
    let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerApproval", "spec": spec,
        "metadata": {"namespace": "ns", "name": "chg-1", "uid": "u", "creationTimestamp": NOW}});
    Agreement::from_object(&serde_json::from_value(object).unwrap())
        .unwrap()
        .into()
}

fn three_too_many() -> Case {
    let mut members = many(3);
    members.push("user:a@acme.com".into());
    let mut case = Case::new(
        vec![intent("a", &["user:a@acme.com"])],
        live(&refs(&members)),
    );
    case.settings.limits.max_removals = 2;
    case.rails = vec![rail("strict", json!({"approvals": "Approver"}))];
    case
}

#[test]
fn what_was_denied_is_held_whoever_else_agrees() {
    let mut case = three_too_many();
    case.rails.clear();
    let hash = case.plan().withheld[0].why.hash().cloned().unwrap();
    let effect = held(&case)["a"].clone();
    case.intents[0].approvals = [hash].into();
    assert_eq!(case.plan().revokes.len(), 3, "the annotation alone");
    let mut no = Agreement::clone(&agreement("a", &effect));
    no.decision = crate::api::Decision::Deny;
    case.agreements = vec![no.into()];
    held(&case);
}

#[test]
fn where_an_approver_is_wanted_the_annotation_counts_for_nothing() {
    let mut case = three_too_many();
    let hash = case.plan().withheld[0].why.hash().cloned().unwrap();
    case.intents[0].approvals = [hash].into();
    let effect = held(&case)["a"].clone();
    case.agreements = vec![
        agreement("other", &effect),
        agreement("a", &"0".repeat(40).into()),
    ];
    held(&case);
    case.agreements = vec![agreement("a", &effect)];
    let plan = case.plan();
    assert_eq!((plan.revokes.len(), plan.approvals.len()), (3, 1));
    // Its time is over.
    let mut late = Agreement::clone(&case.agreements[0]);
    late.not_after = Some(now());
    case.agreements = vec![late.into()];
    held(&case);
}

#[test]
fn the_hash_of_an_effect_is_about_the_effect_and_about_nothing_else() {
    let case = three_too_many;
    let of = |change: &dyn Fn(&mut Case)| {
        let mut case = case();
        change(&mut case);
        held(&case)["a"].clone()
    };
    let usual = of(&|_| {});
    // Elsewhere in the same policy, in its version, and what is there already or not.
    assert_eq!(usual, of(&|c| c.live.etag = crate::iam::Etag("F".into())));
    assert_eq!(
        usual,
        of(&|c| c.live.bindings[0]
            .members
            .push("user:other@acme.com".into()))
    );
    assert_eq!(
        usual,
        of(&|c| c.live.bindings[1]
            .members
            .retain(|m| m != "user:a@acme.com"))
    );
    assert_eq!(usual, of(&|c| c.intents[0].generation = 7));
    assert_eq!(usual, of(&|c| c.intents[0].id.uid = "made again".into()));
    let others: [&dyn Fn(&mut Case); 5] = [
        &|c| c.live.bindings[1].members.push("user:x@acme.com".into()),
        &|c| {
            c.live.bindings[1].members.remove(0);
            c.settings.limits.max_removals = 1;
        },
        &|c| c.intents[0].spec_digest = "another spec".into(),
        &|c| {
            let declared = [Declared {
                grant: grant("user:b@acme.com"),
                expires: None,
            }];
            c.intents[0].declared = declared.into();
        },
        &|c| {
            c.rails
                .push(rail("members", json!({"members": ["*@elsewhere.org"]})))
        },
    ];
    let mut seen = BTreeSet::from([usual]);
    for (i, other) in others.into_iter().enumerate() {
        assert!(
            seen.insert(of(other)),
            "change {i} leaves the hash as it was"
        );
    }
}

/// Another role leaves behind what was granted with the first, and whoever is held for too many is
/// told so as with any other removal.
#[test]
fn what_a_change_of_role_leaves_behind_is_shown() {
    let members = many(3);
    let mut changed = intent("a", &["user:a@acme.com"]);
    changed.role = Role::ServicesInvoker;
    for d in &mut changed.declared {
        d.grant.role = Role::ServicesInvoker;
    }
    let mut case = Case::new(vec![changed], live(&refs(&members)));
    case.settings.limits.max_removals = 2;
    let owner: Owners = [(case.intents[0].id.clone(), OwnerState::Acting)].into();
    case.ledger = members.iter().map(|m| (grant(m), owner.clone())).collect();
    let plan = case.plan();
    assert!(plan.revokes.is_empty() && plan.withheld.len() == 3);
    let view = case.with(|input| view(&input.claims[0], input));
    assert_eq!(view.unexpected.len(), 3, "{:?}", view.unexpected);
}

/// A policy whose word cannot be read may list it, so another one whose list is complete does not
/// take it away.
#[test]
fn what_belongs_to_a_policy_that_cannot_be_read_stays() {
    let policy = intent("b", &["user:b@acme.com"]);
    let mut case = Case::new(vec![policy], live(&["user:a@acme.com", "user:b@acme.com"]));
    let other = intent("a", &[]).id;
    for (state, taken) in [(OwnerState::Unread, 0), (OwnerState::Resting, 1)] {
        case.ledger = [(grant("user:a@acme.com"), [(other.clone(), state)].into())].into();
        let plan = case.plan();
        assert_eq!(plan.revokes.len(), taken, "{state:?}");
        let kept = plan.lines.get(&grant("user:a@acme.com"));
        assert_eq!(kept, Some(&[other.clone()].into()), "{state:?}");
    }
}

/// Services stop working without their agents: also the policy that listed one does not take it away,
/// and answers for it no more.
#[test]
fn a_protected_member_is_never_removed() {
    let agent = "serviceAccount:service-1@gcp-sa-iap.iam.gserviceaccount.com";
    for deleting in [false, true] {
        let mut policy = intent("a", &["user:a@acme.com"]);
        policy.deleting = deleting;
        let mut case = Case::new(vec![policy], live(&["user:a@acme.com", agent]));
        let state = if deleting {
            OwnerState::Leaving(RevokeCause::PolicyDeleted)
        } else {
            OwnerState::Acting
        };
        case.ledger = [(grant(agent), [(case.intents[0].id.clone(), state)].into())].into();
        let plan = case.plan();
        assert!(!plan.revokes.contains_key(&grant(agent)), "{deleting}");
        assert!(!plan.lines.contains_key(&grant(agent)), "{deleting}");
        let view = case.with(|input| view(&input.claims[0], input));
        assert_eq!(view.protected, [grant(agent)].into(), "{deleting}");
    }
}

/// It stays until its own end, is answered for until then, by nobody who is going, and goes as
/// ended.
#[test]
fn a_protected_member_keeps_access_for_a_time_until_that_time() {
    let agent = "serviceAccount:service-1@gcp-sa-iap.iam.gserviceaccount.com";
    let end = |text: &str| Grant {
        condition: Some(Condition::expiring(text.parse().unwrap(), None).into()),
        ..grant(agent)
    };
    let lasting = end("2099-01-01T00:00:00Z");
    let over = end("2020-01-01T00:00:00Z");
    let binding = |g: &Grant| {
        let c = g.condition.as_ref().unwrap();
        json!({"role": "roles/run.invoker", "members": [agent],
            "condition": {"title": c.title, "expression": c.expression}})
    };
    for state in [
        OwnerState::Acting,
        OwnerState::Leaving(RevokeCause::PolicyDeleted),
        OwnerState::Leaving(RevokeCause::Denied),
    ] {
        let mut policy = intent("a", &["user:a@acme.com"]);
        policy.deleting = state != OwnerState::Acting;
        let both =
            json!({"etag": "e", "version": 3, "bindings": [binding(&lasting), binding(&over)]});
        let mut case = Case::new(vec![policy], serde_json::from_value(both).unwrap());
        let owners: Owners = [(case.intents[0].id.clone(), state)].into();
        case.ledger = [(lasting.clone(), owners.clone()), (over.clone(), owners)].into();
        let plan = case.plan();
        assert_eq!(plan.lines.get(&lasting), Some(&[].into()), "{state:?}");
        assert!(!plan.revokes.contains_key(&lasting), "{state:?}");
        assert!(plan.revokes.contains_key(&over), "{state:?}");
    }
}

/// What an entry meant that cannot be understood nobody knows: nothing is taken away.
#[test]
fn a_policy_that_is_not_understood_takes_nothing_away() {
    let mut case = Case::new(
        vec![intent("a", &["user:a@acme.com"])],
        live(&["user:a@acme.com", "user:typo@acme.com"]),
    );
    assert_eq!(case.plan().revokes.len(), 1);
    case.intents[0].rejections = vec![crate::intent::Rejection {
        field: "spec.invokers[1].expires".into(),
        message: "is no time".into(),
    }];
    assert!(case.plan().is_empty());
}

/// Anyone can call it by a public member or a switched-off check; not past Identity-Aware Proxy, not
/// where ingress lets nobody in, and it is no news where a policy that may lists `allUsers`.
#[test]
fn exposed_is_what_anyone_can_call_and_nobody_declared() {
    let exposed = |case: &Case, front: (bool, Ingress, bool)| {
        let (invoker_iam_disabled, ingress, iap) = front;
        let info = ServiceInfo {
            service: RunService::new("acme", "europe-west1", "web"),
            uid: "u".into(),
            labels: Default::default(),
            invoker_iam_disabled,
            ingress,
            iap,
        };
        case.with(|input| super::exposed(Some(&info), input))
    };
    let case = |declared: &[&str], real: &[&str], allowed: bool| {
        let mut case = Case::new(vec![intent("a", declared)], live(real));
        case.settings.limits.public = allowed;
        case
    };
    let a = "user:a@acme.com";
    let on = (false, Ingress::All, false);
    let off = (true, Ingress::All, false);
    let by_member = case(&[a], &[a, "allUsers"], true);
    let by_switch = case(&[a], &[a], true);
    let declared = case(&["allUsers"], &["allUsers"], true);
    let refused = case(&["allUsers"], &["allUsers"], false);
    let words = |case: &Case, front| exposed(case, front).map(|w| w.to_string());
    for (case, front, expected) in [
        (&by_switch, on, None),
        (
            &by_member,
            on,
            Some("allUsers may invoke it, from the internet"),
        ),
        (
            &by_switch,
            off,
            Some("its IAM check is switched off (invokerIamDisabled), from the internet"),
        ),
        (
            &by_member,
            (false, Ingress::LoadBalancer, false),
            Some(
                "allUsers may invoke it, through a load balancer and from its VPC networks, not directly from the internet",
            ),
        ),
        (&by_member, (false, Ingress::Nobody, false), None),
        (&by_member, (true, Ingress::All, true), None),
        (&declared, on, None),
        (&declared, off, None),
        (
            &refused,
            on,
            Some("allUsers may invoke it, from the internet"),
        ),
        (
            &refused,
            off,
            Some("its IAM check is switched off (invokerIamDisabled), from the internet"),
        ),
    ] {
        assert_eq!(words(case, front).as_deref(), expected, "{front:?}");
    }
    // What no listing has shown may be on the internet.
    let unlisted = by_member.with(|input| super::exposed(None, input));
    assert_eq!(
        unlisted.map(|e| e.to_string()).as_deref(),
        Some("allUsers may invoke it, from the internet")
    );
}

#[test]
fn everybody_with_a_role_is_exposure_as_far_as_it_is_known_what_the_role_carries() {
    let custom = "projects/acme/roles/caller";
    let exposed = |declared: &str, role: &str, member: &str| {
        let policy = json!({"etag": "BwX=", "bindings": [{"role": role, "members": [member]}]});
        let live: Policy = serde_json::from_value(policy).unwrap();
        let mut case = Case::new(vec![intent("a", &[declared])], live);
        case.settings.limits.public = true;
        case.with(|input| super::exposed(None, input))
    };
    let a = "user:a@acme.com";
    for (declared, role, member, expected) in [
        (a, "roles/run.developer", "allUsers", Some(true)),
        (a, "roles/run.viewer", "allUsers", None),
        (a, custom, "allUsers", Some(false)),
        (a, custom, "allAuthenticatedUsers", Some(false)),
        (a, "roles/run.newerThanWe", "allUsers", Some(false)),
        // Somebody who deploys by a custom role is no alarm.
        (a, custom, "user:deployer@acme.com", None),
        // Who may invoke is everybody, as declared.
        ("allUsers", custom, "allUsers", None),
        ("allUsers", "roles/run.developer", "allUsers", None),
    ] {
        let found = exposed(declared, role, member);
        assert_eq!(found.map(|e| e.is_sure()), expected, "{member} has {role}");
    }
    let perhaps = exposed(a, custom, "allUsers").unwrap();
    let words = perhaps.to_string();
    assert!(
        words.contains(
            "allUsers has projects/acme/roles/caller, whose permissions are not known here"
        ),
        "{words}"
    );
    assert!(
        words.contains("gcloud iam roles describe caller --project acme"),
        "{words}"
    );
    let role: std::sync::Arc<str> = custom.into();
    let shown = perhaps.judged(&crate::iam::InvokingRoles::shown([&role]));
    assert!(shown.is_sure());
    assert_eq!(
        shown.to_string(),
        "allUsers may invoke it by projects/acme/roles/caller, from the internet"
    );
}

/// The ledger shows what belongs to nobody any more, and that is what is agreed to there: the part
/// of a policy that is still there is agreed to on that policy.
#[test]
fn an_approval_on_the_ledger_is_about_what_is_nobodys() {
    let mut leaving = intent("a", &["user:its@acme.com"]);
    leaving.deleting = true;
    let members = ["user:its@acme.com", "user:nobodys@acme.com"];
    let mut case = Case::new(vec![leaving], live(&members));
    case.settings.limits.max_removals = 1;
    let id = case.intents[0].id.clone();
    case.ledger = [
        (
            grant("user:its@acme.com"),
            [(id, OwnerState::Leaving(RevokeCause::PolicyDeleted))].into(),
        ),
        (grant("user:nobodys@acme.com"), Owners::new()),
    ]
    .into();
    let held = case.plan();
    assert!(held.revokes.is_empty());
    let hash = held.held_alone().unwrap().approve;
    case.approvals = [hash.as_str().into()].into();
    let agreed = case.plan();
    assert_eq!(names(&agreed.revokes), ["user:nobodys@acme.com"]);
    assert_eq!(agreed.held_alone(), None);
    case.intents[0].approvals = [hash.as_str().into()].into();
    assert_eq!(case.plan().revokes.len(), 2);
}

#[test]
fn what_a_guardrail_refuses_makes_nobody_elses_condition_ours() {
    let theirs = Grant {
        condition: Some(std::sync::Arc::new(Condition::new(
            "theirs",
            "",
            "request.path == '/x'",
        ))),
        ..grant("user:x@evil.org")
    };
    let mut case = Case::new(
        vec![intent("a", &["user:a@acme.com"])],
        live(&["user:a@acme.com"]),
    );
    case.live = case
        .live
        .with_changes(&[theirs.clone()].into(), &BTreeSet::new());
    let before = case.plan().revokes;
    // Another policy declares it, as a way back does with what was there, and may not.
    let mut copy = intent("b", &[]);
    copy.membership = Membership::Additive;
    copy.declared = [Declared {
        grant: theirs,
        expires: None,
    }]
    .into();
    case.intents.push(copy);
    case.rails = vec![rail("strict", json!({"members": ["*@acme.com"]}))];
    assert_eq!(case.plan().revokes, before);
}

#[test]
fn the_last_invoker_goes_only_when_that_is_meant() {
    let case =
        |members: &[&str]| Case::new(vec![intent("a", members)], live(&["user:old@acme.com"]));
    // The one that should take its place is refused by IAM.
    let mut refused = case(&["user:new@acme.com"]);
    refused.live.bindings.pop();
    refused.rejected.insert(
        grant("user:new@acme.com"),
        RejectedMember {
            reason: Reason::InvalidMember,
            message: "no".into(),
        },
    );
    assert!(refused.plan().revokes.is_empty());
    assert!(matches!(&refused.plan().withheld[1].why, WithheldReason::Approval(a) if a.last));
    // Replaced by another: nobody is locked out.
    assert_eq!(case(&["user:new@acme.com"]).plan().revokes.len(), 1);
    let mut empty = case(&[]);
    empty.live.bindings.pop();
    empty.intents[0].allow_empty = true;
    assert_eq!(empty.plan().revokes.len(), 1);
    let mut deleted = case(&["user:old@acme.com"]);
    deleted.live.bindings.pop();
    deleted.intents[0].deleting = true;
    assert_eq!(deleted.plan().revokes.len(), 1);
    // One that Cloud Run does not let in is no invoker that is left, and locks nobody out by going.
    let federated = "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/s";
    let mut alone = Case::new(
        vec![intent("a", &[federated])],
        live(&["user:old@acme.com", federated]),
    );
    alone.live.bindings.pop();
    assert!(
        alone.plan().revokes.is_empty(),
        "{:?}",
        alone.plan().revokes
    );
    let mut useless = Case::new(
        vec![intent("a", &["user:new@acme.com"])],
        live(&[federated]),
    );
    useless.live.bindings.pop();
    useless.rejected = refused.rejected.clone();
    assert_eq!(useless.plan().revokes.len(), 1);
}

#[test]
fn what_a_guardrail_refuses_or_time_has_ended_needs_no_approval() {
    let mut case = Case::new(
        vec![intent("a", &["user:x@evil.org"])],
        live(&["user:x@evil.org"]),
    );
    case.live.bindings.pop();
    case.settings.limits.max_removals = 0;
    case.ledger
        .insert(grant("user:x@evil.org"), owned(OwnerState::Acting));
    case.rails = vec![rail("strict", json!({"members": ["*@acme.com"]}))];
    assert_eq!(case.plan().revokes.len(), 1);
}

#[test]
fn the_strictest_guardrail_sets_the_blast_radius() {
    let mut case = Case::new(
        vec![intent("a", &["user:a@acme.com"])],
        live(&["user:a@acme.com", "user:b@acme.com", "user:c@acme.com"]),
    );
    assert_eq!(case.plan().revokes.len(), 2);
    case.rails = vec![
        rail("loose", json!({"maxRemovals": 5})),
        rail("tight", json!({"maxRemovals": 1})),
    ];
    assert!(
        matches!(&case.plan().withheld[0].why, WithheldReason::Approval(a) if a.limit == 1 && a.removals == 2)
    );
}

#[test]
fn the_difference_that_an_audited_policy_begins_with_is_no_drift() {
    let mut audited = intent("a", &["user:a@acme.com"]);
    audited.mode = Mode::Audit;
    let mut case = Case::new(vec![audited], live(&["user:old@acme.com"]));
    let by = claim::fingerprint(&case.claims());
    let first = case.plan();
    let both = [grant("user:a@acme.com"), grant("user:old@acme.com")];
    assert_eq!(first.reported, both.clone().into());
    assert!(first.reported_drift.is_empty() && first.drift.is_empty());
    // The next one finds what somebody changed since, and that stays drift until it is gone.
    case.memory.settle(by, first.outstanding());
    case.live = live(&["user:old@acme.com", "user:x@evil.org"]);
    for _ in 0..2 {
        let next = case.plan();
        assert_eq!(next.reported_drift, [grant("user:x@evil.org")].into());
        assert!(next.is_empty() && !next.corrects_drift());
        assert_eq!(next.outstanding(), both.clone().into());
        case.memory.settle(by, next.outstanding());
    }
    // Another declaration is nobody's drift either, nor is an entry that has expired.
    case.intents[0].generation = 2;
    assert!(case.plan().reported_drift.is_empty());
    case.intents[0].generation = 1;
    case.intents[0].declared = [Declared {
        grant: grant("user:x@evil.org"),
        expires: Some(now() - jiff::SignedDuration::from_mins(1)),
    }]
    .into();
    let by = claim::fingerprint(&case.claims());
    case.memory.settle(by, BTreeSet::new());
    let ended = case.plan();
    assert!(ended.reported.contains(&grant("user:x@evil.org")));
    assert!(!ended.reported_drift.contains(&grant("user:x@evil.org")));
}

#[test]
fn drift_rests_in_a_fight_and_while_the_circuit_is_open_and_declarations_go_on() {
    let mut case = Case::new(
        vec![intent("a", &["user:a@acme.com"])],
        live(&["user:a@acme.com", "user:rival@acme.com"]),
    );
    let by = claim::fingerprint(&case.claims());
    case.memory.settle(by, BTreeSet::new());
    assert_eq!(case.plan().drift, [grant("user:rival@acme.com")].into());
    assert!(case.plan().corrects_drift());
    case.circuit_open = true;
    let open = case.plan();
    assert!(open.is_empty() && open.withheld[0].why == WithheldReason::CircuitOpen);
    // A new member is a declaration, and needs a new generation to be one.
    case.intents[0].generation = 2;
    case.intents[0].declared = intent("a", &["user:a@acme.com", "user:b@acme.com"]).declared;
    assert_eq!(names(&case.plan().grants), ["user:b@acme.com"]);
    case.intents[0] = intent("a", &["user:a@acme.com"]);
    case.circuit_open = false;
    for minutes in [3, 2, 1] {
        case.memory.corrected(
            &grant("user:rival@acme.com"),
            now() - jiff::SignedDuration::from_mins(minutes),
        );
    }
    assert!(
        matches!(case.plan().withheld[0].why, WithheldReason::Contested(f) if f.corrections == 3)
    );
}

#[test]
fn going_back_stands_in_for_the_spec_and_passes_the_same_guardrails() {
    let mut case = Case::new(
        vec![intent("a", &["user:new@acme.com"])],
        live(&["user:new@acme.com"]),
    );
    case.rails = vec![rail("strict", json!({"members": ["*@acme.com"]}))];
    let back = Rollback {
        change: "web-1".into(),
        declared: intent("x", &["user:old@acme.com", "user:x@evil.org"]).declared,
    };
    let mut claims = case.claims();
    claims[0].rollback = Some(Arc::new(back));
    let p = case.with(|input| {
        let input = Input {
            claims: &claims,
            ..input.clone()
        };
        let p = plan(&input);
        check(&p, &input).unwrap();
        p
    });
    assert_eq!(names(&p.grants), ["user:old@acme.com"]);
    assert_eq!(names(&p.revokes), ["user:new@acme.com"]);
    assert_eq!(p.withheld[0].why.reason(), Reason::GuardrailViolated);
}

#[test]
fn a_discovery_that_reaches_too_far_waits_and_says_how_far() {
    let i = intent("a", &[]);
    let service = |n: usize| RunService::new("acme", "r1", format!("s{n}"));
    let wanting = |n: usize| (0..n).map(service).collect::<BTreeSet<_>>();
    assert_eq!(guard::spread(&i, &wanting(2), 1, 3), None);
    assert_eq!(
        guard::spread(&i, &wanting(0), 4, 3),
        Some(SelectorImpact::Counting { unseen: 4 })
    );
    let held = guard::spread(&i, &wanting(4), 0, 3);
    assert!(matches!(
        &held,
        Some(SelectorImpact::Held {
            services: 4,
            limit: 3,
            ..
        })
    ));
    assert_ne!(
        held,
        guard::spread(&i, &wanting(5), 0, 3),
        "another reach is another question"
    );
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
        1 => Just(Some(Condition::new("t", String::new(), "request.path == '/'"))),
        1 => (-2i64..3).prop_map(|h| Some(Condition::expiring(now() + jiff::SignedDuration::from_hours(h), None))),
    ]
}
fn any_grant() -> impl Strategy<Value = Grant> {
    (0..POOL.len(), any::<bool>(), condition()).prop_map(|(i, services, c)| Grant {
        principal: Principal::from_live(POOL[i]),
        role: if services {
            Role::ServicesInvoker
        } else {
            Role::Invoker
        },
        condition: c.map(Into::into),
    })
}
fn any_intent(name: usize) -> impl Strategy<Value = Intent> {
    (
        proptest::collection::vec((0..POOL.len(), condition()), 0..5),
        any::<[bool; 6]>(),
    )
        .prop_map(move |(members, b)| {
            let role = if b[0] {
                Role::Invoker
            } else {
                Role::ServicesInvoker
            };
            let mut i = intent(&format!("p{name}"), &[]);
            i.role = role;
            i.declared = members
                .into_iter()
                .map(|(m, c)| Declared {
                    expires: c.as_ref().and_then(Condition::expiry),
                    grant: Grant {
                        principal: Principal::from_live(POOL[m]),
                        role,
                        condition: c.map(Into::into),
                    },
                })
                .collect();
            i.mode = if b[1] || b[2] {
                Mode::Enforce
            } else {
                Mode::Audit
            };
            i.suspended = b[3] && b[4];
            i.membership = if b[4] {
                Membership::Authoritative
            } else {
                Membership::Additive
            };
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
    let binding = (
        role,
        proptest::collection::vec(member, 1..5),
        condition(),
        any::<bool>(),
    )
        .prop_map(|(r, m, c, unknown)| crate::iam::Binding {
            role: r.into(),
            members: m,
            condition: c.as_ref().map(Into::into),
            extra: if unknown {
                json!({"bindingId": "7"}).as_object().cloned().unwrap()
            } else {
                Default::default()
            },
        });
    (proptest::collection::vec(binding, 0..6), any::<bool>()).prop_map(|(bindings, audit)| Policy {
        version: 3,
        bindings,
        etag: crate::iam::Etag("E".into()),
        extra: if audit {
            json!({"auditConfigs": [{"service": "all"}]})
                .as_object()
                .cloned()
                .unwrap()
        } else {
            Default::default()
        },
    })
}
fn any_rail(name: usize) -> impl Strategy<Value = Arc<Guardrail>> {
    let pattern = prop_oneof![
        Just("*"),
        Just("*@acme.com"),
        Just("user:*"),
        Just("group:c@acme.com"),
        Just("serviceAccount:*@p.iam.gserviceaccount.com"),
        Just("principal://*"),
    ];
    let members = proptest::option::of(proptest::collection::vec(pattern, 1..3));
    let lifetime = proptest::option::of(prop_oneof![Just("1h"), Just("48h")]);
    let names = proptest::option::of(prop_oneof![Just("ns"), Just("other"), Just("n*")]);
    let service = proptest::option::of(prop_oneof![Just("w*"), Just("x*")]);
    (members, lifetime, names, service, any::<bool>(), proptest::option::of(0u32..3)).prop_map(
        move |(members, lifetime, names, service, public, removals)| {
            rail(
                &format!("g{name}"),
                json!({"members": members, "maxLifetime": lifetime, "namespaces": names.map(|n| [n]),
                    "services": service.map(|s| [s]), "public": if public { "Allow" } else { "Deny" }, "maxRemovals": removals}),
            )
        },
    )
}
fn any_case() -> impl Strategy<Value = Case> {
    let intents = (any_intent(0), any_intent(1), any_intent(2), 0usize..4)
        .prop_map(|(a, b, c, n)| [a, b, c].into_iter().take(n).collect::<Vec<_>>());
    let standing = prop_oneof![
        Just(OwnerState::LetGo),
        Just(OwnerState::Resting),
        Just(OwnerState::Acting)
    ]
    .prop_map(owned);
    let rails = (any_rail(0), any_rail(1), 0usize..3)
        .prop_map(|(a, b, n)| [a, b].into_iter().take(n).collect::<Vec<_>>());
    let ledger = proptest::collection::btree_map(any_grant(), standing, 0..4);
    (intents, any_live(), ledger, any::<bool>(), rails).prop_map(
        |(intents, live, ledger, public, rails)| Case {
            intents,
            live,
            ledger,
            rejected: BTreeMap::new(),
            settings: Settings {
                limits: Limits {
                    public,
                    max_removals: 3,
                    ..Limits::default()
                },
                ..Settings::default()
            },
            rails,
            memory: Memory::default(),
            circuit_open: false,
            doubtful: BTreeSet::new(),
            unanswered: UnansweredSelectors::default(),
            approvals: BTreeSet::new(),
            agreements: vec![],
        },
    )
}

proptest! {
    #[test]
    fn planning_again_after_applying_is_empty(mut case in any_case()) {
        let first = case.plan();
        case.live = first.applied_to(&case.live);
        case.remember(&first);
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
        let service = RunService::new("acme", "europe-west1", "web");
        for c in case.claims().iter().filter(|c| !c.intent.deleting) {
            for d in c.declared().iter().filter(|d| d.expires.is_none_or(|e| e > now())) {
                let refused = c.refuse(&service, d, now()).is_some();
                prop_assert!(refused || !before.contains(&d.grant) || after.contains(&d.grant), "{} went", d.grant);
            }
        }
    }

    #[test]
    fn an_enforced_policy_sees_no_drift_after_its_plan_unless_something_is_withheld(mut case in any_case()) {
        let p = case.plan();
        case.live = p.applied_to(&case.live);
        case.remember(&p);
        // What a guardrail took away in the first plan is withheld from then on.
        let p = case.plan();
        case.with(|input| {
            for c in input.claims.iter().filter(|c| c.enforces() && !c.intent.deleting) {
                let v = view(c, input);
                for g in v.missing.iter().chain(&v.unexpected) {
                    assert!(p.withheld.iter().any(|w| w.grant == *g), "{g} is neither in sync nor withheld");
                }
            }
        });
    }
}

#[test]
fn what_a_selector_may_turn_out_to_list_is_not_taken_away_before_it_is_known() {
    let mut case = Case::new(
        vec![intent("a", &["user:a@acme.com"])],
        live(&["user:a@acme.com", "user:b@acme.com", "user:c@acme.com"]),
    );
    case.unanswered.grants = [grant("user:b@acme.com")].into();
    let plan = case.plan();
    assert_eq!(
        plan.revokes
            .keys()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["user:c@acme.com"]
    );
    assert!(plan.withheld.iter().any(
        |w| w.why == WithheldReason::UnansweredSelectors && w.grant == grant("user:b@acme.com")
    ));
    // Both together are too many, so neither goes before it is known.
    case.settings.limits.max_removals = 1;
    assert!(case.plan().revokes.is_empty());
    case.settings.limits.max_removals = 2;
    assert_eq!(case.plan().revokes.len(), 1);
    // A deletion does not wait for an answer that may never come.
    case.intents = vec![intent("a", &["user:b@acme.com"])];
    case.intents[0].deleting = true;
    assert!(case.plan().revokes.is_empty());
    case.unanswered.failed = true;
    assert_eq!(case.plan().revokes.len(), 1);
}
