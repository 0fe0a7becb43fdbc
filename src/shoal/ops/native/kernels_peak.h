// What this core can do at most, for judging the kernels by: reading memory, and the multiplications they are made of.
// Included by kernels_isa.cpp. Each does work of a known size and returns something that depends on it.
#pragma once

float peak_read(const void* data, size_t bytes) {
    const float* p = (const float*)data;
    vf total[8];
    for (auto& t : total) t = set1(0.0f);
    for (size_t i = 0; i + 128 <= bytes / 4; i += 128)
        for (int j = 0; j < 8; j++) total[j] = max(total[j], load(p + i + 16 * j));
    for (int j = 1; j < 8; j++) total[0] = max(total[0], total[j]);
    return maximum(total[0]);
}

// kPeakFloat float multiply-adds a round.
constexpr int kPeakFloat = 8 * 16;
float peak_float(long rounds) {
    vf total[8], w = set1(0.5f);
    for (int j = 0; j < 8; j++) total[j] = set1(float(j));
    for (long i = 0; i < rounds; i++)
        for (int j = 0; j < 8; j++) total[j] = fma(total[j], w, w);
    for (int j = 1; j < 8; j++) total[0] = add(total[0], total[j]);
    return sum(total[0]);
}

// Integer multiply-adds a round, of the kind that prefill uses: tiles of one group, or dot products of bytes.
#if defined(__AMX_INT8__)
constexpr int kPeakInteger = 4 * 16 * 16 * kGroup;
float peak_integer(long rounds) {
    TileConfig config;
    for (int i = 0; i < 4; i++) config.set(i, 16, 64);
    config.set(4, 16, kGroup), config.set(5, 8, 64);
    asm volatile("" ::: "memory");
    _tile_loadconfig(&config);
    _tile_zero(4);
    _tile_zero(5);
    for (long i = 0; i < rounds; i++) {
        _tile_dpbssd(0, 4, 5);
        _tile_dpbssd(1, 4, 5);
        _tile_dpbssd(2, 4, 5);
        _tile_dpbssd(3, 4, 5);
    }
    _tile_release();
    return float(rounds);
}
#else
constexpr int kPeakInteger = 6 * 64;
float peak_integer(long rounds) {
    alignas(64) uint8_t line[64] = {1, 2, 3};
    int8_t x[4] = {1, -1, 2, -2};
    Dot<false> dot[6];
    for (auto& d : dot) d.begin(0);
    wv w = bytes(line);
    for (long i = 0; i < rounds; i++) {
        asm volatile("" : "+m"(x));
        for (auto& d : dot) d.step(w, x);
    }
    vf total = set1(0.0f);
    for (auto& d : dot) total = add(total, to_float(d.result()));
    return sum(total);
}
#endif
