//! Field ownership and server-side apply.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/server-side-apply/> and the FieldsV1
//! format of <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/object-meta/>.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::schema::{ListType, Schema};

/// A set of field paths as a trie. The key is FieldsV1's: `f:name`, `k:{...}`, `v:...`, `.`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields(BTreeMap<String, Fields>);

impl Fields {
    fn leaf() -> Self {
        Self::default()
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub fn to_value(&self) -> Value {
        Value::Object(
            self.0
                .iter()
                .map(|(k, v)| (k.clone(), v.to_value()))
                .collect(),
        )
    }
    pub fn from_value(value: &Value) -> Self {
        Self(
            value
                .as_object()
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.clone(), Self::from_value(v)))
                .collect(),
        )
    }

    /// The leaves of this set, as paths.
    fn leaves(&self) -> Vec<Vec<String>> {
        if self.0.is_empty() {
            return vec![vec![]];
        }
        self.0
            .iter()
            .flat_map(|(k, v)| {
                v.leaves().into_iter().map(move |mut p| {
                    p.insert(0, k.clone());
                    p
                })
            })
            .collect()
    }
    fn has(&self, path: &[String]) -> bool {
        match path {
            [] => true,
            [first, rest @ ..] => self.0.get(first).is_some_and(|c| c.has(rest)),
        }
    }
    /// Whether `path` itself is a leaf here.
    fn owns(&self, path: &[String]) -> bool {
        match path {
            [] => self.0.is_empty(),
            [first, rest @ ..] => self.0.get(first).is_some_and(|c| c.owns(rest)),
        }
    }
    fn insert(&mut self, path: &[String]) {
        if let [first, rest @ ..] = path {
            self.0.entry(first.clone()).or_default().insert(rest);
        }
    }
    fn remove(&mut self, path: &[String]) {
        if let [first, rest @ ..] = path {
            let empty = match self.0.get_mut(first) {
                Some(child) if !rest.is_empty() => {
                    child.remove(rest);
                    child.is_empty()
                }
                Some(_) => true,
                None => false,
            };
            if empty {
                self.0.remove(first);
            }
        }
    }
}

fn item_key(item: &Value, keys: &[String]) -> String {
    let map: Map<String, Value> = keys.iter().map(|k| (k.clone(), item[k].clone())).collect();
    format!("k:{}", Value::Object(map))
}

/// Lists of the metadata that merge by item, whatever the kind.
fn metadata_schema() -> &'static Schema {
    static SCHEMA: std::sync::OnceLock<Schema> = std::sync::OnceLock::new();
    SCHEMA.get_or_init(|| {
        let text = json!({"type": "string"});
        let list = |kind: &str, items: Value| json!({"type": "array", "x-kubernetes-list-type": kind, "items": items});
        let mut owners = list("map", json!({"type": "object", "properties": {"uid": text}}));
        owners["x-kubernetes-list-map-keys"] = json!(["uid"]);
        let source = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"finalizers": list("set", text), "ownerReferences": owners}});
        Schema::compile(&source).unwrap_or_default()
    })
}

/// The schema of a field of the object itself.
fn child_schema<'a>(schema: Option<&'a Schema>, key: &str, root: bool) -> Option<&'a Schema> {
    if root && key == "metadata" {
        return Some(metadata_schema());
    }
    schema.and_then(|s| s.properties.get(key)).map(|c| &**c)
}

/// The fields that an object sets.
pub fn fields_of_object(object: &Value, schema: Option<&Schema>) -> Fields {
    let Some(map) = object.as_object() else {
        return Fields::leaf();
    };
    Fields(
        map.iter()
            .map(|(k, v)| {
                (
                    format!("f:{k}"),
                    fields_of(v, child_schema(schema, k, true)),
                )
            })
            .collect(),
    )
}

