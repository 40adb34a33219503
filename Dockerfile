# The operator's image: multi-stage, distroless, non-root, one static-ish binary and nothing else. Build for both platforms:
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg REVISION=$(git rev-parse HEAD) .
# The base images are pinned by tag here; a release pins them by digest (docs/release is written with the first release).
ARG RUST=1.95
FROM --platform=$BUILDPLATFORM rust:${RUST}-bookworm AS build
ARG TARGETARCH
WORKDIR /src
# aws-lc-rs is C and assembler, so cross-compiling needs the other linker.
RUN case "$TARGETARCH" in \
      amd64) echo x86_64-unknown-linux-gnu > /target ; apt-get update && apt-get install -y --no-install-recommends gcc-x86-64-linux-gnu cmake ;; \
      arm64) echo aarch64-unknown-linux-gnu > /target ; apt-get update && apt-get install -y --no-install-recommends gcc-aarch64-linux-gnu cmake ;; \
      *) echo "no build for $TARGETARCH" >&2 ; exit 1 ;; \
    esac && rm -rf /var/lib/apt/lists/* && rustup target add "$(cat /target)"
ENV CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc \
    # The same source gives the same binary wherever it is built.
    RUSTFLAGS="--remap-path-prefix=/src=. --remap-path-prefix=/usr/local/cargo=cargo" \
    CARGO_INCREMENTAL=0 SOURCE_DATE_EPOCH=0
COPY . .
RUN cargo build --release --locked --no-default-features --features otlp --bin run-invoker --target "$(cat /target)" \
 && cp "target/$(cat /target)/release/run-invoker" /run-invoker

FROM gcr.io/distroless/cc-debian12:nonroot
ARG REVISION=unknown
LABEL org.opencontainers.image.title="run-invoker" \
      org.opencontainers.image.description="Keeps the IAM invokers of Google Cloud Run services as InvokerPolicy objects declare them" \
      org.opencontainers.image.source="https://github.com/run-invoker/run-invoker" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /run-invoker /run-invoker
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/run-invoker"]
