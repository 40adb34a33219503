//! The error document of Google's APIs (<https://google.aip.dev/193>), as far as it matters here.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;

/// An answer that is no success.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub http: u16,
    /// It is an error document at all, not a page of a proxy or of nobody.
    pub is_document: bool,
    pub status: String,
    pub message: String,
    /// `reason` of the `ErrorInfo`, if its domain is Google's: another's words may mean something
    /// else.
    pub reason: String,
    /// The domain of the `ErrorInfo`, if it is nobody's of Google.
    pub foreign_domain: Option<String>,
    /// Where Google says what to do.
    pub help: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub violations: Vec<Violation>,
    pub retry: Option<Duration>,
    pub request_id: Option<String>,
}

/// An entry of a `PreconditionFailure`: a constraint of the organization, a perimeter. Its subject
/// is left out: it repeats the target and may carry a member.
#[derive(Debug, Default)]
pub(super) struct Violation {
    /// `constraints/…`, `VPC_SERVICE_CONTROLS`.
    pub kind: String,
    pub description: String,
}

impl Answer {
    pub fn new(http: u16, headers: Option<&http::HeaderMap>) -> Self {
        let text = |name: &str| {
            let value = headers.and_then(|headers| headers.get(name));
            value.and_then(|v| v.to_str().ok()).map(str::to_owned)
        };
        Self {
            http,
            retry: text("retry-after")
                .and_then(|s| s.parse().ok())
                .map(Duration::from_secs),
            request_id: ["x-goog-request-id", "x-request-id", "x-cloud-trace-context"]
                .iter()
                .find_map(|name| text(name)),
            ..Self::default()
        }
    }

    pub fn read_body(&mut self, body: &[u8]) {
        let document = serde_json::from_slice::<Value>(body).unwrap_or_default();
        let error = &document["error"];
        if !error.is_object() {
            self.message = first_line(&String::from_utf8_lossy(body), self.http);
            return;
        }
        self.is_document = true;
        self.status = text(&error["status"]);
        self.message = text(&error["message"]);
        for detail in error["details"].as_array().into_iter().flatten() {
            self.read_detail(detail);
        }
    }

    pub fn read_detail(&mut self, detail: &Value) {
        let kind = detail["@type"].as_str().unwrap_or_default();
        match kind.rsplit('.').next().unwrap_or_default() {
            "ErrorInfo" => self.read_info(detail),
            "RequestInfo" => {
                self.request_id = detail["requestId"].as_str().map(str::to_owned);
            }
            "PreconditionFailure" => {
                let violations = detail["violations"].as_array().into_iter().flatten();
                self.violations = violations
                    .map(|v| Violation {
                        kind: text(&v["type"]),
                        description: text(&v["description"]),
                    })
                    .collect();
            }
            "Help" => self.help = detail["links"][0]["url"].as_str().map(str::to_owned),
            "RetryInfo" => {
                let delay = detail["retryDelay"].as_str();
                let seconds = delay.and_then(|d| d.strip_suffix('s')?.parse::<f64>().ok());
                self.retry = seconds
                    .and_then(|s| Duration::try_from_secs_f64(s).ok())
                    .or(self.retry);
            }
            _ => {}
        }
    }

    fn read_info(&mut self, info: &Value) {
        let domain = text(&info["domain"]);
        if is_googles(&domain) {
            self.reason = text(&info["reason"]);
        }
        let is_an_api_of_google = domain.ends_with(".googleapis.com");
        self.foreign_domain =
            Some(domain).filter(|d| d.contains('.') && !is_googles(d) && !is_an_api_of_google);
        let metadata = info["metadata"].as_object().into_iter().flatten();
        self.metadata = metadata.map(|(k, v)| (k.clone(), text(v))).collect();
    }

    /// What the metadata of the `ErrorInfo` say, if they say anything.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        let value = self.metadata.get(key).map(String::as_str);
        value.filter(|v| !v.is_empty())
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The domain of the reasons of reference §14.2. Cloud Run's mocks and older answers leave it out.
fn is_googles(domain: &str) -> bool {
    domain.is_empty() || domain == "googleapis.com"
}

/// What is worth showing of a body that is not Google's error document, such as an HTML page.
fn first_line(body: &str, http: u16) -> String {
    let line = body
        .lines()
        .map(str::trim)
        .find(|l| !l.is_empty() && !l.starts_with('<'))
        .unwrap_or_default();
    format!("HTTP {http} {}", line.chars().take(200).collect::<String>())
        .trim_end()
        .to_owned()
}
