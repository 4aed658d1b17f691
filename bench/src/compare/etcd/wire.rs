//! gRPC over HTTP/2, as far as puts to etcd need it: one stream per request, all headers of a request six bytes, as the first
//! request of the connection has put them into the server's table.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::Context;

use super::hpack;
use crate::produce::BatchShape;
use crate::protocol::{Answered, NUMBER_DIGITS, Protocol, record_value, write_number};
use crate::session::PATIENCE;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// Frame types.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
/// Flags.
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED_OR_PRIORITY: u8 = 0x28;
/// Settings.
const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;

const LARGEST_WINDOW: u32 = (1 << 31) - 1;
const DEFAULT_WINDOW: i64 = 65_535;
/// The server may send this much before it gets a new window.
const RENEW_BYTES: u32 = 1 << 30;
/// Streams of a client have odd numbers; the first is used up by the connection's first request.
const FIRST_STREAM: u64 = 3;

/// What the server allows, and what it has been sent.
struct Windows {
    connection: i64,
    /// What each new stream begins with.
    of_stream: i64,
    max_streams: u64,
    max_frame: usize,
    received: u32,
}

/// Puts of one connection.
pub(super) struct Puts {
    windows: Windows,
    message: Vec<u8>,
    /// Where the request's number is in the message.
    numbers_at: Vec<usize>,
    under_way: u64,
    /// The trailers of a call that succeeded; the next ones are compared with it, as all are the same.
    good_trailers: Vec<u8>,
}

/// A protobuf field of type bytes or message.
fn append_field(out: &mut Vec<u8>, number: u8, value: &[u8]) {
    out.push(number << 3 | 2);
    let mut length = value.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(value);
}

/// A PutRequest: key and value.
fn put(key: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    append_field(&mut bytes, 1, key.as_bytes());
    append_field(&mut bytes, 2, value);
    bytes
}

/// The method that takes so many records at once: a put, or a transaction of many.
fn path(records: usize) -> &'static str {
    match records {
        1 => "/etcdserverpb.KV/Put",
        _ => "/etcdserverpb.KV/Txn",
    }
}

/// A gRPC message that puts records under keys that begin with `prefix`, and where the request's number goes in each key.
fn message(prefix: &str, shape: BatchShape) -> (Vec<u8>, Vec<usize>) {
    let value = record_value(shape.record_bytes);
    let zeros = "0".repeat(NUMBER_DIGITS);
    let body = match shape.records {
        1 => put(&format!("{prefix}/{zeros}"), &value),
        // A transaction without a condition: each of its operations, field 2, is a put, field 2.
        records => (0..records).fold(Vec::new(), |mut body, record| {
            let mut operation = Vec::new();
            append_field(&mut operation, 2, &put(&format!("{prefix}/{zeros}/{record}"), &value));
            append_field(&mut body, 2, &operation);
            body
        }),
    };
    let mut message = vec![0];
    message.extend_from_slice(&(body.len() as u32).to_be_bytes());
    message.extend_from_slice(&body);
    let wanted = format!("{prefix}/{zeros}");
    let starts = message.windows(wanted.len()).enumerate();
    let found = starts.filter(|(_, window)| *window == wanted.as_bytes());
    let numbers_at = found.map(|(at, _)| at + prefix.len() + 1).collect();
    (message, numbers_at)
}

fn append_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

fn append_setting(out: &mut Vec<u8>, setting: u16, value: u32) {
    out.extend_from_slice(&setting.to_be_bytes());
    out.extend_from_slice(&value.to_be_bytes());
}

/// The connection's opening: no dynamic table for the server's headers, and all the room there can be for its data.
fn opening() -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    let mut settings = Vec::new();
    append_setting(&mut settings, HEADER_TABLE_SIZE, 0);
    append_setting(&mut settings, ENABLE_PUSH, 0);
    append_setting(&mut settings, INITIAL_WINDOW_SIZE, LARGEST_WINDOW);
    append_frame(&mut bytes, SETTINGS, 0, 0, &settings);
    append_frame(&mut bytes, WINDOW_UPDATE, 0, 0, &(LARGEST_WINDOW - DEFAULT_WINDOW as u32).to_be_bytes());
    bytes
}

