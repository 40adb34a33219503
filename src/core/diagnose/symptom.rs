//! What a caller saw: the answer's status, headers and text, or a Cloud Logging entry of it.

use jiff::Timestamp;

use super::response::Response;

pub use super::log_entry::Entry;

/// What the text of an answer says about why it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No credentials came with the request.
    NoToken,
    /// A valid token came, and its principal lacks `run.routes.invoke`.
    NoGrant,
    /// One of these two; the text is the same for both.
    NoTokenOrNoGrant,
    /// A token came that is not valid for this service.
    BadToken,
    /// Identity-Aware Proxy answered.
    Iap,
    /// Identity-Aware Proxy got no credentials, or none that are for it.
    IapCredentials,
    /// A VPC Service Controls perimeter refused.
    Perimeter,
    NoInstance,
}

/// Who gave an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answerer {
    /// Cloud Run or what stands in front of it: the request never reached the application.
    Platform,
    /// The request got as far as the application.
    Application,
}

/// A text that has none of the platform's sentences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// A page, as proxies, load balancers and applications all answer them.
    Page,
    /// Google's own page for what it leads nowhere: a 404 that no service gave.
    FrontEnd,
    /// Anything else, such as JSON.
    Other,
}

/// What is known of the answer that somebody got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symptom {
    pub status: Option<u16>,
    pub refusal: Option<Refusal>,
    pub answered_by: Option<Answerer>,
    /// Whether the service's request log has an entry of it; `None`: nobody said.
    pub logged: Option<bool>,
    /// Who sent the request, by its user agent.
    pub sent_by: Option<Sender>,
    /// The text, where it is none of the platform's.
    pub text: Option<Text>,
    /// It is a redirect to Google's sign-in.
    pub is_sign_in: bool,
    /// Its headers say that it came through Google's front end, which writes over what an
    /// application says of itself there.
    pub is_by_front_end: bool,
    /// When it was given, by its `Date`.
    pub at: Option<Timestamp>,
}

/// Who sends requests, where its user agent says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A browser, which has no ID token to send.
    Browser,
    /// A service of Google's: its name, and how it gets an ID token.
    Google {
        name: &'static str,
        token: &'static str,
    },
}

/// Sentences of the platform, what they mean and the status that comes with them. The first that
/// fits counts, so the last sentence of a text comes before the one that it shares with others.
///
/// Sources: <https://docs.cloud.google.com/run/docs/troubleshooting>,
/// <https://docs.cloud.google.com/functions/docs/troubleshooting> and public logs of 2026: with a
/// valid token and no grant the text ends in `The IAM principal lacks {run.routes.invoke}
/// permission.`, without a token in `Empty Authorization header value.`; without either of these
/// endings Google documents it for both. Identity-Aware Proxy answers a request that it takes no
/// credentials from with one line of text, with 302 or 401.
const SENTENCES: &[(&str, Refusal, Option<u16>)] = &[
    ("invalid iap credentials", Refusal::IapCredentials, None),
    ("x-goog-iap-generated-response", Refusal::Iap, None),
    (
        "the iam principal lacks {run.routes.invoke}",
        Refusal::NoGrant,
        Some(403),
    ),
    (
        "empty authorization header value",
        Refusal::NoToken,
        Some(403),
    ),
    (
        "the request was not authenticated. either allow",
        Refusal::NoTokenOrNoGrant,
        Some(403),
    ),
    (
        "your client does not have permission to get url",
        Refusal::NoTokenOrNoGrant,
        Some(403),
    ),
    (
        "the request was not authorized to invoke this service",
        Refusal::BadToken,
        Some(401),
    ),
    (
        "the access token could not be verified",
        Refusal::BadToken,
        Some(401),
    ),
    (
        "your client does not have permission to the requested url",
        Refusal::BadToken,
        Some(401),
    ),
    ("there was no available instance", Refusal::NoInstance, None),
    (
        "request is prohibited by organization's policy",
        Refusal::Perimeter,
        Some(403),
    ),
];

impl Symptom {
    /// Adds what a text says, if it is one of the platform's: the body of an answer, with its
    /// headers or without, or the text of a log entry.
    pub fn take_in(&mut self, text: &str) {
        let text = text.to_ascii_lowercase();
        let Some((_, refusal, status)) = SENTENCES.iter().find(|(words, ..)| text.contains(words))
        else {
            return;
        };
        self.answered_by = Some(Answerer::Platform);
        // The page that a caller sees is vaguer than the entry in the log.
        if *refusal != Refusal::NoTokenOrNoGrant || self.refusal.is_none() {
            self.refusal = Some(*refusal);
        }
        if let Some(status) = status {
            self.status.get_or_insert(*status);
        }
    }

