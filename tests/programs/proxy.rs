//! What stands between the nodes of a test: each link from one node to another goes through a port of this process,
//! which closes it, swallows what goes one way, and makes it late or slow.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// How what one node says gets to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// At once.
    Open,
    /// Its links are closed, and new ones are closed as soon as they are there.
    Closed,
    /// Not at all, and nobody is told: what is sent is taken and gone.
    Swallowed,
    /// So much later, in order.
    Late(Duration),
    /// So many bytes a second.
    Slow(u32),
}

/// Bytes that are taken from a socket at once.
const PIECE_BYTES: usize = 64 << 10;
/// Bytes that are given on at once where it is slow.
const SLOW_PIECE_BYTES: usize = 1 << 10;
/// Pieces between the two sockets of a way.
const PIECES: usize = 64;

/// From and to.
type Pair = (u16, u16);

/// The ways between all nodes of a cluster, numbered from 1.
pub(crate) struct Network {
    nodes: u16,
    ways: BTreeMap<Pair, watch::Sender<Way>>,
    addresses: BTreeMap<Pair, SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Network {
    /// All ways are open. `listens_at` says where a node waits for the others.
    pub(crate) fn new(nodes: u16, listens_at: impl Fn(u16) -> SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let pairs = |from| (1..=nodes).filter(move |to| *to != from).map(move |to| (from, to));
        let pairs: Vec<Pair> = (1..=nodes).flat_map(pairs).collect();
        let ways: BTreeMap<Pair, _> =
            pairs.iter().map(|pair| (*pair, watch::Sender::new(Way::Open))).collect();
        let mut addresses = BTreeMap::new();
        for (from, to) in pairs {
            let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
            addresses.insert((from, to), listener.local_addr().unwrap());
            let both = (ways[&(from, to)].subscribe(), ways[&(to, from)].subscribe());
            runtime.spawn(accept(listener, listens_at(to), both));
        }
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || drop(runtime.block_on(stopped)));
        Self { nodes, ways, addresses, stop: Some(stop), thread: Some(thread) }
    }

    /// Where `from` dials `to`.
    pub(crate) fn address(&self, from: u16, to: u16) -> SocketAddr {
        self.addresses[&(from, to)]
    }

    pub(crate) fn set(&self, from: u16, to: u16, way: Way) {
        self.ways[&(from, to)].send_replace(way);
    }

    /// What `node` says.
    pub(crate) fn set_from(&self, node: u16, way: Way) {
        self.others(node).for_each(|other| self.set(node, other, way));
    }

    /// What `node` is told.
    pub(crate) fn set_to(&self, node: u16, way: Way) {
        self.others(node).for_each(|other| self.set(other, node, way));
    }

    /// What `node` says and what it is told.
    pub(crate) fn set_around(&self, node: u16, way: Way) {
        self.set_from(node, way);
        self.set_to(node, way);
    }

    /// All ways are open again.
    pub(crate) fn heal(&self) {
        (1..=self.nodes).for_each(|node| self.set_from(node, Way::Open));
    }

    fn others(&self, node: u16) -> impl Iterator<Item = u16> {
        (1..=self.nodes).filter(move |other| *other != node)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The thread ends with its runtime, and all tasks with that.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    (up, down): (watch::Receiver<Way>, watch::Receiver<Way>),
) {
    loop {
        // An error is that of one connection.
        if let Ok((dialler, _)) = listener.accept().await {
            tokio::spawn(carry(dialler, target, up.clone(), down.clone()));
        }
    }
}

/// One connection, until either end closes it or a way does. Dropping the sockets is what closes them.
async fn carry(dialler: TcpStream, target: SocketAddr, up: watch::Receiver<Way>, down: watch::Receiver<Way>) {
    let relays = async {
        // Two that do not hear each other do not connect.
        until(up.clone(), |way| way != Way::Swallowed).await;
        until(down.clone(), |way| way != Way::Swallowed).await;
        let Ok(listener) = TcpStream::connect(target).await else { return };
        dialler.set_nodelay(true).unwrap();
        listener.set_nodelay(true).unwrap();
        let ((from_dialler, to_dialler), (from_listener, to_listener)) =
            (dialler.into_split(), listener.into_split());
        tokio::select! {
            () = relay(from_dialler, to_listener, up.clone()) => {}
            () = relay(from_listener, to_dialler, down.clone()) => {}
        }
    };
    let closed = |way| way == Way::Closed;
    tokio::select! {
        biased;
        () = until(up.clone(), closed) => {}
        () = until(down.clone(), closed) => {}
        () = relays => {}
    }
}

async fn until(mut way: watch::Receiver<Way>, is: impl Fn(Way) -> bool) {
    if way.wait_for(|way| is(*way)).await.is_err() {
        pending().await
    }
}

/// Carries bytes one way until they end, or until some of them were swallowed and the way is open again: what
/// follows a hole is of no use.
async fn relay(from: OwnedReadHalf, to: OwnedWriteHalf, way: watch::Receiver<Way>) {
    let (queue, queued) = mpsc::channel(PIECES);
    let give = give(queued, to, way.clone());
    tokio::pin!(give);
    tokio::select! {
        () = take(from, queue, way) => give.await,
        () = &mut give => {}
    }
}

/// Fills the queue with pieces and when each is due.
async fn take(mut from: OwnedReadHalf, queue: mpsc::Sender<(Instant, Vec<u8>)>, way: watch::Receiver<Way>) {
    let mut piece = vec![0; PIECE_BYTES];
    let mut hole = false;
    loop {
        let count = tokio::select! {
            read = from.read(&mut piece) => read.unwrap_or(0),
            () = until(way.clone(), |way| hole && way != Way::Swallowed) => return,
        };
        let now = *way.borrow();
        if now == Way::Swallowed {
            hole = true;
            if count == 0 {
                // That it ended is not heard either.
                return until(way, |way| way != Way::Swallowed).await;
            }
            continue;
        }
        if count == 0 || hole {
            return;
        }
        let delay = if let Way::Late(delay) = now { delay } else { Duration::ZERO };
        if queue.send((Instant::now() + delay, piece[..count].to_vec())).await.is_err() {
            return;
        }
    }
}

/// Writes what comes out of the queue when it is due.
async fn give(
    mut queued: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut to: OwnedWriteHalf,
    way: watch::Receiver<Way>,
) {
    while let Some((due, piece)) = queued.recv().await {
        sleep_until(due).await;
        for part in piece.chunks(SLOW_PIECE_BYTES) {
            let now = *way.borrow();
            if let Way::Slow(bytes_per_s) = now {
                sleep(Duration::from_secs(1).mul_f64(part.len() as f64 / f64::from(bytes_per_s))).await;
            }
            if to.write_all(part).await.is_err() {
                return;
            }
        }
    }
}
