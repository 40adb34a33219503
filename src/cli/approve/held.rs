//! What waits for approval, as the status of a policy shows it.

use crate::{
    api::{InvokerPolicyStatus, ServiceStatus},
    render::{Style, Tone},
    status::{DENIED, NEW_TO_POLICY},
};

/// A plan that waits for approval.
pub(super) struct HeldPlan {
    /// Value for the annotation; empty where only an approver can agree.
    pub(super) annotation: String,
    /// What an InvokerApproval names; empty where the operator is too old to say.
    pub(super) plan: String,
    /// What it would do, in words.
    pub(super) what: String,
    /// Who said no to it and why, as the operator says.
    pub(super) denied: Option<String>,
}

impl HeldPlan {
    pub(super) fn shown(&self, style: &Style) -> String {
        let hash = match self.annotation.as_str() {
            "" => &self.plan,
            annotation => annotation,
        };
        let head = style.paint(Tone::Warn, &format!("plan {hash}"));
        // Members stand on lines of their own.
        let wrapped = |line: &str| {
            if line.starts_with("    ") {
                line.to_owned()
            } else {
                style.wrap(2, line)
            }
        };
        let lines: Vec<String> = self.what.lines().map(wrapped).collect();
        format!("{head}\n{}\n", lines.join("\n"))
    }
}

/// What stands before the hash in the command that a condition's message names.
const HASH: &str = " --hash ";

/// Plans that are held on a service, or for the reach of a selector.
pub(super) fn held_plans(status: &InvokerPolicyStatus) -> Vec<HeldPlan> {
    let waits = |s: &&ServiceStatus| !s.approve.is_empty() || !s.plan.is_empty();
    let (reached, changed): (Vec<&ServiceStatus>, Vec<_>) = status
        .services
        .iter()
        .filter(waits)
        .partition(|s| s.message.contains(NEW_TO_POLICY));
    let mut held: Vec<HeldPlan> = changed.into_iter().map(on_service).collect();
    if let Some(first) = reached.first() {
        let name = |s: &&ServiceStatus| format!("\n    + {} ({})", s.name, s.region);
        let services: String = reached.iter().map(name).collect();
        held.push(HeldPlan {
            annotation: String::new(),
            plan: first.plan.clone(),
            denied: status.conditions.iter().find_map(|c| denial_in(&c.message)),
            what: format!("its selector newly reaches{services}"),
        });
    }
    // The annotation for a selector stands in the message of the condition alone.
    for c in &status.conditions {
        for (at, _) in c.message.match_indices(HASH) {
            let rest = &c.message[at + HASH.len()..];
            let hash: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
            if hash.is_empty() || held.iter().any(|plan| plan.annotation == hash) {
                continue;
            }
            let plan = held
                .pop_if(|plan| plan.annotation.is_empty())
                .map_or(String::new(), |reach| reach.plan);
            held.push(HeldPlan {
                annotation: hash,
                plan,
                denied: None,
                // This is the command that the message names.
                what: c
                    .message
                    .split(" To let exactly this through")
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            });
        }
    }
    held
}

/// What a message says of the no to a plan.
fn denial_in(message: &str) -> Option<String> {
    let at = message.find(DENIED)?;
    Some(message[at..].to_owned())
}

fn on_service(s: &ServiceStatus) -> HeldPlan {
    let member = |m: &String| format!("\n    - {m}");
    let members: String = s.unexpected.iter().map(member).collect();
    HeldPlan {
        annotation: s.approve.clone(),
        plan: s.plan.clone(),
        denied: denial_in(&s.message),
        what: format!("{} ({}): revokes{members}", s.name, s.region),
    }
}
