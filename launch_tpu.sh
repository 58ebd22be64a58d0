#!/usr/bin/env bash
# Create, set up, use and delete a Cloud TPU slice of any number of hosts, through queued resources.
# Exercised with a recorded gcloud only (tests/test_launch_tpu.py), not on a real TPU: read what --dry-run prints first.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch_tpu.sh COMMAND NAME [options] [-- PROGRAM ...]

  create NAME   request a slice and wait until it is active
  setup  NAME   copy this checkout to every host and run `make env` there
  run    NAME   run PROGRAM on every host, from the checkout; output is kept for `logs`
  logs   NAME   follow what `run` printed on a host
  delete NAME   delete the slice and its request

  --zone ZONE          e.g. us-west4-a                     (every command)
  --project PROJECT    default: gcloud's own               (every command)
  --type TYPE          e.g. v5litepod-16, v4-32, v5p-8, v6e-64      (create; run with --spot)
  --runtime VERSION    default: the one for TYPE
  --spot               cheaper, may be preempted: `run` then makes the slice again and starts PROGRAM again.
                       Training goes on from its last checkpoint if its --workdir outlives the slice.
  --restarts N         how often `run` makes a preempted slice again; default 20
  --worker N           whose output `logs` follows; default 0
  --dry-run            print every command, run none

Every host reads the prepared data and writes checkpoints: --workdir and config.data.root belong on storage that all
hosts mount (Filestore, or a bucket through Cloud Storage FUSE). Several hosts are several processes: --distributed.

Example:
  ./launch_tpu.sh create bev --zone us-west4-a --type v5litepod-16 --spot
  ./launch_tpu.sh setup  bev --zone us-west4-a
  ./launch_tpu.sh run    bev --zone us-west4-a --type v5litepod-16 --spot -- \
    .venv/bin/python -m placerec_jax.train --distributed --config=configs/maplocnet.py:nuscenes \
    --config.data.root=/mnt/shared/nuscenes/maploc --workdir=/mnt/shared/runs/bev
  ./launch_tpu.sh delete bev --zone us-west4-a
TEXT
}

fail() {
  echo "launch_tpu.sh: $*" >&2
  exit 2
}

# Prints a command, then runs it unless --dry-run.
act() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  printf '\n' >&2
  if ! $dry_run; then "$@"; fi
}

tpus() {
  local group=$1 verb=$2
  shift 2
  act gcloud compute tpus "$group" "$verb" "$@" --zone "$zone" ${project:+--project "$project"}
}

default_runtime() {
  case $type in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
  esac
}

create() {
  tpus queued-resources create "$name" --node-id "$name" --accelerator-type "$type" \
    --runtime-version "${runtime:-$(default_runtime)}" ${spot:+--spot}
  local state
  while ! $dry_run; do
    state=$(tpus queued-resources describe "$name" --format 'value(state.state)')
    echo "$(date +%T) $name: $state"
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        fail "the request for $name ended as $state; see: gcloud compute tpus queued-resources describe $name" ;;
    esac
    sleep "${LAUNCH_TPU_POLL_SECONDS:-30}"
  done
}

on_hosts() {
  tpus tpu-vm ssh "$name" --worker "$1" --command "$2"
}

# The files that git tracks or would track, as they are now: what runs there is what you see here.
setup() {
  local archive
  archive=$(mktemp -t checkout-XXXXXX.tar.gz)
  # shellcheck disable=SC2064  # the name as it is now
  trap "rm -f '$archive'" EXIT
  git -C "$checkout" ls-files -z --cached --others --exclude-standard |
    tar -C "$checkout" --null -T - -czf "$archive"
  tpus tpu-vm scp "$archive" "$name:checkout.tar.gz" --worker all
  rm "$archive"
  # TPU images may bring an older Python than the project needs.
  # shellcheck disable=SC2016  # $HOME is the host's
  on_hosts all 'set -e
mkdir -p "$HOME/placerec_jax" && tar -C "$HOME/placerec_jax" -xzf checkout.tar.gz && cd "$HOME/placerec_jax"
if ! command -v make >/dev/null || ! python3 -c "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"; then
  sudo apt-get update -q && sudo apt-get install -y -q make python3.11 python3.11-venv
fi
make env'
}

run() {
  local quoted status state restart=0
  quoted=$(printf ' %q' "${program[@]}")
  while true; do
    status=0
    on_hosts all "set -o pipefail; cd \"\$HOME/placerec_jax\" && { $quoted; } 2>&1 | tee -a run.log" || status=$?
    if ((status == 0)); then return; fi
    # Training that saved itself before a preemption ends with status 75, a lost connection with 255.
    # A slice that is still there means that PROGRAM itself failed: starting it again would fail again.
    # One that was taken long enough ago is gone, and only its request is left to tell.
    state=$(tpus tpu-vm describe "$name" --format 'value(state)') ||
      state=$(tpus queued-resources describe "$name" --format 'value(state.state)') ||
      state=unknown
    echo "$(date +%T) run ended with exit status $status, $name is $state" >&2
    case $state in PREEMPTED | TERMINATED | SUSPENDING | SUSPENDED) ;; *) return "$status" ;; esac
    if [[ -z $spot ]] || ((restart >= restarts)); then return "$status"; fi
    restart=$((restart + 1))
    echo "making $name again ($restart of $restarts)" >&2
    delete
    create
    setup
  done
}

logs() {
  # shellcheck disable=SC2016  # $HOME is the host's
  on_hosts "$worker" 'tail -n 200 -F "$HOME/placerec_jax/run.log"'
}

delete() {
  tpus queued-resources delete "$name" --force --quiet
}

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
command='' name='' zone='' project='' type='' runtime='' spot='' restarts=20 worker=0 dry_run=false program=()

while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=true ;;
    --spot) spot=yes ;;
    --zone | --project | --type | --runtime | --restarts | --worker)
      (($# > 1)) || fail "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift ;;
    --) shift; program=("$@"); break ;;
    -*) fail "unknown option $1 (see --help)" ;;
    *)
      if [[ -z $command ]]; then command=$1
      elif [[ -z $name ]]; then name=$1
      else fail "unexpected argument $1; the program to run comes after --"; fi ;;
  esac
  shift
done

case $command in
  create | setup | run | logs | delete) ;;
  '') usage >&2; exit 2 ;;
  *) fail "unknown command $command; expected create, setup, run, logs or delete" ;;
esac
[[ $name =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] ||
  fail "NAME '$name': expected lower-case letters, digits and dashes, a letter first"
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || fail "--zone '$zone': expected a zone such as us-west4-a"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts '$restarts': expected a number"
[[ $worker =~ ^[0-9]+$ ]] || fail "--worker '$worker': expected the number of a host"
if [[ $command == create || ($command == run && -n $spot) ]]; then
  [[ $type =~ ^(v4|v5litepod|v5p|v6e)-[1-9][0-9]*$ ]] ||
    fail "--type '$type': expected v4-N, v5litepod-N, v5p-N or v6e-N"
fi
if [[ $command == run ]]; then
  ((${#program[@]})) || fail "run needs a program: run $name --zone $zone -- .venv/bin/python -m placerec_jax.train ..."
elif ((${#program[@]})); then
  fail "$command takes no program after --"
fi
$dry_run || command -v gcloud >/dev/null || fail "gcloud is not on PATH: install the Google Cloud CLI, or use --dry-run"

"$command"
