//! Server processes that these tools start, and stop again.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use crate::session::Session;

/// How long a server may take to answer after its start (replay included) and to stop.
const START_PATIENCE: Duration = Duration::from_secs(120);
const STOP_PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(10);

/// A process that ends with its owner: killed when dropped.
pub struct OwnedProcess {
    child: Child,
    name: String,
}

impl OwnedProcess {
    /// Starts it with nothing on its stdin.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("can't start {name}"))?;
        Ok(Self { child, name })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails when it has ended.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended by itself: {status}", self.name),
        }
    }

    /// Waits until it ends by itself; SIGKILL and an error when it doesn't in time.
    pub fn wait(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if begin.elapsed() > patience {
                self.kill()?;
                anyhow::bail!("{} did not end within {patience:?} and was killed", self.name);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().with_context(|| format!("can't kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: libc::c_int) -> anyhow::Result<()> {
        let pid = libc::pid_t::try_from(self.pid())?;
        // SAFETY: our own child, not waited for yet, so the id can't belong to anybody else.
        match unsafe { libc::kill(pid, signal) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()).with_context(|| format!("can't signal {}", self.name)),
        }
    }

    /// SIGTERM; SIGKILL and an error when it doesn't end in time.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        self.signal(libc::SIGTERM)?;
        let begin = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begin.elapsed() > STOP_PATIENCE {
                self.kill()?;
                anyhow::bail!(
                    "{} did not stop within {STOP_PATIENCE:?} of SIGTERM and was killed",
                    self.name
                );
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

impl Drop for OwnedProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How to run a node.
#[derive(Clone, Debug)]
pub struct NodeSetup {
    /// The `pyralog` program.
    pub program: PathBuf,
    /// Folder for configuration, data and log; `data` below it is the node's.
    pub dir: PathBuf,
    /// The client address; the same after a restart.
    pub addr: SocketAddr,
    /// One shard, on this CPU; `None` leaves shards and CPUs at the node's defaults.
    pub one_shard_on: Option<usize>,
    /// Its place in a cluster; `None` = it is alone.
    pub member: Option<Member>,
    /// `replication.recovery_rate`; `None` = the default.
    pub recovery_rate: Option<String>,
}

/// One of several nodes.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id.
    pub id: u32,
    /// Where the others reach it.
    pub internal: SocketAddr,
    /// All nodes, as the configuration names them.
    pub nodes: Vec<String>,
}

impl NodeSetup {
    /// A node in `dir` on a free loopback port.
    pub fn new(program: &Path, dir: &Path, one_shard_on: Option<usize>) -> anyhow::Result<Self> {
        let addr = free_loopback_addrs(1)?.first().copied().context("no free port")?;
        let (program, dir) = (program.to_owned(), dir.to_owned());
        Ok(Self { program, dir, addr, one_shard_on, member: None, recovery_rate: None })
    }

    /// The node's data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where the node's output goes.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("node.log")
    }

    /// The configuration file's content.
    fn settings(&self) -> Value {
        let mut settings = json!({
            "node": { "data_dir": self.data_dir() },
            "network": { "listen_address": self.addr.to_string() },
        });
        if let (Some(cpu), Some(keys)) = (self.one_shard_on, settings.as_object_mut()) {
            keys.insert("runtime".to_owned(), json!({ "shards": 1, "cpus": [cpu] }));
        }
        if let Some(member) = &self.member {
            settings["node"]["node_id"] = json!(member.id);
            settings["node"]["cluster_name"] = json!("bench");
            settings["node"]["cluster_nodes"] = json!(member.nodes);
            settings["network"]["internal_address"] = json!(member.internal.to_string());
        }
        if let Some(rate) = &self.recovery_rate {
            settings["replication"]["recovery_rate"] = json!(rate);
        }
        settings
    }

    /// Starts the node and waits until it answers.
    pub fn start(&self) -> anyhow::Result<OwnedProcess> {
        let mut process = self.spawn()?;
        self.wait_until_it_answers(&mut process)?;
        Ok(process)
    }

    /// Starts the node without waiting for anything. Its output is appended to [`Self::log_path`].
    pub fn spawn(&self) -> anyhow::Result<OwnedProcess> {
        let config = self.dir.join("bench-node.json");
        std::fs::write(&config, serde_json::to_vec_pretty(&self.settings())?)?;
        let log = std::fs::File::options().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(&self.program);
        command.args([OsStr::new("--config"), config.as_os_str()]).stdout(log.try_clone()?).stderr(log);
        // Only the file decides, whatever the user's environment says.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PYRALOG"))
        {
            command.env_remove(name);
        }
        OwnedProcess::start(&mut command)
    }

    /// Waits until the node serves requests.
    pub fn wait_until_it_answers(&self, process: &mut OwnedProcess) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            process
                .ensure_running()
                .with_context(|| format!("see its output:\n{}", tail_of(&self.log_path())))?;
            let serves = |mut session: Session| session.serves();
            match Session::connect(self.addr, Some(0)).and_then(serves) {
                Ok(()) => return Ok(()),
                Err(error) if begin.elapsed() > START_PATIENCE => {
                    return Err(anyhow::Error::from(error)
                        .context(format!("no answer {START_PATIENCE:?} after the start")));
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }
}

fn tail_of(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
}

/// Loopback addresses whose ports nobody listens on at the moment, no two the same.
pub fn free_loopback_addrs(count: usize) -> anyhow::Result<Vec<SocketAddr>> {
    let listeners = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    // Held until all are there.
    let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
    Ok(listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
}

/// Starts this very program's floor server; returns it with its address. `spin`: it never sleeps. `followers`: other
/// ones, which run.
pub fn start_floor_server(
    dir: &Path,
    cpu: Option<usize>,
    writes: usize,
    spin: bool,
    followers: &[SocketAddr],
) -> anyhow::Result<(OwnedProcess, SocketAddr)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["floor-server", "--listen", "127.0.0.1:0", "--dir"]).arg(dir).stdout(Stdio::piped());
    command.args(["--writes-in-flight", &writes.to_string()]);
    if let Some(cpu) = cpu {
        command.args(["--cpu", &cpu.to_string()]);
    }
    if spin {
        command.arg("--spin");
    }
    for follower in followers {
        command.args(["--followers", &follower.to_string()]);
    }
    let mut process = OwnedProcess::start(&mut command)?;
    let output = process.child.stdout.take().context("the floor server has no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    let addr = line.trim().strip_prefix("listening on ").and_then(|addr| addr.parse().ok());
    Ok((process, addr.with_context(|| format!("the floor server said {line:?} instead of its address"))?))
}

#[cfg(test)]
mod tests {
    use pyralog_core::config::{Layers, load};

    use super::*;

    #[test]
    fn the_node_would_take_its_configuration() {
        let internal: SocketAddr = "127.0.0.1:4002".parse().unwrap();
        let nodes = ["1@127.0.0.1:4001", "2@127.0.0.1:4002", "3@127.0.0.1:4003"];
        let member = Member { id: 2, internal, nodes: nodes.map(str::to_owned).to_vec() };
        for (cpu, member) in [(None, None), (Some(1), Some(member))] {
            let mut setup = NodeSetup::new(Path::new("pyralog"), Path::new("/d"), cpu).unwrap();
            setup.member = member.clone();
            setup.recovery_rate = cpu.map(|_| "unlimited".to_owned());
            let file = Some(("bench-node.json".to_owned(), setup.settings().to_string()));
            let config = load(&Layers { file, ..Layers::default() }).unwrap().config;
            assert_eq!(config.node.data_dir, setup.data_dir());
            assert_eq!(config.network.listen_address, setup.addr);
            assert_eq!(config.runtime.cpus, cpu.map(|cpu| vec![cpu]));
            assert_eq!(config.runtime.shards, cpu.map(|_| 1));
            assert_eq!(config.replication.recovery_rate.is_none(), cpu.is_some());
            assert_eq!(config.node.cluster_nodes.len(), member.map_or(0, |member| member.nodes.len()));
        }
    }

    #[test]
    fn a_program_that_ends_by_itself_is_told_with_its_output() {
        let dir = tempfile::tempdir().unwrap();
        let setup = NodeSetup::new(Path::new("/bin/false"), dir.path(), None).unwrap();
        let error = setup.start().err().unwrap();
        assert!(format!("{error:#}").contains("ended by itself"), "{error:#}");
    }
}
