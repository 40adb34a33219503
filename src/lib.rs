//! run-invoker: keeps the invokers of Cloud Run services as `InvokerPolicy` objects declare them.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod api;
pub mod cloudrun;
pub mod fault;
pub mod iam;
pub mod intent;
pub mod plan;
pub mod status;
