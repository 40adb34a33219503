//! Calls to Cloud Run: what policies need, what the operator uses and lets itself have, and what
//! Google allows. The operator says its part on the Leases of its shards.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt as _;

use super::{
    DoctorCommand,
    findings::{Findings, Outcome},
};
use crate::{
    api::{BUDGETS, InvokerPolicy},
    cloudrun::limit::{BudgetReport, CallReport, PlaceReport},
    render::count,
};

const CHECK: &str = "quota";

/// Places that are shown; the others are counted.
const MOST: usize = 10;

/// The share of a budget that policies may need before it is said.
const MUCH: f64 = 0.8;

/// What the holders of Leases say about their calls.
#[derive(Debug, Default)]
pub(super) struct Reports {
    read: Vec<BudgetReport>,
    /// Leases on which it cannot be read.
    unreadable: Vec<String>,
}

impl Reports {
    /// Takes in what the holder of a Lease says, if it says anything.
    pub(super) fn add(&mut self, name: &str, lease: &Lease) {
        match lease
            .annotations()
            .get(BUDGETS)
            .map(|t| BudgetReport::read(t))
        {
            Some(Some(report)) => self.read.push(report),
            Some(None) => self.unreadable.push(name.to_owned()),
            None => {}
        }
    }

    fn are_none(&self) -> bool {
        self.read.is_empty() && self.unreadable.is_empty()
    }
}

const UNREADABLE: &str = "if it does not become readable within a minute, see who else writes to the Lease, and use a plugin of the operator's version";

/// A project and region.
#[derive(Debug, Default)]
struct PlaceState {
    services: usize,
    /// Reads in a minute that the intervals of policies ask for.
    needed: f64,
    told: Option<PlaceReport>,
}

impl PlaceState {
    fn reads(&self, default: u32) -> u32 {
        self.told.as_ref().map_or(default, |t| t.reads.budget)
    }

    /// How near it is to one of its budgets.
    fn share(&self, default: u32) -> f64 {
        let used = self.told.as_ref().map_or(0.0, PlaceReport::share);
        used.max(self.needed / f64::from(self.reads(default).max(1)))
    }

    fn evidence(&self, default: u32) -> String {
        let verb = if self.services == 1 { "needs" } else { "need" };
        let services = count(self.services, "service");
        let budget = self.reads(default);
        let needs = format!("{services} {verb} {:.1} of {budget} reads/min", self.needed);
        let Some(told) = &self.told else {
            return needs;
        };
        let (reads, writes) = (
            of_budget(told.reads, "reads"),
            of_budget(told.writes, "writes"),
        );
        let told = format!("in the last minute {reads} and {writes}");
        match self.services {
            0 => told,
            _ => format!("{needs}; {told}"),
        }
    }
}

/// `12 of 300 reads (Google allows 600)`. A limit is known once a 429 named it.
fn of_budget(calls: CallReport, kind: &str) -> String {
    let limit = match calls.limit {
        Some(limit) => format!("Google allows {limit}"),
        None => "Google's limit was not reached".to_owned(),
    };
    format!("{} of {} {kind} ({limit})", calls.used, calls.budget)
}

type Places = BTreeMap<(String, String), PlaceState>;

fn places(policies: &[InvokerPolicy], reports: &[BudgetReport]) -> Places {
    let mut services: BTreeMap<(String, String, String), f64> = BTreeMap::new();
    for p in policies.iter().filter(|p| !p.spec.suspend) {
        let interval = crate::intent::interval(&p.spec.interval)
            .as_secs_f64()
            .max(10.0);
        for s in p.status.iter().flat_map(|s| &s.services) {
            let key = (p.spec.project.clone(), s.region.clone(), s.name.clone());
            let rate = services.entry(key).or_default();
            *rate = rate.max(60.0 / interval);
        }
    }
    let mut places = Places::new();
    for ((project, region, _), rate) in services {
        let place = places.entry((project, region)).or_default();
        place.services += 1;
        place.needed += rate;
    }
    for told in reports.iter().flat_map(|r| &r.places) {
        let key = (told.project.clone(), told.region.clone());
        places.entry(key).or_default().told = Some(told.clone());
    }
    places
}

/// Calls in a minute, by project and region, the fullest first.
pub(super) fn quota_suffices(
    policies: &[InvokerPolicy],
    reports: &Reports,
    command: &DoctorCommand,
    findings: &mut Findings,
) {
    let default = command.cloud.reads_per_minute;
    let all = places(policies, &reports.read);
    let mut places: Vec<_> = all.iter().collect();
    places.sort_by(|a, b| b.1.share(default).total_cmp(&a.1.share(default)));
    for ((project, region), place) in places.iter().take(MOST) {
        let region = if region == "-" { "all regions" } else { region };
        let subject = format!("{project} ({region})");
        let evidence = place.evidence(default);
        if place.needed > f64::from(place.reads(default)) * MUCH {
            let fix = "raise spec.interval, or settings.readsPerMinute if Google's quota allows, or use audit events";
            findings.add(CHECK, subject, Outcome::Warn, evidence, fix);
        } else if place.told.is_none() && !reports.unreadable.is_empty() {
            let evidence =
                format!("{evidence}; what the operator uses and lets itself have is not known");
            findings.add(CHECK, subject, Outcome::Unknown, evidence, UNREADABLE);
        } else {
            findings.pass(CHECK, subject, evidence);
        }
    }
    for lease in &reports.unreadable {
        let evidence = format!("the annotation {BUDGETS} of this Lease cannot be read");
        findings.add(CHECK, lease, Outcome::Unknown, evidence, UNREADABLE);
    }
    let reported = reports.read.iter().map(|r| r.others);
    let unshown = places.len().saturating_sub(MOST);
    let others = reported.fold(unshown, usize::saturating_add);
    if others > 0 {
        findings.pass(CHECK, count(others, "other"), "none of them fuller");
    }
    if reports.are_none() && !places.is_empty() {
        let evidence = "what the operator uses cannot be seen: its Lease says nothing about it";
        let fix = "upgrade the operator, or see the findings about it";
        findings.add(CHECK, "operator", Outcome::Skipped, evidence, fix);
    }
}
