# shellcheck shell=bash disable=SC2154 # variables are shared with the files beside this one
# Two nodes in a mesh under a real istiod: `underpass run --role node` on each, certificates of istiod's CA, HBONE between them. Needs what
# capture needs, python3, and the istiod that scripts/istiod-setup.sh builds.
#
# The first node is the one of the acts before, with its pods; the second, with a pod of its own, is built for this act. Each node's programs are in a
# cgroup of the node's, so that neither captures what is the other's.

readonly SECRET='the price is 42'
readonly SHOP=http://10.96.0.90
declare -rA MESH_HOST=([node-b]=10.244.2.1 [shop]=10.244.2.10)

istiod_program() { "$home/../scripts/istiod-setup.sh" --where 2>/dev/null; }

# why_no_mesh: says why this act can't be played, if it can't.
why_no_mesh() {
  if [[ $stage != namespaces || -z $cgroup ]]; then
    echo 'it needs root, network namespaces and a cgroup2 mount'
  elif ! command -v python3 >/dev/null; then
    echo 'it needs python3'
  elif [[ ! -x $(istiod_program) ]]; then
    echo 'it needs an istiod: scripts/istiod-setup.sh builds it, which takes four minutes once'
  fi
}

act_nodes() {
  act 11 'Two nodes in a mesh, under a real istiod'
  local why
  why=$(why_no_mesh)
  if [[ -n $why ]]; then
    [[ -z ${CI:-} || $stage != namespaces ]] || fail "$why"
    say "Skipped: $why."
    return
  fi
  say "Istio's own istiod runs on node-a, for both nodes; each runs underpass in ztunnel's place. Its cluster is a folder of YAML." '' \
    '  node-a 10.244.1.1   shop/client, jobs/batch; cache, which is not of the mesh' \
    '  node-b 10.244.2.1   shop/web, the service web with the virtual IP 10.96.0.90' ''
  build_second_node
  serve_page shop "${MESH_HOST[shop]}" "$SECRET"
  start_istiod
  start_node node node-a 10.244.1.1 client:shop/client batch:jobs/batch
  start_node node-b node-b "${MESH_HOST[node-b]}" shop:shop/web
  # What pods of the first node run from here on is captured.
  echo $$ >"$cgroup/node-a/pods/cgroup.procs"
  wait_until 'the mesh is there' mesh_serves client
  wait_until 'the mesh is there' mesh_serves batch
  show_identities
  show_wire
  show_strict
  show_policy
  leave_mesh
}

build_second_node() {
  local name pod node
  for name in node-b shop; do
    ip netns add "$(namespace_of "$name")"
    ip -n "$(namespace_of "$name")" link set lo up
    mkdir "$name"
    printf 'silent\nshow-error\nmax-time = 20\n' >"$name/.curlrc"
  done
  node=$(namespace_of node) pod=$(namespace_of shop)
  link "$node" to-node-b 10.244.3.1/24 "$(namespace_of node-b)" to-node-a 10.244.3.2/24
  link "$(namespace_of node-b)" shop 10.244.2.1/24 "$pod" eth0 "${MESH_HOST[shop]}/24"
  for name in "$node" "$(namespace_of node-b)"; do
    ip netns exec "$name" sysctl -qw net.ipv4.ip_forward=1
  done
  ip -n "$node" route add 10.244.2.0/24 via 10.244.3.2
  ip -n "$(namespace_of node-b)" route add 10.244.1.0/24 via 10.244.3.1
  ip -n "$pod" route add default via 10.244.2.1
  for name in client batch cache; do
    ip -n "$(namespace_of "$name")" route add default via 10.244.1.1
  done
  mkdir -p "$cgroup"/node-{a,b}/{pods,underpass}
}

# link NAMESPACE DEVICE ADDRESS NAMESPACE DEVICE ADDRESS: a veth with an address at each end.
link() {
  ip -n "$1" link add name "$2" type veth peer name "$5" netns "$4"
  ip -n "$1" address add "$3" dev "$2"
  ip -n "$4" address add "$6" dev "$5"
  ip -n "$1" link set "$2" up
  ip -n "$4" link set "$5" up
}

# pod_object NAMESPACE NAME NODE ADDRESS ANNOTATIONS: as kubelet and istio-cni would write it, of an account of its name.
pod_object() {
  cat <<YAML
---
apiVersion: v1
kind: ServiceAccount
metadata: {namespace: $1, name: $2}
---
apiVersion: v1
kind: Pod
metadata: {namespace: $1, name: $2, labels: {app: $2}, annotations: {$5}}
spec: {nodeName: $3, serviceAccountName: $2, containers: [{name: main, image: none}]}
status: {podIP: $4, conditions: [{type: Ready, status: "True"}]}
YAML
}