/// The fields that a value sets.
pub fn fields_of(value: &Value, schema: Option<&Schema>) -> Fields {
    match value {
        Value::Object(map) if !map.is_empty() && !schema.is_some_and(|s| s.atomic_map) => Fields(
            map.iter()
                .map(|(k, v)| {
                    (
                        format!("f:{k}"),
                        fields_of(v, schema.and_then(|s| s.properties.get(k)).map(|a| &**a)),
                    )
                })
                .collect(),
        ),
        Value::Array(list) if !list.is_empty() => match schema.and_then(|s| s.list_type.as_ref()) {
            Some(ListType::Set) => Fields(
                list.iter()
                    .map(|v| (format!("v:{v}"), Fields::leaf()))
                    .collect(),
            ),
            Some(ListType::Map(keys)) => Fields(
                list.iter()
                    .map(|v| {
                        let mut child = fields_of(v, schema.and_then(|s| s.items.as_deref()));
                        child.0.insert(".".into(), Fields::leaf());
                        (item_key(v, keys), child)
                    })
                    .collect(),
            ),
            _ => Fields::leaf(),
        },
        _ => Fields::leaf(),
    }
}

/// What ownership never covers: identity, and what the server sets.
pub fn ownable(object: &Value) -> Value {
    let mut copy = object.clone();
    if let Some(map) = copy.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
        if let Some(meta) = map.get_mut("metadata").and_then(Value::as_object_mut) {
            for key in [
                "name",
                "namespace",
                "uid",
                "resourceVersion",
                "generation",
                "creationTimestamp",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "managedFields",
                "selfLink",
                "generateName",
            ] {
                meta.remove(key);
            }
            if meta.is_empty() {
                map.remove("metadata");
            }
        }
    }
    copy
}

fn find<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    let [first, rest @ ..] = path else {
        return Some(value);
    };
    if first == "." {
        return Some(value);
    }
    let (kind, key) = first.split_once(':')?;
    match kind {
        "f" => find(value.get(key)?, rest),
        "v" => {
            let wanted: Value = serde_json::from_str(key).ok()?;
            value.as_array()?.iter().find(|v| **v == wanted)
        }
        "k" => {
            let keys: Value = serde_json::from_str(key).ok()?;
            let item = value.as_array()?.iter().find(|v| {
                keys.as_object()
                    .is_some_and(|k| k.iter().all(|(k, x)| &v[k] == x))
            })?;
            find(item, rest)
        }
        _ => None,
    }
}

fn delete(value: &mut Value, path: &[String]) {
    let [first, rest @ ..] = path else { return };
    let Some((kind, key)) = first.split_once(':') else {
        return;
    };
    match kind {
        "f" if rest.is_empty() => {
            if let Some(map) = value.as_object_mut() {
                map.remove(key);
            }
        }
        "f" => {
            if let Some(child) = value.get_mut(key) {
                delete(child, rest);
                if (child.as_object().is_some_and(Map::is_empty)
                    || child.as_array().is_some_and(Vec::is_empty))
                    && let Some(map) = value.as_object_mut()
                {
                    map.remove(key);
                }
            }
        }
        "v" => {
            let Ok(gone) = serde_json::from_str::<Value>(key) else {
                return;
            };
            if let Some(list) = value.as_array_mut() {
                list.retain(|v| *v != gone);
            }
        }
        "k" => {
            let Ok(keys) = serde_json::from_str::<Value>(key) else {
                return;
            };
            let hit = |v: &Value| {
                keys.as_object()
                    .is_some_and(|k| k.iter().all(|(k, x)| &v[k] == x))
            };
            if let Some(list) = value.as_array_mut() {
                if rest.is_empty() || rest == ["."] {
                    list.retain(|v| !hit(v));
                } else if let Some(item) = list.iter_mut().find(|v| hit(v)) {
                    delete(item, rest);
                }
            }
        }
        _ => {}
    }
}

