//! Which objects a command is about: names as `-A` prints them, namespaces, labels.

use std::{fmt, str::FromStr};

use kube::{Api, ResourceExt as _, api::ListParams};

use super::{
    context::{Context, Kube},
    world::list_all,
};
use crate::api::InvokerPolicy;

/// `NAME` or `NAMESPACE/NAME`; what `-o name` prints is taken as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    pub namespace: Option<String>,
    pub name: String,
}

impl ObjectName {
    /// The one of the namespace that counts.
    pub fn here(name: &str) -> Self {
        Self {
            namespace: None,
            name: name.to_owned(),
        }
    }
}

impl FromStr for ObjectName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (before, name) = match text.split_once('/') {
            // A resource, as in invokerpolicy.run-invoker.dev/NAME: no namespace has a dot.
            Some((resource, name)) if resource.ends_with(".run-invoker.dev") => (None, name),
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        Ok(Self {
            namespace: before.map(namespace).transpose()?,
            name: object_name(name)?,
        })
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Letters, digits and hyphens within labels, with dots between them.
///
/// Source: <https://kubernetes.io/docs/concepts/overview/working-with-objects/names/>.
fn is_name(text: &str, most: usize, dots: bool) -> bool {
    // Whether letters may be capital is for the API server to say.
    let inner = |c: char| c.is_ascii_alphanumeric();
    let label = |l: &str| {
        l.starts_with(inner) && l.ends_with(inner) && l.chars().all(|c| inner(c) || c == '-')
    };
    text.len() <= most && (dots || !text.contains('.')) && text.split('.').all(label)
}

fn accept(text: &str, valid: bool, rule: &str) -> Result<String, String> {
    valid
        .then(|| text.to_owned())
        .ok_or_else(|| format!("{text:?} {rule}"))
}

/// The name of an object: it becomes a part of a URL, so nothing else goes through.
fn object_name(text: &str) -> Result<String, String> {
    let rule = "is no name of an object: letters, digits, hyphens and dots";
    accept(text, is_name(text, 253, true), rule)
}

/// The name of a namespace, as an argument.
///
/// # Errors
/// What a namespace may be called.
pub fn namespace(text: &str) -> Result<String, String> {
    let rule = "is no namespace: letters, digits and hyphens, at most 63";
    accept(text, is_name(text, 63, false), rule)
}

/// A part of a Google resource's name, as an argument: a project, a region or a service. It becomes
/// a part of a URL, so nothing else goes through.
///
/// # Errors
/// What it may consist of.
pub fn google_name(text: &str) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    let valid = !text.is_empty() && text.len() <= 63 && text.chars().all(inner);
    let valid = valid && text != "." && text != "..";
    let rule = "is no id: letters, digits and hyphens (projects also DOMAIN:ID)";
    accept(text, valid, rule)
}

/// One requirement of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: &'static str,
    pub values: Vec<String>,
}

/// A label selector in kubectl's form, as an argument.
///
/// # Errors
/// The part that is none.
pub fn label_selector(text: &str) -> Result<Vec<Requirement>, String> {
    outer_parts(text)?
        .iter()
        .map(|part| {
            requirement(part.trim()).ok_or_else(|| {
                format!("{part:?} is no requirement such as team=shop or tier in (web,api)")
            })
        })
        .collect()
}

/// The same text, once it is known to be a selector.
///
/// # Errors
/// The part that is none.
pub fn selector_text(text: &str) -> Result<String, String> {
    label_selector(text).map(|_| text.to_owned())
}

