//! The handshake. It is the first frame in each direction; nothing else is answered before it. Its layout is
//! the same in every version of the protocol.

use pyralog_core::ErrorCode;

use crate::codec::{
    DecodeError, EncodeError, MAX_CLIENT_NAME_BYTES, MAX_SERVER_VERSION_BYTES, Reader, Writer, truncated,
};
use crate::frame::{REPLY_BIT, kind};

/// The version of the messages that this code speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// In [`Hello::wanted_shard`]: whichever shard accepted the connection.
pub const ANY_SHARD: u16 = 0xFFFF;

/// What a client says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Oldest protocol version that the client speaks.
    pub protocol_min: u16,
    /// Newest protocol version that the client speaks.
    pub protocol_max: u16,
    /// The shard that the connection shall belong to; [`ANY_SHARD`] leaves it where it is.
    pub wanted_shard: u16,
    /// Who the client is, for the operator; at most 128 bytes.
    pub client_name: &'a str,
}

/// What the server answers, from the shard that now owns the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloReply {
    /// The protocol version of everything that follows.
    pub protocol_version: u16,
    /// Shards of this node.
    pub shards: u16,
    /// The shard that owns the connection.
    pub shard: u16,
    /// This node's id.
    pub node: u32,
    /// Version of the catalogue that this shard serves.
    pub catalog_version: u64,
    /// Largest record batch accepted, bytes.
    pub max_batch_bytes: u32,
    /// Most bytes of batches that a fetch may ask for.
    pub max_fetch_bytes: u32,
    /// Requests of one connection that may await their replies; beyond it the server stops reading.
    pub max_in_flight_requests: u32,
    /// The server's version string, at most 128 bytes.
    pub server_version: String,
}

impl<'a> Hello<'a> {
    /// The `Hello` with this body.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let protocol_min = reader.u16("protocol_min")?;
        let protocol_max = reader.u16("protocol_max")?;
        let wanted_shard = reader.u16("wanted_shard")?;
        let len = reader.len_within("name_len", MAX_CLIENT_NAME_BYTES)?;
        reader.reserved(8, "name_len")?;
        let client_name = reader.text(len, "client_name")?;
        reader.finish()?;
        Ok(Self { protocol_min, protocol_max, wanted_shard, client_name })
    }

    /// Appends the whole frame to `out`.
    pub fn encode(&self, correlation_id: u64, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        EncodeError::check("name_len", self.client_name.len() as u64, MAX_CLIENT_NAME_BYTES as u64)?;
        let mut w = Writer::begin(out, kind::HELLO, correlation_id);
        w.u16(self.protocol_min).u16(self.protocol_max).u16(self.wanted_shard);
        w.u16(self.client_name.len() as u16).reserved(8).bytes(self.client_name.as_bytes());
        w.finish(0);
        Ok(())
    }

    /// The version to speak with this client and the shard it shall go to (`None`: any), or the code and detail
    /// of the error reply, after which the connection is closed.
    pub fn negotiate(&self, shards: u16) -> Result<(u16, Option<u16>), (ErrorCode, String)> {
        if !(self.protocol_min..=self.protocol_max).contains(&PROTOCOL_VERSION) {
            let detail = format!(
                "the client speaks protocol versions {} to {}, this node speaks {PROTOCOL_VERSION}",
                self.protocol_min, self.protocol_max
            );
            return Err((ErrorCode::UnsupportedVersion, detail));
        }
        match self.wanted_shard {
            ANY_SHARD => Ok((PROTOCOL_VERSION, None)),
            shard if shard < shards => Ok((PROTOCOL_VERSION, Some(shard))),
            shard => {
                let detail = format!(
                    "shard {shard} does not exist: this node has {shards} shards, numbered from 0; refresh the metadata"
                );
                Err((ErrorCode::InvalidRequest, detail))
            }
        }
    }
}

impl HelloReply {
    /// Before the handshake.
    pub(crate) fn unknown() -> Self {
        Self {
            protocol_version: 0,
            shards: 0,
            shard: ANY_SHARD,
            node: 0,
            catalog_version: 0,
            max_batch_bytes: 0,
            max_fetch_bytes: 0,
            max_in_flight_requests: 0,
            server_version: String::new(),
        }
    }

    /// Appends the whole frame to `out`; a version string above its bound is cut.
    pub fn encode(&self, correlation_id: u64, out: &mut Vec<u8>) {
        let server = truncated(&self.server_version, MAX_SERVER_VERSION_BYTES);
        let mut w = Writer::begin(out, kind::HELLO | REPLY_BIT, correlation_id);
        w.u16(self.protocol_version).u16(self.shards).u16(self.shard).u16(server.len() as u16);
        w.u32(self.node).u32(self.max_batch_bytes).u64(self.catalog_version);
        w.u32(self.max_fetch_bytes).u32(self.max_in_flight_requests).bytes(server.as_bytes());
        w.finish(0);
    }

    /// The reply with this body.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let protocol_version = reader.u16("protocol_version")?;
        let shards = reader.u16("shards")?;
        let shard = reader.u16("shard")?;
        let len = reader.len_within("server_len", MAX_SERVER_VERSION_BYTES)?;
        let node = reader.u32("node")?;
        let max_batch_bytes = reader.u32("max_batch_bytes")?;
        let catalog_version = reader.u64("catalog_version")?;
        let max_fetch_bytes = reader.u32("max_fetch_bytes")?;
        let max_in_flight_requests = reader.u32("max_in_flight_requests")?;
        let server_version = reader.text(len, "server_version")?.to_owned();
        reader.finish()?;
        Ok(Self {
            protocol_version,
            shards,
            shard,
            node,
            catalog_version,
            max_batch_bytes,
            max_fetch_bytes,
            max_in_flight_requests,
            server_version,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(wanted_shard: u16) -> Hello<'static> {
        Hello { protocol_min: 1, protocol_max: 3, wanted_shard, client_name: "test" }
    }

    #[test]
    fn the_wanted_shard_must_exist_and_the_error_names_the_count() {
        assert_eq!(hello(1).negotiate(2), Ok((1, Some(1))));
        assert_eq!(hello(ANY_SHARD).negotiate(2), Ok((1, None)));
        let (code, detail) = hello(2).negotiate(2).unwrap_err();
        assert_eq!(code, ErrorCode::InvalidRequest);
        assert!(detail.contains("has 2 shards"), "{detail}");
    }

    #[test]
    fn a_client_without_a_common_version_is_told_both_sides() {
        let hello = Hello { protocol_min: 2, ..hello(0) };
        let (code, detail) = hello.negotiate(1).unwrap_err();
        assert_eq!(code, ErrorCode::UnsupportedVersion);
        assert!(detail.contains("versions 2 to 3") && detail.contains("speaks 1"), "{detail}");
        let backwards = Hello { protocol_min: 2, protocol_max: 0, ..hello };
        assert!(backwards.negotiate(1).is_err());
    }
}
