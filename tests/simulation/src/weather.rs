//! Weather: what Google's API and the Kubernetes API do when they are not well.
//!
//! How Google refuses are the sandbox's own documents. That the target's project is gone is no
//! weather: it is a proof, so it must be true.

use sandbox::{
    google::refusal::{self, RUN},
    run::{ConsumerTrouble, Problem},
};
use serde_json::json;

use crate::{
    dice::{Dice, Stream},
    story::{Harm, Side, Storm},
};

/// The project that pays, as far as refusals name one.
const PAYER: &str = "acme-ops";

pub fn weather(dice: &Dice, length_ms: u64) -> Vec<Storm> {
    let mut d = dice.stream("weather");
    let mut storms = vec![];
    if d.chance(0.35) {
        return storms;
    }
    for _ in 0..1 + d.below(4) {
        let from_ms = d.between(0, length_ms);
        let to_ms = from_ms + *d.pick(&[200, 2_000, 10_000, 60_000]);
        let side = if d.chance(0.5) { Side::Kube } else { Side::Run };
        let percent = *d.pick(&[5, 20, 50, 100]);
        let (only, harm) = match side {
            Side::Kube => kube_harm(&mut d),
            Side::Run => run_harm(&mut d),
        };
        storms.push(Storm {
            from_ms,
            to_ms,
            side,
            only: only.into(),
            replica: None,
            nth: None,
            percent,
            harm,
        });
    }
    storms
}

fn kube_harm(d: &mut Stream) -> (&'static str, Harm) {
    let refused = |status: u16, reason: &str, message: &str| {
        Harm::Refused {
        status,
        body: json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": status}).to_string(),
        headers: vec![],
    }
    };
    let writes = *d.pick(&[
        "POST ",
        "PATCH ",
        "PUT ",
        "DELETE ",
        "invokerchanges",
        "invokerledgers",
        "/status",
        "events",
        "leases",
        "",
    ]);
    match d.below(12) {
        0 => (writes, Harm::Dropped),
        1 | 2 => (writes, Harm::Lost),
        3 => (writes, Harm::Late),
        4 => (writes, Harm::Hung),
        5 => (writes, Harm::Slow(d.between(200, 8_000))),
        6 => (
            writes,
            refused(500, "InternalError", "etcdserver: request timed out"),
        ),
        7 => (
            writes,
            refused(
                409,
                "Conflict",
                "the object has been modified; please apply your changes to the latest version and try again",
            ),
        ),
        8 => (
            "POST ",
            refused(
                403,
                "Forbidden",
                "exceeded quota: objects, requested: count/invokerchanges.run-invoker.dev=1, used: 10, limited: 10",
            ),
        ),
        9 => ("watch=true", Harm::Stalled(d.between(100, 20_000))),
        10 => ("watch=true", Harm::Ended),
        _ => (
            "",
            refused(
                429,
                "TooManyRequests",
                "too many requests, please try again later",
            ),
        ),
    }
}

fn run_harm(d: &mut Stream) -> (&'static str, Harm) {
    let calls = *d.pick(&["setIamPolicy", "getIamPolicy", "/services", ""]);
    match d.below(20) {
        0 => (calls, Harm::Dropped),
        1 | 2 => (calls, Harm::Lost),
        3 => (calls, Harm::Late),
        4 => (calls, Harm::Hung),
        5 => (calls, Harm::Slow(d.between(200, 15_000))),
        6 => (calls, html(404)),
        7 => (calls, html(502)),
        8 => ("setIamPolicy", refused(&over_quota())),
        9 => ("setIamPolicy", refused(&concurrent())),
        10 => ("setIamPolicy", refused(&constraint())),
        11 => (calls, refused(&unavailable())),
        12 => (calls, refused(&internal())),
        13 => (calls, refused(&lacking())),
        14 => (
            calls,
            refused(&refusal::behind_perimeter(RUN, "acme-prod", 1)),
        ),
        15 => (calls, refused(&refusal::disabled(RUN, PAYER))),
        n => (
            calls,
            refused(&refusal::unable(TROUBLES[n - 16], RUN, PAYER)),
        ),
    }
}

const TROUBLES: [ConsumerTrouble; 4] = [
    ConsumerTrouble::Invalid,
    ConsumerTrouble::Suspended,
    ConsumerTrouble::BillingDisabled,
    ConsumerTrouble::Denied,
];

fn refused(problem: &Problem) -> Harm {
    Harm::Refused {
        status: problem.code,
        body: problem.to_value().to_string(),
        headers: vec![],
    }
}

fn html(status: u16) -> Harm {
    Harm::Refused {
        status,
        body: "<!DOCTYPE html>\n<html lang=en>\n<title>Error</title>\n".into(),
        headers: vec![],
    }
}

fn constraint() -> Problem {
    refusal::against_constraint("customConstraints/custom.frozen", "no changes now")
}

fn over_quota() -> Problem {
    let message = "Quota exceeded for quota metric 'Write requests' and limit 'Write requests per minute per region' of service 'run.googleapis.com' for consumer 'project_number:1'.";
    let metadata = json!({"service": RUN.service, "quota_unit": "1/min/{project}/{region}", "quota_limit_value": "30"});
    refusal::over_quota(message.into(), metadata)
}

fn concurrent() -> Problem {
    Problem::new(
        409,
        "ABORTED",
        "There were concurrent policy changes. Please retry the whole read-modify-write with exponential backoff.",
    )
}

fn unavailable() -> Problem {
    Problem::new(503, "UNAVAILABLE", "The service is currently unavailable.")
}

fn internal() -> Problem {
    Problem::new(500, "INTERNAL", "Internal error encountered.")
}

fn lacking() -> Problem {
    let permission = "run.services.getIamPolicy";
    let message = format!(
        "Permission '{permission}' denied on resource 'projects/acme-prod' (or resource may not exist)."
    );
    refusal::denied(RUN, message, permission, "projects/acme-prod")
}
