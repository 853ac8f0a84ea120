//! A body in chunks is read alike in whatever pieces it comes, and written again it is the same body.

use bytes::BytesMut;
use planb::message::{
    Chunk, ChunkError, ChunkReader, Trailers, chunk_header,
    chunked::{DATA_END, END},
};

type Body = (Vec<u8>, Trailers, usize);

/// Reads these bytes.
pub fn check(bytes: &[u8]) {
    let whole = read(bytes, bytes.len().max(1));
    for step in [1, 7] {
        match (&whole, read(bytes, step)) {
            (Ok(Some((body, trailers, left))), Ok(Some((other, others, also_left)))) => {
                assert_eq!((body, *left), (&other, also_left), "in pieces of {step}");
                assert!(trailers.lines().eq(others.lines()));
            }
            (Ok(None), Ok(None)) => {}
            (one, other) => assert_eq!(one.as_ref().err(), other.as_ref().err(), "in pieces of {step}"),
        }
    }
    let Ok(Some((body, ..))) = whole else { return };
    let mut text = Vec::new();
    for piece in body.chunks(5) {
        text.extend([chunk_header(piece.len()).as_ref(), piece, DATA_END].concat());
    }
    text.extend(END);
    let again = read(&text, 3).unwrap().unwrap();
    assert!(again.0 == body && again.1.is_empty() && again.2 == 0);
}

fn read(bytes: &[u8], step: usize) -> Result<Option<Body>, ChunkError> {
    let (mut reader, mut input, mut body, mut arrived) = (ChunkReader::default(), BytesMut::new(), Vec::new(), 0);
    for piece in bytes.chunks(step) {
        input.extend_from_slice(piece);
        arrived += piece.len();
        while let Some(chunk) = reader.read(&mut input)? {
            match chunk {
                Chunk::Data(data) => body.extend(data),
                Chunk::End(trailers) => return Ok(Some((body, trailers, bytes.len() - arrived + input.len()))),
            }
        }
    }
    Ok(None)
}
