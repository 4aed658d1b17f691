//! What a figure depends on besides the program: CPU, kernel, date, revision, pinning, descriptors.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use pyralog_tuning::{Machine, cpus};
use serde_json::{Value, json};

/// CPUs that this process may run on, in order.
pub fn allowed_cpus() -> Vec<usize> {
    cpus::allowed().unwrap_or_default()
}

/// Binds the calling thread (and the threads and processes that it starts later) to one CPU.
pub fn pin_to_cpu(cpu: usize) -> anyhow::Result<()> {
    anyhow::ensure!(
        allowed_cpus().contains(&cpu),
        "CPU {cpu} is not available to this process; choose one of {:?}",
        allowed_cpus()
    );
    // SAFETY: an all-zero cpu_set_t is a valid empty set; `cpu` is below CPU_SETSIZE as it was listed.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        set
    };
    // SAFETY: `set` is valid for the given size.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
    if result != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("can't bind to CPU {cpu}"));
    }
    Ok(())
}

/// Lets timed waits of the calling thread end on time: the default slack of 50 µs would be part of every
/// open-loop figure.
pub fn tighten_timer_slack() {
    // SAFETY: PR_SET_TIMERSLACK takes one integer and touches no memory of ours.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong, 0, 0, 0) };
}

/// Lets every other thread of this program go first on the calling thread's CPU. For those that only want to be fast: what
/// they take from the threads that measure must not be taken for the server's doing.
pub fn yield_to_others() {
    // SAFETY: the call takes no memory of ours; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

/// Raises the soft limit of open files to the hard one and returns it.
pub fn raise_nofile_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writes.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is valid for reads.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// Resident memory of a process, bytes.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/statm");
    let text = fs::read_to_string(&path).with_context(|| format!("{path}: is the process still there?"))?;
    let pages: u64 = text
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("{path}: not in the known format"))?;
    // SAFETY: sysconf has no preconditions.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Ok(pages * u64::try_from(page_bytes).unwrap_or(4096))
}

/// Open descriptors of a process.
pub fn open_descriptors(pid: u32) -> anyhow::Result<usize> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path).with_context(|| format!("{path}: can't be listed"))?.count())
}

/// The CPUs of several servers on this machine, in the order in which they get them: as `cluster start-local` does it.
pub fn node_cpus(dir: &Path) -> Vec<usize> {
    cpus::for_nodes(dir).unwrap_or_default()
}

/// The CPU of a server that is alone: the one that takes the disk's interrupts, so that what the disk has done wakes nobody
/// on another CPU. `None` where there is but one CPU.
pub fn server_cpu(dir: &Path) -> Option<usize> {
    let cpus = allowed_cpus();
    let interrupted = Machine::this().disk_interrupt_cpus(dir);
    let alone = cpus.iter().rfind(|cpu| interrupted.contains(cpu)).or(cpus.last());
    alone.filter(|_| cpus.len() > 1).copied()
}

/// The first CPU besides the server's: for load that must not share one, since both spin.
pub fn other_cpu(server: usize) -> Option<usize> {
    allowed_cpus().into_iter().find(|cpu| *cpu != server)
}

/// Kernel, CPU, number of CPUs, time and revision, as they go above every table.
pub struct HostFacts {
    /// `uname -sr`.
    pub kernel: String,
    /// Model of the first CPU.
    pub cpu_model: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// How the first CPU's clock is governed, such as `performance`; empty where nothing governs it, as in most
    /// virtual machines.
    pub governor: String,
    /// How long a CPU of this virtual machine looks for work before it halts, ns. What a wake-up costs hangs on it. `None`
    /// where there is no such thing.
    pub halt_poll_ns: Option<u64>,
    /// Memory of the machine, bytes.
    pub memory_bytes: u64,
    /// Date and time in UTC, ISO 8601.
    pub date_utc: String,
    /// Commit of the checkout that this program lies in, or was started in, with `-dirty` when there are changes; empty
    /// outside of one.
    pub git_revision: String,
}

impl HostFacts {
    /// Looks around.
    pub fn collect() -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpu_model = fs::read_to_string("/proc/cpuinfo")
            .unwrap_or_default()
            .lines()
            .find_map(|line| {
                line.strip_prefix("model name")?.split_once(':').map(|pair| pair.1.trim().to_owned())
            })
            .unwrap_or_else(|| "unknown CPU".to_owned());
        // The program's own checkout if it still lies in one, and else the one that it was started in.
        let own = std::env::current_exe().ok().and_then(|program| program.parent().map(Path::to_owned));
        let git_revision = own
            .and_then(|dir| git_revision(&dir))
            .or_else(|| git_revision(Path::new(".")))
            .unwrap_or_default();
        Self {
            kernel: format!("Linux {}", release.trim()),
            cpu_model,
            cpus: allowed_cpus().len(),
            governor: fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            halt_poll_ns: Machine::this().halt_poll_ns(),
            memory_bytes: memory_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
            date_utc: iso_utc(
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            ),
            git_revision,
        }
    }

    /// For a program.
    pub fn to_json(&self) -> Value {
        json!({
            "kernel": self.kernel, "cpu_model": self.cpu_model, "cpus": self.cpus, "governor": self.governor,
            "halt_poll_ns": self.halt_poll_ns,
            "memory_bytes": self.memory_bytes, "date_utc": self.date_utc, "git_revision": self.git_revision,
        })
    }
}

fn git_revision(dir: &Path) -> Option<String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(dir).args(["describe", "--always", "--dirty", "--abbrev=12"]);
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The machine's memory by `/proc/meminfo`, bytes.
fn memory_bytes(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

impl std::fmt::Display for HostFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} · {} × {}{} · {} · revision {}",
            self.kernel,
            self.cpus,
            self.cpu_model,
            self.halt_poll_ns.map_or_else(String::new, |ns| format!(" · halt polling {} µs", ns / 1000)),
            self.date_utc,
            if self.git_revision.is_empty() { "unknown" } else { &self.git_revision }
        )
    }
}

/// Seconds since the epoch as `YYYY-MM-DDTHH:MM:SSZ` (proleptic Gregorian calendar).
fn iso_utc(seconds: u64) -> String {
    let (days, in_day) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970;
    let mut left = days;
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while left >= 365 + u64::from(is_leap(year)) {
        left -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    format!(
        "{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z",
        left + 1,
        in_day / 3600,
        in_day / 60 % 60,
        in_day % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_come_out_right() {
        assert_eq!(iso_utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(iso_utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(iso_utc(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(iso_utc(1_735_689_600), "2025-01-01T00:00:00Z");
    }

    #[test]
    fn the_memory_is_the_total() {
        assert_eq!(memory_bytes("MemTotal:        3906252 kB\nMemFree: 1 kB\n"), 3_906_252 * 1024);
        assert_eq!(memory_bytes(""), 0);
        assert!(HostFacts::collect().memory_bytes > 0);
    }

    #[test]
    fn own_process_has_memory_and_descriptors() {
        let pid = std::process::id();
        assert!(resident_bytes(pid).unwrap() > 100_000);
        let before = open_descriptors(pid).unwrap();
        assert!(before >= 3);
        assert!(resident_bytes(0).is_err());
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused() {
        let error = pin_to_cpu(100_000).unwrap_err().to_string();
        assert!(error.contains("choose one of"), "{error}");
    }
}
