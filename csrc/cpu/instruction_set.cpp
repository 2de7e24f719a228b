#include "instruction_set.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace mergekern {
namespace {

InstructionSet best() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return InstructionSet::generic;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw"))
    return InstructionSet::avx512;
  return InstructionSet::avx2;
#else
  return InstructionSet::generic;
#endif
}

InstructionSet allowed() {
  const char* limit = std::getenv("MERGEKERN_INSTRUCTION_SET");
  if (limit && !std::strcmp(limit, "generic")) return InstructionSet::generic;
  if (limit && !std::strcmp(limit, "avx2")) return InstructionSet::avx2;
  return InstructionSet::avx512;
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = std::min(best(), allowed());
  return chosen;
}

const char* instruction_set_name() {
  switch (instruction_set()) {
    case InstructionSet::avx512: return "avx512";
    case InstructionSet::avx2: return "avx2";
    default: return "generic";
  }
}

}  // namespace mergekern
