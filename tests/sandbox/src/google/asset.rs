//! Cloud Asset: `searchAllIamPolicies`.
//!
//! Source:
//! <https://docs.cloud.google.com/asset-inventory/docs/reference/rest/v1/TopLevel/searchAllIamPolicies>,
//! names of resources: <https://docs.cloud.google.com/asset-inventory/docs/asset-names>. It finds
//! the allow policies of what is in the scope, the scope's own included, but nothing that is above
//! it, and of each policy only the bindings that match.

use std::hash::{DefaultHasher, Hash, Hasher};

use regex::Regex;
use serde_json::{Value, json};

use super::{
    asset_index::Policies,
    asset_query::Query,
    hierarchy,
    refusal::{ASSET, denied},
    roles, service_key,
};
use crate::{
    exchange::Call,
    run::{Problem, Run, State, service_name},
};

const PERMISSION: &str = "cloudasset.assets.searchAllIamPolicies";
/// "The server will pick an appropriate default."
const DEFAULT_PAGE: usize = 100;
/// "Page size is capped at 500 even if a larger value is given."
const MAX_PAGE: usize = 500;
const SERVICE: &str = "run.googleapis.com/Service";

/// What a search asks for.
struct Search {
    /// Name of the project, folder or organization as it is kept.
    scope: String,
    query: Query,
    types: Vec<Regex>,
    order: Vec<(&'static str, bool)>,
    size: usize,
    start: usize,
    /// Stands for all parameters but the page: a token is good for no other search.
    fingerprint: u64,
}

/// `GET /v1/{scope}:searchAllIamPolicies`.
pub fn search(run: &Run, call: &Call, scope: &str) -> Result<Value, Problem> {
    let mut state = run.lock();
    let Some((kind, id)) = hierarchy::parse(scope) else {
        return Err(Problem::invalid(format!(
            "Invalid scope {scope}: it must be projects/ID, projects/NUMBER, folders/NUMBER or organizations/NUMBER."
        )));
    };
    let name = state.google.hierarchy.resolve(kind, id);
    state.admit(call, ASSET, name.as_deref().unwrap_or(scope))?;
    let is_there = |n: &String| !state.lacks(n, PERMISSION) && !state.is_gone(n);
    let Some(name) = name.filter(is_there) else {
        let message = "Request denied by Cloud IAM.".to_owned();
        return Err(denied(ASSET, message, PERMISSION, scope));
    };
    let search = parse(&state, call, name)?;
    let delay = state.world.search_delay;
    let indexed = state
        .google
        .index
        .as_mut()
        .map(|i| i.settle(run.clock.now(), delay).clone());
    let policies = indexed.unwrap_or_else(|| live(&state));
    let mut results: Vec<Value> = policies
        .iter()
        .filter_map(|(name, bindings)| result(&state, &search, name, bindings))
        .collect();
    sort(&mut results, &search.order);
    Ok(page(&search, results))
}

/// Every policy as it is now.
pub(crate) fn live(state: &State) -> Policies {
    let services = state
        .services
        .iter()
        .map(|(key, s)| (service_name(key), s.policy.bindings().to_vec()));
    let nodes = state.google.hierarchy.all();
    let nodes = nodes.map(|(name, node)| (name.clone(), node.policy.bindings().to_vec()));
    services.chain(nodes).collect()
}

fn parse(state: &State, call: &Call, scope: String) -> Result<Search, Problem> {
    const KNOWN: [&str; 5] = ["query", "assetTypes", "orderBy", "pageSize", "pageToken"];
    let unknown = |name: &str| {
        // `alt`, `$alt`, `prettyPrint` and the like belong to every method.
        !KNOWN.contains(&name) && !name.starts_with('$') && !STANDARD.contains(&name)
    };
    if let Some((name, _)) = call.query.iter().find(|(name, _)| unknown(name)) {
        return Err(Problem::invalid(format!(
            "Invalid JSON payload received. Unknown name \"{name}\": Cannot bind query parameter."
        )));
    }
    let text = |name: &str| call.param(name).unwrap_or_default();
    let names: Vec<&str> = call
        .query
        .iter()
        .filter(|(k, _)| k == "assetTypes")
        .map(|(_, v)| v.as_str())
        .collect();
    let mut hasher = DefaultHasher::new();
    (&scope, text("query"), &names, text("orderBy")).hash(&mut hasher);
    let fingerprint = hasher.finish();
    let cap = state.world.page_cap.unwrap_or(MAX_PAGE).min(MAX_PAGE);
    Ok(Search {
        query: Query::parse(text("query"), &state.google.roles)?,
        types: types(&names)?,
        order: order(text("orderBy"))?,
        size: page_size(text("pageSize"))?.min(cap),
        start: start(text("pageToken"), fingerprint)?,
        scope,
        fingerprint,
    })
}

/// Query parameters of every method
/// (<https://docs.cloud.google.com/apis/docs/system-parameters>).
const STANDARD: [&str; 9] = [
    "alt",
    "fields",
    "key",
    "prettyPrint",
    "quotaUser",
    "access_token",
    "oauth_token",
    "callback",
    "uploadType",
];

fn page_size(text: &str) -> Result<usize, Problem> {
    let size = match text {
        "" => 0,
        text => text.parse::<i32>().map_err(|_| {
            Problem::invalid(format!(
                "Invalid value at 'page_size' (TYPE_INT32), \"{text}\""
            ))
        })?,
    };
    // "If set to zero or a negative value, server will pick an appropriate default."
    Ok(usize::try_from(size)
        .ok()
        .filter(|s| *s > 0)
        .unwrap_or(DEFAULT_PAGE))
}

fn start(token: &str, fingerprint: u64) -> Result<usize, Problem> {
    if token.is_empty() {
        return Ok(0);
    }
    let invalid = || Problem::invalid("Invalid page token.");
    let (start, of) = token.split_once('-').ok_or_else(invalid)?;
    if of != format!("{fingerprint:016x}") {
        return Err(invalid());
    }
    start.parse().map_err(|_| invalid())
}

/// Whole asset types, or regular expressions of them.
fn types(names: &[&str]) -> Result<Vec<Regex>, Problem> {
    let supported = [
        SERVICE,
        hierarchy::Kind::Project.asset_type(),
        hierarchy::Kind::Folder.asset_type(),
        hierarchy::Kind::Organization.asset_type(),
    ];
    let parse = |name: &&str| {
        let pattern = Regex::new(&format!("^(?:{name})$"))
            .map_err(|_| Problem::invalid(format!("Invalid asset type {name}.")))?;
        if supported.iter().any(|t| pattern.is_match(t)) {
            return Ok(pattern);
        }
        Err(Problem::invalid(format!(
            "{name} matches no asset type that the sandbox supports."
        )))
    };
    names.iter().map(parse).collect()
}

/// "Only singular primitive fields in the response are sortable: resource, assetType, project."
fn order(text: &str) -> Result<Vec<(&'static str, bool)>, Problem> {
    let field = |part: &str| {
        let mut words = part.split_whitespace();
        let (name, direction) = (words.next().unwrap_or_default(), words.next());
        let known = ["resource", "assetType", "project"]
            .into_iter()
            .find(|k| *k == name);
        match (known, direction, words.next()) {
            (Some(name), None, None) => Ok((name, false)),
            (Some(name), Some("DESC" | "desc"), None) => Ok((name, true)),
            _ => Err(Problem::invalid(format!("Invalid order by {part}."))),
        }
    };
    text.split(',')
        .filter(|part| !part.trim().is_empty())
        .map(field)
        .collect()
}

fn sort(results: &mut [Value], order: &[(&str, bool)]) {
    // What is first in the order counts most; sorting is stable.
    for (field, is_descending) in order.iter().rev() {
        results.sort_by(|a, b| {
            let (a, b) = (a[field].as_str(), b[field].as_str());
            if *is_descending { b.cmp(&a) } else { a.cmp(&b) }
        });
    }
}

/// One policy, if it is in the scope and has bindings that match.
fn result(state: &State, search: &Search, name: &str, bindings: &[Value]) -> Option<Value> {
    let hierarchy = &state.google.hierarchy;
    let (place, asset_type, resource) = match service_key(name) {
        Some((project, ..)) => (
            format!("projects/{project}"),
            SERVICE,
            format!("//run.googleapis.com/{name}"),
        ),
        None => {
            let (kind, _) = hierarchy::parse(name)?;
            let resource = format!("//cloudresourcemanager.googleapis.com/{name}");
            (name.to_owned(), kind.asset_type(), resource)
        }
    };
    let chain = hierarchy.chain(&place);
    let is_wanted = search.types.is_empty() || search.types.iter().any(|t| t.is_match(asset_type));
    if !chain.contains(&search.scope) || !is_wanted || state.is_gone(&place) {
        return None;
    }
    let matching: Vec<&Value> = bindings
        .iter()
        .filter(|b| matches(state, search, &resource, b))
        .collect();
    if matching.is_empty() {
        return None;
    }
    let above = |collection: &str| -> Vec<String> {
        let found = chain.iter().filter(|n| n.starts_with(collection));
        found.map(|n| hierarchy.numbered(n)).collect()
    };
    let mut found = json!({"resource": resource, "assetType": asset_type,
        "policy": {"bindings": matching}});
    if let Some(project) = above("projects/").first() {
        found["project"] = json!(project);
    }
    let folders = above("folders/");
    if !folders.is_empty() {
        found["folders"] = json!(folders);
    }
    if let Some(organization) = above("organizations/").first() {
        found["organization"] = json!(organization);
    }
    Some(found)
}

/// "If callers don't have `iam.roles.get` access to a role's included permissions, policy bindings
/// that specify this role will be dropped from the search results." Whoever lacks it on the scope
/// lacks it for every role here.
fn matches(state: &State, search: &Search, resource: &str, binding: &Value) -> bool {
    let roles = &state.google.roles;
    if search.query.asks_for_permissions() {
        let role = binding["role"].as_str().unwrap_or_default();
        let hidden = |holder: &str| state.lacks(holder, "iam.roles.get");
        if hidden(&search.scope) || roles::custom_parent(role).is_some_and(hidden) {
            return false;
        }
    }
    search.query.matches(resource, binding, roles)
}

fn page(search: &Search, results: Vec<Value>) -> Value {
    let total = results.len();
    let page: Vec<Value> = results
        .into_iter()
        .skip(search.start)
        .take(search.size)
        .collect();
    let end = search.start.saturating_add(page.len());
    let mut answer = json!({});
    if !page.is_empty() {
        answer["results"] = json!(page);
    }
    if end < total {
        answer["nextPageToken"] = json!(format!("{end}-{:016x}", search.fingerprint));
    }
    answer
}
