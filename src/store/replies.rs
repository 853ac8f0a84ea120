//! Where the replies of a Redis server end (RESP 2), found in one pass however they arrive. The parser that takes them apart
//! begins anew whenever a reply is not whole yet, which for a list of a million elements would take minutes.

/// Follows replies, one after the other.
#[derive(Debug)]
pub struct Replies {
    bounds: Bounds,
    /// How far the present reply has been followed.
    at: usize,
    /// Elements that are still to come of each of the arrays that have begun, the outermost first.
    open: Vec<u64>,
    /// Elements that all its arrays have announced.
    elements: u64,
    /// Bytes that are wanted before there is more to follow.
    wanted: usize,
}

/// What a reply may come to. Beyond that, nobody has an honest use for it, and the parser would take more memory or, for arrays
/// in arrays, more stack than there is.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes, from its first to its last.
    pub bytes: usize,
    /// Elements of all its arrays together.
    pub elements: u64,
}

/// What is no reply, or is beyond its bounds.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

impl Replies {
    /// Follows replies within these bounds.
    pub fn within(bounds: Bounds) -> Self {
        Self { bounds, at: 0, open: Vec::new(), elements: 0, wanted: 0 }
    }

    /// The length of the reply that `input` begins with, once all of it is there. The same input is given again with more at
    /// its end until then; afterwards, what follows the reply.
    pub fn next(&mut self, input: &[u8]) -> Result<Option<usize>, Malformed> {
        if self.open.is_empty() {
            (self.at, self.elements) = (0, 0);
            self.open.push(1);
        }
        loop {
            while self.open.pop_if(|left| *left == 0).is_some() {}
            let depth = self.open.len();
            let Some(left) = self.open.last_mut() else { return Ok(Some(self.at)) };
            let rest = &input[self.at..];
            self.wanted = 0;
            let Some(end) = memchr::memchr(b'\n', rest) else {
                return if rest.len() > LONGEST_LINE { Err(Malformed) } else { Ok(None) };
            };
            let line = rest[..end].strip_suffix(b"\r").ok_or(Malformed)?;
            let (kind, text) = line.split_first().ok_or(Malformed)?;
            let (mut length, mut begun) = (end + 1, None);
            match kind {
                b'+' | b'-' | b':' => {}
                b'$' => {
                    if let Some(bytes) = count(text)? {
                        length = usize::try_from(bytes)
                            .ok()
                            .and_then(|bytes| bytes.checked_add(length + 2))
                            .ok_or(Malformed)?;
                        if length > self.bounds.bytes - self.at {
                            return Err(Malformed);
                        }
                        if length > rest.len() {
                            self.wanted = length - rest.len();
                            return Ok(None);
                        }
                    }
                }
                b'*' => {
                    let elements = count(text)?.unwrap_or_default();
                    self.elements = self.elements.checked_add(elements).ok_or(Malformed)?;
                    if self.elements > self.bounds.elements || depth > DEEPEST {
                        return Err(Malformed);
                    }
                    begun = Some(elements);
                }
                _ => return Err(Malformed),
            }
            *left -= 1;
            self.at += length;
            self.open.extend(begun);
            if self.at > self.bounds.bytes {
                return Err(Malformed);
            }
        }
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

/// Arrays in arrays. Of what is asked here, nothing is answered with more than two.
const DEEPEST: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { bytes: 10_000, elements: 100 };

    fn lengths(input: &[u8], step: usize) -> Result<Vec<usize>, Malformed> {
        let (mut replies, mut from, mut lengths) = (Replies::within(BOUNDS), 0, Vec::new());
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
        assert_eq!(Replies::within(BOUNDS).next(&vec![b'+'; 100_000]), Err(Malformed));
    }

    #[test]
    fn what_is_beyond_bounds_is_refused_as_soon_as_it_is_announced() {
        let nested = |depth: usize| "*1\r\n".repeat(depth) + ":1\r\n";
        assert_eq!(lengths(nested(DEEPEST).as_bytes(), 1).map(|lengths| lengths.len()), Ok(1));
        for beyond in [&nested(DEEPEST + 1)[..], "*2000000000\r\n", "*1\r\n*100\r\n", "$10000\r\n", "*3\r\n$9000\r\n"] {
            let padding = "x".repeat(9_000) + "\r\n$9000\r\n" + &"x".repeat(9_000) + "\r\n";
            let input = if beyond.ends_with("$9000\r\n") { beyond.to_owned() + &padding } else { beyond.to_owned() };
            assert_eq!(lengths(input.as_bytes(), 1_000), Err(Malformed), "{beyond}");
        }
        assert_eq!(lengths("*2\r\n*0\r\n*-1\r\n".repeat(1_000).as_bytes(), 7).map(|lengths| lengths.len()), Ok(1_000));
    }

    #[test]
    fn a_long_value_says_how_much_is_wanted() {
        let mut replies = Replies::within(BOUNDS);
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
