// Work on rows of floats: norm, rotary embedding, SiLU, softmax, quantising of activations. Included by kernels_isa.cpp.
#pragma once

// Calls f(position, count) for 16 numbers at a time; the last call may have fewer.
template <class F> inline void in_vectors(int count, F f) {
    int i = 0;
    for (; i + 16 <= count; i += 16) f(i, 16);
    if (i < count) f(i, count - i);
}
inline vf load_n(const float* p, int n) { return n == 16 ? load(p) : load_part(p, n); }
inline void store_n(float* p, vf a, int n) { n == 16 ? store(p, a) : store_part(p, a, n); }

void rmsnorm(const float* x, const float* weight, float eps, int cols, float* out) {
    vf total = set1(0.0f);
    in_vectors(cols, [&](int i, int n) { vf v = load_n(x + i, n); total = fma(v, v, total); });
    vf factor = set1(1.0f / __builtin_sqrtf(sum(total) / float(cols) + eps));
    in_vectors(cols, [&](int i, int n) { store_n(out + i, mul(mul(load_n(x + i, n), factor), load_n(weight + i, n)), n); });
}

void rope(float* x, int heads, ptrdiff_t stride, int dim, const float* cos, const float* sin, bool interleaved) {
    int pairs = dim / 2;
    for (int h = 0; h < heads; h++, x += stride) {
        if (interleaved) {
            for (int i = 0; i < pairs; i++) {
                float a = x[2 * i], b = x[2 * i + 1];
                x[2 * i] = a * cos[i] - b * sin[i];
                x[2 * i + 1] = b * cos[i] + a * sin[i];
            }
        } else {
            in_vectors(pairs, [&](int i, int n) {
                vf a = load_n(x + i, n), b = load_n(x + pairs + i, n), c = load_n(cos + i, n), s = load_n(sin + i, n);
                store_n(x + i, sub(mul(a, c), mul(b, s)), n);
                store_n(x + pairs + i, add(mul(b, c), mul(a, s)), n);
            });
        }
    }
}

inline vf silu(vf x) { return div(x, add(set1(1.0f), exp(sub(set1(0.0f), x)))); }

void silu_mul(const float* gate, const float* up, int count, float* out) {
    in_vectors(count, [&](int i, int n) { store_n(out + i, mul(silu(load_n(gate + i, n)), load_n(up + i, n)), n); });
}

void silu_mul_blocks(const float* gu, int count, float* out) {
    in_vectors(count, [&](int i, int n) { store_n(out + i, mul(silu(load_n(gu + 2 * i, n)), load_n(gu + 2 * i + 16, n)), n); });
}

void add_to(float* x, const float* y, int count) {
    in_vectors(count, [&](int i, int n) { store_n(x + i, add(load_n(x + i, n), load_n(y + i, n)), n); });
}

void axpy(float* x, float a, const float* y, int count) {
    in_vectors(count, [&](int i, int n) { store_n(x + i, fma(set1(a), load_n(y + i, n), load_n(x + i, n)), n); });
}

inline float largest(const float* x, int count) {
    vf top = set1(x[0]);
    int i = 0;
    for (; i + 16 <= count; i += 16) top = max(load(x + i), top);
    float best = maximum(top);
    for (; i < count; i++) best = x[i] > best ? x[i] : best;
    return best;
}

float softmax(float* x, int count) {
    float top = largest(x, count);
    vf total = set1(0.0f);
    in_vectors(count, [&](int i, int n) {
        store_n(x + i, exp(sub(load_n(x + i, n), set1(top))), n);
        total = add(total, load_n(x + i, n));
    });
    float whole = sum(total);
    vf factor = set1(1.0f / whole);
    in_vectors(count, [&](int i, int n) { store_n(x + i, mul(load_n(x + i, n), factor), n); });
    return top + __builtin_logf(whole);
}

int argmax(const float* x, int count) {
    float best = -__builtin_inff();
    int at = 0;
    // Sixteen at a time are passed over when none of them is larger than the best so far.
    int i = 0;
    for (; i + 16 <= count; i += 16) {
        if (!(maximum(max(load(x + i), set1(-__builtin_inff()))) > best)) continue;  // in this order not-a-numbers drop out
        for (int j = i; j < i + 16; j++)
            if (x[j] > best) best = x[j], at = j;
    }
    for (; i < count; i++)
        if (x[i] > best) best = x[i], at = i;
    return at;
}

// Per group of 32: scale = largest magnitude / 127, integers = x / scale rounded to nearest even.
void quantise(const float* x, ptrdiff_t ldx, const Activations& into, int begin, int end) {
    int width = padded(into.cols), groups = width / kGroup;
    for (int t = begin; t < end; t++) {
        const float* row = x + t * ldx;
        int8_t* q = into.q + ptrdiff_t(t) * width;
        for (int g = 0; g < groups; g++) {
            int at = g * kGroup, left = into.cols - at;
            vf a = left >= 16 ? load(row + at) : left > 0 ? load_part(row + at, left) : set1(0.0f);
            vf b = left >= 32 ? load(row + at + 16) : left > 16 ? load_part(row + at + 16, left - 16) : set1(0.0f);
            float top = maximum(max(abs(a), abs(b)));
            float inverse = top > 1e-30f ? 127.0f / top : 0.0f;  // else the quotient overflows
            vi qa = to_int(mul(a, set1(inverse))), qb = to_int(mul(b, set1(inverse)));
            store_bytes(q + at, qa);
            store_bytes(q + at + 16, qb);
            const ptrdiff_t i = ptrdiff_t(t) * groups + g;
            into.scale[i] = top > 1e-30f ? top / 127.0f : 0.0f;
            into.sum[i] = int32_t(sum(to_float(add(qa, qb))));
            into.bias[i] = into.scale[i] * float(into.sum[i]);
        }
    }
}