fn requirement(part: &str) -> Option<Requirement> {
    let of = |key: &str, operator, values: Vec<&str>| {
        let is_valid = is_label_key(key.trim()) && values.iter().all(|v| is_label_value(v.trim()));
        is_valid.then(|| Requirement {
            key: key.trim().to_owned(),
            operator,
            values: values.iter().map(|v| v.trim().to_owned()).collect(),
        })
    };
    let set = |(key, rest): (&str, &str), operator| {
        let inner = rest.trim().strip_prefix('(')?.strip_suffix(')')?;
        of(key, operator, inner.split(',').collect())
    };
    // Beside a word there may be a parenthesis instead of a space.
    let word = |word: &str| {
        let (key, rest) = part.split_once(char::is_whitespace)?;
        let rest = rest.trim_start().strip_prefix(word)?;
        rest.starts_with([' ', '(']).then_some((key, rest))
    };
    if let Some(found) = word("notin") {
        return set(found, "NotIn");
    }
    if let Some(found) = word("in") {
        return set(found, "In");
    }
    for (sign, operator) in [
        ("!=", "NotIn"),
        ("==", "In"),
        ("=", "In"),
        (">", "Gt"),
        ("<", "Lt"),
    ] {
        if let Some((key, value)) = part.split_once(sign) {
            return of(key, operator, vec![value]);
        }
    }
    match part.strip_prefix('!') {
        Some(key) => of(key, "DoesNotExist", vec![]),
        None => of(part, "Exists", vec![]),
    }
}

/// `NAME` or `PREFIX/NAME`.
///
/// Source: <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/>.
fn is_label_key(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(|p| is_name(p, 253, true))
}

fn is_label_value(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    let inner = |c: char| edge(c) || "-_.".contains(c);
    text.is_empty()
        || text.len() <= 63
            && text.starts_with(edge)
            && text.ends_with(edge)
            && text.chars().all(inner)
}

/// Parts between commas that are not in parentheses.
fn outer_parts(text: &str) -> Result<Vec<String>, String> {
    let (mut parts, mut depth) = (vec![String::new()], 0i32);
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    if depth != 0 {
        return Err("a parenthesis is not closed".into());
    }
    Ok(parts)
}

/// Policies by name, by namespace or by label.
#[derive(Clone, Debug, clap::Args)]
pub struct Selection {
    /// Names of policies, each NAME or NAMESPACE/NAME; all of the namespace if none is given.
    #[arg(value_name = "NAME")]
    pub names: Vec<ObjectName>,
    /// Every namespace.
    #[arg(long, short = 'A', conflicts_with = "names")]
    pub all_namespaces: bool,
    /// Only policies with these labels, as in team=shop,tier in (web,api).
    #[arg(long, short = 'l', value_name = "SELECTOR", conflicts_with = "names", value_parser = selector_text)]
    pub selector: Option<String>,
}

impl Selection {
    /// Whether something was chosen, as opposed to all of a namespace by default.
    pub fn is_explicit(&self) -> bool {
        !self.names.is_empty() || self.all_namespaces || self.selector.is_some()
    }

    /// Whether names are shown with their namespaces.
    pub fn shows_namespaces(&self) -> bool {
        self.all_namespaces || self.names.iter().any(|n| n.namespace.is_some())
    }

    /// The labels, as the API server is asked for them.
    pub fn list_params(&self) -> ListParams {
        match &self.selector {
            Some(labels) => ListParams::default().labels(labels),
            None => ListParams::default(),
        }
    }

    /// That nothing was found, and where to look.
    pub fn nothing(&self, what: &str, namespace: &str) -> String {
        let labels = self.selector.as_ref().map(|l| format!(" with labels {l}"));
        let labels = labels.unwrap_or_default();
        if self.all_namespaces {
            format!("no {what}{labels} in any namespace")
        } else {
            let what = format!("{what}{labels}");
            nothing_in(&what, namespace, "see -A for every namespace")
        }
    }

    /// Says that nothing was found, where nothing was named: what is named and absent is said by
    /// name.
    pub fn say_nothing(&self, context: &Context, what: &str, namespace: &str) {
        if self.names.is_empty() {
            context.complain(&self.nothing(what, namespace));
        }
    }

