//! `status`, `drift`, `history`: what the cluster says.

mod drift;
mod history;
mod status;

use jiff::Timestamp;
use kube::{Api, ResourceExt as _, api::ListParams};

use super::{
    context::{Context, Kube},
    world::list_all,
};
use crate::{
    api::{InvokerPolicy, InvokerPolicyStatus},
    render::{Format, table},
};

pub use drift::{DriftCommand, drift};
pub use history::{HistoryCommand, history};
pub use status::{StatusCommand, status};

async fn policies(
    kube: &Kube,
    name: Option<&str>,
    all: bool,
) -> anyhow::Result<Vec<InvokerPolicy>> {
    if let Some(name) = name {
        if all {
            anyhow::bail!("give either a name or -A, not both");
        }
        return Ok(vec![policy(kube, name).await?]);
    }
    let api = if all {
        Api::all(kube.client.clone())
    } else {
        Api::namespaced(kube.client.clone(), &kube.namespace)
    };
    let mut found = list_all(&api, ListParams::default()).await?;
    found.sort_by_key(|p: &InvokerPolicy| (p.namespace(), p.name_any()));
    Ok(found)
}

/// One policy of the namespace.
///
/// # Errors
/// When it is not there, with what there is.
pub async fn policy(kube: &Kube, name: &str) -> anyhow::Result<InvokerPolicy> {
    let api: Api<InvokerPolicy> = Api::namespaced(kube.client.clone(), &kube.namespace);
    if let Some(found) = api.get_opt(name).await? {
        return Ok(found);
    }
    let there = list_all(&api, ListParams::default()).await?;
    let names: Vec<String> = there.iter().map(|p| p.name_any()).take(10).collect();
    let hint = if names.is_empty() {
        "it has no policies; -n names another".to_owned()
    } else {
        format!("it has {}", names.join(", "))
    };
    anyhow::bail!(
        "namespace {} has no InvokerPolicy {name}; {hint}",
        kube.namespace
    )
}

/// `3m`, `2h5m`, `4d`: the two largest units.
pub fn ago(now: Timestamp, at: Timestamp) -> String {
    let seconds = now.duration_since(at).as_secs().max(0);
    let (d, h, m, s) = (
        seconds / 86_400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m"),
        (0, _, 0) => format!("{h}h"),
        (0, ..) => format!("{h}h{m}m"),
        (_, 0, _) => format!("{d}d"),
        _ => format!("{d}d{h}h"),
    }
}

fn condition<'a>(
    status: &'a InvokerPolicyStatus,
    type_: &str,
) -> Option<&'a crate::api::StatusCondition> {
    status.conditions.iter().find(|c| c.type_ == type_)
}

fn tabulated(context: &Context, format: Format, head: &[&str], rows: &[Vec<String>]) -> String {
    if format == Format::Markdown {
        table::markdown(head, rows)
    } else {
        table::table(&context.style(), head, rows)
    }
}

#[cfg(test)]
mod tests;
