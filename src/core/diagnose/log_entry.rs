//! A Cloud Logging entry of a refusal: of a service's request log, of its application's own log, or
//! of the policy log in which perimeters enter what they refuse.

use jiff::Timestamp;
use serde_json::Value;

use super::symptom::{Answerer, Refusal, Sender, Symptom};
use crate::iam::RunService;

/// What a log entry says beside the symptom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub service: Option<RunService>,
    pub url: Option<String>,
    pub at: Option<Timestamp>,
}

/// Which log of a service an entry is of.
///
/// Source: <https://docs.cloud.google.com/run/docs/logging>.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Log {
    /// One entry for each request, by Cloud Run.
    Requests,
    /// What the containers write.
    Containers,
    /// What else there is, such as audit entries and the messages of the system.
    Other,
}

impl Log {
    /// The log of an entry. One without a name, as people cut them down, counts as a request's.
    fn of(entry: &Value) -> Self {
        let name = entry["logName"].as_str().unwrap_or_default();
        let log = name.rsplit_once("/logs/").map_or(name, |(_, log)| log);
        match log.replace("%2F", "/").as_str() {
            "" | "run.googleapis.com/requests" => Self::Requests,
            "run.googleapis.com/stdout" | "run.googleapis.com/stderr" => Self::Containers,
            log if log.starts_with("run.googleapis.com/") || log.contains("cloudaudit") => {
                Self::Other
            }
            // Of a client library in the application, under a name that it chose.
            _ => Self::Containers,
        }
    }
}

const PUBSUB: Sender = Sender::Google {
    name: "a Pub/Sub push subscription or Eventarc trigger",
    token: "Give the subscription or trigger a service account (--push-auth-service-account, or --service-account of the trigger), with the service's URL as audience, and make that account an invoker.",
};

/// User agents of Google's services that send requests. Eventarc delivers by Pub/Sub.
///
/// Sources: requests in public logs, and <https://docs.cloud.google.com/workflows/docs/http-requests>.
const SENDERS: &[(&str, Sender)] = &[
    ("APIs-Google", PUBSUB),
    ("CloudPubSub-Google", PUBSUB),
    (
        "Google-Cloud-Scheduler",
        Sender::Google {
            name: "a Cloud Scheduler job",
            token: "Give the job a service account (--oidc-service-account-email), with the service's URL as audience, and make that account an invoker.",
        },
    ),
    (
        "Google-Cloud-Tasks",
        Sender::Google {
            name: "a Cloud Tasks queue",
            token: "Give the task or its queue a service account (oidcToken), with the service's URL as audience, and make that account an invoker.",
        },
    ),
    (
        "GoogleCloudWorkflows",
        Sender::Google {
            name: "a workflow",
            token: "Give the step auth: {type: OIDC}, with the service's URL as audience, and make the workflow's service account an invoker.",
        },
    ),
    // All of the above say more about themselves.
    ("Mozilla/", Sender::Browser),
];

impl Symptom {
    /// Reads a Cloud Logging entry.
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
            symptom.take_in_entry(entry);
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
            _ => named(&entry["protoPayload"]),
        };
        let found = Entry {
            service,
            url: text(&request["requestUrl"]),
            at: text(&entry["timestamp"]).and_then(|t| t.parse().ok()),
        };
        (symptom, found)
    }

    /// Adds what an entry of a service's own logs says.
    fn take_in_entry(&mut self, entry: &Value) {
        match Log::of(entry) {
            Log::Other => {}
            // Whatever it writes, the request has reached it.
            Log::Containers => {
                self.logged = Some(true);
                self.answered_by = Some(Answerer::Application);
            }
            // The severity says nothing: Cloud Run enters every 4xx as a warning, the application's
            // own too. What the platform refuses has its sentence in the entry; what an instance
            // answered has none, and names the instance.
            Log::Requests => {
                self.logged = Some(true);
                self.take_in(entry["textPayload"].as_str().unwrap_or_default());
                let instance = entry["labels"]["instanceId"].as_str().unwrap_or_default();
                if self.answered_by.is_none() && !instance.is_empty() {
                    self.answered_by = Some(Answerer::Application);
                }
            }
        }
    }
}

