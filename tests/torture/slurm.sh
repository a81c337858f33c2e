#!/bin/bash
# A single-node Slurm on loopback makes a sweep of four runs through submitit_slurm.
# Needs Debian's slurmctld, slurmd, slurm-client and munge, and a Python with optbench[slurm].
# Usage: tests/torture/slurm.sh [PYTHON] [optbench arguments...]
# Leaves nothing running; the last line is "slurm: 4 of 4 runs done", and the exit code says so too.
set -euo pipefail

python=${1:-.venv/bin/python}
shift || true
for tool in slurmctld slurmd sbatch munged; do
  PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null || {
    echo "slurm: skipped, $tool is missing: apt-get install slurmctld slurmd slurm-client munge"
    exit 0
  }
done
"$python" -c "import hydra_plugins.hydra_submitit_launcher" 2>/dev/null || {
  echo "slurm: skipped: pip install -c constraints.txt 'optbench[slurm]'"
  exit 0
}
export PATH=$PATH:/usr/sbin
place=$(mktemp -d)
chmod 755 "$place"
node=$(hostname -s)
pids=()
# Its jobs' steps are children of slurmd and end with it; only what was started here is ended.
finish() {
  scancel --quiet --user="$(id -un)" 2>/dev/null || true
  for _ in $(seq 60); do [ -z "$(squeue -h 2>/dev/null)" ] && break; sleep 1; done  # steps report
  # A step's srun may outlive its job; it names this folder, which nobody else's does.
  for pid in $(pgrep -f "srun .*$place/" || true); do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$place"
}
trap finish EXIT

mkdir -p "$place"/{munge,state,spool,runs}
chmod 700 "$place/munge"
dd if=/dev/urandom of="$place/munge/key" bs=1 count=1024 status=none
chmod 600 "$place/munge/key"
munged --foreground --force --socket="$place/munge.sock" --key-file="$place/munge/key" \
  --pid-file="$place/munge/pid" --log-file="$place/munge/log" --seed-file="$place/munge/seed" &
pids+=($!)

# Ports of our own, so that a real Slurm on this machine is left alone.
cat > "$place/slurm.conf" <<CONF
ClusterName=optbench
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$place/munge.sock
CredType=cred/munge
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
# Before 23.11 a plugin has to be named; none of its controllers is used here.
version=$(slurmd -V | grep -o '[0-9]*\.[0-9]*' | head -n 1)
plugin=disabled
[ "$(printf '%s\n' "$version" 23.11 | sort -V | head -n 1)" = 23.11 ] || plugin=cgroup/v1
echo "CgroupPlugin=$plugin" > "$place/cgroup.conf"
export SLURM_CONF=$place/slurm.conf
for _ in $(seq 100); do [ -S "$place/munge.sock" ] && break; sleep 0.1; done
slurmctld -D -f "$SLURM_CONF" >/dev/null 2>&1 &
pids+=($!)
slurmd -D -f "$SLURM_CONF" -N "$node" >/dev/null 2>&1 &
pids+=($!)
for _ in $(seq 300); do
  sinfo -h -o %T 2>/dev/null | grep -q idle && break
  sleep 0.2
done
sinfo -h -o %T | grep -q idle || {
  echo "slurm: the node did not come up"
  tail -n 20 "$place"/slurm*.log
  exit 1
}

# Accounting is off: submitit then looks for the jobs' result files alone.
"$python" -m optbench -m hydra/launcher=optbench_slurm hydra.launcher.gpus_per_node=null \
  hydra.launcher.mem_gb=null hydra.launcher.cpus_per_task=1 hydra.launcher.timeout_min=60 \
  hydra.launcher.array_parallelism=2 network.dim=1,2,3,4 train.max_steps=3 render=off \
  train.num_threads=1 sweep_name=slurm runs_dir="$place/runs" "$@" || {
  tail -n 20 "$place"/slurm*.log
  tail -n 20 "$place"/runs/slurm/.submitit/*/*.out 2>/dev/null || true
}
done_runs=$(grep -l '"status": "done"' "$place"/runs/slurm/*/status.json 2>/dev/null | wc -l)
jobs=$(ls "$place"/runs/slurm/.submitit 2>/dev/null | wc -l)
echo "slurm: $done_runs of 4 runs done by $jobs jobs"
[ "$done_runs" = 4 ]
