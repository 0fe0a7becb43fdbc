// Compiled once per instruction set (SHOAL_ISA = plain, avx2, avx512, amx), with that set's compiler flags; each copy
// lives in a namespace of its own and exports one table of functions.
#include <cstddef>
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace shoal {
namespace SHOAL_ISA {
namespace {

#include "kernels_simd.h"
#include "kernels_rows.h"
#include "kernels_quant.h"
#if defined(__AMX_INT8__)
#include "kernels_amx.h"
#endif
#include "kernels_float.h"
#include "kernels_matmul.h"
#include "kernels_attention.h"
#include "kernels_peak.h"

}  // namespace

#define SHOAL_STRING_(x) #x
#define SHOAL_STRING(x) SHOAL_STRING_(x)

extern const Kernels table;
const Kernels table = {SHOAL_STRING(SHOAL_ISA), matmul, quantise, attention, attention_span, attention_merge, store_position,
                       rmsnorm, rope, silu_mul, silu_mul_blocks, add_to, axpy, softmax, argmax, peak_read, peak_float, kPeakFloat, peak_integer, kPeakInteger};

}  // namespace SHOAL_ISA
}  // namespace shoal
