use super::*;
use serde_json::json;

use super::cluster::fields;

#[test]
fn fields_are_found_in_lists_too() {
    let schema = json!({"properties": {"spec": {"properties": {"a": {"items": {"properties": {"b": {}}}}}}}});
    let mut found = BTreeSet::new();
    fields(&schema, "", &mut found);
    assert_eq!(
        found.into_iter().collect::<Vec<_>>(),
        [".spec", ".spec.a", ".spec.a[].b"]
    );
}
