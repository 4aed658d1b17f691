//! RabbitMQ: a quorum queue of one member or of three, persistent messages, publisher confirms.

mod wire;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use super::server::{self, RunAs, Server, await_ok};
use super::system::{Plan, Running, System};
use crate::load::LoadConnection;
use crate::process::free_loopback_addrs;
use wire::{Confirms, Session};

const QUEUE: &str = "log";
/// Where Debian's package puts the programs that do not change the user by themselves.
const USUAL: &str = "/usr/lib/rabbitmq/bin";

/// The programs.
pub(super) struct RabbitMq {
    server: PathBuf,
    control: PathBuf,
    epmd: PathBuf,
    user: RunAs,
}

impl RabbitMq {
    /// Where they are.
    pub(super) fn find(folders: &[PathBuf]) -> anyhow::Result<Self> {
        // Not the wrappers in PATH: they switch to another user's folders.
        let find = |name| {
            let folders: Vec<PathBuf> = folders.iter().cloned().chain([USUAL.into()]).collect();
            server::find_program(name, &folders, &[])
        };
        let missing = "not installed; to install: apt-get install rabbitmq-server";
        let (server, control) =
            (find("rabbitmq-server").context(missing)?, find("rabbitmqctl").context(missing)?);
        let epmd =
            server::find_program("epmd", folders, &[]).context("epmd, a part of Erlang, is not installed")?;
        Ok(Self { server, control, epmd, user: server::other_user_than_root(&["rabbitmq", "nobody"])? })
    }
}

/// What all nodes of one turn share.
struct Site<'a> {
    programs: &'a RabbitMq,
    dir: &'a Path,
    epmd: SocketAddr,
    nodes: Vec<String>,
}

impl Site<'_> {
    /// A command with the environment of node `name`: its files below our folder, its cookie in a HOME of its own, and its
    /// Erlang distribution on the loopback interface only.
    fn command(&self, program: &Path, name: &str) -> Command {
        let mut command = server::command(program, self.programs.user);
        let file = |suffix: &str| self.dir.join(format!("{name}{suffix}"));
        command.current_dir(self.dir).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("LANG", "C.UTF-8").env("HOME", self.dir);
        command.env("ERL_EPMD_PORT", self.epmd.port().to_string()).env("ERL_EPMD_ADDRESS", "127.0.0.1");
        command.env("RABBITMQ_CONF_ENV_FILE", "/dev/null").env("RABBITMQ_CONFIG_FILE", file(".conf"));
        command.env("RABBITMQ_ADVANCED_CONFIG_FILE", file(".advanced.config"));
        command.env("RABBITMQ_ENABLED_PLUGINS_FILE", self.dir.join("enabled_plugins"));
        command.env("RABBITMQ_NODENAME", name).env("RABBITMQ_MNESIA_BASE", self.dir.join("mnesia"));
        command.env("RABBITMQ_LOG_BASE", self.dir.join("logs")).env("RABBITMQ_LOGS", "-");
        command.env("RABBITMQ_PID_FILE", file(".pid"));
        // The script becomes the server instead of waiting for it, so that signals reach the server.
        command.env("RUNNING_UNDER_SYSTEMD", "true");
        let loopback = "-kernel inet_dist_use_interface {127,0,0,1}";
        command.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", loopback);
        command.env("RABBITMQ_CTL_ERL_ARGS", loopback);
        command
    }

    fn start_epmd(&self) -> anyhow::Result<Server> {
        // Ours and in the foreground: one that a node starts by itself would outlive it.
        let mut command = server::command(&self.programs.epmd, self.programs.user);
        command.args(["-address", "127.0.0.1", "-port", &self.epmd.port().to_string()]).current_dir(self.dir);
        let mut epmd = Server::start("epmd", &mut command, &self.dir.join("epmd.log"), libc::SIGTERM)?;
        epmd.await_ready(|| Ok(std::net::TcpStream::connect(self.epmd).map(drop)?))?;
        Ok(epmd)
    }

    fn serve(&self, name: &str, client: SocketAddr, distribution: SocketAddr) -> anyhow::Result<Server> {
        let mut settings = format!(
            "listeners.tcp.1 = {client}\nlog.console = true\nlog.console.level = info\n\
             cluster_formation.peer_discovery_backend = classic_config\n"
        );
        for (number, node) in (1..).zip(&self.nodes) {
            settings += &format!("cluster_formation.classic_config.nodes.{number} = {node}\n");
        }
        server::write_file(&self.dir.join(format!("{name}.conf")), &settings, self.programs.user)?;
        let mut command = self.command(&self.programs.server, name);
        command.env("RABBITMQ_DIST_PORT", distribution.port().to_string());
        Server::start("RabbitMQ", &mut command, &self.dir.join(format!("{name}.log")), libc::SIGTERM)
    }

    /// Fails unless the queue is a quorum queue with so many members that run, led by the first node.
    fn ensure_members(&self) -> anyhow::Result<()> {
        let first = self.nodes.first().context("no node")?;
        let mut command = self.command(&self.programs.control, first);
        command.args(["--quiet", "--node", first, "--formatter", "json", "list_queues"]);
        command.args(["name", "type", "leader", "online"]);
        let output = command.output().context("can't run rabbitmqctl")?;
        let text = String::from_utf8_lossy(&output.stdout);
        anyhow::ensure!(
            output.status.success(),
            "rabbitmqctl: {}{text}",
            String::from_utf8_lossy(&output.stderr)
        );
        let queues: Value =
            serde_json::from_str(text.trim()).with_context(|| format!("rabbitmqctl: {text}"))?;
        let queue = queues.get(0).context("rabbitmqctl knows no queue")?;
        let online = queue.get("online").and_then(Value::as_array).map_or(0, Vec::len);
        let is = |field: &str, wanted: &str| queue.get(field).and_then(Value::as_str) == Some(wanted);
        let is_as_wanted = online == self.nodes.len() && is("type", "quorum") && is("leader", first);
        anyhow::ensure!(is_as_wanted, "RabbitMQ's queue has not all its members, or another leader: {queue}");
        Ok(())
    }
}

