//! What is in the cluster or in the kubeconfig under the word that is being typed.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::Command;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Resource, ResourceExt as _,
    api::ListParams,
    core::{ClusterResourceScope, NamespaceResourceScope, PartialObjectMeta},
};
use serde::de::DeserializeOwned;

use crate::{
    api::{InvokerAccessRequest, InvokerChange, InvokerLedger, InvokerPolicy},
    cli::{
        context::{Context, Kube},
        help, select,
    },
};

/// What somebody types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Policy,
    Request,
    PolicyOrRequest,
    Change,
    Ledger,
    Namespace,
    Context,
}

/// The words before the one that is typed, by the definition of the program.
struct Line<'a> {
    program: Command,
    before: &'a [String],
}

impl<'a> Line<'a> {
    fn new(before: &'a [String]) -> Self {
        Self {
            program: help::command(),
            before,
        }
    }

    /// The option that a word ends with, as `-n` or `--namespace`, if it takes a value, and that
    /// value where it is in the word: `--namespace=shop`, `-nshop`, `-n=shop`, `-An`.
    fn option<'w>(&self, word: &'w str) -> Option<(String, Option<&'w str>)> {
        let subcommands = self.program.get_subcommands();
        let commands = std::iter::once(&self.program).chain(subcommands);
        let options: Vec<&clap::Arg> = commands
            .flat_map(Command::get_arguments)
            .filter(|a| a.get_action().takes_values())
            .collect();
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (long, None),
            };
            let is_it = |a: &&clap::Arg| a.get_long() == Some(name);
            return options
                .iter()
                .any(is_it)
                .then(|| (format!("--{name}"), value));
        }
        // Letters of flags may stand in front of one that takes what follows.
        let letters = word.strip_prefix('-')?;
        let takes = |c: char| options.iter().any(|a| a.get_short() == Some(c));
        let (at, letter) = letters.char_indices().find(|(_, c)| takes(*c))?;
        let rest = &letters[at + letter.len_utf8()..];
        let value = (!rest.is_empty()).then(|| rest.strip_prefix('=').unwrap_or(rest));
        Some((format!("-{letter}"), value))
    }

    /// The option whose value the next word is.
    fn open(&self, word: &str) -> Option<String> {
        let (name, value) = self.option(word)?;
        value.is_none().then_some(name)
    }

    /// The subcommand: the first word that is no option and no value of one.
    fn subcommand(&self) -> Option<&str> {
        let mut words = self.before.iter();
        while let Some(word) = words.next() {
            if !word.starts_with('-') {
                return Some(word);
            }
            if self.open(word).is_some() {
                words.next();
            }
        }
        None
    }

    /// The value of an option that was typed already.
    fn value(&self, names: [&str; 2]) -> Option<&str> {
        let mut words = self.before.iter();
        while let Some(word) = words.next() {
            let Some((name, value)) = self.option(word) else {
                continue;
            };
            let value = value.or_else(|| words.next().map(String::as_str));
            if names.contains(&&*name) {
                return value;
            }
        }
        None
    }

    fn has(&self, option: &str) -> bool {
        self.before.iter().any(|w| w == option)
    }

    /// What belongs where somebody types: the value of an option, or a name behind a subcommand.
    fn wanted(&self, option: Option<&str>) -> Option<Wanted> {
        match (option, self.subcommand()) {
            (Some("-n" | "--namespace"), _) => Some(Wanted::Namespace),
            (Some("--context"), _) => Some(Wanted::Context),
            (Some("--policy"), Some("rollback")) => Some(Wanted::Policy),
            (Some(_), _) => None,
            (None, Some("status" | "drift" | "reconcile" | "suspend" | "resume")) => {
                Some(Wanted::Policy)
            }
            (None, Some("history")) => Some(Wanted::PolicyOrRequest),
            (None, Some("approve")) if self.has("--ledger") => Some(Wanted::Ledger),
            (None, Some("approve" | "deny")) if self.has("--request") => Some(Wanted::Request),
            (None, Some("approve" | "deny")) => Some(Wanted::PolicyOrRequest),
            (None, Some("requests")) => Some(Wanted::Request),
            (None, Some("rollback")) if !self.has("--end") => Some(Wanted::Change),
            (None, _) => None,
        }
    }
}

