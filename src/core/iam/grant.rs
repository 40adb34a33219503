//! A grant: one principal, one role, perhaps one condition. Everything is planned as sets of these.

use std::{fmt, sync::Arc};

use jiff::Timestamp;

use super::{Condition, Principal};

/// The two roles that this operator manages. Every other role is foreign and passes through
/// untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// `roles/run.invoker`
    Invoker,
    /// `roles/run.servicesInvoker`
    ServicesInvoker,
}

impl Role {
    /// The role's name in IAM.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invoker => "roles/run.invoker",
            Self::ServicesInvoker => "roles/run.servicesInvoker",
        }
    }

    /// The managed role with this name, or `None` for a foreign one.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Invoker, Self::ServicesInvoker]
            .into_iter()
            .find(|r| r.as_str() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One principal with one role under one condition, on the service at hand.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    pub principal: Principal,
    pub role: Role,
    pub condition: Option<Arc<Condition>>,
}

impl Grant {
    /// A grant without a condition.
    pub fn new(principal: Principal, role: Role) -> Self {
        Self {
            principal,
            role,
            condition: None,
        }
    }

    /// When it ends by itself, if it was granted for a time.
    pub fn ends(&self) -> Option<Timestamp> {
        self.condition.as_ref().and_then(|c| c.expiry())
    }
}

/// The member, and the title of the condition where there is one.
impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.condition {
            None => write!(f, "{}", self.principal),
            Some(c) => match c.expiry() {
                Some(until) => write!(f, "{} (until {until})", self.principal),
                None => write!(f, "{} (if {})", self.principal, c.title),
            },
        }
    }
}
