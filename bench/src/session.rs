//! What these tools ask of a node over the client library's connection.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;
use pyralog_core::Quorums;
use pyralog_net::client::{ClientError, Connection, Received};
use pyralog_net::hello::{ANY_SHARD, PROTOCOL_VERSION};
use pyralog_net::message::{
    CreateTopicRequest, MetadataReply, MetadataRequest, NodeMetadata, Request, Response, TopicMetadata,
};
use pyralog_net::{Hello, Reply};

/// How long a connection or a reply may take.
pub const PATIENCE: Duration = Duration::from_secs(30);
const NAME: &str = "pyralog-bench";

/// A connection after its handshake, one request at a time.
pub struct Session(Connection);

impl Session {
    /// Connects and shakes hands; `shard` is `None` for whichever accepts.
    pub fn connect(addr: SocketAddr, shard: Option<u16>) -> Result<Self, ClientError> {
        Connection::connect_as(NAME, &addr.to_string(), shard, PATIENCE).map(Self)
    }

    /// Sends one request and waits for its reply. An error reply is [`ClientError::Server`].
    pub fn call(&mut self, request: &Request<'_>) -> Result<Received<'_>, ClientError> {
        self.0.call(request)
    }

    /// What the server says that it is.
    pub fn server_version(&self) -> &str {
        &self.0.hello().server_version
    }

    /// Whether requests are served: a node answers handshakes a little before that.
    pub fn serves(&mut self) -> Result<(), ClientError> {
        self.call(&Request::Metadata(MetadataRequest { topic: None, start_after: 0 })).map(drop)
    }

    /// Creates a topic with the node's default retention; returns its id.
    pub fn create_topic(&mut self, name: &str, partitions: u32) -> anyhow::Result<u32> {
        let request = CreateTopicRequest {
            name,
            partitions,
            quorums: Quorums::UNSET,
            retention_bytes: -1,
            retention_ms: -1,
        };
        match self.call(&Request::CreateTopic(request)).with_context(|| format!("topic {name}"))?.response {
            Response::CreateTopic(reply) => Ok(reply.id),
            other => anyhow::bail!("an unexpected reply to CreateTopic: {other:?}"),
        }
    }

    /// The topic of this name, and the nodes that there are.
    pub fn topic(&mut self, name: &str) -> anyhow::Result<(TopicMetadata, Vec<NodeMetadata>)> {
        let request = MetadataRequest { topic: Some(name), start_after: 0 };
        match self.call(&Request::Metadata(request)).with_context(|| format!("topic {name}"))?.response {
            Response::Metadata(reply) => {
                let MetadataReply { topics, nodes, .. } = *reply;
                let topic = topics.into_iter().find(|topic| topic.name == name).with_context(|| {
                    format!(
                        "no topic {name}; create it first: pyralog-admin topic create {name} --partitions 1"
                    )
                })?;
                Ok((topic, nodes))
            }
            other => anyhow::bail!("an unexpected reply to Metadata: {other:?}"),
        }
    }

    /// The connection, to pipeline requests.
    pub fn into_connection(self) -> Connection {
        self.0
    }

    /// The socket, to go on with frames of one's own.
    pub fn into_socket(self) -> anyhow::Result<TcpStream> {
        self.0.stream().try_clone().context("can't take over the socket")
    }
}

/// The handshake of these tools, to be sent in pieces.
pub fn hello_frame() -> Hello<'static> {
    Hello {
        protocol_min: PROTOCOL_VERSION,
        protocol_max: PROTOCOL_VERSION,
        wanted_shard: ANY_SHARD,
        client_name: NAME,
    }
}

/// The error in a reply that is not of the kind asked for.
pub fn refusal(kind: u16, body: &[u8]) -> anyhow::Error {
    match Response::decode(kind, body) {
        Ok(Reply { response: Response::Error(reply), .. }) => {
            ClientError::Server { code: reply.code, detail: reply.detail }.into()
        }
        Ok(_) => anyhow::anyhow!("an unexpected reply of kind {kind:#06x}"),
        Err(error) => error.into(),
    }
}