    /// The policies that are meant, by namespace and name.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn policies(&self, kube: &Kube) -> anyhow::Result<Chosen<InvokerPolicy>> {
        let mut chosen = Chosen::default();
        if self.names.is_empty() {
            let api = kube.api(self.all_namespaces);
            chosen.found = list_all(&api, self.list_params()).await?;
        }
        for name in &self.names {
            let kube = kube.in_namespace_of(name);
            match kube.api(false).get_opt(&name.name).await? {
                Some(policy) => chosen.found.push(policy),
                None => chosen.absent.push(no_policy(&kube, &name.name).await?),
            }
        }
        let found = &mut chosen.found;
        found.sort_by_key(|p: &InvokerPolicy| (p.namespace(), p.name_any()));
        found.dedup_by_key(|p| (p.namespace(), p.name_any()));
        Ok(chosen)
    }
}

/// That a namespace has nothing of a kind, whether it is there or not, and where to look.
pub fn nothing_in(what: &str, namespace: &str, next: &str) -> String {
    format!("no {what} in namespace {namespace}; {next}")
}

/// What was chosen: one that is not there hides no other.
#[derive(Debug)]
pub struct Chosen<K> {
    pub found: Vec<K>,
    /// What is said of each name under which nothing is.
    pub absent: Vec<String>,
}

impl<K> Default for Chosen<K> {
    fn default() -> Self {
        Self {
            found: Vec::new(),
            absent: Vec::new(),
        }
    }
}

impl<K> Chosen<K> {
    /// Says what is not there; whether something is not.
    pub fn complain(&self, context: &Context) -> bool {
        for absent in &self.absent {
            context.complain(&format!("error: {absent}"));
        }
        !self.absent.is_empty()
    }
}

/// One policy of the namespace.
///
/// # Errors
/// When it is not there, with what there is.
pub async fn policy(kube: &Kube, name: &str) -> anyhow::Result<InvokerPolicy> {
    match kube.api(false).get_opt(name).await? {
        Some(found) => Ok(found),
        None => anyhow::bail!(no_policy(kube, name).await?),
    }
}

/// That a policy is not there, and what there is.
async fn no_policy(kube: &Kube, name: &str) -> anyhow::Result<String> {
    let api: Api<InvokerPolicy> = kube.api(false);
    let there = list_all(&api, ListParams::default()).await?;
    let names: Vec<String> = there.iter().map(|p| p.name_any()).take(10).collect();
    let hint = if names.is_empty() {
        "it has no policies; see kubectl invoker status -A".to_owned()
    } else {
        format!("it has {}", names.join(", "))
    };
    Ok(format!(
        "namespace {} has no InvokerPolicy {name}; {hint}",
        kube.namespace
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_selector_is_refused_before_anybody_is_asked() {
        for good in [
            "team=shop",
            "team==shop,tier in (web, api),!legacy,env!=dev",
            "tier notin(a)",
            "acme.com/team",
            "a=",
            "n>1",
        ] {
            assert!(label_selector(good).is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "==,,",
            "=a",
            "a=b,",
            ",",
            "a b",
            "a in web",
            "tier in (web",
            "a=b=c",
            "-a",
            "a/b/c",
            "a=-",
        ] {
            assert!(label_selector(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_taken_as_they_are_printed_and_nothing_else_gets_into_a_url() {
        let read = |text: &str| text.parse::<ObjectName>().map(|n| n.to_string());
        assert_eq!(read("web").as_deref(), Ok("web"));
        assert_eq!(read("shop/web-2.a").as_deref(), Ok("shop/web-2.a"));
        assert_eq!(
            read("invokerpolicy.run-invoker.dev/web").as_deref(),
            Ok("web")
        );
        for bad in [
            "",
            "/web",
            "shop/",
            "..",
            "a/../b",
            "a/b/c",
            "web?x=1",
            "web#",
            "we%62",
            "w b",
            "a.b/web",
            "-web",
            "web\u{1b}[2J",
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert!(google_name("acme.com:shop").is_ok() && google_name("europe-west1").is_ok());
        for bad in ["", "..", "a/b", "a?b", "a%2fb", "a#", "a b"] {
            assert!(google_name(bad).is_err(), "{bad:?}");
        }
    }
}
