# One static binary and nothing else: no shell, no libraries, no package to patch.
#
# The build context is a directory that holds the binary; `make image` makes one and removes it again.
# By hand, with any builder of containers:
#   RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target x86_64-unknown-linux-gnu
#   docker build -t projectionist -f Dockerfile target/x86_64-unknown-linux-gnu/release
#
# To compile inside the build instead, put a stage before this one and copy from it:
#   FROM docker.io/library/rust:1.95-slim AS build
#   COPY . /source
#   RUN cd /source && RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target x86_64-unknown-linux-gnu
#   …
#   COPY --from=build /source/target/x86_64-unknown-linux-gnu/release/projectionist /projectionist
FROM scratch
COPY projectionist /projectionist
# Nobody in particular; a number, so that `runAsNonRoot` can be checked without a passwd file.
USER 65532:65532
ENTRYPOINT ["/projectionist"]
