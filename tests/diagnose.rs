#![cfg(feature = "cli")]
//! Every row of the troubleshooting matrix as a case that the diagnosis names correctly, and what
//! it never advises.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use run_invoker::{
    diagnose::{Cause, Declared, Facts, Known, Outcome, diagnose, symptom::Symptom, token::Token},
    iam::{Policy, Principal, RunService, ServiceSettings},
};
use serde_json::{Value, json};

const URL: &str = "https://web-abcdefghij-ew.a.run.app";
const CALLER: &str = "serviceAccount:frontend@acme-prod.iam.gserviceaccount.com";

fn at() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

fn policy(bindings: Value) -> Policy {
    serde_json::from_value(json!({"version": 3, "etag": "BwX=", "bindings": bindings})).unwrap()
}

fn granted() -> Policy {
    policy(json!([{"role": "roles/run.invoker", "members": [CALLER]}]))
}

/// A caller with a grant and nothing in the way.
fn fine() -> Facts {
    Facts {
        service: RunService::new("acme-prod", "europe-west1", "web"),
        at: at(),
        principal: Some(Principal::parse(CALLER).unwrap()),
        url: Some(format!("{URL}/orders")),
        front: Known::Is(ServiceSettings {
            ingress: "INGRESS_TRAFFIC_ALL".into(),
            urls: vec![URL.into()],
            ..ServiceSettings::default()
        }),
        policy: Known::Is(granted()),
        project: Known::Is(Policy::default()),
        token: None,
        symptom: Symptom::default(),
        declared: Vec::new(),
        changed_at: None,
    }
}

fn front(change: impl Fn(&mut ServiceSettings)) -> Known<ServiceSettings> {
    let Known::Is(mut front) = fine().front else {
        unreachable!()
    };
    change(&mut front);
    Known::Is(front)
}

fn heard(text: &str) -> Symptom {
    let mut symptom = Symptom::default();
    symptom.hear(text);
    symptom
}

fn token(claims: Value, signature: &str) -> Option<Token> {
    Some(Token::read(&format!(
        "e30.{}.{signature}",
        URL_SAFE_NO_PAD.encode(claims.to_string())
    )))
}

fn claims(change: impl Fn(&mut Value)) -> Value {
    let mut claims = json!({"iss": "https://accounts.google.com", "aud": URL, "exp": at().as_second() + 600,
        "email": "frontend@acme-prod.iam.gserviceaccount.com"});
    change(&mut claims);
    claims
}

fn conditional(expression: &str) -> Known<Policy> {
    Known::Is(policy(
        json!([{"role": "roles/run.invoker", "members": [CALLER], "condition": {"title": "t", "expression": expression}}]),
    ))
}

