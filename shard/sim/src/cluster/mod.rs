//! Lives of a cluster: three or five nodes, their network, their disks of which a minority lies, and their clients.
//!
//! The same as for a single node: one life = one seed, no thread, no clock, no chance but the seed's generator. In the order
//! in which to read it:
//!
//! | file | what it does |
//! | --- | --- |
//! | `life` | one life from birth to the last reading |
//! | `config`, `faults` | what a life is like and what goes wrong in it, drawn from its seed |
//! | `world` | virtual time, the event queue, the driver of each shard's engine |
//! | `network` | links between shards: frames in order, what is lost when a link breaks |
//! | `nodes`, `trouble` | starts, crashes, stops, recoveries; what goes wrong by the clock |
//! | `upgrades` | nodes of different feature levels, restarted one by one |
//! | `clients`, `session` | producers, consumers, an administrator |
//! | `books`, `audit` | what is checked all the time; reading any replica |
//! | `ending` | the cluster is healed and must agree, serve, and hold everything |
//! | `sweep` | many lives, and the line of counts |

mod audit;
mod books;
mod clients;
pub mod config;
mod ending;
pub mod faults;
mod life;
mod network;
mod nodes;
mod reshard;
mod session;
mod sweep;
mod trouble;
mod upgrades;
mod world;

pub use books::Traffic;
pub use config::Kind;
pub use life::{ClusterReport, Violation, run, run_as};
pub use sweep::{ClusterTotals, sweep};
pub use world::Coverage;
