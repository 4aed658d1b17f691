//! Peers' server processes: found, started in a group of their own with their output in a file, waited for, and ended with
//! all that they have started.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

/// How long a server may take to be ready; Erlang's needs most of it on a slow machine.
const START_PATIENCE: Duration = Duration::from_secs(120);
const STOP_PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
/// What is shown of the log of a server that fails.
const LOG_LINES: usize = 30;

/// One server process; it and its group are killed when dropped.
pub(super) struct Server {
    child: Child,
    name: String,
    log: PathBuf,
    stop_signal: libc::c_int,
    is_reaped: bool,
}

impl Server {
    /// Starts it with its output in `log`. `stop_signal` is what ends it in good order.
    pub(super) fn start(
        name: &str,
        command: &mut Command,
        log: &Path,
        stop_signal: libc::c_int,
    ) -> anyhow::Result<Self> {
        let file = fs::File::create(log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        // SAFETY: prctl is safe to be called between fork and exec, and touches no memory.
        unsafe {
            command.pre_exec(|| {
                // Should this program be killed, it must not leave a server behind.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0);
                Ok(())
            });
        }
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("can't start {name} ({program})"))?;
        Ok(Self { child, name: name.to_owned(), log: log.to_owned(), stop_signal, is_reaped: false })
    }

