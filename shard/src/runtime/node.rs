//! A node: its data folder, its client port and its shards.
//!
//! Owner: any thread; everything here talks to the shards through their channels.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyralog_core::{FeatureLevels, GroupId, NodeId, ShardId};
use pyralog_net::message::PartitionState;
use pyralog_net::socket::SharedPort;
use pyralog_replication::metadata::Catalog;

use super::data_dir::DataDir;
use super::driver::{Clock, Mailbox, ShardMessage};
use super::paths::Paths;
use super::peers::{LinkTiming, LinksConfig, new_session, resolve};
use super::report::{PartitionsWanted, ShardReport};
use super::segment_reads::JournalWritten;
use super::shard::{self, LinksStart, ShardStart};
use super::wake::Waker;
use crate::engine::{EngineConfig, LogLevel};
use crate::recovery_budget::RecoveryBudget;

/// Descriptors kept for the program itself: rings, eventfds, listeners, journal files, the control thread.
const RESERVED_DESCRIPTORS: usize = 256;
/// Most segment and index files that one shard keeps open.
const MAX_HANDLES_PER_SHARD: usize = 4096;
/// How long questions to the shards wait for their answers.
const ANSWER_BOUND: Duration = Duration::from_secs(2);
/// How long a shutdown waits for a shard; the shard itself gives up before.
const SHUTDOWN_BOUND: Duration = Duration::from_secs(75);

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// One entry per shard: the CPU that it is pinned to, or `None` to run where the system likes.
    pub shards: Vec<Option<usize>>,
    /// Checkpoints and segments.
    pub data_dir: PathBuf,
    /// Journal files; may be `data_dir`.
    pub journal_dir: PathBuf,
    /// The client port. Port 0 takes a free one, shared by all shards.
    pub listen: SocketAddr,
    /// The other nodes of the cluster; `None` on a node that is alone.
    pub internal: Option<InternalOptions>,
    /// Client connections of the node; lowered when the limit of open files demands it.
    pub max_connections: usize,
    /// A send or a partial frame without progress for this long closes its connection.
    pub request_timeout: Duration,
    /// Look for work this long before sleeping, microseconds. Only for shards with CPUs of their own.
    pub spin_us: u64,
    /// Ask for transparent huge pages for the cache.
    pub transparent_hugepages: bool,
    /// Settings of the engines; node, shard, number of shards and journal id are filled in. An empty
    /// `advertised_address` becomes the address that is listened on.
    pub engine: EngineConfig,
}

/// How a node speaks with the others of its cluster.
#[derive(Clone, Debug)]
pub struct InternalOptions {
    /// The internal port, shared by all shards. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Names the cluster; the same on all of its nodes. A node with another one is refused.
    pub cluster_id: u64,
    /// The internal addresses of the other nodes, `address:port` or `host:port`.
    pub peers: BTreeMap<NodeId, String>,
    /// Keep-alive, timeouts and pauses of the links.
    pub timing: LinkTiming,
}

/// What the node tells the control thread.
#[derive(Debug)]
pub enum ControlEvent {
    /// A client speaks HTTP: serve it there. `prefix` was read from it already. The socket blocks:
    /// call `set_nonblocking` before tokio gets it.
    HttpSocket {
        /// The socket.
        stream: TcpStream,
        /// Its first bytes.
        prefix: Vec<u8>,
    },
    /// A new catalogue is committed.
    Catalog(Arc<Catalog>),
    /// A line for the log.
    Log {
        /// Where it happened.
        shard: ShardId,
        /// How bad.
        level: LogLevel,
        /// What.
        text: String,
    },
    /// A replay that takes longer than a second, each half second.
    RecoveryProgress {
        /// Of which shard.
        shard: ShardId,
        /// Bytes replayed.
        done: u64,
        /// Bytes to replay.
        total: u64,
    },
    /// The shard serves.
    ShardReady {
        /// Which.
        shard: ShardId,
    },
    /// The shard is gone: it could not recover its data, or it hit a bug.
    ShardFailed {
        /// Which.
        shard: ShardId,
        /// Why.
        error: String,
    },
}

/// Why a node can't start, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

