use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::*;
use crate::api::MAX_STATUS_MEMBERS;

#[test]
fn what_is_stored_of_members_does_not_grow_with_them() {
    let many: Members = (0..1000).map(|i| format!("user:u{i}@a.co")).collect();
    assert_eq!(
        (many.len(), many.shown().len()),
        (1000, MAX_STATUS_MEMBERS + 1)
    );
    assert_eq!(many.listed(2), "user:u0@a.co, user:u1@a.co, and 998 more");
    let others: Members = (0..1000)
        .map(|i| format!("user:u{}@a.co", if i == 999 { 5000 } else { i }))
        .collect();
    assert_ne!(many, others, "a difference that is not named is one");
    assert_eq!(
        Members::default(),
        Vec::<String>::new().into_iter().collect()
    );
}

#[test]
fn what_is_not_explained_is_not_ours() {
    let at = |t: &str| MicroTime(t.parse().unwrap());
    let ours: Arc<ChangedBy> = ChangedBy::operator("web-1", at("2026-11-24T12:00:05Z")).into();
    let theirs = |who: &str, when: &str| -> Arc<ChangedBy> {
        ChangedBy {
            principal: who.into(),
            ..ChangedBy::operator("", at(when))
        }
        .into()
    };
    let first = theirs("first", "2026-11-24T12:00:00Z");
    let last = theirs("last", "2026-11-24T12:00:01Z");
    for (makers, expected) in [
        (vec![], None),
        (vec![None], None),
        (vec![Some(&ours)], Some(&ours)),
        (vec![Some(&ours), None], None),
        (vec![Some(&first), Some(&ours), Some(&last)], Some(&last)),
        (vec![Some(&first), None], Some(&first)),
    ] {
        assert_eq!(last_of(&makers), expected, "{makers:?}");
    }
}
