#!/bin/sh
# Watches a rank that runs without `switchyard launch`: watch.sh PID SECONDS.
# If a signal has stopped the rank for SECONDS, says so and kills it: its launcher then ends the job.
# Standard input is a pipe of the rank, which closes as the rank ends.
. "${0%/*}/is_stopped.sh"
pid=$1
rank=${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-$PMIX_RANK}}
[ -n "$rank" ] || exit 0
# A job in the background is given another standard input.
exec 3<&0
trap 'kill $pause $reader 2>/dev/null; exit' HUP INT TERM
{
  read -r _ <&3
  kill $$
} 2>/dev/null &
reader=$!
seconds=0
while [ $seconds -lt "$2" ]; do
  sleep 1 3<&- >/dev/null 2>&1 &
  pause=$!
  { wait $pause; } 2>/dev/null
  if is_stopped "$pid"; then seconds=$((seconds + 1)); else seconds=0; fi
done
printf 'Cannot finish: a signal stopped rank %s on %s, and nobody continued it. Start the command again\n' "$rank" "$(uname -n)" >&2
# The launcher may drop what it has not read when a rank ends.
sleep 0.2
kill -9 "$pid"
kill $reader 2>/dev/null
