//! One blocking connection to a node: handshake, then one request after the other.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;
use pyralog_core::ErrorCode;
use pyralog_core::limits::{FRAME_HEADER_BYTES, MAX_REPLY_BODY_BYTES};
use pyralog_net::frame::{FrameHeader, REPLY_BIT, kind};
use pyralog_net::hello::{ANY_SHARD, PROTOCOL_VERSION};
use pyralog_net::message::{CreateTopicRequest, MetadataRequest, Request, Response, TopicMetadata};
use pyralog_net::{Hello, HelloReply, Reply};

/// How long a connection or a reply may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The server answered with an error.
#[derive(Debug)]
pub struct Refused {
    /// Its code.
    pub code: ErrorCode,
    /// Its text.
    pub detail: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the server refused: {}", self.code)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

impl std::error::Error for Refused {}

/// A connection after its handshake.
pub struct Session {
    socket: TcpStream,
    hello: HelloReply,
    send: Vec<u8>,
    receive: Vec<u8>,
    next_correlation: u64,
}

impl Session {
    /// Connects and shakes hands; `shard` is `None` for whichever accepts.
    pub fn connect(addr: SocketAddr, shard: Option<u16>) -> anyhow::Result<Self> {
        let mut socket = TcpStream::connect_timeout(&addr, PATIENCE)
            .with_context(|| format!("can't connect to {addr}"))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut send = Vec::with_capacity(4096);
        hello_frame(shard).encode(0, &mut send)?;
        socket.write_all(&send)?;
        let mut receive = Vec::with_capacity(4096);
        let header =
            receive_frame(&mut socket, &mut receive).with_context(|| format!("handshake with {addr}"))?;
        if header.kind != kind::HELLO | REPLY_BIT {
            return Err(refusal(header.kind, &receive)).with_context(|| format!("handshake with {addr}"));
        }
        let hello = HelloReply::decode(&receive)?;
        Ok(Self { socket, hello, send, receive, next_correlation: 1 })
    }

    /// What the server said of itself.
    pub fn hello(&self) -> &HelloReply {
        &self.hello
    }

    /// Sends one request and waits for its reply. An error reply is a [`Refused`].
    pub fn call(&mut self, request: &Request<'_>) -> anyhow::Result<Reply<'_>> {
        let correlation = self.next_correlation;
        self.next_correlation += 1;
        self.send.clear();
        request.encode(correlation, &mut self.send)?;
        self.socket.write_all(&self.send).context("sending a request failed")?;
        let header = receive_frame(&mut self.socket, &mut self.receive)?;
        anyhow::ensure!(
            header.correlation_id == correlation,
            "reply to request {} while {correlation} was asked",
            header.correlation_id
        );
        if header.kind == kind::ERROR {
            return Err(refusal(header.kind, &self.receive));
        }
        anyhow::ensure!(
            header.kind == request.kind() | REPLY_BIT,
            "a reply of kind {:#06x} to a request of kind {:#06x}",
            header.kind,
            request.kind()
        );
        Ok(Response::decode(header.kind, &self.receive)?)
    }

    /// Creates a topic with the node's default retention; returns its id.
    pub fn create_topic(&mut self, name: &str, partitions: u32) -> anyhow::Result<u32> {
        let request = CreateTopicRequest { name, partitions, retention_bytes: -1, retention_ms: -1 };
        match self.call(&Request::CreateTopic(request))?.response {
            Response::CreateTopic(reply) => Ok(reply.id),
            other => anyhow::bail!("an unexpected reply to CreateTopic: {other:?}"),
        }
    }

    /// The topic of this name.
    pub fn topic(&mut self, name: &str) -> anyhow::Result<TopicMetadata> {
        let request = MetadataRequest { topic: Some(name), start_after: 0 };
        match self.call(&Request::Metadata(request))?.response {
            Response::Metadata(reply) => {
                reply.topics.into_iter().find(|topic| topic.name == name).with_context(|| {
                    format!("no topic {name}; create it first: pyralog-admin topic create {name}")
                })
            }
            other => anyhow::bail!("an unexpected reply to Metadata: {other:?}"),
        }
    }

    /// The socket, to go on with frames of one's own.
    pub fn into_socket(self) -> TcpStream {
        self.socket
    }
}

/// The handshake of these tools.
pub fn hello_frame(shard: Option<u16>) -> Hello<'static> {
    Hello {
        protocol_min: PROTOCOL_VERSION,
        protocol_max: PROTOCOL_VERSION,
        wanted_shard: shard.unwrap_or(ANY_SHARD),
        client_name: "pyralog-bench",
    }
}

/// Receives one reply frame; its body replaces what is in `body`.
pub fn receive_frame(socket: &mut TcpStream, body: &mut Vec<u8>) -> anyhow::Result<FrameHeader> {
    let mut bytes = [0; FRAME_HEADER_BYTES];
    socket.read_exact(&mut bytes).context("no reply")?;
    let header = FrameHeader::decode_reply(&bytes)?.context("a header shorter than it is")?;
    // Already checked by decode_reply; said again because it decides an allocation.
    anyhow::ensure!(
        header.body_bytes as usize <= MAX_REPLY_BODY_BYTES,
        "a reply of {} bytes",
        header.body_bytes
    );
    body.clear();
    body.resize(header.body_bytes as usize, 0);
    socket.read_exact(body).context("a reply ends in its middle")?;
    Ok(header)
}

/// The error in a reply that is not of the kind asked for.
pub fn refusal(kind: u16, body: &[u8]) -> anyhow::Error {
    match Response::decode(kind, body) {
        Ok(Reply { response: Response::Error(reply), .. }) => {
            Refused { code: reply.code, detail: reply.detail }.into()
        }
        Ok(_) => anyhow::anyhow!("an unexpected reply of kind {kind:#06x}"),
        Err(error) => error.into(),
    }
}
