//! One socket that belongs to one shard: requests go out pipelined, replies come back borrowed from its buffer.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::ops::Range;
use std::time::Duration;

use pyralog_core::limits::FRAME_HEADER_BYTES;

use super::ClientError;
use crate::codec::Reply;
use crate::frame::{FrameHeader, REPLY_BIT, kind};
use crate::hello::{ANY_SHARD, Hello, HelloReply, PROTOCOL_VERSION};
use crate::message::{Request, Response};
use crate::socket::{receive_now, send_now, set_up_connection};

/// Requests are written to the socket when this many bytes have gathered, or when a reply is waited for.
const SEND_AT_BYTES: usize = 64 << 10;
/// The receive buffer grows by at least this much.
const READ_BYTES: usize = 4 << 10;
/// A buffer above this size is given back once it is empty, if nobody says otherwise.
const KEEP_BYTES: usize = 1 << 20;

/// A connection after its handshake. Not thread-safe; any thread may own it.
///
/// Keep at most `hello().max_in_flight_requests` requests outstanding: beyond it the server stops reading.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    address: String,
    hello: HelloReply,
    output: Vec<u8>,
    /// Of `output`, what [`Self::flush_now`] has written.
    written: usize,
    /// Received bytes are `input[start..end]`.
    input: Vec<u8>,
    start: usize,
    end: usize,
    next_correlation_id: u64,
    outstanding: usize,
    timeout: Duration,
    read_timeout: Duration,
    /// A receive buffer above this size is given back once it is empty.
    keep_bytes: usize,
}

/// A reply with the buffer that it was received into.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) correlation_id: u64,
    pub(super) response: Response,
    pub(super) buffer: Vec<u8>,
    /// Whole batches after a fetch: where they are in the buffer.
    pub(super) batches: Range<usize>,
}

/// A reply, borrowed from the connection's buffer until the next call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// What [`Connection::send`] returned for its request.
    pub correlation_id: u64,
    /// The reply; an error reply is [`Response::Error`].
    pub response: Response,
    /// Whole batches after a fetch.
    pub batches: &'a [u8],
}

impl Connection {
    /// Connects and shakes hands. `wanted_shard` `None` stays with the shard that accepts. `timeout` is for the
    /// whole of it and, from then on, for every wait for a reply.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when nobody answers there; [`ClientError::Server`] when the node refuses.
    pub fn connect(address: &str, wanted_shard: Option<u16>, timeout: Duration) -> Result<Self, ClientError> {
        Self::connect_as("", address, wanted_shard, timeout)
    }

    /// [`Self::connect`] with a name for the operator of the node to see, at most 128 bytes.
    pub fn connect_as(
        client_name: &str,
        address: &str,
        wanted_shard: Option<u16>,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let timeout = timeout.max(Duration::from_millis(1));
        let stream = open(address, timeout)
            .map_err(|source| ClientError::Connect { address: address.to_owned(), source: source.into() })?;
        let mut connection = Self {
            stream,
            address: address.to_owned(),
            hello: HelloReply::unknown(),
            output: Vec::new(),
            written: 0,
            input: Vec::new(),
            start: 0,
            end: 0,
            next_correlation_id: 1,
            outstanding: 0,
            timeout,
            read_timeout: timeout,
            keep_bytes: KEEP_BYTES,
        };
        connection.shake_hands(client_name, wanted_shard)?;
        Ok(connection)
    }

