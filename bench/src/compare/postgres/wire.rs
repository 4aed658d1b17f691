//! PostgreSQL's protocol, version 3, as far as a prepared insert needs it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::Context;

use crate::produce::BatchShape;
use crate::protocol::{Answered, Protocol, record_value};
use crate::session::PATIENCE;

/// Type ids of `bytea` and `bytea[]`, as in pg_type.
const BYTEA: u32 = 17;
const BYTEA_ARRAY: u32 = 1001;
const PROTOCOL_3_0: u32 = 196_608;

/// Appends a message: its kind, the length that counts itself, and the body.
fn append_message(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
}

/// The message that `bytes` begin with: its kind, its body and its whole length; `None` while it is incomplete.
fn message(bytes: &[u8]) -> anyhow::Result<Option<(u8, &[u8], usize)>> {
    let Some(header) = bytes.first_chunk::<5>() else { return Ok(None) };
    let [kind, length @ ..] = *header;
    let length = u32::from_be_bytes(length) as usize;
    anyhow::ensure!((4..1 << 30).contains(&length), "PostgreSQL: a message of {length} bytes");
    Ok(bytes.get(5..length + 1).map(|body| (kind, body, length + 1)))
}

/// The text of an ErrorResponse: severity, code and message.
fn error_text(body: &[u8]) -> String {
    let fields = body.split(|byte| *byte == 0).filter_map(|field| field.split_first());
    let wanted = fields.filter(|(kind, _)| matches!(**kind, b'V' | b'C' | b'M' | b'D'));
    let texts: Vec<_> = wanted.map(|(_, text)| String::from_utf8_lossy(text).into_owned()).collect();
    texts.join(" ")
}

/// Inserts of one connection; PostgreSQL answers in order.
pub(super) struct Inserts {
    request: Vec<u8>,
    /// What CommandComplete says of a whole insert.
    complete: Vec<u8>,
    next: u64,
    is_complete: bool,
}

impl Inserts {
    /// The statement that [`Session::prepare`] has to prepare: one insert whatever the number of records, as one statement of
    /// many rows is PostgreSQL's quickest way to commit many.
    pub(super) fn statement(table: &str, shape: BatchShape) -> (String, u32) {
        match shape.records {
            1 => (format!("insert into {table} (value) values ($1)"), BYTEA),
            _ => (format!("insert into {table} (value) select unnest($1)"), BYTEA_ARRAY),
        }
    }

    /// Binds and executes the prepared statement, and commits.
    pub(super) fn new(shape: BatchShape) -> Self {
        let value = record_value(shape.record_bytes);
        let parameter = match shape.records {
            1 => value,
            records => array(records, &value),
        };
        let mut bind = b"\0i\0".to_vec();
        // One format code, binary; one parameter; results as text.
        bind.extend_from_slice(&[0, 1, 0, 1, 0, 1]);
        bind.extend_from_slice(&(parameter.len() as u32).to_be_bytes());
        bind.extend_from_slice(&parameter);
        bind.extend_from_slice(&[0, 0]);
        let mut request = Vec::new();
        append_message(&mut request, b'B', &bind);
        append_message(&mut request, b'E', b"\0\0\0\0\0");
        append_message(&mut request, b'S', b"");
        let complete = format!("INSERT 0 {}\0", shape.records).into_bytes();
        Self { request, complete, next: 0, is_complete: false }
    }
}

/// An array of `bytea` with `count` times the same element, in its binary form.
fn array(count: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Dimensions, whether there are nulls, type of the elements, elements, first index.
    for word in [1, 0, BYTEA, count as u32, 1] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    for _ in 0..count {
        bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
        bytes.extend_from_slice(value);
    }
    bytes
}

impl Protocol for Inserts {
    fn request_bytes(&self) -> usize {
        self.request.len()
    }

    fn append_request(&mut self, out: &mut Vec<u8>, _number: u64) -> anyhow::Result<()> {
        out.extend_from_slice(&self.request);
        Ok(())
    }

    fn take_replies(
        &mut self,
        received: &[u8],
        _out: &mut Vec<u8>,
        answered: Answered<'_>,
    ) -> anyhow::Result<usize> {
        let mut taken = 0;
        while let Some((kind, body, len)) = message(received.get(taken..).unwrap_or_default())? {
            taken += len;
            match kind {
                b'C' => {
                    anyhow::ensure!(
                        body == self.complete,
                        "PostgreSQL: {:?} instead of {:?}",
                        String::from_utf8_lossy(body),
                        String::from_utf8_lossy(&self.complete)
                    );
                    self.is_complete = true;
                }
                // Sent when the transaction is committed, which CommandComplete alone does not say.
                b'Z' => {
                    anyhow::ensure!(self.is_complete, "PostgreSQL is ready and has inserted nothing");
                    self.is_complete = false;
                    answered(self.next)?;
                    self.next += 1;
                }
                b'E' => anyhow::bail!("PostgreSQL: {}", error_text(body)),
                // BindComplete, a notice, a parameter's new value.
                b'2' | b'N' | b'S' => {}
                _ => anyhow::bail!("PostgreSQL: an unexpected message {:?}", char::from(kind)),
            }
        }
        Ok(taken)
    }
}

/// A connection that asks one thing after the other.
pub(super) struct Session {
    socket: TcpStream,
    received: Vec<u8>,
}

