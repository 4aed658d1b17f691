//! The node that is measured: one that runs, or one that is started for it and gone afterwards.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use tempfile::TempDir;

use crate::host;
use crate::options::TargetArgs;
use crate::pairs::ensure_program;
use crate::process::{NodeSetup, OwnedProcess};
use crate::session::Session;

/// A node that serves.
pub struct Target {
    /// Where clients connect.
    pub addr: SocketAddr,
    /// CPU of the clients' threads.
    pub client_cpu: Option<usize>,
    /// Folder on the node's disk, when it is known.
    pub disk_dir: Option<PathBuf>,
    own: Option<Own>,
}

struct Own {
    // Before the folder, so that it is gone when that is removed.
    process: OwnedProcess,
    setup: NodeSetup,
    _folder: TempDir,
}

impl Target {
    /// Starts the node, with one shard on one CPU as `pairs` does, unless one was named.
    ///
    /// # Errors
    /// When the program is not there or does not start, or when nobody answers at the address.
    pub fn start(args: &TargetArgs) -> anyhow::Result<Self> {
        host::raise_nofile_limit()?;
        if let Some(addr) = args.addr {
            Session::connect(addr, None)?;
            let disk_dir = args.floor_dir.clone();
            return Ok(Self { addr, client_cpu: args.client_cpu, disk_dir, own: None });
        }
        ensure_program(&args.server)?;
        std::fs::create_dir_all(&args.dir)?;
        let folder = tempfile::Builder::new().prefix("pyralog-bench-").tempdir_in(&args.dir)?;
        let server_cpu = args.server_cpu.or(host::server_cpu(&args.dir)).or(Some(0));
        let setup = NodeSetup::new(&args.server, folder.path(), server_cpu)?;
        let process = setup.start()?;
        Ok(Self {
            addr: setup.addr,
            client_cpu: args.client_cpu,
            disk_dir: Some(args.dir.clone()),
            own: Some(Own { process, setup, _folder: folder }),
        })
    }

    /// What the node says that it is.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn version(&self) -> anyhow::Result<String> {
        Ok(Session::connect(self.addr, None)?.server_version().to_owned())
    }

    /// The data folder of a node that was started here.
    pub fn data_dir(&self) -> Option<PathBuf> {
        self.own.as_ref().map(|own| own.setup.data_dir())
    }

    /// A topic of this name with a number that no run before has used. Retention would take records from under a
    /// reader's eyes only after days; the node's default stays.
    ///
    /// # Errors
    /// When the node refuses it.
    pub fn new_topic(&self, prefix: &str, partitions: u32) -> anyhow::Result<String> {
        let name = format!("{prefix}-{:x}", run_number());
        Session::connect(self.addr, Some(0))?.create_topic(&name, partitions)?;
        Ok(name)
    }

    /// Stops the node that was started here, lets `meanwhile` happen to its files, and starts it again. With a node
    /// that runs elsewhere only `meanwhile` happens.
    ///
    /// # Errors
    /// When it does not stop or start.
    pub fn restart(&mut self, meanwhile: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let Some(own) = &mut self.own else { return meanwhile() };
        own.process.stop()?;
        meanwhile()?;
        own.process = own.setup.start()?;
        Ok(())
    }

    /// Stops the node if it was started here.
    ///
    /// # Errors
    /// When it does not stop by itself.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.own.as_mut().map_or(Ok(()), |own| own.process.stop())
    }
}

/// A number that another run, even at the same time, does not have.
pub fn run_number() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_nanos() as u64).wrapping_mul(1 << 16 | 1) ^ u64::from(std::process::id())
}

/// Takes the files below `dir` out of the page cache; how many bytes they have. Only what is on disk already can be taken
/// out: with `flush` each file is flushed first.
///
/// # Errors
/// When the folder can't be listed or a file not be opened.
pub fn evict(dir: &Path, flush: bool) -> anyhow::Result<u64> {
    let mut bytes = 0;
    let entries = std::fs::read_dir(dir).with_context(|| format!("{}: can't be listed", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            bytes += evict(&path, flush)?;
        } else if kind.is_file() {
            bytes +=
                evict_file(&path, flush).with_context(|| format!("{}: can't be evicted", path.display()))?;
        }
    }
    Ok(bytes)
}

fn evict_file(path: &Path, flush: bool) -> anyhow::Result<u64> {
    use std::os::fd::AsRawFd;

    let file = match std::fs::File::open(path) {
        // A running node removes files that it needs no more.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        opened => opened?,
    };
    if flush {
        file.sync_data()?;
    }
    // SAFETY: the descriptor is open; the call takes no memory of ours.
    let refused = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    anyhow::ensure!(refused == 0, "posix_fadvise: {}", std::io::Error::from_raw_os_error(refused));
    Ok(file.metadata()?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_below_is_taken_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/file"), vec![1; 10_000]).unwrap();
        std::fs::write(dir.path().join("file"), vec![1; 5]).unwrap();
        assert_eq!(evict(dir.path(), true).unwrap(), 10_005);
        let error = evict(&dir.path().join("none"), false).unwrap_err().to_string();
        assert!(error.contains("none"), "{error}");
    }

    #[test]
    fn runs_have_numbers_of_their_own() {
        let numbers: std::collections::BTreeSet<u64> = (0..100).map(|_| run_number()).collect();
        assert!(numbers.len() > 90, "{}", numbers.len());
    }
}
