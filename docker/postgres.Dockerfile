# PostgreSQL with pgvector, PL/Python and the extension nv_embed. What it is told: docs/containers.md.
#
#   docker build -f docker/postgres.Dockerfile -t nv_embed-postgres .

ARG BASE=debian:trixie-slim

FROM ${BASE} AS packages
ARG MAJOR=17
# Debian's package would give its user any free number, and would start a cluster of its own.
RUN groupadd --system --gid 999 postgres \
    && useradd --system --uid 999 --gid 999 --home-dir /var/lib/postgresql --shell /bin/bash postgres \
    && install -d /etc/postgresql-common/createcluster.d \
    && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/nv_embed.conf \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates postgresql-${MAJOR} postgresql-plpython3-${MAJOR} \
    && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /etc/ssl/private/ssl-cert-snakeoil.key

FROM packages AS build
ARG MAJOR=17
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    debian-archive-keyring dpkg-dev g++ gcc libc6-dev make python3-venv postgresql-server-dev-${MAJOR}
WORKDIR /src
COPY . .
# Where Python packages come from is the builder's business: a pip.conf, if there is one, that no layer keeps.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf docker/build-postgres ${MAJOR} /out

FROM packages
ARG MAJOR=17
COPY --from=build /out/ /
COPY --chmod=0755 docker/postgres-entrypoint /usr/local/bin/postgres-entrypoint
RUN install -d -o postgres -g postgres -m 0700 /var/lib/postgresql && install -d -o postgres -g postgres -m 2775 /var/run/postgresql
ENV PATH=/usr/lib/postgresql/${MAJOR}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    PGDATA=/var/lib/postgresql/data
VOLUME /var/lib/postgresql
USER 999:999
EXPOSE 5432
# Fast: statements under way are cancelled, and nobody is waited for.
STOPSIGNAL SIGINT
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["pg_isready", "--quiet", "--host=127.0.0.1", "--username=postgres", "--dbname=postgres"]
ENTRYPOINT ["postgres-entrypoint"]
CMD ["postgres"]
