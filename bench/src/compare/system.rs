//! What is compared: each system is found on the machine, started afresh for each of its turns, loaded, and ended.

use std::path::{Path, PathBuf};

use crate::load::LoadConnection;
use crate::produce::BatchShape;

use super::{etcd::Etcd, nats::Nats, postgres::Postgres, rabbitmq::RabbitMq, redis::Redis};

/// The systems that Pyralog can be compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// Redis Streams, or Valkey's
    Redis,
    /// NATS JetStream
    Nats,
    /// etcd
    Etcd,
    /// PostgreSQL
    Postgres,
    /// RabbitMQ quorum queues
    Rabbitmq,
}

impl Peer {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Redis, Self::Nats, Self::Etcd, Self::Postgres, Self::Rabbitmq];

    /// As it is called on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Nats => "nats",
            Self::Etcd => "etcd",
            Self::Postgres => "postgres",
            Self::Rabbitmq => "rabbitmq",
        }
    }

    /// The system with the programs that are installed; an error that says what is missing and how to install it.
    /// `folders` are searched first.
    pub(super) fn find(self, folders: &[PathBuf], nodes: usize) -> anyhow::Result<Box<dyn System>> {
        Ok(match self {
            Self::Redis => Box::new(Redis::find(folders, nodes)?),
            Self::Nats => Box::new(Nats::find(folders)?),
            Self::Etcd => Box::new(Etcd::find(folders)?),
            Self::Postgres => Box::new(Postgres::find(folders)?),
            Self::Rabbitmq => Box::new(RabbitMq::find(folders)?),
        })
    }
}

/// What a turn is about, the same for all systems.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Nodes: 1, or 3 of which two have to have a record durably before it is acknowledged.
    pub(super) nodes: usize,
    /// Connections of the load.
    pub(super) connections: usize,
    /// Requests under way per connection, at most.
    pub(super) outstanding: usize,
    /// What each request carries.
    pub(super) batch: BatchShape,
    /// CPUs of Pyralog's nodes, in turns; empty for its own choice.
    pub(super) cpus: Vec<usize>,
}

/// A system that is installed.
pub(super) trait System {
    /// Its name in the tables.
    fn name(&self) -> &'static str;

    /// Its version in the program's own words, as far as it says it without being started.
    fn version(&self) -> String;

    /// The settings that decide when it acknowledges, and how a request of many records looks.
    fn settings(&self, plan: &Plan) -> String;

    /// Starts its servers with their data below `dir`, which is empty, and waits until they serve.
    fn start(&self, dir: &Path, plan: &Plan) -> anyhow::Result<Box<dyn Running>>;
}

/// Its servers, serving; killed when dropped.
pub(super) trait Running {
    /// Its version, where only a running server says it.
    fn version(&self) -> Option<String> {
        None
    }

    /// The connections of the load, ready to send.
    fn connect(&mut self, plan: &Plan) -> anyhow::Result<Vec<LoadConnection>>;

    /// Fails when a server has ended.
    fn ensure_running(&mut self) -> anyhow::Result<()>;

    /// Stops the servers in good order.
    fn stop(self: Box<Self>) -> anyhow::Result<()>;
}
