//! Completion: for `kubectl invoker` by the script that kubectl calls while somebody types, and for
//! the program by itself.

mod names;

use std::{ffi::OsString, path::Path};

use super::{
    Exit,
    context::{Context, print},
    help,
};

/// How completion is installed; shown by `completion --help`.
pub const HOW: &str = "kubectl completes plugins by a program beside them on the PATH:
  kubectl invoker completion kubectl > ~/.local/bin/kubectl_complete-invoker
  chmod +x ~/.local/bin/kubectl_complete-invoker

Then kubectl's own completion (kubectl completion --help) completes kubectl invoker as well.

Without kubectl, for the name kubectl-invoker:
  source <(kubectl-invoker completion bash)";

/// What kubectl calls: `kubectl_complete-invoker`, as found on the PATH.
///
/// Source: <https://kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins/> (kubectl 1.26).
const SCRIPT: &str = "#!/bin/sh
# Completion of `kubectl invoker`, called by kubectl. Made by: kubectl invoker completion kubectl
exec kubectl-invoker __complete -- \"$@\"
";

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// The program that kubectl calls, kubectl_complete-invoker.
    Kubectl,
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
}

#[derive(Clone, Debug, clap::Args)]
pub struct CompletionCommand {
    /// For what.
    #[arg(value_enum)]
    pub target: Target,
}

#[derive(Clone, Debug, clap::Args)]
pub struct CompleteCommand {
    /// The words behind `kubectl invoker`; the last one is being typed.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<OsString>,
}

/// Writes what is to be installed.
///
/// # Errors
/// None; commands have one form.
pub fn run(command: &CompletionCommand) -> anyhow::Result<Exit> {
    use clap_complete::Shell;
    let shell = match command.target {
        Target::Kubectl => {
            print(SCRIPT);
            return Ok(Exit::Nothing);
        }
        Target::Bash => Shell::Bash,
        Target::Elvish => Shell::Elvish,
        Target::Fish => Shell::Fish,
        Target::Powershell => Shell::PowerShell,
        Target::Zsh => Shell::Zsh,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut help::command(), "kubectl-invoker", &mut text);
    print(&String::from_utf8_lossy(&text));
    Ok(Exit::Nothing)
}

/// Answers kubectl: candidates line by line, each with its description behind a tab, and how to
/// take them in the last line.
///
/// Source: <https://pkg.go.dev/github.com/spf13/cobra#ShellCompDirective>.
///
/// # Errors
/// None that a shell could show: what cannot be completed has no candidates.
pub async fn complete(context: &Context, command: &CompleteCommand) -> anyhow::Result<Exit> {
    let mut words = vec![OsString::from("kubectl-invoker")];
    words.extend(command.words.iter().cloned());
    if words.len() == 1 {
        words.push(OsString::new());
    }
    let at = words.len() - 1;
    let folder = std::env::current_dir().ok();
    let mut found = names::names(context, &words).await;
    found.extend(candidates(words, at, folder.as_deref()));
    let mut text: String = found.iter().map(|line| format!("{line}\n")).collect();
    // ShellCompDirectiveNoFileComp: files are among the candidates where they are meant.
    text.push_str(":4\n");
    print(&text);
    Ok(Exit::Nothing)
}

fn candidates(words: Vec<OsString>, at: usize, folder: Option<&Path>) -> Vec<String> {
    let typed = words[at].to_string_lossy().into_owned();
    let found = clap_complete::engine::complete(&mut help::command(), words, at, folder);
    let line = |c: clap_complete::CompletionCandidate| {
        let value = c.get_value().to_string_lossy().into_owned();
        let help = c.get_help().map(ToString::to_string).unwrap_or_default();
        match help.lines().next() {
            Some(first) if !first.is_empty() => format!("{value}\t{first}"),
            _ => value,
        }
    };
    let all = found.unwrap_or_default().into_iter();
    // Options only once somebody begins to type one, as kubectl does.
    let wanted = |c: &clap_complete::CompletionCandidate| {
        !c.is_hide_set()
            && (typed.starts_with('-') || !c.get_value().to_string_lossy().starts_with('-'))
    };
    all.filter(wanted).map(line).collect()
}
