FROM rust:1-slim-bookworm AS build
WORKDIR /planb

# The dependencies are built first, for a program that does nothing, so that an edit of src does not build them again.
# The sections of tests and benchmarks go, because cargo refuses a manifest that names files which are not there.
COPY Cargo.toml Cargo.lock ./
RUN sed -i '/^\[\[/,/^$/d' Cargo.toml \
    && mkdir src && echo 'fn main() {}' >src/main.rs && touch src/lib.rs \
    && cargo build --release --locked

# The copied files keep the dates they have outside, which cargo may take for older than its own output.
COPY src src
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

# Line tables are three quarters of the file. Symbols stay, so that a backtrace still names its functions.
RUN strip --strip-debug target/release/planb


FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="PlanB" \
      org.opencontainers.image.description="A distributed HTTP, WebSocket and TLS reverse proxy whose routes live in Redis" \
      org.opencontainers.image.licenses="BSD-3-Clause"

RUN groupadd --gid 10001 planb \
    && useradd --uid 10001 --gid planb --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin planb
COPY --from=build /planb/target/release/planb /usr/local/bin/planb

# The default is a file in the working directory, which this user may not write to.
ENV PLANB_ACCESS_LOG=stdout

# Kubernetes can only verify that a user is not root if it is given as a number.
USER 10001:10001
ENTRYPOINT ["planb"]
