//! A client hello is read alike however it is cut into reads and records, and the reader makes up its mind in time.

use planb::tls::{ClientHello, HelloError, HelloReader};

type Answer = Result<Option<ClientHello>, HelloError>;

/// Reads these bytes.
pub fn check(bytes: &[u8]) {
    as_a_connection(bytes);
    as_a_message(bytes);
}

/// Junk, and whole hellos with their records: the size of the reads makes no difference.
fn as_a_connection(bytes: &[u8]) {
    let answer = HelloReader::default().read(bytes);
    for step in [1, 7, 1460] {
        assert_eq!(in_reads_of(step, bytes), answer, "in reads of {step}");
    }
    assert!(answer != Ok(None) || bytes.len() <= HelloReader::LONGEST);
    if let Ok(Some(ClientHello { server_name: Some(name) })) = answer {
        assert!((1..=253).contains(&name.len()));
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)));
        assert!(!name.starts_with('.') && !name.ends_with('.') && !name.contains(".."));
        assert!(name.parse::<std::net::IpAddr>().is_err());
    }
}

/// The same bytes as a hello's body, which lets the fuzzer past the outer lengths: the size of the records makes no
/// difference, and neither an early nor a late answer is given.
fn as_a_message(body: &[u8]) {
    let Ok(length @ 0..=0xF000) = u32::try_from(body.len()) else { return };
    let mut message = length.to_be_bytes().to_vec();
    message[0] = 1;
    message.extend(body);
    let answer = HelloReader::default().read(&in_records_of(1 << 14, &message));
    assert_ne!(answer, Ok(None));
    let mut reader = HelloReader::default();
    let records = in_records_of(1 << 14, &message);
    assert_eq!(reader.read(&records[..records.len() - 1]), Ok(None));
    for size in [64, usize::from(body.first().copied().unwrap_or_default()).max(16)] {
        assert_eq!(HelloReader::default().read(&in_records_of(size, &message)), answer, "in records of {size}");
    }
}

fn in_reads_of(step: usize, bytes: &[u8]) -> Answer {
    let mut reader = HelloReader::default();
    for read in bytes.chunks(step) {
        match reader.read(read) {
            Ok(None) => {}
            answer => return answer,
        }
    }
    Ok(None)
}

fn in_records_of(size: usize, message: &[u8]) -> Vec<u8> {
    let record = |part: &[u8]| {
        let [.., high, low] = part.len().to_be_bytes();
        [&[22, 3, 1, high, low], part].concat()
    };
    message.chunks(size).flat_map(record).collect()
}
