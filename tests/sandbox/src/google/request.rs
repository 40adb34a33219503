//! Which method of which API a path means.

use super::hierarchy::Kind;

/// A request to one of the APIs of this module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Resource Manager, of a project, a folder or an organization.
    Node(NodeRequest<'a>),
    /// Cloud Asset: `AssetService.SearchAllIamPolicies`.
    Search { scope: String },
    /// Identity-Aware Proxy, of a web resource of Cloud Run.
    Iap(IapRequest<'a>),
    /// IAM v2: deny policies.
    Deny(DenyRequest),
    /// Policy Troubleshooter: `PolicyTroubleshooter.TroubleshootIamPolicy`.
    Troubleshoot,
}

/// A request about deny policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenyRequest {
    /// `projects/P`, `folders/N` or `organizations/N`, from the attachment point.
    pub node: String,
    /// Of one policy; without it, all are listed.
    pub id: Option<String>,
}

/// A request about a web resource of Identity-Aware Proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IapRequest<'a> {
    pub project: &'a str,
    /// `iap_web`, `iap_web/cloud_run-R` or `iap_web/cloud_run-R/services/S`.
    pub path: String,
    pub verb: IapVerb,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IapVerb {
    GetIamPolicy,
    SetIamPolicy,
    GetIapSettings,
}

/// A request about a project, a folder or an organization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRequest<'a> {
    /// `v1`, `v2` or `v3`.
    pub version: &'a str,
    pub kind: Kind,
    pub id: &'a str,
    pub verb: NodeVerb,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeVerb {
    Get,
    /// Resource Manager v1 only.
    GetAncestry,
    GetIamPolicy,
    SetIamPolicy,
    TestIamPermissions,
}

impl<'a> Request<'a> {
    /// None where the path belongs to another API.
    pub fn of(method: &str, parts: &[&'a str]) -> Option<Self> {
        match (method, parts) {
            (_, ["v1", "projects", project, path @ ..]) if !path.is_empty() => {
                of_web_resource(method, project, &path.join("/"))
            }
            ("POST", ["v3", "iam:troubleshoot"]) => Some(Self::Troubleshoot),
            ("GET", ["v2", "policies", path @ ..]) => of_deny_policy(path),
            (_, [version, collection, last]) => of_node(method, version, collection, last),
            _ => None,
        }
    }

    /// Service and method as Google's protocol definitions name them.
    pub fn rpc(&self) -> String {
        match self {
            Self::Node(node) => node.rpc(),
            Self::Search { .. } => "AssetService.SearchAllIamPolicies".into(),
            Self::Deny(deny) if deny.id.is_some() => "Policies.GetPolicy".into(),
            Self::Deny(_) => "Policies.ListPolicies".into(),
            Self::Troubleshoot => "PolicyTroubleshooter.TroubleshootIamPolicy".into(),
            Self::Iap(iap) => {
                let method = match iap.verb {
                    IapVerb::GetIamPolicy => "GetIamPolicy",
                    IapVerb::SetIamPolicy => "SetIamPolicy",
                    IapVerb::GetIapSettings => "GetIapSettings",
                };
                format!("IdentityAwareProxyAdminService.{method}")
            }
        }
    }
}

impl NodeRequest<'_> {
    fn rpc(&self) -> String {
        let (service, single) = match self.kind {
            Kind::Project => ("Projects", "Project"),
            Kind::Folder => ("Folders", "Folder"),
            Kind::Organization => ("Organizations", "Organization"),
        };
        match self.verb {
            NodeVerb::Get => format!("{service}.Get{single}"),
            NodeVerb::GetAncestry => format!("{service}.GetAncestry"),
            NodeVerb::GetIamPolicy => format!("{service}.GetIamPolicy"),
            NodeVerb::SetIamPolicy => format!("{service}.SetIamPolicy"),
            NodeVerb::TestIamPermissions => format!("{service}.TestIamPermissions"),
        }
    }
}

