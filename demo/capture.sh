# shellcheck shell=bash disable=SC2154 # variables are shared with the files beside this one
# Capture: the agent, the proxy of the captured pods, and what they are seen to do. Needs root, namespaces and cgroup2.
#
# The capture programs are attached to a cgroup of the demo's own, in which all its programs run, so that nothing else on the machine
# meets them. Agent and proxy have cgroups beside it, as two containers have.

cgroup=       # the demo's, while it exists
cgroup_before= # where this shell came from

# cgroup2_mount: where cgroup2 is mounted, if it is.
cgroup2_mount() { awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts; }

# move_into_cgroup: puts this shell, and whatever it starts, into a cgroup of its own. Fails where that is not possible.
move_into_cgroup() {
  local mount own
  mount=$(cgroup2_mount)
  [[ -n $mount ]] || return
  own=$(sed -n 's/^0:://p' /proc/self/cgroup)
  cgroup=$mount/$PREFIX-$$
  cgroup_before=$mount$own
  mkdir -p "$cgroup/pods" "$cgroup/agent" "$cgroup/proxy" 2>/dev/null && echo $$ >"$cgroup/pods/cgroup.procs" 2>/dev/null
}

# leave_cgroup: back to where the shell came from; the cgroup is removed.
leave_cgroup() {
  [[ -n $cgroup ]] || return 0
  echo $$ >"$cgroup_before/cgroup.procs" || true
  rmdir "$cgroup/pods" "$cgroup/agent" "$cgroup/proxy" "$cgroup"
  cgroup=
}

# start_in CGROUP NAME COMMAND…: starts a program of the node in agent's or proxy's cgroup.
start_in() {
  local place=$cgroup/$1
  # shellcheck disable=SC2016 # expanded by the inner shell
  start node "$2" bash -c 'echo 0 >"$0/cgroup.procs" && exec "$@"' "$place" "${@:3}"
}

start_agent() {
  print_command node 'underpass agent >agent.log &'
  start_in agent agent underpass agent --run-dir "$work/run" --pin-dir "$pins" --cgroup "$cgroup" --proxy-user 65534
  agent=$started
  wait_until 'the agent answers' agent_answers
}

agent_answers() { underpass pods --run-dir "$work/run" >/dev/null 2>&1; }

start_captured_proxy() {
  print_command node 'underpass proxy --config captured/mesh.yaml >proxy.log &      # as nobody, without a privilege'
  start_in proxy proxy setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all \
    underpass proxy --config captured/mesh.yaml --agent "$work/run/agent.sock"
  captured_proxy=$started
  wait_for_program "$started" proxy "curl -f http://127.0.0.1:15001/ready >/dev/null 2>&1"
}

# enrol WORKLOAD UID
enrol() {
  print_command node "underpass enrol --netns /run/netns/$(namespace_of "$1") --uid $2"
  underpass enrol --run-dir "$work/run" --netns "/run/netns/$(namespace_of "$1")" --uid "$2" 2>&1 | sed -n 2,4p | indented
}

# end_capture: nothing of it is left in the kernel, whatever became of agent and proxy.
end_capture() {
  [[ -z ${pins:-} || ! -e $pins ]] || underpass detach --run-dir "$work/run" --pin-dir "$pins" >/dev/null
}

act_capture() {
  act 9 'Capture: programs that know nothing of a proxy'
  if [[ $stage != namespaces || -z $cgroup ]]; then
    say 'Skipped: it needs root, network namespaces and a cgroup2 mount.'
    return
  fi
  say 'So far the clients were told of the proxy. Now a small privileged agent loads eBPF programs, and a proxy without any' \
    'privilege serves the pods that are enrolled. No program is configured or restarted.'
  pins=/sys/fs/bpf/$PREFIX-$$
  mkdir -p run captured && chmod 755 . captured run
  sed -e 's/127\.0\.0\.1:15000/127.0.0.1:15001/' -e '/^  listeners:/,/^workloads:/{/^workloads:/!d}' \
    -e 's/access\.log/"-"/' -e 's/^node:$/node:\n  offload: {enabled: false, trust_readers: true}/' -e 's/^- name: web$/- name: web\n  vips: [10.96.0.80]/' "$home/mesh.yaml" | sed '/^#/d' >captured/mesh.yaml
  start_agent
  start_captured_proxy
  local pod
  for pod in client:shop/client batch:jobs/batch web-v1:shop/web-v1 web-v2:shop/web-v2 cache:data/cache; do
    enrol "${pod%%:*}" "Kubernetes//Pod/${pod#*:}"
  done
  say '10.96.0.80 is the virtual IP of service web. Nothing but the proxy knows it: there is no kube-proxy, no iptables rule, no route.'
  # shellcheck disable=SC2016 # curl's own variables
  run client "for i in 1 2 3 4; do curl -w '     curl believes to talk to %{remote_ip}:%{remote_port}, from %{local_ip}\\n' http://10.96.0.80/; done"
  [[ $output == *10.96.0.80:80* ]] || fail 'the virtual IP was not answered'
  deny_captured
  fail_closed
  compare_captured
  act_kernel
  print_command node 'underpass detach'
  stop "$captured_proxy" "$agent"
  underpass detach --run-dir "$work/run" --pin-dir "$pins" 2>&1 | indented
  run client "curl http://$(address_of web-v1):$web_port/"
  conclude 'The pods are as they were.'
}

deny_captured() {
  say 'The policy of act 2 holds for whoever opens a connection, by the pod that it comes from:'
  cat captured/mesh.yaml only-client.yaml >captured/next.yaml
  mv captured/next.yaml captured/mesh.yaml
  wait_until 'the policy is in force' batch_is_refused
  ! run batch "curl http://10.96.0.80/" || fail 'batch was not denied'
  ! run batch "curl http://$(address_of web-v1):$web_port/" || fail 'batch was not denied'
  run client 'curl http://10.96.0.80/'
}

batch_is_refused() { ! on batch 'curl http://10.96.0.80/ >/dev/null 2>&1'; }

fail_closed() {
  say 'Agent and proxy are killed. Nobody gets anywhere without them:'
  print_command node 'kill -KILL AGENT PROXY'
  kill -KILL "$agent" "$captured_proxy"
  ended "$agent" 2>/dev/null || true
  ended "$captured_proxy" 2>/dev/null || true
  ! run client 'curl http://10.96.0.80/' || fail 'a connection came through'
  ! run batch "curl http://$(address_of web-v1):$web_port/" || fail 'a connection escaped the policy'
  say 'They are started again, and find what they left:'
  start_agent
  start_captured_proxy
  wait_until 'the pods are served again' client_is_served
  run client 'curl http://10.96.0.80/'
}

client_is_served() { on client 'curl http://10.96.0.80/ >/dev/null 2>&1'; }

compare_captured() {
  [[ $has_cache == yes ]] || return 0
  say 'The same measurement as in act 8, captured, beside what was measured there without a proxy:'
  compare_with_direct captured 3000 15000
}

# compare_with_direct NAME REQUESTS REQUESTS_OF_16: measures the way to the cache as it is now.
compare_with_direct() {
  local target now
  target=$(address_of cache)
  now=$1-$target
  for _ in 1 2 3; do
    measure "$target" 1 "$2" "$now"
    measure "$target" 16 "$3" "$now"
  done
  table_row '1 connection, p50' us "$(lowest_p50 "$target-1")" "$(lowest_p50 "$now-1")"
  table_row '16 connections' req/s "$(most_requests "$target-16")" "$(most_requests "$now-16")"
}
