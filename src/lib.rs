//! run-invoker keeps the IAM invokers of Cloud Run services as `InvokerPolicy` objects declare
//! them.
//!
//! The way of a change, which is also the order of the modules:
//!
//! ```text
//! InvokerPolicy ─ watch ─> Index ─> Queue of services ─> gather ─> plan ─> ledger ─> write ─> read back ─> status, events, metrics
//! ```
//!
//! | module | responsibility |
//! |---|---|
//! | [`iam`] ● | principals, roles, conditions, grants, the policy document: parse, order, compare by meaning |
//! | [`fault`] ● | everything that can go wrong outside, and the one table of what follows |
//! | [`api`] ● | the Kubernetes kinds, their CEL rules, names of conditions and reasons |
//! | [`intent`] ● | raw objects to validated intents; every rejection names its field |
//! | [`plan`] ● | all claims on a service, live policy and ledger to grants, revokes and what is withheld: guardrails, blast radius, fights |
//! | [`history`] ● | a record for each write, its settlement from the live policy, retention, the way back |
//! | [`status`] ● | what was found to conditions and events |
//! | [`audit`] ● | entries of Cloud Audit Logs, and who made the drift that was found |
//! | [`cloudrun`] | the one door to Google: the contract, the official SDK, the limiter |
//! | [`subscription`] | the stream of audit events from Pub/Sub |
//! | [`index`] ● | who targets what, who owns what, and what was last observed |
//! | [`inherited`] ● | who may invoke by a grant above the service, as searches show |
//! | [`ledger`] ● | what the operator answers for on one service, and how that is stored |
//! | [`cluster`] | the Kubernetes side: watches, status, finalizer, ledger, records, events. Decides nothing |
//! | [`controller`] | queue, reconcile, listings, statuses |
//! | [`diagnose`] ● | facts about a request to the cause of its refusal |
//! | [`render`] ●, [`cli`] | the kubectl plugin: what it says, and what it does |
//! | [`leader`], [`metrics`], [`http`], [`config`], [`telemetry`] | the process around it |
//!
//! ● marks pure modules: no client, clock, log or metric. `tests/architecture.rs` holds every
//! module to this map.
#![cfg_attr(test, expect(clippy::unwrap_used, reason = "a test that fails panics"))]

#[cfg(feature = "cli")]
pub mod cli;
pub mod cloudrun;
pub mod cluster;
pub mod config;
pub mod controller;
pub mod http;
pub mod leader;
pub mod metrics;
#[cfg(feature = "cli")]
pub mod render;
pub mod subscription;
pub mod telemetry;

#[cfg(feature = "cli")]
pub use run_invoker_core::diagnose;
pub use run_invoker_core::{
    api, audit, fault, history, iam, index, inherited, intent, ledger, plan, status,
};