/// Puts `applied` over `live`, lists by their type.
fn merge(live: &mut Value, applied: &Value, schema: Option<&Schema>) {
    match (live, applied) {
        (Value::Object(l), Value::Object(a)) if !schema.is_some_and(|s| s.atomic_map) => {
            for (k, v) in a {
                let child = schema.and_then(|s| s.properties.get(k)).map(|c| &**c);
                merge(l.entry(k.clone()).or_insert(Value::Null), v, child);
            }
        }
        (Value::Array(l), Value::Array(a)) => match schema.and_then(|s| s.list_type.as_ref()) {
            Some(ListType::Set) => {
                for v in a {
                    if !l.contains(v) {
                        l.push(v.clone());
                    }
                }
            }
            Some(ListType::Map(keys)) => {
                for v in a {
                    match l.iter_mut().find(|x| keys.iter().all(|k| x[k] == v[k])) {
                        Some(existing) => {
                            merge(existing, v, schema.and_then(|s| s.items.as_deref()))
                        }
                        None => l.push(v.clone()),
                    }
                }
            }
            _ => *l = a.clone(),
        },
        (l, a) => *l = a.clone(),
    }
}

/// One writer of an object.
#[derive(Clone, Debug)]
pub struct Manager {
    pub name: String,
    pub apply: bool,
    pub subresource: String,
    pub api_version: String,
}

fn entries(object: &Value) -> Vec<Value> {
    object["metadata"]["managedFields"]
        .as_array()
        .cloned()
        .unwrap_or_default()
}

fn is_of(entry: &Value, manager: &Manager) -> bool {
    entry["manager"] == manager.name.as_str()
        && entry["operation"] == if manager.apply { "Apply" } else { "Update" }
        && entry["subresource"].as_str().unwrap_or_default() == manager.subresource
}

fn store(object: &mut Value, mut list: Vec<Value>) {
    list.retain(|e| e["fieldsV1"].as_object().is_some_and(|f| !f.is_empty()));
    if let Some(meta) = object["metadata"].as_object_mut() {
        if list.is_empty() {
            meta.remove("managedFields");
        } else {
            meta.insert("managedFields".into(), Value::Array(list));
        }
    }
}

fn entry(manager: &Manager, fields: &Fields, now: &str) -> Value {
    let mut e = json!({"manager": manager.name, "operation": if manager.apply { "Apply" } else { "Update" },
        "apiVersion": manager.api_version, "time": now, "fieldsType": "FieldsV1", "fieldsV1": fields.to_value()});
    if !manager.subresource.is_empty() {
        e["subresource"] = json!(manager.subresource);
    }
    e
}

/// Enters who changed what by an update or a patch.
pub fn track_update(
    old: Option<&Value>,
    new: &mut Value,
    manager: &Manager,
    schema: Option<&Schema>,
    now: &str,
) {
    let mut before = old.map(ownable).unwrap_or_else(|| json!({}));
    let mut after = ownable(new);
    // A write to the object owns nothing of its status, not what a schema's defaults put there
    // either (reset fields of the main resource).
    if manager.subresource.is_empty() {
        for side in [&mut before, &mut after] {
            if let Some(side) = side.as_object_mut() {
                side.remove("status");
            }
        }
    }
    let (was, is) = (
        fields_of_object(&before, schema),
        fields_of_object(&after, schema),
    );
    let is_leaves = if after == json!({}) {
        vec![]
    } else {
        is.leaves()
    };
    let changed: Vec<Vec<String>> = is_leaves
        .into_iter()
        .filter(|p| !was.owns(p) || find(&before, p) != find(&after, p))
        .collect();
    let removed: Vec<Vec<String>> = if before == json!({}) {
        vec![]
    } else {
        was.leaves().into_iter().filter(|p| !is.has(p)).collect()
    };
    let mut list = old.map(entries).unwrap_or_default();
    // A writer may clear the bookkeeping on purpose by sending an empty list.
    if new["metadata"]
        .get("managedFields")
        .is_some_and(|m| m == &json!([]) || m == &json!([{}]))
    {
        list.clear();
    }
    let mut own = Fields::default();
    list.retain_mut(|e| {
        let mut fields = Fields::from_value(&e["fieldsV1"]);
        let mine = is_of(e, manager);
        for path in removed
            .iter()
            .chain(if mine { [].iter() } else { changed.iter() })
        {
            fields.remove(path);
        }
        if mine {
            own = fields;
            return false;
        }
        e["fieldsV1"] = fields.to_value();
        true
    });
    let unchanged = changed.is_empty();
    for path in &changed {
        own.insert(path);
    }
    let time = if unchanged {
        old.and_then(|o| entries(o).into_iter().find(|e| is_of(e, manager)))
            .and_then(|e| e["time"].as_str().map(str::to_owned))
            .unwrap_or_else(|| now.to_owned())
    } else {
        now.to_owned()
    };
    if !own.is_empty() {
        list.push(entry(manager, &own, &time));
    }
    store(new, list);
}

