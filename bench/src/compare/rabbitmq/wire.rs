//! AMQP 0-9-1, as far as publishing with confirms needs it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::Context;

use crate::produce::BatchShape;
use crate::protocol::{Answered, Missing, Protocol, record_value};
use crate::session::PATIENCE;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xce;
/// Type, channel and length before the payload, the end mark behind it.
const FRAME_OVERHEAD: usize = 8;
const CHANNEL: u16 = 1;

/// Class and method.
type Method = (u16, u16);
const CONNECTION_START: Method = (10, 10);
const CONNECTION_START_OK: Method = (10, 11);
const CONNECTION_TUNE: Method = (10, 30);
const CONNECTION_TUNE_OK: Method = (10, 31);
const CONNECTION_OPEN: Method = (10, 40);
const CONNECTION_OPEN_OK: Method = (10, 41);
const CONNECTION_CLOSE: Method = (10, 50);
const CHANNEL_OPEN: Method = (20, 10);
const CHANNEL_OPEN_OK: Method = (20, 11);
const CHANNEL_CLOSE: Method = (20, 40);
const QUEUE_DECLARE: Method = (50, 10);
const QUEUE_DECLARE_OK: Method = (50, 11);
const CONFIRM_SELECT: Method = (85, 10);
const CONFIRM_SELECT_OK: Method = (85, 11);
const BASIC_PUBLISH: Method = (60, 40);
const BASIC_RETURN: Method = (60, 50);
const BASIC_ACK: Method = (60, 80);
const BASIC_NACK: Method = (60, 120);
/// Of the queue's declaration: it outlives the server.
const DURABLE: u8 = 2;
/// Of a publish: a message that no queue takes comes back instead of being confirmed.
const MANDATORY: u8 = 1;

/// Publishes of one channel; the server confirms them by their place in the order, many at once if it likes.
pub(super) struct Confirms {
    request: Vec<u8>,
    records: u64,
    missing: Missing,
    /// Whether the message with this tag is confirmed, by tag modulo the most that can be under way.
    confirmed: Box<[bool]>,
    /// The lowest tag that is not confirmed, and the next one to be published; the first one is 1.
    lowest: u64,
    next: u64,
}

impl Confirms {
    /// Publishes records of `shape` to `queue` through the default exchange; `frame_max_bytes` is the server's.
    pub(super) fn new(queue: &str, shape: BatchShape, outstanding: usize, frame_max_bytes: usize) -> Self {
        let value = record_value(shape.record_bytes);
        let mut message = Vec::new();
        append_method(&mut message, CHANNEL, BASIC_PUBLISH, |body| {
            body.extend_from_slice(&[0, 0]);
            append_short(body, "");
            append_short(body, queue);
            body.push(MANDATORY);
        });
        append_frame(&mut message, HEADER, CHANNEL, |body| {
            body.extend_from_slice(&60u16.to_be_bytes());
            body.extend_from_slice(&[0, 0]);
            body.extend_from_slice(&(value.len() as u64).to_be_bytes());
            // Only the delivery mode is there, and it is persistent.
            body.extend_from_slice(&[0x10, 0, 2]);
        });
        for piece in value.chunks(frame_max_bytes.saturating_sub(FRAME_OVERHEAD).max(1)) {
            append_frame(&mut message, BODY, CHANNEL, |body| body.extend_from_slice(piece));
        }
        Self {
            request: message.repeat(shape.records),
            records: shape.records as u64,
            missing: Missing::new(outstanding),
            confirmed: vec![false; shape.records * outstanding.max(1)].into_boxed_slice(),
            lowest: 1,
            next: 1,
        }
    }

    /// All tags up to this one, or just this one, are confirmed.
    fn confirm(&mut self, tag: u64, multiple: bool, answered: &mut Answered<'_>) -> anyhow::Result<()> {
        anyhow::ensure!(tag < self.next, "RabbitMQ confirms message {tag}, which is not sent");
        let first = if multiple { self.lowest } else { tag };
        for tag in first..=tag {
            if let Some(is_confirmed) = self.slot(tag)
                && !*is_confirmed
            {
                *is_confirmed = true;
                let number = (tag - 1) / self.records;
                if self.missing.is_last(number)? {
                    answered(number)?;
                }
            }
        }
        while self.lowest < self.next && self.slot(self.lowest).is_some_and(|is_confirmed| *is_confirmed) {
            self.lowest += 1;
        }
        Ok(())
    }

    fn slot(&mut self, tag: u64) -> Option<&mut bool> {
        let index = tag % self.confirmed.len() as u64;
        self.confirmed.get_mut(index as usize)
    }
}

impl Protocol for Confirms {
    fn request_bytes(&self) -> usize {
        self.request.len()
    }