/// What is given, and what it comes to.
fn cases() -> Vec<(&'static str, Facts, Cause)> {
    let nobody = || Known::Is(Policy::default());
    let status = |code, logged| Symptom {
        status: Some(code),
        logged,
        ..Symptom::default()
    };
    vec![
        ("nothing in the way", fine(), Cause::AccessExpected),
        ("not deployed", Facts { front: Known::Absent("no such service".into()), ..fine() }, Cause::ServiceNotFound),
        (
            "another service's URL",
            Facts { url: Some("https://other-abcdefghij-ew.a.run.app/".into()), ..fine() },
            Cause::WrongUrl,
        ),
        (
            "default URL off",
            Facts { front: front(|f| f.default_url_disabled = true), ..fine() },
            Cause::DefaultUrlDisabled,
        ),
        (
            "404 without an entry, internal ingress",
            Facts {
                front: front(|f| f.ingress = "INGRESS_TRAFFIC_INTERNAL_ONLY".into()),
                symptom: status(404, false),
                ..fine()
            },
            Cause::IngressBlocks,
        ),
        (
            "a path that Google keeps",
            Facts { url: Some(format!("{URL}/healthz")), symptom: status(404, false), ..fine() },
            Cause::ReservedPath,
        ),
        ("404 with an entry", Facts { symptom: status(404, true), ..fine() }, Cause::TheApplication),
        (
            "IAP in front",
            Facts {
                front: front(|f| f.iap = true),
                policy: Known::Is(policy(
                    json!([{"role": "roles/run.invoker", "members": ["serviceAccount:service-1@gcp-sa-iap.iam.gserviceaccount.com"]}]),
                )),
                ..fine()
            },
            Cause::IapDecides,
        ),
        ("IAP without its agent", Facts { front: front(|f| f.iap = true), ..fine() }, Cause::IapAgentMissing),
        (
            "IAM check off",
            Facts { front: front(|f| f.invoker_iam_disabled = true), policy: nobody(), ..fine() },
            Cause::IamCheckOff,
        ),
        (
            "403, no token",
            Facts {
                principal: None,
                symptom: heard(
                    "The request was not authenticated. Either allow unauthenticated invocations or set the proper Authorization header.",
                ),
                ..fine()
            },
            Cause::NoToken,
        ),
        (
            "401, token not verified",
            Facts {
                principal: None,
                symptom: heard(
                    "The request was not authorized to invoke this service. The access token could not be verified.",
                ),
                ..fine()
            },
            Cause::NotAnIdToken,
        ),
        ("an access token", Facts { token: Some(Token::read("ya29.secret")), ..fine() }, Cause::NotAnIdToken),
        ("no token at all in it", Facts { token: Some(Token::read("hello")), ..fine() }, Cause::NotAnIdToken),
        (
            "signature removed",
            Facts { token: token(claims(|_| {}), "SIGNATURE_REMOVED_BY_GOOGLE"), ..fine() },
            Cause::SignatureRemoved,
        ),
        (
            "a foreign issuer",
            Facts { token: token(claims(|c| c["iss"] = json!("https://securetoken.google.com/acme")), "s"), ..fine() },
            Cause::ForeignIssuer,
        ),
        (
            "an expired token",
            Facts { token: token(claims(|c| c["exp"] = json!(at().as_second())), "s"), ..fine() },
            Cause::TokenExpired,
        ),
        (
            "another audience",
            Facts { token: token(claims(|c| c["aud"] = json!("https://example.com")), "s"), ..fine() },
            Cause::WrongAudience,
        ),
        (
            "a custom audience",
            Facts {
                token: token(claims(|c| c["aud"] = json!("shop-api")), "s"),
                front: front(|f| f.custom_audiences = vec!["shop-api".into()]),
                ..fine()
            },
            Cause::AccessExpected,
        ),
        (
            "a federated identity",
            Facts {
                principal: Some(
                    Principal::parse("principal://iam.googleapis.com/locations/global/workforcePools/p/subject/s")
                        .unwrap(),
                ),
                ..fine()
            },
            Cause::CannotInvoke,
        ),
        ("no grant", Facts { policy: nobody(), ..fine() }, Cause::NotGranted),
        (
            "another member's grant",
            Facts {
                policy: Known::Is(policy(json!([{"role": "roles/run.invoker", "members": ["user:x@acme.com"]}]))),
                ..fine()
            },
            Cause::NotGranted,
        ),
        (
            "a role that does not invoke",
            Facts { policy: Known::Is(policy(json!([{"role": "roles/run.viewer", "members": [CALLER]}]))), ..fine() },
            Cause::NotGranted,
        ),
        (
            "by another role",
            Facts {
                policy: Known::Is(policy(json!([{"role": "roles/run.developer", "members": [CALLER]}]))),
                ..fine()
            },
            Cause::AccessExpected,
        ),
        (
            "in another spelling",
            Facts {
                policy: Known::Is(policy(
                    json!([{"role": "roles/run.invoker", "members": ["serviceAccount:Frontend@acme-prod.iam.gserviceaccount.com"]}]),
                )),
                ..fine()
            },
            Cause::AccessExpected,
        ),
        ("by the project", Facts { policy: nobody(), project: Known::Is(granted()), ..fine() }, Cause::AccessExpected),
        (
            "perhaps by a group",
            Facts {
                policy: Known::Is(policy(
                    json!([{"role": "roles/run.invoker", "members": ["group:callers@acme.com"]}]),
                )),
                ..fine()
            },
            Cause::MaybeThroughAGroup,
        ),
        (
            "access that ended",
            Facts { policy: conditional("request.time < timestamp(\"2026-11-24T11:59:59Z\")"), ..fine() },
            Cause::AccessEnded,
        ),
        (
            "access that ends later",
            Facts { policy: conditional("request.time < timestamp(\"2026-11-24T12:00:01Z\")"), ..fine() },
            Cause::AccessExpected,
        ),
        (
            "a condition on the hour",
            Facts { policy: conditional("request.time.getHours('Europe/Berlin') < 9"), ..fine() },
            Cause::ConditionFalse,
        ),
        (
            "a condition on the path",
            Facts { policy: conditional("request.path.startsWith('/admin')"), ..fine() },
            Cause::ConditionFalse,
        ),
        (
            "granted a minute ago",
            Facts { changed_at: Some("2026-11-24T11:59:00Z".parse().unwrap()), symptom: status(403, true), ..fine() },
            Cause::Propagating,
        ),
        (
            "granted an hour ago, and still 403",
            Facts { changed_at: Some("2026-11-24T11:00:00Z".parse().unwrap()), symptom: status(403, false), ..fine() },
            Cause::PerimeterOrDeny,
        ),
        (
            "no instance",
            Facts { symptom: heard("The request was aborted because there was no available instance."), ..fine() },
            Cause::NoInstance,
        ),
        (
            "public",
            Facts {
                policy: Known::Is(policy(json!([{"role": "roles/run.invoker", "members": ["allUsers"]}]))),
                ..fine()
            },
            Cause::AccessExpected,
        ),
        ("nothing known", Facts { principal: None, url: None, ..fine() }, Cause::CannotTell),
    ]
}

