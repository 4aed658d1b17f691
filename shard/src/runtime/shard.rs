//! The thread of one shard: its executor, its ring, recovery, then the driver.

use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};
use pyralog_core::limits::{RECV_BUFFER_BYTES, RECV_BUFFERS_PER_SHARD};
use pyralog_core::{NodeId, ShardId};

use super::connections::Connections;
use super::doorman::Doorman;
use super::driver::{Clock, Driver, Mailbox, Parts, ShardMessage};
use super::files::Files;
use super::node::{ControlEvent, StartError};
use super::park::Park;
use super::paths::Paths;
use super::peers::{Links, LinksConfig, resolve::Resolve};
use super::receive::Identity;
use super::recovery_disk::RealDisk;
use super::ring::Ring;
use super::segment_reads::JournalWritten;
use crate::engine::{EngineConfig, recover};
use crate::recovery_budget::RecoveryBudget;

/// Memory that glommio registers for its own file I/O; its default needs more locked memory than an ordinary
/// user has (decision D12).
const EXECUTOR_IO_BYTES: usize = 1 << 20;
/// When glommio asks its tasks to make room for each other. Here there is one, which never does. It must not come soon:
/// when it comes before the first task has run at all, as on a busy machine, glommio takes the executor for idle and
/// sleeps for ever.
const PREEMPT: Duration = Duration::from_secs(3600);
/// A replay that takes longer than this tells how far it is, this often.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// What a shard's thread starts with.
pub(super) struct ShardStart {
    pub(super) shard: ShardId,
    pub(super) cpu: Option<usize>,
    pub(super) listener: TcpListener,
    /// Of a node that has others.
    pub(super) links: Option<LinksStart>,
    pub(super) config: EngineConfig,
    pub(super) paths: Paths,
    pub(super) max_handles: usize,
    pub(super) max_connections: usize,
    pub(super) request_timeout: Duration,
    pub(super) spin_us: u64,
    pub(super) mailbox: flume::Receiver<ShardMessage>,
    pub(super) mailboxes: Vec<Mailbox>,
    pub(super) control: flume::Sender<ControlEvent>,
    pub(super) node_connections: Arc<AtomicUsize>,
    pub(super) journal_written: JournalWritten,
    pub(super) recovery_budget: Option<RecoveryBudget>,
    pub(super) clock: Clock,
    /// Told once, when the executor and the ring are there or can't be.
    pub(super) started: flume::Sender<Result<(), StartError>>,
    /// Dropped when the thread is at its end.
    pub(super) _alive: flume::Sender<()>,
}

/// What a shard's links to other nodes start with.
pub(super) struct LinksStart {
    pub(super) listener: TcpListener,
    pub(super) config: LinksConfig,
    /// Where names of nodes are looked up.
    pub(super) names: flume::Sender<(ShardId, NodeId, String)>,
}

impl LinksStart {
    fn links(self) -> Box<Links> {
        let (shard, names) = (self.config.shard, self.names);
        let resolve: Resolve = Box::new(move |node, name| {
            let _ = names.send((shard, node, name.to_owned()));
        });
        Box::new(Links::new(self.config, self.listener, Some(resolve)))
    }
}

/// Starts the shard's thread.
pub(super) fn spawn(start: ShardStart) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("pyra-shard-{}", start.shard)).spawn(move || {
        let (shard, control) = (start.shard, start.control.clone());
        let failed = match catch_unwind(AssertUnwindSafe(|| run(start))) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                format!("the shard hit a bug, please report it: {}", text.unwrap_or_default())
            }
        };
        let _ = control.send(ControlEvent::ShardFailed { shard, error: failed });
    })
}

