#!/usr/bin/env bash
# Underpass at work, in about a minute: unmodified programs from Debian, a node's proxy between them, and what an operator does
# with it.
#
# usage: demo.sh [--loopback]     UNDERPASS=path of the binary, default ../target/release/underpass
#
# As root the workloads are in network namespaces. Without root, or with --loopback, they are addresses on loopback. Ends with
# exit code 0 when everything that it says has been seen to be so, and leaves nothing behind however it ends.
# shellcheck source-path=SCRIPTDIR
set -eEuo pipefail
export LC_ALL=C.UTF-8
PATH="$PATH:/usr/sbin:/sbin"

home=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binary=$(realpath -m "${UNDERPASS:-$home/../target/release/underpass}")
readonly home binary
# shellcheck source=narrator.sh
. "$home/narrator.sh"
# shellcheck source=stage.sh
. "$home/stage.sh"
# shellcheck source=programs.sh
. "$home/programs.sh"
# shellcheck source=gray.sh
. "$home/gray.sh"
# shellcheck source=capture.sh
. "$home/capture.sh"
# shellcheck source=kernel.sh
. "$home/kernel.sh"
# shellcheck source=nodes.sh
. "$home/nodes.sh"

readonly WEB=http://web.shop.svc.cluster.local
readonly FIELDS='src.workload dst.workload policy reason'

finish() {
  local status=$?
  set +e
  trap '' INT TERM HUP PIPE
  trap - ERR
  if [[ $status -gt 128 ]]; then
    printf '\ndemo: interrupted in %s, cleaning up\n' "$step" >&2
  elif [[ $status -ne 0 ]]; then
    [[ -n ${told:-} ]] || printf '%sdemo: %s failed: %s%s\n' "$bad" "$step" "${broken:-exit status $status}" "$plain" >&2
    [[ ! -s $work/underpass.log ]] || tail -n 5 "$work/underpass.log" | sed 's/^/demo: the proxy said: /' >&2
  fi
  strike
  exit "$status"
}

