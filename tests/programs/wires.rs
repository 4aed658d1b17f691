//! A small network of one's own: a bridge, and at each of its ports a network namespace with one node, or the client. All of
//! it exists only as long as something refers to it: the kernel takes it down when the test ends, however it ends.
//!
//! Unlike the proxy's, its faults are those of real wires: nobody is told that a packet was lost, TCP sends it again.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::common::skipped;
use crate::harness::Cluster;

/// The card of every namespace, as that namespace calls it.
const CARD: &str = "eth0";
/// No card has this address: what is sent there is lost without a word.
const NOBODY: &str = "02:00:00:00:00:99";
/// The client's port.
const CLIENT: u16 = 99;

/// The namespaces and the bridge between them.
pub(crate) struct Wires {
    hub: File,
    client: File,
    /// Of the nodes from 1 on.
    nodes: Vec<File>,
}

impl Wires {
    /// A network for so many nodes.
    ///
    /// # Errors
    /// Why there can't be one here.
    fn new(nodes: u16) -> Result<Self, String> {
        let make = || namespace().map_err(|error| format!("no network namespace can be made: {error}"));
        let (hub, client) = (make()?, make()?);
        let nodes = (0..nodes).map(|_| make()).collect::<Result<_, _>>()?;
        let wires = Self { hub, client, nodes };
        ip(&wires.hub, "link add bridge type bridge")?;
        ip(&wires.hub, "link set bridge up")?;
        wires.plug_in(&wires.client, CLIENT)?;
        for (namespace, id) in wires.nodes.iter().zip(1..) {
            wires.plug_in(namespace, id)?;
        }
        Ok(wires)
    }

    fn plug_in(&self, namespace: &File, id: u16) -> Result<(), String> {
        let there = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        ip(&self.hub, &format!("link add port{id} type veth peer name {CARD} netns {there}"))?;
        ip(&self.hub, &format!("link set port{id} master bridge up"))?;
        ip(namespace, &format!("addr add {}/24 dev {CARD}", Self::host(id)))?;
        ip(namespace, &format!("link set {CARD} up"))?;
        ip(namespace, "link set lo up")
    }

    /// Where a node is; the addresses exist only in here.
    pub(crate) fn host(id: u16) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, id as u8)
    }

    /// Has a program run where a node is.
    pub(crate) fn move_to(&self, id: u16, command: &mut Command) {
        move_to(self.at(id), command);
    }

    /// Does something where a node is.
    pub(crate) fn beside<T: Send>(&self, id: u16, act: impl FnOnce() -> T + Send) -> T {
        within(self.at(id), act)
    }

    fn at(&self, id: u16) -> &File {
        &self.nodes[usize::from(id) - 1]
    }

    /// Pulls a node's plug, or puts it in again.
    pub(crate) fn plug(&self, id: u16, is_in: bool) {
        self.change(&self.hub, &format!("link set port{id} {}", up_or_down(is_in)));
    }

    /// Takes the whole network down, or up again.
    pub(crate) fn power(&self, on: bool) {
        self.change(&self.hub, &format!("link set bridge {}", up_or_down(on)));
    }

    /// Nothing that `from` sends reaches `to` any more.
    pub(crate) fn lose(&self, from: u16, to: u16) {
        let way = format!("neigh replace {} lladdr {NOBODY} nud permanent dev {CARD}", Self::host(to));
        self.change(self.at(from), &way);
    }

    /// What is sent arrives again, everywhere.
    pub(crate) fn find(&self) {
        for namespace in &self.nodes {
            self.change(namespace, &format!("neigh flush nud permanent dev {CARD}"));
        }
    }

    fn change(&self, at: &File, arguments: &str) {
        ip(at, arguments).unwrap_or_else(|why| panic!("{why}"));
    }
}

/// Runs a test with a cluster of three on such a network, as seen from its client; where there can't be one, says so and
/// skips the test.
pub(crate) fn on_wires(test: impl FnOnce(&mut Cluster) + Send) {
    match Wires::new(3) {
        Err(why) => skipped(&why),
        Ok(wires) => {
            let client = wires.client.try_clone().unwrap();
            within(&client, || test(&mut Cluster::on(wires)));
        }
    }
}

fn up_or_down(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

/// A new namespace, in which nobody is.
fn namespace() -> io::Result<File> {
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            // SAFETY: it changes the namespace of this thread only, which does nothing else.
            match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
                0 => File::open("/proc/thread-self/ns/net"),
                _ => Err(io::Error::last_os_error()),
            }
        });
        made.join().unwrap()
    })
}

/// Does something on a thread that is in the namespace; so is all that it starts.
fn within<T: Send>(namespace: &File, act: impl FnOnce() -> T + Send) -> T {
    let inside = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            enter(namespace.as_raw_fd()).unwrap();
            act()
        });
        inside.join()
    });
    inside.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn enter(namespace: i32) -> io::Result<()> {
    // SAFETY: it changes the namespace of this thread only.
    match unsafe { libc::setns(namespace, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn move_to(namespace: &File, command: &mut Command) {
    let namespace = namespace.as_raw_fd();
    // SAFETY: one system call, between fork and exec, on a descriptor that stays open until then.
    unsafe { command.pre_exec(move || enter(namespace)) };
}

fn ip(namespace: &File, arguments: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    move_to(namespace, command.args(arguments.split(' ')));
    let output = command.output().map_err(|error| format!("`ip` of iproute2 can't be run: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
