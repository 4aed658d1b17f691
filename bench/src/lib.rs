//! Load generator, latency floors and torture for Pyralog. `bench/README.md` says how to use them.
//!
//! - [`floor`]: the bare program that a node is compared with; [`disk`]: what the disk alone gives.
//! - [`load`]: the load generator's loop; [`pace`] decides when a request is due, [`latency`] keeps what it took,
//!   [`protocol`] is what a connection speaks, [`produce`] makes the connections and frames, [`wire`] the bytes.
//! - [`compare`]: Pyralog beside other systems in turns.
//! - [`pairs`]: node and floor in turns, with the ratios.
//! - [`stamped`]: producers whose records tell when they should have been sent; [`consume`], [`mixed`] and [`sweep`]
//!   measure with them on a [`target`].
//! - [`report`]: a run as files; [`plot`] and [`hgrm`] are two of them. [`live`]: the line while it runs. [`stages`]:
//!   where the node says that a write's time went.
//! - [`commands`]: what the subcommands do with their arguments ([`cli`], [`options`]).
//! - [`torture`]: attempts to break a node.

pub mod aligned;
pub mod cli;
pub mod cluster;
pub mod commands;
pub mod compare;
pub mod consume;
pub mod device;
pub mod disk;
pub mod floor;
pub mod hgrm;
pub mod host;
pub mod latency;
pub mod live;
pub mod load;
pub mod mixed;
pub mod options;
pub mod pace;
pub mod pairs;
pub mod plot;
pub mod process;
pub mod produce;
pub mod protocol;
pub mod report;
pub mod rng;
pub mod session;
pub mod stages;
pub mod stamped;
pub mod sweep;
pub mod target;
pub mod torture;
pub mod wire;
