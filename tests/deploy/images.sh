#!/usr/bin/env bash
# Makes the images that the compose files name, for an engine that can't pull them: from Debian's packages, as root.
#     tests/deploy/images.sh          RabbitMQ 4.0, of Debian 13
#     tests/deploy/images.sh sid      the RabbitMQ of Debian's unstable
# They are called as the real ones, and do what the compose files and deploy/Dockerfile rely on: the first keeps its
# data in /var/lib/rabbitmq, runs RabbitMQ as a user of its own whoever owns the volume, reads /etc/rabbitmq/conf.d, has
# the management plugin on, and its programs in PATH, with a HOME where the cookie is; the second has Python and venv.
set -euo pipefail
suite=${1:-trixie}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

lay_down() { # FOLDER SUITE PACKAGES
  debootstrap --variant=minbase --include="$3" "$2" "$folder/$1" >"$folder/$1.log" || { tail "$folder/$1.log" >&2; return 1; }
}

# import FOLDER IMAGE CHANGE ...
import() {
  local root=$folder/$1 image=$2 changes=() change
  shift 2
  for change; do changes+=(--change "$change"); done
  tar --numeric-owner -C "$root" -c . | docker import "${changes[@]}" - "$image"
}

lay_down rabbitmq "$suite" ca-certificates,rabbitmq-server
rm -rf "$folder/rabbitmq"/var/lib/rabbitmq/{.erlang.cookie,mnesia}
mkdir -p "$folder/rabbitmq/etc/rabbitmq/conf.d"
echo '[rabbitmq_management,rabbitmq_prometheus].' >"$folder/rabbitmq/etc/rabbitmq/enabled_plugins"
echo 'log.console = true' >"$folder/rabbitmq/etc/rabbitmq/conf.d/10-defaults.conf"
cat >"$folder/rabbitmq/usr/local/bin/entrypoint" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$(id -u)" = 0 ] && [ "$1" = rabbitmq-server ]; then
  chown -R rabbitmq:rabbitmq /var/lib/rabbitmq
  exec setpriv --reuid=rabbitmq --regid=rabbitmq --init-groups "$0" "$@"
fi
exec "$@"
SCRIPT
chmod 755 "$folder/rabbitmq/usr/local/bin/entrypoint"
import rabbitmq rabbitmq:4-management \
  'ENV PATH=/usr/lib/rabbitmq/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' 'ENV HOME=/var/lib/rabbitmq' \
  'ENV LANG=C.UTF-8' 'ENV RUNNING_UNDER_SYSTEMD=true' 'VOLUME /var/lib/rabbitmq' \
  'ENTRYPOINT ["entrypoint"]' 'CMD ["rabbitmq-server"]'

lay_down python trixie ca-certificates,python3,python3-venv
cp /etc/ssl/certs/ca-certificates.crt "$folder/python/etc/ssl/certs/" # pip there trusts whom this machine trusts
import python python:3.13-slim \
  'ENV LANG=C.UTF-8' 'ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' 'CMD ["python3"]'
