//! The two checkpoint slots as recovery finds them.

use pyralog_core::limits::MAX_CHECKPOINT_BYTES;

use crate::format::checkpoint::{Checkpoint, CheckpointError};

use super::{EngineConfig, FileId, IoError, RecoveryDisk, RecoveryError};

/// The two checkpoint slots.
pub(super) struct Slots {
    slots: [Option<Checkpoint>; 2],
    bytes: [Vec<u8>; 2],
    pub(super) notes: Vec<String>,
}

impl Slots {
    /// The generation from which each slot's replay begins; 0 = no valid one.
    pub(super) fn generations(&self) -> [u64; 2] {
        self.slots.each_ref().map(|slot| slot.as_ref().map_or(0, |slot| slot.replay_from.generation))
    }

    /// Journal files below this generation are needed by neither slot.
    pub(super) fn keep_from(&self) -> u64 {
        self.generations().into_iter().min().unwrap_or(0)
    }

    pub(super) fn newest(&self) -> Option<&Checkpoint> {
        self.slots.iter().flatten().max_by_key(|checkpoint| checkpoint.seq)
    }

    /// The one before the newest.
    pub(super) fn older(&self) -> Option<&Checkpoint> {
        let [Some(first), Some(second)] = &self.slots else { return None };
        Some(if first.seq < second.seq { first } else { second })
    }

    /// Writes the newest checkpoint once more, byte for byte, and flushes it. What was read may be in the page
    /// cache only, after a flush of it failed, and a flush alone would not write it again; but from now on
    /// files that it does not name are removed.
    pub(super) fn make_durable(&self, disk: &mut dyn RecoveryDisk) -> Result<(), IoError> {
        let Some(newest) = self.newest() else { return Ok(()) };
        let slot = (newest.seq % 2) as u8;
        let Some(bytes) = self.bytes.get(usize::from(slot)).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        disk.write(FileId::Checkpoint(slot), 0, bytes)?;
        disk.sync(FileId::Checkpoint(slot))
    }
}

pub(super) fn load_checkpoints(
    config: &EngineConfig,
    disk: &mut dyn RecoveryDisk,
    listing: &[(FileId, u64)],
) -> Result<Slots, RecoveryError> {
    let mut found = Slots { slots: [None, None], bytes: [Vec::new(), Vec::new()], notes: Vec::new() };
    for (file, len) in listing {
        let FileId::Checkpoint(slot) = *file else { continue };
        let Some(place) = found.slots.get_mut(usize::from(slot)) else { continue };
        let mut bytes = vec![0; (*len).min(MAX_CHECKPOINT_BYTES as u64 * 2) as usize];
        let read = disk.read(*file, 0, &mut bytes)?;
        match Checkpoint::decode(bytes.get(..read).unwrap_or_default()) {
            Ok(checkpoint) if checkpoint.journal_id == config.journal_id => {
                *place = Some(checkpoint);
                bytes.truncate(read);
                if let Some(kept) = found.bytes.get_mut(usize::from(slot)) {
                    *kept = bytes;
                }
            }
            Ok(_) => {
                found.notes.push(format!("checkpoint slot {slot} belongs to another journal; it is not used"))
            }
            // No damage: with the other slot what a newer release has done since would be forgotten.
            Err(error @ CheckpointError::Version(_)) => {
                return Err(RecoveryError(format!("shard {}: checkpoint.{slot}: {error}", config.shard)));
            }
            Err(error) => {
                found.notes.push(format!("checkpoint slot {slot} is not valid ({error}); it is not used"))
            }
        }
    }
    Ok(found)
}
