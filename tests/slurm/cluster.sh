#!/usr/bin/env bash
# A real Slurm cluster on loopback for tests: munged, slurmctld and two slurmd on one host, told
# apart by address and port. It runs as the calling user and keeps everything in one directory.
#
#   tests/slurm/cluster.sh start DIR PORT   # PORT and the three after it must be free
#   tests/slurm/cluster.sh node DIR NAME    # starts a node (again, after `kill`)
#   tests/slurm/cluster.sh kill DIR NAME    # SIGKILL to a node's slurmd and all that it runs
#   tests/slurm/cluster.sh stop DIR         # ends every process
#
# Then `SLURM_CONF=DIR/slurm.conf sbatch …`. DIR must be short: it holds a socket.
# Nodes are called by loopback addresses, because jax makes a node's name the coordinator's address.
# Partitions: `batch` on both nodes, and `low`, whose jobs those of `high` preempt by requeueing.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

NODES=(127.0.0.1 127.0.0.2)

configure() {
    local user host
    user=$(id -un)
    host=$(hostname -s)
    cat >"$DIR/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$DIR/munge.socket,cred_expire=10
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool-%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd-%n.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmdLogFile=$DIR/slurmd-%n.log
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=600
SlurmctldTimeout=600
InactiveLimit=0
KillWait=30
MinJobAge=36000
MessageTimeout=60
TCPTimeout=60
CompleteWait=0
MaxArraySize=100
NodeName=${NODES[0]} NodeHostname=$host NodeAddr=${NODES[0]} Port=$((PORT + 1)) CPUs=4 RealMemory=4000
NodeName=${NODES[1]} NodeHostname=$host NodeAddr=${NODES[1]} Port=$((PORT + 2)) CPUs=4 RealMemory=4000
PartitionName=batch Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=2
PartitionName=low Nodes=ALL MaxTime=60 State=UP PriorityTier=1 GraceTime=300
PartitionName=high Nodes=ALL MaxTime=60 State=UP PriorityTier=9
CONF
    echo "CgroupPlugin=cgroup/v1" >"$DIR/cgroup.conf"
    mkdir -p "$DIR/state"
    (umask 077 && head -c 1024 /dev/urandom >"$DIR/munge.key")
}

start_node() {
    mkdir -p "$DIR/spool-$1"
    slurmd -N "$1" -f "$DIR/slurm.conf" </dev/null >>"$DIR/slurmd-$1.out" 2>&1
}

family_of() { # a process and all below it
    local child
    echo "$1"
    for child in $(pgrep -P "$1" || true); do family_of "$child"; done
}

# A node's slurmd, its slurmstepd processes (orphans, known by the log that they write), their tasks.
of_node() {
    local pid
    for pid in $(pgrep -x 'slurmd|slurmstepd' || true); do
        if ls -l "/proc/$pid/fd" 2>/dev/null | grep -q " $DIR/slurmd-$1.log$"; then
            family_of "$pid"
        fi
    done
}

kill_node() {
    # shellcheck disable=SC2046
    kill -KILL $(of_node "$1") 2>/dev/null || true
    rm -f "$DIR/slurmd-$1.pid"
}

stop() { # nothing of it is kept, so nothing has to be written
    local node file
    for node in "${NODES[@]}"; do kill_node "$node"; done
    for file in slurmctld.pid munged.pid; do
        if [[ -f $DIR/$file ]]; then kill -KILL "$(cat "$DIR/$file")" 2>/dev/null || true; fi
    done
}

DIR=${2:?"a directory"}
case ${1:-} in
    start)
        PORT=${3:?"a port"}
        configure
        munged --force --socket="$DIR/munge.socket" --key-file="$DIR/munge.key" \
            --pid-file="$DIR/munged.pid" --log-file="$DIR/munged.log" --seed-file="$DIR/munged.seed"
        slurmctld -f "$DIR/slurm.conf" </dev/null >"$DIR/slurmctld.out" 2>&1
        for node in "${NODES[@]}"; do start_node "$node"; done
        ;;
    node) start_node "${3:?"a node"}" ;;
    kill)
        kill_node "${3:?"a node"}"
        # It would be missed by itself after a while, as would be one that is only slow.
        SLURM_CONF=$DIR/slurm.conf scontrol update "NodeName=$3" State=DOWN Reason=killed
        ;;
    stop) stop ;;
    *)
        echo "usage: $0 start DIR PORT | node DIR NAME | kill DIR NAME | stop DIR" >&2
        exit 2
        ;;
esac
