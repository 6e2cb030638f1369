#!/bin/sh
# Runs one rank of `switchyard launch`: rank.sh FOLDER PROGRAM ARGUMENT…
# A process that is killed or stopped cannot say so, and a launcher of MPI does not always know which one it was: its parent does.
# FOLDER is the job's place for shared memory on this host; it is removed at the end.
. "${0%/*}/is_stopped.sh"
job=$1
shift
command=$3
rank=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}
host=$(uname -n)
mkdir -p "$job" || exit 3
# The rank notes its step in a file that has no name, its standard input. MPICH gives its processes a descriptor.
fd=9
[ "${PMI_FD-}" != 9 ] || fd=8
note=$(mktemp) || exit 3
eval "exec $fd<>\"\$note\""
rm -f "$note"
eval "\"\$@\" <&$fd $fd<&- &"
child=$!
printf '\036started %s %s %s\n' "$rank" "$host" "$child" >&2
# Reports each second for which a signal has stopped the rank, and 0 once it goes on. Ends with this shell.
watch() {
  trap 'kill $pause 2>/dev/null; exit' HUP INT TERM
  seconds=0
  while kill -0 $$ 2>/dev/null; do
    sleep 1 >/dev/null 2>&1 &
    pause=$!
    # The whole job may be signalled at once.
    { wait $pause; } 2>/dev/null
    if is_stopped $child; then
      seconds=$((seconds + 1))
    else
      [ $seconds != 0 ] || continue
      seconds=0
    fi
    step=
    { read -r step <"/proc/$child/fd/0"; } 2>/dev/null
    printf '\036stopped %s %s %s %s\n' "$rank" "$host" "$seconds" "$step" >&2
  done
}
watch &
watcher=$!
# Whoever ends a job may say so twice, and a shell says 'Terminated' of what it runs then: from the first time on nobody listens.
end() {
  trap '' HUP INT TERM
  # A server answers its requests first, for five seconds at most.
  if [ "$command $rank" = 'serve 0' ]; then
    kill $child 2>/dev/null
    { sleep 5; kill -9 $child; } >/dev/null 2>&1 &
    killer=$!
    { wait $child; kill $killer; } 2>/dev/null
  fi
  { kill -9 $child; kill $watcher; } 2>/dev/null
  rm -rf "$job"
  exit 143
}
trap end HUP INT TERM
# A shell says 'Killed' of its own accord.
{ wait $child; } 2>/dev/null
code=$?
{ kill $watcher; wait $watcher; } 2>/dev/null
if [ $code = 0 ]; then
  rmdir "$job" 2>/dev/null
  exit 0
fi
eval "read -r step <&$fd"
printf '\036ended %s %s %s %s\n' "$rank" "$host" "$code" "$step" >&2
# Nor does it say that of what it runs itself, when the whole job is signalled.
{ rm -rf "$job"; } 2>/dev/null
exit $code
