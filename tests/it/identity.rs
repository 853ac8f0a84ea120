//! What is one backend, asked of the scripts on the master and of the proxy's own reader: they must agree on any text.

use std::net::IpAddr;

use ::planb::routing::{Origin, OriginHost};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::support::{PrivateRedis, redis_cli, redis_pipe};

const IDENTITY: &str = include_str!("../../src/store/scripts/identity.lua");

/// Pieces of URLs and of junk, from which all kinds of either can be put together.
const PIECES: &[&[u8]] = &[
    b"http://",
    b"HTTP://",
    b"https://",
    b"hTTps://",
    b"ftp://",
    b"://",
    b"//",
    b"http:/",
    b"a",
    b"B.internal",
    b"b.INTERNAL",
    b"my_app",
    b"10.0.0.1",
    b"010.0.0.1",
    b"256.1.1.1",
    b"[::1]",
    b"[0:0::1]",
    b"[::FFFF:1.2.3.4]",
    b"[::ffff:102:304]",
    b"[1:2:3:4:5:6:7:8]",
    b"[1:2:3:4:5:6:7::]",
    b"[fe80::1%25eth0]",
    b"[",
    b"]",
    b"::",
    b"1.2.3.4",
    b"01",
    b"ffff",
    b"12345",
    b":",
    b":80",
    b":443",
    b":8080",
    b":08080",
    b":0",
    b":00",
    b":65535",
    b":65536",
    b":+80",
    b":-1",
    b":8080x",
    b"/",
    b"/base",
    b"?q=1",
    b"#f",
    b"@",
    b"user:secret@",
    b" ",
    b"\n",
    b"\r\n",
    b"\t",
    b"\x0b",
    b"\x0c",
    b"\x00",
    b"\x7f",
    b"%20",
    b"\xc3\xa4",
    b"\xff",
    b"\\",
    b"\"",
    b";",
    b",",
    b"!$&'()*+=~-.",
    b"<",
    b"{",
    b"|",
    b"^",
    b"`",
];

/// What both call a backend.
fn canonical(url: &[u8]) -> Option<String> {
    let origin = Origin::parse(&String::from_utf8_lossy(url)).ok()?;
    let OriginHost::Ip(IpAddr::V6(address)) = origin.host else { return Some(origin.to_string()) };
    let groups: Vec<String> = address.segments().iter().map(|group| format!("{group:x}")).collect();
    let scheme = if origin.tls { "https" } else { "http" };
    Some(format!("{scheme}://[{}]:{}", groups.join(":"), origin.port))
}

