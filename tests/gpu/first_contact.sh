#!/usr/bin/env bash
# First contact of reducebench with a machine that has GPUs: every CUDA path once, within 8 minutes.
#
#   make gpu-contact                                     # or, from the root of the checkout:
#   OUT=folder bash tests/gpu/first_contact.sh
#   OUT=folder STEPS="facts billion" bash tests/gpu/first_contact.sh     # chosen steps
#   REHEARSE=1 OUT=folder bash tests/gpu/first_contact.sh                # on a machine without a GPU: see below
#
# Prepare
#   With a network:     python -m pip install -e '.[dev]'                # with a torch that supports the GPU
#   Without a network:  on another machine, with the same Python:
#                         python -m pip wheel --wheel-dir wheels '.[dev]'
#                       copy the checkout and the folder; on the machine with the GPU:
#                         python -m pip install --no-index --find-links wheels -e '.[dev]'
#                       If nothing can be installed there, WHEELS=wheels: packages of the folder that the machine lacks are put
#                       into a temporary folder and on PYTHONPATH. A torch that is already there is used.
#
# Several ranks on one GPU need NCCL 2.30 or newer. torch 2.13 contains an older one. To get and to name another:
#   python -m pip download --no-deps nvidia-nccl-cu13 && unzip nvidia_nccl_cu13-*.whl 'nvidia/nccl/lib/*'
#   NCCL_LIB=$PWD/nvidia/nccl/lib/libnccl.so.2 OUT=folder bash tests/gpu/first_contact.sh
#
# Variables
#   OUT       folder for the results; required
#   PY        Python (.venv/bin/python if there is one, or python3)
#   STEPS     which steps, in the order of the list below
#   T_END     seconds until no further step begins, and the last one ends (480)
#   SCALE     factor on the limit of every step (1): for a slow machine, together with T_END
#   REHEARSE  1: the same on the CPU, over gloo, and smaller. Lines that need a CUDA object are skipped, each by name.
#
# Every step has its own limit and its own log, and a failure ends nothing. Afterwards OUT contains:
#   summary.txt      steps with exit status and seconds; the last lines of logs of steps that failed; skipped lines
#   facts.txt        machine, GPUs, topology, versions     } contain host names, and names of users in paths
#   logs.tar.gz      a log for each step                   }
#   runs.tar.gz      run directories, without scratch and traces; of too large ones the tables alone
#   tests.tar.gz     JUnit XML of the tests
#   traces.tar.gz    at most 12 traces
# `python -m tests.gpu.page OUT` prints tables for docs/gpu.md. The exit status is 0 if every step passed.
# shellcheck disable=SC2102  # lists of Hydra, not ranges; nothing is expanded to names of files
set -uf
T0=$SECONDS
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
OUT=${OUT:?name a folder for the results: OUT=folder}
mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd)
cd "$ROOT" || exit 2
T_END=${T_END:-480}
SCALE=${SCALE:-1}
ALL="facts smoke claims two_gloo audit_gloo two_nccl audit_nccl strategies tests faults options cpu_suite shared_tests
sync sweep memory trace billion"
STEPS=${STEPS:-$ALL}
if [ -z "${PY:-}" ]; then PY=python3; [ -x .venv/bin/python ] && PY=$ROOT/.venv/bin/python; fi
W=$(mktemp -d) R=$W/results L=$W/logs
mkdir -p "$R" "$L" "$W/tests"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 COLUMNS=160 OMP_NUM_THREADS=1 NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export TORCH_NCCL_DUMP_ON_TIMEOUT=0                   # no wait for a dump when something hangs
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}    # for a checkout that is not installed
: > "$OUT/summary.txt"
set -m                                                # jobs in the background keep SIGINT
trap 'jobs -rp | xargs -r kill 2> /dev/null; wait; pack; rm -rf "$W"' EXIT
trap 'exit 130' INT TERM

