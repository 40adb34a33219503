//! Answers as people copy them, and entries of logs: who gave them, and what follows.

use super::*;

const PAGE: &str = "<html><head><title>403 Forbidden</title></head><body><h1>Error: Forbidden</h1><h2>Your client does not have permission to get URL <code>/orders</code> from this server.</h2></body></html>";
const TAIL: &str = "Read more at https://cloud.google.com/run/docs/securing/authenticating Additional troubleshooting documentation can be found at: https://cloud.google.com/run/docs/troubleshooting";
const NOT_VERIFIED: &str = "The request was not authorized to invoke this service. The access token could not be verified.";

pub fn cases() -> Vec<(&'static str, Facts, Cause)> {
    let mut all = copied();
    all.extend(of_the_log());
    all.extend(of_a_public_service());
    all.extend(pushed());
    all
}

/// What `--body` gives.
fn answered(answer: &str) -> Symptom {
    let mut symptom = Symptom::default();
    symptom.take_in_answer(answer);
    symptom
}

pub fn with(answer: &str) -> Facts {
    Facts {
        symptom: answered(answer),
        ..seen()
    }
}

fn copied() -> Vec<(&'static str, Facts, Cause)> {
    let bare = "HTTP/2 403 \r\ncontent-type: text/html\r\n\r\n<html><head><title>403 Forbidden</title></head><center><h1>403 Forbidden</h1></center></html>";
    let json = "HTTP/2 403 \r\ncontent-type: application/json\r\nserver: Google Frontend\r\n\r\n{\"error\":\"not your order\"}";
    let headers =
        "HTTP/2 403 \r\ncontent-type: text/html; charset=UTF-8\r\nserver: Google Frontend\r\n\r\n";
    let nobody_known = |facts: Facts| Facts {
        principal: None,
        ..facts
    };
    vec![
        (
            "Cloud Run's page with its headers",
            nobody_known(with(&format!(
                "HTTP/2 403 \r\nserver: Google Frontend\r\n\r\n{PAGE}"
            ))),
            Cause::NoTokenOrNoGrant,
        ),
        (
            "headers of a 403 alone, and a grant",
            with(headers),
            Cause::CannotTell,
        ),
        (
            "headers of a 403 alone, and no grant",
            Facts {
                policy: nobody(),
                troubleshooter: Known::NotAsked,
                ..with(headers)
            },
            Cause::NotGranted,
        ),
        (
            "headers of a 403 alone, nobody knows whose",
            nobody_known(with(headers)),
            Cause::CannotTell,
        ),
        (
            "a page of somebody's, and a grant",
            with(bare),
            Cause::CannotTell,
        ),
        (
            "a page of somebody's, nobody knows whose",
            nobody_known(with(bare)),
            Cause::CannotTell,
        ),
        (
            "a page of somebody's, and no grant",
            Facts {
                policy: nobody(),
                troubleshooter: Known::NotAsked,
                ..with(bare)
            },
            Cause::CannotTell,
        ),
        (
            "a 404 page of somebody's",
            with("HTTP/2 404 \r\n\r\n<html><title>404 Page not found</title></html>"),
            Cause::CannotTell,
        ),
        ("JSON, and a 403", with(json), Cause::TheApplication),
        (
            "JSON, and nobody knows the status",
            with("{\"error\":\"not your order\"}"),
            Cause::AccessUnverified,
        ),
        (
            "JSON behind a domain",
            Facts {
                url: Some("https://shop.acme.com/".into()),
                ..with(json)
            },
            Cause::CannotTell,
        ),
        (
            "JSON, and settings that cannot be seen",
            Facts {
                front: hidden(),
                ..with(json)
            },
            Cause::CannotTell,
        ),
        (
            "JSON of a service's own with Cloud Run's first words",
            with(
                "HTTP/2 403\nserver: Google Frontend\n\n{\"error\":\"The request was not authenticated.\"}",
            ),
            Cause::TheApplication,
        ),
        (
            "a redirect to somewhere",
            with("HTTP/2 302\nlocation: /login\n"),
            Cause::AccessUnverified,
        ),
    ]
}

