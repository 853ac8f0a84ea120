//! What the guard before the Redis client lets through is a whole reply, however it arrives and within its bounds, and just as
//! long for the client's own parser.

use planb::store::{Bounds, Replies};
use redis_protocol::resp2::{decode::decode, types::OwnedFrame};

const BOUNDS: Bounds = Bounds { bytes: 4_000, elements: 300 };

/// Arrays in arrays, and what is in the innermost.
const DEEPEST: usize = 9;

/// Reads these bytes.
pub fn check(bytes: &[u8]) {
    let (lengths, is_sound) = follow(bytes, bytes.len().max(1));
    for step in [1, 7] {
        assert_eq!(follow(bytes, step), (lengths.clone(), is_sound), "in steps of {step}");
    }
    let mut rest = bytes;
    for length in lengths {
        assert!(length <= BOUNDS.bytes);
        let (reply, behind) = rest.split_at(length);
        // What it refuses ends the session; but it must not wait for more, nor take up what comes behind.
        if let Ok(parsed) = decode(reply) {
            let (frame, used) = parsed.expect("it is whole");
            assert!(used == length && depth(&frame) <= DEEPEST, "{used} of {length} bytes: {frame:?}");
        }
        rest = behind;
    }
}

/// How long the replies are before the first that is none, and whether there is no such.
fn follow(input: &[u8], step: usize) -> (Vec<usize>, bool) {
    let (mut replies, mut from, mut lengths) = (Replies::within(BOUNDS), 0, Vec::new());
    for to in (0..=input.len()).step_by(step).chain([input.len()]) {
        while from < to {
            match replies.next(&input[from..to]) {
                Ok(Some(length)) => {
                    lengths.push(length);
                    from += length;
                }
                Ok(None) => break,
                Err(_) => return (lengths, false),
            }
        }
    }
    (lengths, true)
}

fn depth(frame: &OwnedFrame) -> usize {
    match frame {
        OwnedFrame::Array(frames) => 1 + frames.iter().map(depth).max().unwrap_or_default(),
        _ => 1,
    }
}
