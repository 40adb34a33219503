//! `status`, `drift`, `history`: what the cluster says.

mod drift;
mod history;
mod status;

use jiff::Timestamp;

use super::{context::Context, output::ListOutput};
use crate::{
    api::InvokerPolicyStatus,
    render::{Format, UNLIMITED, table},
};

pub use drift::{DriftCommand, drift};
pub use history::{HistoryCommand, history};
pub use status::{StatusCommand, status};

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

/// A table in the form that was asked for. The wide one does not wrap, as kubectl's does not.
pub fn tabulated(
    context: &Context,
    output: &ListOutput,
    head: &[&str],
    rows: &[Vec<String>],
) -> String {
    let mut style = context.style();
    if *output == ListOutput::Wide {
        style.width = UNLIMITED;
    }
    match output.table_format() {
        Format::Markdown => {
            let literal = |row: &Vec<String>| row.iter().map(|c| table::literal(c)).collect();
            let rows: Vec<Vec<String>> = rows.iter().map(literal).collect();
            table::markdown(head, &rows)
        }
        _ => table::table(&style, head, rows),
    }
}

#[cfg(test)]
mod tests;
