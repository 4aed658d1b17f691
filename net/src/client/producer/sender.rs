//! What every producer stands on: batches of one topic on their way to their leaders, in turns that never block but
//! where they are told to.
//!
//! Batches of a partition carry consecutive sequence numbers, and few are under way at once: as many as the node
//! remembers. When one is refused or its connection is lost, what is under way in that partition is awaited, and
//! everything that was not acknowledged is sent again in the same order and with the same numbers, so that the node
//! can tell a batch that it has from one that it has not. Other partitions go on meanwhile. A batch that can't succeed
//! leaves a gap in the sequence: what is left of its partition goes on in a new session, but for batches that the node
//! may have taken, which have an unknown outcome then.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pyralog_core::batch::BatchBuilder;
use pyralog_core::{ErrorCode, GroupId, Outcome};

use super::config::{ProducerConfig, ProducerStats};
use super::link::{Answer, Flight, Link};
use super::queue::{Next, Pending, Queue};
use super::resolver::{Ask, Resolver, Told};
use crate::client::api::Client;
use crate::client::backoff::Backoff;
use crate::client::error::ClientError;
use crate::client::place::Place;
use crate::message::{InitProducerIdReply, PartitionMetadata, ProduceReply, TopicMetadata};
use crate::socket::{interest, wait_ready};

/// Waits of this length are one system call when there is one connection only.
const LONG_WAIT: Duration = Duration::from_millis(500);
/// Empty builders that are kept for the next batches.
const SPARE_BUILDERS: usize = 64;
/// A builder that has grown above this is given back.
const KEEP_BYTES: usize = 1 << 20;

/// What became of a batch.
#[derive(Debug)]
pub(super) struct Completed<T> {
    pub(super) partition: u32,
    pub(super) tag: T,
    pub(super) records: u32,
    pub(super) bytes: usize,
    pub(super) begun: Instant,
    pub(super) result: Result<ProduceReply, Failure>,
}

/// Why a batch was not acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) error: Arc<ClientError>,
    /// Whether it may be in the log.
    pub(super) outcome: Outcome,
}

/// Batches on their way. Belongs to one thread.
#[derive(Debug)]
pub(super) struct Sender<T> {
    config: ProducerConfig,
    request_timeout: Duration,
    connect_timeout: Duration,
    topic: String,
    topic_id: u32,
    first_session: Option<InitProducerIdReply>,
    queues: Vec<Queue<T>>,
    /// Partitions whose queues are not empty.
    active: Vec<u32>,
    links: BTreeMap<Place, Link>,
    resolver: Resolver,
    /// Ends the wait of a turn when it can be read; `None` when nobody else has anything to say.
    woken: Option<UnixStream>,
    topic_asked: bool,
    ask_topic_at: Option<Instant>,
    topic_backoff: Backoff,
    session_asked: bool,
    ask_session_at: Option<Instant>,
    next_ticket: u64,
    done: VecDeque<Completed<T>>,
    spare: Vec<BatchBuilder>,
    unacknowledged_bytes: usize,
    stats: ProducerStats,
    failed: Option<Arc<ClientError>>,
    watched: Vec<libc::pollfd>,
    /// Places of those in `watched`.
    watched_places: Vec<Place>,
    /// How long it looks again and again before it sleeps.
    spin: Duration,
}

impl<T> Sender<T> {
    /// For a topic that exists. `resolver` gets the client and may answer in a thread of its own, with what wakes `woken`.
    pub(super) fn new(
        mut client: Client,
        topic: &str,
        config: ProducerConfig,
        woken: Option<UnixStream>,
        resolver: impl FnOnce(Client) -> Result<Resolver, ClientError>,
    ) -> Result<Self, ClientError> {
        let config = config.bounded();
        let session = if config.idempotent { Some(client.init_producer_id()?) } else { None };
        client.forget_topic(topic);
        let metadata = client.topic(topic)?;
        let queue =
            |partition: &PartitionMetadata| Queue::new(Place::leader_of(partition), partition.epoch, session);
        Ok(Self {
            request_timeout: client.config().request_timeout.min(config.delivery_timeout),
            connect_timeout: client.config().connect_timeout,
            topic: topic.to_owned(),
            topic_id: metadata.id,
            first_session: session,
            queues: metadata.partitions.iter().map(queue).collect(),
            active: Vec::new(),
            links: BTreeMap::new(),
            resolver: resolver(client)?,
            woken,
            topic_asked: false,
            ask_topic_at: None,
            topic_backoff: Backoff::new(),
            session_asked: false,
            ask_session_at: None,
            next_ticket: 0,
            done: VecDeque::new(),
            spare: Vec::new(),
            unacknowledged_bytes: 0,
            stats: ProducerStats::default(),
            failed: None,
            watched: Vec::new(),
            watched_places: Vec::new(),
            spin: Duration::ZERO,
            config,
        })
    }