    fn may_send(&self) -> bool {
        // Out of order confirms may leave an old message under way whose place the next ones would take.
        self.next + self.records - self.lowest <= self.confirmed.len() as u64
    }

    fn append_request(&mut self, out: &mut Vec<u8>, number: u64) -> anyhow::Result<()> {
        out.extend_from_slice(&self.request);
        self.missing.begin(number, self.records as u32);
        for tag in self.next..self.next + self.records {
            if let Some(is_confirmed) = self.slot(tag) {
                *is_confirmed = false;
            }
        }
        self.next += self.records;
        Ok(())
    }

    fn take_replies(
        &mut self,
        received: &[u8],
        _out: &mut Vec<u8>,
        mut answered: Answered<'_>,
    ) -> anyhow::Result<usize> {
        let mut taken = 0;
        while let Some(frame) = Frame::parse(received.get(taken..).unwrap_or_default())? {
            taken += frame.len();
            if frame.kind == HEARTBEAT {
                continue;
            }
            let (method, arguments) = frame.method()?;
            let tag = arguments.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
            match (method, tag, arguments.get(8)) {
                (BASIC_ACK, Some(tag), Some(bits)) => self.confirm(tag, bits & 1 != 0, &mut answered)?,
                (BASIC_NACK, Some(tag), _) => anyhow::bail!("RabbitMQ refuses message {tag} (basic.nack)"),
                _ => return Err(unexpected(method, arguments)),
            }
        }
        Ok(taken)
    }
}

fn append_frame(out: &mut Vec<u8>, kind: u8, channel: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let length = (out.len() - length_at - 4) as u32;
    if let Some(field) = out.get_mut(length_at..length_at + 4) {
        field.copy_from_slice(&length.to_be_bytes());
    }
    out.push(FRAME_END);
}

fn append_method(out: &mut Vec<u8>, channel: u16, method: Method, fill: impl FnOnce(&mut Vec<u8>)) {
    append_frame(out, METHOD, channel, |body| {
        body.extend_from_slice(&method.0.to_be_bytes());
        body.extend_from_slice(&method.1.to_be_bytes());
        fill(body);
    });
}

/// A short string; the callers' are below 256 bytes.
fn append_short(out: &mut Vec<u8>, text: &str) {
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

fn append_long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

struct Frame<'a> {
    kind: u8,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame that `bytes` begin with; `None` while it is incomplete.
    fn parse(bytes: &'a [u8]) -> anyhow::Result<Option<Self>> {
        let Some([kind, _, _, length @ ..]) = bytes.first_chunk::<7>().copied() else { return Ok(None) };
        anyhow::ensure!(kind != b'A', "RabbitMQ speaks another version of AMQP than 0-9-1");
        let length = u32::from_be_bytes(length) as usize;
        anyhow::ensure!(length < 1 << 30, "RabbitMQ: a frame of {length} bytes");
        let Some(end) = bytes.get(7 + length) else { return Ok(None) };
        anyhow::ensure!(*end == FRAME_END, "RabbitMQ: a frame without its end mark");
        Ok(Some(Self { kind, payload: bytes.get(7..7 + length).unwrap_or_default() }))
    }

    fn len(&self) -> usize {
        self.payload.len() + FRAME_OVERHEAD
    }

    fn method(&self) -> anyhow::Result<(Method, &'a [u8])> {
        anyhow::ensure!(self.kind == METHOD, "RabbitMQ: an unexpected frame of type {}", self.kind);
        let (ids, arguments) =
            self.payload.split_at_checked(4).context("RabbitMQ: a method without a name")?;
        let id = |at: usize| ids.get(at..).and_then(|b| b.first_chunk()).map(|b| u16::from_be_bytes(*b));
        Ok(((id(0).unwrap_or_default(), id(2).unwrap_or_default()), arguments))
    }
}

/// What a method means that was not asked for; the closing ones and the return begin with a code and a text.
fn unexpected(method: Method, arguments: &[u8]) -> anyhow::Error {
    let what = match method {
        CONNECTION_CLOSE => "closes the connection",
        CHANNEL_CLOSE => "closes the channel",
        BASIC_RETURN => "returns a message",
        _ => return anyhow::anyhow!("RabbitMQ: an unexpected method {method:?}"),
    };
    let length = arguments.get(2).copied().unwrap_or_default() as usize;
    let text = arguments.get(3..3 + length).unwrap_or_default();
    anyhow::anyhow!("RabbitMQ {what}: {}", String::from_utf8_lossy(text))
}

/// A connection with one channel that asks one thing after the other.
pub(super) struct Session {
    socket: TcpStream,
    received: Vec<u8>,
    frame_max_bytes: usize,
    version: String,
}