impl StartError {
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }
}

struct Shard {
    mailbox: Mailbox,
    /// Closed when the thread is at its end.
    ended: flume::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// A running node.
pub struct Node {
    address: SocketAddr,
    internal: Option<SocketAddr>,
    max_connections: usize,
    shards: Vec<Shard>,
    // Last: the folder is locked until no shard writes to it.
    data: DataDir,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({}, {} shards)", self.address, self.shards.len())
    }
}

impl Node {
    /// Starts the shards. Returns when each has its executor and its ring; recovery goes on, and
    /// [`ControlEvent::ShardReady`] or [`ControlEvent::ShardFailed`] comes from each.
    pub fn start(options: NodeOptions, control: flume::Sender<ControlEvent>) -> Result<Self, StartError> {
        let count = u16::try_from(options.shards.len()).ok().filter(|count| *count > 0);
        let Some(count) = count.filter(|count| *count <= pyralog_core::limits::MAX_SHARDS) else {
            let text = format!(
                "{} shards; 1 to {} are possible",
                options.shards.len(),
                pyralog_core::limits::MAX_SHARDS
            );
            return Err(StartError(text));
        };
        let NodeId(node_id) = options.engine.node;
        let levels = options.engine.feature_levels;
        let mut data = DataDir::open(&options.data_dir, &options.journal_dir, node_id, count, levels)?;
        if data.node.shards != count {
            let config = EngineConfig { shards: count, ..options.engine.clone() };
            super::rehome::change_shards(&mut data, &options.data_dir, &options.journal_dir, &config)?;
        }
        let mut port =
            SharedPort::open(options.listen).map_err(|error| listen_error(options.listen, &error))?;
        let address = port.address();
        let mut internal =
            options.internal.as_ref().map(|internal| Internal::open(internal, levels)).transpose()?;
        super::threads::remember_cpus(options.shards.iter().flatten().copied());
        crate::pages::use_transparent_hugepages(options.transparent_hugepages);
        let (max_handles, max_connections) = descriptor_budget(&options);

        let mut engine = options.engine.clone();
        engine.shards = count;
        if engine.advertised_address.is_empty() {
            engine.advertised_address = address.to_string();
        }
        let mut mailboxes = Vec::new();
        let mut receivers = Vec::new();
        for _ in 0..count {
            let waker =
                Waker::new().map_err(|error| StartError(format!("can't make an eventfd: {error}")))?;
            let (sender, receiver) = flume::unbounded();
            mailboxes.push(Mailbox { sender, waker });
            receivers.push(receiver);
        }
        let connections = Arc::new(AtomicUsize::new(0));
        let clock = Clock(Instant::now());
        let journal_written = JournalWritten::default();
        let recovery_budget = engine.recovery_bytes_per_s.map(RecoveryBudget::new);
        let (started, all_started) = flume::bounded(usize::from(count));
        let identity = data.node.clone();
        let internal_address = internal.as_ref().map(|internal| internal.port.address());
        let names = internal.as_ref().map(|_| look_names_up(mailboxes.clone())).transpose()?;
        let mut node =
            Self { address, internal: internal_address, max_connections, shards: Vec::new(), data };
        for (index, (cpu, receiver)) in options.shards.iter().zip(receivers).enumerate() {
            let shard = ShardId(index as u16);
            let listener = port.listener().map_err(|error| listen_error(address, &error))?;
            let links = match (&mut internal, &names) {
                (Some(internal), Some(names)) => {
                    Some(internal.links(options.engine.node, shard, count, names)?)
                }
                _ => None,
            };
            let (alive, ended) = flume::bounded(1);
            let start = ShardStart {
                shard,
                cpu: *cpu,
                listener,
                links,
                config: EngineConfig {
                    shard,
                    journal_id: identity.shard_journal_id(shard),
                    disk_id: identity.disk_id(),
                    has_begun: identity.begun,
                    ..engine.clone()
                },
                paths: Paths::of_generation(
                    &options.data_dir,
                    &options.journal_dir,
                    identity.generation,
                    shard,
                ),
                max_handles,
                max_connections,
                request_timeout: options.request_timeout,
                spin_us: options.spin_us,
                mailbox: receiver,
                mailboxes: mailboxes.clone(),
                control: control.clone(),
                node_connections: Arc::clone(&connections),
                journal_written: journal_written.clone(),
                recovery_budget: recovery_budget.clone(),
                clock,
                started: started.clone(),
                _alive: alive,
            };
            let thread = shard::spawn(start)
                .map_err(|error| StartError(format!("can't start the thread of shard {shard}: {error}")))?;
            let mailbox = mailboxes.get(index).cloned();
            let Some(mailbox) = mailbox else { continue };
            node.shards.push(Shard { mailbox, ended, thread: Some(thread) });
        }
        drop(started);
        for _ in 0..count {
            match all_started.recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(StartError("a shard's thread died while starting; see the log".into())),
            }
        }
        Ok(node)
    }

    /// Notes in the data folder that all shards are ready: from now on one that holds nothing has lost it.
    pub fn remember_begun(&self) -> Result<(), StartError> {
        self.data.remember_begun()
    }

    /// The address that clients connect to.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The address that other nodes connect to, if there are any.
    pub fn internal_addr(&self) -> Option<SocketAddr> {
        self.internal
    }

    /// Client connections that the node takes, after the limit of open files was looked at.
    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// Asks every shard for a report. The answers come in any order; a shard that is recovering or gone does not
    /// answer until it serves.
    pub fn ask_status(&self) -> flume::Receiver<ShardReport> {
        let (sender, receiver) = flume::bounded(self.shards.len());
        for shard in &self.shards {
            shard.mailbox.send(ShardMessage::Report(sender.clone()));
        }
        receiver
    }

    /// The reports of the shards that answer within two seconds, in the order of the shards.
    pub fn status(&self) -> Vec<ShardReport> {
        let mut reports = collect(&self.ask_status(), self.shards.len());
        reports.sort_by_key(|report| report.shard);
        reports
    }

    /// Asks every shard for the states of its partitions, of one topic or of all.
    pub fn ask_partitions(&self, topic: Option<u32>) -> flume::Receiver<Vec<(GroupId, PartitionState)>> {
        let (sender, receiver) = flume::bounded(self.shards.len());
        for shard in &self.shards {
            shard.mailbox.send(ShardMessage::Partitions(PartitionsWanted::OfTopic(topic), sender.clone()));
        }
        receiver
    }

    /// Asks every shard for the states of those of these partitions that it has.
    pub fn ask_groups(&self, groups: Arc<[GroupId]>) -> flume::Receiver<Vec<(GroupId, PartitionState)>> {
        let (sender, receiver) = flume::bounded(self.shards.len());
        for shard in &self.shards {
            let wanted = PartitionsWanted::Groups(Arc::clone(&groups));
            shard.mailbox.send(ShardMessage::Partitions(wanted, sender.clone()));
        }
        receiver
    }

    /// The states of the partitions of the shards that answer within two seconds, in the order of their ids.
    pub fn partitions(&self, topic: Option<u32>) -> Vec<(GroupId, PartitionState)> {
        let mut states: Vec<_> =
            collect(&self.ask_partitions(topic), self.shards.len()).into_iter().flatten().collect();
        states.sort_by_key(|(group, _)| *group);
        states
    }

    /// Stops every shard: no new requests, everything on stable storage, connections closed. Bounded in time;
    /// the error names the shards that did not come to their end.
    pub fn shutdown(mut self) -> Result<(), String> {
        self.stop()
    }

    fn stop(&mut self) -> Result<(), String> {
        for shard in &self.shards {
            shard.mailbox.send(ShardMessage::Shutdown);
        }
        let end = Instant::now() + SHUTDOWN_BOUND;
        let mut late = Vec::new();
        for (index, shard) in self.shards.iter_mut().enumerate() {
            let left = end.saturating_duration_since(Instant::now());
            match (shard.ended.recv_timeout(left), shard.thread.take()) {
                (Err(flume::RecvTimeoutError::Timeout), _) => late.push(index.to_string()),
                (_, Some(thread)) => {
                    let _ = thread.join();
                }
                (_, None) => {}
            }
        }
        if late.is_empty() {
            return Ok(());
        }
        Err(format!("shards {} did not stop in time; the next start replays their journals", late.join(", ")))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!("{error}");
        }
    }
}