    /// Looks again and again for so long before it sleeps. For threads with a CPU of their own.
    pub(super) fn set_spin(&mut self, spin: Duration) {
        self.spin = spin;
    }

    pub(super) fn config(&self) -> &ProducerConfig {
        &self.config
    }

    /// The session that it began with.
    pub(super) fn session(&self) -> Option<InitProducerIdReply> {
        self.first_session
    }

    pub(super) fn partitions(&self) -> u32 {
        self.queues.len() as u32
    }

    pub(super) fn stats(&self) -> ProducerStats {
        self.stats
    }

    /// Bytes of the batches that are not acknowledged.
    pub(super) fn unacknowledged_bytes(&self) -> usize {
        self.unacknowledged_bytes
    }

    /// Records of the batches that are not acknowledged.
    pub(super) fn unacknowledged_records(&self) -> u64 {
        self.active
            .iter()
            .filter_map(|partition| self.queues.get(*partition as usize))
            .map(Queue::records)
            .sum()
    }

    /// Batches of one partition that are not acknowledged.
    pub(super) fn batches(&self, partition: u32) -> usize {
        self.queues.get(partition as usize).map_or(0, Queue::batches)
    }

    /// Whether everything has its outcome.
    pub(super) fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// An empty builder, of those that were used before if there is one.
    pub(super) fn builder(&mut self) -> BatchBuilder {
        self.spare.pop().unwrap_or_default()
    }

    /// Takes a batch of at least one record; [`Self::turn`] sends it.
    ///
    /// Its time for delivery counts from `begun`.
    pub(super) fn push(&mut self, partition: u32, builder: BatchBuilder, tag: T, begun: Instant) {
        let (records, bytes) = (builder.record_count(), builder.len_bytes());
        if let Some(error) = &self.failed {
            let failure = Failure { error: Arc::clone(error), outcome: Outcome::NotAccepted };
            self.done.push_back(Completed { partition, tag, records, bytes, begun, result: Err(failure) });
            return;
        }
        let Some(queue) = self.queues.get_mut(partition as usize) else { return };
        if queue.is_empty() {
            self.active.push(partition);
        }
        self.unacknowledged_bytes += bytes;
        queue.push(builder, tag, begun);
    }

    /// What has got its outcome.
    pub(super) fn completed(&mut self) -> Option<Completed<T>> {
        self.done.pop_front()
    }

    /// Whether [`Self::completed`] has something.
    pub(super) fn has_completed(&self) -> bool {
        !self.done.is_empty()
    }

    /// Sends what may be sent now, and looks at nothing else.
    pub(super) fn send(&mut self) {
        self.pump(Instant::now());
    }

    /// Everything that is left fails with `error`, and whatever comes later, too.
    pub(super) fn abandon(&mut self, error: ClientError) {
        self.fail(&Arc::new(error));
    }

    /// Does what can be done now, and otherwise waits for events for up to `wait`; not at all when a batch has got its
    /// outcome.
    pub(super) fn turn(&mut self, wait: Duration) {
        let now = Instant::now();
        self.hear(now);
        self.expire();
        let next = self.pump(now);
        let next = [next, self.watch_silence(now), self.ask_topic(now)].into_iter().flatten().min();
        let wait = next.map_or(wait, |at| wait.min(at.saturating_duration_since(now)));
        let idle = self.done.is_empty() && !self.resolver.has_told();
        let wait = if idle { wait } else { Duration::ZERO };
        self.await_events(wait);
        self.receive();
    }

    /// Sends whatever may be sent; when something may be sent later without any event, when that is.
    fn pump(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut later = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        for at in 0..self.active.len() {
            let Some(&partition) = self.active.get(at) else { break };
            if let Some(oldest) = self.queues.get(partition as usize).and_then(Queue::oldest) {
                later(oldest + self.config.delivery_timeout);
            }
            if let Err(at) = self.pump_partition(partition, now) {
                later(at);
            }
        }
        let mut broken = None;
        for (place, link) in &mut self.links {
            // Cheap when there is nothing queued.
            if let Err(error) = link.flush() {
                broken = Some((*place, error));
            }
        }
        if let Some((place, error)) = broken {
            self.lose(place, error, now);
        }
        [next, self.ask_sessions(now)].into_iter().flatten().min()
    }

