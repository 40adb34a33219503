//! The addresses of a service: its URLs, those of its tags, and that of the function that it
//! carries; and the audiences that follow from them.

use crate::iam::{RunService, ServiceSettings};

/// Host and path of a URL: the host in lower case, without the port that its scheme has anyway; the
/// path without query and fragment, `/` at least.
pub fn host_and_path(url: &str) -> (String, String) {
    let ends = |c: char| matches!(c, '/' | '?' | '#');
    let rest = match url.split_once("://") {
        // Not the one in a query.
        Some((scheme, rest)) if !scheme.contains(ends) => rest,
        _ => url,
    };
    let (authority, rest) = rest.split_at(rest.find(ends).unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    let host = host
        .strip_suffix(":443")
        .or_else(|| host.strip_suffix(":80"))
        .unwrap_or(host);
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    let path = if path.is_empty() { "/" } else { path };
    (host.to_ascii_lowercase(), path.to_owned())
}

/// What a URL is to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// One of its own URLs.
    Own,
    /// The URL of a tag, which leads to the revision that has it.
    Tag(String),
    /// A URL of a tag that no revision has.
    UnknownTag(String),
    /// The function's URL on `cloudfunctions.net`.
    Function,
    /// An address that Google made, for something else.
    Another,
    /// A custom domain or a load balancer: where it leads is decided there.
    Foreign,
}

/// What a URL is to a service with these settings.
pub fn of(url: &str, service: &RunService, front: &ServiceSettings) -> Address {
    let (host, _) = host_and_path(url);
    let mut own = front.urls.iter().filter(|u| !is_function_host(u));
    let is_host = |own: &String| host_and_path(own).0 == host;
    if own.clone().any(is_host) {
        return Address::Own;
    }
    if let Some((tag, rest)) = host.split_once("---")
        && own.any(|own| host_and_path(own).0 == rest)
    {
        return if front.tag_urls.iter().any(is_host) {
            Address::Tag(tag.to_owned())
        } else {
            Address::UnknownTag(tag.to_owned())
        };
    }
    if is_function(url, service, front) {
        return Address::Function;
    }
    // Google's own names have no other port.
    let name = host.split(':').next().unwrap_or_default();
    if name.ends_with(".run.app") || is_function_host(name) {
        return Address::Another;
    }
    Address::Foreign
}

fn is_function_host(url: &str) -> bool {
    host_and_path(url).0.ends_with(".cloudfunctions.net")
}

/// Whether a URL is that of the function that a service carries: one that Cloud Run lists among the
/// service's, or that follows from its name where it is a function's and lists none.
fn is_function(url: &str, service: &RunService, front: &ServiceSettings) -> bool {
    let (host, path) = host_and_path(url);
    let function = |path: &str| path.split('/').nth(1).unwrap_or_default().to_owned();
    let listed = |own: &String| {
        let (own_host, own_path) = host_and_path(own);
        own_host == host && function(&own_path) == function(&path)
    };
    let mut lists = front.urls.iter().filter(|u| is_function_host(u)).peekable();
    if lists.peek().is_some() {
        return lists.any(listed);
    }
    carries_function(front) && may_be_function(url, service)
}

/// Whether a service carries a function, by the label that Cloud Functions gives it.
fn carries_function(front: &ServiceSettings) -> bool {
    let by = front.labels.get("goog-managed-by");
    by.is_some_and(|by| by == "cloudfunctions")
}

/// Whether `https://REGION-PROJECT.cloudfunctions.net/FUNCTION` may be the function behind a
/// service, by its name: the service has the function's in lower case, with `-` for `_`.
///
/// Sources: <https://docs.cloud.google.com/functions/docs/calling/http>, and `functionNameToServiceName`
/// of firebase-tools.
pub fn may_be_function(url: &str, service: &RunService) -> bool {
    let (host, path) = host_and_path(url);
    let function = path.split('/').nth(1).unwrap_or_default();
    let name = function.to_ascii_lowercase().replace('_', "-");
    host == function_host(service) && name == *service.name
}

fn function_host(service: &RunService) -> String {
    format!("{}-{}.cloudfunctions.net", service.region, service.project)
}

/// Whether a service of this name may have the host: `[TAG---]NAME-HASH-REGION.a.run.app` and
/// `[TAG---]NAME-NUMBER.REGION.run.app` both begin with the name.
pub fn may_be_of(host: &str, name: &str) -> bool {
    let host = host.split_once("---").map_or(host, |(_, rest)| rest);
    host.strip_prefix(name)
        .is_some_and(|rest| rest.starts_with('-'))
}

/// Whether a token for this audience is for the service.
///
/// A `run.app` URL counts without a path, with or without the slash at its end; anything else
/// exactly as it is written. A function has its URL among the custom audiences of its service.
/// Sources: <https://docs.cloud.google.com/run/docs/configuring/custom-audiences>,
/// <https://docs.cloud.google.com/functions/docs/securing/authenticating>, and services of functions
/// in public reports.
pub fn accepts(audience: &str, service: &RunService, front: &ServiceSettings) -> bool {
    let trimmed = audience.strip_suffix('/').unwrap_or(audience);
    let is_url = |own: &String| own == audience || own == trimmed && !is_function_host(own);
    front.urls.iter().any(is_url)
        || front.custom_audiences.iter().any(|own| own == audience)
        || is_functions_audience(audience, service, front)
}

