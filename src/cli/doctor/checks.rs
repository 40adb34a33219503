//! How Google is asked by a check, and what is found where it does not answer.

use serde_json::Value;

use super::findings::{Findings, Outcome};
use crate::{
    cli::reach::{Servers, is_cut_off},
    cloudrun::google::{Google, Side},
    fault::{Fault, FaultClass},
};

/// The checks that ask Google.
pub(super) struct Checks<'a> {
    google: &'a Google,
    servers: &'a Servers,
    pub(super) findings: &'a mut Findings,
    /// Hosts that did not answer: that is said once of each, and not by every check.
    silent: Vec<String>,
}

impl<'a> Checks<'a> {
    pub(super) fn new(
        google: &'a Google,
        servers: &'a Servers,
        findings: &'a mut Findings,
    ) -> Self {
        Self {
            google,
            servers,
            findings,
            silent: Vec::new(),
        }
    }

    /// An answer or a refusal; `None` where the host does not answer at all, which is a finding by
    /// then.
    pub(super) async fn ask(
        &mut self,
        side: Side,
        path: &str,
        body: Option<&Value>,
    ) -> Option<Result<Value, Fault>> {
        let host = self.servers.google_host(side);
        if self.silent.contains(&host) {
            return None;
        }
        let answer = self.google.ask(side, path, body).await;
        let Err(fault) = &answer else {
            return Some(answer);
        };
        if !is_cut_off(fault) {
            return Some(answer);
        }
        let (evidence, fix) = self.servers.google_refused(side, fault);
        self.findings
            .add("Google", host.clone(), Outcome::Fail, evidence, fix);
        self.silent.push(host);
        None
    }

    /// What was refused. `needs`: the permission that whoever asks lacks, where that is known.
    pub(super) fn refused(
        &mut self,
        check: &'static str,
        subject: &str,
        (side, fault): (Side, &Fault),
        needs: &'static str,
    ) {
        let (evidence, hint) = self.servers.google_refused(side, fault);
        let (outcome, fix) = match fault.class {
            FaultClass::PermissionDenied if !needs.is_empty() => (Outcome::Unknown, needs),
            FaultClass::PermissionDenied | FaultClass::QuotaExceeded => (Outcome::Unknown, hint),
            _ => (Outcome::Fail, hint),
        };
        self.findings.add(check, subject, outcome, evidence, fix);
    }
}
