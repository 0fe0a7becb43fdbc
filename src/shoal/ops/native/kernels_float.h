// Products of F32 and BF16 weights with float activations. Included by kernels_isa.cpp.
// Per output: sum = fma(w[d], x[d], sum) for d ascending, in float.
#pragma once

template <Format F, int N> void float_tile(const uint8_t* block, int cols, const Activations& x, float* y, ptrdiff_t ldy, int rows) {
    vf total[N];
    for (int t = 0; t < N; t++) total[t] = set1(0.0f);
    int d = 0;
    for (; d + 2 <= cols; d += 2) {
        vf even = F == Format::F32 ? load((const float*)block + ptrdiff_t(d) * kRows) : load_bf16_even(block + ptrdiff_t(d) * 32);
        vf odd = F == Format::F32 ? load((const float*)block + ptrdiff_t(d + 1) * kRows) : load_bf16_odd(block + ptrdiff_t(d) * 32);
        for (int t = 0; t < N; t++) {
            total[t] = fma(even, set1(x.x[t * x.ldx + d]), total[t]);
            total[t] = fma(odd, set1(x.x[t * x.ldx + d + 1]), total[t]);
        }
    }
    if (d < cols) {
        vf last = F == Format::F32 ? load((const float*)block + ptrdiff_t(d) * kRows) : load_bf16_even(block + ptrdiff_t(d) * 32);
        for (int t = 0; t < N; t++) total[t] = fma(last, set1(x.x[t * x.ldx + d]), total[t]);
    }
    for (int t = 0; t < N; t++) store_n(y + t * ldy, total[t], rows);
}

template <Format F, int N> void float_tokens(const uint8_t* block, int cols, const Activations& x, int tokens, float* y, ptrdiff_t ldy, int rows) {
    int t = 0;
    for (; t + N <= tokens; t += N) float_tile<F, N>(block, cols, x.from(t), y + t * ldy, ldy, rows);
    if constexpr (N > 1)
        if (t < tokens) float_tokens<F, N - 1>(block, cols, x.from(t), tokens - t, y + t * ldy, ldy, rows);
}

template <Format F> void float_matmul(const Matrix& w, const Activations& x, int tokens, float* y, ptrdiff_t ldy, int begin, int end) {
    for (int b = begin; b < end; b++) {
        int rows = w.rows - b * kRows < kRows ? w.rows - b * kRows : kRows;
        float_tokens<F, kTile>(w.data + b * w.block_bytes(), w.cols, x, tokens, y + b * kRows, ldy, rows);
    }
}
