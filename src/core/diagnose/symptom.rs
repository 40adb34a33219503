//! What a caller saw, or a Cloud Logging entry of it.

use jiff::Timestamp;
use serde_json::Value;

use crate::iam::RunService;

/// What is known of the answer that somebody got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symptom {
    pub status: Option<u16>,
    /// There is an entry in the service's request log.
    pub logged: bool,
    /// The request got as far as the application.
    pub logged_by_application: bool,
    /// Cloud Run says that no credentials came with it.
    pub no_token: bool,
    /// Cloud Run says that the token is not valid.
    pub bad_token: bool,
    pub no_instance: bool,
}

/// What a log entry says beside the symptom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub service: Option<RunService>,
    pub url: Option<String>,
    pub at: Option<Timestamp>,
}

/// What Cloud Run and Cloud Functions say of a token that is not valid for the service.
const BAD_TOKEN: [&str; 3] = [
    "The request was not authorized to invoke this service",
    "The access token could not be verified",
    "Your client does not have permission to the requested URL",
];

impl Symptom {
    /// Adds what a text says: the body of an answer, or the text of a log entry.
    ///
    /// Source: <https://docs.cloud.google.com/run/docs/troubleshooting>.
    pub fn hear(&mut self, text: &str) {
        let says = |words: &str| text.contains(words);
        if says("The request was not authenticated") || says("Empty Authorization header value") {
            self.no_token = true;
            self.status.get_or_insert(403);
        } else if BAD_TOKEN.into_iter().any(says) {
            self.bad_token = true;
            self.status.get_or_insert(401);
        } else if says("Your client does not have permission to get URL") {
            self.status.get_or_insert(403);
        }
        if says("there was no available instance") {
            self.no_instance = true;
        }
    }

    /// Reads a Cloud Logging entry of resource type `cloud_run_revision`.
    pub fn of_entry(entry: &Value) -> (Self, Entry) {
        let entry = if entry.is_array() { &entry[0] } else { entry };
        let text = |v: &Value| v.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
        let labels = &entry["resource"]["labels"];
        let request = &entry["httpRequest"];
        let mut symptom = Self {
            status: request["status"]
                .as_u64()
                .and_then(|s| u16::try_from(s).ok()),
            logged: entry["resource"]["type"] == "cloud_run_revision",
            ..Self::default()
        };
        if let Some(words) = text(&entry["textPayload"]) {
            symptom.hear(&words);
        }
        // What Cloud Run itself refuses has its words in the entry, and no latency of the
        // application.
        symptom.logged_by_application =
            symptom.logged && entry["textPayload"].is_null() && entry["severity"] != "WARNING";
        let service = match (
            text(&labels["project_id"]),
            text(&labels["location"]),
            text(&labels["service_name"]),
        ) {
            (Some(p), Some(r), Some(s)) => Some(RunService::new(p, r, s)),
            _ => None,
        };
        let at = text(&entry["timestamp"]).and_then(|t| t.parse().ok());
        (
            symptom,
            Entry {
                service,
                url: text(&request["requestUrl"]),
                at,
            },
        )
    }
}

/// Host and path of a URL; the path is `/` at least.
pub fn host_and_path(url: &str) -> (String, String) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/" } else { path };
    (host.to_ascii_lowercase(), path.to_owned())
}
