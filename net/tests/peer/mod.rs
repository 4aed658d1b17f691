//! The other end of a connection, for tests of the client alone: it keeps the rules of the protocol and of
//! producer sessions in memory, and breaks connections and refuses requests by a seed. The real node is tested
//! with the client elsewhere.

#![allow(clippy::unwrap_used)]
// Several test programs use it, each a part.
#![allow(dead_code)]

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pyralog_core::batch::{BatchView, patch_base_offset, sequence_after};
use pyralog_core::limits::{BATCHES_PER_PRODUCER, FRAME_HEADER_BYTES, MAX_BATCH_BYTES, MAX_FETCH_BYTES};
use pyralog_core::{ErrorCode, GroupId, Quorums};
use pyralog_net::frame::{FrameHeader, kind};
use pyralog_net::hello::{Hello, HelloReply};
use pyralog_net::message::*;

pub(crate) const TOPIC: &str = "orders";
const TOPIC_ID: u32 = 7;

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The connection breaks before the request is looked at.
    LostBefore,
    /// It is carried out, then the connection breaks.
    LostAfter,
    /// It is carried out, and the connection breaks in the middle of the reply.
    LostInReply,
    /// Refused; nothing is done.
    Refused(ErrorCode),
    /// Carried out and answered as timed out.
    TimedOut,
}

#[derive(Default)]
struct Partition {
    batches: Vec<Vec<u8>>,
    end: i64,
    /// Producer id to the last batches' (first sequence, records, offset).
    producers: HashMap<i64, VecDeque<(i32, u32, i64)>>,
}

struct Shared {
    shards: u16,
    partitions: Mutex<Vec<Partition>>,
    /// State of the random faults; 0 = none.
    random: AtomicU64,
    next_producer_id: AtomicU64,
    fence_producers: AtomicBool,
    /// Producers with smaller ids are fenced.
    fenced_below: AtomicU64,
    refuse_all: AtomicBool,
    swallow: AtomicBool,
    refuse_fetches: AtomicBool,
    refuse_next: AtomicBool,
}

/// A peer on a port of its own; it serves until the process ends.
pub(crate) struct Peer {
    pub(crate) address: String,
    shared: Arc<Shared>,
}

impl Peer {
    /// `seed` 0 makes no faults.
    pub(crate) fn start(shards: u16, partitions: u32, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            shards,
            partitions: Mutex::new((0..partitions).map(|_| Partition::default()).collect()),
            random: AtomicU64::new(seed),
            next_producer_id: AtomicU64::new(1),
            fence_producers: AtomicBool::new(false),
            fenced_below: AtomicU64::new(0),
            refuse_all: AtomicBool::new(false),
            swallow: AtomicBool::new(false),
            refuse_fetches: AtomicBool::new(false),
            refuse_next: AtomicBool::new(false),
        });
        let peer = Self { address, shared: shared.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        peer
    }

    pub(crate) fn fence_producers(&self) {
        self.shared.fence_producers.store(true, Ordering::SeqCst);
    }

    /// The sessions that there are by now are fenced; those that come later are not.
    pub(crate) fn fence_sessions(&self) {
        let next = self.shared.next_producer_id.load(Ordering::SeqCst);
        self.shared.fenced_below.store(next, Ordering::SeqCst);
    }

    /// The next produce is answered as too much.
    pub(crate) fn refuse_next(&self) {
        self.shared.refuse_next.store(true, Ordering::SeqCst);
    }

    /// Every fetch is answered as not ready from now on.
    pub(crate) fn refuse_fetches(&self) {
        self.shared.refuse_fetches.store(true, Ordering::SeqCst);
    }

    /// Produces are carried out and not answered from now on.
    pub(crate) fn swallow(&self) {
        self.shared.swallow.store(true, Ordering::SeqCst);
    }

    /// Forgets the producers that it knows, as a node does that has too many.
    pub(crate) fn forget_producers(&self) {
        self.shared.partitions.lock().unwrap().iter_mut().for_each(|partition| partition.producers.clear());
    }

    /// Batches of a partition.
    pub(crate) fn batches(&self, partition: u32) -> usize {
        self.shared.partitions.lock().unwrap()[partition as usize].batches.len()
    }

    /// Every produce is answered as not ready from now on.
    pub(crate) fn refuse_all(&self) {
        self.shared.refuse_all.store(true, Ordering::SeqCst);
    }

    /// The values of all records of a partition, in the order of the log, with their offsets checked.
    pub(crate) fn values(&self, partition: u32) -> Vec<Vec<u8>> {
        let partitions = self.shared.partitions.lock().unwrap();
        let mut values = Vec::new();
        for bytes in &partitions[partition as usize].batches {
            let batch = BatchView::parse_exact(bytes).unwrap();
            for record in batch.records(&mut Vec::new()).unwrap() {
                let record = record.unwrap();
                assert_eq!(record.offset, values.len() as i64);
                values.push(record.value.unwrap().to_vec());
            }
        }
        values
    }
}

