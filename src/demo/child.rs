//! A node of the demo's own: this same program as a child process.

use super::interrupt;
use crate::failure::Failure;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

/// A running node. Dropping it kills it.
pub(crate) struct Node {
    process: Child,
    stdout: BufReader<ChildStdout>,
}

impl Node {
    /// Starts a node and waits until it is ready.
    pub(crate) fn start(data_dir: &Path, listen: &str, settings: &[(&str, String)]) -> Result<Self, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::failed(format!("cannot find the program to start: {error}")))?;
        let mut process = Command::new(program)
            .arg("--data-dir")
            .arg(data_dir)
            .args(["--listen", listen])
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::failed(format!("cannot start a node: {error}")))?;
        interrupt::child_runs(process.id());
        let Some(stdout) = process.stdout.take() else {
            return Err(Failure::failed("the node has no standard output"));
        };
        let mut node = Self { process, stdout: BufReader::new(stdout) };
        node.await_ready()?;
        Ok(node)
    }

    fn await_ready(&mut self) -> Result<(), Failure> {
        loop {
            let mut line = String::new();
            match self.stdout.read_line(&mut line) {
                Ok(1..) => {}
                // Its own message is on standard error already.
                _ => return Err(Failure::failed("the node ended before it was ready")),
            }
            if line.starts_with(crate::node::READY) {
                return Ok(());
            }
        }
    }

    /// SIGKILL: no destructor, no flush, nothing.
    pub(crate) fn kill(mut self) -> Result<(), Failure> {
        interrupt::child_ends(self.process.id());
        let ended = self.process.kill().and_then(|()| self.process.wait());
        ended.map(drop).map_err(|error| Failure::failed(format!("cannot kill the node: {error}")))
    }

    /// SIGTERM, and an exit code of 0.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        let pid =
            i32::try_from(self.process.id()).map_err(|_| Failure::failed("the node has no process id"))?;
        // SAFETY: the child has not been waited for, so the id is its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let mut said = String::new();
        // What it says is read, so that it can be said; how it ended is what counts.
        let _ = self.stdout.read_to_string(&mut said);
        interrupt::child_ends(self.process.id());
        match self.process.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Failure::failed(format!("the node did not stop cleanly: {status}"))),
            Err(error) => Err(Failure::failed(format!("cannot wait for the node: {error}"))),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        interrupt::child_ends(self.process.id());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
