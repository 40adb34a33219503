#![cfg(feature = "cli")]
//! Every row of the troubleshooting matrix as a case that the diagnosis names correctly, and what
//! it never advises.
#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

#[path = "diagnose/answers.rs"]
mod answers;
#[path = "diagnose/callers.rs"]
mod callers;
#[path = "diagnose/iap.rs"]
mod iap;
#[path = "diagnose/unverified.rs"]
mod unverified;
#[path = "diagnose/worlds.rs"]
mod worlds;

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use run_invoker::{
    diagnose::{
        Cause, Declared, Facts, Known, Outcome, Place, diagnose,
        symptom::{Answerer, Refusal, Symptom},
        token::Token,
        troubleshooter::{Answer, Says},
    },
    iam::{Policy, Principal, RunService, ServiceSettings},
};
use serde_json::{Value, json};

const URL: &str = "https://web-abcdefghij-ew.a.run.app";
const CALLER: &str = "serviceAccount:frontend@acme-prod.iam.gserviceaccount.com";

const ROLE_ON_SERVICE: &str =
    "roles/run.invoker on projects/acme-prod/locations/europe-west1/services/web";

fn at() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

fn policy(bindings: Value) -> Policy {
    serde_json::from_value(json!({"version": 3, "etag": "BwX=", "bindings": bindings})).unwrap()
}

fn granted() -> Policy {
    policy(json!([{"role": "roles/run.invoker", "members": [CALLER]}]))
}

/// A caller with a grant and nothing in the way; deny policies are not looked at.
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
        above: above(nobody()),
        gone: None,
        iap: Vec::new(),
        troubleshooter: Known::NotAsked,
        token: None,
        symptom: Symptom::default(),
        declared: Known::Is(Vec::new()),
        granted_at: BTreeMap::new(),
        requests: Vec::new(),
        requests_in: None,
    }
}

/// The same, and no deny policy refuses it: all is seen.
fn seen() -> Facts {
    Facts {
        troubleshooter: troubleshot(Says::Yes, &[ROLE_ON_SERVICE], Says::No),
        ..fine()
    }
}

/// What Policy Troubleshooter says: whether a role grants it, which, and whether it is denied.
fn troubleshot(allowed: Says, by: &[&str], denied: Says) -> Known<Answer> {
    let denied_by =
        (denied == Says::Yes).then(|| "no-contractors on projects/acme-prod".to_owned());
    Known::Is(Answer {
        allowed,
        by: by.iter().map(|b| (*b).to_owned()).collect(),
        denied,
        denied_by: denied_by.into_iter().collect(),
    })
}

fn front(change: impl Fn(&mut ServiceSettings)) -> Known<ServiceSettings> {
    let Known::Is(mut front) = fine().front else {
        unreachable!()
    };
    change(&mut front);
    Known::Is(front)
}

/// As Cloud Functions makes the service of a function.
fn is_function(front: &mut ServiceSettings) {
    let url = "https://europe-west1-acme-prod.cloudfunctions.net/Web".to_owned();
    front.urls.push(url.clone());
    front.custom_audiences.push(url);
}

fn heard(text: &str) -> Symptom {
    let mut symptom = Symptom::default();
    symptom.take_in(text);
    symptom
}

/// `s` stands for a signature that is whole.
fn token(claims: Value, signature: &str) -> Option<Token> {
    let signature = match signature {
        "s" => "s".repeat(342),
        other => other.to_owned(),
    };
    Some(signed("RS256", claims, &signature))
}