    /// Queues what the partition's window allows; `Err` with a time when that has to wait until then.
    fn pump_partition(&mut self, partition: u32, now: Instant) -> Result<(), Instant> {
        let group = GroupId::new(self.topic_id, partition);
        let Some(queue) = self.queues.get_mut(partition as usize) else { return Ok(()) };
        if queue.settle(now) == Next::Session {
            self.end_session(partition);
            return Ok(());
        }
        while let Some(queue) = self.queues.get_mut(partition as usize)
            && queue.may_send(self.config.max_in_flight, now)?
        {
            let Some(place) = queue.place else {
                self.wants_topic(now);
                return Ok(());
            };
            let link = self.links.entry(place).or_insert_with(Link::new);
            if link.may_open(now)? {
                link.opening = true;
                self.resolver.ask(Ask::Connection(place, link.connect_timeout));
                // A resolver that answers at once has the answer by now.
                self.hear(now);
                continue;
            }
            if !link.has_room() {
                return Ok(());
            }
            let ticket = self.next_ticket;
            let batch = match queue.next_batch(self.config.compression) {
                Some(Ok(batch)) => batch,
                Some(Err(error)) => {
                    // Every batch was built by this library: its producer and its count are valid.
                    self.fail(&Arc::new(error.into()));
                    return Ok(());
                }
                None => return Ok(()),
            };
            match link.send(Flight { partition, ticket }, (group, self.config.acks), batch) {
                Ok(()) => queue.sent(ticket),
                Err(error) => {
                    self.fail(&Arc::new(error));
                    return Ok(());
                }
            }
            self.next_ticket += 1;
        }
        Ok(())
    }

    /// Takes the resolver's answers.
    fn hear(&mut self, now: Instant) {
        while let Some(told) = self.resolver.told() {
            match told {
                Told::Connection(place, Ok(connection)) => {
                    if self.links.entry(place).or_insert_with(Link::new).connect(connection) {
                        self.stats.reconnects += 1;
                    }
                }
                Told::Connection(place, Err(error)) => self.not_connected(place, error, now),
                Told::Topic(told) => {
                    self.topic_asked = false;
                    match told {
                        Ok(topic) => self.learn(&topic, now),
                        Err(error) => self.not_found(error, now),
                    }
                }
                Told::Session(Ok(session)) => {
                    self.session_asked = false;
                    let waits = self.active.iter().find(|partition| {
                        self.queues.get(**partition as usize).is_some_and(Queue::awaits_session)
                    });
                    if let Some(queue) = waits.and_then(|partition| self.queues.get_mut(*partition as usize))
                    {
                        queue.begin_session(session);
                    }
                }
                Told::Session(Err(error)) => {
                    self.session_asked = false;
                    self.stats.retries += 1;
                    self.ask_session_at = Some(now + self.topic_backoff.step());
                    if !repairable(&error) {
                        self.fail(&Arc::new(error));
                    }
                }
            }
        }
    }

    /// Learns where the partitions are led.
    fn learn(&mut self, topic: &TopicMetadata, now: Instant) {
        if topic.id != self.topic_id {
            let detail = format!("topic {} was deleted and created anew; start a new producer", self.topic);
            self.fail(&Arc::new(ClientError::Usage(detail)));
            return;
        }
        let mut leaderless = false;
        for (queue, partition) in self.queues.iter_mut().zip(&topic.partitions) {
            let place = Place::leader_of(partition);
            leaderless |= place.is_none() && !queue.is_empty();
            if partition.epoch < queue.epoch {
                continue;
            }
            queue.epoch = partition.epoch;
            if place == queue.place {
                continue;
            }
            queue.place = place;
            queue.retry_now();
            if queue.under_way() > 0 {
                // Whoever led it may keep silent for long. What it says about these is not waited for.
                let detail = "the partition is led elsewhere by now".to_owned();
                let error = ClientError::Server { code: ErrorCode::LeaderChanged, detail };
                queue.forget_replies(&Arc::new(error));
            }
        }
        if leaderless {
            self.wants_topic(now);
        }
    }

