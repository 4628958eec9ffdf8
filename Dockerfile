# The static-binary images for users with Docker or Podman:
#
#   docker build --target operator     -t vse.hpc.io/operator:dev .
#   docker build --target node-runtime -t vse.hpc.io/node-runtime:dev .
#   docker build --target launcher     -t vse.hpc.io/launcher:dev .
#   docker build --target engine-vmm   -t vse.hpc.io/engine-vmm:dev .
#
# `cargo xtask images` makes the same contents without a container engine.

FROM rust:1.89-trixie AS build
WORKDIR /src
COPY . .
ENV CARGO_ENCODED_RUSTFLAGS="-Ctarget-feature=+crt-static"
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --target x86_64-unknown-linux-gnu \
        --package vse-operator --package vse-node-runtime --package vse-init --package vse-launcher && \
    cargo build --locked --profile vmm --target x86_64-unknown-linux-gnu --package vse-vmm && \
    mkdir /out && \
    cd target/x86_64-unknown-linux-gnu && \
    cp release/vse-operator release/vse-node-runtime release/vse-init release/vse-launcher vmm/vse-vmm /out/

FROM scratch AS operator
COPY --from=build /out/vse-operator /vse-operator
USER 65532:65532
ENTRYPOINT ["/vse-operator"]

FROM scratch AS node-runtime
COPY --from=build /out/vse-node-runtime /out/vse-init /
USER 0:0
ENTRYPOINT ["/vse-node-runtime"]

FROM scratch AS launcher
COPY --from=build /out/vse-launcher /vse-launcher
USER 65532:65532
ENTRYPOINT ["/vse-launcher"]

FROM scratch AS engine-vmm
COPY --from=build /out/vse-vmm /vse-vmm
USER 65532:65532
ENTRYPOINT ["/vse-vmm"]
