//! `Bypassed`: whether somebody whom no policy lists may invoke by a grant above the services. It is
//! there only where that is searched for, and never changes Ready: nothing here is the policy's.

use super::{ConditionInput, Conditions, Truth};
use crate::{
    api::{ConditionType, Reason},
    fault::Fault,
    inherited::Above,
    status::{
        InheritedView,
        inherited::{Bypass, said_before},
    },
};

/// Principals that a message names.
const NAMED: usize = 5;

pub(super) fn set(conditions: &mut Conditions<'_>, input: &ConditionInput<'_>) {
    let Some(view) = input.facts.inherited else {
        return;
    };
    let before = said_before(input.old).filter(|_| view.above == Above::Waiting);
    let Bypass {
        truth,
        reason,
        message,
    } = before.unwrap_or_else(|| now(view));
    let age = match view.above {
        Above::Known { stale: true, .. } => {
            "; the last search failed, so this is what an earlier one showed"
        }
        _ => "",
    };
    let message = format!("{message}{age}");
    conditions.set(ConditionType::Bypassed, truth, reason, &message);
}

fn now(view: &InheritedView<'_>) -> Bypass {
    let (unlisted, first) = view.unlisted(NAMED);
    if unlisted > 0 {
        let more = match unlisted - first.len() {
            0 => String::new(),
            n => format!(", and {n} more"),
        };
        return Bypass {
            truth: Truth::True,
            reason: Reason::InheritedAccess,
            message: format!(
                "no policy lists, and may invoke by a grant above the services: {}{more}; groups are not expanded, deny policies are not seen",
                first.join(", ")
            ),
        };
    }
    match &view.above {
        Above::Waiting => unknown(
            Reason::Progressing,
            "grants above the services are being searched for".into(),
        ),
        Above::Unplaced => unknown(
            Reason::Progressing,
            "no search shows where the project is: either it is below none of --inherited-scope, or reading that takes resourcemanager.projects.get".into(),
        ),
        Above::Unknown(fault)
        | Above::Known {
            unseen: Some(fault),
            ..
        } => unknown(fault.class.row().reason, not_seen(fault)),
        Above::Known {
            unseen: None,
            unsearched,
            ..
        } => Bypass {
            truth: Truth::False,
            reason: Reason::InSync,
            message: nobody(unsearched.as_deref()),
        },
    }
}

/// That nobody was found, and where nobody looked.
fn nobody(unsearched: Option<&str>) -> String {
    match unsearched {
        None => "nobody whom no policy lists may invoke by a grant on the project, a folder or the organization".into(),
        Some(above) => format!(
            "nobody whom no policy lists may invoke by a grant on what is searched; {above} is in no --inherited-scope"
        ),
    }
}

fn unknown(reason: Reason, message: String) -> Bypass {
    Bypass {
        truth: Truth::Unknown,
        reason,
        message,
    }
}

fn not_seen(fault: &Fault) -> String {
    format!(
        "grants above the services cannot be seen: {}; it takes cloudasset.assets.searchAllIamPolicies and iam.roles.get on each --inherited-scope",
        fault.message.trim_end_matches('.')
    )
}
