//! HTTP over a socket that a shard accepted: its first bytes were read to see that it is HTTP (decision D7),
//! so they are given to hyper before the socket's own.

use std::io;
use std::net;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// HTTP connections open at once.
const MAX_CONNECTIONS: usize = 256;
/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// For a request's head to arrive; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Life of a connection, so that a reader that does not read holds its place for a while only.
const CONNECTION_LIFE: Duration = Duration::from_secs(600);

/// A stream whose first bytes were read already.
struct Replayed {
    prefix: Vec<u8>,
    replayed: usize,
    stream: TcpStream,
}

impl AsyncRead for Replayed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let rest = this.prefix.get(this.replayed..).unwrap_or_default();
        if rest.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        let now = rest.get(..buffer.remaining()).unwrap_or(rest);
        buffer.put_slice(now);
        this.replayed += now.len();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Serves HTTP on the sockets given to it, a bounded number at once. Owner: the control thread.
pub(crate) struct HttpServer {
    router: Router,
    places: Arc<Semaphore>,
}

impl HttpServer {
    pub(crate) fn new(router: Router) -> Self {
        Self { router, places: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }

    /// Takes over one socket, in a task of its own.
    pub(crate) fn serve(&self, stream: net::TcpStream, prefix: Vec<u8>) {
        let stream = match stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!(%error, "an HTTP socket was lost on its way"),
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            // The socket's buffer is empty, so this cannot block for long; nobody waits for it anyway.
            tokio::spawn(tokio::time::timeout(Duration::from_secs(1), refuse(stream)));
            return;
        };
        let service = TowerToHyperService::new(self.router.clone());
        let io = TokioIo::new(Replayed { prefix, replayed: 0, stream });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(io, service);
        tokio::spawn(async move {
            match tokio::time::timeout(CONNECTION_LIFE, connection).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) => tracing::debug!(%error, "an HTTP connection ended"),
            }
            drop(place);
        });
    }
}

async fn refuse(mut stream: TcpStream) {
    let body = format!("{{\"error\":\"{MAX_CONNECTIONS} HTTP connections are open, which is the bound\"}}\n");
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    // Whether the client still listens does not matter.
    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
    let _ = stream.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use std::io::{Read, Write};

    /// A server in its own thread; every accepted socket loses its first `sniffed` bytes to the prefix.
    fn serve(sniffed: usize, connections: usize) -> (net::SocketAddr, std::thread::JoinHandle<()>) {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = HttpServer::new(Router::new().route("/", get(|| async { "hello" })));
                for _ in 0..connections {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut prefix = vec![0; sniffed];
                    stream.read_exact(&mut prefix).unwrap();
                    server.serve(stream, prefix);
                }
                let all = u32::try_from(MAX_CONNECTIONS).unwrap();
                let _ = server.places.acquire_many(all).await.unwrap();
            });
        });
        (address, thread)
    }

    #[test]
    fn the_sniffed_bytes_are_part_of_the_request() {
        let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        for sniffed in [0, 1, 4, request.len()] {
            let (address, thread) = serve(sniffed, 1);
            let mut stream = net::TcpStream::connect(address).unwrap();
            stream.write_all(request).unwrap();
            let mut reply = String::new();
            stream.read_to_string(&mut reply).unwrap();
            assert!(reply.starts_with("HTTP/1.1 200 OK") && reply.ends_with("hello"), "{reply}");
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_connection_is_kept_for_the_next_request() {
        let (address, thread) = serve(3, 1);
        let mut stream = net::TcpStream::connect(address).unwrap();
        stream
            .write_all(
                b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            )
            .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert_eq!(reply.matches("hello").count(), 2, "{reply}");
        thread.join().unwrap();
    }

    #[test]
    fn an_endless_head_is_cut_off() {
        let (address, thread) = serve(1, 1);
        let mut stream = net::TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /").unwrap();
        let filler = vec![b'a'; 4 << 10];
        // The server closes while we write: an error then is what we want to see.
        let refused = (0..1_000).any(|_| stream.write_all(&filler).is_err());
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        assert!(refused || reply.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&reply));
        thread.join().unwrap();
    }
}
