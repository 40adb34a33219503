//! The way back that a policy asks for, as far as it is known.

use std::{collections::HashMap, sync::Arc};

use crate::{iam::RunService, plan::Rollback};

/// What became of the annotation that names records to go back behind.
#[derive(Debug, Default)]
pub enum RollbackState {
    #[default]
    None,
    /// The records are still to be read; until then nothing is done for the policy.
    Loading,
    Ready(HashMap<RunService, Arc<Rollback>>),
    /// It cannot be gone, and this is why. Nothing is done for the policy: falling back to its spec
    /// would undo what somebody went back from.
    Impossible(Arc<str>),
}

impl RollbackState {
    pub fn is_loading(&self) -> bool {
        matches!(self, Self::Loading)
    }

    /// Why nothing is done for the policy, if so.
    pub fn obstacle(&self) -> Option<&Arc<str>> {
        match self {
            Self::Impossible(why) => Some(why),
            _ => None,
        }
    }

    /// What stands in for the spec on a service.
    pub fn on(&self, service: &RunService) -> Option<&Arc<Rollback>> {
        match self {
            Self::Ready(ways) => ways.get(service),
            _ => None,
        }
    }

    /// Every service on which something stands in for the spec.
    pub fn all(&self) -> impl Iterator<Item = (&RunService, &Arc<Rollback>)> {
        match self {
            Self::Ready(ways) => Some(ways.iter()),
            _ => None,
        }
        .into_iter()
        .flatten()
    }
}
