#!/usr/bin/env bash
# The job array of docs/tuning.md under a real Slurm: munged, slurmctld and slurmd on this machine alone, in a folder of
# their own. The script is taken from the document and submitted as it stands; on PATH stands a q4-autotune that tunes less,
# for the time. One task is killed by requeueing it while it runs; all must end, and their files merge.
#   slurm.sh BIN_FOLDER FOLDER      (FOLDER is emptied)
# Exit 77, "not run", with the reason where Slurm is missing or cannot be started.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bin=$(cd "$1" && pwd)
rm -rf "$2" && mkdir -p "$2"
folder=$(cd "$2" && pwd)
tasks=8

say() { printf '[slurm] %s\n' "$*"; }
not_run() { say "not run: $*"; exit 77; }
fail() {
  say "FAILED: $*   (logs: $folder)"
  tail -n 20 "$folder"/*.log "$folder"/slurm-*.out 2>/dev/null || true
  exit 1
}

[ "$(id -u)" = 0 ] || not_run "it needs root, which slurmd runs as"
PATH=$PATH:/usr/sbin:/sbin
for command in munged slurmctld slurmd sbatch scontrol squeue; do
  command -v $command >/dev/null || not_run "$command is not installed (Debian: slurm-wlm, munge)"
done

# ---- Slurm ------------------------------------------------------------------------------------------------------------

started=()
end() {
  for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
  for process in "${started[@]}"; do wait "$process" 2>/dev/null || true; done
}
trap end EXIT
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
command -v python3 >/dev/null || not_run "python3 is missing"

mkdir -p "$folder/state" "$folder/spool" "$folder/munge" "$folder/bin"
chmod 700 "$folder/munge"
head -c 1024 /dev/urandom >"$folder/munge/key" && chmod 400 "$folder/munge/key"
munge=$(mktemp -d /tmp/q4-munge.XXXXXX)  # a socket's name must be short
trap 'end; rm -rf "$munge"' EXIT
chmod 755 "$munge"
munged --foreground --force --num-threads=2 --key-file="$folder/munge/key" --socket="$munge/s" --pid-file="$folder/munge/pid" \
  --seed-file="$folder/munge/seed" --log-file="$folder/munged.log" >"$folder/munged.out.log" 2>&1 &
started+=($!)

name=$(hostname -s)
cat >"$folder/slurm.conf" <<CONF
ClusterName=q4
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
AuthType=auth/munge
AuthInfo=socket=$munge/s
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
MinJobAge=3600
GresTypes=gpu
NodeName=$name NodeAddr=127.0.0.1 CPUs=$((2 * 16)) RealMemory=1024 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=$name Default=YES MaxTime=INFINITE State=UP
CONF
# Two GPUs by name, as a gpu must have a device file: the tasks run on the CPU.
{
  echo AutoDetect=off
  printf 'NodeName=%s Name=gpu File=%s\n' "$name" /dev/null "$name" /dev/zero
} >"$folder/gres.conf"
export SLURM_CONF=$folder/slurm.conf

wait_for() {  # SECONDS COMMAND...
  local until=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $until ] || return 1
    sleep 0.3
  done
}
wait_for 20 test -S "$munge/s" || not_run "munged does not start: $(tail -n 1 "$folder"/munged*.log | tail -n 1)"
slurmctld -D >"$folder/slurmctld.out.log" 2>&1 &
started+=($!)
slurmd -D -N "$name" >"$folder/slurmd.out.log" 2>&1 &
started+=($!)
idle() { sinfo -h -o %t | grep -qx idle; }
wait_for 60 idle || not_run "Slurm does not come up: $(tail -n 2 "$folder"/slurmctld.log "$folder"/slurmd.log | tr '\n' ' ')"

# ---- the job array --------------------------------------------------------------------------------------------------

awk '/^#!\/bin\/bash/ { inside = 1 } inside && /^```/ { exit } inside' "$root/docs/tuning.md" >"$folder/tune.sh"
grep -q 'srun q4-autotune' "$folder/tune.sh" || fail "docs/tuning.md has no job array"
# As in the document, but few rows and seconds, on the CPU.
cat >"$folder/bin/q4-autotune" <<SH
#!/usr/bin/env bash
arguments=("\$@")
for i in "\${!arguments[@]}"; do
  [ "\${arguments[i]}" != 600 ] || arguments[i]=20
done
exec "$bin/q4-autotune" "\${arguments[@]}" --device cpu --m 1,2 --shape-budget 5
SH
chmod +x "$folder/bin/q4-autotune"
cd "$folder"
job=$(PATH=$folder/bin:$PATH HOME=$folder Q4_CACHE_DIR=$folder/cache sbatch --parsable tune.sh)
say "job $job, $tasks tasks"

# A task that has a shape (some shards have none) dies while it tunes, and is run again at once instead of in two minutes.
field() { scontrol show job "${job}_$1" -o 2>/dev/null | tr ' ' '\n' | sed -n "s/^$2=//p" | head -n 1; }
tuning() {
  for task in $(seq 0 $((tasks - 1))); do
    if grep -qs '^Tuning [1-9]' "slurm-${job}_$task.out" && [ "$(field "$task" JobState)" = RUNNING ]; then
      victim=$task
      return 0
    fi
  done
  return 1
}
wait_for 120 tuning || fail "no task was seen tuning: $(squeue)"
scontrol requeue "${job}_$victim" || fail "task $victim cannot be requeued"
again() {
  scontrol update JobId="${job}_$victim" StartTime=now
  [ "$(field "$victim" Restarts)" = 1 ] && [[ "$(field "$victim" JobState)" =~ RUNNING|COMPLETED ]]
}
wait_for 90 again || fail "task $victim was not run again"
say "task $victim was killed while it tuned, and requeued"

over() { [ -z "$(squeue -h -o %i)" ]; }
wait_for 400 over || fail "the array does not end: $(squeue)"
for task in $(seq 0 $((tasks - 1))); do
  [ "$(field "$task" JobState)" = COMPLETED ] || fail "task $task: $(field "$task" JobState)"
  [ -f "$folder/h200-$task-of-$tasks.jsonl" ] || fail "task $task left no file"
done

# As the document says.
"$bin/q4-cache" merge --out h200.jsonl h200-*-of-8.jsonl >merge.log 2>&1 || fail "merge: $(cat merge.log)"
records=$(grep -c '"op"' h200.jsonl || true)
expected=$(cat h200-*-of-8.jsonl | grep -c '"op"' || true)
say "records: $records of $expected"
((records == 4 && expected == 4)) || fail "qkv, o, gate_up and down are 4 records: merged $records, in the tasks' files $expected"
say "passed"