#[test]
fn every_row_of_the_matrix_is_named() {
    for (what, facts, cause) in cases() {
        let found = diagnose(&facts);
        assert_eq!(found.cause, cause, "{what}: {found:#?}");
        assert!(
            !found.verdict.is_empty() && !found.fix.words.is_empty(),
            "{what}"
        );
        let failed = found
            .steps
            .iter()
            .filter(|s| s.outcome == Outcome::Fail)
            .count();
        if matches!(
            cause,
            Cause::AccessExpected | Cause::CannotTell | Cause::Propagating | Cause::IamCheckOff
        ) {
            assert_eq!(failed, 0, "{what}: {:#?}", found.steps);
        }
    }
    // A cause without a case would be a promise that nothing holds.
    let named: BTreeSet<Cause> = cases().into_iter().map(|(_, _, c)| c).collect();
    assert_eq!(named.len(), 25, "{named:?}");
}

#[test]
fn public_access_is_never_advised_and_no_token_is_shown() {
    let secret = "c2VjcmV0LXNpZ25hdHVyZQ";
    for (what, mut facts, _) in cases() {
        if facts.token.is_none() {
            facts.token = token(claims(|_| {}), secret);
        }
        let found = diagnose(&facts);
        let fix = format!(
            "{} {} {}",
            found.fix.words, found.fix.policy, found.fix.gcloud
        );
        assert!(
            !fix.contains("allUsers")
                && !fix.contains("allAuthenticatedUsers")
                && !fix.contains("allow-unauthenticated"),
            "{what}: {fix}"
        );
        let all = serde_json::to_string(&found).unwrap();
        assert!(
            !all.contains(secret) && !all.contains("ya29."),
            "{what}: the token is shown"
        );
    }
}

#[test]
fn the_fix_goes_where_the_service_is_declared() {
    let missing = |declared: Vec<Declared>| {
        diagnose(&Facts {
            policy: Known::Is(Policy::default()),
            declared,
            ..fine()
        })
        .fix
    };
    let by = |lists, enforced, reason: Option<&str>| Declared {
        policy: "shop/web".into(),
        lists,
        enforced,
        reason: reason.map(str::to_owned),
    };
    let fresh = missing(vec![]);
    assert!(
        fresh.policy.contains(CALLER) && fresh.policy.contains("membership: Additive"),
        "{fresh:?}"
    );
    assert!(
        fresh
            .gcloud
            .contains("add-iam-policy-binding web --project acme-prod --region europe-west1")
    );
    assert!(
        missing(vec![by(false, true, None)])
            .words
            .contains("spec.invokers of InvokerPolicy shop/web")
    );
    assert!(
        missing(vec![by(true, false, None)])
            .words
            .contains("set mode: Enforce")
    );
    assert!(
        missing(vec![by(true, true, Some("GuardrailViolated: no"))])
            .words
            .contains("GuardrailViolated")
    );
}

#[test]
fn a_log_entry_says_which_service_and_when() {
    let entry = json!([{"resource": {"type": "cloud_run_revision", "labels": {"project_id": "acme-prod", "location": "europe-west1", "service_name": "web"}},
        "severity": "WARNING", "timestamp": "2026-11-24T12:00:00Z", "httpRequest": {"status": 403, "requestUrl": "https://web-abcdefghij-ew.a.run.app/orders"},
        "textPayload": "The request was not authenticated. Either allow unauthenticated invocations or set the proper Authorization header."}]);
    let (symptom, found) = Symptom::of_entry(&entry);
    assert!(
        symptom.no_token
            && symptom.logged
            && !symptom.logged_by_application
            && symptom.status == Some(403)
    );
    assert_eq!(
        found.service,
        Some(RunService::new("acme-prod", "europe-west1", "web"))
    );
    assert_eq!(found.at, Some(at()));
    let (other, empty) = Symptom::of_entry(&json!({"textPayload": 7}));
    assert_eq!((other, empty.service), (Symptom::default(), None));
}
