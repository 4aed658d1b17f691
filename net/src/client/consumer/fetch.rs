//! What a consumer knows of one partition.

use std::ops::Range;
use std::time::{Duration, Instant};

use pyralog_core::GroupId;
use pyralog_core::batch::{BatchError, BatchView, Record};

use crate::client::backoff::{Backoff, SILENCE};
use crate::client::error::ClientError;
use crate::client::place::Place;
use crate::message::FetchReplyHead;

/// Others are asked at least so often: a leader that has nothing to send is silent, too.
const LONGEST_SILENCE: Duration = Duration::from_secs(4);

/// One partition: where reading goes on, what was asked for, what is there.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) partition: u32,
    /// Offset of the next record to be visited.
    pub(super) position: i64,
    /// Counted on when another replica is to be asked.
    pub(super) turn: usize,
    /// Who is asked, until something goes wrong there.
    pub(super) route: Option<Route>,
    pub(super) backoff: Backoff,
    pub(super) asked: Option<Asked>,
    pub(super) fetched: Option<Fetched>,
    /// Not asked for before then, after a failure.
    pub(super) retry_at: Option<Instant>,
    /// What the last reply said.
    pub(super) head: Option<FetchReplyHead>,
    /// It was answered since the current poll began.
    pub(super) answered: bool,
}

/// Who is asked for a partition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub(super) group: GroupId,
    pub(super) place: Place,
    /// Of the leader that was known then.
    pub(super) epoch: u32,
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) place: Place,
    pub(super) correlation_id: u64,
    /// How long the node may wait for records.
    pub(super) wait: Duration,
    heard_at: Instant,
    look_at: Instant,
    patience: Duration,
}

/// A reply with batches that have not all been visited.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) buffer: Vec<u8>,
    pub(super) batches: Range<usize>,
}

/// Why a visit ended early.
enum Stop<E> {
    Visitor(E),
    Damaged(ClientError),
}

fn damaged<E>(error: BatchError) -> Stop<E> {
    Stop::Damaged(error.into())
}

impl Asked {
    pub(super) fn new(place: Place, correlation_id: u64, wait: Duration) -> Self {
        let heard_at = Instant::now();
        let look_at = heard_at + SILENCE;
        Self { place, correlation_id, wait, heard_at, look_at, patience: SILENCE }
    }

    /// For so long nobody listened to what the node might have said.
    pub(super) fn was_not_listened_to(&mut self, away: Duration) {
        self.heard_at += away;
        self.look_at += away;
    }

    /// When the node's silence is worth asking others about, or has lasted for `longest` beyond its wait.
    pub(super) fn silent_at(&self, longest: Duration) -> Instant {
        self.look_at.min(self.heard_at + self.wait + longest)
    }

    /// Whether it has lasted for so long. The next look is twice as far away.
    pub(super) fn silent_for(&mut self, now: Instant, longest: Duration) -> bool {
        self.patience = (self.patience * 2).min(LONGEST_SILENCE);
        self.look_at = now + self.patience;
        now >= self.heard_at + self.wait + longest
    }
}

impl Fetched {
    fn bytes(&self) -> &[u8] {
        self.buffer.get(self.batches.clone()).unwrap_or_default()
    }

    /// The offset behind its batches; `None` when they are damaged, which visiting them tells.
    pub(super) fn next_offset(&self) -> Option<i64> {
        let (mut rest, mut next) = (self.bytes(), None);
        while !rest.is_empty() {
            let (batch, behind) = BatchView::parse(rest).ok()?;
            next = Some(batch.last_offset().saturating_add(1));
            rest = behind;
        }
        next
    }
}

impl Fetch {
    pub(super) fn new(partition: u32, position: i64) -> Self {
        Self {
            partition,
            position,
            turn: 0,
            route: None,
            backoff: Backoff::new(),
            asked: None,
            fetched: None,
            retry_at: None,
            head: None,
            answered: false,
        }
    }

    /// Goes on at another offset: what was asked for or is there is of no use.
    pub(super) fn seek(&mut self, offset: i64) {
        self.position = offset;
        (self.asked, self.fetched, self.retry_at) = (None, None, None);
    }

    /// The offset to ask for when something should be asked for now: behind what is there, if the log goes on there.
    pub(super) fn wanted(&self, now: Instant) -> Option<i64> {
        if self.asked.is_some() || self.retry_at.is_some_and(|at| at > now) {
            return None;
        }
        let Some(fetched) = &self.fetched else { return Some(self.position) };
        let end = self.head.map_or(0, |head| head.high_watermark);
        fetched.next_offset().filter(|next| *next < end)
    }

    /// Visits the records that are there, from the position on. What the visitor refused is still there afterwards, what
    /// is damaged is fetched anew.
    pub(super) fn visit<E: From<ClientError>>(
        &mut self,
        decompressed: &mut Vec<u8>,
        visit: &mut impl FnMut(u32, Record<'_>) -> Result<(), E>,
    ) -> Result<u64, E> {
        match self.visit_all(decompressed, visit) {
            Ok(visited) => Ok(visited),
            Err(Stop::Visitor(error)) => Err(error),
            Err(Stop::Damaged(error)) => {
                (self.asked, self.fetched) = (None, None);
                Err(error.into())
            }
        }
    }

    fn visit_all<E>(
        &mut self,
        decompressed: &mut Vec<u8>,
        visit: &mut impl FnMut(u32, Record<'_>) -> Result<(), E>,
    ) -> Result<u64, Stop<E>> {
        let Some(fetched) = &self.fetched else { return Ok(0) };
        let mut rest = fetched.bytes();
        let mut visited = 0;
        while !rest.is_empty() {
            let (batch, behind) = BatchView::parse(rest).map_err(damaged)?;
            rest = behind;
            if batch.last_offset() < self.position {
                continue;
            }
            batch.check_crc().map_err(damaged)?;
            if !batch.is_control() {
                for record in batch.records(decompressed).map_err(damaged)? {
                    let record = record.map_err(damaged)?;
                    if record.offset < self.position {
                        continue;
                    }
                    let next = record.offset.saturating_add(1);
                    visit(self.partition, record).map_err(Stop::Visitor)?;
                    self.position = next;
                    visited += 1;
                }
            }
            self.position = self.position.max(batch.last_offset().saturating_add(1));
        }
        Ok(visited)
    }
}
