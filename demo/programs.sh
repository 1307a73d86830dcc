# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with the files beside this one
# The programs on the stage: the two versions of web, the cache, the proxy; and what an operator asks the proxy.

# Where they are, once the stage is set: proxy listeners, the cache, the admin address.
name_addresses() {
  socks=$(address_of node):${port_prefix}1080
  connect=$(address_of node):${port_prefix}3128
  cache_port=${port_prefix}6379
  web_port=${port_prefix}8080
  http_port=${port_prefix}8000
  admin=127.0.0.1:15000
  [[ $stage == namespaces ]] || admin=$(address_of node):25000
  # mesh.yaml for this stage, and without the comments that are for its readers in demo/.
  sed -E -e '/^#/d' -e "s/10\.244\.1\./$subnet/g" -e "s/127\.0\.0\.1:15000/$admin/" \
    -e "s/\b(1080|3128|6379|8000|8080)\b/$port_prefix\1/g" "$home/mesh.yaml" >mesh.yaml
  cp "$home/only-client.yaml" .
}

# start_web VERSION: a web server with a page that says its version.
start_web() { serve_page "web-$1" "$(address_of "web-$1")" "web $1"; }

# serve_page WORKLOAD ADDRESS TEXT: nginx with a page of this text, or Python's web server where there is no nginx.
serve_page() {
  local workload=$1 address=$2
  mkdir "$workload/html"
  echo "$3" >"$workload/html/index.html"
  head -c 1M /dev/urandom >"$workload/html/photo.bin"
  if [[ $web == nginx ]]; then
    sed "s/@LISTEN@/$address:$web_port/" "$home/nginx.conf" >"$workload/nginx.conf"
    start "$workload" "$workload" nginx -e stderr -p "$work/$workload" -c "$work/$workload/nginx.conf"
  else
    start "$workload" "$workload" python3 "$home/web.py" "$address" "$web_port" "$workload/html"
  fi
  local program=$started
  wait_until "$workload serves" listens_or_gone "$program" "$workload" "curl -f -o /dev/null http://$address:$web_port/"
  kill -0 "$program" 2>/dev/null || fail "$workload did not start: $(tail -n 3 "$workload.log")"
}

listens_or_gone() { ! kill -0 "$1" 2>/dev/null || on "$2" "$3" 2>/dev/null; }

start_cache() {
  local address
  address=$(address_of cache)
  start cache cache redis-server --bind "$address" --port "$cache_port" --protected-mode no --save '' --dir "$work/cache"
  wait_for_program "$started" cache "redis-cli -h $address -p $cache_port ping >/dev/null 2>&1"
}

start_proxy() {
  # A folder of its own, because the proxy watches it.
  mkdir live
  cp mesh.yaml live/mesh.yaml
  print_command node 'underpass run --config live/mesh.yaml >underpass.log 2>&1 &'
  start node underpass underpass run --config live/mesh.yaml
  wait_for_program "$started" underpass "curl -f http://$admin/ready >/dev/null 2>&1"
}

# wait_for_program PID NAME COMMAND: waits until COMMAND, run at the node, succeeds, or the program is gone.
wait_for_program() {
  wait_until "$2 serves" answers_or_gone "$1" "$3"
  kill -0 "$1" 2>/dev/null || fail "$2 did not start: $(tail -n 3 "$2.log")"
}

answers_or_gone() { ! kill -0 "$1" 2>/dev/null || on node "$2" 2>/dev/null; }

admin() { on node "curl http://$admin$1"; }

# scrape: what /metrics says now, into the file metrics.
scrape() { admin /metrics >metrics; }

# total METRIC LABEL…: the sum of a scraped metric's series that have all these labels.
total() {
  local metric=$1
  shift
  awk -v metric="$metric" -v wanted="$*" '
    BEGIN { n = split(wanted, label, " ") }
    index($0, metric "{") == 1 {
      for (i = 1; i <= n; i++) if (!index($0, label[i])) next
      sum += $NF
    }
    END { print sum + 0 }' metrics
}

# updates RESULT: configuration updates so far that were applied, or rejected.
updates() { scrape && total underpass_config_updates_total "result=\"$1\""; }

# put_live FILE: replaces the proxy's configuration in one step, and shows it.
put_live() {
  print_command node "mv $1 live/mesh.yaml"
  mv "$1" live/mesh.yaml
}

# apply FILE: replaces the proxy's configuration, and returns when it is in force.
apply() {
  local before
  before=$(updates applied)
  put_live "$1"
  wait_until "the proxy has applied $1" more_updates applied "$before"
}

# more_updates RESULT BEFORE
more_updates() {
  local now
  now=$(updates "$1") && ((now > $2))
}

# log_lines FIELD…: the access log's lines that have all these fields (KEY=VALUE).
log_lines() {
  awk -v wanted="$*" '
    BEGIN { n = split(wanted, field, " ") }
    {
      for (i = 1; i <= n; i++) if (!index($0 " ", " " field[i] " ")) next
      print
    }' access.log
}

# shorten KEY…: access-log lines with these fields only.
shorten() {
  awk -v wanted="$*" '
    BEGIN { n = split(wanted, keys, " "); for (i = 1; i <= n; i++) keep[keys[i]] = 1 }
    {
      line = substr($1, 12, 12)
      for (i = 3; i <= NF; i++) { split($i, pair, "="); if (pair[1] in keep) line = line " " $i }
      print line
    }'
}
