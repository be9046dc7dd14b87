#!/usr/bin/env bash
# What launch/tpu_vm.sh, and launch/skypilot.yaml, run on every host of a TPU VM, from the checkout that is there:
#
#   setup           makes ~/t5x_lite/venv
#   train ARGS      trains, with the other hosts
#   start ARGS      the same, detached: ~/t5x_lite has train.log, pid, and status when the training has ended
#   status          running, finished, failed STATUS, not started
set -euo pipefail

home="$HOME/t5x_lite"
source=$(cd "$(dirname "$0")/.." && pwd)
metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes

attribute() {
  curl --silent --show-error --fail --retry 5 -H 'Metadata-Flavor: Google' "$metadata/$1"
}

running() {
  [ -f "$home/pid" ] && [ ! -f "$home/status" ] || return 1
  case $(ps -o stat= -p "$(cat "$home/pid")") in '' | Z*) return 1 ;; esac
}

setup() {
  # The hosts' own Python is 3.10 (Ubuntu 22.04), and t5x_lite needs 3.11; uv brings one.
  python3 -m pip install --user --quiet uv
  python3 -m uv venv --quiet --allow-existing --python 3.11 "$home/venv"
  cd "$source"
  python3 -m uv pip install --quiet --python "$home/venv/bin/python" -c requirements.lock -e '.[tpu]'
  echo "$(hostname): set up"
}

# Tells JAX who the hosts are, as Google's metadata server has it; one host alone joins nobody. JAX would find it out by
# itself, but not on a host whose chips it does not see: that one would train alone, into the MODEL_DIR of the others.
join_the_others() {
  local hosts first
  hosts=$(attribute worker-network-endpoints)
  case $hosts in
    *,*) ;;
    *) return 0 ;;
  esac
  first=${hosts%%,*} # a host, or in the older form name:number:address
  export JAX_COORDINATOR_ADDRESS="${first##*:}:8476"
  JAX_NUM_PROCESSES=$(($(printf %s "$hosts" | tr -cd , | wc -c) + 1))
  JAX_PROCESS_ID=$(attribute agent-worker-number)
  export JAX_NUM_PROCESSES JAX_PROCESS_ID
}

train() {
  [ -x "$home/venv/bin/python" ] || { echo "$(hostname): not set up; tpu_worker.sh setup" >&2; exit 1; }
  join_the_others
  cd "$source"
  exec "$home/venv/bin/python" -u -m t5x_lite.train "$@"
}

# Starts training, detached from the connection. A second call while it runs does nothing: the first answer was lost.
start() {
  if running; then
    echo "$(hostname): training runs already"
    return
  fi
  mkdir -p "$home"
  rm -f "$home/status"
  # shellcheck disable=SC2016 # the inner shell expands these
  setsid nohup bash -c 'bash "$0" train "${@:2}"; echo $? >"$1/status"' \
    "$source/launch/tpu_worker.sh" "$home" "$@" >>"$home/train.log" 2>&1 </dev/null &
  echo $! >"$home/pid"
  echo "$(hostname): training started"
}

status() {
  if running; then
    echo running
  elif [ ! -f "$home/pid" ]; then
    echo 'not started'
  elif [ "$(cat "$home/status" 2>/dev/null)" = 0 ]; then
    echo finished
  else
    echo "failed $(cat "$home/status" 2>/dev/null || echo 'with its host')"
  fi
}

case $1 in
  setup | train | start | status) "$@" ;;
  *) echo "launch/tpu_worker.sh: no command '$1'; setup, train, start, status" >&2; exit 2 ;;
esac