fn signed(algorithm: &str, claims: Value, signature: &str) -> Token {
    let part = |v: Value| URL_SAFE_NO_PAD.encode(v.to_string());
    let header = part(json!({"alg": algorithm, "typ": "JWT"}));
    Token::read(&format!("{header}.{}.{signature}", part(claims)))
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

const NOT_AUTHENTICATED: &str = "The request was not authenticated. Either allow unauthenticated invocations or set the proper Authorization header.";
const AGENT: &str = "serviceAccount:service-1@gcp-sa-iap.iam.gserviceaccount.com";
const IAP_ROLE: &str = "roles/iap.httpsResourceAccessor";
const HIDDEN: &str = "Permission 'run.services.getIamPolicy' denied on resource";

fn nobody() -> Known<Policy> {
    Known::Is(Policy::default())
}

/// A project with this policy, and nothing above it.
fn above(policy: Known<Policy>) -> Vec<Place> {
    vec![Place::new("the project", policy)]
}

/// The same, in an organization whose policies cannot be seen.
fn hidden_above() -> Vec<Place> {
    let mut places = above(nobody());
    places.push(Place::new("its folders and organization", hidden()));
    places
}

/// The IAP resource of the service with this policy, and those above it with none.
fn iap_of(policy: Known<Policy>) -> Vec<Place> {
    let mut places = vec![Place::new("the service", policy)];
    places.extend(["its region", "its project's IAP"].map(|n| Place::new(n, nobody())));
    places
}

/// What the operator granted a member so many seconds ago.
fn granted_for(seconds: i64, member: &str) -> BTreeMap<Principal, Timestamp> {
    let ago = at() - jiff::SignedDuration::from_secs(seconds);
    BTreeMap::from([(Principal::from_live(member), ago)])
}

fn hidden<T>() -> Known<T> {
    Known::Hidden(HIDDEN.into())
}

fn status(code: u16, logged: impl Into<Option<bool>>) -> Symptom {
    Symptom {
        status: Some(code),
        logged: logged.into(),
        ..Symptom::default()
    }
}

fn to(members: &[&str], role: &str) -> Known<Policy> {
    Known::Is(policy(json!([{"role": role, "members": members}])))
}

/// The service is meant to be public.
fn public(by: Declared) -> Known<Vec<Declared>> {
    Known::Is(vec![Declared {
        policy: "shop/web".into(),
        public: true,
        enforced: true,
        ..by
    }])
}

/// An entry of the request log as Cloud Run writes it, with its text if it refused the request.
fn entry(status: u16, text: Option<&str>) -> Value {
    let mut entry = json!({
        "insertId": "66f0a1b2000a", "logName": "projects/acme-prod/logs/run.googleapis.com%2Frequests",
        "resource": {"type": "cloud_run_revision", "labels": {"project_id": "acme-prod", "location": "europe-west1", "service_name": "web",
            "configuration_name": "web", "revision_name": "web-00001-abc"}},
        "severity": "WARNING", "timestamp": "2026-11-24T12:00:00Z", "trace": "projects/acme-prod/traces/1",
        "httpRequest": {"requestMethod": "GET", "requestUrl": "https://web-abcdefghij-ew.a.run.app/orders", "status": status,
            "userAgent": "python-requests/2.32", "remoteIp": "203.0.113.7", "latency": "0s", "protocol": "HTTP/1.1"},
    });
    match text {
        Some(text) => entry["textPayload"] = json!(text),
        None => entry["labels"] = json!({"instanceId": "0069c7a988a4b3"}),
    }
    entry
}

fn logged(status: u16, text: &str) -> Symptom {
    Symptom::of_entry(&entry(status, Some(text))).0
}

/// What is given, and what it comes to.
fn cases() -> Vec<(&'static str, Facts, Cause)> {
    let mut all = in_front();
    all.extend(texts_of_a_403());
    all.extend(tokens());
    all.extend(grants());
    all.extend(unseen());
    all.extend(answers::cases());
    all.extend(iap::cases());
    all.extend(callers::cases());
    all.extend(unverified::cases());
    all.extend(roles());
    all
}

/// Exists, address, ingress, Identity-Aware Proxy, IAM check, and what the application says.
fn in_front() -> Vec<(&'static str, Facts, Cause)> {
    let iap = |change: fn(&mut Facts)| {
        let mut facts = Facts {
            front: front(|f| f.iap = true),
            policy: to(&[AGENT], "roles/run.invoker"),
            iap: iap_of(nobody()),
            ..seen()
        };
        change(&mut facts);
        facts
    };
    let url = |url: &str| Facts {
        url: Some(url.into()),
        front: front(|f| {
            f.tag_urls = vec!["https://blue---web-abcdefghij-ew.a.run.app".into()];
            is_function(f);
        }),
        ..seen()
    };
    vec![
        ("a tag's URL", url("https://blue---web-abcdefghij-ew.a.run.app/x"), Cause::AccessExpected),
        ("a tag that is gone", url("https://red---web-abcdefghij-ew.a.run.app/x"), Cause::WrongUrl),
        ("a function's URL", url("https://europe-west1-acme-prod.cloudfunctions.net/Web"), Cause::AccessExpected),
        ("another function's URL", url("https://europe-west1-acme-prod.cloudfunctions.net/api"), Cause::WrongUrl),
        (
            "a function's URL goes with the default URL",
            Facts {
                front: front(|f| {
                    f.default_url_disabled = true;
                    is_function(f);
                }),
                url: Some("https://europe-west1-acme-prod.cloudfunctions.net/Web".into()),
                ..fine()
            },
            Cause::DefaultUrlDisabled,
        ),
        (
            "404 behind a load balancer",
            Facts { url: Some("https://shop.acme.com/orders".into()), symptom: status(404, false), ..fine() },
            Cause::LoadBalancerRoute,
        ),
        ("404, and nobody knows whether it is in the log", Facts { symptom: status(404, None), ..fine() }, Cause::CannotTell),
        ("403 without an entry", Facts { symptom: status(403, false), ..fine() }, Cause::CannotTell),
        (
            "403 of Google's front end without an entry",
            Facts { symptom: Symptom { is_by_front_end: true, ..status(403, false) }, ..fine() },
            Cause::PerimeterOrDeny,
        ),
        (
            "a perimeter's own entry",
            Facts {
                symptom: Symptom::of_entry(&json!({"logName": "projects/acme-prod/logs/cloudaudit.googleapis.com%2Fpolicy",
                    "resource": {"type": "audited_resource", "labels": {"project_id": "acme-prod", "service": "run.googleapis.com", "method": "run.googleapis.com/HttpIngress"}},
                    "severity": "ERROR"})).0,
                ..fine()
            },
            Cause::PerimeterOrDeny,
        ),
        ("the application's own 403", Facts { symptom: Symptom::of_entry(&entry(403, None)).0, policy: nobody(), ..fine() }, Cause::TheApplication),
        (
            "the application's own 403, by its body",
            Facts {
                symptom: {
                    let mut symptom = status(403, None);
                    symptom.take_in_answer("server: Google Frontend\ncontent-type: application/json\n\n{\"error\":\"not your order\"}");
                    symptom
                },
                ..fine()
            },
            Cause::TheApplication,
        ),
        ("the application's own 403 behind IAP", iap(|f| f.symptom = Symptom::of_entry(&entry(403, None)).0), Cause::TheApplication),
        ("500, no instance", Facts { symptom: logged(500, "The request was aborted because there was no available instance."), ..fine() }, Cause::NoInstance),
        ("429, no instance", Facts { symptom: logged(429, "The request was aborted because there was no available instance."), ..fine() }, Cause::NoInstance),
        ("503", Facts { symptom: status(503, true), ..fine() }, Cause::NotAboutAccess),
        ("200, IAM check off", Facts { symptom: status(200, true), front: front(|f| f.invoker_iam_disabled = true), ..fine() }, Cause::IamCheckOff),
        ("200, inherited", Facts { symptom: status(200, true), policy: nobody(), above: above(to(&[CALLER], "roles/owner")), ..seen() }, Cause::AccessExpected),
        ("200, public", Facts { symptom: status(200, true), policy: to(&["allUsers"], "roles/run.invoker"), ..seen() }, Cause::AccessExpected),
        ("200, and no grant that can be seen", Facts { symptom: status(200, true), policy: nobody(), ..fine() }, Cause::CannotTell),
        (
            "IAP in front, nobody knows who",
            iap(|f| f.principal = None),
            Cause::CannotTell,
        ),
        ("IAP does not list the caller", iap(|_| {}), Cause::IapNotGranted),
        ("IAP lists the caller", iap(|f| f.iap = iap_of(to(&[CALLER], IAP_ROLE))), Cause::AccessUnverified),
        ("IAP's grant is inherited", iap(|f| f.above = above(to(&[CALLER], IAP_ROLE))), Cause::AccessUnverified),
        ("IAP lists a group", iap(|f| f.iap = iap_of(to(&["group:callers@acme.com"], IAP_ROLE))), Cause::CannotTell),
        ("IAP's policy cannot be seen", iap(|f| f.iap = iap_of(hidden())), Cause::CannotTell),
        (
            "IAP answered, on the load balancer",
            Facts {
                symptom: heard("HTTP/2 302\r\nlocation: https://accounts.google.com/o/oauth2/v2/auth\r\nX-Goog-IAP-Generated-Response: true\r\n"),
                ..fine()
            },
            Cause::IapDecides,
        ),
        (
            "IAP before a switched-off IAM check is a closed door",
            iap(|f| {
                f.front = front(|f| (f.iap, f.invoker_iam_disabled) = (true, true));
                f.policy = nobody();
            }),
            Cause::IapNotGranted,
        ),
        (
            "meant to be public: 401 for the token of the application's own users",
            Facts {
                principal: None,
                symptom: logged(401, "The request was not authorized to invoke this service. The access token could not be verified."),
                policy: nobody(),
                declared: public(Declared { reason: Some("GuardrailViolated: public is Deny".into()), ..Declared::default() }),
                ..fine()
            },
            Cause::PublicGrantMissing,
        ),
        (
            "meant to be public, and public for a minute",
            Facts {
                principal: None,
                symptom: logged(401, "The request was not authorized to invoke this service. The access token could not be verified."),
                policy: to(&["allUsers"], "roles/run.invoker"),
                declared: public(Declared::default()),
                granted_at: granted_for(60, "allUsers"),
                ..fine()
            },
            Cause::Propagating,
        ),
        (
            "public for long, and a token that Cloud Run may not verify",
            Facts {
                principal: None,
                token: token(claims(|c| c["iss"] = json!("https://securetoken.google.com/acme")), "s"),
                policy: to(&["allUsers"], "roles/run.invoker"),
                ..seen()
            },
            Cause::AccessUnverified,
        ),
    ]
}

fn texts_of_a_403() -> Vec<(&'static str, Facts, Cause)> {
    let lacks =
        format!("{NOT_AUTHENTICATED} The IAM principal lacks {{run.routes.invoke}} permission.");
    let empty = format!("{NOT_AUTHENTICATED} Empty Authorization header value.");
    let text = |text: &str| Facts {
        symptom: logged(403, text),
        ..fine()
    };
    let unnamed = |text: &str| Facts {
        principal: None,
        symptom: logged(403, text),
        ..fine()
    };
    vec![
        (
            "403 of a principal without a grant",
            Facts {
                policy: nobody(),
                ..text(&lacks)
            },
            Cause::NotGranted,
        ),
        (
            "403 of a principal, nobody knows whose",
            unnamed(&lacks),
            Cause::CannotTell,
        ),
        (
            "403 of a principal, and a group that it may not be in",
            Facts {
                policy: to(&["group:callers@acme.com"], "roles/run.invoker"),
                ..text(&lacks)
            },
            Cause::MaybeThroughAGroup,
        ),
        (
            "403 of a principal that is granted",
            text(&lacks),
            Cause::CannotTell,
        ),
        ("403 with an empty header", unnamed(&empty), Cause::NoToken),
        (
            "403 with an empty header, and a grant",
            text(&empty),
            Cause::NoToken,
        ),
        (
            "403 with an empty header, and a token that was given",
            Facts {
                token: token(claims(|_| {}), "s"),
                ..text(&empty)
            },
            Cause::NoToken,
        ),
        (
            "403, bare",
            unnamed(NOT_AUTHENTICATED),
            Cause::NoTokenOrNoGrant,
        ),
        (
            "403, bare, in the newer words",
            unnamed(
                "The request was not authenticated. Either allow public access or set the proper Authorization header.",
            ),
            Cause::NoTokenOrNoGrant,
        ),
        (
            "403, the page alone",
            Facts {
                principal: None,
                symptom: heard(
                    "<title>403 Forbidden</title> Your client does not have permission to get URL <code>/orders</code> from this server.",
                ),
                ..fine()
            },
            Cause::NoTokenOrNoGrant,
        ),
        (
            "403, bare, and a grant",
            text(NOT_AUTHENTICATED),
            Cause::NoTokenOrNoGrant,
        ),
        (
            "403, bare, and no grant",
            Facts {
                policy: nobody(),
                ..text(NOT_AUTHENTICATED)
            },
            Cause::NotGranted,
        ),
        (
            "403, bare, with a token in order and a grant",
            Facts {
                token: token(claims(|_| {}), "s"),
                ..text(NOT_AUTHENTICATED)
            },
            Cause::CannotTell,
        ),
    ]
}

fn tokens() -> Vec<(&'static str, Facts, Cause)> {
    let gcloud = "32555940559.apps.googleusercontent.com";
    let ada = |c: &mut Value| {
        c["aud"] = json!(gcloud);
        c["email"] = json!("ada@acme.com");
    };
    vec![
        (
            "a user's token of gcloud",
            Facts {
                principal: Some(Principal::parse("user:ada@acme.com").unwrap()),
                policy: to(&["user:ada@acme.com"], "roles/run.invoker"),
                token: token(claims(ada), "s"),
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "a service account's token for gcloud's audience",
            Facts {
                token: token(claims(|c| c["aud"] = json!(gcloud)), "s"),
                ..fine()
            },
            Cause::WrongAudience,
        ),
        (
            "a function's audience",
            Facts {
                front: front(is_function),
                token: token(
                    claims(|c| {
                        c["aud"] = json!("https://europe-west1-acme-prod.cloudfunctions.net/Web")
                    }),
                    "s",
                ),
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "another function's audience",
            Facts {
                front: front(is_function),
                token: token(
                    claims(|c| {
                        c["aud"] = json!("https://europe-west1-acme-prod.cloudfunctions.net/api")
                    }),
                    "s",
                ),
                ..fine()
            },
            Cause::WrongAudience,
        ),
        (
            "a token in order, and 401",
            Facts {
                token: token(claims(|_| {}), "s"),
                symptom: logged(
                    401,
                    "The request was not authorized to invoke this service. The access token could not be verified.",
                ),
                ..fine()
            },
            Cause::NotAnIdToken,
        ),
        (
            "a function's 401",
            Facts {
                principal: None,
                symptom: heard(
                    "<title>401 Unauthorized</title> Your client does not have permission to the requested URL <code>/web</code>.",
                ),
                ..fine()
            },
            Cause::NotAnIdToken,
        ),
    ]
}

fn unseen() -> Vec<(&'static str, Facts, Cause)> {
    let text = |text: &str| logged(403, text);
    vec![
        (
            "a grant, and settings that cannot be seen",
            Facts {
                front: hidden(),
                ..seen()
            },
            Cause::AccessUnverified,
        ),
        (
            "a policy that cannot be seen",
            Facts {
                policy: hidden(),
                ..fine()
            },
            Cause::CannotTell,
        ),
        (
            "no grant here, and a project that cannot be seen",
            Facts {
                policy: nobody(),
                above: above(hidden()),
                ..fine()
            },
            Cause::CannotTell,
        ),
        (
            "a grant here, and a project that cannot be seen",
            Facts {
                above: above(hidden()),
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "a policy that cannot be seen, and Cloud Run's own word",
            Facts {
                policy: hidden(),
                symptom: text(&format!(
                    "{NOT_AUTHENTICATED} The IAM principal lacks {{run.routes.invoke}} permission."
                )),
                ..fine()
            },
            Cause::NotGranted,
        ),
        (
            "a policy that cannot be seen, and a text that says both",
            Facts {
                policy: hidden(),
                symptom: text(NOT_AUTHENTICATED),
                ..fine()
            },
            Cause::CannotTell,
        ),
        (
            "meant to be public, and a policy that cannot be seen",
            Facts {
                policy: hidden(),
                symptom: text(NOT_AUTHENTICATED),
                declared: public(Declared::default()),
                ..fine()
            },
            Cause::CannotTell,
        ),
    ]
}

const CUSTOM: &str = "projects/acme-prod/roles/customInvoker";
const ON_SERVICE: &str = "projects/acme-prod/roles/customInvoker on projects/acme-prod/locations/europe-west1/services/web";

/// Roles of which nobody here knows what they carry, and what Policy Troubleshooter knows of them.
fn roles() -> Vec<(&'static str, Facts, Cause)> {
    let by = |role: &str| Facts {
        policy: to(&[CALLER], role),
        ..fine()
    };
    let asked = |allowed: Says, by_whom: &[&str]| Facts {
        troubleshooter: troubleshot(allowed, by_whom, Says::No),
        ..by(CUSTOM)
    };
    let lacks =
        format!("{NOT_AUTHENTICATED} The IAM principal lacks {{run.routes.invoke}} permission.");
    vec![
        ("a custom role", by(CUSTOM), Cause::CannotTell),
        (
            "a custom role of the organization",
            by("organizations/1/roles/x"),
            Cause::CannotTell,
        ),
        (
            "a role that is newer than the list",
            by("roles/run.newerThanWe"),
            Cause::CannotTell,
        ),
        (
            "a role that is known not to carry it",
            by("roles/run.jobsExecutor"),
            Cause::NotGranted,
        ),
        (
            "a role of another product",
            by("roles/storage.admin"),
            Cause::NotGranted,
        ),
        (
            "everybody by a custom role",
            Facts {
                policy: to(&["allUsers"], CUSTOM),
                ..fine()
            },
            Cause::CannotTell,
        ),
        (
            "a group by a custom role",
            Facts {
                policy: to(&["group:callers@acme.com"], CUSTOM),
                ..fine()
            },
            Cause::CannotTell,
        ),
        (
            "somebody else by a custom role",
            Facts {
                policy: to(&["user:deployer@acme.com"], CUSTOM),
                ..fine()
            },
            Cause::NotGranted,
        ),
        (
            "a custom role on the project",
            Facts {
                policy: nobody(),
                above: above(to(&[CALLER], CUSTOM)),
                ..fine()
            },
            Cause::CannotTell,
        ),
        (
            "a custom role under a condition that does not hold",
            Facts {
                policy: Known::Is(policy(json!([{"role": CUSTOM, "members": [CALLER],
                    "condition": {"title": "t", "expression": "request.path.startsWith('/admin')"}}]))),
                ..fine()
            },
            Cause::NotGranted,
        ),
        (
            "a custom role beside a grant",
            Facts {
                policy: Known::Is(policy(
                    json!([{"role": CUSTOM, "members": [CALLER]}, {"role": "roles/run.invoker", "members": [CALLER]}]),
                )),
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "a custom role that is known to grant it",
            asked(Says::Yes, &[ON_SERVICE]),
            Cause::AccessExpected,
        ),
        (
            "a custom role that is known to grant it, and refused",
            Facts {
                symptom: logged(403, &lacks),
                ..asked(Says::Yes, &[ON_SERVICE])
            },
            Cause::CannotTell,
        ),
        (
            "a custom role that is known to grant it since a minute ago",
            Facts {
                granted_at: granted_for(60, CALLER),
                ..asked(Says::Yes, &[ON_SERVICE])
            },
            Cause::Propagating,
        ),
        (
            "a custom role that is known not to grant it",
            asked(Says::No, &[]),
            Cause::NotGranted,
        ),
        (
            "a custom role that may not be looked into",
            asked(Says::Unknown, &[]),
            Cause::CannotTell,
        ),
        (
            "a custom role, and Cloud Run's own word",
            Facts {
                symptom: logged(403, &lacks),
                ..by(CUSTOM)
            },
            Cause::CannotTell,
        ),
        (
            "a group that is known to grant it",
            Facts {
                policy: to(&["group:callers@acme.com"], "roles/run.invoker"),
                troubleshooter: troubleshot(
                    Says::Yes,
                    &[
                        "roles/run.invoker on projects/acme-prod/locations/europe-west1/services/web",
                    ],
                    Says::No,
                ),
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "granted, and nobody names by what",
            Facts {
                policy: nobody(),
                troubleshooter: troubleshot(Says::Yes, &[], Says::No),
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "granted on a service whose policy cannot be seen",
            Facts {
                policy: hidden(),
                ..asked(Says::Yes, &[ON_SERVICE])
            },
            Cause::AccessExpected,
        ),
        (
            "through IAP by a custom role",
            Facts {
                front: front(|f| f.iap = true),
                policy: to(&[AGENT], "roles/run.invoker"),
                iap: iap_of(to(&[CALLER], CUSTOM)),
                ..fine()
            },
            Cause::CannotTell,
        ),
    ]
}

#[test]
fn a_role_that_nobody_knows_is_named_with_how_to_see_what_is_in_it() {
    let found = diagnose(&Facts {
        policy: to(&[CALLER, "allUsers"], CUSTOM),
        ..fine()
    });
    let open = |check: &str| {
        let step = found.steps.iter().find(|s| s.check == check).unwrap();
        step.outcome == Outcome::Maybe && step.evidence.contains(CUSTOM)
    };
    assert!(
        open("public access") && open("grants on the service"),
        "{found:#?}"
    );
    assert!(
        found.verdict.contains(&format!("{CALLER} has {CUSTOM}")),
        "{}",
        found.verdict
    );
    assert!(
        found
            .fix
            .words
            .contains("gcloud iam roles describe customInvoker --project acme-prod")
            && found.fix.words.contains("--troubleshoot"),
        "{}",
        found.fix.words
    );
}

/// What Policy Troubleshooter says is granted, nothing beside it says is not.
#[test]
fn nothing_contradicts_what_policy_troubleshooter_says_is_granted() {
    for (what, mut facts, _) in cases() {
        facts.troubleshooter = troubleshot(Says::Yes, &[ON_SERVICE], Says::No);
        let found = diagnose(&facts);
        let is_contradicted = matches!(
            found.cause,
            Cause::NotGranted
                | Cause::MaybeThroughAGroup
                | Cause::AccessEnded
                | Cause::ConditionFalse
        );
        // Where nobody said who calls there was nobody to ask about.
        assert!(
            !is_contradicted || facts.principal.is_none(),
            "{what}: {found:#?}"
        );
    }
}

/// Who is granted, and the plain cases of each check.
fn grants() -> Vec<(&'static str, Facts, Cause)> {
    vec![
        ("nothing in the way", seen(), Cause::AccessExpected),
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
                symptom: heard(&format!("{NOT_AUTHENTICATED} Empty Authorization header value.")),
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
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "a workload identity",
            Facts {
                principal: Some(
                    Principal::parse("principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/s")
                        .unwrap(),
                ),
                ..fine()
            },
            Cause::CannotInvoke,
        ),
        (
            "a workforce identity with a grant: nobody knows, so nobody is blamed",
            Facts {
                principal: Some(
                    Principal::parse("principal://iam.googleapis.com/locations/global/workforcePools/p/subject/s")
                        .unwrap(),
                ),
                policy: to(&["principalSet://iam.googleapis.com/locations/global/workforcePools/p/*"], "roles/run.invoker"),
                ..seen()
            },
            Cause::AccessUnverified,
        ),
        (
            "a deny policy, whatever grants it",
            Facts { troubleshooter: troubleshot(Says::Yes, &["roles/run.invoker on projects/p/locations/r/services/s"], Says::Yes), ..fine() },
            Cause::PerimeterOrDeny,
        ),
        (
            "a grant on a folder",
            Facts { policy: nobody(), troubleshooter: troubleshot(Says::Yes, &["roles/run.admin on folders/7"], Says::No), ..seen() },
            Cause::AccessExpected,
        ),
        (
            "granted nowhere, although the project cannot be seen",
            Facts { policy: nobody(), above: above(hidden()), troubleshooter: troubleshot(Says::No, &[], Says::No), ..fine() },
            Cause::NotGranted,
        ),
        (
            "a group above that cannot be looked into",
            Facts { policy: nobody(), above: hidden_above(), troubleshooter: troubleshot(Says::Unknown, &[], Says::No), ..fine() },
            Cause::MaybeThroughAGroup,
        ),
        (
            "deny policies that cannot be seen are not said to be none",
            Facts { troubleshooter: troubleshot(Says::Yes, &["roles/run.invoker on projects/p/locations/r/services/s"], Says::Unknown), ..seen() },
            Cause::AccessUnverified,
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
                ..seen()
            },
            Cause::AccessExpected,
        ),
        (
            "in another spelling",
            Facts {
                policy: Known::Is(policy(
                    json!([{"role": "roles/run.invoker", "members": ["serviceAccount:Frontend@acme-prod.iam.gserviceaccount.com"]}]),
                )),
                ..seen()
            },
            Cause::AccessExpected,
        ),
        ("by the project", Facts { policy: nobody(), above: above(Known::Is(granted())), ..seen() }, Cause::AccessExpected),
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
            Facts { policy: conditional("request.time < timestamp(\"2026-11-24T12:00:01Z\")"), ..seen() },
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
            Facts { granted_at: granted_for(60, CALLER), symptom: status(403, true), ..fine() },
            Cause::Propagating,
        ),
        (
            "granted an hour ago, and still 403",
            Facts { granted_at: granted_for(3600, CALLER), symptom: status(403, None), ..fine() },
            Cause::CannotTell,
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
                ..seen()
            },
            Cause::AccessExpected,
        ),
        ("nothing known", Facts { principal: None, url: None, ..fine() }, Cause::CannotTell),
    ]
}

#[test]
fn every_row_of_the_matrix_is_named() {
    let named = |(what, facts, cause): &(&str, Facts, Cause)| {
        let found = diagnose(facts);
        let is_named = found.cause == *cause;
        (!is_named).then(|| {
            format!(
                "{what}: {cause:?} expected; {:?}: {}",
                found.cause, found.verdict
            )
        })
    };
    let wrong: Vec<String> = cases().iter().filter_map(named).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (what, facts, cause) in cases() {
        let found = diagnose(&facts);
        assert!(
            !found.verdict.is_empty() && !found.fix.words.is_empty(),
            "{what}"
        );
        // That nothing refuses it is said only where everything was seen.
        let open: Vec<_> = found.steps.iter().filter(|s| s.is_open()).collect();
        assert!(
            open.is_empty() || cause != Cause::AccessExpected,
            "{what}: {open:#?}"
        );
        if cause == Cause::AccessUnverified {
            // A row about something else must not be open because nobody looked at these.
            let nobody_looked = matches!(facts.troubleshooter, Known::NotAsked);
            assert_eq!(nobody_looked, what.contains("not looked at"), "{what}");
            for step in open {
                let words = format!("{} {}", found.verdict, found.fix.words);
                assert!(words.matches(step.check).count() > 1, "{what}: {words}");
            }
        }
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
    assert_eq!(named.len(), Cause::COUNT, "{named:?}");
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

fn missing(declared: Vec<Declared>) -> run_invoker::diagnose::Fix {
    diagnose(&Facts {
        policy: nobody(),
        declared: Known::Is(declared),
        ..fine()
    })
    .fix
}

fn web(change: impl Fn(&mut Declared)) -> Declared {
    let mut declared = Declared {
        policy: "shop/web".into(),
        enforced: true,
        ..Declared::default()
    };
    change(&mut declared);
    declared
}

#[test]
fn where_nobody_manages_the_service_the_fix_is_one_grant() {
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
    let unasked = Facts {
        policy: nobody(),
        declared: Known::NotAsked,
        ..fine()
    };
    let words = diagnose(&unasked).fix.words;
    assert!(
        words.starts_with("If a policy manages the service"),
        "{words}"
    );
}

/// Whatever stands beside the policy the operator would take away again.
#[test]
fn where_a_policy_manages_the_service_the_fix_is_a_change_of_it() {
    let ended = "2026-11-24T11:00:00Z".parse().unwrap();
    let cases = [
        (
            web(|_| {}),
            "add the member to spec.invokers",
            Some("/spec/invokers/-"),
        ),
        (
            web(|d| d.enforced = false),
            "It only audits",
            Some("/spec/invokers/-"),
        ),
        (
            web(|d| d.suspended = true),
            "It is suspended",
            Some("/spec/invokers/-"),
        ),
        (
            web(|d| (d.lists, d.enforced) = (Some(0), false)),
            "set mode: Enforce",
            Some("/spec/mode"),
        ),
        (
            web(|d| (d.lists, d.suspended) = (Some(0), true)),
            "resume it",
            Some("/spec/suspend"),
        ),
        (
            web(|d| (d.lists, d.ended) = (Some(2), Some(ended))),
            "spec.invokers[2].expires",
            None,
        ),
        (
            web(|d| (d.lists, d.reason) = (Some(0), Some("GuardrailViolated: no".into()))),
            "GuardrailViolated",
            None,
        ),
    ];
    for (declared, words, path) in cases {
        let fix = missing(vec![declared]);
        assert!(
            fix.words.contains("shop/web") && fix.words.contains(words),
            "{fix:?}"
        );
        assert!(fix.policy.is_empty() && fix.gcloud.is_empty(), "{fix:?}");
        let patched = fix
            .patch
            .as_ref()
            .map(|p| p.operations[0]["path"].as_str().unwrap());
        assert_eq!(patched, path, "{fix:?}");
    }
    // The policy that lists it goes before one that does not, and one that acts before one that
    // only looks.
    let two = missing(vec![
        Declared {
            policy: "shop/audit".into(),
            enforced: false,
            ..web(|_| {})
        },
        web(|_| {}),
    ]);
    assert_eq!(two.patch.unwrap().policy, "shop/web");
}

#[test]
fn the_patch_makes_the_policy_list_the_member() {
    let fix = missing(vec![web(|_| {})]);
    let mut object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"project": "acme-prod", "services": [{"name": "web", "region": "europe-west1"}], "invokers": [{"member": "user:x@acme.com"}]}});
    let operation = &fix.patch.unwrap().operations[0];
    assert_eq!(operation["op"], "add");
    object["spec"]["invokers"]
        .as_array_mut()
        .unwrap()
        .push(operation["value"].clone());
    let policy = serde_json::from_value(object).unwrap();
    let intent = run_invoker::intent::Intent::from_policy(&policy);
    let lists = |d: &run_invoker::intent::Declared| d.grant.principal.as_str() == CALLER;
    assert!(intent.rejections.is_empty() && intent.declared.iter().any(lists));
}

#[test]
fn the_way_to_a_token_is_one_that_works_for_the_account() {
    let advice = |principal: Option<&str>| {
        diagnose(&Facts {
            principal: principal.map(|p| Principal::parse(p).unwrap()),
            symptom: heard(&format!(
                "{NOT_AUTHENTICATED} Empty Authorization header value."
            )),
            ..fine()
        })
        .fix
        .gcloud
    };
    let (user, account) = (
        "gcloud auth print-identity-token".to_owned(),
        |name: &str| {
            format!(
                "gcloud auth print-identity-token --impersonate-service-account={name} --audiences={URL} --include-email"
            )
        },
    );
    // --audiences fails for a user account.
    assert_eq!(advice(Some("user:ada@acme.com")), user);
    assert_eq!(
        advice(Some(CALLER)),
        account("frontend@acme-prod.iam.gserviceaccount.com")
    );
    let both = advice(None);
    assert!(
        both.starts_with(&user) && both.ends_with(&account("ACCOUNT")),
        "{both}"
    );
    let mut pushed = entry(
        403,
        Some(&format!(
            "{NOT_AUTHENTICATED} Empty Authorization header value."
        )),
    );
    pushed["httpRequest"]["userAgent"] =
        json!("APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)");
    let found = diagnose(&Facts {
        symptom: Symptom::of_entry(&pushed).0,
        ..fine()
    });
    assert!(
        found.fix.words.contains("Pub/Sub push subscription"),
        "{found:#?}"
    );
}

#[test]
fn what_cannot_be_told_is_said_with_both_branches() {
    for (what, facts, _) in cases() {
        let found = diagnose(&facts);
        if found.cause == Cause::NoTokenOrNoGrant {
            assert!(found.cause.is_open());
            let text = format!("{} {}", found.verdict, found.fix.words).to_lowercase();
            assert!(
                text.contains("without")
                    && text.contains("token")
                    && (text.contains("may not invoke") || text.contains("deny policy")),
                "{what}: {text}"
            );
        }
    }
}

#[test]
fn an_unknown_region_has_the_nearest_known_one_in_its_answer() {
    let found = diagnose(&Facts {
        service: RunService::new("acme-prod", "europe-wset1", "web"),
        front: Known::Absent("not found".into()),
        ..fine()
    });
    assert!(
        found.fix.words.ends_with("did you mean europe-west1?"),
        "{found:#?}"
    );
}

#[test]
fn a_log_entry_says_which_service_and_when() {
    let entry = json!([{"resource": {"type": "cloud_run_revision", "labels": {"project_id": "acme-prod", "location": "europe-west1", "service_name": "web"}},
        "severity": "WARNING", "timestamp": "2026-11-24T12:00:00Z", "httpRequest": {"status": 403, "requestUrl": "https://web-abcdefghij-ew.a.run.app/orders"},
        "textPayload": "The request was not authenticated. Either allow unauthenticated invocations or set the proper Authorization header."}]);
    let (symptom, found) = Symptom::of_entry(&entry);
    assert_eq!(
        (
            symptom.refusal,
            symptom.logged,
            symptom.answered_by,
            symptom.status
        ),
        (
            Some(Refusal::NoTokenOrNoGrant),
            Some(true),
            Some(Answerer::Platform),
            Some(403)
        )
    );
    assert_eq!(
        found.service,
        Some(RunService::new("acme-prod", "europe-west1", "web"))
    );
    assert_eq!(found.at, Some(at()));
    let (other, empty) = Symptom::of_entry(&json!({"textPayload": 7}));
    assert_eq!((other, empty.service), (Symptom::default(), None));
}
