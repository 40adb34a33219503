//! A condition as policies, ledgers and records write it, and as IAM has it.

use crate::{api::ConditionSpec, iam::Condition};

impl From<&ConditionSpec> for Condition {
    fn from(spec: &ConditionSpec) -> Self {
        Self::new(
            spec.title.clone(),
            spec.description.clone(),
            spec.expression.clone(),
        )
    }
}

impl From<&Condition> for ConditionSpec {
    fn from(condition: &Condition) -> Self {
        Self {
            title: condition.title.clone(),
            description: condition.description.clone(),
            expression: condition.expression.clone(),
        }
    }
}
