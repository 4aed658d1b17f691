//! Threads beside a shard's own: for calls that block. A thread inherits the CPUs of the one that starts it, and a
//! shard is pinned to its core; its helpers must not run there, in front of it.

use std::io;
use std::mem::{size_of, zeroed};
use std::sync::OnceLock;
use std::thread::JoinHandle;

/// The CPUs that the process may use.
static CPUS: OnceLock<libc::cpu_set_t> = OnceLock::new();

/// Notes the CPUs of the calling thread for [`spawn`]. To be called before any shard pins itself.
pub(super) fn remember_cpus() {
    // SAFETY: a set of CPUs is plain integers, for which zero is a value.
    let mut cpus: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: the set is ours and of the size that is told.
    let got = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut cpus) };
    if got == 0 {
        CPUS.get_or_init(|| cpus);
    }
}

/// Starts a thread that may run on any CPU of the process.
pub(super) fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        if let Some(cpus) = CPUS.get() {
            // SAFETY: the set lives for ever and is of the size that is told. A refusal leaves the thread where it is,
            // which is slower and not wrong.
            unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), cpus) };
        }
        body()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        status.lines().find(|line| line.starts_with("Cpus_allowed_list")).unwrap().to_owned()
    }

    #[test]
    fn a_thread_of_a_pinned_one_may_run_everywhere() {
        remember_cpus();
        let everywhere = allowed();
        let pinned = std::thread::spawn(move || {
            // SAFETY: a set of CPUs is plain integers; the calls read and write only it.
            unsafe {
                let mut one: libc::cpu_set_t = zeroed();
                libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut one);
                let first = (0..libc::CPU_SETSIZE as usize).find(|cpu| libc::CPU_ISSET(*cpu, &one)).unwrap();
                libc::CPU_ZERO(&mut one);
                libc::CPU_SET(first, &mut one);
                assert_eq!(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const one), 0);
            }
            (allowed(), spawn("beside", allowed).unwrap().join().unwrap())
        });
        let (pinned, beside) = pinned.join().unwrap();
        assert!(!pinned.contains(['-', ',']), "{pinned}");
        assert_eq!(beside, everywhere);
    }
}
