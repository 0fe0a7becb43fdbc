// The forward pass of a decoder over a batch of sequences, in one call. The step knows numbers and weights only; what
// they mean (which checkpoint, which names) is the caller's (engine/native_weights.py).
//
// Legend: T tokens of the batch, D hidden, N heads, K key heads, H head size, V vocabulary; MLA: C latent, P rope part.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace shoal {

// Matrices of one input whose outputs lie side by side: y = [w_0 x ; w_1 x ; ...] + bias.
struct Linear {
    std::vector<Matrix> parts;
    const float* bias = nullptr;
    int rows() const {
        int sum = 0;
        for (const Matrix& part : parts) sum += part.rows;
        return sum;
    }
    bool quantised() const {
        for (const Matrix& part : parts)
            if (is_quantised(part.format)) return true;
        return false;
    }
};

// `count` equal matrices, one after the other (heads, experts).
struct Stack {
    Matrix first;
    int count = 0;
    Matrix at(int i) const {
        Matrix m = first;
        m.data += size_t(i) * m.blocks() * m.block_bytes();
        return m;
    }
};

// `count` SwiGLU networks. gate_up: blocks of 16 rows of gate and up alternating, width padded to whole blocks.
struct Mlp {
    Stack gate_up, down;
    bool exists() const { return gate_up.count > 0; }
};

struct Layer {
    const float *input_norm = nullptr, *post_norm = nullptr;
    Linear in;            // GQA: q, k, v. MLA: q or its low rank, then latent and rope key
    Linear out;           // attention's output projection
    const float *q_norm = nullptr, *k_norm = nullptr;  // Qwen3: of each head
    const float *q_a_norm = nullptr, *latent_norm = nullptr;  // MLA
    Linear q_b;           // MLA with a low-rank query
    Stack k_up, v_up;     // MLA, per head: nope -> latent, latent -> value
    Mlp dense;            // the dense network, or the shared experts
    Mlp experts;
    Matrix router;        // F32 [experts, D]
    const float* router_bias = nullptr;
    // Multi-token prediction: what comes before and behind the layer itself.
    const float *embedding_norm = nullptr, *hidden_norm = nullptr, *output_norm = nullptr;
    Matrix join;          // [normed embedding ; normed hidden state] -> D
};

struct Shape {
    int hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0, layers = 0;
    int latent = 0, rope = 0, nope = 0, value = 0, q_rank = 0;  // MLA where latent > 0; GQA: rope = head_dim
    int experts = 0, experts_per_token = 0, groups = 1, kept_groups = 1;
    int mtp = 0;  // 1: behind the layers stands a multi-token prediction module
    bool interleaved = false, sigmoid = false, normalise = false, two_best = false;
    float eps = 1e-6f, scale = 1.0f, rope_factor = 1.0f, routed_scale = 1.0f;
    std::vector<float> frequencies;  // radians per position, [rope / 2]
};

struct Sequence {
    std::vector<int32_t> tokens, table;
    int start = 0;
    int logits = 0;   // of that many last tokens
    int adapter = -1;
};

struct Results {  // null: not wanted
    float* logits = nullptr;     // [rows, V]
    float* hidden = nullptr;     // [rows, D]
    int32_t* routing = nullptr;  // [T, MoE layers, experts per token]
};

// Which product of a layer a low-rank update belongs to.
enum class Product : int { In = 0, QB = 1, Out = 2, GateUp = 3, Down = 4, ExpertGateUp = 5, ExpertDown = 6, KUp = 7, VUp = 8, Head = 9 };

// y += b (a x), the adapter's scale already in b; both F32.
struct LowRank {
    Matrix a, b;
};

constexpr int kSlots = 20;  // buffers of a step

// Grow-only memory; what it held is lost when it grows.
class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    ~Scratch() { release(); }
    void* bytes(size_t size);
    float* floats(size_t count) { return static_cast<float*>(bytes(count * sizeof(float))); }

private:
    static constexpr size_t kHuge = 1 << 20;  // in huge pages from here on: a small buffer must not take 2 MB
    void release();
    void* memory_ = nullptr;
    size_t size_ = 0;
};

class Step {
public:
    Step(Shape shape, int cache_blocks, int block_size, int max_threads);
    ~Step();

    std::vector<Layer> layers;
    Matrix embedding;
    Linear head;
    const float* final_norm = nullptr;

    void add_update(int adapter, int layer, Product product, int index, LowRank update);
    void remove_adapter(int adapter);

    // Runs the sequences on `threads` threads.
    void run(const std::vector<Sequence>& batch, Results results, int threads);
    // The tokens of a sequence here are those behind its positions; the MTP module reads them beside what `run` left in
    // the cache, then drafts counts[i] greedy tokens, fed with its own output.
    std::vector<std::vector<int32_t>> draft(std::vector<Sequence> batch, const std::vector<int>& counts, int threads);

    const Shape& shape() const { return shape_; }
    int max_threads() const { return pool_.max_threads(); }
    int moe_layers() const;
    // A cache block holds all layers: [layer][keys, values]; with MTP also its layer, and the final hidden states.
    size_t cache_block_bytes() const { return cache_block_bytes_; }
    uint8_t* cache_block(int block) { return cache_ + size_t(block) * cache_block_bytes_; }
    int cache_blocks() const { return cache_blocks_; }

private:
    friend class Forward;
    KvCache cache(int layer) const;
    KvCache hidden_cache() const;  // values only: the normed hidden state of each position
    const LowRank* update(int adapter, int layer, Product product, int index) const;

    Shape shape_;
    Pool pool_;
    int cache_blocks_, block_size_;
    size_t cache_block_bytes_ = 0;
    uint8_t* cache_ = nullptr;
    std::unordered_map<int, std::unordered_map<uint64_t, LowRank>> updates_;
    Scratch shared_[kSlots];
    std::vector<std::unique_ptr<Scratch[]>> own_;  // per thread
};

}  // namespace shoal