/// A field that somebody else owns with another value.
#[derive(Clone, Debug)]
pub struct Conflict {
    pub manager: String,
    pub api_version: String,
    pub field: String,
}

/// Whether a list that is a set has an object in it: schemas may say so, server-side apply cannot
/// work with it.
pub fn set_of_objects(value: &Value, schema: Option<&Schema>, path: &str) -> Option<String> {
    let schema = schema?;
    match value {
        Value::Object(map) => map.iter().find_map(|(k, v)| {
            set_of_objects(
                v,
                schema.properties.get(k).map(|a| &**a),
                &format!("{path}.{k}"),
            )
        }),
        Value::Array(list) => {
            if schema.list_type == Some(ListType::Set)
                && let Some(i) = list.iter().position(Value::is_object)
            {
                return Some(format!(
                    "{path}: element {i}: associative list without keys has an element that's a map type"
                ));
            }
            list.iter()
                .find_map(|v| set_of_objects(v, schema.items.as_deref(), path))
        }
        _ => None,
    }
}

/// Server-side apply of `applied` onto `live`.
///
/// # Errors
/// The conflicts, if there are any and `force` is false.
pub fn apply(
    live: &Value,
    applied: &Value,
    manager: &Manager,
    schema: Option<&Schema>,
    force: bool,
    now: &str,
) -> Result<Value, Vec<Conflict>> {
    let wanted = ownable(applied);
    let fields = fields_of_object(&wanted, schema);
    let mut list = entries(live);
    let previous = list
        .iter()
        .find(|e| is_of(e, manager))
        .map(|e| Fields::from_value(&e["fieldsV1"]))
        .unwrap_or_default();
    let own_leaves = if wanted == json!({}) {
        vec![]
    } else {
        fields.leaves()
    };

    let mut conflicts = Vec::new();
    for e in list.iter_mut().filter(|e| !is_of(e, manager)) {
        let mut theirs = Fields::from_value(&e["fieldsV1"]);
        let disputed: Vec<_> = own_leaves
            .iter()
            .filter(|p| {
                p.last().is_none_or(|l| l != ".")
                    && theirs.has(p)
                    && find(live, p) != find(&wanted, p)
            })
            .collect();
        for path in disputed {
            if !force {
                conflicts.push(Conflict {
                    manager: e["manager"].as_str().unwrap_or_default().to_owned(),
                    api_version: e["apiVersion"].as_str().unwrap_or_default().to_owned(),
                    field: dotted(path),
                });
            }
            theirs.remove(path);
        }
        e["fieldsV1"] = theirs.to_value();
    }
    if !conflicts.is_empty() {
        return Err(conflicts);
    }
    let mut next = live.clone();
    for path in previous
        .leaves()
        .into_iter()
        .filter(|p| !p.is_empty() && !fields.has(p))
    {
        let elsewhere = list
            .iter()
            .any(|e| !is_of(e, manager) && Fields::from_value(&e["fieldsV1"]).has(&path));
        if !elsewhere {
            delete(&mut next, &path);
        }
    }
    for (key, value) in wanted.as_object().into_iter().flatten() {
        let slot = next
            .as_object_mut()
            .map(|m| m.entry(key.clone()).or_insert(Value::Null));
        if let Some(slot) = slot {
            merge(slot, value, child_schema(schema, key, true));
        }
    }
    let same = ownable(&next) == ownable(live) && previous == fields;
    if !same {
        list.retain(|e| !is_of(e, manager));
        if !fields.is_empty() {
            list.push(entry(manager, &fields, now));
        }
        store(&mut next, list);
    }
    Ok(next)
}

