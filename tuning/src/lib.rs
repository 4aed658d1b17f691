//! What this machine is like, as far as it decides how long a write takes.
//!
//! Everything is read below a root folder ([`Machine::at`]), so that tests can show it machines that they do not run on.

pub mod cpus;
mod machine;

pub use machine::Machine;