left() { echo $((T_END - (SECONDS - T0))); }
wants() { case " ${STEPS//$'\n'/ } " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
note() { printf '%-24s %-10s %5ss  t=%ss\n' "$1" "$2" "$3" "$((SECONDS - T0))" | tee -a "$OUT/summary.txt"; }
skip() { wants "$1" && note "$1" "skipped" 0 && echo "  $2" | tee -a "$OUT/summary.txt"; return 0; }

# step NAME LIMIT COMMAND...: run within LIMIT seconds. SIGINT lets pytest write its report, and the launcher its run.
step() {
  local name=$1 limit=$(($2 * SCALE)) began=$SECONDS rc
  local most=$(($(left) - 20))
  shift 2
  wants "$name" || return 0
  [ "$limit" -gt "$most" ] && limit=$most
  if [ "$limit" -lt 10 ]; then note "$name" "no time" 0; echo "$name" >> "$W/failed"; return 0; fi
  timeout -s INT -k 20 "$limit" "$@" > "$L/$name.log" 2>&1
  rc=$?
  note "$name" "rc=$rc" "$((SECONDS - began))"
  grep -hE '^skipped line: |^CLAIM .*: skipped: |: not tried: ' "$L/$name.log" | sed -E 's/^rank [0-9]+ \[[^]]*\]: //' | sed "s/^/  $name: /" >> "$W/skipped.txt"
  [ "$rc" = 0 ] && return 0
  echo "$name" >> "$W/failed"
  { echo "--- end of the log of $name:"; tail -n 15 "$L/$name.log" | cut -c1-220; } | tee -a "$OUT/summary.txt"
}

# size FILE: bytes; 0 where it is missing
size() { stat -c %s "$1" 2> /dev/null || echo 0; }

pack() {  # after every step, so that a call that is cut short leaves what there was
  [ -d "$W" ] || return 0
  tar -czf "$OUT/logs.tar.gz" -C "$W" logs
  tar -czf "$OUT/tests.tar.gz" -C "$W" --exclude='tests/*/*' tests
  tar -czf "$OUT/runs.tar.gz" -C "$W" --exclude=scratch --exclude=traces results
  if [ "$(size "$OUT/runs.tar.gz")" -gt 15000000 ]; then
    tar -czf "$OUT/runs.tar.gz" -C "$W" --exclude=scratch --exclude=traces --exclude=samples --exclude=report results
  fi
  (cd "$R" && find . -path '*/traces/*' -name '*.gz' -size -6M | sort | head -n 12 | tar -czf "$OUT/traces.tar.gz" -T -)
  return 0
}

# ---------------------------------------------------------------- what is here
D=cuda N=nccl WIDTH=31600 SYNC_WIDTH=512 SMALL=() SWEEP=() AT_ONCE=4 TESTS_S=200
if [ "${REHEARSE:-}" = 1 ]; then
  D=cpu N=gloo WIDTH=400 SYNC_WIDTH=64 AT_ONCE=2 TESTS_S=260
  export CUDA_VISIBLE_DEVICES="" HIP_VISIBLE_DEVICES=""
  SMALL=(workload.mlp_digits.hidden=200)
  SWEEP=(probe.collectives.most_bytes=65536 probe.collectives.beside_bytes=4096 probe.collectives.iterations=3)
else
  unset REHEARSE
fi
if [ -n "${WHEELS:-}" ]; then
  missing=$("$PY" - "$WHEELS" << 'PYTHON'
import importlib.metadata, pathlib, sys
for wheel in sorted(pathlib.Path(sys.argv[1]).glob("*.whl")):
    try:
        importlib.metadata.version(wheel.name.split("-")[0])
    except importlib.metadata.PackageNotFoundError:
        print(wheel)
PYTHON
  )
  # shellcheck disable=SC2086  # one file a word
  # (names of wheels have no spaces)
  [ -n "$missing" ] && "$PY" -m pip install -q --no-index --no-deps --no-compile --target "$W/site" $missing
  export PYTHONPATH=$PYTHONPATH:$W/site
fi
GPUS=$("$PY" -c 'import torch; print(torch.cuda.device_count())' 2> "$L/torch.log") || { cat "$L/torch.log"; exit 2; }
if [ "$D" = cuda ] && [ "$GPUS" = 0 ]; then echo "torch sees no GPU; REHEARSE=1 rehearses on the CPU" >&2; exit 2; fi
RANKS=$((GPUS > 1 ? GPUS : 1))                        # of runs with one rank a GPU
SEVERAL=2 WHY=""                                      # ranks of NCCL that reduce, and what they need before the command
SHARE=()
if [ "$GPUS" -gt 1 ]; then SEVERAL=$GPUS
elif [ -n "${NCCL_LIB:-}" ] && [ "$D" = cuda ]; then SHARE=(env "LD_PRELOAD=$NCCL_LIB" NCCL_MULTI_RANK_GPU_ENABLE=1)
elif [ "$D" = cuda ]; then WHY="needs two GPUs, or NCCL_LIB for two ranks on one"; fi
TWO=("$PY" -m torch.distributed.run --standalone --local-addr=127.0.0.1 --nproc-per-node=2)
export GPU_TEST_S=$((110 * SCALE))                    # limit of one test
note setup "$GPUS GPUs" "$((SECONDS - T0))"

# measure NAME LIMIT RANKS BACKEND OVERRIDES...: what hangs is given up after 45 s, not after 300
measure() {
  local name=$1 limit=$2 ranks=$3 backend=$4
  shift 4
  step "$name" "$limit" ${PRE[@]+"${PRE[@]}"} "$PY" -m launch "device=$D" "results_dir=$R" deadline_s=$((45 * SCALE)) rendezvous_s=$((60 * SCALE)) \
    restarts=1 "backend=$backend" "torchrun.nproc_per_node=$ranks" "name=$name" "$@"
}

# check NAME LIMIT ARGUMENTS...: pytest, with JUnit XML
check() {
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" ${PRE[@]+"${PRE[@]}"} "$PY" -m pytest -q -rfE -p no:cacheprovider -W default --basetemp="$W/tests/$name" \
    --junitxml="$W/tests/$name.xml" "$@"
}
PRE=()                                                # what stands before the command

facts() {
  date -u +%Y-%m-%dT%H:%M:%SZ; uname -a; nproc --all; free -g; df -h /tmp /dev/shm; ulimit -n
  if command -v nvidia-smi > /dev/null; then nvidia-smi; nvidia-smi topo -m; nvidia-smi -q -d CLOCK,PERFORMANCE,POWER,ECC | head -n 200; fi
  command -v gcc cc nvcc nsys ncu git
  "$PY" -VV
  "$PY" -m pip list 2> /dev/null
  "$PY" -c 'import torch
print(torch.__config__.show())
print("torch", torch.__version__, "CUDA", torch.version.cuda, "NCCL", torch.cuda.nccl.version() if torch.cuda.is_available() else None)
for index in range(torch.cuda.device_count()): print(torch.cuda.get_device_properties(index))'
}
if wants facts; then facts > "$OUT/facts.txt" 2>&1; note facts "rc=0" 0; fi

# ---------------------------------------------------------------- correctness
measure smoke 90 "$RANKS" $N experiment=smoke sync=[none,device]
step claims 75 "$PY" -m tests.gpu.claims
step two_gloo 45 "${TWO[@]}" -m tests.gpu.two_ranks gloo
step audit_gloo 45 "${TWO[@]}" -m tests.gpu.audits gloo
pack
if [ -n "$WHY" ]; then
  for name in two_nccl audit_nccl strategies; do skip $name "$WHY"; done
else
  step two_nccl 60 ${SHARE[@]+"${SHARE[@]}"} "${TWO[@]}" -m tests.gpu.two_ranks $N
  step audit_nccl 45 ${SHARE[@]+"${SHARE[@]}"} "${TWO[@]}" -m tests.gpu.audits $N
  PRE=(${SHARE[@]+"${SHARE[@]}"})
  strategies=$(find conf/aggregation -name '*.yaml' -printf '%f,' | sed 's/\.yaml//g')
  measure strategies 100 "$SEVERAL" $N workload=[mlp_digits] reduction=[mean] normalization=[rank_mean] "aggregation=[${strategies%,}]" \
    diagnose=true iterations=2 warm_up=1 probe=[sum_over_ranks,summation_order] probe.summation_order.bytes=[4096]
  PRE=()
  pack
fi
check tests "$TESTS_S" tests/test_gpu.py tests/test_gpu_nccl.py tests/harness/rank -m gpu --numprocesses=$AT_ONCE --dist=worksteal
measure faults 60 2 gloo workload=[mlp_digits] reduction=[mean] normalization=[rank_mean] diagnose=true iterations=2 warm_up=1 \
  fault=[none,alias,double_division,dropped_input,dropped_rank,missing_all_reduce,missing_division,missing_zero_grad,stale_rank]
measure options 75 1 $N workload=[mlp_digits] reduction=[mean] determinism=[default,deterministic] execution=[eager,compile] iterations=3
pack
# the tests of the CPU, on a machine with GPUs, use none
PRE=("$PY" -m tests.gpu.watch)
check cpu_suite 75 tests/test_hidden_gpus.py tests/test_main_job.py::test_torchrun_and_launch_leave_equal_tables -m "not full" \
  --numprocesses=2 --dist=loadgroup
PRE=()

# ---------------------------------------------------------------- one at a time: two ranks that share a GPU, then times
if [ "$D" = cuda ] && [ -z "${NCCL_LIB:-}" ]; then skip shared_tests "needs NCCL_LIB for two ranks on one GPU"
else
  [ -n "${NCCL_LIB:-}" ] && PRE=(env "LD_PRELOAD=$NCCL_LIB" NCCL_MULTI_RANK_GPU_ENABLE=1)
  check shared_tests 120 tests/test_gpu.py -m gpu -k "share_one_gpu or (nccl-2 and (sweep or stale))"
  PRE=()
  pack
fi
measure sync 60 "$RANKS" $N experiment=sync_overhead launches=1 rounds=3 iterations=12 workload.mlp_digits.hidden=[$SYNC_WIDTH] \
  aggregation.bucketed.bytes=[1048576]
if [ "$RANKS" -gt 1 ] || [ "$D" = cpu ]; then measure sweep 60 "$SEVERAL" $N experiment=all_reduce_sweep ${SWEEP[@]+"${SWEEP[@]}"}
else skip sweep "needs two GPUs"; fi
measure memory 70 "$RANKS" $N experiment=memory ${SMALL[@]+"${SMALL[@]}"}
measure trace 45 "$RANKS" $N workload=[transformer_topics] reduction=[mean] aggregation=[all_reduce,overlap,ddp,fsdp] profile=true iterations=3
pack
# 1e9 parameters: 4 GB of float32, and references of 8 GB in float64, in memory if there is enough of it
KEPT=$R
if [ "$D" = cuda ] && [ "$(df --output=avail -BG /dev/shm 2> /dev/null | tail -n 1 | tr -dc 0-9)" -ge 45 ] 2> /dev/null; then
  R=$(mktemp -d /dev/shm/first_contact.XXXXXX)
fi
measure billion 130 1 $N workload=[mlp_digits] "workload.mlp_digits.hidden=$WIDTH" reduction=[mean] aggregation=[all_reduce] \
  iterations=5 warm_up=2
if [ "$R" != "$KEPT" ]; then
  rm -rf "$R"/*/*/scratch
  cp -r "$R/." "$KEPT/"
  rm -rf "$R"
  R=$KEPT
fi
[ -s "$W/skipped.txt" ] && { echo "skipped lines:"; sort -u "$W/skipped.txt"; } >> "$OUT/summary.txt"
pack
echo
echo "summary: $OUT/summary.txt"
[ ! -s "$W/failed" ] || { echo "did not pass: $(tr '\n' ' ' < "$W/failed")"; exit 1; }
