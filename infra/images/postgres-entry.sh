#!/bin/sh
# Makes the cluster on the first start, as the official image's entry point does, then becomes the command.
# POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB, POSTGRES_HOST_AUTH_METHOD and POSTGRES_INITDB_ARGS mean what they mean there.
set -eu
PATH="$(echo /usr/lib/postgresql/*/bin):$PATH"

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    user=${POSTGRES_USER:-postgres}
    arguments=${POSTGRES_INITDB_ARGS:-}
    if [ -n "${POSTGRES_PASSWORD:-}" ]; then
        password=$(mktemp)
        printf '%s\n' "$POSTGRES_PASSWORD" > "$password"
        arguments="$arguments --pwfile=$password"
    fi
    # shellcheck disable=SC2086  # words on purpose, as in the official image
    initdb -D "$PGDATA" -U "$user" --auth=trust --no-sync --no-instructions $arguments
    rm -f "${password:-}"
    echo "host all all all ${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}" >> "$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >> "$PGDATA/postgresql.conf"
    database=${POSTGRES_DB:-$user}
    if [ "$database" != postgres ]; then
        echo "CREATE DATABASE \"$database\"" | postgres --single -j -D "$PGDATA" postgres
    fi
fi
exec "$@"
