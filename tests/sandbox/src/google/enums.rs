//! Enums as numbers, for clients that ask with `$alt=json;enum-encoding=int`, as Google's client
//! libraries do (<https://docs.cloud.google.com/apis/docs/system-parameters>).

use serde_json::{Value, json};

/// Fields that are enums, and their values from 1 on.
const FIELDS: [(&str, &[&str]); 9] = [
    (
        "overallAccessState",
        &[
            "CAN_ACCESS",
            "CANNOT_ACCESS",
            "UNKNOWN_INFO",
            "UNKNOWN_CONDITIONAL",
        ],
    ),
    (
        "allowAccessState",
        &[
            "ALLOW_ACCESS_STATE_GRANTED",
            "ALLOW_ACCESS_STATE_NOT_GRANTED",
            "ALLOW_ACCESS_STATE_UNKNOWN_CONDITIONAL",
            "ALLOW_ACCESS_STATE_UNKNOWN_INFO",
        ],
    ),
    (
        "denyAccessState",
        &[
            "DENY_ACCESS_STATE_DENIED",
            "DENY_ACCESS_STATE_NOT_DENIED",
            "DENY_ACCESS_STATE_UNKNOWN_CONDITIONAL",
            "DENY_ACCESS_STATE_UNKNOWN_INFO",
        ],
    ),
    ("relevance", RELEVANCE),
    ("rolePermissionRelevance", RELEVANCE),
    (
        "rolePermission",
        &[
            "ROLE_PERMISSION_INCLUDED",
            "ROLE_PERMISSION_NOT_INCLUDED",
            "ROLE_PERMISSION_UNKNOWN_INFO",
        ],
    ),
    (
        "membership",
        &[
            "MEMBERSHIP_MATCHED",
            "MEMBERSHIP_NOT_MATCHED",
            "MEMBERSHIP_UNKNOWN_INFO",
            "MEMBERSHIP_UNKNOWN_UNSUPPORTED",
        ],
    ),
    (
        "permissionMatchingState",
        &[
            "PERMISSION_PATTERN_MATCHED",
            "PERMISSION_PATTERN_NOT_MATCHED",
        ],
    ),
    ("state", &["ACTIVE"]),
];

const RELEVANCE: &[&str] = &["HEURISTIC_RELEVANCE_NORMAL", "HEURISTIC_RELEVANCE_HIGH"];

/// Writes every enum as its number.
pub fn number(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(number),
        Value::Object(fields) => {
            for (name, value) in fields {
                match number_of(name, value) {
                    Some(found) => *value = json!(found),
                    None => number(value),
                }
            }
        }
        _ => {}
    }
}

fn number_of(field: &str, value: &Value) -> Option<usize> {
    let (_, names) = FIELDS.iter().find(|(name, _)| *name == field)?;
    let text = value.as_str()?;
    names
        .iter()
        .position(|name| *name == text)
        .map(|index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enums_become_numbers() {
        let mut value = json!({"overallAccessState": "UNKNOWN_INFO", "state": "ACTIVE",
            "policies": [{"relevance": "HEURISTIC_RELEVANCE_HIGH", "role": "ACTIVE"}]});
        number(&mut value);
        let expected = json!({"overallAccessState": 3, "state": 1,
            "policies": [{"relevance": 2, "role": "ACTIVE"}]});
        assert_eq!(value, expected);
    }
}
