//! The few built-in kinds that real clients send as protobuf, read into the JSON form.
//!
//! The envelope is `k8s\0` and a `runtime.Unknown`; the field numbers are those of Kubernetes'
//! generated.proto files:
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding>.

use base64::Engine as _;
use serde_json::{Map, Value, json};

/// One field: its number, and its value as far as the kinds here use values.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Takes a message apart; `None` if it is not one.
fn fields(mut data: &[u8]) -> Option<Vec<(u64, Wire<'_>)>> {
    let mut found = Vec::new();
    while !data.is_empty() {
        let tag = varint(&mut data)?;
        let value = match tag & 7 {
            0 => Wire::Number(varint(&mut data)?),
            2 => {
                let length = usize::try_from(varint(&mut data)?).ok()?;
                let (bytes, rest) = data.split_at_checked(length)?;
                data = rest;
                Wire::Bytes(bytes)
            }
            _ => return None,
        };
        found.push((tag >> 3, value));
    }
    Some(found)
}

fn varint(data: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = data.split_first()?;
        *data = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn text(bytes: &[u8]) -> Value {
    json!(String::from_utf8_lossy(bytes))
}

/// An entry of a map: key 1, value 2.
fn entry(bytes: &[u8], value: fn(&[u8]) -> Value) -> Option<(String, Value)> {
    let (mut key, mut held) = (String::new(), value(&[]));
    for (number, wire) in fields(bytes)? {
        match (number, wire) {
            (1, Wire::Bytes(b)) => key = String::from_utf8_lossy(b).into_owned(),
            (2, Wire::Bytes(b)) => held = value(b),
            _ => {}
        }
    }
    Some((key, held))
}

fn insert(object: &mut Map<String, Value>, name: &str, pair: (String, Value)) {
    if let Some(map) = object
        .entry(name)
        .or_insert_with(|| json!({}))
        .as_object_mut()
    {
        map.insert(pair.0, pair.1);
    }
}

/// `meta/v1.ObjectMeta`, as far as a client sets it.
fn meta(bytes: &[u8]) -> Option<Value> {
    let mut meta = Map::new();
    for (number, wire) in fields(bytes)? {
        let Wire::Bytes(b) = wire else { continue };
        match number {
            1 => drop(meta.insert("name".into(), text(b))),
            2 if !b.is_empty() => drop(meta.insert("generateName".into(), text(b))),
            3 if !b.is_empty() => drop(meta.insert("namespace".into(), text(b))),
            5 if !b.is_empty() => drop(meta.insert("uid".into(), text(b))),
            6 if !b.is_empty() => drop(meta.insert("resourceVersion".into(), text(b))),
            11 => insert(&mut meta, "labels", entry(b, text)?),
            12 => insert(&mut meta, "annotations", entry(b, text)?),
            _ => {}
        }
    }
    Some(Value::Object(meta))
}

/// A message of strings only, by the names of its fields from number 1 on; empty ones are left out.
fn strings(bytes: &[u8], names: &[&str]) -> Option<Value> {
    let mut object = Map::new();
    for (number, wire) in fields(bytes)? {
        let name = names.get(usize::try_from(number).ok()?.checked_sub(1)?);
        if let (Some(name), Wire::Bytes(b)) = (name, wire)
            && !b.is_empty()
        {
            object.insert((*name).to_owned(), text(b));
        }
    }
    Some(Value::Object(object))
}

/// `rbac/v1.Subject` and `rbac/v1.RoleRef`.
const SUBJECT: [&str; 4] = ["kind", "apiGroup", "name", "namespace"];
const ROLE_REF: [&str; 3] = ["apiGroup", "kind", "name"];
/// `authorization/v1.ResourceAttributes`.
const ATTRIBUTES: [&str; 7] = [
    "namespace",
    "verb",
    "group",
    "version",
    "resource",
    "subresource",
    "name",
];

/// `authorization/v1.SelfSubjectAccessReviewSpec`, about resources.
fn access_spec(bytes: &[u8]) -> Option<Value> {
    let mut spec = Map::new();
    for (number, wire) in fields(bytes)? {
        if let (1, Wire::Bytes(b)) = (number, wire) {
            spec.insert("resourceAttributes".into(), strings(b, &ATTRIBUTES)?);
        }
    }
    Some(Value::Object(spec))
}

fn base64(bytes: &[u8]) -> Value {
    json!(base64::engine::general_purpose::STANDARD.encode(bytes))
}

/// Reads a request body. `Err` names the kind that this server does not know in this encoding.
pub fn read(body: &[u8]) -> Result<Value, String> {
    let broken = || "the body is no Kubernetes protobuf".to_owned();
    let message = body.strip_prefix(b"k8s\0").ok_or_else(broken)?;
    let (mut api_version, mut kind, mut raw) = (Value::Null, String::new(), &[][..]);
    for (number, wire) in fields(message).ok_or_else(broken)? {
        match (number, wire) {
            (1, Wire::Bytes(b)) => {
                for (number, wire) in fields(b).ok_or_else(broken)? {
                    match (number, wire) {
                        (1, Wire::Bytes(b)) => api_version = text(b),
                        (2, Wire::Bytes(b)) => kind = String::from_utf8_lossy(b).into_owned(),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(b)) => raw = b,
            _ => {}
        }
    }
    let mut object = Map::new();
    object.insert("apiVersion".into(), api_version);
    object.insert("kind".into(), json!(kind));
    for (number, wire) in fields(raw).ok_or_else(broken)? {
        match (kind.as_str(), number, wire) {
            ("Secret" | "ConfigMap" | "Namespace" | "RoleBinding", 1, Wire::Bytes(b)) => {
                object.insert("metadata".into(), meta(b).ok_or_else(broken)?);
            }
            ("Secret", 2, Wire::Bytes(b)) => {
                insert(&mut object, "data", entry(b, base64).ok_or_else(broken)?)
            }
            ("Secret", 3, Wire::Bytes(b)) => drop(object.insert("type".into(), text(b))),
            ("Secret", 4, Wire::Bytes(b)) => insert(
                &mut object,
                "stringData",
                entry(b, text).ok_or_else(broken)?,
            ),
            ("ConfigMap", 2, Wire::Bytes(b)) => {
                insert(&mut object, "data", entry(b, text).ok_or_else(broken)?)
            }
            ("Secret", 5, Wire::Number(n)) | ("ConfigMap", 4, Wire::Number(n)) => {
                object.insert("immutable".into(), json!(n != 0));
            }
            ("RoleBinding", 2, Wire::Bytes(b)) => {
                let subject = strings(b, &SUBJECT).ok_or_else(broken)?;
                let subjects = object.entry("subjects").or_insert_with(|| json!([]));
                if let Some(subjects) = subjects.as_array_mut() {
                    subjects.push(subject);
                }
            }
            ("RoleBinding", 3, Wire::Bytes(b)) => {
                let role = strings(b, &ROLE_REF).ok_or_else(broken)?;
                object.insert("roleRef".into(), role);
            }
            ("SelfSubjectAccessReview", 2, Wire::Bytes(b)) => {
                object.insert("spec".into(), access_spec(b).ok_or_else(broken)?);
            }
            ("SelfSubjectAccessReview" | "SelfSubjectReview", _, _) => {}
            ("Namespace", 2 | 3, _) => {}
            // Options of a DELETE: nothing in them matters here.
            ("DeleteOptions", _, _) => {}
            ("Secret" | "ConfigMap", _, _) => {}
            (other, _, _) => {
                return Err(format!(
                    "the sandbox does not read {other} as protobuf; apply a manifest instead (kubectl apply -f)"
                ));
            }
        }
    }
    Ok(Value::Object(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, bytes.len() as u8];
        out.extend_from_slice(bytes);
        out
    }

    #[test]
    fn a_role_binding_reads_as_the_json_of_it() {
        let who = |kind: &[u8], group: &[u8], name: &[u8]| {
            [field(1, kind), field(2, group), field(3, name)].concat()
        };
        let group = who(b"Group", b"rbac.authorization.k8s.io", b"leads");
        let account = [who(b"ServiceAccount", b"", b"grace"), field(4, b"ns")].concat();
        let role = who(b"rbac.authorization.k8s.io", b"ClusterRole", b"approver");
        let meta = [field(1, b"x"), field(3, b"ns")].concat();
        let binding = [
            field(1, &meta),
            field(2, &group),
            field(2, &account),
            field(3, &role),
        ];
        let kind = [
            field(1, b"rbac.authorization.k8s.io/v1"),
            field(2, b"RoleBinding"),
        ];
        let message = [
            field(1, &kind.concat()),
            binding_envelope(&binding.concat()),
        ];
        let body = [b"k8s\0".to_vec(), message.concat()].concat();
        let api = "rbac.authorization.k8s.io";
        assert_eq!(
            read(&body).unwrap(),
            json!({"apiVersion": format!("{api}/v1"), "kind": "RoleBinding",
                "metadata": {"name": "x", "namespace": "ns"},
                "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": "approver"},
                "subjects": [{"kind": "Group", "apiGroup": api, "name": "leads"},
                    {"kind": "ServiceAccount", "name": "grace", "namespace": "ns"}]})
        );
    }

    #[test]
    fn a_question_about_access_reads_as_the_json_of_it() {
        let wanted = [field(1, b"ns"), field(2, b"create"), field(5, b"pods")].concat();
        let review = [field(1, b""), field(2, &field(1, &wanted))].concat();
        let kind = [
            field(1, b"authorization.k8s.io/v1"),
            field(2, b"SelfSubjectAccessReview"),
        ];
        let body = [
            b"k8s\0".to_vec(),
            field(1, &kind.concat()),
            field(2, &review),
        ]
        .concat();
        assert_eq!(
            read(&body).unwrap()["spec"]["resourceAttributes"],
            json!({"namespace": "ns", "verb": "create", "resource": "pods"})
        );
    }

    /// Longer than one byte of length can say.
    fn binding_envelope(bytes: &[u8]) -> Vec<u8> {
        let (low, high) = (bytes.len() as u8 & 0x7f | 0x80, (bytes.len() >> 7) as u8);
        [&[2 << 3 | 2, low, high], bytes].concat()
    }

    #[test]
    fn a_secret_reads_as_the_json_of_it() {
        let label = [field(1, b"owner"), field(2, b"helm")].concat();
        let meta = [field(1, b"x"), field(3, b"ns"), field(11, &label)].concat();
        let data = [field(1, b"k"), field(2, &[0, 255])].concat();
        let secret = [field(1, &meta), field(2, &data), field(3, b"Opaque")].concat();
        let kind = [field(1, b"v1"), field(2, b"Secret")].concat();
        let body = [b"k8s\0".to_vec(), field(1, &kind), field(2, &secret)].concat();
        assert_eq!(
            read(&body).unwrap(),
            json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": {"k": "AP8="},
                "metadata": {"name": "x", "namespace": "ns", "labels": {"owner": "helm"}}})
        );
        assert!(read(&body[..body.len() - 3]).is_err());
        assert!(read(b"{}").is_err());
    }
}