impl Session {
    /// Connects as `guest` and opens a channel.
    pub(super) fn connect(addr: SocketAddr) -> anyhow::Result<Self> {
        let socket = TcpStream::connect_timeout(&addr, PATIENCE)
            .with_context(|| format!("can't connect to RabbitMQ at {addr}"))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut session =
            Self { socket, received: Vec::new(), frame_max_bytes: 4096, version: String::new() };
        session.socket.write_all(b"AMQP\0\0\x09\x01")?;
        session.version = version_in(&session.await_method(CONNECTION_START)?).unwrap_or_default();
        session.send(0, CONNECTION_START_OK, |body| {
            // No properties of the client: with none of its capabilities the server sends nothing extra.
            body.extend_from_slice(&[0; 4]);
            append_short(body, "PLAIN");
            append_long(body, b"\0guest\0guest");
            append_short(body, "en_US");
        })?;
        let tune = session.await_method(CONNECTION_TUNE)?;
        let limits: [u8; 6] = tune.first_chunk().copied().context("RabbitMQ: a tune that ends early")?;
        let [_, _, frame_max @ ..] = limits;
        session.frame_max_bytes = match u32::from_be_bytes(frame_max) {
            0 => 131_072,
            frame_max => frame_max as usize,
        };
        session.send(0, CONNECTION_TUNE_OK, |body| {
            body.extend_from_slice(&limits);
            // No heartbeats.
            body.extend_from_slice(&[0, 0]);
        })?;
        session.ask(0, CONNECTION_OPEN, CONNECTION_OPEN_OK, |body| {
            append_short(body, "/");
            body.extend_from_slice(&[0, 0]);
        })?;
        session.ask(CHANNEL, CHANNEL_OPEN, CHANNEL_OPEN_OK, |body| body.push(0))?;
        Ok(session)
    }

    /// The server's version, as it names it.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Creates a quorum queue with its first so many members, unless it is there.
    pub(super) fn declare_quorum_queue(&mut self, queue: &str, members: u32) -> anyhow::Result<()> {
        let mut arguments = Vec::new();
        append_short(&mut arguments, "x-queue-type");
        arguments.push(b'S');
        append_long(&mut arguments, b"quorum");
        append_short(&mut arguments, "x-quorum-initial-group-size");
        arguments.push(b'I');
        arguments.extend_from_slice(&members.to_be_bytes());
        self.ask(CHANNEL, QUEUE_DECLARE, QUEUE_DECLARE_OK, |body| {
            body.extend_from_slice(&[0, 0]);
            append_short(body, queue);
            body.push(DURABLE);
            append_long(body, &arguments);
        })?;
        Ok(())
    }

    /// Switches confirms on and gives the socket, with nothing under way, and the largest frame that the server takes, bytes.
    pub(super) fn into_confirming(mut self) -> anyhow::Result<(TcpStream, usize)> {
        self.ask(CHANNEL, CONFIRM_SELECT, CONFIRM_SELECT_OK, |body| body.push(0))?;
        Ok((self.socket, self.frame_max_bytes))
    }

    fn ask(
        &mut self,
        channel: u16,
        method: Method,
        reply: Method,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> anyhow::Result<Vec<u8>> {
        self.send(channel, method, fill)?;
        self.await_method(reply)
    }

    fn send(&mut self, channel: u16, method: Method, fill: impl FnOnce(&mut Vec<u8>)) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        append_method(&mut bytes, channel, method, fill);
        Ok(self.socket.write_all(&bytes)?)
    }

    /// The arguments of the next method, which has to be this one.
    fn await_method(&mut self, wanted: Method) -> anyhow::Result<Vec<u8>> {
        loop {
            if let Some(frame) = Frame::parse(&self.received)? {
                let len = frame.len();
                if frame.kind != HEARTBEAT {
                    let (method, arguments) = frame.method()?;
                    if method != wanted {
                        return Err(unexpected(method, arguments));
                    }
                    let arguments = arguments.to_vec();
                    self.received.drain(..len);
                    return Ok(arguments);
                }
                self.received.drain(..len);
                continue;
            }
            let mut piece = [0; 4096];
            let count = self.socket.read(&mut piece).context("RabbitMQ's reply")?;
            anyhow::ensure!(count > 0, "RabbitMQ closed the connection");
            self.received.extend_from_slice(piece.get(..count).unwrap_or_default());
        }
    }
}