fn dotted(path: &[String]) -> String {
    path.iter()
        .map(|p| match p.split_once(':') {
            Some(("f", name)) => format!(".{name}"),
            Some((_, key)) => format!("[{key}]"),
            None => String::new(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(name: &str, apply: bool) -> Manager {
        Manager {
            name: name.into(),
            apply,
            subresource: String::new(),
            api_version: "v1".into(),
        }
    }
    fn base() -> Value {
        json!({"metadata": {"name": "x"}})
    }

    #[test]
    fn a_field_that_is_no_longer_applied_goes_if_nobody_else_owns_it() {
        let a = manager("a", true);
        let one = apply(
            &base(),
            &json!({"spec": {"p": 1, "q": 2}}),
            &a,
            None,
            false,
            "t",
        )
        .unwrap();
        let two = apply(&one, &json!({"spec": {"p": 1}}), &a, None, false, "t").unwrap();
        assert_eq!(two["spec"], json!({"p": 1}));
        let b = apply(
            &one,
            &json!({"spec": {"q": 2}}),
            &manager("b", true),
            None,
            false,
            "t",
        )
        .unwrap();
        let kept = apply(&b, &json!({"spec": {"p": 1}}), &a, None, false, "t").unwrap();
        assert_eq!(kept["spec"], json!({"p": 1, "q": 2}));
    }

    #[test]
    fn another_value_for_somebody_elses_field_conflicts_unless_forced() {
        let one = apply(
            &base(),
            &json!({"spec": {"p": 1}}),
            &manager("a", true),
            None,
            false,
            "t",
        )
        .unwrap();
        let refused = apply(
            &one,
            &json!({"spec": {"p": 2}}),
            &manager("b", true),
            None,
            false,
            "t",
        )
        .unwrap_err();
        assert_eq!(
            (refused[0].manager.as_str(), refused[0].field.as_str()),
            ("a", ".spec.p")
        );
        let forced = apply(
            &one,
            &json!({"spec": {"p": 2}}),
            &manager("b", true),
            None,
            true,
            "t",
        )
        .unwrap();
        assert_eq!(forced["spec"]["p"], 2);
        assert_eq!(entries(&forced).len(), 1);
    }

    #[test]
    fn applying_the_same_again_changes_nothing() {
        let a = manager("a", true);
        let one = apply(&base(), &json!({"spec": {"p": 1}}), &a, None, false, "t1").unwrap();
        assert_eq!(
            apply(&one, &json!({"spec": {"p": 1}}), &a, None, false, "t2").unwrap(),
            one
        );
    }

    #[test]
    fn an_update_takes_over_the_fields_that_it_changes() {
        let one = apply(
            &base(),
            &json!({"spec": {"p": 1, "q": 1}}),
            &manager("a", true),
            None,
            false,
            "t",
        )
        .unwrap();
        let mut two = one.clone();
        two["spec"]["p"] = json!(5);
        track_update(
            Some(&one),
            &mut two,
            &manager("kubectl-edit", false),
            None,
            "t",
        );
        let owners: Vec<_> = entries(&two)
            .iter()
            .map(|e| (e["manager"].clone(), e["fieldsV1"].clone()))
            .collect();
        assert_eq!(
            owners,
            [
                (json!("a"), json!({"f:spec": {"f:q": {}}})),
                (json!("kubectl-edit"), json!({"f:spec": {"f:p": {}}})),
            ]
        );
    }

    #[test]
    fn items_of_a_map_list_merge_by_key() {
        let schema = Schema::compile(&json!({"type": "object", "properties": {"c": {"type": "array", "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"], "items": {"type": "object", "properties": {"type": {"type": "string"}, "v": {"type": "integer"}}}}}})).unwrap();
        let one = apply(
            &base(),
            &json!({"c": [{"type": "a", "v": 1}]}),
            &manager("a", true),
            Some(&schema),
            false,
            "t",
        )
        .unwrap();
        let two = apply(
            &one,
            &json!({"c": [{"type": "b", "v": 2}]}),
            &manager("b", true),
            Some(&schema),
            false,
            "t",
        )
        .unwrap();
        assert_eq!(
            two["c"],
            json!([{"type": "a", "v": 1}, {"type": "b", "v": 2}])
        );
    }
}