/// The internal port while the shards are started.
struct Internal {
    options: InternalOptions,
    port: SharedPort,
    levels: FeatureLevels,
}

impl Internal {
    fn open(options: &InternalOptions, levels: FeatureLevels) -> Result<Self, StartError> {
        if options.peers.len() >= pyralog_core::limits::MAX_NODES {
            let (nodes, most) = (options.peers.len() + 1, pyralog_core::limits::MAX_NODES);
            return Err(StartError(format!("{nodes} nodes in node.cluster_nodes, {most} is the most")));
        }
        let port =
            SharedPort::open(options.listen).map_err(|error| internal_error(options.listen, &error))?;
        Ok(Self { options: options.clone(), port, levels })
    }

    fn links(
        &mut self,
        node: NodeId,
        shard: ShardId,
        shards: u16,
        names: &flume::Sender<(ShardId, NodeId, String)>,
    ) -> Result<LinksStart, StartError> {
        let address = self.port.address();
        let listener = self.port.listener().map_err(|error| internal_error(address, &error))?;
        let config = LinksConfig {
            cluster_id: self.options.cluster_id,
            node,
            shard,
            shards,
            session: new_session(),
            levels: self.levels,
            peers: self.options.peers.clone(),
            timing: self.options.timing,
            seed: new_session(),
        };
        Ok(LinksStart { listener, config, names: names.clone() })
    }
}

