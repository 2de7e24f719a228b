// Mapped files that are cut short while they are read.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mergekern {

// Makes reads of a mapped range give zeros where its file has ended meanwhile; the system would end the process by
// SIGBUS. Returns a number for `unguard`. Whoever reads the range must check afterwards that the file is unchanged.
std::uintptr_t guard(std::uintptr_t begin, std::size_t size);

// Ends the guard of a range; before it is unmapped.
void unguard(std::uintptr_t number);

}  // namespace mergekern
