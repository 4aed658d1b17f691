//! How the programs fail: one line on stderr that says what happened, to what and what to do, and an exit code.

use std::fmt;
use std::process::ExitCode;

/// Exit codes of both programs, as documented in their `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Something went wrong while running: a refused request, a failed shard, a mismatch, damage found.
    Failed = 1,
    /// The command line or the configuration is wrong; nothing was started. (clap uses the same number.)
    Usage = 2,
    /// The node cannot start here: port or data folder in use, io_uring refused, disk unusable.
    CannotStart = 3,
    /// The cluster cannot be reached.
    CannotConnect = 4,
}

/// A failure for a person.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The process's exit code.
    pub(crate) exit: Exit,
    /// One line.
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }

    /// Something went wrong while running.
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self::new(Exit::Failed, text)
    }

    /// The command line is wrong.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// Ends a program: prints the failure, if there is one.
pub(crate) fn exit(program: &str, result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{program}: {failure}");
            ExitCode::from(failure.exit as u8)
        }
    }
}