impl Session {
    /// Connects as user `bench` to the database `postgres`; the server has to trust it.
    pub(super) fn connect(addr: SocketAddr) -> anyhow::Result<Self> {
        let socket = TcpStream::connect_timeout(&addr, PATIENCE)
            .with_context(|| format!("can't connect to PostgreSQL at {addr}"))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut startup = PROTOCOL_3_0.to_be_bytes().to_vec();
        startup.extend_from_slice(b"user\0bench\0database\0postgres\0\0");
        let mut session = Self { socket, received: Vec::new() };
        session.socket.write_all(&(startup.len() as u32 + 4).to_be_bytes())?;
        session.socket.write_all(&startup)?;
        session.until_ready(|kind, body| {
            // AuthenticationOk is a 0; anything else asks for a password.
            let trusted = kind != b'R' || body == [0; 4];
            anyhow::ensure!(trusted, "PostgreSQL asks for a password");
            Ok(())
        })?;
        Ok(session)
    }

    /// Runs SQL; the first column of each row, as text.
    pub(super) fn query(&mut self, sql: &str) -> anyhow::Result<Vec<String>> {
        let mut message = Vec::new();
        append_message(&mut message, b'Q', format!("{sql}\0").as_bytes());
        self.socket.write_all(&message)?;
        let mut rows = Vec::new();
        let taken = self.until_ready(|kind, body| {
            if kind == b'D' {
                // Number of columns, then each as its length and its bytes; a negative length is null.
                let length =
                    body.get(2..6).and_then(|bytes| bytes.first_chunk()).map(|b| i32::from_be_bytes(*b));
                let length =
                    usize::try_from(length.context("PostgreSQL: a row without columns")?).unwrap_or(0);
                let value = body.get(6..6 + length).context("PostgreSQL: a row that ends early")?;
                rows.push(String::from_utf8_lossy(value).into_owned());
            }
            Ok(())
        });
        taken.with_context(|| format!("in reply to: {sql}"))?;
        Ok(rows)
    }

    /// Prepares the statement `i` with one parameter.
    pub(super) fn prepare(&mut self, sql: &str, parameter_type: u32) -> anyhow::Result<()> {
        let mut body = b"i\0".to_vec();
        body.extend_from_slice(sql.as_bytes());
        body.extend_from_slice(&[0, 0, 1]);
        body.extend_from_slice(&parameter_type.to_be_bytes());
        let mut messages = Vec::new();
        append_message(&mut messages, b'P', &body);
        append_message(&mut messages, b'S', b"");
        self.socket.write_all(&messages)?;
        self.until_ready(|_, _| Ok(())).with_context(|| format!("in reply to: {sql}"))
    }

    /// The socket, with nothing under way.
    pub(super) fn into_socket(self) -> TcpStream {
        self.socket
    }

    fn until_ready(&mut self, mut each: impl FnMut(u8, &[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        loop {
            while let Some((kind, body, len)) = message(&self.received)? {
                anyhow::ensure!(kind != b'E', "PostgreSQL: {}", error_text(body));
                each(kind, body)?;
                self.received.drain(..len);
                if kind == b'Z' {
                    return Ok(());
                }
            }
            let mut piece = [0; 4096];
            let count = self.socket.read(&mut piece).context("PostgreSQL's reply")?;
            anyhow::ensure!(count > 0, "PostgreSQL closed the connection");
            self.received.extend_from_slice(piece.get(..count).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::answers_however_split;

    fn shape(records: usize) -> BatchShape {
        BatchShape { records, record_bytes: 2 }
    }

    #[test]
    fn one_record_is_bound_as_bytea() {
        let mut out = Vec::new();
        Inserts::new(shape(1)).append_request(&mut out, 5).unwrap();
        let value = record_value(2);
        let mut wanted = b"B\0\0\0\x15\0i\0\0\x01\0\x01\0\x01\0\0\0\x02".to_vec();
        wanted.extend_from_slice(&value);
        wanted.extend_from_slice(b"\0\0E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04");
        assert_eq!(out, wanted);
    }

    #[test]
    fn many_records_are_one_array() {
        let bytes = array(2, b"ab");
        let wanted = b"\0\0\0\x01\0\0\0\0\0\0\0\x11\0\0\0\x02\0\0\0\x01\0\0\0\x02ab\0\0\0\x02ab";
        assert_eq!(bytes, wanted);
        let (sql, parameter) = Inserts::statement("log", shape(100));
        assert!(sql.contains("unnest"), "{sql}");
        assert_eq!((parameter, Inserts::statement("log", shape(1)).1), (1001, 17));
    }

    #[test]
    fn a_commit_is_an_answer_and_its_completion_is_not() {
        let mut bytes = Vec::new();
        for _ in 0..2 {
            append_message(&mut bytes, b'2', b"");
            append_message(&mut bytes, b'C', b"INSERT 0 3\0");
            append_message(&mut bytes, b'Z', b"I");
        }
        let fresh = || Box::new(Inserts::new(shape(3))) as Box<dyn Protocol>;
        assert_eq!(answers_however_split(fresh, &bytes), [0, 1]);
        assert_eq!(answers_however_split(fresh, &bytes[..bytes.len() - 6]), [0]);
    }

    #[test]
    fn errors_and_a_wrong_count_end_the_run() {
        let take = |kind, body: &[u8]| {
            let mut bytes = Vec::new();
            append_message(&mut bytes, kind, body);
            Inserts::new(shape(1))
                .take_replies(&bytes, &mut Vec::new(), &mut |_| Ok(()))
                .map_err(|e| e.to_string())
        };
        let error = take(b'E', b"SERROR\0VERROR\0C53100\0Mdisk full\0\0").unwrap_err();
        assert_eq!(error, "PostgreSQL: ERROR 53100 disk full");
        assert!(take(b'C', b"INSERT 0 2\0").unwrap_err().contains("INSERT 0 2"));
        assert!(take(b'Z', b"I").unwrap_err().contains("nothing"));
        assert!(take(b'T', b"").is_err());
        assert!(message(b"Z\0\0\0\x01I").is_err());
    }
}
