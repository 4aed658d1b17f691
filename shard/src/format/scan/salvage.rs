//! What happens at a gap: the look ahead over everything that is left, the decision between a torn tail and
//! corruption, and the way on behind corruption.

use std::collections::BTreeSet;

use pyralog_core::limits::JOURNAL_ALIGN;

use super::{Damage, Lost, Place, ScanError, Walk, payload};
use crate::format::journal::{CommitHeader, FRAME_ALIGN, FrameHeader, frame_len};

/// A header found ahead of a gap. Kept small: there may be one per 4 KiB of journal.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    lsn: u64,
    incarnation: u64,
    prev_crc: u32,
    header_crc: u32,
    place: Place,
    end_position: u64,
    /// All frames verify.
    intact: bool,
    /// The commit is known to have been durable and not to belong to a dead tail.
    live: bool,
}

/// Everything ahead of the first gap, by lsn.
pub(super) struct Ahead {
    candidates: Vec<Candidate>,
}

impl Walk<'_> {
    /// At a gap: finds the way on behind damage (`true`), or the log's end (`false`).
    pub(super) fn bridge(&mut self, torn: &mut Option<String>) -> Result<bool, ScanError> {
        let Some(here) = self.place else { return Ok(false) };
        #[cfg(feature = "planted-bugs")]
        if self.sink.truncates_at_a_gap() {
            return Ok(false);
        }
        if self.ahead.is_none() {
            self.ahead = Some(self.look_ahead(here)?);
        }
        let durable = self.survey.durable;
        if durable < self.next {
            self.check_end_is_readable(here)?;
            *torn = self.describe_torn();
            return Ok(false);
        }
        match self.choose(durable) {
            Some(chosen) => {
                if chosen.lsn > self.next {
                    self.report_missing(here, chosen.lsn - 1)?;
                }
                self.salvage(&chosen)?;
                Ok(true)
            }
            None => {
                self.report_missing(here, durable)?;
                self.next = durable.saturating_add(1);
                // Nothing that may still tell something is overwritten.
                let ends = self.candidates().iter().map(|c| Place { position: c.end_position, ..c.place });
                self.place = ends.max().max(self.place);
                Ok(false)
            }
        }
    }

    fn candidates(&self) -> &[Candidate] {
        self.ahead.as_ref().map_or(&[], |ahead| &ahead.candidates)
    }

    /// Reads everything that the missing commit or evidence for it could be in: the rest of this file, all files
    /// of higher generations, and the first region of all others, this one included (a file whose new first
    /// commit was lost still begins with an old one; and one that the log has left may have been taken again).
    fn look_ahead(&mut self, here: Place) -> Result<Ahead, ScanError> {
        let mut candidates = Vec::new();
        let mut buffer = Vec::new();
        let region = self.region_bytes as u64;
        for (file, len) in self.files.clone() {
            for start in (0..len).step_by(self.region_bytes) {
                // Asked for each region: its first one may have told that the file is newer.
                let newer = self.survey.generation(file) > here.generation;
                let rest = file == here.file && start + region > here.position;
                if start > 0 && !newer && !rest {
                    continue;
                }
                buffer.resize((len - start).min(region) as usize, 0);
                self.survey.headers(self.disk, (file, start), &mut buffer, &mut |header, intact| {
                    candidates.extend(Candidate::of(&header, intact));
                })?;
            }
        }
        let next = self.next;
        candidates.retain(|candidate| {
            candidate.lsn >= next
                && (candidate.place.generation > here.generation
                    || (candidate.place.file, candidate.place.generation) == (here.file, here.generation))
        });
        candidates.sort_unstable_by_key(|candidate| (candidate.lsn, candidate.incarnation));
        self.prove(&mut candidates);
        Ok(Ahead { candidates })
    }

    /// Marks the candidates that are known to be part of the log. Three things prove it: a header of the same life
    /// that claims a durable point at or above the candidate (a life writes each lsn once, and what it made durable
    /// no later life declares dead); a commit that chains to it, of a later life (which found it alive) or proven
    /// itself; or a proven commit of the same life anywhere above it, as a life's commits chain to one another.
    /// The last one still holds when the life's highest claims were in its torn tail, and are overwritten.
    fn prove(&self, candidates: &mut [Candidate]) {
        // From the highest lsn down, so that successors are decided first.
        let mut successors: Vec<Candidate> = Vec::new();
        let mut current: Vec<Candidate> = Vec::new();
        let mut live_above: BTreeSet<u64> = BTreeSet::new();
        for candidate in candidates.iter_mut().rev() {
            if current.first().is_some_and(|first| first.lsn != candidate.lsn) {
                successors = std::mem::take(&mut current);
            }
            let chained = successors.iter().any(|next| {
                next.lsn == candidate.lsn + 1
                    && next.prev_crc == candidate.header_crc
                    && (next.incarnation > candidate.incarnation || next.live)
            });
            candidate.live = chained
                || self.survey.claim(candidate.incarnation) >= candidate.lsn
                || live_above.contains(&candidate.incarnation);
            if candidate.live {
                live_above.insert(candidate.incarnation);
            }
            current.push(*candidate);
        }
    }

    /// The commit to go on with: the first one proven live, else one directly behind the durable point whose own
    /// life knew that point: with its predecessor durable and itself whole, every recovery would have accepted it.
    fn choose(&self, durable: u64) -> Option<Candidate> {
        let start = self.candidates().partition_point(|candidate| candidate.lsn < self.next);
        let rest = self.candidates().get(start..).unwrap_or_default();
        let may_follow = |c: &&Candidate| c.incarnation >= self.incarnation;
        let live = rest.iter().filter(may_follow).find(|candidate| candidate.live);
        let behind = || {
            let knew = |c: &&Candidate| c.intact && self.survey.claim(c.incarnation) >= durable;
            rest.iter().filter(may_follow).filter(|c| c.lsn == durable + 1).rfind(knew)
        };
        live.or_else(behind).copied()
    }

    fn report_missing(&mut self, here: Place, last_lsn: u64) -> Result<(), ScanError> {
        let detail = format!(
            "group commits {} to {last_lsn} were durable (the durable point on disk is {}) and are not readable in \
             journal file {} from byte {} on",
            self.next, self.survey.durable, here.file, here.position
        );
        let damage = Damage {
            first_lsn: self.next,
            last_lsn,
            file: here.file,
            position: here.position,
            lost: Lost::Unknown,
            detail,
        };
        self.report(damage)
    }

    /// Delivers what is intact of a commit behind or at the gap.
    fn salvage(&mut self, chosen: &Candidate) -> Result<(), ScanError> {
        let place = chosen.place;
        self.load(place.file, place.position - place.position % self.region_bytes as u64)?;
        let bytes = self.region_bytes_from(place);
        let Ok(header) = CommitHeader::decode(bytes) else {
            return Err(ScanError::Unreadable { file: place.file, position: place.position });
        };
        let (frames, broken) = match payload(&header, bytes) {
            Some(payload) => intact_frames(&header, payload),
            None => (Vec::new(), vec![(0, Lost::Unknown, "the file ends inside the commit".to_owned())]),
        };
        for (at, lost, what) in broken {
            let position = place.position + at as u64;
            let detail = format!(
                "group commit {} in journal file {} is damaged at byte {position}: {what}",
                header.lsn, place.file
            );
            let damage = Damage {
                first_lsn: header.lsn,
                last_lsn: header.lsn,
                file: place.file,
                position,
                lost,
                detail,
            };
            self.report(damage)?;
        }
        self.frames = frames;
        self.deliver(&header, place)
    }

    /// A block that can't be read where the log seems to end could hide a commit or the evidence for one.
    fn check_end_is_readable(&self, here: Place) -> Result<(), ScanError> {
        let decisive = self.survey.unreadable.iter().find(|(file, position)| match *file == here.file {
            true => *position >= here.position,
            false => !(1..=here.generation).contains(&self.survey.generation(*file)),
        });
        match decisive {
            Some(&(file, position)) => Err(ScanError::Unreadable { file, position }),
            None => Ok(()),
        }
    }

    fn describe_torn(&self) -> Option<String> {
        if let Some(header) = &self.broken {
            return Some(format!(
                "group commit {} at byte {} of journal file {} was not written whole; it was never acknowledged",
                header.lsn, header.position, header.file
            ));
        }
        let beyond =
            self.candidates().iter().filter(|c| c.lsn >= self.next && c.incarnation == self.incarnation);
        let last = beyond.map(|candidate| candidate.lsn).max()?;
        Some(format!(
            "group commit {} was not written although {last}, submitted with it, was; neither was acknowledged",
            self.next
        ))
    }
}