    /// The topic's metadata could not be had.
    fn not_found(&mut self, error: ClientError, now: Instant) {
        self.stats.retries += 1;
        if !repairable(&error) {
            self.fail(&Arc::new(error));
            return;
        }
        let error = Arc::new(error);
        for partition in &self.active {
            if let Some(queue) = self.queues.get_mut(*partition as usize) {
                queue.last_error = Some(Arc::clone(&error));
            }
        }
        self.wants_topic(now);
    }

    /// Asks where the partitions are, after a short while that grows with each time.
    fn wants_topic(&mut self, now: Instant) {
        if !self.topic_asked && self.ask_topic_at.is_none() {
            self.ask_topic_at = Some(now + self.topic_backoff.step());
        }
    }

    /// Asks where the partitions are if it is time; when not, when it will be.
    fn ask_topic(&mut self, now: Instant) -> Option<Instant> {
        let at = self.ask_topic_at?;
        if at > now {
            return Some(at);
        }
        self.ask_topic_at = None;
        self.topic_asked = true;
        self.resolver.ask(Ask::Topic);
        // With an answer that is there already, there is something to do at once.
        matches!(self.resolver, Resolver::AtOnce { .. }).then_some(now)
    }

    /// Asks for a new session if a partition needs one; when not yet, from when on.
    fn ask_sessions(&mut self, now: Instant) -> Option<Instant> {
        let awaits =
            |partition: &u32| self.queues.get(*partition as usize).is_some_and(Queue::awaits_session);
        if self.session_asked || !self.active.iter().any(awaits) {
            return None;
        }
        if let Some(at) = self.ask_session_at.filter(|at| *at > now) {
            return Some(at);
        }
        self.ask_session_at = None;
        self.session_asked = true;
        self.resolver.ask(Ask::Session);
        None
    }

    /// A partition's session has ended: what the node may have taken has an unknown outcome.
    fn end_session(&mut self, partition: u32) {
        let Some(queue) = self.queues.get_mut(partition as usize) else { return };
        let error = queue.last_error.clone();
        while let Some(pending) = self.queues.get_mut(partition as usize).and_then(Queue::lost_with_session) {
            let error = error.clone().unwrap_or_else(|| Arc::new(session_ended()));
            self.complete(partition, pending, Err(error));
        }
        self.forget_inactive();
    }

    /// Asks others when a node keeps silent: where its partitions are, and after the whole time for a request whether it
    /// can be connected to. When to look again.
    fn watch_silence(&mut self, now: Instant) -> Option<Instant> {
        let longest = self.request_timeout;
        let mut given_up = None;
        let mut asks = false;
        let mut next: Option<Instant> = None;
        for (place, link) in &mut self.links {
            match link.silence(now, longest) {
                Some(silence) if silence >= longest => given_up = Some(*place),
                Some(_) => asks = true,
                None => {}
            }
            next = [next, link.silent_at(longest)].into_iter().flatten().min();
        }
        if asks {
            self.wants_topic(now);
        }
        if let Some(place) = given_up {
            let (address, timeout_ms) = (place.to_string(), longest.as_millis() as u64);
            self.lose(place, ClientError::TimedOut { address, timeout_ms }, now);
        }
        next
    }

    /// Fails what is too old.
    fn expire(&mut self) {
        let longest = self.config.delivery_timeout;
        let mut any = false;
        for at in 0..self.active.len() {
            let Some(&partition) = self.active.get(at) else { break };
            while let Some(queue) = self.queues.get_mut(partition as usize)
                && let Some(pending) = queue.expire(longest)
            {
                let last = queue.last_error.clone().unwrap_or_else(|| Arc::new(no_reply(longest)));
                let after_ms = pending.begun.elapsed().as_millis() as u64;
                let records = u64::from(pending.records());
                let error = ClientError::DeliveryTimeout { after_ms, records, last };
                self.complete(partition, pending, Err(Arc::new(error)));
                any = true;
            }
        }
        if any {
            self.forget_inactive();
        }
    }

