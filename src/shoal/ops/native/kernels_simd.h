// Vectors of 16 floats or integers in the terms of one instruction set: AVX-512, AVX2 + FMA + F16C, or plain C++ (four
// vectors of 4, which any compiler for x86 or ARM has registers for). Included by kernels_isa.cpp inside the namespace of
// the set. Nothing here or in the kernels may be shared between sets: a linker would keep one copy of an inline
// function for all, and the plain kernels would then run AVX-512 code. Hence no templates of the standard library.
#pragma once

struct vf;
struct vi;

#if defined(__AVX512F__)

struct vf { __m512 v; };
struct vi { __m512i v; };
inline vf load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, vf a) { _mm512_storeu_ps(p, a.v); }
inline vf load_part(const float* p, int n) { return {_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)}; }
inline void store_part(float* p, vf a, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), a.v); }
inline vf set1(float x) { return {_mm512_set1_ps(x)}; }
inline vf add(vf a, vf b) { return {_mm512_add_ps(a.v, b.v)}; }
inline vf sub(vf a, vf b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline vf mul(vf a, vf b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline vf div(vf a, vf b) { return {_mm512_div_ps(a.v, b.v)}; }
inline vf fma(vf a, vf b, vf c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline vf max(vf a, vf b) { return {_mm512_max_ps(a.v, b.v)}; }
inline vf min(vf a, vf b) { return {_mm512_min_ps(a.v, b.v)}; }
inline vf abs(vf a) { return {_mm512_abs_ps(a.v)}; }
inline vf round(vf a) { return {_mm512_roundscale_ps(a.v, 0)}; }
inline vf to_float(vi a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline vi to_int(vf a) { return {_mm512_cvtps_epi32(a.v)}; }  // to nearest even
inline vf power2(vi n) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n.v, _mm512_set1_epi32(127)), 23))}; }
inline vf load_half(const half* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline void store_half(half* p, vf a) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, 0)); }
// 16 pairs of bf16: the first or the second of each.
inline vf load_bf16_even(const uint8_t* p) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))}; }
inline vf load_bf16_odd(const uint8_t* p) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(int(0xffff0000u))))};
}
inline void store_bytes(int8_t* p, vi a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(a.v)); }
inline vi add(vi a, vi b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline vf zero_below(vf value, vf x, float limit) {  // value, but 0 where x < limit
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLT_UQ), value.v)};
}

#elif defined(__AVX2__)

