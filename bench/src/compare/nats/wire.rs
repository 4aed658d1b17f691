//! The NATS client protocol, as far as publishing to a stream of JetStream needs it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::Context;
use serde_json::Value;

use crate::produce::BatchShape;
use crate::protocol::{Answered, Missing, NUMBER_DIGITS, Protocol, record_value, write_number};
use crate::session::PATIENCE;

/// `_INBOX.`, and one subscription to all that is below.
const INBOX: &str = "_INBOX.";

/// Publishes of one connection. What is to be answered carries a subject of its own for the answer, which ends in the number of
/// the request. Many records are one atomic batch, which the last message commits and whose acknowledgement is for all.
pub(super) struct Publishes {
    request: Vec<u8>,
    /// Where the number is in the request.
    numbers_at: Vec<usize>,
    inbox: String,
    /// What an acknowledgement has to hold.
    wanted: String,
    missing: Missing,
}

impl Publishes {
    /// Publishes records of `shape` to `subject`; `inbox` is what [`Session::connect`] subscribed to.
    pub(super) fn new(subject: &str, inbox: &str, shape: BatchShape, outstanding: usize) -> Self {
        let value = record_value(shape.record_bytes);
        let (reply, zeros) = (format!("{inbox}."), "0".repeat(NUMBER_DIGITS));
        // The number goes where the zeros behind these are.
        let (id, mut request) = (format!("Nats-Batch-Id: {inbox}-"), Vec::new());
        for sequence in 1..=shape.records {
            let is_last = sequence == shape.records;
            let reply = if is_last { format!(" {reply}{zeros}") } else { String::new() };
            let head = if shape.records == 1 {
                format!("PUB {subject}{reply} {}\r\n", value.len())
            } else {
                let commit = if is_last { "Nats-Batch-Commit: 1\r\n" } else { "" };
                let headers =
                    format!("NATS/1.0\r\n{id}{zeros}\r\nNats-Batch-Sequence: {sequence}\r\n{commit}\r\n");
                let (size, total) = (headers.len(), headers.len() + value.len());
                format!("HPUB {subject}{reply} {size} {total}\r\n{headers}")
            };
            request.extend_from_slice(head.as_bytes());
            request.extend_from_slice(&value);
            request.extend_from_slice(b"\r\n");
        }
        let numbers_at = [&reply, &id].iter().flat_map(|before| ends_of(&request, before)).collect();
        let wanted = match shape.records {
            1 => "\"seq\":".to_owned(),
            records => format!("\"count\":{records}"),
        };
        Self { request, numbers_at, inbox: reply, wanted, missing: Missing::new(outstanding) }
    }

    fn take_ack(&mut self, message: &Message<'_>, answered: &mut Answered<'_>) -> anyhow::Result<()> {
        let number = message.subject.strip_prefix(self.inbox.as_str()).and_then(from_digits);
        let number = number.with_context(|| format!("NATS: a message on {}", message.subject))?;
        anyhow::ensure!(
            message.headers.is_empty(),
            "NATS: {}",
            String::from_utf8_lossy(message.headers).trim()
        );
        self.ensure_stored(message.payload)?;
        if self.missing.is_last(number)? {
            answered(number)?;
        }
        Ok(())
    }

    /// A PubAck names the stream and a sequence number, and of a batch how many messages it has; one that failed has an object
    /// `error`.
    fn ensure_stored(&self, ack: &[u8]) -> anyhow::Result<()> {
        let has = |wanted: &[u8]| ack.windows(wanted.len()).any(|window| window == wanted);
        let is_stored = has(self.wanted.as_bytes()) && !has(b"\"error\":") && !has(b"\"duplicate\":");
        anyhow::ensure!(is_stored, "JetStream: {}", String::from_utf8_lossy(ack));
        Ok(())
    }
}

/// Where `text` ends, each time that it is in `bytes`.
fn ends_of(bytes: &[u8], text: &str) -> Vec<usize> {
    let windows = bytes.windows(text.len()).enumerate();
    windows.filter(|(_, window)| *window == text.as_bytes()).map(|(at, _)| at + text.len()).collect()
}

fn from_digits(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok().filter(|_| text.len() == NUMBER_DIGITS)
}

impl Protocol for Publishes {
    fn request_bytes(&self) -> usize {
        self.request.len()
    }

    fn append_request(&mut self, out: &mut Vec<u8>, number: u64) -> anyhow::Result<()> {
        let start = out.len();
        out.extend_from_slice(&self.request);
        for at in &self.numbers_at {
            if let Some(digits) = out.get_mut(start + at..start + at + NUMBER_DIGITS) {
                write_number(digits, number);
            }
        }
        self.missing.begin(number, 1);
        Ok(())
    }

