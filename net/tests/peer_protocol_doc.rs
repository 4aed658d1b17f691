//! `docs/protocol-internal.md` against the code: every frame has a hex example which decodes and encodes to the same
//! bytes, and the tables of kinds, refusals and bounds say what the code says.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use pyralog_core::limits::*;
use pyralog_core::{FeatureLevels, NodeId, ShardId};
use pyralog_net::peer::frame::{self, FrameHeader, FrameKind};
use pyralog_net::peer::{Hello, HelloReply, Refusal, RefusalCode};

fn page() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol-internal.md")).unwrap()
}

/// The page's examples by their titles.
fn examples(page: &str) -> BTreeMap<String, Vec<u8>> {
    let mut examples = BTreeMap::new();
    for block in page.split("```hex ").skip(1) {
        let (title, block) = block.split_once('\n').unwrap();
        let (hex, _) = block.split_once("```").unwrap();
        let digits = hex.lines().map(|line| line.split('#').next().unwrap()).flat_map(str::split_whitespace);
        let bytes = digits.map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect();
        assert!(examples.insert(title.trim().to_owned(), bytes).is_none(), "two examples of {title}");
    }
    examples
}

/// The cells of the table behind `<!-- table: name -->`, without its head.
fn table(page: &str, name: &str) -> Vec<Vec<String>> {
    let (_, rest) = page.split_once(&format!("<!-- table: {name} -->")).unwrap();
    let rows =
        rest.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.skip(2).map(cells).collect()
}

fn number(cell: &str) -> u64 {
    cell.split(' ').next().unwrap().replace(',', "").parse().unwrap()
}

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        cluster_id: 0x0102_0304_0506_0708,
        from_node: NodeId(3),
        from_shard: ShardId(1),
        from_shards: 2,
        to_node: NodeId(1),
        to_shard: ShardId(0),
        session: 42,
        levels: FeatureLevels { min: 1, max: 2 },
    }
}

fn reply(session: u64, refusal: Option<Refusal>) -> HelloReply {
    HelloReply { node: NodeId(1), shard: ShardId(0), shards: 2, version: 1, session, refusal }
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x} ")).collect()
}

#[test]
fn every_example_is_what_the_code_writes_and_reads() {
    let refusal = Refusal::new(RefusalCode::WrongCluster, "example");
    let mut messages = encoded(|out| frame::encode(FrameKind::Messages, &[1, 2, 3, 4], 3, out));
    messages.extend_from_slice(b"abc");
    let frames = [
        ("Hello", encoded(|out| hello().encode(out))),
        ("HelloReply accepted", encoded(|out| reply(43, None).encode(out))),
        ("HelloReply refused", encoded(|out| reply(0, Some(refusal.clone())).encode(out))),
        ("Messages", messages),
        ("Ping", encoded(|out| frame::encode(FrameKind::Ping, &[], 0, out))),
    ];
    let examples = examples(&page());
    assert_eq!(examples.len(), frames.len(), "examples: {:?}", examples.keys());
    for (title, bytes) in frames {
        assert_eq!(hex(&examples[title]), hex(&bytes), "{title}");
        let header = FrameHeader::decode(&bytes).unwrap().unwrap();
        assert_eq!(header.frame_bytes(), bytes.len());
        let (control, payload) = header.parts(&bytes).unwrap().unwrap();
        match title {
            "Hello" => assert_eq!(Hello::decode(control), Ok(hello())),
            "HelloReply accepted" => assert_eq!(HelloReply::decode(control), Ok(reply(43, None))),
            "HelloReply refused" => {
                assert_eq!(HelloReply::decode(control), Ok(reply(0, Some(refusal.clone()))));
            }
            "Messages" => assert_eq!((control, payload), (&[1, 2, 3, 4][..], &b"abc"[..])),
            _ => assert_eq!((header.kind, control, payload), (FrameKind::Ping, &[][..], &[][..])),
        }
    }
}

#[test]
fn the_tables_of_kinds_and_refusals_are_the_codes() {
    let page = page();
    let kinds: Vec<_> = FrameKind::ALL
        .iter()
        .map(|(kind, name)| {
            let (control, payload) = kind.bounds();
            ((*name).to_owned(), *kind as u64, control as u64, payload as u64)
        })
        .collect();
    let listed: Vec<_> = table(&page, "kinds")
        .iter()
        .map(|row| (row[0].clone(), number(&row[1]), number(&row[2]), number(&row[3])))
        .collect();
    assert_eq!(listed, kinds);
    let refusals: Vec<_> =
        RefusalCode::ALL.iter().map(|(code, name)| ((*name).to_owned(), *code as u64)).collect();
    let listed: Vec<_> =
        table(&page, "refusals").iter().map(|row| (row[0].clone(), number(&row[1]))).collect();
    assert_eq!(listed, refusals);
}

#[test]
fn the_table_of_bounds_is_the_limits() {
    let bounds: &[u64] = &[
        MAX_PEER_MESSAGES_PER_FRAME as u64,
        MAX_PEER_ENTRIES_PER_FRAME as u64,
        MAX_PEER_TEXT_BYTES as u64,
        PEER_QUEUE_BYTES as u64,
        PEER_QUEUE_BYTES_PER_SHARD as u64,
        PEER_ASSEMBLY_BYTES_PER_SHARD as u64,
        MAX_PEER_HANDSHAKES_PER_SHARD as u64,
        PEER_PING_INTERVAL_MS,
        PEER_TIMEOUT_MS,
        PEER_HANDSHAKE_TIMEOUT_MS,
        PEER_BACKOFF_MS.0,
        PEER_BACKOFF_MS.1,
    ];
    let listed: Vec<u64> = table(&page(), "bounds").iter().map(|row| number(&row[1])).collect();
    assert_eq!(listed, bounds);
}
