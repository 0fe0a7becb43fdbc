// Products of quantised weights (Q8, Q4, Q4M) with int8 activations. Included by kernels_isa.cpp.
//
// Per group of 32 and output: an exact integer dot product, then sum = fma(float(dot), weight scale * activation scale,
// sum), groups in ascending order; Q4M adds fma(minimum, activation scale * float(sum of integers), sum). Every form
// below does exactly this, so all give the same bits.
#pragma once

// Integer dot products of 16 rows with one token's group. `step` takes 4 inner elements of all rows (64 bytes, unsigned)
// and the token's same 4 elements.
template <bool wide> struct Dot;  // wide: weights use all 8 bits (stored + 128); else 0..15

#if defined(__AVX512VNNI__)

struct wv { __m512i v; };
inline wv low_nibbles(const uint8_t* p) { return {_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(15))}; }
inline wv high_nibbles(const uint8_t* p) {
    return {_mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(p), 4), _mm512_set1_epi8(15))};
}
inline wv bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_bytes(uint8_t* p, wv w) { _mm512_storeu_si512(p, w.v); }
template <bool wide> struct Dot {
    __m512i d;
    void begin(int32_t start) { d = _mm512_set1_epi32(start); }
    void step(wv w, const int8_t* x) {
        int32_t x4;
        __builtin_memcpy(&x4, x, 4);
        d = _mm512_dpbusd_epi32(d, w.v, _mm512_set1_epi32(x4));
    }
    vi result() const { return {d}; }
};

#elif defined(__AVX2__)

struct wv { __m256i a, b; };
inline wv low_nibbles(const uint8_t* p) {
    __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(raw(p), mask), _mm256_and_si256(raw(p + 32), mask)};
}
inline wv high_nibbles(const uint8_t* p) {
    __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(_mm256_srli_epi16(raw(p), 4), mask), _mm256_and_si256(_mm256_srli_epi16(raw(p + 32), 4), mask)};
}
inline wv bytes(const uint8_t* p) { return {raw(p), raw(p + 32)}; }
inline void store_bytes(uint8_t* p, wv w) { _mm256_storeu_si256((__m256i*)p, w.a), _mm256_storeu_si256((__m256i*)(p + 32), w.b); }
inline __m256i four(const int8_t* x) {
    int32_t x4;
    __builtin_memcpy(&x4, x, 4);
    return _mm256_set1_epi32(x4);
}
// 0..15: eight steps stay within 16 bits (15 * 127 * 2 * 8 = 30480), so pairs are added up there first.
template <> struct Dot<false> {
    __m256i a, b;
    int32_t start;
    void begin(int32_t s) { a = b = _mm256_setzero_si256(), start = s; }
    void step(wv w, const int8_t* x) {
        __m256i x4 = four(x);
        a = _mm256_add_epi16(a, _mm256_maddubs_epi16(w.a, x4));
        b = _mm256_add_epi16(b, _mm256_maddubs_epi16(w.b, x4));
    }
    vi result() const {
        __m256i ones = _mm256_set1_epi16(1), s = _mm256_set1_epi32(start);
        return {_mm256_add_epi32(_mm256_madd_epi16(a, ones), s), _mm256_add_epi32(_mm256_madd_epi16(b, ones), s)};
    }
};
// 8 bits: |weight| as the unsigned factor, the activation with the weight's sign: 128 * 127 * 2 just fits 16 bits.
template <> struct Dot<true> {
    __m256i a, b;
    void begin(int32_t) { a = b = _mm256_setzero_si256(); }
    static __m256i pairs(__m256i w, __m256i x4) {
        w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
        return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x4, w)), _mm256_set1_epi16(1));
    }
    void step(wv w, const int8_t* x) {
        __m256i x4 = four(x);
        a = _mm256_add_epi32(a, pairs(w.a, x4));
        b = _mm256_add_epi32(b, pairs(w.b, x4));
    }
    vi result() const { return {a, b}; }
};

#else

struct wv { uint8_t v[64]; };
inline wv low_nibbles(const uint8_t* p) { wv w; for (int i = 0; i < 64; i++) w.v[i] = p[i] & 15; return w; }
inline wv high_nibbles(const uint8_t* p) { wv w; for (int i = 0; i < 64; i++) w.v[i] = p[i] >> 4; return w; }
inline wv bytes(const uint8_t* p) { wv w; __builtin_memcpy(&w, p, 64); return w; }
inline void store_bytes(uint8_t* p, wv w) { __builtin_memcpy(p, &w, 64); }
template <bool wide> struct Dot {
    int32_t d[16];
    void begin(int32_t start) { for (int r = 0; r < 16; r++) d[r] = start; }
    void step(const wv& w, const int8_t* x) {
        for (int r = 0; r < 16; r++)
            d[r] += w.v[4 * r] * x[0] + w.v[4 * r + 1] * x[1] + w.v[4 * r + 2] * x[2] + w.v[4 * r + 3] * x[3];
    }
    vi result() const { vi r; __builtin_memcpy(&r, d, 64); return r; }
};

