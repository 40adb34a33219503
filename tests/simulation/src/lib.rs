//! The whole operator simulated: the real controller, kube client and watchers on virtual time in
//! one process, against the sandbox called in process, with people, weather and crashes from one
//! seed, and a judge that knows only what users were promised.
//!
//! | room | what is in it |
//! |---|---|
//! | [`story`] | what happens in a world, as data that can be told, kept and shortened |
//! | [`generate`], [`weather`] | a story from a seed |
//! | [`world`] | a story played, and the verdict |
//! | [`net`], [`cloud`], [`replica`] | what lies between the operator and the world; Google's SDK over it; one replica |
//! | [`shrink`] | the shortest story that still breaks a promise |
//! | [`crowd`] | large worlds in which one namespace is in everybody's way |
//! | [`post`] | the audit log's subscription: late, twice, never |
//! | [`sweep`] | the scenarios with a crash, a lost answer and a late watch at every place |
//! | [`corpus`] | stories that once broke a promise |
//! | [`wrong`] | wrongs planted to see whether the judge sees them |
//! | [`dice`] | randomness by name |
#![allow(clippy::print_stdout, clippy::panic)]

pub mod cloud;
pub mod corpus;
pub mod crowd;
pub mod dice;
pub mod generate;
pub mod net;
pub mod post;
pub mod replica;
pub mod shrink;
pub mod story;
pub mod sweep;
pub mod weather;
pub mod world;
pub mod wrong;
