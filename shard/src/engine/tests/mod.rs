//! The engine by itself, on a disk in memory: each operation completes at once and whatever was synced or
//! written through is durable. Faults and schedules are the simulator's business.

mod cluster;
mod cold;
mod deadlines;
mod disk;
mod durability;
mod harness;
mod journal_files;
mod life;
mod memory;
mod pace;
mod rehome;
mod reload;
mod topics;
