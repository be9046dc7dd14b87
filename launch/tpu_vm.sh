#!/usr/bin/env bash
# Trains on a Cloud TPU VM, one host or many, from this checkout: docs/tpu.md.
#
#   launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [FLAGS] [-- ARGUMENTS OF t5x_lite.train]
#
#   create   makes the TPU (--type, --spot)
#   setup    copies this checkout to every host (uncommitted changes of tracked files too) and installs it there
#   run      starts python -m t5x_lite.train ARGUMENTS on every host; it goes on when this connection ends
#   logs     follows what the first host prints
#   status   the TPU's state, and each host's training: running, finished, failed STATUS, not started
#   resume   makes the TPU again if it was preempted, sets it up and runs; the run goes on from its last checkpoint
#   watch    resume, again and again, until the training finishes or fails
#   delete   deletes the TPU, asking first
#
#   --name=NAME --zone=ZONE [--project=PROJECT]   the project is gcloud's where it is not given
#   --type=TYPE         v5litepod-16 (v5e), v5p-8, v6e-16, v4-8, ...
#   --spot              cheaper, and may be taken away at any time
#   --runtime=VERSION   instead of the one that TYPE usually runs
#   --local_model_dir   run although MODEL_DIR is not in a bucket: what is trained is lost with the TPU
#   --yes               delete without asking
#   --dry_run           print the calls that would be made, and make none
#
# Exit status: 2 a mistake in the command, 3 no quota, 4 no capacity or not ready yet (try again), 1 anything else.
#
# Google's pages recommend queued resources to create TPUs. This creates the TPU directly, so that one name stands for
# one thing to look at and to delete; `watch` does the waiting.
set -euo pipefail

readonly commands=(create setup run logs status resume watch delete)
readonly flags=(--name --zone --project --type --spot --runtime --local_model_dir --yes --dry_run)
readonly label=created-by=t5x_lite # what is not labelled so is never deleted
readonly attempts=5
pause=${TPU_VM_RETRY_SECONDS:-5}
poll=${TPU_VM_WATCH_SECONDS:-120}

say() { echo "launch/tpu_vm.sh: $*" >&2; }
die() { say "${*:2}"; exit "$1"; }

nearest() { # WORD KNOWN...
  python3 -c 'import difflib, sys
close = difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1)
print(f"; nearest: {close[0]}" if close else f"; there are {chr(32).join(sys.argv[2:])}")' "$@"
}

# ---------------------------------------------------------------------- command line

command=${1:-}
if [ "$command" = --help ]; then
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
  exit
fi
case " ${commands[*]} " in
  *" ${command:-none} "*) shift ;;
  *) die 2 "no command '$command'$(nearest "$command" "${commands[@]}")" ;;
esac

name='' zone='' project='' type='' spot='' runtime='' local_model_dir='' yes='' dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --name=?* | --zone=?* | --project=?* | --type=?* | --runtime=?*)
      flag=${1%%=*}
      printf -v "${flag#--}" %s "${1#*=}"
      ;;
    --spot | --local_model_dir | --yes | --dry_run) printf -v "${1#--}" %s yes ;;
    --) shift; break ;;
    --name | --zone | --project | --type | --runtime | --*=) die 2 "${1%=} has no value; write ${1%=}=VALUE" ;;
    --gin*) die 2 "$1 is for t5x_lite.train; write it after --" ;;
    *) die 2 "no flag '$1'$(nearest "${1%%=*}" "${flags[@]}")" ;;
  esac
  shift
done

[ -n "$name" ] || die 2 'no --name; what the TPU is called, like --name=flan-xl'
[ -n "$zone" ] || die 2 'no --zone; where you have quota, like --zone=us-west4-a'

case $command in
  run | resume | watch)
    bucket=''
    for argument in "$@"; do
      case $argument in --gin.MODEL_DIR=*gs://*) bucket=yes ;; esac
    done
    [ $# -gt 0 ] || die 2 "nothing to run; write -- --gin_file=FILE --gin.MODEL_DIR=gs://BUCKET/RUN"
    [ -n "$bucket$local_model_dir" ] || die 2 'MODEL_DIR is not in a bucket, and what the TPU keeps is lost with it;' \
      'add --gin.MODEL_DIR=gs://BUCKET/RUN after --, or --local_model_dir before it'
    ;;
  *) [ $# -eq 0 ] || die 2 "$command takes nothing after --" ;;
esac

case $command in
  create | resume | watch)
    [ -n "$type" ] || die 2 'no --type; the accelerator type, like --type=v5litepod-16'
    if [ -z "$runtime" ]; then
      case $type in # https://cloud.google.com/tpu/docs/runtimes
        v6e-*) runtime=v2-alpha-tpuv6e ;;
        v5p-*) runtime=v2-alpha-tpuv5 ;;
        v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
        v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
        *) die 2 "--type=$type: which runtime it needs is not known here; give --runtime=VERSION, one of" \
          "gcloud compute tpus tpu-vm versions list --zone=$zone" ;;
      esac
    fi
    ;;
