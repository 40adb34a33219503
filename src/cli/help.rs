//! The help in groups, as kubectl has it: clap lists subcommands in one.

use std::fmt::Write as _;

use clap::{Command, CommandFactory as _};

use super::Args;

/// Heading of the options that every command has.
pub const GLOBAL: &str = "Global options";

/// Heading of the options about the way to Google.
pub const GOOGLE: &str = "Google Cloud options";
/// Heading of the options that have to be those of the operator.
pub const LIMITS: &str = "Options as the operator has them";

/// Commands by what people come for; a test finds one that is nowhere.
const GROUPS: &[(&str, &[&str])] = &[
    ("See what stands", &["status", "drift", "history", "access"]),
    ("Change policies", &["plan", "export"]),
    (
        "Act on a policy",
        &["reconcile", "suspend", "resume", "rollback"],
    ),
    (
        "Approve, and ask for access",
        &["approve", "deny", "request", "requests"],
    ),
    ("Find what is wrong", &["diagnose", "doctor"]),
    ("Set up", &["completion", "help"]),
];

/// The definition of the program, with its help in groups.
pub fn command() -> Command {
    let command = Args::command();
    let groups = grouped(&command);
    let command = with_own_usage(command);
    command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n{groups}\n{GLOBAL}:\n{{options}}{{after-help}}"
    ))
}

/// In an error clap's usage lists every option that has a value, also by the environment. That of
/// the help is shown instead.
fn with_own_usage(command: Command) -> Command {
    // With what every command has.
    let mut whole = command.clone();
    whole.build();
    command.mut_subcommands(|sub| match whole.find_subcommand(sub.get_name()) {
        Some(built) => {
            let usage = built.clone().render_usage().to_string();
            sub.override_usage(usage.trim_start_matches("Usage: ").to_owned())
        }
        None => sub,
    })
}

/// The subcommands, each with what it is for, in groups.
fn grouped(command: &Command) -> String {
    let mut text = String::new();
    for (title, names) in GROUPS {
        let _ = writeln!(text, "\n{title}:");
        for name in *names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map_or("Print help of a command".into(), ToString::to_string);
            let first = about.lines().next().unwrap_or_default();
            let _ = writeln!(text, "  {name:<11} {first}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group() {
        let command = Args::command();
        let shown = command.get_subcommands().filter(|c| !c.is_hide_set());
        let mut all: Vec<&str> = shown.map(Command::get_name).collect();
        all.push("help");
        let mut grouped: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| *names)
            .copied()
            .collect();
        all.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(grouped, all);
    }
}
