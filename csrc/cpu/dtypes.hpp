// Storage types of checkpoint tensors and their exact conversion to float64.
//
// Everything here is plain integer and floating arithmetic, so that the compiler can
// vectorise it for whichever instruction set the including translation unit targets.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace mergekern {

// The codes follow the order of FLOATS in mergekern/checkpoints/dtypes.py.
enum class DType : int { float64 = 0, float32 = 1, float16 = 2, bfloat16 = 3, float8_e4m3fn = 4, float8_e5m2 = 5 };

inline int item_size(DType dtype) {
  switch (dtype) {
    case DType::float64: return 8;
    case DType::float32: return 4;
    case DType::float16:
    case DType::bfloat16: return 2;
    case DType::float8_e4m3fn:
    case DType::float8_e5m2: return 1;
  }
  throw std::invalid_argument("unknown dtype code " + std::to_string(static_cast<int>(dtype)));
}

// A contiguous tensor in memory. The caller knows the number of elements.
struct TensorView {
  const void* data;
  DType dtype;
};

// The 256 values of each 8-bit format, all exact in float32. The tables are filled once.
struct Float8Tables {
  float e4m3fn[256];
  float e5m2[256];
  Float8Tables();
};
const Float8Tables& float8_tables();

}  // namespace mergekern
