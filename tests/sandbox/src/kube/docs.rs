//! Discovery and OpenAPI: how a client learns what is served.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::registry::Resource;

const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

fn groups(resources: &[Resource]) -> BTreeMap<&str, BTreeMap<&str, Vec<&Resource>>> {
    let mut groups: BTreeMap<&str, BTreeMap<&str, Vec<&Resource>>> = BTreeMap::new();
    for r in resources {
        groups
            .entry(&r.group)
            .or_default()
            .entry(&r.version)
            .or_default()
            .push(r);
    }
    groups
}

/// `GET /api` and `GET /apis` in the aggregated form, `v2`.
pub fn aggregated(resources: &[Resource], core: bool) -> Value {
    let items: Vec<Value> = groups(resources)
        .into_iter()
        .filter(|(g, _)| g.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|(version, list)| {
                    let resources: Vec<Value> = list
                        .iter()
                        .map(|r| {
                            let mut entry = json!({"resource": r.plural, "responseKind": {"group": r.group, "version": r.version, "kind": r.kind},
                                "scope": if r.namespaced { "Namespaced" } else { "Cluster" }, "singularResource": r.singular, "verbs": VERBS});
                            if !r.short.is_empty() {
                                entry["shortNames"] = json!(r.short);
                            }
                            if !r.categories.is_empty() {
                                entry["categories"] = json!(r.categories);
                            }
                            if r.status_subresource {
                                entry["subresources"] = json!([{"subresource": "status", "verbs": ["get", "patch", "update"],
                                    "responseKind": {"group": r.group, "version": r.version, "kind": r.kind}}]);
                            }
                            entry
                        })
                        .collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            json!({"metadata": {"name": group}, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

/// `GET /apis` in the old form.
pub fn group_list(resources: &[Resource]) -> Value {
    let list: Vec<Value> = groups(resources)
        .into_iter()
        .filter(|(g, _)| !g.is_empty())
        .map(|(g, v)| group(g, v.keys().copied()))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
}

/// `GET /apis/GROUP`.
pub fn group_of(resources: &[Resource], name: &str) -> Option<Value> {
    let groups = groups(resources);
    let mut value = group(name, groups.get(name)?.keys().copied());
    value["kind"] = json!("APIGroup");
    value["apiVersion"] = json!("v1");
    Some(value)
}

fn group<'a>(name: &str, versions: impl Iterator<Item = &'a str>) -> Value {
    let versions: Vec<Value> = versions
        .map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v}))
        .collect();
    json!({"name": name, "preferredVersion": versions.last(), "versions": versions})
}

/// `GET /apis/GROUP/VERSION` and `GET /api/v1`.
pub fn resource_list(resources: &[Resource], group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for r in resources
        .iter()
        .filter(|r| r.group == group && r.version == version)
    {
        let mut entry = json!({"name": r.plural, "singularName": r.singular, "namespaced": r.namespaced, "kind": r.kind, "verbs": VERBS});
        if !r.short.is_empty() {
            entry["shortNames"] = json!(r.short);
        }
        if !r.categories.is_empty() {
            entry["categories"] = json!(r.categories);
        }
        list.push(entry);
        if r.status_subresource {
            list.push(json!({"name": format!("{}/status", r.plural), "singularName": "", "namespaced": r.namespaced,
                "kind": r.kind, "verbs": ["get", "patch", "update"]}));
        }
    }
    let gv = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    (!list.is_empty())
        .then(|| json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": gv, "resources": list}))
}

/// `GET /openapi/v3`.
pub fn openapi_index(resources: &[Resource]) -> Value {
    let mut paths = Map::new();
    for r in resources {
        let path = r.base().trim_start_matches('/').to_owned();
        let url = format!("/openapi/v3/{path}");
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

fn schema_name(r: &Resource) -> String {
    let reversed: Vec<&str> = r.group.split('.').rev().filter(|s| !s.is_empty()).collect();
    let group = if reversed.is_empty() {
        "io.k8s.api.core".to_owned()
    } else {
        reversed.join(".")
    };
    format!("{group}.{}.{}", r.version, r.kind)
}

fn meta_schema() -> Value {
    let text = |d: &str| json!({"type": "string", "description": d});
    json!({"type": "object", "description": "ObjectMeta is metadata that all persisted resources must have.", "properties": {
        "name": text("Name must be unique within a namespace."), "namespace": text("Namespace of the object."),
        "uid": text("UID is the unique in time and space value for this object."), "resourceVersion": text("An opaque version."),
        "generation": {"type": "integer", "format": "int64", "description": "A sequence number of the desired state."},
        "creationTimestamp": {"type": "string", "format": "date-time"}, "deletionTimestamp": {"type": "string", "format": "date-time"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        "finalizers": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
        "ownerReferences": {"type": "array", "items": {"type": "object"}},
        "managedFields": {"type": "array", "items": {"type": "object"}},
        "generateName": text("Prefix for a generated name.")}})
}

/// `GET /openapi/v3/apis/GROUP/VERSION`.
pub fn openapi(resources: &[Resource], path: &str) -> Option<Value> {
    let mut schemas = Map::new();
    let mut paths = Map::new();
    for r in resources
        .iter()
        .filter(|r| r.base().trim_start_matches('/') == path)
    {
        let gvk = json!({"group": r.group, "version": r.version, "kind": r.kind});
        let mut schema = r.schema.as_ref().map_or_else(
            || json!({"type": "object", "description": format!("{} (built-in)", r.kind)}),
            |s| s.source.clone(),
        );
        schema["x-kubernetes-group-version-kind"] = json!([gvk]);
        let properties = schema["properties"]
            .as_object()
            .cloned()
            .unwrap_or_default();
        let mut all = json!({"apiVersion": {"type": "string", "description": "APIVersion defines the versioned schema of this representation of an object."},
            "kind": {"type": "string", "description": "Kind is a string value representing the REST resource this object represents."},
            "metadata": {"allOf": [{"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}], "description": "Standard object's metadata."}});
        if let Some(map) = all.as_object_mut() {
            map.extend(
                properties
                    .into_iter()
                    .filter(|(k, _)| k != "apiVersion" && k != "kind" && k != "metadata"),
            );
        }
        schema["properties"] = all;
        let reference = json!({"$ref": format!("#/components/schemas/{}", schema_name(r))});
        schemas.insert(schema_name(r), schema);
        let content = |s: &Value| json!({"application/json": {"schema": s}});
        let query = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
        let write = json!([
            query("dryRun"),
            query("fieldManager"),
            query("fieldValidation")
        ]);
        let answer = json!({"200": {"description": "OK", "content": content(&reference)}});
        let op = |action: &str, parameters: &Value| {
            json!({"tags": [], "operationId": format!("{action}{}{}", r.version, r.kind), "parameters": parameters,
            "responses": answer, "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk})
        };
        let none = json!([]);
        let base = if r.namespaced {
            format!("{}/namespaces/{{namespace}}/{}", r.base(), r.plural)
        } else {
            format!("{}/{}", r.base(), r.plural)
        };
        paths.insert(
            base.clone(),
            json!({"get": op("list", &none), "post": op("post", &write)}),
        );
        paths.insert(format!("{base}/{{name}}"), json!({"get": op("get", &none), "put": op("put", &write), "patch": op("patch", &write), "delete": op("delete", &none)}));
        if r.status_subresource {
            paths.insert(
                format!("{base}/{{name}}/status"),
                json!({"get": op("get", &none), "put": op("put", &write), "patch": op("patch", &write)}),
            );
        }
    }
    if paths.is_empty() {
        return None;
    }
    schemas.insert(
        "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta".into(),
        meta_schema(),
    );
    Some(
        json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "paths": paths, "components": {"schemas": schemas}}),
    )
}