    fn shake_hands(&mut self, client_name: &str, wanted_shard: Option<u16>) -> Result<(), ClientError> {
        let wanted_shard = wanted_shard.unwrap_or(ANY_SHARD);
        let (protocol_min, protocol_max) = (PROTOCOL_VERSION, PROTOCOL_VERSION);
        let hello = Hello { protocol_min, protocol_max, wanted_shard, client_name };
        hello.encode(0, &mut self.output)?;
        self.flush()?;
        let header = self.receive_frame(self.timeout)?;
        let body = body_of(&self.input, &mut self.start, header);
        let hello = match header.kind {
            kind::ERROR => Response::decode(kind::ERROR, body).map(Err),
            _ => HelloReply::decode(body).map(Ok),
        };
        self.hello = match hello {
            Ok(Ok(hello)) if header.kind == kind::HELLO | REPLY_BIT => hello,
            Ok(Err(Reply { response: Response::Error(error), .. })) => {
                return Err(ClientError::Server { code: error.code, detail: error.detail });
            }
            Err(error) => return Err(self.protocol(error)),
            Ok(_) => {
                return Err(
                    self.protocol(format!("the handshake was answered with kind {:#06x}", header.kind))
                );
            }
        };
        if self.hello.protocol_version != PROTOCOL_VERSION {
            return Err(self.protocol(format!("protocol version {} chosen", self.hello.protocol_version)));
        }
        Ok(())
    }

    /// What the server said in the handshake: its shards and limits.
    pub fn hello(&self) -> &HelloReply {
        &self.hello
    }