impl Candidate {
    fn of(header: &CommitHeader, intact: bool) -> Option<Self> {
        Some(Self {
            lsn: header.lsn,
            incarnation: header.incarnation,
            prev_crc: header.prev_crc,
            header_crc: header.header_crc,
            place: Place { generation: header.generation, position: header.position, file: header.file },
            end_position: header.end_position(),
            intact,
            live: false,
        })
    }
}

/// Byte in the commit, what is lost, and why.
type Broken = (usize, Lost, String);

/// The intact frames of a commit's payload (positions counted from its start), and what is broken. Behind a broken
/// frame header the next valid one is looked for: none of another commit, and no bytes that a client chose, can
/// pass for one ([`crate::format::journal::frame_seed`]).
fn intact_frames(header: &CommitHeader, payload: &[u8]) -> (Vec<(FrameHeader, usize)>, Vec<Broken>) {
    let seed = header.frame_seed();
    let commit_bytes = super::COMMIT_HEADER_BYTES;
    let (mut frames, mut broken) = (Vec::new(), Vec::new());
    let frame_at = |at: usize| {
        let frame = FrameHeader::decode(payload.get(at..)?, seed).ok()?;
        let next = at + frame_len(frame.body_len as usize);
        (next <= payload.len()).then_some((frame, next))
    };
    let mut at = 0;
    while at < payload.len() {
        let Some((frame, next)) = frame_at(at) else {
            let resync = (at + FRAME_ALIGN..payload.len()).step_by(FRAME_ALIGN);
            let next = resync.into_iter().find(|at| frame_at(*at).is_some()).unwrap_or(payload.len());
            broken.push((
                commit_bytes + at,
                Lost::Unknown,
                format!("{} bytes of frames are unreadable", next - at),
            ));
            at = next;
            continue;
        };
        let body = at + super::super::journal::FRAME_HEADER_BYTES;
        let bytes = payload.get(body..body + frame.body_len as usize).unwrap_or_default();
        match frame.verify_body(bytes) {
            Ok(()) => frames.push((frame, body)),
            Err(error) => broken.push((commit_bytes + at, Lost::Body(frame), error.to_string())),
        }
        at = next;
    }
    if broken.is_empty() && frames.len() != header.frame_count as usize {
        broken.push((commit_bytes, Lost::Unknown, "frames are missing".to_owned()));
    }
    (frames, broken)
}

const _: () = assert!(JOURNAL_ALIGN.is_multiple_of(FRAME_ALIGN));
