// The instruction set that the kernels use in this process.
#pragma once

namespace mergekern {

enum class InstructionSet { generic, avx2, avx512 };

// Returns the best instruction set of the processor, or a lesser one named by the environment variable
// MERGEKERN_INSTRUCTION_SET.
InstructionSet instruction_set();

// "generic", "avx2" or "avx512".
const char* instruction_set_name();

}  // namespace mergekern
