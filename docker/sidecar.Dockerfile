# The sidecar, for the CPU and for NVIDIA's GPUs, and the worker. What they are told: docs/containers.md.
#
#   docker build -f docker/sidecar.Dockerfile --target cpu    -t nv_embed-sidecar .
#   docker build -f docker/sidecar.Dockerfile --target cuda   -t nv_embed-sidecar:cuda .
#   docker build -f docker/sidecar.Dockerfile --target worker -t nv_embed-worker .

ARG BASE=debian:bookworm-slim

FROM ${BASE} AS python
ENV LANG=C.UTF-8 PATH=/opt/nv_embed/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN groupadd --gid 10001 nv_embed \
    && useradd --uid 10001 --gid 10001 --create-home --home-dir /var/lib/nv_embed --shell /usr/sbin/nologin nv_embed \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log \
    && install -d -o nv_embed -g nv_embed -m 0755 /run/nv_embed
WORKDIR /opt/nv_embed

FROM python AS build
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends g++ libc6-dev python3-dev python3-venv
COPY . .

# Where Python packages come from is the builder's business: a pip.conf, if there is one, that no layer keeps.
FROM build AS build-worker
RUN --mount=type=secret,id=pip,target=/etc/pip.conf docker/build-sidecar none tracing

FROM build AS build-cpu
ARG TORCH=cpu
ARG EXTRAS=sidecar,minilm,tracing
RUN --mount=type=secret,id=pip,target=/etc/pip.conf docker/build-sidecar ${TORCH} ${EXTRAS}

FROM build AS build-cuda
ARG TORCH=cuda
ARG EXTRAS=sidecar,minilm,tracing
RUN --mount=type=secret,id=pip,target=/etc/pip.conf docker/build-sidecar ${TORCH} ${EXTRAS}

FROM python AS worker
COPY --from=build-worker /opt/nv_embed/.venv /opt/nv_embed/.venv
COPY --chmod=0755 docker/worker-entrypoint docker/worker-health /usr/local/bin/
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=3 CMD ["/usr/local/bin/worker-health"]
ENTRYPOINT ["/usr/local/bin/worker-entrypoint"]

FROM python AS sidecar
# Weights that are fetched, and kernels that Triton makes, lie in /var/lib/nv_embed: mount a volume there, or they are fetched and made anew.
ENV NV_EMBED_SIDECAR_LISTEN=0.0.0.0:50051,unix:/run/nv_embed/sidecar.sock \
    NV_EMBED_SIDECAR_HTTP=0.0.0.0:8000 \
    NV_EMBED_SIDECAR_READY_FILE=/run/nv_embed/ready.json \
    HF_HOME=/var/lib/nv_embed/huggingface \
    TRITON_CACHE_DIR=/var/lib/nv_embed/triton
COPY --chmod=0755 docker/sidecar-health /usr/local/bin/
VOLUME /var/lib/nv_embed
USER 10001:10001
EXPOSE 50051 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=600s --retries=3 CMD ["/usr/local/bin/sidecar-health"]
ENTRYPOINT ["nv-embed", "serve"]

FROM sidecar AS cuda
# Triton compiles what it launches kernels with.
USER root
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log
USER 10001:10001
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/nv_embed/.venv /opt/nv_embed/.venv

FROM sidecar AS cpu
COPY --from=build-cpu /opt/nv_embed/.venv /opt/nv_embed/.venv
