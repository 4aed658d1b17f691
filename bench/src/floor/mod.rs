//! The floor: a bare echo-and-append program over one raw io_uring.
//!
//! It takes Pyralog's produce frames, appends whatever arrived in one pass as one O_DIRECT write with RWF_DSYNC
//! to a file of already written blocks, and answers each request with a frame of the size of a produce reply
//! once that write is durable. It checks nothing, keeps nothing and knows no partitions. What it takes is what
//! the kernel and the machine take; the rest of a node's latency is Pyralog's own.

mod append;
pub mod beside;
mod connection;
mod file;
mod followers;
mod loopback;
pub mod probe;
mod server;

pub use append::append_latencies;
pub use file::WrittenFile;
pub use loopback::{Exchange, Side, loopback_latencies, round_trips};
pub use server::{FloorServer, FloorTotals, StopHandle};

use std::net::SocketAddr;
use std::path::PathBuf;

/// Settings of the floor server.
#[derive(Clone, Debug)]
pub struct FloorConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Folder of the append file.
    pub dir: PathBuf,
    /// Length of the append file, bytes, rounded up to whole MiB.
    pub file_bytes: u64,
    /// CPU to run on.
    pub cpu: Option<usize>,
    /// Appends on their way to the disk at once.
    pub writes_in_flight: usize,
    /// Size of the body of a reply, bytes.
    pub reply_body_bytes: usize,
    /// Ask the kernel for what is done again and again instead of sleeping until something is: no wake-up is part of a
    /// reply's time, and a CPU of its own is.
    pub spin: bool,
    /// Other floor servers, running. Each append goes to all of them, and is answered when a majority has it.
    pub followers: Vec<SocketAddr>,
}

/// Most connections served at once.
pub const MAX_CONNECTIONS: usize = 64;
/// Size of one connection's receive buffer: also the bound on a request frame, bytes.
pub const RECV_BYTES: usize = 256 << 10;
/// Most bytes of one append.
pub const APPEND_BYTES: usize = 512 << 10;
/// Most bytes of one append that goes to followers, which take it as one frame.
pub const QUORUM_APPEND_BYTES: usize = RECV_BYTES - 4096;

/// Name of the append file in [`FloorConfig::dir`].
pub const FILE_NAME: &str = "floor.journal";