esac

# ---------------------------------------------------------------------- gcloud

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Runs gcloud compute tpus tpu-vm SUBCOMMAND ARGUMENTS on this TPU; its errors go to $scratch/errors.
tpu() { # SUBCOMMAND ARGUMENTS...
  set -- gcloud compute tpus tpu-vm "$@" --zone="$zone" ${project:+--project="$project"} --quiet
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@" 2>"$scratch/errors"
  fi
}

error_line() {
  grep -m 1 -E 'ERROR|[Qq]uota|capacity' "$scratch/errors" || tail -n 1 "$scratch/errors"
}

errors_say() { grep -qiE "$1" "$scratch/errors"; }

not_set_up() { errors_say 'tpu_worker.sh: No such file'; }

# Calls tpu as long as the connection drops, a few times, waiting twice as long each time. What is called must bear it.
over_ssh() {
  local attempt status wait=$pause
  for ((attempt = 1; ; attempt++)); do
    status=0
    tpu "$@" || status=$?
    [ "$status" -ne 0 ] || return 0
    # gcloud passes ssh's status on, or, for several hosts, says it and ends with 1.
    if [ "$status" -ne 255 ] && ! errors_say 'return code \[255\]'; then
      cat "$scratch/errors" >&2
      not_set_up && die 1 "$name: not set up; launch/tpu_vm.sh setup"
      die 1 "$name: $(error_line)"
    fi
    [ "$attempt" -lt "$attempts" ] || die 4 "$name: no connection, $attempts times ($(error_line));" \
      'see launch/tpu_vm.sh status, and whether a firewall rule lets tcp:22 in'
    say "$name: the connection dropped ($attempt of $attempts), again in $wait s"
    sleep "$wait"
    wait=$((wait * 2))
  done
}

on_hosts() { # WORKERS SCRIPT-COMMAND ARGUMENTS...
  local words
  printf -v words ' %q' "${@:2}"
  over_ssh ssh "$name" --worker="$1" --command="bash t5x_lite/source/launch/tpu_worker.sh$words"
}

state() { # READY, PREEMPTED, ... or ABSENT; a dry run takes the longest way
  local found
  if [ -n "$dry_run" ]; then
    tpu describe "$name" --format='value(state)' >&2
    echo PREEMPTED
  elif found=$(tpu describe "$name" --format='value(state)'); then
    echo "$found"
  elif errors_say 'NOT_FOUND|was not found'; then
    echo ABSENT
  else
    die 1 "$name: its state is not known ($(error_line))"
  fi
}

# ---------------------------------------------------------------------- commands

create() {
  if tpu create "$name" --accelerator-type="$type" --version="$runtime" ${spot:+--spot} --labels="$label" \
    --scopes=https://www.googleapis.com/auth/cloud-platform; then
    return
  fi
  local where="$type${spot:+ spot} in $zone"
  if errors_say 'quota'; then
    die 3 "$name: no quota for $where; ask for it at https://console.cloud.google.com/iam-admin/quotas, or try" \
      "another --zone or --type ($(error_line))"
  elif errors_say 'capacity|stockout|RESOURCE_EXHAUSTED|unavailable'; then
    die 4 "$name: no capacity for $where; try again, another --zone, or let watch wait ($(error_line))"
  elif errors_say 'SERVICE_DISABLED|has not been used in project'; then
    die 1 "$name: the project cannot use TPUs yet; gcloud services enable tpu.googleapis.com"
  elif errors_say 'ALREADY_EXISTS|already exists'; then
    die 1 "$name is there already; go on with setup, or look at it with status"
  fi
  die 1 "$name: $(error_line)"
}

