//! A deterministic simulator of Pyralog's engine: the real engine and its real formats on a disk that lies.
//!
//! One life = one seed. There is no thread, no clock and no chance but the seed's generator, so that a life is
//! replayed to the last event. Read it in this order:
//!
//! | file | what it does |
//! | --- | --- |
//! | `life` | one life from birth to the last reading |
//! | `config`, `faults` | what a life is like and which faults it has, drawn from its seed |
//! | `world` | virtual time, the event queue, the driver of each shard's engine |
//! | `disk`, `pages`, `recovery_disk` | the simulated disk, while serving and while recovering |
//! | `damage` | which batches a lie of the disk has hit, and what a lost tail may cost |
//! | `clients`, `request`, `batch` | producers, consumers, rogues; what they send |
//! | `model` | what the log must hold, and the checks |
//! | `sweep` | many lives, and the line of counts |
//! | `cluster` | lives of several nodes, on the same disks |

// The simulator is a test: where its own bookkeeping is wrong it should stop at once.
#![allow(clippy::indexing_slicing)]

mod batch;
mod clients;
pub mod cluster;
pub mod config;
mod damage;
mod disk;
pub mod faults;
pub mod life;
mod model;
mod pages;
mod recovery_disk;
mod request;
pub mod rng;
pub mod sweep;
mod world;

pub use life::{Coverage, LifeReport, run};
pub use pyralog_shard::engine::planted::PlantedBug;
pub use sweep::{Totals, sweep};
pub use world::CutShort;
