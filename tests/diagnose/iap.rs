//! Answers of Identity-Aware Proxy, and of what stands behind it.

use super::{answers::with, *};

const SIGN_IN: &str =
    "HTTP/2 302 \r\nlocation: https://accounts.google.com/o/oauth2/v2/auth?client_id=1\r\n";

pub fn cases() -> Vec<(&'static str, Facts, Cause)> {
    let header = |status: u16| {
        format!(
            "HTTP/2 {status} \r\nX-Goog-IAP-Generated-Response: true\r\n\r\n<html>You don't have access</html>"
        )
    };
    let iap = |answer: &str, members: &[&str]| Facts {
        front: front(|f| f.iap = true),
        policy: to(&[AGENT], "roles/run.invoker"),
        iap: iap_of(to(members, IAP_ROLE)),
        ..with(answer)
    };
    let no_token =
        "HTTP/2 401 \r\ncontent-type: text/html\r\n\r\nInvalid IAP credentials: empty token";
    vec![
        (
            "401 with IAP's header, not granted",
            iap(&header(401), &[]),
            Cause::IapNotGranted,
        ),
        (
            "403 with IAP's header, not granted",
            iap(&header(403), &[]),
            Cause::IapNotGranted,
        ),
        (
            "403 with IAP's header, granted",
            iap(&header(403), &[CALLER]),
            Cause::CannotTell,
        ),
        (
            "403 with IAP's header, on the load balancer",
            with(&header(403)),
            Cause::IapDecides,
        ),
        (
            "IAP got no token, and would let it in",
            iap(no_token, &[CALLER]),
            Cause::IapDecides,
        ),
        (
            "IAP got no token, on the load balancer",
            with(no_token),
            Cause::IapDecides,
        ),
        (
            "IAP cannot use the token, by the text alone",
            with("Invalid IAP credentials: Invalid bearer token. Invalid JWT audience."),
            Cause::IapDecides,
        ),
        (
            "IAP got no token, and nothing can be seen",
            Facts {
                front: hidden(),
                ..with(no_token)
            },
            Cause::IapDecides,
        ),
        (
            "IAP's 302 with its header",
            iap(
                &format!(
                    "{SIGN_IN}X-Goog-IAP-Generated-Response: true\r\n\r\nInvalid IAP credentials: empty token"
                ),
                &[CALLER],
            ),
            Cause::IapDecides,
        ),
        (
            "a 302 to Google's sign-in behind IAP",
            iap(SIGN_IN, &[CALLER]),
            Cause::IapDecides,
        ),
        (
            "a 302 to Google's sign-in, without IAP",
            with(&format!("{SIGN_IN}server: Google Frontend\r\n")),
            Cause::TheApplication,
        ),
        (
            "a 302 to Google's sign-in, behind a domain",
            Facts {
                url: Some("https://shop.acme.com/".into()),
                ..with(SIGN_IN)
            },
            Cause::CannotTell,
        ),
        (
            "JSON behind IAP is nobody's proof",
            iap("HTTP/2 403\n\n{\"error\":\"no\"}", &[CALLER]),
            Cause::AccessUnverified,
        ),
        (
            "a page of somebody's behind IAP",
            iap("HTTP/2 403\n\n<html>403 Forbidden</html>", &[CALLER]),
            Cause::AccessUnverified,
        ),
        (
            "through IAP, and in",
            iap("HTTP/2 200\n\n{}", &[CALLER]),
            Cause::AccessExpected,
        ),
        (
            "nobody asked whom IAP lets in",
            Facts {
                iap: Vec::new(),
                ..iap("", &[])
            },
            Cause::CannotTell,
        ),
        (
            "IAP's agent cannot be seen",
            Facts {
                policy: hidden(),
                ..iap("", &[CALLER])
            },
            Cause::AccessUnverified,
        ),
        (
            "IAP's agent cannot be seen, and in",
            Facts {
                policy: hidden(),
                ..iap("HTTP/2 200\n\n{}", &[CALLER])
            },
            Cause::AccessExpected,
        ),
        (
            "IAP's agent has a role that does not invoke",
            Facts {
                policy: to(&[AGENT], "roles/run.viewer"),
                ..iap("", &[CALLER])
            },
            Cause::IapAgentMissing,
        ),
        (
            "IAP's agent is granted on the project",
            Facts {
                policy: nobody(),
                above: above(to(&[AGENT], "roles/run.invoker")),
                ..iap("", &[])
            },
            Cause::IapNotGranted,
        ),
        (
            "IAP's agent is granted on a folder",
            Facts {
                policy: nobody(),
                above: vec![
                    Place::new("the project", nobody()),
                    Place::new("folders/11", to(&[AGENT], "roles/run.invoker")),
                ],
                ..iap("", &[])
            },
            Cause::IapNotGranted,
        ),
        (
            "IAP's agent may be granted on a folder",
            Facts {
                policy: nobody(),
                above: hidden_above(),
                ..iap("", &[CALLER])
            },
            Cause::AccessUnverified,
        ),
        (
            "IAP may let in whom a folder grants it",
            Facts {
                above: hidden_above(),
                ..iap("", &[])
            },
            Cause::CannotTell,
        ),
        (
            "IAP lets in whom its resource of the region grants it",
            Facts {
                iap: vec![
                    Place::new("the service", nobody()),
                    Place::new("its region", to(&[CALLER], IAP_ROLE)),
                ],
                ..iap("", &[])
            },
            Cause::AccessUnverified,
        ),
        (
            "in, and by what is not seen",
            Facts {
                above: hidden_above(),
                ..iap("HTTP/2 200\n\n{}", &[])
            },
            Cause::AccessUnverified,
        ),
        (
            "in, and without an agent that is seen",
            Facts {
                policy: nobody(),
                ..iap("HTTP/2 200\n\n{}", &[CALLER])
            },
            Cause::AccessExpected,
        ),
        (
            "Cloud Run refuses behind IAP",
            Facts {
                symptom: logged(
                    403,
                    &format!(
                        "{NOT_AUTHENTICATED} The IAM principal lacks {{run.routes.invoke}} permission."
                    ),
                ),
                ..iap("", &[CALLER])
            },
            Cause::CannotTell,
        ),
        (
            "IAP got no token, and has no agent",
            Facts {
                policy: nobody(),
                ..iap(no_token, &[CALLER])
            },
            Cause::IapDecides,
        ),
        (
            "an answer of IAP's that got in fits nothing",
            iap("HTTP/2 200\nX-Goog-IAP-Generated-Response: true\n", &[]),
            Cause::CannotTell,
        ),
    ]
}
