# The images of Quarry, two final targets: `manager` and `extender`; and `plugin`, which is kubectl-quarry as a file.
#
#   docker build --target manager  -t quarry-manager  .     everything from source, for amd64 and arm64
#   docker build --target extender -t quarry-extender .
#   docker build --target plugin   --output . .
#
# With --build-arg BINARIES=prebuilt the programs are taken from target/dist/<architecture>/, where `bed image` puts them.
ARG BINARIES=source

FROM --platform=$BUILDPLATFORM rust:1.95-bookworm AS source
ARG TARGETARCH
# The linker and C library of the other architecture, where the image is for another than the machine that builds it.
RUN case "$(dpkg --print-architecture)-$TARGETARCH" in \
        amd64-arm64) packages="gcc-aarch64-linux-gnu libc6-dev-arm64-cross" ;; \
        arm64-amd64) packages="gcc-x86-64-linux-gnu libc6-dev-amd64-cross" ;; \
        *) exit 0 ;; \
    esac; \
    apt-get update && apt-get install -y --no-install-recommends $packages && rm -rf /var/lib/apt/lists/*
# Static programs: the extender's image has no C library, and the manager's need not have the same.
ENV RUSTFLAGS="-C target-feature=+crt-static" \
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    case "$TARGETARCH" in amd64) triple=x86_64-unknown-linux-gnu ;; arm64) triple=aarch64-unknown-linux-gnu ;; *) exit 1 ;; esac; \
    rustup target add "$triple" && \
    cargo build --release --locked --target "$triple" -p quarry-manager -p quarry-extender && \
    install -D -t /dist "target/$triple/release/quarry-manager" "target/$triple/release/quarry-extender" \
        "target/$triple/release/kubectl-quarry"

FROM scratch AS prebuilt
ARG TARGETARCH
COPY target/dist/$TARGETARCH/ /dist/

FROM $BINARIES AS binaries

# xfsprogs brings Python and ICU along, 70 MB for a program that checks file systems in the background: take only what is used.
FROM debian:bookworm-slim AS xfs
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends xfsprogs

FROM debian:bookworm-slim AS manager
RUN apt-get update && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        lvm2 dmsetup thin-provisioning-tools e2fsprogs libinih1 liburcu8 btrfs-progs util-linux && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* /usr/share/doc/* /usr/share/man/* /usr/share/locale/*
COPY --from=xfs /sbin/mkfs.xfs /sbin/xfs_repair /sbin/
COPY --from=xfs /usr/sbin/xfs_growfs /usr/sbin/xfs_io /usr/sbin/
# LVM's settings are the image's, whatever the host has: see the comments in the file.
COPY manager/lvm.conf /etc/quarry/lvm/lvm.conf
ENV LVM_SYSTEM_DIR=/etc/quarry/lvm LVM_SUPPRESS_FD_WARNINGS=1 LC_ALL=C
COPY --from=binaries /dist/quarry-manager /usr/local/bin/quarry-manager
ENTRYPOINT ["/usr/local/bin/quarry-manager"]

FROM scratch AS plugin
COPY --from=binaries /dist/kubectl-quarry /

FROM scratch AS extender
COPY --from=binaries /dist/quarry-extender /usr/local/bin/quarry-extender
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/quarry-extender"]