/// The headers of the first request, which go into the server's table: newest first they are entries 62 to 65 then.
fn first_headers(path: &str, authority: &str) -> Vec<u8> {
    // `:method: POST` and `:scheme: http` are in the static table.
    let mut block = vec![0x83, 0x86];
    // `:path` (4) and `:authority` (1) by their static names.
    for (name, value) in [(0x44, path), (0x41, authority)] {
        block.push(name);
        hpack::append_string(&mut block, value);
    }
    block.push(0x40);
    hpack::append_string(&mut block, "te");
    hpack::append_string(&mut block, "trailers");
    // `content-type` (31).
    block.push(0x5f);
    hpack::append_string(&mut block, "application/grpc");
    block
}

/// The same by their places in the tables.
const LATER_HEADERS: [u8; 6] = [0x83, 0x86, 0xc1, 0xc0, 0xbf, 0xbe];

impl Puts {
    fn new(shape: BatchShape, prefix: &str) -> Self {
        let (message, numbers_at) = message(prefix, shape);
        let windows = Windows {
            connection: DEFAULT_WINDOW,
            of_stream: DEFAULT_WINDOW,
            max_streams: u64::MAX,
            max_frame: 16_384,
            received: 0,
        };
        Self { windows, message, numbers_at, under_way: 0, good_trailers: Vec::new() }
    }

    /// Connects to etcd and makes the first put of this shape, so that the later ones' headers are short. `number` tells this
    /// connection's keys from the others'.
    pub(super) fn connect(
        addr: SocketAddr,
        number: usize,
        shape: BatchShape,
    ) -> anyhow::Result<(TcpStream, Self)> {
        let mut socket = TcpStream::connect_timeout(&addr, PATIENCE)
            .with_context(|| format!("can't connect to etcd at {addr}"))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut puts = Self::new(shape, &format!("c{number}"));
        socket.write_all(&opening())?;
        let mut out = Vec::new();
        append_frame(
            &mut out,
            HEADERS,
            END_HEADERS,
            1,
            &first_headers(path(shape.records), &addr.to_string()),
        );
        puts.append_message(&mut out, 1, u64::MAX)?;
        puts.under_way = 1;
        let mut received = Vec::new();
        // Until the call is answered and the server's settings are known, which it sends before.
        while puts.under_way > 0 {
            socket.write_all(&out)?;
            out.clear();
            let mut piece = [0; 4096];
            let count = socket.read(&mut piece).context("etcd's reply")?;
            anyhow::ensure!(count > 0, "etcd closed the connection");
            received.extend_from_slice(piece.get(..count).unwrap_or_default());
            let taken = puts.take_frames(&received, &mut out, &mut |_| Ok(()))?;
            received.drain(..taken);
        }
        anyhow::ensure!(received.is_empty(), "etcd sent half a frame behind its answer");
        socket.write_all(&out)?;
        let bytes = puts.message.len() as i64;
        anyhow::ensure!(
            bytes <= puts.windows.of_stream,
            "a request of {bytes} bytes is more than etcd takes in one go ({}); ask for fewer or smaller records",
            puts.windows.of_stream
        );
        Ok((socket, puts))
    }