    /// Waits until there is something to receive, or another thread has something to say.
    fn await_events(&mut self, wait: Duration) {
        if !self.spin.is_zero() && !wait.is_zero() && self.spin_for_replies(wait.min(self.spin)) {
            return;
        }
        if self.woken.is_none() && wait >= LONG_WAIT && self.await_only_link() {
            return;
        }
        self.watched.clear();
        self.watched_places.clear();
        if let Some(woken) = &self.woken {
            self.watched.push(interest(woken, false));
        }
        for (place, link) in &self.links {
            if let Some(connection) = &link.connection {
                self.watched.push(interest(connection.stream(), connection.unwritten_bytes() > 0));
                self.watched_places.push(*place);
            }
        }
        if wait_ready(&mut self.watched, wait).is_err() {
            // Nothing is known to be ready then; the next turn looks again.
            self.watched.iter_mut().for_each(|watched| watched.revents = 0);
        }
        let first = self.watched.len() - self.watched_places.len();
        if let Some(woken) = self.woken.as_mut().filter(|_| self.watched.first().is_some_and(is_ready)) {
            // All that were there are one.
            let _ = woken.read(&mut [0; 256]);
        }
        let now = Instant::now();
        for at in 0..self.watched_places.len() {
            let ready = self.watched.get(first + at).is_some_and(is_ready);
            let Some(&place) = self.watched_places.get(at).filter(|_| ready) else { continue };
            self.read(place, now);
        }
    }

    /// Waits for the replies of the only connection that there is, with one system call instead of two. `false` when
    /// there are several, or it has to be watched for room, too.
    fn await_only_link(&mut self) -> bool {
        let mut links = self.links.iter_mut().filter(|(_, link)| link.connection.is_some());
        let (Some((place, link)), None) = (links.next(), links.next()) else { return false };
        let (place, in_flight) = (*place, link.in_flight());
        let Some(connection) = link.connection.as_deref_mut() else { return false };
        if in_flight == 0 || connection.unwritten_bytes() > 0 {
            return false;
        }
        match connection.receive_within(LONG_WAIT) {
            Ok(()) | Err(ClientError::TimedOut { .. }) => {}
            Err(error) => self.lose(place, error, Instant::now()),
        }
        true
    }

    /// Looks at the sockets again and again; whether anything came.
    fn spin_for_replies(&mut self, spin: Duration) -> bool {
        let begun = Instant::now();
        loop {
            let mut came = false;
            let mut broken = None;
            for (place, link) in self.links.iter_mut().filter(|(_, link)| link.in_flight() > 0) {
                match link.connection.as_deref_mut().map(|connection| connection.receive_now()) {
                    Some(Ok(any)) => came |= any,
                    Some(Err(error)) => broken = Some((*place, error)),
                    None => {}
                }
            }
            if let Some((place, error)) = broken {
                self.lose(place, error, Instant::now());
                return true;
            }
            if came || begun.elapsed() >= spin {
                return came;
            }
            std::hint::spin_loop();
        }
    }

    fn read(&mut self, place: Place, now: Instant) {
        let Some(connection) = self.links.get_mut(&place).and_then(|link| link.connection.as_deref_mut())
        else {
            return;
        };
        if let Err(error) = connection.receive_now() {
            self.take_answers(place, now);
            self.lose(place, error, now);
        }
    }

    /// Takes the replies that are in the buffers.
    fn receive(&mut self) {
        let now = Instant::now();
        // Places are few, and losing one changes the map's values only.
        let mut at = self.links.keys().next().copied();
        while let Some(place) = at {
            self.take_answers(place, now);
            let behind = (std::ops::Bound::Excluded(place), std::ops::Bound::Unbounded);
            at = self.links.range(behind).next().map(|(place, _)| *place);
        }
    }

    fn take_answers(&mut self, place: Place, now: Instant) {
        let mut completed = false;
        while let Some(link) = self.links.get_mut(&place) {
            match link.answer() {
                Ok(Some((flight, Answer::Acknowledged(reply)))) => {
                    completed |= self.acknowledged(flight, reply);
                }
                Ok(Some((flight, Answer::Refused(error)))) => {
                    completed = true;
                    self.refused(place, flight, error, now);
                }
                Ok(None) => break,
                Err(error) => {
                    self.lose(place, error, now);
                    break;
                }
            }
        }
        if completed {
            self.forget_inactive();
        }
    }

    fn acknowledged(&mut self, flight: Flight, reply: ProduceReply) -> bool {
        let Some(queue) = self.queues.get_mut(flight.partition as usize) else { return false };
        let Some(pending) = queue.acknowledge(flight.ticket) else { return false };
        self.topic_backoff.reset();
        self.stats.acked_batches += 1;
        self.stats.acked_records += u64::from(pending.records());
        self.stats.acked_bytes += pending.bytes() as u64;
        self.stats.duplicates += u64::from(reply.duplicate);
        self.complete(flight.partition, pending, Ok(reply));
        true
    }

