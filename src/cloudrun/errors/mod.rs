//! What Google's errors mean, whatever brought them: the SDK, or REST of our own.
//!
//! They are told apart by `ErrorInfo.reason`, not by their texts, and the consumer (the project
//! that pays for the call) is told from the target. That something is gone needs proof: an answer
//! that only Cloud Run can have given, which names it.
//!
//! [`document`] reads an answer, [`class`] says what it means. Both ways share both: what one of
//! them understands, the other does.

mod class;
mod document;
#[cfg(test)]
mod recorded;
#[cfg(test)]
mod tests;

use google_cloud_gax::error::{Error, rpc::Code};

use crate::{
    fault::{Fault, FaultClass},
    iam::RunService,
};
use class::classify;
use document::Answer;

/// What was asked for: an answer is about that, or it is not.
#[derive(Clone, Copy, Debug)]
pub enum About<'a> {
    Service(&'a RunService),
    /// A list of its services.
    Project(&'a str),
    /// Something of another API, by the last part of its name.
    Resource(&'a str),
}

impl About<'_> {
    fn project(&self) -> &str {
        match self {
            Self::Service(service) => &service.project,
            Self::Project(project) => project,
            // Whose project it is in, the answer would have to say.
            Self::Resource(_) => "",
        }
    }
}

pub(super) fn from_reqwest(e: reqwest::Error) -> Fault {
    let class = if e.is_timeout() {
        FaultClass::Timeout
    } else {
        FaultClass::Unavailable
    };
    Fault::new(class, chain(&e))
}

/// An error with its causes, so that "error sending request" says why.
pub(super) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// SDK error to [`Fault`].
pub(super) fn from_sdk(error: &Error, about: About<'_>) -> Fault {
    // When a time limit ran out the SDK wraps the real error; it is the one that says what
    // happened.
    let mut error = error;
    while error.http_status_code().is_none() {
        match std::error::Error::source(error).and_then(|s| s.downcast_ref::<Error>()) {
            Some(inner) => error = inner,
            None => break,
        }
    }
    if error.is_authentication() {
        return Fault::new(FaultClass::Credentials, chain(error));
    }
    match error.http_status_code() {
        Some(http) => classify(answer_of(error, http), about),
        None => Fault::new(class_without_answer(error), chain(error)),
    }
}

fn class_without_answer(error: &Error) -> FaultClass {
    if error.is_binding() || error.is_serialization() {
        FaultClass::Unexpected
    } else if error.is_timeout() || error.is_exhausted() {
        FaultClass::Timeout
    } else {
        FaultClass::Unavailable
    }
}

/// The answer that the SDK read: from its model where it has one, else from the bytes. Its details
/// are a closed enum, so they are turned back into JSON and read like those of the other way.
fn answer_of(error: &Error, http: u16) -> Answer {
    let mut answer = Answer::new(http, error.http_headers());
    let Some(status) = error.status() else {
        answer.read_body(error.http_payload().map_or(&[], |body| body));
        return answer;
    };
    answer.is_document = true;
    // The SDK's word for an answer that says none, or one that nobody knows.
    if status.code != Code::Unknown {
        answer.status = status.code.name().to_owned();
    }
    answer.message = status.message.clone();
    let details = status.details.iter().map(serde_json::to_value);
    for detail in details.filter_map(Result::ok) {
        answer.read_detail(&detail);
    }
    answer
}

/// A REST answer that is no success to [`Fault`].
pub fn from_body(http: u16, headers: &http::HeaderMap, body: &[u8], about: About<'_>) -> Fault {
    let mut answer = Answer::new(http, Some(headers));
    answer.read_body(body);
    classify(answer, about)
}

/// An answer that somebody else than Cloud Run gave; `what` it is.
pub(super) fn foreign(what: &str) -> Fault {
    Fault::new(
        FaultClass::ForeignAnswer,
        format!("{what}: this is not an answer of Cloud Run's"),
    )
}