/// That of a function made before it was listed: its URL, and nothing behind the name.
fn is_functions_audience(audience: &str, service: &RunService, front: &ServiceSettings) -> bool {
    let listed = front.urls.iter().chain(&front.custom_audiences);
    if !carries_function(front) || listed.clone().any(|u| is_function_host(u)) {
        return false;
    }
    let base = format!("https://{}/", function_host(service));
    audience.strip_prefix(&base).is_some_and(|function| {
        !function.contains(['/', '?', '#']) && may_be_function(audience, service)
    })
}

/// The URL to call, and to mint tokens for.
pub fn url(front: &ServiceSettings) -> &str {
    front.urls.first().map_or("URL", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUNCTION: &str = "https://europe-west1-acme-prod.cloudfunctions.net/My_Fn";

    fn service() -> RunService {
        RunService::new("acme-prod", "europe-west1", "my-fn")
    }

    fn settings() -> ServiceSettings {
        ServiceSettings {
            urls: vec![
                "https://my-fn-abc-ew.a.run.app".into(),
                "https://my-fn-12.europe-west1.run.app".into(),
            ],
            tag_urls: vec!["https://blue---my-fn-abc-ew.a.run.app".into()],
            ..ServiceSettings::default()
        }
    }

    /// As Cloud Functions makes its services.
    fn function() -> ServiceSettings {
        let mut front = settings();
        front.urls.push(FUNCTION.into());
        front.custom_audiences.push(FUNCTION.into());
        front
    }

    /// As it made them before.
    fn early_function() -> ServiceSettings {
        let label = ("goog-managed-by".to_owned(), "cloudfunctions".to_owned());
        ServiceSettings {
            labels: [label].into(),
            ..settings()
        }
    }

    #[test]
    fn an_address_is_the_services_its_tags_or_another() {
        let tag = |tag: &str| Address::Tag(tag.into());
        for (url, address) in [
            ("https://my-fn-abc-ew.a.run.app/x", Address::Own),
            ("https://my-fn-abc-ew.a.run.app:443/x", Address::Own),
            ("https://my-fn-abc-ew.a.run.app?x=y", Address::Own),
            ("https://my-fn-abc-ew.a.run.app#top", Address::Own),
            ("my-fn-abc-ew.a.run.app/x?next=https://a.b/", Address::Own),
            ("https://MY-FN-12.europe-west1.run.app", Address::Own),
            ("https://my-fn-abc-ew.a.run.app:8443/x", Address::Another),
            ("https://blue---my-fn-abc-ew.a.run.app/", tag("blue")),
            (
                "https://red---my-fn-abc-ew.a.run.app/",
                Address::UnknownTag("red".into()),
            ),
            ("https://blue---other-abc-ew.a.run.app/", Address::Another),
            ("https://shop.acme.com/", Address::Foreign),
        ] {
            assert_eq!(of(url, &service(), &settings()), address, "{url}");
        }
        assert!(may_be_of("blue---my-fn-abc-ew.a.run.app", "my-fn"));
        assert!(!may_be_of("my-fnx-abc-ew.a.run.app", "my-fn"));
    }

    #[test]
    fn a_function_has_a_url_only_where_there_is_one() {
        let host = "https://europe-west1-acme-prod.cloudfunctions.net";
        for (front, path, address) in [
            (function(), "/My_Fn?x=1", Address::Function),
            (function(), "/My_Fn/items", Address::Function),
            (function(), "/my-fn", Address::Another),
            (function(), "/other", Address::Another),
            (early_function(), "/My_Fn?x=1", Address::Function),
            (early_function(), "/other", Address::Another),
            (settings(), "/My_Fn", Address::Another),
        ] {
            let url = format!("{host}{path}");
            assert_eq!(of(&url, &service(), &front), address, "{url}");
        }
    }

    #[test]
    fn an_audience_is_taken_as_it_is_written() {
        let host = "https://europe-west1-acme-prod.cloudfunctions.net";
        let at = |path: &str| format!("{host}{path}");
        for (front, audience, fits) in [
            (settings(), "https://my-fn-abc-ew.a.run.app".into(), true),
            (settings(), "https://my-fn-abc-ew.a.run.app/".into(), true),
            (settings(), "https://my-fn-abc-ew.a.run.app//".into(), false),
            (settings(), "https://my-fn-abc-ew.a.run.app/x".into(), false),
            (settings(), "https://my-fn-abc-ew.a.run.app?x".into(), false),
            (settings(), at("/My_Fn"), false),
            (function(), at("/My_Fn"), true),
            (function(), at("/My_Fn/"), false),
            (function(), at("/my_fn"), false),
            (function(), at("/My_Fn?x=1"), false),
            (early_function(), at("/My_Fn"), true),
            (early_function(), at("/My_Fn/"), false),
            (early_function(), at("/My_Fn?x=1"), false),
            (early_function(), at("/other"), false),
            (
                early_function(),
                at("/My_Fn").replace("https", "http"),
                false,
            ),
            (
                early_function(),
                at("/My_Fn").replace("west1", "west2"),
                false,
            ),
        ] {
            assert_eq!(accepts(&audience, &service(), &front), fits, "{audience}");
        }
    }
}
