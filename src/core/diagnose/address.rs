//! The addresses of a service: its URLs, those of its tags, and that of the function that it
//! carries; and the audiences that follow from them.

use crate::iam::{RunService, ServiceSettings};

/// Host and path of a URL; the path is `/` at least.
pub fn host_and_path(url: &str) -> (String, String) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
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
    let is_host = |own: &String| host_and_path(own).0 == host;
    if front.urls.iter().any(is_host) {
        return Address::Own;
    }
    if let Some((tag, rest)) = host.split_once("---")
        && front.urls.iter().any(|own| host_and_path(own).0 == rest)
    {
        return if front.tag_urls.iter().any(is_host) {
            Address::Tag(tag.to_owned())
        } else {
            Address::UnknownTag(tag.to_owned())
        };
    }
    if is_function(url, service) {
        return Address::Function;
    }
    if host.ends_with(".run.app") || host.ends_with(".cloudfunctions.net") {
        return Address::Another;
    }
    Address::Foreign
}

/// Whether `https://REGION-PROJECT.cloudfunctions.net/FUNCTION` is the function behind a service:
/// its service has the function's name in lower case, with `-` for `_`.
///
/// Source: <https://docs.cloud.google.com/functions/docs/calling/http>, and functions in public
/// reports.
pub fn is_function(url: &str, service: &RunService) -> bool {
    let (host, path) = host_and_path(url);
    let function = path.trim_start_matches('/').split(['/', '?']).next();
    let name = function
        .unwrap_or_default()
        .to_ascii_lowercase()
        .replace('_', "-");
    host == format!("{}-{}.cloudfunctions.net", service.region, service.project)
        && name == *service.name
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
/// A URL counts without a path; the audience of a function must be its URL exactly.
/// Sources: <https://docs.cloud.google.com/run/docs/configuring/custom-audiences>,
/// <https://docs.cloud.google.com/functions/docs/securing/authenticating>.
pub fn accepts(audience: &str, service: &RunService, front: &ServiceSettings) -> bool {
    let mut own = front.urls.iter().chain(&front.custom_audiences);
    own.any(|a| a == audience || audience.trim_end_matches('/') == a)
        || is_function(audience, service)
}

/// The URL to call, and to mint tokens for.
pub fn url(front: &ServiceSettings) -> &str {
    front.urls.first().map_or("URL", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_services_its_tags_its_functions_or_another() {
        let service = RunService::new("acme-prod", "europe-west1", "my-fn");
        let front = ServiceSettings {
            urls: vec![
                "https://my-fn-abc-ew.a.run.app".into(),
                "https://my-fn-12.europe-west1.run.app".into(),
            ],
            tag_urls: vec!["https://blue---my-fn-abc-ew.a.run.app".into()],
            ..ServiceSettings::default()
        };
        for (url, address) in [
            ("https://my-fn-abc-ew.a.run.app/x", Address::Own),
            ("https://MY-FN-12.europe-west1.run.app", Address::Own),
            (
                "https://blue---my-fn-abc-ew.a.run.app/",
                Address::Tag("blue".into()),
            ),
            (
                "https://red---my-fn-abc-ew.a.run.app/",
                Address::UnknownTag("red".into()),
            ),
            (
                "https://europe-west1-acme-prod.cloudfunctions.net/My_Fn?x=1",
                Address::Function,
            ),
            (
                "https://europe-west1-acme-prod.cloudfunctions.net/other",
                Address::Another,
            ),
            ("https://blue---other-abc-ew.a.run.app/", Address::Another),
            ("https://shop.acme.com/", Address::Foreign),
        ] {
            assert_eq!(of(url, &service, &front), address, "{url}");
        }
        assert!(may_be_of("blue---my-fn-abc-ew.a.run.app", "my-fn"));
        assert!(!may_be_of("my-fnx-abc-ew.a.run.app", "my-fn"));
        for (audience, fits) in [
            ("https://my-fn-abc-ew.a.run.app/", true),
            ("https://my-fn-abc-ew.a.run.app/x", false),
            (
                "https://europe-west1-acme-prod.cloudfunctions.net/my-fn",
                true,
            ),
            (
                "https://us-central1-acme-prod.cloudfunctions.net/my-fn",
                false,
            ),
        ] {
            assert_eq!(accepts(audience, &service, &front), fits, "{audience}");
        }
    }
}
