# shellcheck shell=bash disable=SC2034 # `started`, `port_prefix` and `output` are for the files beside this one
# The stage: five workloads, the node that joins them, and the proxy on the node.
#
# There are two stages, and the acts do not know on which they play. As root each workload is a network namespace with a veth to
# the node's namespace, as pods have; nothing is changed in any other namespace, the machine's included. Without root each
# workload is an address on loopback.
#
# Whatever is started or created here is taken down by `strike`, which the demo calls however it ends. Processes are ended by
# the pid that this shell got when it started them. Should the demo be killed with SIGKILL, the kernel kills them with
# it (PR_SET_PDEATHSIG), and the next demo removes the empty namespaces.

# Where the workloads are in mesh.yaml, and which pods there are.
declare -rA HOST=([node]=1 [client]=10 [batch]=20 [web-v1]=31 [web-v2]=32 [cache]=40)
readonly PREFIX=underpass-demo
readonly DEADLINE_SECONDS=10

stage=             # namespaces or loopback
subnet=            # what all addresses begin with
port_prefix=       # what the ports of mesh.yaml are preceded by
work=              # scratch folder, the working folder of all commands
declare -A running=() # pid => what it is

address_of() { echo "$subnet${HOST[$1]}"; }

# may_use_namespaces: whether root may have what the stage is made of, which in a container it often may not. Tried in a
# namespace that is gone at once. Without ip(8) there is nothing to try with: that is a missing program.
may_use_namespaces() {
  ! command -v ip >/dev/null || unshare --net --mount sh -c \
    'ip link add name b type bridge && ip link add name v type veth peer name w' 2>/dev/null
}

# set_stage KIND: namespaces or loopback.
set_stage() {
  stage=$1
  work=$(mktemp -d "${TMPDIR:-/tmp}/$PREFIX-$$.XXXXXX")
  cd "$work" || return
  if [[ $stage == namespaces ]]; then
    subnet=10.244.1.
    build_namespaces
    move_into_cgroup || cgroup=
  else
    # A subnet and ports of our own: two demos, or a web server of this machine, are not in each other's way.
    subnet="127.$((100 + $$ / 250 % 100)).$(($$ % 250))."
    port_prefix=2
  fi
  local workload
  for workload in "${!HOST[@]}"; do
    mkdir "$workload"
    # What every curl here should do, and on loopback the address it speaks from.
    printf 'silent\nshow-error\nmax-time = 90\n' >"$workload/.curlrc"
    [[ $stage == namespaces ]] || printf 'interface = %s\n' "$(address_of "$workload")" >>"$workload/.curlrc"
  done
}

namespace_of() { echo "$PREFIX-$$-$1"; }

build_namespaces() {
  remove_leftovers
  local workload node
  node=$(namespace_of node)
  for workload in "${!HOST[@]}"; do
    ip netns add "$(namespace_of "$workload")"
    ip -n "$(namespace_of "$workload")" link set lo up
  done
  ip -n "$node" link add name pods type bridge
  ip -n "$node" address add 10.244.1.1/24 dev pods
  ip -n "$node" link set pods up
  for workload in "${!HOST[@]}"; do
    [[ $workload == node ]] || plug_in "$workload"
  done
}

# plug_in WORKLOAD: a veth between a workload's namespace and the node's bridge.
plug_in() {
  local pod node
  pod=$(namespace_of "$1") node=$(namespace_of node)
  ip -n "$node" link add name "$1" type veth peer name eth0 netns "$pod"
  ip -n "$node" link set "$1" master pods up
  ip -n "$pod" address add "$(address_of "$1")/24" dev eth0
  ip -n "$pod" link set eth0 up
}

# Namespaces of demos that were killed: their shell is gone, and nothing runs in them.
remove_leftovers() {
  local path name pid
  for path in /run/netns/"$PREFIX"-*; do
    name=${path##*/} pid=${path#*"$PREFIX"-} pid=${pid%%-*}
    if [[ -e $path && ! -e /proc/$pid && -z $(ip netns pids "$name") ]]; then
      ip netns del "$name"
    fi
  done
}

# into WORKLOAD: sets `entry` to the words that run a command there.
into() {
  entry=(env "CURL_HOME=$work/$1")
  if [[ $stage == namespaces ]]; then
    entry=(nsenter "--net=/run/netns/$(namespace_of "$1")" "${entry[@]}")
  fi
}

# on WORKLOAD COMMAND: runs a shell command there.
on() {
  local entry
  into "$1"
  "${entry[@]}" bash -c "$2"
}

# run WORKLOAD COMMAND: shows a command, runs it, shows and keeps what it prints in `output`. Returns its exit status.
run() {
  local status=0
  print_command "$1" "$2"
  output=$(on "$1" "$2" 2>&1) || status=$?
  [[ -z $output ]] || indented <<<"$output"
  return "$status"
}

# start WORKLOAD NAME PROGRAM ARGUMENT…: starts a program that goes on running, with its output in NAME.log; its pid is in
# `started`. It has a session of its own: Ctrl-C is for the demo, which then ends its programs in order.
start() {
  local workload=$1 name=$2 entry
  shift 2
  into "$workload"
  "${entry[@]}" setsid setpriv --pdeathsig KILL "$@" >"$name.log" 2>&1 </dev/null &
  started=$!
  running[$started]=$name
}

# ended PID: waits for a started program to end by itself. Returns its exit status.
ended() {
  local status=0
  wait "$1" || status=$?
  unset "running[$1]"
  return "$status"
}

# stop PID…: ends started programs, patiently first.
stop() {
  local pid tries
  kill -TERM "$@" 2>/dev/null || true
  for pid in "$@"; do
    for ((tries = 0; tries < 150; tries++)); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.02
    done
    kill -KILL "$pid" 2>/dev/null || true
    ended "$pid" 2>/dev/null || true
  done
}

# wait_until WHAT COMMAND…: waits until COMMAND succeeds.
wait_until() {
  local what=$1 deadline=$((SECONDS + DEADLINE_SECONDS))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || fail "waited $DEADLINE_SECONDS s in vain until $what"
    sleep 0.02
  done
}

# strike: takes everything down.
strike() {
  [[ -z $cgroup ]] || echo $$ >"$cgroup/pods/cgroup.procs" || true
  end_capture || true
  end_mesh || true
  [[ ${#running[@]} -eq 0 ]] || stop "${!running[@]}"
  local workload path
  for workload in "${!HOST[@]}"; do
    path=/run/netns/$(namespace_of "$workload")
    [[ $stage != namespaces || ! -e $path ]] || ip netns del "${path##*/}"
  done
  strike_second_node || true
  leave_cgroup || true
  cd / || return
  [[ -z $work ]] || rm -rf "$work"
}
