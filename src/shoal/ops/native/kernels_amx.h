// Products of quantised weights with many tokens on AMX tiles. Included by kernels_isa.cpp.
//
// A tile product takes 16 tokens x 32 inner elements (one group) and the same elements of 16 rows. The weights' packed
// order is already the order of a B tile (4 inner elements of 16 rows per line), so they are only unpacked to signed bytes,
// once per row block and call. Since every group has scales, each product goes through memory: 16 x 16 integers, converted
// and added up as in kernels_quant.h, in the same order, to the same bits.
#pragma once

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t line_bytes[16] = {};
    uint8_t lines[16] = {};
    void set(int tile, int n, int bytes) { lines[tile] = uint8_t(n), line_bytes[tile] = uint16_t(bytes); }
};
// Tiles (their numbers must be literals in the code): products and activations of 16 tokens, weights, the same of the last tokens.
// 0: products, 1: activations, 2: weights, 3 and 4: products and activations of the last tokens, fewer than 16.

struct Loose {  // one row block, unpacked
    int8_t* weights;  // [groups][8][16 rows][4]
    float* scale;     // [groups][16]
    float* minimum;   // [groups][16], Q4M only
};

template <Format F> void loosen(const uint8_t* block, int groups, const Loose& to) {
    using P = Packed<F>;
    const __m512i zero_point = _mm512_set1_epi8(F == Format::Q8 ? -128 : F == Format::Q4 ? 8 : 0);
    for (int g = 0; g < groups; g++) {
        const uint8_t* chunk = block + ptrdiff_t(g / 2) * P::kBytes;
        for (int j = 0; j < 8; j++)
            _mm512_store_si512(to.weights + 512 * ptrdiff_t(g) + 64 * j, _mm512_sub_epi8(P::vector(chunk, g % 2, j).v, zero_point));
        store(to.scale + g * kRows, load_half(P::scales(chunk, g % 2)));
        if (F == Format::Q4M) store(to.minimum + g * kRows, load_half(P::minima(chunk, g % 2)));
    }
}

// N = 4, 8, 12 or 16 tokens, of which `valid` are stored (the others are read: activations have room for 3 more). `ahead`:
// packed weights that will be wanted next.
template <Format F, int N, bool full>
void amx_tile(const Loose& w, const uint8_t* ahead, int8_t* const q, const float* scales, const float* biases, int groups, int valid, float* y, ptrdiff_t ldy, int rows) {
    alignas(64) int32_t product[2][N * kRows];
    vf total[N];
    for (int t = 0; t < N; t++) total[t] = set1(0.0f);
    const long width = long(groups) * kGroup;
    auto add_group = [&](int g) __attribute__((always_inline)) {
        vf scale = load(w.scale + g * kRows);
        for (int t = 0; t < N; t++) {
            vi dot = {_mm512_load_si512(product[g % 2] + t * kRows)};
            float s = scales[ptrdiff_t(t) * groups + g];
            total[t] = fma(to_float(dot), mul(scale, set1(s)), total[t]);
            if (F == Format::Q4M) total[t] = fma(load(w.minimum + g * kRows), set1(biases[ptrdiff_t(t) * groups + g]), total[t]);
        }
    };
    for (int g = 0; g < groups; g++) {
        prefetch<Packed<F>::kBytes / 2>(ahead + ptrdiff_t(g) * (Packed<F>::kBytes / 2));
        _tile_loadd(2, w.weights + 512 * ptrdiff_t(g), 64);
        if constexpr (full) {
            _tile_loadd(1, q + g * kGroup, width);
            _tile_zero(0);
            _tile_dpbssd(0, 1, 2);
            _tile_stored(0, product[g % 2], 64);
        } else {
            _tile_loadd(4, q + g * kGroup, width);
            _tile_zero(3);
            _tile_dpbssd(3, 4, 2);
            _tile_stored(3, product[g % 2], 64);
        }
        if (g) add_group(g - 1);  // the product of this group is still on its way
    }
    add_group(groups - 1);
    for (int t = 0; t < N; t++)
        if (t < valid) store_n(y + t * ldy, total[t], rows);
}

// Row blocks that are unpacked together: each tile of activations is then used from the nearest cache, and the outputs of
// a token are written side by side.
constexpr int kTogether = 4;

template <Format F> void amx_matmul(const Matrix& w, const Activations& x, int tokens, float* y, ptrdiff_t ldy, int begin, int end) {
    const int groups = x.groups(), last = tokens % 16, last_lines = (last + 3) / 4 * 4;
    const size_t loose_bytes = size_t(groups) * (512 + 2 * 4 * kRows);
    char* memory = (char*)thread_scratch(kTogether * loose_bytes);
    Loose loose[kTogether];
    for (int i = 0; i < kTogether; i++, memory += loose_bytes)
        loose[i] = {(int8_t*)memory, (float*)(memory + groups * 512), (float*)(memory + groups * (512 + 4 * kRows))};
    TileConfig config;
    config.set(0, 16, 64), config.set(1, 16, kGroup), config.set(2, 8, 64);
    if (last) config.set(3, last_lines, 64), config.set(4, last_lines, kGroup);
    asm volatile("" ::: "memory");  // GCC 12 thinks that 8 bytes of the configuration are read, and drops the other stores
    _tile_loadconfig(&config);
    for (int first = begin; first < end; first += kTogether) {
        const int count = end - first < kTogether ? end - first : kTogether;
        for (int i = 0; i < count; i++) loosen<F>(w.data + (first + i) * w.block_bytes(), groups, loose[i]);
        asm volatile("" ::: "memory");  // GCC's tile loads do not say that they read memory
        auto tile = [&](auto kernel, int t, int valid) {
            const Activations from = x.from(t);
            for (int i = 0; i < count; i++) {
                const int row = (first + i) * kRows, rows = w.rows - row < kRows ? w.rows - row : kRows;
                const uint8_t* next = w.data + (first + i + (t ? 0 : kTogether)) * w.block_bytes();
                kernel(loose[i], next, from.q, from.scale, from.bias, groups, valid, y + t * ldy + row, ldy, rows);
            }
        };
        int t = 0;
        for (; t + 16 <= tokens; t += 16) tile(amx_tile<F, 16, true>, t, 16);
        if (last_lines == 16) tile(amx_tile<F, 16, false>, t, last);
        else if (last_lines == 12) tile(amx_tile<F, 12, false>, t, last);
        else if (last_lines == 8) tile(amx_tile<F, 8, false>, t, last);
        else if (last_lines == 4) tile(amx_tile<F, 4, false>, t, last);
    }
    _tile_release();
}
