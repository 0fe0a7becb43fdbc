// What this CPU can do, as far as the kernels care.
#pragma once

namespace shoal {

struct Cpu {
    bool avx2 = false;         // with FMA and F16C
    bool avx512_vnni = false;  // F, BW, VL, DQ and VNNI
    bool amx_int8 = false;     // with avx512_vnni, and the system lets this process use the tiles
};
const Cpu& this_cpu();

}  // namespace shoal