#endif

// Tokens that share each load of weights; more do not fit the registers.
#if defined(__AVX512VNNI__)
constexpr int kTile = 8, kTogetherTokens = 8;
#else
constexpr int kTile = 3, kTogetherTokens = 1;
#endif

// Weights are asked for this far ahead of their use: on an Intel server core whose other thread was busy, one token
// read 11.5 instead of 8.5 GB/s, eight tokens 8.5 instead of 5 (benchmarks/native_kernels.py).
constexpr int kAhead = 4608;
template <int bytes> inline void prefetch(const uint8_t* p) {
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

// Where the vectors of a chunk (64 inner elements of 16 rows) come from: packed, or unpacked to bytes beforehand.
template <Format F> struct Packed {
    static constexpr int kWeights = F == Format::Q8 ? 1024 : 512;
    static constexpr int kBytes = kWeights + (F == Format::Q4M ? 128 : 64);
    static wv vector(const uint8_t* chunk, int group, int j) {
        if (F == Format::Q8) return bytes(chunk + 512 * group + 64 * j);
        return group ? high_nibbles(chunk + 64 * j) : low_nibbles(chunk + 64 * j);
    }
    static const half* scales(const uint8_t* chunk, int group) { return (const half*)(chunk + kWeights) + kRows * group; }
    static const half* minima(const uint8_t* chunk, int group) { return (const half*)(chunk + kWeights + 64) + kRows * group; }
};

// N tokens with one row block. `loose`: the weights' bytes, unpacked, 1024 per chunk; else they are unpacked in registers,
// where these suffice both groups of a chunk from one load.
template <Format F, int N, bool unpacked>
void quant_tile(const uint8_t* block, const uint8_t* loose, const Activations& x, float* y, ptrdiff_t ldy, int rows) {
    using P = Packed<F>;
    using Sum = Dot<F == Format::Q8>;
    constexpr int offset = F == Format::Q8 ? 128 : F == Format::Q4 ? 8 : 0;
    constexpr bool both = !unpacked && F != Format::Q8 && N <= kTogetherTokens;
    const int groups = x.groups(), width = groups * kGroup;
    vf total[N];
    for (int t = 0; t < N; t++) total[t] = set1(0.0f);
    for (int g = 0; g < groups; g += 2, block += P::kBytes) {
        if constexpr (!unpacked) prefetch<P::kBytes>(block + kAhead);
        Sum dot[2][N];
        for (int half = 0; half < 2; half++)
            for (int t = 0; t < N; t++) dot[half][t].begin(-offset * x.sum[ptrdiff_t(t) * groups + g + half]);
        if constexpr (both) {
            for (int j = 0; j < 8; j++) {
                wv low = P::vector(block, 0, j), high = P::vector(block, 1, j);
                for (int t = 0; t < N; t++) {
                    const int8_t* q = x.q + ptrdiff_t(t) * width + g * kGroup + 4 * j;
                    dot[0][t].step(low, q);
                    dot[1][t].step(high, q + kGroup);
                }
            }
        }
        for (int half = 0; half < 2; half++) {
            if constexpr (!both) {
                for (int j = 0; j < 8; j++) {
                    wv w = unpacked ? bytes(loose + 512 * ptrdiff_t(g + half) + 64 * j) : P::vector(block, half, j);
                    for (int t = 0; t < N; t++) dot[half][t].step(w, x.q + ptrdiff_t(t) * width + (g + half) * kGroup + 4 * j);
                }
            }
            vf scale = load_half(P::scales(block, half));
            for (int t = 0; t < N; t++) {
                const ptrdiff_t i = ptrdiff_t(t) * groups + g + half;
                total[t] = fma(to_float(dot[half][t].result()), mul(scale, set1(x.scale[i])), total[t]);
                if (F == Format::Q4M) total[t] = fma(load_half(P::minima(block, half)), set1(x.bias[i]), total[t]);
            }
        }
    }
    for (int t = 0; t < N; t++) store_n(y + t * ldy, total[t], rows);
}

template <Format F, int N, bool unpacked>
void quant_tokens(const uint8_t* block, const uint8_t* loose, const Activations& x, int tokens, float* y, ptrdiff_t ldy, int rows) {
    int t = 0;
    for (; t + N <= tokens; t += N) quant_tile<F, N, unpacked>(block, loose, x.from(t), y + t * ldy, ldy, rows);
    if constexpr (N > 1)
        if (t < tokens) quant_tokens<F, N - 1, unpacked>(block, loose, x.from(t), tokens - t, y + t * ldy, ldy, rows);
}

