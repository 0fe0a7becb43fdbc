// Products of F32, BF16 and F16 weights with float activations. Included by kernels_isa.cpp.
// Per output: sum = fma(w[d], x[d], sum) for d ascending, in float.
#pragma once

// The 16 rows of an inner element, of the pair that begins here the first or the second.
template <Format F> inline vf load_weights(const uint8_t* pair, bool second) {
    if constexpr (F == Format::F32) return load((const float*)pair + second * kRows);
    else if constexpr (F == Format::F16) return load_half((const half*)pair + second * kRows);
    else return second ? load_bf16_odd(pair) : load_bf16_even(pair);
}

// N tokens with B row blocks: few tokens take several blocks, so that the multipliers have independent sums to work on.
template <Format F, int N, int B>
void float_tile(const uint8_t* block, ptrdiff_t block_bytes, int cols, const Activations& x, float* y, ptrdiff_t ldy, int rows) {
    constexpr int kPair = F == Format::F32 ? 128 : 64;  // bytes of two inner elements
    vf total[N][B];
    for (int t = 0; t < N; t++)
        for (int b = 0; b < B; b++) total[t][b] = set1(0.0f);
    for (int d = 0; d < cols; d += 2, block += kPair) {
        const bool last = d + 1 == cols;
        for (int b = 0; b < B; b++) {
            const uint8_t* pair = block + b * block_bytes;
            prefetch<kPair>(pair + kAhead);
            vf even = load_weights<F>(pair, false);
            for (int t = 0; t < N; t++) total[t][b] = fma(even, set1(x.x[t * x.ldx + d]), total[t][b]);
            if (last) continue;
            vf odd = load_weights<F>(pair, true);
            for (int t = 0; t < N; t++) total[t][b] = fma(odd, set1(x.x[t * x.ldx + d + 1]), total[t][b]);
        }
    }
    for (int t = 0; t < N; t++)
        for (int b = 0; b < B; b++) store_n(y + t * ldy + b * kRows, total[t][b], b < B - 1 ? kRows : rows);
}

// `rows` of the last block.
template <Format F, int N, int B>
void float_tokens(const uint8_t* block, ptrdiff_t block_bytes, int cols, const Activations& x, int tokens, float* y, ptrdiff_t ldy, int rows) {
    int t = 0;
    for (; t + N <= tokens; t += N) float_tile<F, N, B>(block, block_bytes, cols, x.from(t), y + t * ldy, ldy, rows);
    if constexpr (N > 1)
        if (t < tokens) float_tokens<F, N - 1, B>(block, block_bytes, cols, x.from(t), tokens - t, y + t * ldy, ldy, rows);
}

template <Format F> void float_matmul(const Matrix& w, const Activations& x, int tokens, float* y, ptrdiff_t ldy, int begin, int end) {
    const ptrdiff_t size = ptrdiff_t(w.block_bytes());
    for (int b = begin; b < end;) {
        const int together = tokens <= 2 && end - b >= 4 ? 4 : 1, left = w.rows - (b + together - 1) * kRows;
        const int rows = left < kRows ? left : kRows;
        const uint8_t* block = w.data + b * size;
        if (together == 4) float_tokens<F, 2, 4>(block, size, w.cols, x, tokens, y + b * kRows, ldy, rows);
        else float_tokens<F, kTile, 1>(block, size, w.cols, x, tokens, y + b * kRows, ldy, rows);
        b += together;
    }
}
