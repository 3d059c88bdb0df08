# Two stages: a static build for musl, and an image that holds nothing else. See docs/image.md.
ARG RUST_VERSION=1.95.0
FROM rust:${RUST_VERSION}-alpine AS build
# aws-lc-rs builds its C and assembly from source. What is built for musl is static by itself: the flag that says so would
# keep procedural macros from being built, without a --target.
RUN apk add --no-cache ca-certificates cmake gcc linux-headers make musl-dev perl
# Writes the list of crates into the program, where scanners of images find it.
RUN cargo install --locked --version 0.7.7 cargo-auditable
WORKDIR /src
COPY . .
# The same sources give the same bytes wherever they lie: no paths of this machine, no time, nothing incremental, only locked crates.
ARG SOURCE_DATE_EPOCH=0
ENV RUSTFLAGS="--remap-path-prefix=/src=. --remap-path-prefix=/usr/local/cargo=cargo" \
    CFLAGS="-ffile-prefix-map=/src=. -ffile-prefix-map=/usr/local/cargo=cargo" \
    CARGO_INCREMENTAL=0 \
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH}
RUN cargo auditable build --locked --release --bin autounseal \
 && install -D -m 0555 target/release/autounseal /out/autounseal \
 && install -D -m 0444 /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ca-certificates.crt

# No shell, no libraries, nothing to write to: the program and the certificate authorities that it trusts.
FROM scratch
COPY --from=build /out/ /
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/autounseal"]
CMD ["controller"]
