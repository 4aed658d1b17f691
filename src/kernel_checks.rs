//! What the kernel refused or lacks, each with the exact command that mends it.
//!
//! [`Readings`] are what was found on this machine, [`findings`] judges them: so the judgement is tested with
//! readings of machines that the tests do not run on.

use std::fmt;
use std::io;
use std::path::Path;

/// Oldest kernel on which the shard's ring works (DEFER_TASKRUN came with 6.1).
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// Descriptors for the program itself: rings, listeners, journals, the control thread.
const NOFILE_RESERVE: u64 = 256;
/// Most segments and indexes that a shard keeps open. It takes up to a quarter of all descriptors for them.
const NOFILE_PER_SHARD: u64 = 4_096;

/// What was found on this machine. `None` = could not be read, which is never held against it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readings {
    /// `uname -r`.
    pub(crate) kernel_release: String,
    /// Soft limit of locked memory, bytes; `u64::MAX` = unlimited.
    pub(crate) memlock_bytes: Option<u64>,
    /// The process may lock any amount (CAP_IPC_LOCK).
    pub(crate) may_lock_any: bool,
    /// Soft limit of open files, after it was raised to the hard one; `u64::MAX` = unlimited.
    pub(crate) nofile: Option<u64>,
    /// `kernel.io_uring_disabled`: 0 = allowed, 1 = for the privileged and one group, 2 = for nobody.
    pub(crate) io_uring_disabled: Option<u32>,
    /// Error number of setting up a ring as the shards do; `None` = it worked.
    pub(crate) io_uring_errno: Option<i32>,
    /// `always`, `madvise` or `never`: what the kernel does about transparent huge pages.
    pub(crate) transparent_hugepages: Option<String>,
    /// Memory that can be had without swapping, bytes.
    pub(crate) available_bytes: Option<u64>,
    /// The data folder is on a file system that lives in memory.
    pub(crate) data_dir_in_memory: bool,
}

/// What the node is going to need.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Needs {
    /// Shards.
    pub(crate) shards: u64,
    /// Client connections allowed.
    pub(crate) max_connections: u64,
    /// Locked memory, bytes.
    pub(crate) memlock_bytes: u64,
    /// The caches are to lie on transparent huge pages.
    pub(crate) transparent_hugepages: bool,
    /// The printed bound of the node's memory, bytes.
    pub(crate) memory_bound_bytes: u64,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The node cannot run.
    Fatal,
    /// The node runs with less than was asked for.
    Warning,
}

/// Something that the kernel refused or lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// How bad.
    pub(crate) severity: Severity,
    /// What, with the numbers.
    pub(crate) text: String,
    /// The exact command that mends it.
    pub(crate) remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; mend it with: {}", self.text, self.remedy)
    }
}

/// Judges the readings, worst first.
pub(crate) fn findings(readings: &Readings, needs: &Needs) -> Vec<Finding> {
    let mut found: Vec<Finding> = [
        io_uring(readings),
        memlock(readings, needs),
        nofile(readings, needs),
        hugepages(readings, needs),
        memory(readings, needs),
        data_dir(readings),
    ]
    .into_iter()
    .flatten()
    .collect();
    found.sort_by_key(|finding| finding.severity != Severity::Fatal);
    found
}

fn warning(text: String, remedy: impl Into<String>) -> Option<Finding> {
    Some(Finding { severity: Severity::Warning, text, remedy: remedy.into() })
}

