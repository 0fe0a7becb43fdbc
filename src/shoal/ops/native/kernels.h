// The kernels' interface. Shapes: T tokens, D columns (inner size), R rows (outputs), N heads, H head size.
//
// Weights are packed in blocks of 16 rows ("row blocks"), the rows interleaved, so that one 64-byte vector holds the
// next four inner elements of all 16 rows and no kernel ever sums across a vector. A matrix is its row blocks, one
// after the other: any range of blocks is a matrix, and blocks of several matrices may be laid side by side
// (q, k and v; gate and up alternating). docs/native-kernels.md draws the layout.
//
// Every output element is computed by one sequence of operations, whatever the number of tokens, threads or the
// range of rows in a call: results are equal bit for bit. The quantised products are equal between instruction sets
// too.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shoal {

constexpr int kRows = 16;     // rows interleaved in a block
constexpr int kGroup = 32;    // inner elements that share a scale
constexpr int kChunk = 64;    // inner elements are padded with zeros to a multiple of this
constexpr int kLayout = 1;    // version of the packed layout, for keys of caches on disk

using half = uint16_t;  // bits of an IEEE half-precision number
using bf16 = uint16_t;  // upper half of a float

// F32, BF16, F16: floats, multiplied with float activations.
// Q8: integers -128..127 times a scale.  Q4: integers -8..7 times a scale (GGUF's Q4_0).
// Q4M: integers 0..15 times a scale, plus a minimum (GGUF's Q4_1).  One fp16 scale (and minimum) for 32 elements.
enum class Format : int { F32 = 0, BF16 = 1, Q8 = 2, Q4 = 3, Q4M = 4, F16 = 5 };

inline bool is_quantised(Format format) { return format == Format::Q8 || format == Format::Q4 || format == Format::Q4M; }
inline int padded(int cols) { return (cols + kChunk - 1) / kChunk * kChunk; }

// A view; the memory is the caller's: position-independent, 64-byte aligned, at best in huge pages.
struct Matrix {
    Format format = Format::F32;
    int rows = 0, cols = 0;  // rows need not be a multiple of 16: the rest of the last block is zeros
    const uint8_t* data = nullptr;
    int blocks() const { return (rows + kRows - 1) / kRows; }
    size_t block_bytes() const { return block_bytes(format, cols); }
    static size_t block_bytes(Format format, int cols);
};

// Activations of T tokens. For quantised weights: int8 per element, and per group a scale and the sum of the integers.
// For weights that are floats only `x` is read.
struct Activations {
    const float* x = nullptr;  // [T, D], rows `ldx` floats apart
    ptrdiff_t ldx = 0;
    int8_t* q = nullptr;      // [T, padded(D)]
    float* scale = nullptr;   // [T, padded(D)/32]
    int32_t* sum = nullptr;   // [T, padded(D)/32]
    float* bias = nullptr;    // [T, padded(D)/32]: scale * sum, what a minimum is multiplied with
    int cols = 0;
    int groups() const { return padded(cols) / kGroup; }
    Activations from(int token) const {  // the same, beginning at a later token
        Activations a = *this;
        if (x) a.x += token * ldx;
        const ptrdiff_t skip = ptrdiff_t(token) * groups();
        if (q) a.q += skip * kGroup, a.scale += skip, a.sum += skip, a.bias += skip;
        return a;
    }
};

// Bytes that the quantised part of T tokens needs, and the views into 64-byte aligned memory of that size.
size_t activation_bytes(int tokens, int cols);
Activations make_activations(void* memory, int tokens, int cols);

// One layer's cache of keys and values in blocks of `block_size` positions (a multiple of 16), in fp16.
// Block b: keys   at k + b * k_block(): [N_kv][block_size/16][k_dim][16 positions]   (transposed tiles)
//          values at v + b * v_block(): [N_kv][block_size][v_dim]
// MLA in absorbed form is the case N_kv = 1: key = latent and rope part, value = the latent.
struct KvCache {
    half* k = nullptr;
    half* v = nullptr;
    int block_size = 32, kv_heads = 1, k_dim = 0, v_dim = 0;
    ptrdiff_t k_stride = 0, v_stride = 0;  // halves from one block to the next; 0: k_block() / v_block() (packed)
    ptrdiff_t k_block() const { return k_stride ? k_stride : ptrdiff_t(kv_heads) * block_size * k_dim; }
    ptrdiff_t v_block() const { return v_stride ? v_stride : ptrdiff_t(kv_heads) * block_size * v_dim; }
};

// Attention of some consecutive query positions of one sequence. Query i stands at position start + i and sees the
// positions 0 .. start + i, all of which are in the cache.
struct AttentionTask {
    const float* q = nullptr;  // [queries, N, k_dim], tokens `ldq` floats apart; already rotated
    ptrdiff_t ldq = 0;
    float* out = nullptr;      // [queries, N, v_dim], tokens `ldo` floats apart
    ptrdiff_t ldo = 0;
    const int32_t* table = nullptr;  // cache blocks of the sequence
    int start = 0, queries = 1;
    int heads = 1;      // N; heads h*N/N_kv .. share key head h
    float scale = 1.0f; // of the scores
};

