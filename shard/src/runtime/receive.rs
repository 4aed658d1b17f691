//! What happens to the bytes that a connection received: telling HTTP from frames, the handshake, frames given
//! to the engine where they lie, and frames that come in parts.
//!
//! A frame that lies whole in a receive buffer is handed to the engine in place. Only one that spans buffers is
//! put together in memory of the connection, out of a budget of the shard.

#![warn(clippy::indexing_slicing)]

use std::os::fd::OwnedFd;

use pyralog_core::ErrorCode;
use pyralog_core::limits::{
    ASSEMBLY_BYTES_PER_SHARD, FRAME_HEADER_BYTES, LARGE_REPLIES_AT_ONCE, MAX_BATCH_BYTES, MAX_FETCH_BYTES,
    MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION, MAX_IN_FLIGHT_REQUESTS_PER_SHARD,
    MAX_QUEUED_REPLY_BYTES_PER_SHARD,
};
use pyralog_net::frame::{FrameError, kind};
use pyralog_net::hello::{Hello, HelloReply};
use pyralog_net::message::{Request, Response};
use pyralog_net::{FrameHeader, Protocol, sniff};

use super::connection::{Assembly, Blocked, Connection, Phase};
use super::send::Spares;
use crate::engine::{Action, Engine, Event, Now};

/// Memory of a shard for frames that come in parts, and for those that wait while receive buffers are scarce.
#[derive(Debug, Default)]
pub(super) struct AssemblyBudget {
    used: usize,
}

impl AssemblyBudget {
    /// Reserves so many bytes; whether they were there.
    pub(super) fn reserve(&mut self, bytes: usize) -> bool {
        let fits = self.used.checked_add(bytes).is_some_and(|sum| sum <= ASSEMBLY_BYTES_PER_SHARD);
        if fits {
            self.used += bytes;
        }
        fits
    }

    /// Gives back what an assembly held.
    pub(super) fn release(&mut self, assembly: &Assembly) {
        self.release_bytes(assembly.reserved);
    }

    /// Gives back so many bytes.
    pub(super) fn release_bytes(&mut self, bytes: usize) {
        self.used -= bytes;
    }

    /// Bytes reserved.
    pub(super) fn used(&self) -> usize {
        self.used
    }
}

/// What the requests of all connections of a shard hold, and how much they may.
#[derive(Debug)]
pub(super) struct Load {
    /// Requests without reply.
    pub(super) in_flight: usize,
    /// Requests with large replies since the replies of the last pass were queued.
    pub(super) large: usize,
    pub(super) max_in_flight: usize,
    pub(super) max_queued_bytes: usize,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            in_flight: 0,
            large: 0,
            max_in_flight: MAX_IN_FLIGHT_REQUESTS_PER_SHARD,
            max_queued_bytes: MAX_QUEUED_REPLY_BYTES_PER_SHARD,
        }
    }
}

impl Load {
    /// Whether the shard's bounds let a connection have one more request. `queued_bytes`: of the shard's replies.
    pub(super) fn has_room(&self, queued_bytes: usize) -> bool {
        self.in_flight < self.max_in_flight
            && queued_bytes < self.max_queued_bytes
            && self.large < LARGE_REPLIES_AT_ONCE
    }
}

/// What a node tells in its handshake.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) node: u32,
    pub(super) shard: u16,
    pub(super) shards: u16,
    pub(super) server_version: String,
    /// Version of the catalogue that this shard serves.
    pub(super) catalog_version: u64,
}

/// What handling a request needs.
pub(super) struct Context<'a> {
    /// `None` while the shard recovers: everything is answered with `Fenced`.
    pub(super) engine: Option<&'a mut Engine>,
    pub(super) actions: &'a mut Vec<Action>,
    pub(super) spares: &'a mut Spares,
    pub(super) budget: &'a mut AssemblyBudget,
    pub(super) load: &'a mut Load,
    pub(super) identity: &'a Identity,
    pub(super) now: Now,
}

/// What became of received bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// All handled (or dropped).
    Handled,
    /// The connection is blocked; the bytes from this index on are not handled.
    Blocked(usize),
    /// The socket belongs to the control thread; these bytes were read from it.
    Http(Vec<u8>),
    /// The socket belongs to another shard; these bytes were read from it.
    HandOver(u16, Vec<u8>),
}

/// What became of one frame.
enum Handled {
    Next,
    Stop,
    HandOver(u16),
}