/// Texts that are the same in each run.
fn texts(count: usize) -> Vec<Vec<u8>> {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let piece = || prop::sample::select(PIECES).prop_map(<[u8]>::to_vec);
    let group = "[0-9a-fA-F]{0,5}|::|1\\.2\\.3\\.4";
    let text = prop_oneof![
        4 => prop::collection::vec(piece(), 0..7).prop_map(|pieces| pieces.concat()),
        2 => prop::collection::vec(group, 1..10).prop_map(|groups| format!("[{}]:80", groups.join(":")).into_bytes()),
        1 => "http://\\[(([0-9a-f]{1,4}:){0,7}:?([0-9a-f]{1,4}:?){0,7})\\](:80)?/?".prop_map(String::into_bytes),
        2 => "[ \\n]?(https?://|HTTP://)?(u@)?([aA]|b\\.C|10\\.0\\.0\\.1|\\[::1\\])(:0?(80|443|81)?)?(/|/x|\\?q)?[ \\r]?".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    (0..count).map(|_| text.new_tree(&mut runner).unwrap().current()).collect()
}

/// Runs a script that replies with an error where it disagrees.
fn agree(server: &PrivateRedis, script: &str, arguments: &[Vec<u8>]) {
    let script = format!("{IDENTITY}\n{script}");
    let words: Vec<&[u8]> =
        [b"EVAL", script.as_bytes(), b"0"].into_iter().chain(arguments.iter().map(Vec::as_slice)).collect();
    redis_pipe(server, &[words]);
}

#[test]
fn the_master_s_scripts_read_urls_as_the_proxy_does() {
    let server = PrivateRedis::start(&[]).unwrap();
    let texts = texts(20_000);
    let backends = texts.iter().filter(|text| canonical(text).is_some()).count();
    assert!((2_000..18_000).contains(&backends), "{backends} of 20,000 texts are backends");
    let script = r"
        for position = 1, #ARGV, 2 do
          local found = identity(ARGV[position]) or ''
          if found ~= ARGV[position + 1] then
            return redis.error_reply(string.format('%q is %q, not %q', ARGV[position], found, ARGV[position + 1]))
          end
        end
        return 'OK'";
    for texts in texts.chunks(2_000) {
        let pairs = texts.iter().flat_map(|text| [text.clone(), canonical(text).unwrap_or_default().into_bytes()]);
        agree(&server, script, &pairs.collect::<Vec<_>>());
    }
}

#[test]
fn the_master_s_scripts_find_the_same_elements_as_the_proxy_does() {
    let server = PrivateRedis::start(&[]).unwrap();
    let script = r"
        local list = {}
        for position = 3, #ARGV do list[#list + 1] = ARGV[position] end
        local found = table.concat(positions(list, ARGV[1]), ' ')
        if found ~= ARGV[2] then return redis.error_reply(string.format('%q: %s, not %s', ARGV[1], found, ARGV[2])) end
        return 'OK'";
    // Of texts that mean nothing, none is another.
    let usable: Vec<Vec<u8>> = texts(6_000).into_iter().filter(|text| canonical(text).is_some()).collect();
    let mut shared = 0;
    for wanted in usable.iter().step_by(20) {
        let is_meant = |text: &&(usize, &Vec<u8>)| canonical(text.1) == canonical(wanted);
        let numbered: Vec<_> = (1..).zip(&usable).collect();
        let found: Vec<String> = numbered.iter().filter(is_meant).map(|(position, _)| position.to_string()).collect();
        shared += usize::from(found.len() > 1);
        let arguments = [wanted.clone(), found.join(" ").into_bytes()].into_iter().chain(usable.iter().cloned());
        agree(&server, script, &arguments.collect::<Vec<_>>());
    }
    assert!(shared > 10, "only {shared} have other spellings");
    agree(&server, script, &[b"junk url".to_vec(), b"".to_vec(), b"http://a".to_vec()]);
}

#[test]
fn no_element_holds_the_master_up() {
    let server = PrivateRedis::start(&[]).unwrap();
    let script = r"
        positions(ARGV, 'http://a:8080')
        return 'OK'";
    let long = |piece: &str| piece.repeat(300_000 / piece.len());
    let look = |elements: &[Vec<u8>]| {
        redis_cli(&server, &["CONFIG", "RESETSTAT"]);
        agree(&server, script, elements);
        let stats = redis_cli(&server, &["INFO", "commandstats"]);
        let spent = stats.lines().find_map(|line| line.strip_prefix("cmdstat_eval:calls=1,usec="));
        let spent: u64 = spent.and_then(|rest| rest.split(',').next()).unwrap().parse().unwrap();
        assert!(
            spent < 500_000,
            "{spent} us for {} elements: {:?}",
            elements.len(),
            String::from_utf8_lossy(&elements[0][..20])
        );
    };
    for junk in [
        format!("http://a:8080{}x", long(" ")),
        format!("http://a:{}8080x", long("0")),
        format!("http://{}:8080", long("a")),
        format!("http://{}a:8080", long("@")),
        format!("[{}a]:8080", long(":")),
        format!("[{}a]:8080", long("1.")),
        format!("{}a:8080", long("://")),
        format!("a:8080{}", long("]")),
    ] {
        look(&[junk.into_bytes()]);
    }
    let many: Vec<Vec<u8>> = (0..50_000)
        .map(|number| format!("http://10.0.{}.{}:8080", number / 250, number % 250))
        .map(String::into_bytes)
        .collect();
    for elements in many.chunks(10_000) {
        look(elements);
    }
}
