//! Makes the journal's files: one when none is free, and before there is load as many as a busy shard goes round in.
//!
//! A file is made by writing it once, and while that goes on a group commit takes twice as long. A shard that made its
//! files as they were needed did so every few seconds until it had enough, in the middle of its load: one of a hundred
//! requests met it (`docs/decisions/0012-journal-files-are-made-ahead.md`).

use super::api::{Action, FileId, IoError, IoErrorKind, IoOp, IoResult, IoToken, LogLevel};
use super::config::EngineConfig;
use super::journal::JournalFile;
use super::{Engine, Mode};

/// Files that nobody waits for are made at this rate, bytes per second and shard: one that has all of the default cache has its
/// half gibibyte in two seconds.
const AHEAD_BYTES_PER_S: u64 = 256 << 20;

/// What files there may be, and the one that is being made.
#[derive(Debug)]
pub(super) struct JournalFiles {
    creating: Option<Creating>,
    /// All files together are never longer, bytes.
    max_bytes: u64,
    /// So long they are made before there is need, bytes.
    ahead_bytes: u64,
    /// The next one that nobody waits for is not begun before, monotonic microseconds.
    ahead_from_us: u64,
    /// One that nobody waits for could not be made: the rest comes when it is needed.
    gave_up: bool,
}

/// A file that is being made.
#[derive(Debug)]
struct Creating {
    token: IoToken,
    file: JournalFile,
    /// Nobody waited for it when it was begun.
    ahead: bool,
}

impl JournalFiles {
    /// For a shard with this configuration.
    pub(super) fn new(config: &EngineConfig) -> Self {
        let max_bytes = config.cache_bytes as u64 * 2 + config.journal_file_bytes * 4;
        // Two runs of the flusher lie between a file's use and its next one. Each begins with three eighths of the cache in
        // no segment and may end with five eighths; the one that is written to and the one behind it come on top.
        let goes_round = (config.cache_bound() as u64 * 5 / 4).next_multiple_of(config.journal_file_bytes);
        let ahead_bytes = (goes_round + config.journal_file_bytes * 2).min(max_bytes);
        Self {
            creating: None,
            max_bytes,
            ahead_bytes: if config.journal_files_ahead { ahead_bytes } else { 0 },
            ahead_from_us: 0,
            gave_up: false,
        }
    }

    /// Whether one is being made.
    pub(super) fn is_creating(&self) -> bool {
        self.creating.is_some()
    }
}

impl Engine {
    /// Has one more file made when none is free, or when there are not as many as a busy shard needs.
    pub(super) fn keep_journal_files(&mut self, actions: &mut Vec<Action>) {
        if self.journal_files.is_creating() || self.flush.waits_for_space() {
            return;
        }
        let needed = self.journal.free_files() == 0;
        if !needed && self.file_ahead_due_us().is_none_or(|due| due > self.now.monotonic_us) {
            return;
        }
        let len = self.config.journal_file_bytes;
        if self.journal.files_bytes() + len > self.journal_files.max_bytes {
            return self.flush.want_run();
        }
        let number = self.journal.files.iter().map(|file| file.number + 1).max().unwrap_or(0);
        let token = self.next_token();
        let file = JournalFile { number, len, generation: 0, free: true };
        self.journal_files.creating = Some(Creating { token, file, ahead: !needed });
        self.journal_files.ahead_from_us = self.now.monotonic_us + len * 1_000_000 / AHEAD_BYTES_PER_S;
        actions.push(Action::Io { token, op: IoOp::CreateZeroed { file: FileId::Journal(number), len } });
    }

    /// When the next file is to be begun that nobody waits for, monotonic microseconds; `None` = there is to be none.
    pub(super) fn file_ahead_due_us(&self) -> Option<u64> {
        let files = &self.journal_files;
        let wanted = self.mode == Mode::Serving
            && !files.gave_up
            && !files.is_creating()
            && !self.flush.waits_for_space()
            && !self.flush.disk_full()
            && self.journal.files_bytes() + self.config.journal_file_bytes <= files.ahead_bytes;
        wanted.then_some(files.ahead_from_us)
    }

    /// Whether the operation was the making of a file; takes it over.
    pub(super) fn journal_file_done(
        &mut self,
        token: IoToken,
        result: &IoResult,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(Creating { file, ahead, .. }) =
            self.journal_files.creating.take_if(|creating| creating.token == token)
        else {
            return false;
        };
        let free = self.journal.free_files() > 0;
        match result {
            Ok(_) => {
                self.journal.files.push(file);
                self.room_again();
            }
            // Nothing of the log is in it: what failed is told, and only a file that is needed must not fail. A disk that
            // is full is full for that one, too.
            Err(error) if free || (ahead && error.kind != IoErrorKind::NoSpace) => {
                self.give_up_ahead(error, actions)
            }
            Err(error) => self.flush_failed(error.clone(), actions),
        }
        true
    }

    fn give_up_ahead(&mut self, error: &IoError, actions: &mut Vec<Action>) {
        self.journal_files.gave_up = true;
        let remedy = match error.kind {
            IoErrorKind::NoSpace => "free space, or the first load will find the disk full",
            _ => "mend what is named here before, or the shard stops taking writes then",
        };
        let text = format!(
            "shard {}: {}. It goes on with {} journal files and makes more when they are needed; {remedy}",
            self.config.shard,
            error.detail,
            self.journal.files.len()
        );
        actions.push(Action::Log { level: LogLevel::Warn, text });
    }
}