struct vf { __m256 a, b; };
struct vi { __m256i a, b; };
inline vf load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, vf x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
inline vf set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline vf add(vf x, vf y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline vf sub(vf x, vf y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline vf mul(vf x, vf y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline vf div(vf x, vf y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline vf fma(vf x, vf y, vf z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline vf max(vf x, vf y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline vf min(vf x, vf y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline vf abs(vf x) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline vf round(vf x) { return {_mm256_round_ps(x.a, 0), _mm256_round_ps(x.b, 0)}; }
inline vf to_float(vi x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline vi to_int(vf x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline __m256 power2(__m256i n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23)); }
inline vf power2(vi n) { return {power2(n.a), power2(n.b)}; }
inline vf load_half(const half* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline void store_half(half* p, vf x) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, 0)), _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, 0));
}
inline __m256i raw(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline vf load_bf16_even(const uint8_t* p) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(raw(p), 16)), _mm256_castsi256_ps(_mm256_slli_epi32(raw(p + 32), 16))};
}
inline vf load_bf16_odd(const uint8_t* p) {
    __m256i high = _mm256_set1_epi32(int(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(raw(p), high)), _mm256_castsi256_ps(_mm256_and_si256(raw(p + 32), high))};
}
inline void store_bytes(int8_t* p, vi x) {
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i*)p, bytes);
}
inline vi add(vi x, vi y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline vf zero_below(vf value, vf x, float limit) {
    __m256 bound = _mm256_set1_ps(limit);
    return {_mm256_and_ps(_mm256_cmp_ps(x.a, bound, _CMP_NLT_UQ), value.a), _mm256_and_ps(_mm256_cmp_ps(x.b, bound, _CMP_NLT_UQ), value.b)};
}

#else

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
struct vf { f4 v[4]; };
struct vi { i4 v[4]; };
template <class V, class F> inline V each(F f) {
    V r;
    for (int i = 0; i < 4; i++) r.v[i] = f(i);
    return r;
}
template <class F> inline vf lanes(F f) {
    vf r;
    for (int i = 0; i < 16; i++) r.v[i / 4][i % 4] = f(i);
    return r;
}
inline float lane(const vf& a, int i) { return a.v[i / 4][i % 4]; }
inline vf load(const float* p) { vf r; __builtin_memcpy(&r, p, 64); return r; }
inline void store(float* p, vf a) { __builtin_memcpy(p, &a, 64); }
inline vf set1(float x) { return each<vf>([&](int) { return f4{x, x, x, x}; }); }
inline vf add(vf a, vf b) { return each<vf>([&](int i) { return a.v[i] + b.v[i]; }); }
inline vf sub(vf a, vf b) { return each<vf>([&](int i) { return a.v[i] - b.v[i]; }); }
inline vf mul(vf a, vf b) { return each<vf>([&](int i) { return a.v[i] * b.v[i]; }); }
inline vf div(vf a, vf b) { return each<vf>([&](int i) { return a.v[i] / b.v[i]; }); }
// A true fused operation, so that products have the bits of the other sets (on x86 without FMA: a library call).
inline vf fma(vf a, vf b, vf c) { return lanes([&](int i) { return __builtin_fmaf(lane(a, i), lane(b, i), lane(c, i)); }); }
inline vf max(vf a, vf b) { return each<vf>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline vf min(vf a, vf b) { return each<vf>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline vf abs(vf a) { return lanes([&](int i) { return __builtin_fabsf(lane(a, i)); }); }
inline vf round(vf a) { return lanes([&](int i) { return __builtin_rintf(lane(a, i)); }); }
inline vf to_float(vi a) { return each<vf>([&](int i) { return __builtin_convertvector(a.v[i], f4); }); }
inline vi to_int(vf a) { return each<vi>([&](int i) { vf r = round(a); return __builtin_convertvector(r.v[i], i4); }); }
inline vf power2(vi n) { return each<vf>([&](int i) { return (f4)((n.v[i] + 127) << 23); }); }
inline vf load_half(const half* p) { return lanes([&](int i) { return from_half(p[i]); }); }
inline void store_half(half* p, vf a) { for (int i = 0; i < 16; i++) p[i] = to_half(lane(a, i)); }
inline vf load_bf16_even(const uint8_t* p) {
    return each<vf>([&](int i) { i4 w; __builtin_memcpy(&w, p + 16 * i, 16); return (f4)(w << 16); });
}
inline vf load_bf16_odd(const uint8_t* p) {
    return each<vf>([&](int i) { i4 w; __builtin_memcpy(&w, p + 16 * i, 16); return (f4)(w & int(0xffff0000u)); });
}
inline void store_bytes(int8_t* p, vi a) { for (int i = 0; i < 16; i++) p[i] = int8_t(a.v[i / 4][i % 4]); }
inline vi add(vi a, vi b) { return each<vi>([&](int i) { return a.v[i] + b.v[i]; }); }
inline vf zero_below(vf value, vf x, float limit) { return lanes([&](int i) { return lane(x, i) < limit ? 0.0f : lane(value, i); }); }

#endif

#if !defined(__AVX512F__)
inline vf load_part(const float* p, int n) {
    float t[16] = {};
    __builtin_memcpy(t, p, 4 * n);
    return load(t);
}
inline void store_part(float* p, vf a, int n) {
    float t[16];
    store(t, a);
    __builtin_memcpy(p, t, 4 * n);
}
#endif

// Sums and maxima over the 16 lanes, in the same order everywhere: halves folded onto each other.
#if defined(__AVX2__)
#if defined(__AVX512F__)
inline __m256 lower(vf a) { return _mm512_castps512_ps256(a.v); }
inline __m256 upper(vf a) { return _mm512_extractf32x8_ps(a.v, 1); }
#else
inline __m256 lower(vf a) { return a.a; }
inline __m256 upper(vf a) { return a.b; }
#endif
inline float sum(vf a) {
    __m256 eight = _mm256_add_ps(lower(a), upper(a));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float maximum(vf a) {
    __m256 eight = _mm256_max_ps(lower(a), upper(a));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#else
template <class Op> inline float fold(vf a, Op op) {
    float t[16];
    store(t, a);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) t[i] = op(t[i], t[i + width]);
    return t[0];
}
inline float sum(vf a) { return fold(a, [](float x, float y) { return x + y; }); }
inline float maximum(vf a) { return fold(a, [](float x, float y) { return x > y ? x : y; }); }
#endif

// e^x to 1-2 units in the last place: x = n ln 2 + r, a polynomial for e^r (Cephes), times 2^n. Below -87.3: 0.
inline vf exp(vf x) {
    vf y = max(set1(-87.3f), min(set1(88.0f), x));  // in this order not-a-numbers stay
    vf n = round(mul(y, set1(1.44269504f)));
    vf r = fma(n, set1(-0.693359375f), y);
    r = fma(n, set1(2.12194440e-4f), r);
    vf p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = fma(p, mul(r, r), add(r, set1(1.0f)));
    return zero_below(mul(p, power2(to_int(n))), x, -87.3f);
}
inline float exp1(float x) {
    float t[16];
    store(t, exp(set1(x)));
    return t[0];
}
// Into the range of half precision, so that no infinity gets into a cache.
inline vf saturate(vf x) { return max(set1(-65504.0f), min(set1(65504.0f), x)); }