/// The long string `version` among the server's properties.
fn version_in(start: &[u8]) -> Option<String> {
    let name = b"\x07versionS";
    let at = start.windows(name.len()).position(|window| window == name)? + name.len();
    let length = u32::from_be_bytes(*start.get(at..)?.first_chunk()?) as usize;
    Some(String::from_utf8_lossy(start.get(at + 4..at + 4 + length)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::answers_however_split;

    fn confirms(records: usize, begun: u64) -> Confirms {
        let mut confirms = Confirms::new("q", BatchShape { records, record_bytes: 3 }, 4, 4096);
        (0..begun).for_each(|number| confirms.append_request(&mut Vec::new(), number).unwrap());
        confirms
    }

    fn reply(method: Method, tag: u64, multiple: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        append_method(&mut bytes, CHANNEL, method, |body| {
            body.extend_from_slice(&tag.to_be_bytes());
            body.push(u8::from(multiple));
        });
        bytes
    }

    #[test]
    fn a_message_is_a_method_a_header_and_a_body() {
        let mut out = Vec::new();
        confirms(1, 0).append_request(&mut out, 0).unwrap();
        let mut wanted = b"\x01\0\x01\0\0\0\x0a\0\x3c\0\x28\0\0\0\x01q\x01\xce".to_vec();
        wanted.extend_from_slice(b"\x02\0\x01\0\0\0\x0f\0\x3c\0\0\0\0\0\0\0\0\0\x03\x10\0\x02\xce");
        wanted.extend_from_slice(b"\x03\0\x01\0\0\0\x03");
        wanted.extend_from_slice(&record_value(3));
        wanted.push(FRAME_END);
        assert_eq!(out, wanted);
    }

    #[test]
    fn a_record_longer_than_a_frame_is_sent_in_pieces() {
        let confirms = Confirms::new("q", BatchShape { records: 1, record_bytes: 5000 }, 1, 4096);
        let (mut bodies, mut at) = (Vec::new(), 0);
        while let Some(frame) = Frame::parse(&confirms.request[at..]).unwrap() {
            at += frame.len();
            if frame.kind == BODY {
                assert!(frame.len() <= 4096);
                bodies.extend_from_slice(frame.payload);
            }
        }
        assert_eq!((bodies, at), (record_value(5000), confirms.request.len()));
    }

    #[test]
    fn confirms_count_one_or_all_up_to_one() {
        // Requests of two messages each: tags 1 and 2, 3 and 4, 5 and 6.
        let mut bytes = reply(BASIC_ACK, 4, false);
        append_frame(&mut bytes, HEARTBEAT, 0, |_| {});
        bytes.extend(reply(BASIC_ACK, 3, false));
        bytes.extend(reply(BASIC_ACK, 5, true));
        bytes.extend(reply(BASIC_ACK, 6, false));
        let fresh = || Box::new(confirms(2, 3)) as Box<dyn Protocol>;
        assert_eq!(answers_however_split(fresh, &bytes), [1, 0, 2]);
    }

    #[test]
    fn an_old_message_keeps_its_place() {
        let mut confirms = confirms(1, 4);
        let mut numbers = Vec::new();
        assert!(!confirms.may_send());
        let mut take = |confirms: &mut Confirms, bytes: &[u8]| {
            let mut note = |number| {
                numbers.push(number);
                Ok(())
            };
            confirms.take_replies(bytes, &mut Vec::new(), &mut note).unwrap();
        };
        take(&mut confirms, &reply(BASIC_ACK, 2, false));
        assert!(!confirms.may_send(), "the first message is still under way");
        take(&mut confirms, &reply(BASIC_ACK, 1, false));
        assert!(confirms.may_send());
        confirms.append_request(&mut Vec::new(), 4).unwrap();
        confirms.append_request(&mut Vec::new(), 5).unwrap();
        assert!(!confirms.may_send());
        take(&mut confirms, &reply(BASIC_ACK, 6, true));
        assert_eq!(numbers, [1, 0, 2, 3, 4, 5]);
    }

    #[test]
    fn refusals_end_the_run() {
        let take = |bytes: &[u8]| {
            let taken = confirms(1, 1).take_replies(bytes, &mut Vec::new(), &mut |_| Ok(()));
            taken.map_err(|error| error.to_string())
        };
        assert!(take(&reply(BASIC_NACK, 1, false)).unwrap_err().contains("nack"));
        assert!(take(&reply(BASIC_ACK, 2, false)).unwrap_err().contains("not sent"));
        let mut close = Vec::new();
        append_method(&mut close, CHANNEL, CHANNEL_CLOSE, |body| {
            body.extend_from_slice(&404u16.to_be_bytes());
            append_short(body, "NOT_FOUND - no queue");
            body.extend_from_slice(&[0; 4]);
        });
        assert!(take(&close).unwrap_err().contains("NOT_FOUND"));
        *close.last_mut().unwrap() = 0;
        assert!(take(&close).unwrap_err().contains("end mark"));
        assert!(take(b"AMQP\0\0\x09\x01").unwrap_err().contains("version"));
    }

    #[test]
    fn the_version_is_among_the_properties() {
        let mut start =
            b"\0\x09\0\0\0\x40\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x063.10.8".to_vec();
        start.extend_from_slice(b"\x08platformS");
        assert_eq!(version_in(&start).as_deref(), Some("3.10.8"));
        assert_eq!(version_in(b"nothing"), None);
    }
}
