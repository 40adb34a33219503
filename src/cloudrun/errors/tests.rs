use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{
    recorded::{Recorded, all},
    *,
};
use crate::cloudrun::{
    CloudRun as _,
    google::{Google, Options, credentials},
};

fn web() -> RunService {
    RunService::new("acme-prod", "europe-west1", "web")
}

fn by_rest(recorded: &Recorded) -> Fault {
    let mut headers = http::HeaderMap::new();
    for (name, value) in &recorded.headers {
        headers.insert(*name, value.parse().unwrap());
    }
    let body = recorded.body.as_bytes();
    from_body(recorded.http, &headers, body, About::Service(&web()))
}

fn fault(http: u16, body: &serde_json::Value) -> Fault {
    let body = body.to_string();
    let headers = http::HeaderMap::new();
    from_body(http, &headers, body.as_bytes(), About::Service(&web()))
}

/// A server that answers its first request like this, and its address.
async fn serve(recorded: &Recorded) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut answer = format!("HTTP/1.1 {} -\r\n", recorded.http);
    for (name, value) in &recorded.headers {
        answer.push_str(&format!("{name}: {value}\r\n"));
    }
    let (length, body) = (recorded.body.len(), &recorded.body);
    answer.push_str(&format!("content-length: {length}\r\n\r\n{body}"));
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut request).await.unwrap() > 0);
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    format!("http://{address}")
}

/// What reading a policy by the SDK makes of an answer.
async fn by_sdk(recorded: &Recorded) -> Fault {
    let options = Options {
        endpoint: serve(recorded).await,
        credentials: credentials(true).unwrap(),
        timeout: Duration::from_secs(10),
        quota_project: None,
    };
    let google = Google::connect(options).await.unwrap();
    google.read_policy(&web()).await.unwrap_err()
}

#[test]
fn every_recorded_answer_has_its_class() {
    for recorded in all() {
        let fault = by_rest(&recorded);
        assert_eq!(fault.class, recorded.class, "{}", recorded.body);
        assert!(
            fault.message.contains(recorded.says),
            "{:?} is not in {:?}",
            recorded.says,
            fault.message
        );
    }
}

/// v2 goes by the SDK, v1 by REST of our own: whichever way an answer takes, all of it arrives.
#[tokio::test]
async fn both_ways_understand_the_same() {
    for recorded in all() {
        let (sdk, rest) = (by_sdk(&recorded).await, by_rest(&recorded));
        assert_eq!(sdk, rest, "{}", recorded.body);
    }
}

#[test]
fn nothing_that_is_not_googles_document_releases_anything() {
    for recorded in all().iter().filter(|r| !r.body.contains("\"error\"")) {
        assert!(!by_rest(recorded).class.row().gone, "{}", recorded.body);
    }
}

#[test]
fn what_a_list_of_a_project_says_is_not_about_a_service() {
    let body = json!({"error": {"code": 404, "status": "NOT_FOUND", "message": "Resource 'web' does not exist."}});
    let about = About::Project("acme-prod");
    let body = body.to_string();
    assert_eq!(
        from_body(404, &http::HeaderMap::new(), body.as_bytes(), about).class,
        FaultClass::ForeignAnswer
    );
}

fn with_info(http: u16, message: &str, reason: &str, metadata: &serde_json::Value) -> Fault {
    let info = json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com", "metadata": metadata});
    fault(
        http,
        &json!({"error": {"code": http, "message": message, "details": [info]}}),
    )
}

#[test]
fn a_quota_that_is_named_is_learnt() {
    let of = |unit: &str| {
        let metadata = json!({"quota_unit": unit, "quota_limit_value": "30"});
        with_info(429, "Quota exceeded", "RATE_LIMIT_EXCEEDED", &metadata)
    };
    let named = of("1/min/{project}/{region}");
    assert_eq!(
        (named.class, named.quota_limit),
        (FaultClass::QuotaExceeded, Some(30))
    );
    assert_eq!(of("1/d/{project}").quota_limit, None);
}

#[test]
fn another_api_that_is_off_is_not_the_end_of_services() {
    let of = |service: &str| {
        let metadata = json!({"consumer": "projects/acme-prod", "service": service});
        with_info(403, "off", "SERVICE_DISABLED", &metadata).class
    };
    assert_eq!(of("run.googleapis.com"), FaultClass::ApiDisabled);
    assert_eq!(of("iam.googleapis.com"), FaultClass::ConsumerUnavailable);
}

#[test]
fn the_member_that_iam_names_is_found() {
    let named = |message: &str| {
        let error = json!({"code": 400, "status": "INVALID_ARGUMENT", "message": message});
        fault(400, &json!({ "error": error })).member
    };
    assert_eq!(
        named("Group g@acme.com does not exist.").as_deref(),
        Some("g@acme.com")
    );
    assert_eq!(
        named("Identity Pool does not exist (acme.svc.id.goog)").as_deref(),
        Some("acme.svc.id.goog")
    );
    assert_eq!(named("Request contains an invalid argument."), None);
}

/// Whom an answer asks to wait, and by which id a support case finds it.
#[test]
fn headers_and_details_say_when_to_come_back() {
    let found: Vec<_> = all()
        .iter()
        .map(by_rest)
        .filter(|f| f.retry_after.is_some() || f.request_id.is_some())
        .map(|f| (f.retry_after, f.request_id))
        .collect();
    assert_eq!(
        found,
        [
            (Some(Duration::from_secs(7)), None),
            (Some(Duration::from_millis(3500)), Some("req-1".into())),
            (None, Some("req-2".into())),
        ]
    );
}

#[test]
fn a_message_of_any_length_is_bounded() {
    let error = json!({"code": 400, "status": "INVALID_ARGUMENT", "message": "x".repeat(100_000)});
    assert!(fault(400, &json!({ "error": error })).message.len() < 4096);
}
