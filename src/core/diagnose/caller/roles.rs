//! Grants that the service's own policy does not settle: by roles of which nobody knows what they
//! carry, and by what Policy Troubleshooter sees.

use std::collections::BTreeSet;

use super::granted::evidence;
use crate::{
    diagnose::{
        Cause, Fix, Known, Outcome, Walk,
        grants::{Held, UnknownRole},
        symptom::Refusal,
    },
    iam::{Principal, describe_with},
};

const ON_SERVICE: &str = "grants on the service";

/// Who has which role, and that nobody knows what that comes to.
pub(super) fn not_known(roles: &[UnknownRole]) -> String {
    let what: Vec<&str> = roles.iter().map(|r| r.what.as_str()).collect();
    format!("{}, whose permissions are not known here", what.join(", "))
}

impl Walk<'_> {
    /// Whether somebody who knows says that nothing grants it.
    pub(super) fn is_surely_not_granted(&self) -> bool {
        self.facts.symptom.refusal == Some(Refusal::NoGrant) || self.is_granted_nowhere()
    }

    /// Whether Policy Troubleshooter says that something grants it: it knows what custom roles
    /// carry, who is in groups, and what is above. True: that is the verdict.
    pub(super) fn is_granted_elsewhere(&mut self, here: &Held, principal: &Principal) -> bool {
        let Some((on_service, above)) = self.troubleshooter_grants() else {
            return false;
        };
        let (on_service, above) = (on_service.join(", "), above.join(", "));
        if !on_service.is_empty() {
            self.step(ON_SERVICE, Outcome::Pass, on_service);
            self.granted();
            return true;
        }
        let how = if above.is_empty() {
            "Policy Troubleshooter does not name it".to_owned()
        } else {
            above
        };
        let seen = matches!(self.facts.policy, Known::Is(_));
        if seen {
            self.step(ON_SERVICE, Outcome::Skipped, evidence(here, principal));
        }
        self.step("grants above the service", Outcome::Pass, how);
        self.let_in();
        true
    }

    /// Whether it depends on what a role carries, on the service or on its project, which nobody
    /// here knows. True: that is the verdict.
    pub(super) fn depends_on_a_role(
        &mut self,
        principal: &Principal,
        here: &Held,
        there: Option<&Held>,
    ) -> bool {
        let on_project = there.map_or(&[][..], |t| &t.unknown);
        let all: BTreeSet<&UnknownRole> = here.unknown.iter().chain(on_project).collect();
        if all.is_empty() || self.is_surely_not_granted() {
            return false;
        }
        let places = [
            (ON_SERVICE, here.unknown.as_slice()),
            ("grants on the project", on_project),
        ];
        for (check, roles) in places {
            if !roles.is_empty() {
                self.step(check, Outcome::Maybe, not_known(roles));
            }
        }
        let what: Vec<&str> = all.iter().map(|r| r.what.as_str()).collect();
        let roles: BTreeSet<&str> = all.iter().map(|r| r.role.as_str()).collect();
        let commands: Vec<String> = roles.into_iter().map(describe_with).collect();
        let groups = here.maybe.iter().chain(there.iter().flat_map(|t| &t.maybe));
        let groups: Vec<&str> = groups.map(String::as_str).collect();
        let or = match groups.as_slice() {
            [] => String::new(),
            groups => format!(
                ", or on whether it is in one of these: {}",
                groups.join(", ")
            ),
        };
        let verdict = format!(
            "Whether {principal} may invoke depends on the permissions of a role, which are not known here: {}{or}.",
            what.join(", ")
        );
        let fix = self.grant_fix(principal, "");
        let ask = match self.facts.troubleshooter {
            Known::NotAsked => ", or ask Policy Troubleshooter (--troubleshoot)",
            _ => "",
        };
        let words = format!(
            "See whether run.routes.invoke is among them: {}{ask}. If it is not, {principal} has no grant. {}",
            commands.join("; "),
            fix.words
        );
        self.conclude(Cause::CannotTell, verdict, Fix { words, ..fix });
        true
    }
}
