//! Idempotent producers: what is not acknowledged is sent again, in order and with the same sequences, wherever the
//! partition is led then, until it is.

use std::collections::{BTreeMap, VecDeque};

use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::{Acks, Response};

use super::clients::{Client, Role, Sent};
use super::world::World;
use crate::model::Existence;
use crate::request::{Owned, Reply};

/// Batches in flight of one session in one partition.
const IN_FLIGHT: usize = 5;

/// An idempotent producer.
#[derive(Debug, Default)]
pub(crate) struct Session {
    producer: Option<(i64, i16)>,
    asked: bool,
    parts: BTreeMap<GroupId, Part>,
}

#[derive(Debug, Default)]
struct Part {
    next: i32,
    queue: VecDeque<Out>,
}

#[derive(Debug)]
struct Out {
    id: u64,
    in_flight: u32,
    failed: bool,
    /// Stays until all before it are acknowledged: the window is five batches from the oldest open one on.
    acked: bool,
}

impl World {
    /// Whether the client waits for something that must still come through.
    pub(crate) fn has_work(&self, client: &Client) -> bool {
        let Role::Idempotent(session) = &client.role else { return false };
        session.parts.iter().any(|(group, part)| self.is_there(*group) && !part.queue.is_empty())
    }

    fn is_there(&self, group: GroupId) -> bool {
        self.model.groups.get(&group).is_some_and(|model| model.exists != Existence::No)
    }

    pub(crate) fn step_session(&mut self, index: usize, session: &mut Session) {
        let Some((producer, epoch)) = session.producer else {
            if !session.asked && self.budget_left() {
                let seat = self.controller_seat(index);
                session.asked = self.request(index, seat, Owned::InitProducerId, None);
            }
            return;
        };
        self.send_again(index, session);
        if !self.budget_left() {
            return;
        }
        for _ in 0..self.rng.range(1, 3) {
            let Some(group) = self.pick_group() else { return };
            let part = session.parts.entry(group).or_default();
            if part.queue.len() >= IN_FLIGHT || part.queue.iter().any(|out| out.failed) {
                continue;
            }
            let id = self.make_batch(group, Some((producer, epoch, part.next)));
            part.next += self.model.batch(id).map_or(0, |batch| batch.records as i32);
            let sent = self.produce(index, id, Acks::Quorum);
            part.queue.push_back(Out { id, in_flight: u32::from(sent), failed: !sent, acked: false });
            // Sent twice on purpose.
            if sent
                && self.rng.one_in(20)
                && self.produce(index, id, Acks::Quorum)
                && let Some(out) = part.queue.back_mut()
            {
                out.in_flight += 1;
            }
        }
    }

    /// What failed is sent again, in order, once nothing of that partition is under way.
    fn send_again(&mut self, index: usize, session: &mut Session) {
        for (group, part) in &mut session.parts {
            if !self.is_there(*group) {
                part.queue.clear();
                continue;
            }
            let failed = part.queue.iter().any(|out| out.failed);
            if !failed || part.queue.iter().any(|out| out.in_flight > 0 && !out.acked) {
                continue;
            }
            for out in part.queue.iter_mut().filter(|out| !out.acked) {
                if !self.produce(index, out.id, Acks::Quorum) {
                    break;
                }
                (out.in_flight, out.failed) = (out.in_flight + 1, false);
            }
        }
    }

    pub(crate) fn session_reply(&mut self, session: &mut Session, sent: &Sent, reply: Option<&Reply>) {
        let Some(id) = sent.batch else {
            session.asked = false;
            if let Some(Reply::Message(Response::InitProducerId(reply))) = reply {
                if !self.model.producer_ids.insert(reply.producer_id) {
                    self.fail(format!("producer id {} was handed out twice", reply.producer_id));
                }
                session.producer = Some((reply.producer_id, reply.producer_epoch));
            }
            return;
        };
        let Some(part) = sent.request.group().and_then(|group| session.parts.get_mut(&group)) else { return };
        if let Some(Reply::Message(Response::Produce(reply))) = reply {
            self.acknowledged(sent, reply);
            if let Some(out) = part.queue.iter_mut().find(|out| out.id == id) {
                (out.acked, out.failed) = (true, false);
            }
            while part.queue.front().is_some_and(|out| out.acked) {
                part.queue.pop_front();
            }
            return;
        }
        let Some(out) = part.queue.iter_mut().find(|out| out.id == id && !out.acked) else { return };
        out.in_flight = out.in_flight.saturating_sub(1);
        out.failed = true;
        let Some(code) = reply.and_then(Reply::error) else { return };
        // A leader that others have deposed may not know what came before; a damaged one takes nothing.
        let passes = matches!(
            code,
            ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducerId | ErrorCode::LogEndUnknown
        );
        if !code.retriable() && !passes {
            self.fail(format!("good batch {id} was answered {}", code.name()));
        }
    }
}
