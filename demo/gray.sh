# shellcheck shell=bash disable=SC2154 # variables are shared with the files beside this one
# A gray release: two versions behind one route, whose weights are changed live while clients keep asking.

# Clients that ask at the same time, and answers that each step is judged by. A share of 50 % of 2000 is off by more than the 6 points that are
# let pass once in twelve million steps.
readonly ASKERS=4 JUDGED=2000 TOLERANCE=6

# weigh V1 V2: gives the versions these weights.
weigh() {
  sed -E -e "s/(cluster: v1, weight: )[0-9]+/\1$1/" -e "s/(cluster: v2, weight: )[0-9]+/\1$2/" mesh.yaml >next.yaml
  run node 'diff mesh.yaml next.yaml' || true
  apply next.yaml
}

# counted FILE…: lines of these files.
counted() { cat "$@" | wc -l; }

# row WEIGHTS V1 V2 SHARE
row() { printf '     %-10s %9s %9s %13s\n' "$@"; }

# has_answers COUNT: whether as many answers have come after those that were counted when the step began.
has_answers() { (($(counted asked-*) >= before + $1)); }

# none_failed: whoever asks got nothing but pages so far.
none_failed() {
  local others
  others=$(grep -hvm 3 '^web v[12]$' asked-* || true)
  [[ -z $others ]] || fail "requests failed: $others"
}

# divide V1 V2: with these weights, each version gets its share, and no request fails. Adds a row to `shares`.
divide() {
  local i before wanted=$2 got began=()
  [[ ${#shares[@]} -eq 0 ]] || weigh "$1" "$2"
  for ((i = 0; i < ASKERS; i++)); do
    # One answer of each may be on its way while the change is applied.
    began[i]=$(($(counted "asked-$i") + 2))
  done
  before=$(($(counted asked-*) + ASKERS))
  wait_until "$JUDGED more answers have come" has_answers "$JUDGED"
  none_failed
  for ((i = 0; i < ASKERS; i++)); do
    tail -n "+${began[i]}" "asked-$i"
  done >judged
  got=$(awk '/v2/ { n++ } END { printf "%.1f", 100 * n / NR }' judged)
  shares+=("$(row "$1 : $2" "$(grep -c v1 judged)" "$(grep -c v2 judged)" "$got %")")
  awk -v got="$got" -v wanted="$wanted" -v tolerance="$TOLERANCE" \
    'BEGIN { off = got - wanted; exit !(wanted % 100 ? off * off <= tolerance * tolerance : off == 0) }' ||
    fail "with the weights $1 : $2, web v2 has $got % of the requests"
}

# requests_of CLUSTER: requests that the proxy has counted with the status 200.
requests_of() { total underpass_http_requests_total "cluster=\"$1\" response_code=\"200\""; }

all_are_counted() { scrape && (($(requests_of v1) + $(requests_of v2) == $(counted asked-*))); }

act_gray() {
  act 6 'A gray release, under load'
  local url i askers=() loop shares=()
  url=http://$(address_of node):$http_port
  say 'The proxy routes HTTP, too: a route leads to both versions, by weights. Four clients keep asking, on kept connections,' \
    'while web v2 is given more and more of the requests.'
  run node 'tail -n 14 mesh.yaml'
  loop="until [ -e gray ]; do curl -N '$url/?[1-200]'; done"
  print_command client "$loop >asked-0 2>&1 &           # and three more"
  for ((i = 0; i < ASKERS; i++)); do
    : >"asked-$i"
    start client "asker-$i" bash -c "{ $loop; } >asked-$i 2>&1"
    askers+=("$started")
  done
  divide 100 0
  divide 90 10
  divide 50 50
  divide 0 100
  touch gray
  for i in "${askers[@]}"; do
    ended "$i" || fail 'an asking client failed'
  done
  row 'weights' 'by v1' 'by v2' 'share of v2'
  printf '%s\n' "${shares[@]}"
  none_failed
  wait_until 'the proxy has counted as many requests' all_are_counted
  conclude "$(counted asked-*) requests, none failed; the proxy has counted as many: $(requests_of v1) for v1, $(requests_of v2) for v2."
  cp mesh.yaml next.yaml
  apply next.yaml
}
