//! What consumers get: at the end of the log as soon as it is committed ([`tail`]), and from its beginning what is in no
//! memory any more ([`cold`]).

pub mod cold;
pub mod history;
pub mod run;
pub mod tail;

use std::net::SocketAddr;

use anyhow::Context;
use pyralog_core::GroupId;
use pyralog_net::message::{Consistency, ListOffsetsRequest, OffsetSpec, Request, Response};

use crate::session::Session;

/// A partition and where it is read.
#[derive(Clone, Copy, Debug)]
pub struct Partition {
    /// The node that leads it.
    pub leader: SocketAddr,
    /// The leader's shard that owns it.
    pub shard: u16,
    /// The partition.
    pub group: GroupId,
}

/// Every partition of a topic.
///
/// # Errors
/// When there is no such topic, or a partition has no leader.
pub fn partitions(addr: SocketAddr, topic: &str) -> anyhow::Result<Vec<Partition>> {
    let (topic, nodes) = Session::connect(addr, None)?.topic(topic)?;
    let place = |(number, at): (u32, &pyralog_net::message::PartitionMetadata)| {
        let node = nodes.iter().find(|node| node.id == at.leader).with_context(|| {
            format!("partition {number} of {} has no leader at the moment; try again", topic.name)
        })?;
        let leader = node.address.parse().with_context(|| format!("the address {}", node.address))?;
        Ok(Partition { leader, shard: at.shard, group: GroupId::new(topic.id, number) })
    };
    (0u32..).zip(&topic.partitions).map(place).collect()
}

impl Partition {
    /// A connection to whoever owns it.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn connect(&self) -> anyhow::Result<Session> {
        Ok(Session::connect(self.leader, Some(self.shard))?)
    }

    /// Where its log begins, or ends as far as it is committed.
    ///
    /// # Errors
    /// When the node refuses to say.
    pub fn offset(&self, session: &mut Session, spec: OffsetSpec) -> anyhow::Result<i64> {
        let request = ListOffsetsRequest { group: self.group, spec, consistency: Consistency::Leader };
        match session.call(&Request::ListOffsets(request))?.response {
            Response::ListOffsets(reply) => Ok(reply.offset),
            other => anyhow::bail!("an unexpected reply to ListOffsets: {other:?}"),
        }
    }
}
