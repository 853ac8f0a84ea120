"""What bench/hoards and bench/attacks share: nginx with TLS, its certificate, and a large file."""

import subprocess

from peers import HOST

HUGE = 1 << 30
SERVER = """
    server {{
        listen 127.0.0.1:{plain} backlog=4096;
        listen 127.0.0.1:{tls} ssl http2;
        http2_max_concurrent_streams 128;
        ssl_certificate {folder}/{host}.crt;
        ssl_certificate_key {folder}/{host}.key;
        location / {{ proxy_pass http://backend; }}
    }}
"""


def certificate(folder):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
                    "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}", "-keyout", f"{folder}/{HOST}.key",
                    "-out", f"{folder}/{HOST}.crt"], check=True, stderr=subprocess.DEVNULL)
    parts = [(folder / f"{HOST}.{part}").read_text() for part in ("crt", "key")]
    (folder / f"{HOST}.pem").write_text("".join(parts))
