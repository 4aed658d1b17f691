//! Threads beside a shard's own: for calls that block. A thread inherits the CPUs of the one that starts it, and a
//! shard is pinned to its core; its helpers must not run there, in front of it and of the kernel's workers that end its
//! writes.

use std::io;
use std::mem::{size_of, zeroed};
use std::sync::OnceLock;
use std::thread::JoinHandle;

/// The CPUs for all but the shards.
static CPUS: OnceLock<libc::cpu_set_t> = OnceLock::new();

/// Notes the CPUs for [`spawn`]: those that the calling thread may use but for `pinned`, to which shards will be pinned; with
/// those when there are no others. To be called before any shard pins itself.
pub(super) fn remember_cpus(pinned: impl IntoIterator<Item = usize>) {
    // SAFETY: a set of CPUs is plain integers, for which zero is a value.
    let mut all: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: the set is ours and of the size that is told.
    let got = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut all) };
    if got == 0 {
        CPUS.get_or_init(|| without(all, pinned));
    }
}

fn without(all: libc::cpu_set_t, pinned: impl IntoIterator<Item = usize>) -> libc::cpu_set_t {
    let mut others = all;
    for cpu in pinned.into_iter().filter(|cpu| *cpu < libc::CPU_SETSIZE as usize) {
        // SAFETY: the set is ours, and the CPU within its size.
        unsafe { libc::CPU_CLR(cpu, &mut others) };
    }
    // SAFETY: reads what is ours.
    if unsafe { libc::CPU_COUNT(&others) } == 0 { all } else { others }
}

/// The CPUs for all but the shards, once they are known.
pub(super) fn cpus() -> Option<&'static libc::cpu_set_t> {
    CPUS.get()
}

/// Starts a thread beside the shards: on CPUs that no shard is pinned to, if there are any.
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

/// Starts a thread as [`spawn`] does, of the kernel's policy SCHED_IDLE: it runs where a CPU has nothing else to do, and makes
/// room at once for whatever wakes up. On a machine without idle time it may stand still for seconds, so nothing may
/// wait for it, nor for a lock that it takes.
pub(super) fn spawn_idle<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    spawn(name, move || {
        // SAFETY: plain integers, for which zero is a value; SCHED_IDLE wants the priority 0.
        let priority: libc::sched_param = unsafe { zeroed() };
        // SAFETY: the call reads only what is ours. A refusal leaves the thread as it is, which is slower and not wrong.
        unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const priority) };
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
        remember_cpus([]);
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

    #[test]
    fn helpers_keep_off_the_shards_cpus_when_there_are_others() {
        let set = |cpus: &[usize]| {
            // SAFETY: a set of CPUs is plain integers, for which zero is a value; the CPUs are within its size.
            unsafe {
                let mut set: libc::cpu_set_t = zeroed();
                cpus.iter().for_each(|cpu| libc::CPU_SET(*cpu, &mut set));
                set
            }
        };
        let list = |of: libc::cpu_set_t| {
            // SAFETY: the CPUs are within the set's size.
            (0..64).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &of) }).collect::<Vec<_>>()
        };
        assert_eq!(list(without(set(&[0, 1, 5]), [1])), [0, 5]);
        assert_eq!(list(without(set(&[0, 1]), [0, 1])), [0, 1], "all are taken: anywhere");
        assert_eq!(list(without(set(&[0, 1]), [])), [0, 1]);
        assert_eq!(list(without(set(&[0, 1]), [7, 1_000_000])), [0, 1], "CPUs that are not there");
    }

    #[test]
    fn an_idle_thread_gives_way_to_all_others() {
        // SAFETY: the call has no memory of ours.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        assert_eq!(spawn_idle("idle", policy).unwrap().join().unwrap(), libc::SCHED_IDLE);
        assert_eq!(spawn("beside", policy).unwrap().join().unwrap(), policy(), "others stay as they are");
    }
}
