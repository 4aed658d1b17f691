//! Frames as an enemy or a broken client sends them: valid ones with seeded damage.

use pyralog_core::batch::{BatchBuilder, Compression};
use pyralog_core::{GroupId, Quorums};
use pyralog_net::FrameHeader;
use pyralog_net::message::{
    Acks, Consistency, CreateTopicRequest, DeleteTopicRequest, DescribePartitionsRequest, FetchRequest,
    ListOffsetsRequest, MetadataRequest, OffsetSpec, ProduceRequest, Request,
};

use crate::rng::Rng;
use crate::session::hello_frame;
use crate::wire::HEADER;

/// Topics that damaged requests may really create, per run: more would only fill the node's catalogue.
const MAX_CREATED: u32 = 100;

/// Makes damaged frames. The same seed makes the same ones.
pub struct Mutator {
    rng: Rng,
    corpus: Vec<Vec<u8>>,
    /// Topic that must not be touched: the good connection checks it.
    spared: u32,
    created: u32,
}

/// A damaged frame.
pub struct Damaged {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether its header is still one, with the right length of the body: the server can find the next frame.
    pub framing_intact: bool,
}

impl Mutator {
    /// Damages requests on `victim`, a topic of one partition, and never touches `spared`.
    pub fn new(seed: u64, victim: &str, victim_id: u32, spared: u32) -> anyhow::Result<Self> {
        Ok(Self { rng: Rng::new(seed), corpus: corpus(victim, victim_id)?, spared, created: 0 })
    }

    /// The generator, for choices that belong to the same sequence.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// The next frame.
    pub fn next_frame(&mut self) -> Damaged {
        loop {
            let bytes = self.candidate();
            if let Some(framing_intact) = self.admissible(&bytes) {
                return Damaged { bytes, framing_intact };
            }
        }
    }

    fn candidate(&mut self) -> Vec<u8> {
        let pick = self.rng.below(self.corpus.len());
        let mut bytes = self.corpus.get(pick).cloned().unwrap_or_default();
        match self.rng.below(10) {
            0 => {
                // Noise, with or without the first byte of a frame.
                let len = 1 + self.rng.below(64);
                let first = bytes.first().copied();
                bytes = vec![0; len];
                self.rng.fill(&mut bytes);
                if let (true, Some(slot), Some(first)) = (self.rng.below(2) == 0, bytes.first_mut(), first) {
                    *slot = first;
                }
            }
            1 => bytes.truncate(self.rng.below(bytes.len())),
            2 => {
                // A wrong length in an otherwise good header.
                let length = self.rng.next_u64() as u32 >> self.rng.below(32);
                put(&mut bytes, 4, &length.to_le_bytes());
            }
            3 => self.flip(&mut bytes, 0, HEADER),
            4 => {
                // The body cut or extended, the header telling the truth about it.
                let body = bytes.len().saturating_sub(HEADER);
                let len = if self.rng.below(2) == 0 {
                    self.rng.below(body + 1)
                } else {
                    body + 1 + self.rng.below(64)
                };
                let old = bytes.len();
                bytes.resize(HEADER + len, 0);
                self.rng.fill(bytes.get_mut(old..).unwrap_or_default());
                put(&mut bytes, 4, &(len as u32).to_le_bytes());
            }
            5 => {
                // The body of one kind under the header of another.
                let other = self.rng.below(self.corpus.len());
                let kind =
                    self.corpus.get(other).and_then(|frame| frame.get(2..4)).unwrap_or_default().to_vec();
                put(&mut bytes, 2, &kind);
            }
            6 => {
                // A field of the body set to a border value.
                let borders = [0, 1, u32::MAX, i32::MAX as u32, 1 << 31, 1 << 20, 65_535];
                let value = borders.get(self.rng.below(borders.len())).copied().unwrap_or_default();
                let fields = bytes.len().saturating_sub(HEADER) / 4;
                put(&mut bytes, HEADER + 4 * self.rng.below(fields), &value.to_le_bytes());
            }
            7 => {}
            _ => {
                let end = bytes.len();
                self.flip(&mut bytes, HEADER, end);
            }
        }
        bytes
    }