    /// Adds what an answer says, as it was copied: with its headers or without, or these alone. A
    /// text that has none of the platform's sentences was written by somebody else: the
    /// application, or a proxy in between.
    pub fn take_in_answer(&mut self, text: &str) {
        let answer = Response::read(text);
        // What somebody said goes before what was copied.
        self.status = self.status.or(answer.status);
        self.take_in(text);
        self.is_by_front_end = answer.header("server") == Some("Google Frontend");
        let date = answer.header("date");
        self.at = date.and_then(|d| jiff::fmt::rfc2822::parse(d).ok().map(|d| d.timestamp()));
        let location = answer.header("location").unwrap_or_default();
        self.is_sign_in |= location.starts_with("https://accounts.google.com/");
        // It signs in by a client of its own, whose answers come back to it.
        if self.is_sign_in && location.contains("iap.googleapis.com") {
            self.answered_by = Some(Answerer::Platform);
            self.refusal.get_or_insert(Refusal::Iap);
        }
        if self.answered_by.is_none() && !answer.body.is_empty() {
            self.text = Some(if answer.is_front_ends() {
                Text::FrontEnd
            } else if answer.is_page() {
                Text::Page
            } else {
                Text::Other
            });
        }
    }

    /// Whether the platform refused it, as far as can be seen.
    pub fn is_platforms_refusal(&self) -> bool {
        self.answered_by != Some(Answerer::Application)
            && (self.refusal.is_some() || matches!(self.status, Some(401 | 403)))
    }

    /// Whether Identity-Aware Proxy gave the answer, by what that says.
    pub fn is_iaps(&self) -> bool {
        matches!(self.refusal, Some(Refusal::Iap | Refusal::IapCredentials))
    }

    /// Whether the request was let through: what refuses answers 3xx or 4xx, and only an application
    /// switches protocols (101).
    pub fn got_in(&self) -> bool {
        self.status
            .is_some_and(|s| s == 101 || (200..300).contains(&s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAIL: &str = "Read more at https://cloud.google.com/run/docs/securing/authenticating Additional troubleshooting documentation can be found at: https://cloud.google.com/run/docs/troubleshooting#unauthorized-client";

    #[test]
    fn the_three_texts_of_a_403_are_three_things() {
        let first = "The request was not authenticated. Either allow unauthenticated invocations or set the proper Authorization header.";
        let public = "The request was not authenticated. Either allow public access or set the proper Authorization header.";
        for (text, refusal) in [
            (
                format!("{first} The IAM principal lacks {{run.routes.invoke}} permission."),
                Refusal::NoGrant,
            ),
            (
                format!("{first} Empty Authorization header value."),
                Refusal::NoToken,
            ),
            (first.to_owned(), Refusal::NoTokenOrNoGrant),
            (public.to_owned(), Refusal::NoTokenOrNoGrant),
        ] {
            let mut symptom = Symptom::default();
            symptom.take_in(&format!("{text} {TAIL}"));
            assert_eq!(
                (symptom.refusal, symptom.status, symptom.answered_by),
                (Some(refusal), Some(403), Some(Answerer::Platform)),
                "{text}"
            );
            // The page that came with it says less and changes nothing.
            symptom.take_in(
                "Your client does not have permission to get URL <code>/</code> from this server.",
            );
            assert_eq!(symptom.refusal, Some(refusal));
        }
    }

    #[test]
    fn an_answer_says_who_gave_it() {
        use Refusal as R;
        let page = "<html><head><title>403 Forbidden</title></head><body><h1>Error: Forbidden</h1><h2>Your client does not have permission to get URL <code>/</code> from this server.</h2></body></html>";
        let (platform, page_text, other) = (
            Some(Answerer::Platform),
            Some(Text::Page),
            Some(Text::Other),
        );
        for (answer, status, refusal, by, text) in [
            (
                format!("HTTP/2 403 \r\ncontent-type: text/html; charset=UTF-8\r\n\r\n{page}"),
                Some(403),
                Some(R::NoTokenOrNoGrant),
                platform,
                None,
            ),
            ("HTTP/2 403 \r\nserver: Google Frontend\r\n\r\n".into(), Some(403), None, None, None),
            ("<html><h1>403 Forbidden</h1></html>".into(), None, None, None, page_text),
            ("{\"error\":\"not your order\"}".into(), None, None, None, other),
            // What an application says of its own is not what Cloud Run says.
            ("{\"error\":\"The request was not authenticated.\"}".into(), None, None, None, other),
            (
                "Invalid IAP credentials: Unable to parse JWT".into(),
                None,
                Some(R::IapCredentials),
                platform,
                None,
            ),
            (
                "HTTP/2 403\r\nX-Goog-IAP-Generated-Response: true\r\n\r\n<html>You don't have access</html>".into(),
                Some(403),
                Some(R::Iap),
                platform,
                None,
            ),
        ] {
            let mut symptom = Symptom::default();
            symptom.take_in_answer(&answer);
            let found = (symptom.status, symptom.refusal, symptom.answered_by, symptom.text);
            assert_eq!(found, (status, refusal, by, text), "{answer}");
        }
    }

    #[test]
    fn a_sign_in_is_iaps_where_it_comes_back_to_it() {
        let to = |location: &str| {
            let mut symptom = Symptom::default();
            symptom.take_in_answer(&format!("HTTP/2 302\nlocation: {location}\n"));
            (symptom.is_sign_in, symptom.refusal)
        };
        let google = "https://accounts.google.com/o/oauth2/v2/auth?client_id=1";
        assert_eq!(to(google), (true, None));
        let iap = format!(
            "{google}&redirect_uri=https://iap.googleapis.com/v1/oauth/clientIds/1:handleRedirect"
        );
        assert_eq!(to(&iap), (true, Some(Refusal::Iap)));
        assert_eq!(to("https://shop.acme.com/login"), (false, None));
    }
}
