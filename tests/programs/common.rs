//! A node of one's own for a test: real program, free port, temporary folder, killed when the test ends.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

/// Longest that anything in these tests may take before it counts as hanging.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Says that a test can't be made here and why, where a passing test's output is not hidden.
pub(crate) fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}

/// `pyralog` without any setting from the test's surroundings.
pub(crate) fn pyralog() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_pyralog")))
}

/// `pyralog-admin`, likewise.
pub(crate) fn admin() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_pyralog-admin")))
}

fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PYRALOG")) {
        command.env_remove(name);
    }
    command.env("PYRALOG__STORAGE__CACHE_CONFIG__MAX_SIZE", "64MiB");
    command
}

/// A running node. Dropping it kills it.
pub(crate) struct Node {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Everything it printed until it was ready.
    pub(crate) banner: String,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Node {
    /// Starts a node with its data in `data_dir` on a free port and waits until it says that it is ready.
    pub(crate) fn start(data_dir: &Path) -> Self {
        Self::start_with(data_dir, "127.0.0.1:0", |command| command)
    }

    /// Likewise, at a given address and with more on the command line.
    pub(crate) fn start_with(
        data_dir: &Path,
        listen: &str,
        more: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Self {
        let mut node = Self::begin_with(data_dir, listen, more);
        node.await_ready();
        node
    }

    /// Likewise, without waiting for anything.
    pub(crate) fn begin_with(
        data_dir: &Path,
        listen: &str,
        more: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Self {
        let mut command = pyralog();
        command.arg("--data-dir").arg(data_dir).args(["--listen", listen]);
        more(&mut command);
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("pyralog starts");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        Self { child, stdout, banner: String::new(), address: ([127, 0, 0, 1], 0).into() }
    }

    /// Starts a node and waits until it tells its address: it listens, and may not serve for long.
    pub(crate) fn begin(data_dir: &Path) -> Self {
        let mut node = Self::begin_with(data_dir, "127.0.0.1:0", |command| command);
        while node.address.port() == 0 {
            let mut line = String::new();
            assert!(node.stdout.read_line(&mut line).expect("the banner is text") > 0, "{}", node.banner);
            if let Some(rest) = line.trim_start().strip_prefix("address ") {
                let address = rest.split_whitespace().next().expect("an address");
                node.address = address.parse().expect("an address that can be connected to");
            }
            node.banner.push_str(&line);
        }
        node
    }

    /// Waits until the node serves.
    pub(crate) fn await_ready(&mut self) {
        loop {
            let from = self.banner.len();
            if self.stdout.read_line(&mut self.banner).expect("the banner is text") == 0 {
                panic!("pyralog ended before it was ready: {:?}\n{}", self.child.wait(), self.banner);
            }
            if let Some(rest) = self.banner[from..].strip_prefix("ready on ") {
                let address = rest.split([',', ' ']).next().expect("an address");
                self.address = address.parse().expect("an address that can be connected to");
                return;
            }
        }
    }

    /// Runs `pyralog-admin` against this node.
    pub(crate) fn admin<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        let mut command = admin();
        command.arg("--cluster").arg(self.address.to_string()).args(arguments);
        command.stdin(Stdio::null()).output().expect("pyralog-admin starts")
    }

    /// Likewise; it must succeed. Its standard output.
    pub(crate) fn admin_ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Vec<u8> {
        let output = self.admin(arguments);
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    /// Likewise, feeding `input`.
    pub(crate) fn admin_with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = admin();
        command.arg("--cluster").arg(self.address.to_string()).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("pyralog-admin starts");
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        std::thread::scope(|scope| {
            // The program may end before it has read all of a bad input.
            scope.spawn(move || drop(stdin.write_all(input)));
            child.wait_with_output().expect("pyralog-admin ends")
        })
    }

    /// One HTTP request; status and body.
    pub(crate) fn http(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).expect("the node listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .expect("it takes requests");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("it replies");
        let (head, body) = reply.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, body.to_owned())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to this node only.
    pub(crate) fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        // SAFETY: the child has not been waited for, so its pid is still its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Whether SIGSTOP has taken effect.
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        // The state follows the name, which is in brackets.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }

    /// Kills it as a power switch would, as far as a process can.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Asks it to stop; how it ended and what else it printed.
    pub(crate) fn stop(mut self) -> (ExitStatus, String) {
        self.signal(libc::SIGTERM);
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("its output is text");
        (self.child.wait().expect("it ends"), rest)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