# cluster_objects: what a cluster with these two nodes has.
cluster_objects() {
  local name captured='ambient.istio.io/redirection: enabled'
  for name in istio-system shop jobs; do
    printf -- '---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {istio.io/dataplane-mode: ambient}}\n' "$name"
  done
  for name in node-a node-b; do
    printf -- '---\napiVersion: v1\nkind: Node\nmetadata: {name: %s}\n' "$name"
  done
  pod_object istio-system ztunnel-a node-a 10.244.1.1 '' | sed '2,5!s/serviceAccountName: ztunnel-a/serviceAccountName: ztunnel/'
  pod_object istio-system ztunnel-b node-b 10.244.2.1 '' | sed '2,5!s/serviceAccountName: ztunnel-b/serviceAccountName: ztunnel/'
  printf -- '---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {namespace: istio-system, name: ztunnel}\n'
  pod_object shop client node-a "$(address_of client)" "$captured"
  pod_object jobs batch node-a "$(address_of batch)" "$captured"
  pod_object shop web node-b "${MESH_HOST[shop]}" "$captured"
  cat <<YAML
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec:
  type: ClusterIP
  clusterIP: 10.96.0.90
  clusterIPs: [10.96.0.90]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: $web_port, protocol: TCP}]
YAML
}

start_istiod() {
  mkdir -p istiod/{objects,certs,tokens}
  printf 'rootNamespace: istio-system\ntrustDomain: cluster.local\n' >istiod/mesh.yaml
  cluster_objects >istiod/objects/cluster.yaml
  print_command node 'istiod-harness --objects istiod/objects … &'
  start node istiod env "TMPDIR=$work/istiod" "$(istiod_program)" --objects istiod/objects --every 20ms --mesh-config istiod/mesh.yaml \
    --certs istiod/certs --grpc 10.244.1.1:15010 --secure-grpc 10.244.1.1:15012 --http 127.0.0.1:15080
  istiod=$started
  wait_until 'istiod serves' grep -qx ready istiod.log
}

