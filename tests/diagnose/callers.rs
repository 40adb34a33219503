//! Whose token it is, who is granted, and what else may grant it.

use run_invoker::{api::RequestPhase, diagnose::Requested};

use super::*;

const EVIL: &str = "user:x@evil.com";

fn token_of(email: Option<&str>) -> Option<Token> {
    token(claims(|c| c["email"] = json!(email)), "s")
}

fn principal(text: &str) -> Option<Principal> {
    Some(Principal::parse(text).unwrap())
}

pub fn cases() -> Vec<(&'static str, Facts, Cause)> {
    let ended = "request.time < timestamp(\"2026-11-24T11:59:59Z\")";
    let ended_and = |member: &str| {
        Known::Is(policy(json!([
            {"role": "roles/run.invoker", "members": [CALLER], "condition": {"title": "t", "expression": ended}},
            {"role": "roles/run.invoker", "members": [member]},
        ])))
    };
    let lacks =
        format!("{NOT_AUTHENTICATED} The IAM principal lacks {{run.routes.invoke}} permission.");
    let audience = |audience: &str, function: bool| Facts {
        front: front(|f| {
            if function {
                is_function(f);
            }
        }),
        token: token(claims(|c| c["aud"] = json!(audience)), "s"),
        ..seen()
    };
    let function = "https://europe-west1-acme-prod.cloudfunctions.net/Web";
    vec![
        (
            "a token of somebody else",
            Facts {
                token: token_of(Some("x@evil.com")),
                ..fine()
            },
            Cause::WrongPrincipal,
        ),
        (
            "the same, and that one is granted too",
            Facts {
                token: token_of(Some("x@evil.com")),
                policy: to(&[CALLER, EVIL], "roles/run.invoker"),
                ..fine()
            },
            Cause::WrongPrincipal,
        ),
        (
            "a token that names nobody",
            Facts {
                token: token_of(None),
                ..seen()
            },
            Cause::AccessUnverified,
        ),
        (
            "a token in another spelling",
            Facts {
                token: token_of(Some("Frontend@acme-prod.iam.gserviceaccount.com")),
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "a group was asked about, and the token's owner is no member of it for sure",
            Facts {
                principal: principal("group:callers@acme.com"),
                token: token_of(Some("x@evil.com")),
                policy: to(&["group:callers@acme.com"], "roles/run.invoker"),
                ..fine()
            },
            Cause::MaybeThroughAGroup,
        ),
        (
            "a federated identity sends the token of its service account",
            Facts {
                principal: principal(
                    "principal://iam.googleapis.com/locations/global/workforcePools/p/subject/s",
                ),
                token: token_of(Some("x@evil.com")),
                ..fine()
            },
            Cause::WrongPrincipal,
        ),
        (
            "access that ended, and a group",
            Facts {
                policy: ended_and("group:callers@acme.com"),
                ..fine()
            },
            Cause::CannotTell,
        ),
        (
            "access that ended, and a project that cannot be seen",
            Facts {
                policy: conditional(ended),
                above: above(hidden()),
                ..fine()
            },
            Cause::CannotTell,
        ),
        (
            "access that ended, and a group that it may not be in",
            Facts {
                policy: ended_and("group:callers@acme.com"),
                symptom: logged(403, &lacks),
                ..fine()
            },
            Cause::CannotTell,
        ),
        (
            "a function's audience as it is written",
            audience(function, true),
            Cause::AccessExpected,
        ),
        (
            "a function's audience with a slash",
            audience(&format!("{function}/"), true),
            Cause::WrongAudience,
        ),
        (
            "a function's audience in another case",
            audience(&function.to_lowercase(), true),
            Cause::WrongAudience,
        ),
        (
            "a function's audience with a query",
            audience(&format!("{function}?x=1"), true),
            Cause::WrongAudience,
        ),
        (
            "a function's audience, and the service is none",
            audience(function, false),
            Cause::WrongAudience,
        ),
        (
            "a tag's URL as audience",
            Facts {
                front: front(|f| {
                    f.tag_urls = vec!["https://blue---web-abcdefghij-ew.a.run.app".into()]
                }),
                token: token(
                    claims(|c| c["aud"] = json!("https://blue---web-abcdefghij-ew.a.run.app")),
                    "s",
                ),
                ..seen()
            },
            Cause::AccessUnverified,
        ),
        (
            "a user of a domain that may be the customer's other one",
            Facts {
                principal: principal("user:ada@acme.io"),
                policy: to(&["domain:acme.com"], "roles/run.invoker"),
                ..fine()
            },
            Cause::MaybeThroughAGroup,
        ),
        (
            "a user of the domain",
            Facts {
                principal: principal("user:ada@acme.com"),
                policy: to(&["domain:acme.com"], "roles/run.invoker"),
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "nobody's customer",
            Facts {
                principal: principal("user:ada@gmail.com"),
                policy: to(&["domain:acme.com"], "roles/run.invoker"),
                ..fine()
            },
            Cause::NotGranted,
        ),
        (
            "a token for another audience, and Cloud Run says that a valid one came",
            Facts {
                token: token(claims(|c| c["aud"] = json!("https://example.com")), "s"),
                symptom: logged(403, &lacks),
                policy: nobody(),
                ..fine()
            },
            Cause::NotGranted,
        ),
        (
            "a token that has expired, and a page that says nothing of that",
            Facts {
                token: token(claims(|c| c["exp"] = json!(at().as_second())), "s"),
                symptom: logged(403, NOT_AUTHENTICATED),
                ..fine()
            },
            Cause::CannotTell,
        ),
        (
            "a token that was cut off",
            Facts {
                token: token(claims(|_| {}), "c2ln"),
                ..seen()
            },
            Cause::AccessUnverified,
        ),
        (
            "a token that does not say when it ends",
            Facts {
                token: token(claims(|c| c["exp"] = json!("later")), "s"),
                ..seen()
            },
            Cause::AccessUnverified,
        ),
        (
            "a token that ended within a second",
            Facts {
                token: token(
                    claims(|c| c["exp"] = json!(at().as_second() as f64 - 0.5)),
                    "s",
                ),
                ..seen()
            },
            Cause::TokenExpired,
        ),
        (
            "a token that is not valid yet",
            Facts {
                token: token(claims(|c| c["nbf"] = json!(at().as_second() + 3600)), "s"),
                ..seen()
            },
            Cause::NotAnIdToken,
        ),
        (
            "a token that nobody signed",
            Facts {
                token: Some(signed("none", claims(|_| {}), "")),
                ..seen()
            },
            Cause::NotAnIdToken,
        ),
        (
            "a token by a shared key",
            Facts {
                token: Some(signed("HS256", claims(|_| {}), &"s".repeat(342))),
                ..seen()
            },
            Cause::NotAnIdToken,
        ),
        (
            "a member of a pool that does not exist",
            Facts {
                principal: principal("serviceAccount:acme-prod.svc.id.goog[shop/web]"),
                policy: nobody(),
                declared: Known::Is(vec![web(|d| {
                    (d.lists, d.reason) = (Some(0), Some(NO_POOL.into()))
                })]),
                ..fine()
            },
            Cause::CannotInvoke,
        ),
    ]
}

const NO_POOL: &str = "InvalidMember: Identity Pool does not exist (acme-prod.svc.id.goog)";

#[test]
fn whose_token_it_is_decides_whom_the_verdict_is_about() {
    let found = diagnose(&Facts {
        token: token_of(Some("x@evil.com")),
        ..fine()
    });
    assert!(
        found.verdict.contains(EVIL) && found.fix.words.contains(EVIL),
        "{found:#?}"
    );
    let found = diagnose(&Facts {
        principal: principal("group:callers@acme.com"),
        token: token_of(Some("x@evil.com")),
        ..fine()
    });
    assert_eq!(found.principal.as_deref(), Some(EVIL), "{found:#?}");
}

#[test]
fn both_branches_are_said_where_access_has_ended_and_a_group_is_granted() {
    let (_, facts, _) = cases()
        .into_iter()
        .find(|(what, ..)| *what == "access that ended, and a group")
        .unwrap();
    let found = diagnose(&facts);
    for words in ["has ended", "group:callers@acme.com"] {
        assert!(found.verdict.contains(words), "{found:#?}");
    }
    assert!(found.cause.is_open());
}

#[test]
fn a_pool_that_does_not_exist_is_about_all_of_its_members() {
    let fix = missing(vec![web(|d| {
        (d.lists, d.reason) = (Some(0), Some(NO_POOL.into()))
    })]);
    assert!(fix.words.contains("every member of the pool"), "{fix:?}");
}

#[test]
fn what_became_of_a_request_is_said_with_the_fix() {
    let words = |phase: Option<RequestPhase>, requests_in: Option<&str>| {
        let request = phase.map(|phase| Requested {
            namespace: "shop".into(),
            name: "web-1".into(),
            phase,
            message: "denied by no-1: not today".into(),
        });
        diagnose(&Facts {
            policy: nobody(),
            declared: Known::Is(vec![web(|_| {})]),
            requests: request.into_iter().collect(),
            requests_in: requests_in.map(str::to_owned),
            ..fine()
        })
        .fix
        .words
    };
    let ask = format!(
        "kubectl invoker request -n shop --project acme-prod --region europe-west1 --service web --member '{CALLER}'"
    );
    for (phase, said) in [
        (
            RequestPhase::Pending,
            "kubectl invoker approve web-1 -n shop --request --reason WHY",
        ),
        (RequestPhase::Active, "is approved"),
        (
            RequestPhase::Denied,
            "was not granted: denied by no-1: not today",
        ),
        (RequestPhase::Refused, "was not granted"),
        (RequestPhase::Ended, &ask),
    ] {
        let words = words(Some(phase), Some("shop"));
        assert!(
            words.contains("InvokerAccessRequest shop/web-1") && words.contains(said),
            "{words}"
        );
    }
    assert!(words(None, Some("shop")).contains(&ask));
    assert!(!words(None, None).contains("kubectl invoker request"));
}
