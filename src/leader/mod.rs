//! Who works on what: projects are spread over shards, each shard is a Lease, and the replicas
//! share the Leases.
//!
//! One shard is plain leader election. With more, every replica holds its fair share of them, and
//! all policies of a project, hence all policies for one service, meet in one replica.
//!
//! What makes a handover safe: a replica that cannot renew stops beginning writes before anybody
//! else may take the Lease ([`Shards::holds`], on the monotonic clock); a write that is under way
//! by then carries the etag it was planned from. A process that was stopped and wakes up finds its
//! time over before it writes ([`crate::cloudrun::fence`]).

mod election;
mod shards;
mod share;

pub use election::{Note, Now, Options, run};
pub use shards::{InFlightGuard, Shards};
