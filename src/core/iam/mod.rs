//! The vocabulary of Google Cloud IAM as far as Cloud Run invokers need it: principals, roles,
//! conditions, grants, the policy document and the services it belongs to.
//!
//! Pure: std and serde only. Nothing here knows Kubernetes, a client or a clock.

mod condition;
mod grant;
mod policy;
mod principal;
mod region;
mod roles;
mod service;

pub use condition::{Condition, EXPIRY_TITLE, is_whole};
pub use grant::{Grant, Role};
pub use policy::{Binding, Etag, Expr, MAX_MEMBERS, Policy, UNTOUCHED};
pub use principal::{Invocation, Principal, PrincipalError, PrincipalKind};
pub use region::{is_region, nearest_region};
pub use roles::{Carries, IAP_ROLE, InvokingRoles, carries_iap, carries_invoke, describe_with};
pub use service::{Ingress, RunService, ServiceInfo, ServiceSettings};
