// Protection against mapped files that are truncated while they are read.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mergekern {

// Guards a mapped range: if its file is truncated, reads past its end give zeros instead of a SIGBUS, which would end
// the process. Returns a number for `unguard`. The caller must check after reading that the file is unchanged.
std::uintptr_t guard(std::uintptr_t begin, std::size_t size);

// Ends the guard of a range. Must be called before the range is unmapped.
void unguard(std::uintptr_t number);

}  // namespace mergekern