fn executor(cpu: Option<usize>) -> Result<LocalExecutor, String> {
    let placement = cpu.map_or(Placement::Unbound, Placement::Fixed);
    LocalExecutorBuilder::new(placement)
        .io_memory(EXECUTOR_IO_BYTES)
        .preempt_timer(PREEMPT)
        .make()
        .map_err(|error| {
            let pinned = cpu.map(|cpu| format!(" pinned to CPU {cpu}")).unwrap_or_default();
            format!(
                "can't make an executor{pinned}: {error}; if it is about memlock run: ulimit -l 65536; if the CPU is \
                 not there correct runtime.cpus"
            )
        })
}

fn run(start: ShardStart) -> Result<(), String> {
    let executor = match executor(start.cpu) {
        Ok(executor) => executor,
        Err(error) => {
            let _ = start.started.send(Err(StartError::new(error)));
            return Ok(());
        }
    };
    executor.run(serve(start))
}

async fn serve(start: ShardStart) -> Result<(), String> {
    let set_up = || -> Result<_, String> {
        let mut ring = Ring::new().map_err(|error| error.to_string())?;
        ring.provide_recv_buffers(RECV_BUFFERS_PER_SHARD as u16, RECV_BUFFER_BYTES)
            .map_err(|error| error.to_string())?;
        let waker = start.mailboxes.get(usize::from(start.shard.0)).map(|mailbox| mailbox.waker.clone());
        let waker = waker.ok_or("a shard without a mailbox")?;
        let files =
            Files::new(start.paths.clone(), start.max_handles, waker.clone(), start.journal_written.clone())
                .map_err(|error| format!("can't start the threads for files: {error}"))?;
        Ok((ring, waker, files))
    };
    let (ring, waker, files) = match set_up() {
        Ok(parts) => {
            let _ = start.started.send(Ok(()));
            parts
        }
        Err(error) => {
            let _ = start.started.send(Err(StartError::new(error)));
            return Ok(());
        }
    };
    let make_disk = {
        let (paths, control, shard) = (start.paths.clone(), start.control.clone(), start.shard);
        Box::new(move || RealDisk::new(paths.clone(), progress(control.clone(), shard)))
    };
    let doorman = Doorman::start(&start.listener, start.control.clone()).map_err(|error| {
        format!("can't start the thread that answers while the journal is replayed: {error}")
    })?;
    let engine = recover(start.config.clone(), &mut make_disk(), start.clock.now())
        .map_err(|error| format!("shard {} can't start from its data: {error}", start.shard))?;
    let waiting = doorman.end();
    let identity = Identity {
        node: start.config.node.0,
        shard: start.shard.0,
        shards: start.config.shards,
        server_version: start.config.server_version.clone(),
        catalog_version: 0,
    };
    let timeout_us = start.request_timeout.as_micros() as u64;
    let mut connections =
        Connections::new(start.listener, identity, start.node_connections, start.max_connections, timeout_us)
            .map_err(|error| format!("can't make a histogram: {error}"))?;
    for socket in waiting {
        connections.admit(socket, start.clock.now().monotonic_us);
    }
    let driver = Driver::new(Parts {
        shard: start.shard,
        ring,
        engine,
        config: start.config,
        connections,
        links: start.links.map(LinksStart::links),
        files,
        mailbox: start.mailbox,
        waker,
        shards: start.mailboxes,
        control: start.control,
        clock: start.clock,
        park: Park::new(start.spin_us),
        make_disk,
        recovery_budget: start.recovery_budget,
    });
    driver.run().map_err(|error| format!("the shard's io_uring failed: {error}"))
}

/// Tells the control thread how far a long replay is.
fn progress(control: flume::Sender<ControlEvent>, shard: ShardId) -> Box<dyn FnMut(u64, u64)> {
    let started = Instant::now();
    let mut last: Option<Instant> = None;
    Box::new(move |done, total| {
        let now = Instant::now();
        let due = last.is_none_or(|last| now.duration_since(last) >= PROGRESS_EVERY);
        if due && now.duration_since(started) >= PROGRESS_AFTER {
            last = Some(now);
            let _ = control.send(ControlEvent::RecoveryProgress { shard, done, total });
        }
    })
}