/// Handles `bytes` that follow what the connection has received before.
pub(super) fn received(conn: &mut Connection, bytes: &[u8], cx: &mut Context<'_>) -> Received {
    if matches!(conn.phase, Phase::Ending | Phase::Draining | Phase::Closing) {
        return Received::Handled;
    }
    if conn.phase == Phase::Sniffing {
        let mut first = std::mem::take(&mut conn.early);
        if !first.is_empty() {
            // A frame is told by its first byte, so this is HTTP or nothing.
            first.extend_from_slice(bytes);
        }
        match sniff(if first.is_empty() { bytes } else { &first }) {
            Protocol::Frames => conn.phase = Phase::Handshake,
            Protocol::Http if first.is_empty() => return Received::Http(bytes.to_vec()),
            Protocol::Http => return Received::Http(first),
            Protocol::NeedMore if first.is_empty() => {
                conn.early = bytes.to_vec();
                return Received::Handled;
            }
            Protocol::NeedMore => {
                conn.early = first;
                return Received::Handled;
            }
            Protocol::Neither => {
                conn.phase = Phase::Ending;
                return Received::Handled;
            }
        }
    }
    frames(conn, bytes, cx)
}

/// Handles whole frames; begins or continues the assembly of one that comes in parts.
fn frames(conn: &mut Connection, bytes: &[u8], cx: &mut Context<'_>) -> Received {
    let mut rest = bytes;
    let mut large = false;
    loop {
        if conn.assembly.is_some() {
            match assemble(conn, &mut rest, cx) {
                Assembled::NeedMore => return Received::Handled,
                Assembled::Blocked(why) => return block(conn, why, bytes.len() - rest.len()),
                Assembled::Broken(error) => {
                    broken(conn, &error, cx.spares);
                    return Received::Handled;
                }
                Assembled::Whole(header) => {
                    if let Some(why) = has_to_wait(conn, &header, large, cx) {
                        return block(conn, why, bytes.len() - rest.len());
                    }
                    large = has_large_reply(&header);
                    let Some(assembly) = conn.assembly.take() else { continue };
                    cx.budget.release(&assembly);
                    let body = assembly.bytes.get(FRAME_HEADER_BYTES..).unwrap_or_default();
                    match frame(conn, header, body, cx) {
                        Handled::Next => continue,
                        Handled::Stop => return Received::Handled,
                        Handled::HandOver(shard) => {
                            let mut prefix = assembly.bytes;
                            prefix.extend_from_slice(rest);
                            return Received::HandOver(shard, prefix);
                        }
                    }
                }
            }
        }
        let header = match FrameHeader::decode_request(rest) {
            Ok(Some(header)) => header,
            Ok(None) if rest.is_empty() => return Received::Handled,
            Ok(None) => {
                begin_assembly(conn, cx);
                continue;
            }
            Err(error) => {
                broken(conn, &error, cx.spares);
                return Received::Handled;
            }
        };
        let Some((whole, after)) = rest.split_at_checked(header.frame_bytes()) else {
            begin_assembly(conn, cx);
            continue;
        };
        if let Some(why) = has_to_wait(conn, &header, large, cx) {
            return block(conn, why, bytes.len() - rest.len());
        }
        large = has_large_reply(&header);
        match frame(conn, header, whole.get(FRAME_HEADER_BYTES..).unwrap_or_default(), cx) {
            Handled::Next => rest = after,
            Handled::Stop => return Received::Handled,
            Handled::HandOver(shard) => return Received::HandOver(shard, rest.to_vec()),
        }
    }
}

fn block(conn: &mut Connection, why: Blocked, handled: usize) -> Received {
    conn.blocked = Some(why);
    Received::Blocked(handled)
}

/// Why a request can't be handled yet: too many replies are outstanding or queued, or it is a produce and the shard's
/// unwritten bytes are at their bound. `large`: the request before it has a large reply, which is not queued yet.
fn has_to_wait(conn: &Connection, header: &FrameHeader, large: bool, cx: &Context<'_>) -> Option<Blocked> {
    if conn.phase != Phase::Open {
        return None;
    }
    if large || !conn.may_request() || !cx.load.has_room(cx.spares.queued_bytes()) {
        return Some(Blocked::Replies);
    }
    let stalled =
        header.kind == kind::PRODUCE && cx.engine.as_ref().is_some_and(|engine| !engine.accepts_produce());
    stalled.then_some(Blocked::Produce)
}

/// Whether the reply is large however small the request is.
fn has_large_reply(header: &FrameHeader) -> bool {
    matches!(header.kind, kind::METADATA | kind::DESCRIBE_PARTITIONS)
}

fn begin_assembly(conn: &mut Connection, cx: &Context<'_>) {
    conn.assembly = Some(Assembly { bytes: Vec::new(), total: None, reserved: 0 });
    conn.partial_since_us = cx.now.monotonic_us;
}

enum Assembled {
    NeedMore,
    Blocked(Blocked),
    Broken(FrameError),
    Whole(FrameHeader),
}