    /// The address connected to, as it was given.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The socket, for its options or to shut it down from another thread (`try_clone`).
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Requests whose replies have not been received.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Sets how long a wait for a reply, or for room in the socket, may take from now on.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout.max(Duration::from_millis(1));
        // Fails for a zero timeout only.
        let _ = self.stream.set_write_timeout(Some(self.timeout));
    }

    /// Queues a request and returns its correlation id. It goes to the socket when 64 KiB have gathered, with
    /// [`Self::flush`], or when a reply is waited for.
    pub fn send(&mut self, request: &Request<'_>) -> Result<u64, ClientError> {
        let id = self.queue(request)?;
        if self.output.len() >= SEND_AT_BYTES {
            self.flush()?;
        }
        Ok(id)
    }

    /// Writes what is queued to the socket.
    ///
    /// # Errors
    /// [`ClientError::Lost`]; the connection is of no use afterwards, for a frame may have been cut.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        if self.output.is_empty() {
            return Ok(());
        }
        let result = self.stream.write_all(self.output.get(self.written..).unwrap_or_default());
        self.forget_output();
        result.map_err(|source| self.lost(source))
    }

    /// Writes as much of what is queued as there is room for in the socket, without waiting; whether that was all.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub(super) fn flush_now(&mut self) -> Result<bool, ClientError> {
        while let Some(rest) = self.output.get(self.written..).filter(|rest| !rest.is_empty()) {
            match send_now(&self.stream, rest) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // What is written goes, or a backlog that never ends would keep all of it.
                    if self.written >= self.output.len() / 2 {
                        self.output.drain(..self.written);
                        self.written = 0;
                    }
                    return Ok(false);
                }
                Err(error) => return Err(self.lost(error)),
            }
        }
        self.forget_output();
        Ok(true)
    }

    fn forget_output(&mut self) {
        self.output.clear();
        self.output.shrink_to(KEEP_BYTES);
        self.written = 0;
    }

    /// Bytes that are queued and not written.
    pub(super) fn unwritten_bytes(&self) -> usize {
        self.output.len() - self.written
    }

    /// Queues a request as [`Self::send`] does, and leaves it to [`Self::flush_now`] to write it.
    pub(super) fn queue(&mut self, request: &Request<'_>) -> Result<u64, ClientError> {
        let id = self.next_correlation_id;
        request.encode(id, &mut self.output)?;
        self.next_correlation_id = id.wrapping_add(1);
        self.outstanding += 1;
        Ok(id)
    }

    /// The next reply, in the order in which the server sent them.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`] after which receiving may be tried again; anything else ends the connection. Error
    /// replies are not errors here.
    pub fn recv(&mut self) -> Result<Received<'_>, ClientError> {
        self.recv_within(self.timeout)
    }

    /// [`Self::recv`] with a timeout of its own.
    pub fn recv_within(&mut self, timeout: Duration) -> Result<Received<'_>, ClientError> {
        if self.outstanding == 0 {
            return Err(ClientError::Usage("there is no request whose reply could come".into()));
        }
        self.flush()?;
        let header = self.receive_frame(timeout)?;
        self.take(header)
    }

    /// The next reply that is in the buffer as a whole. Asks the system for nothing.
    ///
    /// # Errors
    /// [`ClientError::Protocol`].
    pub(super) fn buffered(&mut self) -> Result<Option<Received<'_>>, ClientError> {
        match self.whole_frame()? {
            Ok(header) if self.outstanding > 0 => self.take(header).map(Some),
            Ok(header) => {
                Err(self.protocol(format!("a reply to request {} too many", header.correlation_id)))
            }
            Err(_) => Ok(None),
        }
    }

    /// Keeps a receive buffer for frames of up to `bytes`.
    pub(super) fn keep_bytes(&mut self, bytes: usize) {
        self.keep_bytes = bytes;
    }

    /// The next reply that is in the buffer as a whole, with that buffer: `spare` gives the one that takes its place.
    /// Only what came behind the reply is copied.
    ///
    /// # Errors
    /// [`ClientError::Protocol`].
    pub(super) fn take_buffer(
        &mut self,
        spare: impl FnOnce() -> Vec<u8>,
    ) -> Result<Option<Taken>, ClientError> {
        let start = self.start;
        let Ok(header) = self.whole_frame()? else { return Ok(None) };
        if self.outstanding == 0 {
            return Err(self.protocol(format!("a reply to request {} too many", header.correlation_id)));
        }
        let frame_end = start + header.frame_bytes();
        let received = self.take(header)?;
        let (correlation_id, response) = (received.correlation_id, received.response);
        let batches = frame_end - received.batches.len()..frame_end;
        let mut next = spare();
        let behind = self.input.get(frame_end..self.end).unwrap_or_default();
        if next.len() < behind.len() {
            next.resize(behind.len(), 0);
        }
        if let Some(place) = next.get_mut(..behind.len()) {
            place.copy_from_slice(behind);
        }
        (self.start, self.end) = (0, behind.len());
        let buffer = std::mem::replace(&mut self.input, next);
        Ok(Some(Taken { correlation_id, response, buffer, batches }))
    }

    /// Reads once into the buffer, without waiting; whether anything came.
    ///
    /// # Errors
    /// [`ClientError::Lost`], [`ClientError::Protocol`].
    pub(super) fn receive_now(&mut self) -> Result<bool, ClientError> {
        let wanted = self.whole_frame()?.map_or_else(|wanted| wanted, |header| header.frame_bytes());
        self.make_room(wanted);
        match receive_now(&self.stream, self.input.get_mut(self.end..).unwrap_or_default()) {
            Ok(0) => Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => {
                self.end += count;
                Ok(true)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(false)
            }
            Err(error) => Err(self.lost(error)),
        }
    }

    /// Reads once into the buffer, and waits for that for up to `timeout`.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub(super) fn receive_within(&mut self, timeout: Duration) -> Result<(), ClientError> {
        let wanted = self.whole_frame()?.map_or_else(|wanted| wanted, |header| header.frame_bytes());
        self.fill(wanted, timeout)
    }

    /// The reply of the whole frame at the beginning of the buffer.
    fn take(&mut self, header: FrameHeader) -> Result<Received<'_>, ClientError> {
        self.outstanding -= 1;
        let address = &self.address;
        let body = body_of(&self.input, &mut self.start, header);
        match Response::decode(header.kind, body) {
            Ok(Reply { response, batches }) => {
                Ok(Received { correlation_id: header.correlation_id, response, batches })
            }
            Err(error) => Err(ClientError::Protocol { address: address.clone(), detail: error.to_string() }),
        }
    }

    /// Sends one request and waits for its reply. No other request may be outstanding.
    ///
    /// # Errors
    /// As [`Self::recv`]; an error reply is [`ClientError::Server`].
    pub fn call(&mut self, request: &Request<'_>) -> Result<Received<'_>, ClientError> {
        if self.outstanding != 0 {
            return Err(ClientError::Usage("receive the outstanding replies before a call".into()));
        }
        let id = self.send(request)?;
        let address = self.address.clone();
        let received = self.recv()?;
        match received.response {
            Response::Error(error) => Err(ClientError::Server { code: error.code, detail: error.detail }),
            _ if received.correlation_id != id => {
                let detail = format!("reply to request {} instead of {id}", received.correlation_id);
                Err(ClientError::Protocol { address, detail })
            }
            _ => Ok(received),
        }
    }

    /// Waits until a whole frame is in the buffer.
    fn receive_frame(&mut self, timeout: Duration) -> Result<FrameHeader, ClientError> {
        loop {
            match self.whole_frame()? {
                Ok(header) => return Ok(header),
                Err(wanted) => self.fill(wanted, timeout)?,
            }
        }
    }

    /// The header of the frame at the beginning of the buffer when all of it is there, or else how many bytes it needs
    /// as far as that is known.
    fn whole_frame(&self) -> Result<Result<FrameHeader, usize>, ClientError> {
        let received = self.input.get(self.start..self.end).unwrap_or_default();
        match FrameHeader::decode_reply(received) {
            Ok(Some(header)) if received.len() >= header.frame_bytes() => Ok(Ok(header)),
            Ok(Some(header)) => Ok(Err(header.frame_bytes())),
            Ok(None) => Ok(Err(FRAME_HEADER_BYTES)),
            Err(error) => Err(self.protocol(error)),
        }
    }

    /// Room for a frame of `frame_bytes` from `start` on.
    fn make_room(&mut self, frame_bytes: usize) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.input.len() > self.keep_bytes.next_multiple_of(READ_BYTES) {
                self.input = Vec::new();
            }
        }
        if self.start + frame_bytes.max(READ_BYTES) > self.input.len() && self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let needed = frame_bytes.max(READ_BYTES);
        if self.input.len() < needed {
            self.input.resize(needed.next_multiple_of(READ_BYTES), 0);
        }
    }

    /// Reads once, with room for a frame of `frame_bytes` from `start` on.
    fn fill(&mut self, frame_bytes: usize, timeout: Duration) -> Result<(), ClientError> {
        self.make_room(frame_bytes);
        let timeout = timeout.max(Duration::from_millis(1));
        if timeout != self.read_timeout {
            self.stream.set_read_timeout(Some(timeout)).map_err(|source| self.lost(source))?;
            self.read_timeout = timeout;
        }
        loop {
            let room = self.input.get_mut(self.end..).unwrap_or_default();
            match self.stream.read(room) {
                Ok(0) => return Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    self.end += count;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    let timeout_ms = timeout.as_millis() as u64;
                    return Err(ClientError::TimedOut { address: self.address.clone(), timeout_ms });
                }
                Err(error) => return Err(self.lost(error)),
            }
        }
    }

    fn lost(&self, source: io::Error) -> ClientError {
        ClientError::Lost { address: self.address.clone(), source: source.into() }
    }

    pub(super) fn protocol(&self, detail: impl ToString) -> ClientError {
        ClientError::Protocol { address: self.address.clone(), detail: detail.to_string() }
    }
}

/// The body of the whole frame at `start`, which moves behind it. A free function so that only the buffer stays
/// borrowed.
fn body_of<'a>(input: &'a [u8], start: &mut usize, header: FrameHeader) -> &'a [u8] {
    let frame = *start..*start + header.frame_bytes();
    *start = frame.end;
    input.get(frame).and_then(|frame| frame.get(FRAME_HEADER_BYTES..)).unwrap_or_default()
}

fn open(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                set_up_connection(&stream)?;
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
