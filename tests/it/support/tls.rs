//! Certificates, and clients that speak TLS: curl, `openssl s_client`, and the library that the proxy itself uses.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SignatureAlgorithm};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

use super::{PATIENCE, PrivateRedis, redis_pipe};

/// An authority that signs certificates.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A PEM chain and its PEM key.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Test Authority");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A new one that this one has signed.
    pub fn intermediate(&self) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Test Intermediate");
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// Its own certificate, as PEM.
    pub fn pem(&self) -> &str {
        &self.certificate
    }

    /// A new certificate with an ECDSA P-256 key, for these names.
    pub fn issue(&self, names: &[&str]) -> Pair {
        self.issue_with(names, &rcgen::PKCS_ECDSA_P256_SHA256, |_| {})
    }

    /// A new certificate with a key of this kind; `change` has the last word.
    pub fn issue_with(
        &self,
        names: &[&str],
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// A client of the library's that trusts this authority, and offers these protocols.
    pub fn client(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        self.client_of(aws_lc_rs::default_provider(), protocols)
    }

    /// The same with this cryptography.
    pub fn client_of(&self, provider: CryptoProvider, protocols: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

impl Pair {
    /// Sets the certificate of a name on a Redis server.
    pub fn install(&self, server: &PrivateRedis, name: &str) {
        let key = format!("tls:{name}");
        let words = ["HSET", &key, "certificate", &self.certificate, "key", &self.key];
        redis_pipe(server, &[words.map(str::as_bytes).to_vec()]);
    }

    /// Writes the pair into a folder, as `<name>.crt` and `<name>.key`.
    pub fn write(&self, folder: &Path, name: &str) {
        std::fs::write(folder.join(format!("{name}.crt")), &self.certificate).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), &self.key).unwrap();
    }

    /// The certificate itself, without its chain.
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }
}

/// A handshake of the library's with whoever listens; then whatever is wanted over it.
pub fn connect_tls(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
    name: &str,
) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut session = ClientConnection::new(Arc::clone(config), name).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(session, socket))
}

/// The certificate that is shown for a name; `None` if the handshake fails.
pub fn shown(authority: &Authority, address: SocketAddr, name: &str) -> Option<CertificateDer<'static>> {
    let stream = connect_tls(&authority.client(&[]), address, name).ok()?;
    Some(stream.conn.peer_certificates()?.first()?.clone().into_owned())
}

/// Runs curl against a name at an address, trusting the authority; `arguments` come before the URL.
pub fn curl(authority: &Authority, address: SocketAddr, name: &str, path: &str, arguments: &[&str]) -> Output {
    let mut roots = tempfile::NamedTempFile::new().unwrap();
    roots.write_all(authority.pem().as_bytes()).unwrap();
    Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--cacert"])
        .arg(roots.path())
        .args(["--resolve", &format!("{name}:{}:{}", address.port(), address.ip())])
        .args(arguments)
        .arg(format!("https://{name}:{}{path}", address.port()))
        .output()
        .expect("the setup script installs curl")
}

/// Runs `openssl s_client` against an address with these further arguments, says `input`, and returns what it printed, on
/// either stream, when the connection was closed.
pub fn s_client(address: SocketAddr, arguments: &[&str], input: &str) -> String {
    let mut process = Command::new("timeout")
        .args(["20", "openssl", "s_client", "-connect", &address.to_string()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the setup script installs openssl");
    // A refused handshake has ended it already.
    let _ = process.stdin.take().unwrap().write_all(input.as_bytes());
    let mut errors = process.stderr.take().unwrap();
    let reading = std::thread::spawn(move || {
        let mut text = Vec::new();
        errors.read_to_end(&mut text).unwrap();
        text
    });
    let output = process.wait_with_output().unwrap().stdout;
    String::from_utf8_lossy(&[output, reading.join().unwrap()].concat()).into_owned()
}

/// `openssl s_server`, which offers every version of TLS.
pub struct OpensslServer {
    process: Child,
    folder: tempfile::TempDir,
    pub address: SocketAddr,
}

impl OpensslServer {
    /// With a certificate for `name`.
    pub fn start(authority: &Authority, name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        authority.issue(&[name]).write(folder.path(), "server");
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        Self::listen(folder, &[])
    }

    /// With the `server.crt` and `server.key` that a shell's commands make in a folder of their own, and further arguments.
    pub fn of(commands: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = Command::new("sh").args(["-ec", commands]).current_dir(folder.path()).output().unwrap();
        assert!(made.status.success(), "{commands}: {}", String::from_utf8_lossy(&made.stderr));
        Self::listen(folder, arguments)
    }

    fn listen(folder: tempfile::TempDir, arguments: &[&str]) -> Self {
        let mut process = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-www", "-cert", "server.crt", "-key", "server.key"])
            .args(["-cipher", "ALL:@SECLEVEL=0"])
            .args(arguments)
            .env("OPENSSL_CONF", "/dev/null")
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the setup script installs openssl");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("ACCEPT ")?.parse().ok()).unwrap();
        Self { process, folder, address }
    }

    /// The URL of it as a backend.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Where the authority's certificate is.
    pub fn root(&self) -> String {
        self.folder.path().join("ca.pem").display().to_string()
    }
}

impl Drop for OpensslServer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
