//! Answers the door while a shard reads its disk and has no time: whoever speaks HTTP is brought to the control thread,
//! so that `/health` and `/status` tell how far the replay is; everybody else is asked to wait and comes to the shard when
//! it serves. Nothing is read from a socket here, its first bytes are only looked at.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread::JoinHandle;

use pyralog_net::{Protocol, sniff};

use super::accept::accept;
use super::node::ControlEvent;
use super::threads;

/// Sockets that wait for the shard at once; the others wait in the kernel's queue.
const MAX_WAITING: usize = 1_024;
/// Pause after a connection that could not be accepted, milliseconds.
const ACCEPT_PAUSE_MS: i32 = 100;
/// Pause between looks at those who have said too little to tell what they speak, milliseconds: their sockets are
/// readable all the time.
const LOOK_AGAIN_MS: i32 = 10;
/// Bytes of a method with its space: what it takes to know HTTP.
const LOOK_BYTES: usize = 8;

/// The thread at the door of one shard.
pub(super) struct Doorman {
    /// Its writing end; the thread ends when it is dropped.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<Vec<OwnedFd>>>,
}

/// Somebody who came.
struct Guest {
    socket: OwnedFd,
    said: Said,
}

/// What a guest has said so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    Nothing,
    /// What may become an HTTP method.
    TooLittle,
    /// Something else: it is for the shard.
    NoHttp,
}

impl Doorman {
    /// Opens the door at `listener`, which the shard keeps too.
    pub(super) fn start(listener: &TcpListener, control: flume::Sender<ControlEvent>) -> io::Result<Self> {
        let listener = listener.try_clone()?;
        let (stopped, stop) = pipe()?;
        let thread = threads::spawn("pyra-door", move || attend(&listener, &stopped, &control))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// Closes the door. Whoever waits for the shard, in the order in which they came.
    pub(super) fn end(mut self) -> Vec<OwnedFd> {
        self.stop = None;
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Doorman {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn attend(listener: &TcpListener, stopped: &OwnedFd, control: &flume::Sender<ControlEvent>) -> Vec<OwnedFd> {
    let mut guests: Vec<Guest> = Vec::new();
    let mut polled = Vec::new();
    // No descriptor was left for the last one who knocked: the next try is after a while.
    let mut pause = false;
    loop {
        let wanted = |fd: RawFd, listens: bool| libc::pollfd {
            fd: if listens { fd } else { -1 },
            events: libc::POLLIN,
            revents: 0,
        };
        polled.clear();
        polled.push(wanted(stopped.as_raw_fd(), true));
        polled.push(wanted(listener.as_raw_fd(), !pause && guests.len() < MAX_WAITING));
        polled
            .extend(guests.iter().map(|guest| wanted(guest.socket.as_raw_fd(), guest.said == Said::Nothing)));
        let look_again = guests.iter().any(|guest| guest.said == Said::TooLittle);
        let timeout_ms = match (look_again, pause) {
            (true, _) => LOOK_AGAIN_MS,
            (false, true) => ACCEPT_PAUSE_MS,
            (false, false) => -1,
        };
        // SAFETY: the entries are ours, as many as told.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout_ms) };
        pause = false;
        if ready < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            continue;
        }
        if ready < 0 || polled.first().is_none_or(|stop| stop.revents != 0) {
            return guests.into_iter().map(|guest| guest.socket).collect();
        }
        let spoke: Vec<bool> = polled.iter().skip(2).map(|entry| entry.revents != 0).collect();
        let mut at = 0;
        guests.retain_mut(|guest| {
            let spoke = spoke.get(at).copied().unwrap_or(false) || guest.said == Said::TooLittle;
            at += 1;
            !spoke || stays(guest, control)
        });
        if polled.get(1).is_some_and(|listener| listener.revents != 0) {
            match accept(listener) {
                Ok(socket) => guests.push(Guest { socket, said: Said::Nothing }),
                Err(error) => pause = error.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }
}

/// Looks at what a guest has said; whether it stays at the door.
fn stays(guest: &mut Guest, control: &flume::Sender<ControlEvent>) -> bool {
    let mut first = [0_u8; LOOK_BYTES];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: receives into a live buffer of the length told.
    let seen = unsafe { libc::recv(guest.socket.as_raw_fd(), first.as_mut_ptr().cast(), first.len(), flags) };
    let seen = usize::try_from(seen).unwrap_or(0);
    match sniff(first.get(..seen).unwrap_or_default()) {
        Protocol::Http => {
            if let Ok(socket) = guest.socket.try_clone() {
                let stream = TcpStream::from(socket);
                let _ = control.send(ControlEvent::HttpSocket { stream, prefix: Vec::new() });
            }
            false
        }
        Protocol::NeedMore if seen > 0 => {
            guest.said = Said::TooLittle;
            true
        }
        // Gone, or no HTTP: the shard finds out which.
        _ => {
            guest.said = Said::NoHttp;
            true
        }
    }
}

/// A pipe: what is read from, and what is written to.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: fills two descriptors into a live array.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were just made and are owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_request_that_comes_in_pieces_is_brought_too() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (control, events) = flume::unbounded();
        let doorman = Doorman::start(&listener, control).unwrap();
        let mut slow = TcpStream::connect(address).unwrap();
        slow.write_all(b"GE").unwrap();
        // Who comes later and is served first shows that the doorman has looked at the first one.
        for _ in 0..2 {
            let mut quick = TcpStream::connect(address).unwrap();
            quick.write_all(b"GET / HTTP/1.1\r\n").unwrap();
            events.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
        }
        slow.write_all(b"T /health HTTP/1.1\r\n").unwrap();
        let event = events.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
        assert!(matches!(event, ControlEvent::HttpSocket { .. }));
        assert!(doorman.end().is_empty());
    }

    #[test]
    fn http_is_brought_to_the_control_thread_and_the_others_wait_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (control, events) = flume::unbounded();
        let doorman = Doorman::start(&listener, control).unwrap();
        let silent = TcpStream::connect(address).unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(&[pyralog_net::frame::MAGIC, 1, 2, 3]).unwrap();
        let mut http = TcpStream::connect(address).unwrap();
        http.write_all(b"GET /health HTTP/1.1\r\n").unwrap();
        let event = events.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
        let ControlEvent::HttpSocket { mut stream, prefix } = event else { panic!("another event") };
        assert!(prefix.is_empty());
        let mut line = [0; 22];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"GET /health HTTP/1.1\r\n", "nothing was taken from it");
        let waiting = doorman.end();
        assert_eq!(waiting.len(), 2);
        let mut sockets = waiting.into_iter().map(TcpStream::from);
        let (first, mut second) = (sockets.next().unwrap(), sockets.next().unwrap());
        assert_eq!(first.peer_addr().unwrap(), silent.local_addr().unwrap());
        let mut bytes = [0; 4];
        second.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [pyralog_net::frame::MAGIC, 1, 2, 3]);
        assert!(events.is_empty());
    }
}
