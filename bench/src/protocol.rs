//! What a connection of the load generator speaks, so that one loop, one clock and one histogram measure every system.

/// Called with the number of each request that a reply answers, once per request.
pub type Answered<'a> = &'a mut dyn FnMut(u64) -> anyhow::Result<()>;

/// How a request looks and which requests the received bytes answer. One per connection; numbers count up from 0.
/// Neither method may allocate per request: that would be part of every figure.
pub trait Protocol: Send {
    /// Size of a request, bytes, at most.
    fn request_bytes(&self) -> usize;

    /// Whether there is room for one more request; false while a window of the protocol's own is used up. What the
    /// server sends opens it again.
    fn may_send(&self) -> bool {
        true
    }

    /// Appends request `number` to `out`.
    fn append_request(&mut self, out: &mut Vec<u8>, number: u64) -> anyhow::Result<()>;

    /// Takes the complete replies at the beginning of `received` and returns how many bytes they are; an incomplete one
    /// comes again, with more of it. What the protocol itself has to send (a pong, a window) goes to `out`. A reply
    /// that is an error, or that does not say what was asked for, is an error and ends the run.
    fn take_replies(
        &mut self,
        received: &[u8],
        out: &mut Vec<u8>,
        answered: Answered<'_>,
    ) -> anyhow::Result<usize>;
}

/// Replies still missing of each request under way, by number modulo the most that there may be. A request of many
/// records is answered when all of them are.
pub struct Missing(Box<[u32]>);

impl Missing {
    /// Of at most `outstanding` requests under way.
    pub fn new(outstanding: usize) -> Self {
        Self(vec![0; outstanding.max(1)].into_boxed_slice())
    }

    /// Request `number` waits for so many replies from now on.
    pub fn begin(&mut self, number: u64, replies: u32) {
        if let Some(slot) = self.slot(number) {
            *slot = replies;
        }
    }

    /// One reply to `number` has come; whether it was the last one.
    pub fn is_last(&mut self, number: u64) -> anyhow::Result<bool> {
        match self.slot(number) {
            Some(slot) if *slot > 0 => {
                *slot -= 1;
                Ok(*slot == 0)
            }
            _ => anyhow::bail!("a reply to request {number}, which waits for none"),
        }
    }

    fn slot(&mut self, number: u64) -> Option<&mut u32> {
        let index = number % self.0.len() as u64;
        self.0.get_mut(index as usize)
    }
}

/// Digits of a request's number where a protocol carries it as text.
pub const NUMBER_DIGITS: usize = 16;

/// Writes a request's number in hexadecimal, with zeros in front.
pub fn write_number(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef".get((number & 15) as usize).copied().unwrap_or_default();
        number >>= 4;
    }
}

/// What the records of every system consist of: not all the same byte, as nothing on the way may profit from it.
pub fn record_value(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at.wrapping_mul(151) >> 2) as u8).collect()
}

/// Runs `protocol` over `bytes` in all splits into two pieces, as a socket may deliver them; the numbers answered, the
/// same each time.
#[cfg(test)]
pub(crate) fn answers_however_split(mut fresh: impl FnMut() -> Box<dyn Protocol>, bytes: &[u8]) -> Vec<u64> {
    let mut all: Option<Vec<u64>> = None;
    for cut in 0..=bytes.len() {
        let (mut protocol, mut out, mut numbers) = (fresh(), Vec::new(), Vec::new());
        let mut note = |number| {
            numbers.push(number);
            Ok(())
        };
        let first = protocol.take_replies(&bytes[..cut], &mut out, &mut note).unwrap();
        assert!(first <= cut);
        let second = protocol.take_replies(&bytes[first..], &mut out, &mut note).unwrap();
        assert_eq!(first + second, bytes.len(), "cut at {cut}");
        assert_eq!(*all.get_or_insert_with(|| numbers.clone()), numbers, "cut at {cut}");
    }
    all.unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_all_their_digits() {
        let mut digits = *b"................";
        write_number(&mut digits, 0x1a2);
        assert_eq!(&digits, b"00000000000001a2");
        write_number(&mut digits, u64::MAX);
        assert_eq!(&digits, b"ffffffffffffffff");
    }

    #[test]
    fn a_request_is_answered_by_its_last_reply() {
        let mut missing = Missing::new(2);
        missing.begin(6, 2);
        missing.begin(7, 1);
        assert!(!missing.is_last(6).unwrap());
        assert!(missing.is_last(7).unwrap());
        assert!(missing.is_last(6).unwrap());
        missing.is_last(6).unwrap_err();
        missing.begin(8, 1);
        assert!(missing.is_last(8).unwrap());
    }
}