# node_config NAME: the configuration of a node: where istiod is, and what capture is to leave alone.
node_config() {
  local letter=${1#node-}
  printf 'istio-system/ztunnel/ztunnel-%s' "$letter" >"istiod/tokens/$letter"
  cat <<YAML
node:
  name: $1
  admin: "127.0.0.1:15002"
  access_log: {path: "-"}
  istiod:
    address: "10.244.1.1:15012"
    server_name: istiod.istio-system.svc
    roots: "$work/istiod/certs/root-cert.pem"
    token: "$work/istiod/tokens/$letter"
capture: {cgroup: "$cgroup/$1", run_dir: "$work/run-$1", pin_dir: "/sys/fs/bpf/$PREFIX-$$-$1", proxy_user: nobody}
YAML
}

# start_node NAMESPACE NAME ADDRESS POD:UID…: agent and proxy of a node, with its pods.
start_node() {
  local name=$2 pod
  node_config "$name" >"$name.yaml"
  print_command "$name" "underpass run --role node --config $name.yaml &"
  # shellcheck disable=SC2016 # expanded by the inner shell
  start "$1" "$name" bash -c 'echo 0 >"$0/cgroup.procs" && exec "$@"' "$cgroup/$name/underpass" underpass run --role node --config "$name.yaml"
  mesh_nodes+=("$started")
  mesh_pins+=("$name")
  wait_until "underpass serves on $name" node_is_ready "$1"
  for pod in "${@:4}"; do
    on "$1" "underpass enrol --run-dir $work/run-$name --netns /run/netns/$(namespace_of "${pod%%:*}") \
      --uid Kubernetes//Pod/${pod#*:}" >/dev/null 2>&1 || fail "${pod#*:} was not enrolled"
  done
}

node_is_ready() { on "$1" 'curl -f http://127.0.0.1:15002/ready >/dev/null 2>&1'; }

mesh_serves() { on "$1" "curl $SHOP/ 2>/dev/null" | grep -q "$SECRET"; }

show_identities() {
  run client "curl $SHOP/"
  [[ $output == "$SECRET" ]] || fail 'the service was not answered'
  say 'Who spoke to whom, as each node saw it (identities from the certificates that istiod has issued, shown in the TLS handshake):'
  local line
  for line in node-a:outbound node-b:hbone; do
    wait_until "${line%%:*} has logged it" mesh_logged "${line%%:*}" "listener=${line#*:}" src.workload=client reason=completed
    print_command "${line%%:*}" "tail -n 1 access.log          # without most of the fields"
    mesh_lines "${line%%:*}" "listener=${line#*:}" src.workload=client | tail -n 1 |
      shorten 'src.identity dst.identity hbone.peer connection_security_policy' | indented
  done
  [[ $(mesh_lines node-b listener=hbone | tail -n 1) == *src.identity=spiffe://cluster.local/ns/*/sa/*connection_security_policy=mutual_tls* ]] ||
    fail 'the servers node has not seen a certificate'
}

# mesh_lines NODE FIELD…: lines of a node's access log that have these fields.
mesh_lines() {
  local name=$1
  shift
  grep ' access ' "$name.log" | (
    log=$(cat)
    for field in "$@"; do log=$(grep -F " $field " <<<"$log " || true); done
    cat <<<"$log"
  )
}

mesh_logged() { [[ -n $(mesh_lines "$@") ]]; }

# overhear COMMAND…: what goes over the wire between the nodes while COMMAND runs, into `output`.
overhear() {
  # What it said the last time is not what is waited for.
  rm -f wire.log
  start node-b wire python3 "$home/wire.py" to-node-a "$SECRET"
  local listener=$started
  wait_until 'the wire is listened to' grep -qx listening wire.log
  "$@"
  stop "$listener"
  output=$(grep -v listening wire.log || true)
  print_command node-b "wire.py to-node-a '$SECRET'"
  indented <<<"$output"
}

show_wire() {
  say 'What somebody sees who listens between the nodes, while client asks ten times:'
  # shellcheck disable=SC2016 # the inner shell's
  overhear run client "for i in {1..10}; do curl $SHOP/; done | sort | uniq -c"
  [[ $output == *'port 15008'*'in 0 of them'* && $output != *"port $web_port"* ]] || fail 'the connection was not by mutual TLS only'
  say 'cache is not of the mesh. It may ask as well, for nobody forbids it, and the listener reads along:'
  overhear run cache "curl http://${MESH_HOST[shop]}:$web_port/"
  [[ $output == *"port $web_port"*'in 1 of them'* ]] || fail 'plain text was not seen'
  conclude 'Between pods of the mesh there are ciphertexts on port 15008, and nothing else.'
}

# cluster_apply FILE: a change of the cluster. istiod sees a folder as Kubernetes' API server would show its objects.
cluster_apply() {
  run node "cat $1"
  print_command node "mv $1 istiod/objects/"
  mv "$1" istiod/objects/
}

show_strict() {
  say 'PeerAuthentication: who shows no certificate stays out.'
  cat >strict.yaml <<'YAML'
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {namespace: shop, name: default}
spec: {mtls: {mode: STRICT}}
YAML
  cluster_apply strict.yaml
  wait_until 'plain text is refused' plain_is_refused
  ! run cache "curl http://${MESH_HOST[shop]}:$web_port/" || fail 'plain text came through'
  run batch "curl $SHOP/"
}

plain_is_refused() { ! on cache "curl http://${MESH_HOST[shop]}:$web_port/ >/dev/null 2>&1"; }

show_policy() {
  say 'AuthorizationPolicy: only client may ask. Both nodes are told of it: batch is refused on its own, before anything is sent to the other,'
  say 'which would refuse it by its certificate.'
  local began took
  cat >only-client.yaml <<'YAML'
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: only-client}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
YAML
  began=${EPOCHREALTIME/./}
  cluster_apply only-client.yaml
  wait_until 'batch is refused' mesh_refuses batch
  took=$((${EPOCHREALTIME/./} - began))
  ! run batch "curl $SHOP/" || fail 'batch was not denied'
  run client "curl $SHOP/"
  conclude "$((took / 1000)) ms from the change in the cluster to its effect."
  say 'The refusal, in the log of the node that has refused:'
  wait_until 'the refusal is in the log' mesh_logged node-a src.workload=batch response_flags=DENY
  print_command node-a 'tail -n 1 access.log          # without most of the fields'
  mesh_lines node-a src.workload=batch response_flags=DENY | tail -n 1 | shorten 'src.identity dst.workload policy reason' | indented
  say 'Lifted:'
  print_command node 'rm istiod/objects/only-client.yaml'
  rm istiod/objects/only-client.yaml
  wait_until 'batch is served again' mesh_serves batch
  run batch "curl $SHOP/"
}

mesh_refuses() { ! on "$1" "curl $SHOP/ >/dev/null 2>&1"; }

leave_mesh() {
  echo $$ >"$cgroup/pods/cgroup.procs"
  stop "${mesh_nodes[@]}" "$istiod"
  end_mesh
}

# end_mesh: nothing of it is left, whatever became of its programs.
end_mesh() {
  local name
  for name in "${mesh_pins[@]}"; do
    [[ ! -e /sys/fs/bpf/$PREFIX-$$-$name ]] ||
      underpass detach --run-dir "$work/run-$name" --pin-dir "/sys/fs/bpf/$PREFIX-$$-$name" >/dev/null 2>&1
  done
  mesh_pins=()
}

# strike_second_node: its namespaces and cgroups, once nothing runs in them.
strike_second_node() {
  local name
  for name in "${!MESH_HOST[@]}"; do
    [[ ! -e /run/netns/$(namespace_of "$name") ]] || ip netns del "$(namespace_of "$name")"
  done
  [[ -z $cgroup || ! -d $cgroup/node-a ]] || rmdir "$cgroup"/node-{a,b}/{pods,underpass} "$cgroup"/node-{a,b}
}

mesh_nodes=() # pids
mesh_pins=()  # names of nodes whose programs are pinned