    fn refused(&mut self, place: Place, flight: Flight, error: ClientError, now: Instant) {
        let Some(queue) = self.queues.get_mut(flight.partition as usize) else { return };
        self.stats.retries += 1;
        // Without those before it, the node knows either no such sequence or no such producer.
        let gap = matches!(error.code(), ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducerId);
        let follows = gap && queue.has_failed_before();
        let forgotten = error.code() == ErrorCode::UnknownProducerId && !follows;
        let (elsewhere, breaks) = (error.asks_elsewhere(), error.breaks_connection());
        let unknown = error.outcome() == Outcome::Unknown;
        let again = follows || repairable(&error);
        let error = Arc::new(error);
        if forgotten {
            queue.forgotten(flight.ticket, &error);
        } else if again {
            queue.failed(flight.ticket, unknown, &error);
        } else if let Some(pending) = queue.give_up(flight.ticket, unknown) {
            self.complete(flight.partition, pending, Err(Arc::clone(&error)));
        }
        if elsewhere {
            self.wants_topic(now);
        }
        if breaks {
            self.drop_link(place, &error, now);
        }
    }

    /// A connection could not be had. Whatever the node says now, another may lead its partitions soon.
    fn not_connected(&mut self, place: Place, error: ClientError, now: Instant) {
        self.stats.retries += 1;
        self.wants_topic(now);
        if let Some(link) = self.links.get_mut(&place) {
            link.connect_longer(self.connect_timeout);
        }
        self.drop_link(place, &Arc::new(error), now);
    }

    /// A connection was lost.
    fn lose(&mut self, place: Place, error: ClientError, now: Instant) {
        self.stats.retries += 1;
        if error.asks_elsewhere() {
            self.wants_topic(now);
        }
        if !repairable(&error) {
            self.fail(&Arc::new(error));
            return;
        }
        self.drop_link(place, &Arc::new(error), now);
    }

    fn drop_link(&mut self, place: Place, error: &Arc<ClientError>, now: Instant) {
        let Some(link) = self.links.get_mut(&place) else { return };
        for flight in link.disconnect(now) {
            if let Some(queue) = self.queues.get_mut(flight.partition as usize) {
                queue.failed(flight.ticket, true, error);
            }
        }
        for queue in self.queues.iter_mut().filter(|queue| queue.place == Some(place) && !queue.is_empty()) {
            queue.last_error = Some(Arc::clone(error));
        }
    }

    /// Nothing can succeed any more.
    fn fail(&mut self, error: &Arc<ClientError>) {
        for partition in std::mem::take(&mut self.active) {
            let Some(queue) = self.queues.get_mut(partition as usize) else { continue };
            let pending: Vec<Pending<T>> = queue.drain().collect();
            for pending in pending {
                self.complete(partition, pending, Err(Arc::clone(error)));
            }
        }
        self.failed = Some(Arc::clone(error));
    }

    fn complete(
        &mut self,
        partition: u32,
        pending: Pending<T>,
        result: Result<ProduceReply, Arc<ClientError>>,
    ) {
        let (records, bytes) = (pending.records(), pending.bytes());
        self.unacknowledged_bytes -= bytes;
        let Pending { mut builder, tag, begun, unknown, .. } = pending;
        if self.spare.len() < SPARE_BUILDERS && bytes <= KEEP_BYTES {
            builder.clear();
            self.spare.push(builder);
        }
        let outcome = if unknown { Outcome::Unknown } else { Outcome::NotAccepted };
        let result = result.map_err(|error| Failure { error, outcome });
        if result.is_err() {
            self.stats.failed_records += u64::from(records);
        }
        self.done.push_back(Completed { partition, tag, records, bytes, begun, result });
    }

    /// Queues that have become empty are looked at no more.
    fn forget_inactive(&mut self) {
        let queues = &self.queues;
        self.active
            .retain(|partition| queues.get(*partition as usize).is_some_and(|queue| !queue.is_empty()));
    }
}

fn is_ready(watched: &libc::pollfd) -> bool {
    watched.revents != 0
}

/// Whether sending again, over a new connection if need be, can help.
fn repairable(error: &ClientError) -> bool {
    error.retriable() || matches!(error, ClientError::Protocol { .. })
}

fn session_ended() -> ClientError {
    let detail = "the session ended while this was under way".to_owned();
    ClientError::Server { code: ErrorCode::OutOfOrderSequence, detail }
}

fn no_reply(longest: Duration) -> ClientError {
    let timeout_ms = longest.as_millis() as u64;
    ClientError::TimedOut { address: "the partition's leader".into(), timeout_ms }
}