fn io_uring(readings: &Readings) -> Option<Finding> {
    let errno = readings.io_uring_errno?;
    let fatal =
        |text: String, remedy: &str| Some(Finding { severity: Severity::Fatal, text, remedy: remedy.into() });
    let release = &readings.kernel_release;
    match (errno, readings.io_uring_disabled) {
        (libc::EPERM, Some(level @ 1..)) => fatal(
            format!("io_uring is switched off (kernel.io_uring_disabled = {level})"),
            "sudo sysctl -w kernel.io_uring_disabled=0",
        ),
        (libc::EPERM | libc::EACCES, _) => fatal(
            "io_uring is refused, most likely by a container's seccomp profile".into(),
            "docker run --security-opt seccomp=unconfined ... (or a profile that allows io_uring_setup, \
             io_uring_enter and io_uring_register)",
        ),
        (libc::ENOMEM, _) => fatal(
            "io_uring is refused for lack of locked memory".into(),
            "sudo prlimit --memlock=unlimited --pid $$, then start again from this shell",
        ),
        (libc::ENOSYS | libc::EINVAL, _)
            if kernel_version(release).is_none_or(|found| found < OLDEST_KERNEL) =>
        {
            let (major, minor) = OLDEST_KERNEL;
            fatal(
                format!(
                    "Linux {release} is too old for the ring that shards use, {major}.{minor} is the oldest"
                ),
                "sudo apt install linux-image-amd64 (or your distribution's current kernel) and reboot",
            )
        }
        (libc::ENOSYS, _) => fatal(
            "this kernel is built without io_uring".into(),
            "boot a kernel built with CONFIG_IO_URING=y (every distribution's default kernel is)",
        ),
        (other, _) => fatal(
            format!("io_uring cannot be set up: {}", io::Error::from_raw_os_error(other)),
            "see `man io_uring_setup` for this error",
        ),
    }
}

fn memlock(readings: &Readings, needs: &Needs) -> Option<Finding> {
    let limit = readings.memlock_bytes?;
    if readings.may_lock_any || limit >= needs.memlock_bytes {
        return None;
    }
    warning(
        format!(
            "memlock is {}, {} shards want {}: buffers stay unregistered, or a shard does not start",
            crate::units::bytes(limit),
            needs.shards,
            crate::units::bytes(needs.memlock_bytes)
        ),
        "sudo prlimit --memlock=unlimited --pid $$, then start again from this shell \
         (systemd: LimitMEMLOCK=infinity)",
    )
}

fn nofile(readings: &Readings, needs: &Needs) -> Option<Finding> {
    let limit = readings.nofile?;
    let files = NOFILE_PER_SHARD.saturating_mul(needs.shards).min(needs.max_connections / 3 + 1);
    let wanted = needs.max_connections.saturating_add(files).saturating_add(NOFILE_RESERVE);
    if limit >= wanted {
        return None;
    }
    warning(
        format!(
            "open files are limited to {limit}, {} connections and the node's own files want {wanted}",
            needs.max_connections
        ),
        format!(
            "sudo prlimit --nofile={wanted}:{wanted} --pid $$, then start again from this shell \
             (systemd: LimitNOFILE={wanted})"
        ),
    )
}

fn hugepages(readings: &Readings, needs: &Needs) -> Option<Finding> {
    let mode = readings.transparent_hugepages.as_deref()?;
    if !needs.transparent_hugepages || mode != "never" {
        return None;
    }
    warning(
        "the kernel gives no transparent huge pages (they are set to never): the caches lie on ordinary ones"
            .into(),
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    )
}

fn memory(readings: &Readings, needs: &Needs) -> Option<Finding> {
    let available = readings.available_bytes?;
    if available >= needs.memory_bound_bytes {
        return None;
    }
    warning(
        format!(
            "{} of memory are available, the node may use {}",
            crate::units::bytes(available),
            crate::units::bytes(needs.memory_bound_bytes)
        ),
        "PYRALOG__STORAGE__CACHE_CONFIG__MAX_SIZE=128MiB pyralog (a smaller cache), or fewer shards",
    )
}

fn data_dir(readings: &Readings) -> Option<Finding> {
    if !readings.data_dir_in_memory {
        return None;
    }
    warning(
        "the data folder is on a file system in memory: nothing outlives a reboot".into(),
        "pyralog --data-dir /var/lib/pyralog (any folder on a disk)",
    )
}