/// Answers a handshake, as shard 0 of one.
pub(crate) fn shake_hands(stream: &mut TcpStream) {
    let (header, body) = read_frame(stream).unwrap();
    Hello::decode(&body).unwrap();
    let mut out = Vec::new();
    hello_reply(1, 0).encode(header.correlation_id, &mut out);
    stream.write_all(&out).unwrap();
}

/// Answers whatever comes as if it were a ping, until the connection ends.
pub(crate) fn answer_pings(stream: &mut TcpStream) {
    while let Some((header, _)) = read_frame(stream) {
        let mut out = Vec::new();
        Response::Pong.encode(header.correlation_id, &mut out);
        stream.write_all(&out).unwrap();
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) -> Option<()> {
    stream.set_nodelay(true).unwrap();
    let (header, body) = read_frame(&mut stream)?;
    assert_eq!(header.kind, kind::HELLO);
    let hello = Hello::decode(&body).unwrap();
    let mut out = Vec::new();
    let shard = match hello.negotiate(shared.shards) {
        Ok((_, shard)) => shard.unwrap_or(0),
        Err((code, detail)) => {
            Response::encode_error(code, &detail, header.correlation_id, &mut out);
            return stream.write_all(&out).ok();
        }
    };
    hello_reply(shared.shards, shard).encode(header.correlation_id, &mut out);
    stream.write_all(&out).ok()?;
    loop {
        let (header, body) = read_frame(&mut stream)?;
        let request = Request::decode(header.kind, &body).unwrap();
        let fault = shared.fault(&request);
        out.clear();
        match fault {
            Fault::LostBefore => return None,
            Fault::Refused(code) => {
                Response::encode_error(code, "by the seed", header.correlation_id, &mut out)
            }
            Fault::TimedOut => {
                shared.answer(shard, &request, header.correlation_id, &mut out);
                out.clear();
                Response::encode_error(
                    ErrorCode::RequestTimedOut,
                    "by the seed",
                    header.correlation_id,
                    &mut out,
                );
            }
            _ => shared.answer(shard, &request, header.correlation_id, &mut out),
        }
        if matches!(request, Request::Produce(_)) && shared.swallow.load(Ordering::SeqCst) {
            continue;
        }
        match fault {
            Fault::LostAfter => return None,
            Fault::LostInReply => return stream.write_all(&out[..out.len() / 2]).ok(),
            _ => stream.write_all(&out).ok()?,
        }
    }
}

fn hello_reply(shards: u16, shard: u16) -> HelloReply {
    HelloReply {
        protocol_version: 1,
        shards,
        shard,
        node: 1,
        catalog_version: 1,
        max_batch_bytes: MAX_BATCH_BYTES as u32,
        max_fetch_bytes: MAX_FETCH_BYTES as u32,
        max_in_flight_requests: 4096,
        server_version: "peer".into(),
    }
}

fn read_frame(stream: &mut TcpStream) -> Option<(FrameHeader, Vec<u8>)> {
    let mut header = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut header).ok()?;
    let header = FrameHeader::decode_request(&header).unwrap().unwrap();
    let mut body = vec![0; header.body_bytes as usize];
    stream.read_exact(&mut body).ok()?;
    Some((header, body))
}

