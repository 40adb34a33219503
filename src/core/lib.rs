//! What decides: every function here is a function of its arguments. No client, no clock, no log,
//! no metric; `Cargo.toml` has none of them.
//!
//! | module | responsibility |
//! |---|---|
//! | [`iam`] | principals, roles, conditions, grants, the policy document: parse, order, compare by meaning |
//! | [`fault`] | everything that can go wrong outside, and the one table of what follows |
//! | [`api`] | the Kubernetes kinds, their CEL rules, names of conditions and reasons |
//! | [`intent`] | raw objects to validated intents; every rejection names its field |
//! | [`inherited`] | who may invoke by a grant above the service, as searches show |
//! | [`index`] | who targets what, who owns what, and what was last observed |
//! | [`plan`] | all claims on a service, live policy and ledger to grants, revokes and what is withheld |
//! | [`ledger`] | what the operator answers for on one service, and how that is stored |
//! | [`history`] | a record for each write, its settlement from the live policy, retention, the way back |
//! | [`status`] | what was found to conditions and events |
//! | [`audit`] | entries of Cloud Audit Logs, and who made the drift that was found |
//! | [`diagnose`] | facts about a request to the cause of its refusal (for the plugin) |
#![cfg_attr(
    test,
    expect(
        clippy::unwrap_used,
        clippy::panic,
        reason = "a test that fails panics"
    )
)]

pub mod api;
pub mod audit;
#[cfg(feature = "cli")]
pub mod diagnose;
pub mod fault;
pub mod history;
pub mod iam;
pub mod index;
pub mod inherited;
pub mod intent;
pub mod ledger;
pub mod plan;
pub mod status;
