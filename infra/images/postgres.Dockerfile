# PostgreSQL of the Debian release, with as much of the official image's behaviour as testcontainers and our tests use.
ARG BASE
FROM ${BASE}
RUN mkdir -p /etc/postgresql-common \
    && echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb \
    && install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/data
COPY postgres-entry.sh /opt/
ENV PGDATA=/var/lib/postgresql/data LC_ALL=C.UTF-8
STOPSIGNAL SIGINT
EXPOSE 5432
USER postgres
ENTRYPOINT ["sh", "/opt/postgres-entry.sh"]
CMD ["postgres"]
