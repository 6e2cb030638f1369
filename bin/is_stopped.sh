# is_stopped PID: whether a signal has stopped a process. Sourced by rank.sh and watch.sh.
is_stopped() {
  { read -r state <"/proc/$1/stat" || state=$(ps -o state= -p "$1"); } 2>/dev/null
  # The name of the program, in parentheses, may have any characters.
  case ${state##*) } in
  T*) return 0 ;;
  esac
  return 1
}
