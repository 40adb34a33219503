//! The kinds that are served: a few built-in ones, and those that CustomResourceDefinitions define.

use std::sync::Arc;

use serde_json::Value;

use super::{
    schema::Schema,
    status::{Cause, Refusal},
};

/// A column of `kubectl get`.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub type_: String,
    pub path: String,
    pub description: String,
    pub priority: i64,
}

/// One kind in one version.
#[derive(Clone, Debug)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: String,
    pub plural: String,
    pub singular: String,
    pub short: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub status_subresource: bool,
    pub columns: Vec<Column>,
    /// Fields besides name and namespace that field selectors may use; `None`: any (built-in
    /// kinds).
    pub selectable: Option<Vec<String>>,
    /// The structural schema; built-in kinds have none here.
    pub schema: Option<Arc<Schema>>,
    pub custom: bool,
}

impl Resource {
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `/api/v1` or `/apis/GROUP/VERSION`.
    pub fn base(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }
}

fn builtin(
    group: &str,
    version: &str,
    kind: &str,
    plural: &str,
    short: &[&str],
    namespaced: bool,
    columns: &[(&str, &str, &str)],
) -> Resource {
    Resource {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        list_kind: format!("{kind}List"),
        plural: plural.into(),
        singular: kind.to_lowercase(),
        short: short.iter().map(|s| (*s).to_owned()).collect(),
        categories: vec![],
        namespaced,
        status_subresource: kind == "Namespace",
        columns: columns
            .iter()
            .map(|(name, type_, path)| Column {
                name: (*name).into(),
                type_: (*type_).into(),
                path: (*path).into(),
                description: String::new(),
                priority: 0,
            })
            .collect(),
        selectable: None,
        schema: None,
        custom: false,
    }
}

/// Kinds that charts install: kept and served, with nobody behind most of them. Of admission policies
/// those that mutate act, those that validate do not.
fn workloads() -> Vec<Resource> {
    let age = ("Age", "date", ".metadata.creationTimestamp");
    let rbac = "rbac.authorization.k8s.io";
    let admission = "admissionregistration.k8s.io";
    let ready: &[(&str, &str, &str)] = &[("Replicas", "integer", ".spec.replicas"), age];
    [
        (
            "",
            "Secret",
            "secrets",
            &[][..],
            true,
            &[("Type", "string", ".type"), age][..],
        ),
        (
            "",
            "Service",
            "services",
            &["svc"][..],
            true,
            &[("Cluster-IP", "string", ".spec.clusterIP"), age],
        ),
        ("", "Pod", "pods", &["po"][..], true, &[age]),
        (
            "apps",
            "Deployment",
            "deployments",
            &["deploy"][..],
            true,
            ready,
        ),
        (
            "apps",
            "ReplicaSet",
            "replicasets",
            &["rs"][..],
            true,
            ready,
        ),
        (rbac, "ClusterRole", "clusterroles", &[], false, &[age]),
        (
            rbac,
            "ClusterRoleBinding",
            "clusterrolebindings",
            &[],
            false,
            &[age],
        ),
        (rbac, "Role", "roles", &[], true, &[age]),
        (rbac, "RoleBinding", "rolebindings", &[], true, &[age]),
        (
            "policy",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            &["pdb"][..],
            true,
            &[age],
        ),
        (
            "networking.k8s.io",
            "NetworkPolicy",
            "networkpolicies",
            &["netpol"][..],
            true,
            &[age],
        ),
        (
            admission,
            "ValidatingAdmissionPolicy",
            "validatingadmissionpolicies",
            &[],
            false,
            &[age],
        ),
        (
            admission,
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
            &[],
            false,
            &[age],
        ),
        (
            admission,
            "MutatingAdmissionPolicy",
            "mutatingadmissionpolicies",
            &[],
            false,
            &[age],
        ),
        (
            admission,
            "MutatingAdmissionPolicyBinding",
            "mutatingadmissionpolicybindings",
            &[],
            false,
            &[age],
        ),
    ]
    .into_iter()
    .map(|(group, kind, plural, short, namespaced, columns)| {
        builtin(group, "v1", kind, plural, short, namespaced, columns)
    })
    .collect()
}

/// The built-in kinds that an operator and the people around it touch.
pub fn builtins() -> Vec<Resource> {
    let mut all = core();
    all.extend(workloads());
    all
}

