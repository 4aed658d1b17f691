//! What no single key can say: values that are refused with a reason, and keys that have to fit each other.

use std::collections::BTreeSet;

use super::{Config, ConfigError, ConfigErrors, Effective};
use crate::limits::{self, CHUNK_BYTES, MIN_CACHE_CHUNKS, MemoryBound, memory_bound};

/// Every error that can be told without knowing the machine.
pub(super) fn check(effective: &Effective) -> Vec<ConfigError> {
    let mut found = Found { effective, errors: Vec::new() };
    found.refused();
    found.cluster();
    found.links();
    found.quorums();
    found.elections();
    found.addresses();
    found.cores();
    // Without a number of shards, one is the least there can be.
    let shards = effective.config.runtime.shards.unwrap_or(1);
    found.memory(u16::try_from(shards).unwrap_or(limits::MAX_SHARDS));
    found.errors
}

struct Found<'a> {
    effective: &'a Effective,
    errors: Vec<ConfigError>,
}

impl Found<'_> {
    fn error(&mut self, path: &str, message: String) {
        let origin = self.effective.origin(path).clone();
        self.errors.push(ConfigError { origin, key: path.to_owned(), message });
    }

    fn config(&self) -> &Config {
        &self.effective.config
    }

    fn refused(&mut self) {
        if self.config().storage.segment_config.use_mmap {
            let message = "true is refused: a page fault would block a core and every client on it, and a read error \
                           would kill the process; remove the key or write false";
            self.error("storage.segment_config.use_mmap", message.to_owned());
        }
    }

    /// The list of nodes by itself.
    fn cluster(&mut self) {
        const KEY: &str = "node.cluster_nodes";
        let nodes = &self.config().node.cluster_nodes;
        let named = nodes.iter().filter(|node| node.id.is_some()).count();
        let own = self.config().node.node_id;
        let mut wrong = Vec::new();
        if nodes.len() > limits::MAX_METADATA_REPLICAS {
            wrong.push(format!(
                "{} nodes; this version takes up to {}, which all hold the metadata",
                nodes.len(),
                limits::MAX_METADATA_REPLICAS
            ));
        }
        let network = &self.config().network;
        let own_addresses = [
            Some(network.listen_address.to_string()),
            network.advertised_address.clone(),
            network.internal_address.map(|address| address.to_string()),
        ];
        if let [only] = nodes.as_slice()
            && !own_addresses.contains(&Some(only.address.clone()))
        {
            wrong.push(format!(
                "{only} is the only node and not at this node's address ({}); name all nodes, or remove the key for a node \
                 that is alone",
                self.config().advertised_address(network.listen_address.port())
            ));
        }
        if named != 0 && named != nodes.len() {
            wrong.push(
                "some entries have an id and some have none; write all as ID@HOST:PORT, or all as HOST:PORT for the \
                 nodes 1, 2, 3 …"
                    .to_owned(),
            );
        }
        let (mut ids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for (id, address) in self.config().cluster_nodes() {
            if !ids.insert(id) {
                wrong.push(format!("node {id} is there twice; every node has an id of its own"));
            }
            if !addresses.insert(address) {
                wrong.push(format!("{address} is there twice; every node has an address of its own"));
            }
        }
        // A single entry without an id is this node, whatever its id is.
        if (named > 0 || nodes.len() > 1) && !ids.contains(&own) {
            let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
            wrong.push(format!(
                "this node is {own} (node.node_id) and not among the nodes {}; add it or correct node.node_id",
                ids.join(", ")
            ));
        }
        wrong.into_iter().for_each(|message| self.error(KEY, message));
    }

    /// What several nodes need to reach each other.
    fn links(&mut self) {
        let internal = self.config().network.internal_address;
        if !self.config().is_clustered() && internal.is_some() {
            let message = "no other node is named in node.cluster_nodes, so nobody would connect there; name them or \
                           remove this key";
            self.error("network.internal_address", message.to_owned());
        }
        if self.config().is_clustered() && internal.is_none() {
            let message = "needed with several nodes: the address and port that the others connect to, as in \
                           node.cluster_nodes; write for example 0.0.0.0:9093";
            self.error("network.internal_address", message.to_owned());
        }
    }

    fn quorums(&mut self) {
        let quorums = self.config().topic_quorums();
        if let Err(message) = quorums.check() {
            // Told at the key that the text is about.
            let about = |name: &str| message.starts_with(name);
            let key = match () {
                () if about("write_quorum") => "replication.write_quorum",
                () if about("read_quorum") => "replication.read_quorum",
                () if about("min_insync_replicas") => "replication.min_insync_replicas",
                () => "replication.factor",
            };
            return self.error(key, message);
        }
        let nodes = self.config().node.cluster_nodes.len().max(1);
        if usize::from(quorums.replication_factor) > nodes {
            let message = format!(
                "{} copies need as many nodes, and node.cluster_nodes names {}; write at most that or auto",
                quorums.replication_factor,
                if nodes == 1 { "this one only".to_owned() } else { nodes.to_string() }
            );
            self.error("replication.factor", message);
        }
    }

    fn elections(&mut self) {
        let replication = &self.config().replication;
        let (min, max) = (replication.election_timeout.min_ms, replication.election_timeout.max_ms);
        let heartbeat = replication.heartbeat_ms;
        if min >= max {
            let message = format!(
                "{max} ms is not above replication.election_timeout.min_ms, {min} ms: all replicas would ask at the \
                 same moment; write about {}",
                2 * min
            );
            self.error("replication.election_timeout.max_ms", message);
        }
        if heartbeat >= min.div_ceil(2) {
            let message = format!(
                "{heartbeat} ms is not below half of replication.election_timeout.min_ms, {min} ms: one lost message \
                 would depose a leader; write about {}",
                (min / 4).max(1)
            );
            self.error("replication.heartbeat_ms", message);
        }
    }

    fn addresses(&mut self) {
        let network = &self.config().network;
        let listen = network.listen_address;
        if listen.ip().is_unspecified() && network.advertised_address.is_none() {
            let message = format!(
                "clients can't connect to {listen}; set network.advertised_address to the address that they reach this \
                 node at, like log1.example.org:{}",
                listen.port()
            );
            self.error("network.listen_address", message);
        }
    }

    fn cores(&mut self) {
        let runtime = &self.config().runtime;
        if let (Some(shards), Some(cpus)) = (runtime.shards, &runtime.cpus)
            && shards as usize > cpus.len()
        {
            let message = format!(
                "{shards} shards do not fit on the {} CPUs of runtime.cpus, one each; write at most {0} or name more \
                 CPUs",
                cpus.len()
            );
            self.error("runtime.shards", message);
        }
    }

    /// What depends on the number of shards. The sum of memory, unless an error makes it meaningless.
    fn memory(&mut self, shards: u16) -> MemoryBound {
        let cache = self.config().storage.cache_config.max_size;
        let least = u64::from(shards).saturating_mul((MIN_CACHE_CHUNKS * CHUNK_BYTES) as u64);
        if cache < least {
            let message = format!(
                "{}MiB for {shards} shards is less than the {}MiB that each one needs; write at least {}MiB or lower \
                 runtime.shards",
                cache >> 20,
                (MIN_CACHE_CHUNKS * CHUNK_BYTES) >> 20,
                least >> 20
            );
            self.error("storage.cache_config.max_size", message);
        }
        let bound = memory_bound(shards, cache, self.config().network.max_connections);
        let allowed = self.config().runtime.memory.unwrap_or(u64::MAX);
        if bound.total_bytes() > allowed {
            let message = format!(
                "{}MiB is below the sum of the bounds with {shards} shards, {}MiB; raise it, or lower \
                 storage.cache_config.max_size, network.max_connections or runtime.shards. The sum:\n{bound}",
                allowed >> 20,
                bound.total_bytes().div_ceil(1 << 20)
            );
            self.error("runtime.memory", message);
        }
        bound
    }
}

impl Effective {
    /// Checks what depends on the number of shards, once it is known, and returns the sum of memory that the node
    /// may use.
    ///
    /// # Errors
    /// The cache is too small for so many shards, or the sum is above `runtime.memory`.
    pub fn check_shards(&self, shards: u16) -> Result<MemoryBound, ConfigErrors> {
        let mut found = Found { effective: self, errors: Vec::new() };
        let bound = found.memory(shards);
        if found.errors.is_empty() { Ok(bound) } else { Err(ConfigErrors(found.errors)) }
    }
}
