"""What bench/proxies and bench/tls share: a stage with nginx, HAProxy and a backend on 127.0.0.1, the measuring of the CPU
time that each proxy needs, and the tables."""

import argparse
import contextlib
import functools
import os
import pwd
import re
import resource
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORKERS = 2
WARM_UP = 2
SMALL = 200
LARGE = 100 * 1024
HOST = "bench.example.com"
PERCENTILES = ("p50", "p99", "p99.9")

NGINX = """
{user}
daemon off;
worker_processes {workers};
worker_rlimit_nofile {files};
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    tcp_nopush on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_timeout 1h;
    # The default closes a connection after 1,000 requests, which the other two never do.
    keepalive_requests 1000000000;
    {http}
}}
"""

BACKEND = """
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {folder};
        open_file_cache max=10 inactive=1h;
        open_file_cache_valid 1h;
        sendfile on;
        location = /small {{ return 200 "{small}"; }}
    }}
"""

# Without the limit of 0, responses that a client is slow to read would go through files.
NGINX_PROXY = """
    upstream backend {{
        server 127.0.0.1:{backend};
        keepalive 1024;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    proxy_http_version 1.1;
    proxy_max_temp_file_size 0;
    proxy_set_header Connection "";
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Request-Id $request_id;
    {servers}
"""

HAPROXY = """
global
    nbthread {workers}
    maxconn 8192
    {settings}
defaults
    mode http
    option http-keep-alive
    http-reuse always
    timeout connect 10s
    timeout client 1h
    timeout server 30s
    timeout tunnel 1h
    unique-id-format %[uuid()]
    unique-id-header X-Request-Id
frontend clients
    bind 127.0.0.1:{port} backlog 4096 {tls}
    option forwardfor
    http-request set-header X-Forwarded-Proto {scheme}
    use_backend tunnels if {{ path /tunnel }}
    default_backend backend
backend backend
    server backend 127.0.0.1:{backend}
backend tunnels
    server echo 127.0.0.1:{echo}
"""


def parse(usage, seconds, rounds, **others):
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("planb", nargs="?", default="target/release/planb")
    parser.add_argument("--seconds", type=int, default=seconds)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--only", default="")
    for name, default in others.items():
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("-h", "--help", action="store_true")
    arguments = parser.parse_args()
    if arguments.help:
        sys.exit(usage.strip())
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    return arguments


def require(*tools):
    missing = [tool for tool in [*tools, "nginx", "haproxy", "wrk", "redis-server"] if not shutil.which(tool)]
    if missing:
        fail(f"missing: {', '.join(missing)} "
             "(cargo build --release; apt-get install nginx haproxy wrk redis-server openssl)")


class Stage:
    """A folder, and the processes that work in it."""

    def __init__(self, folder):
        self.folder = folder
        self.processes = []

    def start(self, name, *command):
        log = open(self.folder / f"{name}.log", "wb")
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def nginx(self, name, http):
        home = self.folder / name
        home.mkdir(exist_ok=True)
        # Workers run as somebody else otherwise, who may not enter the folder.
        user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
        text = NGINX.format(user=user, workers=WORKERS, files=8192 * 2, folder=home, http=http)
        (home / "conf").write_text(text)
        return self.start(name, "nginx", "-e", f"{home}/error.log", "-p", home, "-c", f"{home}/conf")

    def nginx_proxy(self, backend, servers, name="nginx"):
        return self.nginx(name, NGINX_PROXY.format(backend=backend, servers=servers))

    def haproxy(self, name="haproxy", settings="", echo=9, **values):
        conf = self.folder / f"{name}.conf"
        conf.write_text(HAPROXY.format(workers=WORKERS, settings=settings, echo=echo, **values))
        return self.start(name, "haproxy", "-db", "-f", conf)

    def planb(self, planb, redis, *flags, name="planb", log="none"):
        return self.start(name, planb, f"--workers={WORKERS}", f"--access-log={log}", f"--read-redis-port={redis}",
                          f"--write-redis-port={redis}", "--request-id-header=X-Request-Id", *flags)

    def backend(self, port):
        """Answers /small and /large."""
        folder = self.folder / "backend"
        folder.mkdir()
        (folder / "large").write_bytes(b"x" * LARGE)
        self.nginx("backend", BACKEND.format(port=port, folder=folder, small="x" * SMALL))
        wait_for_port(port)
        check("the backend", port, "/large", LARGE, HOST)

    def redis(self, port, backends):
        """A Redis whose routes lead each of these hosts to a port."""
        self.start("redis", "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
                   "--dir", self.folder, "--notify-keyspace-events", "KA")
        wait_for_port(port)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            for host, backend in backends.items():
                connection.sendall(f"RPUSH frontend:{host} bench http://127.0.0.1:{backend}\r\n".encode())
                assert connection.recv(100) == b":2\r\n"


