//! RESP2, as far as appending to a stream needs it: `XADD`, and `WAITAOF` behind it where others have to have it.

use anyhow::Context;

use crate::produce::BatchShape;
use crate::protocol::{Answered, Protocol, record_value};

/// Whose disks an answer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durable {
    /// The server's own: `appendfsync always` says no more.
    Here,
    /// Its own and one replica's: `WAITAOF 1 1`.
    HereAndOnOneReplica,
}

/// How long one `WAITAOF` waits, milliseconds, before the next one asks the replicas again.
pub(super) const WAIT_MS: &str = "10";

/// Requests of one connection; Redis answers in order.
///
/// `WAITAOF` is sent when the records are answered, not right behind them. The server asks its replicas for what they have durably
/// at the moment of the command, and a replica that reads the question together with the records answers it before it has
/// flushed them: then nobody asks again for a second. For the same reason one that has waited in vain is repeated.
pub(super) struct Resp {
    request: Vec<u8>,
    wait: Vec<u8>,
    /// Of each request.
    records: usize,
    durable: Durable,
    /// The lowest request that is not answered, and the lowest one whose records are not all added.
    next: u64,
    adding: u64,
    /// Records of `adding` that are.
    added: usize,
    is_waiting: bool,
}

/// Appends a command as an array of bulk strings.
pub(super) fn append_command(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

impl Resp {
    /// Appends records of `shape` to the stream `key`.
    pub(super) fn new(key: &str, shape: BatchShape, durable: Durable) -> Self {
        let value = record_value(shape.record_bytes);
        let (mut request, mut wait) = (Vec::new(), Vec::new());
        for _ in 0..shape.records {
            append_command(&mut request, &[b"XADD", key.as_bytes(), b"*", b"v", &value]);
        }
        append_command(&mut wait, &[b"WAITAOF", b"1", b"1", WAIT_MS.as_bytes()]);
        let records = shape.records;
        Self { request, wait, records, durable, next: 0, adding: 0, added: 0, is_waiting: false }
    }

    /// Whether all requests whose records are added are durable, too.
    fn are_durable(&mut self, reply: &Reply<'_>, out: &mut Vec<u8>) -> anyhow::Result<bool> {
        match *reply {
            Reply::Bulk(_) => {
                self.added += 1;
                if self.added < self.records {
                    return Ok(false);
                }
                self.added = 0;
                self.adding += 1;
                if self.durable == Durable::HereAndOnOneReplica && !self.is_waiting {
                    self.is_waiting = true;
                    out.extend_from_slice(&self.wait);
                }
                Ok(self.durable == Durable::Here)
            }
            Reply::Counts(here, replicas) if self.is_waiting => {
                anyhow::ensure!(here >= 1, "Redis: WAITAOF says that the master itself has nothing durably");
                self.is_waiting = replicas < 1;
                if self.is_waiting {
                    out.extend_from_slice(&self.wait);
                }
                Ok(!self.is_waiting)
            }
            _ => anyhow::bail!("Redis: {reply:?} in reply to XADD or WAITAOF"),
        }
    }
}

impl Protocol for Resp {
    fn request_bytes(&self) -> usize {
        self.request.len() + self.wait.len()
    }

    fn append_request(&mut self, out: &mut Vec<u8>, _number: u64) -> anyhow::Result<()> {
        out.extend_from_slice(&self.request);
        Ok(())
    }

    fn take_replies(
        &mut self,
        received: &[u8],
        out: &mut Vec<u8>,
        answered: Answered<'_>,
    ) -> anyhow::Result<usize> {
        let mut taken = 0;
        while let Some((reply, len)) = parse(received.get(taken..).unwrap_or_default())? {
            taken += len;
            if self.are_durable(&reply, out)? {
                while self.next < self.adding {
                    answered(self.next)?;
                    self.next += 1;
                }
            }
        }
        Ok(taken)
    }
}

/// A reply, as far as these commands have any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply<'a> {
    /// `+OK`
    Simple(&'a str),
    /// `$3..`
    Bulk(&'a [u8]),
    /// `:1`
    Integer(i64),
    /// `*2` of integers.
    Counts(i64, i64),
}

/// The reply that `bytes` begin with and its length; `None` while it is incomplete. `-ERR` is an error.
pub(super) fn parse(bytes: &[u8]) -> anyhow::Result<Option<(Reply<'_>, usize)>> {
    let Some((line, len)) = line(bytes)? else { return Ok(None) };
    let (kind, rest) = line.split_at_checked(1).context("Redis: an empty line for a reply")?;
    match kind {
        "+" => Ok(Some((Reply::Simple(rest), len))),
        ":" => Ok(Some((Reply::Integer(number(rest)?), len))),
        "-" => anyhow::bail!("Redis: {rest}"),
        "$" => {
            let size = usize::try_from(number(rest)?).context("Redis: nil instead of a string")?;
            anyhow::ensure!(size < 1 << 30, "Redis: a string of {size} bytes");
            let value = bytes.get(len..len + size).filter(|_| bytes.len() >= len + size + 2);
            Ok(value.map(|value| (Reply::Bulk(value), len + size + 2)))
        }
        "*" if rest == "2" => {
            let mut at = len;
            let mut counts = [0, 0];
            for count in &mut counts {
                let Some((reply, len)) = parse(bytes.get(at..).unwrap_or_default())? else {
                    return Ok(None);
                };
                let Reply::Integer(value) = reply else { anyhow::bail!("Redis: {reply:?} for a number") };
                *count = value;
                at += len;
            }
            Ok(Some((Reply::Counts(counts[0], counts[1]), at)))
        }
        _ => anyhow::bail!("Redis: a reply that begins {line:?}"),
    }
}

/// The first line without its end, and its length with it.
fn line(bytes: &[u8]) -> anyhow::Result<Option<(&str, usize)>> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let line = bytes.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").context("Redis: a line that ends without a carriage return")?;
    Ok(Some((std::str::from_utf8(line).context("Redis: a line that is no text")?, end + 1)))
}

fn number(text: &str) -> anyhow::Result<i64> {
    text.parse().with_context(|| format!("Redis: {text:?} is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::answers_however_split;

    const TWO: BatchShape = BatchShape { records: 2, record_bytes: 3 };

    #[test]
    fn a_request_is_as_many_xadds_as_records() {
        let mut out = Vec::new();
        Resp::new("s", TWO, Durable::Here).append_request(&mut out, 0).unwrap();
        let value = record_value(3);
        let mut wanted = Vec::new();
        for _ in 0..2 {
            wanted.extend_from_slice(b"*5\r\n$4\r\nXADD\r\n$1\r\ns\r\n$1\r\n*\r\n$1\r\nv\r\n$3\r\n");
            wanted.extend_from_slice(&value);
            wanted.extend_from_slice(b"\r\n");
        }
        assert_eq!(out, wanted);
    }

    #[test]
    fn requests_are_answered_in_order_when_all_their_records_are() {
        let ids = b"$3\r\n1-0\r\n$3\r\n1-1\r\n$3\r\n1-2\r\n$3\r\n1-3\r\n";
        let here = || Box::new(Resp::new("s", TWO, Durable::Here)) as Box<dyn Protocol>;
        assert_eq!(answers_however_split(here, ids), [0, 1]);
        let mut both = ids.to_vec();
        both.extend_from_slice(b"*2\r\n:1\r\n:2\r\n");
        let replica = || Box::new(Resp::new("s", TWO, Durable::HereAndOnOneReplica)) as Box<dyn Protocol>;
        assert_eq!(answers_however_split(replica, &both), [0, 1]);
        assert!(answers_however_split(replica, ids).is_empty());
    }

    #[test]
    fn replicas_are_asked_again_until_one_has_it() {
        const WAIT: &[u8] = b"*4\r\n$7\r\nWAITAOF\r\n$1\r\n1\r\n$1\r\n1\r\n$2\r\n10\r\n";
        let mut durable = Resp::new("s", TWO, Durable::HereAndOnOneReplica);
        let (mut out, mut numbers) = (Vec::new(), Vec::new());
        let mut take = |bytes: &[u8], out: &mut Vec<u8>| {
            let mut note = |number| {
                numbers.push(number);
                Ok(())
            };
            durable.take_replies(bytes, out, &mut note).unwrap();
            numbers.len()
        };
        take(b"$3\r\n1-0\r\n", &mut out);
        assert!(out.is_empty(), "one of two records");
        take(b"$3\r\n1-1\r\n", &mut out);
        assert_eq!(out, WAIT);
        out.clear();
        // Another request's records come while the answer is waited for: the same answer is for them, too.
        assert_eq!(take(b"$3\r\n1-2\r\n$3\r\n1-3\r\n*2\r\n:1\r\n:0\r\n", &mut out), 0);
        assert_eq!(out, WAIT);
        out.clear();
        assert_eq!(take(b"*2\r\n:1\r\n:1\r\n", &mut out), 2);
        assert!(out.is_empty());
    }

    #[test]
    fn errors_end_the_run() {
        let take = |bytes: &[u8]| {
            let mut durable = Resp::new("s", TWO, Durable::HereAndOnOneReplica);
            let taken = durable.take_replies(bytes, &mut Vec::new(), &mut |_| Ok(()));
            taken.map_err(|error| error.to_string())
        };
        let error = take(b"$3\r\n1-0\r\n$3\r\n1-1\r\n*2\r\n:0\r\n:1\r\n").unwrap_err();
        assert!(error.contains("master itself"), "{error}");
        let error = take(b"-MISCONF Errors writing to the AOF file\r\n").unwrap_err();
        assert!(error.contains("AOF file"), "{error}");
        assert!(take(b"+OK\r\n").is_err());
        assert!(take(b"*2\r\n:1\r\n:1\r\n").is_err(), "nobody has asked");
        assert!(take(b"$-1\r\n").is_err());
    }
}
