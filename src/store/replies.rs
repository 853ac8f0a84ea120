//! Where the replies of a Redis server end (RESP 2), found in one pass however they arrive. The parser that takes them apart
//! begins anew whenever a reply is not whole yet, which for a list of a million elements would take minutes.

/// Follows replies, one after the other.
#[derive(Debug, Default)]
pub(super) struct Replies {
    /// How far the present reply has been followed.
    at: usize,
    /// Elements of it that are still to come, of arrays in arrays together; 0 before it begins.
    left: u64,
    /// Bytes that are wanted before there is more to follow.
    wanted: usize,
}

/// What is no reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Replies {
    /// The length of the reply that `input` begins with, once all of it is there. The same input is given again with more at
    /// its end until then; afterwards, what follows the reply.
    pub fn next(&mut self, input: &[u8]) -> Result<Option<usize>, Malformed> {
        if self.left == 0 {
            (self.at, self.left) = (0, 1);
        }
        while self.left > 0 {
            let rest = &input[self.at..];
            self.wanted = 0;
            let Some(end) = memchr::memchr(b'\n', rest) else {
                return if rest.len() > LONGEST_LINE { Err(Malformed) } else { Ok(None) };
            };
            let line = rest[..end].strip_suffix(b"\r").ok_or(Malformed)?;
            let (kind, text) = line.split_first().ok_or(Malformed)?;
            let mut length = end + 1;
            match kind {
                b'+' | b'-' | b':' => {}
                b'$' => {
                    if let Some(bytes) = count(text)? {
                        length = usize::try_from(bytes)
                            .ok()
                            .and_then(|bytes| bytes.checked_add(length + 2))
                            .ok_or(Malformed)?;
                        if length > rest.len() {
                            self.wanted = length - rest.len();
                            return Ok(None);
                        }
                    }
                }
                b'*' => {
                    let elements = count(text)?.unwrap_or_default();
                    self.left = self.left.checked_add(elements).ok_or(Malformed)?;
                }
                _ => return Err(Malformed),
            }
            self.at += length;
            self.left -= 1;
        }
        Ok(Some(self.at))
    }

    /// How many bytes must come at least before [`Replies::next`] can tell more; 0 where that is not known.
    pub fn wanted(&self) -> usize {
        self.wanted
    }
}

/// A count; `None` where it stands for nothing at all.
fn count(text: &[u8]) -> Result<Option<u64>, Malformed> {
    if text == b"-1" {
        return Ok(None);
    }
    str::from_utf8(text).ok().and_then(|text| text.parse().ok()).map(Some).ok_or(Malformed)
}

/// Bytes of a line, which is a count, or the text of an error.
const LONGEST_LINE: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lengths(input: &[u8], step: usize) -> Result<Vec<usize>, Malformed> {
        let (mut replies, mut from, mut lengths) = (Replies::default(), 0, Vec::new());
        for to in (0..=input.len()).step_by(step).chain([input.len()]) {
            while from < to
                && let Some(length) = replies.next(&input[from..to])?
            {
                lengths.push(length);
                from += length;
            }
        }
        Ok(lengths)
    }

    #[test]
    fn replies_of_every_kind_end_where_they_end() {
        let whole: [&[u8]; 9] = [
            b"+OK\r\n",
            b"-WRONGTYPE no\r\n",
            b":-2\r\n",
            b"$3\r\na\r\n\r\n",
            b"$0\r\n\r\n",
            b"$-1\r\n",
            b"*0\r\n",
            b"*-1\r\n",
            b"*2\r\n$1\r\n0\r\n*2\r\n$7\r\nmessage\r\n$-1\r\n",
        ];
        let expected: Vec<_> = whole.iter().map(|reply| reply.len()).collect();
        for step in [1, 2, 7, 1_000] {
            assert_eq!(lengths(&whole.concat(), step).as_ref(), Ok(&expected), "in steps of {step}");
        }
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for junk in ["HTTP/1.1 400 Bad Request\r\n", "\r\n", "$x\r\n", "*-2\r\n", "$18446744073709551615\r\n", "+OK\n"]
        {
            assert_eq!(lengths(junk.as_bytes(), 1), Err(Malformed), "{junk}");
        }
        assert_eq!(Replies::default().next(&vec![b'+'; 100_000]), Err(Malformed));
    }

    #[test]
    fn a_long_value_says_how_much_is_wanted() {
        let mut replies = Replies::default();
        assert_eq!(replies.next(b"*2\r\n$1000\r\nabc"), Ok(None));
        assert_eq!(replies.wanted(), 999);
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), step in 1..9usize) {
            let _ = lengths(&bytes, step);
        }
    }
}