check_programs() {
  local missing=() program
  [[ -x $binary ]] || fail "there is no $binary; build it with cargo build --release, or set UNDERPASS"
  web=nginx has_cache=yes
  command -v nginx >/dev/null || web=python
  { command -v redis-server && command -v redis-cli && command -v redis-benchmark; } >/dev/null || has_cache=no
  for program in curl setpriv setsid; do
    command -v "$program" >/dev/null || missing+=("$program")
  done
  [[ $web == nginx ]] || command -v python3 >/dev/null || missing+=("nginx or python3")
  if [[ $1 == namespaces ]]; then
    command -v ip >/dev/null || missing+=(ip)
  fi
  [[ ${#missing[@]} -eq 0 ]] || fail "missing programs: ${missing[*]}; scripts/demo-setup.sh installs them"
}

choose_stage() {
  if [[ ${1:-} == --loopback && $# -eq 1 ]]; then
    kind=loopback why='As asked for with --loopback'
  elif [[ $# -ne 0 ]]; then
    fail "$* is not understood; usage: demo.sh [--loopback]"
  elif [[ $EUID -ne 0 ]]; then
    kind=loopback why='Not root, so there are no network namespaces'
  elif ! may_use_namespaces; then
    kind=loopback why='Root, but this machine gives it no network namespaces, bridges and veths'
  else
    kind=namespaces
  fi
}

introduce() {
  local cache_line='redis' web_name=nginx
  [[ $web == nginx ]] || web_name='python3 -m http.server'
  [[ $has_cache == yes ]] || cache_line='(redis is not installed: skipped)'
  printf '%sUnderpass: a node'\''s proxy between unmodified programs%s\n\n' "$bold" "$plain"
  if [[ $stage == namespaces ]]; then
    say 'Six network namespaces: five workloads, each joined by a veth to the node where the proxy runs.' ''
  else
    say "$why: each workload is an address on loopback instead." 'curl speaks from its workload'\''s address; all else is the same.' ''
  fi
  local names=(client batch node web-v1 web-v2 cache) at=() name
  for name in "${names[@]}"; do
    at+=("$(printf %-15s "$(address_of "$name")")")
  done
  say "  client ${at[0]} ─┐                          ┌─ web v1 ${at[3]} $web_name" \
    "                          ├─ node ${at[2]} ───┼─ web v2 ${at[4]} $web_name" \
    "  batch  ${at[1]} ─┘  underpass               └─ cache  ${at[5]} $cache_line" ''
}

raise_curtain() {
  set_stage "$kind"
  name_addresses
  introduce
  start_web v1
  start_web v2
  [[ $has_cache == no ]] || start_cache
  start_proxy
}

act_balance() {
  act 1 'One service, two versions'
  say 'The service web has two endpoints. curl asks for it by name, through the proxy (SOCKS5, or HTTP CONNECT);' \
    'each connection goes to one of the endpoints.'
  run client "curl --proxy socks5h://$socks -H 'Connection: close' '$WEB/?[1-40]' | sort | uniq -c"
  [[ $output == *"web v1"*"web v2"* ]] || fail 'not both versions have answered'
  run client "curl --proxy http://$connect --proxytunnel $WEB/"
  if [[ $has_cache == yes ]]; then
    say 'The cache is reached by a plain port of the proxy. redis-cli does not know that there is one.'
    run client "redis-cli -h $(address_of node) -p $cache_port set greeting 'hello from $(address_of client)'"
    run batch "redis-cli -h $(address_of node) -p $cache_port get greeting"
  fi
}

# hold_download WORKLOAD: starts a download that takes a minute, and returns when its first bytes have come.
hold_download() {
  local command="curl --proxy socks5h://$socks -N -o $1.photo $WEB/slow"
  print_command "$1" "$command &"
  start "$1" "$1.download" bash -c "exec $command"
  wait_until "the download of $1 has begun" test -s "$1.photo"
}

act_deny() {
  act 2 'A policy, while connections are open'
  say 'Both clients are in the middle of a long download.'
  hold_download client
  client_download=$started
  hold_download batch
  local batch_download=$started began took status=0
  say 'Now only the identity of client may connect to anything in namespace shop:'
  run node 'cat only-client.yaml'
  run node 'cat mesh.yaml only-client.yaml >next.yaml'
  began=${EPOCHREALTIME/./}
  put_live next.yaml
  ended "$batch_download" || status=$?
  took=$((${EPOCHREALTIME/./} - began))
  [[ $status -eq 56 ]] || fail "the open download of batch was not reset: curl ended with status $status"
  indented <batch.download.log
  conclude "$(printf 'The open connection of batch was reset, and its curl gone, %d.%d ms after mv was begun (promised: 100 ms).' \
    $((took / 1000)) $((took % 1000 / 100)))"
  ((took <= 100000)) || say 'That is more than promised. Is this machine very busy?'
  say 'New connections of batch are refused:'
  ! run batch "curl --proxy http://$connect --proxytunnel $WEB/" || fail 'batch was not denied'
  ! run batch "curl --proxy socks5h://$socks $WEB/" || fail 'batch was not denied'
  say 'For client nothing has changed:'
  run client "curl --proxy socks5h://$socks $WEB/"
  kill -0 "$client_download" 2>/dev/null || fail 'the download of client was cut off as well'
  conclude 'Its download goes on, too.'
  say 'The access log says who was refused and why, and which policy let the other in (policy=-: none did):'
  wait_until 'the refusals are in the access log' is_logged 3 src.workload=batch response_flags=DENY
  wait_until 'the answer is in the access log' is_logged 1 src.workload=client policy=shop/only-client
  print_command node 'tail -n 4 access.log          # without most of the fields'
  tail -n 4 access.log | shorten "$FIELDS" | indented
}

# is_logged COUNT KEY=VALUE…: whether the access log has at least COUNT such lines.
is_logged() { (($(log_lines "${@:2}" | wc -l) >= $1)); }

act_allow() {
  act 3 'The policy lifted, live'
  say 'The file without the policy is put back.'
  cp mesh.yaml next.yaml
  apply next.yaml
  run batch "curl --proxy socks5h://$socks $WEB/"
  stop "$client_download"
  # The next act counts, and should not count the end of this one.
  wait_until 'the connection of the download has ended' none_open
}

none_open() { scrape && grep -qx 'underpass_connections_open 0' metrics; }

# compare NAME CURL KMESH ISTIO LOG: a row of the comparison.
compare() {
  printf '     %-16s %12s %12s %12s %12s\n' "$@"
  if [[ $1 != '' ]]; then
    [[ $2 == "$3" && $2 == "$4" && $2 == "$5" ]] || fail "$1 are not counted exactly"
  fi
}

act_metrics() {
  act 4 'Exact telemetry'
  say 'client downloads ten pieces of a file, of random sizes, and adds up what it sent and got.'
  local of_client='reporter="source" source_workload="client" destination_service_name="web"'
  local before after log i ranges=() curl logged
  scrape
  read -ra before <<<"$(counts "$of_client")"
  log=$(wc -l <access.log)
  for ((i = 0; i < 10; i++)); do
    ranges+=("0-$((RANDOM * 31))")
  done
  run client "for n in ${ranges[*]}; do
       curl --proxy socks5h://$socks -r \$n -o /dev/null -w '%{size_request} %{size_header} %{size_download}\\n' $WEB/photo.bin
     done | awk '{ sent += \$1; received += \$2 + \$3 } END { print NR, sent, received }'"
  read -ra curl <<<"$output"
  wait_until 'ten more lines are in the access log' has_lines access.log $((log + 10))
  scrape
  read -ra after <<<"$(counts "$of_client")"
  for ((i = 0; i < 6; i++)); do
    after[i]=$((after[i] - before[i]))
  done
  read -ra logged <<<"$(tail -n "+$((log + 1))" access.log | added_up)"
  say 'The same from the proxy'\''s counters, and from its access log:'
  compare '' 'curl' 'kmesh_tcp_*' 'istio_tcp_*' 'access log'
  compare 'connections' "${curl[0]}" "${after[0]}" "${after[3]}" "${logged[0]}"
  compare 'bytes sent' "${curl[1]}" "${after[1]}" "${after[4]}" "${logged[1]}"
  compare 'bytes received' "${curl[2]}" "${after[2]}" "${after[5]}" "${logged[2]}"
  say '' 'A few of the series, without most of their labels:'
  print_command node "curl http://$admin/metrics"
  sample_series | indented
  say 'And the access-log line of one connection, whole:'
  run node 'tail -n 1 access.log'
}

# has_lines FILE COUNT
has_lines() { (($(wc -l <"$1") >= $2)); }

# counts LABELS: connections, bytes sent, bytes received; first Kmesh's, then Istio's (where "sent" is what the server sent).
counts() {
  echo "$(total kmesh_tcp_connections_closed_total "$1") $(total kmesh_tcp_sent_bytes_total "$1")" \
    "$(total kmesh_tcp_received_bytes_total "$1") $(total istio_tcp_connections_closed_total "$1 response_flags=\"-\"")" \
    "$(total istio_tcp_received_bytes_total "$1") $(total istio_tcp_sent_bytes_total "$1")"
}

# added_up: number, bytes sent and bytes received of access-log lines.
added_up() {
  sed -E 's/.* sent_bytes=([0-9]+) received_bytes=([0-9]+) .*/\1 \2/' |
    awk '{ sent += $1; received += $2 } END { print NR, sent, received }'
}

# sample_series: of each metric shown, the series of web v2, and with a flag; with the labels that tell them apart.
sample_series() {
  grep -E '^(kmesh_tcp_(workload_)?(connections_opened|received_bytes)|istio_tcp_(connections_closed|sent_bytes))_total' metrics |
    grep -F 'reporter="source"' | grep -E 'source_workload="client".*destination_version="v2"|response_flags="[A-Z]+"' |
    sed -E 's/\{(.*)\} /{,\1,} /
      s/,(source_workload|destination_version)=/;\1=/g
      s/,response_flags="([A-Z]+)"/;response_flags="\1"/
      s/,[a-z_]+="[^"]*"//g; s/,\}/, …}/; s/\{;/{/; s/;/, /g'
}

act_drain() {
  act 5 'A version taken out of service, under load'
  say 'client keeps asking, one connection after the other, while web v2 is marked unhealthy.'
  local loop="until [ -e enough ]; do curl -f --proxy socks5h://$socks $WEB/ || echo failed; done >answers" asking lines
  touch answers
  print_command client "$loop &"
  start client asking bash -c "$loop"
  asking=$started
  wait_until 'both versions have answered' both_answer
  wait_until 'thirty answers have come' has_lines answers 30
  sed 's/health: healthy/health: unhealthy/' mesh.yaml >next.yaml
  run node 'diff mesh.yaml next.yaml' || true
  apply next.yaml
  # One answer may be on its way while the change is applied.
  lines=$(($(wc -l <answers) + 1))
  wait_until 'fifty more answers have come' has_lines answers $((lines + 50))
  touch enough
  ended "$asking" || fail 'the asking client failed'
  run client "head -n $lines answers | sort | uniq -c                 # before"
  run client "tail -n +$((lines + 1)) answers | sort | uniq -c               # after"
  [[ $output != *v2* ]] || fail 'web v2 was asked after it had been taken out'
  ! grep -v '^web v[12]$' answers || fail 'requests failed'
  conclude "$(wc -l <answers) requests, none failed; web v2 got no more of them."
  cp mesh.yaml next.yaml
  apply next.yaml
}

both_answer() { grep -q v1 answers && grep -q v2 answers; }

act_reject() {
  act 7 'A mistake in the configuration'
  sed -e 's/shop\/web-v2]/shop\/web-v22]/' -e 's/health: healthy/health: helthy/' mesh.yaml >next.yaml
  run node 'diff mesh.yaml next.yaml' || true
  say 'Whoever asks first is told where, what, and the way out:'
  ! run node 'underpass validate --config next.yaml' || fail 'the mistakes were not found'
  say 'Whoever does not ask changes nothing: the proxy says the same, and goes on with what it has.'
  local before
  before=$(updates rejected)
  put_live next.yaml
  wait_until 'the proxy has rejected next.yaml' more_updates rejected "$before"
  run node "grep -A3 rejected underpass.log"
  run node "curl http://$admin/metrics | grep ^underpass_config_updates_total"
  run client "curl --proxy socks5h://$socks $WEB/"
}

# measure HOST CONNECTIONS REQUESTS [NAME]: one round; adds "p50-in-ms requests-per-second" to the file NAME-CONNECTIONS.
measure() {
  on client "redis-benchmark -h $1 -p $cache_port -c $2 -n $3 -t ping_mbulk --csv" |
    awk -F'"' '$2 == "PING_MBULK" { print $10, $4 }' >>"${4:-$1}-$2"
}

# lowest_p50 FILE, most_requests FILE: the best of the rounds, which is the one that the rest of the machine disturbed least.
lowest_p50() { sort -n "$1" | awk 'NR == 1 { print $1 }'; }
most_requests() { sort -k2 -rn "$1" | awk 'NR == 1 { print $2 }'; }

# table_row WHAT UNIT DIRECT RELAYED
table_row() {
  awk -v what="$1" -v unit="$2" -v direct="$3" -v relayed="$4" 'BEGIN {
    if (unit == "us") { direct *= 1000; relayed *= 1000 }
    printf "     %-24s %11.0f %-5s %11.0f %-5s %7.2f\n", what, direct, unit, relayed, unit, relayed / direct
  }'
}

act_latency() {
  act 8 'What the way through the proxy costs, here and now'
  if [[ $has_cache == no ]]; then
    say 'Skipped: redis-server and redis-tools are not installed.'
    return
  fi
  local direct relayed target
  direct=$(address_of cache) relayed=$(address_of node)
  say 'redis-benchmark, PING, to the cache and through the proxy in turns; the best of five rounds.'
  print_command client "redis-benchmark -h $direct -p $cache_port -c 1 -n 3000 -t ping_mbulk --csv     # and $relayed; -c 16"
  for _ in 1 2 3 4 5; do
    for target in "$direct" "$relayed"; do
      measure "$target" 1 3000
      measure "$target" 16 15000
    done
  done
  printf '     %-24s %11s %-5s %11s %-5s %7s\n' '' direct '' relayed '' ratio
  table_row '1 connection, p50' us "$(lowest_p50 "$direct-1")" "$(lowest_p50 "$relayed-1")"
  table_row '16 connections' req/s "$(most_requests "$direct-16")" "$(most_requests "$relayed-16")"
  say 'A glance only: redis-benchmark counts in steps of 8 us, and nothing is pinned. make bench measures properly.'
}

main() {
  choose_stage "$@"
  check_programs "$kind"
  SECONDS=0
  PATH="$(dirname "$binary"):$PATH"
  unset http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY
  trap finish EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 141' PIPE
  trap 'exit 143' TERM
  trap 'broken="${BASH_SOURCE[0]##*/} line $LINENO: $BASH_COMMAND"' ERR
  raise_curtain
  act_balance
  act_deny
  act_allow
  act_metrics
  act_drain
  act_gray
  act_reject
  act_latency
  act_capture
  act_nodes
  step='cleaning up'
  strike
  printf '\n%sDone in %d s.%s Everything that was started is gone again.\n' "$bold" "$SECONDS" "$plain"
}

main "$@"
