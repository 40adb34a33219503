//! That nothing refuses a request is said only where everything was seen.

use run_invoker::diagnose::Gone;

use super::{answers::with, *};

const LACKS: &str = "The request was not authenticated. Either allow unauthenticated invocations or set the proper Authorization header. The IAM principal lacks {run.routes.invoke} permission.";

/// As Google's front end answers where nothing is.
fn front_ends_404() -> Symptom {
    let mut symptom = Symptom::default();
    symptom.take_in_answer("HTTP/2 404\n\n<!DOCTYPE html><html lang=en><title>Error 404 (Page not found)!!1</title><p><b>404.</b> <ins>That’s an error.</ins><p>The requested URL <code>/orders</code> was not found on this server.  <ins>That’s all we know.</ins>");
    symptom
}

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
        (
            "a path that Google may keep, and nobody called it",
            url(&format!("{URL}/healthz")),
            Cause::AccessUnverified,
        ),
        (
            "a path that Google keeps, and nobody called it",
            url(&format!("{URL}/_ah/health")),
            Cause::AccessUnverified,
        ),
        (
            "404 that nobody looked for in the log, internal ingress",
            internal(status(404, None)),
            Cause::CannotTell,
        ),
        (
            "404 by Google's own page, internal ingress",
            internal(front_ends_404()),
            Cause::IngressBlocks,
        ),
        (
            "404 without an entry at a domain, internal ingress",
            Facts {
                url: Some("https://shop.acme.com/orders".into()),
                ..internal(status(404, false))
            },
            Cause::CannotTell,
        ),
        (
            "a service whose URLs are off lists none, and its own is called",
            Facts {
                front: front(|f| (f.default_url_disabled, f.urls) = (true, Vec::new())),
                ..url(&format!("{URL}/orders"))
            },
            Cause::DefaultUrlDisabled,
        ),
        (
            "no grant here, and folders that cannot be seen",
            Facts {
                policy: nobody(),
                above: hidden_above(),
                ..fine()
            },
            Cause::CannotTell,
        ),
        (
            "no grant here, folders that cannot be seen, and Policy Troubleshooter says no",
            Facts {
                policy: nobody(),
                above: hidden_above(),
                troubleshooter: troubleshot(Says::No, &[], Says::No),
                ..fine()
            },
            Cause::NotGranted,
        ),
        (
            "no grant here, folders that cannot be seen, and Cloud Run's own word",
            Facts {
                policy: nobody(),
                above: hidden_above(),
                symptom: logged(403, LACKS),
                ..fine()
            },
            Cause::NotGranted,
        ),
        (
            "a grant on a folder that can be seen",
            Facts {
                policy: nobody(),
                above: vec![
                    Place::new("the project", nobody()),
                    Place::new("folders/11", Known::Is(granted())),
                ],
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "everybody is let in from a folder",
            Facts {
                principal: None,
                policy: nobody(),
                above: vec![
                    Place::new("the project", nobody()),
                    Place::new("folders/11", to(&["allUsers"], "roles/run.invoker")),
                ],
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "Policy Troubleshooter says that nothing grants it, and the policy does",
            Facts {
                troubleshooter: troubleshot(Says::No, &[], Says::No),
                ..fine()
            },
            Cause::AccessUnverified,
        ),
        (
            "an old grant, and somebody else's of a minute ago",
            Facts {
                granted_at: granted_for(60, "user:x@acme.com"),
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "granted a minute ago, and in",
            Facts {
                granted_at: granted_for(60, CALLER),
                symptom: status(200, None),
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "switched protocols: in",
            Facts {
                symptom: status(101, None),
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "switched protocols, and no grant",
            Facts {
                policy: nobody(),
                symptom: status(101, None),
                ..fine()
            },
            Cause::CannotTell,
        ),
        (
            "a deny policy, and in",
            Facts {
                troubleshooter: troubleshot(Says::Yes, &[ROLE_ON_SERVICE], Says::Yes),
                symptom: status(200, None),
                ..fine()
            },
            Cause::CannotTell,
        ),
        (
            "the IAM check is off, and refused",
            Facts {
                front: front(|f| f.invoker_iam_disabled = true),
                symptom: logged(403, LACKS),
                ..fine()
            },
            Cause::CannotTell,
        ),
        (
            "a mesh refuses whom IAM would refuse too",
            Facts {
                policy: nobody(),
                troubleshooter: Known::NotAsked,
                ..with("HTTP/2 403\nserver: istio-envoy\n\nRBAC: access denied")
            },
            Cause::CannotTell,
        ),
        (
            "a redirect of somebody's, and no grant",
            Facts {
                policy: nobody(),
                symptom: status(302, None),
                ..fine()
            },
            Cause::CannotTell,
        ),
        (
            "a code that IAM never answers, and no grant",
            Facts {
                policy: nobody(),
                symptom: status(409, None),
                ..fine()
            },
            Cause::NotAboutAccess,
        ),
        (
            "a mesh refuses",
            with("HTTP/2 403\nserver: envoy\n\nRBAC: access denied"),
            Cause::CannotTell,
        ),
        (
            "a gateway refuses, and has Google's front end behind it",
            Facts {
                url: Some("https://api-1a2b3c4d.ew.gateway.dev/orders".into()),
                ..with(
                    "HTTP/2 403\nserver: Google Frontend\n\n{\"message\":\"PERMISSION_DENIED\",\"code\":403}",
                )
            },
            Cause::CannotTell,
        ),
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
        Cause::Propagating,
    ] {
        assert!(cause.is_open(), "{cause:?}");
    }
    for cause in [Cause::AccessExpected, Cause::NotGranted, Cause::IapDecides] {
        assert!(!cause.is_open(), "{cause:?}");
    }
}