    /// Asks until it is ready; an error of the last time, with the end of its log, when that takes too long or it has ended.
    pub(super) fn await_ready(&mut self, mut ask: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let end = Instant::now() + START_PATIENCE;
        loop {
            self.ensure_running()?;
            match ask() {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > end => {
                    let told = format!("{} is not ready {START_PATIENCE:?} after its start", self.name);
                    return Err(error.context(format!("{told}; its log ends:\n{}", tail_of(&self.log))));
                }
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    /// Fails when it has ended.
    pub(super) fn ensure_running(&mut self) -> anyhow::Result<()> {
        let has_ended = self.has_ended()?;
        anyhow::ensure!(
            !has_ended,
            "{} has ended by itself; its log ends:\n{}",
            self.name,
            tail_of(&self.log)
        );
        Ok(())
    }

    /// Ends it in good order.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.signal(self.pid()?, self.stop_signal)?;
        let end = Instant::now() + STOP_PATIENCE;
        while !self.has_ended()? {
            let tail = || tail_of(&self.log);
            anyhow::ensure!(
                Instant::now() < end,
                "{} did not stop in time; its log ends:\n{}",
                self.name,
                tail()
            );
            std::thread::sleep(LOOK);
        }
        self.end_group();
        Ok(())
    }

    fn pid(&self) -> anyhow::Result<libc::pid_t> {
        Ok(libc::pid_t::try_from(self.child.id())?)
    }

    /// Whether it has ended. It stays a zombie, so that its id and its group's can't be anybody else's.
    fn has_ended(&self) -> anyhow::Result<bool> {
        // SAFETY: an all-zero siginfo_t is a valid one.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: `info` is valid for writes.
        let result = unsafe { libc::waitid(libc::P_PID, self.child.id(), &mut info, how) };
        anyhow::ensure!(result == 0, "can't watch {}: {}", self.name, std::io::Error::last_os_error());
        // SAFETY: waitid has filled it in, or left it zero when nothing has ended.
        Ok(unsafe { info.si_pid() } != 0)
    }

    /// `target`: its own id or, negative, its group's.
    fn signal(&self, target: libc::pid_t, signal: libc::c_int) -> anyhow::Result<()> {
        // SAFETY: our own child, not waited for yet, so neither id can belong to anybody else.
        match unsafe { libc::kill(target, signal) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()).with_context(|| format!("can't signal {}", self.name)),
        }
    }

    fn end_group(&mut self) {
        if !self.is_reaped {
            self.is_reaped = true;
            // Nothing to be done about an error: there is none as long as the process is ours.
            let _ = self.pid().and_then(|pid| self.signal(-pid, libc::SIGKILL));
            let _ = self.child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end_group();
    }
}

fn tail_of(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n")
}

/// Asks until the answer comes, for things that no single process is to blame for.
pub(super) fn await_ok<T>(what: &str, mut ask: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let end = Instant::now() + START_PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > end => {
                return Err(error.context(format!("{what}: not within {START_PATIENCE:?}")));
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// Where a program is: in the folders given, in `PATH`, or where its package puts it.
pub(super) fn find_program(name: &str, folders: &[PathBuf], usual: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let all = folders.iter().chain(&path).chain(usual);
    all.map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// The folder that holds all these programs: one of those given, the one where their package puts them, or one in `PATH`.
pub(super) fn find_folder(names: &[&str], folders: &[PathBuf], usual: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let holds_all = |folder: &&PathBuf| names.iter().all(|name| folder.join(name).is_file());
    folders.iter().chain(usual).chain(&path).find(holds_all).cloned()
}

/// The first line that a program prints of itself.
pub(super) fn first_line(program: &Path, argument: &str) -> anyhow::Result<String> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("can't run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default().trim();
    anyhow::ensure!(!line.is_empty(), "{} {argument} prints nothing", program.display());
    Ok(line.to_owned())
}

/// User and group of a process, where it can't be this one's.
pub(super) type RunAs = Option<(u32, u32)>;

/// Whom to run as when this is root: the first of these users that is there.
pub(super) fn other_user_than_root(names: &[&str]) -> anyhow::Result<RunAs> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let find = |name: &&str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let found = names.iter().find_map(find);
    found
        .map(Some)
        .with_context(|| format!("it does not run as root, and none of the users {names:?} is there"))
}

/// Makes a folder that belongs to that user.
pub(super) fn create_folder(path: &Path, user: RunAs) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| path.display().to_string())?;
    if let Some((uid, gid)) = user {
        chown(path, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// Writes a file that belongs to that user.
pub(super) fn write_file(path: &Path, text: &str, user: RunAs) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())?;
    if let Some((uid, gid)) = user {
        chown(path, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// A command of this user's.
pub(super) fn command(program: &Path, user: RunAs) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}

/// The first of some addresses, and the others.
pub(super) fn leader_and_rest(addrs: &[SocketAddr]) -> anyhow::Result<(SocketAddr, &[SocketAddr])> {
    let (first, rest) = addrs.split_first().context("no address")?;
    Ok((*first, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_ends_is_told_with_the_end_of_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo out of luck >&2; exit 3"]);
        let mut server = Server::start("it", &mut command, &dir.path().join("log"), libc::SIGTERM).unwrap();
        let error = server.await_ready(|| anyhow::bail!("not yet")).unwrap_err();
        assert!(error.to_string().contains("out of luck"), "{error}");
    }

    #[test]
    fn what_a_server_has_started_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let mut command = Command::new("/bin/sh");
        command.current_dir(dir.path()).args(["-c", "sleep 600 & echo $! > pid.new; mv pid.new pid; wait"]);
        let mut server = Server::start("it", &mut command, &dir.path().join("log"), libc::SIGTERM).unwrap();
        let read = || Ok(fs::read_to_string(&pid_file)?);
        server.await_ready(|| read().map(drop)).unwrap();
        let stat = format!("/proc/{}/stat", read().unwrap().trim());
        assert!(Path::new(&stat).exists());
        drop(server);
        // Not our child: it is gone, or a zombie of whoever adopts it, once its SIGKILL has been dealt with.
        let is_gone = || {
            let text = fs::read_to_string(&stat).unwrap_or_default();
            anyhow::ensure!(text.is_empty() || text.contains(") Z "), "{text}");
            Ok(())
        };
        await_ok("the end of what it started", is_gone).unwrap();
    }

    #[test]
    fn programs_are_found_in_the_folders_given_first() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("sh"), "").unwrap();
        let folders = [dir.path().to_owned()];
        assert_eq!(find_program("sh", &folders, &[]), Some(dir.path().join("sh")));
        assert!(find_program("sh", &[], &[]).is_some());
        assert_eq!(find_program("no-such-program-here", &folders, &[]), None);
        assert_eq!(find_program("no-such-program-here", &[], &folders), None);
        assert_eq!(find_folder(&["sh"], &folders, &[]), Some(dir.path().to_owned()));
        assert_ne!(find_folder(&["sh", "cat"], &folders, &[]), Some(dir.path().to_owned()));
        assert_eq!(find_folder(&["sh", "no-such-program-here"], &folders, &[]), None);
    }
}
