# Runs the steps of scripts/gpu_check.sh, which sources this file. A step runs within its limit and the time that is
# left of the whole. As many steps run at a time as the plan says and the cores allow. Each has a row in the table and a
# log in the archive.
# shellcheck shell=bash disable=SC2034,SC2154  # the variables that gpu_check.sh sets or reads

# Each step has an entry in these, by its name.
declare -A pids=() deadlines=() begins=() seconds_of=() results=() notes=()
# The names of the steps, in the order of their start.
order=()
# Why no further step may run.
stopped=
# Why the steps of the current part of the plan may not run.
blocked=
# Why there is no archive.
unkept=
# The folder where the logs grow.
work=
# The folders to remove.
made=()
# This takes messages while stderr is redirected.
exec {stderr}>&2
# The process that records the clocks beside the steps.
recorder=

# result NAME RESULT SECONDS NOTE adds the row of a step.
result() {
  order+=("$1")
  results[$1]=$2 seconds_of[$1]=$3 notes[$1]=$4
}

# start NAME SECONDS COMMAND... runs a step beside those that run already, as soon as a core is free.
start() {
  local name=$1 seconds=$(($2 * slowness)) left
  shift 2
  [[ -z $only || $name =~ $only || $name == ready ]] || return 0 # All other steps depend on ready.
  while ((${#pids[@]} >= cores && ${#pids[@]} > 1)); do look; done
  left=$((limit - SECONDS))
  if [[ $mode == list ]]; then
    printf '%s\t%s\t%s\n' "$name" "$seconds" "${*@Q}"
  elif [[ -n $stopped$blocked ]]; then
    result "$name" "not run" - "${stopped:-$blocked}"
  elif ((left < 5)); then
    result "$name" "no time" - "all $limit s of the run are over"
  else
    ((seconds < left)) || seconds=$left
    echo "== $name (at most $seconds s)"
    result "$name" running - ""
    timeout --kill-after=3 "$seconds" "$@" >"$work/$name.log" 2>&1 {stderr}>&- &
    pids[$name]=$! begins[$name]=$SECONDS deadlines[$name]=$((SECONDS + seconds + 6))
  fi
}

# look concludes the steps that have ended. Its stderr is closed, because bash would report every signal there.
look() {
  local name
  for name in "${!pids[@]}"; do
    if ! kill -0 "${pids[$name]}" 2>/dev/null; then
      conclude "$name"
    elif ((SECONDS > deadlines[$name])); then # A process that waits for a broken driver cannot be killed.
      unset "pids[$name]"
      results[$name]="time out" notes[$name]="it could not be killed"
    fi
  done
  sleep 0.05
} 2>/dev/null

# finish waits for all steps that were started.
finish() {
  while ((${#pids[@]})); do look; done
}

# step NAME SECONDS COMMAND... runs a step alone. It fails unless the step went well.
step() {
  start "$@"
  finish
  went_well "$1"
}

# went_well NAME is also true for a step that this run leaves out.
went_well() { [[ ${results[$1]:-ok} == ok ]]; }

# conclude NAME fills in the row of a step that has ended.
conclude() {
  local name=$1 log=$work/$1.log status=0 found=ok last
  wait "${pids[$name]}" || status=$?
  unset "pids[$name]"
  # The last line, without the frame that pytest's report has.
  last=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | sed -E 's/^=+ (.*) =+$/\1/')
  if ((status == 0)); then
    [[ ! $last =~ ^[0-9]+\ (skipped|deselected) ]] || found="nothing ran" # No test of pytest passed.
  elif [[ -n $stopped ]]; then
    found=stopped
  elif ((status == 124 || status == 137)); then
    found="time out"
  else
    found="failed $status"
  fi
  [[ $found != "time out" && $last != *"+ Timeout +"* ]] || last=$(last_test "$log" || echo "$last")
  results[$name]=$found seconds_of[$name]=$((SECONDS - begins[$name])) notes[$name]=$last
  echo "== $name: $found, ${seconds_of[$name]} s: $last"
  keep
}

# last_test LOG prints the test that pytest named last. It is the one that hangs, unless several run at a time.
last_test() { grep -aoE '[a-z0-9_/]+\.py::[^ ]+' "$1" | tail -n 1 | grep . | sed 's/^/timed out in /'; }

has_xdist() { [[ $mode != list ]] && "$python" -c 'import xdist' 2>/dev/null; }

# split NAME SECONDS PARTS FILES PYTEST... runs the tests of these files in several processes, with or without xdist.
split() {
  local name=$1 seconds=$2 parts=$3 files part
  read -ra files <<<"$4"
  shift 4
  if [[ $mode == list || -n $stopped$blocked ]]; then
    start "$name" "$seconds" "$@" "${files[@]}"
  elif has_xdist; then
    start "$name" "$seconds" "$@" -n "$parts" "${files[@]}"
  elif step "${name}_list" 60 "$@" --collect-only -qq "${files[@]}" && [[ -e $work/${name}_list.log ]]; then
    deal "$work/$name" "$parts" <"$work/${name}_list.log"
    for part in "$work/$name".*.ids; do
      part=${part#"$work/"}
      start "${part%.ids}" "$seconds" "$@" "@$work/$part"
    done
  fi
}

# deal FILE PARTS writes the names of tests in a listing to FILE.0.ids, FILE.1.ids, ..., in turns.
deal() { awk -v file="$1" -v parts="$2" '/::/ { print > (file "." n++ % parts ".ids") }'; }

# keep makes one archive of all logs and values, and replaces the old one in one step.
keep() {
  local part=$out/.logs.part said
  [[ -n $work ]] || return
  said=$({ LC_ALL=C tar czf "$part" --exclude ./tmp -C "$work" . || (($? == 1)); } 2>&1) && # It is 1 if a log grew.
    said=$(LC_ALL=C mv -f "$part" "$out/logs.tgz" 2>&1) && unkept= && return
  rm -f "$part"
  unkept="the archive cannot be written to $out: $(reason "$said")"
}

# reason TEXT prints the line that says why tar or gzip failed, from what they wrote.
reason() {
  grep -m 1 -E 'No space left|[Qq]uota|Permission denied|Read-only file system' <(echo "$1") || head -n 1 <(echo "$1")
}

# halt WHY stops the plan. Its other steps only get their rows.
halt() {
  [[ -z $stopped ]] || return
  stopped=$1
  echo "gpu_check.sh: $stopped" >&"$stderr"
}

# interrupt ends the steps that run; timeout kills a step that does not end. The other steps only get their rows.
interrupt() {
  halt "interrupted"
  ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null
}

print_table() {
  local name
  printf '%-14s %-11s %4s  %s\n' step result s "last line of its log"
  for name in "${order[@]}"; do
    printf '%-14s %-11s %4s  %.100s\n' "$name" "${results[$name]}" "${seconds_of[$name]}" "${notes[$name]}"
  done
  echo "$SECONDS s in all; logs and values: $out/logs.tgz"
}

# leave prints the table, whatever has happened, and exits with the right code.
leave() {
  local code=$? name
  trap - EXIT
  [[ -z $recorder ]] || kill "$recorder" 2>/dev/null
  ((${#pids[@]} == 0)) || { interrupt && finish; }
  for name in "${order[@]}"; do went_well "$name" || ((code)) || code=1; done
  [[ $mode == list ]] || { echo && print_table; }
  [[ ${#made[@]} == 0 || ! -d $out ]] || { print_table >"$work/table.txt"; keep; } 2>/dev/null
  [[ -z $unkept || $unkept == "$stopped" ]] || { echo "gpu_check.sh: $unkept" >&2 && ((code)) || code=1; }
  ((${#made[@]} == 0)) || rm -rf "${made[@]}"
  exit "$code"
}