/// `6.18.44-foo` → `(6, 18)`.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Reads this machine. `data_dir` need not exist yet: the nearest folder above it that does is asked.
pub(crate) fn read(data_dir: &Path) -> Readings {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Readings {
        kernel_release: read_trimmed("/proc/sys/kernel/osrelease").unwrap_or_default(),
        memlock_bytes: limit(libc::RLIMIT_MEMLOCK).map(|(soft, _)| soft),
        may_lock_any: has_cap_ipc_lock(),
        nofile: limit(libc::RLIMIT_NOFILE).map(|(soft, _)| soft),
        io_uring_disabled: read_trimmed("/proc/sys/kernel/io_uring_disabled")
            .and_then(|text| text.parse().ok()),
        io_uring_errno: probe_ring(),
        transparent_hugepages: selected("/sys/kernel/mm/transparent_hugepage/enabled"),
        available_bytes: meminfo_bytes(&meminfo, "MemAvailable"),
        data_dir_in_memory: lives_in_memory(data_dir),
    }
}

fn read_trimmed(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// `always [madvise] never` → `madvise`.
fn selected(path: &str) -> Option<String> {
    let text = read_trimmed(path)?;
    let word = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    word.map(str::to_owned)
}

fn meminfo_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// Soft and hard limit.
fn limit(resource: libc::__rlimit_resource_t) -> Option<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the call to fill.
    (unsafe { libc::getrlimit(resource, &mut limit) } == 0).then_some((limit.rlim_cur, limit.rlim_max))
}

/// Raises the soft limit of open files to the hard one. A refusal shows in the readings.
pub(crate) fn raise_nofile() {
    let Some((soft, hard)) = limit(libc::RLIMIT_NOFILE) else { return };
    if soft < hard {
        let raised = libc::rlimit { rlim_cur: hard, rlim_max: hard };
        // SAFETY: `raised` is a valid rlimit that the call only reads.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) };
    }
}

/// Sets up a ring with the flags of the shards' rings.
fn probe_ring() -> Option<i32> {
    let ring: io::Result<io_uring::IoUring> = io_uring::IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .build(8);
    ring.err().map(|error| error.raw_os_error().unwrap_or(libc::EIO))
}

/// Bit 14 of the effective capabilities.
fn has_cap_ipc_lock() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|bits| bits >> CAP_IPC_LOCK & 1 == 1)
}

fn lives_in_memory(folder: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
    let Some(existing) = absolute.ancestors().find(|path| path.exists()) else { return false };
    let Ok(path) = std::ffi::CString::new(existing.as_os_str().as_bytes()) else { return false };
    // SAFETY: all-zero is a valid statfs.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a NUL and `stat` is valid for the call to fill.
    let read = unsafe { libc::statfs(path.as_ptr(), &mut stat) } == 0;
    read && matches!(stat.f_type, libc::TMPFS_MAGIC | RAMFS_MAGIC)
}

