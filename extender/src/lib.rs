//! Quarry's scheduler extender: tells kube-scheduler on which nodes a pod's claims have room.
//!
//! [`watch`] keeps [`index`]; [`server`] reads what kube-scheduler asks ([`api`]); [`handlers`] answers by [`decide`].
//! Beside that, [`advice`] says in events what is wrong with classes and claims.

pub mod advice;
pub mod answered;
pub mod api;
pub mod args;
pub mod decide;
pub mod handlers;
pub mod index;
pub mod metrics;
pub mod node;
pub mod objects;
pub mod server;
pub mod watch;

#[cfg(test)]
mod burst_tests;
#[cfg(test)]
mod testing;
