#!/usr/bin/env bash
# A one-node Slurm on loopback, in one folder: no systemd, nothing written to /etc or /run, any number side by side.
#   SLURM_ROOT=FOLDER start-slurm.sh start|stop|status, or start-slurm.sh install (Debian packages, as root or by sudo)
# Afterwards SLURM_CONF=FOLDER/slurm.conf leads sbatch and squeue there, and FOLDER/bin first on the PATH srun.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PACKAGES=(slurmctld slurmd slurm-client munge)

usage() {
    sed -n '2,4s/^# \?//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

wait_for() { # wait_for SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || {
            echo "start-slurm.sh: timed out: $*; see $SLURM_ROOT/log" >&2
            return 1
        }
        sleep 0.2
    done
}

free_ports() { # two ports that nobody listens on
    python3 -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in held))'
}

idle() { [[ $(sinfo -h -o %T) == idle ]]; }

start() {
    local controller_port node_port cpus
    mkdir -p "$SLURM_ROOT"/{state,spool,log,bin}
    chmod 755 "$SLURM_ROOT" # munge wants its socket where everyone may look for it
    # munge, which signs every message, with a key of this Slurm's own
    (umask 077 && head -c 1024 /dev/urandom >"$SLURM_ROOT/munge.key")
    munged --socket="$SLURM_ROOT/munge.socket" --key-file="$SLURM_ROOT/munge.key" --pid-file="$SLURM_ROOT/munged.pid" \
        --log-file="$SLURM_ROOT/munged.log" --seed-file="$SLURM_ROOT/munge.seed" --num-threads=2
    wait_for 10 munge --socket="$SLURM_ROOT/munge.socket" -n
    # Two jobs at once even on one core, and memory for each of them as the profile asks for it.
    cpus=$(nproc)
    ((cpus >= 2)) || cpus=2
    ((cpus <= 4)) || cpus=4
    read -r controller_port node_port < <(free_ports)
    sed -e "s|@HOST@|$(hostname -s)|g; s|@USER@|$(id -un)|g; s|@CPUS@|$cpus|g; s|@MEMORY@|$((cpus * 2048))|g" \
        -e "s|@CONTROLLER_PORT@|$controller_port|; s|@NODE_PORT@|$node_port|; s|@ROOT@|$SLURM_ROOT|g" \
        "$HERE/slurm.conf.in" >"$SLURM_CONF"
    # Snakemake takes Slurm's variables away from the srun that it calls inside of a job, SLURM_CONF among them.
    printf '#!/bin/sh\nSLURM_CONF=%q exec %q "$@"\n' "$SLURM_CONF" "$(command -v srun)" >"$SLURM_ROOT/bin/srun"
    chmod +x "$SLURM_ROOT/bin/srun"
    # The daemons fork themselves into the background and write pid files.
    slurmctld -c -f "$SLURM_CONF"
    wait_for 20 scontrol ping
    slurmd -c -f "$SLURM_CONF"
    wait_for 30 idle
}

# Ends what stop finds by its pid file, so only what this folder's start has begun.
end() { # end NAME
    local pid
    [[ -s $SLURM_ROOT/$1.pid ]] && pid=$(cat "$SLURM_ROOT/$1.pid") || return 0
    [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$1" ]] || return 0
    kill "$pid"
    wait_for 10 bash -c "! kill -0 $pid" || kill -9 "$pid" || true
}

stop() {
    if [[ -s $SLURM_CONF ]] && timeout 20 squeue -h >/dev/null 2>&1; then
        timeout 20 scancel -u "$(id -un)" || true
        wait_for 30 bash -c '[[ -z $(squeue -h) ]]' || true
    fi
    end slurmd
    end slurmctld
    end munged
}

case ${1:-} in
    install)
        as_root=()
        [[ $(id -u) == 0 ]] || as_root=(sudo --non-interactive)
        "${as_root[@]}" apt-get update -qq
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}" >/dev/null
        exit
        ;;
    start | stop | status) [[ -n ${SLURM_ROOT:-} ]] || usage ;;
    *) usage ;;
esac
export SLURM_CONF=$SLURM_ROOT/slurm.conf
case $1 in
    start) start ;;
    stop) stop ;;
    status) sinfo && squeue ;;
esac
