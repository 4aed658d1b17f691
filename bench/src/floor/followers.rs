//! The floor of a write quorum: each append goes to other floor servers, too, as one frame, and counts when a majority has it.
//!
//! The others are plain floor servers, which take the frame for a request: what they answer says that it is durable there.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context;

use super::FloorConfig;
use super::server::set_nodelay;

const PATIENCE: Duration = Duration::from_secs(10);

impl FloorConfig {
    /// Copies, its own included, that make an append durable.
    pub(super) fn majority(&self) -> usize {
        self.followers.len().div_ceil(2) + 1
    }

    /// Appends that are kept until a majority has them: those on their way to the disk, the one that is being formed, and,
    /// with followers, some that only wait for these.
    pub(super) fn append_slots(&self) -> usize {
        let waiting = if self.followers.is_empty() { 0 } else { 8 };
        self.writes_in_flight + 1 + waiting
    }

    /// Connections to all followers.
    pub(super) fn connect(&self) -> anyhow::Result<Vec<OwnedFd>> {
        let connect = |addr| {
            let socket = TcpStream::connect_timeout(addr, PATIENCE)
                .with_context(|| format!("can't connect to the follower at {addr}"))?;
            let socket = OwnedFd::from(socket);
            set_nodelay(&socket)?;
            Ok(socket)
        };
        self.followers.iter().map(connect).collect()
    }
}