@contextlib.contextmanager
def stage():
    # A shell without job control starts background commands with this ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: fail("terminated"))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with tempfile.TemporaryDirectory() as folder:
            stage = Stage(Path(folder))
            try:
                yield stage
            finally:
                stage.stop()
    except KeyboardInterrupt:
        fail("interrupted")


def memory(proxies, connections, tls=None):
    """How much memory each proxy has as it begins, and for each of so many idle connections that have asked once, perhaps
    over TLS, of which this is the context."""
    print(f"| | resident at the beginning | for each idle kept connection{' of TLS' if tls else ''} |\n|---|--:|--:|")
    for name, (process, port) in proxies.items():
        before = resident(process.pid)
        kept = []
        for _ in range(connections):
            connection = socket.create_connection(("127.0.0.1", port))
            if tls:
                connection = tls.wrap_socket(connection, server_hostname=HOST)
            connection.sendall(f"GET /small HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            answer = b""
            while not answer.endswith(b"x" * SMALL):
                answer += connection.recv(4096)
            kept.append(connection)
        # Longer than PlanB keeps idle connections to backends.
        time.sleep(6)
        used = resident(process.pid) - before
        for connection in kept:
            connection.close()
        print(f"| {name} | {before / 1e6:.1f} MB | {used / connections / 1e3:.1f} KB |")
    print()


def wanted(arguments, scenarios):
    return [scenario for scenario in scenarios if arguments.only in scenario[0]]


def compare(arguments, scenarios, proxies):
    """Lets the proxies, each a process and a port, take turns at each scenario, which is a name and a load: a function of
    a port and seconds that returns what it counted, or has a `prepare` that returns a function of seconds. The results are by
    scenario and proxy."""
    scenarios = wanted(arguments, scenarios)
    steps = len(scenarios) * arguments.rounds * len(proxies)
    if steps:
        note(f"{steps} measurements, about {steps * (arguments.seconds + WARM_UP) / 60:.0f} minutes")
    results = {}
    for scenario, load in scenarios:
        for _ in range(arguments.rounds):
            for name, (process, port) in proxies.items():
                load(port, WARM_UP)
                result = measure(process, port, load, arguments.seconds)
                results.setdefault((scenario, name), []).append(result)
                note(f"{scenario}: {name}: " + ", ".join(f"{what} {value:.3f}" for what, value in result.items()))
    return results


def measure(process, port, load, seconds):
    # What a load needs before it begins is not measured.
    run = load.prepare(port) if hasattr(load, "prepare") else functools.partial(load, port)
    before = cpu_seconds(process.pid)
    result = run(seconds)
    used = cpu_seconds(process.pid) - before
    if process.poll() is not None:
        fail(f"{process.args[0]} ended")
    return {"cpu": used / result.pop("operations") * 1e6, **result}


def wrk(port, seconds, path, connections, options=(), origin="http://127.0.0.1", environment=None):
    command = ["wrk", "--latency", "-t2", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s",
               "-H", f"Host: {HOST}", *options, f"{origin}:{port}{path}"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    for trouble in re.findall(r".*(?:Socket errors|Non-2xx).*", text):
        note(f"port {port}: {trouble.strip()}")
    milliseconds = {"us": 1e-3, "ms": 1, "s": 1e3}
    percentile = {}
    for percent in ("50", "99"):
        value, unit = re.search(rf"^ +{percent}% +([\d.]+)(us|ms|s)$", text, re.M).groups()
        percentile[percent] = float(value) * milliseconds[unit]
    return {
        "operations": int(re.search(r"(\d+) requests in", text)[1]),
        "rate": float(re.search(r"Requests/sec: +([\d.]+)", text)[1]),
        "p50": percentile["50"],
        "p99": percentile["99"],
    }


def h2load(port, seconds, log, connections, *options, origin, environment=None):
    """Asks for /small by h2load, which notes in `log` how long each request takes."""
    log.unlink(missing_ok=True)
    command = ["h2load", f"-c{connections}", f"-D{seconds}", f"--connect-to=127.0.0.1:{port}", f"--log-file={log}",
               *options, f"{origin}/small"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    done, succeeded = map(int, re.search(r"(\d+) done, (\d+) succeeded", text).groups())
    if not done or done != succeeded:
        fail(f"port {port}: h2load is not content:\n{text}")
    with open(log) as lines:
        milliseconds = sorted(int(line.rsplit("\t", 1)[1]) / 1e3 for line in lines)
    at = {f"p{percent}": milliseconds[int(len(milliseconds) * percent / 100)] for percent in (50, 99, 99.9)}
    return {"operations": done, "rate": done / seconds, **at}


class Tunnels:
    """A message that goes round in each of many WebSockets."""

    def __init__(self, count, host):
        self.count = count
        self.host = host

    def __call__(self, port, seconds):
        return self.prepare(port)(seconds)

    def prepare(self, port):
        command = [Path(__file__).parent / "echo", "client", str(port), str(self.count), self.host]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if client.stdout.readline() != "open\n":
            fail(f"port {port}: the tunnels do not open")

        def run(seconds):
            out, _ = client.communicate(f"{seconds}\n")
            count = int(out)
            return {"operations": count, "rate": count / seconds}

        return run


def processes(pid):
    """The fields of /proc/N/stat of a process and its children, by number."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(") ", 1)[1].split()
        except OSError:
            continue
        if pid in (int(path.parent.name), int(fields[1])):
            found[int(path.parent.name)] = fields
    return found


def cpu_seconds(pid):
    """What a process and its children have used, the ended ones aside."""
    ticks = sum(int(fields[11]) + int(fields[12]) for fields in processes(pid).values())
    return ticks / os.sysconf("SC_CLK_TCK")


def resident(pid):
    """Bytes of memory of a process, and of its children what they have for themselves."""
    total = 0
    for each in processes(pid):
        text = Path(f"/proc/{each}/smaps_rollup").read_text()
        total += int(re.search(rf"^{'Rss' if each == pid else 'Pss_Anon'}: +(\d+) kB$", text, re.M)[1]) * 1024
    return total


def report(results, operation):
    print(f"| scenario | proxy | CPU us/{operation} | spread | {operation}s/s | p50 ms | p99 ms | p99.9 ms |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    medians = {}
    for (scenario, name), runs in results.items():
        median = {what: statistics.median(run[what] for run in runs) for what in runs[0]}
        medians[scenario, name] = median
        all_cpu = [run["cpu"] for run in runs]
        spread = (max(all_cpu) - min(all_cpu)) / median["cpu"]
        print(f"| {scenario} | {name} | {median['cpu']:.1f} | {spread:.0%} | {median['rate']:,.0f} "
              f"| {' | '.join(shown(median, percentile) for percentile in PERCENTILES)} |")
    print(f"\nRatios; below 1 planb is better, except for {operation}s/s.\n")
    print(f"| scenario | ratio | CPU/{operation} | {operation}s/s | p50 | p99 | p99.9 |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for (scenario, other), theirs in medians.items():
        ours = medians.get((scenario, "planb"))
        if other == "planb" or not ours:
            continue
        ratio = {what: ours[what] / theirs[what] for what in ours}
        print(f"| {scenario} | planb/{other} | {ratio['cpu']:.2f} | {ratio['rate']:.2f} "
              f"| {' | '.join(shown(ratio, percentile) for percentile in PERCENTILES)} |")


def shown(figures, what):
    return f"{figures[what]:.2f}" if what in figures else ""


def circumstances(arguments, load_before):
    versions = [first_line(arguments.planb, "--version"), first_line("nginx", "-v"), first_line("haproxy", "-v")]
    return (f"{'; '.join(versions)}. {os.cpu_count()} cores, {WORKERS} workers or threads each; the load and the backend share "
            f"the cores. Medians of {arguments.rounds} interleaved runs of {arguments.seconds} s; the spread is of all runs' "
            f"CPU time, highest to lowest, over the median. Load average before: {load_before:.2f}.")


def check(name, port, path, length, host, certificate=None):
    """Asks once, with TLS if there is a certificate (PEM), which is the one that must be shown."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        if certificate:
            context = ssl._create_unverified_context()
            connection = context.wrap_socket(connection, server_hostname=host, suppress_ragged_eofs=True)
            if connection.getpeercert(binary_form=True) != ssl.PEM_cert_to_DER_cert(certificate):
                fail(f"{name} has another certificate for {host}")
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        response = b"".join(iter(lambda: connection.recv(65536), b""))
        connection.close()
    head, _, body = response.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 ") or len(body) != length:
        fail(f"{name} answers wrongly: {head.decode(errors='replace')!r}, {len(body)} bytes")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for_port(port, log=None):
    for _ in range(1000):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.01)
    fail(f"nothing listens on port {port}" + (f":\n{log.read_text()}" if log else ""))


def first_line(*command):
    run = subprocess.run(command, capture_output=True, text=True)
    line = (run.stdout + run.stderr).splitlines()[0]
    return re.sub(r"nginx version: nginx/", "nginx ", line).replace("version ", "").split(" 20")[0]


def note(text):
    print(text, file=sys.stderr, flush=True)


def fail(text):
    sys.exit(f"{sys.argv[0]}: {text}")