/// Moves bytes from the front of `rest` into the connection's assembly.
fn assemble(conn: &mut Connection, rest: &mut &[u8], cx: &mut Context<'_>) -> Assembled {
    let Some(assembly) = &mut conn.assembly else { return Assembled::NeedMore };
    let mut take = |assembly: &mut Assembly, upto: usize| {
        let wanted = upto.saturating_sub(assembly.bytes.len()).min(rest.len());
        let (taken, after) = rest.split_at_checked(wanted).unwrap_or((rest, &[]));
        assembly.bytes.extend_from_slice(taken);
        *rest = after;
    };
    take(assembly, FRAME_HEADER_BYTES);
    let header = match FrameHeader::decode_request(&assembly.bytes) {
        Ok(Some(header)) => header,
        Ok(None) => return Assembled::NeedMore,
        Err(error) => return Assembled::Broken(error),
    };
    let total = header.frame_bytes();
    if assembly.total.is_none() {
        // The whole frame is reserved, so that what has begun can always be finished; the memory itself grows
        // with the bytes that really come.
        if !cx.budget.reserve(total) {
            return Assembled::Blocked(Blocked::Assembly);
        }
        assembly.total = Some(total);
        assembly.reserved = total;
    }
    take(assembly, total);
    if assembly.bytes.len() < total { Assembled::NeedMore } else { Assembled::Whole(header) }
}

/// Handles one whole frame.
fn frame(conn: &mut Connection, header: FrameHeader, body: &[u8], cx: &mut Context<'_>) -> Handled {
    if header.kind == kind::HELLO && conn.phase == Phase::Handshake {
        return hello(conn, header, body, cx);
    }
    let refuse = |conn: &mut Connection, spares: &mut Spares, code: ErrorCode, detail: &str| {
        conn.queue
            .push_encoded(spares, |out| Response::encode_error(code, detail, header.correlation_id, out));
    };
    if conn.phase != Phase::Open || header.kind == kind::HELLO {
        let detail = match conn.phase {
            Phase::Open => "Hello is the first frame of a connection and comes once",
            _ => "the first frame of a connection has to be Hello",
        };
        refuse(conn, cx.spares, ErrorCode::InvalidRequest, detail);
        conn.phase = Phase::Ending;
        return Handled::Stop;
    }
    let request = match Request::decode(header.kind, body) {
        Ok(request) => request,
        Err(error) => {
            refuse(conn, cx.spares, error.code(), &error.to_string());
            if error.closes_connection() {
                conn.phase = Phase::Ending;
                return Handled::Stop;
            }
            return Handled::Next;
        }
    };
    let Some(engine) = &mut cx.engine else {
        refuse(conn, cx.spares, ErrorCode::Fenced, "");
        return Handled::Next;
    };
    conn.in_flight += 1;
    cx.load.in_flight += 1;
    cx.load.large += usize::from(has_large_reply(&header));
    if header.kind == kind::PRODUCE {
        conn.produces.push_back((header.correlation_id, cx.now.monotonic_us));
    }
    let event = Event::Request { conn: conn.id, correlation_id: header.correlation_id, request };
    engine.handle(cx.now, event, cx.actions);
    Handled::Next
}

fn hello(conn: &mut Connection, header: FrameHeader, body: &[u8], cx: &mut Context<'_>) -> Handled {
    let identity = cx.identity;
    let outcome = Hello::decode(body)
        .map_err(|error| (error.code(), error.to_string()))
        .and_then(|hello| hello.negotiate(identity.shards));
    match outcome {
        Ok((_, Some(shard))) if shard != identity.shard => Handled::HandOver(shard),
        Ok((protocol_version, _)) => {
            let reply = HelloReply {
                protocol_version,
                shards: identity.shards,
                shard: identity.shard,
                node: identity.node,
                catalog_version: identity.catalog_version,
                max_batch_bytes: MAX_BATCH_BYTES as u32,
                max_fetch_bytes: MAX_FETCH_BYTES as u32,
                max_in_flight_requests: MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION as u32,
                server_version: identity.server_version.clone(),
            };
            conn.queue.push_encoded(cx.spares, |out| reply.encode(header.correlation_id, out));
            conn.phase = Phase::Open;
            Handled::Next
        }
        Err((code, detail)) => {
            let encode =
                |out: &mut Vec<u8>| Response::encode_error(code, &detail, header.correlation_id, out);
            conn.queue.push_encoded(cx.spares, encode);
            conn.phase = Phase::Ending;
            Handled::Stop
        }
    }
}

/// Bytes that are no frame: an error reply where one would be understood, then the end.
fn broken(conn: &mut Connection, error: &FrameError, spares: &mut Spares) {
    if let Some((correlation_id, code)) = error.reply() {
        let detail = error.to_string();
        conn.queue.push_encoded(spares, |out| Response::encode_error(code, &detail, correlation_id, out));
    }
    conn.phase = Phase::Ending;
}

/// A socket on its way to another owner, with the bytes that were read from it.
#[derive(Debug)]
pub(super) struct HandOver {
    pub(super) socket: OwnedFd,
    pub(super) prefix: Vec<u8>,
}