    fn flip(&mut self, bytes: &mut [u8], from: usize, to: usize) {
        for _ in 0..=self.rng.below(4) {
            let at = from + self.rng.below(to.saturating_sub(from));
            let bit = self.rng.below(8);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
    }

    /// Whether the frame may be sent, and if so whether its framing is intact. Chance must not make a frame that
    /// properly writes into the spared topic, or hundreds that properly create one.
    fn admissible(&mut self, bytes: &[u8]) -> Option<bool> {
        let Ok(Some(header)) = FrameHeader::decode_request(bytes) else {
            return (!bytes.is_empty()).then_some(false);
        };
        if header.frame_bytes() != bytes.len() {
            return Some(false);
        }
        match Request::decode(header.kind, bytes.get(HEADER..)?) {
            Ok(Request::Produce(request)) if request.group.topic.0 == self.spared => None,
            Ok(Request::CreateTopic(_)) if self.created >= MAX_CREATED => None,
            Ok(Request::CreateTopic(request)) if request.partitions > 64 => None,
            Ok(Request::CreateTopic(_)) => {
                self.created += 1;
                Some(true)
            }
            _ => Some(true),
        }
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = bytes.get_mut(at..at + value.len()) {
        field.copy_from_slice(value);
    }
}

/// A valid frame of every kind.
fn corpus(victim: &str, victim_id: u32) -> anyhow::Result<Vec<Vec<u8>>> {
    let group = GroupId::new(victim_id, 0);
    let mut builder = BatchBuilder::new();
    for number in 0..3u8 {
        builder.append(1_700_000_000_000, Some(b"key"), Some(&[number; 100]), &[])?;
    }
    let plain = builder.build(Compression::None)?.to_vec();
    let lz4 = builder.build(Compression::Lz4)?.to_vec();
    let zstd = builder.build(Compression::Zstd)?.to_vec();
    builder.set_producer(1 << 40, 0, 0);
    let idempotent = builder.build(Compression::None)?.to_vec();
    let mut requests = vec![
        Request::Fetch(FetchRequest {
            group,
            offset: 0,
            min_bytes: 0,
            max_bytes: 4096,
            max_wait_ms: 0,
            consistency: Consistency::Leader,
        }),
        Request::Fetch(FetchRequest {
            group,
            offset: 1,
            min_bytes: 1 << 20,
            max_bytes: 4096,
            max_wait_ms: 10,
            consistency: Consistency::Leader,
        }),
        Request::ListOffsets(ListOffsetsRequest {
            group,
            spec: OffsetSpec::Earliest,
            consistency: Consistency::Leader,
        }),
        Request::ListOffsets(ListOffsetsRequest {
            group,
            spec: OffsetSpec::Timestamp(1_700_000_000_000),
            consistency: Consistency::Leader,
        }),
        Request::Metadata(MetadataRequest { topic: None, start_after: 0 }),
        Request::Metadata(MetadataRequest { topic: Some(victim), start_after: 0 }),
        Request::InitProducerId,
        Request::CreateTopic(CreateTopicRequest {
            name: victim,
            partitions: 1,
            quorums: Quorums::of(1),
            retention_bytes: -1,
            retention_ms: -1,
        }),
        Request::DeleteTopic(DeleteTopicRequest { name: "torture-never-there" }),
        Request::DescribePartitions(DescribePartitionsRequest { topic: victim_id, first: 0, count: 10 }),
        Request::Ping,
    ];
    for batch in [&plain, &lz4, &zstd, &idempotent] {
        requests.push(Request::Produce(ProduceRequest {
            group,
            acks: Acks::Leader,
            timeout_ms: 1000,
            batch,
        }));
    }
    let mut frames = Vec::new();
    for (number, request) in (0u64..).zip(&requests) {
        let mut frame = Vec::new();
        request.encode(number, &mut frame)?;
        frames.push(frame);
    }
    let mut hello = Vec::new();
    hello_frame().encode(0, &mut hello)?;
    frames.push(hello);
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_frames() {
        let frames = |seed| {
            let mut mutator = Mutator::new(seed, "victim", 2, 1).unwrap();
            (0..500).map(|_| mutator.next_frame().bytes).collect::<Vec<_>>()
        };
        assert_eq!(frames(7), frames(7));
        assert_ne!(frames(7), frames(8));
    }

    #[test]
    fn damage_comes_in_every_kind_and_spares_the_good_topic() {
        let mut mutator = Mutator::new(3, "victim", 2, 3).unwrap();
        let (mut broken, mut refused, mut valid, mut created) = (0, 0, 0, 0);
        for _ in 0..20_000 {
            let frame = mutator.next_frame();
            assert!(!frame.bytes.is_empty());
            if !frame.framing_intact {
                broken += 1;
                continue;
            }
            let header = FrameHeader::decode_request(&frame.bytes).unwrap().unwrap();
            match Request::decode(header.kind, &frame.bytes[HEADER..]) {
                Err(_) => refused += 1,
                Ok(Request::Produce(request)) => {
                    assert_ne!(request.group.topic.0, 3);
                    valid += 1;
                }
                Ok(Request::CreateTopic(_)) => created += 1,
                Ok(_) => valid += 1,
            }
        }
        assert!(broken > 2000 && refused > 2000 && valid > 2000, "{broken} {refused} {valid}");
        assert!(created <= MAX_CREATED, "{created}");
    }
}