/// Versions: <https://docs.cloud.google.com/resource-manager/reference/rest>. gcloud asks v1 about
/// projects and organizations, and v2 about folders.
fn of_node<'a>(
    method: &str,
    version: &'a str,
    collection: &str,
    last: &'a str,
) -> Option<Request<'a>> {
    let kind = Kind::of(collection)?;
    // The id of a project can contain a colon: `example.com:legacy-app`.
    let (id, verb) = match last.rsplit_once(':') {
        Some((id, verb)) if KNOWN.contains(&verb) => (id, verb),
        _ => (last, ""),
    };
    if verb == SEARCH {
        let scope = format!("{collection}/{id}");
        return (method == "GET" && version == "v1").then_some(Request::Search { scope });
    }
    let served = match kind {
        Kind::Project | Kind::Organization => ["v1", "v3"],
        Kind::Folder => ["v2", "v3"],
    };
    if !served.contains(&version) {
        return None;
    }
    let verb = match (method, verb) {
        ("GET", "") => NodeVerb::Get,
        ("POST", ANCESTRY) if kind == Kind::Project && version == "v1" => NodeVerb::GetAncestry,
        ("POST", "getIamPolicy") => NodeVerb::GetIamPolicy,
        ("POST", "setIamPolicy") => NodeVerb::SetIamPolicy,
        ("POST", "testIamPermissions") => NodeVerb::TestIamPermissions,
        _ => return None,
    };
    let node = NodeRequest {
        version,
        kind,
        id,
        verb,
    };
    Some(Request::Node(node))
}

/// `policies/{attachmentPoint}/denypolicies[/ID]`. The slashes of the attachment point come encoded,
/// by some clients twice.
fn of_deny_policy(path: &[&str]) -> Option<Request<'static>> {
    let path = path.join("/").replace("%2F", "/");
    let path = path.strip_prefix("cloudresourcemanager.googleapis.com/")?;
    let parts: Vec<&str> = path.split('/').collect();
    let (node, id) = match parts.as_slice() {
        [collection, node, "denypolicies"] => (format!("{collection}/{node}"), None),
        [collection, node, "denypolicies", id] => {
            (format!("{collection}/{node}"), Some((*id).to_owned()))
        }
        _ => return None,
    };
    Some(Request::Deny(DenyRequest { node, id }))
}

fn of_web_resource<'a>(method: &str, project: &'a str, path: &str) -> Option<Request<'a>> {
    let (path, verb) = path.rsplit_once(':')?;
    let verb = match (method, verb) {
        ("POST", "getIamPolicy") => IapVerb::GetIamPolicy,
        ("POST", "setIamPolicy") => IapVerb::SetIamPolicy,
        ("GET", "iapSettings") => IapVerb::GetIapSettings,
        _ => return None,
    };
    is_web_resource(path).then(|| {
        Request::Iap(IapRequest {
            project,
            path: path.to_owned(),
            verb,
        })
    })
}

/// `iap_web`, `iap_web/cloud_run-R` or `iap_web/cloud_run-R/services/S`.
pub fn is_web_resource(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["iap_web"] => true,
        ["iap_web", place] | ["iap_web", place, "services", _] => place.starts_with("cloud_run-"),
        _ => false,
    }
}

const SEARCH: &str = "searchAllIamPolicies";
const ANCESTRY: &str = "getAncestry";
const KNOWN: [&str; 5] = [
    SEARCH,
    ANCESTRY,
    "getIamPolicy",
    "setIamPolicy",
    "testIamPermissions",
];

