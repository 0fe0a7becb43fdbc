// The form of a product: weights unpacked in registers for a few tokens, beforehand for many, or on AMX tiles. Included by
// kernels_isa.cpp. All forms give the same bits (kernels_quant.h says how), so the choice is one of speed alone.
#pragma once

#if defined(__AMX_INT8__)
constexpr int kMany = 9;  // tokens
#else
constexpr int kMany = 17;
#endif

template <Format F> void unpack_block(const uint8_t* block, int groups, uint8_t* loose) {
    using P = Packed<F>;
    for (int g = 0; g < groups; g++)
        for (int j = 0; j < 8; j++) store_bytes(loose + 512 * ptrdiff_t(g) + 64 * j, P::vector(block + ptrdiff_t(g / 2) * P::kBytes, g % 2, j));
}

template <Format F> void quant_matmul(const Matrix& w, const Activations& x, int tokens, float* y, ptrdiff_t ldy, int begin, int end) {
#if defined(__AMX_INT8__)
    if (tokens >= kMany) return amx_matmul<F>(w, x, tokens, y, ldy, begin, end);
#endif
    const bool unpacked = tokens >= kMany && F != Format::Q8;  // Q8 is bytes already
    const int groups = x.groups();
    uint8_t* loose = unpacked ? (uint8_t*)thread_scratch(512 * size_t(groups)) : nullptr;
    for (int b = begin; b < end; b++) {
        const int rows = w.rows - b * kRows < kRows ? w.rows - b * kRows : kRows;
        const uint8_t* block = w.data + b * w.block_bytes();
        if (unpacked) {
            unpack_block<F>(block, groups, loose);
            quant_tokens<F, kTile, true>(block, loose, x, tokens, y + b * kRows, ldy, rows);
        } else {
            quant_tokens<F, kTile, false>(block, nullptr, x, tokens, y + b * kRows, ldy, rows);
        }
    }
}

void matmul(const Matrix& w, const Activations& x, int tokens, float* y, ptrdiff_t ldy, int begin, int end) {
    if (tokens <= 0) return;
    switch (w.format) {
        case Format::F32: return float_matmul<Format::F32>(w, x, tokens, y, ldy, begin, end);
        case Format::BF16: return float_matmul<Format::BF16>(w, x, tokens, y, ldy, begin, end);
        case Format::F16: return float_matmul<Format::F16>(w, x, tokens, y, ldy, begin, end);
        case Format::Q8: return quant_matmul<Format::Q8>(w, x, tokens, y, ldy, begin, end);
        case Format::Q4: return quant_matmul<Format::Q4>(w, x, tokens, y, ldy, begin, end);
        case Format::Q4M: return quant_matmul<Format::Q4M>(w, x, tokens, y, ldy, begin, end);
    }
}
