//! Waiting for the port of an earlier life.
//!
//! The kernel takes the rings of a killed process apart in the background, and the listeners that their accepts
//! refer to live until then: tens of milliseconds in which its successor would be told that the port is in use.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pyralog_net::socket::SharedPort;

/// Longest wait. Another node that really runs there is told after it.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// Returns when the port is free, or its owner has not gone away in a second: the node says then what is wrong.
pub(crate) fn wait_until_free(address: SocketAddr) {
    let end = Instant::now() + PATIENCE;
    while address.port() != 0
        && matches!(SharedPort::open(address), Err(error) if error.kind() == io::ErrorKind::AddrInUse)
        && Instant::now() < end
    {
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_port_that_is_being_given_up_is_waited_for() {
        let old = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = old.local_addr().unwrap();
        assert!(SharedPort::open(address).is_err());
        let waiting = std::thread::spawn(move || wait_until_free(address));
        drop(old);
        waiting.join().unwrap();
        SharedPort::open(address).unwrap();
    }
}
