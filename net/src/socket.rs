//! Setting up listening and connected sockets.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Connections that the kernel queues per listener until they are accepted; cut to `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// A client port that several shards listen on at once. While it lives, further listeners can be made.
#[derive(Debug)]
pub struct SharedPort {
    address: SocketAddr,
    first: Option<TcpListener>,
}

impl SharedPort {
    /// Takes the port: refused with [`io::ErrorKind::AddrInUse`] when anybody listens on it, even another process
    /// that would share it (SO_REUSEPORT would let a second node of the same user bind it silently).
    /// Port 0 takes a free one.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        // For port 0 the kernel itself picks one that nobody shares. The probe must be gone before the first
        // shared listener: the two kinds exclude one another.
        if address.port() != 0 {
            bound_socket(address, false)?.listen(1)?;
        }
        let first = shared_listener(address)?;
        Ok(Self { address: first.local_addr()?, first: Some(first) })
    }

    /// The address with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A listener of its own for one shard: non-blocking, and the kernel spreads new connections over all of them.
    pub fn listener(&mut self) -> io::Result<TcpListener> {
        match self.first.take() {
            Some(first) => Ok(first),
            None => shared_listener(self.address),
        }
    }
}

fn shared_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bound_socket(address, true)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn bound_socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier life in TIME_WAIT must not keep a restarted node from its port.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Prepares a connection for requests and replies of a few hundred bytes: no delay for coalescing.
pub fn set_up_connection(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_tcp_nodelay(true)
}

/// Lets the kernel poll the network device for up to `microseconds` when the socket is read and empty
/// (SO_BUSY_POLL). Needs CAP_NET_ADMIN to raise it; the error says so and may be ignored.
pub fn set_busy_poll(socket: &impl AsFd, microseconds: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(microseconds).unwrap_or(libc::c_int::MAX);
    // SAFETY: the descriptor is borrowed for the call and open; the option's value is a live `c_int` whose size is
    // passed with it, and the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BUSY_POLL,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads what is there without waiting, whatever mode the socket is in; [`io::ErrorKind::WouldBlock`] when there is
/// nothing, 0 when the other side has closed.
pub fn receive_now(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the descriptor is borrowed for the call and open; the kernel writes at most `len` bytes into a live
    // and exclusively borrowed buffer of that length.
    let count = unsafe {
        let fd = socket.as_fd().as_raw_fd();
        libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
    };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Writes as much as there is room for without waiting, whatever mode the socket is in;
/// [`io::ErrorKind::WouldBlock`] when there is none.
pub fn send_now(socket: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the descriptor is borrowed for the call and open; the kernel reads at most `len` bytes of a live slice.
    let count = unsafe {
        let fd = socket.as_fd().as_raw_fd();
        libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// What [`wait_ready`] watches one descriptor for.
pub fn interest(socket: &impl AsFd, also_room: bool) -> libc::pollfd {
    let room = if also_room { libc::POLLOUT } else { 0 };
    libc::pollfd { fd: socket.as_fd().as_raw_fd(), events: libc::POLLIN | room, revents: 0 }
}

/// Waits until one of the descriptors can be read (or written, where that is asked for) or `timeout` is over. Whole
/// milliseconds, rounded up; a signal ends the wait early.
pub fn wait_ready(watched: &mut [libc::pollfd], timeout: Duration) -> io::Result<()> {
    let milliseconds = timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as libc::c_int;
    // SAFETY: the pointer and the length are those of one live, exclusively borrowed slice; descriptors that are not
    // open are reported in `revents`.
    let result = unsafe { libc::poll(watched.as_mut_ptr(), watched.len() as libc::nfds_t, milliseconds) };
    match result {
        0.. => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    fn any_port() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 0).into()
    }

    #[test]
    fn many_listeners_share_a_port_but_a_second_owner_is_refused() {
        let mut port = SharedPort::open(any_port()).unwrap();
        let listeners: Vec<_> = (0..3).map(|_| port.listener().unwrap()).collect();
        assert!(listeners.iter().all(|listener| listener.local_addr().unwrap() == port.address()));
        let second = SharedPort::open(port.address()).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        drop(listeners);
        SharedPort::open(port.address()).unwrap();
    }

    #[test]
    fn a_restarted_node_gets_its_port_back_while_old_connections_linger() {
        let mut port = SharedPort::open(any_port()).unwrap();
        let address = port.address();
        let listener = port.listener().unwrap();
        listener.set_nonblocking(false).unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        set_up_connection(&server).unwrap();
        assert!(SockRef::from(&server).tcp_nodelay().unwrap());
        server.write_all(b"x").unwrap();
        // The server closes first: its side keeps the port in TIME_WAIT.
        drop((server, listener, port));
        let mut read = Vec::new();
        client.read_to_end(&mut read).unwrap();
        drop(client);
        assert_eq!(SharedPort::open(address).unwrap().address(), address);
    }

    #[test]
    fn what_is_not_there_is_not_waited_for() {
        let listener = TcpListener::bind(any_port()).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let mut buffer = [0; 16];
        assert_eq!(receive_now(&client, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(send_now(&server, b"now").unwrap(), 3);
        let mut watched = [interest(&client, false)];
        wait_ready(&mut watched, Duration::from_secs(30)).unwrap();
        assert_eq!(watched[0].revents, libc::POLLIN);
        assert_eq!(receive_now(&client, &mut buffer).unwrap(), 3);
        // Nobody reads: the room ends, and no call waits for it.
        let full = loop {
            match send_now(&server, &[0; 1 << 16]) {
                Ok(count) => assert!(count > 0),
                Err(error) => break error.kind(),
            }
        };
        assert_eq!(full, io::ErrorKind::WouldBlock);
        drop(server);
        wait_ready(&mut watched, Duration::from_secs(30)).unwrap();
        while receive_now(&client, &mut buffer).unwrap() > 0 {}
    }
}
