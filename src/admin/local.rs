//! `cluster start-local` and `stop-local`: a cluster on this machine for trying things out. Everything is below one
//! folder: a configuration, a log, a process id and the data of each node.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pyralog_tuning::cpus::of_node;
use serde::Serialize;

use super::cli::{Format, StartLocal, StopLocal};
use super::output;
use crate::failure::{Exit, Failure};

/// How long a start waits until all nodes know each other and have a leader.
const FORM_WITHIN: Duration = Duration::from_secs(60);
/// How long a stop waits for a node: a little longer than a node takes at most.
const STOP_WITHIN: Duration = Duration::from_secs(80);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(50);
/// The internal port of a node is so far above its client port.
const INTERNAL_PORTS_ABOVE: u16 = 100;

/// One node of a local cluster.
struct LocalNode {
    id: u16,
    client: SocketAddr,
    internal: SocketAddr,
    folder: PathBuf,
}

/// A process, told from a later one with the same number by when it was started.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    /// Clock ticks since the machine was started (field 22 of /proc/PID/stat).
    started: u64,
}

impl Process {
    /// The running process of this number; one that has ended and was not waited for counts as gone.
    fn running(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may hold anything, and is in brackets.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (state != "Z").then_some(Self { pid, started })
    }

    fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let written = Self { pid: pid.parse().ok()?, started: started.parse().ok()? };
        (Self::running(written.pid)? == written).then_some(written)
    }
}

impl LocalNode {
    fn all(folder: &Path, nodes: u16, port: u16) -> Result<Vec<Self>, Failure> {
        let last = u32::from(port) + u32::from(INTERNAL_PORTS_ABOVE) + u32::from(nodes);
        if last > u32::from(u16::MAX) {
            return Err(Failure::usage(format!("--port {port}: the ports up to {last} would be needed")));
        }
        let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let node = |id: u16| Self {
            id,
            client: at(port + id - 1),
            internal: at(port + INTERNAL_PORTS_ABOVE + id - 1),
            folder: folder.join(format!("node-{id}")),
        };
        Ok((1..=nodes).map(node).collect())
    }

    fn config(&self) -> PathBuf {
        self.folder.join("pyralog.yaml")
    }

    fn pid(&self) -> PathBuf {
        self.folder.join("pid")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("pyralog.log")
    }

    fn process(&self) -> Option<Process> {
        Process::read(&self.pid())
    }

    fn config_text(&self, all: &[Self], folder: &Path, cpus: &[usize]) -> String {
        let cpu = of_node(self.id.into(), cpus).unwrap_or(0);
        let nodes: Vec<String> = all.iter().map(|node| format!("{}@{}", node.id, node.internal)).collect();
        let name = folder.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
        format!(
            "# Written by `pyralog-admin cluster start-local`; kept as it is at the next start.\n\
             node:\n  node_id: {}\n  data_dir: data\n  cluster_name: local-{name}\n  cluster_nodes: [{}]\n\
             network:\n  listen_address: \"{}\"\n  internal_address: \"{}\"\n\
             runtime:\n  shards: 1\n  cpus: \"{cpu}\"\n\
             storage:\n  cache_config:\n    max_size: 256MiB\n",
            self.id,
            nodes.join(", "),
            self.client,
            self.internal
        )
    }

    fn check_ports(&self) -> Result<(), Failure> {
        for address in [self.client, self.internal] {
            TcpListener::bind(address).map_err(|error| {
                let text = format!(
                    "node {} can't listen on {address}: {error}; stop what is there, or choose other ports with --port",
                    self.id
                );
                Failure::new(Exit::CannotStart, text)
            })?;
        }
        Ok(())
    }

