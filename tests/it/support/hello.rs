//! Client hellos, byte by byte.

/// A hello in one record that asks for these names.
pub fn hello(names: &[&str]) -> Vec<u8> {
    record(&hello_message(names, 0))
}

/// The same without the record, and with an extension of `padding` bytes (RFC 7685).
pub fn hello_message(names: &[&str], padding: usize) -> Vec<u8> {
    let list: Vec<u8> = names.iter().flat_map(|name| [&[0], &*sized(name.as_bytes())].concat()).collect();
    let mut extensions = [&[0, 21], &*sized(&vec![0; padding])].concat();
    if !names.is_empty() {
        extensions.extend([&[0, 0], &*sized(&sized(&list))].concat());
    }
    let body = [&[3, 3], &[9; 32][..], &[0, 0, 2, 0x13, 0x01, 1, 0], &sized(&extensions)].concat();
    [&[1, 0], &*sized(&body)].concat()
}

/// A handshake record.
pub fn record(part: &[u8]) -> Vec<u8> {
    [&[22, 3, 1], &*sized(part)].concat()
}

fn sized(body: &[u8]) -> Vec<u8> {
    [&u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}
