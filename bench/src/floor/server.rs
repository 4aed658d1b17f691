//! The floor server's one loop: enter the ring, take what is done, append, reply.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::Context;
use io_uring::{IoUring, opcode, squeue, types};

use super::connection::{Connection, Front};
use super::{
    APPEND_BYTES, FILE_NAME, FloorConfig, MAX_CONNECTIONS, QUORUM_APPEND_BYTES, WrittenFile, append,
};
use crate::aligned::{ALIGN, AlignedBuffer};
use crate::{host, wire};

const ACCEPT: u64 = 1 << 56;
const RECEIVE: u64 = 2 << 56;
const SEND: u64 = 3 << 56;
const APPEND: u64 = 4 << 56;
const STOP: u64 = 5 << 56;
const CANCEL: u64 = 6 << 56;
const KIND_MASK: u64 = 0xff << 56;

/// What a run of the server did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FloorTotals {
    /// Requests answered or to be answered.
    pub requests: u64,
    /// Durable appends.
    pub appends: u64,
}

/// Stops a running server from another thread.
pub struct StopHandle(OwnedFd);

impl StopHandle {
    /// Asks the server to end; [`FloorServer::run`] returns soon after.
    pub fn stop(&self) -> io::Result<()> {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight readable bytes, as an eventfd takes them.
        let written = unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// A group of requests on its way to the disk.
struct Append {
    /// As the followers know it.
    number: u64,
    buffer: AlignedBuffer,
    len: usize,
    /// Connection slot, its generation, correlation id. Empty again when they are answered.
    requests: Vec<(usize, u64, u64)>,
    /// How many have it on stable storage.
    copies: usize,
    /// It is on this server's own disk.
    written: bool,
}

struct Slot {
    generation: u64,
    connection: Option<Connection>,
}

/// The floor server, bound and with its file written, not yet running.
pub struct FloorServer {
    listener: TcpListener,
    file: WrittenFile,
    config: FloorConfig,
    stop: OwnedFd,
}

impl FloorServer {
    /// Binds the address and writes the append file.
    pub fn bind(config: FloorConfig) -> anyhow::Result<Self> {
        anyhow::ensure!(
            (1..=16).contains(&config.writes_in_flight),
            "{} writes in flight; choose 1 to 16",
            config.writes_in_flight
        );
        let listener =
            TcpListener::bind(config.listen).with_context(|| format!("can't listen on {}", config.listen))?;
        let file =
            WrittenFile::create(&config.dir.join(FILE_NAME), config.file_bytes.max(APPEND_BYTES as u64))?;
        // SAFETY: no preconditions; the result is checked before it is owned.
        let stop = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if stop < 0 {
            return Err(io::Error::last_os_error()).context("can't create an eventfd");
        }
        // SAFETY: just opened and owned by nobody else.
        let stop = unsafe { OwnedFd::from_raw_fd(stop) };
        Ok(Self { listener, file, config, stop })
    }

    /// The address that it listens on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// A handle that stops it.
    pub fn stop_handle(&self) -> io::Result<StopHandle> {
        Ok(StopHandle(self.stop.try_clone()?))
    }

    /// Serves on the calling thread until stopped.
    pub fn run(self) -> anyhow::Result<FloorTotals> {
        if let Some(cpu) = self.config.cpu {
            host::pin_to_cpu(cpu)?;
        }
        let mut running = Running::new(self)?;
        let served = running.serve();
        if running.drain().is_err() {
            // The kernel may still write into the buffers: they must outlive this process.
            std::mem::forget(running);
            anyhow::bail!("the ring could not be drained: {:?}", served.err());
        }
        served?;
        Ok(running.totals)
    }
}

struct Running {
    // First, so that the ring is dropped before the buffers that its operations point into.
    ring: IoUring,
    server: FloorServer,
    slots: Vec<Slot>,
    appends: Vec<Append>,
    /// Free appends; the last one is being formed.
    free: Vec<usize>,
    in_flight: usize,
    /// Appends begun.
    numbered: u64,
    /// Most bytes of one.
    append_bytes: usize,
    /// Slots of the connections to followers: what comes there are answers.
    followers: Vec<usize>,
    operations: usize,
    done: Vec<(u64, i32)>,
    stop_value: Box<[u8; 8]>,
    stopping: bool,
    /// Some connection holds frames for which no append had room.
    stalled: bool,
    totals: FloorTotals,
}

impl Running {
    fn new(server: FloorServer) -> anyhow::Result<Self> {
        let ring = append::ring(server.config.spin)?;
        let mut appends = Vec::new();
        for _ in 0..server.config.append_slots() {
            appends.push(Append {
                number: 0,
                buffer: AlignedBuffer::zeroed(APPEND_BYTES)?,
                len: 0,
                requests: Vec::with_capacity(4096),
                copies: 0,
                written: false,
            });
        }
        let buffers: Vec<libc::iovec> = appends
            .iter_mut()
            .map(|append| libc::iovec {
                iov_base: append.buffer.as_mut_ptr().cast(),
                iov_len: append.buffer.len(),
            })
            .collect();
        // SAFETY: the buffers live in `appends`, which is dropped after the ring.
        unsafe { ring.submitter().register_buffers(&buffers) }
            .context("can't register buffers; raise the memlock limit: ulimit -l unlimited")?;
        ring.submitter().register_files(&[server.file.fd()]).context("can't register the file")?;
        let free = (0..appends.len()).collect();
        let append_bytes =
            if server.config.followers.is_empty() { APPEND_BYTES } else { QUORUM_APPEND_BYTES };
        Ok(Self {
            ring,
            server,
            slots: (0..MAX_CONNECTIONS).map(|_| Slot { generation: 0, connection: None }).collect(),
            appends,
            free,
            in_flight: 0,
            numbered: 0,
            append_bytes,
            followers: Vec::new(),
            operations: 0,
            done: Vec::with_capacity(1024),
            stop_value: Box::new([0; 8]),
            stopping: false,
            stalled: false,
            totals: FloorTotals::default(),
        })
    }

    fn push(&mut self, entry: &squeue::Entry) -> anyhow::Result<()> {
        // SAFETY: every entry points into buffers of `self` that stay untouched until its completion, and
        // `drain` awaits all of them before anything is dropped.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        self.operations += 1;
        Ok(())
    }

    fn accept(&mut self) -> anyhow::Result<()> {
        let fd = types::Fd(self.server.listener.as_raw_fd());
        let entry = opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
            .flags(libc::SOCK_CLOEXEC)
            .build()
            .user_data(ACCEPT);
        self.push(&entry)
    }

    fn serve(&mut self) -> anyhow::Result<()> {
        self.accept()?;
        let stop =
            opcode::Read::new(types::Fd(self.server.stop.as_raw_fd()), self.stop_value.as_mut_ptr(), 8);
        self.push(&stop.build().user_data(STOP))?;
        self.connect_followers()?;
        while !self.stopping {
            self.wait()?;
            self.take_done()?;
            self.start_append()?;
            if self.stalled {
                self.resume_stalled()?;
                self.start_append()?;
            }
            self.start_sends()?;
        }
        Ok(())
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        match append::enter(&mut self.ring, self.server.config.spin) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => return Err(error).context("io_uring_enter failed"),
        }
        self.done.clear();
        self.done.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        self.operations = self.operations.saturating_sub(self.done.len());
        Ok(())
    }

    fn take_done(&mut self) -> anyhow::Result<()> {
        let done = std::mem::take(&mut self.done);
        for &(tag, result) in &done {
            let index = (tag & !KIND_MASK) as usize;
            match tag & KIND_MASK {
                ACCEPT => self.accepted(result)?,
                RECEIVE => self.received(index, result)?,
                SEND => self.sent(index, result)?,
                APPEND => self.appended(index, result)?,
                STOP => self.stopping = true,
                _ => {}
            }
        }
        self.done = done;
        Ok(())
    }

    fn accepted(&mut self, result: i32) -> anyhow::Result<()> {
        if result >= 0 {
            // SAFETY: the kernel just opened this descriptor for us.
            let socket = unsafe { OwnedFd::from_raw_fd(result) };
            set_nodelay(&socket)?;
            let free = self.slots.iter().position(|slot| slot.connection.is_none());
            // Without a free slot the socket is dropped, which closes it: the bound on connections.
            if let Some((index, slot)) = free.and_then(|index| Some((index, self.slots.get_mut(index)?))) {
                slot.generation += 1;
                slot.connection = Some(Connection::new(socket));
                self.consume(index)?;
            }
        }
        if self.stopping { Ok(()) } else { self.accept() }
    }

    fn connect_followers(&mut self) -> anyhow::Result<()> {
        let sockets = self.server.config.connect()?;
        for (index, (socket, slot)) in sockets.into_iter().zip(&mut self.slots).enumerate() {
            slot.connection = Some(Connection::new(socket));
            self.followers.push(index);
        }
        for index in self.followers.clone() {
            self.receive(index)?;
        }
        Ok(())
    }

    fn connection(&mut self, index: usize) -> Option<&mut Connection> {
        self.slots.get_mut(index)?.connection.as_mut()
    }

    fn received(&mut self, index: usize, result: i32) -> anyhow::Result<()> {
        let Some(connection) = self.connection(index) else { return Ok(()) };
        connection.receiving = false;
        if result <= 0 {
            connection.shut_down();
            self.reap(index);
            anyhow::ensure!(self.stopping || !self.followers.contains(&index), "a follower is gone");
            return Ok(());
        }
        connection.arrived(result as usize);
        match self.followers.contains(&index) {
            true => self.confirmed(index),
            false => self.consume(index),
        }
    }

    /// A follower has appends on stable storage.
    fn confirmed(&mut self, index: usize) -> anyhow::Result<()> {
        while let Some(connection) = self.connection(index)
            && let Front::Frame(len) = connection.front()
        {
            let number = wire::correlation_id(connection.take(len)).unwrap_or_default();
            // One that is not there any more was the last one's to confirm.
            if let Some(at) = self.appends.iter().position(|append| append.number == number) {
                self.one_more_copy(at);
            }
        }
        self.receive(index)
    }

    /// Moves whole frames into the append that is being formed and receives on; with no append free, the
    /// connection waits for one.
    fn consume(&mut self, index: usize) -> anyhow::Result<()> {
        let Some(&forming) = self.free.last() else {
            self.stalled = true;
            return Ok(());
        };
        let Some(slot) = self.slots.get_mut(index) else { return Ok(()) };
        let Some(connection) = slot.connection.as_mut().filter(|connection| !connection.closed) else {
            return Ok(());
        };
        let Some(append) = self.appends.get_mut(forming) else { return Ok(()) };
        loop {
            match connection.front() {
                Front::Frame(len) if len <= self.append_bytes => {
                    let room = append.buffer.get_mut(append.len..append.len + len);
                    let Some(room) = room.filter(|_| append.len + len <= self.append_bytes) else {
                        self.stalled = true;
                        return Ok(());
                    };
                    let frame = connection.take(len);
                    room.copy_from_slice(frame);
                    append.len += len;
                    append.requests.push((
                        index,
                        slot.generation,
                        wire::correlation_id(frame).unwrap_or_default(),
                    ));
                    self.totals.requests += 1;
                }
                Front::Frame(_) | Front::TooLarge => {
                    connection.shut_down();
                    self.reap(index);
                    return Ok(());
                }
                Front::Partial => break,
            }
        }
        match connection.receiving {
            true => Ok(()),
            false => self.receive(index),
        }
    }

    fn receive(&mut self, index: usize) -> anyhow::Result<()> {
        let Some(connection) = self.connection(index) else { return Ok(()) };
        connection.receiving = true;
        let fd = types::Fd(connection.fd());
        let room = connection.room();
        let entry = opcode::Recv::new(fd, room.as_mut_ptr(), room.len() as u32)
            .build()
            .user_data(RECEIVE | index as u64);
        self.push(&entry)
    }

    fn start_append(&mut self) -> anyhow::Result<()> {
        if self.in_flight >= self.server.config.writes_in_flight {
            return Ok(());
        }
        let Some(&forming) = self.free.last() else { return Ok(()) };
        let Some(append) = self.appends.get_mut(forming).filter(|append| append.len > 0) else {
            return Ok(());
        };
        let padded = append.len.next_multiple_of(ALIGN);
        if let Some(padding) = append.buffer.get_mut(append.len..padded) {
            padding.fill(0);
        }
        let at = self.server.file.reserve(padded);
        let start = append.buffer.as_mut_ptr();
        let entry = opcode::WriteFixed::new(types::Fixed(0), start, padded as u32, forming as u16)
            .offset(at)
            .rw_flags(libc::RWF_DSYNC)
            .build()
            .user_data(APPEND | forming as u64);
        self.numbered += 1;
        append.number = self.numbered;
        let bytes = append.buffer.get(..append.len).unwrap_or_default();
        for index in &self.followers {
            let connection = self.slots.get_mut(*index).and_then(|slot| slot.connection.as_mut());
            if let Some(connection) = connection {
                wire::append_floor_copy(&mut connection.queued, append.number, bytes);
            }
        }
        append.len = padded;
        self.free.pop();
        self.in_flight += 1;
        self.push(&entry)
    }

    fn appended(&mut self, index: usize, result: i32) -> anyhow::Result<()> {
        self.in_flight -= 1;
        let Some(append) = self.appends.get_mut(index) else { return Ok(()) };
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result)).context("the append failed");
        }
        anyhow::ensure!(result as usize == append.len, "short append: {result} of {} bytes", append.len);
        self.totals.appends += 1;
        append.written = true;
        self.one_more_copy(index);
        Ok(())
    }

    /// Answers an append when a majority has it, and frees it when nothing needs it any more.
    fn one_more_copy(&mut self, index: usize) {
        let Some(append) = self.appends.get_mut(index) else { return };
        append.copies += 1;
        if append.copies >= self.server.config.majority() {
            let body = self.server.config.reply_body_bytes;
            for (slot, generation, correlation) in append.requests.drain(..) {
                let slot = self.slots.get_mut(slot).filter(|slot| slot.generation == generation);
                let connection = slot.and_then(|slot| slot.connection.as_mut());
                if let Some(connection) = connection.filter(|connection| !connection.closed) {
                    wire::append_floor_reply(&mut connection.queued, correlation, body);
                }
            }
        }
        if append.written && append.requests.is_empty() {
            (append.number, append.len, append.copies, append.written) = (0, 0, 0, false);
            // At the bottom: an append that is being formed stays the last.
            self.free.insert(0, index);
        }
    }

    fn resume_stalled(&mut self) -> anyhow::Result<()> {
        self.stalled = false;
        for index in 0..self.slots.len() {
            if self.followers.contains(&index) {
                continue;
            }
            if self.connection(index).is_some_and(|connection| !connection.receiving) {
                self.consume(index)?;
            }
        }
        Ok(())
    }

    fn start_sends(&mut self) -> anyhow::Result<()> {
        for index in 0..self.slots.len() {
            let Some(connection) = self.connection(index) else { continue };
            if connection.sending || connection.closed || connection.queued.is_empty() {
                continue;
            }
            connection.sending_bytes.clear();
            connection.sent = 0;
            std::mem::swap(&mut connection.sending_bytes, &mut connection.queued);
            self.send(index)?;
        }
        Ok(())
    }

    fn send(&mut self, index: usize) -> anyhow::Result<()> {
        let Some(connection) = self.connection(index) else { return Ok(()) };
        connection.sending = true;
        let fd = types::Fd(connection.fd());
        let rest = connection.sending_bytes.get(connection.sent..).unwrap_or_default();
        let entry = opcode::Send::new(fd, rest.as_ptr(), rest.len() as u32)
            .flags(libc::MSG_NOSIGNAL)
            .build()
            .user_data(SEND | index as u64);
        self.push(&entry)
    }

    fn sent(&mut self, index: usize, result: i32) -> anyhow::Result<()> {
        let Some(connection) = self.connection(index) else { return Ok(()) };
        connection.sending = false;
        if result <= 0 {
            connection.shut_down();
            self.reap(index);
            return Ok(());
        }
        connection.sent += result as usize;
        if connection.sent < connection.sending_bytes.len() {
            return self.send(index);
        }
        self.reap(index);
        Ok(())
    }

    /// Forgets a closed connection once the kernel is done with its buffers.
    fn reap(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index)
            && slot.connection.as_ref().is_some_and(|connection| connection.closed && connection.idle())
        {
            slot.connection = None;
        }
    }

    /// Ends every operation and awaits it.
    fn drain(&mut self) -> anyhow::Result<()> {
        self.stopping = true;
        for slot in &mut self.slots {
            if let Some(connection) = &mut slot.connection {
                connection.shut_down();
            }
        }
        for tag in [ACCEPT, STOP] {
            let cancel = opcode::AsyncCancel::new(tag).build().user_data(CANCEL);
            self.push(&cancel)?;
        }
        while self.operations > 0 {
            self.wait()?;
            // A failed append was reported already, or fails a run that is being ended anyway.
            let _ = self.take_done();
        }
        Ok(())
    }
}

pub(super) fn set_nodelay(socket: &OwnedFd) -> anyhow::Result<()> {
    let one: libc::c_int = 1;
    // SAFETY: the option's value is a readable c_int of the given size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            (&raw const one).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result != 0 { Err(io::Error::last_os_error()).context("can't set TCP_NODELAY") } else { Ok(()) }
}
