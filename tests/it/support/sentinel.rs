//! A master, its replicas and the sentinels over them, as processes.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::{Planb, PrivateRedis, redis, replica_of, wait_until};

/// The name by which the sentinels know their master.
pub const MASTER_NAME: &str = "main";

/// A master and two replicas, all with notifications on, and three sentinels of which two must agree.
pub struct Sentinels {
    pub servers: Vec<PrivateRedis>,
    pub sentinels: Vec<Sentinel>,
    password: Option<&'static str>,
}

/// A running sentinel. Killed when dropped.
pub struct Sentinel {
    process: Child,
    port: u16,
    password: Option<&'static str>,
    _folder: TempDir,
}

impl Sentinels {
    /// Starts everything, and waits until all know one another.
    pub fn start() -> Self {
        Self::with_password(None)
    }

    /// As [`Sentinels::start`], with sentinels that want this password.
    pub fn with_password(password: Option<&'static str>) -> Self {
        let master = PrivateRedis::start(&["--notify-keyspace-events", "KA"]).unwrap();
        let replicas = [replica_of(&master), replica_of(&master)];
        let sentinels: Vec<_> = (0..3).map(|_| Sentinel::start(&master, password)).collect();
        // They introduce themselves every two seconds; for the start that is made more often.
        let introduce = |millis| {
            for sentinel in &sentinels {
                assert_eq!(sentinel.cli(&["SENTINEL", "DEBUG", "PUBLISH-PERIOD", millis]), "OK");
            }
        };
        introduce("100");
        wait_until("the sentinels know one another and the replicas", || {
            sentinels.iter().all(|sentinel| {
                let master = sentinel.cli(&["SENTINEL", "MASTER", MASTER_NAME]);
                let replicas = sentinel.cli(&["SENTINEL", "REPLICAS", MASTER_NAME]);
                field(&master, "num-other-sentinels") == Some("2")
                    && field(&master, "flags") == Some("master")
                    && replicas.lines().filter(|line| *line == "ok").count() == 2
            })
        });
        introduce("2000");
        let mut servers = vec![master];
        servers.extend(replicas);
        Self { servers, sentinels, password }
    }

    /// A proxy that finds both Redis servers by the sentinels, without an access log.
    pub fn planb(&self, arguments: &[&str]) -> super::planb::PlanbBuilder {
        let addresses: Vec<String> =
            self.sentinels.iter().map(|sentinel| format!("localhost:{}", sentinel.port)).collect();
        let mut flags = vec!["--listen=127.0.0.1:0".to_owned(), "--metrics-address=127.0.0.1:0".to_owned()];
        flags.push("--access-log=none".to_owned());
        for kind in ["read", "write"] {
            flags.push(format!("--{kind}-redis-sentinel-addrs={}", addresses.join(",")));
            flags.push(format!("--{kind}-redis-sentinel-name={MASTER_NAME}"));
            flags.extend(self.password.map(|password| format!("--{kind}-redis-sentinel-password={password}")));
        }
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Planb::with(&flags).arguments(arguments)
    }

    /// Has a replica chosen at the next fail-over that the first sentinel leads.
    pub fn prefer(&self, replica: &PrivateRedis) {
        redis(replica, &["CONFIG", "SET", "replica-priority", "1"]);
        let (sentinel, address) = (&self.sentinels[0], format!("127.0.0.1:{}\n", replica.port()));
        sentinel.cli(&["SENTINEL", "DEBUG", "INFO-PERIOD", "100"]);
        wait_until("the sentinel knows the preference", || {
            let replicas = sentinel.cli(&["SENTINEL", "REPLICAS", MASTER_NAME]);
            let about = replicas.split("name\n").find(|about| about.starts_with(&address));
            about.is_some_and(|about| field(about, "slave-priority") == Some("1"))
        });
        sentinel.cli(&["SENTINEL", "DEBUG", "INFO-PERIOD", "10000"]);
    }

    /// The server on this port.
    pub fn server(&self, port: u16) -> &PrivateRedis {
        self.servers.iter().find(|server| server.port() == port).expect("the port is one of the servers'")
    }

    /// The server on this port, to be changed.
    pub fn server_mut(&mut self, port: u16) -> &mut PrivateRedis {
        self.servers.iter_mut().find(|server| server.port() == port).expect("the port is one of the servers'")
    }

    /// Lets the sentinels take no server for dead that is only slow: from now on, a fail-over is one that the test asks for.
    pub fn only_planned(&self) {
        for sentinel in &self.sentinels {
            let patience = sentinel.cli(&["SENTINEL", "SET", MASTER_NAME, "down-after-milliseconds", "60000"]);
            assert_eq!(patience, "OK");
        }
    }

    /// Waits until one of the servers but the first says that it is a master.
    pub fn wait_until_promoted(&self) -> &PrivateRedis {
        let mut promoted = None;
        wait_until("a replica is promoted", || {
            promoted = self.servers[1..].iter().find(|server| is_master(server));
            promoted.is_some()
        });
        promoted.unwrap()
    }
}

impl Sentinel {
    fn start(master: &PrivateRedis, password: Option<&'static str>) -> Self {
        let login = password.map(|password| format!("requirepass {password}\nsentinel sentinel-pass {password}\n"));
        let text = format!(
            "bind 127.0.0.1\nlogfile sentinel.log\nsentinel monitor {MASTER_NAME} 127.0.0.1 {} 2\n\
             sentinel down-after-milliseconds {MASTER_NAME} 500\nsentinel failover-timeout {MASTER_NAME} 3000\n\
             sentinel parallel-syncs {MASTER_NAME} 2\n{}",
            master.port(),
            login.unwrap_or_default()
        );
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("sentinel.conf"), &text).unwrap();
            let random = uuid::Uuid::new_v4().as_u128() % 8_000;
            // Below the range that the kernel gives to clients.
            let port = 12_000 + u16::try_from(random).unwrap();
            let process = Command::new("redis-server")
                .args(["sentinel.conf", "--sentinel", "--port", &port.to_string()])
                .current_dir(folder.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let log = folder.path().join("sentinel.log");
            let mut sentinel = Self { process, port, password, _folder: folder };
            let mut is_up = false;
            wait_until("the sentinel is up, or has ended", || {
                is_up = fs::read_to_string(&log).is_ok_and(|text| text.contains("+monitor master"));
                is_up || sentinel.process.try_wait().unwrap().is_some()
            });
            if is_up {
                return sentinel;
            }
        }
        panic!("no free port for a sentinel was found");
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What `redis-cli` prints.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string()]);
        if let Some(password) = self.password {
            command.args(["--no-auth-warning", "-a", password]);
        }
        let output = command.args(arguments).output().expect("redis-cli comes with redis-server");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether a server calls itself a master: ROLE then has three parts.
fn is_master(server: &PrivateRedis) -> bool {
    server.command(&["ROLE"]).is_ok_and(|reply| reply == "*3")
}

/// The line after the one that is `name`.
fn field<'a>(reply: &'a str, name: &str) -> Option<&'a str> {
    reply.lines().skip_while(|line| *line != name).nth(1)
}
