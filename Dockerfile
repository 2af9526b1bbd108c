# One image for every face: init container, node agent, audit tool.
#
#   docker buildx build --build-arg SOURCE_DATE_EPOCH=0 --output type=docker,name=podweir:0.1.0,rewrite-timestamp=true .
#
# The same sources give the same layers: the base is pinned, the lock file is binding, paths
# are fixed, times come from SOURCE_DATE_EPOCH. `scripts/image` builds the same image without
# Docker and without a registry; it reads the last stage here, so keep an instruction to a line.

FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin podweir

FROM scratch
COPY scripts/rootfs /
COPY --from=build --chmod=0755 /src/target/release/podweir /usr/local/bin/podweir
ENV PATH=/usr/local/bin
LABEL org.opencontainers.image.title="podweir"
LABEL org.opencontainers.image.description="Diverts a pod's traffic to its sidecar proxy: init container, CNI plugin and audit tool"
LABEL org.opencontainers.image.licenses="Apache-2.0"
LABEL org.opencontainers.image.version="0.1.0"
# Rendering and explaining need no rights. An init container is given its user (0) and
# NET_ADMIN by the pod's securityContext.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/podweir"]
