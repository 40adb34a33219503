//! Cloud Audit Logs: what an entry says of a Cloud Run service, and who made the drift that was
//! found.
//!
//! Pure. An entry is a hint to read again and a witness of who did what; it is never a statement
//! about what is real: anyone who may publish to the topic can write one.

mod entry;
mod trail;

pub use entry::{Entry, Kind, Malformed, PolicySet, parse};
pub use trail::{Drift, Trail};
