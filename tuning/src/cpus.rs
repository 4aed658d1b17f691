//! CPUs: which there are, and which of several nodes on one machine gets which.

use std::io;
use std::path::Path;

use crate::Machine;

/// CPUs that the calling thread may use, ascending.
///
/// # Errors
/// When the kernel does not tell.
pub fn allowed() -> io::Result<Vec<usize>> {
    // SAFETY: an all-zero cpu_set_t is a valid empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the given size into `set`; 0 is the calling thread.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let most = libc::CPU_SETSIZE as usize;
    // SAFETY: every index is below CPU_SETSIZE.
    let cpus: Vec<usize> = (0..most).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect();
    if cpus.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(cpus) }
}

/// The allowed CPUs in the order in which nodes on this machine, with their data under `dir`, are to get them.
///
/// # Errors
/// See [`allowed`].
pub fn for_nodes(dir: &Path) -> io::Result<Vec<usize>> {
    Ok(interrupted_last(allowed()?, &Machine::this().disk_interrupt_cpus(dir)))
}

/// The CPU of the node with this number, from 1, when nodes get them in turns.
pub fn of_node(number: u32, in_order: &[usize]) -> Option<usize> {
    in_order.get(number.checked_sub(1)? as usize % in_order.len().max(1)).copied()
}

/// With more nodes than CPUs some CPU gets more of them. It must not be one that has the disk's interrupts, flushes and
/// completions to do besides: docs/decisions/0013-nodes-and-the-disks-interrupts.md has what that costs.
fn interrupted_last(mut cpus: Vec<usize>, interrupted: &[usize]) -> Vec<usize> {
    cpus.sort_by_key(|cpu| interrupted.contains(cpu));
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_with_the_disks_interrupts_comes_last_and_so_gets_the_fewest_nodes() {
        assert_eq!(interrupted_last(vec![0, 1], &[0]), [1, 0]);
        assert_eq!(interrupted_last(vec![0, 1, 2, 3], &[1, 2]), [0, 3, 1, 2]);
        assert_eq!(interrupted_last(vec![2, 5], &[]), [2, 5]);
        assert_eq!(interrupted_last(vec![2, 5], &[2, 5]), [2, 5]);
        let nodes: Vec<_> = (1..=3).map(|number| of_node(number, &[0, 1])).collect();
        assert_eq!(nodes, [Some(0), Some(1), Some(0)]);
        assert_eq!((of_node(1, &[]), of_node(0, &[3])), (None, None));
    }

    #[test]
    fn this_thread_may_use_a_cpu() {
        let cpus = allowed().unwrap();
        assert!(!cpus.is_empty() && cpus.is_sorted());
        let mut ordered = for_nodes(Path::new(".")).unwrap();
        ordered.sort_unstable();
        assert_eq!(ordered, cpus);
    }
}