/// A thread that looks names up until the last shard is gone. It may be in the system's resolver then: nobody waits for it.
fn look_names_up(mailboxes: Vec<Mailbox>) -> Result<flume::Sender<(ShardId, NodeId, String)>, StartError> {
    let (names, asked) = flume::unbounded::<(ShardId, NodeId, String)>();
    let work = move || {
        for (shard, node, name) in asked {
            if let Some(mailbox) = mailboxes.get(usize::from(shard.0)) {
                mailbox.send(ShardMessage::Address(node, resolve::look_up(&name)));
            }
        }
    };
    let thread = std::thread::Builder::new().name("pyra-names".into()).spawn(work);
    thread.map_err(|error| StartError(format!("can't start the thread that looks names up: {error}")))?;
    Ok(names)
}

fn internal_error(address: SocketAddr, error: &io::Error) -> StartError {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "another process listens there; stop it or choose another port",
        _ => "check network.internal_address",
    };
    StartError(format!("can't listen for other nodes on {address}: {error}; {hint}"))
}

fn collect<T>(answers: &flume::Receiver<T>, count: usize) -> Vec<T> {
    let end = Instant::now() + ANSWER_BOUND;
    (0..count).map_while(|_| answers.recv_deadline(end).ok()).collect()
}

fn listen_error(address: SocketAddr, error: &io::Error) -> StartError {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "another process listens there; stop it or choose another port",
        io::ErrorKind::PermissionDenied => "ports below 1024 need privileges; choose a higher one",
        io::ErrorKind::AddrNotAvailable => "no interface of this host has that address; try 0.0.0.0",
        _ => "check network.listen_address",
    };
    StartError(format!("can't listen on {address}: {error}; {hint}"))
}

/// Shares the limit of open files out between segment files and connections.
fn descriptor_budget(options: &NodeOptions) -> (usize, usize) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills a live struct.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    let limit = if known { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) } else { 1024 };
    let shards = options.shards.len().max(1);
    // A link each way between each of our shards and, taking theirs to be as many, each of the others'.
    let peers = options.internal.as_ref().map_or(0, |internal| internal.peers.len());
    let links = shards.saturating_mul(shards).saturating_mul(2 * peers);
    let usable = limit.saturating_sub(RESERVED_DESCRIPTORS + links);
    let max_handles = (usable / 4 / shards).clamp(16, MAX_HANDLES_PER_SHARD);
    let possible = usable.saturating_sub(max_handles.saturating_mul(shards)).max(16);
    (max_handles, possible.min(options.max_connections))
}