    fn start(&self, program: &Path) -> Result<(), Failure> {
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.map_err(|error| cannot("open", &self.log(), &error))?;
        let copy = log.try_clone().map_err(|error| cannot("open", &self.log(), &error))?;
        let mut command = Command::new(program);
        command.arg("--config").arg(self.config()).current_dir(&self.folder);
        command.stdin(Stdio::null()).stdout(log).stderr(copy);
        // A session of its own: neither Ctrl-C nor the end of this terminal reaches it.
        // SAFETY: setsid is async-signal-safe and touches no memory.
        unsafe {
            command.pre_exec(|| match libc::setsid() {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PYRALOG_"))
        {
            // Settings of this shell would hold for all nodes alike.
            if name != "PYRALOG_LOG" {
                command.env_remove(name);
            }
        }
        let child = command.spawn().map_err(|error| cannot("start", program, &error))?;
        let pid = i32::try_from(child.id()).map_err(|_| Failure::failed("the node has no process id"))?;
        let Some(process) = Process::running(pid) else { return Err(self.ended()) };
        let text = format!("{} {}\n", process.pid, process.started);
        fs::write(self.pid(), text).map_err(|error| cannot("write", &self.pid(), &error))
    }

    fn ended(&self) -> Failure {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let last = log.lines().last().unwrap_or("it said nothing").to_owned();
        let text = format!("node {} ended at its start: {last} (see {})", self.id, self.log().display());
        Failure::new(Exit::CannotStart, text)
    }
}

#[derive(Serialize)]
struct Row {
    node: u16,
    address: String,
    internal_address: String,
    pid: Option<i32>,
    state: &'static str,
}

/// `cluster start-local`.
pub(crate) fn start(arguments: &StartLocal, format: Format) -> Result<(), Failure> {
    let program = program()?;
    fs::create_dir_all(&arguments.dir).map_err(|error| cannot("make", &arguments.dir, &error))?;
    let folder = arguments.dir.canonicalize().map_err(|error| cannot("open", &arguments.dir, &error))?;
    let found = existing(&folder);
    if found != 0 && found != arguments.nodes {
        return Err(Failure::usage(format!(
            "{} holds a cluster of {found} nodes; start it with --nodes {found}, or name another folder with --dir",
            folder.display()
        )));
    }
    let nodes = LocalNode::all(&folder, arguments.nodes, arguments.port)?;
    let cpus = crate::node::cpus_for_nodes(&folder)?;
    let stopped: Vec<&LocalNode> = nodes.iter().filter(|node| node.process().is_none()).collect();
    // Before anything is started: all or none.
    stopped.iter().try_for_each(|node| node.check_ports())?;
    for node in &stopped {
        fs::create_dir_all(&node.folder).map_err(|error| cannot("make", &node.folder, &error))?;
        let text = node.config_text(&nodes, &folder, &cpus);
        // What a person has changed stays; who and where the nodes are must be what was asked for.
        let fixed = ["node_id:", "cluster_nodes:", "listen_address:", "internal_address:"];
        let told = text.lines().map(str::trim).filter(|line| fixed.iter().any(|key| line.starts_with(key)));
        match fs::read_to_string(node.config()) {
            Ok(there) if !told.clone().all(|line| there.lines().any(|other| other.trim() == line)) => {
                return Err(Failure::usage(format!(
                    "{} was made with other ports or nodes; use the same ones, or another folder (--dir)",
                    node.config().display()
                )));
            }
            Ok(_) => {}
            Err(_) => {
                fs::write(node.config(), text).map_err(|error| cannot("write", &node.config(), &error))?;
            }
        }
    }
    stopped.iter().try_for_each(|node| node.start(&program))?;
    await_formed(&nodes)?;
    let rows = rows(&nodes, |node| match stopped.iter().any(|other| other.id == node.id) {
        true => "started",
        false => "was running",
    });
    let addresses: Vec<String> = nodes.iter().map(|node| node.client.to_string()).collect();
    output::print(format, &rows, |rows| {
        format!(
            "{}\n\nexport PYRALOG_CLUSTER={}\nlogs and data below {}; stop with: pyralog-admin cluster stop-local --dir {}",
            table(rows),
            addresses.join(","),
            folder.display(),
            folder.display()
        )
    })
}

/// `cluster stop-local`.
pub(crate) fn stop(arguments: &StopLocal, format: Format) -> Result<(), Failure> {
    let folder = &arguments.dir;
    let count = existing(folder);
    if count == 0 {
        return Err(Failure::usage(format!("{} holds no local cluster", folder.display())));
    }
    let pid_file = |id: u16| folder.join(format!("node-{id}")).join("pid");
    let processes: Vec<(u16, Option<Process>)> =
        (1..=count).map(|id| (id, Process::read(&pid_file(id)))).collect();
    let mut failed = Vec::new();
    for (id, process) in processes.iter().filter_map(|(id, process)| Some((id, (*process)?))) {
        // SAFETY: no memory; the process is the one that was started here, as its start time says.
        if unsafe { libc::kill(process.pid, libc::SIGTERM) } != 0 {
            let error = io::Error::last_os_error();
            failed.push(format!("node {id} (process {}) can't be stopped: {error}", process.pid));
        }
    }
    let end = Instant::now() + STOP_WITHIN;
    let mut states = Vec::new();
    for (id, process) in processes {
        let Some(process) = process else {
            states.push((id, None, "was not running"));
            continue;
        };
        while Process::running(process.pid) == Some(process) && Instant::now() < end {
            std::thread::sleep(POLL);
        }
        if Process::running(process.pid) == Some(process) {
            let seconds = STOP_WITHIN.as_secs();
            failed.push(format!(
                "node {id} (process {}) has not stopped within {seconds} s; see its log",
                process.pid
            ));
            continue;
        }
        let _ = fs::remove_file(pid_file(id));
        states.push((id, Some(process.pid), "stopped"));
    }
    if !failed.is_empty() {
        return Err(Failure::failed(failed.join("; ")));
    }
    let rows: Vec<StoppedRow> =
        states.into_iter().map(|(node, pid, state)| StoppedRow { node, pid, state }).collect();
    output::print(format, &rows, |rows| {
        let cells = rows.iter().map(|row| {
            vec![
                row.node.to_string(),
                row.pid.map_or("-".into(), |pid| pid.to_string()),
                row.state.to_owned(),
            ]
        });
        output::table(&["NODE", "PROCESS", "STATE"], cells)
    })
}

#[derive(Serialize)]
struct StoppedRow {
    node: u16,
    pid: Option<i32>,
    state: &'static str,
}

/// How many nodes the folder was made for.
fn existing(folder: &Path) -> u16 {
    (1..=u16::MAX)
        .take_while(|id| folder.join(format!("node-{id}/pyralog.yaml")).is_file())
        .last()
        .unwrap_or(0)
}

/// The node's program: the one beside this one, else the one in PATH.
fn program() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::failed(format!("cannot find this program: {error}")))?;
    let beside = own.with_file_name("pyralog");
    Ok(if beside.is_file() { beside } else { PathBuf::from("pyralog") })
}

/// Waits until every node runs and is known to the others, and somebody leads the metadata.
fn await_formed(nodes: &[LocalNode]) -> Result<(), Failure> {
    let addresses: Vec<String> = nodes.iter().map(|node| node.client.to_string()).collect();
    let end = Instant::now() + FORM_WITHIN;
    loop {
        if let Some(ended) = nodes.iter().find(|node| node.process().is_none()) {
            return Err(ended.ended());
        }
        // One that is not up yet, or knows too little, is asked again.
        let mut each = addresses.iter().map(|address| {
            let mut client = super::client(std::slice::from_ref(address), Duration::ZERO);
            client.metadata().is_ok_and(|(node, _)| node.knows_all(nodes.len()))
        });
        if each.all(|formed| formed) {
            return Ok(());
        }
        if Instant::now() >= end {
            let text = format!(
                "the nodes run and have not formed a cluster within {} s; see the logs",
                FORM_WITHIN.as_secs()
            );
            return Err(Failure::failed(text));
        }
        std::thread::sleep(POLL);
    }
}

fn rows(nodes: &[LocalNode], state: impl Fn(&LocalNode) -> &'static str) -> Vec<Row> {
    let row = |node: &LocalNode| Row {
        node: node.id,
        address: node.client.to_string(),
        internal_address: node.internal.to_string(),
        pid: node.process().map(|process| process.pid),
        state: state(node),
    };
    nodes.iter().map(row).collect()
}

fn table(rows: &[Row]) -> String {
    let cells = rows.iter().map(|row| {
        vec![
            row.node.to_string(),
            row.address.clone(),
            row.internal_address.clone(),
            row.pid.map_or("-".into(), |pid| pid.to_string()),
            row.state.to_owned(),
        ]
    });
    output::table(&["NODE", "ADDRESS", "INTERNAL", "PROCESS", "STATE"], cells)
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot {what} {}: {error}", path.display()))
}