// Positions are worked off in spans of this size, each with a maximum and a sum of its own, merged in ascending order.
constexpr int kSpan = 256;

struct Kernels {
    const char* name;

    // y[t, r] = sum_d w[r, d] x[t, d] for the rows of the blocks begin..end (16 rows each; clipped to w.rows), all T
    // tokens; y is [T, w.rows] with rows `ldy` apart. Chooses between its forms for one, few and many tokens.
    void (*matmul)(const Matrix& w, const Activations& x, int tokens, float* y, ptrdiff_t ldy, int begin, int end);

    // Fills q, scale, sum, bias of `into` for tokens begin..end from x [T, D] (and remembers nothing of x: set into.x yourself).
    void (*quantise)(const float* x, ptrdiff_t ldx, const Activations& into, int begin, int end);

    // Attention of one key head's rows [first, first + count) over all positions; row = query * N/N_kv + head of the group.
    void (*attention)(const KvCache& cache, const AttentionTask& task, int kv_head, int first, int count);
    // For spreading one sequence over threads: the positions of one span only, into
    // partial [queries * N/N_kv][v_dim + 2] = weighted values, maximum, sum; and the merge of `spans` such partials, which
    // lie `stride` floats apart, into out. attention() gives the same bits.
    void (*attention_span)(const KvCache& cache, const AttentionTask& task, int kv_head, int span, float* partial);
    void (*attention_merge)(const KvCache& cache, const AttentionTask& task, int kv_head, int spans, const float* partial,
                            ptrdiff_t stride);
    // Stores keys [N_kv, k_dim] and values [N_kv, v_dim] of one token at a position (saturating to fp16's range).
    // Either may be null.
    void (*store)(const KvCache& cache, const int32_t* table, int position, const float* k, const float* v);

    // out = x / sqrt(mean(x^2) + eps) * weight, of `cols` numbers; x and out may be the same.
    void (*rmsnorm)(const float* x, const float* weight, float eps, int cols, float* out);
    // Rotates `heads` heads, `stride` floats apart, in place: pairs (i, i + dim/2) or, interleaved, (2i, 2i + 1);
    // cos and sin: [dim/2] of the token's position. Only the first `dim` floats of a head are touched.
    void (*rope)(float* x, int heads, ptrdiff_t stride, int dim, const float* cos, const float* sin, bool interleaved);
    // out[i] = gate[i] * sigmoid(gate[i]) * up[i]; out may be gate or up.
    void (*silu_mul)(const float* gate, const float* up, int count, float* out);
    // The same where gate and up come as blocks of 16 alternating (gu: [2 * count]); out may be gu.
    void (*silu_mul_blocks)(const float* gu, int count, float* out);
    // x += y, and x += a * y.
    void (*add)(float* x, const float* y, int count);
    void (*axpy)(float* x, float a, const float* y, int count);
    // In place; returns the logarithm of the sum of exponentials (with the maximum taken into account).
    float (*softmax)(float* x, int count);
    // The index of the largest number; the first of equals; not-a-numbers lose.
    int (*argmax)(const float* x, int count);

    // Limits to judge by (kernels_peak.h): read memory; do `rounds` times so many multiply-adds on floats, on integers.
    float (*peak_read)(const void* data, size_t bytes);
    float (*peak_float)(long rounds);
    int peak_float_round;
    float (*peak_integer)(long rounds);
    int peak_integer_round;
};

const Kernels& kernels();                 // those in use: the best that this CPU can run, unless
bool use_kernels(const char* name);       // forced: false where this CPU or this build lacks them. Not while a step runs.
const char* const* available_kernels();   // names, best first, ended by nullptr

// ---- packing (quant.cpp); all produce the bytes of consecutive row blocks

// From floats [rows, cols]; rows of a last, partial block are zeros.
void pack(Format format, const float* x, ptrdiff_t ldx, int rows, int cols, uint8_t* out);
// From integers -128..127 (Q8), 0..15 (Q4: value + 8; Q4M) and fp16 scales and minima [rows, groups]: lossless.
// cols must be a multiple of 32.
void pack_groups(Format format, const int8_t* q, const half* scale, const half* minimum, int rows, int cols, uint8_t* out);
// Back to floats [rows, cols].
void unpack(const Matrix& w, float* out, ptrdiff_t ldo);

// One row (an embedding).
void unpack_row(const Matrix& w, int row, float* out);

half to_half(float x);  // to nearest even, saturating to +-65504
float from_half(half x);

// This thread's scratch memory, 64-byte aligned, at least this large; valid until the thread's next call.
void* thread_scratch(size_t bytes);

// Memory in huge pages where the system gives them (Linux: madvise); 2 MB aligned. Returns nullptr when there is none.
void* huge_alloc(size_t bytes);
void huge_free(void* memory, size_t bytes);

}  // namespace shoal
