//! Finding the addresses of nodes that are configured by name. That may take seconds, so it is not for a shard's thread.

use std::net::{SocketAddr, ToSocketAddrs};

use pyralog_core::NodeId;

/// Asks for the address of a node, given its `host:port`. The answer goes to [`super::Links::resolved`].
pub type Resolve = Box<dyn Fn(NodeId, &str)>;

/// What a name gave: an address, or why there is none.
pub type Resolved = Result<SocketAddr, String>;

/// The first address of `name` (`host:port`). Blocks until the system's resolver has answered.
pub(in super::super) fn look_up(name: &str) -> Resolved {
    match name.to_socket_addrs() {
        Ok(mut addresses) => {
            addresses.next().ok_or_else(|| format!("{name} has no address; correct node.cluster_nodes"))
        }
        Err(error) => Err(format!(
            "{name} can't be resolved: {error}; write host:port in node.cluster_nodes and check the name server"
        )),
    }
}
