//! Grants that the policies which were read do not settle: by roles of which nobody knows what they
//! carry, and by what Policy Troubleshooter sees.

use std::collections::BTreeSet;

use super::granted::{ON_SERVICE, evidence};
use crate::{
    diagnose::{
        Cause, Fix, Outcome, Walk,
        grants::{Sum, UnknownRole},
        symptom::Refusal,
    },
    iam::{Principal, describe_with},
};

/// Who has which role, and that nobody knows what that comes to.
pub(super) fn not_known(roles: &BTreeSet<&UnknownRole>) -> String {
    let what: Vec<&str> = roles.iter().map(|r| r.what.as_str()).collect();
    format!("{}, whose permissions are not known here", what.join(", "))
}

impl Walk<'_> {
    /// Whether Policy Troubleshooter says that something grants it: it knows what custom roles
    /// carry, who is in groups, and what is above. True: that is the verdict.
    pub(super) fn is_granted_elsewhere(&mut self, sum: &Sum<'_>, principal: &Principal) -> bool {
        let Some((on_service, above)) = self.troubleshooter_grants() else {
            return false;
        };
        let (on_service, above) = (on_service.join(", "), above.join(", "));
        let by = [principal.clone()];
        if !on_service.is_empty() {
            self.step(ON_SERVICE, Outcome::Pass, on_service);
            self.granted(&by);
            return true;
        }
        let how = if above.is_empty() {
            "Policy Troubleshooter does not name it".to_owned()
        } else {
            above
        };
        if let Some((_, Ok(here))) = sum.places.first() {
            self.step(ON_SERVICE, Outcome::Skipped, evidence(here, principal));
        }
        self.step("grants above the service", Outcome::Pass, how);
        // What is known of times is about the service's own policy.
        self.granted(&[]);
        true
    }

    /// It depends on what a role carries, on the service or above, which nobody here knows.
    pub(super) fn depends_on_a_role(&mut self, principal: &Principal, sum: &Sum<'_>, fix: Fix) {
        let all = sum.unknown();
        let what: Vec<&str> = all.iter().map(|r| r.what.as_str()).collect();
        let roles: BTreeSet<&str> = all.iter().map(|r| r.role.as_str()).collect();
        let commands: Vec<String> = roles.into_iter().map(describe_with).collect();
        let groups = sum.maybe();
        let or = match groups.as_slice() {
            [] => String::new(),
            groups => format!(
                ", or on whether it is in one of these: {}",
                groups.join(", ")
            ),
        };
        let what = what.join(", ");
        let verdict = match self.facts.symptom.refusal {
            Some(Refusal::NoGrant) => format!(
                "Cloud Run says that the caller lacks run.routes.invoke. Whether {principal} has it depends on the permissions of a role, which are not known here: {what}{or}. If it has, a deny policy refuses it, or the token was somebody else's."
            ),
            _ => format!(
                "Whether {principal} may invoke depends on the permissions of a role, which are not known here: {what}{or}."
            ),
        };
        let ask = if self.facts.troubleshooter.is_not_asked() {
            ", or ask Policy Troubleshooter (--troubleshoot)"
        } else {
            ""
        };
        let words = format!(
            "See whether run.routes.invoke is among them: {}{ask}. If it is not, {principal} has no grant. {}",
            commands.join("; "),
            fix.words
        );
        self.conclude(Cause::CannotTell, verdict, Fix { words, ..fix });
    }
}
