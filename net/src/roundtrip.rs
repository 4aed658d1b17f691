//! What must hold for any bytes whatever: decoding never panics, and what decodes has exactly one encoding.
//! Called by the fuzz targets `frame` and `batch`, by the replay of their corpora and by the property tests.

use pyralog_core::ErrorCode;
use pyralog_core::batch::{self, BatchBuilder, BatchView, Compression};
use pyralog_core::limits::FRAME_HEADER_BYTES;

use crate::codec::DecodeError;
use crate::frame::{FrameHeader, REPLY_BIT, kind, sniff};
use crate::hello::{Hello, HelloReply};
use crate::message::{Request, Response};

/// Decodes the body of a frame and encodes it again, as a whole frame.
pub fn reencode(header: FrameHeader, body: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::new();
    let id = header.correlation_id;
    const HELLO_REPLY: u16 = kind::HELLO | REPLY_BIT;
    let encoded = match header.kind {
        kind::HELLO => Hello::decode(body)?.encode(id, &mut out),
        HELLO_REPLY => {
            HelloReply::decode(body)?.encode(id, &mut out);
            Ok(())
        }
        reply if reply & REPLY_BIT != 0 => {
            let reply = Response::decode(reply, body)?;
            reply.response.encode(id, &mut out);
            out.extend_from_slice(reply.batches);
            Ok(())
        }
        request => Request::decode(request, body)?.encode(id, &mut out),
    };
    assert_eq!(encoded, Ok(()), "what was decoded is within its bounds");
    Ok(out)
}

/// Takes `bytes` as a stream of frames in either direction, up to the first that is none. Returns how many
/// messages decoded.
pub fn check_frames(mut bytes: &[u8]) -> usize {
    let _ = sniff(bytes);
    let mut decoded = 0;
    loop {
        let header = match (FrameHeader::decode_request(bytes), FrameHeader::decode_reply(bytes)) {
            (Ok(Some(header)), _) | (_, Ok(Some(header))) => header,
            _ => return decoded,
        };
        let Some((frame, rest)) = bytes.split_at_checked(header.frame_bytes()) else { return decoded };
        let body = frame.get(FRAME_HEADER_BYTES..).unwrap_or_default();
        if let Ok(again) = reencode(header, body) {
            decoded += 1;
            assert!(again == frame || is_foreign_error(header, body), "two encodings of one message");
        }
        bytes = rest;
    }
}

/// An error reply with a code, or properties of a code, that this version does not know: the one message that is
/// understood without being kept as it is.
fn is_foreign_error(header: FrameHeader, body: &[u8]) -> bool {
    let Some([low, high, retriable, outcome]) = body.first_chunk::<4>().copied() else { return false };
    header.kind == kind::ERROR
        && ErrorCode::from_u16(u16::from_le_bytes([low, high])).is_none_or(|code| {
            (retriable, outcome)
                != (u8::from(code.retriable()), u8::from(code.outcome() == pyralog_core::Outcome::Unknown))
        })
}

/// Takes `bytes` as record batches, one behind the other, up to the first that is none. Returns how many records
/// decoded. Records whose batch decodes whole, with a matching checksum or not, can be written and read again.
pub fn check_batches(mut bytes: &[u8]) -> usize {
    let _ = batch::peek_len(bytes);
    let mut decoded = 0;
    let (mut scratch, mut scratch_again) = (Vec::new(), Vec::new());
    while let Ok((view, rest)) = BatchView::parse(bytes) {
        bytes = rest;
        let _ = view.verify_crc();
        let Ok(records) = view.records(&mut scratch) else { continue };
        let Ok(records) = records.collect::<Result<Vec<_>, _>>() else { continue };
        decoded += records.len();
        let mut builder = BatchBuilder::new();
        let fits = records.iter().all(|record| {
            let headers: Vec<_> = record.headers.collect();
            builder.append(record.timestamp, record.key, record.value, &headers).is_ok()
        });
        if !fits {
            continue; // decompressed, it may exceed the largest batch
        }
        let Ok(again) = builder.build(Compression::None) else { continue };
        let again = BatchView::parse_exact(again).and_then(|view| {
            view.check_crc()?;
            view.records(&mut scratch_again)?.collect::<Result<Vec<_>, _>>()
        });
        let same = again.is_ok_and(|again| {
            again.len() == records.len()
                && again.iter().zip(&records).all(|(a, b)| {
                    (a.timestamp, a.key, a.value) == (b.timestamp, b.key, b.value) && a.headers.eq(b.headers)
                })
        });
        assert!(same, "records differ after they were written again");
    }
    decoded
}
