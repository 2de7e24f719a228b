// Compiles the file KERNEL once for each instruction set, in the namespaces mergekern::avx512, avx2 and generic. LANES
// is the number of float64 in a register. The choice is made at run time. There is no include guard. KERNEL must not
// use functions of the standard library that are not inlined: the linker keeps only one copy of each, possibly one
// compiled for an instruction set that the processor lacks.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MERGEKERN_X86 1
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")
namespace mergekern {
namespace avx512 {
#define LANES 8
#include KERNEL
#undef LANES
#undef MERGEKERN_INLINE
}  // namespace avx512
}  // namespace mergekern
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace mergekern {
namespace avx2 {
#define LANES 4
#include KERNEL
#undef LANES
#undef MERGEKERN_INLINE
}  // namespace avx2
}  // namespace mergekern
#pragma GCC pop_options
#endif

namespace mergekern {
namespace generic {
#define LANES 2
#include KERNEL
#undef LANES
#undef MERGEKERN_INLINE
}  // namespace generic
}  // namespace mergekern

// MERGEKERN_CHOOSE(OF) expands OF(namespace) for the instruction set in use.
#ifdef MERGEKERN_X86
#define MERGEKERN_CHOOSE(OF)                                       \
  (instruction_set() == InstructionSet::avx512 ? OF(avx512)        \
   : instruction_set() == InstructionSet::avx2 ? OF(avx2)          \
                                               : OF(generic))
#else
#define MERGEKERN_CHOOSE(OF) OF(generic)
#endif