fn core() -> Vec<Resource> {
    let age = ("Age", "date", ".metadata.creationTimestamp");
    vec![
        builtin(
            "",
            "v1",
            "Namespace",
            "namespaces",
            &["ns"],
            false,
            &[("Status", "string", ".status.phase"), age],
        ),
        builtin("", "v1", "ConfigMap", "configmaps", &["cm"], true, &[age]),
        builtin(
            "",
            "v1",
            "ServiceAccount",
            "serviceaccounts",
            &["sa"],
            true,
            &[age],
        ),
        builtin(
            "",
            "v1",
            "Event",
            "events",
            &["ev"],
            true,
            &[
                ("Last Seen", "date", ".lastTimestamp"),
                ("Type", "string", ".type"),
                ("Reason", "string", ".reason"),
                ("Object", "string", ".involvedObject.name"),
                ("Message", "string", ".message"),
            ],
        ),
        builtin(
            "events.k8s.io",
            "v1",
            "Event",
            "events",
            &["ev"],
            true,
            &[
                ("Last Seen", "date", ".deprecatedLastTimestamp"),
                ("Type", "string", ".type"),
                ("Reason", "string", ".reason"),
                ("Object", "string", ".regarding.name"),
                ("Message", "string", ".note"),
            ],
        ),
        builtin(
            "coordination.k8s.io",
            "v1",
            "Lease",
            "leases",
            &[],
            true,
            &[("Holder", "string", ".spec.holderIdentity"), age],
        ),
        builtin(
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
            &["crd", "crds"],
            false,
            &[("Created At", "string", ".metadata.creationTimestamp")],
        ),
    ]
}

/// The resources of a CustomResourceDefinition, one for each served version.
///
/// # Errors
/// 422 with causes for a definition that a real API server would not accept, as far as this one
/// checks.
pub fn from_definition(definition: &Value) -> Result<Vec<Resource>, Refusal> {
    let spec = &definition["spec"];
    let name = definition["metadata"]["name"].as_str().unwrap_or_default();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let texts = |v: &Value| {
        v.as_array()
            .into_iter()
            .flatten()
            .map(text)
            .collect::<Vec<_>>()
    };
    let (group, names) = (text(&spec["group"]), &spec["names"]);
    let (plural, kind) = (text(&names["plural"]), text(&names["kind"]));
    let mut causes = Vec::new();
    let mut wrong = |field: &str, message: String| {
        causes.push(Cause {
            reason: "FieldValueInvalid",
            field: field.into(),
            message,
        })
    };
    if name != format!("{plural}.{group}") {
        wrong(
            "metadata.name",
            format!("Invalid value: \"{name}\": must be spec.names.plural+\".\"+spec.group"),
        );
    }
    if !matches!(spec["scope"].as_str(), Some("Namespaced" | "Cluster")) {
        wrong("spec.scope", "Required value".into());
    }
    let versions = spec["versions"].as_array().cloned().unwrap_or_default();
    if versions.iter().filter(|v| v["storage"] == true).count() != 1 {
        wrong(
            "spec.versions",
            "Invalid value: must have exactly one version marked as storage version".into(),
        );
    }
    let mut resources = Vec::new();
    for (i, v) in versions
        .iter()
        .enumerate()
        .filter(|(_, v)| v["served"] == true)
    {
        let path = format!("spec.versions[{i}].schema.openAPIV3Schema");
        let schema = match Schema::compile(&v["schema"]["openAPIV3Schema"]) {
            Ok(schema) => schema,
            Err(errors) => {
                for (at, message) in errors {
                    wrong(&format!("{path}{at}"), message);
                }
                continue;
            }
        };
        let columns = v["additionalPrinterColumns"].as_array();
        let columns: Vec<Column> = match columns {
            Some(list) => list
                .iter()
                .map(|c| Column {
                    name: text(&c["name"]),
                    type_: text(&c["type"]),
                    path: text(&c["jsonPath"]),
                    description: text(&c["description"]),
                    priority: c["priority"].as_i64().unwrap_or(0),
                })
                .collect(),
            None => vec![Column {
                name: "Age".into(),
                type_: "date".into(),
                path: ".metadata.creationTimestamp".into(),
                description: String::new(),
                priority: 0,
            }],
        };
        resources.push(Resource {
            group: group.clone(),
            version: text(&v["name"]),
            kind: kind.clone(),
            list_kind: names["listKind"]
                .as_str()
                .map_or_else(|| format!("{kind}List"), str::to_owned),
            plural: plural.clone(),
            singular: names["singular"]
                .as_str()
                .map_or_else(|| kind.to_lowercase(), str::to_owned),
            short: texts(&names["shortNames"]),
            categories: texts(&names["categories"]),
            namespaced: spec["scope"] == "Namespaced",
            status_subresource: v["subresources"].get("status").is_some(),
            columns,
            selectable: Some(
                v["selectableFields"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|f| text(&f["jsonPath"]).trim_start_matches('.').to_owned())
                    .collect(),
            ),
            schema: Some(Arc::new(schema)),
            custom: true,
        });
    }
    if causes.is_empty() {
        Ok(resources)
    } else {
        Err(Refusal::invalid(
            "apiextensions.k8s.io",
            "CustomResourceDefinition",
            name,
            &causes,
        ))
    }
}
