//! etcd: a put returns when its entry is on stable storage of a majority.

mod hpack;
mod wire;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use super::server::{self, Server, await_ok};
use super::system::{Plan, Running, System};
use crate::load::LoadConnection;
use crate::process::free_loopback_addrs;
use crate::session::PATIENCE;
use wire::Puts;

/// Room for all that a run writes: past it etcd refuses writes.
const QUOTA_BYTES: u64 = 8 << 30;
const MAX_REQUEST_BYTES: u64 = 8 << 20;
/// Operations of a transaction that etcd takes by default.
const DEFAULT_TXN_OPS: usize = 128;

/// The program.
pub(super) struct Etcd {
    program: PathBuf,
    version: String,
}

impl Etcd {
    /// Where it is.
    pub(super) fn find(folders: &[PathBuf]) -> anyhow::Result<Self> {
        let program = server::find_program("etcd", folders, &[])
            .context("not installed; to install: apt-get install etcd-server")?;
        let version = server::first_line(&program, "--version")?;
        Ok(Self { program, version })
    }
}

impl System for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn settings(&self, plan: &Plan) -> String {
        match plan.batch.records {
            1 => "its defaults; one Put under a new key".to_owned(),
            records => format!("its defaults; one Txn of {records} puts under new keys"),
        }
    }

    fn start(&self, dir: &Path, plan: &Plan) -> anyhow::Result<Box<dyn Running>> {
        let addrs = free_loopback_addrs(2 * plan.nodes)?;
        let (clients, peers) = addrs.split_at(plan.nodes);
        let cluster: Vec<String> =
            (0..).zip(peers).map(|(number, peer)| format!("n{number}=http://{peer}")).collect();
        let cluster = cluster.join(",");
        let mut servers = Vec::new();
        for (number, (client, peer)) in (0..).zip(clients.iter().zip(peers)) {
            let name = format!("n{number}");
            let mut command = server::command(&self.program, None);
            command.env_clear().arg("--name").arg(&name).arg("--data-dir").arg(dir.join(&name));
            command.arg("--listen-client-urls").arg(format!("http://{client}"));
            command.arg("--advertise-client-urls").arg(format!("http://{client}"));
            command.arg("--listen-peer-urls").arg(format!("http://{peer}"));
            command.arg("--initial-advertise-peer-urls").arg(format!("http://{peer}"));
            command.arg("--initial-cluster").arg(&cluster).args(["--initial-cluster-state", "new"]);
            command.arg("--quota-backend-bytes").arg(QUOTA_BYTES.to_string());
            command.arg("--max-request-bytes").arg(MAX_REQUEST_BYTES.to_string());
            command.arg("--max-txn-ops").arg(plan.batch.records.max(DEFAULT_TXN_OPS).to_string());
            let log = dir.join(format!("{name}.log"));
            servers.push(Server::start("etcd", &mut command, &log, libc::SIGTERM)?);
        }
        for (server, client) in servers.iter_mut().zip(clients) {
            server.await_ready(|| leads(*client).map(drop))?;
        }
        let leader = await_ok("etcd's nodes have no leader", || {
            let found = clients.iter().copied().find(|client| leads(*client).unwrap_or(false));
            found.context("nobody says that it leads")
        })?;
        Ok(Box::new(Servers { servers, leader }))
    }
}

/// Whether this node leads; an error as long as it knows no leader.
fn leads(addr: SocketAddr) -> anyhow::Result<bool> {
    // HTTP/1.0: the answer ends where the connection does, and is not in pieces.
    let mut socket = TcpStream::connect_timeout(&addr, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(b"POST /v3/maintenance/status HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("etcd: an answer without a body")?;
    let status: Value = serde_json::from_str(body).with_context(|| format!("etcd's status: {body}"))?;
    let member = status.pointer("/header/member_id").and_then(Value::as_str);
    let leader = status.get("leader").and_then(Value::as_str).filter(|leader| *leader != "0");
    Ok(leader.context("etcd knows no leader")? == member.context("etcd's status names no member")?)
}

struct Servers {
    servers: Vec<Server>,
    leader: SocketAddr,
}

impl Running for Servers {
    fn connect(&mut self, plan: &Plan) -> anyhow::Result<Vec<LoadConnection>> {
        let connect = |number| {
            let (socket, puts) = Puts::connect(self.leader, number, plan.batch)?;
            Ok(LoadConnection { socket, protocol: Box::new(puts) })
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
