"""What bench/failovers and bench/soak share: three Redis servers under three sentinels."""

import subprocess
import time

import peers
from peers import fail

PATIENCE = 60


def ask(port, *words):
    """The lines of a reply; empty if the server cannot be asked."""
    run = subprocess.run(
        ["timeout", "2", "redis-cli", "-p", str(port), *words], capture_output=True, text=True)
    return run.stdout.splitlines() if run.returncode == 0 else []


class Servers:
    def __init__(self, stage):
        self.stage, self.processes = stage, {}
        ports = peers.free_ports(6)
        self.servers, self.sentinels = ports[:3], ports[3:]
        for port in self.servers:
            self.start(port, "--replicaof", "127.0.0.1", str(self.servers[0])) if port != self.servers[0] else self.start(port)
        for port in self.sentinels:
            conf = stage.folder / f"sentinel-{port}.conf"
            conf.write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {self.servers[0]} 2\n"
                            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n")
            self.processes[port] = stage.start(f"sentinel-{port}", "redis-server", str(conf), "--sentinel")
            peers.wait_for_port(port)

    def start(self, port, *flags):
        folder = self.stage.folder / f"redis-{port}"
        folder.mkdir(exist_ok=True)
        self.processes[port] = self.stage.start(f"redis-{port}", "redis-server", "--port", str(port), "--bind", "127.0.0.1",
                                                "--dir", str(folder), "--appendonly", "yes", "--notify-keyspace-events",
                                                "KA", *flags)
        peers.wait_for_port(port)

    def master(self):
        reply = ask(self.sentinels[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
        return int(reply[1]) if len(reply) == 2 else None

    def is_well(self):
        master = self.master()
        return bool(master) and ask(master, "ROLE")[:1] == ["master"] and all(
            "master_link_status:up" in (text := "\n".join(ask(port, "INFO", "replication"))) and f"master_port:{master}" in text
            for port in self.servers if port != master) and "flags" in (
            state := ask(self.sentinels[0], "SENTINEL", "MASTER", "main")) and state[state.index("flags") + 1] == "master"

    def wait(self):
        began = time.monotonic()
        while not self.is_well():
            if time.monotonic() - began > PATIENCE:
                fail("the servers do not recover")
            time.sleep(0.1)