    fn take_replies(
        &mut self,
        received: &[u8],
        out: &mut Vec<u8>,
        mut answered: Answered<'_>,
    ) -> anyhow::Result<usize> {
        let mut taken = 0;
        while let Some((operation, len)) = parse(received.get(taken..).unwrap_or_default())? {
            taken += len;
            match operation {
                Operation::Message(message) => self.take_ack(&message, &mut answered)?,
                Operation::Ping => out.extend_from_slice(b"PONG\r\n"),
                Operation::Other => {}
            }
        }
        Ok(taken)
    }
}

/// What the server sends.
enum Operation<'a> {
    Message(Message<'a>),
    Ping,
    /// `INFO`, `PONG`, `+OK`.
    Other,
}

struct Message<'a> {
    subject: &'a str,
    headers: &'a [u8],
    payload: &'a [u8],
}

/// The operation that `bytes` begin with and its length; `None` while it is incomplete. `-ERR` is an error.
fn parse(bytes: &[u8]) -> anyhow::Result<Option<(Operation<'_>, usize)>> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let line = bytes.get(..end).unwrap_or_default().trim_ascii_end();
    let line = std::str::from_utf8(line).context("NATS: a line that is no text")?;
    let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
    let len = end + 1;
    let has_headers = match name {
        "MSG" => false,
        "HMSG" => true,
        "PING" => return Ok(Some((Operation::Ping, len))),
        "PONG" | "+OK" | "INFO" => return Ok(Some((Operation::Other, len))),
        _ => anyhow::bail!("NATS: {line}"),
    };
    // Subject, subscription, perhaps a subject to reply to, with headers their size, and the whole size.
    let (first, total) = rest.rsplit_once(' ').context("NATS: a message without a size")?;
    let subject = rest.split(' ').next().unwrap_or_default();
    let size = |text: &str| text.parse::<usize>().with_context(|| format!("NATS: a message of size {text}"));
    let total = size(total)?;
    let headers = match has_headers {
        true => size(first.rsplit(' ').next().unwrap_or_default())?,
        false => 0,
    };
    anyhow::ensure!(headers <= total && total < 1 << 30, "NATS: a message of {total} bytes");
    let Some(whole) = bytes.get(len..len + total).filter(|_| bytes.len() >= len + total + 2) else {
        return Ok(None);
    };
    let (headers, payload) = whole.split_at(headers);
    Ok(Some((Operation::Message(Message { subject, headers, payload }), len + total + 2)))
}

/// A connection that asks one thing after the other.
pub(super) struct Session {
    socket: TcpStream,
    received: Vec<u8>,
    inbox: String,
}

