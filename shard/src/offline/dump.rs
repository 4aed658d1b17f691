//! Files of a shard in readable lines: one per commit, frame, batch, entry.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use pyralog_core::limits::{CHUNK_BYTES, JOURNAL_ALIGN, MAX_CHECKPOINT_BYTES};

use super::OfflineError;
use crate::format::batch::BatchHead;
use crate::format::checkpoint::Checkpoint;
use crate::format::index::{INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, IndexEntry};
use crate::format::journal::{
    COMMIT_HEADER_BYTES, CommitError, CommitHeader, FrameHeader, FrameKind, Frames,
};
use crate::format::segment::Batches;
use pyralog_replication::raft::Standing;

/// Writes what a `.log`, `.index`, `.journal` or checkpoint file holds to `out`. Works on damaged files and on those
/// of a running node; of the latter the newest lines may be half written.
///
/// # Errors
/// When the file can't be read or is of another kind, or when `out` fails.
pub fn dump(path: &Path, out: &mut dyn Write) -> Result<(), OfflineError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mut file = File::open(path).map_err(OfflineError::io(path))?;
    match name.rsplit_once('.') {
        Some((_, "log")) => log(path, &mut file, out),
        Some((_, "journal")) => journal(path, &mut file, out),
        Some((_, "index")) => index(&all(path, &mut file)?, out),
        Some(("checkpoint", _)) => checkpoint(&all(path, &mut file)?, out),
        _ => Err(OfflineError::UnknownKind(path.to_owned())),
    }
}

macro_rules! line {
    ($out:expr, $($text:tt)*) => { writeln!($out, $($text)*).map_err(OfflineError::Output)? };
}

/// All of a file that is known to be small.
fn all(path: &Path, file: &mut File) -> Result<Vec<u8>, OfflineError> {
    let mut bytes = Vec::new();
    file.take(MAX_CHECKPOINT_BYTES as u64 * 2).read_to_end(&mut bytes).map_err(OfflineError::io(path))?;
    Ok(bytes)
}

/// Appends up to `len` more bytes of the file to `buffer`; returns how many.
fn more(path: &Path, file: &mut File, len: usize, buffer: &mut Vec<u8>) -> Result<usize, OfflineError> {
    Read::by_ref(file).take(len as u64).read_to_end(buffer).map_err(OfflineError::io(path))
}

fn log(path: &Path, file: &mut File, out: &mut dyn Write) -> Result<(), OfflineError> {
    let mut buffer = Vec::new();
    let mut start = 0u64;
    loop {
        let read = more(path, file, CHUNK_BYTES, &mut buffer)?;
        let mut walk = Batches::new(&buffer);
        for found in walk.by_ref() {
            let BatchHead { base_offset, record_count, epoch, max_timestamp, total_bytes, .. } = found.head;
            let state =
                found.head.verify_crc(found.bytes).map_or_else(|e| format!("BROKEN: {e}"), |()| "ok".into());
            line!(
                out,
                "@{} offsets {base_offset}..{} records {record_count} bytes {total_bytes} epoch {epoch} \
                 max_timestamp {max_timestamp} {state}",
                start + found.position as u64,
                found.head.end_offset(),
            );
        }
        let done = walk.position();
        if let Some(error) = walk.broken() {
            line!(out, "@{} BROKEN: no batch begins here: {error}", start + done as u64);
            return Ok(());
        }
        if read == 0 {
            let (left, needed) = walk.incomplete();
            if left > 0 {
                line!(out, "@{} INCOMPLETE: {left} of {needed} bytes", start + done as u64);
            }
            return Ok(());
        }
        buffer.drain(..done);
        start += done as u64;
    }
}

fn index(bytes: &[u8], out: &mut dyn Write) -> Result<(), OfflineError> {
    for (number, chunk) in
        bytes.get(INDEX_HEADER_BYTES..).unwrap_or_default().chunks(INDEX_ENTRY_BYTES).enumerate()
    {
        let at = INDEX_HEADER_BYTES + number * INDEX_ENTRY_BYTES;
        match IndexEntry::decode(chunk) {
            Some(IndexEntry { base_offset, max_timestamp, position }) => {
                line!(out, "@{at} offset {base_offset} at {position} max_timestamp_before {max_timestamp}");
            }
            None => line!(out, "@{at} BROKEN"),
        }
    }
    Ok(())
}

fn journal(path: &Path, file: &mut File, out: &mut dyn Write) -> Result<(), OfflineError> {
    let mut region = Vec::new();
    let mut start = 0u64;
    loop {
        region.clear();
        if more(path, file, CHUNK_BYTES, &mut region)? == 0 {
            return Ok(());
        }
        let mut at = 0;
        while let Some(bytes) = region.get(at..).filter(|bytes| !bytes.is_empty()) {
            at += commit(start + at as u64, bytes, out)?;
        }
        start += CHUNK_BYTES as u64;
    }
}

