#!/usr/bin/env bash
# The C++ kernels under the sanitizers of GCC, in a copy of the package, whose own extension stays as it is. Stops at
# the first report. Called by `make sanitize`, with the Python of its virtual environment.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(realpath --no-symlinks "$1")  # that of a virtual environment is a link that must not be followed
copy=build/sanitize
rm -rf $copy
mkdir -p $copy
cp -r csrc mergekern tests pyproject.toml $copy
cd $copy
rm -f mergekern/_native*.so

# -O1: GCC adds its checks late, when at -O3 much of what they would see is gone. The standard library checks itself.
flags="-std=c++17 -O1 -g -fno-omit-frame-pointer -fopenmp -fno-math-errno -D_GLIBCXX_ASSERTIONS -Icsrc/cpu"
compiler=${CXX:-g++}

echo "addresses and undefined behaviour: the tests of the kernels, on every instruction set that the processor has"
"$python" -m pip install --quiet --disable-pip-version-check --target pybind11 "pybind11>=2.12"
include=$(PYTHONPATH=pybind11 "$python" -m pybind11 --includes)
# shellcheck disable=SC2086
$compiler $flags $include -fsanitize=address,undefined -fno-sanitize-recover -shared -fPIC csrc/cpu/*.cpp \
  -o mergekern/_native.so

# The interpreter is not instrumented, so it must load the sanitizer first, and at once the library whose exceptions the
# sanitizer intercepts. Leaks are not looked for: the interpreter ends with memory in use.
sanitized() {
  LD_PRELOAD="$($compiler -print-file-name=libasan.so) $($compiler -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 MERGEKERN_INSTRUCTION_SET=$set "$python" "$@"
}
for set in avx512 avx2 generic; do
  chosen=$(sanitized -c "from mergekern import _native as n; assert '/$copy/' in n.__file__; print(n.instruction_set())")
  if [ "$chosen" != $set ]; then
    echo "$set: not here"
    continue
  fi
  echo "$set:"
  # -s: what is written before the process is stopped shall be seen.
  # The tests that name the extension, and those of spectrum, which reaches it through tridiagonal.
  # shellcheck disable=SC2046
  sanitized -m pytest -s -x -p no:cacheprovider $(grep -lE "native" tests/kernels/test_*.py) tests/kernels/test_spectrum.py \
    -k "not instruction_set and not numpy and not Lapack"
done

echo "data races: tests/kernels/races.cpp, which says what this shows"
# shellcheck disable=SC2046,SC2086
$compiler $flags -fsanitize=thread -c $(ls csrc/cpu/*.cpp | grep -v bindings) tests/kernels/races.cpp
$compiler -fsanitize=thread ./*.o -o races  # without -fopenmp, so without libgomp
export TSAN_OPTIONS=halt_on_error=1
for set in avx512 avx2 generic; do
  MERGEKERN_INSTRUCTION_SET=$set ./races
done
# A race that is there must be seen, or none would be.
status=0
./races planted 2>planted.txt || status=$?
if [ $status != 66 ] || ! grep -q "data race" planted.txt; then
  cat planted.txt
  echo "the planted race was not reported"
  exit 1
fi
echo "no report"
