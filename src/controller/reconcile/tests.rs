use super::write::is_named;
use super::*;
use crate::iam::{Principal, Role};

#[test]
fn a_refusal_names_a_member_or_the_pool_of_members() {
    let grant = |member: &str| Grant::new(Principal::from_live(member), Role::Invoker);
    assert!(is_named(
        &grant("serviceAccount:A@x.iam.gserviceaccount.com"),
        "a@x.iam.gserviceaccount.com"
    ));
    assert!(is_named(
        &grant("serviceAccount:nope.svc.id.goog[ns/sa]"),
        "nope.svc.id.goog"
    ));
    assert!(!is_named(
        &grant("serviceAccount:other.svc.id.goog[ns/sa]"),
        "nope.svc.id.goog"
    ));
    assert!(!is_named(&grant("user:a@x.co"), "x.co"));
}
