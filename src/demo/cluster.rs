//! The demo's three nodes.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pyralog_net::client::{Client, ClientConfig};
use pyralog_tuning::cpus::of_node;

use super::child::Node;
use crate::failure::Failure;
use crate::node::cpus_for_nodes;

/// Nodes of the cluster.
pub(crate) const NODES: u32 = 3;
/// How long the nodes may take to find each other.
const FORM_WITHIN: Duration = Duration::from_secs(30);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(5);

/// Three nodes on this machine.
pub(crate) struct Cluster {
    folder: PathBuf,
    /// Client and internal address of each.
    addresses: Vec<(String, String)>,
    cpus: Vec<usize>,
    /// Those that run, by id.
    nodes: Vec<(u32, Node)>,
}

impl Cluster {
    /// Starts the nodes with their data below `folder` and waits until they have formed a cluster.
    pub(crate) fn start(folder: &Path) -> Result<Self, Failure> {
        // All at once, so that no two are the same.
        let ports = (0..2 * NODES).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>();
        let ports = ports.and_then(|ports| {
            ports.iter().map(|port| Ok(port.local_addr()?.to_string())).collect::<std::io::Result<Vec<_>>>()
        });
        let ports = ports.map_err(|error| Failure::failed(format!("cannot find free ports: {error}")))?;
        let (clients, internals) = ports.split_at(NODES as usize);
        let addresses = clients.iter().cloned().zip(internals.iter().cloned()).collect();
        let mut cluster =
            Self { folder: folder.to_owned(), addresses, cpus: cpus_for_nodes(folder)?, nodes: Vec::new() };
        for id in 1..=NODES {
            cluster.start_node(id)?;
        }
        cluster.await_formed()?;
        Ok(cluster)
    }

    /// Where clients connect, of all nodes.
    pub(crate) fn client_addresses(&self) -> Vec<String> {
        self.addresses.iter().map(|(client, _)| client.clone()).collect()
    }

    /// Starts a node (again).
    pub(crate) fn start_node(&mut self, id: u32) -> Result<(), Failure> {
        let Some((client, internal)) = self.addresses.get(id as usize - 1) else {
            return Err(Failure::failed(format!("there is no node {id}")));
        };
        let nodes: Vec<String> =
            (1..).zip(&self.addresses).map(|(id, (_, internal))| format!("{id}@{internal}")).collect();
        let settings = [
            ("PYRALOG_NODE_ID", id.to_string()),
            ("PYRALOG_CLUSTER_NODES", nodes.join(",")),
            ("PYRALOG__NETWORK__INTERNAL_ADDRESS", internal.clone()),
            ("PYRALOG__NODE__CLUSTER_NAME", "demo".to_owned()),
            ("PYRALOG__RUNTIME__SHARDS", "1".to_owned()),
            ("PYRALOG__RUNTIME__CPUS", of_node(id, &self.cpus).unwrap_or(0).to_string()),
            ("PYRALOG__STORAGE__CACHE_CONFIG__MAX_SIZE", "256MiB".to_owned()),
            // Links that break and come back are what is to be seen here; they are told below.
            ("PYRALOG_LOG", "error".to_owned()),
        ];
        let node = Node::start(&self.folder.join(format!("node-{id}")), client, &settings)?;
        self.nodes.push((id, node));
        Ok(())
    }

    /// SIGKILL to one node.
    pub(crate) fn kill(&mut self, id: u32) -> Result<(), Failure> {
        match self.nodes.iter().position(|(other, _)| *other == id) {
            Some(at) => self.nodes.swap_remove(at).1.kill(),
            None => Err(Failure::failed(format!("node {id} does not run"))),
        }
    }

    /// Waits until every node knows all others and who leads the metadata.
    pub(crate) fn await_formed(&self) -> Result<(), Failure> {
        let end = Instant::now() + FORM_WITHIN;
        for address in self.client_addresses() {
            let config = ClientConfig { retry_for: FORM_WITHIN, ..ClientConfig::default() };
            let mut client = Client::new(&[address], config);
            loop {
                let (node, _) = super::checked(client.metadata())?;
                if node.knows_all(NODES as usize) {
                    break;
                }
                if Instant::now() >= end {
                    return Err(Failure::failed("the nodes have not formed a cluster in time"));
                }
                std::thread::sleep(POLL);
            }
        }
        Ok(())
    }

    /// Stops all nodes, one after the other.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        for (_, node) in self.nodes.drain(..) {
            node.stop()?;
        }
        Ok(())
    }
}