/// Writes the commit at the start of `bytes`, if one is there; returns how far to go on.
fn commit(position: u64, bytes: &[u8], out: &mut dyn Write) -> Result<usize, OfflineError> {
    let header = match CommitHeader::decode(bytes) {
        Ok(header) => header,
        Err(CommitError::Magic) => return Ok(JOURNAL_ALIGN),
        Err(error) => {
            line!(out, "@{position} BROKEN: {error}");
            return Ok(JOURNAL_ALIGN);
        }
    };
    let payload = bytes.get(COMMIT_HEADER_BYTES..).unwrap_or_default();
    let payload = payload.get(..header.payload_len as usize).unwrap_or(payload);
    let verified = header.verify_frames(payload, &mut Vec::new());
    let misplaced = if header.position == position { "" } else { " MISPLACED" };
    line!(
        out,
        "@{position} commit {} generation {} incarnation {} durable {} file {} frames {} bytes {}{}{misplaced} \
         prev_crc {:#010x} crc {:#010x} journal {:#018x} {}",
        header.lsn,
        header.generation,
        header.incarnation,
        header.durable_lsn,
        header.file,
        header.frame_count,
        header.padded_len(),
        if header.marker { " marker" } else { "" },
        header.prev_crc,
        header.header_crc,
        header.journal_id,
        verified.as_ref().map_or_else(|error| format!("BROKEN: {error}"), |()| "ok".into()),
    );
    for frame in Frames::new(payload, header.frame_seed()) {
        match frame {
            Ok((frame, body)) => frame_line(&frame, payload.get(body).unwrap_or_default(), out)?,
            Err(error) => line!(out, "    BROKEN: {error}"),
        }
    }
    Ok(if verified.is_ok() { header.padded_len() } else { JOURNAL_ALIGN })
}

fn frame_line(frame: &FrameHeader, body: &[u8], out: &mut dyn Write) -> Result<(), OfflineError> {
    let group = frame.group;
    match frame.kind {
        FrameKind::Batch => {
            let state = frame.verify_body(body).map_or_else(|e| format!("BROKEN: {e}"), |()| "ok".into());
            line!(
                out,
                "    batch {group} offsets {}..{} bytes {} epoch {} {state}",
                frame.base_offset,
                frame.end_offset(),
                frame.body_len,
                frame.epoch
            );
        }
        FrameKind::OpenGroup => {
            let lost = if frame.record_count > 0 { ", what was here before is lost" } else { "" };
            line!(out, "    open {group} log start {} epoch {}{lost}", frame.base_offset, frame.epoch)
        }
        FrameKind::Rejoin => {
            let (entry, offset) = (frame.index, frame.base_offset);
            line!(
                out,
                "    rejoin {group}: earlier entries mean nothing, no vote; segments hold entry {entry}, up to offset {offset}"
            )
        }
        FrameKind::Joined => {
            let (entry, offset) = (frame.index, frame.base_offset);
            line!(out, "    joined {group}: it votes; segments hold entry {entry}, up to offset {offset}")
        }
        FrameKind::Founder => {
            line!(out, "    founder node {} disk {:#018x}", frame.record_count, frame.index)
        }
        FrameKind::Configuration => {
            let said = frame.configuration(body);
            let said =
                said.map_or_else(|e| format!("BROKEN: {e}"), |said| format!("replicas on nodes {said}"));
            line!(out, "    configuration {group} entry {} epoch {}: {said}", frame.index, frame.epoch)
        }
        FrameKind::BeginGroup => {
            let said = frame.configuration(body);
            let said =
                said.map_or_else(|e| format!("BROKEN: {e}"), |said| format!("replicas on nodes {said}"));
            let (entry, offset) = (frame.index, frame.base_offset);
            line!(out, "    begin {group} entry {entry} epoch {} at offset {offset}: {said}", frame.epoch)
        }
        FrameKind::DropGroup => line!(out, "    drop {group}"),
        FrameKind::NewLife => line!(out, "    new life {}", frame.epoch),
        FrameKind::NewTerm => line!(out, "    new term {group} entry {} epoch {}", frame.index, frame.epoch),
        FrameKind::Vote => line!(
            out,
            "    vote {group} epoch {} for node {} commit {}",
            frame.epoch,
            frame.record_count,
            frame.index
        ),
    }
    Ok(())
}

fn checkpoint(bytes: &[u8], out: &mut dyn Write) -> Result<(), OfflineError> {
    let checkpoint = match Checkpoint::decode(bytes) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            line!(out, "BROKEN: {error}");
            return Ok(());
        }
    };
    let from = checkpoint.replay_from;
    line!(
        out,
        "checkpoint {} journal {:#018x} incarnation {}",
        checkpoint.seq,
        checkpoint.journal_id,
        checkpoint.incarnation
    );
    line!(
        out,
        "replay from commit {} in file {} generation {} at {} prev_crc {:#010x} incarnation {}",
        from.lsn,
        from.file,
        from.generation,
        from.position,
        from.prev_crc,
        from.incarnation
    );
    line!(out, "catalogue {} bytes", checkpoint.catalog.as_ref().map_or(0, Vec::len));
    for group in &checkpoint.groups {
        line!(
            out,
            "group {} log start {} in segments to {} epoch {}{}",
            group.group,
            group.log_start,
            group.flushed_to,
            group.epoch,
            match (group.end_unknown, group.standing) {
                (true, _) => " END UNKNOWN",
                (false, Standing::Member) => "",
                (false, Standing::Undecided) => " undecided",
                (false, Standing::Rejoining) => " rejoining",
            }
        );
        for (from, to) in &group.damaged {
            line!(out, "    DAMAGED {from}..{to}");
        }
        for segment in &group.segments {
            line!(
                out,
                "    segment {:020} offsets {}..{} bytes {} max_timestamp {}",
                segment.base,
                segment.base,
                segment.end_offset,
                segment.bytes,
                segment.max_timestamp
            );
        }
        for producer in &group.producers {
            let newest = producer.batches.last();
            line!(
                out,
                "    producer {} epoch {} last used {} ms, {} batches, last sequence {}",
                producer.producer_id,
                producer.epoch,
                producer.last_used_ms,
                producer.batches.len(),
                newest.map_or(-1, |batch| batch.last_seq)
            );
        }
    }
    Ok(())
}
