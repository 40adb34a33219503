use super::text::record;
use super::*;
use crate::{
    api::ChangePhase,
    iam::{Condition, UNTOUCHED},
};
use serde_json::json;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}
const NOW: &str = "2026-11-23T12:00:00Z";

fn spec(before: &[&str], added: &[&str], removed: &[&str]) -> InvokerChangeSpec {
    let list = |l: &[&str]| {
        json!(
            l.iter()
                .map(|m| json!({"role": "roles/run.invoker", "member": m}))
                .collect::<Vec<_>>()
        )
    };
    serde_json::from_value(
        json!({"project": "p", "region": "r", "service": "s", "reason": "Drift", "at": NOW, "policies": [],
        "added": list(added), "addedCount": added.len(), "removed": list(removed), "removedCount": removed.len(),
        "before": list(before), "etagBefore": "A", "outcome": {"phase": "Pending"}}),
    )
    .unwrap()
}
fn live(etag: &str, members: &[&str]) -> Policy {
    serde_json::from_value(
        json!({"etag": etag, "bindings": [{"role": "roles/run.invoker", "members": members}]}),
    )
    .unwrap()
}

fn g(member: &str) -> Grant {
    Grant::new(Principal::from_live(member), Role::Invoker)
}
fn write(added: &[&str], removed: &[&str]) -> Pending {
    Pending {
        name: "web-1".into(),
        reason: ChangeReason::SpecChanged,
        at: at(NOW),
        etag_before: "A".into(),
        added: added.iter().map(|m| g(m)).collect(),
        removed: removed.iter().map(|m| g(m)).collect(),
        before: BTreeSet::new(),
        before_omitted: 0,
        drift: BTreeSet::new(),
        policies: vec![],
        drift_by: None,
        approvals: vec![],
    }
}

#[test]
fn a_write_whose_end_nobody_saw_is_settled_from_what_is_real() {
    let p = write(&["user:new@a.co", "user:other@a.co"], &["user:old@a.co"]);
    let phase = |etag, members: &[&str]| {
        settle(&p, Ending::Unknown, Some(&live(etag, members)), at(NOW)).phase
    };
    assert_eq!(
        phase("B", &["user:new@a.co", "user:other@a.co"]),
        ChangePhase::Applied
    );
    assert_eq!(
        phase("B", &["user:new@a.co", "user:old@a.co"]),
        ChangePhase::Unknown
    );
    assert_eq!(phase("B", &["user:old@a.co"]), ChangePhase::Unknown);
    assert_eq!(phase(UNTOUCHED, &[]), ChangePhase::Unknown);
    assert_eq!(phase("A", &["user:old@a.co"]), ChangePhase::NotApplied);
    assert_eq!(
        settle(&p, Ending::Unknown, None, at(NOW)).phase,
        ChangePhase::Unknown
    );
}

#[test]
fn a_write_that_iam_took_was_made_whatever_is_real_now() {
    let p = write(&["user:new@a.co"], &[]);
    let gone = settle(&p, Ending::Accepted, Some(&live("C", &[])), at(NOW));
    assert_eq!(
        (gone.phase, gone.message.is_empty()),
        (ChangePhase::Applied, false)
    );
    assert_eq!(
        settle(&p, Ending::Accepted, None, at(NOW)).phase,
        ChangePhase::Applied
    );
    let there = live("C", &["user:new@a.co"]);
    assert_eq!(
        settle(&p, Ending::Refused, Some(&there), at(NOW)).phase,
        ChangePhase::NotApplied
    );
}

#[test]
fn a_write_without_an_answer_stays_open_while_it_may_still_arrive() {
    let p = write(&["user:new@a.co"], &[]);
    let settled = |etag, members: &[&str], when| {
        let s = settle_all(
            std::slice::from_ref(&p),
            &BTreeMap::new(),
            Some(&live(etag, members)),
            at(when),
        );
        (s.open.len(), s.closed.first().map(|(_, o)| o.phase))
    };
    assert_eq!(settled("A", &[], "2026-11-23T12:05:00Z"), (1, None));
    assert_eq!(
        settled("A", &[], "2026-11-23T12:16:00Z"),
        (0, Some(ChangePhase::NotApplied))
    );
    assert_eq!(
        settled("B", &["user:new@a.co"], "2026-11-23T12:05:00Z"),
        (0, Some(ChangePhase::Applied))
    );
    assert_eq!(
        settled("B", &[], "2026-11-23T12:05:00Z"),
        (0, Some(ChangePhase::Unknown))
    );
}

#[test]
fn of_writes_from_one_version_one_at_most_was_made() {
    let a = write(&["user:a@a.co"], &[]);
    let b = Pending {
        name: "web-2".into(),
        ..write(&["user:a@a.co", "user:b@a.co"], &[])
    };
    let phases = |endings: &[(&str, Ending)], members: &[&str]| {
        let endings = endings.iter().map(|(n, e)| ((*n).to_owned(), *e)).collect();
        let s = settle_all(
            &[a.clone(), b.clone()],
            &endings,
            Some(&live("B", members)),
            at(NOW),
        );
        s.closed.iter().map(|(_, o)| o.phase).collect::<Vec<_>>()
    };
    use ChangePhase::{Applied, NotApplied, Unknown};
    assert_eq!(
        phases(
            &[("web-2", Ending::Accepted)],
            &["user:a@a.co", "user:b@a.co"]
        ),
        [NotApplied, Applied]
    );
    assert_eq!(
        phases(&[("web-2", Ending::Refused)], &["user:a@a.co"]),
        [Applied, NotApplied]
    );
    assert_eq!(
        phases(&[], &["user:a@a.co", "user:b@a.co"]),
        [NotApplied, Applied]
    );
    assert_eq!(phases(&[], &["user:a@a.co"]), [Applied, NotApplied]);
    let gone = settle_all(&[a.clone(), b.clone()], &BTreeMap::new(), None, at(NOW));
    assert!(gone.closed.iter().all(|(_, o)| o.phase == Unknown));
}

