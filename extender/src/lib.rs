//! Quarry's scheduler extender: tells kube-scheduler on which nodes a pod's claims have room.
//!
//! [`watch`] keeps [`index`]; [`server`] reads what kube-scheduler asks ([`api`]) and writes the [`answer`] that
//! [`handlers`] gives by [`decide`].
//! [`tls`] keeps the certificate that kube-scheduler is shown, [`exposure`] says who may reach its port, [`calls`] tells that it
//! calls.
//! [`liveness`] keeps new volumes away from nodes whose manager is silent.
//! Beside that, [`advice`] says in events what is wrong with classes and claims, and one of all extenders cleans up after
//! [`nodes`] that are gone: [`cleanup`]. [`plugin`] is `kubectl quarry`, which explains the same decision to people.

pub mod advice;
pub mod answer;
pub mod answered;
pub mod api;
pub mod args;
pub mod attempts;
pub mod board;
pub mod calls;
pub mod cleanup;
pub mod decide;
pub mod existing;
pub mod exposure;
pub mod handlers;
pub mod index;
pub mod liveness;
pub mod metrics;
pub mod node;
pub mod nodes;
pub mod objects;
pub mod plugin;
pub mod preemption;
pub mod server;
pub mod tls;
pub mod watch;

#[cfg(test)]
mod burst_tests;
#[cfg(test)]
mod claims_tests;
#[cfg(test)]
mod starvation_tests;
#[cfg(test)]
mod testing;
