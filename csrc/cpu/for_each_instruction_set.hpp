// Compiles the file KERNEL once for each instruction set, in namespaces avx512, avx2 and generic of
// mergekern, with LANES set to the float64 that a register holds. The processor chooses at run time. No
// include guard. KERNEL must use nothing of the standard library that is not inlined: the linker keeps one
// copy of such a function, which might be the one for another instruction set.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MERGEKERN_X86 1
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

// MERGEKERN_CHOOSE(OF) is OF(namespace) for the instruction set of this process.
#ifdef MERGEKERN_X86
#define MERGEKERN_CHOOSE(OF)                                       \
  (instruction_set() == InstructionSet::avx512 ? OF(avx512)        \
   : instruction_set() == InstructionSet::avx2 ? OF(avx2)          \
                                               : OF(generic))
#else
#define MERGEKERN_CHOOSE(OF) OF(generic)
#endif
