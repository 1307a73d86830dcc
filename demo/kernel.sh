# shellcheck shell=bash disable=SC2154 # variables are shared with the files beside this one
# The kernel tier: connections of the captured pods that move from the proxy into the kernel, and why others do not.

kernel_admin=127.0.0.1:15001

# flows: the captured proxy's open connections to the cache.
flows() { on node "underpass flows --admin $kernel_admin" | awk -v cache=":$cache_port" 'NR == 1 || index($0, cache)'; }

show_flows() {
  print_command node "underpass flows"
  flows | cut -c1-"$width" | sed 's/^/     /'
}

has_flow() { flows | grep -Eq "$1"; }

act_kernel() {
  [[ $has_cache == yes ]] || return 0
  act 10 'Into the kernel: bytes that go from socket to socket'
  local target reason
  target=$(address_of cache)
  reason=$(on node "curl http://$kernel_admin/offload")
  if [[ $reason != *'"state": "on"'* ]]; then
    say "Skipped: this kernel has no kernel tier: $reason"
    return
  fi
  say 'So far the proxy was told to keep every byte. Now it may move connections of this node into the kernel, live:'
  print_command node "sed -i 's/enabled: false/enabled: true/' captured/mesh.yaml"
  sed 's/offload: {enabled: false/offload: {enabled: true/' captured/mesh.yaml >captured/next.yaml
  mv captured/next.yaml captured/mesh.yaml
  print_command client "redis-benchmark -h $target -l -t get &       # event loops at both ends"
  start client load redis-benchmark -h "$target" -p "$cache_port" -c 2 -l -q -t get
  local load=$started
  print_command batch "redis-benchmark -h $target -l -t set &"
  start batch batch-load redis-benchmark -h "$target" -p "$cache_port" -c 1 -l -q -t set
  local batch_load=$started
  print_command client "redis-cli -h $target -r -1 -i 0.01 ping &     # a socket that blocks"
  start client blocking redis-cli -h "$target" -p "$cache_port" -r -1 -i 0.01 ping
  local blocking=$started
  wait_until 'connections are in the kernel' has_flow 'shop/client.* kernel .* (9[0-9]|100)\.[0-9] %'
  wait_until 'one is kept out' has_flow 'relay .*blocking'
  show_flows
  say 'A reader that blocks would be woken without data, so that one stays with the proxy, and it says why. Policy still holds at any byte:'
  cat captured/mesh.yaml "$home/no-batch.yaml" >captured/next.yaml
  mv captured/next.yaml captured/mesh.yaml
  print_command node 'cat no-batch.yaml >>captured/mesh.yaml        # DENY batch to the cache'
  # Not by its end: redis-benchmark stays, without a connection, if it hears of the reset when it writes.
  wait_until 'the denied connection is reset' has_no_flow 'jobs/batch'
  has_flow 'shop/client.* kernel ' || fail 'the other connections are not untouched'
  conclude 'batch was reset in the middle of its stream; client goes on.'
  stop "$load" "$blocking" "$batch_load"
  say 'The same measurement as in acts 8 and 9, in the kernel, beside what was measured without a proxy:'
  compare_with_direct kernel 20000 60000
}

has_no_flow() { ! has_flow "$1"; }