    /// The message as DATA frames of `stream`, with the request's number in its keys.
    fn append_message(&mut self, out: &mut Vec<u8>, stream: u32, number: u64) -> anyhow::Result<()> {
        for at in &self.numbers_at {
            if let Some(digits) = self.message.get_mut(*at..at + NUMBER_DIGITS) {
                write_number(digits, number);
            }
        }
        let mut rest = self.message.as_slice();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(self.windows.max_frame));
            append_frame(out, DATA, if after.is_empty() { END_STREAM } else { 0 }, stream, piece);
            rest = after;
        }
        self.windows.connection -= self.message.len() as i64;
        Ok(())
    }

    /// Takes complete frames; calls `answered` with the stream of each call that has succeeded.
    fn take_frames(
        &mut self,
        received: &[u8],
        out: &mut Vec<u8>,
        answered: Answered<'_>,
    ) -> anyhow::Result<usize> {
        let mut taken = 0;
        while let Some(frame) = Frame::parse(received.get(taken..).unwrap_or_default()) {
            taken += FRAME_HEADER + frame.payload.len();
            match frame.kind {
                HEADERS => self.take_headers(&frame, answered)?,
                DATA => {
                    anyhow::ensure!(frame.flags & END_STREAM == 0, "etcd ended a call without a status");
                    self.renew_window(frame.payload.len() as u32, out);
                }
                SETTINGS if frame.flags & ACK == 0 => {
                    self.take_settings(frame.payload);
                    append_frame(out, SETTINGS, ACK, 0, &[]);
                }
                PING if frame.flags & ACK == 0 => append_frame(out, PING, ACK, 0, frame.payload),
                // A stream's own window is never used up: a request is smaller.
                WINDOW_UPDATE if frame.stream == 0 => self.windows.connection += i64::from(frame.word(0)),
                RST_STREAM => anyhow::bail!("etcd reset stream {} with code {}", frame.stream, frame.word(0)),
                GOAWAY => anyhow::bail!("etcd ends the connection with code {}", frame.word(4)),
                _ => {}
            }
        }
        Ok(taken)
    }

    fn take_headers(&mut self, frame: &Frame<'_>, answered: Answered<'_>) -> anyhow::Result<()> {
        let is_whole = frame.flags & END_HEADERS != 0 && frame.flags & PADDED_OR_PRIORITY == 0;
        anyhow::ensure!(is_whole, "etcd sent headers in pieces or padded, which this client does not know");
        if frame.flags & END_STREAM == 0 {
            // Those before the answer; had the call failed, there would be only one block with its status.
            return Ok(());
        }
        if frame.payload != self.good_trailers {
            let headers = hpack::decode(frame.payload)?;
            let value = |wanted: &str| {
                headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
            };
            let status = value("grpc-status").or(value(":status")).unwrap_or("none");
            let message = value("grpc-message").unwrap_or_default();
            anyhow::ensure!(status == "0", "etcd: gRPC status {status} {message}");
            self.good_trailers = frame.payload.to_vec();
        }
        self.under_way -= 1;
        answered(u64::from(frame.stream))
    }

    fn take_settings(&mut self, settings: &[u8]) {
        for setting in settings.chunks_exact(6) {
            let [a, b, value @ ..] = setting.first_chunk::<6>().copied().unwrap_or_default();
            let value = u32::from_be_bytes(value);
            match u16::from_be_bytes([a, b]) {
                INITIAL_WINDOW_SIZE => self.windows.of_stream = i64::from(value),
                MAX_CONCURRENT_STREAMS => self.windows.max_streams = u64::from(value),
                MAX_FRAME_SIZE => self.windows.max_frame = value as usize,
                _ => {}
            }
        }
    }

    fn renew_window(&mut self, bytes: u32, out: &mut Vec<u8>) {
        self.windows.received += bytes;
        if self.windows.received >= RENEW_BYTES {
            append_frame(out, WINDOW_UPDATE, 0, 0, &self.windows.received.to_be_bytes());
            self.windows.received = 0;
        }
    }
}

impl Protocol for Puts {
    fn request_bytes(&self) -> usize {
        let frames = self.message.len() / self.windows.max_frame.max(1) + 2;
        self.message.len() + LATER_HEADERS.len() + frames * FRAME_HEADER
    }

    fn may_send(&self) -> bool {
        self.windows.connection >= self.message.len() as i64 && self.under_way < self.windows.max_streams
    }

