# shellcheck shell=bash disable=SC2034 # `told` is for demo.sh
# How the demo speaks: acts, plain words, the commands it runs and what they print. Colour on a terminal only, so that a
# file or a pipe gets plain text.

if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
  bold=$'\e[1m' title=$'\e[1;36m' prompt=$'\e[33m' good=$'\e[32m' bad=$'\e[31m' plain=$'\e[0m'
else
  bold='' title='' prompt='' good='' bad='' plain=''
fi

# As wide as the terminal.
width=108
if [[ -t 1 ]] && read -r _ columns < <(stty size </dev/tty 2>/dev/null) && ((columns >= 60)); then
  width=$((columns - 6))
fi

# What the demo is at, for the message when it fails.
step='setting up'

# act NUMBER TITLE: begins an act.
act() {
  step="act $1 ($2)"
  printf '\n%s%s  %s%s\n' "$title" "$1" "$2" "$plain"
}

# say LINE…: explains.
say() { printf '   %s\n' "$@"; }

# conclude LINE: what has just been seen.
conclude() { printf '   %s=> %s%s\n' "$good" "$1" "$plain"; }

# print_command WHO COMMAND: a command as if typed at WHO's prompt.
print_command() { printf '   %s%s$%s %s%s%s\n' "$prompt" "$1" "$plain" "$bold" "$2" "$plain"; }

# indented: what a command printed; long lines are broken at spaces.
indented() {
  awk -v width="$width" '
    function put(line) { sub(/ +$/, "", line); print "     " line }
    {
      while (length($0) > width) {
        for (cut = width; cut > width / 2 && substr($0, cut, 1) != " "; cut--);
        if (cut <= width / 2) break
        put(substr($0, 1, cut))
        $0 = "    " substr($0, cut + 1)
      }
      put($0)
    }'
}

# fail MESSAGE: ends the demo. Works from subshells too, whose exit status then ends the demo.
fail() {
  printf '%sdemo: %s failed: %s%s\n' "$bad" "$step" "$1" "$plain" >&2
  told=yes
  exit 1
}
