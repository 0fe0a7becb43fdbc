// Packing of weights into row blocks and back. Runs once per model, so plain C++ serves every instruction set.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace shoal {

half to_half(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return half(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return half(sign | 0x7bff);  // 65520 and above would round to infinity
    if (magnitude < 0x38800000) {                             // below the smallest normal half
        float scaled = std::fabs(x) * 16777216.0f;            // in units of 2^-24, exact
        return half(sign | uint32_t(std::nearbyint(scaled)));
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return half(sign | (rounded - 0x38000000) >> 13);
}

float from_half(half x) {
    const uint32_t sign = uint32_t(x & 0x8000) << 16, exponent = x >> 10 & 31, mantissa = x & 1023;
    if (exponent == 0) {
        float value = float(mantissa) * 0x1p-24f;
        return sign ? -value : value;
    }
    const uint32_t bits = sign | (exponent == 31 ? 0x7f800000 | mantissa << 13 : (exponent + 112) << 23 | mantissa << 13);
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

namespace {

bf16 to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return bf16(bits >> 16 | 64);
    return bf16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_bf16(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

struct Place {  // of one element inside a row block
    Format format;
    size_t chunk;  // bytes of 64 inner elements
    explicit Place(Format f) : format(f), chunk(f == Format::Q8 ? 1088 : f == Format::Q4 ? 576 : 640) {}
    size_t weights() const { return format == Format::Q8 ? 1024 : 512; }
    size_t scale(int row, int group) const { return group / 2 * chunk + weights() + 2 * (group % 2 * kRows + row); }
    size_t minimum(int row, int group) const { return scale(row, group) + 64; }
    size_t weight(int row, int col) const {  // of its byte
        const int group = col / kGroup, inner = col % kGroup;
        return group / 2 * chunk + (format == Format::Q8 ? group % 2 * 512 : 0) + inner / 4 * 64 + 4 * row + inner % 4;
    }
    // Weights are stored without a sign: Q8 + 128, Q4 + 8.
    void put(uint8_t* block, int row, int col, int value) const {
        uint8_t& byte = block[weight(row, col)];
        if (format == Format::Q8) byte = uint8_t(value);
        else if (col / kGroup % 2) byte = uint8_t((byte & 0x0f) | value << 4);
        else byte = uint8_t((byte & 0xf0) | value);
    }
    int get(const uint8_t* block, int row, int col) const {
        uint8_t byte = block[weight(row, col)];
        return format == Format::Q8 ? byte : col / kGroup % 2 ? byte >> 4 : byte & 15;
    }
    int zero() const { return format == Format::Q8 ? 128 : format == Format::Q4 ? 8 : 0; }
};

void put_half(uint8_t* at, half value) { std::memcpy(at, &value, 2); }
half get_half(const uint8_t* at) { half value; std::memcpy(&value, at, 2); return value; }

void clear_block(const Place& place, int cols, uint8_t* block) {
    std::memset(block, 0, Matrix::block_bytes(place.format, cols));
    for (int chunk = 0; chunk < padded(cols) / kChunk; chunk++)
        std::memset(block + chunk * place.chunk, place.format == Format::Q8 ? 128 : place.format == Format::Q4 ? 0x88 : 0, place.weights());
}

struct Quantised {
    half scale = 0, minimum = 0;
    int q[kGroup];  // stored form, without sign
};

// 8 bits: the largest magnitude becomes 127.
Quantised quantise8(const float* x, int n) {
    Quantised r;
    float top = 0;
    for (int i = 0; i < n; i++) top = std::max(top, std::fabs(x[i]));
    r.scale = to_half(top / 127);
    const float s = from_half(r.scale), inverse = s > 0 ? 1 / s : 0;
    for (int i = 0; i < n; i++) r.q[i] = 128 + int(std::clamp(std::nearbyint(x[i] * inverse), -127.0f, 127.0f));
    return r;
}

// 4 bits: candidate scales around largest / 8 (of either sign, since -8 has no positive twin); for each the integers
// are rounded, the best scale for these integers is taken (least squares), and the least squared error wins.
Quantised quantise4(const float* x, int n) {
    Quantised best;
    std::fill(best.q, best.q + kGroup, 8);
    float top = 0;
    for (int i = 0; i < n; i++)
        if (std::fabs(x[i]) > std::fabs(top)) top = x[i];
    if (top == 0) return best;
    float best_error = INFINITY;
    for (int step = -8; step <= 8; step++) {
        const float trial = -top / (8 + 0.125f * step), inverse = 1 / trial;
        float xq = 0, qq = 0;
        int q[kGroup];
        for (int i = 0; i < n; i++) {
            q[i] = int(std::clamp(std::nearbyint(x[i] * inverse), -8.0f, 7.0f));
            xq += x[i] * q[i], qq += float(q[i] * q[i]);
        }
        if (qq == 0) continue;
        const half scale = to_half(xq / qq);
        const float s = from_half(scale);
        float error = 0;
        for (int i = 0; i < n; i++) error += (x[i] - s * q[i]) * (x[i] - s * q[i]);
        if (error < best_error) {
            best_error = error, best.scale = scale;
            for (int i = 0; i < n; i++) best.q[i] = q[i] + 8;
        }
    }
    return best;
}

// 4 bits with a minimum: candidate ranges narrower than largest - smallest, scale and minimum refitted by least squares.
Quantised quantise4m(const float* x, int n) {
    Quantised best;
    std::fill(best.q, best.q + kGroup, 0);
    const auto [low, high] = std::minmax_element(x, x + n);
    best.minimum = to_half(*low);
    if (*low == *high) return best;
    float best_error = INFINITY;
    for (int step = 0; step <= 12; step++) {
        float s = (*high - *low) / (14.4f + 0.1f * step), m = *low + 0.5f * (*high - *low - 15 * s);
        for (int fit = 0; fit < 2; fit++) {
            int q[kGroup];
            float sq = 0, sqq = 0, sx = 0, sxq = 0;
            for (int i = 0; i < n; i++) {
                q[i] = int(std::clamp(std::nearbyint((x[i] - m) / s), 0.0f, 15.0f));
                sq += float(q[i]), sqq += float(q[i] * q[i]), sx += x[i], sxq += x[i] * float(q[i]);
            }
            const float spread = n * sqq - sq * sq;
            if (spread <= 0) break;
            s = (n * sxq - sq * sx) / spread, m = (sx - s * sq) / n;
            if (!(s > 0)) break;
            const half scale = to_half(s), minimum = to_half(m);
            const float rs = from_half(scale), rm = from_half(minimum);
            float error = 0;
            for (int i = 0; i < n; i++) error += (x[i] - rs * q[i] - rm) * (x[i] - rs * q[i] - rm);
            if (error < best_error) {
                best_error = error, best.scale = scale, best.minimum = minimum;
                for (int i = 0; i < n; i++) best.q[i] = q[i];
            }
        }
    }
    return best;
}

}  // namespace

size_t Matrix::block_bytes(Format format, int cols) {
    switch (format) {
        case Format::F32: return size_t(cols) * kRows * 4;
        case Format::BF16: case Format::F16: return size_t(cols + 1) / 2 * kRows * 4;
        default: return size_t(padded(cols) / kChunk) * Place(format).chunk;
    }
}

void pack(Format format, const float* x, ptrdiff_t ldx, int rows, int cols, uint8_t* out) {
    const size_t size = Matrix::block_bytes(format, cols);
    for (int first = 0; first < rows; first += kRows, out += size) {
        const int n = std::min(kRows, rows - first);
        if (!is_quantised(format)) {
            std::memset(out, 0, size);
            for (int r = 0; r < n; r++) {
                const float* row = x + (first + r) * ldx;
                for (int d = 0; d < cols; d++) {
                    if (format == Format::F32) std::memcpy(out + (size_t(d) * kRows + r) * 4, row + d, 4);
                    else if (format == Format::F16) put_half(out + (size_t(d) * kRows + r) * 2, to_half(row[d]));
                    else put_half(out + size_t(d / 2) * 64 + r * 4 + d % 2 * 2, to_bf16(row[d]));
                }
            }
            continue;
        }
        const Place place(format);
        clear_block(place, cols, out);
        for (int r = 0; r < n; r++) {
            for (int d = 0; d < cols; d += kGroup) {
                const int count = std::min(kGroup, cols - d), g = d / kGroup;
                const float* from = x + (first + r) * ldx + d;
                const Quantised group = format == Format::Q8 ? quantise8(from, count)
                                        : format == Format::Q4 ? quantise4(from, count) : quantise4m(from, count);
                put_half(out + place.scale(r, g), group.scale);
                if (format == Format::Q4M) put_half(out + place.minimum(r, g), group.minimum);
                for (int i = 0; i < count; i++) place.put(out, r, d + i, group.q[i]);
            }
        }
    }
}

void pack_groups(Format format, const int8_t* q, const half* scale, const half* minimum, int rows, int cols, uint8_t* out) {
    const Place place(format);
    const int groups = cols / kGroup;
    for (int first = 0; first < rows; first += kRows, out += Matrix::block_bytes(format, cols)) {
        clear_block(place, cols, out);
        for (int r = 0; r < std::min(kRows, rows - first); r++) {
            const ptrdiff_t row = first + r;
            for (int g = 0; g < groups; g++) {
                put_half(out + place.scale(r, g), scale[row * groups + g]);
                if (format == Format::Q4M) put_half(out + place.minimum(r, g), minimum[row * groups + g]);
            }
            for (int d = 0; d < cols; d++) place.put(out, r, d, (q[row * cols + d] + (format == Format::Q8 ? 128 : 0)) & 255);
        }
    }
}

void unpack_row(const Matrix& w, int row, float* out) {
    const uint8_t* block = w.data + row / kRows * w.block_bytes();
    const int r = row % kRows;
    if (w.format == Format::F32) {
        for (int d = 0; d < w.cols; d++) std::memcpy(out + d, block + (size_t(d) * kRows + r) * 4, 4);
    } else if (w.format == Format::F16) {
        for (int d = 0; d < w.cols; d++) out[d] = from_half(get_half(block + (size_t(d) * kRows + r) * 2));
    } else if (w.format == Format::BF16) {
        for (int d = 0; d < w.cols; d++) out[d] = from_bf16(get_half(block + size_t(d / 2) * 64 + r * 4 + d % 2 * 2));
    } else {
        const Place place(w.format);
        for (int d = 0; d < w.cols; d++) {
            const float s = from_half(get_half(block + place.scale(r, d / kGroup)));
            const float m = w.format == Format::Q4M ? from_half(get_half(block + place.minimum(r, d / kGroup))) : 0;
            out[d] = s * float(place.get(block, r, d) - place.zero()) + m;
        }
    }
}

void unpack(const Matrix& w, float* out, ptrdiff_t ldo) {
    for (int r = 0; r < w.rows; r++) unpack_row(w, r, out + r * ldo);
}

// Room for 3 tokens more than are used: AMX reads tokens by fours.
size_t activation_bytes(int tokens, int cols) {
    tokens += 3;
    return size_t(tokens) * (padded(cols) + padded(cols) / kGroup * 12) + 128;
}

Activations make_activations(void* memory, int tokens, int cols) {
    Activations a;
    const size_t groups = padded(cols) / kGroup;
    tokens += 3;
    a.cols = cols;
    a.q = (int8_t*)memory;
    a.scale = (float*)(a.q + size_t(tokens) * padded(cols));
    a.sum = (int32_t*)(a.scale + size_t(tokens) * groups);
    a.bias = (float*)(a.sum + size_t(tokens) * groups);
    return a;
}

}  // namespace shoal