fn of_the_log() -> Vec<(&'static str, Facts, Cause)> {
    let unnamed = |entry: &Value| Facts {
        principal: None,
        symptom: Symptom::of_entry(entry).0,
        ..fine()
    };
    let mut bare = entry(403, None);
    bare["labels"] = json!({});
    let mut own_log = entry(
        403,
        Some("denied: The request was not authenticated. Either allow it"),
    );
    own_log["logName"] = json!("projects/acme-prod/logs/run.googleapis.com%2Fstdout");
    own_log["httpRequest"] = json!(null);
    let lacks = format!(
        "{NOT_AUTHENTICATED} The IAM principal lacks {{run.routes.invoke}} permission. {TAIL}#unauthorized-client"
    );
    let refused = |url: &str, change: fn(&mut ServiceSettings)| Facts {
        url: Some(url.into()),
        front: front(change),
        policy: nobody(),
        symptom: logged(403, &lacks),
        ..fine()
    };
    let red = "https://red---web-abcdefghij-ew.a.run.app/";
    vec![
        (
            "the application's own log",
            unnamed(&own_log),
            Cause::TheApplication,
        ),
        (
            "an entry that names neither reason nor instance",
            unnamed(&bare),
            Cause::CannotTell,
        ),
        (
            "the same, of a principal that is granted",
            Facts {
                principal: fine().principal,
                ..unnamed(&bare)
            },
            Cause::CannotTell,
        ),
        (
            "a tag that is gone by now, in the service's log",
            refused(red, |_| {}),
            Cause::NotGranted,
        ),
        (
            "a default URL that is off by now",
            refused(URL, |f| f.default_url_disabled = true),
            Cause::NotGranted,
        ),
        (
            "a domain, in the service's log",
            refused("https://shop.acme.com/", |_| {}),
            Cause::NotGranted,
        ),
        (
            "ingress let it in, as the log shows",
            refused(URL, |f| f.ingress = "INGRESS_TRAFFIC_INTERNAL_ONLY".into()),
            Cause::NotGranted,
        ),
        (
            "401 with its links",
            unnamed(&entry(401, Some(&format!("{NOT_VERIFIED} {TAIL}#401")))),
            Cause::NotAnIdToken,
        ),
        (
            "403 with an empty header and its links",
            unnamed(&entry(
                403,
                Some(&format!(
                    "{NOT_AUTHENTICATED} Empty Authorization header value. {TAIL}#unauthorized-client"
                )),
            )),
            Cause::NoToken,
        ),
        (
            "403, bare, with its links",
            unnamed(&entry(
                403,
                Some(&format!("{NOT_AUTHENTICATED} {TAIL}#unauthorized-client")),
            )),
            Cause::NoTokenOrNoGrant,
        ),
    ]
}

fn of_a_public_service() -> Vec<(&'static str, Facts, Cause)> {
    let public = |symptom: Symptom| Facts {
        policy: to(&["allUsers"], "roles/run.invoker"),
        symptom,
        ..seen()
    };
    let foreign = token(
        claims(|c| c["iss"] = json!("https://securetoken.google.com/acme")),
        "s",
    );
    let denied = troubleshot(Says::Yes, &[ROLE_ON_SERVICE], Says::Yes);
    vec![
        (
            "public for long, and a token that Cloud Run cannot verify",
            public(logged(401, NOT_VERIFIED)),
            Cause::NotAnIdToken,
        ),
        (
            "the same, of the application's own users",
            Facts {
                token: foreign,
                ..public(logged(401, NOT_VERIFIED))
            },
            Cause::NotAnIdToken,
        ),
        (
            "public, and Cloud Run refuses it",
            public(logged(403, NOT_AUTHENTICATED)),
            Cause::CannotTell,
        ),
        (
            "public, and a 403 of somebody's",
            public(status(403, None)),
            Cause::CannotTell,
        ),
        (
            "public, and a deny policy",
            Facts {
                troubleshooter: denied,
                ..public(Symptom::default())
            },
            Cause::PerimeterOrDeny,
        ),
        (
            "public, deny policies not looked at",
            Facts {
                troubleshooter: Known::NotAsked,
                ..public(Symptom::default())
            },
            Cause::AccessUnverified,
        ),
        (
            "public behind ingress",
            Facts {
                front: front(|f| f.ingress = "INGRESS_TRAFFIC_INTERNAL_ONLY".into()),
                ..public(Symptom::default())
            },
            Cause::AccessUnverified,
        ),
    ]
}

/// User agents, and what the advice names.
const SENDERS: [(&str, &str); 6] = [
    (
        "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)",
        "subscription or trigger",
    ),
    ("CloudPubSub-Google", "subscription or trigger"),
    ("Google-Cloud-Scheduler", "job"),
    ("Google-Cloud-Tasks", "queue"),
    (
        "GoogleCloudWorkflows; (+https://cloud.google.com/workflows/docs)",
        "workflow's service account",
    ),
    (
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
        "browser",
    ),
];

fn sent(agent: &str, ending: &str) -> Facts {
    let mut entry = entry(
        403,
        Some(&format!(
            "{NOT_AUTHENTICATED}{ending} {TAIL}#unauthorized-client"
        )),
    );
    entry["httpRequest"]["userAgent"] = json!(agent);
    Facts {
        principal: None,
        symptom: Symptom::of_entry(&entry).0,
        ..fine()
    }
}

fn pushed() -> Vec<(&'static str, Facts, Cause)> {
    let mut all = Vec::new();
    for (agent, _) in SENDERS {
        all.push((
            agent,
            sent(agent, " Empty Authorization header value."),
            Cause::NoToken,
        ));
        all.push((
            agent,
            sent(
                agent,
                " The IAM principal lacks {run.routes.invoke} permission.",
            ),
            Cause::CannotTell,
        ));
        all.push((agent, sent(agent, ""), Cause::NoTokenOrNoGrant));
    }
    all
}

#[test]
fn what_is_advised_for_a_push_is_about_its_sender() {
    for (agent, name) in SENDERS {
        for ending in [" Empty Authorization header value.", ""] {
            let fix = diagnose(&sent(agent, ending)).fix;
            assert!(fix.words.contains(name), "{agent}{ending}: {fix:?}");
            assert!(fix.gcloud.is_empty(), "{agent}: {fix:?}");
        }
    }
}