    fn append_request(&mut self, out: &mut Vec<u8>, number: u64) -> anyhow::Result<()> {
        let stream = u32::try_from(2 * number + FIRST_STREAM).ok().filter(|stream| *stream <= LARGEST_WINDOW);
        let stream =
            stream.context("a connection of HTTP/2 has no more streams; measure for a shorter time")?;
        append_frame(out, HEADERS, END_HEADERS, stream, &LATER_HEADERS);
        self.under_way += 1;
        self.append_message(out, stream, number)
    }

    fn take_replies(
        &mut self,
        received: &[u8],
        out: &mut Vec<u8>,
        answered: Answered<'_>,
    ) -> anyhow::Result<usize> {
        self.take_frames(received, out, &mut |stream| {
            let number = stream.checked_sub(FIRST_STREAM).context("etcd answers a stream twice")?;
            answered(number / 2)
        })
    }
}

struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame that `bytes` begin with; `None` while it is incomplete.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..] = *bytes.first_chunk::<FRAME_HEADER>()?;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let payload = bytes.get(FRAME_HEADER..FRAME_HEADER + length)?;
        Some(Self { kind, flags, stream: u32::from_be_bytes(stream) & LARGEST_WINDOW, payload })
    }

    /// The 32 bits at this place of the payload.
    fn word(&self, at: usize) -> u32 {
        let bytes = self.payload.get(at..).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::answers_however_split;

    fn puts(records: usize, begun: u64) -> Puts {
        let mut puts = Puts::new(BatchShape { records, record_bytes: 2 }, "c1");
        (0..begun).for_each(|number| puts.append_request(&mut Vec::new(), number).unwrap());
        puts
    }

    fn trailers(stream: u32, status: &str) -> Vec<u8> {
        let mut block = vec![0x00];
        hpack::append_string(&mut block, "grpc-status");
        hpack::append_string(&mut block, status);
        block.push(0x00);
        hpack::append_string(&mut block, "grpc-message");
        hpack::append_string(&mut block, "no space");
        let mut bytes = Vec::new();
        append_frame(&mut bytes, HEADERS, END_HEADERS | END_STREAM, stream, &block);
        bytes
    }

    #[test]
    fn a_put_is_six_bytes_of_headers_and_a_message() {
        let mut out = Vec::new();
        puts(1, 0).append_request(&mut out, 3).unwrap();
        let mut wanted = b"\0\0\x06\x01\x04\0\0\0\x09\x83\x86\xc1\xc0\xbf\xbe".to_vec();
        // A message of 25 bytes: the key in 21 and the value in 4.
        wanted.extend_from_slice(b"\0\0\x1e\0\x01\0\0\0\x09\0\0\0\0\x19\x0a\x13c1/0000000000000003\x12\x02");
        wanted.extend_from_slice(&record_value(2));
        assert_eq!(out, wanted);
    }

    #[test]
    fn a_transaction_has_a_put_under_a_key_of_its_own_for_each_record() {
        let (message, numbers_at) = message("c1", BatchShape { records: 2, record_bytes: 1 });
        let value = record_value(1)[0];
        let mut wanted = vec![0, 0, 0, 0, 60];
        for record in [b'0', b'1'] {
            wanted.extend_from_slice(b"\x12\x1c\x12\x1a\x0a\x15c1/0000000000000000/");
            wanted.extend_from_slice(&[record, 0x12, 1, value]);
        }
        assert_eq!(message, wanted);
        assert_eq!(numbers_at, [14, 44]);
    }

    #[test]
    fn calls_are_answered_by_their_trailers() {
        let mut bytes = Vec::new();
        append_frame(&mut bytes, SETTINGS, 0, 0, &[]);
        append_frame(&mut bytes, HEADERS, END_HEADERS, 5, &[0x88]);
        append_frame(&mut bytes, DATA, 0, 5, b"\0\0\0\0\0");
        append_frame(&mut bytes, WINDOW_UPDATE, 0, 0, &100u32.to_be_bytes());
        bytes.extend(trailers(5, "0"));
        bytes.extend(trailers(3, "0"));
        let fresh = || Box::new(puts(1, 2)) as Box<dyn Protocol>;
        assert_eq!(answers_however_split(fresh, &bytes), [1, 0]);
    }

    #[test]
    fn settings_and_pings_are_acknowledged_and_windows_kept() {
        let (mut bytes, mut settings) = (Vec::new(), Vec::new());
        append_setting(&mut settings, MAX_CONCURRENT_STREAMS, 1);
        append_setting(&mut settings, MAX_FRAME_SIZE, 20_000);
        append_frame(&mut bytes, SETTINGS, 0, 0, &settings);
        append_frame(&mut bytes, PING, 0, 0, b"12345678");
        append_frame(&mut bytes, PING, ACK, 0, b"87654321");
        let (mut puts, mut out) = (puts(1, 0), Vec::new());
        assert!(puts.may_send());
        puts.take_replies(&bytes, &mut out, &mut |_| Ok(())).unwrap();
        assert_eq!(out, b"\0\0\0\x04\x01\0\0\0\0\0\0\x08\x06\x01\0\0\0\x0012345678");
        puts.append_request(&mut out, 0).unwrap();
        assert!(!puts.may_send(), "one stream at a time");
        puts.take_replies(&trailers(3, "0"), &mut out, &mut |_| Ok(())).unwrap();
        assert!(puts.may_send());
        puts.windows.connection = 10;
        assert!(!puts.may_send(), "the connection's window is used up");
        let mut update = Vec::new();
        append_frame(&mut update, WINDOW_UPDATE, 0, 0, &1000u32.to_be_bytes());
        puts.take_replies(&update, &mut out, &mut |_| Ok(())).unwrap();
        assert!(puts.may_send());
        out.clear();
        puts.renew_window(RENEW_BYTES, &mut out);
        assert_eq!(out, b"\0\0\x04\x08\0\0\0\0\0\x40\0\0\0");
    }

    #[test]
    fn a_message_longer_than_a_frame_is_sent_in_pieces() {
        let mut puts = Puts::new(BatchShape { records: 1, record_bytes: 20_000 }, "c1");
        let mut out = Vec::new();
        puts.append_request(&mut out, 0).unwrap();
        assert!(out.len() <= puts.request_bytes());
        let (mut at, mut data) = (0, Vec::new());
        while let Some(frame) = Frame::parse(&out[at..]) {
            at += FRAME_HEADER + frame.payload.len();
            assert!(frame.payload.len() <= 16_384);
            if frame.kind == DATA {
                data.extend_from_slice(frame.payload);
                assert_eq!(frame.flags == END_STREAM, at == out.len());
            }
        }
        assert_eq!((at, &data), (out.len(), &puts.message));
    }

    #[test]
    fn errors_end_the_run() {
        let take = |bytes: &[u8]| {
            let taken = puts(1, 1).take_replies(bytes, &mut Vec::new(), &mut |_| Ok(()));
            taken.map_err(|error| error.to_string())
        };
        assert_eq!(take(&trailers(3, "8")).unwrap_err(), "etcd: gRPC status 8 no space");
        let frame = |kind, flags, payload: &[u8]| {
            let mut bytes = Vec::new();
            append_frame(&mut bytes, kind, flags, 3, payload);
            bytes
        };
        assert!(take(&frame(RST_STREAM, 0, &7u32.to_be_bytes())).unwrap_err().contains("code 7"));
        assert!(take(&frame(GOAWAY, 0, b"\0\0\0\0\0\0\0\x0b")).unwrap_err().contains("code 11"));
        assert!(take(&frame(DATA, END_STREAM, b"")).unwrap_err().contains("without a status"));
        assert!(take(&frame(HEADERS, 0, b"")).unwrap_err().contains("in pieces"));
        assert!(take(&frame(HEADERS, END_HEADERS | END_STREAM, b"\x48\x03502")).unwrap_err().contains("502"));
    }
}
