//! That nothing refuses a request is said only where everything was seen.

use run_invoker::diagnose::Gone;

use super::*;

pub fn cases() -> Vec<(&'static str, Facts, Cause)> {
    let internal = |symptom: Symptom| Facts {
        front: front(|f| f.ingress = "INGRESS_TRAFFIC_INTERNAL_ONLY".into()),
        symptom,
        ..seen()
    };
    let url = |url: &str| Facts {
        url: Some(url.into()),
        ..seen()
    };
    let gone = |gone: Gone| Facts {
        front: Known::Absent("Permission denied on resource project acme-prod.".into()),
        policy: Known::Absent("Permission denied on resource project acme-prod.".into()),
        gone: Some(gone),
        ..seen()
    };
    vec![
        (
            "ingress internal, and nobody knows from where",
            internal(Symptom::default()),
            Cause::AccessUnverified,
        ),
        (
            "ingress internal, and in",
            internal(status(200, None)),
            Cause::AccessExpected,
        ),
        (
            "an address of somebody's",
            url("https://shop.acme.com/orders"),
            Cause::AccessUnverified,
        ),
        (
            "an address of somebody's that led to the service",
            Facts {
                symptom: status(200, true),
                ..url("https://shop.acme.com/orders")
            },
            Cause::AccessExpected,
        ),
        (
            "the service's URL with its port",
            url(&format!("{URL}:443/x")),
            Cause::AccessExpected,
        ),
        (
            "the service's URL with a query and no path",
            url(&format!("{URL}?x=y")),
            Cause::AccessExpected,
        ),
        (
            "the service's host at another port",
            url(&format!("{URL}:8443/x")),
            Cause::WrongUrl,
        ),
        (
            "the run.app URLs are off, and nobody knows which one is called",
            Facts {
                url: None,
                front: front(|f| f.default_url_disabled = true),
                ..seen()
            },
            Cause::AccessUnverified,
        ),
        (
            "a change of the service is under way",
            Facts {
                front: front(|f| f.reconciling = true),
                ..seen()
            },
            Cause::AccessUnverified,
        ),
        (
            "deny policies not looked at",
            Facts {
                troubleshooter: Known::NotAsked,
                ..seen()
            },
            Cause::AccessUnverified,
        ),
        (
            "deny policies not looked at, and in",
            Facts {
                troubleshooter: Known::NotAsked,
                symptom: status(200, None),
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "Policy Troubleshooter could not be asked",
            Facts {
                troubleshooter: hidden(),
                ..seen()
            },
            Cause::AccessUnverified,
        ),
        (
            "a deny policy under a condition",
            Facts {
                troubleshooter: troubleshot(Says::Yes, &[ROLE_ON_SERVICE], Says::Depends),
                ..seen()
            },
            Cause::AccessUnverified,
        ),
        (
            "a project that is gone",
            gone(Gone::Project),
            Cause::ProjectNotFound,
        ),
        ("the API is off", gone(Gone::Api), Cause::ApiDisabled),
    ]
}

/// Whatever else is in order: what one of these leaves open takes the verdict away.
#[test]
fn one_thing_unseen_is_enough() {
    type Change = fn(&mut Facts);
    let unseen: [(&str, Change); 5] = [
        ("deny policies", |f| f.troubleshooter = Known::NotAsked),
        ("policy troubleshooter", |f| f.troubleshooter = hidden()),
        ("ingress", |f| {
            f.front = front(|f| f.ingress = "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER".into());
        }),
        ("exists", |f| f.front = hidden()),
        ("address", |f| f.url = Some("https://shop.acme.com/".into())),
    ];
    let expected = super::cases()
        .into_iter()
        .filter(|(_, facts, cause)| *cause == Cause::AccessExpected && !facts.symptom.got_in());
    let mut rows = 0;
    for (what, facts, _) in expected {
        for (check, change) in &unseen {
            let mut facts = facts.clone();
            change(&mut facts);
            let found = diagnose(&facts);
            rows += 1;
            assert_ne!(found.cause, Cause::AccessExpected, "{what}, {check}");
            if found.cause == Cause::AccessUnverified {
                assert!(found.verdict.contains(check), "{what}: {}", found.verdict);
            }
        }
    }
    assert!(rows > 50, "{rows}");
}

#[test]
fn what_was_not_seen_is_named_with_the_way_to_see_it() {
    let found = diagnose(&Facts {
        front: front(|f| f.ingress = "INGRESS_TRAFFIC_INTERNAL_ONLY".into()),
        troubleshooter: Known::NotAsked,
        ..seen()
    });
    assert!(found.cause.is_open());
    for words in ["ingress", "--log", "deny policies", "--troubleshoot"] {
        let text = format!("{} {}", found.verdict, found.fix.words);
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_verdict_is_open_or_a_cause() {
    for cause in [
        Cause::AccessUnverified,
        Cause::CannotTell,
        Cause::MaybeThroughAGroup,
        Cause::NoTokenOrNoGrant,
    ] {
        assert!(cause.is_open(), "{cause:?}");
    }
    for cause in [Cause::AccessExpected, Cause::NotGranted, Cause::IapDecides] {
        assert!(!cause.is_open(), "{cause:?}");
    }
}