/// Service and method of any request to the address of Cloud Run, as Google's protocol definitions
/// name them: `Services.GetIamPolicy`, `AssetService.SearchAllIamPolicies`. Empty where a path
/// belongs to no method.
pub fn rpc(method: &str, path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    if let Some(request) = Request::of(method, &parts) {
        return request.rpc();
    }
    let name = match (method, parts.as_slice()) {
        ("GET", ["v1" | "v2", "projects", _, "locations", _, "services"])
        | ("GET", ["apis", _, _, "namespaces", _, "services"]) => "Services.ListServices",
        ("GET", ["apis", _, _, "namespaces", _, "services", _]) => "Services.GetService",
        (_, ["v1" | "v2", "projects", _, "locations", _, "services", last]) => {
            match (method, last.split_once(':').map_or("", |(_, verb)| verb)) {
                ("GET", "") => "Services.GetService",
                ("GET", "getIamPolicy") => "Services.GetIamPolicy",
                ("POST", "setIamPolicy") => "Services.SetIamPolicy",
                ("POST", "testIamPermissions") => "Services.TestIamPermissions",
                _ => "",
            }
        }
        ("GET", ["v1", "projects", _, "locations"]) => "Locations.ListLocations",
        ("GET", ["v2", "projects", _, "sinks"]) => "ConfigServiceV2.ListSinks",
        ("GET", ["v1", "projects", _, "subscriptions", _]) => "Subscriber.GetSubscription",
        ("POST", ["v1", "projects", _, "subscriptions", _]) => "Subscriber.TestIamPermissions",
        _ => "",
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// HTTP method, path, method of an API.
    const PATHS: [(&str, &str, &str); 25] = [
        ("GET", "/v1/projects/p", "Projects.GetProject"),
        ("GET", "/v3/projects/example.com:p", "Projects.GetProject"),
        ("POST", "/v1/projects/p:getAncestry", "Projects.GetAncestry"),
        ("POST", "/v3/projects/p:getAncestry", ""),
        (
            "POST",
            "/v1/projects/p:getIamPolicy",
            "Projects.GetIamPolicy",
        ),
        (
            "POST",
            "/v3/projects/example.com:p:setIamPolicy",
            "Projects.SetIamPolicy",
        ),
        ("GET", "/v3/projects/p:getIamPolicy", ""),
        ("GET", "/v2/folders/1", "Folders.GetFolder"),
        ("POST", "/v2/folders/1:getIamPolicy", "Folders.GetIamPolicy"),
        ("GET", "/v1/folders/1", ""),
        (
            "GET",
            "/v3/organizations/1",
            "Organizations.GetOrganization",
        ),
        (
            "POST",
            "/v1/organizations/1:setIamPolicy",
            "Organizations.SetIamPolicy",
        ),
        (
            "GET",
            "/v1/folders/1:searchAllIamPolicies",
            "AssetService.SearchAllIamPolicies",
        ),
        ("POST", "/v1/folders/1:searchAllIamPolicies", ""),
        (
            "POST",
            "/v1/projects/1/iap_web/cloud_run-r/services/s:getIamPolicy",
            "IdentityAwareProxyAdminService.GetIamPolicy",
        ),
        (
            "GET",
            "/v1/projects/1/iap_web/cloud_run-r:iapSettings",
            "IdentityAwareProxyAdminService.GetIapSettings",
        ),
        ("POST", "/v1/projects/1/iap_web/compute:getIamPolicy", ""),
        (
            "POST",
            "/v3/iam:troubleshoot",
            "PolicyTroubleshooter.TroubleshootIamPolicy",
        ),
        (
            "GET",
            "/v2/policies/cloudresourcemanager.googleapis.com/projects/p/denypolicies",
            "Policies.ListPolicies",
        ),
        (
            "GET",
            "/v2/policies/cloudresourcemanager.googleapis.com%2Fprojects%2Fp/denypolicies/x",
            "Policies.GetPolicy",
        ),
        (
            "GET",
            "/v2/projects/p/locations/r/services/s:getIamPolicy",
            "Services.GetIamPolicy",
        ),
        (
            "POST",
            "/v1/projects/p/locations/r/services/s:setIamPolicy",
            "Services.SetIamPolicy",
        ),
        (
            "GET",
            "/v2/projects/p/locations/r/services/s",
            "Services.GetService",
        ),
        (
            "GET",
            "/v1/projects/p/locations/-/services",
            "Services.ListServices",
        ),
        ("GET", "/nowhere", ""),
    ];

    #[test]
    fn paths_of_several_apis_are_told_apart() {
        for (method, path, name) in PATHS {
            assert_eq!(rpc(method, path), name, "{method} {path}");
        }
    }
}