/// A service that is made again has the etag of the first: nothing is proven by it.
#[test]
fn of_writes_to_an_untouched_policy_none_is_said_not_to_have_been_made() {
    let from_untouched = |name: &str, members: &[&str]| Pending {
        name: name.into(),
        etag_before: UNTOUCHED.into(),
        ..write(members, &[])
    };
    let writes = [
        from_untouched("web-1", &["user:a@a.co"]),
        from_untouched("web-2", &["user:a@a.co", "user:b@a.co"]),
    ];
    let phases = |writes: &[Pending], endings: &[(&str, Ending)], live: Policy, when: &str| {
        let endings = endings.iter().map(|(n, e)| ((*n).to_owned(), *e)).collect();
        let s = settle_all(writes, &endings, Some(&live), at(when));
        s.closed.iter().map(|(_, o)| o.phase).collect::<Vec<_>>()
    };
    use ChangePhase::{Applied, NotApplied, Unknown};
    let both = || live("B", &["user:a@a.co", "user:b@a.co"]);
    let accepted = [("web-2", Ending::Accepted)];
    assert_eq!(phases(&writes, &accepted, both(), NOW), [Unknown, Applied]);
    let refused = [("web-1", Ending::Refused), ("web-2", Ending::Accepted)];
    assert_eq!(
        phases(&writes, &refused, both(), NOW),
        [NotApplied, Applied]
    );
    let later = "2026-11-23T12:16:00Z";
    let untouched = live(UNTOUCHED, &[]);
    assert_eq!(phases(&writes[..1], &[], untouched, later), [Unknown]);
    // Nor when the service is gone at last.
    let gone = settle_all(
        &writes,
        &[("web-2".to_owned(), Ending::Accepted)].into(),
        None,
        at(NOW),
    );
    let gone: Vec<_> = gone.closed.iter().map(|(_, o)| o.phase).collect();
    assert_eq!(gone, [Unknown, Applied]);
    // Nothing else explains it.
    let one = live("B", &["user:a@a.co"]);
    assert_eq!(phases(&writes[..1], &[], one, NOW), [Applied]);
}

#[test]
fn a_record_of_the_largest_write_fits_into_the_store() {
    let condition: Arc<Condition> = Condition::new("t", String::new(), "e".repeat(4096)).into();
    let many: BTreeSet<Grant> = (0..400)
        .map(|i| Grant {
            condition: Some(condition.clone()),
            ..g(&format!("user:m{i}@a.co"))
        })
        .collect();
    let p = Pending {
        added: many.clone(),
        before: many.clone(),
        ..write(&[], &[])
    };
    let service = RunService::new("p", "r", "s");
    let outcome = settle(&p, Ending::Accepted, None, at(NOW));
    let [record] = records(&service, &p, outcome, "home").try_into().unwrap();
    assert!(serde_json::to_vec(&record).unwrap().len() < 1024 * 1024);
    assert_eq!(
        (record.spec.added_count, record.spec.before_omitted > 0),
        (400, true)
    );
    assert!(rollback("x".into(), &record.spec, Role::Invoker, at(NOW)).is_err());
}

#[test]
fn what_is_too_long_for_a_record_is_cut_and_there_is_no_going_back_to_it() {
    let mut s = spec(&[], &[], &[]);
    let long = Condition::new("t".repeat(200), String::new(), "e".repeat(5000));
    let live = Grant {
        condition: Some(long.into()),
        ..Grant::new(Principal::from_live("user:a@a.co"), Role::Invoker)
    };
    s.before = vec![
        record(&live),
        record(&Grant::new(
            Principal::from_live(&format!("user:{}@a.co", "x".repeat(600))),
            Role::Invoker,
        )),
    ];
    assert_eq!(
        s.before[0]
            .condition
            .as_ref()
            .map(|c| (c.title.chars().count(), c.expression.chars().count())),
        Some((100, 4096))
    );
    assert_eq!(s.before[1].member.chars().count(), 512);
    assert!(rollback("x".into(), &s, Role::Invoker, at(NOW)).is_err());
}

#[test]
fn the_newest_records_stay_unless_they_are_too_old() {
    let keep = Retention {
        number: 2,
        age: SignedDuration::from_hours(24),
    };
    let list = [
        ("c", "2026-11-23T11:00:00Z"),
        ("a", "2026-11-21T12:00:00Z"),
        ("b", "2026-11-22T11:00:00Z"),
    ];
    let list: Vec<_> = list.map(|(n, t)| (n.to_owned(), at(t))).into();
    assert_eq!(outlived(&list, keep, at(NOW)), ["a", "b"]);
    assert!(outlived(&list[..1], keep, at(NOW)).is_empty());
}

#[test]
fn going_back_brings_only_what_could_be_declared_now() {
    let mut s = spec(&["user:a@a.co", "deleted:user:x@a.co?uid=1"], &[], &[]);
    s.before.push(ChangeGrant {
        role: "roles/run.servicesInvoker".into(),
        member: "user:b@a.co".into(),
        condition: None,
    });
    let ended = Condition::expiring(at("2026-11-23T11:00:00Z"), None);
    s.before.push(record(&Grant {
        condition: Some(ended.into()),
        ..Grant::new(Principal::from_live("user:c@a.co"), Role::Invoker)
    }));
    let back = rollback("x".into(), &s, Role::Invoker, at(NOW)).unwrap();
    let members: Vec<_> = back.declared.iter().map(|d| d.grant.to_string()).collect();
    assert_eq!(members, ["user:a@a.co"]);
}
