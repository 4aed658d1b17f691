//! A node of the demo's own: this same program as a child process.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::interrupt;
use crate::failure::Failure;

/// A running node. Dropping it kills it.
pub(crate) struct Node {
    process: Child,
    stdout: BufReader<ChildStdout>,
    /// What it printed until it was ready.
    pub(crate) banner: String,
    /// Where it listens.
    pub(crate) address: String,
    /// From its start until it was ready.
    pub(crate) ready_after: Duration,
}

impl Node {
    /// Starts a node and waits until it is ready.
    pub(crate) fn start(data_dir: &Path, listen: &str) -> Result<Self, Failure> {
        let started = Instant::now();
        let program = std::env::current_exe()
            .map_err(|error| Failure::failed(format!("cannot find the program to start: {error}")))?;
        let mut process = Command::new(program)
            .arg("--data-dir")
            .arg(data_dir)
            .args(["--listen", listen])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::failed(format!("cannot start a node: {error}")))?;
        interrupt::child_runs(process.id());
        let Some(stdout) = process.stdout.take() else {
            return Err(Failure::failed("the node has no standard output"));
        };
        let (address, ready_after) = (String::new(), Duration::ZERO);
        let mut node =
            Self { process, stdout: BufReader::new(stdout), banner: String::new(), address, ready_after };
        node.await_ready()?;
        node.ready_after = started.elapsed();
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
            if let Some(rest) = line.strip_prefix(crate::node::READY) {
                let address = rest.split([',', ' ', '\n']).next().unwrap_or_default();
                self.address = address.to_owned();
                return Ok(());
            }
            self.banner.push_str(&line);
        }
    }

    /// SIGKILL: no destructor, no flush, nothing.
    pub(crate) fn kill(mut self) -> Result<(), Failure> {
        interrupt::child_ends();
        let ended = self.process.kill().and_then(|()| self.process.wait());
        ended.map(drop).map_err(|error| Failure::failed(format!("cannot kill the node: {error}")))
    }

    /// SIGTERM, and an exit code of 0. What it said.
    pub(crate) fn stop(mut self) -> Result<String, Failure> {
        let pid =
            i32::try_from(self.process.id()).map_err(|_| Failure::failed("the node has no process id"))?;
        // SAFETY: the child has not been waited for, so the id is its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let mut said = String::new();
        // What it said is for show; how it ended is what counts.
        let _ = self.stdout.read_to_string(&mut said);
        interrupt::child_ends();
        match self.process.wait() {
            Ok(status) if status.success() => Ok(said),
            Ok(status) => Err(Failure::failed(format!("the node did not stop cleanly: {status}"))),
            Err(error) => Err(Failure::failed(format!("cannot wait for the node: {error}"))),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        interrupt::child_ends();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
