#!/usr/bin/env bash
# Stands in for gcloud, and for curl and python3 of a TPU's hosts, as the name that it is called by.
#
# Every call of gcloud compute tpus tpu-vm VERB is a line of $FAKE/calls. What it answers is the first line of
# $FAKE/VERB, STATUS|OUTPUT|ERROR (\n in OUTPUT ends a line), which is then taken away; without one, success. What comes by ssh and scp is done in
# each folder of $FAKE/hosts, the homes of the hosts, before the answer: an answer of 255 is a connection that dropped
# after the work was done.
set -u

option() { # NAME ARGUMENTS...
  local argument
  for argument in "${@:2}"; do
    case $argument in "$1"=*) echo "${argument#*=}" ;; esac
  done
}

on_hosts() { # WORKER COMMAND
  local host
  for host in "$FAKE"/hosts/*; do
    case $1 in all | "${host##*/}") ;; *) continue ;; esac
    (cd "$host" && HOME=$host PATH="$FAKE/host_bin:$PATH" bash -c "$2") || return
  done
}

gcloud() {
  local verb=$4 status=0 output='' error='' done=0
  echo "$*" >>"$FAKE/calls"
  if [ -d "$FAKE/hosts" ]; then
    case $verb in
      ssh) on_hosts "$(option --worker "$@")" "$(option --command "$@")" || done=$? ;;
      scp) on_hosts "$(option --worker "$@")" "cp '$5' '${6#*:}'" || done=$? ;;
    esac
  fi
  if [ -s "$FAKE/$verb" ]; then
    IFS='|' read -r status output error <"$FAKE/$verb"
    sed -i 1d "$FAKE/$verb"
  fi
  [ -z "$output" ] || printf '%b\n' "$output"
  [ -z "$error" ] || echo "$error" >&2
  [ "$status" -ne 0 ] || status=$done
  return "$status"
}

curl() { # the metadata server: as many hosts as there are, this one's number
  case ${*: -1} in
    */worker-network-endpoints)
      local each hosts=''
      for each in "$FAKE"/hosts/*; do hosts+=",unknown:${each##*/}:10.0.0.${each##*/}"; done
      echo "${hosts#,}"
      ;;
    */agent-worker-number) echo "${HOME##*/}" ;;
    *) return 22 ;;
  esac
}

python3() { # -m pip install uv; -m uv venv FOLDER; -m uv pip install
  case "$*" in
    "-m uv venv "*)
      mkdir -p "${*: -1}/bin"
      cat >"${*: -1}/bin/python" <<'END'
#!/usr/bin/env bash
echo "process ${JAX_PROCESS_ID-none} of ${JAX_NUM_PROCESSES-none} at ${JAX_COORDINATOR_ADDRESS-none}"
printf '<%s>' "$@"
echo
while [ ! -f "$HOME/end" ]; do sleep 0.05; done
exit "$(cat "$HOME/end")"
END
      chmod +x "${*: -1}/bin/python"
      ;;
    "-m uv pip install "*) [ -f pyproject.toml ] && [ -f requirements.lock ] ;;
  esac
}

"${0##*/}" "$@"
