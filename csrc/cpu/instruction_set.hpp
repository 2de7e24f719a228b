// The instruction set that the kernels of this process use.
#pragma once

namespace mergekern {

enum class InstructionSet { generic, avx2, avx512 };

// The best that the processor has, or a lesser one that the environment variable MERGEKERN_INSTRUCTION_SET names.
InstructionSet instruction_set();

// "generic", "avx2" or "avx512".
const char* instruction_set_name();

}  // namespace mergekern