impl Shared {
    fn fault(&self, request: &Request<'_>) -> Fault {
        if self.fence_producers.load(Ordering::SeqCst) && matches!(request, Request::Produce(_)) {
            return Fault::Refused(ErrorCode::ProducerFenced);
        }
        if self.refuse_fetches.load(Ordering::SeqCst) && matches!(request, Request::Fetch(_)) {
            return Fault::Refused(ErrorCode::NotReady);
        }
        if matches!(request, Request::Produce(_)) && self.refuse_next.swap(false, Ordering::SeqCst) {
            return Fault::Refused(ErrorCode::Overloaded);
        }
        if let Request::Produce(produce) = request {
            let producer = BatchView::parse_exact(produce.batch).unwrap().producer_id();
            if (0..self.fenced_below.load(Ordering::SeqCst) as i64).contains(&producer) {
                return Fault::Refused(ErrorCode::ProducerFenced);
            }
        }
        if self.refuse_all.load(Ordering::SeqCst) && matches!(request, Request::Produce(_)) {
            return Fault::Refused(ErrorCode::NotReady);
        }
        let next = |x: u64| {
            let x = x ^ x << 13;
            let x = x ^ x >> 7;
            x ^ x << 17
        };
        let random = self.random.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |x| Some(next(x))).unwrap();
        match random % 200 {
            0 => Fault::None,
            1 | 2 => Fault::LostBefore,
            3 | 4 => Fault::LostAfter,
            5 | 6 => Fault::LostInReply,
            7 | 8 => Fault::Refused(ErrorCode::Overloaded),
            9 => Fault::Refused(ErrorCode::NotLeader),
            10 => Fault::Refused(ErrorCode::NotReady),
            11 => Fault::TimedOut,
            _ => Fault::None,
        }
    }

    fn answer(&self, shard: u16, request: &Request<'_>, id: u64, out: &mut Vec<u8>) {
        let mut partitions = self.partitions.lock().unwrap();
        let at = |group: GroupId| (group.topic.0 == TOPIC_ID).then_some(group.partition as usize);
        let response = match request {
            Request::Produce(r) => {
                match at(r.group).filter(|at| at % usize::from(self.shards) == usize::from(shard)) {
                    Some(at) => partitions[at].produce(r.batch),
                    None => error(ErrorCode::NotLeader),
                }
            }
            Request::Fetch(r) => {
                let partition = &partitions[at(r.group).unwrap()];
                let batches: Vec<u8> = partition
                    .batches
                    .iter()
                    .filter(|bytes| BatchView::parse_exact(bytes).unwrap().last_offset() >= r.offset)
                    .take(3)
                    .flatten()
                    .copied()
                    .collect();
                let batch_bytes = batches.len() as u32;
                let head = FetchReplyHead { log_start: 0, high_watermark: partition.end, batch_bytes };
                Response::Fetch(head).encode(id, out);
                return out.extend_from_slice(&batches);
            }
            Request::ListOffsets(r) => {
                let end = partitions[at(r.group).unwrap()].end;
                let offset = if r.spec == OffsetSpec::Latest { end } else { 0 };
                Response::ListOffsets(ListOffsetsReply { offset, timestamp: -1 })
            }
            Request::Metadata(_) => Response::Metadata(Box::new(self.metadata(partitions.len() as u32))),
            Request::InitProducerId => {
                let producer_id = self.next_producer_id.fetch_add(1, Ordering::SeqCst) as i64;
                Response::InitProducerId(InitProducerIdReply { producer_id, producer_epoch: 0 })
            }
            Request::Ping => Response::Pong,
            _ => error(ErrorCode::UnsupportedVersion),
        };
        response.encode(id, out);
    }

    fn metadata(&self, partitions: u32) -> MetadataReply {
        let place = |index: u32| {
            let shard = index as u16 % self.shards;
            let replica = ReplicaMetadata { node: 1, shard, in_sync: true };
            PartitionMetadata { leader: 1, epoch: 0, shard, replicas: [replica].into_iter().collect() }
        };
        let topic = TopicMetadata {
            id: TOPIC_ID,
            name: TOPIC.into(),
            quorums: Quorums::of(1),
            retention_bytes: -1,
            retention_ms: -1,
            partitions: (0..partitions).map(place).collect(),
        };
        MetadataReply {
            node: 1,
            controller: 1,
            cluster: "test".into(),
            nodes: vec![NodeMetadata {
                id: 1,
                shards: self.shards,
                address: "127.0.0.1:0".into(),
                rack: String::new(),
                level_min: 1,
                level_max: 1,
            }],
            version: 1,
            feature_level: 1,
            server: "peer".into(),
            more: false,
            topics: vec![topic],
        }
    }
}

impl Partition {
    fn produce(&mut self, bytes: &[u8]) -> Response {
        let batch = BatchView::parse_exact(bytes).unwrap();
        batch.check_crc().unwrap();
        let (sequence, records) = (batch.base_sequence(), batch.record_count());
        if !batch.has_producer() {
            return self.append(bytes, records);
        }
        if sequence != 0 && !self.producers.contains_key(&batch.producer_id()) {
            return error(ErrorCode::UnknownProducerId);
        }
        let last = self.producers.entry(batch.producer_id()).or_default();
        if let Some((_, _, offset)) =
            last.iter().find(|(first, count, _)| (*first, *count) == (sequence, records))
        {
            return produced(*offset, self.end, true);
        }
        let expected = last.back().map_or(0, |(first, count, _)| sequence_after(*first, *count));
        if sequence != expected {
            return error(ErrorCode::OutOfOrderSequence);
        }
        if last.len() == BATCHES_PER_PRODUCER {
            last.pop_front();
        }
        last.push_back((sequence, records, self.end));
        self.append(bytes, records)
    }

    fn append(&mut self, bytes: &[u8], records: u32) -> Response {
        let mut bytes = bytes.to_vec();
        patch_base_offset(&mut bytes, self.end).unwrap();
        self.batches.push(bytes);
        let offset = self.end;
        self.end += i64::from(records);
        produced(offset, self.end, false)
    }
}

fn produced(base_offset: i64, high_watermark: i64, duplicate: bool) -> Response {
    let durability = Durability::Memory;
    Response::Produce(ProduceReply { base_offset, high_watermark, durability, duplicate })
}

fn error(code: ErrorCode) -> Response {
    Response::Error(ErrorReply { code, detail: String::new() })
}