setup() {
  local root commit clear
  root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel) || die 2 'this is no checkout of git; clone the repository'
  # A commit of the tracked files as they are, which changes nothing here; none where they are as in HEAD.
  commit=$(git -C "$root" -c user.name=t5x_lite -c user.email=t5x_lite@localhost stash create)
  git -C "$root" archive --format=tar.gz -o "$scratch/source.tar.gz" "${commit:-HEAD}"
  [ -z "$(git -C "$root" ls-files --others --exclude-standard)" ] ||
    say 'files that git does not track are not copied (git status shows them); git add them if they are needed'
  # What the last setup brought goes, so that a file which is gone here is gone there; a run in the folder stays.
  clear='mkdir -p t5x_lite/source && cd t5x_lite/source'
  clear+=' && tar -tzf ../source.tar.gz | grep -v "/$" | xargs -d "\n" rm -f --'
  over_ssh ssh "$name" --worker=all --command="$clear"
  over_ssh scp "$scratch/source.tar.gz" "$name:t5x_lite/source.tar.gz" --worker=all
  over_ssh ssh "$name" --worker=all --command='tar -xzf t5x_lite/source.tar.gz -C t5x_lite/source'
  on_hosts all setup
}

run() {
  on_hosts all start "$@"
  say "$name: follow it with launch/tpu_vm.sh logs; it goes on without this machine"
}

resume() {
  local now
  now=$(state) || exit
  case $now in
    READY) run "$@"; return ;;
    PREEMPTED | TERMINATED | SUSPENDED) say "$name is $now: deleting it and making it again"; delete_labelled ;;
    ABSENT) say "$name is not there: making it" ;;
    STOPPED) die 1 "$name was stopped by hand; gcloud compute tpus tpu-vm start $name --zone=$zone, then resume" ;;
    *) die 4 "$name is $now; try again when it is READY" ;;
  esac
  create
  setup
  run "$@"
}

# What the hosts' lines come to. Where one has failed the others soon end too; before they have, `start` would start the
# training on that one alone.
training_of() { # LINES
  local word
  for word in running failed 'not started' finished; do
    ! grep -m 1 "^$word" <<<"$1" || return 0
  done
  echo unknown
}

watch() {
  local now known='' lines training status restarts=3 faults=0
  while true; do
    # Once it was known, a state that is not is a fault of the network.
    now=$(state) || now=unknown
    [ "$now" != unknown ] || [ -n "$known" ] || exit 1
    known=yes
    training='' status=0
    if [ "$now" = READY ]; then
      lines=$(on_hosts all status) || status=$?
      if [ "$status" -eq 0 ]; then
        training=$(training_of "$lines")
      elif not_set_up; then # it was made, and then not reached
        training='not started' status=0
      else
        training=unknown
      fi
    fi
    case $training in
      finished) say "$name: finished; delete it when you have what you want"; return ;;
      failed*)
        [ $((restarts--)) -gt 0 ] || die 1 "$name: the training $training; launch/tpu_vm.sh logs says why"
        say "$name: the training $training; starting it again"
        ;;
    esac
    # Each in a shell of its own, which its errors end.
    case $now,$training in
      unknown,* | *,unknown) ;;
      *,running) faults=0 ;;
      READY,failed*) (run "$@") || status=$? ;;
      READY,*) (setup && run "$@") || status=$? ;;
      *) (resume "$@") || status=$? ;;
    esac
    case $status in
      0 | 4) ;;
      1) # The TPU was taken away meanwhile, or the network failed; where neither is seen, a few tries and no more.
        if [ "$(state)" = "$now" ] && [ $((++faults)) -gt 3 ]; then exit 1; fi
        ;;
      *) exit "$status" ;;
    esac
    [ -z "$dry_run" ] || return 0
    sleep "$poll"
  done
}

delete_labelled() {
  local labels
  if [ -z "$dry_run" ]; then
    labels=$(tpu describe "$name" --format='value(labels)') || die 1 "$name: $(error_line)"
    case $labels in
      *"$label"*) ;;
      *) die 1 "$name was not created by launch/tpu_vm.sh (no label $label); it is left as it is" ;;
    esac
  fi
  tpu delete "$name" || die 1 "$name: $(error_line)"
}

delete() {
  if [ -z "$yes$dry_run" ]; then
    [ -t 0 ] || die 2 "delete $name? Add --yes"
    local answer
    read -r -p "Delete $name in $zone, and what is kept on it? [y/N] " answer
    [ "$answer" = y ] || die 1 "$name is left as it is"
  fi
  delete_labelled
}

case $command in
  create | setup | delete) "$command" ;;
  run | resume | watch) "$command" "$@" ;;
  logs) over_ssh ssh "$name" --worker=0 --command='tail -n 100 -F t5x_lite/train.log' ;;
  status)
    now=$(state) || exit
    [ -z "$dry_run" ] || now=READY
    echo "$now"
    [ "$now" != READY ] || on_hosts all status
    ;;
esac
