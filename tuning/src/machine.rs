//! The machine by what its kernel tells in `/proc` and `/sys`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pyralog_core::config::parse_cpus;

/// A machine, read through the files of its kernel. What can't be read is not known, and never an error.
#[derive(Clone, Debug)]
pub struct Machine {
    root: PathBuf,
}

impl Machine {
    /// The one that this program runs on.
    pub fn this() -> Self {
        Self::at("/")
    }

    /// The one whose `proc` and `sys` lie below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The CPUs that take the interrupts of the disk under `dir`, ascending; empty when the kernel does not tell.
    pub fn disk_interrupt_cpus(&self, dir: &Path) -> Vec<usize> {
        let Ok(metadata) = fs::metadata(dir) else { return Vec::new() };
        let dev = metadata.dev();
        self.interrupt_cpus(libc::major(dev), libc::minor(dev))
    }

    /// How long a CPU of this virtual machine looks for work before it halts, ns: what a wake-up then costs less. `None`
    /// where no such polling is built in or in use, as on bare metal.
    pub fn halt_poll_ns(&self) -> Option<u64> {
        let governor = self.read("sys/devices/system/cpu/cpuidle/current_governor")?;
        let polled = self.read("sys/module/haltpoll/parameters/guest_halt_poll_ns")?;
        (governor.trim() == "haltpoll").then(|| polled.trim().parse().ok())?
    }

    fn interrupt_cpus(&self, major: u32, minor: u32) -> Vec<usize> {
        let device = fs::canonicalize(self.root.join(format!("sys/dev/block/{major}:{minor}")));
        let Ok(device) = device else { return Vec::new() };
        // .../0000:00:02.0/virtio1/block/vda[/vda1] or .../nvme/nvme0/nvme0n1: what names the interrupt.
        let name = device.components().filter_map(|part| part.as_os_str().to_str()).find(|part| {
            let number = part.strip_prefix("virtio").or_else(|| part.strip_prefix("nvme"));
            number.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
        });
        let Some(name) = name else { return Vec::new() };
        let interrupts = self.read("proc/interrupts").unwrap_or_default();
        let mut cpus: Vec<usize> = interrupts
            .lines()
            .filter(|line| line.split_whitespace().last().is_some_and(|last| is_queue_of(name, last)))
            .filter_map(|line| line.trim_start().split_once(':')?.0.parse::<u32>().ok())
            .filter_map(|number| {
                parse_cpus(self.read(&format!("proc/irq/{number}/effective_affinity_list"))?.trim())
            })
            .flatten()
            .collect();
        cpus.sort_unstable();
        cpus.dedup();
        cpus
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }
}

/// `virtio1-req.0` is a queue of `virtio1`, `nvme0q3` one of `nvme0`; `nvme0q0` takes commands, no data.
fn is_queue_of(device: &str, interrupt: &str) -> bool {
    let Some(rest) = interrupt.strip_prefix(device) else { return false };
    rest.starts_with("-req") || rest.strip_prefix('q').is_some_and(|queue| queue != "0")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn with(self, path: &str, text: &str) -> Self {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            self
        }

        fn disk(self, number: &str, device: &str) -> Self {
            let device = self.0.path().join("sys/devices").join(device);
            let blocks = self.0.path().join("sys/dev/block");
            fs::create_dir_all(&device).unwrap();
            fs::create_dir_all(&blocks).unwrap();
            symlink(device, blocks.join(number)).unwrap();
            self
        }

        fn machine(&self) -> Machine {
            Machine::at(self.0.path())
        }
    }

    #[test]
    fn a_virtual_disks_interrupts_are_those_of_its_own_queues() {
        let files = Files::new()
            .disk("254:0", "pci0000:00/0000:00:02.0/virtio1/block/vda")
            .with(
                "proc/interrupts",
                "           CPU0       CPU1\n 35:  0  1  PCI-MSIX  0-edge  virtio1-config\n 36:  0  9  PCI-MSIX  1-edge  virtio1-req.0\n \
                 37:  0  9  PCI-MSIX  1-edge  virtio10-req.0\n 38:  4  0  PCI-MSIX  1-edge  virtio2-input.0\n",
            )
            .with("proc/irq/35/effective_affinity_list", "0\n")
            .with("proc/irq/36/effective_affinity_list", "1\n")
            .with("proc/irq/37/effective_affinity_list", "0\n");
        assert_eq!(files.machine().interrupt_cpus(254, 0), [1]);
        assert_eq!(files.machine().interrupt_cpus(254, 1), [0; 0]);
    }

    #[test]
    fn a_disk_with_a_queue_for_each_cpu_names_all_of_them() {
        let files = Files::new()
            .disk("259:1", "pci0000:00/0000:01:00.0/nvme/nvme0/nvme0n1/nvme0n1p1")
            .with(
                "proc/interrupts",
                " 60:  1  0  0  IR-PCI-MSIX  0-edge  nvme0q0\n 61:  1  0  0  IR-PCI-MSIX  1-edge  nvme0q1\n \
                 62:  1  0  0  IR-PCI-MSIX  2-edge  nvme0q2\n",
            )
            .with("proc/irq/60/effective_affinity_list", "7\n")
            .with("proc/irq/61/effective_affinity_list", "0\n")
            .with("proc/irq/62/effective_affinity_list", "2-3\n");
        assert_eq!(files.machine().interrupt_cpus(259, 1), [0, 2, 3]);
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_not_known() {
        let files = Files::new();
        assert!(files.machine().disk_interrupt_cpus(Path::new("/")).is_empty());
        assert!(Machine::this().disk_interrupt_cpus(Path::new("/no/such/folder")).is_empty());
        assert_eq!(files.machine().halt_poll_ns(), None);
        let governor = "sys/devices/system/cpu/cpuidle/current_governor";
        let files = files.with("sys/module/haltpoll/parameters/guest_halt_poll_ns", "200000\n");
        let files = files.with(governor, "menu\n");
        assert_eq!(files.machine().halt_poll_ns(), None);
        assert_eq!(files.with(governor, "haltpoll\n").machine().halt_poll_ns(), Some(200_000));
    }
}
