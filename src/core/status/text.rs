//! Words that several places of a status share.

use jiff::Timestamp;

use crate::{
    iam::RunService,
    intent::{Agreement, Intent},
};

/// How somebody lets a plan through, and whom to ask. `approver`: who says that only an
/// InvokerApproval counts.
pub fn how_to_agree(intent: &Intent, hash: &str, approver: Option<&str>) -> String {
    let (namespace, name) = (&intent.id.namespace, &intent.id.name);
    match approver {
        None => format!(
            "To let exactly this through: kubectl invoker approve {name} -n {namespace} --hash {hash}"
        ),
        Some(who) => format!(
            "An approver has to agree ({who} says so): ask somebody who may create InvokerApprovals in namespace {namespace} to run: kubectl invoker approve {name} -n {namespace} --reason WHY"
        ),
    }
}

/// What stands in front of who said no to a plan.
pub const DENIED: &str = "Denied by InvokerApproval ";

/// Who said no to a plan, and why.
pub fn denied_by(denial: &Agreement) -> String {
    let who = match &*denial.by {
        "" => String::new(),
        who => format!(" of {who}"),
    };
    format!(
        "{DENIED}{}{who}: {}",
        denial.key.name,
        on_one_line(&denial.reason)
    )
}

/// The command that ends a rollback.
pub(super) fn end_rollback_with(intent: &Intent) -> String {
    format!(
        "kubectl invoker rollback --end --policy {} -n {}",
        intent.id.name, intent.id.namespace
    )
}

/// The command that lets go of a policy without taking anything away.
pub(super) fn retain_with(intent: &Intent) -> String {
    format!(
        "kubectl -n {} patch ivp {} --type merge -p '{{\"spec\":{{\"onDelete\":\"Retain\"}}}}'",
        intent.id.namespace, intent.id.name
    )
}

pub(super) fn services_in_words(n: i64) -> String {
    if n == 1 {
        "1 service".into()
    } else {
        format!("{n} services")
    }
}

/// `web (europe-west1)`.
pub(super) fn place(service: &RunService) -> String {
    format!("{} ({})", service.name, service.region)
}

/// ` (and 3 more)`, of so many in all.
pub(super) fn and_more(all: usize) -> String {
    match all.saturating_sub(1) {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    }
}

/// Kubernetes times have whole seconds; a finer one would never compare equal after a round trip.
pub fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// The first few of a list, and how many more there are.
pub(super) fn listed(items: &[String], most: usize) -> String {
    listed_with(items, most, ", ")
}

pub(super) fn listed_with(items: &[String], most: usize, separator: &str) -> String {
    let mut text = items
        .iter()
        .take(most)
        .cloned()
        .collect::<Vec<_>>()
        .join(separator);
    if items.len() > most {
        text.push_str(&format!("{separator}and {} more", items.len() - most));
    }
    text
}

/// What somebody else wrote, on one line: a line of their own could look like one of ours.
pub fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
