//! Pyralog itself: one node, or three with a write quorum of two; `fsync_policy` is `every_write`, its default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::server;
use super::system::{Plan, Running, System};
use crate::cluster::{Cluster, NODES};
use crate::host;
use crate::load::LoadConnection;
use crate::process::{NodeSetup, OwnedProcess};
use crate::produce;
use crate::session::Session;

const TOPIC: &str = "bench-compare";

/// The program.
pub(super) struct Pyralog {
    program: PathBuf,
    version: String,
}

impl Pyralog {
    /// The program at this path.
    pub(super) fn find(program: &Path) -> anyhow::Result<Self> {
        crate::pairs::ensure_program(program)?;
        Ok(Self { program: program.to_owned(), version: server::first_line(program, "--version")? })
    }
}

impl System for Pyralog {
    fn name(&self) -> &'static str {
        "pyralog"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn settings(&self, plan: &Plan) -> String {
        let nodes = match plan.nodes {
            1 => "one shard",
            _ => "one shard each, acknowledged when two of three have it durably",
        };
        format!(
            "fsync_policy every_write, one partition; {nodes}; {} record(s) in a batch",
            plan.batch.records
        )
    }

    fn start(&self, dir: &Path, plan: &Plan) -> anyhow::Result<Box<dyn Running>> {
        if plan.nodes == NODES as usize {
            let cpus = if plan.cpus.is_empty() { host::node_cpus(dir) } else { plan.cpus.clone() };
            let cluster = Cluster::start(&self.program, dir, &cpus)?;
            cluster.create_topic(TOPIC, 1)?;
            return Ok(Box::new(Three { cluster }));
        }
        let cpu = plan.cpus.first().copied().or(host::server_cpu(dir)).or(Some(0));
        let setup = NodeSetup::new(&self.program, dir, cpu)?;
        let node = setup.start()?;
        Session::connect(setup.addr, Some(0))?.create_topic(TOPIC, 1)?;
        Ok(Box::new(One { node, addr: setup.addr }))
    }
}

struct One {
    node: OwnedProcess,
    addr: SocketAddr,
}

impl Running for One {
    fn connect(&mut self, plan: &Plan) -> anyhow::Result<Vec<LoadConnection>> {
        produce::connect_node(self.addr, TOPIC, plan.connections, plan.batch)
    }

    fn ensure_running(&mut self) -> anyhow::Result<()> {
        self.node.ensure_running()
    }

    fn stop(mut self: Box<Self>) -> anyhow::Result<()> {
        self.node.stop()
    }
}

struct Three {
    cluster: Cluster,
}

impl Running for Three {
    fn connect(&mut self, plan: &Plan) -> anyhow::Result<Vec<LoadConnection>> {
        produce::connect_node(self.cluster.address(1)?, TOPIC, plan.connections, plan.batch)
    }

    fn ensure_running(&mut self) -> anyhow::Result<()> {
        (1..=NODES).try_for_each(|id| self.cluster.node(id)?.ensure_running())
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        self.cluster.stop()
    }
}
