# How scripts/gpu_check.sh runs its steps: each within its limit and within what is left of the whole, as many at a time
# as the plan says and the cores allow, each with a row in the table and a log in the archive. Sourced, not run.
# shellcheck shell=bash disable=SC2034,SC2154  # the variables that gpu_check.sh sets or reads

declare -A pids=() deadlines=() begins=() seconds_of=() results=() notes=() # of each step, by its name
order=() # the names, as they were started
stopped= # why no further step may run
blocked= # why the steps of the part of the plan that is under way may not run
unkept= # why there is no archive
work= # the folder where the logs grow
made=() # the folders to remove
exec {stderr}>&2 # for what is said while stderr leads nowhere
recorder= # what writes down the clocks beside the steps

# result NAME RESULT SECONDS NOTE: the row of a step.
result() {
  order+=("$1")
  results[$1]=$2 seconds_of[$1]=$3 notes[$1]=$4
}

# start NAME SECONDS COMMAND...: runs it beside what runs already, as soon as a core is free.
start() {
  local name=$1 seconds=$(($2 * slowness)) left
  shift 2
  [[ -z $only || $name =~ $only || $name == ready ]] || return 0 # all the rest depends on ready
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

# look: concludes the steps that have ended. Says nothing on stderr, where bash itself would tell of every signal.
look() {
  local name
  for name in "${!pids[@]}"; do
    if ! kill -0 "${pids[$name]}" 2>/dev/null; then
      conclude "$name"
    elif ((SECONDS > deadlines[$name])); then # a process that waits for a broken driver cannot be killed
      unset "pids[$name]"
      results[$name]="time out" notes[$name]="it could not be killed"
    fi
  done
  sleep 0.05
} 2>/dev/null

# finish: waits for all that was started.
finish() {
  while ((${#pids[@]})); do look; done
}

# step NAME SECONDS COMMAND...: runs it alone. Fails unless it went well.
step() {
  start "$@"
  finish
  went_well "$1"
}

# went_well NAME: also true of a step that this run leaves out.
went_well() { [[ ${results[$1]:-ok} == ok ]]; }

# conclude NAME: fills in the row of a step that has ended.
conclude() {
  local name=$1 log=$work/$1.log status=0 found=ok last
  wait "${pids[$name]}" || status=$?
  unset "pids[$name]"
  last=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | sed -E 's/^=+ (.*) =+$/\1/') # of pytest's report, no frame
  if ((status == 0)); then
    [[ ! $last =~ ^[0-9]+\ (skipped|deselected) ]] || found="nothing ran" # of a pytest that passes nothing
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

# last_test LOG: the test that pytest named last, which is the one that hangs unless several run at a time.
last_test() { grep -aoE '[a-z0-9_/]+\.py::[^ ]+' "$1" | tail -n 1 | grep . | sed 's/^/timed out in /'; }

has_xdist() { [[ $mode != list ]] && "$python" -c 'import xdist' 2>/dev/null; }

# split NAME SECONDS PARTS FILES PYTEST...: the tests of these files by several processes, with xdist or without.
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

# deal FILE PARTS: writes the names of tests in a listing to FILE.0.ids, FILE.1.ids, ..., in turns.
deal() { awk -v file="$1" -v parts="$2" '/::/ { print > (file "." n++ % parts ".ids") }'; }

# keep: one archive of all logs and values, replaced in one go.
keep() {
  local part=$out/.logs.part said
  [[ -n $work ]] || return
  said=$({ LC_ALL=C tar czf "$part" --exclude ./tmp -C "$work" . || (($? == 1)); } 2>&1) && # 1: a log grew meanwhile
    said=$(LC_ALL=C mv -f "$part" "$out/logs.tgz" 2>&1) && unkept= && return
  rm -f "$part"
  unkept="the archive cannot be written to $out: $(reason "$said")"
}

# reason TEXT: the line that says why, of what tar and gzip say when they fail.
reason() {
  grep -m 1 -E 'No space left|[Qq]uota|Permission denied|Read-only file system' <(echo "$1") || head -n 1 <(echo "$1")
}

# halt WHY: the rest of the plan only leaves its rows.
halt() {
  [[ -z $stopped ]] || return
  stopped=$1
  echo "gpu_check.sh: $stopped" >&"$stderr"
}

# interrupt: ends what runs (timeout kills what does not end), so that the rest of the plan only leaves its rows.
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

# leave: the exit code and, whatever has happened, the table.
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
