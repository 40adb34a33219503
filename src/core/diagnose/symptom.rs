//! What a caller saw, or a Cloud Logging entry of it.

use jiff::Timestamp;
use serde_json::Value;

use crate::iam::RunService;

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

/// What is known of the answer that somebody got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symptom {
    pub status: Option<u16>,
    pub refusal: Option<Refusal>,
    pub answered_by: Option<Answerer>,
    /// Whether the service's request log has an entry of it; `None`: nobody said.
    pub logged: Option<bool>,
    /// The Google service that sent the request, by its user agent.
    pub sent_by: Option<&'static str>,
}

/// What a log entry says beside the symptom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub service: Option<RunService>,
    pub url: Option<String>,
    pub at: Option<Timestamp>,
}

/// Sentences of the platform, what they mean and the status that comes with them. The first that
/// fits counts, so the last sentence of a text comes before the one that it shares with others.
///
/// Sources: <https://docs.cloud.google.com/run/docs/troubleshooting>,
/// <https://docs.cloud.google.com/functions/docs/troubleshooting> and public logs of 2026: with a
/// valid token and no grant the text ends in `The IAM principal lacks {run.routes.invoke}
/// permission.`, without a token in `Empty Authorization header value.`; without either of these
/// endings Google documents it for both.
const SENTENCES: &[(&str, Refusal, Option<u16>)] = &[
    ("x-goog-iap-generated-response", Refusal::Iap, None),
    ("the iam principal lacks", Refusal::NoGrant, Some(403)),
    (
        "empty authorization header value",
        Refusal::NoToken,
        Some(403),
    ),
    (
        "the request was not authenticated",
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

/// User agents of Google's services that push, and how to name them. Eventarc delivers by Pub/Sub.
const PUSHERS: &[(&str, &str)] = &[
    (
        "APIs-Google",
        "a Pub/Sub push subscription or Eventarc trigger",
    ),
    (
        "CloudPubSub-Google",
        "a Pub/Sub push subscription or Eventarc trigger",
    ),
    ("Google-Cloud-Scheduler", "a Cloud Scheduler job"),
    ("Google-Cloud-Tasks", "a Cloud Tasks queue"),
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

    /// Adds what the body of an answer says. One that has none of the platform's sentences was
    /// written by somebody else: the application, or a proxy in between.
    pub fn take_in_body(&mut self, body: &str) {
        self.take_in(body);
        if self.answered_by.is_none() && !body.trim().is_empty() {
            self.answered_by = Some(Answerer::Application);
        }
    }

    /// Reads a Cloud Logging entry: of a service's request log, or of the policy log in which
    /// perimeters enter what they refuse.
    pub fn of_entry(entry: &Value) -> (Self, Entry) {
        let entry = if entry.is_array() { &entry[0] } else { entry };
        let text = |v: &Value| v.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
        let request = &entry["httpRequest"];
        let mut symptom = Self {
            status: request["status"]
                .as_u64()
                .and_then(|s| u16::try_from(s).ok()),
            sent_by: sent_by(request["userAgent"].as_str().unwrap_or_default()),
            ..Self::default()
        };
        if entry["resource"]["labels"]["method"] == "run.googleapis.com/HttpIngress" {
            symptom.refusal = Some(Refusal::Perimeter);
            symptom.answered_by = Some(Answerer::Platform);
            symptom.status.get_or_insert(403);
        }
        if entry["resource"]["type"] == "cloud_run_revision" {
            symptom.logged = Some(true);
            // The severity says nothing: Cloud Run enters every 4xx as a warning, the
            // application's own too. What the platform refuses has its sentence in the entry; what
            // an instance answered has none, and names the instance.
            let words = entry["textPayload"].as_str().unwrap_or_default();
            symptom.take_in(words);
            let instance = text(&entry["labels"]["instanceId"]);
            if symptom.answered_by.is_none() && (instance.is_some() || words.is_empty()) {
                symptom.answered_by = Some(Answerer::Application);
            }
        }
        let labels = &entry["resource"]["labels"];
        let service = match (
            text(&labels["project_id"]),
            text(&labels["location"]),
            text(&labels["service_name"]),
        ) {
            (Some(project), Some(region), Some(name)) => {
                Some(RunService::new(project, region, name))
            }
            _ => None,
        };
        let found = Entry {
            service,
            url: text(&request["requestUrl"]),
            at: text(&entry["timestamp"]).and_then(|t| t.parse().ok()),
        };
        (symptom, found)
    }

    /// Whether the platform refused it, as far as can be seen.
    pub fn is_platforms_refusal(&self) -> bool {
        self.answered_by != Some(Answerer::Application)
            && (self.refusal.is_some() || matches!(self.status, Some(401 | 403)))
    }
}

fn sent_by(user_agent: &str) -> Option<&'static str> {
    PUSHERS
        .iter()
        .find(|(mark, _)| user_agent.contains(mark))
        .map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
            symptom.take_in(&text);
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
    fn an_applications_own_403_is_a_warning_too() {
        let own = json!({"severity": "WARNING", "logName": "projects/p/logs/run.googleapis.com%2Frequests",
            "resource": {"type": "cloud_run_revision", "labels": {}}, "labels": {"instanceId": "00ab"}, "httpRequest": {"status": 403}});
        let (symptom, _) = Symptom::of_entry(&own);
        assert_eq!(symptom.answered_by, Some(Answerer::Application));
        assert!(!symptom.is_platforms_refusal());
        let mut body = Symptom {
            status: Some(403),
            ..Symptom::default()
        };
        body.take_in_body("{\"error\": \"not your order\"}");
        assert_eq!(body.answered_by, Some(Answerer::Application));
    }

    #[test]
    fn who_pushes_is_known_by_the_user_agent() {
        for (agent, name) in [
            (
                "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)",
                Some("a Pub/Sub push subscription or Eventarc trigger"),
            ),
            ("Google-Cloud-Scheduler", Some("a Cloud Scheduler job")),
            ("Google-Cloud-Tasks", Some("a Cloud Tasks queue")),
            ("curl/8", None),
        ] {
            assert_eq!(sent_by(agent), name, "{agent}");
        }
    }
}