/// From `linux/magic.h`; libc lacks it.
const RAMFS_MAGIC: libc::__fsword_t = 0x8584_58f6;

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn good() -> (Readings, Needs) {
        let readings = Readings {
            kernel_release: "6.18.44-generic".into(),
            memlock_bytes: Some(64 << 20),
            may_lock_any: false,
            nofile: Some(32_768),
            io_uring_disabled: Some(0),
            io_uring_errno: None,
            transparent_hugepages: Some("never".into()),
            available_bytes: Some(8 * GIB),
            data_dir_in_memory: false,
        };
        let needs = Needs {
            shards: 4,
            max_connections: 16_384,
            memlock_bytes: 32 << 20,
            transparent_hugepages: false,
            memory_bound_bytes: 4 * GIB,
        };
        (readings, needs)
    }

    /// The one finding that `change` brings about.
    fn one(change: impl FnOnce(&mut Readings, &mut Needs)) -> Finding {
        let (mut readings, mut needs) = good();
        change(&mut readings, &mut needs);
        let mut found = findings(&readings, &needs);
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    #[test]
    fn a_good_machine_has_no_findings() {
        let (readings, needs) = good();
        assert_eq!(findings(&readings, &needs), []);
    }

    #[test]
    fn what_cannot_be_read_is_not_held_against_the_machine() {
        let (_, needs) = good();
        assert_eq!(findings(&Readings::default(), &Needs { transparent_hugepages: true, ..needs }), []);
    }

    #[test]
    fn io_uring_names_the_switch_the_container_or_the_kernel() {
        let off = one(|readings, _| {
            readings.io_uring_errno = Some(libc::EPERM);
            readings.io_uring_disabled = Some(2);
        });
        assert_eq!(off.severity, Severity::Fatal);
        assert_eq!(off.remedy, "sudo sysctl -w kernel.io_uring_disabled=0");
        assert!(off.text.contains("= 2"), "{off}");

        let container = one(|readings, _| readings.io_uring_errno = Some(libc::EPERM));
        assert!(container.remedy.contains("seccomp=unconfined"), "{container}");

        let old = one(|readings, _| {
            readings.io_uring_errno = Some(libc::EINVAL);
            readings.kernel_release = "5.10.0-28-amd64".into();
        });
        assert!(old.text.contains("5.10.0-28-amd64") && old.text.contains("6.1"), "{old}");

        let odd = one(|readings, _| readings.io_uring_errno = Some(libc::EMFILE));
        assert!(odd.text.contains("open files"), "{odd}");
    }

    #[test]
    fn memlock_counts_what_the_shards_want() {
        let low = one(|readings, _| readings.memlock_bytes = Some(8 << 20));
        assert_eq!(low.severity, Severity::Warning);
        assert!(low.text.contains("8.0 MiB") && low.text.contains("4 shards want 32.0 MiB"), "{low}");
        assert!(low.remedy.starts_with("sudo prlimit --memlock=unlimited --pid $$"), "{low}");

        let (mut readings, needs) = good();
        readings.memlock_bytes = Some(0);
        readings.may_lock_any = true;
        assert_eq!(findings(&readings, &needs), []);
    }

    #[test]
    fn nofile_leaves_room_for_the_nodes_own_files() {
        let low = one(|readings, _| readings.nofile = Some(16_384));
        assert!(low.remedy.starts_with("sudo prlimit --nofile=22102:22102 --pid $$"), "{low}");
    }

    #[test]
    fn huge_pages_are_missed_only_when_asked_for() {
        let none = one(|_, needs| needs.transparent_hugepages = true);
        assert_eq!(none.remedy, "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled");
        let (mut readings, mut needs) = good();
        needs.transparent_hugepages = true;
        readings.transparent_hugepages = Some("madvise".into());
        assert_eq!(findings(&readings, &needs), []);
    }

    #[test]
    fn too_little_memory_and_a_data_folder_in_memory_are_told() {
        let short = one(|readings, _| readings.available_bytes = Some(GIB));
        assert!(short.text.contains("1.0 GiB") && short.text.contains("4.0 GiB"), "{short}");
        let ram = one(|readings, _| readings.data_dir_in_memory = true);
        assert!(ram.text.contains("reboot"), "{ram}");
    }

    #[test]
    fn the_fatal_one_comes_first() {
        let (mut readings, needs) = good();
        readings.nofile = Some(10);
        readings.io_uring_errno = Some(libc::ENOSYS);
        let found = findings(&readings, &needs);
        assert_eq!(
            found.iter().map(|finding| finding.severity).collect::<Vec<_>>(),
            [Severity::Fatal, Severity::Warning]
        );
    }

    #[test]
    fn this_machine_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let readings = read(&folder.path().join("not/there/yet"));
        assert!(kernel_version(&readings.kernel_release).is_some(), "{readings:?}");
        assert!(readings.nofile.is_some_and(|limit| limit > 0));
        assert!(readings.available_bytes.is_some_and(|bytes| bytes > 0));
        assert!(lives_in_memory(Path::new("/dev/shm/x")) || !Path::new("/dev/shm").exists());
    }
}