/// The service that an audit entry names, of which a perimeter's has no labels: in `resourceName`,
/// or in the list of what the request touched.
///
/// Source: <https://docs.cloud.google.com/vpc-service-controls/docs/audit-logging>.
fn named(payload: &Value) -> Option<RunService> {
    let listed = payload["metadata"]["resourceNames"].as_array();
    let names = listed
        .into_iter()
        .flatten()
        .chain([&payload["resourceName"]]);
    names.filter_map(Value::as_str).find_map(|name| {
        let at = name.find("projects/")?;
        match name[at..].split('/').collect::<Vec<_>>().as_slice() {
            [
                "projects",
                project,
                "locations",
                region,
                "services",
                name,
                ..,
            ] => Some(RunService::new(*project, *region, *name)),
            _ => None,
        }
    })
}

fn sent_by(user_agent: &str) -> Option<Sender> {
    SENDERS
        .iter()
        .find(|(mark, _)| user_agent.contains(mark))
        .map(|(_, sender)| *sender)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(log: &str, more: &Value) -> Value {
        let mut entry = json!({"severity": "WARNING", "resource": {"type": "cloud_run_revision", "labels": {}}});
        if !log.is_empty() {
            entry["logName"] = json!(format!("projects/p/logs/{log}"));
        }
        let more = more.as_object().into_iter().flatten();
        more.for_each(|(key, value)| entry[key] = value.clone());
        entry
    }

    #[test]
    fn who_answered_is_told_by_the_log_and_the_instance() {
        let requests = "run.googleapis.com%2Frequests";
        let stdout = "run.googleapis.com%2Fstdout";
        let instance = json!({"labels": {"instanceId": "00ab"}, "httpRequest": {"status": 403}});
        let bare = json!({"httpRequest": {"status": 403}});
        let quoted = json!({"labels": {"instanceId": "00ab"}, "textPayload": "upstream said: The request was not authenticated. Either allow unauthenticated invocations"});
        let (application, unknown) = (Some(Answerer::Application), None);
        for (log, more, logged, by) in [
            (requests, &instance, Some(true), application),
            ("", &instance, Some(true), application),
            (requests, &bare, Some(true), unknown),
            (stdout, &quoted, Some(true), application),
            ("my-app", &quoted, Some(true), application),
            (requests, &quoted, Some(true), Some(Answerer::Platform)),
            (
                "run.googleapis.com%2Fvarlog%2Fsystem",
                &quoted,
                None,
                unknown,
            ),
            ("cloudaudit.googleapis.com%2Factivity", &bare, None, unknown),
        ] {
            let (symptom, _) = Symptom::of_entry(&entry(log, more));
            assert_eq!(
                (symptom.logged, symptom.answered_by),
                (logged, by),
                "{log} {more}"
            );
        }
    }

    #[test]
    fn a_perimeters_entry_may_name_the_service() {
        let service = "projects/acme-prod/locations/europe-west1/services/web";
        for (payload, found) in [
            (json!({"resourceName": "projects/1"}), None),
            (json!({"resourceName": service}), Some("web")),
            (
                json!({"resourceName": "projects/1", "metadata": {"resourceNames": ["projects/1", format!("//run.googleapis.com/{service}")]}}),
                Some("web"),
            ),
        ] {
            let entry = json!({"resource": {"type": "audited_resource", "labels": {"project_id": "acme-prod", "method": "run.googleapis.com/HttpIngress"}}, "protoPayload": payload});
            let (symptom, entry) = Symptom::of_entry(&entry);
            assert_eq!(symptom.refusal, Some(Refusal::Perimeter));
            assert_eq!(entry.service.as_ref().map(|s| &*s.name), found);
        }
    }

    #[test]
    fn who_sends_is_known_by_the_user_agent() {
        for (agent, name) in [
            (
                "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)",
                Some("a Pub/Sub push subscription or Eventarc trigger"),
            ),
            (
                "CloudPubSub-Google",
                Some("a Pub/Sub push subscription or Eventarc trigger"),
            ),
            ("Google-Cloud-Scheduler", Some("a Cloud Scheduler job")),
            ("Google-Cloud-Tasks", Some("a Cloud Tasks queue")),
            (
                "GoogleCloudWorkflows; (+https://cloud.google.com/workflows/docs)",
                Some("a workflow"),
            ),
            (
                "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
                Some("a browser"),
            ),
            ("curl/8", None),
        ] {
            let found = sent_by(agent).map(|sender| match sender {
                Sender::Browser => "a browser",
                Sender::Google { name, .. } => name,
            });
            assert_eq!(found, name, "{agent}");
        }
    }
}