impl Session {
    /// Connects and subscribes to an inbox of this number's own.
    pub(super) fn connect(addr: SocketAddr, number: usize) -> anyhow::Result<Self> {
        let socket = TcpStream::connect_timeout(&addr, PATIENCE)
            .with_context(|| format!("can't connect to NATS at {addr}"))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let inbox = format!("{INBOX}{number}");
        let hello = format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true,\
             \"name\":\"pyralog-bench\",\"lang\":\"rust\",\"version\":\"1\",\"protocol\":1}}\r\n\
             SUB {inbox}.* 1\r\nPING\r\n"
        );
        let mut session = Self { socket, received: Vec::new(), inbox };
        session.socket.write_all(hello.as_bytes())?;
        while session.next(|operation, line| match operation {
            Operation::Other => Ok(!line.starts_with(b"PONG")),
            _ => Ok(true),
        })? {}
        Ok(session)
    }

    /// What it subscribed to, without the number of a request.
    pub(super) fn inbox(&self) -> &str {
        &self.inbox
    }

    /// Asks JetStream; its answer, or the error in it.
    pub(super) fn ask(&mut self, subject: &str, body: &Value) -> anyhow::Result<Value> {
        let body = body.to_string();
        let request = format!("PUB {subject} {}.ask {}\r\n{body}\r\n", self.inbox, body.len());
        self.socket.write_all(request.as_bytes())?;
        let mut answer = None;
        while self.next(|operation, _| match operation {
            Operation::Message(message) => {
                let headers = String::from_utf8_lossy(message.headers);
                anyhow::ensure!(headers.is_empty(), "NATS: {} to {subject}", headers.trim());
                answer = Some(serde_json::from_slice::<Value>(message.payload)?);
                Ok(false)
            }
            _ => Ok(true),
        })? {}
        let answer = answer.unwrap_or_default();
        anyhow::ensure!(answer.get("error").is_none(), "JetStream's answer to {subject}: {answer}");
        Ok(answer)
    }

    /// The socket, with nothing under way.
    pub(super) fn into_socket(self) -> TcpStream {
        self.socket
    }

    /// Gives the next operation and its bytes to `take` and returns what that says.
    fn next(
        &mut self,
        take: impl FnOnce(&Operation<'_>, &[u8]) -> anyhow::Result<bool>,
    ) -> anyhow::Result<bool> {
        loop {
            if let Some((operation, len)) = parse(&self.received)? {
                if matches!(operation, Operation::Ping) {
                    self.socket.write_all(b"PONG\r\n")?;
                }
                let goes_on = take(&operation, self.received.get(..len).unwrap_or_default());
                self.received.drain(..len);
                return goes_on;
            }
            let mut piece = [0; 4096];
            let count = self.socket.read(&mut piece).context("NATS's reply")?;
            anyhow::ensure!(count > 0, "NATS closed the connection");
            self.received.extend_from_slice(piece.get(..count).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::answers_however_split;

    fn publishes(records: usize, begun: u64) -> Publishes {
        let mut publishes = Publishes::new("s", "_INBOX.3", BatchShape { records, record_bytes: 2 }, 4);
        (0..begun).for_each(|number| publishes.append_request(&mut Vec::new(), number).unwrap());
        publishes
    }

    #[test]
    fn one_record_is_published_with_a_subject_for_its_number() {
        let mut out = Vec::new();
        publishes(1, 0).append_request(&mut out, 0x1a2).unwrap();
        let mut wanted = b"PUB s _INBOX.3.00000000000001a2 2\r\n".to_vec();
        wanted.extend_from_slice(&record_value(2));
        wanted.extend_from_slice(b"\r\n");
        assert_eq!(out, wanted);
    }

    #[test]
    fn many_records_are_a_batch_that_the_last_one_commits() {
        let mut out = Vec::new();
        publishes(2, 0).append_request(&mut out, 0x1a2).unwrap();
        let value = record_value(2);
        let mut wanted = b"HPUB s 78 80\r\nNATS/1.0\r\nNats-Batch-Id: _INBOX.3-00000000000001a2\r\n\
            Nats-Batch-Sequence: 1\r\n\r\n"
            .to_vec();
        wanted.extend_from_slice(&value);
        wanted.extend_from_slice(
            b"\r\nHPUB s _INBOX.3.00000000000001a2 100 102\r\nNATS/1.0\r\n\
            Nats-Batch-Id: _INBOX.3-00000000000001a2\r\nNats-Batch-Sequence: 2\r\n\
            Nats-Batch-Commit: 1\r\n\r\n",
        );
        wanted.extend_from_slice(&value);
        wanted.extend_from_slice(b"\r\n");
        assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&wanted));
    }

    #[test]
    fn requests_are_answered_by_number() {
        let ack =
            |number: u64, json: &str| format!("MSG _INBOX.3.{number:016x} 1 {}\r\n{json}\r\n", json.len());
        let one = "{\"stream\":\"S\",\"seq\":7}";
        let bytes = [&ack(1, one), "PING\r\n", "INFO {\"a\":1}\r\n", &ack(0, one)].concat();
        let fresh = || Box::new(publishes(1, 2)) as Box<dyn Protocol>;
        assert_eq!(answers_however_split(fresh, bytes.as_bytes()), [1, 0]);
        let mut out = Vec::new();
        publishes(1, 2).take_replies(b"PING\r\n", &mut out, &mut |_| Ok(())).unwrap();
        assert_eq!(out, b"PONG\r\n");
        let batch = ack(0, "{\"stream\":\"S\",\"seq\":7,\"batch\":\"x\",\"count\":2}");
        let fresh = || Box::new(publishes(2, 1)) as Box<dyn Protocol>;
        assert_eq!(answers_however_split(fresh, batch.as_bytes()), [0]);
        let incomplete = ack(0, one);
        let taken = publishes(2, 1).take_replies(incomplete.as_bytes(), &mut Vec::new(), &mut |_| Ok(()));
        assert!(taken.unwrap_err().to_string().contains("seq"));
    }

    #[test]
    fn errors_end_the_run() {
        let take = |bytes: &str| {
            let taken = publishes(1, 1).take_replies(bytes.as_bytes(), &mut Vec::new(), &mut |_| Ok(()));
            taken.map_err(|error| error.to_string())
        };
        let json =
            "{\"type\":\"x\",\"error\":{\"code\":503,\"description\":\"insufficient resources\"},\"seq\":0}";
        let refused =
            take(&format!("MSG _INBOX.3.0000000000000000 1 {}\r\n{json}\r\n", json.len())).unwrap_err();
        assert!(refused.contains("insufficient"), "{refused}");
        let nobody = "HMSG _INBOX.3.0000000000000000 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n";
        assert!(take(nobody).unwrap_err().contains("503"));
        assert!(take("-ERR 'Slow Consumer'\r\n").unwrap_err().contains("Slow"));
        let stranger = "MSG _INBOX.3.0000000000000009 1 9\r\n{\"seq\":1}\r\n";
        assert!(take(stranger).unwrap_err().contains("waits for none"));
        assert!(take("MSG _INBOX.3.x 1 9\r\n{\"seq\":1}\r\n").is_err());
        assert!(take("MSG\r\n").is_err());
    }
}
