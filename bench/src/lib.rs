//! Load generator, latency floors and torture for Pyralog. `bench/README.md` says how to use them.
//!
//! - [`floor`]: the bare program that a node is compared with; [`disk`]: what the disk alone gives.
//! - [`load`]: the load generator's loop; [`pace`] decides when a request is due, [`latency`] keeps what it took,
//!   [`protocol`] is what a connection speaks, [`produce`] makes the connections and frames, [`wire`] the bytes.
//! - [`compare`]: Pyralog beside other systems in turns.
//! - [`pairs`]: node and floor in turns, with the ratios.
//! - [`torture`]: attempts to break a node.

pub mod aligned;
pub mod cli;
pub mod cluster;
pub mod compare;
pub mod disk;
pub mod floor;
pub mod host;
pub mod latency;
pub mod load;
pub mod pace;
pub mod pairs;
pub mod process;
pub mod produce;
pub mod protocol;
pub mod rng;
pub mod session;
pub mod torture;
pub mod wire;
