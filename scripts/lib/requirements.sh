# What this machine must have before anything is installed: platform, Java, Python, disk.
# Sourced by scripts/setup. Each check passes silently or ends the script with one message in three parts:
# what was expected, what was found, what to do.

readonly MIN_JAVA=17
readonly MIN_PYTHON_MINOR=11
readonly MAX_PYTHON_MINOR=13
readonly DISK_GB=5

# fail MESSAGE...: print each argument on a line of its own and end.
fail() {
  printf 'tfspark setup: %s\n' "$1" >&2
  shift
  [ "$#" -eq 0 ] || printf '  %s\n' "$@" >&2
  exit 1
}

# TensorFlow has wheels for these platforms only.
require_platform() {
  local platform
  platform="$(uname -s) $(uname -m)"
  case "$platform" in
    'Linux x86_64' | 'Linux aarch64' | 'Darwin arm64') ;;
    *)
      fail "expected Linux on x86_64 or aarch64, or macOS on Apple silicon; found $platform." \
        'TensorFlow has no wheels for it: use a virtual machine or a container with one of these.'
      ;;
  esac
}

# Spark looks for Java in this order, too.
java_program() {
  if [ -n "${JAVA_HOME:-}" ]; then
    printf '%s\n' "$JAVA_HOME/bin/java"
  else
    command -v java || true
  fi
}

# java_major: read the output of `java -version`; print 8 for "1.8.0_392", 17 for "17.0.15", 25 for "25-ea".
java_major() {
  sed -n -E 's/.* version "(1\.)?([0-9]+).*/\2/p' | head -n 1
}

require_java() {
  local java output major
  java="$(java_program)"
  [ -n "$java" ] || fail "expected Java $MIN_JAVA or newer; found no java on PATH and JAVA_HOME is not set." \
    "${JAVA_HINTS[@]}"
  if [ ! -x "$java" ]; then
    fail "expected Java $MIN_JAVA or newer; found JAVA_HOME=$JAVA_HOME, which holds no bin/java." \
      'Set JAVA_HOME to a Java installation, or unset it to use the java on PATH.' "${JAVA_HINTS[@]}"
  fi
  output="$("$java" -version 2>&1)" ||
    fail "expected Java $MIN_JAVA or newer; $java -version failed and printed: $output" "${JAVA_HINTS[@]}"
  major="$(java_major <<<"$output")"
  if [ -z "$major" ] || [ "$major" -lt "$MIN_JAVA" ]; then
    fail "expected Java $MIN_JAVA or newer; found ${major:-no version in the output of} ($java)." "${JAVA_HINTS[@]}"
  fi
}

readonly JAVA_HINTS=(
  'Debian, Ubuntu: sudo apt-get install openjdk-17-jre-headless'
  'macOS: brew install openjdk@17 && export JAVA_HOME="$(brew --prefix openjdk@17)/libexec/openjdk.jdk/Contents/Home"'
)

readonly PYTHON_HINTS=(
  'Debian, Ubuntu: sudo apt-get install python3 python3-venv (where python3 is older: the deadsnakes PPA, or pyenv)'
  'macOS: brew install python@3.13'
  'Or name one: TFSPARK_PYTHON=/path/to/python scripts/setup'
)

# find_python: print the first suitable interpreter. A name on PATH is not enough: a pyenv shim may stand for a version
# that is not active, and Debian ships a python3 without venv.
find_python() {
  local candidate found probe=()
  local -a candidates=(python3.13 python3.12 python3.11 python3) seen=()
  [ -z "${TFSPARK_PYTHON:-}" ] || candidates=("$TFSPARK_PYTHON")
  for candidate in "${candidates[@]}"; do
    command -v "$candidate" >/dev/null || continue
    if ! found="$("$candidate" "$LIB/probe_python.py" 2>/dev/null)"; then
      seen+=("$candidate, which does not start")
      continue
    fi
    read -r -a probe <<<"$found"
    if suitable_python "${probe[@]}"; then
      command -v "$candidate"
      return
    fi
    seen+=("$candidate ${probe[0]} ($REASON)")
  done
  fail "expected Python 3.$MIN_PYTHON_MINOR to 3.$MAX_PYTHON_MINOR, which TensorFlow has wheels for; found $(
    join_words "${seen[@]:-${TFSPARK_PYTHON:-python3}, which is not there}"
  )." "${PYTHON_HINTS[@]}"
}

# suitable_python VERSION BITS VENV: succeed if the interpreter is suitable; otherwise put the reason into REASON.
suitable_python() {
  local minor="${1#3.}"
  minor="${minor%%.*}"
  REASON=''
  if [ "${1%%.*}" != 3 ] || [ "$minor" -lt "$MIN_PYTHON_MINOR" ]; then
    REASON='too old'
  elif [ "$minor" -gt "$MAX_PYTHON_MINOR" ]; then
    REASON='too new for TensorFlow'
  elif [ "$2" != 64 ]; then
    REASON="$2 bits, not 64"
  elif [ "$3" != venv ]; then
    REASON="without the venv module: sudo apt-get install python3.$minor-venv"
  fi
  [ -z "$REASON" ]
}

# join_words A B C: print "A, B, C".
join_words() {
  local first="$1"
  shift
  printf '%s' "$first" "${@/#/, }"
}

require_disk() {
  local free_kb
  free_kb="$(df -Pk "$ROOT" | awk 'NR == 2 { print $4 }')"
  if [ "$free_kb" -lt $((DISK_GB * 1024 * 1024)) ]; then
    fail "expected $DISK_GB GB of free disk for the first setup; found $((free_kb / 1024)) MB at $ROOT." \
      'Free some, or move the repository to a larger disk.'
  fi
}
