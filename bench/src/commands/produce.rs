//! `produce`: load on a node or on the floor server, and everything around it that makes the figures worth something.

use std::net::SocketAddr;

use anyhow::Context;
use pyralog_net::message::Durability;
use serde_json::Map;

use super::show;
use crate::cli::{DEFAULT_RATE, LeastDurability, ProduceArgs};
use crate::floor::beside::{self, BesideConfig, FloorRatios, Floors};
use crate::host::{self, HostFacts};
use crate::latency::Summary;
use crate::load::{self, LoadConnection, LoadResult};
use crate::produce::{connect_floor, connect_node_at_least};
use crate::report::{Curve, DURABILITY, LoadFacts, Run, disk_of};
use crate::session::Session;
use crate::stages::{self, Snapshot};

/// What is loaded.
struct Server {
    /// What it says that it is; `None` = a floor server, which says nothing.
    version: Option<String>,
    /// Where its metrics are; empty for a floor server.
    nodes: Vec<SocketAddr>,
    /// Replicas that a write goes to.
    copies: usize,
}

/// Measures it and prints the report.
///
/// # Errors
/// When a server is not there, refuses a request or acknowledges less than was asked for.
pub fn produce(args: &ProduceArgs) -> anyhow::Result<()> {
    host::raise_nofile_limit()?;
    let load = LoadFacts {
        connections: args.load.connections as usize,
        threads: args.threads as usize,
        shape: args.load.shape_at(DEFAULT_RATE),
        batch: args.load.batch(),
    };
    let server = Server::look(args)?;
    let ((result, stages), floors) = measure(args, &load, &server)?;
    anyhow::ensure!(result.latencies.count() > 0, "nothing was measured; give more seconds");
    let per_second = result.acks_per_second();
    let summary = result.latencies.summary();
    let ratios = floors.as_ref().map(|floors| floors.ratios(&result.latencies));
    let mut run = Run {
        command: "produce",
        host: HostFacts::collect(),
        disk: disk_of(args.floor_dir.as_deref())?,
        node_version: server.version,
        durability: level(args.durability).1,
        load_line: load.to_string(),
        load: load.to_json(),
        curves: vec![Curve { name: "node".to_owned(), latencies: result.latencies, per_second }],
        more: Map::new(),
    };
    if args.floor {
        run.durability = "the floor server answers when its O_DIRECT write with RWF_DSYNC is done";
        run.curves.iter_mut().for_each(|curve| curve.name = "floor".to_owned());
    }
    if let Some(floors) = floors {
        run.curves.push(floors.into_curve(load.shape.measured)?);
    }
    run.more.insert("stages".into(), stages::to_json(&stages));
    run.more.insert("floor".into(), ratios.map(FloorRatios::to_json).into());
    let records_per_second = per_second * load.batch.records as f64;
    let mut table = format!("{}\n{}      acks/s   records/s\n", run.heading(), Summary::HEADS);
    table += &format!("{summary}{per_second:12.0}{records_per_second:12.0}\n{}", stages::to_table(&stages));
    if !args.floor {
        table += &beside::last_lines(ratios.as_ref());
    }
    show(args.output, &table, &run.to_json("produce")?);
    run.write_if_asked(args.out.files("produce").as_ref())
}

/// What the load saw, and what the nodes say of the same time.
type Measured = (LoadResult, Snapshot);

/// The run, with the floor before and after it if that was asked for.
fn measure(
    args: &ProduceArgs,
    load: &LoadFacts,
    server: &Server,
) -> anyhow::Result<(Measured, Option<Floors>)> {
    let monitor = args.out.monitor(load.shape.warmup);
    let board = monitor.board("acks");
    let floor = args.floor_dir.as_ref().map(|dir| BesideConfig {
        dir: dir.clone(),
        copies: server.copies,
        writes_in_flight: args.floor_writes_in_flight as usize,
        client_cpu: args.cpu,
    });
    beside::around(floor.as_ref(), load, || {
        let connections = connect(args, load)?;
        let work = || load::run_watched(connections, load.threads, args.cpu, load.shape, board.as_deref());
        stages::during(&server.nodes, load.shape.warmup, || monitor.during(work))
    })
}

fn connect(args: &ProduceArgs, load: &LoadFacts) -> anyhow::Result<Vec<LoadConnection>> {
    match &args.topic {
        Some(topic) => {
            let least = level(args.durability).0;
            connect_node_at_least(least, args.addr, topic, load.connections, load.batch)
        }
        None => connect_floor(args.addr, load.connections, load.batch),
    }
}

/// What replies are checked for, and how the report says it.
fn level(least: LeastDurability) -> (Durability, &'static str) {
    match least {
        LeastDurability::Quorum => (Durability::QuorumDurable, DURABILITY),
        LeastDurability::Written => (
            Durability::Written,
            "acks quorum, and every reply checked for the leader's journal file, maybe not flushed",
        ),
    }
}

impl Server {
    /// Asks a node about itself and the topic.
    fn look(args: &ProduceArgs) -> anyhow::Result<Self> {
        let Some(topic) = &args.topic else {
            return Ok(Self { version: None, nodes: Vec::new(), copies: 1 });
        };
        let mut session = Session::connect(args.addr, None)?;
        let version = session.server_version().to_owned();
        let (topic, nodes) = session.topic(topic)?;
        let nodes = nodes.iter().map(|node| {
            node.address.parse().with_context(|| format!("the address {} of node {}", node.address, node.id))
        });
        let nodes = nodes.collect::<anyhow::Result<_>>()?;
        let copies = usize::from(topic.quorums.replication_factor).max(1);
        Ok(Self { version: Some(version), nodes, copies })
    }
}