/// Names that begin as what is typed does. A cluster that does not answer soon has none: nobody
/// waits for it while typing.
pub(super) async fn names(context: &Context, words: &[OsString]) -> Vec<String> {
    let words: Vec<String> = words
        .iter()
        .skip(1)
        .map(|w| w.to_string_lossy().into_owned())
        .collect();
    let [before @ .., typed] = words.as_slice() else {
        return Vec::new();
    };
    let line = Line::new(before);
    let (option, typed) = match typed.split_once('=') {
        Some((option, value)) if option.starts_with("--") => (Some(option.to_owned()), value),
        _ => (before.last().and_then(|w| line.open(w)), typed.as_str()),
    };
    if typed.starts_with('-') {
        return Vec::new();
    }
    let Some(wanted) = line.wanted(option.as_deref()) else {
        return Vec::new();
    };
    let place = context.pointed(
        line.value(["--kubeconfig", ""]).map(PathBuf::from),
        line.value(["--context", ""]).map(str::to_owned),
        line.value(["-n", "--namespace"]).map(str::to_owned),
    );
    let asked = found(&place, wanted, typed);
    let found = tokio::time::timeout(Duration::from_secs(2), asked).await;
    let mut found = found.ok().flatten().unwrap_or_default();
    found.retain(|name| name.starts_with(typed));
    found.sort();
    found.dedup();
    found
}

async fn found(context: &Context, wanted: Wanted, typed: &str) -> Option<Vec<String>> {
    if wanted == Wanted::Context {
        return Some(context.contexts());
    }
    let mut kube = context.kube().await.ok()?;
    let mut prefix = String::new();
    if let Some((namespace, _)) = typed.split_once('/') {
        prefix = format!("{namespace}/");
        kube.namespace = select::namespace(namespace).ok()?;
    }
    let mut names = Vec::new();
    if matches!(wanted, Wanted::Policy | Wanted::PolicyOrRequest) {
        names.extend(in_namespace::<InvokerPolicy>(&kube).await);
    }
    if matches!(wanted, Wanted::Request | Wanted::PolicyOrRequest) {
        names.extend(in_namespace::<InvokerAccessRequest>(&kube).await);
    }
    match wanted {
        Wanted::Change => names.extend(in_namespace::<InvokerChange>(&kube).await),
        Wanted::Ledger => names.extend(everywhere::<InvokerLedger>(&kube).await),
        Wanted::Namespace => names.extend(everywhere::<Namespace>(&kube).await),
        _ => {}
    }
    Some(names.into_iter().map(|n| prefix.clone() + &n).collect())
}

/// What a client wants of everything that it lists.
trait Object: Clone + std::fmt::Debug + DeserializeOwned {}
impl<K: Clone + std::fmt::Debug + DeserializeOwned> Object for K {}

async fn in_namespace<K>(kube: &Kube) -> Vec<String>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Object,
{
    listed(kube.api::<K>(false)).await
}

async fn everywhere<K>(kube: &Kube) -> Vec<String>
where
    K: Resource<Scope = ClusterResourceScope, DynamicType = ()> + Object,
{
    listed(Api::<K>::all(kube.client.clone())).await
}

/// The names alone: what is in the objects is not needed. Who may not list them completes nothing.
async fn listed<K>(api: Api<K>) -> Vec<String>
where
    K: Resource<DynamicType = ()> + Object,
{
    let found = api.list_metadata(&ListParams::default().limit(500)).await;
    let found = found.map(|list| list.items).unwrap_or_default();
    let name = |object: &PartialObjectMeta<K>| object.name_any();
    found.iter().map(name).collect()
}