impl System for RabbitMq {
    fn name(&self) -> &'static str {
        "rabbitmq"
    }

    fn version(&self) -> String {
        // Its programs take seconds to say it; its servers do at once.
        "RabbitMQ".to_owned()
    }

    fn settings(&self, plan: &Plan) -> String {
        let many = match plan.batch.records {
            1 => "one persistent message".to_owned(),
            records => format!("{records} persistent messages in one write"),
        };
        format!("quorum queue of {} member(s), publisher confirms; {many}", plan.nodes)
    }

    fn start(&self, dir: &Path, plan: &Plan) -> anyhow::Result<Box<dyn Running>> {
        server::create_folder(dir, self.user)?;
        let cookie = dir.join(".erlang.cookie");
        server::write_file(&cookie, &format!("bench{}", std::process::id()), self.user)?;
        std::fs::set_permissions(&cookie, std::fs::Permissions::from_mode(0o400))?;
        server::write_file(&dir.join("enabled_plugins"), "[].\n", self.user)?;
        let addrs = free_loopback_addrs(2 * plan.nodes + 1)?;
        let (epmd, addrs) = server::leader_and_rest(&addrs)?;
        let (clients, distribution) = addrs.split_at(plan.nodes);
        let nodes = (1..=plan.nodes).map(|number| format!("bench{number}@localhost")).collect();
        let site = Site { programs: self, dir, epmd, nodes };
        let mut servers = vec![site.start_epmd()?];
        for ((name, client), distribution) in site.nodes.iter().zip(clients).zip(distribution) {
            let mut server = site.serve(name, *client, *distribution)?;
            // One after the other: each finds those before it and joins them.
            server.await_ready(|| Session::connect(*client).map(drop))?;
            servers.push(server);
        }
        let (first, _) = server::leader_and_rest(clients)?;
        let mut session = Session::connect(first)?;
        let version = format!("RabbitMQ {}", session.version());
        session.declare_quorum_queue(QUEUE, plan.nodes as u32)?;
        await_ok("RabbitMQ's queue is not as wanted", || site.ensure_members())?;
        Ok(Box::new(Servers { servers, leader: first, version }))
    }
}

struct Servers {
    /// epmd, then the nodes.
    servers: Vec<Server>,
    leader: SocketAddr,
    version: String,
}

impl Running for Servers {
    fn version(&self) -> Option<String> {
        Some(self.version.clone())
    }

    fn connect(&mut self, plan: &Plan) -> anyhow::Result<Vec<LoadConnection>> {
        let connect = |_| {
            let (socket, frame_max_bytes) = Session::connect(self.leader)?.into_confirming()?;
            let protocol = Confirms::new(QUEUE, plan.batch, plan.outstanding, frame_max_bytes);
            Ok(LoadConnection { socket, protocol: Box::new(protocol) })
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
